// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// kernel is a Program kept only by Changes, the way an adapter keeps the kernel's tables.
type kernel struct{ Program }

func newKernel() *kernel {
	return &kernel{Program{Pods: map[netip.Addr]Entry{}, Links: map[string]string{}, Chains: map[string]*Chain{}, Sets: map[string]*Set{}}}
}

func (k *kernel) apply(t *testing.T, c *Change) {
	t.Helper()
	for n, kind := range c.Gone {
		if k.Sets[n] == nil || k.Sets[n].Kind != kind {
			t.Fatalf("set %s of kind %d goes, but is not there", n, kind)
		}
		delete(k.Sets, n)
	}
	for n, s := range c.Sets {
		if k.Sets[n] != nil {
			t.Fatalf("set %s comes, but is there", n)
		}
		own := *s
		own.Members, own.Ports = maps.Clone(s.Members), slices.Clone(s.Ports)
		k.Sets[n] = &own
	}
	for n, m := range c.Members {
		s := k.Sets[n]
		if s == nil {
			t.Fatalf("members of %s change, but there is no such set", n)
		}
		for x := range m.Del {
			if _, ok := s.Members[x]; !ok {
				t.Fatalf("%v leaves %s, but is not in it", x, n)
			}
			delete(s.Members, x)
		}
		for x := range m.Add {
			if _, ok := s.Members[x]; ok {
				t.Fatalf("%v enters %s, but is in it", x, n)
			}
			s.Members[x] = struct{}{}
		}
	}
	for n, p := range c.Ports {
		s := k.Sets[n]
		if s == nil || s.Kind != PortMap || len(p.Add)+len(p.Del) == 0 {
			t.Fatalf("ports of %s change, by %+v", n, p)
		}
		for _, gone := range p.Del {
			i := slices.Index(s.Ports, gone)
			if i < 0 {
				t.Fatalf("%v leaves %s, but is not in it", gone, n)
			}
			s.Ports = slices.Delete(s.Ports, i, i+1)
		}
		for _, come := range p.Add {
			if s.port(come.Protocol, come.From) != nil {
				t.Fatalf("%v enters %s, but is in it", come, n)
			}
			s.Ports = append(s.Ports, come)
		}
	}
	for n, ch := range c.Chains {
		if (ch != nil) == (k.Chains[n] != nil) {
			t.Fatalf("chain %s: comes %v, but is there %v", n, ch != nil, k.Chains[n] != nil)
		}
		put(k.Chains, n, ch)
	}
	for a, e := range c.Pods {
		if k.Pods[a] != e.Old {
			t.Fatalf("%s changes from %v, but is %v", a, e.Old, k.Pods[a])
		}
		if k.Pods[a] = e.New; e.New == (Entry{}) {
			delete(k.Pods, a)
		}
	}
	for link, l := range c.Links {
		if k.Links[link] != l.Old {
			t.Fatalf("link %s changes from %q, but is %q", link, l.Old, k.Links[link])
		}
		if k.Links[link] = l.New; l.New == "" {
			delete(k.Links, link)
		}
	}
}

// holdsTogether fails where something refers to what is not there, or is there without need.
func (k *kernel) holdsTogether(t *testing.T) {
	t.Helper()
	chains, sets := map[string]bool{}, map[string]bool{}
	var walk func(string)
	walk = func(n string) {
		if n == "" || chains[n] {
			return
		}
		chains[n] = true
		c := k.Chains[n]
		if c == nil {
			t.Fatalf("no chain %s", n)
		}
		for _, r := range c.Rules {
			for _, s := range []string{r.Peer, r.Ports, r.Named} {
				if s != "" {
					sets[s] = true
				}
			}
			switch r.Op {
			case Jump, Goto:
				walk(r.Target)
			case Lookup:
				sets[r.Target] = true
				for _, p := range k.Sets[r.Target].Ports {
					walk(p.Target)
				}
			}
		}
	}
	for _, e := range k.Pods {
		walk(e.Ingress)
		walk(e.Egress)
	}
	for _, c := range k.Links {
		if !chains[c] {
			t.Errorf("a link leads to chain %s, no pod does", c)
		}
	}
	for n := range sets {
		if k.Sets[n] == nil {
			t.Fatalf("no set %s", n)
		}
	}
	for n := range k.Sets {
		if n == Asking || n == Resolvers {
			continue
		}
		if !sets[n] {
			t.Errorf("set %s is not needed", n)
		}
	}
	for n := range k.Chains {
		if !chains[n] {
			t.Errorf("chain %s is not needed", n)
		}
	}
}

