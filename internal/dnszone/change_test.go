// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/model"
)

// dump is all that a zone answers to the questions that its objects could make one ask.
func dump(t *testing.T, z *Zone, names []string) map[string][]string {
	out := make(map[string][]string)
	for _, n := range names {
		for _, typ := range []string{"A", "AAAA", "SRV", "PTR"} {
			m, res := ask(t, z, n, typ, 65535, 0)
			out[n+" "+typ] = show(m, res)
		}
	}
	return out
}

// However a cluster came to be what it is, its names are the same as if it had always been so.
func TestUpdatesAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	now := make(map[string]any) // the objects there are
	z := newZone(t, Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Pods: PodsVerified})
	var names []string
	for ns := range 3 {
		names = append(names, fmt.Sprintf("ns%d.svc.cluster.local", ns))
		for s := range 4 {
			base := fmt.Sprintf("svc%d.ns%d.svc.cluster.local", s, ns)
			names = append(names, base, "_http._tcp."+base, "_tcp."+base, "web-0."+base, "10-1-0-3."+base)
		}
	}
	for i := range 12 {
		names = append(names, fmt.Sprintf("%d.0.1.10.in-addr.arpa", i), fmt.Sprintf("%d.0.96.10.in-addr.arpa", i), fmt.Sprintf("10-1-0-%d.ns1.pod.cluster.local", i))
	}
	for step := range 3000 {
		ns, s := fmt.Sprintf("ns%d", r.IntN(3)), fmt.Sprintf("svc%d", r.IntN(4))
		d := &model.Delta{Complete: true, Since: time.Unix(1700000000, 0)}
		switch r.IntN(6) {
		case 0, 1:
			var o *model.Service
			switch r.IntN(5) {
			case 0:
			case 1:
				o = headlessSvc(ns + "/" + s)
				o.PublishNotReadyAddresses = r.IntN(3) == 0
			case 2:
				o = externalSvc(ns+"/"+s, "example.com")
			default:
				o = svc(ns+"/"+s, addrs(fmt.Sprintf("10.96.0.%d", r.IntN(12)), fmt.Sprintf("fd00::%d", r.IntN(9))), "http/TCP/80")
			}
			d.Services = map[model.Name]*model.Service{nm(ns + "/" + s): o}
			put(now, "service "+ns+"/"+s, o)
		case 2, 3, 4:
			name := fmt.Sprintf("%s/slice%d", ns, r.IntN(6))
			var o *model.EndpointSlice
			if r.IntN(4) > 0 {
				var eps []string
				for range r.IntN(4) {
					a := fmt.Sprintf("10.1.0.%d", r.IntN(12))
					switch r.IntN(4) {
					case 0:
						a = "!" + a
					case 1:
						a += fmt.Sprintf("=web-%d", r.IntN(3))
					}
					eps = append(eps, a)
				}
				o = slice(name, s, []string{fmt.Sprintf("http/TCP/%d", 8080+r.IntN(2))}, eps...)
			}
			d.EndpointSlices = map[model.Name]*model.EndpointSlice{nm(name): o}
			put(now, "slice "+name, o)
		case 5:
			name := fmt.Sprintf("%s/pod%d", ns, r.IntN(5))
			var o *model.Pod
			if r.IntN(3) > 0 {
				o = &model.Pod{Meta: model.Meta{Name: nm(name)}, IPs: addrs(fmt.Sprintf("10.1.0.%d", r.IntN(12))), Finished: r.IntN(5) == 0}
			}
			d.Pods = map[model.Name]*model.Pod{nm(name): o}
			put(now, "pod "+name, o)
		}
		z.Update(d)
		if step%50 != 0 {
			continue
		}
		fresh := newZone(t, z.o)
		var objs []any
		for _, o := range now {
			objs = append(objs, o)
		}
		fresh.Update(delta(objs...))
		want := dump(t, fresh, names)
		if diff := cmp.Diff(want, dump(t, z, names)); diff != "" {
			t.Fatalf("step %d: updated (+) differs from fresh (-):\n%s", step, diff)
		}
		again, err := z.Rebuild(z.o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, dump(t, again, names)); diff != "" {
			t.Fatalf("step %d: rebuilt (+) differs from fresh (-):\n%s", step, diff)
		}
		if z.addresses.live != fresh.addresses.live || z.services.live != fresh.services.live || len(z.spaces) != len(fresh.spaces) || z.pods.live != fresh.pods.live {
			t.Fatalf("step %d: left behind: %d addresses, %d services, %d namespaces, %d pods; want %d, %d, %d, %d", step,
				z.addresses.live, z.services.live, len(z.spaces), z.pods.live,
				fresh.addresses.live, fresh.services.live, len(fresh.spaces), fresh.pods.live)
		}
	}
}

