// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// programming is what one run of one contender at one size gives.
type programming struct {
	Contender string  `json:"contender"`
	Services  int     `json:"services"`
	Endpoints int     `json:"endpointsEach"`
	FullSync  seconds `json:"fullSync"`    // by the clock
	FullCPU   seconds `json:"fullSyncCPU"` // processor time, of child processes and in the kernel too
	Memory    float64 `json:"memoryMiB"`   // resident, objects of the benchmark itself taken off

	Change     *latency `json:"change,omitempty"`     // one endpoint replaced, from the event to the kernel
	ChangeWork *latency `json:"changeWork,omitempty"` // the same without waiting for a throttle
	Scale      *latency `json:"scale,omitempty"`      // one endpoint more or fewer, from the event to the kernel
	Flood      *flood   `json:"flood,omitempty"`

	// Of weft only: what an agent takes that finds the tables in the kernel, and to set them right when somebody else
	// has emptied the map of Services, from that on.
	Restart seconds `json:"restart,omitempty"`
	Repair  seconds `json:"repair,omitempty"`

	Error string `json:"error,omitempty"`
}

type seconds float64

type latency struct {
	P50 seconds `json:"p50"`
	P99 seconds `json:"p99"`
	Max seconds `json:"max"`
	N   int     `json:"n"`
}

// flood is a steady stream of changes.
type flood struct {
	Rate    int     `json:"changesPerSecond"`
	CPU     float64 `json:"cpu"`        // cores' worth of time, children included
	Lag     latency `json:"behind"`     // how far the kernel was behind, sampled
	LastLag seconds `json:"lastBehind"` // at the end, before the stream stopped
}

func percentiles(d []time.Duration) *latency {
	if len(d) == 0 {
		return nil
	}
	slices.Sort(d)
	at := func(q float64) seconds { return seconds(d[min(len(d)-1, int(q*float64(len(d))))].Seconds()) }
	return &latency{P50: at(0.50), P99: at(0.99), Max: seconds(d[len(d)-1].Seconds()), N: len(d)}
}

// measureProgramming runs in a process and network namespace of its own.
func measureProgramming(name string, services, endpoints, changes, rate int) programming {
	out := programming{Contender: name, Services: services, Endpoints: endpoints}
	fail := func(err error) programming {
		out.Error = err.Error()
		return out
	}
	c, err := newContender(name)
	if err != nil {
		return fail(err)
	}
	took, cpu, err := c.load(generate(services, endpoints))
	if err != nil {
		return fail(err)
	}
	out.FullSync, out.FullCPU = seconds(took.Seconds()), seconds(cpu.Seconds())
	debug.FreeOSMemory()
	out.Memory = memoryOf(os.Getpid(), "VmRSS")
	r := rand.New(rand.NewPCG(1, uint64(services)))
	gens := make(map[int]int)
	next := func() (old, new *discoveryv1.EndpointSlice) {
		n := r.IntN(services)
		old = makeSlices(n, endpoints, gens[n])[0]
		gens[n]++
		return old, makeSlices(n, endpoints, gens[n])[0]
	}
	var clock, work, scale []time.Duration
	for until := time.Now().Add(changeTime); len(clock) < changes && time.Now().Before(until); {
		old, now := next()
		c, w, err := c.change(old, now)
		if err != nil {
			return fail(err)
		}
		clock, work = append(clock, c), append(work, w)
	}
	out.Change, out.ChangeWork = percentiles(clock), percentiles(work)
	for until := time.Now().Add(changeTime); len(scale) < changes && time.Now().Before(until); {
		i := len(scale)
		n := i / 2
		big, small := makeSlices(n, endpoints+1, gens[n])[0], makeSlices(n, endpoints, gens[n])[0]
		if i%2 == 1 {
			big, small = small, big
		}
		c, _, err := c.change(small, big)
		if err != nil {
			return fail(err)
		}
		scale = append(scale, c)
	}
	out.Scale = percentiles(scale)
	if rate > 0 {
		out.Flood = measureFlood(c, next, rate)
	}
	if w, ok := c.(*weft); ok && changes > 0 {
		repair, err := w.repair(services)
		if err != nil {
			return fail(err)
		}
		restart, err := w.restart(generate(services, endpoints))
		if err != nil {
			return fail(err)
		}
		out.Repair, out.Restart = seconds(repair.Seconds()), seconds(restart.Seconds())
	}
	return out
}

// changeTime bounds a series of single changes.
const changeTime = time.Minute

// floodTime is how long the stream of changes lasts.
const floodTime = 15 * time.Second

func measureFlood(c contender, next func() (old, new *discoveryv1.EndpointSlice), rate int) *flood {
	out := &flood{Rate: rate}
	var lag []time.Duration
	cpu, start := cpuTime(), time.Now()
	for n := 0; time.Since(start) < floodTime; n++ {
		due := start.Add(time.Duration(n) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		c.push(next())
		if n%10 == 0 {
			lag = append(lag, c.behind())
		}
	}
	out.CPU = (cpuTime() - cpu).Seconds() / time.Since(start).Seconds()
	out.LastLag = seconds(c.behind().Seconds())
	out.Lag = *percentiles(lag)
	return out
}

// cpuTime is what this process and its children have used.
func cpuTime() time.Duration {
	var total time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			panic(err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}
