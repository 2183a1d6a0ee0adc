// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// eventually polls until a condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never came true: " + what)
		}
	}
}

// raw sends octets over UDP and returns the answer. With none expected it looks for one until another question, sent
// behind, is answered, and a moment longer, for answers may leave in another order.
func (h *harness) raw(t testing.TB, pkt []byte, expected bool) []byte {
	t.Helper()
	c, err := net.Dial("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(pkt); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 65535)
	if !expected {
		end, err := question("cart.shop.svc.cluster.local", dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(end); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:2], end[:2]) {
			return buf[:n]
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	}
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func TestWhatIsNotAnswered(t *testing.T) {
	h := start(t, newUpstream(t), "")
	const q = "0463617274" + "0473686f70" + "03737663" + "07636c7573746572" + "056c6f63616c" + "00" // cart.shop.svc.cluster.local
	for _, c := range []struct {
		name, packet string
		rcode        int // -1: no answer
	}{
		{"the least", "1234" + "0100" + "0001000000000000" + q + "00010001", 0},
		{"an answer", "1234" + "8100" + "0001000000000000" + q + "00010001", -1},
		{"eleven octets", "1234010000010000000000", -1},
		{"nothing", "12", -1},
		{"no question", "1234" + "0100" + "0000000000000000", 1},
		{"two questions", "1234" + "0100" + "0002000000000000" + q + "00010001" + q + "00010001", 1},
		{"a question cut short", "1234" + "0100" + "0001000000000000" + q + "0001", 1},
		{"a compressed name", "1234" + "0100" + "0001000000000000" + "c00c" + "00010001", 1},
		{"a label too long", "1234" + "0100" + "0001000000000000" + "40" + strings.Repeat("61", 64) + "00" + "00010001", 1},
		{"NOTIFY", "1234" + "2000" + "0001000000000000" + q + "00060001", 5},
		{"UPDATE", "1234" + "2800" + "0001000000000000" + q + "00060001", 5},
		{"STATUS", "1234" + "1000" + "0001000000000000" + q + "00010001", 4},
		{"class CHAOS", "1234" + "0100" + "0001000000000000" + q + "00100003", 5},
		{"AXFR", "1234" + "0100" + "0001000000000000" + q + "00fc0001", 5},
		{"IXFR", "1234" + "0100" + "0001000000000000" + q + "00fb0001", 5},
		{"type 0", "1234" + "0100" + "0001000000000000" + q + "00000001", 1},
		{"EDNS", "1234" + "0100" + "0001000000000001" + q + "00010001" + "00002904d000000000" + "0000", 0},
		{"EDNS of a version to come", "1234" + "0100" + "0001000000000001" + q + "00010001" + "00002904d000010000" + "0000", 16},
		{"two OPT records", "1234" + "0100" + "0001000000000002" + q + "00010001" + "00002904d000000000" + "0000" + "00002904d000000000" + "0000", 1},
		{"OPT not at the root", "1234" + "0100" + "0001000000000001" + q + "00010001" + "016100002904d000000000" + "0000", 1},
		{"OPT in the answer section", "1234" + "0100" + "0001000100000000" + q + "00010001" + "00002904d000000000" + "0000", 1},
		{"OPT cut short", "1234" + "0100" + "0001000000000001" + q + "00010001" + "00002904d0", 1},
		{"an option longer than its record", "1234" + "0100" + "0001000000000001" + q + "00010001" + "00002904d000000000" + "0004" + "000a0008", 1},
		{"a cookie of an impossible length", "1234" + "0100" + "0001000000000001" + q + "00010001" + "00002904d000000000" + "0007" + "000a0003616161", 1},
		{"records promised, not there", "1234" + "0100" + "0001000000000009" + q + "00010001", 1},
	} {
		pkt, err := hex.DecodeString(c.packet)
		if err != nil {
			t.Fatal(c.name, err)
		}
		got := h.raw(t, pkt, c.rcode >= 0)
		if c.rcode < 0 {
			if got != nil {
				t.Errorf("%s: answered with % x", c.name, got)
			}
			continue
		}
		m := new(dns.Msg)
		if err := m.Unpack(got); err != nil {
			t.Errorf("%s: %v (% x)", c.name, err, got)
			continue
		}
		if m.Rcode != c.rcode || m.Id != 0x1234 || !m.Response {
			t.Errorf("%s: %s, want %s", c.name, dns.RcodeToString[m.Rcode], dns.RcodeToString[c.rcode])
		}
	}
	m := h.ask(t, "udp", question("cart.shop.svc.cluster.local", dns.TypeANY))
	if len(m.Answer) != 1 || m.Answer[0].(*dns.HINFO).Cpu != "RFC8482" {
		t.Errorf("ANY: %v", m)
	}
	if n := h.stats.panics.Load(); n > 0 {
		t.Errorf("%d panics", n)
	}
}

func TestCookies(t *testing.T) {
	h := start(t, newUpstream(t), "")
	m := question("cart.shop.svc.cluster.local", dns.TypeA)
	m.SetEdns0(1232, false)
	opt := m.IsEdns0()
	opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
	get := func(m *dns.Msg) string {
		r := h.ask(t, "udp", m)
		for _, o := range r.IsEdns0().Option {
			if c, ok := o.(*dns.EDNS0_COOKIE); ok {
				return c.Cookie
			}
		}
		return ""
	}
	full := get(m)
	if len(full) != 48 || !strings.HasPrefix(full, "0102030405060708") {
		t.Fatalf("cookie %q, want the client's and 16 octets of the server's", full)
	}
	raw, _ := hex.DecodeString(full)
	now := uint32(time.Now().Unix())
	for _, c := range []struct {
		name string
		ok   bool
		got  bool
	}{
		{"as made", true, h.jar.valid(raw, []byte{127, 0, 0, 1}, now)},
		{"another client", false, h.jar.valid(raw, []byte{127, 0, 0, 2}, now)},
		{"two hours old", false, h.jar.valid(raw, []byte{127, 0, 0, 1}, now+7200)},
		{"from the future", false, h.jar.valid(raw, []byte{127, 0, 0, 1}, now-3600)},
		{"forged", false, h.jar.valid(append(bytes.Clone(raw[:23]), raw[23]^1), []byte{127, 0, 0, 1}, now)},
		{"none", false, h.jar.valid(nil, []byte{127, 0, 0, 1}, now)},
	} {
		if c.got != c.ok {
			t.Errorf("%s: valid is %v", c.name, c.got)
		}
	}
}

// The reference values of SipHash-2-4 (key 00..0f, input 00, 0001, …).
func TestSipHash(t *testing.T) {
	j := &cookieJar{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	for in, want := range map[string]uint64{"": 0x726fdb47dd0e0e31, "\x00": 0x74f839c593dc67fd, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e": 0xa129ca6149be45e5} {
		if got := j.sip([]byte(in)); got != want {
			t.Errorf("% x: %x, want %x", in, got, want)
		}
	}
}

func TestStubDomainsHostsAliases(t *testing.T) {
	u, corp := newUpstream(t), newUpstream(t)
	corp.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 60, "10.9.9.9")) })
	h := start(t, u, `
forward: {upstreams: ["%U"]}
stubDomains:
- zones: [corp.example, 9.10.in-addr.arpa]
  upstreams: ["`+corp.addr+`"]
hosts:
  registry.example: [192.0.2.10, "2001:db8::10"]
aliases:
  api.example: cart.shop.svc.cluster.local
  www.example: elsewhere.example
`)
	for _, c := range []struct {
		name string
		typ  uint16
		want []string
	}{
		{"a.corp.example", dns.TypeA, []string{"NOERROR", "a.corp.example. 60 IN A 10.9.9.9"}},
		{"corp.example", dns.TypeA, []string{"NOERROR", "corp.example. 60 IN A 10.9.9.9"}},
		{"notcorp.example", dns.TypeA, []string{"NOERROR", "notcorp.example. 300 IN A 192.0.2.1"}},
		{"Registry.example", dns.TypeA, []string{"NOERROR", "Registry.example. 5 IN A 192.0.2.10"}},
		{"registry.example", dns.TypeAAAA, []string{"NOERROR", "registry.example. 5 IN AAAA 2001:db8::10"}},
		{"registry.example", dns.TypeTXT, []string{"NOERROR"}},
		{"10.2.0.192.in-addr.arpa", dns.TypePTR, []string{"NOERROR", "10.2.0.192.in-addr.arpa. 5 IN PTR registry.example."}},
		{"api.example", dns.TypeA, []string{"NOERROR", "api.example. 5 IN CNAME cart.shop.svc.cluster.local.", "cart.shop.svc.cluster.local. 5 IN A 10.96.0.10"}},
		{"www.example", dns.TypeA, []string{"NOERROR", "elsewhere.example. 300 IN A 192.0.2.1", "www.example. 5 IN CNAME elsewhere.example."}},
		{"www.example", dns.TypeCNAME, []string{"NOERROR", "www.example. 5 IN CNAME elsewhere.example."}},
	} {
		expect(t, h.ask(t, "udp", question(c.name, c.typ)), c.want...)
	}
}

