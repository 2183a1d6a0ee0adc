// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// What one request does on a connection to an endpoint must not cost the others there.

// Trailers of a request end it and are neither announced nor sent: servers of gRPC close a connection over them, and those of net/http2
// where they cross a reset.
func TestTrailersToHTTP2AreNotSent(t *testing.T) {
	for _, contentType := range []string{"application/grpc", "text/plain"} {
		ends := make(chan string, 10)
		r := start(t, over2(talk2(t, func(f *framer) {
			heads := map[uint32]int{}
			f.frames(func(fr http2.Frame) bool {
				id := fr.Header().StreamID
				switch fr := fr.(type) {
				case *http2.MetaHeadersFrame:
					if heads[id]++; heads[id] == 1 {
						if regular(fr, "trailer") != "" {
							ends <- "an announcement"
						}
						f.answer(id, false)
						break
					}
					_ = f.WriteGoAway(id, http2.ErrCodeProtocol, []byte("received an illegal stream id"))
					ends <- "HEADERS"
					return false
				case *http2.DataFrame:
					if fr.StreamEnded() {
						f.data(endStream, id, "")
						ends <- "DATA"
					}
				}
				return true
			})
		})))
		ended := func(request string) {
			t.Helper()
			select {
			case got := <-ends:
				if got != "DATA" {
					t.Errorf("%s %s ended with %s", contentType, request, got)
				}
			case <-time.After(10 * time.Second):
				t.Errorf("%s %s did not end", contentType, request)
			}
		}
		f := newFramer(t, r.tcp())
		fields := []string{":method", "POST", "content-type", contentType, "te", "trailers", "trailer", "x-in"}
		for _, id := range []uint32{1, 3} { // the first one goes on
			f.headers(endHeaders, id, head(fields...))
			if got := f.status(id); got != "200" {
				t.Fatalf("%s, stream %d: %s", contentType, id, got)
			}
		}
		f.data(0, 3, "hello")
		f.headers(whole, 3, pairs("x-in", "in"))
		ended("over HTTP/2")
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: " + contentType + "\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		time.Sleep(50 * time.Millisecond) // it comes in parts
		c.send("0\r\nX-In: in\r\n\r\n")
		ended("over HTTP/1.1")
		f.data(endStream, 1, "")
		ended("before it")
	}
}

// shared is the one connection of the one endpoint.
func (r *rig) shared() *h2up {
	p := &r.srv.tables.backends["b"].Load().endpoints.Load().all[0].h2
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) != 1 {
		r.t.Fatalf("%d connections", len(p.conns))
	}
	return p.conns[0]
}

// sums adds up what the connection's streams have got and may get at a time.
func (u *h2up) sums() (got, windows, grown int64) {
	u.mux.mu.Lock()
	defer u.mux.mu.Unlock()
	for _, s := range u.mux.streams {
		got += s.got
		windows += s.recvSize
	}
	return got, windows, u.mux.grown
}

// Answers that their clients don't take hold up no other answer of the connection (RFC 9113 section 5.2).
func TestAnswersThatStandStill(t *testing.T) {
	const size, streams = 1 << 20, 20
	r := start(t, over2(serve2(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, size)) }).Listener.Addr().String()))
	f := newFramer(t, r.tcp())
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range uint32(streams) {
		f.headers(whole, 2*i+1, head())
	}
	for range streams {
		f.verdict("")
	}
	u := r.shared()
	until(t, "windows are used up", func() bool { got, _, _ := u.sums(); return got >= connWindow })
	c := r.dial()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if got, _, _ := u.sums(); got > streams*streamWindow {
		t.Errorf("%d bytes are held", got)
	}
}

// What streams may hold when they stand still after they were fast is bounded on each connection.
func TestAnswersThatWereFast(t *testing.T) {
	const streams = 12
	r := start(t, over2(serve2(t, func(w http.ResponseWriter, _ *http.Request) {
		for b := make([]byte, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}).Listener.Addr().String()))
	f := newFramer(t, r.tcp())
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4 << 20})
	_ = f.WriteWindowUpdate(0, streams*4<<20)
	for i := range uint32(streams) {
		f.headers(whole, 2*i+1, head())
	}
	for got := 0; got < streams*4<<20; { // all that was let in
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := fr.(*http2.DataFrame); ok {
			got += len(d.Data())
		}
	}
	u := r.shared()
	if _, windows, grown := u.sums(); windows > streams*streamWindow+maxGrown || windows != streams*streamWindow+grown || grown == 0 {
		t.Errorf("windows of %d bytes in all, grown by %d", windows, grown)
	}
	f.conn.Close()
	until(t, "all is over", func() bool { _, windows, grown := u.sums(); return windows == 0 && grown == 0 })
}

// An endpoint that answers early and wants no more of the request (RFC 9113 section 8.1), or answers wrongly, does so
// once for each request: the connection goes on, and so do others' requests there.
func TestManyEarlyAnswers(t *testing.T) {
	const many = 3 * mostResets / 2
	for name, c := range map[string]struct {
		want string
		say  func(f *framer, id uint32)
	}{
		"early": {"200", func(f *framer, id uint32) { f.answer(id, true); _ = f.WriteRSTStream(id, http2.ErrCodeNo) }},
		"wrong": {"502", func(f *framer, id uint32) { f.headers(whole, id, pairs("x", "y")) }},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, over2(talk2(t, func(f *framer) {
				first := f.nextRequest()
				for range many {
					c.say(f, f.nextRequest())
				}
				f.answer(first, true)
				f.nextRequest()
			})))
			first := newFramer(t, r.tcp())
			first.headers(endHeaders, 1, head(":method", "POST"))
			until(t, "it is under way", func() bool { return r.srv.active.Load() == 1 })
			f := newFramer(t, r.tcp())
			for i := range uint32(many) {
				f.headers(endHeaders, 2*i+1, head(":method", "POST"))
				if got := f.status(2*i + 1); got != c.want {
					t.Fatalf("request %d: %s", i, got)
				}
			}
			if got := first.status(1); got != "200" {
				t.Errorf("the one before them: %s", got)
			}
		})
	}
}

