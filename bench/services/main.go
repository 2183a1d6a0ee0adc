// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

var contenders = []string{"weft", "kube-proxy-nftables", "kube-proxy-iptables"}

func main() {
	klog.SetOutput(io.Discard) // kube-proxy tells of every counter that a namespace lacks
	klog.LogToStderr(false)
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		work(os.Args[2:])
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-services:", err)
		os.Exit(1)
	}
}

// work measures one thing and prints it. The process has a network namespace of its own.
func work(args []string) {
	n := make([]int, len(args)-2)
	for i, a := range args[2:] {
		v, err := strconv.Atoi(a)
		if err != nil {
			panic(err)
		}
		n[i] = v
	}
	var out any
	switch args[0] {
	case "path":
		out = measurePath(args[1], n[0])
	case "agent":
		out = measureAgent(args[1], n[0], n[1])
	default:
		out = measureProgramming(args[1], n[0], n[1], n[2], n[3])
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		panic(err)
	}
}

// results is all of one run.
type results struct {
	When        string        `json:"when"`
	Kernel      string        `json:"kernel"`
	CPUs        int           `json:"cpus"`
	Load        float64       `json:"load"`      // the highest load average of a minute: who else wanted a processor
	Listeners   int           `json:"listeners"` // to changes of nftables, anywhere on the machine, at most
	Programming []programming `json:"programming"`
	Agent       []agentMemory `json:"agent"`
	ADD         *addResult    `json:"podAdd,omitempty"`
	Path        []pathResult  `json:"path"`
}

// addResult is how long a pod's CNI ADD takes, the plugin's process included, beside a hundred pods.
type addResult struct {
	P50 seconds `json:"p50"`
	P99 seconds `json:"p99"`
}

func run() error {
	dir := flag.String("out", "../results", "`folder` for services.json and services.md")
	deadline := flag.Duration("deadline", time.Minute, "how long kube-proxy may take for each size, full sync and changes together, before it is given up")
	quick := flag.Bool("quick", false, "small sizes only")
	only := flag.String("only", "", "`part` to measure: programming, agent, add or path (default: all)")
	flag.Parse()
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root: every measurement has a network namespace of its own")
	}
	for _, tool := range []string{"nft", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("kube-proxy needs %s: apt-get install nftables iptables", tool)
		}
	}
	res := results{When: time.Now().UTC().Format(time.DateOnly), CPUs: runtime.NumCPU(), Kernel: kernel()}
	type size struct{ services, endpoints, changes, rate int }
	sizes := []size{{1000, 4, 200, 0}, {10000, 4, 1000, 1000}, {30000, 4, 200, 0}, {50000, 4, 1000, 0}, {5000, 50, 200, 0}, {1, 10000, 50, 0}}
	paths, agents := []int{1, 1000, 10000, 50000}, []int{1, 10000, 30000, 50000}
	if *quick {
		sizes, paths, agents = []size{{1000, 4, 50, 1000}}, []int{1, 1000}, []int{1000}
	}
	for _, s := range sizes {
		for _, c := range contenders {
			if *only != "" && *only != "programming" {
				continue
			}
			changes, limit := s.changes, time.Duration(0)
			if c != "weft" {
				changes, limit = min(changes, 20), *deadline // each takes a second or more
				if s.services*s.endpoints > 10000 {
					changes = 5
				}
			}
			var p programming
			if err := isolated(&p, limit, "programming", c, s.services, s.endpoints, changes, s.rate); err != nil {
				p = programming{Contender: c, Services: s.services, Endpoints: s.endpoints, Error: err.Error()}
			}
			if c == "weft" && p.Error == "" {
				p.medianSync(s.services, s.endpoints)
			}
			fmt.Printf("%-20s %6d x %-5d full sync %8.3f s  %s\n", c, s.services, s.endpoints, p.FullSync, p.Error)
			res.Programming = append(res.Programming, p)
			if err := res.write(*dir); err != nil { // what there is so far
				return err
			}
		}
	}
	if *only == "" || *only == "agent" {
		if err := res.agents(*dir, agents); err != nil {
			return err
		}
	}
	if *only == "" || *only == "add" {
		if err := res.podADD(*dir); err != nil {
			return err
		}
	}
	for _, n := range paths {
		for _, c := range contenders {
			if *only != "" && *only != "path" {
				continue
			}
			limit := time.Duration(0)
			if c != "weft" {
				limit = *deadline
			}
			var p pathResult
			if err := isolated(&p, limit, "path", c, n); err != nil {
				p = pathResult{Contender: c, Services: n, Error: err.Error()}
			}
			fmt.Printf("%-20s %6d Services: %6.0f connections/s, %.2f of direct  %s\n", c, n, p.Service.PerSecond, p.Connections, p.Error)
			res.Path = append(res.Path, p)
			if err := res.write(*dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// weftSyncs is how many full syncs of weft's are measured at each size.
const weftSyncs = 5

// medianSync measures weft's full sync more often.
func (p *programming) medianSync(services, endpoints int) {
	clock, cpu := []seconds{p.FullSync}, []seconds{p.FullCPU}
	for range weftSyncs - 1 {
		var again programming
		if err := isolated(&again, 0, "programming", "weft", services, endpoints, 0, 0); err != nil || again.Error != "" {
			p.Error = fmt.Sprint("again: ", err, again.Error)
			return
		}
		clock, cpu = append(clock, again.FullSync), append(cpu, again.FullCPU)
	}
	p.FullSync, p.FullCPU = median(clock), median(cpu)
}

// agents measures the program itself, with so many Services of 4 endpoints.
func (r *results) agents(dir string, sizes []int) error {
	bin, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(bin) }()
	weft, err := buildWeft(bin)
	if err != nil {
		return err
	}
	for _, n := range sizes {
		var m agentMemory
		if err := isolated(&m, 0, "agent", weft, n, 4); err != nil {
			m = agentMemory{Services: n, Endpoints: 4, Error: err.Error()}
		}
		fmt.Printf("%-20s %6d x %-5d ready after %s, %.0f MiB of its own, %.0f with its text, %.0f at the peak  %s\n", "weft node", n, 4, m.Ready, m.Own, m.Resident, m.Peak, m.Error)
		r.Agent = append(r.Agent, m)
		if err := r.write(dir); err != nil {
			return err
		}
	}
	return nil
}

// podADD measures what a container runtime waits for when a pod starts, with the benchmark of package podnet.
func (r *results) podADD(dir string) error {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^BenchmarkADD$/^pod$", "-benchtime", "500x", "./internal/podnet")
	cmd.Dir, cmd.Stderr = "../..", os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("measure ADD: %w: %s", err, out)
	}
	r.ADD = &addResult{}
	for quantile, into := range map[string]*seconds{"p50": &r.ADD.P50, "p99": &r.ADD.P99} {
		m := regexp.MustCompile(`([0-9.]+) ADD-` + quantile + `-ms`).FindSubmatch(out)
		if m == nil {
			return fmt.Errorf("measure ADD: no %s in %s", quantile, out)
		}
		ms, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return fmt.Errorf("measure ADD: %w", err)
		}
		*into = seconds(ms / 1000)
	}
	fmt.Printf("%-20s ADD of a pod: p50 %s, p99 %s\n", "weft node", r.ADD.P50, r.ADD.P99)
	return r.write(dir)
}

