// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// What one request does on a connection to an endpoint must not cost the others there.

// Trailers of a request end it and are not sent: servers of gRPC close a connection over them, and those of net/http2
// where they cross a reset.
func TestTrailersToHTTP2AreNotSent(t *testing.T) {
	for _, contentType := range []string{"application/grpc", "text/plain"} {
		ends := make(chan string, 10)
		r := start(t, over2(talk2(t, func(f *framer) {
			for heads := map[uint32]int{}; ; {
				fr, err := f.ReadFrame()
				if err != nil {
					return
				}
				id := fr.Header().StreamID
				switch fr := fr.(type) {
				case *http2.SettingsFrame:
					if !fr.IsAck() {
						_ = f.WriteSettingsAck()
					}
				case *http2.MetaHeadersFrame:
					if heads[id]++; heads[id] == 1 {
						f.answer(id, false)
						break
					}
					_ = f.WriteGoAway(id, http2.ErrCodeProtocol, []byte("received an illegal stream id"))
					ends <- "HEADERS"
					return
				case *http2.DataFrame:
					if fr.StreamEnded() {
						f.data(endStream, id, "")
						ends <- "DATA"
					}
				}
			}
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
		fields := []string{":method", "POST", "content-type", contentType, "te", "trailers"}
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
