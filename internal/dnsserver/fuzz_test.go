// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
)

// sink takes late answers.
type sink struct{ f func([]byte) }

func (s sink) respond(msg []byte) { s.f(msg) }

// Whatever a packet holds, there is no panic, and an answer is well-formed, to the question, and within its bound.
func FuzzServe(f *testing.F) {
	cfg, err := ParseConfig([]byte("{forward: {upstreams: [\"127.0.0.1:1\"]}, hosts: {h.example: [192.0.2.1]}, aliases: {a.example: cart.shop.svc.cluster.local, b.example: c.example}, searchPath: {enabled: true, domains: []}, cache: {servFailTTL: 1h}}"))
	if err != nil {
		f.Fatal(err)
	}
	s, err := New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		f.Fatal(err)
	}
	zone, err := dnszone.New(cfg.Zone())
	if err != nil {
		f.Fatal(err)
	}
	zone.Update(testDelta())
	if err := s.Apply(cfg, zone); err != nil {
		f.Fatal(err)
	}
	s.stopLoops()
	f.Cleanup(s.Close)
	for _, name := range []string{"cart.shop.svc.cluster.local.", "big.shop.svc.cluster.local.", "out.shop.svc.cluster.local.", "h.example.", "a.example.", "b.example.", "x.y.shop.svc.cluster.local.", "10.0.96.10.in-addr.arpa."} {
		m := question(name, dns.TypeA)
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		pkt, _ := m.Pack()
		f.Add(pkt, true)
		f.Add(pkt, false)
	}
	w := s.newWorker()
	f.Fuzz(func(t *testing.T, pkt []byte, udp bool) {
		check := func(answer []byte) {
			m := new(dns.Msg)
			if err := m.Unpack(answer); err != nil {
				t.Errorf("% x\n-> % x: %v", pkt, answer, err)
				return
			}
			if !m.Response || m.Id != binary.BigEndian.Uint16(pkt) {
				t.Errorf("% x: not its answer: % x", pkt, answer)
			}
			if udp && len(answer) > 1232 {
				t.Errorf("%d octets over UDP", len(answer))
			}
			if udp && m.IsEdns0() == nil && len(answer) > 512 {
				t.Errorf("%d octets for a client without EDNS", len(answer))
			}
		}
		late := make(chan struct{}, 1)
		waiting := false
		p := packet{data: pkt, client: clientAddr{netip.MustParseAddr("192.0.2.9")}, udp: udp, now: s.now(), to: func() responder {
			waiting = true
			return sink{func(b []byte) { check(b); late <- struct{}{} }}
		}}
		if answer := w.serve(&p, make([]byte, 0, maxUDP)); answer != nil {
			check(answer)
		} else if waiting {
			select {
			case <-late:
			case <-time.After(10 * time.Second):
				t.Errorf("% x: no answer", pkt)
			}
		}
		if s.stats.panics.Load() > 0 {
			t.Fatalf("panic on % x", pkt)
		}
	})
}

// Whatever an upstream says, it is refused, or what is kept of it is well-formed and bounded.
func FuzzEntry(f *testing.F) {
	long := answerA(question("a.example", dns.TypeA), 300, "192.0.2.1", "192.0.2.2", "192.0.2.3")
	long.Ns = []dns.RR{mustRR("example. 60 IN SOA ns.example. h.example. 1 2 3 4 60")}
	long.SetEdns0(1232, true)
	cname := answerA(question("a.example", dns.TypeA), 300)
	cname.Answer = []dns.RR{mustRR("a.example. 60 IN CNAME b.example."), mustRR("b.example. 5 IN A 192.0.2.1"), mustRR("b.example. 5 IN A 192.0.2.2")}
	for _, m := range []*dns.Msg{long, cname, answerA(question("a.example", dns.TypeA), 0)} {
		pkt, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pkt, uint16(512), uint32(1), uint16(10))
	}
	f.Fuzz(func(t *testing.T, pkt []byte, limit uint16, turn uint32, age uint16) {
		var q dnszone.Question
		if len(pkt) < headerSize {
			return
		}
		n := q.Read(pkt[headerSize:])
		if n == 0 || headerSize+n+4 > len(pkt) {
			return
		}
		e, err := newEntry("k", pkt, n+4, 0, lifetimes{max: time.Hour, maxNegative: time.Hour, servFail: time.Second})
		if err != nil {
			return
		}
		whole := new(dns.Msg)
		wellFormed := whole.Unpack(pkt) == nil
		head := append([]byte(nil), pkt[:headerSize+n+4]...)
		l := max(int(limit), len(head))
		msg, o := e.append(head, n+4, l, int64(age)*int64(time.Second), turn, turn%5 == 0)
		if len(msg) > l {
			t.Fatalf("%d octets, more than %d", len(msg), l)
		}
		if !wellFormed || whole.Opcode != 0 {
			return
		}
		m := &query{id: 1, qlen: n + 4}
		msg = m.finish(msg, &o, &cookieJar{}, nil, 1232)
		back := new(dns.Msg)
		if err := back.Unpack(msg); err != nil {
			t.Fatalf("well-formed % x\nbecame % x: %v", pkt, msg, err)
		}
		if len(back.Answer) != int(o.answer) || !back.Truncated && len(back.Answer) != len(whole.Answer) {
			t.Fatalf("%d answers of %d, TC %v", len(back.Answer), len(whole.Answer), back.Truncated)
		}
	})
}
