// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// framer is an HTTP/2 client that says what it is told to, right or wrong.
type framer struct {
	t *testing.T
	*http2.Framer
	conn net.Conn
}

func newFramer(t *testing.T, addr string) *framer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	f := &framer{t, http2.NewFramer(c, c), c}
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

func block(fields [][2]string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range fields {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return b.Bytes()
}

// request sends a head; fields replace the usual ones of the same name.
func (f *framer) request(stream uint32, fields [][2]string, more bool) {
	all := [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}}
	for _, o := range fields {
		found := false
		for i := range all {
			if all[i][0] == o[0] {
				all[i], found = o, true
			}
		}
		if !found {
			all = append(all, o)
		}
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block(all), EndStream: !more, EndHeaders: true}); err != nil {
		f.t.Fatal(err)
	}
}

// status reads until a stream is answered: its status, or "reset", or "closed" when the connection ends.
func (f *framer) status(stream uint32) string {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			if fr.StreamID == stream {
				return fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == stream {
				return "reset"
			}
		case *http2.GoAwayFrame:
			return "closed"
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				_ = f.WriteSettingsAck()
			}
		}
	}
}

// frames has take look at each frame that comes until that wants no more or the connection ends. Settings are acknowledged.
func (f *framer) frames(take func(http2.Frame) (more bool)) {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return
		}
		if s, ok := fr.(*http2.SettingsFrame); ok {
			if !s.IsAck() {
				_ = f.WriteSettingsAck()
			}
			continue
		}
		if !take(fr) {
			return
		}
	}
}

// regular is the value of a head's field that is no pseudo-header field; "" is none.
func regular(h *http2.MetaHeadersFrame, name string) string {
	for _, f := range h.RegularFields() {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// ends tells whether the proxy ends the connection while f floods it.
func (f *framer) ends(flood func(i int) error) bool {
	go func() {
		for i := range 200000 {
			if flood(i) != nil {
				return
			}
		}
	}()
	for {
		fr, err := f.ReadFrame()
		if timedOut(err) {
			return false
		}
		if err != nil {
			return true
		}
		if _, ok := fr.(*http2.GoAwayFrame); ok {
			return true
		}
	}
}

// Floods end the connection instead of costing memory or time.
func TestHTTP2Floods(t *testing.T) {
	e := newEcho(t, "one")
	for name, flood := range map[string]func(*framer) func(int) error{
		"CONTINUATION": func(f *framer) func(int) error {
			return func(i int) error {
				if i == 0 {
					return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block([][2]string{{":method", "GET"}}), EndStream: true})
				}
				return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x40, 1, 'a', 1, 'b'}, 1000))
			}
		},
		"data for nothing": func(f *framer) func(int) error {
			return func(int) error { return f.WriteData(7, false, []byte("x")) }
		},
		"window overflow": func(f *framer) func(int) error {
			return func(int) error { return f.WriteWindowUpdate(0, 1<<31-1) }
		},
		"unknown first": func(f *framer) func(int) error {
			return func(int) error { return f.WriteRawFrame(http2.FramePushPromise, 0, 1, []byte{0, 0, 0, 2}) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, simple(e.addr()))
			f := newFramer(t, r.tcp())
			if !f.ends(flood(f)) {
				t.Error("it goes on")
			}
			f.conn.Close()
			until(t, "nothing is left of it", func() bool { return r.srv.conns.Load() == 0 && r.srv.active.Load() == 0 })
		})
	}
}

// Requests beyond the limit of a connection are refused, not queued.
func TestStreamLimit(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()), Config{MaxStreams: 5})
	f := newFramer(t, r.tcp())
	for i := range 10 {
		f.request(uint32(2*i+1), nil, true)
	}
	if s := f.status(19); s != "reset" {
		t.Errorf("the tenth request got %s", s)
	}
}

// Streams that are opened and reset at once (CVE-2023-44487) never run more requests than the limit of streams.
func TestRapidReset(t *testing.T) {
	var most, now atomic.Int64
	release := make(chan struct{})
	addr := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		defer now.Add(-1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	r := start(t, simple(addr), Config{MaxStreams: 10})
	f := newFramer(t, r.tcp())
	go func() {
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	for i := range 20000 {
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), EndStream: true, EndHeaders: true, BlockFragment: block([][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}})}) != nil {
			break
		}
		if f.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel) != nil {
			break
		}
	}
	if n := most.Load(); n > 20 { // those that end overlap with those that begin
		t.Errorf("%d requests at a time", n)
	}
	f.conn.Close()
	until(t, "nothing is left of it", func() bool { return r.srv.active.Load() == 0 })
}
