// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// mac is an Ethernet address.
type mac [6]byte

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARP operations (RFC 826).
const (
	arpRequest = 1
	arpReply   = 2
)

const (
	ethernetLen = 14
	arpLen      = 28
)

// arpPacket is ARP for IPv4 over Ethernet.
type arpPacket struct {
	from      mac // of the frame
	op        uint16
	senderMAC mac
	sender    netip.Addr
	targetMAC mac
	target    netip.Addr
}

// parseARP reads an Ethernet frame. ok is false for all but well-formed ARP for IPv4 over Ethernet.
func parseARP(frame []byte) (p arpPacket, ok bool) {
	if len(frame) < ethernetLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP {
		return p, false
	}
	b := frame[ethernetLen:]
	if binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP || b[4] != 6 || b[5] != 4 {
		return p, false
	}
	p.from = mac(frame[6:12])
	p.op = binary.BigEndian.Uint16(b[6:])
	p.senderMAC = mac(b[8:14])
	p.sender = netip.AddrFrom4([4]byte(b[14:18]))
	p.targetMAC = mac(b[18:24])
	p.target = netip.AddrFrom4([4]byte(b[24:28]))
	return p, true
}

// frame is the packet as an Ethernet frame to dst.
func (p arpPacket) frame(dst mac) []byte {
	b := make([]byte, ethernetLen+arpLen)
	copy(b, dst[:])
	copy(b[6:], p.from[:])
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_ARP)
	a := b[ethernetLen:]
	binary.BigEndian.PutUint16(a, 1)
	binary.BigEndian.PutUint16(a[2:], unix.ETH_P_IP)
	a[4], a[5] = 6, 4
	binary.BigEndian.PutUint16(a[6:], p.op)
	copy(a[8:], p.senderMAC[:])
	copy(a[14:], p.sender.AsSlice())
	copy(a[18:], p.targetMAC[:])
	copy(a[24:], p.target.AsSlice())
	return b
}

// arpAnswer is the reply to a request for the target's address: it is at m. The frame is from whoever sends it, or switches
// would take that to be where m is.
func arpAnswer(request arpPacket, m, from mac) []byte {
	return arpPacket{from: from, op: arpReply, senderMAC: m, sender: request.target, targetMAC: request.senderMAC, target: request.sender}.frame(request.senderMAC)
}

// arpProbe asks the host at to alone for its own address a, as a kernel does that wants to know whether a neighbour is still
// there: some networks answer for hosts what is broadcast, even for dead ones.
func arpProbe(a, own netip.Addr, to, from mac) []byte {
	return arpPacket{from: from, op: arpRequest, senderMAC: from, sender: own, target: a}.frame(to)
}

// arpAnnouncements tell all hosts that a is at m: as a request, which RFC 5227 (section 3) recommends, and as a
// reply, which is all that some equipment heeds; Linux wants it to name the sender twice.
func arpAnnouncements(a netip.Addr, m mac) [][]byte {
	return [][]byte{
		arpPacket{from: m, op: arpRequest, senderMAC: m, sender: a, target: a}.frame(broadcast),
		arpPacket{from: m, op: arpReply, senderMAC: m, sender: a, targetMAC: m, target: a}.frame(broadcast),
	}
}
