// SPDX-License-Identifier: Apache-2.0

// Package fabric builds a lab's network: the segments' bridges and the router between them in a namespace of their
// own, and a link from there to each host. All of it lives in namespaces that the lab made; the host's own network
// is never touched, and no link ever passes through it.
//
// It imports topology, namespace and a netlink library.
package fabric

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/weft-net/weft/lab/namespace"
	"github.com/weft-net/weft/lab/topology"
	"golang.org/x/sys/unix"
)

// Link is the name of a host's link to its segment, as the host sees it.
const Link = "eth0"

// Fabric is the switch-and-router namespace.
type Fabric struct {
	Net  *namespace.Net
	plan topology.Plan

	mu      sync.Mutex // netlink requests on one socket take turns
	nl      *netlink.Handle
	bridges []int // link index of each segment's bridge
}

// New makes the bridges and the router.
func New(plan topology.Plan) (*Fabric, error) {
	ns, err := namespace.NewNet()
	if err != nil {
		return nil, err
	}
	f := &Fabric{Net: ns, plan: plan}
	err = ns.Do(func() error {
		if err := prepare(true); err != nil {
			return err
		}
		if f.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		if err := upLoopback(f.nl); err != nil {
			return err
		}
		for segment := range plan.Segments {
			if err := f.addBridge(segment); err != nil {
				return fmt.Errorf("segment %d: %w", segment, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab network: %w", err)
	}
	return f, nil
}

func (f *Fabric) addBridge(segment int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("br%d", segment)
	// A bridge without an address of its own takes the lowest of its ports', another one whenever a node comes or goes.
	attrs.HardwareAddr = hardwareAddr(attrs.Name)
	// Snooping needs a querier to keep neighbour discovery's multicast groups alive; a lab has none.
	off := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := f.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", attrs.Name, err)
	}
	f.bridges = append(f.bridges, bridge.Index)
	return configure(f.nl, bridge, f.plan.Router(segment))
}

// Host is something on a segment.
type Host struct {
	Net      *namespace.Net
	Port     string // the name of the switch's end of its link
	Segment  int
	Addrs    []netip.Prefix
	Forwards bool // as a Kubernetes node must
}

// Attach links a host to its segment: link eth0 there, its port here, its addresses, and a default route to the
// router.
func (f *Fabric) Attach(h Host) error {
	if err := f.attach(h); err != nil {
		return fmt.Errorf("attach %s to segment %d: %w", h.Port, h.Segment, err)
	}
	return nil
}

func (f *Fabric) attach(h Host) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	// First, since links take the namespace's defaults when they are made.
	if err := h.Net.Do(func() error { return prepare(h.Forwards) }); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = h.Port
	attrs.MasterIndex = f.bridges[h.Segment]
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: Link, PeerNamespace: netlink.NsFd(h.Net.Fd()), PeerHardwareAddr: hardwareAddr(h.Port)}
	if err := f.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link: %w", err)
	}
	if err := f.nl.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	return h.Net.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		if err := upLoopback(nl); err != nil {
			return err
		}
		link, err := nl.LinkByName(Link)
		if err != nil {
			return err
		}
		if err := configure(nl, link, h.Addrs); err != nil {
			return err
		}
		return defaultRoutes(nl, link, f.plan.Router(h.Segment))
	})
}

// hardwareAddr is the address burnt into a host's link: the same after a power cut, or its neighbours would look for it
// at the old one until they give that up. It is of the locally administered kind.
func hardwareAddr(port string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(port))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// AddInternet gives `outside` the internet's addresses, and sends there what the router knows no other way for.
func (f *Fabric) AddInternet(outside *namespace.Net) error {
	err := outside.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		return configure(nl, lo, f.plan.Internet())
	})
	if err != nil {
		return fmt.Errorf("internet addresses: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	bridge, err := f.nl.LinkByIndex(f.bridges[0])
	if err != nil {
		return err
	}
	return defaultRoutes(f.nl, bridge, f.plan.Outside())
}

// Cut takes a port off its segment, as silently as a switch that swallows every frame: the host's link stays up.
func (f *Fabric) Cut(port string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	link, err := f.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s: %w", port, err)
	}
	return f.nl.LinkSetNoMaster(link)
}

// Join puts a port back onto its segment.
func (f *Fabric) Join(port string, segment int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	link, err := f.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s: %w", port, err)
	}
	return f.nl.LinkSetMasterByIndex(link, f.bridges[segment])
}

// Detach removes a port and the host's link with it. A port that is gone already is no error.
func (f *Fabric) Detach(port string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	link, err := f.nl.LinkByName(port)
	if _, gone := err.(netlink.LinkNotFoundError); gone {
		return nil
	} else if err != nil {
		return err
	}
	// With the last process of a network namespace its links go too, but not at once: this one may go under our hands.
	if err := f.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", port, err)
	}
	return nil
}

// configure puts addresses on a link and sets it up. Addresses are usable at once: the lab hands them out, so there
// are no duplicates to detect.
func configure(nl *netlink.Handle, link netlink.Link, addrs []netip.Prefix) error {
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return nil
}

func defaultRoutes(nl *netlink.Handle, link netlink.Link, via []netip.Prefix) error {
	for _, gw := range via {
		everywhere := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if gw.Addr().Is6() {
			everywhere = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Gw: gw.Addr().AsSlice()}
		if err := nl.RouteReplace(route); err != nil {
			return fmt.Errorf("default route via %s: %w", gw.Addr(), err)
		}
	}
	return nil
}

func upLoopback(nl *netlink.Handle) error {
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return nl.LinkSetUp(lo)
}

// prepare sets what a new network namespace needs: a namespace starts from the host's values, which differ from
// machine to machine. /proc/sys/net is that of the calling thread's namespace.
func prepare(forward bool) error {
	settings := [][2]string{
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/all/accept_ra", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
	}
	if forward {
		settings = append(settings, [2]string{"ipv4/ip_forward", "1"}, [2]string{"ipv6/conf/all/forwarding", "1"})
	}
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", s[0]), []byte(s[1]), 0); err != nil {
			return fmt.Errorf("set net.%s=%s in a new network namespace: %w", s[0], s[1], err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
