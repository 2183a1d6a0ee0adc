// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/binary"
)

// udpHeader is the length of UDP's header.
const udpHeader = 8

// datagrams cuts a UDP packet that the kernel had left uncut: a server may send several answers to one socket as one
// packet (UDP_SEGMENT, udp(7)), all as long as the first but for a shorter last one, which is taken apart only where it
// arrives. How long they are nobody tells; but they are DNS messages, and those tell where they end. A packet whose
// messages are not of such lengths was sent as it is.
func datagrams(b []byte, head int) [][]byte {
	payload := b[head+udpHeader:]
	size := messageLength(payload)
	if size <= 0 || size >= len(payload) {
		return [][]byte{b}
	}
	var out [][]byte
	for at := 0; at < len(payload); at += size {
		part := payload[at:min(at+size, len(payload))]
		if messageLength(part) != len(part) {
			return [][]byte{b}
		}
		d := append(append([]byte(nil), b[:head+udpHeader]...), part...)
		binary.BigEndian.PutUint16(d[head+4:], uint16(udpHeader+len(part)))
		if d[0]>>4 == 4 {
			binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
		} else {
			binary.BigEndian.PutUint16(d[4:], uint16(len(d)-40))
		}
		out = append(out, d)
	}
	return out
}

// messageLength is how long the DNS message is that some bytes begin with (RFC 1035 section 4.1); -1 if they begin with
// none.
func messageLength(b []byte) int {
	const header, question, record = 12, 4, 10
	if len(b) < header {
		return -1
	}
	at := header
	for i := range 4 {
		for range binary.BigEndian.Uint16(b[4+2*i:]) {
			if at = skipName(b, at); at < 0 {
				return -1
			}
			if i == 0 {
				at += question
			} else {
				if at+record > len(b) {
					return -1
				}
				at += record + int(binary.BigEndian.Uint16(b[at+8:]))
			}
			if at > len(b) {
				return -1
			}
		}
	}
	return at
}

// skipName is where the name that begins at an offset ends; -1 if it is none.
func skipName(b []byte, at int) int {
	for at < len(b) {
		switch n := int(b[at]); {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			if at+2 > len(b) {
				return -1
			}
			return at + 2
		case n > 63:
			return -1
		default:
			at += 1 + n
		}
	}
	return -1
}
