// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestForwards(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	code, s := r.get("/a/b?c=d&e", map[string]string{"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Test": "yes",
		"Connection": "X-Secret, close", "X-Secret": "1", "Keep-Alive": "timeout=5"})
	if code != 200 || s.Path != "/a/b?c=d&e" || s.Method != "GET" || s.Host != "a.example.com" {
		t.Fatalf("%d %+v", code, s)
	}
	for name, want := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "a.example.com",
		"X-Test": "yes", "X-Secret": "", "Keep-Alive": "", "Connection": ""} {
		if got := s.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(s.Header.Get("X-Request-Id")) != 32 {
		t.Errorf("request id %q", s.Header.Get("X-Request-Id"))
	}
	if _, s = r.get("/", map[string]string{"X-Request-Id": "mine"}); s.Header.Get("X-Request-Id") != "mine" {
		t.Error("the client's request id is lost")
	}
}

func TestTrustedProxiesAreBelieved(t *testing.T) {
	e := newEcho(t, "one")
	u := simple(e.addr())
	u.Listeners[0].TrustedProxies = prefixes("127.0.0.0/8")
	r := start(t, u)
	_, s := r.get("/", map[string]string{"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop"})
	if f, p, h := s.Header.Get("X-Forwarded-For"), s.Header.Get("X-Forwarded-Proto"), s.Header.Get("X-Forwarded-Host"); f != "192.0.2.9, 127.0.0.1" || p != "https" || h != "shop" {
		t.Errorf("%q %q %q", f, p, h)
	}
}

func TestBodies(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	for _, size := range []int{1, 100, 5000, 20000, 70000, 1 << 20} {
		body := strings.Repeat("0123456789", size/10+1)[:size]
		for _, chunked := range []bool{false, true} {
			c := r.dial()
			if chunked {
				c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
				for rest := body; rest != ""; {
					n := min(len(rest), 3333)
					c.send(fmt.Sprintf("%x;ext=1\r\n%s\r\n", n, rest[:n]))
					rest = rest[n:]
				}
				c.send("0\r\nX-Trailer: t\r\n\r\n")
			} else {
				c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, body))
			}
			resp, b := c.answer("POST")
			var s seen
			if err := json.Unmarshal([]byte(b), &s); err != nil || resp.StatusCode != 200 || s.Body != body {
				t.Fatalf("%d bytes, chunked %v: %d, %d bytes came, %v", size, chunked, resp.StatusCode, len(s.Body), err)
			}
			c.send("GET /again HTTP/1.1\r\nHost: a\r\n\r\n") // the connection is where it should be
			if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
				t.Fatalf("%d bytes: the next request got %d", size, resp.StatusCode)
			}
		}
	}
}

