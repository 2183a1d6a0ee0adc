// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// mortal is an endpoint that can be killed, with what it has in hand, and comes back where it was.
type mortal struct {
	t    *testing.T
	addr string
	srv  *http.Server
	hits *atomic.Int64
}

func newMortal(t *testing.T, hits *atomic.Int64) *mortal {
	m := &mortal{t: t, addr: "127.0.0.1:0", hits: hits}
	m.live()
	t.Cleanup(func() { m.srv.Close() })
	return m
}

func (m *mortal) live() {
	var l net.Listener
	until(m.t, "the endpoint has its address again", func() bool {
		var err error
		l, err = net.Listen("tcp", m.addr)
		return err == nil
	})
	m.addr = l.Addr().String()
	m.srv = &http.Server{Protocols: &http.Protocols{}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			m.hits.Add(1)
			w.Header().Set("X-Alive", "yes") // an answer in one piece: one that has begun can't be had again
		})}
	m.srv.Protocols.SetHTTP1(true)
	m.srv.Protocols.SetUnencryptedHTTP2(true)
	go func(s *http.Server) { _ = s.Serve(l) }(m.srv)
}

func (m *mortal) die() { m.srv.Close() }

// Endpoints die with requests in hand and come back: where the rule has retries each request is answered, over HTTP/1.1 and
// HTTP/2 to endpoints, also while the tables take out who is dead and put it back.
func TestNoRequestFailsAsEndpointsDie(t *testing.T) {
	for _, protocol := range []route.BackendProtocol{route.HTTP1, route.HTTP2} {
		for _, told := range []bool{false, true} {
			name := string(protocol)
			if told {
				name += ", and the tables tell"
			}
			t.Run(name, func(t *testing.T) { dying(t, protocol, told) })
		}
	}
}

func dying(t *testing.T, protocol route.BackendProtocol, told bool) {
	var hits [3]atomic.Int64
	all := []*mortal{newMortal(t, &hits[0]), newMortal(t, &hits[1]), newMortal(t, &hits[2])}
	u := simple(all[0].addr, all[1].addr, all[2].addr)
	u.Backends[0].Protocol = protocol
	u.Routes[0].Rules[0].Retry = &route.Retry{Attempts: 3, Codes: []int{502, 503}}
	r := start(t, u)
	set := r.update.Endpoints[0].Endpoints

	var answered, failed [4]atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range answered {
		c := r.dial()
		_ = c.SetDeadline(time.Time{})
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") // a failure shows in the answer
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					failed[i].Add(1)
					return
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 || resp.Header.Get("X-Alive") != "yes" {
					t.Errorf("client %d: %s %q, %v", i, resp.Status, body, err)
					failed[i].Add(1)
				}
				answered[i].Add(1)
			}
		})
	}
	// goOn waits until no client has a request under way that began before.
	goOn := func() {
		t.Helper()
		var before [len(answered)]int64
		for i := range answered {
			before[i] = answered[i].Load()
		}
		until(t, "each client is answered", func() bool {
			for i := range answered {
				if failed[i].Load() == 0 && answered[i].Load() < before[i]+2 {
					return false
				}
			}
			return true
		})
	}
	for i := range 12 {
		goOn()
		all[i%3].die()
		if told {
			r.update.Endpoints[0].Endpoints = []route.Endpoint{set[(i+1)%3], set[(i+2)%3]}
			r.apply()
		}
		goOn()
		all[i%3].live()
		if told {
			r.update.Endpoints[0].Endpoints = set
			r.apply()
		}
	}
	goOn()
	close(stop)
	clients.Wait()
	n := int64(0)
	for i := range answered {
		n += answered[i].Load()
	}
	t.Logf("%d requests", n)
	for i := range hits {
		if hits[i].Load() == 0 {
			t.Errorf("endpoint %d was never asked", i)
		}
	}
}

