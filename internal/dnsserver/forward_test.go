// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/dnszone"
)

// keep puts an answer into the cache as if it had come some time ago.
func (h *harness) keep(t testing.TB, m *dns.Msg, ago time.Duration) *entry {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q dnszone.Question
	n := q.Read(wire[headerSize:])
	q.Type = m.Question[0].Qtype
	v := h.view.Load()
	e, err := newEntry(string(appendKey(nil, &q, false, false)), wire, n+4, h.now()-int64(ago), v.lifetimes)
	if err != nil {
		t.Fatal(err)
	}
	v.cache.put(e)
	return e
}

func TestCacheCountsDown(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	h.keep(t, answerA(question("old.example", dns.TypeA), 100, "192.0.2.9"), 40*time.Second)
	m := h.ask(t, "udp", question("OLD.example", dns.TypeA))
	if ttl := m.Answer[0].Header().Ttl; ttl < 58 || ttl > 60 || m.Answer[0].Header().Name != "OLD.example." {
		t.Errorf("after 40 s: %v", m.Answer)
	}
	if u.asked.Load() != 0 {
		t.Error("the upstream was asked for what the cache has")
	}
}

func TestCachedAnswersTurn(t *testing.T) {
	h := start(t, newUpstream(t), "")
	h.keep(t, answerA(question("many.example", dns.TypeA), 100, "192.0.2.1", "192.0.2.2", "192.0.2.3"), 0)
	first := make(map[string]bool)
	for range 9 {
		m := h.ask(t, "udp", question("many.example", dns.TypeA))
		if len(m.Answer) != 3 {
			t.Fatal(m.Answer)
		}
		first[m.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 3 {
		t.Errorf("only %v come first", first)
	}
}

func TestServeStale(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(r, dns.RcodeServerFailure))
	})
	h := start(t, u, "")
	h.keep(t, answerA(question("old.example", dns.TypeA), 60, "192.0.2.9"), 10*time.Minute)
	h.keep(t, answerA(question("ancient.example", dns.TypeA), 60, "192.0.2.9"), 2*time.Hour)
	q := question("old.example", dns.TypeA)
	q.SetEdns0(1232, false)
	m := h.ask(t, "udp", q)
	expect(t, m, "NOERROR", "old.example. 30 IN A 192.0.2.9")
	if ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE); !ok || ede.InfoCode != dns.ExtendedErrorCodeStaleAnswer {
		t.Errorf("it does not say that it is stale: %v", m.IsEdns0())
	}
	// A failure holds: the upstream is left alone for a while.
	before := u.asked.Load()
	expect(t, h.ask(t, "udp", question("old.example", dns.TypeA)), "NOERROR", "old.example. 30 IN A 192.0.2.9")
	if u.asked.Load() != before {
		t.Error("the upstream is asked again at once")
	}
	expect(t, h.ask(t, "udp", question("ancient.example", dns.TypeA)), "SERVFAIL")
	if h.stats.servedStale.Load() != 2 {
		t.Errorf("%d stale answers counted", h.stats.servedStale.Load())
	}
}

// A client does not wait longer than RFC 8767 says while there is stale data; the fresh answer is kept all the same.
func TestStaleWhileUpstreamIsSlow(t *testing.T) {
	u := newUpstream(t)
	release := make(chan struct{})
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		if !strings.Contains(r.Question[0].Name, "weft-loop") {
			<-release
		}
		_ = w.WriteMsg(answerA(r, 300, "192.0.2.2"))
	})
	h := start(t, u, "forward: {upstreams: [\"tcp://%U\"], timeout: 15s}")
	h.view.Load().routes[0].resolvers[0].slow.Store(int64(time.Second))
	h.keep(t, answerA(question("old.example", dns.TypeA), 60, "192.0.2.9"), 10*time.Minute)
	begin := time.Now()
	expect(t, h.ask(t, "udp", question("old.example", dns.TypeA)), "NOERROR", "old.example. 30 IN A 192.0.2.9")
	if took := time.Since(begin); took < staleAfter-50*time.Millisecond {
		t.Errorf("stale data after %s already", took)
	}
	close(release)
	eventually(t, "the fresh answer is served", func() bool {
		m := h.ask(t, "udp", question("old.example", dns.TypeA))
		return len(m.Answer) == 1 && m.Answer[0].(*dns.A).A.String() == "192.0.2.2"
	})
}

