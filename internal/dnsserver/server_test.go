// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// upstreamFor is a resolver that answers by a function, over UDP and TCP.
type fakeUpstream struct {
	addr    string
	asked   atomic.Int64
	handler atomic.Pointer[dns.HandlerFunc]
}

func (u *fakeUpstream) set(f dns.HandlerFunc) { u.handler.Store(&f) }

// bothProtocols takes one port for UDP and TCP. A port that is free for the one may be another process's for the other,
// so it looks on until it has one that is free for both.
func bothProtocols(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, l
		}
		_ = pc.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// newUpstream answers A questions with 192.0.2.1 (TTL 300) until told otherwise.
func newUpstream(t testing.TB) *fakeUpstream {
	t.Helper()
	u := &fakeUpstream{}
	u.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 300, "192.0.2.1")) })
	pc, l := bothProtocols(t)
	u.addr = pc.LocalAddr().String()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if !strings.Contains(r.Question[0].Name, "weft-loop") {
			u.asked.Add(1)
		}
		(*u.handler.Load())(w, r)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

func answerA(r *dns.Msg, ttl uint32, addrs ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(r)
	m.RecursionAvailable = true
	m.Compress = true
	for _, a := range addrs {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.ParseIP(a)})
	}
	return m
}

// harness is a server that listens on loopback.
type harness struct {
	*Server
	addr string
	zone *dnszone.Zone
}

func testDelta() *model.Delta {
	svc := func(ns, name string, ip string) *model.Service {
		return &model.Service{Meta: model.Meta{Name: model.Name{Namespace: ns, Name: name}}, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)},
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
	}
	d := &model.Delta{Complete: true, Since: time.Unix(1700000000, 0), Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for _, s := range []*model.Service{svc("shop", "cart", "10.96.0.10"), svc("other", "web", "fd00::10"),
		{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "out"}}, Type: model.ExternalName, ExternalName: "ext.example.com"}} {
		d.Services[s.Name] = s
	}
	big := &model.Service{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "big"}}, Headless: true}
	slice := &model.EndpointSlice{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "big-1"}}, Service: "big"}
	for i := range 200 {
		slice.Endpoints = append(slice.Endpoints, model.Endpoint{Ready: true, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i), 1})}})
	}
	two := &model.Service{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "two"}}, Headless: true}
	d.Services[two.Name] = two
	d.EndpointSlices[model.Name{Namespace: "shop", Name: "two-1"}] = &model.EndpointSlice{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "two-1"}}, Service: "two",
		Endpoints: []model.Endpoint{{Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("10.2.0.1")}}, {Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("10.2.0.2")}}}}
	d.Services[big.Name] = big
	d.EndpointSlices[slice.Name] = slice
	return d
}

func parse(t testing.TB, yaml string) *Config {
	t.Helper()
	c, err := ParseConfig([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start serves a configuration; %U in it is the upstream's address.
func start(t testing.TB, u *fakeUpstream, yaml string) *harness {
	t.Helper()
	if yaml == "" {
		yaml = "forward: {upstreams: [\"%U\"]}"
	}
	if u != nil {
		yaml = strings.ReplaceAll(yaml, "%U", u.addr)
	}
	cfg := parse(t, yaml)
	s, err := New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	zone, err := dnszone.New(cfg.Zone())
	if err != nil {
		t.Fatal(err)
	}
	zone.Update(testDelta())
	if err := s.Apply(cfg, zone); err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"), 2)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Serve() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		s.Close()
		l.Close()
	})
	return &harness{Server: s, addr: l.Addr().String(), zone: zone}
}

func question(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg)
	return m.SetQuestion(dns.Fqdn(name), typ)
}

// ask sends a message and returns the answer.
func (h *harness) ask(t testing.TB, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
	r, _, err := c.Exchange(m, h.addr)
	if err != nil {
		t.Fatalf("%s: %v", m.Question[0].Name, err)
	}
	r.Compress = true // for its length
	return r
}

func answers(m *dns.Msg) []string {
	out := []string{dns.RcodeToString[m.Rcode]}
	var lines []string
	for _, rr := range m.Answer {
		lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(lines)
	return append(out, lines...)
}

func expect(t testing.TB, m *dns.Msg, want ...string) {
	t.Helper()
	if got := answers(m); !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", m.Question[0].Name, got, want)
	}
}

