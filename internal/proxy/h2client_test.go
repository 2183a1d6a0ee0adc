// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weft-net/weft/internal/route"
)

// over2 is simple's update with endpoints that speak HTTP/2.
func over2(endpoints ...string) route.Update {
	u := simple(endpoints...)
	u.Backends[0].Protocol = route.HTTP2
	return u
}

// serve2 is an endpoint of HTTP/2 with prior knowledge.
func serve2(t *testing.T, h http.HandlerFunc, conf ...*http.HTTP2Config) *httptest.Server {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = &p
	if len(conf) > 0 {
		s.Config.HTTP2 = conf[0]
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// talk2 is an endpoint that says in frames what it is told to. request waits for the next request's stream.
func talk2(t *testing.T, f func(f *framer)) string {
	return talk(t, func(c net.Conn) {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		fr := &framer{t, http2.NewFramer(c, c), c}
		fr.AllowIllegalWrites = true
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		_ = fr.WriteSettings()
		f(fr)
	})
}

// request waits for the head of the next request; 0 when the connection ends first.
func (f *framer) nextRequest() uint32 {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return 0
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			return fr.StreamID
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				_ = f.WriteSettingsAck()
			}
		}
	}
}

func (f *framer) answer(stream uint32, end bool, fields ...string) {
	flags := endHeaders
	if end {
		flags = whole
	}
	f.headers(flags, stream, pairs(append([]string{":status", "200"}, fields...)...))
}

// An endpoint that says goodbye after every few requests loses none of them, whatever their method.
func TestGoAwayLosesNothing(t *testing.T) {
	var served, conns atomic.Int64
	addr := talk2(t, func(f *framer) {
		conns.Add(1)
		for n := 1; ; n++ {
			id := f.nextRequest()
			if id == 0 {
				return
			}
			if n == 10 { // this one and those after it are not looked at
				_ = f.WriteGoAway(id-2, http2.ErrCodeNo, nil)
				_, _ = io.Copy(io.Discard, f.conn)
				return
			}
			served.Add(1)
			f.answer(id, true)
		}
	})
	r := start(t, over2(addr))
	var wg sync.WaitGroup
	const clients, each = 8, 50
	for range clients {
		wg.Go(func() {
			c := r.dial()
			for range each {
				c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
				if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
					t.Errorf("%d", resp.StatusCode)
				}
			}
		})
	}
	wg.Wait()
	if n := served.Load(); n != clients*each {
		t.Errorf("%d requests were acted on, want %d", n, clients*each)
	}
	if conns.Load() < 20 {
		t.Errorf("only %d connections", conns.Load())
	}
}

