// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// echoes is an endpoint that says each piece of a request's body back at once, or with wait at its end only.
func echoes(wait bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		if !wait {
			_ = rc.Flush()
		}
		buf := make([]byte, 1<<10)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			if !wait {
				_ = rc.Flush()
			}
			if err != nil {
				return
			}
		}
	}
}

// duplexed begins a request whose body the test writes.
func (r *rig) duplexed(tr *http.Transport, contentType string) (*http.Response, *io.PipeWriter) {
	r.t.Helper()
	pr, pw := io.Pipe()
	r.t.Cleanup(func() { pw.Close() })
	req, err := http.NewRequest("POST", "http://"+r.tcp()+"/s.S/Watch", pr)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { resp.Body.Close() })
	return resp, pw
}

// A client that watches says nothing for as long as it likes, of gRPC as well as once an answer has begun.
func TestClientsThatListen(t *testing.T) {
	conf := Config{BodyTimeout: time.Second}
	two := over2(serve2(t, echoes(false)).Listener.Addr().String())
	t.Run("gRPC", func(t *testing.T) {
		t.Parallel()
		tr := h2cClient()
		defer tr.CloseIdleConnections()
		talksOn(t, start(t, two, conf), tr, "application/grpc")
	})
	t.Run("HTTP/2", func(t *testing.T) {
		t.Parallel()
		tr := h2cClient()
		defer tr.CloseIdleConnections()
		talksOn(t, start(t, two, conf), tr, "text/plain")
	})
	t.Run("HTTP/2 to HTTP/1.1", func(t *testing.T) {
		t.Parallel()
		tr := h2cClient()
		defer tr.CloseIdleConnections()
		talksOn(t, start(t, simple(serve(t, echoes(false))), conf), tr, "text/plain")
	})
	t.Run("HTTP/1.1", func(t *testing.T) {
		t.Parallel()
		for _, u := range []route.Update{simple(serve(t, echoes(false))), two} {
			c := start(t, u, conf).dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			said := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, said[:1]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * conf.BodyTimeout) // silence is what is tested
			c.send("4\r\nmore\r\n0\r\n\r\n")
			if _, err := io.ReadFull(resp.Body, said[1:]); err != nil || string(said) != "amore" {
				t.Errorf("%q, %v", said, err)
			}
		}
	})
}

func talksOn(t *testing.T, r *rig, tr *http.Transport, contentType string) {
	t.Helper()
	resp, pw := r.duplexed(tr, contentType)
	for i := range 2 {
		time.Sleep(2 * r.srv.conf.BodyTimeout) // silence is what is tested
		msg := fmt.Sprint("message ", i)
		go func() { _, _ = io.WriteString(pw, msg) }()
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != msg {
			t.Fatalf("%q, %v", got, err)
		}
	}
	pw.Close()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
}

// Where requests may be sent again, one that goes both ways still does: it is kept for that only when it is all there.
func TestStreamsThatCouldBeRepeated(t *testing.T) {
	for name, endpoint := range map[string]string{"HTTP/1.1": serve(t, echoes(false)), "HTTP/2": serve2(t, echoes(false)).Listener.Addr().String()} {
		u := simple(endpoint)
		if name == "HTTP/2" {
			u.Backends[0].Protocol = route.HTTP2
		}
		u.Routes[0].Rules[0].Retry = &route.Retry{Codes: []int{503}, Attempts: 2}
		r := start(t, u, Config{BodyTimeout: 5 * time.Second})
		tr := h2cClient()
		defer tr.CloseIdleConnections()
		resp, pw := r.duplexed(tr, "application/connect+proto")
		go func() { _, _ = io.WriteString(pw, "hello") }()
		got := make([]byte, 5)
		if _, err := io.ReadFull(resp.Body, got); resp.StatusCode != 200 || err != nil || string(got) != "hello" {
			t.Errorf("%s: %d %q, %v", name, resp.StatusCode, got, err)
		}
		pw.Close()
	}
}

// A call of gRPC has no time to begin its answer in either.
func TestCallsThatWaitOnBothSides(t *testing.T) {
	conf := Config{BodyTimeout: 200 * time.Millisecond}
	r := start(t, over2(serve2(t, echoes(true)).Listener.Addr().String()), conf)
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "http://"+r.tcp()+"/s.S/Collect", pr)
	req.Header.Set("Content-Type", "application/grpc")
	go func() {
		_, _ = io.WriteString(pw, "one")
		time.Sleep(3 * conf.BodyTimeout) // silence is what is tested
		_, _ = io.WriteString(pw, "two")
		pw.Close()
	}()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "onetwo" {
		t.Errorf("%q, %v", b, err)
	}
}

