// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// tcpRoute is simple's update for TCP.
func tcpRoute(endpoints ...string) route.Update {
	u := simple(endpoints...)
	u.Listeners[0].Protocol, u.Routes[0].Kind, u.Backends[0].Protocol = route.TCP, route.TCPRoute, route.Raw
	return u
}

// calls is an endpoint that begins each connection with its name, then says back what it hears until its end.
func calls(t *testing.T, name string) string {
	return talk(t, func(c net.Conn) {
		defer c.Close()
		_, _ = io.WriteString(c, name+"\n")
		_, _ = io.Copy(c, c)
	})
}

// line reads up to the end of a line.
func (c *conn) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSuffix(s, "\n")
}

// refuser is an address that refuses connections.
func refuser(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Many clients send and receive at once, in pieces of all sizes, some of them slow; nothing is lost or mixed up, an end
// of one direction leaves the other open, and nothing is left when all is over.
func TestRelayedTCP(t *testing.T) {
	r := start(t, tcpRoute(talk(t, func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	})))
	if len(r.srv.relays) == 0 {
		t.Fatal("no relay is at work")
	}
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			c, err := net.Dial("tcp", r.tcp())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(120 * time.Second))
			var sent, got [32]byte
			var both sync.WaitGroup
			both.Go(func() {
				h := sha256.New()
				b := bytes.Repeat([]byte(strconv.Itoa(i)+","), 40000)
				for range 20 + 10*(i%3) {
					p := b[:1+rand.IntN(len(b))]
					if i%4 == 0 {
						p = p[:1+rand.IntN(min(len(p), 100))]
					}
					h.Write(p)
					if _, err := c.Write(p); err != nil {
						t.Error(err)
						return
					}
				}
				sent = [32]byte(h.Sum(nil))
				if err := c.(*net.TCPConn).CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			h := sha256.New()
			b := make([]byte, 1+i*3000)
			for {
				n, err := c.Read(b)
				h.Write(b[:n])
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Error(err)
					break
				}
				if i%5 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			both.Wait()
			if got = [32]byte(h.Sum(nil)); got != sent {
				t.Errorf("%d: what came back is not what was sent", i)
			}
		})
	}
	all.Wait()
	until(t, "all is over", func() bool { return r.srv.conns.Load() == 0 })
	e := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
	if n := e.inflight.Load(); n != 0 {
		t.Errorf("%d connections are counted at the endpoint", n)
	}
	for _, relay := range r.srv.relays {
		relay.order(func() {
			if len(relay.connecting) > 0 || relay.load.Load() != 0 || len(relay.free) != len(relay.pairs) || len(relay.again) > 0 {
				t.Errorf("left: %d connecting, %d of %d slots, %d queued", len(relay.connecting), len(relay.pairs)-len(relay.free), len(relay.pairs), len(relay.again))
			}
			if len(relay.pipes) > sparePipe {
				t.Errorf("%d pipes", len(relay.pipes))
			}
		})
	}
}

// A connection goes to another endpoint when one refuses it or says nothing, and is closed when all do.
func TestRelayTriesEndpoints(t *testing.T) {
	r := start(t, tcpRoute(refuser(t), refuser(t), calls(t, "one")))
	for range 10 {
		if got := r.dial().line(); got != "one" {
			t.Fatalf("%q answers", got)
		}
	}
	r = start(t, tcpRoute(refuser(t), refuser(t)))
	r.dial().closed()
	r = start(t, tcpRoute())
	r.dial().closed()
	until(t, "all is over", func() bool { return r.srv.conns.Load() == 0 })
	if n := r.srv.stats.streamsFailed.Load(); n != 1 {
		t.Errorf("%d streams failed", n)
	}
}

// full is an address whose listener takes no more connections and refuses none.
func full(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*syscall.SockaddrInet4).Port))
	for range 4 {
		if c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return addr
}

func TestRelayWaitsForNoEndpoint(t *testing.T) {
	silent := full(t)
	r := start(t, tcpRoute(silent, calls(t, "one")))
	for range 12 { // one of them at least meets the silent one
		if got := r.dial().line(); got != "one" {
			t.Fatalf("%q answers", got)
		}
	}
	for _, e := range r.srv.tables.backends["b"].Load().endpoints.Load().all {
		if e.address == silent && e.ejected.Load() == 0 {
			t.Error("the silent endpoint is not ejected")
		}
	}
}

// What a relay can't do itself is done all the same.
func TestRelayHandsOver(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, "c", "s.example.com")
	pair, err := keyPair(&cert)
	if err != nil {
		t.Fatal(err)
	}
	plain := calls(t, "plain")
	sealed := talk(t, func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
		defer tc.Close()
		_, _ = io.WriteString(tc, "sealed\n")
	})
	r := start(t, tcpRoute(plain))
	check := func(want string) {
		t.Helper()
		if got := r.dial().line(); got != want {
			t.Errorf("%q answers, want %q", got, want)
		}
	}
	check("plain")
	_, port, _ := net.SplitHostPort(plain)
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: "localhost:" + port}}
	r.apply()
	check("plain")
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: sealed}}
	r.update.Backends[0].TLS = &route.BackendTLS{ServerName: "s.example.com", CAs: ca.pem}
	r.apply()
	check("sealed")

	// The port's listener becomes one of HTTP, and the other way round.
	e := newEcho(t, "web")
	r.update.Backends[0] = route.Backend{Key: "b", Endpoints: "e"}
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: e.addr()}}
	r.update.Listeners[0].Protocol, r.update.Routes[0].Kind = route.HTTP, route.HTTPRoute
	r.apply()
	if status, s := r.get("/x", nil); status != 200 || s.Server != "web" {
		t.Errorf("%d %+v", status, s)
	}
	r = start(t, simple(e.addr()))
	r.update.Endpoints[0].Endpoints = []route.Endpoint{{Address: plain}}
	r.update.Listeners[0].Protocol, r.update.Routes[0].Kind = route.TCP, route.TCPRoute
	r.apply()
	check("plain")
}