func TestPrefetch(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 1000, "192.0.2.2")) })
	h := start(t, u, "")
	h.keep(t, answerA(question("popular.example", dns.TypeA), 1000, "192.0.2.9"), 950*time.Second)
	for range 2 {
		expect(t, h.ask(t, "udp", question("popular.example", dns.TypeA)), "NOERROR", fmt.Sprintf("popular.example. %d IN A 192.0.2.9", 50))
	}
	eventually(t, "it is asked anew before its end", func() bool {
		m := h.ask(t, "udp", question("popular.example", dns.TypeA))
		return m.Answer[0].(*dns.A).A.String() == "192.0.2.2"
	})
	if u.asked.Load() != 1 || h.stats.prefetches.Load() != 1 {
		t.Errorf("asked %d times, %d prefetches", u.asked.Load(), h.stats.prefetches.Load())
	}
}

func TestNegativeCaching(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetRcode(r, dns.RcodeNameError)
		if strings.HasPrefix(r.Question[0].Name, "soa") {
			m.Ns = []dns.RR{mustRR("example. 3600 IN SOA ns.example. h.example. 1 2 3 4 300")}
		}
		_ = w.WriteMsg(m)
	})
	h := start(t, u, "")
	for range 3 {
		m := h.ask(t, "udp", question("soa.example", dns.TypeA))
		expect(t, m, "NXDOMAIN")
		if m.Ns[0].Header().Ttl > 300 {
			t.Errorf("the SOA's TTL is %d, more than its minimum (RFC 2308)", m.Ns[0].Header().Ttl)
		}
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("a \"no\" with SOA was asked for %d times", n)
	}
	for range 2 {
		expect(t, h.ask(t, "udp", question("bare.example", dns.TypeA)), "NXDOMAIN")
	}
	if n := u.asked.Load(); n != 3 {
		t.Errorf("a \"no\" without SOA was kept: asked %d times in all, want 3", n)
	}
}

func TestFailover(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // takes questions, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	u := newUpstream(t)
	h := start(t, u, fmt.Sprintf("forward: {upstreams: [%q, \"%%U\"], policy: sequential}", dead.LocalAddr()))
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 192.0.2.1")
	eventually(t, "the dead one is known to be dead", func() bool {
		h.ask(t, "udp", question(fmt.Sprintf("x%d.example", time.Now().UnixNano()), dns.TypeA))
		return !h.view.Load().routes[0].resolvers[0].healthy()
	})
	begin := time.Now()
	for i := range 20 {
		expect(t, h.ask(t, "udp", question(fmt.Sprintf("b%d.example", i), dns.TypeA)), "NOERROR", fmt.Sprintf("b%d.example. 300 IN A 192.0.2.1", i))
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("20 questions took %s: the dead one is still asked first", took)
	}
	// It is asked on the side whether it lives, and comes back when it does.
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := dead.ReadFrom(buf)
			if err != nil {
				return
			}
			m := new(dns.Msg)
			if m.Unpack(buf[:n]) == nil {
				out, _ := answerA(m, 300, "192.0.2.77").Pack()
				_, _ = dead.WriteTo(out, from)
			}
		}
	}()
	eventually(t, "it comes back", func() bool {
		m := h.ask(t, "udp", question(fmt.Sprintf("y%d.example", time.Now().UnixNano()), dns.TypeA))
		return m.Answer[0].(*dns.A).A.String() == "192.0.2.77"
	})
}

// An upstream that can't tell is no reason to stop while another may know.
func TestPoorAnswerIsNotTheLast(t *testing.T) {
	bad, u := newUpstream(t), newUpstream(t)
	bad.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(r, dns.RcodeRefused))
	})
	h := start(t, u, fmt.Sprintf("forward: {upstreams: [%q, \"%%U\"], policy: sequential}", bad.addr))
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 192.0.2.1")
	h2 := start(t, bad, "")
	expect(t, h2.ask(t, "udp", question("a.example", dns.TypeA)), "REFUSED")
}

func TestNoUpstreamAnswers(t *testing.T) {
	h := start(t, nil, "forward: {upstreams: [\"127.0.0.1:1\"]}")
	q := question("a.example", dns.TypeA)
	q.SetEdns0(1232, false)
	m := h.ask(t, "udp", q)
	expect(t, m, "SERVFAIL")
	if ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE); !ok || ede.InfoCode != dns.ExtendedErrorCodeNetworkError {
		t.Errorf("no reason: %v", m.IsEdns0())
	}
	expect(t, h.ask(t, "udp", question("out.shop.svc.cluster.local", dns.TypeA)), "SERVFAIL")
	expect(t, h.ask(t, "udp", question("cart.shop.svc.cluster.local", dns.TypeA)), "NOERROR", "cart.shop.svc.cluster.local. 5 IN A 10.96.0.10")
}

