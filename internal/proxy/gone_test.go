// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// hanging is an endpoint that answers once answer is closed; gone gets a value when a connection to it ends.
func hanging(t *testing.T, answer <-chan struct{}) (addr string, gone <-chan struct{}) {
	ended := make(chan struct{}, 10)
	return talk(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(io.Discard, r)
			ended <- struct{}{}
		}()
		<-answer
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}), ended
}

// reset breaks a connection.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// A client of HTTP/1.1 that breaks its connection while an answer is awaited ends the request, with the connection to the
// endpoint; one that has closed its side for writing gets the answer.
func TestClientsHangUp(t *testing.T) {
	ca := newAuthority(t)
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			answer := make(chan struct{})
			addr, gone := hanging(t, answer)
			u := simple(addr)
			if secure {
				u.Certificates = []route.Certificate{ca.issue(t, "c", "a")}
				u.Listeners[0].Protocol, u.Listeners[0].TLS = route.HTTPS, &route.ListenerTLS{Certificates: []string{"c"}}
			}
			r := start(t, u)
			ask := func() net.Conn {
				c := net.Conn(r.dial().Conn)
				if secure {
					c = tls.Client(c, &tls.Config{ServerName: "a", RootCAs: ca.pool()})
				}
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") // a failure shows in the answer
				return c
			}
			leaves, listens := ask(), ask()
			until(t, "both are at the endpoint", func() bool { return r.only().inflight.Load() == 2 })
			_ = listens.(interface{ CloseWrite() error }).CloseWrite()
			reset(leaves)
			until(t, "the request of who has left is over", func() bool {
				r.srv.dropGone()
				return r.srv.active.Load() == 1
			})
			<-gone
			if e := r.only(); e.fails.Load() != 0 || e.ejected.Load() != 0 {
				t.Error("the endpoint is blamed")
			}
			r.srv.dropGone()
			close(answer)
			if resp, err := http.ReadResponse(bufio.NewReader(listens), nil); err != nil || resp.StatusCode != 200 {
				t.Errorf("who listens gets %v, %v", resp, err)
			}
		})
	}
}

// A server that drains does not wait for clients that have left.
func TestDrainWithoutThoseThatLeft(t *testing.T) {
	addr, _ := hanging(t, nil)
	r := start(t, simple(addr))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	until(t, "it is at the endpoint", func() bool { return r.only().inflight.Load() == 1 })
	reset(c.Conn)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.srv.Drain(ctx); err != nil {
		t.Error(err)
	}
}
