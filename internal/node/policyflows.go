// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/flowlog"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/policytable"
	"github.com/weft-net/weft/internal/policy"
)

const (
	// keptFlows is how many flow events an agent keeps for who asks later.
	keptFlows = 4096

	// tellAgain is how long the owner of a pod is left in peace about the same kind of drop.
	tellAgain = 5 * time.Minute

	// tellings is how many kinds of drop the owner of one pod is told of within that time: somebody who tries every
	// door must not flood the API server.
	tellings = 10
)

// told is what the owner of a pod has been told of lately.
type told struct {
	since time.Time
	kinds map[string]bool // by chain and peer
}

// tell says whether the owner of a pod (its UID) should hear of a kind of drop now. It is used by one goroutine.
func (p *Policy) tell(pod, kind string, now time.Time) bool {
	t := p.told[pod]
	if t == nil || now.Sub(t.since) >= tellAgain {
		for uid, other := range p.told { // pods that are gone, or quiet
			if now.Sub(other.since) >= tellAgain {
				delete(p.told, uid)
			}
		}
		t = &told{since: now, kinds: map[string]bool{}}
		p.told[pod] = t
	}
	if t.kinds[kind] || len(t.kinds) >= tellings {
		return false
	}
	t.kinds[kind] = true
	return true
}

// listen reports what the table logs until ctx is done. The kernel has one listener for a log group: while an older
// agent still has it, and after a failure, it tries again.
func (p *Policy) listen(ctx context.Context) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		start := time.Now()
		err := p.table.Listen(ctx, p.report)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > retryMax {
			wait = retryMin
		}
		p.log.Warn("dropped flows are not reported for now; trying again", "err", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// report turns a logged packet into a flow event and, for a drop, tells the pod's owner.
func (p *Policy) report(k policytable.Packet) {
	e, pod := p.explain(k)
	p.flows.Add(e)
	p.metrics.flows.WithLabelValues(string(e.Verdict)).Inc()
	if e.Verdict != flowlog.Dropped || pod == nil || p.cfg.Events == nil {
		return
	}
	peer := e.Source
	if e.Direction == policy.Egress.String() {
		peer = e.Destination
	}
	if !p.tell(pod.UID, e.Chain+" "+peer.String(), k.Time) {
		return
	}
	p.metrics.told.Inc()
	p.cfg.Events(model.Event{
		APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Warning: true, Reason: "NetworkPolicyDrop",
		Message: fmt.Sprintf("%s %s from %s to %s was dropped: %s. See: weft flows -n %s",
			e.Direction, portOf(&e), e.Source, e.Destination, e.Reason, pod.Namespace),
	})
}

func portOf(e *flowlog.Event) string {
	if e.Port == 0 {
		return e.Protocol
	}
	return fmt.Sprintf("%s %d", e.Protocol, e.Port)
}

// explain says of a logged packet whose policies it concerns, and why.
func (p *Policy) explain(k policytable.Packet) (flowlog.Event, *model.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &policy.Flow{Src: p.compiler.EndpointOf(k.Src), Dst: p.compiler.EndpointOf(k.Dst), Protocol: k.Protocol, Port: k.DstPort}
	e := flowlog.Event{
		Time: k.Time, Verdict: flowlog.Dropped, Node: p.cfg.Node, Chain: k.Prefix,
		Source: endOf(f.Src, k.Src), Destination: endOf(f.Dst, k.Dst),
		Protocol: protocolName(k.Protocol), Port: k.DstPort, SourcePort: k.SrcPort,
		Service: p.serviceAsked(k),
	}
	switch k.Prefix {
	case policytable.PrefixAdmitted:
		e.Verdict, e.Chain = flowlog.Admitted, ""
		return e, nil
	case policytable.PrefixMidstream:
		e.Reason = "it belongs to no connection that is known here: the connection was cut when a policy changed, or it had timed out"
		return e, nil
	}
	v := p.compiler.Evaluate(f)
	side := v.Ingress
	source := p.compiler.Source(k.Prefix)
	if source != nil && source.Direction == policy.Egress || source == nil && !v.Egress.Allowed {
		side = v.Egress
	}
	e.Direction = side.Direction.String()
	if k.Src.IsLinkLocalUnicast() && source != nil && side.Pod == nil {
		for _, r := range slices.Concat(source.Isolating, source.Cluster) {
			e.Policies = append(e.Policies, r.String())
		}
		e.Reason = fmt.Sprintf("a pod of namespace %s sent it from a link-local address, and these policies guard the pod: %s", source.Namespace, strings.Join(e.Policies, ", "))
		return e, nil
	}
	for _, fd := range side.Findings {
		if fd.Result == policy.DoesNotAdmit || fd.Result == policy.Denies {
			e.Policies = append(e.Policies, fd.Policy.String())
		}
	}
	switch e.Reason = side.Why; {
	case side.Pod == nil:
		e.Reason = "the API server has not told of a pod with this address yet; until then it is closed"
	case side.Allowed:
		e.Reason = "it was not admitted when it came; since then policies or labels have changed"
	case len(side.Findings) > 0:
		e.Reason += ": " + whys(side.Findings)
	}
	return e, side.Pod
}

// whys are the sentences of those that did not admit.
func whys(findings []policy.Finding) string {
	var out []string
	for _, fd := range findings {
		if fd.Result == policy.DoesNotAdmit {
			out = append(out, fmt.Sprintf("%s: %s", fd.Policy.Name, fd.Why))
		}
	}
	return strings.Join(out, "; ")
}

func endOf(e policy.Endpoint, a netip.Addr) flowlog.End {
	switch {
	case e.Pod != nil:
		return flowlog.End{Kind: "Pod", Namespace: e.Pod.Namespace, Name: e.Pod.Name.Name, Addr: a}
	case e.Node != "":
		return flowlog.End{Kind: "Node", Name: e.Node, Addr: a}
	case len(e.Names) > 0:
		return flowlog.End{Kind: "Outside", Name: e.Names[0], Addr: a}
	}
	return flowlog.End{Kind: "Outside", Addr: a}
}

func protocolName(p model.Protocol) string {
	switch p {
	case 1:
		return "ICMP"
	case 58:
		return "ICMPv6"
	}
	return p.String()
}

// policyMetrics are the part's metrics. Drops are read from the kernel's counters when somebody asks.
type policyMetrics struct {
	cut, repairs prometheus.Counter
	unconfirmed  prometheus.Counter
	told         prometheus.Counter
	flows        *prometheus.CounterVec // by verdict
	names        prometheus.GaugeFunc
	counts       func() map[dropLabels]uint64
	drops        *prometheus.Desc

	mu   sync.Mutex
	last map[dropLabels]uint64 // as the kernel's counters were
	sum  map[dropLabels]uint64 // since the agent started
}

// dropLabels tell whose policies dropped.
type dropLabels struct {
	namespace, policies, direction string
}

func newPolicyMetrics(reg prometheus.Registerer, counts func() map[dropLabels]uint64, names func() float64) (*policyMetrics, error) {
	m := &policyMetrics{
		counts: counts,
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_policy_cut_flows_total", Help: "Established flows that a policy change ended.",
		}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_policy_repairs_total", Help: "Times the policy table was compared with what it should hold because somebody else may have changed it.",
		}),
		unconfirmed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_policy_unconfirmed_pods_total", Help: "Pods that started while the API server could not say whether their policies are all known here.",
		}),
		told: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_policy_events_total", Help: "Events that pods were given because their policies dropped something.",
		}),
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_policy_flows_reported_total", Help: "Flow events, which are a sample of what is dropped (and, on request, admitted).",
		}, []string{"verdict"}),
		names: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "weft_policy_name_addresses", Help: "Addresses that are open to pods because a domain name of their policies resolved to them.",
		}, names),
		drops: prometheus.NewDesc("weft_policy_dropped_packets_total",
			"Packets that policies dropped, by the pods' namespace, the policies that isolate them, and the side.",
			[]string{"namespace", "policies", "direction"}, nil),
		last: map[dropLabels]uint64{}, sum: map[dropLabels]uint64{},
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.cut, m.repairs, m.unconfirmed, m.told, m.flows, m.names, m} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// Describe implements prometheus.Collector.
func (m *policyMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.drops }

