// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// serverStats are counted for the whole gateway.
type serverStats struct {
	acceptErrors  atomic.Uint64
	overLimit     atomic.Uint64
	handshakes    atomic.Uint64 // failed
	streamsFailed atomic.Uint64
	malformed     atomic.Uint64
	unrouted      atomic.Uint64
	denied        [denials]atomic.Uint64
}

// bounds of the histogram of durations in seconds.
var bounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// ruleStats are counted for each rule and each backend: their number is that of the configuration, never that of what clients send.
type ruleStats struct {
	classes [6]atomic.Uint64 // by hundreds of the status; 0: cut off
	buckets [len(bounds) + 1]atomic.Uint64
	nanos   atomic.Uint64
	retries atomic.Uint64
	streams atomic.Uint64
	bytes   atomic.Uint64 // to clients
}

func newRuleStats() *ruleStats { return &ruleStats{} }

func (s *ruleStats) observe(x *exchange, took time.Duration) {
	class := min(max(x.status, 0)/100, 5)
	if x.abort {
		class = 0
	}
	s.classes[class].Add(1)
	sec := took.Seconds()
	i := 0
	for i < len(bounds) && sec > bounds[i] {
		i++
	}
	s.buckets[i].Add(1)
	s.nanos.Add(uint64(max(took, 0)))
	s.bytes.Add(uint64(x.sent))
	if x.attempts > 1 {
		s.retries.Add(uint64(x.attempts - 1))
	}
}

// done is told of each exchange's end.
func (s *Server) done(x *exchange) {
	if x.rule == nil && !x.filtered {
		s.stats.unrouted.Add(1)
	}
	logs := s.conf.AccessLog != nil
	if logs && x.plan != nil && x.plan.log != nil {
		logs = *x.plan.log
	}
	spanned := x.more != nil && x.more.span != nil
	if x.rule == nil && !logs && !spanned {
		return
	}
	took := time.Since(x.began)
	if spanned {
		x.more.span.finish(x, took)
	}
	if x.rule != nil {
		x.rule.stats.observe(x, took)
	}
	if x.cell != nil {
		x.cell.stats.observe(x, took)
	}
	if logs {
		s.conf.AccessLog.log(x, took)
	}
}

// refused counts a message that was too malformed to be routed.
func (s *Server) refused(int) { s.stats.malformed.Add(1) }

