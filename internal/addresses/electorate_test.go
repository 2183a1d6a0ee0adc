// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

func node(name string, opts ...func(*model.Node)) *model.Node {
	n := &model.Node{Meta: model.Meta{Name: model.Name{Name: name}}}
	for _, o := range opts {
		o(n)
	}
	return n
}
func unreachable(n *model.Node) { n.Unreachable = true }
func excluded(n *model.Node)    { n.ExcludedFromLB = true }

// on is the slice of a Service's endpoints, "n1 n2:terminating n3:notready".
func on(service, endpoints string, f model.Family) *model.EndpointSlice {
	s := &model.EndpointSlice{Meta: model.Meta{Name: model.Name{Namespace: "default", Name: fmt.Sprint(service, "-", f)}}, Service: service, Family: f}
	for _, e := range strings.Fields(endpoints) {
		n, how, _ := strings.Cut(e, ":")
		s.Endpoints = append(s.Endpoints, model.Endpoint{Node: n, Ready: how == "", Serving: how != "notready", Terminating: how == "terminating" || how == "gone"})
	}
	return s
}

var (
	anAddr  = netip.MustParseAddr("192.0.2.1")
	anAddr6 = netip.MustParseAddr("2001:db8::1")
	mark    = note(AllocatedAnnotation, "p")
)

func everyone(string) bool { return true }

// winners are the nodes that come into question: those with the highest score.
func winners(cs []Candidate) string {
	var out []string
	for _, c := range cs {
		best := slices.MaxFunc(cs, func(a, b Candidate) int { return a.Score - b.Score })
		if c.Score == best.Score {
			out = append(out, c.Node)
		}
	}
	return strings.Join(out, " ")
}

