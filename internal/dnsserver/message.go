// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/binary"

	"github.com/weft-net/weft/internal/dnszone"
)

// Sizes on the wire.
const (
	headerSize = 12
	minUDP     = 512 // what every client takes (RFC 1035)
	optSize    = 11  // an OPT record without options
	edeSize    = 6   // an Extended DNS Error without text
	cookieSize = 4 + clientCookie + serverCookie
	maxMessage = 65535
)

// Header flags, in the second 16 bits.
const (
	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagAD = 1 << 5
	flagCD = 1 << 4
)

// Opcodes.
const (
	opQuery  = 0
	opNotify = 4
	opUpdate = 5
)

// Response codes (RFC 1035, 6891).
const (
	rcodeOK       = 0
	rcodeFormErr  = 1
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeNotImp   = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16
	rcodeBadCook  = 23
)

// Types that are treated apart.
const (
	typeA     = 1
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typeHINFO = 13
	typeAAAA  = 28
	typeOPT   = 41
	typeIXFR  = 251
	typeAXFR  = 252
	typeANY   = 255
	classIN   = 1
)

// EDNS option codes.
const (
	optionCookie = 10 // RFC 7873
	optionEDE    = 15 // RFC 8914
)

// Extended DNS Errors (RFC 8914), plus one for "none".
const (
	edeNone         = -1
	edeStale        = 3
	edeNotReady     = 14
	edeProhibited   = 18
	edeNotSupported = 21
	edeNoReachable  = 22
	edeNetworkError = 23
)

// query is what one packet asks, parsed. It is used again for the next.
type query struct {
	q     dnszone.Question
	id    uint16
	flags uint16
	qlen  int // octets of the question section

	edns    bool
	do      bool
	version uint8
	size    int // what the client can take over UDP

	cookie    [clientCookie + serverCookie]byte // the client's part, then what server part it sent
	cookieLen int                               // 0: none
}

// fate is what is to become of a packet.
type fate uint8

const (
	lookUp fate = iota // a question that can be answered
	reject             // an answer with only a response code
	drop               // no answer at all
)

// parse reads a packet. With reject the response code is the second result; the question then is part of the
// answer if qlen is not 0.
func (m *query) parse(pkt []byte) (fate, uint8) {
	m.qlen, m.edns, m.do, m.size, m.cookieLen, m.version = 0, false, false, minUDP, 0, 0
	if len(pkt) < headerSize {
		return drop, 0
	}
	m.id = binary.BigEndian.Uint16(pkt)
	m.flags = binary.BigEndian.Uint16(pkt[2:])
	if m.flags&flagQR != 0 {
		return drop, 0 // two servers answering each other's answers would never stop
	}
	switch m.flags >> 11 & 15 {
	case opQuery:
	case opNotify, opUpdate:
		return reject, rcodeRefused
	default:
		return reject, rcodeNotImp
	}
	if binary.BigEndian.Uint16(pkt[4:]) != 1 { // RFC 9619
		return reject, rcodeFormErr
	}
	n := m.q.Read(pkt[headerSize:])
	if n == 0 || headerSize+n+4 > len(pkt) {
		return reject, rcodeFormErr
	}
	m.qlen = n + 4
	m.q.Type = binary.BigEndian.Uint16(pkt[headerSize+n:])
	class := binary.BigEndian.Uint16(pkt[headerSize+n+2:])
	records := int(binary.BigEndian.Uint16(pkt[6:])) + int(binary.BigEndian.Uint16(pkt[8:]))
	additional := int(binary.BigEndian.Uint16(pkt[10:]))
	if records != 0 || additional != 0 {
		if f, rcode := m.records(pkt, headerSize+m.qlen, records, additional); f != lookUp {
			return f, rcode
		}
	}
	switch {
	case class != classIN:
		return reject, rcodeRefused
	case m.q.Type == typeAXFR || m.q.Type == typeIXFR:
		return reject, rcodeRefused
	case m.q.Type == typeOPT || m.q.Type == 0:
		return reject, rcodeFormErr
	}
	return lookUp, 0
}