// The series of a gateway. Labels hold what the configuration names, so clients can't make up new ones.
var (
	descRequests = prometheus.NewDesc("weft_gateway_requests_total", "Requests by route, rule and class of the status; code 0xx is those cut off.", []string{"route", "rule", "code"}, nil)
	descSeconds  = prometheus.NewDesc("weft_gateway_request_duration_seconds", "Time from a request's head to its response's end.", []string{"route", "rule"}, nil)
	descRetries  = prometheus.NewDesc("weft_gateway_retries_total", "Attempts beyond a request's first.", []string{"route", "rule"}, nil)
	descStreams  = prometheus.NewDesc("weft_gateway_streams_total", "TCP and TLS connections, and UDP sessions, by route.", []string{"route", "rule"}, nil)
	descBytes    = prometheus.NewDesc("weft_gateway_sent_bytes_total", "Bytes of response bodies and streams sent to clients.", []string{"route", "rule"}, nil)
	descConns    = prometheus.NewDesc("weft_gateway_connections", "Connections of clients.", nil, nil)
	descActive   = prometheus.NewDesc("weft_gateway_active_requests", "Requests under way.", nil, nil)
	descRefused  = prometheus.NewDesc("weft_gateway_refused_total", "What never came to a route, by reason.", []string{"reason"}, nil)
	descRevision = prometheus.NewDesc("weft_gateway_revision", "Revision of the configuration that is served.", nil, nil)
	descEjected  = prometheus.NewDesc("weft_gateway_endpoints_ejected", "Endpoints that get no requests for a while because they failed, by backend.", []string{"backend"}, nil)
	descDenied   = prometheus.NewDesc("weft_gateway_denied_total", "Requests that policies refused, by what refused them.", []string{"by"}, nil)
	descBackend  = prometheus.NewDesc("weft_gateway_backend_requests_total", "Requests by backend and class of the status; code 0xx is those cut off.", []string{"backend", "code"}, nil)
	descBackendS = prometheus.NewDesc("weft_gateway_backend_request_duration_seconds", "Time from a request's head to its response's end, by backend.", []string{"backend"}, nil)
	descInflight = prometheus.NewDesc("weft_gateway_backend_active_requests", "Requests and streams under way, by backend.", []string{"backend"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRequests, descSeconds, descRetries, descStreams, descBytes, descConns, descActive, descRefused, descRevision, descEjected, descInflight, descBackend, descBackendS, descDenied} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(descConns, s.conns.Load())
	gauge(descActive, s.active.Load())
	counter(descRefused, s.stats.malformed.Load(), "malformed")
	counter(descRefused, s.stats.unrouted.Load(), "no-route")
	counter(descRefused, s.stats.handshakes.Load(), "tls-handshake")
	counter(descRefused, s.stats.overLimit.Load(), "limit")
	counter(descRefused, s.stats.streamsFailed.Load(), "no-endpoint")
	counter(descRefused, s.stats.acceptErrors.Load(), "accept")
	for why := range s.stats.denied {
		if v := s.stats.denied[why].Load(); v > 0 {
			counter(descDenied, v, denialNames[why])
		}
	}
	s.tables.mu.Lock()
	defer s.tables.mu.Unlock()
	gauge(descRevision, int64(s.tables.revision))
	now := time.Now().UnixNano()
	for key, cell := range s.tables.backends {
		b := cell.Load()
		if b == nil {
			continue
		}
		var ejected, inflight int64
		for _, e := range b.endpoints.Load().all {
			inflight += e.inflight.Load()
			if e.ejected.Load() > now {
				ejected++
			}
		}
		gauge(descEjected, ejected, key)
		gauge(descInflight, inflight, key)
		cell.stats.classesOf(func(class string, v uint64) { counter(descBackend, v, key, class) })
		cell.stats.seconds(ch, descBackendS, key)
	}
	for _, c := range s.tables.routes {
		seen := -1
		for _, entry := range c.entries {
			if entry.Rule == seen {
				continue
			}
			seen = entry.Rule
			r := entry.Target.(*rule)
			r.stats.collect(ch, counter, r.route.Key, r.name(entry.Rule))
		}
	}
}

func (s *ruleStats) collect(ch chan<- prometheus.Metric, counter func(*prometheus.Desc, uint64, ...string), route, rule string) {
	s.classesOf(func(class string, v uint64) { counter(descRequests, v, route, rule, class) })
	if v := s.streams.Load(); v > 0 {
		counter(descStreams, v, route, rule)
	}
	counter(descBytes, s.bytes.Load(), route, rule)
	counter(descRetries, s.retries.Load(), route, rule)
	s.seconds(ch, descSeconds, route, rule)
}

// classesOf calls f with the number of requests of each class that there were.
func (s *ruleStats) classesOf(f func(class string, v uint64)) {
	for class := range s.classes {
		if v := s.classes[class].Load(); v > 0 {
			f(strconv.Itoa(class)+"xx", v)
		}
	}
}

// seconds gives the histogram of durations, if there were any.
func (s *ruleStats) seconds(ch chan<- prometheus.Metric, desc *prometheus.Desc, labels ...string) {
	var total uint64
	cumulative := make(map[float64]uint64, len(bounds))
	for i, b := range bounds {
		total += s.buckets[i].Load()
		cumulative[b] = total
	}
	total += s.buckets[len(bounds)].Load()
	if total > 0 {
		ch <- prometheus.MustNewConstHistogram(desc, total, float64(s.nanos.Load())/1e9, cumulative, labels...)
	}
}
