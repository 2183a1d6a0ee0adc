// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// ensureTunnel makes sure of the tunnel of a family and of its peers' entries. Peers that are no longer wanted stay
// until dropPeers: their routes go first.
func (r *router) ensureTunnel(f model.Family, self *model.Node, mtu int, peers map[string]tunnelPeer) error {
	name := tunnelName(f)
	own := firstOf(self.InternalIPs, f)
	overhead := vxlanOverhead4
	if f == model.IPv6 {
		overhead = vxlanOverhead6
	}
	t := r.tunnels[f]
	if t == nil || t.peers == nil {
		l, err := r.makeTunnel(name, own, mtu-overhead)
		if err != nil {
			return fmt.Errorf("tunnel %s: %w", name, err)
		}
		t = &tunnel{index: l.Attrs().Index, mtu: l.Attrs().MTU}
		if t.peers, err = r.readPeers(t.index, f); err != nil {
			return fmt.Errorf("tunnel %s: %w", name, err)
		}
		r.tunnels[f] = t
	}
	l := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name, Index: t.index}}
	if t.mtu != mtu-overhead {
		if err := r.nl.LinkSetMTU(l, mtu-overhead); err != nil {
			return fmt.Errorf("tunnel %s: MTU: %w", name, err)
		}
		t.mtu = mtu - overhead
	}
	if err := r.tunnelAddresses(l, self, own); err != nil {
		return fmt.Errorf("tunnel %s: %w", name, err)
	}
	for mac, p := range peers {
		if t.peers[mac].remote != p.remote {
			if err := r.putPeer(t.index, p); err != nil {
				return fmt.Errorf("tunnel %s: peer %s: %w", name, p.remote, err)
			}
			t.peers[mac] = p
		}
	}
	return nil
}

// makeTunnel finds the device as it should be or makes it.
func (r *router) makeTunnel(name string, own netip.Addr, mtu int) (netlink.Link, error) {
	mac := tunnelMAC(own)
	l, err := r.nl.LinkByName(name)
	if err == nil {
		v, ok := l.(*netlink.Vxlan)
		if ok && v.VxlanId == int(r.cfg.VXLANID) && v.Port == int(r.cfg.VXLANPort) && v.SrcAddr.Equal(own.AsSlice()) && !v.Learning && bytes.Equal(v.HardwareAddr, mac) {
			return l, r.nl.LinkSetUp(l)
		}
		if err := r.nl.LinkDel(l); err != nil {
			return nil, err
		}
	} else if !isNoLink(err) {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, mac
	if err := r.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(r.cfg.VXLANID), Port: int(r.cfg.VXLANPort), SrcAddr: own.AsSlice(),
		UDPCSum: true, // IPv4 may do without; hardware offload and GRO want it
	}); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if err := r.ns.do(func() error { return setSysctls(tunnelSysctls(name)...) }); err != nil {
		return nil, err
	}
	if l, err = r.nl.LinkByName(name); err != nil {
		return nil, err
	}
	return l, r.nl.LinkSetUp(l)
}

func tunnelSysctls(name string) []sysctl {
	v4, v6 := "ipv4/conf/"+name+"/", "ipv6/conf/"+name+"/"
	// Loose: while two nodes learn, one after the other, that they now share a link or no longer do, packets come
	// in by the way that answers don't take yet.
	s := []sysctl{{v4 + "rp_filter", "2"}, {v4 + "send_redirects", "0"}}
	if haveIPv6() {
		s = append(s, sysctl{v6 + "disable_ipv6", "0"}, sysctl{v6 + "addr_gen_mode", "1"}, sysctl{v6 + "accept_ra", "0"}, sysctl{v6 + "accept_dad", "0"})
	}
	return s
}

