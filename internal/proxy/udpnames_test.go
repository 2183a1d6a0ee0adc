// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is a server of DNS that knows one name, whatever it is asked for.
type nameServer struct {
	addr string

	mu    sync.Mutex
	code  dnsmessage.RCode
	ttl   uint32
	addrs []netip.Addr // IPv4
	asked int          // for IPv4
}

func newNameServer(t *testing.T, ttl uint32, addrs ...string) *nameServer {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	s := &nameServer{addr: pc.LocalAddr().String(), ttl: ttl}
	s.say(dnsmessage.RCodeSuccess, addrs...)
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = pc.WriteTo(s.answer(b[:n]), from)
			}
		}
	}()
	return s
}

// say sets what is answered from now on.
func (s *nameServer) say(code dnsmessage.RCode, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.addrs = code, nil
	for _, a := range addrs {
		s.addrs = append(s.addrs, netip.MustParseAddr(a))
	}
}

func (s *nameServer) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *nameServer) answer(query []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RCode, m.Additionals = true, s.code, nil
	if q.Type == dnsmessage.TypeA {
		s.asked++
		for _, a := range s.addrs {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: s.ttl},
				Body: &dnsmessage.AResource{A: a.As4()}})
		}
	}
	out, _ := m.Pack()
	return out
}

func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.addr)
	}}
}

// A client that never stops sending follows the name of its endpoint: when what the name leads to has changed, once the
// records' time is over; and as long as nobody can tell, to where it led last.
func TestUDPSessionsFollowNames(t *testing.T) {
	t.Parallel()
	port := ""
	until(t, "a port that is free at both addresses", func() bool {
		addr, _ := datagrams(t, "one")
		_, port, _ = net.SplitHostPort(addr)
		_, err := datagramsAt(t, "127.0.0.2:"+port, "two")
		return err == nil
	})
	dns := newNameServer(t, 1, "127.0.0.1")
	r := start(t, udp(net.JoinHostPort("backend.example.com.", port)), Config{Resolver: dns.resolver(), UDPIdle: time.Hour})
	c, other := r.talker(), r.talker()
	c.from("one")
	other.from("one")
	sockets := func() (all []string) {
		r.srv.tables.mu.Lock()
		defer r.srv.tables.mu.Unlock()
		for _, p := range r.srv.tables.ports {
			p.sessions.mu.Lock()
			defer p.sessions.mu.Unlock()
			for _, u := range p.sessions.all {
				all = append(all, u.conn.LocalAddr().String())
			}
		}
		slices.Sort(all)
		return all
	}
	was := sockets()
	stay := func(what string) {
		t.Helper()
		asked := dns.questions()
		until(t, "the name is looked up again: "+what, func() bool { return dns.questions() >= asked+2 })
		if got := c.say(15 * time.Second); got != "one" || !slices.Equal(sockets(), was) {
			t.Errorf("%s: %q answers; sockets %v, were %v", what, got, sockets(), was)
		}
	}
	stay("nothing has changed")
	dns.say(dnsmessage.RCodeServerFailure)
	stay("nobody can tell")
	dns.say(dnsmessage.RCodeSuccess, "127.0.0.2", "127.0.0.1")
	stay("there is another address besides")
	dns.say(dnsmessage.RCodeSuccess, "127.0.0.2")
	c.from("two")
	other.from("two")
	dns.say(dnsmessage.RCodeNameError)
	until(t, "the sessions are over", func() bool { return len(sockets()) == 0 })
	e := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
	until(t, "none is counted", func() bool { return e.inflight.Load() == 0 })
	dns.say(dnsmessage.RCodeSuccess, "127.0.0.1")
	c.from("one")

	// Without sessions nobody asks.
	r.update.Routes = nil
	r.apply()
	until(t, "no name is followed", func() bool {
		_ = c.say(10 * time.Millisecond)
		_ = other.say(10 * time.Millisecond)
		r.srv.tables.mu.Lock()
		defer r.srv.tables.mu.Unlock()
		for _, p := range r.srv.tables.ports {
			p.sessions.mu.Lock()
			defer p.sessions.mu.Unlock()
			if len(p.sessions.names) > 0 {
				return false
			}
		}
		return true
	})
}

// Many clients of a name ask for it once.
func TestUDPNamesAreLookedUpOnce(t *testing.T) {
	addr, _ := datagrams(t, "one")
	_, port, _ := net.SplitHostPort(addr)
	dns := newNameServer(t, 3600, "127.0.0.1")
	r := start(t, udp(net.JoinHostPort("backend.example.com.", port)), Config{Resolver: dns.resolver()})
	for range 20 {
		if got := r.talker().say(15 * time.Second); got != "one" {
			t.Fatalf("%q answers", got)
		}
	}
	if n := dns.questions(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// The time to live of a name is the least of the records that led to its addresses, over datagrams and over streams.
func TestLeastTTL(t *testing.T) {
	name := dnsmessage.MustNewName("a.example.com.")
	message := func(ttls ...uint32) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		for i, ttl := range ttls {
			h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}
			if i == 0 {
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: name}})
			} else {
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{}})
			}
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var least leastTTL
	if d := least.wait(); d != untoldTTL {
		t.Errorf("no record: %v", d)
	}
	least.see(message())
	least.see([]byte("no message"))
	least.see(message(100, 90))
	least.see(message(95))
	if d := least.wait(); d != 90*time.Second {
		t.Errorf("%v", d)
	}
	a, b := net.Pipe()
	defer b.Close()
	stream := watched(a, &least)
	if _, ok := stream.(net.PacketConn); ok {
		t.Error("a stream is taken for datagrams")
	}
	go func() {
		for _, m := range [][]byte{message(80), message(70, 75)} {
			m = append([]byte{byte(len(m) >> 8), byte(len(m))}, m...)
			for _, piece := range m { // byte by byte
				_, _ = b.Write([]byte{piece})
			}
		}
		b.Close()
	}()
	buf := make([]byte, 100)
	for {
		if _, err := stream.Read(buf); err != nil {
			break
		}
	}
	if d := least.wait(); d != 70*time.Second {
		t.Errorf("%v", d)
	}
	least.see(message(0))
	if d := least.wait(); d != leastWait {
		t.Errorf("%v", d)
	}
}

// A name and its port, or what is wrong.
func TestUDPNames(t *testing.T) {
	for address, ok := range map[string]bool{"a.example.com:53": true, "a.example.com": false, "a.example.com:x": false, "a.example.com:70000": false, ":53": false} {
		if _, err := newUDPName(address); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	r := start(t, udp("a.example.com:http"))
	if got := r.talker().say(100 * time.Millisecond); got != "" {
		t.Errorf("%q answers", got)
	}
}
