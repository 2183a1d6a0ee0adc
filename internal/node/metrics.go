// SPDX-License-Identifier: Apache-2.0

package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "weft_node_update_duration_seconds",
			Help:    "Time to bring the kernel to what one Delta says, by part.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14),
		}, []string{"part"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_node_update_failures_total",
			Help: "Updates that failed and were tried again, by part.",
		}, []string{"part"}),
	}
}

func (m *metrics) register(reg prometheus.Registerer) error {
	if err := reg.Register(m.duration); err != nil {
		return err
	}
	return reg.Register(m.failures)
}

func (m *metrics) observe(part string, took time.Duration, err error) {
	m.duration.WithLabelValues(part).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(part).Inc()
	}
}