// tunnelAddresses gives the device the addresses that the node itself sends from, and no others.
func (r *router) tunnelAddresses(l netlink.Link, self *model.Node, own netip.Addr) error {
	want := make(map[netip.Prefix]bool)
	for _, c := range self.PodCIDRs {
		if a := model.TunnelAddr(c); a.IsValid() {
			want[hostPrefix(a)] = true
		}
	}
	if haveIPv6() {
		me := tunnelPeer{family: model.IPv6, mac: tunnelMAC(own)}
		want[netip.PrefixFrom(tunnelNextHop(&me, model.IPv6), 64)] = true
	}
	addrs, err := r.nl.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if ok && want[p] {
			delete(want, p)
			continue
		}
		if err := r.nl.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
		delete(r.local, p.Addr())
	}
	for p := range want {
		if err := r.nl.AddrReplace(l, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD | unix.IFA_F_PERMANENT}); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
		r.local[p.Addr()] = true
	}
	return nil
}

// peerEntries are the kernel's static entries for a peer: where frames for its MAC go, and the MAC of the addresses
// that routes name as next hops.
func peerEntries(index int, p tunnelPeer) []*netlink.Neigh {
	es := []*netlink.Neigh{
		{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: p.remote.AsSlice(), HardwareAddr: p.mac},
		neighbour(index, tunnelNextHop(&p, model.IPv6), p.mac),
	}
	if p.family == model.IPv4 {
		es = append(es, neighbour(index, p.remote, p.mac))
	}
	return es
}

func (r *router) putPeer(index int, p tunnelPeer) error {
	for _, e := range peerEntries(index, p) {
		if err := r.nl.NeighSet(e); err != nil && !(e.Family == unix.AF_INET6 && !haveIPv6()) {
			return err
		}
	}
	return nil
}

// readPeers reads the peers whose entries a device holds, leaving out those that lack one.
func (r *router) readPeers(index int, f model.Family) (map[string]tunnelPeer, error) {
	type entry struct{ ip, mac string }
	have := make(map[int]map[entry]bool)
	peers := make(map[string]tunnelPeer)
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		have[fam] = make(map[entry]bool)
		ns, err := r.nl.NeighList(index, fam)
		if err != nil {
			return nil, fmt.Errorf("list entries: %w", err)
		}
		for _, e := range ns {
			ip, _ := netip.AddrFromSlice(e.IP)
			ip = ip.Unmap()
			if e.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			have[fam][entry{ip.String(), e.HardwareAddr.String()}] = true
			if fam == unix.AF_BRIDGE && ip.IsValid() {
				peers[e.HardwareAddr.String()] = tunnelPeer{family: f, remote: ip, mac: bytes.Clone(e.HardwareAddr)}
			}
		}
	}
	for mac, p := range peers {
		for _, e := range peerEntries(index, p) {
			ip, _ := netip.AddrFromSlice(e.IP)
			if !have[e.Family][entry{ip.Unmap().String(), net.HardwareAddr(p.mac).String()}] {
				p.remote = netip.Addr{} // known, and to be written again
				peers[mac] = p
				break
			}
		}
	}
	return peers, nil
}

// dropPeers removes the entries of peers that are no longer wanted, and the device with the last of them.
func (r *router) dropPeers(f model.Family, peers map[string]tunnelPeer) error {
	t := r.tunnels[f]
	if t == nil {
		return nil
	}
	if len(peers) == 0 {
		if err := r.nl.LinkDel(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: tunnelName(f), Index: t.index}}); err != nil && !isNoLink(err) {
			return fmt.Errorf("remove tunnel %s: %w", tunnelName(f), err)
		}
		delete(r.tunnels, f)
		return nil
	}
	for mac, p := range t.peers {
		if _, ok := peers[mac]; ok {
			continue
		}
		for _, e := range peerEntries(t.index, p) {
			if err := r.nl.NeighDel(e); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("tunnel %s: remove peer %s: %w", tunnelName(f), p.remote, err)
			}
		}
		delete(t.peers, mac)
	}
	return nil
}