// When neither side has said anything for as long as a tunnel may be idle, the exchange ends.
func TestSilenceOnBothSides(t *testing.T) {
	two := over2(serve2(t, echoes(false)).Listener.Addr().String())
	for name, u := range map[string]route.Update{"HTTP/2": two, "HTTP/1.1": simple(serve(t, echoes(false)))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, u, Config{BodyTimeout: time.Second, TunnelIdle: 2 * time.Second})
			tr := h2cClient()
			defer tr.CloseIdleConnections()
			resp, _ := r.duplexed(tr, "application/grpc")
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("the answer came to an end: %q", b)
			}
			until(t, "the exchange is over", func() bool { return r.srv.active.Load() == 0 })
		})
	}
}

// What only says that it is a call does not hold an endpoint of HTTP/1.1 for longer than another request.
func TestSlowCallsToHTTP1(t *testing.T) {
	r := start(t, simple(serve(t, echoes(true))), Config{BodyTimeout: 200 * time.Millisecond})
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	pr, pw := io.Pipe()
	defer pw.Close()
	req, _ := http.NewRequest("POST", "http://"+r.tcp()+"/", pr)
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := tr.RoundTrip(req)
	if err == nil && resp.Header.Get("Grpc-Status") == "" {
		t.Errorf("%+v", resp)
	}
	until(t, "the exchange is over", func() bool { return r.srv.active.Load() == 0 })
}

// An endpoint's time runs from the request's end: a body that takes long, and moves, is none of its silence.
func TestLongUploads(t *testing.T) {
	for name, endpoint := range map[string]string{"HTTP/1.1": serve(t, echoes(true)), "HTTP/2": serve2(t, echoes(true)).Listener.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := guarded(route.Policy{ReadTimeout: route.Duration(2 * time.Second)}, endpoint)
			if name == "HTTP/2" {
				u.Backends[0].Protocol = route.HTTP2
			}
			c := start(t, u).dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
			for range 10 {
				time.Sleep(300 * time.Millisecond) // slow is what is tested
				c.send("a\r\n0123456789\r\n")
			}
			c.send("0\r\n\r\n")
			if resp, b := c.answer("POST"); resp.StatusCode != 200 || len(b) != 100 {
				t.Errorf("%d %q", resp.StatusCode, b)
			}
		})
	}
}

// An endpoint that takes nothing of a body does so for no longer than the policy says.
func TestSendTimeoutOfBodies(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	one := talk(t, func(c net.Conn) {
		defer c.Close()
		_, _ = http.ReadRequest(bufio.NewReaderSize(c, 512))
		<-stop
	})
	body := strings.Repeat("x", 100_000_000)
	two := serve2(t, func(http.ResponseWriter, *http.Request) { <-stop }).Listener.Addr().String()
	for _, c := range []struct {
		endpoint string
		protocol route.BackendProtocol
		read     time.Duration
	}{{one, route.HTTP1, 200 * time.Millisecond}, {one, route.HTTP1, time.Hour}, {one, route.HTTP1, 0}, {two, route.HTTP2, time.Hour}} {
		u := guarded(route.Policy{SendTimeout: route.Duration(200 * time.Millisecond), ReadTimeout: route.Duration(c.read)}, c.endpoint)
		u.Backends[0].Protocol = c.protocol
		r := start(t, u)
		conn := r.dial()
		conn.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
		go func() { _, _ = io.Copy(conn, strings.NewReader(body)) }()
		if resp, err := http.ReadResponse(conn.r, nil); err != nil || resp.StatusCode != 504 {
			t.Errorf("%v, which may be silent for %v: %v, %v", c.protocol, c.read, resp, err)
		}
		until(t, "the request is over", func() bool { return r.srv.active.Load() == 0 })
	}
}

// How long an endpoint may be silent when the policy does not say.
func TestQuietEndpoints(t *testing.T) {
	srv := &Server{conf: Config{TunnelIdle: time.Hour}}
	call := field{raw("content-type"), raw("application/grpc+proto"), other}
	for _, c := range []struct {
		fields []field
		plan   plan
		want   time.Duration
	}{
		{nil, plan{}, quiet},
		{[]field{call}, plan{}, time.Hour},
		{[]field{call}, plan{read: time.Second}, time.Second},
		{nil, plan{read: time.Second}, time.Second},
		{nil, plan{timeouts: route.Timeouts{Unbounded: true}}, boundless},
	} {
		x := &exchange{srv: srv, major: 2, fields: c.fields, plan: &c.plan}
		x.call = x.isGRPC()
		if got := x.readTimeout(); got != c.want {
			t.Errorf("%v, %v: %v, want %v", c.fields, c.plan.read, got, c.want)
		}
	}
}