// records goes over the records after the question, for the OPT record among them.
func (m *query) records(pkt []byte, at, before, additional int) (fate, uint8) {
	if before+additional > 16 {
		return reject, rcodeFormErr // no query needs as many
	}
	for i := range before + additional {
		nameAt := at
		at = skipName(pkt, at)
		if at == 0 || at+10 > len(pkt) {
			return reject, rcodeFormErr
		}
		typ := binary.BigEndian.Uint16(pkt[at:])
		rdlen := int(binary.BigEndian.Uint16(pkt[at+8:]))
		body := at + 10
		if body+rdlen > len(pkt) {
			return reject, rcodeFormErr
		}
		if typ == typeOPT {
			if i < before || m.edns || at != nameAt+1 {
				return reject, rcodeFormErr // misplaced, a second one, or not at the root (RFC 6891 section 6.1)
			}
			m.edns = true
			m.size = max(int(binary.BigEndian.Uint16(pkt[at+2:])), minUDP)
			m.version = pkt[at+5]
			m.do = pkt[at+6]&0x80 != 0
			if !m.options(pkt[body : body+rdlen]) {
				return reject, rcodeFormErr
			}
		}
		at = body + rdlen
	}
	if m.version != 0 {
		return reject, rcodeBadVers
	}
	return lookUp, 0
}

func (m *query) options(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if b = b[4:]; n > len(b) {
			return false
		}
		if code == optionCookie {
			// RFC 7873 section 5.2.2: a length that can't be is FORMERR.
			if n != clientCookie && (n < clientCookie+8 || n > clientCookie+32) {
				return false
			}
			m.cookieLen = copy(m.cookie[:], b[:n])
		}
		b = b[n:]
	}
	return true
}

// skipName is the offset behind a name, compressed or not; 0 where it is none.
func skipName(pkt []byte, at int) int {
	for at < len(pkt) {
		l := int(pkt[at])
		switch {
		case l == 0:
			return at + 1
		case l >= 0xc0:
			if at+2 > len(pkt) {
				return 0
			}
			return at + 2
		case l > 63:
			return 0
		}
		at += 1 + l
	}
	return 0
}

// reserve is how many octets the answer's OPT record takes at most.
func (m *query) reserve() int {
	if !m.edns {
		return 0
	}
	n := optSize + edeSize
	if m.cookieLen > 0 {
		n += cookieSize
	}
	return n
}

// start begins an answer: room for the header, and the question as it was asked.
func (m *query) start(out, pkt []byte) []byte {
	return append(out, pkt[:headerSize+m.qlen]...)
}

// outcome is what goes into an answer's header and OPT record.
type outcome struct {
	rcode                         uint8
	flags                         uint16 // AA, TC, AD as they apply
	answer, authority, additional uint16
	ede                           int
}

// finish writes the header, and the OPT record behind what is in msg.
func (m *query) finish(msg []byte, o *outcome, jar *cookieJar, client []byte, size int) []byte {
	flags := flagQR | flagRA | m.flags&(15<<11|flagRD|flagCD) | o.flags | uint16(o.rcode&15)
	binary.BigEndian.PutUint16(msg, m.id)
	binary.BigEndian.PutUint16(msg[2:], flags)
	qd := uint16(0)
	if m.qlen > 0 {
		qd = 1
	}
	binary.BigEndian.PutUint16(msg[4:], qd)
	binary.BigEndian.PutUint16(msg[6:], o.answer)
	binary.BigEndian.PutUint16(msg[8:], o.authority)
	ar := o.additional
	if m.edns {
		ar++
		msg = append(msg, 0, 0, typeOPT, byte(size>>8), byte(size), o.rcode>>4, 0, 0, 0, 0, 0)
		if m.do {
			msg[len(msg)-4] = 0x80
		}
		opts := len(msg)
		if m.cookieLen > 0 {
			msg = jar.appendOption(msg, m.cookie[:clientCookie], client)
		}
		if o.ede >= 0 {
			msg = append(msg, 0, optionEDE, 0, 2, byte(o.ede>>8), byte(o.ede))
		}
		binary.BigEndian.PutUint16(msg[opts-2:], uint16(len(msg)-opts))
	}
	binary.BigEndian.PutUint16(msg[10:], ar)
	return msg
}