func TestTTLOfNothing(t *testing.T) {
	h := start(t, newUpstream(t), "{ttl: 0s, hosts: {h.example: [192.0.2.9]}, forward: {upstreams: [\"%U\"]}}")
	expect(t, h.ask(t, "udp", question("cart.shop.svc.cluster.local", dns.TypeA)), "NOERROR", "cart.shop.svc.cluster.local. 0 IN A 10.96.0.10")
	expect(t, h.ask(t, "udp", question("h.example", dns.TypeA)), "NOERROR", "h.example. 0 IN A 192.0.2.9")
	if m := h.ask(t, "udp", question("none.shop.svc.cluster.local", dns.TypeA)); m.Ns[0].Header().Ttl != 0 {
		t.Errorf("%v", m.Ns)
	}
}

func TestSearchPath(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := answerA(r, 300, "192.0.2.1")
		switch name := strings.ToLower(r.Question[0].Name); {
		case name == "in.corp.corp.example.":
			m = answerA(r, 300, "10.9.9.9")
		case strings.HasSuffix(name, "corp.example.") || name == "missing.example.":
			m.Answer, m.Rcode = nil, dns.RcodeNameError
			m.Ns = []dns.RR{mustRR("example. 60 IN SOA ns.example. h.example. 1 2 3 4 60")}
		case r.Question[0].Qtype == dns.TypeAAAA:
			m.Answer = nil
			m.Ns = []dns.RR{mustRR("example. 60 IN SOA ns.example. h.example. 1 2 3 4 60")}
		case name == "broken.example.":
			m.Answer, m.Rcode = nil, dns.RcodeServerFailure
		}
		_ = w.WriteMsg(m)
	})
	h := start(t, u, `
forward: {upstreams: ["%U"]}
searchPath: {enabled: true, domains: [corp.example]}
`)
	for range 2 { // then from the cache
		for _, c := range []struct {
			why, name string
			typ       uint16
			want      []string
		}{
			{"the name itself", "WWW.example.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"WWW.example.shop.svc.cluster.local. 5 IN CNAME www.example.", "www.example. 300 IN A 192.0.2.1"}},
			{"the name itself, no such type", "www.example.shop.svc.cluster.local", dns.TypeAAAA, []string{"NOERROR",
				"www.example.shop.svc.cluster.local. 5 IN CNAME www.example."}},
			{"another namespace", "cart.shop.other.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"cart.shop.other.svc.cluster.local. 5 IN CNAME cart.shop.svc.cluster.local.", "cart.shop.svc.cluster.local. 5 IN A 10.96.0.10"}},
			{"with svc", "cart.shop.svc.other.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"cart.shop.svc.cluster.local. 5 IN A 10.96.0.10", "cart.shop.svc.other.svc.cluster.local. 5 IN CNAME cart.shop.svc.cluster.local."}},
			{"a search domain", "in.corp.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"in.corp.corp.example. 300 IN A 10.9.9.9", "in.corp.shop.svc.cluster.local. 5 IN CNAME in.corp.corp.example."}},
			{"nowhere", "missing.example.shop.svc.cluster.local", dns.TypeA, []string{"NXDOMAIN"}},
			{"upstream can't tell", "broken.example.shop.svc.cluster.local", dns.TypeA, []string{"SERVFAIL"}},
			{"one label: the Service may come yet", "web.shop.svc.cluster.local", dns.TypeA, []string{"NXDOMAIN"}},
			{"an endpoint of a Service that is there", "gone-0.cart.shop.svc.cluster.local", dns.TypeA, []string{"NXDOMAIN"}},
			{"no such namespace", "www.example.none.svc.cluster.local", dns.TypeA, []string{"NXDOMAIN"}},
			{"not under svc", "www.example.cluster.local", dns.TypeA, []string{"NXDOMAIN"}},
		} {
			m := h.ask(t, "udp", question(c.name, c.typ))
			if got := answers(m); !slices.Equal(got, c.want) {
				t.Errorf("%s: %s: got %q, want %q", c.why, c.name, got, c.want)
			}
		}
	}
}

func mustRR(s string) dns.RR {
	rr, err := dns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return rr
}

func TestReloadLosesNothing(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var asked atomic.Int64
	for i := range 4 {
		wg.Go(func() {
			c := &dns.Client{Net: []string{"udp", "tcp"}[i%2], Timeout: 10 * time.Second}
			conn, err := c.Dial(h.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				name := []string{"cart.shop.svc.cluster.local", fmt.Sprintf("x%d-%d.example.com", i, j)}[j%2]
				r, _, err := c.ExchangeWithConn(question(name, dns.TypeA), conn)
				if err != nil || len(r.Answer) != 1 {
					t.Errorf("%s: %v %v", name, r, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := range 50 {
		before := asked.Load()
		cfg := parse(t, fmt.Sprintf("{ttl: %ds, forward: {upstreams: [%q]}, logQueries: %v, cache: {entries: %d}}", i+1, u.addr, i%2 == 0, 1000+i%2))
		zone, err := h.zone.Rebuild(cfg.Zone())
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Apply(cfg, zone); err != nil {
			t.Fatal(err)
		}
		h.zone = zone
		eventually(t, "queries go on", func() bool { return asked.Load() > before+4 || t.Failed() })
	}
	close(stop)
	wg.Wait()
	m := h.ask(t, "udp", question("cart.shop.svc.cluster.local", dns.TypeA))
	expect(t, m, "NOERROR", "cart.shop.svc.cluster.local. 50 IN A 10.96.0.10")
}

func TestRateLimit(t *testing.T) {
	h := start(t, newUpstream(t), "{forward: {upstreams: [\"%U\"]}, limits: {queriesPerSec: 5}}")
	c, err := net.Dial("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pkt, _ := question("cart.shop.svc.cluster.local", dns.TypeA).Pack()
	for range 40 {
		if _, err := c.Write(pkt); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "queries over the rate are counted", func() bool { return h.stats.rateLimited.Load() >= 25 })
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	full, cut := 0, 0
	for {
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if err != nil {
			break
		}
		m := new(dns.Msg)
		if err := m.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if m.Truncated {
			cut++
		} else {
			full++
		}
	}
	if full < 10 || full > 15 || cut < 10 || full+cut >= 40 {
		t.Errorf("of 40 queries at once: %d answered, %d told to come by TCP", full, cut)
	}
	// TCP shows that the address is the client's own.
	for range 20 {
		if m := h.ask(t, "tcp", question("cart.shop.svc.cluster.local", dns.TypeA)); len(m.Answer) != 1 {
			t.Error("TCP is limited, too")
		}
	}
}

func TestExternalZonesRefuseTheRest(t *testing.T) {
	cfg := parse(t, "external: {zones: [example.com], queriesPerSec: -1}")
	s, err := New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	z, err := dnszone.New(cfg.Zone())
	if err != nil {
		t.Fatal(err)
	}
	x, err := dnszone.NewExternal(z, cfg.ExternalZones())
	if err != nil {
		t.Fatal(err)
	}
	x.Update(&model.Delta{Complete: true, Services: map[model.Name]*model.Service{{Namespace: "a", Name: "b"}: {
		Meta: model.Meta{Name: model.Name{Namespace: "a", Name: "b"}, Annotations: map[string]string{"external-dns.alpha.kubernetes.io/hostname": "www.example.com"}},
		Type: model.LoadBalancer, Ingress: []model.LoadBalancerIngress{{IP: netip.MustParseAddr("192.0.2.7")}}}}})
	s.ApplyExternal(cfg, x)
	l, err := s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"), 1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- l.Serve() }()
	h := &harness{Server: s, addr: l.Addr().String()}
	for _, network := range []string{"udp", "tcp"} {
		expect(t, h.ask(t, network, question("www.example.com", dns.TypeA)), "NOERROR", "www.example.com. 300 IN A 192.0.2.7")
		expect(t, h.ask(t, network, question("none.example.com", dns.TypeA)), "NXDOMAIN")
		expect(t, h.ask(t, network, question("cart.shop.svc.cluster.local", dns.TypeA)), "REFUSED")
		expect(t, h.ask(t, network, question("example.net", dns.TypeA)), "REFUSED")
		expect(t, h.ask(t, network, question("example.net", dns.TypeANY)), "REFUSED")
		expect(t, h.ask(t, network, question("www.example.com", dns.TypeANY)), "NOERROR", `www.example.com. 3600 IN HINFO "RFC8482" ""`)
	}
	l.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.Close()
	l.Close()
}

// A server that listens on all addresses answers from the one that it was asked at.
func TestAnswersComeFromWhereTheQuestionWent(t *testing.T) {
	h := start(t, newUpstream(t), "")
	for _, c := range []struct{ listen, at string }{{"0.0.0.0:0", "127.0.0.77"}, {"[::]:0", "::1"}} {
		l, err := h.Listen(context.Background(), netip.MustParseAddrPort(c.listen), 1)
		if err != nil {
			if c.at == "::1" {
				t.Logf("no IPv6 here: %v", err)
				continue
			}
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- l.Serve() }()
		// A connected socket takes nothing from elsewhere.
		at := &harness{addr: netip.AddrPortFrom(netip.MustParseAddr(c.at), l.Addr().Port()).String()}
		for _, name := range []string{"cart.shop.svc.cluster.local", "www.example.com", "www.example.com"} {
			if m := at.ask(t, "udp", question(name, dns.TypeA)); len(m.Answer) != 1 {
				t.Errorf("%s at %s: %v", name, c.at, answers(m))
			}
		}
		l.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.Close()
	}
}

// A reader pauses only between bursts that are neither few packets nor all that it can take.
func TestGather(t *testing.T) {
	for n, want := range map[int]bool{0: false, 1: false, gatherFrom - 1: false, gatherFrom: true, batch - 1: true, batch: false} {
		if got := (&burst{last: n}).gathers(); got != want {
			t.Errorf("after %d packets: %v", n, got)
		}
	}
}

// Many questions of one client at once: each is answered, whatever left together.
func TestBurst(t *testing.T) {
	h := start(t, newUpstream(t), "")
	c, err := net.Dial("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const rounds, size = 20, 50
	names := []string{"cart.shop.svc.cluster.local", "web.other.svc.cluster.local", "none.shop.svc.cluster.local", "big.shop.svc.cluster.local", "10-1-3-1.big.shop.svc.cluster.local"}
	for range rounds {
		want := make(map[uint16]string)
		for i := range size {
			m := question(names[i%len(names)], []uint16{dns.TypeA, dns.TypeAAAA}[i%2])
			m.Id = uint16(i)
			want[m.Id] = m.Question[0].String()
			pkt, _ := m.Pack()
			if _, err := c.Write(pkt); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for range size {
			buf := make([]byte, 4096)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%d questions not answered: %v", len(want), err)
			}
			m := new(dns.Msg)
			if err := m.Unpack(buf[:n]); err != nil {
				t.Fatal(err)
			}
			if want[m.Id] != m.Question[0].String() {
				t.Fatalf("answer %d is about %s, want %s", m.Id, m.Question[0].String(), want[m.Id])
			}
			delete(want, m.Id)
		}
	}
}
