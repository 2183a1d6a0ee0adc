// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// head is a request's usual header block, with other fields after it.
func head(fields ...string) []byte {
	all := [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}}
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == ":method" {
			all[0][1] = fields[i+1]
		} else if fields[i] == ":path" {
			all[3][1] = fields[i+1]
		} else {
			all = append(all, [2]string{fields[i], fields[i+1]})
		}
	}
	return block(all)
}

// pairs is a header block of exactly these fields.
func pairs(fields ...string) []byte {
	var all [][2]string
	for i := 0; i < len(fields); i += 2 {
		all = append(all, [2]string{fields[i], fields[i+1]})
	}
	return block(all)
}

const (
	endStream  = http2.FlagHeadersEndStream
	endHeaders = http2.FlagHeadersEndHeaders
	padded     = http2.FlagHeadersPadded
	whole      = endStream | endHeaders
)

// frame sends any frame.
func (f *framer) frame(kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) {
	_ = f.WriteRawFrame(kind, flags, stream, payload) // the proxy may have hung up already, which is seen when reading
}

func (f *framer) headers(flags http2.Flags, stream uint32, payload []byte) {
	f.frame(http2.FrameHeaders, flags, stream, payload)
}

func (f *framer) data(flags http2.Flags, stream uint32, payload string) {
	f.frame(http2.FrameData, flags, stream, []byte(payload))
}

// settle waits until the proxy has handled everything sent so far.
func (f *framer) settle() {
	f.frame(http2.FramePing, 0, 0, []byte("settled?"))
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return
		}
		if p, ok := fr.(*http2.PingFrame); ok && p.IsAck() && p.Data == [8]byte([]byte("settled?")) {
			return
		}
	}
}

// verdict reads what the proxy says first: of streams' heads, resets, GOAWAY and pongs. kinds restricts that.
func (f *framer) verdict(kinds string) string {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		got := ""
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			got = fmt.Sprintf("HEAD %d %s", fr.StreamID, fr.PseudoValue("status"))
			if strings.HasPrefix(kinds, "DATA") {
				got = ""
			}
		case *http2.DataFrame:
			if strings.HasPrefix(kinds, "DATA") {
				got = fmt.Sprintf("DATA %d %d", fr.StreamID, len(fr.Data()))
			}
		case *http2.RSTStreamFrame:
			if fr.ErrCode != http2.ErrCodeNo { // the rest of a request is not wanted
				got = fmt.Sprintf("RST %d %s", fr.StreamID, fr.ErrCode)
			}
		case *http2.GoAwayFrame:
			if got = "GOAWAY " + fr.ErrCode.String(); got == kinds {
				for err == nil { // RFC 9113 section 5.4.1: the connection ends
					_, err = f.ReadFrame()
				}
				if timedOut(err) {
					return "GOAWAY, and on it goes"
				}
			}
		case *http2.PingFrame:
			if fr.IsAck() {
				got = "PONG " + string(fr.Data[:])
			}
		case *http2.SettingsFrame:
			if fr.IsAck() && kinds == "ACK" {
				got = "ACK"
			}
		}
		if got != "" {
			return got
		}
	}
}

