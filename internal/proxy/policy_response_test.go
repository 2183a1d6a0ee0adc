// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

func TestResponsesAreShaped(t *testing.T) {
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Set-Cookie", "a=1; Path=/app/x; Domain=.Backend.local; HttpOnly")
		h.Add("Set-Cookie", "b=path=/app; domain=other.example.com; PATH=/")
		h.Set("Location", "http://backend.local:8080/app/next?q=1")
		h.Set("Refresh", "5; URL=http://backend.local:8080/soon")
		h.Set("Server", "secret/1.0")
		h.Set("X-Powered-By", "secret")
	})
	r := start(t, guarded(route.Policy{
		HideHeaders: []string{"Server", "x-powered-by"},
		Cookies: &route.Cookies{Domains: []route.Replacement{{From: "backend.local", To: "$host"}},
			Paths: []route.Replacement{{From: "/app/", To: "/shop/"}, {From: "^/$", Regex: true, To: "/; Evil"}}},
		Locations: &route.Locations{Replace: []route.Replacement{{From: `^http://backend\.local(:\d+)?/(app/)?`, Regex: true, To: "https://$host/"}}},
	}, e))
	resp := r.want(200, "/", nil)
	want := []string{"a=1; Path=/shop/x; Domain=a.example.com; HttpOnly", "b=path=/app; domain=other.example.com; PATH=/ Evil"}
	if got := resp.Header.Values("Set-Cookie"); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("cookies:\n%q\n%q", got, want)
	}
	if got := resp.Header.Get("Location"); got != "https://a.example.com/next?q=1" {
		t.Error(got)
	}
	if got := resp.Header.Get("Refresh"); got != "5; URL=https://a.example.com/soon" {
		t.Error(got)
	}
	if resp.Header.Get("Server") != "" || resp.Header.Get("X-Powered-By") != "" {
		t.Errorf("%v", resp.Header)
	}
}

func TestHSTS(t *testing.T) {
	e := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Strict-Transport-Security", "max-age=0") })
	u := guarded(route.Policy{HSTS: &route.HSTS{MaxAge: 31536000, IncludeSubdomains: true, Preload: true}}, e)
	u.Listeners[0].TrustedProxies = prefixes("127.0.0.0/8")
	r := start(t, u)
	secure := map[string]string{"X-Forwarded-Proto": "https"}
	const want = "max-age=31536000; includeSubDomains; preload"
	if got := r.want(200, "/", secure).Header.Values("Strict-Transport-Security"); len(got) != 1 || got[0] != want {
		t.Errorf("%q", got)
	}
	if got := r.want(200, "/", nil).Header.Get("Strict-Transport-Security"); got == want {
		t.Error("told on plain text")
	}
	r.update.Policies[0].Sources = &route.Sources{Deny: prefixes("0.0.0.0/0")}
	r.apply()
	if got := r.want(403, "/", secure).Header.Get("Strict-Transport-Security"); got != want {
		t.Errorf("on the proxy's own answer: %q", got)
	}
	r.update.Routes = guarded(route.Policy{}, e).Routes
	r.update.Routes[0].Rules[0].Policies = []string{"p", "off"}
	r.update.Policies = append(r.update.Policies, route.Policy{Key: "off", HSTS: &route.HSTS{Disabled: true}})
	r.apply()
	if got := r.want(403, "/", secure).Header.Get("Strict-Transport-Security"); got != "" {
		t.Errorf("switched off: %q", got)
	}
}

// A response is slowed down after its first bytes, and arrives whole.
func TestResponseRate(t *testing.T) {
	text := strings.Repeat("0123456789", 3000)
	e := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, text) })
	for _, buffered := range []bool{false, true} {
		r := start(t, guarded(route.Policy{ResponseRate: &route.ResponseRate{BytesPerSecond: 50_000, After: 10_000}, BufferResponse: &buffered}, e))
		began := time.Now()
		_, body := r.once("GET", "/", nil, "")
		// 20,000 bytes at 50,000 a second; the last piece is not waited for.
		if took := time.Since(began); body != text || took < 300*time.Millisecond {
			t.Errorf("buffered %v: %d bytes after %v", buffered, len(body), took)
		}
	}
}

