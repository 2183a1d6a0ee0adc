// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

type options struct {
	weft, coredns    string
	services, big    int
	seconds, changes int
	rate, rounds     int
	only             string
	differ           int
	out              string
}

func main() {
	var o options
	flag.StringVar(&o.weft, "weft", "", "weft's binary")
	flag.StringVar(&o.coredns, "coredns", "", "CoreDNS's binary (./coredns)")
	flag.IntVar(&o.services, "services", 10000, "Services for speed")
	flag.IntVar(&o.big, "big", 100000, "Services for memory and changes; 0 is none")
	flag.IntVar(&o.rounds, "rounds", 3, "times that each load is measured, the servers taking turns; the medians count")
	flag.IntVar(&o.seconds, "seconds", 5, "seconds of full load")
	flag.IntVar(&o.changes, "changes", 200, "changes to time")
	flag.IntVar(&o.rate, "rate", 5000, "queries a second for latency")
	flag.StringVar(&o.only, "only", "weft,coredns,knot", "servers")
	flag.IntVar(&o.differ, "differ", 0, "instead of measuring, compare what weft and CoreDNS answer about this many generated clusters")
	flag.StringVar(&o.out, "out", "", "folder for dns.json and dns.md; empty is standard output only")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-dns:", err)
		os.Exit(1)
	}
}

// The core that servers have, and the one that the load has.
const coreServer, coreLoad = 0, 1

const outsideNames = 5000

func run(o options) error {
	for _, tool := range []string{"dnsperf", "knotd", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install knot dnsperf util-linux", tool)
		}
	}
	dir, err := os.MkdirTemp("", "bench-dns")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.differ > 0 {
		return differ(o, o.differ, dir)
	}
	rep := &report{Services: o.services, Seconds: o.seconds, Rounds: o.rounds}
	c := newCluster(o.services)
	api, err := c.serve()
	if err != nil {
		return err
	}
	inside, outside := filepath.Join(dir, "inside"), filepath.Join(dir, "outside-names")
	if err := queryFile(c, inside); err != nil {
		return err
	}
	if err := outsideFile(outsideNames, outside); err != nil {
		return err
	}
	away, err := outsideServer(outsideNames, dir)
	if err != nil {
		return err
	}
	defer away.stop()
	if err := away.start(coreLoad, "host-0.example", "192.0.2.1", 10*time.Second); err != nil {
		return err
	}
	if err := speed(o, rep, c, api, dir, inside, outside); err != nil {
		return err
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		rep.LoadAverage, _, _ = strings.Cut(string(data), " ")
	}
	if o.big > 0 {
		if err := scale(o, rep, dir); err != nil {
			return err
		}
	}
	return rep.write(o.out)
}

func newServer(o options, name string, c *cluster, api, dir string) (*server, error) {
	switch name {
	case "weft":
		return weftServer(o.weft, api, dir, usual)
	case "coredns":
		return coreDNSServer(o.coredns, api, dir, usual)
	}
	return knotServer(c, dir)
}

// contender is a server in a load, by the name that the report has for it.
type contender struct {
	name string
	*server
}

// speed measures the servers in turns, so that what else the machine does meanwhile falls on all of them. Those that
// wait for their turn rest.
func speed(o options, rep *report, c *cluster, api, dir, inside, outside string) error {
	var in, out []contender
	first := c.services[0]
	for _, name := range []string{"weft", "coredns", "knot"} {
		if !slices.Contains(strings.Split(o.only, ","), name) {
			continue
		}
		s, err := newServer(o, name, c, api, dir)
		if err != nil {
			return err
		}
		defer s.stop()
		if err := s.start(coreServer, fqdn(first), first.Spec.ClusterIP, time.Minute); err != nil {
			return err
		}
		in = append(in, contender{name, s})
		if name != "knot" {
			out = append(out, contender{name, s})
			continue
		}
		// Knot forwards nothing: for it the names outside are a zone of its own, which is the best that it can do.
		away, err := outsideOnServerCore(dir)
		if err != nil {
			return err
		}
		defer away.stop()
		out = append(out, contender{name, away})
	}
	for _, l := range []struct {
		load, mode, file string
		of               []contender
	}{{"cluster names, UDP", "udp", inside, in}, {"cluster names, TCP", "tcp", inside, in}, {"cached names, UDP", "udp", outside, out}} {
		results := make([][]result, len(l.of))
		for round := range o.rounds {
			for i, s := range l.of {
				fmt.Fprintf(os.Stderr, "%s, %d of %d: %s...\n", l.load, round+1, o.rounds, s.name)
				res, err := load(s.server, coreLoad, l.mode, l.file, o.seconds, o.rate)
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err)
					continue
				}
				results[i] = append(results[i], res)
			}
		}
		for i, s := range l.of {
			if len(results[i]) == 0 {
				return fmt.Errorf("%s: %s: nothing could be measured", s.name, l.load)
			}
			rep.add(l.load, s.name, median(results[i]))
		}
	}
	return nil
}