// What RFC 9113 and RFC 7541 ask of a server, frame by frame: the connection's preface and SETTINGS have been sent. The
// cases are those that conformance tests of HTTP/2 servers look at, and what we promise beyond them.
func TestHTTP2FrameByFrame(t *testing.T) {
	zero4, long := make([]byte, 4), strings.Repeat("x", maxFrame)
	huff := func(raw ...byte) []byte { // a field whose value is that Huffman code
		b := append(head(), 0x00, 1, 'x', 0x80|byte(len(raw)))
		return append(b, raw...)
	}
	post := func(f *framer, more ...string) {
		f.headers(endHeaders, 1, head(append([]string{":method", "POST"}, more...)...))
	}
	held := func(f *framer) { f.headers(whole, 1, head(":path", "/hold")) }
	setting := func(id, value uint32) []byte {
		return []byte{byte(id >> 8), byte(id), byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}
	}
	update := func(n uint32) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }
	ping := func(f *framer) { f.frame(http2.FramePing, 0, 0, []byte("12345678")) }
	const pong = "PONG 12345678"
	for _, c := range []struct {
		name string
		do   func(f *framer)
		want string
	}{
		// Generic: what is right is served.
		{"GET", func(f *framer) { f.headers(whole, 1, head()) }, "HEAD 1 200"},
		{"HEAD", func(f *framer) { f.headers(whole, 1, head(":method", "HEAD")) }, "HEAD 1 200"},
		{"OPTIONS *", func(f *framer) { f.headers(whole, 1, head(":method", "OPTIONS", ":path", "*")) }, "HEAD 1 200"},
		{"POST", func(f *framer) { post(f); f.data(endStream, 1, "body") }, "HEAD 1 200"},
		{"POST in pieces", func(f *framer) { post(f); f.data(0, 1, "bo"); f.data(0, 1, ""); f.data(endStream, 1, "dy") }, "HEAD 1 200"},
		{"POST with padding", func(f *framer) { post(f); f.data(padded|endStream, 1, "\x02body\x00\x00") }, "HEAD 1 200"},
		{"POST with content-length", func(f *framer) { post(f, "content-length", "4"); f.data(endStream, 1, "body") }, "HEAD 1 200"},
		{"trailers", func(f *framer) { post(f); f.data(0, 1, "body"); f.headers(whole, 1, pairs("x", "y")) }, "HEAD 1 200"},
		{"padded HEADERS", func(f *framer) {
			f.headers(whole|padded, 1, append(append([]byte{3}, head()...), 0, 0, 0))
		}, "HEAD 1 200"},
		{"HEADERS with priority", func(f *framer) {
			f.headers(whole|http2.FlagHeadersPriority, 1, append([]byte{0, 0, 0, 0, 9}, head()...))
		}, "HEAD 1 200"},
		{"PRIORITY on an idle stream", func(f *framer) {
			f.frame(http2.FramePriority, 0, 1, []byte{0, 0, 0, 0, 9})
			f.headers(whole, 1, head())
		}, "HEAD 1 200"},
		{"CONTINUATION", func(f *framer) {
			b := head("x", "y")
			f.headers(endStream, 1, b[:5])
			f.frame(http2.FrameContinuation, 0, 1, b[5:7])
			f.frame(http2.FrameContinuation, 0, 1, nil)
			f.frame(http2.FrameContinuation, endHeaders, 1, b[7:])
		}, "HEAD 1 200"},
		{"streams may skip numbers", func(f *framer) { f.headers(whole, 77, head()) }, "HEAD 77 200"},
		{"host in place of :authority", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":path", "/", "host", "a"))
		}, "HEAD 1 200"},
		{"te: trailers", func(f *framer) { f.headers(whole, 1, head("te", "trailers")) }, "HEAD 1 200"},
		{"PING", ping, pong},
		{"PING with ACK is not answered", func(f *framer) {
			f.frame(http2.FramePing, http2.FlagPingAck, 0, []byte("87654321"))
			ping(f)
		}, pong},
		{"GOAWAY of the client", func(f *framer) {
			f.frame(http2.FrameGoAway, 0, 0, make([]byte, 8))
			f.headers(whole, 1, head())
		}, "HEAD 1 200"},
		{"GOAWAY with an unknown code", func(f *framer) {
			f.frame(http2.FrameGoAway, 0, 0, []byte{0, 0, 0, 0, 0, 0, 0, 0xff})
			ping(f)
		}, pong},
		{"RST_STREAM with an unknown code", func(f *framer) {
			held(f)
			f.frame(http2.FrameRSTStream, 0, 1, []byte{0, 0, 0, 0xff})
			ping(f)
		}, pong},

		// RFC 9113 section 4.1, 5.5: what is unknown is ignored.
		{"unknown frame", func(f *framer) { f.frame(0xfa, 0xff, 0, []byte("what")); ping(f) }, pong},
		{"unknown flags", func(f *framer) { f.frame(http2.FramePing, 0x16, 0, []byte("12345678")) }, pong},
		{"reserved bit", func(f *framer) { f.frame(http2.FramePing, 0, 1<<31, []byte("12345678")) }, pong},
		{"unknown frame in a header block", func(f *framer) {
			f.headers(endStream, 1, head())
			f.frame(0xfa, 0, 0, nil)
		}, "GOAWAY PROTOCOL_ERROR"},
		{"unknown setting", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(0xff, 1)); ping(f) }, pong},

		// Section 4.2: sizes.
		{"DATA of 16384 bytes", func(f *framer) { post(f); f.data(endStream, 1, long) }, "HEAD 1 200"},
		{"DATA of more", func(f *framer) { post(f); f.data(endStream, 1, long+"x") }, "GOAWAY FRAME_SIZE_ERROR"},
		{"HEADERS of more", func(f *framer) { f.headers(whole, 1, append(head(), long...)) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"SETTINGS of more", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, make([]byte, 16386)) }, "GOAWAY FRAME_SIZE_ERROR"},

		// Section 4.3, 6.10: header blocks.
		{"malformed block", func(f *framer) { f.headers(whole, 1, []byte{0x40, 1, 'a', 0x7f}) }, "GOAWAY COMPRESSION_ERROR"},
		{"block cut short", func(f *framer) { b := head("x", "yyy"); f.headers(whole, 1, b[:len(b)-1]) }, "GOAWAY COMPRESSION_ERROR"},
		{"PRIORITY in a block", func(f *framer) {
			f.headers(endStream, 1, head())
			f.frame(http2.FramePriority, 0, 1, []byte{0, 0, 0, 0, 9})
		}, "GOAWAY PROTOCOL_ERROR"},
		{"PING in a block", func(f *framer) { f.headers(endStream, 1, head()); ping(f) }, "GOAWAY PROTOCOL_ERROR"},
		{"HEADERS of another stream in a block", func(f *framer) {
			f.headers(endStream, 1, head())
			f.headers(whole, 3, head())
		}, "GOAWAY PROTOCOL_ERROR"},
		{"HEADERS of the same stream in a block", func(f *framer) {
			f.headers(endStream, 1, head())
			f.headers(whole, 1, head())
		}, "GOAWAY PROTOCOL_ERROR"},
		{"CONTINUATION of another stream", func(f *framer) {
			f.headers(endStream, 1, head())
			f.frame(http2.FrameContinuation, endHeaders, 3, nil)
		}, "GOAWAY PROTOCOL_ERROR"},
		{"CONTINUATION on stream 0", func(f *framer) {
			f.headers(endStream, 1, head())
			f.frame(http2.FrameContinuation, endHeaders, 0, nil)
		}, "GOAWAY PROTOCOL_ERROR"},
		{"CONTINUATION after END_HEADERS", func(f *framer) {
			held(f)
			f.frame(http2.FrameContinuation, endHeaders, 1, pairs("x", "y"))
		}, "GOAWAY PROTOCOL_ERROR"},
		{"CONTINUATION after DATA", func(f *framer) {
			f.headers(0, 1, head(":method", "POST"))
			f.data(0, 1, "x")
		}, "GOAWAY PROTOCOL_ERROR"},

		// Section 5.1: states of streams.
		{"idle: DATA", func(f *framer) { f.data(endStream, 1, "x") }, "GOAWAY PROTOCOL_ERROR"},
		{"idle: RST_STREAM", func(f *framer) { f.frame(http2.FrameRSTStream, 0, 1, zero4) }, "GOAWAY PROTOCOL_ERROR"},
		{"idle: WINDOW_UPDATE", func(f *framer) { f.frame(http2.FrameWindowUpdate, 0, 1, update(1)) }, "GOAWAY PROTOCOL_ERROR"},
		{"idle: CONTINUATION", func(f *framer) { f.frame(http2.FrameContinuation, endHeaders, 1, head()) }, "GOAWAY PROTOCOL_ERROR"},
		{"half-closed: DATA", func(f *framer) { held(f); f.data(endStream, 1, "x") }, "RST 1 STREAM_CLOSED"},
		{"half-closed: HEADERS", func(f *framer) { held(f); f.headers(whole, 1, pairs("x", "y")) }, "RST 1 STREAM_CLOSED"},
		{"half-closed: WINDOW_UPDATE", func(f *framer) { held(f); f.frame(http2.FrameWindowUpdate, 0, 1, update(1)); ping(f) }, pong},
		{"half-closed: PRIORITY", func(f *framer) {
			held(f)
			f.frame(http2.FramePriority, 0, 1, []byte{0, 0, 0, 0, 9})
			ping(f)
		}, pong},
		{"reset by the client: DATA", func(f *framer) {
			post(f)
			f.frame(http2.FrameRSTStream, 0, 1, zero4)
			f.data(endStream, 1, "x")
		}, "GOAWAY STREAM_CLOSED"},
		{"reset by the client: HEADERS", func(f *framer) {
			post(f)
			f.frame(http2.FrameRSTStream, 0, 1, zero4)
			f.headers(whole, 1, pairs("x", "y"))
		}, "GOAWAY STREAM_CLOSED"},
		{"reset by the client: again", func(f *framer) {
			post(f)
			f.frame(http2.FrameRSTStream, 0, 1, zero4)
			f.frame(http2.FrameRSTStream, 0, 1, zero4)
			f.frame(http2.FrameWindowUpdate, 0, 1, update(1))
			ping(f)
		}, pong},
		{"reset by the proxy: DATA is on its way", func(f *framer) {
			post(f, "Upper", "x")
			f.data(0, 1, "x")
			f.data(endStream, 1, "x")
			f.settle()
			ping(f)
		}, pong},
		{"closed: DATA", func(f *framer) { f.headers(whole, 1, head()); f.end(1); f.data(endStream, 1, "x") }, "GOAWAY STREAM_CLOSED"},
		{"closed: HEADERS", func(f *framer) { f.headers(whole, 1, head()); f.end(1); f.headers(whole, 1, head()) }, "GOAWAY STREAM_CLOSED"},
		{"closed: CONTINUATION", func(f *framer) {
			f.headers(whole, 1, head())
			f.end(1)
			f.frame(http2.FrameContinuation, endHeaders, 1, nil)
		}, "GOAWAY PROTOCOL_ERROR"},
		{"closed: WINDOW_UPDATE, RST_STREAM, PRIORITY", func(f *framer) {
			f.headers(whole, 1, head())
			f.end(1)
			f.frame(http2.FrameWindowUpdate, 0, 1, update(1))
			f.frame(http2.FrameRSTStream, 0, 1, zero4)
			f.frame(http2.FramePriority, 0, 1, []byte{0, 0, 0, 0, 9})
			ping(f)
		}, pong},
		{"an even number", func(f *framer) { f.headers(whole, 2, head()) }, "GOAWAY PROTOCOL_ERROR"},
		{"a smaller number", func(f *framer) {
			f.headers(whole, 5, head(":path", "/hold"))
			f.headers(whole, 3, head())
		}, "GOAWAY PROTOCOL_ERROR"},
		{"too many streams", func(f *framer) {
			for i := range uint32(5) {
				f.headers(whole, 2*i+1, head(":path", "/hold"))
			}
		}, "RST 9 REFUSED_STREAM"},
		{"HEADERS that depend on themselves", func(f *framer) {
			f.headers(whole|http2.FlagHeadersPriority, 1, append([]byte{0, 0, 0, 1, 9}, head()...))
		}, "GOAWAY PROTOCOL_ERROR"},
		{"PRIORITY that depends on itself", func(f *framer) { f.frame(http2.FramePriority, 0, 1, []byte{0, 0, 0, 1, 9}) }, "GOAWAY PROTOCOL_ERROR"},

		// Section 6.1 to 6.4.
		{"DATA on stream 0", func(f *framer) { f.data(endStream, 0, "x") }, "GOAWAY PROTOCOL_ERROR"},
		{"DATA with too much padding", func(f *framer) { post(f); f.data(padded|endStream, 1, "\x05test") }, "GOAWAY PROTOCOL_ERROR"},
		{"DATA without its padding's length", func(f *framer) { post(f); f.data(padded|endStream, 1, "") }, "GOAWAY FRAME_SIZE_ERROR"},
		{"HEADERS on stream 0", func(f *framer) { f.headers(whole, 0, head()) }, "GOAWAY PROTOCOL_ERROR"},
		{"HEADERS with too much padding", func(f *framer) {
			f.headers(whole|padded, 1, append([]byte{200}, head()...))
		}, "GOAWAY PROTOCOL_ERROR"},
		{"HEADERS too short for their priority", func(f *framer) {
			f.headers(whole|http2.FlagHeadersPriority, 1, []byte{0, 0, 0, 0})
		}, "GOAWAY FRAME_SIZE_ERROR"},
		{"PRIORITY on stream 0", func(f *framer) { f.frame(http2.FramePriority, 0, 0, []byte{0, 0, 0, 3, 9}) }, "GOAWAY PROTOCOL_ERROR"},
		{"PRIORITY of 4 bytes", func(f *framer) { held(f); f.frame(http2.FramePriority, 0, 1, zero4) }, "RST 1 FRAME_SIZE_ERROR"},
		{"RST_STREAM on stream 0", func(f *framer) { f.frame(http2.FrameRSTStream, 0, 0, zero4) }, "GOAWAY PROTOCOL_ERROR"},
		{"RST_STREAM of 3 bytes", func(f *framer) { held(f); f.frame(http2.FrameRSTStream, 0, 1, zero4[:3]) }, "GOAWAY FRAME_SIZE_ERROR"},

		// Section 6.5: SETTINGS.
		{"SETTINGS are acknowledged", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(3, 100)) }, "ACK"},
		{"ACK with settings", func(f *framer) { f.frame(http2.FrameSettings, http2.FlagSettingsAck, 0, setting(3, 1)) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"SETTINGS on a stream", func(f *framer) { f.frame(http2.FrameSettings, 0, 1, setting(3, 1)) }, "GOAWAY PROTOCOL_ERROR"},
		{"SETTINGS of 3 bytes", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, zero4[:3]) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"ENABLE_PUSH 2", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(2, 2)) }, "GOAWAY PROTOCOL_ERROR"},
		{"INITIAL_WINDOW_SIZE 2^31", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(4, 1<<31)) }, "GOAWAY FLOW_CONTROL_ERROR"},
		{"MAX_FRAME_SIZE 16383", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(5, 16383)) }, "GOAWAY PROTOCOL_ERROR"},
		{"MAX_FRAME_SIZE 2^24", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(5, 1<<24)) }, "GOAWAY PROTOCOL_ERROR"},
		{"ENABLE_CONNECT_PROTOCOL 2", func(f *framer) { f.frame(http2.FrameSettings, 0, 0, setting(8, 2)) }, "GOAWAY PROTOCOL_ERROR"},
		{"settings are taken in order", func(f *framer) {
			f.frame(http2.FrameSettings, 0, 0, append(setting(4, 100), setting(4, 1)...))
			f.headers(whole, 1, head())
		}, "DATA 1 1"},
		{"a smaller table is acknowledged in the next head", func(f *framer) {
			f.ReadMetaHeaders = nil
			f.frame(http2.FrameSettings, 0, 0, setting(1, 0))
			f.headers(whole, 1, head())
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					f.t.Fatal(err)
				}
				if h, ok := fr.(*http2.HeadersFrame); ok {
					if b := h.HeaderBlockFragment(); b[0] != 0x20 {
						f.t.Errorf("the head begins with %x", b[0])
					}
					break
				}
			}
			ping(f)
		}, pong},

		// Section 6.7, 6.8.
		{"PING on a stream", func(f *framer) { f.frame(http2.FramePing, 0, 1, make([]byte, 8)) }, "GOAWAY PROTOCOL_ERROR"},
		{"PING of 6 bytes", func(f *framer) { f.frame(http2.FramePing, 0, 0, make([]byte, 6)) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"GOAWAY on a stream", func(f *framer) { f.frame(http2.FrameGoAway, 0, 1, make([]byte, 8)) }, "GOAWAY PROTOCOL_ERROR"},
		{"GOAWAY of 7 bytes", func(f *framer) { f.frame(http2.FrameGoAway, 0, 0, make([]byte, 7)) }, "GOAWAY FRAME_SIZE_ERROR"},

		// Section 6.9: flow control.
		{"WINDOW_UPDATE of 0", func(f *framer) { f.frame(http2.FrameWindowUpdate, 0, 0, zero4) }, "GOAWAY PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of 0 on a stream", func(f *framer) { held(f); f.frame(http2.FrameWindowUpdate, 0, 1, zero4) }, "RST 1 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of 3 bytes", func(f *framer) { f.frame(http2.FrameWindowUpdate, 0, 0, zero4[:3]) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"a window of 1", func(f *framer) {
			f.frame(http2.FrameSettings, 0, 0, setting(4, 1))
			f.headers(whole, 1, head())
		}, "DATA 1 1"},
		{"a window that grows", func(f *framer) {
			f.frame(http2.FrameSettings, 0, 0, setting(4, 0))
			f.headers(whole, 1, head())
			f.frame(http2.FrameWindowUpdate, 0, 1, update(2))
		}, "DATA 1 2"},
		{"an initial window that grows", func(f *framer) {
			f.frame(http2.FrameSettings, 0, 0, setting(4, 0))
			f.headers(whole, 1, head())
			f.settle()
			f.frame(http2.FrameSettings, 0, 0, setting(4, 1))
		}, "DATA 1 1"},
		{"a window below zero", func(f *framer) {
			f.frame(http2.FrameSettings, 0, 0, setting(4, 3))
			f.headers(whole, 1, head())
			if v := f.verdict("DATA"); v != "DATA 1 3" {
				f.t.Error(v)
			}
			f.frame(http2.FrameSettings, 0, 0, setting(4, 2)) // it is -1 now
			f.frame(http2.FrameWindowUpdate, 0, 1, update(2))
		}, "DATA 1 1"},
		{"the connection's window overflows", func(f *framer) { f.frame(http2.FrameWindowUpdate, 0, 0, update(maxWindow)) }, "GOAWAY FLOW_CONTROL_ERROR"},
		{"a stream's window overflows", func(f *framer) { held(f); f.frame(http2.FrameWindowUpdate, 0, 1, update(maxWindow)) }, "RST 1 FLOW_CONTROL_ERROR"},
		{"a window overflows by a setting", func(f *framer) {
			held(f)
			f.frame(http2.FrameWindowUpdate, 0, 1, update(65536))
			f.frame(http2.FrameSettings, 0, 0, setting(4, maxWindow))
		}, "GOAWAY FLOW_CONTROL_ERROR"},

		// Section 8.1: malformed messages.
		{"HEADERS again without END_STREAM", func(f *framer) { post(f); f.headers(endHeaders, 1, pairs("x", "y")) }, "RST 1 PROTOCOL_ERROR"},
		{"upper case", func(f *framer) { f.headers(whole, 1, head("X-Y", "z")) }, "RST 1 PROTOCOL_ERROR"},
		{"a name with a space", func(f *framer) { f.headers(whole, 1, head("x y", "z")) }, "RST 1 PROTOCOL_ERROR"},
		{"a name with a colon", func(f *framer) { f.headers(whole, 1, head("x:y", "z")) }, "RST 1 PROTOCOL_ERROR"},
		{"no name", func(f *framer) { f.headers(whole, 1, head("", "z")) }, "RST 1 PROTOCOL_ERROR"},
		{"CR in a value", func(f *framer) { f.headers(whole, 1, head("x", "y\rz")) }, "RST 1 PROTOCOL_ERROR"},
		{"LF in a value", func(f *framer) { f.headers(whole, 1, head("x", "y\nz")) }, "RST 1 PROTOCOL_ERROR"},
		{"NUL in a value", func(f *framer) { f.headers(whole, 1, head("x", "y\x00")) }, "RST 1 PROTOCOL_ERROR"},
		{"space before a value", func(f *framer) { f.headers(whole, 1, head("x", " y")) }, "RST 1 PROTOCOL_ERROR"},
		{"tab after a value", func(f *framer) { f.headers(whole, 1, head("x", "y\t")) }, "RST 1 PROTOCOL_ERROR"},
		{"unknown pseudo-header field", func(f *framer) { f.headers(whole, 1, head(":x", "y")) }, "RST 1 PROTOCOL_ERROR"},
		{":status in a request", func(f *framer) { f.headers(whole, 1, head(":status", "200")) }, "RST 1 PROTOCOL_ERROR"},
		{"pseudo-header field in trailers", func(f *framer) { post(f); f.headers(whole, 1, pairs(":method", "GET")) }, "RST 1 PROTOCOL_ERROR"},
		{"pseudo-header field after others", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":authority", "a", "x", "y", ":path", "/"))
		}, "RST 1 PROTOCOL_ERROR"},
		{"connection", func(f *framer) { f.headers(whole, 1, head("connection", "close")) }, "RST 1 PROTOCOL_ERROR"},
		{"keep-alive", func(f *framer) { f.headers(whole, 1, head("keep-alive", "1")) }, "RST 1 PROTOCOL_ERROR"},
		{"proxy-connection", func(f *framer) { f.headers(whole, 1, head("proxy-connection", "close")) }, "RST 1 PROTOCOL_ERROR"},
		{"transfer-encoding", func(f *framer) { f.headers(whole, 1, head("transfer-encoding", "chunked")) }, "RST 1 PROTOCOL_ERROR"},
		{"upgrade", func(f *framer) { f.headers(whole, 1, head("upgrade", "websocket")) }, "RST 1 PROTOCOL_ERROR"},
		{"te", func(f *framer) { f.headers(whole, 1, head("te", "gzip")) }, "RST 1 PROTOCOL_ERROR"},
		{"an empty :path", func(f *framer) { f.headers(whole, 1, head(":path", "")) }, "RST 1 PROTOCOL_ERROR"},
		{"no :method", func(f *framer) { f.headers(whole, 1, pairs(":scheme", "http", ":authority", "a", ":path", "/")) }, "RST 1 PROTOCOL_ERROR"},
		{"no :scheme", func(f *framer) { f.headers(whole, 1, pairs(":method", "GET", ":authority", "a", ":path", "/")) }, "RST 1 PROTOCOL_ERROR"},
		{"no :path", func(f *framer) { f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":authority", "a")) }, "RST 1 PROTOCOL_ERROR"},
		{":method twice", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"))
		}, "RST 1 PROTOCOL_ERROR"},
		{":scheme twice", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":scheme", "http", ":authority", "a", ":path", "/"))
		}, "RST 1 PROTOCOL_ERROR"},
		{":path twice", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/", ":path", "/"))
		}, "RST 1 PROTOCOL_ERROR"},
		{":authority twice", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":authority", "a", ":authority", "b", ":path", "/"))
		}, "RST 1 PROTOCOL_ERROR"},
		{"host that is not the authority", func(f *framer) { f.headers(whole, 1, head("host", "b")) }, "RST 1 PROTOCOL_ERROR"},
		{"host twice", func(f *framer) { f.headers(whole, 1, head("host", "a", "host", "a")) }, "RST 1 PROTOCOL_ERROR"},
		{"neither host nor authority", func(f *framer) { f.headers(whole, 1, pairs(":method", "GET", ":scheme", "http", ":path", "/")) }, "HEAD 1 400"},
		{"a scheme that is not ours", func(f *framer) {
			f.headers(whole, 1, pairs(":method", "GET", ":scheme", "ftp", ":authority", "a", ":path", "/"))
		}, "RST 1 PROTOCOL_ERROR"},
		{"content-length, and less", func(f *framer) { post(f, "content-length", "5"); f.data(endStream, 1, "test") }, "RST 1 PROTOCOL_ERROR"},
		{"content-length, and less in pieces", func(f *framer) {
			post(f, "content-length", "5")
			f.data(0, 1, "te")
			f.data(endStream, 1, "st")
		}, "RST 1 PROTOCOL_ERROR"},
		{"content-length, and more", func(f *framer) { post(f, "content-length", "3"); f.data(endStream, 1, "test") }, "RST 1 PROTOCOL_ERROR"},
		{"content-length, and trailers too soon", func(f *framer) {
			post(f, "content-length", "5")
			f.headers(whole, 1, pairs("x", "y"))
		}, "RST 1 PROTOCOL_ERROR"},
		{"content-length, and no body", func(f *framer) { f.headers(whole, 1, head("content-length", "5")) }, "RST 1 PROTOCOL_ERROR"},
		{"content-length twice", func(f *framer) { post(f, "content-length", "4", "content-length", "4"); f.data(endStream, 1, "test") }, "RST 1 PROTOCOL_ERROR"},
		{"content-length +4", func(f *framer) { post(f, "content-length", "+4"); f.data(endStream, 1, "test") }, "RST 1 PROTOCOL_ERROR"},
		{"CONNECT", func(f *framer) { f.headers(whole, 1, pairs(":method", "CONNECT", ":authority", "a:80")) }, "HEAD 1 501"},
		{"CONNECT with a path", func(f *framer) { f.headers(whole, 1, head(":method", "CONNECT")) }, "RST 1 PROTOCOL_ERROR"},
		{":protocol without CONNECT", func(f *framer) { f.headers(whole, 1, head(":protocol", "websocket")) }, "RST 1 PROTOCOL_ERROR"},
		{"a :protocol that we do not know", func(f *framer) { f.headers(whole, 1, head(":method", "CONNECT", ":protocol", "x")) }, "HEAD 1 501"},
		{"a path that leaves the root", func(f *framer) { f.headers(whole, 1, head(":path", "/../x%")) }, "HEAD 1 400"},
		{"a path with a space", func(f *framer) { f.headers(whole, 1, head(":path", "/ x")) }, "HEAD 1 400"},
		{"a path of another kind", func(f *framer) { f.headers(whole, 1, head(":path", "x")) }, "HEAD 1 400"},
		{"an unknown expectation", func(f *framer) { f.headers(whole, 1, head("expect", "x")) }, "HEAD 1 417"},
		{"100-continue", func(f *framer) { post(f, "expect", "100-continue") }, "HEAD 1 100"},
		{"a head that is too large", func(f *framer) {
			b := head("x", strings.Repeat("y", 12000), "y", strings.Repeat("y", 12000), "z", strings.Repeat("y", 12000))
			f.headers(endStream, 1, b[:16000])
			f.frame(http2.FrameContinuation, endHeaders, 1, b[16000:])
		}, "HEAD 1 431"},
		{"PUSH_PROMISE", func(f *framer) { f.frame(http2.FramePushPromise, endHeaders, 1, append(update(2), head()...)) }, "GOAWAY PROTOCOL_ERROR"},

		// RFC 7541.
		{"an index beyond the tables", func(f *framer) { f.headers(whole, 1, append(head(), 0xc6)) }, "GOAWAY COMPRESSION_ERROR"},
		{"a name's index beyond the tables", func(f *framer) { f.headers(whole, 1, append(head(), 0x7f, 0x10, 1, 'x')) }, "GOAWAY COMPRESSION_ERROR"},
		{"index 0", func(f *framer) { f.headers(whole, 1, append(head(), 0x80)) }, "GOAWAY COMPRESSION_ERROR"},
		{"a literal that is not put into the table", func(f *framer) { f.headers(whole, 1, append(head(), 0, 1, 'x', 1, 'y')) }, "HEAD 1 200"},
		{"a literal that never is", func(f *framer) { f.headers(whole, 1, append(head(), 0x10, 1, 'x', 1, 'y')) }, "HEAD 1 200"},
		{"a Huffman code", func(f *framer) { f.headers(whole, 1, huff(0x1f)) }, "HEAD 1 200"},
		{"a Huffman code padded by more than 7 bits", func(f *framer) { f.headers(whole, 1, huff(0x1f, 0xff, 0xff)) }, "GOAWAY COMPRESSION_ERROR"},
		{"a Huffman code padded with zeros", func(f *framer) { f.headers(whole, 1, huff(0x18)) }, "GOAWAY COMPRESSION_ERROR"},
		{"a Huffman code with EOS", func(f *framer) { f.headers(whole, 1, huff(0xff, 0xff, 0xff, 0xff)) }, "GOAWAY COMPRESSION_ERROR"},
		{"a table size update", func(f *framer) { f.headers(whole, 1, append([]byte{0x20, 0x3f, 0xe1, 0x1f}, head()...)) }, "HEAD 1 200"},
		{"a table size update at the end", func(f *framer) { f.headers(whole, 1, append(head(), 0x20)) }, "GOAWAY COMPRESSION_ERROR"},
		{"a table larger than allowed", func(f *framer) { f.headers(whole, 1, append([]byte{0x3f, 0xe2, 0x1f}, head()...)) }, "GOAWAY COMPRESSION_ERROR"},
		{"an endless integer", func(f *framer) { f.headers(whole, 1, append(head(), bytes.Repeat([]byte{0xff}, 20)...)) }, "GOAWAY COMPRESSION_ERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			defer close(release)
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/hold" {
					select {
					case <-release:
					case <-r.Context().Done():
					}
				}
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, "a body")
			})
			r := start(t, simple(addr), Config{MaxStreams: 4})
			f := newFramer(t, r.tcp())
			c.do(f)
			if got := f.verdict(c.want); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			f.conn.Close()
			until(t, "nothing is left of it", func() bool { return r.srv.conns.Load() == 0 && r.srv.active.Load() == 0 })
		})
	}
}

