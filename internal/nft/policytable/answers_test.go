// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

func TestStreams(t *testing.T) {
	k := stream{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), 53, 4000}
	text := []byte("\x00\x05first\x00\x06second\x00\x02no")
	type segment struct {
		at, end int
		flags   byte
	}
	for _, tc := range []struct {
		what     string
		segments []segment
		want     string
	}{
		{"in one", []segment{{0, 0, tcpSYN}, {0, 19, 0}}, "first second no"},
		{"byte by byte", []segment{{0, 1, 0}, {1, 2, 0}, {2, 6, 0}, {6, 7, 0}, {7, 8, 0}, {8, 15, 0}, {15, 19, tcpFIN}}, "first second no"},
		{"some of it twice", []segment{{0, 9, 0}, {3, 9, 0}, {0, 4, 0}, {5, 19, 0}}, "first second no"},
		{"a gap", []segment{{0, 3, 0}, {5, 19, 0}}, ""},
		{"the middle is missing", []segment{{0, 7, 0}, {9, 15, 0}}, "first"},
		{"over a wrapped sequence number", []segment{{0, 0, tcpSYN}, {0, 8, 0}, {8, 19, 0}}, "first second no"},
	} {
		s := streams{}
		var got [][]byte
		base := ^uint32(0) - 5
		for _, g := range tc.segments {
			seq := base + uint32(g.at)
			if g.flags&tcpSYN != 0 {
				seq--
			}
			got = append(got, s.take(k, seq, g.flags, text[g.at:g.end])...)
		}
		if string(bytes.Join(got, []byte(" "))) != tc.want {
			t.Errorf("%s: %q, want %q", tc.what, got, tc.want)
		}
	}
	s := streams{}
	for port := range uint16(2 * maxStreams) {
		s.take(stream{k.from, k.to, 53, port}, 1, 0, []byte{0})
	}
	if len(s) > maxStreams {
		t.Errorf("%d streams are remembered", len(s))
	}
}

// tcpPacket is an IPv4 TCP packet with so much data.
func tcpPacket(size int) []byte {
	b := make([]byte, 40+size)
	b[0], b[9], b[32], b[33] = 0x45, 6, 5<<4, 0x19
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint32(b[24:], 1000)
	for i := range size {
		b[40+i] = byte(i)
	}
	return b
}

func TestSegments(t *testing.T) {
	if got := segments(tcpPacket(100), 20); len(got) != 1 {
		t.Fatalf("%d packets of 100 bytes", len(got))
	}
	want := tcpPacket(5000)
	var data []byte
	list := segments(want, 20)
	for i, s := range list {
		if seq := binary.BigEndian.Uint32(s[24:]); int(seq) != 1000+len(data) {
			t.Errorf("segment %d begins at %d, want %d", i, seq, 1000+len(data))
		}
		if n := int(binary.BigEndian.Uint16(s[2:])); n != len(s) || n > 1280 {
			t.Errorf("segment %d says that it has %d bytes and has %d", i, n, len(s))
		}
		if fin := s[33]&tcpFIN != 0; fin != (i == len(list)-1) {
			t.Errorf("segment %d: FIN %v", i, fin)
		}
		data = append(data, s[40:]...)
	}
	if !bytes.Equal(data, want[40:]) {
		t.Error("the segments do not hold what the packet held")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(tcpPacket(10))
	f.Add([]byte{0x45, 0, 0, 20})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, make([]byte, 60)...))
	f.Fuzz(func(_ *testing.T, packet []byte) {
		a := &Answer{packet: packet}
		if !a.read(streams{}) {
			return
		}
		head, ok := transportOffset(packet)
		if !ok {
			return
		}
		for _, s := range segments(packet, head) {
			checksum(s, head)
		}
	})
}
