// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/proxy"
)

func TestSpansArrive(t *testing.T) {
	got := make(chan string, 10)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(b)
	}))
	defer collector.Close()
	e, err := New(collector.URL, map[string]string{"k8s.pod.name": "web-1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Unix(1700000000, 5)
	e.Trace(&proxy.Span{Trace: [16]byte{1, 15: 2}, ID: [8]byte{3}, Parent: [8]byte{4}, Began: began, Ended: began.Add(time.Second), Method: "GET", Path: "/x\xff",
		Status: 503, Error: "no endpoints", Route: "HTTPRoute/shop/cart", Attempts: 3})
	e.Trace(&proxy.Span{Trace: [16]byte{1}, ID: [8]byte{5}, Method: "GET", Status: 200})
	e.Close()
	message := <-got
	head, body, _ := strings.Cut(message, " application/json ")
	if head != "POST /v1/traces" {
		t.Errorf("%s", head)
	}
	var m request
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	spans := m.ResourceSpans[0].ScopeSpans[0].Spans
	if len(spans) != 2 {
		t.Fatalf("%s", body)
	}
	s := spans[0]
	if s.TraceID != "01000000000000000000000000000002" || s.SpanID != "0300000000000000" || s.ParentSpanID != "0400000000000000" || s.Name != "GET HTTPRoute/shop/cart" ||
		s.Start != "1700000000000000005" || s.End != "1700000001000000005" || s.Kind != 2 || s.Status.Code != 2 || s.Status.Message != "no endpoints" {
		t.Errorf("%+v", s)
	}
	for _, part := range []string{`{"key":"http.response.status_code","value":{"intValue":"503"}}`, `{"key":"http.request.resend_count","value":{"intValue":"2"}}`,
		`{"key":"service.name","value":{"stringValue":"weft-gateway"}}`, `{"key":"k8s.pod.name","value":{"stringValue":"web-1"}}`, `"/x` + "\uFFFD" + `"`} {
		if !strings.Contains(body, part) {
			t.Errorf("%s is not in %s", part, body)
		}
	}
	if spans[1].ParentSpanID != "" || spans[1].Status.Code != 0 || e.Lost() != 0 {
		t.Errorf("%+v, %d lost", spans[1], e.Lost())
	}
}

// A collector that is away, slow or unwilling holds nothing up; what is lost is counted.
func TestCollectorsThatFail(t *testing.T) {
	var asked atomic.Int64
	unwilling := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(503) }))
	defer unwilling.Close()
	for _, url := range []string{unwilling.URL + "/v1/traces", "http://127.0.0.1:1"} {
		e, err := New(url, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 * queued {
			e.Trace(&proxy.Span{Method: "GET"})
		}
		e.Close()
		if n := e.Lost(); n != 3*queued {
			t.Errorf("%s: %d lost of %d", url, n, 3*queued)
		}
	}
	if asked.Load() == 0 {
		t.Error("never asked")
	}
	for _, bad := range []string{"", "collector:4318", "ftp://x", "http://"} {
		if _, err := New(bad, nil, slog.Default()); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
