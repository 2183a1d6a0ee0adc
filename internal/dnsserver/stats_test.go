// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// The metrics that CoreDNS's dashboards are made of, by their names and labels.
func TestMetrics(t *testing.T) {
	u := newUpstream(t)
	h := start(t, u, "")
	q := question("cart.shop.svc.cluster.local", dns.TypeA)
	q.SetEdns0(1232, true)
	h.ask(t, "udp", q)
	h.ask(t, "tcp", question("none.shop.svc.cluster.local", dns.TypeAAAA))
	h.ask(t, "udp", question("a.example", dns.TypeA))
	h.ask(t, "udp", question("a.example", dns.TypeA))
	reg := prometheus.NewRegistry()
	if err := reg.Register(h.Stats()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			key := f.GetName()
			for _, l := range m.Label {
				if l.GetName() != "server" && l.GetName() != "to" && l.GetValue() != "" {
					key += "," + l.GetName() + "=" + l.GetValue()
				}
			}
			got[key] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for key, want := range map[string]float64{
		"coredns_dns_requests_total,family=1,proto=udp,type=A,zone=cluster.local.":         1,
		"coredns_dns_requests_total,family=1,proto=tcp,type=AAAA,zone=cluster.local.":      1,
		"coredns_dns_requests_total,family=1,proto=udp,type=A,zone=.":                      2,
		"coredns_dns_do_requests_total,zone=cluster.local.":                                1,
		"coredns_dns_responses_total,plugin=kubernetes,rcode=NOERROR,zone=cluster.local.":  1,
		"coredns_dns_responses_total,plugin=kubernetes,rcode=NXDOMAIN,zone=cluster.local.": 1,
		"coredns_dns_responses_total,plugin=forward,rcode=NOERROR,zone=.":                  1,
		"coredns_dns_responses_total,plugin=cache,rcode=NOERROR,zone=.":                    1,
		"coredns_dns_request_duration_seconds,zone=cluster.local.":                         2,
		"coredns_dns_response_size_bytes,proto=udp,zone=cluster.local.":                    1,
		"coredns_cache_hits_total,type=success,zones=.":                                    1,
		"coredns_cache_misses_total,zones=.":                                               1,
		"coredns_cache_entries,type=success,zones=.":                                       1,
		"coredns_panics_total": 0,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", key, v, ok, want)
		}
	}
	if got["coredns_proxy_request_duration_seconds,proxy_name=forward,rcode=NOERROR"] < 1 {
		t.Error("the upstream's time is not there")
	}
}

func TestQueryStream(t *testing.T) {
	h := start(t, newUpstream(t), "")
	srv := httptest.NewServer(http.HandlerFunc(h.ServeQueries))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("off, and yet %v %v", resp, err)
	}
	resp.Body.Close()
	if err := h.Apply(parse(t, "{streamQueries: true, forward: {upstreams: [\"127.0.0.1:1\"]}}"), h.zone); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h.ask(t, "udp", question("cart.shop.svc.cluster.local", dns.TypeA))
	h.ask(t, "tcp", question("fails.example", dns.TypeA))
	h.raw(t, []byte("\x12\x34\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"), true) // no question: FORMERR, and of no name
	sc := bufio.NewScanner(resp.Body)
	want := map[string]string{"": "FORMERR udp", "cart.shop.svc.cluster.local.": "NOERROR udp", "fails.example.": "SERVFAIL tcp"}
	for len(want) > 0 && sc.Scan() {
		var e QueryEvent
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if w, ok := want[e.Name]; ok {
			if got := e.Rcode + " " + e.Proto; got != w || e.Client != "127.0.0.1" || (e.Type != "A") != (e.Name == "") {
				t.Errorf("%+v, want %s", e, w)
			}
			delete(want, e.Name)
		}
	}
	if len(want) > 0 {
		t.Errorf("not in the stream: %v (%v)", want, sc.Err())
	}
	cancel()
	eventually(t, "nobody listens any more", func() bool { return !h.queries.listening.Load() })
}