// A backend is done with a response while its client has read little of it; nothing is held afterwards, whether the
// client reads the rest or leaves.
func TestBufferResponse(t *testing.T) {
	const size = 900_000
	text := bytes.Repeat([]byte("0123456789"), size/10)
	done := make(chan error, 10)
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := w.Write(text)
		done <- err
	})
	r := start(t, guarded(route.Policy{BufferResponse: pointer(true), ResponseRate: &route.ResponseRate{BytesPerSecond: size * 5}}, e))
	for _, leaves := range []bool{false, true} {
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if leaves {
			c.Close()
		} else if _, body := c.answer("GET"); body != string(text) {
			t.Errorf("%d bytes", len(body))
		}
		until(t, "nothing is held", func() bool { return r.srv.held.bytes.Load() == 0 && r.srv.active.Load() == 0 })
	}
}

// Events come through a buffer as they are sent.
func TestBufferResponsePassesEvents(t *testing.T) {
	next := make(chan struct{})
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
	})
	r := start(t, guarded(route.Policy{BufferResponse: pointer(true)}, e))
	resp, err := http.Get("http://" + r.tcp())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range 3 {
		b := make([]byte, 9)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != fmt.Sprintf("data: %d\n\n", i) {
			t.Fatalf("%q %v", b, err)
		}
		next <- struct{}{}
	}
}

// An endpoint may be silent for as long as the policy says, before its answer and within.
func TestReadTimeout(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moves" {
			for range 6 {
				fmt.Fprint(w, "x")
				w.(http.Flusher).Flush()
				time.Sleep(50 * time.Millisecond)
			}
			return
		}
		if r.URL.Path == "/within" {
			fmt.Fprint(w, "x")
			w.(http.Flusher).Flush()
		}
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	r := start(t, guarded(route.Policy{ReadTimeout: route.Duration(2 * time.Second), Retry: &route.Retry{Never: true}}, e))
	r.want(504, "/", nil)
	c := r.dial()
	c.send("GET /within HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the silent answer was not cut off")
	}
	r.update.Policies[0].ReadTimeout = route.Duration(5 * time.Second)
	r.apply()
	if _, body := r.once("GET", "/moves", nil, ""); body != "xxxxxx" {
		t.Errorf("%q", body)
	}
}

// A client of HTTP/2 that leaves while its answer is slowed down ends the endpoint's work, too.
func TestResponseRateOverHTTP2(t *testing.T) {
	gone := make(chan struct{})
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil || r.Context().Err() != nil {
				close(gone)
				return
			}
		}
	})
	r := start(t, guarded(route.Policy{ResponseRate: &route.ResponseRate{BytesPerSecond: 100_000}}, e))
	tr := h2cClient()
	resp, err := (&http.Client{Transport: tr}).Get("http://" + r.tcp())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(resp.Body, make([]byte, 50_000)); err != nil {
		t.Fatal(n, err)
	}
	resp.Body.Close()
	tr.CloseIdleConnections()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the endpoint is still kept busy")
	}
	until(t, "the exchange is over", func() bool { return r.srv.active.Load() == 0 })
}

// TestConnectionForBackends has a policy say what backends are told in Connection, and close mean it.
func TestConnectionForBackends(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	told := make(chan string, 8) // the number of the connection, and its header
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for in := bufio.NewReader(c); ; {
					var head strings.Builder
					for {
						line, err := in.ReadString('\n')
						if err != nil {
							return
						}
						if line == "\r\n" {
							break
						}
						if strings.HasPrefix(line, "Connection:") {
							head.WriteString(strings.TrimSpace(line))
						}
					}
					told <- fmt.Sprintf("%d %s", n, head.String())
					fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}()
		}
	}()
	r := start(t, guarded(route.Policy{}, l.Addr().String()))
	ask := func(want string) {
		t.Helper()
		r.want(200, "/", nil)
		if got := <-told; got != want {
			t.Errorf("the backend was told %q, want %q", got, want)
		}
	}
	ask("1 ")
	r.update.Policies[0].Connection = "keep-alive"
	r.apply()
	ask("1 Connection: keep-alive")
	r.update.Policies[0].Connection = "close"
	r.apply()
	ask("1 Connection: close")
	ask("2 Connection: close")
	r.update.Policies[0].Connection = ""
	r.apply()
	ask("3 ")
	ask("3 ")
}