// Streams that are turned down go to another endpoint; their endpoint's limit is kept.
func TestRefusedStreams(t *testing.T) {
	refuse := talk2(t, func(f *framer) {
		for id := f.nextRequest(); id != 0; id = f.nextRequest() {
			_ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		}
	})
	e := serve2(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	r := start(t, over2(refuse, e.Listener.Addr().String()))
	for range 20 {
		if resp, b := r.once("POST", "/", nil, "over"); resp.StatusCode != 200 || b != "over" {
			t.Errorf("%d %q", resp.StatusCode, b)
		}
	}
}

func TestConcurrentStreamsOfEndpoints(t *testing.T) {
	const limit, all = 3, 30
	var mu sync.Mutex
	now, most := map[string]int{}, 0
	var came atomic.Int64
	crowd := make(chan struct{}) // closed when more requests are there than one connection takes
	e := serve2(t, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now[r.RemoteAddr]++
		most = max(most, now[r.RemoteAddr])
		mu.Unlock()
		switch n := came.Add(1); {
		case n == limit+2: // the first one was alone
			close(crowd)
		case n > 1:
			<-crowd
		}
		mu.Lock()
		now[r.RemoteAddr]--
		mu.Unlock()
	}, &http.HTTP2Config{MaxConcurrentStreams: limit})
	r := start(t, over2(e.Listener.Addr().String()))
	if resp, _ := r.once("GET", "/", nil, ""); resp.StatusCode != 200 { // the limit is known from now on
		t.Fatal(resp.StatusCode)
	}
	var wg sync.WaitGroup
	for range all {
		wg.Go(func() {
			if resp, _ := r.once("GET", "/", nil, ""); resp.StatusCode != 200 {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
	wg.Wait()
	if most > limit || len(now) < 2 {
		t.Errorf("%d streams at a time on one connection, %d connections", most, len(now))
	}
}

// A kept connection that its endpoint closes without a word costs no request that may be sent again.
func TestKeptHTTP2ThatCloses(t *testing.T) {
	addr := talk2(t, func(f *framer) {
		f.answer(f.nextRequest(), true)
		f.nextRequest() // and then it is gone
	})
	r := start(t, over2(addr))
	for range 10 {
		if resp, _ := r.once("GET", "/", nil, ""); resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
	}
}

// Malformed answers are 502 and do not harm other requests of the connection.
func TestBadAnswersInHTTP2(t *testing.T) {
	for name, say := range map[string]func(f *framer, id uint32){
		"no status":         func(f *framer, id uint32) { f.headers(whole, id, pairs("x", "y")) },
		"request's fields":  func(f *framer, id uint32) { f.headers(whole, id, head()) },
		"status of letters": func(f *framer, id uint32) { f.headers(whole, id, pairs(":status", "2x0")) },
		"101":               func(f *framer, id uint32) { f.headers(whole, id, pairs(":status", "101")) },
		"upper case":        func(f *framer, id uint32) { f.answer(id, true, "X-A", "b") },
		"CRLF":              func(f *framer, id uint32) { f.answer(id, true, "x", "a\r\nb: c") },
		"transfer-encoding": func(f *framer, id uint32) { f.answer(id, true, "transfer-encoding", "chunked") },
		"content-length":    func(f *framer, id uint32) { f.answer(id, true, "content-length", "4") },
		"data first":        func(f *framer, id uint32) { f.data(endStream, id, "x") },
		"reset":             func(f *framer, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeInternal) },
		"large head": func(f *framer, id uint32) {
			f.answer(id, true, "x", strings.Repeat("y", 16000), "y", strings.Repeat("y", 16000))
		},
		"1xx ends it":       func(f *framer, id uint32) { f.headers(whole, id, pairs(":status", "103")) },
		"goodbye":           func(f *framer, id uint32) { _ = f.WriteGoAway(id, http2.ErrCodeInternal, nil); f.conn.Close() },
		"a frame too large": func(f *framer, id uint32) { f.data(0, id, strings.Repeat("x", maxFrame+1)) },
		"push": func(f *framer, id uint32) {
			f.frame(http2.FramePushPromise, endHeaders, id, append([]byte{0, 0, 0, 2}, head()...))
		},
		"endless 1xx": func(f *framer, id uint32) {
			for range 100000 {
				if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: pairs(":status", "103"), EndHeaders: true}) != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr := talk2(t, func(f *framer) {
				for id := f.nextRequest(); id != 0; id = f.nextRequest() {
					say(f, id)
				}
			})
			r := start(t, over2(addr))
			c := r.dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
			for {
				resp, _ := c.answer("POST")
				if resp.StatusCode == 103 && name == "endless 1xx" {
					continue
				}
				if resp.StatusCode != 502 {
					t.Errorf("%d", resp.StatusCode)
				}
				break
			}
		})
	}
}

// An answer that is cut off must not look complete, to clients of either version.
func TestTruncatedHTTP2(t *testing.T) {
	addr := talk2(t, func(f *framer) {
		for id := f.nextRequest(); id != 0; id = f.nextRequest() {
			f.answer(id, false)
			f.data(0, id, "part")
			_ = f.WriteRSTStream(id, http2.ErrCodeInternal)
		}
	})
	r := start(t, over2(addr))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("it looks complete")
	}
	f := newFramer(t, r.tcp())
	f.headers(whole, 1, head())
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if fr.Header().StreamID == 1 && fr.Header().Flags.Has(http2.FlagDataEndStream) && fr.Header().Type != http2.FrameRSTStream {
			t.Fatal("it looks complete")
		}
		if fr.Header().Type == http2.FrameRSTStream {
			break
		}
	}
}