func sameProgram(t *testing.T, got, want *Program) {
	t.Helper()
	if !maps.Equal(got.Pods, want.Pods) {
		t.Errorf("pods: got %v, want %v", got.Pods, want.Pods)
	}
	if !maps.Equal(got.Links, want.Links) {
		t.Errorf("links: got %v, want %v", got.Links, want.Links)
	}
	if g, w := slices.Sorted(maps.Keys(got.Chains)), slices.Sorted(maps.Keys(want.Chains)); !slices.Equal(g, w) {
		t.Errorf("chains: got %v, want %v", g, w)
	}
	if g, w := slices.Sorted(maps.Keys(got.Sets)), slices.Sorted(maps.Keys(want.Sets)); !slices.Equal(g, w) {
		t.Fatalf("sets: got %v, want %v", g, w)
	}
	for n, s := range want.Sets {
		if !maps.Equal(got.Sets[n].Members, s.Members) {
			t.Errorf("set %s: got %v, want %v", n, got.Sets[n].Members, s.Members)
		}
		order := func(a, b PortRange) int {
			return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
		}
		if g, w := slices.SortedFunc(slices.Values(got.Sets[n].Ports), order), slices.SortedFunc(slices.Values(s.Ports), order); !slices.Equal(g, w) {
			t.Errorf("set %s: got %v, want %v", n, g, w)
		}
	}
}

// everything is the Delta that makes a new Compiler know what this one does.
func everything(c *Cluster) *model.Delta {
	d := delta()
	maps.Copy(d.Pods, c.pods)
	maps.Copy(d.Nodes, c.nodes)
	maps.Copy(d.Namespaces, c.namespaces)
	for _, p := range c.NetworkPolicies("") {
		d.NetworkPolicies[p.Name] = p
	}
	maps.Copy(d.ClusterNetworkPolicies, c.cluster)
	return d
}

// The program made of small changes is the one made at once, its parts hold together, and it lets through exactly
// what Evaluate allows, with and without the reasons.
func TestProgramAgreesWithEvaluate(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := policytest.NewWorld(seed, 12)
			k, kern := NewCompiler("n1"), newKernel()
			for step := range 25 {
				kern.apply(t, k.Update(w.Change(seed%2 == 0)))
				fresh := NewCompiler("n1")
				fresh.Update(everything(k.Cluster))
				// Names come to be known, and are forgotten again.
				name, addr := w.Name(), w.Addr()
				if w.IntN(3) == 0 {
					kern.apply(t, k.Lapse(name, addr))
				} else {
					kern.apply(t, k.Learn(name, addr))
				}
				for a, names := range k.names.live {
					for _, n := range names {
						fresh.Learn(n, a)
					}
				}
				sameProgram(t, &kern.Program, fresh.Program())
				sameProgram(t, k.Program(), fresh.Program())
				kern.holdsTogether(t)
				for range 60 {
					src, dst := w.Addr(), w.Addr()
					proto, port := w.Protocol(), uint16(78+w.IntN(8))
					if w.IntN(12) == 0 {
						proto, port = 1, 0
					}
					f := &Flow{Src: k.EndpointOf(src), Dst: k.EndpointOf(dst), Protocol: proto, Port: port}
					if src.BitLen() != dst.BitLen() || f.Src.Node == "n1" {
						continue // no such packet; what the node itself sends never enters the program
					}
					v := k.Evaluate(f)
					if allows := k.Allows(f); allows != v.Allowed {
						t.Fatalf("step %d: Evaluate says %v, Allows %v: %+v", step, v.Allowed, allows, v)
					}
					// Only this node's ends are this node's to decide.
					want := true
					if f.Src.Pod != nil && f.Src.Pod.Node == "n1" {
						want = want && v.Egress.Allowed
					}
					if f.Dst.Pod != nil && f.Dst.Pod.Node == "n1" {
						want = want && v.Ingress.Allowed
					}
					if got := kern.pass(src, dst, proto, port); got != want {
						t.Fatalf("step %d: %s to %s, %s: program %v, want %v: %+v", step, f.Src, f.Dst, f.portString(), got, want, v)
					}
				}
			}
		})
	}
}

