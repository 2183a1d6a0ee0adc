// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"fmt"
	"math/bits"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// plugin says which part of the server answered, in the words that CoreDNS's dashboards know.
type plugin uint8

const (
	pluginNone plugin = iota
	pluginKubernetes
	pluginCache
	pluginForward
	pluginHosts
	plugins
)

var pluginNames = [plugins]string{"", "kubernetes", "cache", "forward", "hosts"}

// Zones get an index each, for counting without a map; all beyond maxZones count as the last.
const maxZones = 32

// zoneDropped is for queries that never got as far as a zone.
const zoneDropped = 0

// zoneNames numbers the zones of all configurations that there were.
type zoneNames struct {
	mu    sync.Mutex
	names []string
}

func (z *zoneNames) index(name string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.names) == 0 {
		z.names = []string{"dropped"}
	}
	for i, n := range z.names {
		if n == name {
			return i
		}
	}
	if len(z.names) == maxZones {
		return maxZones - 1
	}
	z.names = append(z.names, name)
	return len(z.names) - 1
}

func (z *zoneNames) all() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return append([]string(nil), z.names...)
}

// The query types that metrics tell apart, as CoreDNS does.
var countedTypes = []uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeSOA, dns.TypeCNAME, dns.TypePTR, dns.TypeTXT, dns.TypeNS, dns.TypeSRV,
	dns.TypeDS, dns.TypeDNSKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeHTTPS, dns.TypeIXFR, dns.TypeAXFR, dns.TypeANY,
}

// typeSlot is where a type is counted; 0 is "other".
var typeSlot = func() (t [256]uint8) {
	for i, typ := range countedTypes {
		t[typ&255] = uint8(i + 1)
	}
	return t
}()

func slotOf(typ uint16) uint8 {
	if typ > 255 {
		return 0
	}
	return typeSlot[typ]
}

const (
	typeSlots = 19
	rcodes    = 24
	sizes     = 17 // by bit length
	times     = 32 // by bit length of microseconds
)

// counts is one worker's count, so that cores do not share cache lines.
type counts struct {
	requests  [maxZones][2][2][typeSlots]atomic.Uint64 // by UDP or TCP, IPv4 or IPv6, type
	do        [maxZones]atomic.Uint64
	responses [maxZones][plugins][rcodes]atomic.Uint64
	askSize   [maxZones][2]histogram
	size      [maxZones][2]histogram
	took      [maxZones]histogram
}

// histogram counts by powers of two.
type histogram struct {
	bucket [times]atomic.Uint64
	sum    atomic.Uint64
}

func (h *histogram) add(v uint64) {
	h.bucket[min(bits.Len64(v), times-1)].Add(1)
	h.sum.Add(v)
}

func protoIndex(udp bool) int {
	if udp {
		return 0
	}
	return 1
}

func (c *counts) asked(zone int, m *query, client clientAddr, udp bool, size int) {
	p := protoIndex(udp)
	c.requests[zone][p][client.family()][slotOf(m.q.Type)].Add(1)
	c.askSize[zone][p].add(uint64(size))
	if m.do {
		c.do[zone].Add(1)
	}
}

func (c *counts) answered(zone int, rcode uint8, from plugin, size int, udp bool, took time.Duration) {
	c.responses[zone][from][min(rcode, rcodes-1)].Add(1)
	c.size[zone][protoIndex(udp)].add(uint64(size))
	c.took[zone].add(uint64(took / time.Microsecond))
}

// Stats counts what the server does. It is a prometheus.Collector.
type Stats struct {
	server string // the label
	zones  zoneNames
	mu     sync.Mutex
	all    []*counts
	slow   *counts // of answers that came from a flight

	hits, negativeHits, misses, prefetches, servedStale atomic.Uint64
	forwardFailures, overloads, loops                   atomic.Uint64
	rateLimited, badPackets, panics                     atomic.Uint64
	connections                                         atomic.Int64
	refusedConnections                                  atomic.Uint64
	logDropped                                          atomic.Uint64
	reloads, failedReloads                              atomic.Uint64

	cache     func() *cache
	flights   func() (flying, waiting int)
	upstreams upstreamTable
}

// ReloadFailed counts a configuration that could not be used.
func (s *Stats) ReloadFailed() { s.failedReloads.Add(1) }

// newCounts makes the counts of one more worker.
func (s *Stats) newCounts() *counts {
	c := &counts{}
	s.mu.Lock()
	s.all = append(s.all, c)
	s.mu.Unlock()
	return c
}

// upstreamMetrics counts what one upstream does, over all configurations that have it.
type upstreamMetrics struct {
	reused, probeFailures atomic.Uint64
	took                  [rcodes]histogram
}

func (m *upstreamMetrics) observe(took time.Duration, rcode uint8) {
	m.took[min(rcode, rcodes-1)].add(uint64(took / time.Microsecond))
}

type upstreamTable struct {
	mu  sync.Mutex
	all map[string]*upstreamMetrics
}

