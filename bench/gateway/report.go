// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// report collects figures by case and contender.
type report struct {
	rounds  int
	figures map[string]map[string][]float64
	memory  []figure
}

func (r *report) add(c, contender string, us float64) {
	if r.figures[c] == nil {
		r.figures[c] = map[string][]float64{}
	}
	r.figures[c][contender] = append(r.figures[c][contender], us)
}

func (r *report) median(c, contender string) float64 {
	v := slices.Clone(r.figures[c][contender])
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func (r *report) markdown() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# weft gateway beside nginx and HAProxy

CPU time of the proxy for each request or message, in microseconds, one core, median of %d rounds; %d routes. The
machine was not idle, so the ratios count. The last column is the ratio to the better of the two.

| case | what | nginx | HAProxy | weft | ratio |
|---|---|---|---|---|---|
`, r.rounds, routes)
	for _, c := range cases {
		if r.figures[c.name] == nil {
			continue
		}
		n, h, w := r.median(c.name, "nginx"), r.median(c.name, "haproxy"), r.median(c.name, "weft")
		fmt.Fprintf(&b, "| %s | %s | %.1f | %.1f | %.1f | %.2f |\n", c.name, c.what, n, h, w, w/min(n, h))
	}
	if len(r.figures["http1-p99"]) > 0 {
		fmt.Fprintf(&b, `
Latency of small requests at %d a second, in microseconds; medians of %d turns of %v. The second nginx
shows how far equal programs differ here:

| percentile | nginx | HAProxy | weft | ratio | nginx again | its ratio |
|---|---|---|---|---|---|---|
`, latencyRate, len(r.figures["http1-p99"]["weft"]), latencyTurn)
		for _, row := range slices.Sorted(maps.Keys(percentiles)) {
			n, h, w, c := r.median(row, "nginx"), r.median(row, "haproxy"), r.median(row, "weft"), r.median(row, control)
			fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %.2f | %.0f | %.2f |\n", row, n, h, w, w/min(n, h), c, c/n)
		}
	}
	if len(r.memory) > 0 {
		fmt.Fprintf(&b, "\nMemory (resident):\n\n| contender | what | |\n|---|---|---|\n%s", figures(r.memory))
	}
	return b.String()
}

func (r *report) json() []byte {
	medians := map[string]map[string]float64{}
	for c := range r.figures {
		medians[c] = map[string]float64{}
		for name := range r.figures[c] {
			medians[c][name] = r.median(c, name)
		}
	}
	out, err := json.MarshalIndent(map[string]any{"unit": "microseconds of CPU; http1-p50 to -p99: of latency", "rounds": r.rounds, "routes": routes, "cases": medians, "memory": r.memory}, "", "\t")
	if err != nil {
		panic(err) // numbers and strings only
	}
	return append(out, '\n')
}
