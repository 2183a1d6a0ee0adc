// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Guard is everything that decides about one direction of one pod, put together once for many questions. It is as the
// Cluster was when it was made.
type Guard struct {
	cluster   *Cluster
	direction Direction
	admin     []rule // of all ClusterNetworkPolicies that are about the pod, in the order in which they are tried
	isolated  bool   // by a NetworkPolicy
	rules     []rule // of all NetworkPolicies that isolate it
	baseline  []rule
}

// Guard finds what decides about a pod's direction. What exempts a flow from policies, such as the pod being on its
// node's network, is not the Guard's.
func (c *Cluster) Guard(p *model.Pod, d Direction) *Guard {
	g := &Guard{cluster: c, direction: d}
	for _, cnp := range c.subjectOf(c.admin, p, d) {
		g.admin = append(g.admin, rulesOfCluster(cnp, d)...)
	}
	for _, np := range c.policies[p.Namespace] {
		if isolatesFor(np, d) && np.PodSelector.Matches(p.Labels) {
			g.isolated = true
			g.rules = append(g.rules, rulesOfPolicy(np, d)...)
		}
	}
	for _, cnp := range c.subjectOf(c.baseline, p, d) {
		g.baseline = append(g.baseline, rulesOfCluster(cnp, d)...)
	}
	return g
}

// Open tells whether nothing has a say.
func (g *Guard) Open() bool { return !g.isolated && len(g.admin)+len(g.baseline) == 0 }

// toward leaves only the rules that mean a peer.
func (g *Guard) toward(peer Endpoint) *Guard {
	meant := func(in []rule) []rule {
		var out []rule
		for i := range in {
			if g.cluster.meant(&in[i], peer) {
				out = append(out, in[i])
			}
		}
		return out
	}
	return &Guard{
		cluster: g.cluster, direction: g.direction, isolated: g.isolated,
		admin: meant(g.admin), rules: meant(g.rules), baseline: meant(g.baseline),
	}
}

// admits decides about a flow by its port alone; all rules that are left mean the peer.
func (g *Guard) admits(f *Flow) bool {
	first := func(tier []rule) (model.PolicyAction, bool) {
		for i := range tier {
			if portMatches(tier[i].ports, f) {
				return tier[i].action, tier[i].action != model.PassTraffic
			}
		}
		return 0, false
	}
	if action, ok := first(g.admin); ok {
		return action == model.AcceptTraffic
	}
	if g.isolated {
		return slices.ContainsFunc(g.rules, func(r rule) bool { return portMatches(r.ports, f) })
	}
	action, ok := first(g.baseline)
	return !ok || action == model.AcceptTraffic
}

// meant tells whether a rule is about a peer.
func (c *Cluster) meant(r *rule, peer Endpoint) bool {
	return len(r.peers) == 0 || slices.ContainsFunc(r.peers, func(t term) bool { return c.matches(&t, peer) })
}

// ICMP stands for ICMP and ICMPv6 in a PortRange of Admitted.
const ICMP model.Protocol = 1

// protocols are those that policies tell apart, in the order of their numbers.
var protocols = []model.Protocol{ICMP, model.TCP, model.UDP, model.SCTP}

// EveryPort is what a Guard admits that has nothing to say: all protocols that policies tell apart, with all ports.
func EveryPort() []PortRange {
	out := make([]PortRange, len(protocols))
	for i, p := range protocols {
		out[i] = PortRange{Protocol: p, From: 1, To: 65535}
	}
	return out
}

// Admitted are the ports that the Guard lets through between two ends, exactly: disjoint ranges that do not touch,
// sorted by protocol and port.
func (g *Guard) Admitted(src, dst Endpoint) []PortRange {
	f := &Flow{Src: src, Dst: dst}
	self, peer := ends(g.direction, f)
	if g.Open() || exempt(g.direction, self, peer) != "" {
		return EveryPort()
	}
	near := g.toward(peer)
	if near.Open() {
		return EveryPort()
	}
	var out []PortRange
	for _, f.Protocol = range protocols {
		starts := near.starts(f)
		for i, from := range starts {
			to := uint16(65535)
			if i+1 < len(starts) {
				to = starts[i+1] - 1
			}
			if f.Port = from; !near.admits(f) {
				continue
			}
			if n := len(out); n > 0 && out[n-1].Protocol == f.Protocol && out[n-1].To == from-1 {
				out[n-1].To = to
			} else {
				out = append(out, PortRange{Protocol: f.Protocol, From: from, To: to})
			}
		}
	}
	return out
}

// starts cuts a protocol's ports where a rule may begin to decide otherwise: the first ports of each piece.
func (g *Guard) starts(f *Flow) []uint16 {
	out := []uint16{1}
	cut := func(from, to uint16) {
		if from > 1 {
			out = append(out, from)
		}
		if to < 65535 {
			out = append(out, to+1)
		}
	}
	for _, rules := range [][]rule{g.admin, g.rules, g.baseline} {
		for _, r := range rules {
			for _, p := range r.ports {
				switch {
				case p.Name != "" && f.Dst.Pod != nil:
					for _, cp := range f.Dst.Pod.Ports {
						if names(p, cp) && cp.Protocol == f.Protocol && cp.Port > 0 {
							cut(cp.Port, cp.Port)
						}
					}
				case p.Name == "" && p.Protocol == f.Protocol && p.Port != 0:
					r := portRange(p)
					cut(r.From, r.To)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Blocks are the ranges of addresses that the Guard's rules name, exceptions too, sorted and each once. Addresses that
// are in the same ones, and of no pod or node, and that have no names, are all one to it.
func (g *Guard) Blocks() []netip.Prefix {
	var out []netip.Prefix
	for _, rules := range [][]rule{g.admin, g.rules, g.baseline} {
		for _, r := range rules {
			for _, t := range r.peers {
				if t.kind == ofBlock {
					out = append(append(out, t.block), t.except...)
				}
			}
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

// Left are the addresses of a range without those of others.
func Left(of netip.Prefix, without ...netip.Prefix) []Range { return blockRanges(of, without) }

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
