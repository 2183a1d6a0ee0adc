// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// The API's own examples (v1alpha2 DomainName), and what people write.
func TestNamesMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"kubernetes.io", "kubernetes.io", true},
		{"kubernetes.io.", "Kubernetes.IO", true},
		{"Kubernetes.io", "kubernetes.io.", true},
		{"kubernetes.io", "www.kubernetes.io", false},
		{"kubernetes.io", "my-kubernetes.io", false},
		{"blog.kubernetes.io", "kubernetes.io", false},
		{"*.kubernetes.io", "www.kubernetes.io", true},
		{"*.kubernetes.io.", "latest.blog.kubernetes.io", true},
		{"*.kubernetes.io", "kubernetes.io", false},
		{"*.kubernetes.io", ".kubernetes.io", false},
		{"*.kubernetes.io", "my-kubernetes.io", false},
		{"*.kubernetes.io", "wikipedia.org", false},
	} {
		if got := namesMatch([]string{"elsewhere.example", tc.pattern}, []string{NormalName(tc.name)}); got != tc.want {
			t.Errorf("%s means %s: %v, want %v", tc.pattern, tc.name, got, tc.want)
		}
		c := NewCluster()
		c.Apply(delta(byName(model.AcceptTraffic, "elsewhere.example", tc.pattern)))
		if got := c.NamesMatter(tc.name); got != tc.want {
			t.Errorf("%s makes %s matter: %v, want %v", tc.pattern, tc.name, got, tc.want)
		}
		gone := delta()
		gone.ClusterNetworkPolicies["by-name"] = nil
		if c.Apply(gone); c.NamesMatter(tc.name) {
			t.Errorf("%s matters to nobody", tc.name)
		}
	}
}

func byName(action model.PolicyAction, names ...string) *model.ClusterNetworkPolicy {
	return &model.ClusterNetworkPolicy{Meta: model.Meta{Name: model.Name{Name: "by-name"}}, EgressTo: []model.ClusterPolicyRule{
		{Action: action, Peers: []model.ClusterPolicyPeer{{DomainNames: names}}},
		{Action: model.DenyTraffic, Peers: []model.ClusterPolicyPeer{{Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}},
	}}
}

func TestNames(t *testing.T) {
	k, kern := NewCompiler("n1"), newKernel()
	d := delta(pod("a/web", "", "10.0.0.1"), byName(model.AcceptTraffic, "www.example.com", "*.example.org"))
	dns := model.Name{Namespace: "kube-system", Name: "kube-dns"}
	d.Services = map[model.Name]*model.Service{dns: {Meta: model.Meta{Name: dns}}}
	d.EndpointSlices = map[model.Name]*model.EndpointSlice{dns: {
		Meta: model.Meta{Name: dns}, Service: dns.Name, Endpoints: []model.Endpoint{{Addresses: policytest.Addrs("10.0.0.53")}},
	}}
	k.Trust(netip.MustParseAddr("192.0.2.53"))
	kern.apply(t, k.Update(d))
	has := func(set, addr string) bool {
		s := kern.Sets[set]
		if s == nil {
			return false
		}
		_, ok := s.Members[Member{Addr: netip.MustParseAddr(addr)}]
		return ok
	}
	if !has(Asking, "10.0.0.1") || !has(Resolvers, "10.0.0.53") || !has(Resolvers, "192.0.2.53") || has(Resolvers, "10.0.0.1") {
		t.Errorf("sets: %+v", kern.Sets)
	}
	if !k.NamesMatter("WWW.example.com.") || !k.NamesMatter("a.b.example.org") || k.NamesMatter("example.org") {
		t.Error("it does not know which names matter")
	}
	site := netip.MustParseAddr("203.0.113.5")
	passes := func(want bool) {
		t.Helper()
		f := &Flow{Src: k.EndpointOf(netip.MustParseAddr("10.0.0.1")), Dst: k.EndpointOf(site), Protocol: model.TCP, Port: 443}
		if v := k.Evaluate(f); v.Allowed != want {
			t.Errorf("evaluated %v, want %v: %s", v.Allowed, want, v.Egress.Why)
		}
		if got := kern.pass(f.Src.Addr, site, f.Protocol, f.Port); got != want {
			t.Errorf("the program passes it: %v, want %v", got, want)
		}
	}
	passes(false)
	kern.apply(t, k.Learn("elsewhere.example", site))
	passes(false)
	kern.apply(t, k.Learn("www.example.com.", site))
	kern.apply(t, k.Learn("x.example.org", site))
	passes(true)
	kern.apply(t, k.Lapse("www.example.com", site))
	passes(true) // by its other name
	c := k.Lapse("x.example.org", site)
	kern.apply(t, c)
	passes(false)
	open := &Flow{Src: k.EndpointOf(netip.MustParseAddr("10.0.0.1")), Dst: k.OpenEndpointOf(site), Protocol: model.TCP, Port: 443}
	if !k.Allows(open) {
		t.Error("a connection that was open when the answer lapsed is no longer allowed")
	}
	if slices.Contains(k.EndpointOf(site).Names, "www.example.com") {
		t.Error("a lapsed name still counts")
	}

	// Without such rules nothing is held.
	gone := delta()
	gone.ClusterNetworkPolicies["by-name"] = nil
	kern.apply(t, k.Update(gone))
	if kern.Sets[Asking] != nil || kern.Sets[Resolvers] != nil {
		t.Error("answers are held for nobody")
	}
}

func TestLapsedNamesAreBounded(t *testing.T) {
	k := NewCompiler("n1")
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range maxLapsed + 10 {
		k.Learn("a.example", addr(i))
		k.Lapse("a.example", addr(i))
	}
	if n := len(k.names.lapsed); n != maxLapsed || len(k.names.live) != 0 {
		t.Errorf("%d lapsed and %d live names are remembered", n, len(k.names.live))
	}
}

// The chains that drop tell for whom.
func TestSourceOfDenyChains(t *testing.T) {
	k := NewCompiler("n1")
	k.Update(delta(pod("a/web", "", "10.0.0.1"), byName(model.AcceptTraffic, "www.example.com")))
	found := false
	for n := range k.Program().Chains {
		if s := k.Source(n); s != nil && len(s.Cluster) == 1 && s.Cluster[0].Name.Name == "by-name" && s.Direction == Egress && strings.HasPrefix(n, "deny-") {
			found = true
		}
	}
	if !found {
		t.Error("nothing is known of the chain that denies")
	}
	gone := delta()
	gone.ClusterNetworkPolicies["by-name"] = nil
	k.Update(gone)
	if len(k.sources) > 0 {
		t.Errorf("%d chains that are gone are remembered", len(k.sources))
	}
}

// The API has names in Accept rules only. A Deny or Pass rule with names, which it should have refused, fails closed.
func TestNamesOnlyAccept(t *testing.T) {
	for _, action := range []model.PolicyAction{model.DenyTraffic, model.PassTraffic} {
		c := NewCluster()
		c.Apply(delta(pod("a/web", "", "10.0.0.1"), byName(action, "www.example.com")))
		f := &Flow{Src: c.EndpointOf(netip.MustParseAddr("10.0.0.1")), Dst: c.EndpointOf(netip.MustParseAddr("2001:db8::1")), Protocol: model.TCP, Port: 443}
		if c.Allows(f) {
			t.Errorf("a %s rule by name lets through what it can't judge", action)
		}
	}
}