// A peer that tells of each small piece that it has taken it, and measures the way, is no flood.
func TestPiecesAreAnswered(t *testing.T) {
	const pieces = mostFrames
	took, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	r := start(t, over2(talk2(t, func(f *framer) {
		f.frames(func(fr http2.Frame) bool {
			d, ok := fr.(*http2.DataFrame)
			if !ok {
				return true
			}
			if n := uint32(len(d.Data())); n > 0 {
				_ = f.WriteWindowUpdate(0, n)
				_ = f.WriteWindowUpdate(d.StreamID, n)
				_ = f.WritePing(false, [8]byte{})
				select {
				case took <- struct{}{}:
				case <-over:
					return false
				}
			}
			if d.StreamEnded() {
				f.answer(d.StreamID, true)
			}
			return true
		})
	})))
	f := newFramer(t, r.tcp())
	f.settle() // nothing is written below but by one goroutine
	f.headers(endHeaders, 1, head(":method", "POST"))
	go func() {
		for range pieces {
			f.data(0, 1, "0")
			select {
			case <-took:
			case <-over:
				return
			}
		}
		f.data(endStream, 1, "")
	}()
	if got := f.status(1); got != "200" {
		t.Error(got)
	}
}

// A request that crosses the last word of a connection that drains is passed over with all its frames (RFC 9113 section
// 6.8); those under way are answered.
func TestLateRequestsWhileDraining(t *testing.T) {
	release := make(chan struct{})
	r := start(t, simple(serve(t, func(http.ResponseWriter, *http.Request) { <-release })))
	f := newFramer(t, r.tcp())
	f.headers(whole, 1, head())
	until(t, "it is under way", func() bool { return r.srv.active.Load() == 1 })
	drained := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		drained <- r.srv.Drain(ctx)
	}()
	for last := uint32(maxWindow); last == maxWindow; {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch fr := fr.(type) {
		case *http2.GoAwayFrame:
			last = fr.LastStreamID
		case *http2.PingFrame:
			_ = f.WritePing(true, fr.Data)
		}
	}
	for _, id := range []uint32{3, 5} {
		f.headers(endHeaders, id, head(":method", "POST"))
		f.data(0, id, "body")
		_ = f.WriteWindowUpdate(id, 1000)
		f.headers(whole, id, pairs("x", "y"))
	}
	_ = f.WriteRSTStream(5, http2.ErrCodeCancel)
	f.settle()
	close(release)
	if got := f.verdict(""); got != "HEAD 1 200" {
		t.Error(got)
	}
	f.conn.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// A request whose fields are more than the endpoint takes is answered with 431 and not sent: servers end a connection
// over it (RFC 9113 section 6.5.2).
func TestHeadsThatEndpointsDoNotTake(t *testing.T) {
	var came atomic.Int64
	r := start(t, over2(talk2(t, func(f *framer) {
		f.frames(func(fr http2.Frame) bool {
			h, ok := fr.(*http2.MetaHeadersFrame)
			if !ok {
				return true
			}
			size := uint32(0)
			for _, field := range h.Fields {
				size += field.Size()
			}
			if came.Add(1) == 1 {
				_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: size})
			}
			f.answer(h.StreamID, true)
			return true
		})
	})))
	f := newFramer(t, r.tcp())
	for i, c := range []struct {
		x, want string
	}{{"x", "200"}, {"y", "200"}, {"yy", "431"}, {"", "200"}} {
		id := uint32(2*i + 1)
		f.headers(whole, id, head(":path", "/?q", "x", c.x))
		if got := f.status(id); got != c.want {
			t.Errorf("x: %s: %s, want %s", c.x, got, c.want)
		}
	}
	if n := came.Load(); n != 3 {
		t.Errorf("%d requests came, want 3", n)
	}
}

// A request that ends connections ends two at most.
func TestRequestsThatEndConnections(t *testing.T) {
	const conns = 5
	var ended atomic.Int64
	crowd := make(chan struct{})
	var came atomic.Int64
	r := start(t, over2(talk2(t, func(f *framer) {
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		f.frames(func(fr http2.Frame) bool {
			h, ok := fr.(*http2.MetaHeadersFrame)
			if !ok {
				return true
			}
			switch h.PseudoValue("path") {
			case "/end":
				ended.Add(1)
				return false
			case "/crowd":
				if came.Add(1) == conns {
					close(crowd)
				}
				<-crowd
			}
			f.answer(h.StreamID, true)
			return true
		})
	})))
	if resp, _ := r.once("GET", "/", nil, ""); resp.StatusCode != 200 { // the limit is known from now on
		t.Fatal(resp.StatusCode)
	}
	var wg sync.WaitGroup
	for range conns {
		wg.Go(func() { r.once("GET", "/crowd", nil, "") })
	}
	wg.Wait()
	if resp, _ := r.once("GET", "/end", nil, ""); resp.StatusCode != 502 || ended.Load() != 2 {
		t.Errorf("%d, %d connections have ended", resp.StatusCode, ended.Load())
	}
}
