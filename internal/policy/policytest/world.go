// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/weft-net/weft/internal/model"
)

// World makes random objects out of few words, so that they meet.
type World struct {
	*rand.Rand
	pods int
}

// NewWorld returns a World of so many pods, at most 48, that is the same for the same seed.
func NewWorld(seed uint64, pods int) *World {
	return &World{rand.New(rand.NewPCG(seed, 7)), pods}
}

func (w *World) label() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if v := w.IntN(3); v > 0 {
			out[k] = fmt.Sprint(v)
		}
	}
	return out
}

func (w *World) selector() model.Selector {
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

func (w *World) maybe() *model.Selector {
	if w.IntN(2) == 0 {
		return nil
	}
	s := w.selector()
	return &s
}

func (w *World) ns() string { return fmt.Sprintf("ns%d", w.IntN(3)) }

// Addr is the address of a pod, of a node, or of nobody.
func (w *World) Addr() netip.Addr {
	if w.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(w.IntN(64))})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00::%x", w.IntN(64)))
}

func (w *World) prefix() netip.Prefix {
	a := w.Addr()
	p, err := a.Prefix(a.BitLen() - w.IntN(7))
	if w.IntN(10) == 0 {
		p, err = a.Prefix(0)
	}
	if err != nil {
		panic(err)
	}
	return p
}

// Protocol is one that has ports.
func (w *World) Protocol() model.Protocol {
	return []model.Protocol{model.TCP, model.UDP, model.SCTP}[w.IntN(3)]
}

// Pod is a pod of either node. Its addresses are 10.0.0.N and fd00::N, N its number, which now and then is a neighbour's, as happens when an address is reused.
func (w *World) Pod() *model.Pod {
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
		p.Ports = append(p.Ports, model.ContainerPort{Name: []string{"", "http", "dns"}[w.IntN(3)], Protocol: w.Protocol(), Port: uint16(80 + i)})
	}
	return p
}

func (w *World) ports(cluster bool) []model.PolicyPort {
	var out []model.PolicyPort
	for range w.IntN(4) {
		p := model.PolicyPort{Protocol: w.Protocol()}
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

// Policy is a NetworkPolicy.
func (w *World) Policy() *model.NetworkPolicy {
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

// ClusterPolicy is a ClusterNetworkPolicy.
func (w *World) ClusterPolicy() *model.ClusterNetworkPolicy {
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
				switch k := w.IntN(9); {
				case k < 4:
					peer.Namespaces, peer.Pods = &s, &q
				case k < 6 && egress:
					peer.Networks = []netip.Prefix{w.prefix(), w.prefix()}
				case k < 7 && egress:
					peer.Nodes = &s
				case k < 7:
					peer.Namespaces = &s
				case k < 8 && egress:
					peer.DomainNames = []string{w.Name(), "*.x" + w.Name()[:1] + ".example"}
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

// Name is a domain name that policies may go by.
func (w *World) Name() string {
	return []string{"a.example", "b.example", "c.xa.example", "d.c.xa.example", "xa.example"}[w.IntN(5)]
}

// Namespace is one of three.
func (w *World) Namespace() *model.Namespace {
	n := w.ns()
	return &model.Namespace{Meta: model.Meta{Name: model.Name{Name: n}, Labels: w.label()}}
}

// Node is n1 or n2; both of its podCIDRs are within what Addr gives.
func (w *World) Node() *model.Node {
	i := w.IntN(2) + 1
	n := &model.Node{Meta: model.Meta{Name: model.Name{Name: fmt.Sprintf("n%d", i)}, Labels: w.label()},
		InternalIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(60 + i)})}}
	if w.IntN(4) > 0 { // a node may be there before it has its ranges
		n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/30", 48+4*i)), netip.MustParsePrefix(fmt.Sprintf("fd00::%x/126", 48+4*i))}
	}
	return n
}

// Change is a Delta of few objects, some of them deletions.
func (w *World) Change(cluster bool) *model.Delta {
	d := &model.Delta{
		Complete: true, Pods: map[model.Name]*model.Pod{}, Nodes: map[string]*model.Node{},
		Namespaces: map[string]*model.Namespace{}, NetworkPolicies: map[model.Name]*model.NetworkPolicy{},
		ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{},
	}
	for range 1 + w.IntN(4) {
		gone := w.IntN(5) == 0
		switch k := w.IntN(12); {
		case k < 5:
			p := w.Pod()
			d.Pods[p.Name] = unless(gone, p)
		case k < 9:
			p := w.Policy()
			d.NetworkPolicies[p.Name] = unless(gone, p)
		case k == 9:
			n := w.Namespace()
			d.Namespaces[n.Name.Name] = unless(gone, n)
		case k == 10:
			n := w.Node()
			d.Nodes[n.Name.Name] = unless(gone, n)
		case cluster:
			p := w.ClusterPolicy()
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
