// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// labels reads "a=1,b=2".
func labels(s string) map[string]string {
	out := map[string]string{}
	for _, kv := range strings.Split(s, ",") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return out
}

func sel(s string) *model.Selector {
	m := model.MatchLabels(labels(s))
	return &m
}

// named reads "ns/name".
func named(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

// pod is a pod of node n1 with a container port http, TCP 80, unless it is changed afterwards.
func pod(name, podLabels string, addrs ...string) *model.Pod {
	p := &model.Pod{
		Meta: model.Meta{Name: named(name), UID: "uid-" + name, Labels: labels(podLabels)},
		Node: "n1", Ports: []model.ContainerPort{{Name: "http", Protocol: model.TCP, Port: 80}},
	}
	for _, a := range addrs {
		p.IPs = append(p.IPs, netip.MustParseAddr(a))
	}
	return p
}

func namespace(name, nsLabels string) *model.Namespace {
	return &model.Namespace{Meta: model.Meta{Name: model.Name{Name: name}, Labels: labels(nsLabels)}}
}

// delta gathers objects of any kind.
func delta(objects ...any) *model.Delta {
	d := &model.Delta{
		Complete: true, Pods: map[model.Name]*model.Pod{}, Nodes: map[string]*model.Node{},
		Namespaces: map[string]*model.Namespace{}, NetworkPolicies: map[model.Name]*model.NetworkPolicy{},
		ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{},
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *model.Pod:
			d.Pods[o.Name] = o
		case *model.Node:
			d.Nodes[o.Name.Name] = o
		case *model.Namespace:
			d.Namespaces[o.Name.Name] = o
		case *model.NetworkPolicy:
			d.NetworkPolicies[o.Name] = o
		case *model.ClusterNetworkPolicy:
			d.ClusterNetworkPolicies[o.Name.Name] = o
		default:
			panic(fmt.Sprintf("delta: %T", o))
		}
	}
	return d
}

// pass runs a packet through a Program the way a kernel has to.
func (p *Program) pass(src, dst netip.Addr, proto model.Protocol, port uint16) bool {
	if src == dst {
		return true // never leaves the pod, or is exempt by its own rule
	}
	k := packet{p, src, dst, proto, port}
	if c := p.Pods[src].Egress; c != "" && k.run(c) != Admit {
		return false
	}
	if c := p.Pods[dst].Ingress; c != "" && k.run(c) != Admit {
		return false
	}
	return true
}

type packet struct {
	p        *Program
	src, dst netip.Addr
	proto    model.Protocol
	port     uint16
}

// run gives Admit, Drop, or Return when the chain had nothing to say.
func (k *packet) run(name string) Op {
	c := k.p.Chains[name]
	peer := k.src
	if c.Direction == Egress {
		peer = k.dst
	}
	for _, r := range c.Rules {
		if r.Peer != "" && !k.p.Sets[r.Peer].holdsAddr(peer) {
			continue
		}
		if r.Ports != "" && k.p.Sets[r.Ports].port(k.proto, k.port) == nil {
			continue
		}
		if r.Named != "" {
			if _, ok := k.p.Sets[r.Named].Members[Member{k.dst, k.proto, k.port}]; !ok {
				continue
			}
		}
		switch r.Op {
		case Admit, Drop, Return:
			return r.Op
		case Goto:
			return k.run(r.Target)
		case Jump:
			if op := k.run(r.Target); op != Return {
				return op
			}
		case Lookup:
			if e := k.p.Sets[r.Target].port(k.proto, k.port); e != nil {
				if e.Target == "" {
					return Admit
				}
				if op := k.run(e.Target); op != Return {
					return op
				}
			}
		}
	}
	return Return
}

func (s *Set) holdsAddr(a netip.Addr) bool {
	if s.Kind == Nets {
		return slices.ContainsFunc(s.Ranges, func(r Range) bool { return r.Contains(a) })
	}
	_, ok := s.Members[Member{Addr: a}]
	return ok
}

func (s *Set) port(proto model.Protocol, port uint16) *PortRange {
	var hit *PortRange
	for i, r := range s.Ports {
		if r.Protocol == proto && r.From <= port && port <= r.To {
			if hit != nil {
				panic("overlapping ports in " + s.Name)
			}
			hit = &s.Ports[i]
		}
	}
	return hit
}

// world makes random objects out of few words, so that they meet.
type world struct {
	*rand.Rand
	pods int
}

func (w *world) label() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if v := w.IntN(3); v > 0 {
			out[k] = fmt.Sprint(v)
		}
	}
	return out
}

func (w *world) selector() model.Selector {
	var out model.Selector
	for range w.IntN(3) {
		r := model.Requirement{Key: []string{"a", "b"}[w.IntN(2)], Op: model.SelectorOp(w.IntN(4))}
		if r.Op == model.In || r.Op == model.NotIn {
			r.Values = [][]string{{"1"}, {"2"}, {"1", "2"}}[w.IntN(3)]
		}
		out = append(out, r)
	}
	return out
}

func (w *world) maybe() *model.Selector {
	if w.IntN(2) == 0 {
		return nil
	}
	s := w.selector()
	return &s
}

func (w *world) ns() string { return fmt.Sprintf("ns%d", w.IntN(3)) }

func (w *world) addr() netip.Addr {
	if w.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(w.IntN(64))})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00::%x", w.IntN(64)))
}

func (w *world) prefix() netip.Prefix {
	a := w.addr()
	p, err := a.Prefix(a.BitLen() - w.IntN(7))
	if w.IntN(10) == 0 {
		p, err = a.Prefix(0)
	}
	if err != nil {
		panic(err)
	}
	return p
}