// Trailers go through in both directions between all pairs of versions, but for requests' to HTTP/2, and so do 103 and 100.
func TestTrailersAndInformational(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(103)
		w.Header().Del("Link")
		w.Header().Set("Trailer", "X-Out")
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
		w.Header().Set("X-Out", "out="+r.Trailer.Get("X-In"))
	}
	one, two := serve(t, h), serve2(t, h)
	for name, u := range map[string]route.Update{"to 1": simple(one), "to 2": over2(two.Listener.Addr().String())} {
		r := start(t, u)
		want := map[string]string{"to 1": "out=in", "to 2": "out="}[name]
		for _, h2 := range []bool{false, true} {
			tr := &http.Transport{}
			if h2 {
				tr = h2cClient()
			}
			req, _ := http.NewRequest("POST", "http://"+r.tcp()+"/", io.NopCloser(strings.NewReader("body")))
			req.Trailer = http.Header{"X-In": {"in"}}
			early := 0
			req = req.WithContext(traceEarly(t.Context(), &early))
			resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
			if err != nil {
				t.Fatalf("%s, h2 %v: %v", name, h2, err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(b) != "body" || resp.Trailer.Get("X-Out") != want || early != 1 {
				t.Errorf("%s, h2 %v: %q, %v, trailer %q, %d early", name, h2, b, err, resp.Trailer.Get("X-Out"), early)
			}
			tr.CloseIdleConnections()
		}
	}
}

// Large bodies go through unharmed both ways at once between all pairs of versions, beside others on the connection.
func TestLargeBodies(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}
	one, two := serve(t, h), serve2(t, h)
	body := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	sum := sha256.Sum256(body)
	for name, u := range map[string]route.Update{"to 1": simple(one), "to 2": over2(two.Listener.Addr().String())} {
		r := start(t, u)
		tr := h2cClient()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				var src io.Reader = bytes.NewReader(body)
				if i%2 == 0 {
					src = io.NopCloser(src) // of unknown length
				}
				req, _ := http.NewRequest("POST", "http://"+r.tcp()+"/", src)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				defer resp.Body.Close()
				s := sha256.New()
				if n, err := io.Copy(s, resp.Body); err != nil || n != int64(len(body)) || [32]byte(s.Sum(nil)) != sum {
					t.Errorf("%s: %d bytes, %v", name, n, err)
				}
			})
		}
		wg.Wait()
		tr.CloseIdleConnections()
		until(t, name+": all is over", func() bool { return r.srv.active.Load() == 0 })
	}
}

// What a client no longer wants, its endpoint is told.
func TestCancelToHTTP2(t *testing.T) {
	gone := make(chan struct{}, 2)
	e := serve2(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/head" {
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	r := start(t, over2(e.Listener.Addr().String()))
	for _, path := range []string{"/head", "/none"} {
		f := newFramer(t, r.tcp())
		f.headers(whole, 1, head(":path", path))
		if path == "/head" {
			f.verdict("")
		} else {
			until(t, "the request is under way", func() bool { return r.srv.active.Load() == 1 })
		}
		_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
		select {
		case <-gone:
		case <-time.After(15 * time.Second):
			t.Fatal("the endpoint goes on")
		}
		until(t, "the exchange is over", func() bool { return r.srv.active.Load() == 0 })
	}
	if b := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]; b.fails.Load() != 0 {
		t.Error("the endpoint is blamed for clients that left")
	}
}

// Cookies that come one by one are one field for the endpoint (RFC 9113 section 8.2.3).
func TestCookieCrumbs(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	f := newFramer(t, r.tcp())
	f.headers(whole, 1, head("cookie", "a=b", "x", "y", "cookie", "c=d", "cookie", "e=f"))
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := fr.(*http2.DataFrame); ok {
			var s seen
			if err := json.Unmarshal(d.Data(), &s); err != nil || len(s.Header["Cookie"]) != 1 || s.Header.Get("Cookie") != "a=b; c=d; e=f" {
				t.Errorf("%v, %v", s.Header["Cookie"], err)
			}
			return
		}
	}
}

// A WebSocket over HTTP/2 (RFC 8441) is one of HTTP/1.1 to its endpoint.
func TestWebSocketOverHTTP2(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		b := bufio.NewReader(c)
		req, err := http.ReadRequest(b)
		if err != nil || req.Method != "GET" || req.Header.Get("Upgrade") != "websocket" || len(req.Header["Sec-Websocket-Key"]) != 1 || len(req.Header.Get("Sec-Websocket-Key")) != 24 ||
			req.Header.Get("Sec-Websocket-Version") != "13" {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		if req.URL.Path == "/no" {
			_, _ = io.WriteString(c, "HTTP/1.1 "+req.URL.RawQuery+" No\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: p\r\n\r\nfirst")
		_, _ = io.Copy(c, b)
	})
	r := start(t, simple(addr))
	f := newFramer(t, r.tcp())
	connect := func(id uint32, path string) {
		f.headers(endHeaders, id, head(":method", "CONNECT", ":protocol", "websocket", ":path", path, "sec-websocket-version", "13",
			"sec-websocket-key", "is of no use here")) // RFC 8441 section 5
	}
	connect(1, "/")
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := fr.(*http2.MetaHeadersFrame); ok {
			got := fmt.Sprint(h.PseudoValue("status"), h.RegularFields())
			if !strings.HasPrefix(got, "200") || !strings.Contains(got, `sec-websocket-protocol`) || strings.Contains(got, "accept") || strings.Contains(got, "upgrade") || h.StreamEnded() {
				t.Errorf("%s", got)
			}
			break
		}
	}
	var got []byte
	read := func(want string) {
		for !strings.HasSuffix(string(got), want) {
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("%q, %v", got, err)
			}
			if d, ok := fr.(*http2.DataFrame); ok {
				got = append(got, d.Data()...)
			}
		}
	}
	read("first")
	for i := range 10 {
		msg := fmt.Sprintf("message %d", i)
		f.data(0, 1, msg)
		read(msg)
	}
	f.data(endStream, 1, "")
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := fr.(*http2.DataFrame); ok && d.StreamEnded() {
			break
		}
	}
	// An endpoint's refusal is the client's; what only looks like agreement is not.
	connect(3, "/no?403")
	if got := f.verdict(""); got != "HEAD 3 403" {
		t.Error(got)
	}
	connect(5, "/no?200")
	if got := f.verdict(""); got != "HEAD 5 502" {
		t.Error(got)
	}
	// A client that leaves ends the endpoint's connection.
	connect(7, "/")
	if got := f.verdict(""); got != "HEAD 7 200" {
		t.Error(got)
	}
	_ = f.WriteRSTStream(7, http2.ErrCodeCancel)
	until(t, "the tunnel is over", func() bool { return r.srv.active.Load() == 0 })
}

