// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// datagrams is an endpoint that answers each datagram, but for empty ones, with its name and what it got.
func datagrams(t *testing.T, name string) (addr string, stop func()) {
	t.Helper()
	pc, err := datagramsAt(t, "127.0.0.1:0", name)
	if err != nil {
		t.Fatal(err)
	}
	return pc.LocalAddr().String(), func() { pc.Close() }
}

// datagramsAt is such an endpoint at an address of the test's choice, which another socket may have already.
func datagramsAt(t *testing.T, addr, name string) (net.PacketConn, error) {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n > 0 {
				_, _ = pc.WriteTo([]byte(name+" "+string(b[:n])), from)
			}
		}
	}()
	return pc, nil
}

// udp is simple's update for datagrams.
func udp(endpoints ...string) route.Update {
	u := simple(endpoints...)
	u.Listeners[0].Protocol = route.UDP
	u.Routes[0].Kind = route.UDPRoute
	return u
}

// talker is a client that sends from one port, and never stops for as long as sessions last.
type talker struct {
	t *testing.T
	net.Conn
	n int
}

func (r *rig) talker() *talker {
	r.t.Helper()
	c, err := net.Dial("udp", r.addr(true))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &talker{t: r.t, Conn: c}
}

// say sends a datagram and tells who answers it; "" is nobody, within the time given.
func (c *talker) say(wait time.Duration) string {
	c.t.Helper()
	c.n++
	text := fmt.Sprintf("%d.", c.n)
	_, _ = c.Write([]byte(text))
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 100)
	for {
		n, err := c.Read(b)
		if err != nil {
			return ""
		}
		if name, ok := strings.CutSuffix(string(b[:n]), " "+text); ok {
			return name
		}
	}
}

// from sends datagrams until the one who is meant answers.
func (c *talker) from(name string) {
	c.t.Helper()
	until(c.t, "an answer from "+name, func() bool { return c.say(time.Second) == name })
}

// A client that never stops sending from one port is a session that never ends by itself. Its datagrams follow the
// tables all the same: to another endpoint when its own is no longer one, to another backend, to nobody.
func TestUDPSessionsFollowTheTables(t *testing.T) {
	one, _ := datagrams(t, "one")
	two, _ := datagrams(t, "two")
	r := start(t, udp(one))
	c := r.talker()
	c.from("one")

	set := func(e ...route.Endpoint) {
		t.Helper()
		r.update.Endpoints[0].Endpoints = e
		r.apply()
	}
	client := func() string { // as the endpoint sees it
		r.srv.tables.mu.Lock()
		defer r.srv.tables.mu.Unlock()
		for _, p := range r.srv.tables.ports {
			p.sessions.mu.Lock()
			defer p.sessions.mu.Unlock()
			for _, u := range p.sessions.all {
				return u.conn.LocalAddr().String()
			}
		}
		return ""
	}
	was := client()
	set(route.Endpoint{Address: one}, route.Endpoint{Address: two})
	r.update.Routes[0].Rules[0].Name = "renamed"
	r.update.Backends[0].Protocol = route.Raw
	r.apply()
	if got := c.say(10 * time.Second); got != "one" || client() != was {
		t.Errorf("an unrelated change moves the session: %q answers", got)
	}
	set(route.Endpoint{Address: one, Terminating: true})
	if got := c.say(10 * time.Second); got != "one" || client() != was {
		t.Errorf("there is no other endpoint than the one that ends; %q answers", got)
	}
	set(route.Endpoint{Address: one, Terminating: true}, route.Endpoint{Address: two})
	if got := c.say(10 * time.Second); got != "two" {
		t.Errorf("a session is left to an endpoint that ends: %q answers", got)
	}
	set(route.Endpoint{Address: two})
	if got := c.say(10 * time.Second); got != "two" {
		t.Errorf("the endpoint is gone; %q answers", got)
	}

	r.update.Backends = append(r.update.Backends, route.Backend{Key: "other", Endpoints: "other"})
	r.update.Endpoints = append(r.update.Endpoints, route.EndpointSet{Key: "other", Endpoints: []route.Endpoint{{Address: one}}})
	r.update.Routes[0].Rules = []route.Rule{{Backends: []route.WeightedBackend{{Backend: "other", Weight: 1}, {Backend: "b", Weight: 0}}}}
	r.apply()
	if got := c.say(10 * time.Second); got != "one" {
		t.Errorf("the route points to one; %q answers", got)
	}

	routes := r.update.Routes
	r.update.Routes = nil
	r.apply()
	if got := c.say(200 * time.Millisecond); got != "" {
		t.Errorf("the route is gone; %q answers", got)
	}
	r.update.Routes = routes
	r.apply()
	c.from("one")

	r.update.Policies = []route.Policy{{Key: "p", Sources: &route.Sources{Deny: prefixes("127.0.0.0/8")}}}
	r.update.Routes[0].Policies = []string{"p"}
	r.apply()
	if got := c.say(200 * time.Millisecond); got != "" {
		t.Errorf("a policy keeps the client out; %q answers", got)
	}
	for _, cell := range r.srv.tables.backends {
		for _, e := range cell.Load().endpoints.Load().all {
			until(t, "no session is left", func() bool { return e.inflight.Load() == 0 })
		}
	}
}