// What two servers could understand in two ways is refused, and no endpoint gets to see it.
func TestSmugglingIsRefused(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()), Config{HeadTimeout: 2 * time.Second})
	for _, c := range []struct {
		name, raw string
		status    int
	}{
		{"CL and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"TE and CL", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
		{"two CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400},
		{"two equal CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400},
		{"CL list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400},
		{"CL sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400},
		{"CL hex", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd", 400},
		{"CL huge", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400},
		{"CL empty", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400},
		{"TE twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"TE identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400},
		{"TE x", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400},
		{"TE gzip", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501},
		{"TE tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", 400},
		{"TE in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"space before colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400},
		{"space first", "GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400},
		{"bare LF in fields", "GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n", 400},
		{"bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", 400},
		{"NUL", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400},
		{"empty name", "GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400},
		{"name with space", "GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"host with slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
		{"host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"tab in line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"fragment", "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"non-ASCII target", "GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"0.9", "GET /\r\n\r\n", 400},
		{"2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
		{"1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
		{"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", 400},
		{"relative target", "GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"star", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501},
		{"above the root", "GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"escaped above the root", "GET /a/%2e%2e/%2e./x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"NUL in path", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"unknown expectation", "GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417},
		{"large head", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 40000) + "\r\n\r\n", 431},
		{"many fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: a\r\n", 300) + "\r\n", 431},
		{"chunk size sign", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", 400},
		{"chunk size empty", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", 400},
		{"chunk size huge", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", 400},
		{"chunk bare LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400},
		{"chunk ext LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n", 400},
		{"chunk too long", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 400},
		{"chunk long ext", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("a", 300) + "\r\nhello\r\n0\r\n\r\n", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{t: t, srv: r.srv}
			cn := r.dial()
			cn.send(c.raw)
			resp, _ := cn.answer("GET")
			if resp.StatusCode != c.status {
				t.Errorf("%d, want %d", resp.StatusCode, c.status)
			}
			cn.closed()
		})
	}
	if n := e.count.Load(); n != 0 {
		t.Logf("the endpoint saw the beginning of %d requests with malformed chunks", n)
	}
}

// A request that is refused in its body's framing never looks complete to an endpoint.
func TestMalformedChunksDoNotComplete(t *testing.T) {
	complete := make(chan error, 1)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		complete <- err
	})
	r := start(t, simple(addr))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nXX\r\n")
	if resp, _ := c.answer("POST"); resp.StatusCode != 400 {
		t.Errorf("%d", resp.StatusCode)
	}
	if err := <-complete; err == nil {
		t.Error("the endpoint took the body for complete")
	}
}

func TestPathsAreNormalised(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/a/./b": "/a/b", "/a/../b": "/b", "/a/b/..": "/a/", "/a/.": "/a/", "/%61%2Fb": "/a%2Fb", "/a%2e%2e/b": "/a../b",
		"/a/%2e%2e/b": "/b", "//a//b": "//a//b", "/.well-known/x": "/.well-known/x", "/...": "/...", "*": "*", "/a%20b": "/a%20b",
	} {
		if got, err := cleanPath([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
}

func TestPipelining(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	c := r.dial()
	var all strings.Builder
	for i := range 50 {
		fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i)
	}
	c.send(all.String())
	for i := range 50 {
		_, b := c.answer("POST")
		var s seen
		if err := json.Unmarshal([]byte(b), &s); err != nil || s.Path != fmt.Sprintf("/%d", i) || s.Body != "abc" {
			t.Fatalf("%d: %q", i, b)
		}
	}
}

func TestOldAndSpecialRequests(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	c := r.dial()
	c.send("GET / HTTP/1.0\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("1.0: %d, close %v", resp.StatusCode, resp.Close)
	}
	c.closed()

	c = r.dial()
	c.send("\r\nGET http://a.example.com:80?q HTTP/1.1\r\nHost: other\r\n\r\n") // an empty line first, and the absolute form
	_, b := c.answer("GET")
	var s seen
	if err := json.Unmarshal([]byte(b), &s); err != nil || s.Path != "/?q" || s.Host != "a.example.com:80" {
		t.Errorf("absolute form: %s", b)
	}
	c.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if resp, b := c.answer("HEAD"); resp.StatusCode != 200 || b != "" {
		t.Errorf("HEAD: %d %q", resp.StatusCode, b)
	}
	if resp, _ := c.answer("OPTIONS"); resp.StatusCode != 200 {
		t.Errorf("OPTIONS *: %d", resp.StatusCode)
	}
	c.closed()
}

func TestExpectContinue(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if line, err := c.r.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if line, _ := c.r.ReadString('\n'); line != "\r\n" {
		t.Fatalf("%q", line)
	}
	c.send("hello")
	if _, b := c.answer("POST"); !strings.Contains(b, `"Body":"hello"`) {
		t.Error(b)
	}
}

// Both directions flow at once, with trailers at the ends.
func TestFullDuplex(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		buf := make([]byte, 1<<16)
		n := 0
		for {
			k, err := r.Body.Read(buf)
			n += k
			_, _ = w.Write(buf[:k])
			_ = rc.Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("X-Sum", fmt.Sprint(n, r.Trailer.Get("X-In")))
	})
	r := start(t, simple(addr))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-In\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, one); err != nil || one[0] != 'a' { // before the request has ended
		t.Fatalf("%q, %v", one, err)
	}
	const rounds, size = 64, 50000
	var wg sync.WaitGroup
	wg.Go(func() {
		p := strings.Repeat("x", size)
		for range rounds {
			fmt.Fprintf(c, "%x\r\n%s\r\n", size, p)
		}
		fmt.Fprint(c, "0\r\nX-In: in\r\n\r\n")
	})
	n, err := io.Copy(io.Discard, resp.Body)
	wg.Wait()
	if err != nil || n != rounds*size || resp.Trailer.Get("X-Sum") != fmt.Sprint(rounds*size+1, "in") {
		t.Errorf("%d bytes, %v, trailer %q", n, err, resp.Trailer.Get("X-Sum"))
	}
}

// An answer that comes before the request's end is passed on, and the connection ends.
func TestEarlyAnswer(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno\n")
		_, _ = io.Copy(io.Discard, c)
	})
	r := start(t, simple(addr))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + strings.Repeat("x", 100000))
	if resp, b := c.answer("POST"); resp.StatusCode != 413 || b != "no\n" {
		t.Errorf("%d %q", resp.StatusCode, b)
	}
}

func TestUpgrade(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Connection") != "Upgrade" {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-K: v\r\n\r\nfirst")
		_, _ = io.Copy(c, r)
	})
	r := start(t, simple(addr))
	c := r.dial()
	c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("X-K") != "v" || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%+v, %v", resp, err)
	}
	c.send("more")
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c.r); string(b) != "firstearlymore" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestUpgradeToH2cIsNot(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
	_, b := c.answer("GET")
	if strings.Contains(b, "Upgrade") || strings.Contains(b, "Http2-Settings") {
		t.Errorf("the endpoint got it: %s", b)
	}
}

// Malformed answers are 502, and never reach the client in part.
func TestBadAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"garbage":     "hello\r\n\r\n",
		"both":        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"bare LF":     "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"folded":      "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
		"status":      "HTTP/1.1 2x0 OK\r\n\r\n",
		"unasked 101": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"nothing":     "",
		"part":        "HTTP/1.1 200 OK\r\nContent-Le",
		"large head":  "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 50000) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			addr := talk(t, func(c net.Conn) {
				defer c.Close()
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, raw)
			})
			r := start(t, simple(addr))
			if resp, _ := r.once("GET", "/", nil, ""); resp.StatusCode != 502 {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
}