func put[T any](m map[string]any, k string, v *T) {
	if v == nil {
		delete(m, k)
		return
	}
	m[k] = v
}

// Readers see each state of a Service whole, and never miss one that is always there.
func TestReadersDuringUpdates(t *testing.T) {
	z := newZone(t, Options{}, svc("a/steady", addrs("10.0.0.1")))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				if m, _ := ask(t, z, "steady.a.svc.cluster.local", "A", 512, uint32(i)); len(m.Answer) != 1 {
					t.Error("a steady name was not there")
					return
				}
				m, _ := ask(t, z, "moving.a.svc.cluster.local", "A", 512, uint32(i))
				if n := len(m.Answer); n != 0 && n != 3 {
					t.Errorf("a Service of no or three endpoints had %d", n)
					return
				}
				ask(t, z, "2.1.0.10.in-addr.arpa", "PTR", 512, 0)
			}
		})
	}
	for i := range 3000 {
		objs := []any{headlessSvc("a/moving"), slice("a/moving-1", "moving", nil, "10.0.1.1", "10.0.1.2", "10.0.1.3"),
			svc(fmt.Sprintf("a/other-%d", i), addrs("10.0.2.1"))}
		if i%2 == 1 {
			objs[1] = slice("a/moving-1", "moving", nil)
		}
		z.Update(delta(objs...))
	}
	close(done)
	wg.Wait()
}

