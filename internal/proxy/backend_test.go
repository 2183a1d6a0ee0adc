// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// silent is an address that answers no connection, as one whose host is gone.
func silent(t *testing.T) string {
	_, addr := deaf(t)
	return addr
}

// deaf is a socket that takes no more connections until it is listened to.
func deaf(t *testing.T) (fd int, addr string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*syscall.SockaddrInet4).Port)).String()
	for { // until its queue is full
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		cancel()
		if err != nil {
			return fd, addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

// An endpoint whose host is gone is given up for another one soon, and then left alone, in each protocol.
func TestSilentEndpoints(t *testing.T) {
	for _, protocol := range []route.BackendProtocol{route.HTTP1, route.HTTP2, route.Raw} {
		u := simple(silent(t), newEcho(t, "up").addr())
		u.Backends[0].Protocol = protocol
		if protocol == route.HTTP2 {
			u.Endpoints[0].Endpoints[1].Address = h2cServer(t, newEcho(t, "up").Config.Handler.ServeHTTP)
		}
		if protocol == route.Raw {
			u.Listeners[0].Protocol, u.Routes[0].Kind = route.TCP, route.TCPRoute
		}
		r := start(t, u)
		gone := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
		until(t, "the silent endpoint is left alone", func() bool {
			if resp, body := r.once("GET", "/", nil, ""); resp.StatusCode != 200 {
				t.Fatalf("%s: %d %s", protocol, resp.StatusCode, body)
			}
			return gone.ejected.Load() > 0
		})
	}
	// The last one to be tried is waited for.
	b := endpoints(2)
	if l := b.dialLimits(1); l.connect != quickDial || l.all != dialTimeout {
		t.Errorf("%v", l)
	}
	if l := b.dialLimits(2); l.connect != dialTimeout {
		t.Errorf("%v", l)
	}
}

// An endpoint that joins others gets a share that grows with its age; one of the first has its share at once.
func TestSlowStart(t *testing.T) {
	b := &backend{conf: route.Backend{Key: "b"}}
	joined := time.Unix(1000, 0)
	b.update([]route.Endpoint{{Address: "old"}}, joined.Add(-time.Hour))
	b.update([]route.Endpoint{{Address: "old"}, {Address: "new"}}, joined)
	share := func(age time.Duration) int {
		n := 0
		for range 2000 {
			if b.pick(joined.Add(age).UnixNano(), nil).address == "new" {
				n++
			}
		}
		return n / 20
	}
	for _, c := range []struct {
		age         time.Duration
		least, most int // percent: p/(1+p) where p is the chance to be let have its turn
	}{{0, 4, 15}, {slowStart / 2, 26, 41}, {slowStart, 44, 56}, {time.Hour, 44, 56}} {
		if got := share(c.age); got < c.least || got > c.most {
			t.Errorf("after %v it gets %d %%, want %d to %d", c.age, got, c.least, c.most)
		}
	}
	// Nobody waits for its age when there is no other.
	old := b.endpoints.Load().all[0]
	if e := b.pick(joined.UnixNano(), []*endpoint{old}); e.address != "new" {
		t.Errorf("%s was chosen again", e.address)
	}
}

// An endpoint is left out after failures in a row, for longer each time, and comes back; with none left all are used.
func TestEjection(t *testing.T) {
	b := &backend{conf: route.Backend{Key: "b"}}
	now := time.Unix(1000, 0)
	b.update([]route.Endpoint{{Address: "a"}, {Address: "b"}}, now)
	a, other := b.endpoints.Load().all[0], b.endpoints.Load().all[1]
	for range ejectAfter - 1 {
		a.failed(now)
	}
	a.succeeded()
	for range ejectAfter - 1 {
		a.failed(now)
	}
	if a.ejected.Load() != 0 {
		t.Error("it is left out, though it has not failed so often in a row")
	}
	a.succeeded()
	for _, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
		for range ejectAfter {
			a.failed(now)
		}
		if got := time.Unix(0, a.ejected.Load()).Sub(now); got != want*time.Second {
			t.Errorf("it is left out for %v, want %ds", got, want)
		}
		for range 100 {
			if b.pick(now.Add(want*time.Second-1).UnixNano(), nil) == a {
				t.Fatalf("it was chosen within %ds", want)
			}
		}
		now = now.Add(want * time.Second)
		back := false
		for range 100 {
			back = back || b.pick(now.UnixNano(), nil) == a
		}
		if !back {
			t.Errorf("it did not come back after %ds", want)
		}
	}
	a.eject(now)
	other.eject(now)
	if b.pick(now.UnixNano(), nil) == nil {
		t.Error("with all left out there is none")
	}
}
