// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkInfo is what decides whether a link is announced on.
type linkInfo struct {
	index    int
	name     string
	kind     string // as `ip -d link` has it: "veth", "bond"…; "" or "device" for hardware
	mac      mac
	ethernet bool
	running  bool // up, with a carrier
	loopback bool
	slave    bool // of a bridge, bond, or VRF: its master counts
	subnets  []netip.Prefix
}

// tunnels and their like are no segment that hosts of the outside share with the node.
var tunnels = []string{"vxlan", "geneve", "gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ipip", "sit", "ip6tnl", "vti", "vti6",
	"wireguard", "tun", "tuntap", "dummy", "ifb", "nlmon", "xfrm", "vrf", "netkit"}

// usable tells whether addresses are announced on the link. By default that is every Ethernet link with a subnet: not
// pods' links, which have none, nor tunnels, nor a bridge that none of the node's own addresses is on, such as
// another program's bridge for its containers. Patterns (path.Match), where there are any, choose among Ethernet links
// by name alone.
func usable(l linkInfo, patterns []string, nodeIPs []netip.Addr) bool {
	if !l.ethernet || !l.running || l.loopback {
		return false
	}
	if len(patterns) > 0 {
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := path.Match(p, l.name)
			return ok && err == nil
		})
	}
	if l.slave || len(l.subnets) == 0 || isPodLink(l.name) || slices.Contains(tunnels, l.kind) {
		return false
	}
	if l.kind != "bridge" {
		return true
	}
	return slices.ContainsFunc(nodeIPs, func(ip netip.Addr) bool {
		return slices.ContainsFunc(l.subnets, func(p netip.Prefix) bool { return p.Contains(ip) })
	})
}

// isPodLink tells a pod's link by the name that podnet gives it.
func isPodLink(name string) bool { return strings.HasPrefix(name, "weft") }

// belongs tells whether the address is to be announced on the link, given the subnets of all that are usable: on the
// links whose subnet it is of, or, where it is of none, on all of them, for a router may send it there.
func belongs(a netip.Addr, own []netip.Prefix, all [][]netip.Prefix) bool {
	has := func(subnets []netip.Prefix) bool {
		return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return has(own) || !slices.ContainsFunc(all, has)
}

// pair is an address of this node's own and one of another's that are on the same one of a link's subnets, of IPv4 if there
// is such a pair; neither is valid if there is none.
func pair(subnets []netip.Prefix, own, its []netip.Addr) (netip.Addr, netip.Addr) {
	for _, six := range []bool{false, true} {
		for _, p := range subnets {
			if p.Addr().Is6() != six {
				continue
			}
			i, j := slices.IndexFunc(own, p.Contains), slices.IndexFunc(its, p.Contains)
			if i >= 0 && j >= 0 {
				return own[i], its[j]
			}
		}
	}
	return netip.Addr{}, netip.Addr{}
}

// listLinks reads the links of the namespace.
func listLinks(nl *netlink.Handle) ([]linkInfo, error) {
	links, err := nl.LinkList()
	if err != nil {
		return nil, err
	}
	addrs, err := nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	subnets := make(map[int][]netip.Prefix)
	for _, a := range addrs {
		if p, ok := subnet(a.IPNet); ok {
			subnets[a.LinkIndex] = append(subnets[a.LinkIndex], p)
		}
	}
	var out []linkInfo
	for _, l := range links {
		at := l.Attrs()
		info := linkInfo{
			index: at.Index, name: at.Name, kind: l.Type(),
			ethernet: at.EncapType == "ether" && len(at.HardwareAddr) == len(mac{}),
			running:  at.RawFlags&unix.IFF_UP != 0 && at.RawFlags&unix.IFF_RUNNING != 0,
			loopback: at.Flags&net.FlagLoopback != 0,
			slave:    at.MasterIndex != 0,
			subnets:  subnets[at.Index],
		}
		if info.ethernet {
			info.mac = mac(at.HardwareAddr)
		}
		slices.SortFunc(info.subnets, netip.Prefix.Compare)
		out = append(out, info)
	}
	return out, nil
}

// subnet is the network that an interface's address puts it on; ok is false for link-local ones and single addresses.
func subnet(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	p := netip.PrefixFrom(a.Unmap(), ones).Masked()
	return p, p.IsValid() && !p.IsSingleIP() && p.Addr().IsGlobalUnicast()
}
