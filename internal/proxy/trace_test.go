// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// tracer keeps spans.
type tracer struct {
	mu  sync.Mutex
	all []*Span
}

func (t *tracer) Trace(s *Span) { t.mu.Lock(); t.all = append(t.all, s); t.mu.Unlock() }

// wait gives the n-th span.
func (t *tracer) wait(tt *testing.T, n int) *Span {
	tt.Helper()
	until(tt, "a span comes", func() bool { t.mu.Lock(); defer t.mu.Unlock(); return len(t.all) > n })
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[n]
}

func TestTraces(t *testing.T) {
	e := newEcho(t, "e")
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	tr := &tracer{}
	u := simple(e.addr())
	u.Routes[0].Rules[0].Name = "all"
	r := start(t, u, Config{Tracer: tr, TraceShare: 1})
	// Of a trace that is sampled the gateway is a part.
	_, s := r.get("/x?secret", map[string]string{"Traceparent": "00-" + trace + "-" + parent + "-01", "Tracestate": "a=b"})
	span := tr.wait(t, 0)
	if hex.EncodeToString(span.Trace[:]) != trace || hex.EncodeToString(span.Parent[:]) != parent || span.ID == [8]byte{} {
		t.Errorf("%x %x %x", span.Trace, span.Parent, span.ID)
	}
	if want := "00-" + trace + "-" + hex.EncodeToString(span.ID[:]) + "-01"; s.Header.Get("Traceparent") != want || s.Header.Get("Tracestate") != "a=b" {
		t.Errorf("the endpoint got %v, want %s", s.Header, want)
	}
	if span.Path != "/x" || span.Method != "GET" || span.Status != 200 || span.Route != "r" || span.Rule != "all" || span.Backend != "b" || span.Endpoint != e.addr() ||
		span.Client != "127.0.0.1" || span.Host != "a.example.com" || span.Attempts != 1 || !span.Ended.After(span.Began) || span.Protocol != "1.1" {
		t.Errorf("%+v", span)
	}
	// One that is not sampled goes on as it is.
	_, s = r.get("/", map[string]string{"Traceparent": "00-" + trace + "-" + parent + "-00"})
	if s.Header.Get("Traceparent") != "00-"+trace+"-"+parent+"-00" {
		t.Errorf("%v", s.Header)
	}
	// What is malformed begins a trace.
	for _, bad := range []string{"", "00-" + trace + "-" + parent, "ff-" + trace + "-" + parent + "-01", "00-" + strings.Repeat("0", 32) + "-" + parent + "-01",
		"00-" + strings.ToUpper(trace) + "-" + parent + "-01", "00-" + trace + "-" + parent + "-01-x", "00-" + trace + "-" + parent + "-0g"} {
		header := map[string]string{"Tracestate": "a=b"}
		if bad != "" {
			header["Traceparent"] = bad
		}
		_, s = r.get("/", header)
		got := s.Header.Get("Traceparent")
		if len(got) != 55 || strings.Contains(got, trace) || s.Header.Get("Tracestate") != "" {
			t.Errorf("%q: the endpoint got %v", bad, s.Header)
		}
	}
	if span := tr.wait(t, 1); span.Parent != [8]byte{} || span.Trace == [16]byte{} {
		t.Errorf("%+v", span)
	}
	// A request that no route has is told as well.
	const n = 8
	tr.wait(t, n-1)
	r.update.Routes = nil
	r.apply()
	r.want(http.StatusNotFound, "/", nil)
	if span := tr.wait(t, n); span.Status != 404 || span.Route != "" || span.Error == "" {
		t.Errorf("%+v", span)
	}
}

// Without a share nothing begins a trace, and without a tracer all is passed on.
func TestTracesAreOptional(t *testing.T) {
	e := newEcho(t, "e")
	for _, conf := range []Config{{}, {Tracer: &tracer{}}} {
		r := start(t, simple(e.addr()), conf)
		if _, s := r.get("/", nil); s.Header.Get("Traceparent") != "" {
			t.Errorf("%v", s.Header)
		}
	}
	if _, s := start(t, simple(e.addr())).get("/", map[string]string{"Traceparent": "as it came"}); s.Header.Get("Traceparent") != "as it came" {
		t.Errorf("%v", s.Header)
	}
}