func TestCandidates(t *testing.T) {
	at := status("192.0.2.1")
	for _, c := range []struct {
		name string
		d    *model.Delta
		addr netip.Addr
		want string
	}{
		{"Cluster: every node", delta(svc("a", mark, at), node("n1"), node("n2")), anAddr, "n1 n2"},
		{"not by weft", delta(svc("a", at), node("n1")), anAddr, ""},
		{"deleting", delta(svc("a", mark, at, deleting), node("n1")), anAddr, ""},
		{"another proxy's", delta(svc("a", mark, at, labels(model.ProxyNameLabel, "other")), node("n1")), anAddr, ""},
		{"about to be deleted: rather not", delta(svc("a", mark, at), node("n1", func(n *model.Node) { n.ToBeDeleted = true }), node("n2")), anAddr, "n2"},
		{"not a load balancer", delta(svc("a", mark, at, clusterIP), node("n1")), anAddr, ""},
		{"ipMode Proxy", delta(svc("a", mark, func(s *model.Service) { s.Ingress = []model.LoadBalancerIngress{{IP: anAddr, Proxy: true}} }), node("n1")), anAddr, ""},
		{"another address", delta(svc("a", mark, at), node("n1")), anAddr6, ""},
		{"heard of first", delta(svc("a", mark, at), node("n1", unreachable), node("n2")), anAddr, "n2"},
		{"none heard of: better than none", delta(svc("a", mark, at), node("n1", unreachable), node("n2", unreachable)), anAddr, "n1 n2"},
		{"excluded: never", delta(svc("a", mark, at), node("n1", excluded)), anAddr, ""},
		{"being deleted: never", delta(svc("a", mark, at), node("n1", func(n *model.Node) { n.Deleting = true })), anAddr, ""},
		{"Local: where the endpoints are", delta(svc("a", mark, at, local), node("n1"), node("n2"), node("n3"), on("a", "n1 n3", model.IPv4)), anAddr, "n1 n3"},
		{"Local: nowhere", delta(svc("a", mark, at, local), node("n1")), anAddr, ""},
		{"Local: not-ready endpoints are none", delta(svc("a", mark, at, local), node("n1"), on("a", "n1:notready", model.IPv4)), anAddr, ""},
		{"Local: another's endpoints", delta(svc("a", mark, at, local), node("n1"), on("b", "n1", model.IPv4)), anAddr, ""},
		{"Local: of the other family", delta(svc("a", mark, at, local), node("n1"), on("a", "n1", model.IPv6)), anAddr, ""},
		{"Local: a ready one rather than a terminating", delta(svc("a", mark, at, local), node("n1"), node("n2"), on("a", "n1:terminating n2", model.IPv4)), anAddr, "n2"},
		{"Local: terminating ones if there are no others", delta(svc("a", mark, at, local), node("n1"), node("n2"), on("a", "n1:terminating", model.IPv4)), anAddr, "n1"},
		{"Local: on a node that is gone", delta(svc("a", mark, at, local), on("a", "n9", model.IPv4)), anAddr, ""},
		{"Local, IPv6", delta(svc("a", mark, status("192.0.2.1", "2001:db8::1"), local), node("n1"), node("n2"), on("a", "n1", model.IPv4), on("a", "n2", model.IPv6)), anAddr6, "n2"},
		{"shared: who serves the most", delta(svc("a", mark, at, local), svc("b", mark, at, local), node("n1"), node("n2"), node("n3"),
			on("a", "n1 n2", model.IPv4), on("b", "n2 n3", model.IPv4)), anAddr, "n2"},
	} {
		e := NewElectorate()
		e.Apply(c.d)
		if got := winners(e.Candidates(c.addr)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestElectorateTouchesOnlyWhatChanged: a change names the addresses that it concerns, and no others.
func TestElectorateTouchesOnlyWhatChanged(t *testing.T) {
	e := NewElectorate()
	step := func(what string, d *model.Delta, want ...string) {
		t.Helper()
		var got []string
		for _, x := range e.Apply(d) {
			got = append(got, x.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	a, b := svc("a", mark, status("192.0.2.1"), local), svc("b", mark, status("192.0.2.2"))
	step("all there", delta(a, b, node("n1"), on("a", "n1", model.IPv4)), "192.0.2.1", "192.0.2.2")
	step("Local's endpoints", delta(on("a", "n2", model.IPv4)), "192.0.2.1")
	step("Cluster's endpoints", delta(on("b", "n2", model.IPv4)))
	step("a node comes", delta(node("n2")), "192.0.2.1", "192.0.2.2")
	if got := winners(e.Candidates(netip.MustParseAddr("192.0.2.2"))); got != "n1 n2" {
		t.Errorf("candidates after n2 came: %q", got)
	}
	step("a node's address changes", delta(node("n2", func(n *model.Node) { n.InternalIPs = []netip.Addr{anAddr} })))
	step("nothing is heard of a node any more", delta(node("n2", unreachable)), "192.0.2.1", "192.0.2.2")
	if got := winners(e.Candidates(netip.MustParseAddr("192.0.2.2"))); got != "n1" {
		t.Errorf("candidates after n2 went: %q", got)
	}
	step("an address changes", delta(svc("b", mark, status("192.0.2.3"))), "192.0.2.2", "192.0.2.3")
	step("a Service goes", delta(gone("b")), "192.0.2.3")
	d := delta()
	d.EndpointSlices[model.Name{Namespace: "default", Name: "a-IPv4"}] = nil
	step("a slice goes", d, "192.0.2.1")
	if got := e.Addresses(); !slices.Equal(got, []netip.Addr{anAddr}) {
		t.Errorf("addresses left: %v", got)
	}
	if len(e.slices) != 1 {
		t.Errorf("slices left: %v", e.slices)
	}
	// A Service that becomes one with externalTrafficPolicy Local is served where its endpoints were all along.
	step("policy Local", delta(svc("b", mark, status("192.0.2.4"), local)), "192.0.2.4")
	if got := winners(e.Candidates(netip.MustParseAddr("192.0.2.4"))); got != "n2" {
		t.Errorf("candidates of a newcomer: %q", got)
	}
	step("a newcomer's endpoints", delta(on("b", "n1", model.IPv4)), "192.0.2.4")
	if got := winners(e.Candidates(netip.MustParseAddr("192.0.2.4"))); got != "n1" {
		t.Errorf("candidates of a newcomer, later: %q", got)
	}
	step("policy Cluster", delta(svc("b", mark, status("192.0.2.4"))), "192.0.2.4")
	step("Cluster's endpoints again", delta(on("b", "n2", model.IPv4)))
	if len(e.local) != 1 {
		t.Errorf("slices of Local Services: %v", e.local)
	}
}

// TestOwner: the owner is one of the best that live; who comes or goes moves only what it wins or had; and the load
// is spread.
func TestOwner(t *testing.T) {
	var cs []Candidate
	for i := range 10 {
		cs = append(cs, Candidate{fmt.Sprint("node-", i), 2})
	}
	count := make(map[string]int)
	x := netip.MustParseAddr("192.0.2.0")
	for range 5000 {
		x = x.Next()
		all := Owner(x, cs, everyone)
		count[all]++
		without := Owner(x, cs, func(n string) bool { return n != "node-3" })
		if all != "node-3" && without != all {
			t.Fatalf("%s moved from %s to %s when node-3 went", x, all, without)
		}
		if without == "node-3" || without == "" {
			t.Fatalf("%s is %q's, with node-3 gone", x, without)
		}
	}
	for n, k := range count {
		if k < 400 || k > 600 {
			t.Errorf("%s has %d of 5000 addresses, want about 500", n, k)
		}
	}
	better := append(slices.Clone(cs), Candidate{"best", 3})
	if got := Owner(x, better, everyone); got != "best" {
		t.Errorf("owner %s, want the one with the best score", got)
	}
	if got := Owner(x, better, func(n string) bool { return n != "best" }); got == "best" || got == "" {
		t.Errorf("owner %q when the best is gone", got)
	}
	if got := Owner(x, cs, func(string) bool { return false }); got != "" {
		t.Errorf("owner %q when nobody lives", got)
	}
	// The protocol's hash, pinned.
	if got, want := mix(fnv(fnv(fnvOffset, anAddr.As16()), "node-1")), uint64(0x114f1db9e92c7061); got != want {
		t.Errorf("weight %#x, want %#x", got, want)
	}
}

func BenchmarkOwner(b *testing.B) {
	var cs []Candidate
	for i := range 100 {
		cs = append(cs, Candidate{fmt.Sprint("node-", i), 2})
	}
	for b.Loop() {
		Owner(anAddr, cs, everyone)
	}
}
