// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/model"
)

// triggerTime is when what an EndpointSlice says became so (KEP: DNS programming latency SLI).
const triggerTime = "endpoints.kubernetes.io/last-change-trigger-time"

// register sets up the metrics.
func (d *daemon) register() {
	d.lag = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "coredns_kubernetes_dns_programming_duration_seconds",
		Help:    "Time from a change of endpoints to its being in answers.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
	}, []string{"service_kind"})
	d.updated = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "weft_dns_update_duration_seconds",
		Help:    "Time to bring the names to what one change of the cluster says.",
		Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
	})
	d.reg.MustRegister(dnsserver.Together{d.server.Stats(), d.outer.Stats()}, d.lag, d.updated, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "weft_dns_snapshot_age_seconds",
			Help: "How long ago the API server was last heard of by the quietest watch; -1 before the first full picture. Answers are as old as that.",
		}, func() float64 { return d.age().Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "coredns_build_info", Help: "Always 1.",
			ConstLabels: prometheus.Labels{"version": "weft", "revision": "", "goversion": runtime.Version()},
		}, func() float64 { return 1 }))
}

func (d *daemon) age() time.Duration {
	if s := d.source.Load(); s != nil {
		if a := s.Age(); a >= 0 {
			return a
		}
	}
	return -time.Second
}

// observeLag notes how long a change took from the cluster to the answers.
func (d *daemon) observeLag(delta *model.Delta) {
	now := time.Now()
	for name, s := range delta.EndpointSlices {
		if s == nil {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, s.Annotations[triggerTime])
		if err != nil || at.Unix() < d.started() {
			continue
		}
		kind := d.zone.Kind(model.Name{Namespace: name.Namespace, Name: s.Service})
		if kind != "" {
			d.lag.WithLabelValues(kind).Observe(now.Sub(at).Seconds())
		}
	}
}

var processStart = time.Now()

// started is when the process began, in seconds: changes from before were not its to be quick with.
func (d *daemon) started() int64 { return processStart.Unix() }

// gatherer collects the process's metrics and those of the source that is at work now.
type gatherer struct{ d *daemon }

// Gather implements prometheus.Gatherer.
func (g gatherer) Gather() ([]*dto.MetricFamily, error) {
	all := prometheus.Gatherers{g.d.reg}
	if s := g.d.source.Load(); s != nil {
		all = append(all, s.reg)
	}
	return all.Gather()
}

// readiness is nil when queries should be sent here.
func (d *daemon) readiness() error {
	switch {
	case d.draining.Load():
		return errors.New("ending")
	case !d.ready.Load():
		return errors.New("waiting for the first full picture from the API server")
	}
	return nil
}

// serveStatus serves metrics and health until ctx is done.
func (d *daemon) serveStatus(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/", health.Handler(gatherer{d}, func() error { return nil }, d.readiness))
	mux.HandleFunc("GET /queries", d.server.ServeQueries)
	return health.ServeOn(ctx, l, mux)
}