func TestPodChurnChangesOnlyMembers(t *testing.T) {
	k := NewCompiler("n1")
	k.Update(delta(
		namespace("a", ""), pod("a/db", "role=db", "10.0.0.1"), pod("a/web", "role=web", "10.0.0.2"),
		&model.NetworkPolicy{Meta: model.Meta{Name: named("a/db")}, PodSelector: *sel("role=db"), Ingress: true,
			IngressFrom: []model.PolicyRule{{Peers: []model.PolicyPeer{{PodSelector: sel("role=web")}}}}},
	))
	remote := pod("a/web2", "role=web", "10.0.1.2", "fd00::2")
	remote.Node = "n2"
	c := k.Update(delta(remote))
	if len(c.Chains)+len(c.Sets)+len(c.Gone)+len(c.Pods) != 0 || len(c.Members) != 1 {
		t.Errorf("a pod of another node changed more than members: %+v", c)
	}
	for _, m := range c.Members {
		if len(m.Add) != 2 || len(m.Del) != 0 {
			t.Errorf("members: %+v, want both addresses to come", m)
		}
	}
	if len(c.Tightened) != 0 {
		t.Errorf("tightened %v by a member that came", c.Tightened)
	}
	d := delta()
	d.Pods[remote.Name] = nil
	if c := k.Update(d); !c.Tightened[netip.MustParseAddr("10.0.0.1")] {
		t.Errorf("a peer left, but its flows to %s are not looked at: %+v", "a/db", c)
	}
}

func TestPinnedPodIsGuardedBeforeTheAPIKnowsItsAddress(t *testing.T) {
	k := NewCompiler("n1")
	deny := &model.NetworkPolicy{Meta: model.Meta{Name: named("a/deny")}, Ingress: true, Egress: true}
	p := pod("a/new", "")
	p.Node = "n1"
	addr := netip.MustParseAddr("10.0.0.9")
	k.Update(delta(namespace("a", ""), deny, p))
	c := k.Pin(p.Name, p.UID, "", []netip.Addr{addr})
	if e := c.Pods[addr].New; e.Ingress == "" || e.Egress == "" {
		t.Fatalf("after Pin the address has %+v", e)
	}

	// The API forgets a pod by force while its processes run: it stays guarded until it is unwired.
	d := delta()
	d.Pods[p.Name] = nil
	k.Update(d)
	if _, ok := k.Program().Pods[addr]; !ok {
		t.Error("a pod that is still wired lost its guard when the API forgot it")
	}
	if c := k.Unpin(p.Name, p.UID, []netip.Addr{netip.MustParseAddr("10.0.0.8")}); !c.Empty() {
		t.Errorf("Unpin of an older wiring changed %+v", c)
	}
	k.Unpin(p.Name, p.UID, []netip.Addr{addr})
	if len(k.Program().Pods) != 0 || k.Pod(p.Name) != nil {
		t.Errorf("after Unpin there is %+v", k.Program().Pods)
	}

	// Replaced under its name, both are guarded.
	k.Update(delta(p))
	k.Pin(p.Name, p.UID, "", []netip.Addr{addr})
	next, second := pod("a/new", "", "10.0.0.10"), netip.MustParseAddr("10.0.0.10")
	next.UID = "uid-2"
	k.Update(delta(next))
	if _, ok := k.Program().Pods[addr]; !ok || k.Program().Pods[second] == (Entry{}) {
		t.Errorf("of a pod and its successor, guarded are %v", k.Program().Pods)
	}
	k.Unpin(p.Name, p.UID, []netip.Addr{addr})
	if _, ok := k.Program().Pods[addr]; ok || len(k.Program().Pods) != 1 {
		t.Errorf("after the old one was unwired there is %+v", k.Program().Pods)
	}
}

// Between its wiring and the API's first word of it, nothing passes; what the API says of others counts for nothing.
func TestUnknownPodIsClosed(t *testing.T) {
	k, kern := NewCompiler("n1"), newKernel()
	addr := netip.MustParseAddr("10.0.0.9")
	stale := pod("a/stale", "", "10.0.0.9")
	kern.apply(t, k.Update(delta(stale)))
	other := netip.MustParseAddr("10.0.0.1")
	passes := func() [2]bool {
		return [2]bool{kern.pass(addr, other, model.TCP, 80), kern.pass(other, addr, model.TCP, 80)}
	}
	if passes() != [2]bool{true, true} {
		t.Fatal("an open pod is closed")
	}
	links := func(want string) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(kern.Links)); strings.Join(got, " ") != want {
			t.Errorf("guarded links: %v, want %s", got, want)
		}
	}
	late := pod("a/late", "")
	kern.apply(t, k.Pin(late.Name, late.UID, "link1", []netip.Addr{addr}))
	if passes() != [2]bool{} {
		t.Error("an unknown pod is open")
	}
	links("link1")
	kern.apply(t, k.Update(delta(stale)))
	if passes() != [2]bool{} {
		t.Error("news of a stale pod opened an unknown one")
	}
	late.Created = 1
	kern.apply(t, k.Update(delta(late)))
	kern.holdsTogether(t)
	if passes() != [2]bool{true, true} {
		t.Error("a known pod without policies is still closed")
	}
	links("")
	// Its address goes to another before anybody said that it was free.
	next := pod("a/next", "")
	kern.apply(t, k.Pin(next.Name, next.UID, "link2", []netip.Addr{addr}))
	links("link2")
	if passes() != [2]bool{} {
		t.Error("an unknown pod with a reused address is open")
	}
	kern.apply(t, k.Unpin(late.Name, late.UID, []netip.Addr{addr}))
	if passes() != [2]bool{} {
		t.Error("the late unwiring of the address's last pod opened the next one")
	}
	links("link2")
	kern.apply(t, k.Unpin(next.Name, next.UID, []netip.Addr{addr}))
	kern.holdsTogether(t)
	links("")
	if len(kern.Pods) != 0 {
		t.Errorf("left over: %v", kern.Pods)
	}
}

