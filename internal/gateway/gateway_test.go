// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

const config = `
revision: %d
listeners:
- {key: http, protocol: HTTP, port: %d, addresses: [127.0.0.1]}
routes:
- key: HTTPRoute/shop/cart
  kind: HTTPRoute
  parents: [{listener: http, hostnames: [shop.example.com]}]
  rules:
  - matches: [{path: {kind: Prefix, value: /cart}}]
    backends: [{backend: cart, weight: 1}]
    timeouts: {request: 5s}
- key: HTTPRoute/shop/all
  kind: HTTPRoute
  parents: [{listener: http, hostnames: ["*.example.com"]}]
  rules: [{backends: [{backend: all, weight: 1}]}]
backends: [{key: cart, endpoints: cart}, {key: all, endpoints: all}]
endpoints: [{key: cart, endpoints: [{address: "%s"}]}]
`

// freePort is a port that was free a moment ago.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestFileIsServedAndFollowed(t *testing.T) {
	name := func(s string) string {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }))
		t.Cleanup(h.Close)
		return h.Listener.Addr().String()
	}
	one, two := name("one"), name("two")
	port := freePort(t)
	path := filepath.Join(t.TempDir(), "tables.yaml")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf(config, 1, port, one))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	log := slog.New(slog.DiscardHandler)
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Source: File{Path: path, Log: log}, Proxy: proxy.Config{Log: log}, Log: log, Metrics: prometheus.NewRegistry(), Drain: 10 * time.Second})
	}()
	answers := func(want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			req, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/cart/x", port), nil)
			req.Host = "shop.example.com"
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				got = err.Error()
				continue
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if got = string(b); got == want {
				return
			}
		}
		t.Fatalf("got %q, want %q", got, want)
	}
	answers("one")
	write(fmt.Sprintf(config, 2, port, two))
	answers("two")
	write("routes: [{kee: x}]") // a mistake changes nothing
	write("routes: {")
	answers("two")
	write(fmt.Sprintf(config, 3, port, one))
	answers("one")
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("it does not end")
	}
}

// A change that comes while what was there before is being applied is one.
func TestFileChangesMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tables.yaml")
	write := func(revision uint64) {
		t.Helper()
		if err := os.WriteFile(path, fmt.Appendf(nil, "revision: %d", revision), 0o600); err != nil {
			t.Error(err)
		}
	}
	write(1)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	last := uint64(0)
	err := File{Path: path, Log: slog.New(slog.DiscardHandler)}.Run(ctx, func(u *route.Update) error {
		if last = u.Revision; last == 3 {
			stop()
		} else {
			write(last + 1)
		}
		return nil
	})
	if err != nil || last != 3 {
		t.Errorf("%v; revision %d was applied last, not 3", err, last)
	}
}

func TestBadFileAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(path, []byte("listeners: [{port: http}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	err := Run(context.Background(), Config{Source: File{Path: path, Log: log}, Proxy: proxy.Config{Log: log}, Log: log, Metrics: prometheus.NewRegistry()})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

func TestExplain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, config, 1, 80, "192.0.2.1:80"), 0o600); err != nil {
		t.Fatal(err)
	}
	tables, err := File{Path: path}.Load()
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string][]string{
		"http://shop.example.com/cart/1": {"listener http", "* HTTPRoute/shop/cart rule 0 match 0: wins, to cart (weight 1)"},
		"http://shop.example.com/other":  {"HTTPRoute/shop/cart rule 0 match 0: path /other does not match", "hostname *.example.com", "* HTTPRoute/shop/all rule 0"},
		"http://example.org/":            {"404: no route matches"},
		"https://shop.example.com/":      {"404: no HTTPS listener on port 443"},
	} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		found, err := Explain(&out, tables, Question{Method: "GET", URL: u})
		if err != nil || found != strings.Contains(out.String(), "*") && !strings.Contains(out.String(), "404") {
			t.Errorf("%s: %v, %v", target, found, err)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: no %q in\n%s", target, w, out.String())
			}
		}
	}
	var l route.Lookup = Question{Headers: map[string]string{"a": "b"}}
	if v, ok := l.Lookup("a"); v != "b" || !ok {
		t.Error("headers are not looked at")
	}
}
