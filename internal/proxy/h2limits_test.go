// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weft-net/weft/internal/route"
)

// Floods of frames that lead to nothing end the connection, and leave nothing behind.
func TestHTTP2FloodsOfNothing(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	addr := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	for name, flood := range map[string]func(f *framer, i int) error{
		"PING":            func(f *framer, _ int) error { return f.WritePing(false, [8]byte{}) },
		"SETTINGS":        func(f *framer, _ int) error { return f.WriteSettings() },
		"PRIORITY":        func(f *framer, _ int) error { return f.WritePriority(1, http2.PriorityParam{}) },
		"unknown frames":  func(f *framer, _ int) error { return f.WriteRawFrame(0xfa, 0, 0, nil) },
		"crumbs":          func(f *framer, _ int) error { return f.WriteWindowUpdate(0, 1) },
		"resets of old":   func(f *framer, _ int) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) },
		"refused streams": func(f *framer, i int) error { f.headers(whole, uint32(2*i+3), head()); return nil },
		"malformed requests": func(f *framer, i int) error {
			f.headers(whole, uint32(2*i+3), head("Upper", "x"))
			return nil
		},
		"faults of streams": func(f *framer, i int) error { // CVE-2025-8671: the proxy is made to reset
			f.headers(whole, uint32(2*i+3), head())
			return f.WriteRawFrame(http2.FrameWindowUpdate, 0, uint32(2*i+3), make([]byte, 4))
		},
		"empty DATA": func(f *framer, i int) error {
			if i == 0 {
				f.headers(endHeaders, 3, head(":method", "POST"))
			}
			return f.WriteData(3, false, nil)
		},
		"empty CONTINUATION": func(f *framer, i int) error {
			if i == 0 {
				f.headers(0, 3, nil)
			}
			return f.WriteContinuation(3, false, nil)
		},
		"empty HEADERS": func(f *framer, i int) error {
			f.headers(endHeaders, 1, nil)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, simple(addr), Config{MaxStreams: 5})
			f := newFramer(t, r.tcp())
			f.headers(whole, 1, head())
			if !f.ends(func(i int) error { return flood(f, i) }) {
				t.Error("it goes on")
			}
			f.conn.Close()
			until(t, "nothing is left of it", func() bool { return r.srv.conns.Load() == 0 && r.srv.active.Load() == 0 })
		})
	}
}

// A client that does not read answers to its PINGs is not listened to for long, and costs little.
func TestUnreadPongs(t *testing.T) {
	r := start(t, simple(newEcho(t, "one").addr()), Config{SendTimeout: 500 * time.Millisecond})
	f := newFramer(t, r.tcp())
	_ = f.conn.(*net.TCPConn).SetReadBuffer(4096)
	for range 200000 {
		if f.WritePing(false, [8]byte{}) != nil {
			break
		}
	}
	until(t, "the connection ends", func() bool { return r.srv.conns.Load() == 0 })
}

// Small header blocks that say much (RFC 7541 section 7.3) are answered with 431, without being unfolded.
func TestHeaderBomb(t *testing.T) {
	r := start(t, simple(newEcho(t, "one").addr()))
	f := newFramer(t, r.tcp())
	b := append(head(), 0x40, 1, 'x', 0x7f, 0xa1, 0x1e) // a value of 4000 bytes goes into the table
	b = append(b, strings.Repeat("y", 4000)...)
	b = append(b, bytes.Repeat([]byte{0xbe}, 10000)...) // and comes 10,000 times: 40 MB
	f.headers(whole, 1, b)
	if got := f.verdict(""); got != "HEAD 1 431" {
		t.Error(got)
	}
	in := newBlock()
	in.begin(1, true)
	if fault := in.add(b); fault != nil || !in.tooLarge || in.size > 2*maxHead {
		t.Errorf("%v, %d bytes unfolded", fault, in.size)
	}
	f.headers(whole, 3, head()) // the tables are still those of both sides
	if got := f.verdict(""); got != "HEAD 3 200" {
		t.Error(got)
	}
}

// A client that grants no window gets its stream reset; others of the connection are served meanwhile.
func TestStalledWindow(t *testing.T) {
	var left atomic.Int64
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			defer left.Add(1)
			for range 1000 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
	})
	r := start(t, simple(addr), Config{SendTimeout: 3 * time.Second})
	f := newFramer(t, r.tcp())
	f.headers(whole, 1, head(":path", "/large"))
	for got := 0; got < defaultWindow; {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := fr.(*http2.DataFrame); ok {
			got += len(d.Data())
		}
	}
	f.headers(whole, 3, head()) // the connection's window is used up, but this needs none
	if got := f.verdict(""); got != "HEAD 3 200" {
		t.Error(got)
	}
	if got := f.verdict(""); !strings.HasPrefix(got, "RST 1") {
		t.Error(got)
	}
	until(t, "the endpoint is rid of it", func() bool { return left.Load() == 1 })
	f.headers(whole, 5, head())
	if got := f.verdict(""); got != "HEAD 5 200" {
		t.Error(got)
	}
}