func (t *upstreamTable) of(u Upstream) *upstreamMetrics {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.all[u.String()]
	if m == nil {
		if t.all == nil {
			t.all = make(map[string]*upstreamMetrics)
		}
		m = &upstreamMetrics{}
		t.all[u.String()] = m
	}
	return m
}

// The metrics, under CoreDNS's names where it has them. Its "view" label is there and empty.
var (
	descRequests  = desc("coredns_dns_requests_total", "Queries.", "server", "zone", "view", "proto", "family", "type")
	descDO        = desc("coredns_dns_do_requests_total", "Queries with the DO bit.", "server", "zone", "view")
	descResponses = desc("coredns_dns_responses_total", "Answers.", "server", "zone", "view", "rcode", "plugin")
	descAskSize   = desc("coredns_dns_request_size_bytes", "Sizes of queries.", "server", "zone", "view", "proto")
	descSize      = desc("coredns_dns_response_size_bytes", "Sizes of answers.", "server", "zone", "view", "proto")
	descTook      = desc("coredns_dns_request_duration_seconds", "Time from query to answer.", "server", "zone", "view")

	descHits      = desc("coredns_cache_hits_total", "Answers from the cache.", "server", "type", "zones", "view")
	descMisses    = desc("coredns_cache_misses_total", "Questions that the cache had no answer to.", "server", "zones", "view")
	descAsked     = desc("coredns_cache_requests_total", "Questions asked of the cache.", "server", "zones", "view")
	descPrefetch  = desc("coredns_cache_prefetch_total", "Answers asked anew before their end.", "server", "zones", "view")
	descStale     = desc("coredns_cache_served_stale_total", "Answers served past their end.", "server", "zones", "view")
	descEntries   = desc("coredns_cache_entries", "Answers in the cache.", "server", "type", "zones", "view")
	descEvictions = desc("coredns_cache_evictions_total", "Answers that had to go before their end.", "server", "type", "zones", "view")

	descUpstream      = desc("coredns_proxy_request_duration_seconds", "Time that an upstream took.", "proxy_name", "to", "rcode")
	descReused        = desc("coredns_proxy_conn_cache_hits_total", "Connections to an upstream used again.", "proxy_name", "to", "proto")
	descProbeFailures = desc("coredns_proxy_healthcheck_failures_total", "Probes that an upstream did not answer.", "proxy_name", "to")
	descRejects       = desc("coredns_forward_max_concurrent_rejects_total", "Queries answered with SERVFAIL because too many were under way.")
	descPanics        = desc("coredns_panics_total", "Panics.")
	descReloadFailed  = desc("coredns_reload_failed_total", "Configurations that could not be used.")

	descReloads     = desc("weft_dns_reloads_total", "Configurations taken.")
	descFailures    = desc("weft_dns_forward_failures_total", "Questions that no upstream answered.")
	descLoops       = desc("weft_dns_upstream_loops_total", "Upstreams found to send questions back here.")
	descRateLimited = desc("weft_dns_rate_limited_total", "Queries over a client's rate, dropped or answered with TC.")
	descBad         = desc("weft_dns_malformed_total", "Packets that were no query.")
	descConns       = desc("weft_dns_tcp_connections", "TCP connections.")
	descConnsNo     = desc("weft_dns_tcp_connections_refused_total", "TCP connections closed because there were too many.")
	descFlying      = desc("weft_dns_upstream_questions", "Questions under way upstream.")
	descWaiting     = desc("weft_dns_waiting_clients", "Queries that wait for an upstream.")
	descLogDropped  = desc("weft_dns_query_log_dropped_total", "Query log lines dropped because the reader was too slow.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector. What there is depends on the queries that came.
func (s *Stats) Describe(ch chan<- *prometheus.Desc) { ch <- descPanics }

// Collect implements prometheus.Collector.
func (s *Stats) Collect(ch chan<- prometheus.Metric) { Together{s}.Collect(ch) }

// SetServer says what the server is called in the label "server"; "dns://:53" if nobody does.
func (s *Stats) SetServer(name string) { s.server = name }

// Together is the counts of several servers of one process, with names of their own. It is a prometheus.Collector.
type Together []*Stats

// Describe implements prometheus.Collector.
func (t Together) Describe(ch chan<- *prometheus.Desc) { ch <- descPanics }

// Collect implements prometheus.Collector. What has no label to tell the servers apart is added up.
func (t Together) Collect(ch chan<- prometheus.Metric) {
	sums := make(map[*prometheus.Desc]uint64)
	gauges := make(map[*prometheus.Desc]int64)
	for _, s := range t {
		s.collect(ch)
		for d, v := range map[*prometheus.Desc]*atomic.Uint64{
			descRejects: &s.overloads, descPanics: &s.panics, descReloadFailed: &s.failedReloads, descReloads: &s.reloads,
			descFailures: &s.forwardFailures, descLoops: &s.loops, descRateLimited: &s.rateLimited, descBad: &s.badPackets,
			descConnsNo: &s.refusedConnections, descLogDropped: &s.logDropped,
		} {
			sums[d] += v.Load()
		}
		flying, waiting := s.flights()
		gauges[descFlying] += int64(flying)
		gauges[descWaiting] += int64(waiting)
		gauges[descConns] += s.connections.Load()
	}
	for d, v := range sums {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	for d, v := range gauges {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
}

func (s *Stats) collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	all := append([]*counts(nil), s.all...)
	s.mu.Unlock()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	some := func(d *prometheus.Desc, v uint64, labels ...string) {
		if v > 0 {
			counter(d, v, labels...)
		}
	}
	protos, families := [2]string{"udp", "tcp"}, [2]string{"1", "2"}
	for z, zone := range s.zones.all() {
		var do uint64
		for _, c := range all {
			do += c.do[z].Load()
		}
		some(descDO, do, s.server, zone, "")
		for p, proto := range protos {
			for f, family := range families {
				for t := range typeSlots {
					var v uint64
					for _, c := range all {
						v += c.requests[z][p][f][t].Load()
					}
					typ := "other"
					if t > 0 {
						typ = dns.Type(countedTypes[t-1]).String()
					}
					some(descRequests, v, s.server, zone, "", proto, family, typ)
				}
			}
			s.histogram(ch, descAskSize, all, func(c *counts) *histogram { return &c.askSize[z][p] }, 1, 14, zone, "", proto)
			s.histogram(ch, descSize, all, func(c *counts) *histogram { return &c.size[z][p] }, 1, sizes, zone, "", proto)
		}
		for p, name := range pluginNames {
			for r := range rcodes {
				var v uint64
				for _, c := range all {
					v += c.responses[z][p][r].Load()
				}
				rcode, ok := dns.RcodeToString[r]
				if !ok {
					rcode = strconv.Itoa(r)
				}
				some(descResponses, v, s.server, zone, "", rcode, name)
			}
		}
		s.histogram(ch, descTook, all, func(c *counts) *histogram { return &c.took[z] }, 1e-6, 25, zone, "")
	}
	if c := s.cache(); c != nil {
		hits, noHits, misses := s.hits.Load(), s.negativeHits.Load(), s.misses.Load()
		counter(descHits, hits, s.server, "success", ".", "")
		counter(descHits, noHits, s.server, "denial", ".", "")
		counter(descMisses, misses, s.server, ".", "")
		counter(descAsked, hits+noHits+misses, s.server, ".", "")
		counter(descPrefetch, s.prefetches.Load(), s.server, ".", "")
		counter(descStale, s.servedStale.Load(), s.server, ".", "")
		yes, no := c.count()
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}
		gauge(descEntries, float64(yes), s.server, "success", ".", "")
		gauge(descEntries, float64(no), s.server, "denial", ".", "")
		counter(descEvictions, c.evictions.Load(), s.server, "success", ".", "")
	}
	s.upstreams.collect(ch)
}

func (t *upstreamTable) collect(ch chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for to, m := range t.all {
		ch <- prometheus.MustNewConstMetric(descReused, prometheus.CounterValue, float64(m.reused.Load()), "forward", to, "")
		ch <- prometheus.MustNewConstMetric(descProbeFailures, prometheus.CounterValue, float64(m.probeFailures.Load()), "forward", to)
		for r := range m.took {
			h, n := sum([]*histogram{&m.took[r]})
			if n == 0 {
				continue
			}
			rcode, ok := dns.RcodeToString[r]
			if !ok {
				rcode = fmt.Sprint(r)
			}
			emit(ch, descUpstream, h, n, 1e-6, 25, "forward", to, rcode)
		}
	}
}

// summed is a histogram at one moment.
type summed struct {
	bucket [times]uint64
	sum    uint64
}

func sum(hs []*histogram) (s summed, n uint64) {
	for _, h := range hs {
		s.sum += h.sum.Load()
		for i := range h.bucket {
			v := h.bucket[i].Load()
			s.bucket[i] += v
			n += v
		}
	}
	return s, n
}

func (s *Stats) histogram(ch chan<- prometheus.Metric, d *prometheus.Desc, all []*counts, of func(*counts) *histogram, unit float64, upTo int, labels ...string) {
	hs := make([]*histogram, len(all))
	for i, c := range all {
		hs[i] = of(c)
	}
	h, n := sum(hs)
	if n > 0 {
		emit(ch, d, h, n, unit, upTo, append([]string{s.server}, labels...)...)
	}
}

// emit turns counts by powers of two into cumulative buckets.
func emit(ch chan<- prometheus.Metric, d *prometheus.Desc, h summed, n uint64, unit float64, upTo int, labels ...string) {
	buckets := make(map[float64]uint64, upTo)
	var below uint64
	for i := range upTo {
		below += h.bucket[i]
		buckets[float64(uint64(1)<<i-1)*unit] = below
	}
	ch <- prometheus.MustNewConstHistogram(d, n, float64(h.sum)*unit, buckets, labels...)
}
