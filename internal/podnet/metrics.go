// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the pod network. It is a prometheus.Collector itself for the ranges, which are counted when asked for.
type metrics struct {
	n        *Network
	reg      prometheus.Registerer
	seconds  *prometheus.HistogramVec
	failures *prometheus.CounterVec
	repairs  *prometheus.CounterVec
	used     *prometheus.Desc
	free     *prometheus.Desc
}

func newMetrics(n *Network, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		n: n, reg: reg,
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "weft_podnet_cni_seconds",
			Help:    "Duration of CNI requests in the agent, by command.",
			Buckets: []float64{.001, .002, .005, .01, .02, .03, .05, .1, .2, .5, 1, 5, 30},
		}, []string{"command"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_podnet_cni_errors_total",
			Help: "CNI requests that failed, by command and error code of the CNI spec.",
		}, []string{"command", "code"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_podnet_repairs_total",
			Help: "Objects of the kernel that someone else removed or changed and weft put back, by kind.",
		}, []string{"kind"}),
		used: prometheus.NewDesc("weft_podnet_addresses_used", "Addresses of a podCIDR of this node that pods hold.", []string{"range"}, nil),
		free: prometheus.NewDesc("weft_podnet_addresses_free", "Addresses of a podCIDR of this node that are free.", []string{"range"}, nil),
	}
	if reg == nil {
		return m, nil
	}
	return m, reg.Register(m)
}

func (m *metrics) unregister() {
	if m.reg != nil {
		m.reg.Unregister(m)
	}
}

// Describe is prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.seconds.Describe(ch)
	m.failures.Describe(ch)
	m.repairs.Describe(ch)
	ch <- m.used
	ch <- m.free
}

// Collect is prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.seconds.Collect(ch)
	m.failures.Collect(ch)
	m.repairs.Collect(ch)
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	for _, r := range m.n.pool.ranges {
		used := float64(m.n.pool.inUse(r))
		ch <- prometheus.MustNewConstMetric(m.used, prometheus.GaugeValue, used, r.prefix.String())
		ch <- prometheus.MustNewConstMetric(m.free, prometheus.GaugeValue, r.size()-used, r.prefix.String())
	}
}

func (m *metrics) served(command string, since time.Time, code uint) {
	m.seconds.WithLabelValues(command).Observe(time.Since(since).Seconds())
	if code != 0 {
		m.failures.WithLabelValues(command, strconv.FormatUint(uint64(code), 10)).Inc()
	}
}
