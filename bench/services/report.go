// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// find is a contender's result at a size; nil if it was not measured there, or not even got through its full sync.
func (r *results) find(contender string, services, endpoints int) *programming {
	for i := range r.Programming {
		p := &r.Programming[i]
		if p.Contender == contender && p.Services == services && p.Endpoints == endpoints && (p.Error == "" || p.FullSync > 0) {
			return p
		}
	}
	return nil
}

// missing says why there is no result.
func (r *results) missing(contender string, services, endpoints int) string {
	for _, p := range r.Programming {
		if p.Contender == contender && p.Services == services && p.Endpoints == endpoints {
			return p.Error
		}
	}
	return "not run"
}

func (s seconds) String() string {
	switch {
	case s < 0.001:
		return fmt.Sprintf("%.0f µs", float64(s)*1e6)
	case s < 1:
		return fmt.Sprintf("%.1f ms", float64(s)*1e3)
	}
	return fmt.Sprintf("%.1f s", float64(s))
}

// times says how many times as long the other took.
func times(weft, other seconds) string {
	if weft <= 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%.0f×)", other, float64(other/weft))
}

// markdown is the result for people: weft's figure, and of the others theirs with how many times weft's it is.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Services: weft and kube-proxy side by side\n\nOne run of `make bench-services` on %s, %d processors, Linux %s. Times depend on the machine; the\n"+
		"ratios in parentheses, to weft's time in the same run, much less. kube-proxy is v1.37.2 with its defaults. A full sync\n"+
		"of weft's is the median of %d, for one is so short that anything disturbs it; kube-proxy's are single. All that is about\n"+
		"programming the kernel ran at a raised priority.\n", r.When, r.CPUs, r.Kernel, weftSyncs)
	if r.Load > 4*float64(r.CPUs) {
		fmt.Fprintf(&b, "\nThe machine was busy with other work (load average up to %.0f): times by the clock, those of moments most of all, are longer\n"+
			"than they need be. Processor times are not.\n", r.Load)
	}
	if r.Listeners > 0 {
		fmt.Fprintf(&b, "\nOther programs on the machine listened to changes of nftables meanwhile (%d sockets). Then the kernel puts every element\n"+
			"that anybody adds into words, which takes about a fifth of a full sync here.\n", r.Listeners)
	}
	others := []string{"kube-proxy-nftables", "kube-proxy-iptables"}
	table := func(title, head string) {
		fmt.Fprintf(&b, "\n## %s\n\n| %s | weft | kube-proxy nftables | kube-proxy iptables |\n| --- | --- | --- | --- |\n", title, head)
	}
	rows := func(of func(*programming) (seconds, bool)) {
		for _, w := range r.Programming {
			if w.Contender != "weft" || w.Error != "" {
				continue
			}
			v, ok := of(&w)
			if !ok {
				continue
			}
			fmt.Fprintf(&b, "| %d × %d | %s |", w.Services, w.Endpoints, v)
			for _, o := range others {
				cell := r.missing(o, w.Services, w.Endpoints)
				if p := r.find(o, w.Services, w.Endpoints); p != nil {
					if ov, ok := of(p); ok {
						cell = times(v, ov)
					}
				}
				fmt.Fprintf(&b, " %s |", cell)
			}
			b.WriteString("\n")
		}
	}
	table("Full sync", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return p.FullSync, true })
	table("The same, in processor time", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return p.FullCPU, true })
	part := func(l *latency, q func(*latency) seconds) (seconds, bool) {
		if l == nil {
			return 0, false
		}
		return q(l), true
	}
	p50, p99 := func(l *latency) seconds { return l.P50 }, func(l *latency) seconds { return l.P99 }
	table("One endpoint replaced: from the EndpointSlice event to the kernel, p50", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return part(p.Change, p50) })
	table("The same, p99", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return part(p.Change, p99) })
	table("The same, without kube-proxy's wait of a second between syncs, p50", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return part(p.ChangeWork, p50) })
	table("One endpoint more or fewer: from the event to the kernel, p50", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return part(p.Scale, p50) })
	table("The same, p99", "Services × endpoints")
	rows(func(p *programming) (seconds, bool) { return part(p.Scale, p99) })

	fmt.Fprintf(&b, "\n## An agent that finds the tables in the kernel; and one that has them emptied by somebody else\n\n"+
		"From its start until it has taken them over; from the deed until the map of Services is full again.\n\n"+
		"| Services × endpoints | taken over | repaired |\n| --- | --- | --- |\n")
	for _, w := range r.Programming {
		if w.Restart > 0 {
			fmt.Fprintf(&b, "| %d × %d | %s | %s |\n", w.Services, w.Endpoints, w.Restart, w.Repair)
		}
	}

	fmt.Fprintf(&b, "\n## Memory of the whole agent, MiB\n\n`weft node`, the program itself with all its parts and its own copy of the cluster, before an API server that streams\n"+
		"it; %s after it was ready. Its own is what no other process has; the rest is the program's text.\n\n"+
		"| Services × endpoints | its own | with the text | at the peak | ready after |\n| --- | --- | --- | --- | --- |\n", restTime)
	for _, m := range r.Agent {
		if m.Error != "" {
			fmt.Fprintf(&b, "| %d × %d | %s |\n", m.Services, m.Endpoints, m.Error)
			continue
		}
		fmt.Fprintf(&b, "| %d × %d | %.0f | %.0f | %.0f | %s |\n", m.Services, m.Endpoints, m.Own, m.Resident, m.Peak, m.Ready)
	}

	if r.ADD != nil {
		fmt.Fprintf(&b, "\n## A pod's CNI ADD\n\nWhat the container runtime waits for: the plugin's process and the agent's work, beside a hundred pods.\n\n"+
			"| p50 | p99 |\n| --- | --- |\n| %s | %s |\n", r.ADD.P50, r.ADD.P99)
	}

	fmt.Fprintf(&b, "\n## Memory of the process, MiB\n\nAfter a garbage collection. No client's cache is in it: the agent's holds translated objects, which are counted here,\nkube-proxy's informers hold the API's, which are not.\n\n| Services × endpoints | weft | kube-proxy nftables | kube-proxy iptables |\n| --- | --- | --- | --- |\n")
	for _, w := range r.Programming {
		if w.Contender != "weft" || w.Error != "" {
			continue
		}
		fmt.Fprintf(&b, "| %d × %d | %.0f |", w.Services, w.Endpoints, w.Memory)
		for _, o := range others {
			cell := r.missing(o, w.Services, w.Endpoints)
			if p := r.find(o, w.Services, w.Endpoints); p != nil {
				cell = fmt.Sprintf("%.0f", p.Memory)
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteString("\n")
	}

	fmt.Fprintf(&b, "\n## A stream of endpoint changes\n\n| | changes/s | Services | processors used | behind, p50 | behind, p99 | behind at the end |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, p := range r.Programming {
		if f := p.Flood; f != nil {
			fmt.Fprintf(&b, "| %s | %d | %d | %.2f | %s | %s | %s |\n", p.Contender, f.Rate, p.Services, f.CPU, f.Lag.P50, f.Lag.P99, f.LastLag)
		}
	}

	fmt.Fprintf(&b, "\n## Connections through a cluster IP, against the pod itself\n\n| | Services | new connections/s | of direct | connect p50 | direct | connect p99 | direct | bulk, of direct |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, p := range r.Path {
		if p.Error != "" {
			fmt.Fprintf(&b, "| %s | %d | %s |\n", p.Contender, p.Services, p.Error)
			continue
		}
		fmt.Fprintf(&b, "| %s | %d | %.0f | %.2f | %s | %s | %s | %s | %.2f |\n", p.Contender, p.Services, p.Service.PerSecond,
			p.Connections, p.Service.First.P50, p.Direct.First.P50, p.Service.First.P99, p.Direct.First.P99, p.Bulk)
	}
	return b.String()
}
