// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Latency is that of small requests which come when they are due, whether those on other connections are answered or not.
// What the highest percentile shows is mostly what else a machine does, so that is kept out as far as it goes:
//
//   - The servers, all alike, are scheduled before all else (SCHED_FIFO). Otherwise the machine's own threads make the 99th
//     percentile, some of which, on a kernel without preemption, have the core for milliseconds: it is twice as high, and two
//     instances of one program differ by a third.
//   - h2load is the client. It needs so little that it hardly keeps the endpoint, with which it shares its core, from
//     answering.
//   - The contenders take short turns, and what counts is the median of the turns' percentiles.
//
// A second nginx, measured like the others, tells how far the figures can be trusted.
const (
	latencyCase  = "http1-latency"
	latencyRate  = 2000 // requests a second
	latencyConns = 64   // of which each has its own schedule
	latencyTurn  = time.Second
	latencyWarm  = 100 * time.Millisecond // of each turn, not counted: connections are made, and the others have had the caches
)

// percentiles are what is told of it, by the row in the report.
var percentiles = map[string]float64{"http1-p50": 0.50, "http1-p90": 0.90, "http1-p95": 0.95, "http1-p98": 0.98, "http1-p99": 0.99}

// latencies has each contender, and the second nginx, take turns, for d in all. It tells of each turn how long the requests
// took, in microseconds, in order.
func (b *bench) latencies(ctx context.Context, d time.Duration, tell func(contender string, took []int64)) error {
	defer b.schedule("--other", "0") // as it was: who may go up may go down
	if err := b.schedule("--fifo", "1"); err != nil {
		return err
	}
	for range d / latencyTurn {
		for _, name := range append([]string{control}, contenders...) {
			took, err := b.turn(ctx, ports(name).plain)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			slices.Sort(took)
			tell(name, took)
		}
	}
	return nil
}

// schedule gives all threads of all servers a policy and a priority in it.
func (b *bench) schedule(policy, priority string) error {
	for name, p := range b.procs {
		for _, pid := range p.pids() {
			if out, err := exec.Command("chrt", policy, "--all-tasks", "--pid", priority, pid).CombinedOutput(); err != nil {
				return fmt.Errorf("schedule %s before all else, for which CAP_SYS_NICE is needed: %w: %s", name, err, out)
			}
		}
	}
	return nil
}

// percentile is of a list in order that is not empty.
func percentile(took []int64, share float64) float64 {
	return float64(took[min(int(float64(len(took))*share), len(took)-1)])
}

// turn has requests made at the rate for the time of a turn. The connections begin one after the other, two each millisecond, so that their
// schedules, each of a request every 32 ms, don't fall together.
func (b *bench) turn(ctx context.Context, port int) ([]int64, error) {
	log := b.file("latency.log")
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	_, err := b.tool(ctx, "h2load", "--h1", "-t1", "-c"+strconv.Itoa(latencyConns), "-r2", "--rate-period=1ms",
		"-n"+strconv.Itoa(int(latencyRate*latencyTurn.Seconds())), "--rps="+strconv.FormatFloat(float64(latencyRate)/latencyConns, 'f', -1, 64),
		"--log-file="+log, fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return nil, err
	}
	return answers(string(text))
}

// answers reads h2load's log, of which each line has when a request began, the status, and how long it took, in
// microseconds.
func answers(log string) ([]int64, error) {
	var began, took []int64
	for line := range strings.Lines(log) {
		var at, status, us int64
		if _, err := fmt.Sscan(line, &at, &status, &us); err != nil {
			return nil, fmt.Errorf("log of h2load, %q: %w", line, err)
		}
		if status != 200 {
			return nil, fmt.Errorf("a request failed, with status %d", status)
		}
		began, took = append(began, at), append(took, us)
	}
	if want := int(latencyRate * latencyTurn.Seconds()); len(took) != want {
		return nil, fmt.Errorf("%d of %d requests were answered", len(took), want)
	}
	first := slices.Min(began)
	kept := took[:0]
	for i, us := range took {
		if began[i]-first > latencyWarm.Microseconds() {
			kept = append(kept, us)
		}
	}
	return kept, nil
}
