// SPDX-License-Identifier: Apache-2.0

package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// triggerAnnotation is when the change that an EndpointSlice reports happened, RFC 3339 (KEP-752; SIG Scalability's
// network programming latency SLI).
const triggerAnnotation = "endpoints.kubernetes.io/last-change-trigger-time"

// triggers are the times of changes that are not in the kernel yet.
type triggers struct {
	times []time.Time
	since time.Time // when the oldest came to this process
}

func (t *triggers) add(d *model.Delta) {
	if t.since.IsZero() || d.Since.Before(t.since) {
		t.since = d.Since
	}
	for _, s := range d.EndpointSlices {
		if s == nil || s.Annotations[triggerAnnotation] == "" {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, s.Annotations[triggerAnnotation]); err == nil {
			t.times = append(t.times, at)
		}
	}
}

// serviceMetrics has kube-proxy's own names where it has them, so that dashboards work, and weft's for the rest.
type serviceMetrics struct {
	sync, full, programming prometheus.Histogram
	lastSync, lastQueued    prometheus.Gauge
	services, endpoints     prometheus.Counter
	noLocal                 *prometheus.GaugeVec
	failures, repairs       prometheus.Counter
	frontends               prometheus.Gauge
	flowSync                *prometheus.HistogramVec
	flowsEnded              *prometheus.CounterVec
	first                   bool // the first full picture is in: its triggers are old news
}

func newServiceMetrics(reg prometheus.Registerer) (*serviceMetrics, error) {
	fast := prometheus.ExponentialBuckets(0.0001, 2, 18)
	m := &serviceMetrics{
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_sync_proxy_rules_duration_seconds",
			Help: "How long it took to bring one batch of changes to the kernel.", Buckets: fast}),
		full: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_sync_full_proxy_rules_duration_seconds",
			Help: "How long it took to compare the kernel's tables with all Services and set them right.", Buckets: fast}),
		programming: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_network_programming_duration_seconds",
			Help: "From the change of a Service or pod to the kernel (SIG Scalability's in-cluster network programming latency).",
			// kube-proxy's buckets, with finer ones below its first.
			Buckets: append([]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25},
				append(prometheus.LinearBuckets(0.5, 0.5, 2), append(prometheus.LinearBuckets(2, 1, 59), prometheus.LinearBuckets(65, 5, 48)...)...)...)}),
		lastSync: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
			Help: "When the kernel was last brought up to date."}),
		lastQueued: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
			Help: "When a change last came from the API."}),
		services: prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_service_changes_total",
			Help: "Changes of Services seen."}),
		endpoints: prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_endpoint_changes_total",
			Help: "Changes of EndpointSlices seen."}),
		noLocal: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
			Help: "Frontends with a Local traffic policy that drop traffic here for want of a local endpoint."}, []string{"traffic_policy"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
			Help: "Failed tries to bring the kernel up to date."}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_services_repairs_total",
			Help: "How often somebody else changed the service tables and they were set right."}),
		frontends: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_services_frontends",
			Help: "Addresses and ports of Services that this node forwards."}),
		flowSync: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kubeproxy_conntrack_reconciler_sync_duration_seconds",
			Help: "How long it took to find and end connections that lost where they go.", Buckets: fast}, []string{"ip_family"}),
		flowsEnded: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubeproxy_conntrack_reconciler_deleted_entries_total",
			Help: "Tracked connections ended because they lost where they go."}, []string{"ip_family"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.sync, m.full, m.programming, m.lastSync, m.lastQueued, m.services, m.endpoints,
		m.noLocal, m.failures, m.repairs, m.frontends, m.flowSync, m.flowsEnded} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *serviceMetrics) changes(d *model.Delta) {
	if n := len(d.Services) + len(d.EndpointSlices); n > 0 {
		m.services.Add(float64(len(d.Services)))
		m.endpoints.Add(float64(len(d.EndpointSlices)))
		m.lastQueued.SetToCurrentTime()
	}
}

// synced notes that everything up to now is in the kernel.
func (m *serviceMetrics) synced(start time.Time, t *service.Table, tr *triggers) {
	now := time.Now()
	m.sync.Observe(now.Sub(start).Seconds())
	m.lastSync.SetToCurrentTime()
	m.frontends.Set(float64(t.Len()))
	internal, external := t.NoLocal()
	m.noLocal.WithLabelValues("internal").Set(float64(internal))
	m.noLocal.WithLabelValues("external").Set(float64(external))
	if m.first {
		for _, at := range tr.times {
			m.programming.Observe(now.Sub(at).Seconds())
		}
	}
	m.first = true
	*tr = triggers{}
}

func (m *serviceMetrics) ended(f model.Family, start time.Time, n int) {
	m.flowSync.WithLabelValues(f.String()).Observe(time.Since(start).Seconds())
	m.flowsEnded.WithLabelValues(f.String()).Add(float64(n))
}