// median takes each figure by itself; of queries lost the sum.
func median(all []result) result {
	of := func(f func(result) float64) float64 {
		var v []float64
		for _, r := range all {
			v = append(v, f(r))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	out := result{
		QueriesPerSecond: of(func(r result) float64 { return r.QueriesPerSecond }),
		CPUMicros:        of(func(r result) float64 { return r.CPUMicros }),
		KernelMicros:     of(func(r result) float64 { return r.KernelMicros }),
		P50Micros:        of(func(r result) float64 { return r.P50Micros }),
		P99Micros:        of(func(r result) float64 { return r.P99Micros }),
	}
	out.QuietP99Micros = out.P99Micros
	for _, r := range all {
		out.QuietP99Micros = min(out.QuietP99Micros, r.P99Micros)
		out.Lost += r.Lost
		out.Completed += r.Completed
	}
	return out
}

func outsideOnServerCore(dir string) (*server, error) {
	zone, err := os.ReadFile(filepath.Join(dir, "outside", "zone"))
	if err != nil {
		return nil, err
	}
	s, err := knot("knot-outside", portKnotOutside, "example", string(zone), dir)
	if err != nil {
		return nil, err
	}
	return s, s.start(coreServer, "host-0.example", "192.0.2.1", 10*time.Second)
}

// scale measures memory, the first picture and single changes on a big cluster.
func scale(o options, rep *report, dir string) error {
	fmt.Fprintf(os.Stderr, "a cluster of %d Services and %d endpoints...\n", o.big, o.big*5/2)
	c := newCluster(o.big)
	api, err := c.serve()
	if err != nil {
		return err
	}
	rep.Big = o.big
	last := c.services[0]
	for _, name := range []string{"weft", "coredns"} {
		if !slices.Contains(strings.Split(o.only, ","), name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s...\n", name)
		s, err := newServer(o, name, c, api, dir)
		if err != nil {
			return err
		}
		sc, err := scaleOne(o, s, c, last)
		s.stop()
		if err != nil {
			return err
		}
		rep.addScale(name, sc)
	}
	return nil
}

func scaleOne(o options, s *server, c *cluster, probe *corev1.Service) (scaled, error) {
	var out scaled
	begin := time.Now()
	if err := s.start(coreServer, fqdn(probe), c.services[0].Spec.ClusterIP, 3*time.Minute); err != nil {
		return out, err
	}
	out.FirstSeconds = time.Since(begin).Seconds()
	for deadline := time.Now().Add(time.Minute); c.watching("services") == 0; {
		if time.Now().After(deadline) {
			return out, fmt.Errorf("%s does not watch Services", s.name)
		}
		time.Sleep(10 * time.Millisecond)
	}
	conn, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		return out, err
	}
	defer conn.Close()
	time.Sleep(3 * time.Second) // a server is not sent queries the moment that it knows a name
	var took, pauses []float64
	for i := range o.changes {
		k := 1 + i*7%len(c.services)
		if c.services[k].Spec.ClusterIP == corev1.ClusterIPNone {
			k++
		}
		ip := fmt.Sprintf("172.31.%d.%d", i/250, i%250+1)
		begin := time.Now()
		c.change(k, ip)
		for {
			asked := time.Now()
			got, err := ask(conn, fqdn(c.services[k]))
			if err != nil {
				return out, fmt.Errorf("%s: %w", s.name, err)
			}
			pauses = append(pauses, time.Since(asked).Seconds()*1e3)
			if got == ip {
				break
			}
			if time.Since(begin) > time.Minute {
				return out, fmt.Errorf("%s does not show a change after a minute", s.name)
			}
		}
		took = append(took, time.Since(begin).Seconds()*1e3)
	}
	slices.Sort(took)
	slices.Sort(pauses)
	out.ChangeMedianMillis, out.ChangeP99Millis = took[len(took)/2], took[len(took)*99/100]
	out.SlowestQueryMillis = pauses[len(pauses)-1]
	// Give the garbage collectors a while to be done with the start.
	time.Sleep(5 * time.Second)
	out.MemoryBytes, out.PeakBytes, err = s.memory()
	return out, err
}

func fqdn(s *corev1.Service) string { return s.Name + "." + s.Namespace + ".svc.cluster.local" }
