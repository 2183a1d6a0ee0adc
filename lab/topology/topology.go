// SPDX-License-Identifier: Apache-2.0

// Package topology decides who has which address in a lab. It is pure, and imports only the standard library.
//
// A lab has one or more segments (L2 networks, 172.30.S.0/24 and fd00:30:0:S::/64), joined by a router:
//
//	                  internet (203.0.113.1, 2001:db8:ffff::1)
//	                     |
//	router .1 ─┬─ outside .2 ─┬─ control .3 ─┬─ node1 .11 ─┬─ node2 .12 ...   segment 0
//	           ├─ node .. (nodes take turns over the segments)                segment 1
//
// Addresses .200 to .239 of each segment (and ::200 to ::239) are left to LoadBalancers.
package topology

import (
	"fmt"
	"net/netip"
)

// Families is which IP families a cluster uses.
type Families struct{ IPv4, IPv6 bool }

// ParseFamilies reads the command line's spelling: dual, ipv4 or ipv6.
func ParseFamilies(s string) (Families, error) {
	switch s {
	case "dual":
		return Families{IPv4: true, IPv6: true}, nil
	case "ipv4":
		return Families{IPv4: true}, nil
	case "ipv6":
		return Families{IPv6: true}, nil
	}
	return Families{}, fmt.Errorf("unknown IP family %q: want dual, ipv4 or ipv6", s)
}

// String is the command line's spelling.
func (f Families) String() string {
	switch f {
	case Families{IPv4: true}:
		return "ipv4"
	case Families{IPv6: true}:
		return "ipv6"
	}
	return "dual"
}

// pick keeps the addresses of the families in use, IPv4 first: that makes it the primary family of a dual-stack
// cluster.
func pick[T any](f Families, v4, v6 T) []T {
	var out []T
	if f.IPv4 {
		out = append(out, v4)
	}
	if f.IPv6 {
		out = append(out, v6)
	}
	return out
}

// Host numbers on a segment.
const (
	hostRouter  = 1
	hostOutside = 2
	hostControl = 3
	hostNodes   = 10 // node 1 is 11
)

// Limits of a lab, which its numbering sets.
const (
	MaxNodes    = 150
	MaxSegments = 16
)

// Plan is a lab's numbering.
type Plan struct {
	Families Families
	Segments int
}

// host is a host's address on a segment, in each family, with the segment's prefix length.
func (p Plan) host(segment, number int) []netip.Prefix {
	v4 := netip.AddrFrom4([4]byte{172, 30, byte(segment), byte(number)})
	// Decimal digits read the same in both families: host 11 is ::11.
	v6 := netip.MustParseAddr(fmt.Sprintf("fd00:30:0:%d::%d", segment, number))
	return pick(p.Families, netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64))
}

// Router is the addresses of the router on a segment.
func (p Plan) Router(segment int) []netip.Prefix { return p.host(segment, hostRouter) }

// Outside is the addresses of the client beyond the cluster, on segment 0.
func (p Plan) Outside() []netip.Prefix { return p.host(0, hostOutside) }

// Internet is the addresses of the internet beyond the cluster (RFC 5737 and RFC 3849 documentation addresses),
// which `outside` plays too.
func (p Plan) Internet() []netip.Prefix {
	return pick(p.Families, netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("2001:db8:ffff::1/128"))
}

// Control is the addresses of the control plane, on segment 0.
func (p Plan) Control() []netip.Prefix { return p.host(0, hostControl) }

// Segment is the segment of the node with this number (from 1 on).
func (p Plan) Segment(node int) int { return (node - 1) % p.Segments }

// Node is the addresses of the node with this number (from 1 on).
func (p Plan) Node(node int) []netip.Prefix { return p.host(p.Segment(node), hostNodes+node) }

// Zone and Region are a node's topology labels: three zones in turn, in one region.
func (p Plan) Zone(node int) string { return "zone-" + string(rune('a'+(node-1)%3)) }

// Region is the region of every node.
func (p Plan) Region() string { return "lab" }

// PodRanges is the ranges that the nodes' pod ranges are cut from: a /24 and a /64 for each node.
func (p Plan) PodRanges() []netip.Prefix {
	return pick(p.Families, netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56"))
}

// ServiceRanges is the ranges of the Services' cluster IPs.
func (p Plan) ServiceRanges() []netip.Prefix {
	return pick(p.Families, netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"))
}

// ServiceIP is the nth address of each Service range. The first is the API server's; the tenth, by convention, the
// DNS server's.
func (p Plan) ServiceIP(n byte) []netip.Addr {
	return pick(p.Families, netip.AddrFrom4([4]byte{10, 96, 0, n}),
		netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 5: 0x96, 15: n}))
}

// Addrs strips the prefix lengths.
func Addrs(prefixes []netip.Prefix) []netip.Addr {
	addrs := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		addrs[i] = p.Addr()
	}
	return addrs
}
