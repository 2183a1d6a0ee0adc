// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/addresses"
)

// lbMetrics exports what LoadBalancers holds, counted when asked.
type lbMetrics struct {
	p       *LoadBalancers
	written *prometheus.CounterVec
	failed  *prometheus.CounterVec
}

var (
	lbServicesDesc = prometheus.NewDesc("weft_loadbalancer_services",
		"LoadBalancer Services that weft serves: assigned has all that it asks for, pending lacks something.", []string{"state"}, nil)
	lbAddressesDesc = prometheus.NewDesc("weft_address_pool_addresses",
		"Addresses of an AddressPool: total, used by Services, free to be assigned.", []string{"pool", "family", "state"}, nil)
	lbAcceptedDesc = prometheus.NewDesc("weft_address_pool_accepted",
		"1 if addresses are assigned from the AddressPool, 0 if it is refused.", []string{"pool"}, nil)
	lbQueueDesc = prometheus.NewDesc("weft_controller_writes_queued", "Objects waiting to be written to the API.", nil, nil)
)

func newLBMetrics(p *LoadBalancers) *lbMetrics {
	return &lbMetrics{p: p,
		written: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_controller_writes_total", Help: "Writes to the API that were needed and succeeded.",
		}, []string{"kind"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_controller_write_failures_total", Help: "Writes to the API that failed and are tried again.",
		}, []string{"kind"}),
	}
}

// Describe implements prometheus.Collector.
func (m *lbMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lbServicesDesc, lbAddressesDesc, lbAcceptedDesc, lbQueueDesc} {
		ch <- d
	}
	m.written.Describe(ch)
	m.failed.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *lbMetrics) Collect(ch chan<- prometheus.Metric) {
	m.written.Collect(ch)
	m.failed.Collect(ch)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(lbQueueDesc, float64(m.p.queue.Len()))
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	var assigned, pending float64
	for _, d := range m.p.want {
		switch {
		case !d.Ours:
		case d.Problem.Reason == "" && len(d.Addresses) > 0:
			assigned++
		default:
			pending++
		}
	}
	gauge(lbServicesDesc, assigned, "assigned")
	gauge(lbServicesDesc, pending, "pending")
	for name, s := range m.p.state {
		accepted := 0.0
		if s.Accepted {
			accepted = 1
		}
		gauge(lbAcceptedDesc, accepted, name)
		for family, u := range map[string]addresses.Usage{"IPv4": s.IPv4, "IPv6": s.IPv6} {
			gauge(lbAddressesDesc, float64(u.Total), name, family, "total")
			gauge(lbAddressesDesc, float64(u.Used), name, family, "used")
			gauge(lbAddressesDesc, float64(u.Free), name, family, "free")
		}
	}
}