func TestTurns(t *testing.T) {
	z := newZone(t, Options{}, headlessSvc("a/db"), slice("a/db-1", "db", []string{"sql/TCP/5432"}, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	for _, typ := range []string{"A", "SRV"} {
		name := "db.a.svc.cluster.local"
		first := make(map[string]bool)
		for turn := range uint32(3) {
			m, _ := ask(t, z, name, typ, 512, turn)
			if len(m.Answer) != 3 {
				t.Fatalf("%s: %d records", typ, len(m.Answer))
			}
			first[m.Answer[0].String()] = true
		}
		if len(first) != 3 {
			t.Errorf("%s: %d different records come first in three turns", typ, len(first))
		}
	}
	// What is cut short turns, too.
	seen := make(map[string]bool)
	for turn := range uint32(3) {
		m, _ := ask(t, z, "db.a.svc.cluster.local", "A", 12+28+2*16, turn)
		if !m.Truncated || len(m.Answer) != 1 && len(m.Answer) != 2 {
			t.Fatalf("cut short: TC %v, %d records", m.Truncated, len(m.Answer))
		}
		seen[m.Answer[0].String()] = true
	}
	if len(seen) != 3 {
		t.Errorf("cut short: %d different records come first", len(seen))
	}
}

// Pods may serve a named port under different numbers: each SRV record has its own.
func TestPortsThatDiffer(t *testing.T) {
	z := newZone(t, Options{}, headlessSvc("a/db"),
		slice("a/db-1", "db", []string{"sql/TCP/5432", "metrics/TCP/9090"}, "10.0.0.1=old"),
		slice("a/db-2", "db", []string{"sql/TCP/6432"}, "10.0.0.2=new"))
	m, res := ask(t, z, "_sql._tcp.db.a.svc.cluster.local", "SRV", 512, 0)
	want := []string{"NOERROR",
		"_sql._tcp.db.a.svc.cluster.local. 5 IN SRV 0 100 5432 old.db.a.svc.cluster.local.",
		"_sql._tcp.db.a.svc.cluster.local. 5 IN SRV 0 100 6432 new.db.a.svc.cluster.local.",
		"+ new.db.a.svc.cluster.local. 5 IN A 10.0.0.2", "+ old.db.a.svc.cluster.local. 5 IN A 10.0.0.1"}
	if diff := cmp.Diff(want, show(m, res)); diff != "" {
		t.Error(diff)
	}
	m, res = ask(t, z, "_metrics._tcp.db.a.svc.cluster.local", "SRV", 512, 0)
	want = []string{"NOERROR", "_metrics._tcp.db.a.svc.cluster.local. 5 IN SRV 0 100 9090 old.db.a.svc.cluster.local.", "+ old.db.a.svc.cluster.local. 5 IN A 10.0.0.1"}
	if diff := cmp.Diff(want, show(m, res)); diff != "" {
		t.Error(diff)
	}
}

func TestOptions(t *testing.T) {
	objs := []any{"a", "b", svc("a/web", addrs("10.0.0.1"), "http/TCP/80"), slice("a/web-1", "web", nil, "!10.1.0.1"),
		svc("b/hidden", addrs("10.0.0.2")), headlessSvc("a/late"),
		slice("a/late-1", "late", nil, "!10.1.0.2"),
		&model.Pod{Meta: model.Meta{Name: nm("a/p")}, IPs: addrs("10.1.0.9", "fd00::9")}}
	pub := headlessSvc("a/early")
	pub.PublishNotReadyAddresses = true
	objs = append(objs, svc("a/longer", addrs("10.0.0.9")), headlessSvc("a/same"), slice("a/same-1", "same", nil, "10.0.0.9"))
	objs = append(objs, pub, slice("a/early-1", "early", nil, "!10.1.0.3"))
	for _, c := range []struct {
		name string
		o    Options
		ask  string
		want []string
	}{
		{"publishNotReadyAddresses", Options{}, "early.a.svc.cluster.local A", []string{"NOERROR", "early.a.svc.cluster.local. 5 IN A 10.1.0.3"}},
		{"not ready", Options{}, "late.a.svc.cluster.local A", []string{"NXDOMAIN", soa}},
		{"TTL", Options{TTL: 30 * time.Second}, "web.a.svc.cluster.local A", []string{"NOERROR", "web.a.svc.cluster.local. 30 IN A 10.0.0.1"}},
		{"a ClusterIP that is an endpoint's address, too", Options{}, "9.0.0.10.in-addr.arpa PTR", []string{"NOERROR", "9.0.0.10.in-addr.arpa. 5 IN PTR longer.a.svc.cluster.local."}},
		{"TTL of nothing", Options{TTL: NoTTL}, "web.a.svc.cluster.local A", []string{"NOERROR", "web.a.svc.cluster.local. 0 IN A 10.0.0.1"}},
		{"negative TTL", Options{TTL: 30 * time.Second, NegativeTTL: 10 * time.Second}, "x.a.svc.cluster.local A",
			[]string{"NXDOMAIN", "ns: cluster.local. 10 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1700000000 7200 1800 86400 10"}},
		{"domain", Options{Domain: "K8s.Example.org"}, "web.a.svc.k8s.example.org A", []string{"NOERROR", "web.a.svc.k8s.example.org. 5 IN A 10.0.0.1"}},
		{"domain, not the usual one", Options{Domain: "k8s.example.org"}, "web.a.svc.cluster.local A", []string{"NOTMINE"}},
		{"namespaces", Options{Namespaces: []string{"a"}}, "hidden.b.svc.cluster.local A", []string{"NXDOMAIN", soa}},
		{"namespaces", Options{Namespaces: []string{"a"}}, "b.svc.cluster.local A", []string{"NXDOMAIN", soa}},
		{"namespaces", Options{Namespaces: []string{"a"}}, "2.0.0.10.in-addr.arpa PTR", []string{"NOTMINE"}},
		{"namespaces", Options{Namespaces: []string{"a"}}, "web.a.svc.cluster.local A", []string{"NOERROR", "web.a.svc.cluster.local. 5 IN A 10.0.0.1"}},
		{"ignoreEmptyServices", Options{IgnoreEmptyServices: true}, "web.a.svc.cluster.local A", []string{"NXDOMAIN", soa}},
		{"endpointPodNames", Options{EndpointPodNames: true}, "10-1-0-3.early.a.svc.cluster.local A", []string{"NXDOMAIN", soa}},
		{"endpointPodNames", Options{EndpointPodNames: true}, "pod-10-1-0-3.early.a.svc.cluster.local A", []string{"NOERROR", "pod-10-1-0-3.early.a.svc.cluster.local. 5 IN A 10.1.0.3"}},
		{"pods verified", Options{Pods: PodsVerified}, "10-1-0-9.a.pod.cluster.local A", []string{"NOERROR", "10-1-0-9.a.pod.cluster.local. 5 IN A 10.1.0.9"}},
		{"pods verified", Options{Pods: PodsVerified}, "fd00--9.a.pod.cluster.local AAAA", []string{"NOERROR", "fd00--9.a.pod.cluster.local. 5 IN AAAA fd00::9"}},
		{"pods verified, not there", Options{Pods: PodsVerified}, "10-1-0-8.a.pod.cluster.local A", []string{"NXDOMAIN", soa}},
		{"pods verified, other namespace", Options{Pods: PodsVerified}, "10-1-0-9.b.pod.cluster.local A", []string{"NXDOMAIN", soa}},
		{"pods disabled", Options{Pods: PodsDisabled}, "10-1-0-9.a.pod.cluster.local A", []string{"NXDOMAIN", soa}},
		{"pods disabled", Options{Pods: PodsDisabled}, "a.pod.cluster.local A", []string{"NOERROR", soa}},
		{"reverse range", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "77.0.1.10.in-addr.arpa PTR",
			[]string{"NXDOMAIN", strings.Replace(soa, "cluster.local.", "1.10.in-addr.arpa.", 1)}},
		{"reverse range, apex", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "1.10.in-addr.arpa SOA",
			[]string{"NOERROR", strings.Replace(strings.TrimPrefix(soa, "ns: "), "cluster.local.", "1.10.in-addr.arpa.", 1)}},
		{"reverse range, apex", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "1.10.in-addr.arpa NS",
			[]string{"NOERROR", "1.10.in-addr.arpa. 5 IN NS ns.dns.cluster.local."}},
		{"reverse range, apex", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "1.10.in-addr.arpa PTR",
			[]string{"NOERROR", strings.Replace(soa, "cluster.local.", "1.10.in-addr.arpa.", 1)}},
		{"reverse range, between", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "7.1.10.in-addr.arpa PTR",
			[]string{"NOERROR", strings.Replace(soa, "cluster.local.", "1.10.in-addr.arpa.", 1)}},
		{"reverse range, no address", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "x.1.10.in-addr.arpa PTR",
			[]string{"NXDOMAIN", strings.Replace(soa, "cluster.local.", "1.10.in-addr.arpa.", 1)}},
		{"reverse range, below an address", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "1.77.0.1.10.in-addr.arpa PTR",
			[]string{"NXDOMAIN", strings.Replace(soa, "cluster.local.", "1.10.in-addr.arpa.", 1)}},
		{"reverse range, above", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "10.in-addr.arpa SOA", []string{"NOTMINE"}},
		{"reverse range within a label", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}, "77.0.97.10.in-addr.arpa PTR",
			[]string{"NXDOMAIN", strings.Replace(soa, "cluster.local.", "97.10.in-addr.arpa.", 1)}},
		{"reverse range within a label, outside", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}, "77.0.112.10.in-addr.arpa PTR", []string{"NOTMINE"}},
		{"reverse range of IPv6, apex", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("fd00::/16")}}, "0.0.d.f.ip6.arpa SOA",
			[]string{"NOERROR", strings.Replace(strings.TrimPrefix(soa, "ns: "), "cluster.local.", "0.0.d.f.ip6.arpa.", 1)}},
		{"reverse range of IPv6, between", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("fd00::/16")}}, "1.0.0.d.f.ip6.arpa PTR",
			[]string{"NOERROR", strings.Replace(soa, "cluster.local.", "0.0.d.f.ip6.arpa.", 1)}},
		{"yielded name", Options{YieldNames: []string{"Old.a.svc.cluster.local"}}, "old.a.svc.cluster.local A", []string{"NOTMINE"}},
		{"below a yielded name", Options{YieldNames: []string{"old.a.svc.cluster.local"}}, "x.old.a.svc.cluster.local A", []string{"NXDOMAIN", soa}},
		{"yielded name that there is", Options{YieldNames: []string{"web.a.svc.cluster.local"}}, "web.a.svc.cluster.local A",
			[]string{"NOERROR", "web.a.svc.cluster.local. 5 IN A 10.0.0.1"}},
		{"yielded zone", Options{YieldZones: []string{"consul.cluster.local"}}, "x.consul.cluster.local A", []string{"NOTMINE"}},
		{"yielded zone, apex", Options{YieldZones: []string{"consul.cluster.local."}}, "consul.cluster.local A", []string{"NOTMINE"}},
		{"beside a yielded zone", Options{YieldZones: []string{"consul.cluster.local"}}, "xconsul.cluster.local A", []string{"NXDOMAIN", soa}},
		{"yielded in a reverse range", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, YieldNames: []string{"77.0.1.10.in-addr.arpa"}}, "77.0.1.10.in-addr.arpa PTR", []string{"NOTMINE"}},
		{"reverse range, outside", Options{Reverse: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, "77.0.2.10.in-addr.arpa PTR", []string{"NOTMINE"}},
		{"name server at the Service that leads here", Options{Self: addrs("10.1.0.3", "10.1.0.77")}, "ns.dns.cluster.local A",
			[]string{"NOERROR", "ns.dns.cluster.local. 5 IN A 10.1.0.3", "ns.dns.cluster.local. 5 IN A 10.1.0.77"}},
	} {
		z := newZone(t, c.o, objs...)
		name, typ, _ := strings.Cut(c.ask, " ")
		m, res := ask(t, z, name, typ, 65535, 0)
		if diff := cmp.Diff(c.want, show(m, res)); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", c.name, c.ask, diff)
		}
	}
	z := newZone(t, Options{Self: addrs("10.1.0.4")}, svc("kube-system/kube-dns", addrs("10.96.0.10", "fd00::a")), slice("kube-system/kube-dns-1", "kube-dns", nil, "10.1.0.4"))
	m, _ := ask(t, z, "cluster.local", "NS", 512, 0)
	if len(m.Extra) != 2 || m.Extra[0].(*dns.A).A.String() != "10.96.0.10" {
		t.Errorf("the name server is not at its Service's ClusterIPs: %v", m.Extra)
	}
	if _, err := New(Options{TTL: 48 * time.Hour}); err == nil {
		t.Error("a TTL of 48 h was taken")
	}
	if _, err := New(Options{Domain: "a..b"}); err == nil {
		t.Error("a domain with an empty label was taken")
	}
}

