// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that are weft's (rtnetlink(7) rtm_protocol; no daemon claims this one).
const routeProtocol = 119

// Names of links. A pattern "weft*" is exactly the pods' links; tunnels are named apart for that.
const (
	podLinkPrefix = "weft"
	tunnelPrefix  = "vxlan-weft"
)

// The pods' gateway: every node end of every pod link. Link-local, so the same for all and nowhere else reachable.
var (
	gateway4   = netip.MustParseAddr("169.254.1.1")
	gateway6   = netip.MustParseAddr("fe80::1")
	gatewayMAC = net.HardwareAddr{0x0a, 0x59, 0xa9, 0xfe, 0x01, 0x01}
)

// LinkName is the name of the node's end of a pod's link.
func LinkName(containerID, ifName string) string {
	h := sha256.Sum256([]byte(containerID + "\x00" + ifName))
	return podLinkPrefix + hex.EncodeToString(h[:])[:15-len(podLinkPrefix)]
}

// podLink tells whether a link's name is one that LinkName makes.
func podLink(name string) bool {
	digits, ok := strings.CutPrefix(name, podLinkPrefix)
	if !ok || len(name) != 15 {
		return false
	}
	return strings.Trim(digits, "0123456789abcdef") == ""
}

// ownLink tells whether a link's name is of weft's.
func ownLink(name string) bool { return podLink(name) || strings.HasPrefix(name, tunnelPrefix) }

// podMAC is a pod's address on its link: any will do, as the link has but two ends, and one that follows from the
// IP is the same after a repair.
func podMAC(ips []netip.Addr) net.HardwareAddr {
	if ips[0].Is4() {
		b := ips[0].As4()
		return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
	}
	h := sha256.Sum256(ips[0].AsSlice())
	return net.HardwareAddr{0x0a, h[0], h[1], h[2], h[3], h[4]}
}

func gatewayOf(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return gateway4
	}
	return gateway6
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// createLink makes the veth, both ends down, the far one already inside the pod's namespace under its final name.
func (n *Network) createLink(r *record, pod *netNS) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = r.Link, r.MTU, gatewayMAC
	err := n.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: r.IfName, PeerHardwareAddr: podMAC(r.IPs),
		PeerMTU: uint32(r.MTU), PeerNamespace: netlink.NsFd(pod.fd()),
	})
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create link %s: the pod's namespace has an interface %s already", r.Link, r.IfName)
	}
	if err != nil {
		return fmt.Errorf("create link %s: %w", r.Link, err)
	}
	return nil
}

// deleteLink removes the node's end, and so the whole link, its routes and neighbours. A link that isn't there is
// fine.
func (n *Network) deleteLink(name string) error {
	l, err := n.nl.LinkByName(name)
	if err == nil {
		err = n.nl.LinkDel(l)
	}
	if err != nil && !isNoLink(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func isNoLink(err error) bool {
	var gone netlink.LinkNotFoundError
	return errors.As(err, &gone) || errors.Is(err, unix.ENODEV)
}

// configurePod sets up the pod's end; it runs inside the pod's namespace. nl is of there.
func configurePod(nl *netlink.Handle, r *record) error {
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up lo in the pod: %w", err)
	}
	l, err := nl.LinkByName(r.IfName)
	if err != nil {
		return fmt.Errorf("the pod's %s: %w", r.IfName, err)
	}
	if err := setSysctls(podSysctls(r)...); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	for _, a := range r.IPs {
		// No duplicate address detection: it would make the pod wait a second for its own address.
		addr := &netlink.Addr{IPNet: ipNet(hostPrefix(a)), Flags: unix.IFA_F_NODAD | unix.IFA_F_PERMANENT}
		if err := nl.AddrReplace(l, addr); err != nil {
			return fmt.Errorf("give the pod's %s the address %s: %w", r.IfName, a, err)
		}
	}
	if err := nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up the pod's %s: %w", r.IfName, err)
	}
	index := l.Attrs().Index
	for _, a := range r.IPs {
		gw := gatewayOf(a)
		if err := nl.NeighSet(neighbour(index, gw, gatewayMAC)); err != nil {
			return fmt.Errorf("the pod's neighbour %s: %w", gw, err)
		}
		route := &netlink.Route{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(gw, 0).Masked()), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := nl.RouteReplace(route); err != nil {
			return fmt.Errorf("the pod's default route via %s: %w", gw, err)
		}
	}
	return nil
}

// awaitPod returns when the pod can send and receive. The kernel finishes both in its own time: it notices that the
// pod's end has a carrier, and drops what the pod sends until then, and it makes an IPv6 address the pod's own, even
// without duplicate address detection. A first SYN that is lost to either is repeated a whole second later.
func awaitPod(ctx context.Context, nl *netlink.Handle, r *record) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		waits, err := podWaits(nl, r)
		if err != nil || waits == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the pod's %s does not get ready: %s", r.IfName, waits)
		case <-time.After(time.Millisecond):
		}
	}
}

