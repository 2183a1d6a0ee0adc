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

// silent is an address that answers no connection, as one whose host is gone: a socket that takes no more.
func silent(t *testing.T) string {
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
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*syscall.SockaddrInet4).Port)).String()
	for { // until its queue is full
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		cancel()
		if err != nil {
			return addr
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