func TestNotReady(t *testing.T) {
	z, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := delta(svc("a/web", addrs("10.0.0.1")))
	d.Complete = false
	z.Update(d)
	m, res := ask(t, z, "web.a.svc.cluster.local", "A", 512, 0)
	if got := show(m, res); len(got) != 2 || got[0] != "NOERROR" {
		t.Errorf("what is known is not answered: %q", got)
	}
	if _, res := ask(t, z, "other.a.svc.cluster.local", "A", 512, 0); res.Verdict != NotReady {
		t.Errorf("NXDOMAIN from half a picture: %+v", res)
	}
	z.Update(&model.Delta{Complete: true})
	if _, res := ask(t, z, "other.a.svc.cluster.local", "A", 512, 0); res.Rcode != nxDomain {
		t.Errorf("no NXDOMAIN from the whole picture: %+v", res)
	}
}

// An address that several Services have has a name in each, but for a ClusterIP, which has one.
func TestSharedAddresses(t *testing.T) {
	z := newZone(t, Options{}, headlessSvc("a/one"), slice("a/one-1", "one", nil, "10.0.0.1"), headlessSvc("a/two"), slice("a/two-1", "two", nil, "10.0.0.1=p"),
		svc("b/vip", addrs("10.0.0.1")))
	m, res := ask(t, z, "1.0.0.10.in-addr.arpa", "PTR", 512, 0)
	got := show(m, res)
	if !slices.Contains(got, "1.0.0.10.in-addr.arpa. 5 IN PTR vip.b.svc.cluster.local.") {
		t.Errorf("no ClusterIP's name: %q", got)
	}
	z.Update(&model.Delta{Services: map[model.Name]*model.Service{nm("b/vip"): nil}})
	m, res = ask(t, z, "1.0.0.10.in-addr.arpa", "PTR", 512, 0)
	want := []string{"NOERROR", "1.0.0.10.in-addr.arpa. 5 IN PTR 10-0-0-1.one.a.svc.cluster.local.", "1.0.0.10.in-addr.arpa. 5 IN PTR p.two.a.svc.cluster.local."}
	if diff := cmp.Diff(want, show(m, res)); diff != "" {
		t.Error(diff)
	}
}