// isolated runs one measurement in a process with a network namespace of its own. With a limit it is given up after
// that time, with all processes that it has started.
func isolated(into any, limit time.Duration, what, contender string, numbers ...int) error {
	args := []string{"worker", what, contender}
	for _, n := range numbers {
		args = append(args, strconv.Itoa(n))
	}
	cmd := exec.Command("/proc/self/exe", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Setpgid: true}
	err := raised(what == "programming", cmd.Start)
	var late atomic.Bool
	if err == nil {
		if limit > 0 {
			giveUp := time.AfterFunc(limit, func() {
				late.Store(true)
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // if it has ended, there is nobody to give up
			})
			defer giveUp.Stop()
		}
		err = cmd.Wait()
	}
	if late.Load() {
		return fmt.Errorf("gave up after %s", limit)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return json.Unmarshal(out.Bytes(), into)
}

// raised starts a process with a higher priority, for whoever is measured to have the processor to himself. It is a
// thread's in Linux, and a process has that of the thread which made it.
func raised(yes bool, start func() error) error {
	const high = -15
	if !yes {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, high); err != nil {
		return fmt.Errorf("raise the priority: %w", err)
	}
	return errors.Join(start(), syscall.Setpriority(syscall.PRIO_PROCESS, 0, 0))
}

func kernel() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// load is the machine's load average of the last minute.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		panic(err)
	}
	one, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(one, 64)
	if err != nil {
		panic(err)
	}
	return v
}

// listeners counts the sockets that hear of nftables changes, in all network namespaces. While there is one, the kernel
// puts every element that anybody adds into words, in whatever namespace.
func listeners() int {
	const netfilter, tables = "12", 1 << 6 // NETLINK_NETFILTER, NFNLGRP_NFTABLES
	n := 0
	seen := make(map[string]bool)
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		panic(err)
	}
	for _, p := range processes {
		ns, err := os.Readlink(filepath.Join(p, "ns/net"))
		if err != nil || seen[ns] {
			continue // it has ended, or another one stood for its namespace
		}
		seen[ns] = true
		b, err := os.ReadFile(filepath.Join(p, "net/netlink"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && f[1] == netfilter {
				if groups, err := strconv.ParseUint(f[3], 16, 32); err == nil && groups&tables != 0 {
					n++
				}
			}
		}
	}
	return n
}

func (r *results) write(dir string) error {
	r.Listeners, r.Load = max(r.Listeners, listeners()), max(r.Load, load())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "services.json"), append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "services.md"), []byte(r.markdown()), 0o644)
}