// Draining loses no request: clients are told in time, and those under way are answered.
func TestDrainHTTP2(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(5 * time.Millisecond)
		_, _ = io.WriteString(w, "ok")
	})
	r := start(t, simple(addr))
	f := newFramer(t, r.tcp())
	var sent, answered atomic.Int64
	stop := make(chan struct{})
	done := make(chan uint32)
	go func() { // requests until told not to
		for id := uint32(1); ; id += 2 {
			select {
			case <-stop:
				done <- id
				return
			default:
			}
			f.headers(whole, id, head())
			sent.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	until(t, "requests are under way", func() bool { return sent.Load() > 20 })
	drained := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		drained <- r.srv.Drain(ctx)
	}()
	told, last := false, uint32(0)
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			break
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			if fr.PseudoValue("status") == "200" {
				answered.Add(1)
			}
		case *http2.GoAwayFrame:
			if !told {
				told = true
				close(stop)
				last = <-done
			}
		case *http2.PingFrame:
			_ = f.WritePing(true, fr.Data)
		}
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if n := answered.Load(); !told || n != sent.Load() {
		t.Errorf("told %v, %d of %d requests answered, up to %d", told, n, sent.Load(), last)
	}
}

func traceEarly(ctx context.Context, n *int) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
		if code == 103 {
			*n++
		}
		return nil
	}})
}

// Answers without a body say how long it would be, where they say so, and end with their head.
func TestBodylessHTTP2(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "5")
			if r.Method != "HEAD" {
				_, _ = io.WriteString(w, "12345")
			}
		}
	}
	one, two := serve(t, h), serve2(t, h)
	for name, u := range map[string]route.Update{"to 1": simple(one), "to 2": over2(two.Listener.Addr().String())} {
		r := start(t, u)
		f := newFramer(t, r.tcp())
		c := r.dial()
		for i, want := range []struct{ method, path, status, length string }{
			{"HEAD", "/", "200", "5"}, {"GET", "/204", "204", ""}, {"GET", "/304", "304", ""}, {"GET", "/", "200", "5"},
		} {
			id := uint32(2*i + 1)
			f.headers(whole, id, head(":method", want.method, ":path", want.path))
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				h, ok := fr.(*http2.MetaHeadersFrame)
				if !ok || h.StreamID != id {
					continue
				}
				length := ""
				for _, f := range h.RegularFields() {
					if f.Name == "content-length" {
						length += f.Value
					}
				}
				if h.PseudoValue("status") != want.status || length != want.length || h.StreamEnded() != (want.method == "HEAD" || want.status != "200") {
					t.Errorf("%s %s %s: %s, length %q, ended %v", name, want.method, want.path, h.PseudoValue("status"), length, h.StreamEnded())
				}
				break
			}
			c.send(want.method + " " + want.path + " HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, b := c.answer(want.method)
			if fmt.Sprint(resp.StatusCode) != want.status || resp.Header.Get("Content-Length") != want.length || (b != "") != (want.method == "GET" && want.status == "200") {
				t.Errorf("%s %s %s in HTTP/1.1: %d, length %q, %q", name, want.method, want.path, resp.StatusCode, resp.Header.Get("Content-Length"), b)
			}
		}
	}
}