// podWaits says what is still missing, "" if nothing is.
func podWaits(nl *netlink.Handle, r *record) (string, error) {
	// From Linux 6.9 on, to ask for a link makes the kernel look for its carrier at once.
	l, err := nl.LinkByName(r.IfName)
	if err != nil {
		return "", fmt.Errorf("the pod's %s: %w", r.IfName, err)
	}
	if l.Attrs().OperState != netlink.OperUp {
		return "it has no carrier, its state is " + l.Attrs().OperState.String(), nil
	}
	for _, a := range r.IPs {
		way, err := nl.RouteGet(a.AsSlice())
		if err != nil {
			return "", fmt.Errorf("the pod's way to its own address %s: %w", a, err)
		}
		if len(way) == 0 || way[0].Type != unix.RTN_LOCAL {
			return "address " + a.String() + " is not its own yet", nil
		}
	}
	return "", nil
}

func podSysctls(r *record) []sysctl {
	s := []sysctl{
		// Answers to a Service that leads back to the pod leave its link where they came in; the node would
		// advise the pod to go direct, which it can't.
		{"ipv4/conf/all/accept_redirects", "0"},
		{"ipv4/conf/" + r.IfName + "/accept_redirects", "0"},
	}
	for _, a := range r.IPs {
		if a.Is6() {
			// The default must be on before the interface, or its link-local address is missing.
			s = append(s, sysctl{"ipv6/conf/all/disable_ipv6", "0"}, sysctl{"ipv6/conf/default/disable_ipv6", "0"}, sysctl{"ipv6/conf/lo/disable_ipv6", "0"})
			for _, kv := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"accept_dad", "0"}, {"dad_transmits", "0"}, {"accept_redirects", "0"}} {
				s = append(s, sysctl{"ipv6/conf/" + r.IfName + "/" + kv[0], kv[1]})
			}
		}
	}
	return s
}

func neighbour(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: family(ip), State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}

// podRoute is the node's route to one address of a pod. The source is the node's own address, so that what the node
// sends to its pods (kubelet's probes) comes from where the cluster knows the node.
func podRoute(index int, ip, src netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: ipNet(hostPrefix(ip)), Scope: unix.RT_SCOPE_LINK, Protocol: routeProtocol, Priority: routeMetric}
	if ip.Is6() {
		r.Scope = unix.RT_SCOPE_UNIVERSE // IPv6 knows no other
	}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	return r
}

// openLink sets up the node's end and brings it up: from here on the pod can be reached. It may run again, and then
// puts right what differs.
func (n *Network) openLink(r *record) error {
	l, err := n.nl.LinkByName(r.Link)
	if err != nil {
		return fmt.Errorf("link %s of %s: %w", r.Link, r.who(), err)
	}
	index := l.Attrs().Index
	if alias := r.Namespace + "/" + r.Name; r.Name != "" && l.Attrs().Alias != alias {
		if err := n.nl.LinkSetAlias(l, alias); err != nil {
			return fmt.Errorf("alias of link %s: %w", r.Link, err)
		}
	}
	if err := n.ns.do(func() error { return setSysctls(nodeSysctls(r)...) }); err != nil {
		return err
	}
	if err := n.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up link %s: %w", r.Link, err)
	}
	for _, a := range r.IPs {
		if a.Is6() {
			gw := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gateway6, 64)), Flags: unix.IFA_F_NODAD | unix.IFA_F_PERMANENT, Scope: unix.RT_SCOPE_LINK}
			if err := n.nl.AddrReplace(l, gw); err != nil {
				return fmt.Errorf("gateway address of link %s: %w", r.Link, err)
			}
		}
		if err := n.nl.NeighSet(neighbour(index, a, podMAC(r.IPs))); err != nil {
			return fmt.Errorf("neighbour %s on link %s: %w", a, r.Link, err)
		}
		if err := n.nl.RouteReplace(podRoute(index, a, n.source(a))); err != nil {
			return fmt.Errorf("route to %s (%s): %w", a, r.who(), err)
		}
	}
	return nil
}

func nodeSysctls(r *record) []sysctl {
	v4, v6 := "ipv4/conf/"+r.Link+"/", "ipv6/conf/"+r.Link+"/"
	s := []sysctl{{v4 + "send_redirects", "0"}}
	if len(r.HostPorts) > 0 {
		// 127.0.0.1 of the node is a way to a host port. What a pod sends to 127.0.0.0/8 is dropped first thing.
		s = append(s, sysctl{v4 + "route_localnet", "1"})
	}
	for _, a := range r.IPs {
		if a.Is6() {
			s = append(s, sysctl{v6 + "disable_ipv6", "0"}, sysctl{v6 + "addr_gen_mode", "1"}, sysctl{v6 + "accept_ra", "0"}, sysctl{v6 + "accept_dad", "0"})
		}
	}
	return s
}