// Collect implements prometheus.Collector. The kernel's counters start anew with a chain; the sums go on.
func (m *policyMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.counts()
	for l, n := range now {
		if last := m.last[l]; n >= last {
			m.sum[l] += n - last
		} else {
			m.sum[l] += n
		}
	}
	m.last = now
	for l, n := range m.sum {
		ch <- prometheus.MustNewConstMetric(m.drops, prometheus.CounterValue, float64(n), l.namespace, l.policies, l.direction)
	}
}

// dropCounts are the kernel's counters by what they stand for.
func (p *Policy) dropCounts() map[dropLabels]uint64 {
	counts, err := p.table.DropCounts()
	if err != nil {
		p.log.Warn("can't read the policy table's counters", "err", err)
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[dropLabels]uint64{}
	for chain, n := range counts {
		l := dropLabels{policies: chain}
		if s := p.compiler.Source(chain); s != nil {
			l.namespace = s.Namespace
			names := make([]string, 0, len(s.Isolating))
			for _, r := range s.Isolating {
				names = append(names, r.Name.Name)
			}
			if len(s.Isolating) == 0 { // a ClusterNetworkPolicy denies
				for _, r := range s.Cluster {
					names = append(names, r.Name.Name)
				}
			}
			l.direction, l.policies = s.Direction.String(), strings.Join(names, ",")
		}
		out[l] += n
	}
	return out
}