// end reads until a stream has ended, and all that was sent is handled.
func (f *framer) end(stream uint32) {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			f.t.Fatal(err)
		}
		if h := fr.Header(); h.StreamID == stream && h.Flags.Has(http2.FlagDataEndStream) {
			break
		}
	}
	f.settle()
}

// The preface: the proxy's SETTINGS come first; what is not a preface ends the connection.
func TestHTTP2Preface(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	f := newFramer(t, r.tcp())
	fr, err := f.ReadFrame()
	s, ok := fr.(*http2.SettingsFrame)
	if err != nil || !ok || s.IsAck() {
		t.Fatalf("%v, %v", fr, err)
	}
	if v, ok := s.Value(http2.SettingEnableConnectProtocol); !ok || v != 1 {
		t.Error("no extended CONNECT")
	}
	if v, ok := s.Value(http2.SettingMaxHeaderListSize); !ok || v != maxHead {
		t.Errorf("MAX_HEADER_LIST_SIZE %d", v)
	}
	for name, text := range map[string]string{
		"not a preface":        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + strings.Repeat("\x00", 9),
		"PING before SETTINGS": http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
		"ACK before SETTINGS":  http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
	} {
		c := r.dial()
		c.send(text)
		fr := http2.NewFramer(nil, c.r)
		for {
			x, err := fr.ReadFrame()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
			if g, ok := x.(*http2.GoAwayFrame); ok {
				if g.ErrCode != http2.ErrCodeProtocol {
					t.Errorf("%s: %v", name, g.ErrCode)
				}
				break
			}
		}
	}
}

