// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
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
	s := fuzzServer(f, "{forward: {upstreams: [\"127.0.0.1:1\"]}, hosts: {h.example: [192.0.2.1]}, aliases: {a.example: cart.shop.svc.cluster.local, b.example: c.example}, searchPath: {enabled: true, domains: []}, cache: {servFailTTL: 1h}}")
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

// fuzzServer is a server with the testDelta and an upstream that nobody is.
func fuzzServer(f *testing.F, yaml string) *Server {
	f.Helper()
	cfg, err := ParseConfig([]byte(yaml))
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
	s.background.Wait() // who looks for loops reads the routes
	for _, r := range s.view.Load().routes {
		r.resolvers = nil // nobody need wait for a port where nobody is to say so
	}
	f.Cleanup(s.Close)
	return s
}

// Whatever an upstream says, a client gets a well-formed answer within its bounds: of a name as it was asked, and of one
// at the end of a chain, which is put together anew.
func FuzzUpstreamAnswer(f *testing.F) {
	s := fuzzServer(f, "{forward: {upstreams: [\"127.0.0.1:1\"]}, searchPath: {enabled: true, domains: []}}")
	long := answerA(question("ext.example.com", dns.TypeA), 300, "192.0.2.1", "192.0.2.2", "192.0.2.3")
	long.Ns = []dns.RR{mustRR("example.com. 60 IN SOA ns.example. h.example. 1 2 3 4 60")}
	long.SetEdns0(1232, true)
	chain := answerA(question("ext.example.com", dns.TypeA), 300)
	chain.Answer = []dns.RR{mustRR("ext.example.com. 60 IN CNAME b.example."), mustRR("b.example. 5 IN A 192.0.2.1"), mustRR("b.example. 5 IN A 192.0.2.2")}
	var many []string
	for i := range 100 {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	for _, m := range []*dns.Msg{long, chain, answerA(question("ext.example.com", dns.TypeA), 9, many...)} {
		pkt, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pkt[headerSize+21:], pkt[3], pkt[7], pkt[9], pkt[11], uint16(512), true)
		f.Add(pkt[headerSize+21:], pkt[3], pkt[7], pkt[9], pkt[11], uint16(0), false)
	}
	w := s.newWorker()
	f.Fuzz(func(t *testing.T, records []byte, rcode, answers, authority, additional byte, size uint16, udp bool) {
		v := s.view.Load()
		for _, name := range []string{"ext.example.com.", "out.shop.svc.cluster.local.", "ext.example.com.shop.svc.cluster.local."} {
			upstream, err := question("ext.example.com", dns.TypeA).Pack()
			if err != nil {
				t.Fatal(err)
			}
			upstream[2], upstream[3] = 0x81, rcode
			upstream[7], upstream[9], upstream[11] = answers, authority, additional
			upstream = append(upstream, records...)
			var q dnszone.Question
			n := q.Read(upstream[headerSize:])
			q.Type = dns.TypeA
			e, err := newEntry(string(appendKey(nil, &q, false, false)), upstream, n+4, s.now(), lifetimes{max: time.Hour, maxNegative: time.Hour, servFail: time.Hour})
			if err != nil {
				return
			}
			e.life = int64(time.Hour)
			v.cache.put(e)
			m := question(name, dns.TypeA)
			if size > 0 {
				m.SetEdns0(size, false)
			}
			ask, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			late := make(chan []byte, 1)
			p := packet{data: ask, client: clientAddr{netip.MustParseAddr("192.0.2.9")}, udp: udp, now: s.now(), to: func() responder {
				return sink{func(b []byte) { late <- append([]byte(nil), b...) }}
			}}
			got := w.serve(&p, make([]byte, 0, maxMessage))
			if got == nil {
				select {
				case got = <-late:
				case <-time.After(10 * time.Second):
				}
			}
			if s.stats.panics.Load() > 0 {
				t.Fatalf("panic on % x", upstream)
			}
			bound := maxMessage
			if udp {
				bound = min(max(int(size), 512), 1232)
			}
			if len(got) < headerSize || len(got) > bound || got[0] != ask[0] || got[1] != ask[1] {
				t.Fatalf("%s: % x\nbecame %d octets, bound %d: % x", name, upstream, len(got), bound, got)
			}
			if new(dns.Msg).Unpack(upstream) == nil && new(dns.Msg).Unpack(got) != nil {
				t.Fatalf("%s: well-formed % x\nbecame % x", name, upstream, got)
			}
		}
	})
}

// pipe is a connection that takes answers and has nothing to say.
type pipe struct {
	net.Conn
	wrote []byte
}

func (p *pipe) Write(b []byte) (int, error)      { p.wrote = append(p.wrote, b...); return len(b), nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

// However a stream is cut into pieces, each whole question in it has one answer, and none comes of the rest.
func FuzzStream(f *testing.F) {
	s := fuzzServer(f, "{forward: {upstreams: [\"127.0.0.1:1\"]}}")
	one, err := question("cart.shop.svc.cluster.local", dns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	framed := append([]byte{0, byte(len(one))}, one...)
	f.Add(framed, uint8(1))
	f.Add(append(append([]byte(nil), framed...), framed...), uint8(7))
	f.Add([]byte{0xff, 0xff, 1}, uint8(3))
	f.Add([]byte{0, 0, 0, 5, 1, 2, 3, 4, 5}, uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		c := &pipe{}
		tc := &tcpConn{s: s, l: &tcpListener{}, c: c, client: clientAddr{netip.MustParseAddr("192.0.2.9")}, room: make(chan struct{}, maxPipelined)}
		w := s.newTCPWorker()
		p := packet{client: tc.client, to: tc.later, now: s.now()}
		in := make([]byte, 2+maxAsk)
		have := 0
		for rest := stream; len(rest) > 0; {
			n := copy(in[have:], rest[:min(len(rest), int(piece)+1)])
			rest = rest[n:]
			have += n
			used, ok := tc.burst(w, &p, in[:have])
			if !ok {
				break
			}
			if used > have || (n == 0 && used == 0) {
				t.Fatalf("%d of %d octets used", used, have)
			}
			have = copy(in, in[used:have])
		}
		tc.waiting.Wait()
		asked, answered := 0, 0
		for rest := stream; len(rest) >= 2; asked++ {
			n := int(binary.BigEndian.Uint16(rest))
			if n > maxAsk || len(rest) < 2+n {
				break
			}
			rest = rest[2+n:]
		}
		for rest := c.wrote; len(rest) > 0; answered++ {
			n := 0
			if len(rest) >= 2 {
				n = 2 + int(binary.BigEndian.Uint16(rest))
			}
			if n < 2+headerSize || n > len(rest) {
				t.Fatalf("% x is no stream of answers", c.wrote)
			}
			rest = rest[n:]
		}
		if answered > asked {
			t.Fatalf("%d answers to %d questions", answered, asked)
		}
		if s.stats.panics.Load() > 0 {
			t.Fatalf("panic on % x", stream)
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