// Pods on their node's network share its address: each keeps its name, and its own port.
func TestEndpointsThatShareAnAddress(t *testing.T) {
	z := newZone(t, Options{}, headlessSvc("a/kafka"),
		slice("a/kafka-1", "kafka", []string{"broker/TCP/9092"}, "10.0.0.1=kafka-0", "10.0.0.2=kafka-1"),
		slice("a/kafka-2", "kafka", []string{"broker/TCP/9093"}, "10.0.0.1=kafka-2", "10.0.0.1"))
	for q, want := range map[string][]string{
		"kafka-0.kafka.a.svc.cluster.local A":  {"NOERROR", "kafka-0.kafka.a.svc.cluster.local. 5 IN A 10.0.0.1"},
		"kafka-2.kafka.a.svc.cluster.local A":  {"NOERROR", "kafka-2.kafka.a.svc.cluster.local. 5 IN A 10.0.0.1"},
		"10-0-0-1.kafka.a.svc.cluster.local A": {"NOERROR", "10-0-0-1.kafka.a.svc.cluster.local. 5 IN A 10.0.0.1"},
		"10-0-0-2.kafka.a.svc.cluster.local A": {"NXDOMAIN", soa},
		"kafka.a.svc.cluster.local A":          {"NOERROR", "kafka.a.svc.cluster.local. 5 IN A 10.0.0.1", "kafka.a.svc.cluster.local. 5 IN A 10.0.0.2"},
		"1.0.0.10.in-addr.arpa PTR": {"NOERROR", "1.0.0.10.in-addr.arpa. 5 IN PTR 10-0-0-1.kafka.a.svc.cluster.local.",
			"1.0.0.10.in-addr.arpa. 5 IN PTR kafka-0.kafka.a.svc.cluster.local.", "1.0.0.10.in-addr.arpa. 5 IN PTR kafka-2.kafka.a.svc.cluster.local."},
		"2.0.0.10.in-addr.arpa PTR": {"NOERROR", "2.0.0.10.in-addr.arpa. 5 IN PTR kafka-1.kafka.a.svc.cluster.local."},
		"_broker._tcp.kafka.a.svc.cluster.local SRV": {"NOERROR",
			"_broker._tcp.kafka.a.svc.cluster.local. 5 IN SRV 0 100 9092 kafka-0.kafka.a.svc.cluster.local.",
			"_broker._tcp.kafka.a.svc.cluster.local. 5 IN SRV 0 100 9092 kafka-1.kafka.a.svc.cluster.local.",
			"_broker._tcp.kafka.a.svc.cluster.local. 5 IN SRV 0 100 9093 10-0-0-1.kafka.a.svc.cluster.local.",
			"_broker._tcp.kafka.a.svc.cluster.local. 5 IN SRV 0 100 9093 kafka-2.kafka.a.svc.cluster.local.",
			"+ 10-0-0-1.kafka.a.svc.cluster.local. 5 IN A 10.0.0.1", "+ kafka-0.kafka.a.svc.cluster.local. 5 IN A 10.0.0.1",
			"+ kafka-1.kafka.a.svc.cluster.local. 5 IN A 10.0.0.2", "+ kafka-2.kafka.a.svc.cluster.local. 5 IN A 10.0.0.1"},
	} {
		name, typ, _ := strings.Cut(q, " ")
		m, res := ask(t, z, name, typ, 65535, 0)
		if diff := cmp.Diff(want, show(m, res)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", q, diff)
		}
	}
}

