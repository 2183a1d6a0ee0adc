// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// message is an answer with that many addresses.
func message(t testing.TB, id uint16, typ uint16, addrs int) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("www.example.com.", typ)
	m.Id, m.Response, m.Compress = id, true, true
	for i := range addrs {
		h := dns.RR_Header{Name: "www.example.com.", Rrtype: typ, Class: dns.ClassINET, Ttl: 5}
		if typ == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).AsSlice()})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: netip.MustParseAddr("2001:db8::1").AsSlice()})
		}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// udpPacket is a packet from 10.0.0.1 or fd00::1, port 53, to 10.0.0.2 or fd00::2, port 4000.
func udpPacket(v6 bool, payloads ...[]byte) (b []byte, head int) {
	payload := bytes.Join(payloads, nil)
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 53), 4000)
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(payload))), 0, 0)
	if v6 {
		b = make([]byte, 40)
		b[0], b[6], b[7] = 0x60, 17, 64
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
		copy(b[8:], netip.MustParseAddr("fd00::1").AsSlice())
		copy(b[24:], netip.MustParseAddr("fd00::2").AsSlice())
	} else {
		b = make([]byte, 20)
		b[0], b[8], b[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
		copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	}
	return append(append(b, udp...), payload...), len(b)
}

func TestDatagrams(t *testing.T) {
	a, aaaa := message(t, 1, dns.TypeA, 1), message(t, 2, dns.TypeAAAA, 1)
	none := message(t, 3, dns.TypeAAAA, 0)
	big := message(t, 4, dns.TypeA, 20)
	for _, c := range []struct {
		why  string
		in   [][]byte
		want [][]byte
	}{
		{"one answer", [][]byte{a}, [][]byte{a}},
		{"A and AAAA, the longer first", [][]byte{aaaa, a}, [][]byte{aaaa, a}},
		{"three of one length, and a shorter one", [][]byte{a, a, a, none}, [][]byte{a, a, a, none}},
		{"no address", [][]byte{none, none}, [][]byte{none, none}},
		{"a longer one behind a shorter one: nobody sends that as one", [][]byte{a, big}, [][]byte{append(slices.Clone(a), big...)}},
		{"something behind an answer", [][]byte{a, []byte("trailing")}, [][]byte{append(slices.Clone(a), "trailing"...)}},
		{"no DNS", [][]byte{[]byte("hello")}, [][]byte{[]byte("hello")}},
		{"nothing", nil, [][]byte{{}}},
		{"cut short", [][]byte{a[:len(a)-1]}, [][]byte{a[:len(a)-1]}},
	} {
		for _, v6 := range []bool{false, true} {
			b, head := udpPacket(v6, c.in...)
			got := datagrams(b, head)
			if len(got) != len(c.want) {
				t.Errorf("%s (IPv6 %v): %d datagrams, want %d", c.why, v6, len(got), len(c.want))
				continue
			}
			for i := range got {
				want, _ := udpPacket(v6, c.want[i])
				if !bytes.Equal(got[i], want) {
					t.Errorf("%s (IPv6 %v), datagram %d:\n got % x\nwant % x", c.why, v6, i, got[i], want)
				}
			}
		}
	}
}

// Every message that is held is read: what is in the second is in force, too, before the client knows.
func TestAnswersInOnePacketAreRead(t *testing.T) {
	a, aaaa := message(t, 1, dns.TypeA, 1), message(t, 2, dns.TypeAAAA, 1)
	b, head := udpPacket(false, aaaa, a)
	held := &Answer{packet: b}
	if !held.read(streams{}) {
		t.Fatal("not read")
	}
	if len(held.Messages) != 2 || !bytes.Equal(held.Messages[0], aaaa) || !bytes.Equal(held.Messages[1], a) {
		t.Errorf("messages: %d", len(held.Messages))
	}
	if got := segments(b, head); len(got) != 2 {
		t.Errorf("sent on as %d packets, want 2", len(got))
	}
}

func FuzzDatagrams(f *testing.F) {
	a, aaaa := message(f, 1, dns.TypeA, 1), message(f, 2, dns.TypeAAAA, 2)
	f.Add(append(slices.Clone(aaaa), a...))
	f.Add(a)
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > 60000 {
			return
		}
		b, head := udpPacket(false, payload)
		var all []byte
		for _, d := range datagrams(b, head) {
			all = append(all, d[head+udpHeader:]...)
		}
		if !bytes.Equal(all, payload) {
			t.Errorf("% x was taken apart to % x", payload, all)
		}
	})
}
