// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// soon is long after bounds that are heeded, and long before those of connections that nobody else bounds.
const soon = 3 * time.Second

// patiently has /patient, which nothing bounds, and / with timeouts go to the same endpoint.
func patiently(protocol route.BackendProtocol, bounds route.Timeouts, endpoint string) route.Update {
	u := simple(endpoint)
	u.Backends[0].Protocol = protocol
	to := u.Routes[0].Rules[0].Backends
	path := func(p string) []route.Match {
		return []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: p}}}
	}
	u.Routes[0].Rules = []route.Rule{{Matches: path("/patient"), Backends: to}, {Matches: path("/"), Backends: to, Timeouts: bounds}}
	return u
}

// only is the endpoint, where there is one.
func (r *rig) only() *endpoint { return r.srv.tables.backends["b"].Load().endpoints.Load().all[0] }

// A rule's timeouts hold for connections that are to be made as well, also where a request waits for the one that another
// request, which has more time, has begun to make.
func TestTimeoutsWhileConnecting(t *testing.T) {
	for _, protocol := range []route.BackendProtocol{route.HTTP1, route.HTTP2} {
		for name, bounds := range map[string]route.Timeouts{
			"request":        {Request: route.Duration(200 * time.Millisecond)},
			"backendRequest": {BackendRequest: route.Duration(200 * time.Millisecond)},
		} {
			t.Run(string(protocol)+" "+name, func(t *testing.T) {
				t.Parallel()
				r := start(t, patiently(protocol, bounds, silent(t)))
				r.dial().send("GET /patient HTTP/1.1\r\nHost: a\r\n\r\n")
				until(t, "the other one is on its way", func() bool { return r.only().inflight.Load() > 0 })
				began := time.Now()
				if resp, body := r.once("GET", "/", nil, ""); resp.StatusCode != 504 {
					t.Errorf("%d %s", resp.StatusCode, body)
				}
				if took := time.Since(began); took > soon {
					t.Errorf("it took %v", took)
				}
			})
		}
	}
}

// Nobody goes on connecting for clients that have left.
func TestClientsLeaveWhileConnecting(t *testing.T) {
	for _, protocol := range []route.BackendProtocol{route.HTTP1, route.HTTP2} {
		for name, ask := range map[string]func(f *framer, stream uint32){
			"request": func(f *framer, stream uint32) { f.headers(whole, stream, head()) },
			"WebSocket": func(f *framer, stream uint32) {
				f.headers(endHeaders, stream, head(":method", "CONNECT", ":protocol", "websocket"))
			},
		} {
			t.Run(string(protocol)+" "+name, func(t *testing.T) {
				t.Parallel()
				u := simple(silent(t))
				u.Backends[0].Protocol = protocol
				r := start(t, u)
				f := newFramer(t, r.tcp())
				for i := range uint32(20) {
					ask(f, 2*i+1)
				}
				until(t, "all are on their way", func() bool { return r.only().inflight.Load() == 20 })
				began := time.Now()
				f.conn.Close()
				until(t, "all are over", func() bool { return r.srv.active.Load() == 0 })
				if took := time.Since(began); took > soon {
					t.Errorf("they went on for %v", took)
				}
				if e := r.only(); e.fails.Load() != 0 || e.ejected.Load() != 0 {
					t.Errorf("the endpoint is blamed")
				}
			})
		}
	}
}

// A connection of HTTP/2 that a request has begun to make, and waits for no longer, is there for those that do.
func TestConnectionsForOthers(t *testing.T) {
	fd, addr := deaf(t)
	u := patiently(route.HTTP2, route.Timeouts{Request: route.Duration(300 * time.Millisecond)}, addr)
	log := &attemptsLog{}
	r := start(t, u, Config{AccessLog: log})
	first, second := r.dial(), r.dial()
	first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	until(t, "the first is on its way", func() bool { return r.only().inflight.Load() == 1 })
	second.send("GET /patient HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := first.answer("GET"); resp.StatusCode != 504 {
		t.Errorf("%d", resp.StatusCode)
	}
	own, err := syscall.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(own), "socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: &http.Protocols{}, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	s.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(func() { s.Close() })
	go func() { _ = s.Serve(l) }()
	if resp, _ := second.answer("GET"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	if n := log.attempts.Load(); n != 1 {
		t.Errorf("%d attempts", n)
	}
}

// leaver is a client that leaves just when the answer is complete.
type leaver struct {
	e       *endpoint
	watcher interrupter
	given   bool // the connection was others' already
}

func (l *leaver) watch(i interrupter) bool {
	l.watcher = i
	return true
}

func (l *leaver) unwatch() bool {
	u, ok := l.watcher.(*upstream)
	if !ok {
		return true
	}
	l.e.mu.Lock()
	l.given = len(l.e.idle) > 0
	l.e.mu.Unlock()
	u.interrupt()
	return false
}

func (l *leaver) left() bool { return false }

// A client that leaves when its answer is complete does not close a connection that another request may have by then, nor
// does another one get what it has closed.
func TestClientsThatLeaveCloseTheirOwn(t *testing.T) {
	r := start(t, simple(newEcho(t, "one").addr()))
	e := r.only()
	l := &leaver{e: e}
	x := &exchange{srv: r.srv, began: time.Now(), peer: &peer{}, sink: nobody{}, client: l, method: "GET", path: "/", authority: "a"}
	if out := x.attempt(e, time.Time{}, func(int) bool { return false }); !out.done || x.abort {
		t.Fatalf("%+v, %s", out, x.reason)
	}
	if l.given {
		t.Error("the connection was others' while the client could close it")
	}
	if e.take(time.Now()) != nil {
		t.Error("the connection is others' though the client has closed it")
	}
}

// That an endpoint takes no connection is learnt, though all clients have less time than that takes.
func TestDeadEndpointsAreKnown(t *testing.T) {
	r := start(t, patiently(route.HTTP2, route.Timeouts{}, silent(t)))
	for range 5 {
		f := newFramer(t, r.tcp())
		f.headers(whole, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "100m"))
		f.status(1)
	}
	until(t, "the endpoint is known to be dead", func() bool { e := r.only(); return e.fails.Load() > 0 || e.ejected.Load() > 0 })
}