func TestReusedAddressIsTheYoungestPods(t *testing.T) {
	k := NewCompiler("n1")
	old, young := pod("a/old", "role=open", "10.0.0.1"), pod("a/young", "role=shut", "10.0.0.1")
	young.Created = 5
	k.Update(delta(old, young, &model.NetworkPolicy{Meta: model.Meta{Name: named("a/shut")}, PodSelector: *sel("role=shut"), Ingress: true}))
	if e := k.Program().Pods[netip.MustParseAddr("10.0.0.1")]; e.Ingress == "" {
		t.Errorf("the address has the old pod's guard %+v", e)
	}
	d := delta()
	d.Pods[young.Name] = nil
	k.Update(d)
	if len(k.Program().Pods) != 0 {
		t.Errorf("the young pod left %+v", k.Program().Pods)
	}
}

// However many policies select a pod, its chain stays as long, and the same pods' chain is shared.
func TestChainLengthIsConstant(t *testing.T) {
	k := NewCompiler("n1")
	d := delta(pod("a/one", "app=x", "10.0.0.1"), pod("a/two", "app=x", "10.0.0.2"))
	for i := range 500 {
		p := &model.NetworkPolicy{Meta: model.Meta{Name: model.Name{Namespace: "a", Name: fmt.Sprintf("p%03d", i)}}, Ingress: true,
			IngressFrom: []model.PolicyRule{{
				Peers: []model.PolicyPeer{{PodSelector: sel(fmt.Sprintf("client=%d", i))}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, Port: uint16(1000 + i)}, {Protocol: model.TCP, Port: uint16(i + 1), EndPort: 40000}},
			}}}
		d.NetworkPolicies[p.Name] = p
	}
	k.Update(d)
	one, two := k.Program().Pods[netip.MustParseAddr("10.0.0.1")], k.Program().Pods[netip.MustParseAddr("10.0.0.2")]
	if one.Ingress == "" || one != two {
		t.Errorf("pods of the same policies have %+v and %+v", one, two)
	}
	if n := len(k.Program().Chains[one.Ingress].Rules); n > 4 {
		t.Errorf("the chain of 500 policies has %d rules", n)
	}
}

// Drops are counted by the namespace of the pod that they concern, also where one policy is about several namespaces.
func TestDeniesTellNamespacesApart(t *testing.T) {
	k := NewCompiler("n1")
	k.Update(delta(namespace("a", "team=x"), namespace("b", "team=x"), pod("a/one", "", "10.0.0.1"), pod("a/two", "", "10.0.0.2"), pod("b/three", "", "10.0.0.3"),
		&model.ClusterNetworkPolicy{Meta: model.Meta{Name: model.Name{Name: "guard"}}, Namespaces: *sel("team=x"), IngressFrom: []model.ClusterPolicyRule{
			{Action: model.DenyTraffic, Peers: []model.ClusterPolicyPeer{{Namespaces: &model.Selector{}}}},
		}}))
	got := map[string]int{}
	for n, c := range k.Program().Chains {
		if len(c.Rules) == 1 && c.Rules[0].Op == Drop {
			s := k.Source(n)
			if s == nil || len(s.Cluster) != 1 {
				t.Fatalf("chain %s stands for %+v", n, s)
			}
			got[s.Namespace]++
		}
	}
	if got["a"] != 1 || got["b"] != 1 || len(got) != 2 {
		t.Errorf("chains that deny, by namespace: %v, want one each of a and b", got)
	}
	if one, two := k.Program().Pods[netip.MustParseAddr("10.0.0.1")], k.Program().Pods[netip.MustParseAddr("10.0.0.2")]; one != two || one.Ingress == "" {
		t.Errorf("pods of one namespace have %+v and %+v", one, two)
	}
}