// What has begun to come must come to its end in time, whatever drips.
func TestSlowHTTP2(t *testing.T) {
	e := newEcho(t, "one")
	drip := func(c net.Conn) {
		for range 1000 {
			if _, err := c.Write([]byte{0}); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond) // slow is what is tested
		}
	}
	for name, begin := range map[string]func(f *framer){
		"no SETTINGS": func(*framer) {},
		"half a frame": func(f *framer) {
			_ = f.WriteSettings()
			_, _ = f.conn.Write([]byte{0, 0x10, 0, byte(http2.FrameHeaders), 0, 0, 0, 0, 1})
		},
		"half a block": func(f *framer) {
			_ = f.WriteSettings()
			f.headers(0, 1, head()[:3])
			_, _ = f.conn.Write([]byte{0, 0x10, 0, byte(http2.FrameContinuation), 0, 0, 0, 0, 1})
		},
		"nothing more": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, simple(e.addr()), Config{HeadTimeout: 300 * time.Millisecond, IdleTimeout: 300 * time.Millisecond})
			c := r.dial()
			c.send(http2.ClientPreface)
			f := &framer{t, http2.NewFramer(c, c), c}
			f.AllowIllegalWrites = true
			if begin != nil {
				begin(f)
				go drip(c)
			} else {
				_ = f.WriteSettings()
			}
			until(t, "the connection ends", func() bool { return r.srv.conns.Load() == 0 })
		})
	}
}

// A silent client with requests under way is asked for a sign of life.
func TestSilentHTTP2(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	addr := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	r := start(t, simple(addr), Config{IdleTimeout: time.Second})
	f := newFramer(t, r.tcp())
	f.headers(whole, 1, head())
	for n := 0; n < 3; {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := fr.(*http2.PingFrame); ok && !p.IsAck() {
			n++
			_ = f.WritePing(true, p.Data)
		}
	}
}

// Connections of HTTP/2 that wait cost little, and leave nothing behind.
func TestIdleHTTP2IsSmall(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r := start(t, simple(addr))
	hello := append([]byte(http2.ClientPreface), appendSettings(nil)...)
	block := head()
	hello = append(appendFrame(hello, len(block), http2.FrameHeaders, whole, 1), block...)
	r.idle(1000, 24<<10, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Write(hello)
		var got []byte
		buf := make([]byte, 1024)
		// The stream ends with the body's frame, or with an empty one after it.
		for !bytes.Contains(got, []byte("\x00\x00\x02\x00\x01\x00\x00\x00\x01ok")) && !bytes.Contains(got, []byte("ok\x00\x00\x00\x00\x01\x00\x00\x00\x01")) {
			k, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%q, %v", got, err)
			}
			got = append(got, buf[:k]...)
		}
	})
}

// Whatever a client sends, nothing of it stays.
func FuzzFrames(f *testing.F) {
	hello := append([]byte(http2.ClientPreface), appendSettings(nil)...)
	block := head()
	get := append(appendFrame(hello[:len(hello):len(hello)], len(block), http2.FrameHeaders, whole, 1), block...)
	f.Add(get)
	f.Add(append(get, appendPing(nil, 0, make([]byte, 8))...))
	f.Add(append(appendFrame(hello[:len(hello):len(hello)], len(block), http2.FrameHeaders, endHeaders, 1), append(block, appendFrame(nil, 3, http2.FrameData, endStream, 1)...)...))
	f.Add(append(get, appendSettings(nil, setting{http2.SettingInitialWindowSize, 1})...))
	f.Add(append(get, appendReset(appendWindowUpdate(nil, 1, 5), 1, http2.ErrCodeCancel)...))
	u := simple("127.0.0.1:1")
	u.Complete = true
	u.Listeners[0].Addresses = loopback
	srv := New(Config{HeadTimeout: 50 * time.Millisecond, IdleTimeout: 50 * time.Millisecond})
	f.Cleanup(srv.Close)
	if err := srv.Apply(&u); err != nil {
		f.Fatal(err)
	}
	var port *port
	for _, p := range srv.tables.ports {
		port = p
	}
	var one sync.Mutex
	f.Fuzz(func(t *testing.T, in []byte) {
		one.Lock()
		defer one.Unlock()
		if len(in) > 1<<16 {
			return
		}
		pe := &peer{port: port, scheme: "http"}
		w := newWire(&memory{r: bytes.NewReader(in)})
		srv.serveH2(w, pe)
		until(t, "nothing is left", func() bool { return srv.active.Load() == 0 })
	})
}

// memory is a connection whose client has said all it will.
type memory struct {
	net.Conn
	r *bytes.Reader
}

func (m *memory) Read(p []byte) (int, error)       { return m.r.Read(p) }
func (m *memory) Write(p []byte) (int, error)      { return len(p), nil }
func (m *memory) Close() error                     { return nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }

// A body that its reader is told to give up never looks complete.
func TestGivenUpBodies(t *testing.T) {
	m := newMux(newWire(&memory{r: bytes.NewReader(nil)}), &h2conn{}, time.Minute, time.Minute, time.Minute)
	var s h2stream
	m.mu.Lock()
	s.prepare(m, 1)
	s.patience = time.Minute
	s.received([]byte("the beginning"))
	s.endOfInput()
	m.mu.Unlock()
	s.giveUp()
	if p, err := s.next(); !timedOut(err) {
		t.Errorf("%q, %v", p, err)
	}
}

// Whatever an endpoint sends, the exchange ends, and what is made of an answer can be sent on.
func FuzzEndpointFrames(f *testing.F) {
	settings := appendSettings(nil, setting{http2.SettingMaxConcurrentStreams, 10}, setting{http2.SettingEnableConnectProtocol, 1})
	answer := pairs(":status", "200", "content-length", "3", "x-a", "b")
	headers := func(block []byte, flags http2.Flags) []byte {
		return append(appendFrame(settings[:len(settings):len(settings)], len(block), http2.FrameHeaders, flags, 1), block...)
	}
	f.Add(append(headers(answer, endHeaders), append(appendFrame(nil, 3, http2.FrameData, endStream, 1), "abc"...)...), false)
	f.Add(append(headers(pairs(":status", "103", "link", "x"), endHeaders), headers(answer, whole)[len(settings):]...), false)
	f.Add(append(headers(pairs(":status", "200"), endHeaders), headers(pairs("grpc-status", "0"), whole)[len(settings):]...), false)
	f.Add(headers(pairs(":status", "200"), endHeaders), true)
	f.Add(appendGoAway(settings[:len(settings):len(settings)], 0, http2.ErrCodeNo, "bye"), false)
	f.Add(appendReset(settings[:len(settings):len(settings)], 1, http2.ErrCodeRefusedStream), true)
	f.Fuzz(func(t *testing.T, in []byte, socket bool) {
		if len(in) > 1<<16 {
			return
		}
		e := &endpoint{backend: &backend{conf: route.Backend{Protocol: route.HTTP2}}}
		u := &h2up{endpoint: e, nextID: 1, most: streamsUntold, takes: notOffered, told: make(chan struct{})}
		u.mux = newMux(newWire(&memory{r: bytes.NewReader(in)}), u, time.Minute, time.Minute, time.Minute)
		x := &exchange{srv: &Server{}, peer: &peer{}, major: 2, method: "GET", path: "/", authority: "a"}
		call := &h2call{socket: socket}
		if _, err := u.begin(x, call); err != nil {
			t.Fatal(err)
		}
		_ = u.mux.read() // all that there is; the connection ends with it
		for {
			info, err := call.await()
			if err != nil {
				break
			}
			for _, h := range info.fields {
				for _, c := range h.value {
					if !isValue[c] {
						t.Errorf("%q has a value %q", h.name, h.value)
					}
				}
			}
			if info.status >= 200 {
				for err == nil {
					_, err = call.next()
				}
				if err == io.EOF && call.declared >= 0 && call.got != call.declared {
					t.Errorf("%d bytes of %d are all", call.got, call.declared)
				}
				break
			}
		}
		call.finish(http2.ErrCodeCancel)
	})
}

// A block says the same however it is cut into frames, and a request that it makes is one that HTTP/1.1 can say.
func FuzzBlock(f *testing.F) {
	f.Add(head("x-a", "b", "cookie", "c=d", "cookie", "e=f", "content-length", "5"), uint8(3))
	f.Add(head(":method", "CONNECT", ":protocol", "websocket"), uint8(7))
	f.Add(head("transfer-encoding", "chunked"), uint8(1))
	f.Add(pairs(":method", "GET", ":path", "/../x", ":scheme", "http", "host", "a"), uint8(200))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		read := func(step int) (x *exchange, verdict string) {
			b := newBlock()
			b.begin(1, true)
			for rest := in; len(rest) > 0; {
				n := min(step, len(rest))
				if fault := b.add(rest[:n]); fault != nil {
					return nil, fault.code.String()
				}
				rest = rest[n:]
			}
			if fault := b.finish(); fault != nil {
				return nil, fault.code.String()
			}
			x = &exchange{}
			malformed, refusal := b.request(x)
			if malformed != "" || refusal != nil {
				return nil, fmt.Sprint(malformed, refusal)
			}
			return x, ""
		}
		step := max(int(cut), 1, (len(in)+maxBlockFrames-1)/maxBlockFrames)
		one, v1 := read(max(len(in), 1))
		two, v2 := read(step)
		if v1 != v2 {
			t.Fatalf("%q: %q in one piece, %q in pieces of %d", in, v1, v2, step)
		}
		if one == nil {
			return
		}
		w := &wire{}
		one.writeRequest(w)
		text := string(w.out)
		w.out = nil
		two.writeRequest(w)
		if text != string(w.out) {
			t.Errorf("%q became %q and %q", in, text, w.out)
		}
		var h requestHead
		if perr := parseRequest([]byte(text), &h); perr != nil {
			t.Errorf("%q: %s", text, perr.reason)
		} else if one.upgrade == "" && h.length > 0 || h.length < 0 {
			t.Errorf("%q has a body", text)
		}
	})
}