func (w *world) proto() model.Protocol {
	return []model.Protocol{model.TCP, model.UDP, model.SCTP}[w.IntN(3)]
}

func (w *world) pod() *model.Pod {
	n := w.IntN(w.pods)
	p := &model.Pod{
		Meta: model.Meta{Name: model.Name{Namespace: fmt.Sprintf("ns%d", n%3), Name: fmt.Sprintf("p%d", n)}, Labels: w.label(),
			UID: fmt.Sprintf("u%d-%d", n, w.IntN(2)), Created: int64(w.IntN(5))},
		Node:        []string{"n1", "n1", "n2"}[w.IntN(3)],
		HostNetwork: w.IntN(12) == 0, Finished: w.IntN(12) == 0,
	}
	// The node moves, labels too, but an address is now and then shared with a neighbour, as happens when it is reused.
	i := n + w.IntN(8)/7
	p.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))}
	if p.HostNetwork {
		p.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.61")}
	}
	for i := range w.IntN(3) {
		p.Ports = append(p.Ports, model.ContainerPort{Name: []string{"", "http", "dns"}[w.IntN(3)], Protocol: w.proto(), Port: uint16(80 + i)})
	}
	return p
}

func (w *world) ports(cluster bool) []model.PolicyPort {
	var out []model.PolicyPort
	for range w.IntN(4) {
		p := model.PolicyPort{Protocol: w.proto()}
		switch w.IntN(4) {
		case 0:
			p.Name = []string{"http", "dns"}[w.IntN(2)]
			if cluster {
				p.Protocol = 0
			}
		case 1:
			p.Port = uint16(78 + w.IntN(6))
		case 2:
			p.Port = uint16(78 + w.IntN(6))
			p.EndPort = p.Port + uint16(w.IntN(4))
		}
		out = append(out, p)
	}
	return out
}

func (w *world) policy() *model.NetworkPolicy {
	p := &model.NetworkPolicy{
		Meta:        model.Meta{Name: model.Name{Namespace: w.ns(), Name: fmt.Sprintf("np%d", w.IntN(4))}},
		PodSelector: w.selector(), Ingress: w.IntN(3) > 0, Egress: w.IntN(3) > 0,
	}
	rules := func() (out []model.PolicyRule) {
		for range w.IntN(3) {
			r := model.PolicyRule{Ports: w.ports(false)}
			for range w.IntN(3) {
				peer := model.PolicyPeer{PodSelector: w.maybe(), NamespaceSelector: w.maybe()}
				if peer.PodSelector == nil && peer.NamespaceSelector == nil {
					peer.Block = w.prefix()
					for range w.IntN(3) {
						peer.Except = append(peer.Except, w.prefix())
					}
				}
				r.Peers = append(r.Peers, peer)
			}
			out = append(out, r)
		}
		return out
	}
	p.IngressFrom, p.EgressTo = rules(), rules()
	return p
}

func (w *world) clusterPolicy() *model.ClusterNetworkPolicy {
	p := &model.ClusterNetworkPolicy{
		Meta: model.Meta{Name: model.Name{Name: fmt.Sprintf("cnp%d", w.IntN(4))}},
		Tier: model.PolicyTier(w.IntN(2)), Priority: w.IntN(3), Namespaces: w.selector(), Pods: w.selector(),
	}
	rules := func(egress bool) (out []model.ClusterPolicyRule) {
		for range w.IntN(3) {
			r := model.ClusterPolicyRule{Action: model.PolicyAction(w.IntN(3)), Ports: w.ports(true)}
			for range 1 + w.IntN(2) {
				s, q := w.selector(), w.selector()
				var peer model.ClusterPolicyPeer
				switch k := w.IntN(8); {
				case k < 4:
					peer.Namespaces, peer.Pods = &s, &q
				case k < 6 && egress:
					peer.Networks = []netip.Prefix{w.prefix(), w.prefix()}
				case k < 7 && egress:
					peer.Nodes = &s
				case k < 7:
					peer.Namespaces = &s
				}
				r.Peers = append(r.Peers, peer)
			}
			out = append(out, r)
		}
		return out
	}
	p.IngressFrom, p.EgressTo = rules(false), rules(true)
	return p
}

func (w *world) namespace() *model.Namespace {
	n := w.ns()
	return &model.Namespace{Meta: model.Meta{Name: model.Name{Name: n}, Labels: w.label()}}
}

func (w *world) node() *model.Node {
	i := w.IntN(2) + 1
	return &model.Node{Meta: model.Meta{Name: model.Name{Name: fmt.Sprintf("n%d", i)}, Labels: w.label()},
		InternalIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(60 + i)})}}
}

// change is a random Delta of few objects, some of them deletions.
func (w *world) change(cluster bool) *model.Delta {
	d := delta()
	for range 1 + w.IntN(4) {
		gone := w.IntN(5) == 0
		switch k := w.IntN(12); {
		case k < 5:
			p := w.pod()
			d.Pods[p.Name] = unless(gone, p)
		case k < 9:
			p := w.policy()
			d.NetworkPolicies[p.Name] = unless(gone, p)
		case k == 9:
			n := w.namespace()
			d.Namespaces[n.Name.Name] = unless(gone, n)
		case k == 10:
			n := w.node()
			d.Nodes[n.Name.Name] = unless(gone, n)
		case cluster:
			p := w.clusterPolicy()
			d.ClusterNetworkPolicies[p.Name.Name] = unless(gone, p)
		}
	}
	return d
}

func unless[T any](gone bool, v *T) *T {
	if gone {
		return nil
	}
	return v
}