func TestClusterNames(t *testing.T) {
	h := start(t, newUpstream(t), "")
	for _, network := range []string{"udp", "tcp"} {
		m := h.ask(t, network, question("Cart.shop.svc.cluster.LOCAL", dns.TypeA))
		expect(t, m, "NOERROR", "Cart.shop.svc.cluster.LOCAL. 5 IN A 10.96.0.10")
		if !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired {
			t.Errorf("flags: %v", m.MsgHdr)
		}
		expect(t, h.ask(t, network, question("web.other.svc.cluster.local", dns.TypeAAAA)), "NOERROR", "web.other.svc.cluster.local. 5 IN AAAA fd00::10")
		m = h.ask(t, network, question("none.shop.svc.cluster.local", dns.TypeA))
		expect(t, m, "NXDOMAIN")
		if len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA {
			t.Errorf("NXDOMAIN without a SOA: %v", m.Ns)
		}
		expect(t, h.ask(t, network, question("_http._tcp.cart.shop.svc.cluster.local", dns.TypeSRV)), "NOERROR",
			"_http._tcp.cart.shop.svc.cluster.local. 5 IN SRV 0 100 80 cart.shop.svc.cluster.local.")
	}
}

func TestForwardAndCache(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	for i := range 3 {
		for _, network := range []string{"udp", "tcp"} {
			m := h.ask(t, network, question("Www.example.com", dns.TypeA))
			if len(m.Answer) != 1 || m.Answer[0].Header().Name != "Www.example.com." || m.Authoritative {
				t.Fatalf("round %d: %v", i, m)
			}
		}
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times, want 1", n)
	}
	// What the DO bit asks for is another answer.
	m := question("www.example.com", dns.TypeA)
	m.SetEdns0(1232, true)
	if r := h.ask(t, "udp", m); r.IsEdns0() == nil || !r.IsEdns0().Do() {
		t.Errorf("DO is not passed on: %v", r)
	}
	if n := u.asked.Load(); n != 2 {
		t.Errorf("the upstream was asked %d times, want 2", n)
	}
}

func TestTruncation(t *testing.T) {
	h := start(t, newUpstream(t), "")
	m := h.ask(t, "udp", question("big.shop.svc.cluster.local", dns.TypeA))
	if !m.Truncated || len(m.Answer) == 0 || m.Len() > 512 {
		t.Errorf("512 octets: TC %v, %d records, %d octets", m.Truncated, len(m.Answer), m.Len())
	}
	q := question("big.shop.svc.cluster.local", dns.TypeA)
	q.SetEdns0(4096, false)
	if m := h.ask(t, "udp", q); !m.Truncated || m.Len() > 1232 {
		t.Errorf("more than udpSize: TC %v, %d octets", m.Truncated, m.Len())
	}
	if m := h.ask(t, "tcp", q); m.Truncated || len(m.Answer) != 200 {
		t.Errorf("over TCP: TC %v, %d records, want all 200", m.Truncated, len(m.Answer))
	}
}

func TestExternalNameIsFollowed(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	for range 2 { // from upstream, then from the cache
		expect(t, h.ask(t, "udp", question("OUT.shop.svc.cluster.local", dns.TypeA)), "NOERROR",
			"OUT.shop.svc.cluster.local. 5 IN CNAME ext.example.com.", "ext.example.com. 300 IN A 192.0.2.1")
	}
}

func TestManyAtOnce(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			network := []string{"udp", "tcp"}[i%2]
			c := &dns.Client{Net: network, Timeout: 10 * time.Second}
			conn, err := c.Dial(h.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for j := range 200 {
				name := fmt.Sprintf("n%d.example.com", j)
				want := "192.0.2.1"
				if j%2 == 0 {
					name, want = "cart.shop.svc.cluster.local", "10.96.0.10"
				}
				r, _, err := c.ExchangeWithConn(question(name, dns.TypeA), conn)
				if err != nil {
					t.Errorf("%s over %s: %v", name, network, err)
					return
				}
				if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != want {
					t.Errorf("%s: %v", name, answers(r))
				}
			}
		})
	}
	// The cluster changes while it is asked.
	for i := range 200 {
		d := testDelta()
		d.Services[model.Name{Namespace: "shop", Name: fmt.Sprint("new", i)}] = &model.Service{
			Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: fmt.Sprint("new", i)}}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.1.1")}}
		h.zone.Update(d)
	}
	wg.Wait()
	if n := u.asked.Load(); n != 100 {
		t.Errorf("100 names, asked by 8 clients at once, went upstream %d times", n)
	}
}

// A port that the kernel chooses is nobody else's, though several sockets of one listener share it: the kernel gives sockets
// that may share one a port that others of theirs have.
func TestAnyPortIsOnesOwn(t *testing.T) {
	s, err := New(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	const n = 500
	seen := map[netip.AddrPort]bool{}
	for range n {
		l, err := s.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"), 2)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		seen[l.Addr()] = true
	}
	if len(seen) != n {
		t.Errorf("%d listeners have %d ports", n, len(seen))
	}
}
