// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	ipv6Len         = 40
	protoICMPv6     = 58
	hopLimit        = 255 // RFC 4861, section 7.1: anything less was forwarded and is not to be believed
	icmpSolicit     = 135
	icmpAdvertise   = 136
	allNodesAddress = "ff02::1"
)

var allNodes = netip.MustParseAddr(allNodesAddress)

// ndpFilter passes Neighbor Solicitations and Advertisements, so that no other IPv6 packet is copied to the socket.
var ndpFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ethernetLen + 6, Size: 1}, // next header
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMPv6, SkipTrue: 4},
	bpf.LoadAbsolute{Off: ethernetLen + ipv6Len, Size: 1}, // ICMPv6 type
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpSolicit, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpAdvertise, SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

// neighbor is what a Neighbor Solicitation or Advertisement says.
type neighbor struct {
	advertisement bool
	solicited     bool       // it answers a solicitation
	from          mac        // of the frame
	src           netip.Addr // unspecified: duplicate address detection
	target        netip.Addr
	linkAddr      mac // the sender's (solicitation) or target's (advertisement) option; from where there is none
}

// parseNeighbor reads an Ethernet frame. ok is false for all but what RFC 4861, section 7.1, calls valid.
func parseNeighbor(frame []byte) (n neighbor, ok bool) {
	if len(frame) < ethernetLen+ipv6Len+24 || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IPV6 {
		return n, false
	}
	ip := frame[ethernetLen:]
	size := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != protoICMPv6 || ip[7] != hopLimit || size < 24 || len(ip) < ipv6Len+size {
		return n, false
	}
	n.from = mac(frame[6:12])
	n.linkAddr = n.from
	n.src = netip.AddrFrom16([16]byte(ip[8:24]))
	dst := netip.AddrFrom16([16]byte(ip[24:40]))
	icmp := ip[ipv6Len : ipv6Len+size]
	if icmp[1] != 0 || checksum(n.src, dst, icmp) != 0 {
		return n, false
	}
	m, err := ndp.ParseMessage(icmp)
	if err != nil {
		return n, false
	}
	option := func(options []ndp.Option, d ndp.Direction) {
		for _, o := range options {
			if l, is := o.(*ndp.LinkLayerAddress); is && l.Direction == d && len(l.Addr) == len(mac{}) {
				n.linkAddr = mac(l.Addr)
			}
		}
	}
	switch m := m.(type) {
	case *ndp.NeighborSolicitation:
		n.target = m.TargetAddress
		option(m.Options, ndp.Source)
	case *ndp.NeighborAdvertisement:
		n.advertisement, n.solicited, n.target = true, m.Solicited, m.TargetAddress
		option(m.Options, ndp.Target)
	default:
		return n, false
	}
	return n, !n.target.IsMulticast()
}

// checksum is the Internet checksum over the pseudo-header and the message; over one that holds its checksum it is 0.
func checksum(src, dst netip.Addr, msg []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	s, d := src.As16(), dst.As16()
	add(s[:])
	add(d[:])
	sum += uint32(len(msg)) + protoICMPv6
	add(msg)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// ndpAnswer is the advertisement that answers a solicitation: the target is at m. To one that asks without an address
// of its own, which is about to take the target for itself, it goes to all nodes. The frame is from whoever sends it.
func ndpAnswer(n neighbor, m, from mac) []byte {
	if n.src.IsUnspecified() {
		return advertisement(n.target, m, from, allNodes, false, multicastMAC(allNodes))
	}
	return advertisement(n.target, m, from, n.src, true, n.linkAddr)
}

// ndpAnnouncement tells all hosts that a is at m.
func ndpAnnouncement(a netip.Addr, m mac) []byte {
	return advertisement(a, m, m, allNodes, false, multicastMAC(allNodes))
}

// advertisement is sent from the address that it is about, which is the node's in all but name; the node's own
// link-local address could be missing or still tentative.
func advertisement(target netip.Addr, m, from mac, dst netip.Addr, solicited bool, dstMAC mac) []byte {
	return ndpFrame(&ndp.NeighborAdvertisement{
		Solicited: solicited, Override: true, TargetAddress: target,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: m[:]}},
	}, target, dst, from, dstMAC)
}

// ndpProbe asks the host at to alone for its own address a: see arpProbe.
func ndpProbe(a, own netip.Addr, to, from mac) []byte {
	return ndpFrame(&ndp.NeighborSolicitation{
		TargetAddress: a,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: from[:]}},
	}, own, a, from, to)
}

// ndpFrame is the message as an Ethernet frame.
func ndpFrame(m ndp.Message, src, dst netip.Addr, from, to mac) []byte {
	msg, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		panic(err) // the target is an IPv6 address and the option has six octets: can't be
	}
	b := make([]byte, ethernetLen+ipv6Len+len(msg))
	copy(b, to[:])
	copy(b[6:], from[:])
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
	ip := b[ethernetLen:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], uint16(len(msg)))
	ip[6], ip[7] = protoICMPv6, hopLimit
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	copy(ip[ipv6Len:], msg)
	return b
}

// multicastMAC is the Ethernet address of an IPv6 multicast group (RFC 2464, section 7).
func multicastMAC(group netip.Addr) mac {
	g := group.As16()
	return mac{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

// solicitedNode is the group to which solicitations for the address are sent (RFC 4291, section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
