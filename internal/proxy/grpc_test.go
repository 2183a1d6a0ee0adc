// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
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
				status := ""
				for _, f := range h.RegularFields() {
					if f.Name == "grpc-status" {
						status = f.Value
					}
				}
				if h.PseudoValue("status") != "200" || status != "4" {
					t.Errorf("%d: %s, grpc-status %q", i, h.PseudoValue("status"), status)
				}
				break
			}
		}
		until(t, "it is over", func() bool { return r.srv.active.Load() == 0 })
	}
}
