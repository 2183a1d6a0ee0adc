// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestHandler(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_test_total", Help: "x"})
	reg.MustRegister(c)
	var ready error
	s := httptest.NewServer(Handler(reg, func() error { return nil }, func() error { return ready }))
	defer s.Close()
	get := func(path string) (int, string) {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, path := range []string{"/livez", "/healthz", "/readyz"} {
		if code, body := get(path); code != 200 || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	ready = errors.New("services: no buffer space")
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "no buffer space") {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if code, _ := get("/livez"); code != 200 {
		t.Errorf("/livez: %d", code)
	}
	if _, body := get("/metrics"); !strings.Contains(body, "weft_test_total 0") {
		t.Errorf("/metrics: %q", body)
	}
}
