// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var contenders = []string{"nginx", "haproxy", "weft"}

// control is a second nginx, which only latency is measured of.
const control = "nginx-again"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "endpoint" {
		serveEndpoints()
		return
	}
	rounds := flag.Int("rounds", 5, "how often each `case` is measured")
	seconds := flag.Int("seconds", 4, "how long each measurement takes")
	only := flag.String("cases", "", "comma-separated `names` of cases; all without")
	out := flag.String("results", "", "`directory` for gateway.json and gateway.md; none without")
	weft := flag.String("weft", "", "weft's `program`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *rounds, *seconds, *only, *out, *weft); err != nil {
		fmt.Fprintln(os.Stderr, "bench-gateway:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds, seconds int, only, out, weft string) error {
	for _, tool := range []string{"nginx", "haproxy", "wrk", "h2load", "taskset", "chrt"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install nginx-light libnginx-mod-stream haproxy wrk nghttp2-client util-linux", tool)
		}
	}
	dir, err := os.MkdirTemp("", "bench-gateway")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // workers of nginx run as somebody else
		return err
	}
	b := &bench{dir: dir, weft: weft, commands: map[string][]string{}, procs: map[string]*process{}}
	defer b.stop()
	if err := b.start(ctx); err != nil {
		return err
	}
	r := report{rounds: rounds, figures: map[string]map[string][]float64{}}
	wanted := func(name string) bool { return only == "" || slices.Contains(strings.Split(only, ","), name) }
	for range rounds {
		for _, c := range cases {
			if !wanted(c.name) {
				continue
			}
			for _, name := range contenders {
				us, err := b.measure(ctx, c, name, time.Duration(seconds)*time.Second)
				if errors.Is(err, errFew) { // a load generator that was starved
					us, err = b.measure(ctx, c, name, time.Duration(seconds)*time.Second)
				}
				if errors.Is(err, errFew) {
					fmt.Fprintf(os.Stderr, "%s %s is left out: %v\n", c.name, name, err)
					continue
				}
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, name, err)
				}
				r.add(c.name, name, us)
				fmt.Fprintf(os.Stderr, "%s %s %.2f\n", c.name, name, us)
			}
		}
		if !wanted(latencyCase) {
			continue
		}
		// Four times as long as the others: the highest percentile is that of the machine's bad moments, and varies.
		err := b.latencies(ctx, 4*time.Duration(seconds)*time.Second, func(contender string, took []int64) {
			for row, share := range percentiles {
				r.add(row, contender, percentile(took, share))
			}
		})
		if err != nil {
			return fmt.Errorf("%s, %w", latencyCase, err)
		}
	}
	if only == "" {
		if r.memory, err = b.memory(ctx); err != nil {
			return err
		}
	}
	fmt.Print(r.markdown())
	if out == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(out, "gateway.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "gateway.json"), r.json(), 0o644)
}

var errFew = errors.New("too few operations succeeded")

// measure gives the microseconds of CPU that a contender takes for each operation of a case.
func (b *bench) measure(ctx context.Context, c benchCase, name string, d time.Duration) (float64, error) {
	p := b.procs[name]
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	n, err := c.load(ctx, b, ports(name), d)
	if err != nil {
		return 0, err
	}
	after, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if n < 50 {
		return 0, fmt.Errorf("%w: %.0f", errFew, n)
	}
	return float64(after-before) / 1000 / n, nil
}