// A response cut off by its endpoint is cut off for the client too: it must not look complete.
func TestTruncatedAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			addr := talk(t, func(c net.Conn) {
				defer c.Close()
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, raw)
			})
			r := start(t, simple(addr))
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(c.r, nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Error("it looks complete")
			}
		})
	}
}

func TestAnswersUntilClose(t *testing.T) {
	body := bytes.Repeat([]byte("z"), 200000)
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n")
		_, _ = c.Write(body)
	})
	r := start(t, simple(addr))
	for range 2 {
		if resp, b := r.once("GET", "/", nil, ""); resp.StatusCode != 200 || b != string(body) {
			t.Errorf("%d, %d bytes", resp.StatusCode, len(b))
		}
	}
}

// Endpoints close kept connections at any time; requests must not notice.
func TestKeptConnectionsThatClose(t *testing.T) {
	var open atomic.Int64
	addr := talk(t, func(c net.Conn) {
		open.Add(1)
		defer func() {
			c.Close()
			open.Add(-1)
		}()
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // and then it closes, unannounced
	})
	r := start(t, simple(addr))
	c := r.dial()
	for i := range 50 {
		if i%2 == 0 {
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		} else {
			// POST is not sent twice: the end of the connection before must be there to be seen.
			until(t, "the endpoint has closed its connections", func() bool { return open.Load() == 0 })
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
		}
		if resp, b := c.answer("GET"); resp.StatusCode != 200 || b != "ok" {
			t.Fatalf("%d: %d %q", i, resp.StatusCode, b)
		}
	}
}