// No lookup allocates, on the paths that queries mostly take.
func TestNoAllocation(t *testing.T) {
	z := newZone(t, Options{}, specCluster()...)
	for _, name := range []string{"kubernetes.default.svc.cluster.local", "headless.default.svc.cluster.local", "none.default.svc.cluster.local", "example.com", "my-pet.headless.default.svc.cluster.local"} {
		var q Question
		if err := q.SetName(name); err != nil {
			t.Fatal(err)
		}
		q.Type = typeA
		buf := append(make([]byte, 12, 4096), q.Wire()...)
		buf = append(buf, 0, 1, 0, 1)
		if n := testing.AllocsPerRun(100, func() { z.Append(buf, &q, 4096, 1) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// numbered is a value for a table.
type numbered struct {
	key string
	n   int
}

func (n *numbered) is(key []byte) bool { return n.key == string(key) }

func TestTable(t *testing.T) {
	tb := newTable[numbered]()
	want := make(map[string]int)
	r := rand.New(rand.NewPCG(1, 1))
	for range 20000 {
		k := fmt.Sprint(r.IntN(700))
		if r.IntN(3) == 0 {
			tb.set([]byte(k), nil)
			delete(want, k)
			continue
		}
		v := &numbered{k, r.Int()}
		tb.set([]byte(k), v)
		want[k] = v.n
	}
	if tb.live != len(want) {
		t.Errorf("%d values counted, want %d", tb.live, len(want))
	}
	if n := len(*tb.cur.Load()); n > 4096 {
		t.Errorf("%d slots for 700 keys", n)
	}
	for i := range 700 {
		k := fmt.Sprint(i)
		got := tb.get([]byte(k))
		if w, ok := want[k]; ok != (got != nil) || ok && got.n != w {
			t.Errorf("%s: %v, want %v (%v)", k, got, w, ok)
		}
	}
}