// Established connections outlive all changes to the tables, those to their own port included; new ones are refused
// when the port goes, and it can be had again at once.
func TestRelayAndChanges(t *testing.T) {
	r := start(t, tcpRoute(calls(t, "one")))
	_, port, _ := net.SplitHostPort(r.tcp())
	n, _ := strconv.Atoi(port)
	r.update.Listeners[0].Port = uint16(n)
	r.apply()
	c := r.dial()
	if got := c.line(); got != "one" {
		t.Fatal(got)
	}
	two := calls(t, "two")
	listeners := r.update.Listeners
	for range 3 {
		r.update.Listeners = nil
		r.apply()
		if c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 5*time.Second); err == nil {
			t.Error("the port is still open")
			c.Close()
		}
		r.update.Listeners, r.update.Endpoints[0].Endpoints = listeners, []route.Endpoint{{Address: two}}
		r.apply()
		if got := r.dial().line(); got != "two" {
			t.Errorf("%q answers", got)
		}
	}
	c.send("still there\n")
	if got := c.line(); got != "still there" {
		t.Errorf("%q", got)
	}
}

func TestRelayIdleTimeout(t *testing.T) {
	r := start(t, tcpRoute(calls(t, "one")), Config{TunnelIdle: 3 * time.Second}) // a machine under load does not pause for longer
	busy, idle := r.dial(), r.dial()
	busy.line()
	idle.line()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for b := bufio.NewReader(busy); ; {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			_, _ = io.WriteString(busy, "x")
			_, _ = b.ReadByte()
		}
	}()
	idle.closed()
	until(t, "the idle one is over", func() bool { return r.srv.conns.Load() == 1 })
}

// A connection on which nothing moves does not outlive an endpoint whose host is gone by hours.
func TestRelayAsksSilentEndpoints(t *testing.T) {
	r := start(t, tcpRoute(calls(t, "one")), Config{TunnelIdle: 16 * time.Second}) // the kernel asks within a quarter of that
	r.dial().line()
	asked := func() (asked bool) {
		for _, relay := range r.srv.relays {
			relay.order(func() {
				for _, p := range relay.pairs {
					if p != nil {
						on, err := syscall.GetsockoptInt(int(p.half[endpointSide].fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
						asked = err == nil && on == 1
					}
				}
			})
		}
		return asked
	}
	if asked() {
		t.Error("a new connection pays for it")
	}
	until(t, "the kernel asks", asked)
}

func TestRelayLimit(t *testing.T) {
	r := start(t, tcpRoute(calls(t, "one")), Config{MaxConnections: 2})
	a, b := r.dial(), r.dial()
	a.line()
	b.line()
	c := r.dial()
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("a connection too many is served")
	}
	a.Close()
	until(t, "there is room", func() bool { return r.srv.conns.Load() == 1 })
	r.dial().line()
}

func TestRelayIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heads := make(chan string, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			head, _ := bufio.NewReader(c).ReadString('\n')
			heads <- head
			c.Close()
		}
	}()
	u := tcpRoute(l.Addr().String())
	u.Backends[0].ProxyProtocol = 1
	r := start(t, u)
	four, six := loopback[0], netip.IPv6Loopback()
	for _, addr := range []netip.Addr{four, six} {
		r.update.Listeners[0].Addresses = []netip.Addr{addr}
		r.apply()
		c := r.dial()
		want := "PROXY TCP4 127.0.0.1 127.0.0.1 "
		if addr == six {
			want = "PROXY TCP6 ::1 ::1 "
		}
		if got := <-heads; !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		c.closed()
	}
}

// Draining takes no new connections and waits for those there are.
func TestRelayDrains(t *testing.T) {
	r := start(t, tcpRoute(calls(t, "one")))
	c := r.dial()
	c.line()
	addr := r.tcp()
	drained := make(chan error, 1)
	go func() { drained <- r.srv.Drain(t.Context()) }()
	until(t, "no more are taken", func() bool {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	c.send("hello\n")
	if got := c.line(); got != "hello" {
		t.Errorf("%q", got)
	}
	select {
	case <-drained:
		t.Fatal("it did not wait")
	default:
	}
	c.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// A connection that is on its way to a relay when it ends does not outlive it.
func TestRelayEndsWhatIsOnItsWay(t *testing.T) {
	r := start(t, tcpRoute(calls(t, "one")))
	relay, err := newRelay(r.srv)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[1])
	r.srv.conns.Add(1)
	for _, p := range r.srv.tables.ports {
		relay.post(func() { relay.begin(p, rawFD(fds[0]), netip.AddrPortFrom(loopback[0], 1)) })
	}
	relay.end()
	if pairs, conns := relay.load.Load(), r.srv.conns.Load(); pairs != 0 || conns != 0 {
		t.Errorf("left: %d pairs, %d connections", pairs, conns)
	}
	if n, err := syscall.Read(fds[1], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the client's connection is open: %v", err)
	}
}