func TestSlowHeads(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()), Config{HeadTimeout: 200 * time.Millisecond, IdleTimeout: 300 * time.Millisecond})
	slow := r.dial()
	begin := time.Now()
	slow.send("GET / HTTP/1.1\r\nHost: ")
	go func() { // each byte on its own keeps no deadline at bay
		for range 100 {
			if _, err := slow.Write([]byte("a")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	if resp, _ := slow.answer("GET"); resp.StatusCode != 408 {
		t.Errorf("%d", resp.StatusCode)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	idle := r.dial()
	idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	idle.answer("GET")
	idle.closed()
	r.dial().closed() // says nothing at all
}

func TestConnectionLimit(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()), Config{MaxConnections: 2})
	a, b := r.dial(), r.dial()
	for _, c := range []*conn{a, b} {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.answer("GET")
	}
	over := r.dial()
	if _, err := over.r.ReadByte(); err == nil {
		t.Error("a third connection is served")
	}
	a.Close()
	until(t, "a place is free again", func() bool { return r.srv.conns.Load() == 1 })
	if resp, _ := r.once("GET", "/", nil, ""); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
}

// A body may take long as long as it moves; one that stands still ends.
func TestSlowBodies(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()), Config{BodyTimeout: 2 * time.Second})
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
	for range 10 {
		time.Sleep(300 * time.Millisecond) // slow is what is tested
		c.send(strings.Repeat("x", 10000))
	}
	if resp, b := c.answer("POST"); resp.StatusCode != 200 || len(b) < 100000 {
		t.Errorf("%d, %d bytes", resp.StatusCode, len(b))
	}
	still := map[string]*conn{}
	for _, head := range []string{"Content-Length: 10", "Content-Length: 100000", "Transfer-Encoding: chunked"} {
		still[head] = r.dial()
		still[head].send("POST / HTTP/1.1\r\nHost: a\r\n" + head + "\r\n\r\n")
	}
	for head, c := range still {
		if resp, _ := c.answer("POST"); resp.StatusCode != 408 {
			t.Errorf("%s: %d", head, resp.StatusCode)
		}
		c.closed()
	}
}

// Connections that wait cost little, however many there are, and leave nothing behind.
func TestIdleConnectionsAreSmall(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		for r := bufio.NewReader(c); ; {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r := start(t, simple(addr))
	buf := make([]byte, 1024)
	r.idle(2000, 16<<10, func(c net.Conn) {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if k, err := c.Read(buf); err != nil || !bytes.HasPrefix(buf[:k], []byte("HTTP/1.1 200")) {
			t.Fatalf("%q, %v", buf[:k], err)
		}
	})
}

// memoryInUse is how many bytes of heap and stacks are in use.
func memoryInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// idle opens connections that wait once use has come back, and fails when one costs more bytes than most, or something of
// them stays.
func (r *rig) idle(n int, most int64, use func(net.Conn)) {
	t := r.t
	t.Helper()
	before, goroutines := memoryInUse(), runtime.NumGoroutine()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", r.tcp())
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c
		use(c)
	}
	if per := (memoryInUse() - before) / int64(n); per > most {
		t.Errorf("%d bytes for each idle connection", per)
	} else {
		t.Logf("%d bytes for each idle connection", per)
	}
	for _, c := range conns {
		c.Close()
	}
	until(t, "no connection is left", func() bool { return r.srv.conns.Load() == 0 })
	until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines+4 })
}

// An endpoint that answers before it has got the request, and says that the connection can be kept, may throw away what
// comes after: no other request is sent over that connection. The client's goes on when the rest of the body is not long
// in coming.
func TestEarlyAnswersOfEndpointsThatLinger(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_, _ = io.Copy(io.Discard, r)
	})
	r := start(t, simple(addr))
	c := r.dial()
	const size = 2 * collectSmall // more than is collected before an endpoint is asked
	for i := range 5 {
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size/2)))
		if resp, b := c.answer("POST"); resp.StatusCode != 200 || b != "ok" {
			t.Errorf("%d: %d %q", i, resp.StatusCode, b)
		}
		c.send(strings.Repeat("x", size/2))
	}
}

// An endpoint that breaks off costs the client's connection nothing when all of the request had come.
// An endpoint that breaks off as soon as it has the whole request costs the client this request, and not the next one: who
// sends the body may or may not have ended by then.
func TestEndpointsThatBreakOff(t *testing.T) {
	var turns atomic.Int64
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		if turns.Add(1)%2 == 0 {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		}
	})
	r := start(t, simple(addr))
	c := r.dial()
	for i := range 200 {
		want := []int{502, 200}[i%2]
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 300000))
		if resp, _ := c.answer("POST"); resp.StatusCode != want {
			t.Fatalf("request %d: %d, want %d", i, resp.StatusCode, want)
		}
	}
}