// An endpoint that does not answer in the time that a rule gives is left out after a while, but not where clients chose that
// there be no time: with a deadline of their own, a body that stalls, or one whose end comes late.
func TestClientsHaveNoEndpointLeftOut(t *testing.T) {
	const bound = 200 * time.Millisecond
	each := route.Timeouts{BackendRequest: route.Duration(bound)}
	all := route.Timeouts{Request: route.Duration(bound)}
	plain := func(pieces ...string) func(r *rig) {
		return func(r *rig) {
			c := r.dial()
			for i, p := range pieces {
				if i > 0 {
					time.Sleep(bound * 3 / 4) // slowness is what is tested
				}
				c.send(p)
			}
			if resp, _ := c.answer("POST"); resp.StatusCode != 504 {
				r.t.Errorf("%d", resp.StatusCode)
			}
		}
	}
	for name, c := range map[string]struct {
		bounds route.Timeouts
		ask    func(r *rig)
		out    bool
	}{
		"each attempt":      {each, plain("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), true},
		"the request":       {all, plain("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), true},
		"a body":            {each, plain("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), true},
		"a stalled body":    {each, plain("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), false},
		"a late end":        {each, plain("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n"), false},
		"a late short body": {all, plain("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", "abc"), false},
		"a call's deadline": {route.Timeouts{}, func(r *rig) {
			f := newFramer(r.t, r.tcp())
			f.headers(whole, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "20m"))
			f.status(1)
		}, false},
	} {
		for _, protocol := range []route.BackendProtocol{route.HTTP1, route.HTTP2} {
			t.Run(string(protocol)+" "+name, func(t *testing.T) {
				t.Parallel()
				hold := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
				addr := ""
				if protocol == route.HTTP2 {
					addr = serve2(t, hold).Listener.Addr().String()
				} else {
					addr = talk(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
				}
				u := simple(addr)
				u.Backends[0].Protocol = protocol
				u.Routes[0].Rules[0].Timeouts = c.bounds
				r := start(t, u)
				for range ejectAfter {
					c.ask(r)
				}
				until(t, "they are over", func() bool { return r.srv.active.Load() == 0 })
				if e := r.only(); (e.ejected.Load() > 0) != c.out || !c.out && e.fails.Load() > 0 {
					t.Errorf("left out: %v, failures: %d", e.ejected.Load() > 0, e.fails.Load())
				}
			})
		}
	}
}

// A request whose time is over before it could be sent says nothing of the endpoint, whose kept connections are not at fault.
func TestLateQuestionsBlameNobody(t *testing.T) {
	const bound = 200 * time.Millisecond
	for _, grpc := range []bool{false, true} {
		var wg sync.WaitGroup
		gate := make(chan struct{})
		addr := talk(t, func(c net.Conn) {
			defer c.Close()
			r := bufio.NewReader(c)
			for {
				q, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, q.Body)
				if q.URL.Path == "/wait" {
					<-gate
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		u := simple(addr)
		if !grpc {
			u.Routes[0].Rules[0].Timeouts = route.Timeouts{Request: route.Duration(bound)}
		}
		r := start(t, u)
		for range 3 { // three kept connections
			wg.Go(func() {
				c := r.dial()
				c.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
				c.answer("GET")
			})
		}
		until(t, "three are under way", func() bool { return r.only().inflight.Load() == 3 })
		close(gate)
		wg.Wait()
		for range 3 {
			wg.Go(func() {
				if grpc {
					f := newFramer(t, r.tcp())
					f.headers(whole, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "1n"))
					f.status(1)
					return
				}
				c := r.dial()
				c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
				time.Sleep(bound * 5 / 4)
				c.send("abc")
				c.answer("POST")
			})
		}
		wg.Wait()
		if e := r.only(); e.ejected.Load() > 0 || e.fails.Load() > 0 {
			t.Errorf("grpc %v: ejected %v, fails %d", grpc, e.ejected.Load() > 0, e.fails.Load())
		}
	}
}

// An endpoint that closes each connection without a word has failed each time.
func TestEndpointsThatCloseAreLeftOut(t *testing.T) {
	r := start(t, simple(talk(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1000)); c.Close() })))
	for range 10 {
		c := r.dial()
		_, _ = io.WriteString(c.Conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil || resp.StatusCode != 502 {
			t.Error(resp, err)
		}
	}
	if r.only().ejected.Load() == 0 {
		t.Error("it is not left out")
	}
}
