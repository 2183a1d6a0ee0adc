// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"
)

// helloType is the EtherType of hellos: IEEE 802's first local experimental one.
const helloType = 0x88b5

// A hello is one Ethernet frame to the broadcast address, numbers in network order:
//
//	octets
//	4   "weft"
//	1   version: 1; 2 from a node that does not forward what comes to an address; 3 of another, see below
//	1   flags: 1 settled
//	1   part, from 0   } a node with more to list than fits
//	1   parts          } sends several frames a tick
//	8   incarnation: when the agent started, nanoseconds since the Unix epoch
//	8   tick: counts the hellos of an incarnation
//	2   age of the agent's picture of the API, seconds
//	4   index of the sender's interface
//	1   length of the node's name
//	1   number of claims: addresses that it announces on this link
//	1   number of wishes: addresses that are its to announce and that another announces still
//	…   the node's name
//	16… each claim, IPv4 mapped into IPv6
//	16… each wish
//	6   in version 3 only: the node's Ethernet address
//	16  HMAC-SHA-256, its first half, over all of the above, keyed with the UID of the kube-system namespace
//
// Version 2 is read as 1 is, by those who know it; to those who do not, its sender is silent and so dead, which comes to the
// same. Version 3 is what a node that stands in for another, whose agent is away, tells of it to those who start: its
// addresses for which it stands in, as claims; the other's incarnation and tick; and as the age, rounded up, how long ago the
// other's agent was last heard and settled. It comes beside the sender's own hello. Who does not know it does without.
//
// The key tells clusters on one link apart and shuts out hosts that can't read the cluster's API. That suffices where
// any host could claim any address by plain ARP.
type hello struct {
	node        string
	settled     bool
	unable      bool // does not forward what comes to an address
	absent      bool // another tells it of the node, whose agent is away
	mac         mac  // the node's, if absent
	incarnation uint64
	tick        uint64
	part, parts uint8
	age         time.Duration // whole seconds, at most maxAge
	ifindex     uint32
	claims      []netip.Addr
	wishes      []netip.Addr
}

const (
	helloMagic  = "weft"
	helloFixed  = 33
	helloSum    = sha256.Size / 2
	maxListed   = 64 // claims and wishes in a frame: with the longest name it stays below 1,500 octets
	maxAge      = 0xffff * time.Second
	flagSettled = 1

	versionAble, versionUnable, versionAbsent = 1, 2, 3
)

// frame is the hello as an Ethernet frame.
func (h *hello) frame(from mac, key []byte) []byte {
	b := make([]byte, 0, ethernetLen+helloFixed+len(h.node)+16*(len(h.claims)+len(h.wishes))+len(h.mac)+helloSum)
	b = append(b, broadcast[:]...)
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, helloType)
	b = append(b, helloMagic...)
	var flags byte
	if h.settled {
		flags |= flagSettled
	}
	version := byte(versionAble)
	switch {
	case h.unable:
		version = versionUnable
	case h.absent:
		version = versionAbsent
	}
	b = append(b, version, flags, h.part, h.parts)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.tick)
	b = binary.BigEndian.AppendUint16(b, uint16(min(h.age, maxAge)/time.Second))
	b = binary.BigEndian.AppendUint32(b, h.ifindex)
	b = append(b, byte(len(h.node)), byte(len(h.claims)), byte(len(h.wishes)))
	b = append(b, h.node...)
	for _, list := range [][]netip.Addr{h.claims, h.wishes} {
		for _, a := range list {
			x := a.As16()
			b = append(b, x[:]...)
		}
	}
	if h.absent {
		b = append(b, h.mac[:]...)
	}
	return append(b, helloCode(b[ethernetLen:], key)...)
}

func helloCode(body, key []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(body)
	return m.Sum(nil)[:helloSum]
}

// parseHello reads an Ethernet frame, which may be padded. ok is false for all but a hello made with the key.
func parseHello(frame, key []byte) (h hello, from mac, ok bool) {
	if len(frame) < ethernetLen+helloFixed+helloSum || binary.BigEndian.Uint16(frame[12:]) != helloType {
		return h, from, false
	}
	from = mac(frame[6:12])
	b := frame[ethernetLen:]
	name, claims, wishes := int(b[30]), int(b[31]), int(b[32])
	size := helloFixed + name + 16*(claims+wishes)
	if b[4] == versionAbsent {
		size += len(h.mac)
	}
	if string(b[:4]) != helloMagic || b[4] < versionAble || b[4] > versionAbsent || name == 0 || claims+wishes > maxListed || b[6] >= b[7] || len(b) < size+helloSum {
		return h, from, false
	}
	if !hmac.Equal(b[size:size+helloSum], helloCode(b[:size], key)) {
		return h, from, false
	}
	h = hello{
		settled: b[5]&flagSettled != 0, unable: b[4] == versionUnable, absent: b[4] == versionAbsent, part: b[6], parts: b[7],
		incarnation: binary.BigEndian.Uint64(b[8:]), tick: binary.BigEndian.Uint64(b[16:]),
		age:     time.Duration(binary.BigEndian.Uint16(b[24:])) * time.Second,
		ifindex: binary.BigEndian.Uint32(b[26:]),
		node:    string(b[helloFixed : helloFixed+name]),
	}
	if h.absent {
		h.mac = mac(b[size-len(h.mac) : size])
	}
	b = b[helloFixed+name:]
	for i := range claims + wishes {
		a := netip.AddrFrom16([16]byte(b[16*i:])).Unmap()
		if i < claims {
			h.claims = append(h.claims, a)
		} else {
			h.wishes = append(h.wishes, a)
		}
	}
	return h, from, true
}

// split gives the lists to as many hellos as they take; there is always one.
func (h hello) split() []hello {
	claims, wishes := h.claims, h.wishes
	var out []hello
	for first := true; first || len(claims)+len(wishes) > 0; first = false {
		h.claims = claims[:min(len(claims), maxListed)]
		h.wishes = wishes[:min(len(wishes), maxListed-len(h.claims))]
		claims, wishes = claims[len(h.claims):], wishes[len(h.wishes):]
		h.part = uint8(len(out))
		if out = append(out, h); len(out) == 255 {
			break // 16,320 addresses on one node: the rest can't be told
		}
	}
	for i := range out {
		out[i].parts = uint8(len(out))
	}
	return out
}
