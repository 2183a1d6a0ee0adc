// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// socket2 is an endpoint of HTTP/2 that, when it offers to, takes WebSockets and says back what they say. Paths that
// begin with /no are refused with the status that the query names.
func socket2(t *testing.T, offers bool, requests *atomic.Int64) string {
	return talk(t, func(c net.Conn) {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := &framer{t, http2.NewFramer(c, c), c}
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		if offers {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		} else {
			_ = f.WriteSettings()
		}
		f.frames(func(fr http2.Frame) bool {
			switch fr := fr.(type) {
			case *http2.MetaHeadersFrame:
				requests.Add(1)
				path, query, _ := strings.Cut(fr.PseudoValue("path"), "?")
				says := fmt.Sprint(fr.PseudoValue("method"), " ", fr.PseudoValue("protocol"), " ", fr.StreamEnded())
				for _, h := range fr.RegularFields() {
					if h.Name == "sec-websocket-key" {
						says += " key"
					}
				}
				if path == "/no" {
					f.headers(whole, fr.StreamID, pairs(":status", query))
					break
				}
				f.headers(endHeaders, fr.StreamID, pairs(":status", "200", "x-says", says, "sec-websocket-protocol", "p"))
				if fr.StreamEnded() {
					f.data(endStream, fr.StreamID, "")
				}
			case *http2.DataFrame:
				var flags http2.Flags
				if fr.StreamEnded() {
					flags = endStream
				}
				f.data(flags, fr.StreamID, string(fr.Data()))
			}
			return true
		})
	})
}

// A WebSocket goes to an endpoint of HTTP/2 as that takes it (RFC 8441), whatever the client speaks.
func TestWebSocketToHTTP2(t *testing.T) {
	var requests atomic.Int64
	r := start(t, over2(socket2(t, true, &requests)))
	t.Run("HTTP/2", func(t *testing.T) {
		f := newFramer(t, r.tcp())
		connect := func(id uint32, path string) {
			f.headers(endHeaders, id, head(":method", "CONNECT", ":protocol", "websocket", ":path", path, "sec-websocket-version", "13"))
		}
		connect(1, "/")
		var got []byte
		read := func(end bool, want string) {
			t.Helper()
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					t.Fatalf("%q, %v", got, err)
				}
				switch fr := fr.(type) {
				case *http2.MetaHeadersFrame:
					got = fmt.Append(got, fr.PseudoValue("status"), fr.StreamEnded())
					got = append(got, regular(fr, "x-says")...)
				case *http2.DataFrame:
					if got = append(got, fr.Data()...); fr.StreamEnded() && !end {
						t.Fatalf("%q, and the end", got)
					} else if fr.StreamEnded() {
						return
					}
				case *http2.RSTStreamFrame:
					t.Fatalf("%q, reset: %v", got, fr.ErrCode)
				}
				if !end && strings.HasSuffix(string(got), want) {
					return
				}
			}
		}
		read(false, "200falseCONNECT websocket false")
		for i := range 10 {
			msg := fmt.Sprintf("message %d", i)
			f.data(0, 1, msg)
			read(false, msg)
		}
		f.data(endStream, 1, "")
		read(true, "")
		connect(3, "/no?403")
		if got := f.verdict(""); got != "HEAD 3 403" {
			t.Error(got)
		}
		// A client that leaves ends the endpoint's stream.
		connect(5, "/")
		if got := f.verdict(""); got != "HEAD 5 200" {
			t.Error(got)
		}
		_ = f.WriteRSTStream(5, http2.ErrCodeCancel)
		until(t, "the tunnel is over", func() bool { return r.srv.active.Load() == 0 })
	})
	t.Run("HTTP/1.1", func(t *testing.T) {
		c := r.dial()
		c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" ||
			resp.Header.Get("Sec-Websocket-Protocol") != "p" || resp.Header.Get("X-Says") != "CONNECT websocket false" {
			t.Fatalf("%+v, %v", resp, err)
		}
		c.send("more")
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c.r); string(b) != "earlymore" {
			t.Errorf("%q, %v", b, err)
		}
		c = r.dial()
		c.send("GET /no?403 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.StatusCode != 403 {
			t.Errorf("%+v", resp)
		}
		// A client that leaves ends the endpoint's stream.
		c = r.dial()
		c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 101 {
			t.Fatalf("%+v, %v", resp, err)
		}
		c.Close()
		until(t, "the tunnel is over", func() bool { return r.srv.active.Load() == 0 })
	})
}

// An endpoint of HTTP/2 that offers no WebSockets is asked for none: its agreement to something else would be taken for one.
func TestWebSocketToHTTP2ThatHasNone(t *testing.T) {
	var requests atomic.Int64
	r := start(t, over2(socket2(t, false, &requests)))
	f := newFramer(t, r.tcp())
	f.headers(endHeaders, 1, head(":method", "CONNECT", ":protocol", "websocket", ":path", "/", "sec-websocket-version", "13"))
	if got := f.verdict(""); got != "HEAD 1 502" || requests.Load() != 0 {
		t.Errorf("%s after %d requests", got, requests.Load())
	}
	// HTTP/1.1 lets a server ignore what it is asked to upgrade to (RFC 9110 section 7.8).
	c := r.dial()
	c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != 200 || resp.Header.Get("X-Says") != "GET  true key" || resp.Header.Get("Upgrade") != "" {
		t.Errorf("%+v", resp)
	}
}

// When nothing moves in either direction for as long as the policy says, the tunnel ends.
func TestIdleWebSocketToHTTP2(t *testing.T) {
	var requests atomic.Int64
	r := start(t, over2(socket2(t, true, &requests)), Config{TunnelIdle: 300 * time.Millisecond})
	c := r.dial()
	c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%+v, %v", resp, err)
	}
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the silent tunnel goes on")
	}
	until(t, "the tunnel is over", func() bool { return r.srv.active.Load() == 0 })
}
