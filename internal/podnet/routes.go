// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// routeMetric is the metric of weft's routes (ip-route(8) "metric"). With one that nobody else uses, weft never
// replaces a route of someone else: theirs with a lower metric win until they remove them.
const routeMetric = 119

// Bytes that VXLAN adds to a packet: outer IP and UDP header, VXLAN header, inner Ethernet header (RFC 7348).
const (
	vxlanOverhead4 = 20 + 8 + 8 + 14
	vxlanOverhead6 = 40 + 8 + 8 + 14
)

// router carries out routes and tunnels in the kernel. It remembers what it has put there, so that a change costs
// what changed; adopt renews that memory.
type router struct {
	nl      *netlink.Handle
	ns      *netNS
	cfg     Config
	local   map[netip.Addr]bool // usable addresses of the node
	have    map[netip.Prefix]nodeRoute
	tunnels map[model.Family]*tunnel
}

// tunnel is a VXLAN device.
type tunnel struct {
	index int
	mtu   int
	peers map[string]tunnelPeer // by MAC
}

func newRouter(nl *netlink.Handle, ns *netNS, cfg Config) *router {
	return &router{nl: nl, ns: ns, cfg: cfg, have: make(map[netip.Prefix]nodeRoute), tunnels: make(map[model.Family]*tunnel)}
}

func tunnelName(f model.Family) string { return fmt.Sprintf("%s%d", tunnelPrefix, f) }

// lookup asks the kernel for the way to another node.
func (r *router) lookup(a netip.Addr) underlay {
	if r.cfg.AlwaysTunnel {
		return underlay{}
	}
	rs, err := r.nl.RouteGet(a.AsSlice())
	if err != nil || len(rs) == 0 {
		return underlay{} // no route now; the news of one makes Network look again
	}
	w := rs[0]
	if w.Gw != nil || w.Via != nil || w.Type != unix.RTN_UNICAST {
		return underlay{}
	}
	for _, t := range r.tunnels {
		if t.index == w.LinkIndex {
			return underlay{}
		}
	}
	return underlay{onLink: true, link: w.LinkIndex}
}

// survey reads the node's usable addresses.
func (r *router) survey() error {
	addrs, err := r.nl.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	r.local = make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			r.local[ip.Unmap()] = true
		}
	}
	return nil
}

// underlayMTU is the MTU of the link that holds the node's first address that is really here.
func (r *router) underlayMTU(self *model.Node) (int, error) {
	addrs, err := r.nl.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	for _, want := range self.InternalIPs {
		for _, a := range addrs {
			if ip, _ := netip.AddrFromSlice(a.IP); ip.Unmap() == want.Unmap() {
				l, err := r.nl.LinkByIndex(a.LinkIndex)
				if err != nil {
					return 0, fmt.Errorf("link of %s: %w", want, err)
				}
				return l.Attrs().MTU, nil
			}
		}
	}
	return 1500, nil
}

// apply brings the routes of these podCIDRs to what the topology says.
func (r *router) apply(t *topology, dsts []netip.Prefix) error {
	var errs []error
	for _, d := range dsts {
		want, ok := t.route(d)
		if ok {
			want = r.usable(want)
		}
		have, had := r.have[d]
		switch {
		case ok && had && want == have:
		case ok:
			if err := r.put(want); err != nil {
				errs = append(errs, err)
				continue
			}
			r.have[d] = want
		case had:
			if err := r.remove(have); err != nil {
				errs = append(errs, err)
				continue
			}
			delete(r.have, d)
		}
	}
	return errors.Join(errs...)
}

// usable drops a source address that the node does not have (yet): the kernel would refuse the route.
func (r *router) usable(w nodeRoute) nodeRoute {
	if !r.local[w.src] {
		w.src = netip.Addr{}
	}
	return w
}

func (r *router) route(w nodeRoute) (*netlink.Route, error) {
	k := &netlink.Route{Dst: ipNet(w.dst), Protocol: routeProtocol, Priority: routeMetric}
	if w.unreachable {
		k.Type = unix.RTN_UNREACHABLE
		return k, nil
	}
	if w.src.IsValid() {
		k.Src = w.src.AsSlice()
	}
	k.LinkIndex = w.link
	if w.tunnel != 0 {
		t := r.tunnels[w.tunnel]
		if t == nil {
			return nil, fmt.Errorf("route to %s: there is no tunnel %s", w.dst, tunnelName(w.tunnel))
		}
		k.LinkIndex = t.index
	}
	k.Flags = int(netlink.FLAG_ONLINK)
	if w.via.Is6() && w.dst.Addr().Is4() {
		k.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: w.via.AsSlice()}
	} else {
		k.Gw = w.via.AsSlice()
	}
	return k, nil
}

func (r *router) put(w nodeRoute) error {
	k, err := r.route(w)
	if err != nil {
		return err
	}
	if err := r.nl.RouteReplace(k); err != nil {
		return fmt.Errorf("route to %s via %s: %w", w.dst, w.via, err)
	}
	return nil
}

func (r *router) remove(w nodeRoute) error {
	k := &netlink.Route{Dst: ipNet(w.dst), Protocol: routeProtocol, Priority: routeMetric}
	if w.unreachable {
		k.Type = unix.RTN_UNREACHABLE
	}
	if err := r.nl.RouteDel(k); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", w.dst, err)
	}
	return nil
}

// adopt reads what of weft's routes and tunnels the kernel holds.
func (r *router) adopt() error {
	r.have = make(map[netip.Prefix]nodeRoute)
	clear(r.tunnels)
	byIndex := make(map[int]model.Family)
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		l, err := r.nl.LinkByName(tunnelName(f))
		if isNoLink(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("link %s: %w", tunnelName(f), err)
		}
		byIndex[l.Attrs().Index] = f
		// Peers are read by ensureTunnel.
		r.tunnels[f] = &tunnel{index: l.Attrs().Index, mtu: l.Attrs().MTU}
	}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		rs, err := r.nl.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, k := range rs {
			d, ok := prefixOf(k.Dst)
			if !ok || k.Priority != routeMetric {
				continue
			}
			w := nodeRoute{dst: d}
			if k.Type == unix.RTN_UNREACHABLE {
				w.unreachable = true
			} else {
				w.via, _ = netip.AddrFromSlice(k.Gw)
				if v, ok := k.Via.(*netlink.Via); ok {
					w.via, _ = netip.AddrFromSlice(v.Addr)
				}
				if w.via = w.via.Unmap(); !w.via.IsValid() {
					continue // a pod's
				}
				if w.tunnel = byIndex[k.LinkIndex]; w.tunnel == 0 {
					w.link = k.LinkIndex
				}
				w.src, _ = netip.AddrFromSlice(k.Src)
				w.src = w.src.Unmap()
			}
			r.have[d] = w
		}
	}
	return nil
}

// eraseRoutes removes every route of weft's that is left when its links are gone.
func (r *router) eraseRoutes() error {
	if err := r.adopt(); err != nil {
		return err
	}
	var errs []error
	for d, w := range r.have {
		if err := r.remove(w); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(r.have, d)
	}
	return errors.Join(errs...)
}
