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
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// What an endpoint says on a kept connection without having been asked is nobody's answer (RFC 9112 section 9.2).
func TestUnaskedAnswers(t *testing.T) {
	const poison = "HTTP/1.1 200 OK\r\nX-Poison: 1\r\nContent-Length: 6\r\n\r\nPOISON"
	ca := newAuthority(t)
	cert := ca.issue(t, "s", "s.example.com")
	pair, err := tls.X509KeyPair([]byte(cert.Chain), []byte(cert.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		method, first string
		then          string // said later
		close         bool
	}{
		"another answer":   {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", poison, false},
		"a body after all": {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 61\r\n\r\n", poison, false},
		"one that is gone": {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", true},
	} {
		for _, secure := range []bool{false, true} {
			for _, at := range []time.Duration{0, 50 * time.Millisecond} {
				for _, victim := range []string{"GET", "POST", "PUT"} {
					said := make(chan bool, 1)
					addr := talk(t, func(conn net.Conn) {
						defer conn.Close()
						if secure {
							conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}})
						}
						r := bufio.NewReader(conn)
						for {
							req, err := http.ReadRequest(r)
							if err != nil {
								return
							}
							_, _ = io.Copy(io.Discard, req.Body)
							if req.URL.Path != "/first" {
								_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
								continue
							}
							_, _ = io.WriteString(conn, c.first)
							time.Sleep(at)
							_, _ = io.WriteString(conn, c.then)
							if c.close {
								conn.Close()
							}
							said <- true
						}
					})
					u := simple(addr)
					if secure {
						u.Backends[0].TLS = &route.BackendTLS{ServerName: "s.example.com", CAs: ca.pem}
					}
					r := start(t, u)
					r.once(c.method, "/first", nil, "")
					<-said
					time.Sleep(20 * time.Millisecond) // on the loopback it has arrived
					body := ""
					if victim != "GET" {
						body = "x"
					}
					resp, b := r.once(victim, "/victim", nil, body)
					if resp.StatusCode != 200 || b != "/victim" || resp.Header.Get("X-Poison") != "" {
						t.Errorf("%s, TLS %t, %s later, %s: %d %q %v", name, secure, at, victim, resp.StatusCode, b, resp.Header)
					}
				}
			}
		}
	}
}

// A connection that the endpoint has closed is noticed before anything is sent: no request is lost, whatever its method.
func TestKeptConnectionsThatEnd(t *testing.T) {
	closed := make(chan bool, 1)
	addr := talk(t, func(c net.Conn) {
		defer func() { c.Close(); closed <- true }()
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.Method), req.Method)
		}
	})
	r := start(t, simple(addr))
	for i := range 20 {
		method := []string{"POST", "PATCH", "GET", "DELETE"}[i%4]
		resp, b := r.once(method, "/", nil, strings.Repeat("x", i%3))
		if resp.StatusCode != 200 || b != method {
			t.Fatalf("%s: %d %q", method, resp.StatusCode, b)
		}
		<-closed
		time.Sleep(5 * time.Millisecond)
	}
}

// HTTP/1.0 knows no chunks: where such an answer ends may be a mistake, so nothing comes after it (RFC 9112 section 6.1).
func TestKeptOnlyWhereFramed(t *testing.T) {
	for head, want := range map[string]bool{
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n":                           true,
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n":          true,
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n": false,
		"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n":                                    false,
		"HTTP/1.1 200 OK\r\n\r\n":                                                         false,
	} {
		var h responseHead
		if err := parseResponse([]byte(head), "GET", &h); err != nil || h.close == want {
			t.Errorf("%q: kept is %t, %v", head, !h.close, err)
		}
	}
}
