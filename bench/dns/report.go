// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// report is what was measured.
type report struct {
	Services int       `json:"services"`
	Seconds  int       `json:"secondsOfLoad"`
	Rounds   int       `json:"rounds"`
	Loads    []loadRow `json:"loads"`
	Big      int       `json:"bigServices,omitempty"`
	// LoadAverage is the machine's after all loads: much more than 2, and others were at work on it.
	LoadAverage string   `json:"loadAverage,omitempty"`
	Scale       []scaled `json:"scale,omitempty"`
}

type loadRow struct {
	Load   string `json:"load"`
	Server string `json:"server"`
	result
}

type scaled struct {
	Server             string  `json:"server"`
	MemoryBytes        int64   `json:"memoryBytes"`
	PeakBytes          int64   `json:"peakBytes"`
	FirstSeconds       float64 `json:"firstAnswerSeconds"`
	ChangeMedianMillis float64 `json:"changeMedianMillis"`
	ChangeP99Millis    float64 `json:"changeP99Millis"`
	SlowestQueryMillis float64 `json:"slowestQueryMillis"`
}

func (r *report) add(load, server string, res result) {
	r.Loads = append(r.Loads, loadRow{load, server, res})
}

func (r *report) addScale(server string, s scaled) {
	s.Server = server
	r.Scale = append(r.Scale, s)
}

// write prints the report, and keeps it where asked.
func (r *report) write(dir string) error {
	md := r.markdown()
	fmt.Print(md)
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "dns.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "dns.md"), []byte(md), 0o644)
}

// markdown has ratios to weft beside each figure: machines differ, ratios less so.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# DNS, side by side\n\n%d Services; one core each for server and dnsperf; CPU per query from process accounting.\n", r.Services)
	fmt.Fprintf(&b, "Medians of %d rounds, in which the servers took turns.\n", r.Rounds)
	b.WriteString("Latency at a rate that no server is busy with. \"x weft\" is the figure divided by weft's in the same run.\n\n")
	if r.LoadAverage != "" {
		fmt.Fprintf(&b, "The machine's load average was %s: where that is much more than 2, others were at work, and latencies are theirs.\n\n", r.LoadAverage)
	}
	b.WriteString("| load | server | CPU a query | in kernel | x weft | queries/s | p50 | p99 | p99, quietest round | lost |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	weft := make(map[string]float64)
	for _, l := range r.Loads {
		if l.Server == "weft" {
			weft[l.Load] = l.CPUMicros
		}
		ratio := "-"
		if w := weft[l.Load]; w > 0 {
			ratio = fmt.Sprintf("%.2f", l.CPUMicros/w)
		}
		fmt.Fprintf(&b, "| %s | %s | %.2f µs | %.2f µs | %s | %.0f | %.0f µs | %.0f µs | %.0f µs | %d |\n", l.Load, l.Server, l.CPUMicros, l.KernelMicros, ratio,
			l.QueriesPerSecond, l.P50Micros, l.P99Micros, l.QuietP99Micros, l.Lost)
	}
	if len(r.Scale) > 0 {
		fmt.Fprintf(&b, "\n%d Services, %d endpoints:\n\n", r.Big, r.Big*5/2)
		b.WriteString("| server | memory | peak | first answer | change visible, median | p99 | slowest query meanwhile |\n|---|---:|---:|---:|---:|---:|---:|\n")
		for _, s := range r.Scale {
			fmt.Fprintf(&b, "| %s | %.0f MB | %.0f MB | %.1f s | %.2f ms | %.2f ms | %.2f ms |\n", s.Server, float64(s.MemoryBytes)/1e6,
				float64(s.PeakBytes)/1e6, s.FirstSeconds, s.ChangeMedianMillis, s.ChangeP99Millis, s.SlowestQueryMillis)
		}
	}
	return b.String()
}
