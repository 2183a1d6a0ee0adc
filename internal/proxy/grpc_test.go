// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weft-net/weft/internal/route"
)

func TestCallTimeouts(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "30S": 30 * time.Second, "100m": 100 * time.Millisecond, "5u": 5 * time.Microsecond, "7n": 7,
		"0n": 0, "": -1, "S": -1, "1": -1, "1s": -1, "-1S": -1, "1.5S": -1, "123456789S": -1, "99999999H": -1,
	} {
		if d, ok := parseCallTimeout(v); ok != (want >= 0) || ok && d != want {
			t.Errorf("%s: %v, %v", v, d, ok)
		}
	}
}

// A call whose endpoint does not heed its deadline ends with DEADLINE_EXCEEDED, whatever the endpoint speaks.
func TestCallDeadline(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hold := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	one, two := simple(serve(t, hold)), over2(serve2(t, hold).Listener.Addr().String())
	for i := range 2 {
		u := one
		if i == 1 {
			u = two
		}
		r := start(t, u)
		f := newFramer(t, r.tcp())
		f.headers(whole, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "100m"))
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if h, ok := fr.(*http2.MetaHeadersFrame); ok {
				status := regular(h, "grpc-status")
				if h.PseudoValue("status") != "200" || status != "4" {
					t.Errorf("%d: %s, grpc-status %q", i, h.PseudoValue("status"), status)
				}
				break
			}
		}
		until(t, "it is over", func() bool { return r.srv.active.Load() == 0 })
	}
}

// A call without a message ends with an empty DATA frame (gRPC over HTTP/2: EOS): servers wait for that.
func TestEmptyCalls(t *testing.T) {
	for _, retry := range []*route.Retry{nil, {Codes: []int{503}, Attempts: 2}} {
		var merged, ended atomic.Int64
		u := over2(talk2(t, func(f *framer) {
			f.frames(func(fr http2.Frame) bool {
				switch fr := fr.(type) {
				case *http2.MetaHeadersFrame:
					if fr.StreamEnded() {
						merged.Add(1)
						f.answer(fr.StreamID, true)
					}
				case *http2.DataFrame:
					if fr.StreamEnded() {
						ended.Add(1)
						f.answer(fr.StreamID, true)
					}
				}
				return true
			})
		}))
		u.Routes[0].Rules[0].Retry = retry
		f := newFramer(t, start(t, u).tcp())
		const calls = 50
		for i := range uint32(calls) {
			block := head(":method", "POST", "content-type", "application/grpc", "te", "trailers")
			both := append(appendFrame(nil, len(block), http2.FrameHeaders, endHeaders, 2*i+1), block...)
			if _, err := f.conn.Write(appendFrame(both, 0, http2.FrameData, endStream, 2*i+1)); err != nil {
				t.Fatal(err)
			}
			if got := f.status(2*i + 1); got != "200" {
				t.Fatalf("call %d: %s", i, got)
			}
		}
		if merged.Load() != 0 || ended.Load() != calls {
			t.Errorf("retries %v: %d calls ended with their head, %d with DATA", retry != nil, merged.Load(), ended.Load())
		}
	}
}

// What the proxy itself answers is to gRPC's clients what they would make of the status (gRPC: http-grpc-status-mapping),
// and more exact where it knows more.
func TestRefusalsOfCalls(t *testing.T) {
	for status, want := range map[int]string{400: "13", 401: "16", 403: "7", 404: "12", 413: "8", 429: "14", 431: "8", 503: "14", 504: "4"} {
		u := simple("127.0.0.1:1")
		u.Routes[0].Rules[0].Respond = status
		f := newFramer(t, start(t, u).tcp())
		f.headers(whole, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers"))
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if h, ok := fr.(*http2.MetaHeadersFrame); ok {
				got := regular(h, "grpc-status")
				if h.PseudoValue("status") != "200" || got != want {
					t.Errorf("%d: %s, grpc-status %q, want %s", status, h.PseudoValue("status"), got, want)
				}
				break
			}
		}
	}
}
