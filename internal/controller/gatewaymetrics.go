// SPDX-License-Identifier: Apache-2.0

package controller

import "github.com/prometheus/client_golang/prometheus"

// gatewayMetrics exports what Gateways does, and how far the pods of each Gateway are, counted when asked.
type gatewayMetrics struct {
	p               *Gateways
	written, failed *prometheus.CounterVec
	propagation     prometheus.Histogram
}

var (
	gatewayPodsDesc = prometheus.NewDesc("weft_gateway_connected_pods",
		"Pods of a Gateway that get their configuration from this controller.", []string{"namespace", "gateway"}, nil)
	gatewayBehindDesc = prometheus.NewDesc("weft_gateway_unconfirmed_changes",
		"Changes of a Gateway's tables that not all of its pods serve yet.", []string{"namespace", "gateway"}, nil)
)

func newGatewayMetrics(p *Gateways) *gatewayMetrics {
	return &gatewayMetrics{p: p,
		written: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_gateway_writes_total", Help: "Writes to the API for Gateway API that were needed and succeeded, by what was written.",
		}, []string{"kind"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_gateway_write_failures_total", Help: "Writes to the API for Gateway API that failed and are tried again.",
		}, []string{"kind"}),
		propagation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_gateway_propagation_seconds", Help: "From a change's arrival at the controller until all pods of the Gateway served it.",
			Buckets: []float64{.001, .002, .005, .01, .02, .03, .05, .1, .2, .5, 1, 2, 5, 10},
		}),
	}
}

// Describe implements prometheus.Collector.
func (m *gatewayMetrics) Describe(ch chan<- *prometheus.Desc) {
	m.written.Describe(ch)
	m.failed.Describe(ch)
	m.propagation.Describe(ch)
	ch <- gatewayPodsDesc
	ch <- gatewayBehindDesc
}

// Collect implements prometheus.Collector.
func (m *gatewayMetrics) Collect(ch chan<- prometheus.Metric) {
	m.written.Collect(ch)
	m.failed.Collect(ch)
	m.propagation.Collect(ch)
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	for name, g := range m.p.gateways {
		pods := m.p.opts.Server.Served(gatewayKey(name)).Connected
		ch <- prometheus.MustNewConstMetric(gatewayPodsDesc, prometheus.GaugeValue, float64(pods), name.Namespace, name.Name)
		ch <- prometheus.MustNewConstMetric(gatewayBehindDesc, prometheus.GaugeValue, float64(len(g.serials)), name.Namespace, name.Name)
	}
}