// What does not fit over UDP is fetched over TCP, kept whole, and cut for each client as it needs.
func TestLongAnswers(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		var addrs []string
		for i := range 100 {
			addrs = append(addrs, fmt.Sprintf("192.0.2.%d", i))
		}
		m := answerA(r, 300, addrs...)
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(512)
		}
		_ = w.WriteMsg(m)
	})
	h := start(t, u, "")
	if m := h.ask(t, "tcp", question("big.example", dns.TypeA)); len(m.Answer) != 100 || m.Truncated {
		t.Errorf("over TCP: %d records, TC %v", len(m.Answer), m.Truncated)
	}
	for range 2 {
		m := h.ask(t, "udp", question("big.example", dns.TypeA))
		if n := len(m.Answer); !m.Truncated || n < 20 || m.Len() > 512 {
			t.Errorf("over UDP: %d records, TC %v, %d octets", n, m.Truncated, m.Len())
		}
	}
}

// Answers that are not to the question asked are passed over.
func TestForgedAnswers(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		for _, forge := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Question[0].Name = "other.example." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX },
			func(m *dns.Msg) { m.Response = false },
			func(m *dns.Msg) { m.Question = nil },
		} {
			m := answerA(r, 300, "203.0.113.66")
			m.Question = append([]dns.Question(nil), m.Question...)
			forge(m)
			_ = w.WriteMsg(m)
		}
		_, _ = w.Write([]byte{1})
		_ = w.WriteMsg(answerA(r, 300, "192.0.2.1"))
	})
	h := start(t, u, "")
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 192.0.2.1")
}

func TestOverTLS(t *testing.T) {
	own := certtest.New(t, x509.Certificate{Subject: pkix.Name{CommonName: "dns.example"}, DNSNames: []string{"dns.example"}, IsCA: true}, nil)
	roots := certtest.Pool(own)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own}})
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 300, "192.0.2.5")) })}
	go func() { _ = srv.ActivateAndServe() }()
	defer func() { _ = srv.Shutdown() }()
	for name, want := range map[string]string{"dns.example": "NOERROR", "other.example": "SERVFAIL"} {
		h := start(t, newUpstream(t), "")
		h.tls = &tls.Config{RootCAs: roots}
		if err := h.Apply(parse(t, fmt.Sprintf("forward: {upstreams: [\"tls://%s#%s\"]}", l.Addr(), name)), h.zone); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			m := h.ask(t, "udp", question(fmt.Sprintf("a%d.example", i), dns.TypeA))
			if dns.RcodeToString[m.Rcode] != want {
				t.Errorf("certificate for %s: %v", name, answers(m))
			}
		}
	}
}

func TestOverload(t *testing.T) {
	u := newUpstream(t)
	release := make(chan struct{})
	u.set(func(w dns.ResponseWriter, r *dns.Msg) { <-release; _ = w.WriteMsg(answerA(r, 300, "192.0.2.1")) })
	h := start(t, u, "{forward: {upstreams: [\"tcp://%U\"], timeout: 10s}, limits: {upstream: 3, waiting: 5}}")
	h.stopLoops() // their questions wait, too
	h.view.Load().routes[0].resolvers[0].slow.Store(int64(time.Second))
	var wg sync.WaitGroup
	ask := func(name string) {
		wg.Go(func() { expect(t, h.ask(t, "udp", question(name, dns.TypeA)), "NOERROR", name+" 300 IN A 192.0.2.1") })
	}
	count := func() (int, int) { return h.stats.flights() }
	for i := range 3 {
		ask(fmt.Sprintf("a%d.example.", i))
	}
	eventually(t, "three questions are under way", func() bool { n, _ := count(); return n == 3 })
	expect(t, h.ask(t, "udp", question("one-more.example", dns.TypeA)), "SERVFAIL")
	// A question that is under way already takes clients in until there are too many of them.
	ask("a0.example.")
	ask("a0.example.")
	eventually(t, "five clients wait", func() bool { _, n := count(); return n == 5 })
	expect(t, h.ask(t, "tcp", question("a0.example", dns.TypeA)), "SERVFAIL")
	// What is known is answered all the same.
	expect(t, h.ask(t, "udp", question("cart.shop.svc.cluster.local", dns.TypeA)), "NOERROR", "cart.shop.svc.cluster.local. 5 IN A 10.96.0.10")
	if h.stats.overloads.Load() != 2 {
		t.Errorf("%d overloads counted, want 2", h.stats.overloads.Load())
	}
	close(release)
	wg.Wait()
	eventually(t, "nothing is left", func() bool { f, n := count(); return f == 0 && n == 0 })
}