// What an endpoint is about to answer when its client's datagrams go elsewhere still gets there.
func TestUDPLateAnswers(t *testing.T) {
	slow, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	two, _ := datagrams(t, "two")
	r := start(t, udp(slow.LocalAddr().String()))
	c := r.talker()
	_, _ = c.Write([]byte("question"))
	b := make([]byte, 100)
	_ = slow.SetReadDeadline(time.Now().Add(15 * time.Second))
	_, from, err := slow.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	old := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: two}}
	r.apply()
	c.from("two")
	_, _ = slow.WriteTo([]byte("answer"), from)
	_ = c.SetReadDeadline(time.Now().Add(15 * time.Second))
	if n, err := c.Read(b); err != nil || string(b[:n]) != "answer" {
		t.Errorf("%q, %v", b[:n], err)
	}
	until(t, "the old session is over", func() bool { return old.inflight.Load() == 0 })
	c.from("two")
}

// What an endpoint sends unasked ends with the route, too.
func TestUDPStreamEndsWithItsRoute(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	r := start(t, udp(pc.LocalAddr().String()))
	c := r.talker()
	_, _ = c.Write([]byte("subscribe"))
	b := make([]byte, 100)
	_ = pc.SetReadDeadline(time.Now().Add(15 * time.Second))
	_, from, err := pc.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	e := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
	r.update.Routes = nil
	r.apply()
	until(t, "the session is over", func() bool {
		_, _ = pc.WriteTo([]byte("news"), from)
		return e.inflight.Load() == 0
	})
}

// An endpoint that refuses datagrams is found out: the client's next ones go to another.
func TestUDPEndpointRefuses(t *testing.T) {
	one, stop := datagrams(t, "one")
	two, _ := datagrams(t, "two")
	r := start(t, udp(one, two))
	clients := make([]*talker, 16)
	for i := range clients {
		clients[i] = r.talker()
		if clients[i].say(10*time.Second) == "" {
			t.Fatal("no answer")
		}
	}
	stop()
	for _, c := range clients {
		c.from("two")
	}
}

// A name that takes its time to be resolved holds up nobody else, and what was sent meanwhile is not lost.
func TestUDPNamesDoNotStall(t *testing.T) {
	one, _ := datagrams(t, "one")
	_, port, _ := net.SplitHostPort(one)
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		asked <- struct{}{}
		select {
		case <-answer:
		case <-ctx.Done():
		}
		return nil, errors.New("no server")
	}}
	u := udp(net.JoinHostPort("backend.example.com", port))
	r := start(t, u, Config{Resolver: resolver})
	slow := r.talker()
	_, _ = slow.Write([]byte("x"))
	<-asked
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: one}}
	r.apply()
	if got := r.talker().say(10 * time.Second); got != "one" {
		t.Errorf("while a name is looked up for one client, another has the answer of %q", got)
	}
	close(answer)
	slow.from("one")

	// localhost needs no server.
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: net.JoinHostPort("localhost", port)}}
	r.apply()
	if got := r.talker().say(10 * time.Second); got != "one" {
		t.Errorf("the first datagram to a name is answered by %q", got)
	}
}

// Clients that the endpoint does not answer, such as forged ones, keep no new client out, and cost none its session that has
// been answered. Those that have been are kept out by nobody.
func TestUDPSessionsWithoutAnswers(t *testing.T) {
	addr, _ := datagrams(t, "one") // which does not answer those that say nothing
	r := start(t, udp(addr))
	s := r.sessions()
	const most = 4
	s.mu.Lock()
	s.most = most
	s.mu.Unlock()
	clients := []*talker{r.talker()}
	clients[0].from("one")
	session := func(c *talker) *udpSession {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.all[netip.MustParseAddrPort(c.LocalAddr().String())]
	}
	was := session(clients[0])
	for len(clients) < most {
		for range 5 * most {
			_, _ = r.talker().Write(nil)
		}
		c := r.talker()
		if got := c.say(10 * time.Second); got != "one" {
			t.Fatalf("client %d gets no answer", len(clients))
		}
		clients = append(clients, c)
	}
	if session(clients[0]) != was {
		t.Error("a session was ended though it had been answered")
	}
	if got := r.talker().say(200 * time.Millisecond); got != "" || r.srv.stats.overLimit.Load() == 0 {
		t.Errorf("there are more sessions than may be: %q answers", got)
	}
	for i, c := range clients {
		if c.say(10*time.Second) != "one" {
			t.Errorf("client %d gets no answer any more", i)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) != most || s.unanswered.Len() != 0 || r.only().inflight.Load() != most {
		t.Errorf("%d sessions, %d not answered, %d at the endpoint", len(s.all), s.unanswered.Len(), r.only().inflight.Load())
	}
}

// sessions are those of the (only) port of UDP.
func (r *rig) sessions() *udpSessions {
	r.srv.tables.mu.Lock()
	defer r.srv.tables.mu.Unlock()
	for _, p := range r.srv.tables.ports {
		return &p.sessions
	}
	return nil
}

// A session that makes room may be answered just then: neither waits for the other.
func TestUDPRoomWhileAnswersCome(t *testing.T) {
	addr, _ := datagrams(t, "one")
	r := start(t, udp(addr), Config{UDPIdle: 20 * time.Millisecond})
	s := r.sessions()
	s.mu.Lock()
	s.most = 8
	s.mu.Unlock()
	over := make(chan struct{})
	var talking sync.WaitGroup
	for range 4 {
		var clients []*talker
		for range 64 {
			clients = append(clients, r.talker())
		}
		talking.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
					_, _ = clients[i%len(clients)].Write([]byte("x"))
				}
			}
		})
	}
	for range 200 {
		time.Sleep(10 * time.Millisecond)
		until(t, "the port's lock is free", func() bool {
			free := s.mu.TryLock()
			if free {
				s.mu.Unlock()
			}
			return free
		})
	}
	close(over)
	talking.Wait()
}
