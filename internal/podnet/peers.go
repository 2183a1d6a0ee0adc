// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// underlay is what the kernel says of the way to another node's address.
type underlay struct {
	onLink bool // on a link that this node has an address on: no router between
	link   int  // its index
}

// nodeRoute is the way to one podCIDR.
type nodeRoute struct {
	dst netip.Prefix

	// Either unreachable, for addresses of this node's own ranges that no pod has,
	unreachable bool
	// or via a gateway: on a link, or through the tunnel of a family.
	via    netip.Addr
	link   int
	tunnel model.Family // 0: none
	src    netip.Addr   // invalid: the kernel's choice
}

// tunnelPeer is a node at the other end of a tunnel.
type tunnelPeer struct {
	family model.Family // of the packets between the nodes
	remote netip.Addr   // its address
	mac    net.HardwareAddr
}

// nodePlan is what one other node asks of this one.
type nodePlan struct {
	routes  []nodeRoute
	tunnel  *tunnelPeer
	cluster []netip.Prefix // what pods reach under their own address
}

// firstOf is a node's first address of a family, which both ends of a tunnel agree on.
func firstOf(ips []netip.Addr, f model.Family) netip.Addr {
	for _, a := range ips {
		if model.FamilyOf(a) == f {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

// planNode decides how this node reaches another one's pods: directly where both share a link, for each family by
// itself, else through a tunnel. A node without podCIDRs or addresses asks nothing yet. The error names what of the
// node can't be served; the plan holds the rest.
func planNode(self, remote *model.Node, lookup func(netip.Addr) underlay) (nodePlan, error) {
	var p nodePlan
	onLink := make(map[netip.Addr]underlay)
	for _, a := range remote.InternalIPs {
		a = a.Unmap()
		if u := lookup(a); u.onLink {
			onLink[a] = u
			p.cluster = append(p.cluster, hostPrefix(a))
		}
	}
	var err error
	for _, c := range remote.PodCIDRs {
		c = c.Masked()
		p.cluster = append(p.cluster, c)
		f := model.FamilyOf(c.Addr())
		r := nodeRoute{dst: c}
		for _, a := range remote.InternalIPs {
			a = a.Unmap()
			if u, ok := onLink[a]; ok && model.FamilyOf(a) == f {
				r.via, r.link, r.src = a, u.link, firstOf(self.InternalIPs, f)
				break
			}
		}
		if !r.via.IsValid() {
			if p.tunnel == nil {
				p.tunnel = planTunnel(self, remote)
			}
			if p.tunnel == nil {
				err = fmt.Errorf("node %s: no way to its pods %s: none of its InternalIPs %v is of a family that this node has (%v)", remote.Name.Name, c, remote.InternalIPs, self.InternalIPs)
				continue
			}
			r.tunnel, r.via = p.tunnel.family, tunnelNextHop(p.tunnel, f)
			for _, own := range self.PodCIDRs {
				if model.FamilyOf(own.Addr()) == f {
					r.src = model.TunnelAddr(own)
					break
				}
			}
		}
		p.routes = append(p.routes, r)
	}
	return p, err
}

func planTunnel(self, remote *model.Node) *tunnelPeer {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		to := firstOf(remote.InternalIPs, f)
		if to.IsValid() && firstOf(self.InternalIPs, f).IsValid() {
			return &tunnelPeer{family: f, remote: to, mac: tunnelMAC(to)}
		}
	}
	return nil
}

// tunnelMAC is the address of a node's tunnel device. It follows from the node's own address, so that nodes need
// tell each other nothing. Over IPv4 it holds that address; over IPv6 two nodes of thousands share a hash of 40 bits
// with a chance of one in a hundred thousand.
func tunnelMAC(node netip.Addr) net.HardwareAddr {
	if node.Is4() {
		b := node.As4()
		return net.HardwareAddr{0x0a, 0x5a, b[0], b[1], b[2], b[3]}
	}
	h := sha256.Sum256(node.AsSlice())
	return net.HardwareAddr{0x0e, h[0], h[1], h[2], h[3], h[4]}
}

// tunnelNextHop is the address that a tunnel peer has on the tunnel's link: its own IPv4 address for IPv4 over IPv4,
// else one made of its MAC (RFC 4291, appendix A). IPv4 over IPv6 takes the latter too (RFC 5549).
func tunnelNextHop(p *tunnelPeer, inner model.Family) netip.Addr {
	if inner == model.IPv4 && p.family == model.IPv4 {
		return p.remote
	}
	m := p.mac
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// topology is what this node knows of all nodes, and what follows from it. It decides and does no I/O.
type topology struct {
	self  *model.Node // nil until known
	nodes map[string]*model.Node
	plans map[string]nodePlan
	errs  map[string]error

	// claims holds, for each podCIDR, the nodes that have it: more than one while a node is replaced.
	claims  map[netip.Prefix][]string
	cluster map[netip.Prefix]int // how many plans hold it
	extra   []netip.Prefix
}

func newTopology(extra []netip.Prefix) *topology {
	return &topology{
		nodes: make(map[string]*model.Node), plans: make(map[string]nodePlan), errs: make(map[string]error),
		claims: make(map[netip.Prefix][]string), cluster: make(map[netip.Prefix]int), extra: extra,
	}
}

// set replaces what is known of another node (nil: it is gone) and plans it anew. It returns the podCIDRs whose
// route may have changed and whether the cluster's addresses have.
func (t *topology) set(name string, node *model.Node, lookup func(netip.Addr) underlay) (touched []netip.Prefix, clusterChanged bool) {
	old := t.plans[name]
	delete(t.plans, name)
	delete(t.nodes, name)
	delete(t.errs, name)
	for _, r := range old.routes {
		touched = append(touched, r.dst)
		if t.claims[r.dst] = slices.DeleteFunc(t.claims[r.dst], func(n string) bool { return n == name }); len(t.claims[r.dst]) == 0 {
			delete(t.claims, r.dst)
		}
	}
	for _, c := range old.cluster {
		if t.cluster[c]--; t.cluster[c] == 0 {
			delete(t.cluster, c)
		}
	}
	var p nodePlan
	if node != nil {
		t.nodes[name] = node
		if t.self != nil {
			var err error
			if p, err = planNode(t.self, node, lookup); err != nil {
				t.errs[name] = err
			}
			t.plans[name] = p
		}
	}
	for _, r := range p.routes {
		touched = append(touched, r.dst)
		t.claims[r.dst] = append(t.claims[r.dst], name)
	}
	for _, c := range p.cluster {
		t.cluster[c]++
	}
	return touched, !slices.Equal(old.cluster, p.cluster)
}

// route is the way to a podCIDR: that of the newest node that has it.
func (t *topology) route(dst netip.Prefix) (nodeRoute, bool) {
	if t.self != nil && slices.Contains(t.self.PodCIDRs, dst) {
		return nodeRoute{dst: dst, unreachable: true}, true
	}
	names := t.claims[dst]
	if len(names) == 0 {
		return nodeRoute{}, false
	}
	newest := slices.MaxFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(t.nodes[a].Created, t.nodes[b].Created), cmp.Compare(a, b))
	})
	for _, r := range t.plans[newest].routes {
		if r.dst == dst {
			return r, true
		}
	}
	return nodeRoute{}, false
}