func TestLoop(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	if err := h.Apply(parse(t, fmt.Sprintf("forward: {upstreams: [%q]}", h.addr)), h.zone); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loop is noticed", func() bool { return h.stats.loops.Load() > 0 })
	begin := time.Now()
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "SERVFAIL")
	if took := time.Since(begin); took > 4*time.Second { // it is not asked for until forward.timeout, 5 s
		t.Errorf("SERVFAIL after %s", took)
	}
}

func TestPipelining(t *testing.T) {
	u := newUpstream(t)
	release := make(chan struct{})
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		if strings.HasPrefix(r.Question[0].Name, "slow") {
			<-release
		}
		_ = w.WriteMsg(answerA(r, 300, "192.0.2.1"))
	})
	h := start(t, u, "")
	conn, err := dns.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	for i, name := range []string{"slow.example", "cart.shop.svc.cluster.local", "fast.example"} {
		m := question(name, dns.TypeA)
		m.Id = uint16(i)
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[uint16]bool)
	for len(got) < 3 {
		m, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		got[m.Id] = true
		if len(got) == 2 {
			if got[0] {
				t.Error("the slow one came before others")
			}
			close(release)
		}
	}
	// A question in two parts, and two in one.
	m, _ := question("cart.shop.svc.cluster.local", dns.TypeA).Pack()
	framed := append([]byte{0, byte(len(m))}, m...)
	for _, part := range [][]byte{framed[:1], framed[1:20], append(framed[20:len(framed):len(framed)], framed...)} {
		if _, err := conn.Conn.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if m, err := conn.ReadMsg(); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%v %v", m, err)
		}
	}
}

func TestConnectionLimits(t *testing.T) {
	h := start(t, newUpstream(t), "{forward: {upstreams: [\"%U\"]}, limits: {perClient: 2, idleConnection: 300ms}}")
	var open []net.Conn
	alive := func(c net.Conn) bool {
		pkt, _ := question("cart.shop.svc.cluster.local", dns.TypeA).Pack()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(append([]byte{0, byte(len(pkt))}, pkt...)); err != nil {
			return false
		}
		n, err := c.Read(make([]byte, 512))
		return err == nil && n > 0
	}
	for i := range 3 {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := alive(c); got != (i < 2) {
			t.Errorf("connection %d is served: %v", i+1, got)
		}
		open = append(open, c)
	}
	// Idle ones go.
	_ = open[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := open[0].Read(make([]byte, 1)); err == nil {
		t.Error("an idle connection got something")
	}
	eventually(t, "there is room again", func() bool {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			return false
		}
		defer c.Close()
		return alive(c)
	})
	// A message longer than any query ends the connection.
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte{0xff, 0xff, 1, 2, 3})
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a query of 64 KiB was answered")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(64*4, 1<<30)
	put := func(i int) {
		m, _ := answerA(question(fmt.Sprintf("n%d.example", i), dns.TypeA), 300, "192.0.2.1").Pack()
		var q dnszone.Question
		n := q.Read(m[headerSize:])
		q.Type = dns.TypeA
		e, err := newEntry(string(appendKey(nil, &q, false, false)), m, n+4, 0, lifetimes{max: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		c.put(e)
	}
	for i := range 5000 {
		put(i)
		put(i) // once more in its own place
	}
	for i := range c.shard {
		s := &c.shard[i]
		bytes := 0
		for j, e := range s.ring {
			bytes += e.size()
			if e.slot != j || s.entries[e.key] != e {
				t.Fatal("the ring is out of order")
			}
		}
		if len(s.ring) != 4 || len(s.entries) != 4 || bytes != s.bytes {
			t.Fatalf("%d entries, %d in the ring, %d octets, counted %d", len(s.entries), len(s.ring), bytes, s.bytes)
		}
	}
	if c.evictions.Load() != 5000-64*4 {
		t.Errorf("%d evictions", c.evictions.Load())
	}
}
