// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// verify looks, in the kernel, for all that ADD made.
func (n *Network) verify(r *record, pod *netNS) error {
	if err := n.verifyNode(r); err != nil {
		return err
	}
	return pod.do(func() error { return verifyPod(r) })
}

// verifyNode is the part of verify that is not inside the pod.
func (n *Network) verifyNode(r *record) error {
	l, err := n.nl.LinkByName(r.Link)
	if err != nil {
		return fmt.Errorf("node's link %s: %w", r.Link, err)
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("node's link %s is down", r.Link)
	}
	for _, a := range r.IPs {
		if err := hasRoute(n.nl, hostPrefix(a), l.Attrs().Index, netip.Addr{}, n.source(a)); err != nil {
			return fmt.Errorf("on the node: %w", err)
		}
		if err := hasNeighbour(n.nl, l.Attrs().Index, a, podMAC(r.IPs)); err != nil {
			return fmt.Errorf("on the node: %w", err)
		}
		if a.Is6() {
			if err := hasAddress(n.nl, l, gateway6); err != nil {
				return fmt.Errorf("on the node: %w", err)
			}
		}
	}
	if ok, err := n.table.holds(portElements(r)); err != nil || !ok {
		return fmt.Errorf("table %s lacks host ports (%v)", TableName, err)
	}
	return nil
}

// verifyPod is the part of verify that runs inside the pod's namespace.
func verifyPod(r *record) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	l, err := nl.LinkByName(r.IfName)
	if err != nil {
		return fmt.Errorf("the pod's %s: %w", r.IfName, err)
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("the pod's %s is down", r.IfName)
	}
	if mac := podMAC(r.IPs); !bytes.Equal(l.Attrs().HardwareAddr, mac) {
		return fmt.Errorf("the pod's %s has MAC %s, not %s", r.IfName, l.Attrs().HardwareAddr, mac)
	}
	for _, a := range r.IPs {
		if err := hasAddress(nl, l, a); err != nil {
			return fmt.Errorf("in the pod: %w", err)
		}
		gw := gatewayOf(a)
		if err := hasRoute(nl, netip.PrefixFrom(gw, 0).Masked(), l.Attrs().Index, gw, netip.Addr{}); err != nil {
			return fmt.Errorf("in the pod: %w", err)
		}
		if err := hasNeighbour(nl, l.Attrs().Index, gw, gatewayMAC); err != nil {
			return fmt.Errorf("in the pod: %w", err)
		}
	}
	return nil
}

func hasAddress(nl *netlink.Handle, l netlink.Link, want netip.Addr) error {
	addrs, err := nl.AddrList(l, family(want))
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, _ := netip.AddrFromSlice(a.IP); ip.Unmap() == want {
			return nil
		}
	}
	return fmt.Errorf("%s lacks address %s", l.Attrs().Name, want)
}

func hasRoute(nl *netlink.Handle, dst netip.Prefix, link int, via, src netip.Addr) error {
	rs, err := nl.RouteListFiltered(family(dst.Addr()), &netlink.Route{LinkIndex: link}, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range rs {
		p, ok := prefixOf(r.Dst)
		if r.Dst == nil {
			p, ok = netip.PrefixFrom(dst.Addr(), 0).Masked(), true
		}
		gw, _ := netip.AddrFromSlice(r.Gw)
		from, _ := netip.AddrFromSlice(r.Src)
		if ok && p == dst && gw.Unmap() == via && (!src.IsValid() || from.Unmap() == src) {
			return nil
		}
	}
	return fmt.Errorf("no route to %s", dst)
}

func hasNeighbour(nl *netlink.Handle, link int, ip netip.Addr, mac net.HardwareAddr) error {
	ns, err := nl.NeighList(link, family(ip))
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, nb := range ns {
		if a, _ := netip.AddrFromSlice(nb.IP); a.Unmap() == ip && bytes.Equal(nb.HardwareAddr, mac) && nb.State&netlink.NUD_PERMANENT != 0 {
			return nil
		}
	}
	return fmt.Errorf("no neighbour entry for %s", ip)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if a = a.Unmap(); a.Is4() && size == 128 {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits), ok && bits >= 0
}
