// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weft-net/weft/internal/route"
)

// parrot is an endpoint that says back what it hears, after the answer to an upgrade if it gets a request for one.
func parrot(t *testing.T) string {
	return talk(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReaderSize(c, 512)
		if b, err := r.Peek(3); err != nil {
			return
		} else if string(b) == "GET" {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		}
		buf := make([]byte, 512)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
}

const upgrade = "GET / HTTP/1.1\r\nHost: a.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// pong sends something through a tunnel and waits until it is back.
func pong(c io.ReadWriter, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("%.20q came back for %.20q", b, text)
	}
	return nil
}

// Connections that wait hold no buffers, whatever is in between: TLS that ends here, for WebSocket or as a TLSRoute, and
// the streams of HTTP/2.
func TestIdleTunnelsAreSmall(t *testing.T) {
	ca := newAuthority(t)
	overTLS := func(t *testing.T, r *rig) io.ReadWriteCloser {
		c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com", NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		return c
	}
	web := secure(t, ca, parrot(t), "a.example.com")
	raw := secure(t, ca, parrot(t), "a.example.com")
	raw.Listeners[0].Protocol, raw.Routes[0].Kind, raw.Backends[0].Protocol = route.TLS, route.TLSRoute, route.Raw
	var h2 *http2.ClientConn //lint:ignore SA1019 net/http's own sends no extended CONNECT
	for name, c := range map[string]struct {
		update route.Update
		n      int
		most   int64 // bytes for each, the test's own ends included
		dial   func(*testing.T, *rig) io.ReadWriteCloser
	}{
		"WebSocket over TLS": {web, 400, 80 << 10, func(t *testing.T, r *rig) io.ReadWriteCloser {
			c := overTLS(t, r)
			if _, err := io.WriteString(c, upgrade); err != nil {
				t.Fatal(err)
			}
			if resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), nil); err != nil || resp.StatusCode != 101 {
				t.Fatal(resp, err)
			}
			return c
		}},
		"TCPRoute": {tcpRoute(parrot(t)), 400, 24 << 10, func(t *testing.T, r *rig) io.ReadWriteCloser { return r.dial() }},
		"TLSRoute": {raw, 400, 80 << 10, overTLS},
		"WebSocket over HTTP/2": {web, 200, 80 << 10, func(t *testing.T, r *rig) io.ReadWriteCloser {
			if h2 == nil {
				c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com", NextProtos: []string{"h2"}})
				if err != nil {
					t.Fatal(err)
				}
				tr := &http2.Transport{} //lint:ignore SA1019 as above
				//lint:ignore SA1019 as above
				if h2, err = tr.NewClientConn(c); err != nil {
					t.Fatal(err)
				}
			}
			in, out := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodConnect, "https://a.example.com/", in)
			if err != nil {
				t.Fatal(err)
			}
			req.Header[":protocol"] = []string{"websocket"}
			resp, err := h2.RoundTrip(req)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			return struct {
				io.Reader
				io.WriteCloser
			}{resp.Body, out}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, c.update)
			tunnels := make([]io.ReadWriteCloser, c.n)
			defer func() {
				for _, t := range tunnels {
					if t != nil {
						t.Close()
					}
				}
			}()
			before := memoryInUse()
			for i := range tunnels {
				tunnels[i] = c.dial(t, r)
				if err := pong(tunnels[i], "hello"); err != nil {
					t.Fatal(err)
				}
			}
			each := (memoryInUse() - before) / int64(c.n)
			t.Logf("%d bytes each", each)
			if each > c.most {
				t.Errorf("%d bytes each, want at most %d", each, c.most)
			}
			for _, c := range tunnels { // and they live
				if err := pong(c, "still there"); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// What goes through TLS comes out as it went in, in pieces of all sizes and both ways at once, and one way's end leaves
// the other open.
func TestTunnelThroughTLS(t *testing.T) {
	ca := newAuthority(t)
	inner := ca.issue(t, "inner", "inner.example.com")
	pair, err := keyPair(&inner)
	if err != nil {
		t.Fatal(err)
	}
	echo := func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
		if c, ok := c.(*tls.Conn); ok {
			_ = c.CloseWrite()
		}
	}
	plain := talk(t, echo)
	sealed := talk(t, func(c net.Conn) { echo(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})) })
	for _, both := range []bool{false, true} {
		u := secure(t, ca, plain, "a.example.com")
		u.Listeners[0].Protocol, u.Routes[0].Kind, u.Backends[0].Protocol = route.TLS, route.TLSRoute, route.Raw
		if both {
			u.Endpoints[0].Endpoints[0].Address = sealed
			u.Backends[0].TLS = &route.BackendTLS{ServerName: "inner.example.com", CAs: ca.pem}
		}
		r := start(t, u)
		c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		var want strings.Builder
		for i := range 300 {
			want.WriteString(strings.Repeat(fmt.Sprintf("%d,", i), 1+i*i/10))
		}
		var all sync.WaitGroup
		all.Go(func() {
			text := want.String()
			for n := 1; len(text) > 0; n = n*5/3 + 1 {
				if n > 100000 {
					n = 1
				}
				k := min(n, len(text))
				if _, err := io.WriteString(c, text[:k]); err != nil {
					t.Error(err)
					return
				}
				text = text[k:]
			}
			_ = c.CloseWrite()
		})
		got, err := io.ReadAll(c)
		all.Wait()
		if err != nil || string(got) != want.String() {
			t.Errorf("TLS to the endpoint %v: %d of %d bytes, %v", both, len(got), want.Len(), err)
		}
		until(t, "the connection is over", func() bool { return r.srv.conns.Load() == 0 })
	}
}

