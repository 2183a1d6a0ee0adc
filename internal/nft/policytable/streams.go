// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/binary"
	"net/netip"
)

// stream is one direction of a TCP connection from a resolver.
type stream struct {
	from, to         netip.Addr
	fromPort, toPort uint16
}

// streams puts the messages together that are spread over several packets. What comes out of order is given up: its
// addresses stay closed until the client asks again.
type streams map[stream]*unread

// unread is what has come of a stream since its last whole message.
type unread struct {
	next uint32 // the sequence number that goes on
	data []byte
}

// maxStreams bounds the memory that resolvers can make this process use: so many times a message's 64 KB.
const maxStreams = 256

// TCP's flags (RFC 9293, section 3.1).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
)

// take adds a segment and returns the messages that it completes, which follow their lengths (RFC 1035, section
// 4.2.2).
func (s streams) take(k stream, seq uint32, flags byte, data []byte) (messages [][]byte) {
	u := s[k]
	if flags&tcpSYN != 0 {
		seq++
		u = nil
	}
	if u == nil {
		if len(s) >= maxStreams {
			clear(s)
		}
		u = &unread{next: seq}
		s[k] = u
	}
	switch ahead := int32(seq - u.next); {
	case ahead > 0:
		delete(s, k)
		return nil
	case int(-ahead) > len(data):
		data = nil
	case ahead < 0: // sent again
		data = data[-ahead:]
	}
	u.next += uint32(len(data))
	u.data = append(u.data, data...)
	for len(u.data) >= 2 {
		n := int(binary.BigEndian.Uint16(u.data))
		if len(u.data) < 2+n {
			break
		}
		messages = append(messages, u.data[2:2+n:2+n])
		u.data = u.data[2+n:]
	}
	if len(u.data) == 0 {
		u.data = nil
	}
	if flags&(tcpFIN|tcpRST) != 0 {
		delete(s, k)
	}
	return messages
}