// destinations are all podCIDRs that have a route.
func (t *topology) destinations() []netip.Prefix {
	var ds []netip.Prefix
	if t.self != nil {
		ds = append(ds, t.self.PodCIDRs...)
	}
	for d := range t.claims {
		ds = append(ds, d)
	}
	return ds
}

// tunnels are the peers of all tunnels, by their MAC, which names them.
func (t *topology) tunnels() map[model.Family]map[string]tunnelPeer {
	ts := make(map[model.Family]map[string]tunnelPeer)
	for _, p := range t.plans {
		if p.tunnel == nil {
			continue
		}
		m := ts[p.tunnel.family]
		if m == nil {
			m = make(map[string]tunnelPeer)
			ts[p.tunnel.family] = m
		}
		m[p.tunnel.mac.String()] = *p.tunnel
	}
	return ts
}

// clusterRanges are the ranges that pods reach under their own address.
func (t *topology) clusterRanges() []addrRange {
	ps := slices.Clone(t.extra)
	if t.self != nil {
		ps = append(ps, t.self.PodCIDRs...)
		for _, a := range t.self.InternalIPs {
			ps = append(ps, hostPrefix(a.Unmap()))
		}
	}
	for p := range t.cluster {
		ps = append(ps, p)
	}
	return mergePrefixes(ps)
}

// ownRanges are the ranges of this node's own pods.
func (t *topology) ownRanges() []addrRange {
	if t.self == nil {
		return nil
	}
	return mergePrefixes(t.self.PodCIDRs)
}