// A peer that takes nothing does not keep a connection whose other end is gone, nor a gateway that ends.
func TestStuckTunnelsEnd(t *testing.T) {
	// flood sends until nothing is taken any more.
	flood := func(c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
	ca := newAuthority(t)
	for _, sealed := range []bool{false, true} {
		begin := func(t *testing.T, endpoint string) (*rig, net.Conn) {
			u := secure(t, ca, endpoint, "a.example.com")
			u.Routes[0].Kind, u.Backends[0].Protocol = route.TLSRoute, route.Raw
			if u.Listeners[0].Protocol = route.TLS; !sealed {
				u.Listeners[0].Protocol, u.Listeners[0].TLS, u.Listeners[0].Hostname = route.TCP, nil, ""
				u.Routes[0].Kind, u.Routes[0].Parents[0].Hostnames = route.TCPRoute, []string{""}
			}
			r := start(t, u)
			c := net.Conn(r.dial())
			if sealed {
				tc := tls.Client(c, &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com"})
				if err := tc.Handshake(); err != nil {
					t.Fatal(err)
				}
				c = tc
			}
			return r, c
		}
		t.Run(fmt.Sprintf("TLS %v, reset", sealed), func(t *testing.T) {
			r, c := begin(t, talk(t, func(c net.Conn) {
				flood(c)
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}))
			go func() { // finds the endpoint gone
				for {
					if _, err := c.Write(make([]byte, 1000)); err != nil {
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}()
			until(t, "the connection is over", func() bool { return r.srv.conns.Load() == 0 })
		})
		t.Run(fmt.Sprintf("TLS %v, close", sealed), func(t *testing.T) {
			full := make(chan struct{})
			r, _ := begin(t, talk(t, func(c net.Conn) {
				defer c.Close()
				flood(c)
				close(full)
				_ = c.SetDeadline(time.Time{})
				_, _ = io.Copy(io.Discard, c)
			}))
			<-full
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				r.srv.Close()
			}()
			select {
			case <-closed:
			case <-time.After(15 * time.Second):
				t.Fatal("the gateway does not end")
			}
			until(t, "the connection is over", func() bool { return r.srv.conns.Load() == 0 })
		})
	}
}

// A tunnel on which nothing moves ends after the time that is set, whatever it goes through.
func TestIdleTunnelsEnd(t *testing.T) {
	ca := newAuthority(t)
	sealed := secure(t, ca, parrot(t), "a.example.com")
	sealed.Listeners[0].Protocol, sealed.Routes[0].Kind, sealed.Backends[0].Protocol = route.TLS, route.TLSRoute, route.Raw
	cert := ca.issue(t, "inner", "a.example.com")
	pair, err := keyPair(&cert)
	if err != nil {
		t.Fatal(err)
	}
	through := secure(t, ca, talk(t, func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
		defer tc.Close()
		_, _ = io.Copy(tc, tc)
	}), "a.example.com")
	through.Listeners[0].Protocol, through.Listeners[0].TLS = route.TLS, &route.ListenerTLS{Passthrough: true}
	through.Routes[0].Kind, through.Backends[0].Protocol = route.TLSRoute, route.Raw
	const idle = 2 * time.Second // in which a machine under load gets something moved
	for name, c := range map[string]struct {
		update route.Update
		tls    bool
	}{
		"TCPRoute":           {tcpRoute(parrot(t)), false},
		"WebSocket":          {simple(parrot(t)), false},
		"WebSocket over TLS": {secure(t, ca, parrot(t), "a.example.com"), true},
		"TLS ends here":      {sealed, true},
		"TLS passes through": {through, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, c.update, Config{TunnelIdle: idle})
			client := net.Conn(r.dial())
			if c.tls {
				client = tls.Client(client, &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com"})
			}
			if strings.HasPrefix(name, "WebSocket") {
				if _, err := io.WriteString(client, upgrade); err != nil {
					t.Fatal(err)
				}
				if resp, err := http.ReadResponse(bufio.NewReaderSize(client, 16), nil); err != nil || resp.StatusCode != 101 {
					t.Fatal(resp, err)
				}
			}
			before := time.Now()
			if err := pong(client, "hello"); err != nil {
				t.Fatal(err)
			}
			if n, err := client.Read(make([]byte, 1)); err == nil || timedOut(err) {
				t.Errorf("the silent tunnel goes on: %d bytes, %v", n, err)
			}
			if took := time.Since(before); took < idle {
				t.Errorf("it ended after %v", took)
			}
			until(t, "the tunnel is over", func() bool { return r.srv.conns.Load() == 0 })
		})
	}
}
