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

// bothFamilies are the values of the label ip_family.
var bothFamilies = []model.Family{model.IPv4, model.IPv6}

// waiting is what has come from the API and is not in the kernel yet.
type waiting struct {
	services, endpoints int
	triggers            map[model.Family][]time.Time // when the changes that EndpointSlices report happened
}

func (w *waiting) add(d *model.Delta) {
	w.services += len(d.Services)
	w.endpoints += len(d.EndpointSlices)
	for _, s := range d.EndpointSlices {
		if s == nil || s.Annotations[triggerAnnotation] == "" {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, s.Annotations[triggerAnnotation]); err == nil {
			if w.triggers == nil {
				w.triggers = make(map[model.Family][]time.Time)
			}
			w.triggers[s.Family] = append(w.triggers[s.Family], at)
		}
	}
}

// work is what an attempt to bring the kernel up to date was about.
type work struct {
	families map[model.Family]bool // that there was something to do in
	full     bool                  // all was compared, not only what changed
}

// workOf is the work of carrying out changes.
func workOf(changes []service.Change) work {
	w := work{families: make(map[model.Family]bool, 2)}
	for i := 0; i < len(changes) && len(w.families) < 2; i++ {
		w.families[changes[i].Frontend.Family()] = true
	}
	return w
}

// everything is the work of comparing all.
func everything() work {
	return work{families: map[model.Family]bool{model.IPv4: true, model.IPv6: true}, full: true}
}

// serviceMetrics has kube-proxy's own names and labels where it has them, so that dashboards work, and weft's for the
// rest. Both families are brought to the kernel together: what was done for both counts for each.
type serviceMetrics struct {
	sync, full, partial, programming  *prometheus.HistogramVec
	lastSync, lastQueued, noLocal     *prometheus.GaugeVec
	services, endpoints               prometheus.Counter
	servicesPending, endpointsPending prometheus.Gauge
	failures                          *prometheus.CounterVec
	repairs                           prometheus.Counter
	frontends, refused                prometheus.Gauge
	flowSync                          *prometheus.HistogramVec
	flowsEnded                        *prometheus.CounterVec
	first                             bool // the first full picture is in: its triggers are old news
	registered                        []prometheus.Collector
}

func newServiceMetrics(reg prometheus.Registerer) (*serviceMetrics, error) {
	m := &serviceMetrics{}
	family := []string{"ip_family"}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, family)
		m.registered = append(m.registered, v)
		return v
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registered = append(m.registered, v)
		return v
	}
	counters := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, family)
		m.registered = append(m.registered, v)
		for _, f := range bothFamilies {
			v.WithLabelValues(f.String())
		}
		return v
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		m.registered = append(m.registered, g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		m.registered = append(m.registered, c)
		return c
	}
	fast := prometheus.ExponentialBuckets(0.0001, 2, 18)
	m.sync = histogram("kubeproxy_sync_proxy_rules_duration_seconds", "How long it took to bring changes to the kernel.", fast)
	m.full = histogram("kubeproxy_sync_full_proxy_rules_duration_seconds",
		"How long it took to compare the kernel's tables with all Services and set them right.", fast)
	m.partial = histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", "How long it took to bring to the kernel only what changed.", fast)
	m.programming = histogram("kubeproxy_network_programming_duration_seconds",
		"From the change of a Service or pod to the kernel (SIG Scalability's in-cluster network programming latency).",
		// kube-proxy's buckets, with finer ones below its first.
		append([]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25},
			append(prometheus.LinearBuckets(0.5, 0.5, 2), append(prometheus.LinearBuckets(2, 1, 59), prometheus.LinearBuckets(65, 5, 48)...)...)...))
	m.lastSync = gauges("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the kernel was last brought up to date.", family...)
	m.lastQueued = gauges("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change last came from the API.", family...)
	m.noLocal = gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"Frontends with a Local traffic policy that drop traffic here for want of a local endpoint.", "traffic_policy", "ip_family")
	m.services = counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services seen.")
	m.endpoints = counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices seen.")
	m.servicesPending = gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that are not in the kernel yet.")
	m.endpointsPending = gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in the kernel yet.")
	m.failures = counters("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Failed tries to bring the kernel up to date.")
	m.repairs = counter("weft_services_repairs_total", "How often somebody else changed the service tables and they were set right.")
	m.frontends = gauge("weft_services_frontends", "Addresses and ports of Services that this node forwards.")
	m.refused = gauge("weft_services_refused", "Services that the kernel does not take, and that are left out.")
	m.flowSync = histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", "How long it took to find and end connections that lost where they go.", fast)
	m.flowsEnded = counters("kubeproxy_conntrack_reconciler_deleted_entries_total", "Tracked connections ended because they lost where they go.")
	if reg == nil {
		return m, nil
	}
	for _, c := range m.registered {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// changes notes what comes from the API; w has it already.
func (m *serviceMetrics) changes(d *model.Delta, w *waiting) {
	if len(d.Services)+len(d.EndpointSlices) == 0 {
		return
	}
	m.services.Add(float64(len(d.Services)))
	m.endpoints.Add(float64(len(d.EndpointSlices)))
	m.servicesPending.Set(float64(w.services))
	m.endpointsPending.Set(float64(w.endpoints))
	for _, f := range bothFamilies {
		m.lastQueued.WithLabelValues(f.String()).SetToCurrentTime()
	}
}

// failed notes an attempt that failed.
func (m *serviceMetrics) failed(w work) {
	for f := range w.families {
		m.failures.WithLabelValues(f.String()).Inc()
	}
}

// synced notes that everything up to now is in the kernel, and how long it took where there was something to do.
func (m *serviceMetrics) synced(start time.Time, did work, t *service.Table, refused int, w *waiting) {
	now := time.Now()
	for f := range did.families {
		m.sync.WithLabelValues(f.String()).Observe(now.Sub(start).Seconds())
		if did.full {
			m.full.WithLabelValues(f.String()).Observe(now.Sub(start).Seconds())
		} else {
			m.partial.WithLabelValues(f.String()).Observe(now.Sub(start).Seconds())
		}
	}
	m.frontends.Set(float64(t.Len()))
	m.refused.Set(float64(refused))
	m.servicesPending.Set(0)
	m.endpointsPending.Set(0)
	for _, f := range bothFamilies {
		m.lastSync.WithLabelValues(f.String()).SetToCurrentTime()
		internal, external := t.NoLocal(f)
		m.noLocal.WithLabelValues("internal", f.String()).Set(float64(internal))
		m.noLocal.WithLabelValues("external", f.String()).Set(float64(external))
		if m.first {
			for _, at := range w.triggers[f] {
				m.programming.WithLabelValues(f.String()).Observe(now.Sub(at).Seconds())
			}
		}
	}
	m.first = true
	*w = waiting{}
}

func (m *serviceMetrics) ended(f model.Family, start time.Time, n int) {
	m.flowSync.WithLabelValues(f.String()).Observe(time.Since(start).Seconds())
	m.flowsEnded.WithLabelValues(f.String()).Add(float64(n))
}
