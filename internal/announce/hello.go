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
//	1   version, 1
//	1   flags: 1 settled
//	1   part, from 0   } a node with more claims than fit
//	1   parts          } sends several frames a tick
//	8   incarnation: when the agent started, nanoseconds since the Unix epoch
//	8   tick: counts the hellos of an incarnation
//	2   age of the agent's picture of the API, seconds
//	4   index of the sender's interface
//	1   length of the node's name
//	1   number of claims
//	…   the node's name
//	16… each address that it announces on this link, IPv4 mapped into IPv6
//	16  HMAC-SHA-256, its first half, over all of the above, keyed with the UID of the kube-system namespace
//
// The key tells clusters on one link apart and shuts out hosts that can't read the cluster's API. That suffices where
// any host could claim any address by plain ARP.
type hello struct {
	node        string
	settled     bool
	incarnation uint64
	tick        uint64
	part, parts uint8
	age         time.Duration // whole seconds, at most maxAge
	ifindex     uint32
	claims      []netip.Addr
}

const (
	helloMagic  = "weft"
	helloFixed  = 32
	helloSum    = sha256.Size / 2
	maxClaims   = 64 // a frame: with the longest name it stays below 1,500 octets
	maxAge      = 0xffff * time.Second
	flagSettled = 1
)

// frame is the hello as an Ethernet frame.
func (h *hello) frame(from mac, key []byte) []byte {
	b := make([]byte, 0, ethernetLen+helloFixed+len(h.node)+16*len(h.claims)+helloSum)
	b = append(b, broadcast[:]...)
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, helloType)
	b = append(b, helloMagic...)
	var flags byte
	if h.settled {
		flags |= flagSettled
	}
	b = append(b, 1, flags, h.part, h.parts)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.tick)
	b = binary.BigEndian.AppendUint16(b, uint16(min(h.age, maxAge)/time.Second))
	b = binary.BigEndian.AppendUint32(b, h.ifindex)
	b = append(b, byte(len(h.node)), byte(len(h.claims)))
	b = append(b, h.node...)
	for _, a := range h.claims {
		x := a.As16()
		b = append(b, x[:]...)
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
	name, claims := int(b[30]), int(b[31])
	size := helloFixed + name + 16*claims
	if string(b[:4]) != helloMagic || b[4] != 1 || name == 0 || claims > maxClaims || b[6] >= b[7] || len(b) < size+helloSum {
		return h, from, false
	}
	if !hmac.Equal(b[size:size+helloSum], helloCode(b[:size], key)) {
		return h, from, false
	}
	h = hello{
		settled: b[5]&flagSettled != 0, part: b[6], parts: b[7],
		incarnation: binary.BigEndian.Uint64(b[8:]), tick: binary.BigEndian.Uint64(b[16:]),
		age:     time.Duration(binary.BigEndian.Uint16(b[24:])) * time.Second,
		ifindex: binary.BigEndian.Uint32(b[26:]),
		node:    string(b[helloFixed : helloFixed+name]),
	}
	for b = b[helloFixed+name:]; claims > 0; claims-- {
		h.claims = append(h.claims, netip.AddrFrom16([16]byte(b[:16])).Unmap())
		b = b[16:]
	}
	return h, from, true
}
