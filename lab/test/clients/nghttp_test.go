// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/lab/labtest"
)

// program finds a client that is installed beside; CI has all of them.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	labtest.Require(t, err)
	return path
}

// nghttp multiplexes over HTTP/2, with the frames that few other clients send: priorities, padding, CONTINUATION, trailers.
func TestNghttp(t *testing.T) {
	path := program(t, "nghttp")
	g := start(t)
	dir := t.TempDir()
	big, small := filepath.Join(dir, "big"), filepath.Join(dir, "small")
	for name, size := range map[string]int{big: 4 << 20, small: 100_000} {
		if err := os.WriteFile(name, []byte(strings.Repeat("0123456789", size/10+1)[:size]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for host, proto := range map[string]string{h1Host: "HTTP/1.1", h2Host: "HTTP/2.0"} {
		for _, base := range []string{"http://" + g.plain, "https://" + g.secure} {
			t.Run(base[:strings.Index(base, ":")]+" to "+proto, func(t *testing.T) {
				// run gives what nghttp writes; with -v that is each frame, and without it the bodies.
				run := func(args ...string) string {
					t.Helper()
					all := append([]string{"--timeout=60s", "--no-verify-peer", "--header=:authority: " + host}, args...)
					for i, a := range all {
						if strings.HasPrefix(a, "/") {
							all[i] = base + a
						}
					}
					out, err := exec.Command(path, all...).CombinedOutput()
					if err != nil {
						t.Errorf("%v: %v\n%.2000s", args, err, out)
					}
					return string(out)
				}
				want := func(out, text string, times int) {
					t.Helper()
					if n := strings.Count(out, text); n != times {
						t.Errorf("%q is there %d times, want %d:\n%.2000s", text, n, times, out)
					}
				}
				out := run("-nv", "/")
				want(out, ":status: 200", 1)
				want(out, "x-protocol: "+proto, 1)

				// Many at a time, which it says to depend on each other, with weights.
				want(run("-nv", "--multiply=100", "--weight=1", "--weight=256", "/one", "/two"), ":status: 200", 200)
				want(run("-nv", "--no-dep", "--no-rfc7540-pri", "--multiply=20", "/"), ":status: 200", 20)

				// Bodies there and back, with windows that are soon full, and padding.
				if out := run("--data="+big, "/"); len(out) != 4<<20 {
					t.Errorf("%d bytes came back", len(out))
				}
				for _, more := range [][]string{{}, {"--no-content-length"}, {"--window-bits=10", "--connection-window-bits=12"}, {"--padding=200"}, {"--expect-continue"}} {
					args := append([]string{"--multiply=5", "--data=" + small}, more...)
					if out := run(append(args, "/")...); len(out) != 5*100_000 {
						t.Errorf("%v: %d bytes came back", more, len(out))
					}
				}

				// HTTP/1.1 has trailers after chunks only; requests to HTTP/2 endpoints end without.
				trailers := map[string]int{"HTTP/1.1": 1, "HTTP/2.0": 0}[proto]
				want(run("-nv", "--data="+small, "--no-content-length", "--trailer=x-sum: 42", "/"), ") x-sum: 42", trailers)
				want(run("-nv", "--continuation", "/"), ":status: 200", 1) // more in a head than a frame holds
				want(run("-nv", "--header-table-size=0", "--header-table-size=4K", "--encoder-header-table-size=0", "--multiply=10", "/"), ":status: 200", 10)
			})
		}
	}
}

// h2load counts its requests: each is answered, over HTTP/2 and HTTP/1.1, with bodies and without.
func TestH2load(t *testing.T) {
	path := program(t, "h2load")
	g := start(t)
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, make([]byte, 50_000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{h1Host, h2Host} {
		for _, base := range []string{"http://" + g.plain, "https://" + g.secure} {
			for name, c := range map[string]struct {
				requests int
				args     []string
			}{
				"HTTP/2":                {2000, []string{"--clients=10", "--max-concurrent-streams=20"}},
				"HTTP/2, small windows": {500, []string{"--clients=5", "--max-concurrent-streams=10", "--window-bits=12", "--connection-window-bits=14", "--data=" + body}},
				"HTTP/2, uploads":       {500, []string{"--clients=5", "--max-concurrent-streams=50", "--data=" + body}},
				"HTTP/1.1":              {2000, []string{"--clients=20", "--h1"}},
				"HTTP/1.1, uploads":     {500, []string{"--clients=10", "--h1", "--data=" + body}},
			} {
				t.Run(base[:strings.Index(base, ":")]+" to "+host+", "+name, func(t *testing.T) {
					args := append([]string{"--header=:authority: " + host, fmt.Sprintf("--requests=%d", c.requests)}, c.args...)
					out, err := exec.Command(path, append(args, base+"/")...).CombinedOutput()
					for _, want := range []string{
						fmt.Sprintf("requests: %[1]d total, %[1]d started, %[1]d done, %[1]d succeeded, 0 failed, 0 errored, 0 timeout", c.requests),
						fmt.Sprintf("status codes: %d 2xx, 0 3xx, 0 4xx, 0 5xx", c.requests),
					} {
						if err != nil || !strings.Contains(string(out), want) {
							t.Errorf("%v, want %q:\n%s", err, want, out)
						}
					}
				})
			}
		}
	}
}
