// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	a            *Announcer
	moves        *prometheus.CounterVec
	answers      *prometheus.CounterVec
	conflicts    prometheus.Counter
	sendFailures prometheus.Counter
}

var (
	announcedDesc = prometheus.NewDesc("weft_announced_address", "1 for each address that this node announces, by link.", []string{"address", "link"}, nil)
	standInDesc   = prometheus.NewDesc("weft_announce_stand_in", "1 for each address of another node, whose agent is away, for which this node answers that it is there.", []string{"address", "link", "node"}, nil)
	peersDesc     = prometheus.NewDesc("weft_announce_peers", "Other nodes whose hellos are heard on a link.", []string{"link"}, nil)
)

func newMetrics(a *Announcer) *metrics {
	return &metrics{a: a,
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_announce_moves_total", Help: "Addresses that this node began (claimed) or ceased (released) to announce.",
		}, []string{"direction"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_announce_answers_total", Help: "ARP requests and Neighbor Solicitations answered.",
		}, []string{"protocol"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_announce_conflicts_total", Help: "Hosts outside the cluster seen to use an address that this node announces.",
		}),
		sendFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_announce_send_failures_total", Help: "Frames that could not be sent.",
		}),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- announcedDesc
	ch <- standInDesc
	ch <- peersDesc
	m.moves.Describe(ch)
	m.answers.Describe(ch)
	m.conflicts.Describe(ch)
	m.sendFailures.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.moves.Collect(ch)
	m.answers.Collect(ch)
	m.conflicts.Collect(ch)
	m.sendFailures.Collect(ch)
	m.a.mu.Lock()
	defer m.a.mu.Unlock()
	for _, l := range m.a.links {
		heard := 0
		for _, p := range l.seg.peers {
			if !p.away {
				heard++
			}
		}
		ch <- prometheus.MustNewConstMetric(peersDesc, prometheus.GaugeValue, float64(heard), l.name)
		for x := range l.seg.mine {
			ch <- prometheus.MustNewConstMetric(announcedDesc, prometheus.GaugeValue, 1, x.String(), l.name)
		}
		for x, node := range l.seg.standIns {
			ch <- prometheus.MustNewConstMetric(standInDesc, prometheus.GaugeValue, 1, x.String(), l.name, node)
		}
	}
}

func (m mac) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