// Data beyond the stream's window reset it, beyond the connection's end that.
func TestHTTP2Windows(t *testing.T) {
	for _, want := range []string{"RST 1 FLOW_CONTROL_ERROR", "GOAWAY FLOW_CONTROL_ERROR"} {
		r := start(t, simple(newEcho(t, "one").addr()))
		f := newFramer(t, r.tcp())
		f.headers(endHeaders, 1, head(":method", "POST"))
		f.settle()
		r.srv.idlers.mu.Lock()
		for c := range r.srv.idlers.all {
			if c, ok := c.(*h2conn); ok {
				c.mux.mu.Lock()
				if want[0] == 'R' {
					c.mux.streams[1].recvWindow = 10
				} else {
					c.mux.recvWindow = 10
				}
				c.mux.mu.Unlock()
			}
		}
		r.srv.idlers.mu.Unlock()
		f.data(0, 1, "0123456789")
		f.data(0, 1, "x")
		if got := f.verdict(want); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Heads of ours that do not fit a frame go on in CONTINUATION, and come out as they went in.
func TestLargeHeads(t *testing.T) {
	big := strings.Repeat("v", 20000)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Big", big)
		w.WriteHeader(204)
	})
	r := start(t, simple(addr))
	f := newFramer(t, r.tcp())
	f.MaxHeaderListSize = 1 << 20
	f.headers(whole, 1, head())
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := fr.(*http2.MetaHeadersFrame); ok {
			got := regular(h, "x-big")
			if got != big || h.PseudoValue("status") != "204" || !h.StreamEnded() {
				t.Errorf("%d bytes, %s", len(got), h.PseudoValue("status"))
			}
			return
		}
	}
}

// What we encode is what hpack's decoder reads.
func FuzzHeadFields(f *testing.F) {
	f.Add("content-type", "text/plain", 200)
	f.Add("X-Upper", "", 404)
	f.Add("authorization", "secret", 599)
	f.Add(strings.Repeat("n", 200), strings.Repeat("v", 3000), 999)
	f.Fuzz(func(t *testing.T, name, value string, status int) {
		if name == "" || status < 100 || status > 999 {
			return
		}
		for i := range len(name) {
			if !isToken[name[i]] {
				return
			}
		}
		b := appendHeadFields(appendLengthField(appendStatus(nil, status), int64(status)), []field{{raw(name), raw(value), other}})
		fields, err := hpack.NewDecoder(4096, nil).DecodeFull(b)
		if err != nil || len(fields) != 3 || fields[0].Value != fmt.Sprint(status) || fields[1].Name != "content-length" || fields[1].Value != fmt.Sprint(status) ||
			fields[2].Name != strings.ToLower(name) || fields[2].Value != value {
			t.Errorf("%q %q %d: %v, %v", name, value, status, fields, err)
		}
	})
}
