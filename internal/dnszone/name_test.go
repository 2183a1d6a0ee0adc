// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestDashed(t *testing.T) {
	for addr, label := range map[string]string{"10.1.2.3": "10-1-2-3", "2001:db8::1": "2001-db8--1", "::1": "0--1", "fd00::": "fd00--0", "::": "0--0",
		"1:2:3:4:5:6:7:8": "1-2-3-4-5-6-7-8"} {
		a := netip.MustParseAddr(addr)
		if got := string(appendDashed(nil, a)); got != label {
			t.Errorf("%s: %s, want %s", addr, got, label)
		}
		if back, ok := parseDashed([]byte(label)); !ok || back != a {
			t.Errorf("%s: read as %s", label, back)
		}
	}
	for _, bad := range []string{"", "-", "1-2-3", "1-2-3-4-5", "01-2-3-4", "256-1-1-1", "a", "2001-db8-0-0-0-0-0-1", "1.2.3.4", "1:2::3", "fd00--", "--1", strings.Repeat("1-", 30)} {
		if a, ok := parseDashed([]byte(bad)); ok {
			t.Errorf("%q was read as %s", bad, a)
		}
	}
}

func TestReverse(t *testing.T) {
	for _, s := range []string{"10.1.2.3", "0.0.0.0", "2001:db8::1", "::"} {
		var q Question
		if err := q.SetName(ReverseName(netip.MustParseAddr(s))); err != nil {
			t.Fatal(err)
		}
		if r, ok := q.reverse(); !ok || !r.whole() || r.addr.String() != s {
			t.Errorf("%s: read as %s", s, r.addr)
		}
	}
	for _, s := range []string{"1.2.3.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "01.2.3.4.in-addr.arpa", "256.1.1.1.in-addr.arpa", "in-addr.arpa", "x.ip6.arpa", "10." + strings.Repeat("0.", 31) + "ip6.arpa", "+1.2.3.4.in-addr.arpa"} {
		var q Question
		if err := q.SetName(s); err != nil {
			t.Fatal(err)
		}
		if r, ok := q.reverse(); ok && r.whole() {
			t.Errorf("%s was read as %s", s, r.addr)
		}
	}
}

func TestPackName(t *testing.T) {
	for _, bad := range []string{"a..b", ".a", strings.Repeat("x", 64), strings.Repeat("abcdefg.", 32), `a\.b`} {
		if w, err := PackName(bad); err == nil {
			t.Errorf("%q was packed as % x", bad, w)
		}
	}
	for _, s := range []string{".", "a.", "Cart.Shop.svc.cluster.local.", "_http._tcp.x."} {
		w, err := PackName(s)
		if err != nil || FormatName(w) != s {
			t.Errorf("%q: %q, %v", s, FormatName(w), err)
		}
	}
	if got := FormatName([]byte("\x03a.b\x02\x00\\\x00")); got != `a\.b.\000\\.` {
		t.Errorf("escapes: %s", got)
	}
}

// Read must agree with another's reading, and never read what is not there.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x03www\x07example\x03com\x00"))
	f.Add([]byte("\x00"))
	f.Add([]byte("\x3f"))
	f.Add([]byte("\xc0\x0c"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		var q Question
		n := q.Read(wire)
		if n == 0 {
			return
		}
		if n > len(wire) || n > 255 {
			t.Fatalf("read %d octets of %d", n, len(wire))
		}
		name, off, err := dns.UnpackDomainName(wire, 0)
		if err != nil || off != n {
			t.Fatalf("% x: read %d octets, another %d (%v)", wire, n, off, err)
		}
		if c := dns.CountLabel(name); c != q.Labels() {
			t.Fatalf("%s: %d labels, want %d", name, q.Labels(), c)
		}
		if string(q.Wire()) != strings.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				return r + 32
			}
			return r
		}, string(wire[:n])) && isASCII(wire[:n]) {
			t.Fatalf("% x in lower case is % x", wire[:n], q.Wire())
		}
	})
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// Whatever is asked, the answer is well-formed, within its bound, and about the question.
func FuzzAppend(f *testing.F) {
	z := newZone(f, Options{Self: addrs("192.0.2.53"), Pods: PodsVerified}, specCluster()...)
	x := externalFixture(f)
	for _, s := range []string{"headless.default.svc.cluster.local", "_https._tcp.headless.default.svc.cluster.local", "circle.default.svc.cluster.local",
		"1.0.3.10.in-addr.arpa", "cluster.local", "10-1-2-3.default.pod.cluster.local", "www.example.com", "a.b.wild.example.com"} {
		w, _ := PackName(s)
		f.Add(w, uint16(1), uint16(512), uint32(1))
		f.Add(w, uint16(33), uint16(100), uint32(7))
	}
	f.Fuzz(func(t *testing.T, name []byte, typ, limit uint16, turn uint32) {
		var q Question
		n := q.Read(name)
		if n == 0 {
			return
		}
		q.Type = typ
		head := append(make([]byte, 12), name[:n]...)
		head = append(head, byte(typ>>8), byte(typ), 0, 1)
		l := max(int(limit), len(head))
		for _, appendTo := range []func([]byte, *Question, int, uint32) ([]byte, Result){z.Append, x.Append} {
			msg, res := appendTo(append([]byte(nil), head...), &q, l, turn)
			if len(msg) > l {
				t.Fatalf("%d octets, more than %d", len(msg), l)
			}
			for i, c := range []uint16{res.Answer, res.Authority, res.Additional} {
				msg[6+2*i], msg[7+2*i] = byte(c>>8), byte(c)
			}
			msg[5] = 1
			m := new(dns.Msg)
			if err := m.Unpack(msg); err != nil {
				t.Fatalf("%s %d: %v\n% x", q.String(), typ, err, msg)
			}
			if len(m.Answer) != int(res.Answer) || len(m.Ns) != int(res.Authority) || len(m.Extra) != int(res.Additional) {
				t.Fatalf("%s %d: counts %+v, found %d, %d, %d", q.String(), typ, res, len(m.Answer), len(m.Ns), len(m.Extra))
			}
			if len(m.Answer) > 0 && !strings.EqualFold(m.Answer[0].Header().Name, m.Question[0].Name) {
				t.Fatalf("asked for %s, answered about %s", m.Question[0].Name, m.Answer[0].Header().Name)
			}
		}
	})
}
