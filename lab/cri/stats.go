// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/procs"
)

// use is what a container's processes have used, read from /proc: the lab has no cgroups.
type use struct {
	cpu       time.Duration // including ended children that were waited for
	rss       uint64        // bytes
	faults    uint64
	bigFaults uint64
	processes uint64
}

func (u *use) add(v use) {
	u.cpu += v.cpu
	u.rss += v.rss
	u.faults += v.faults
	u.bigFaults += v.bigFaults
	u.processes += v.processes
}

// usageTracker turns successive readings into what the CRI wants: processor time that never falls, and a rate.
type usageTracker struct {
	mu   sync.Mutex
	last map[string]cpuReading
}

type cpuReading struct {
	at   time.Time
	cpu  time.Duration
	rate uint64 // billionths of a core
}

func newUsageTracker() *usageTracker { return &usageTracker{last: map[string]cpuReading{}} }

func (t *usageTracker) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.last, id)
}

// minInterval is the least time between readings that make a rate: the kernel counts in hundredths of a second.
const minInterval = time.Second

func (t *usageTracker) cpu(id string, now time.Time, cpu time.Duration) *runtimeapi.CpuUsage {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.last[id]
	if cpu < r.cpu {
		cpu = r.cpu // a process that nobody waited for took its time with it
	}
	if r.at.IsZero() {
		t.last[id] = cpuReading{at: now, cpu: cpu}
	} else if d := now.Sub(r.at); d >= minInterval {
		r = cpuReading{at: now, cpu: cpu, rate: uint64(float64(cpu-r.cpu) / float64(d) * 1e9)}
		t.last[id] = r
	}
	return &runtimeapi.CpuUsage{
		Timestamp:            now.UnixNano(),
		UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: uint64(cpu)},
		UsageNanoCores:       &runtimeapi.UInt64Value{Value: r.rate},
	}
}

// readUse adds up the processes of each container, found by mount namespace.
func readUse() map[uint64]use {
	all := map[uint64]use{}
	for _, pid := range procs.All() {
		ns := procs.MountNamespace(pid)
		if ns == 0 {
			continue
		}
		if u, ok := readProcess(pid); ok {
			sum := all[ns]
			sum.add(u)
			all[ns] = sum
		}
	}
	return all
}

// clockTick is the unit of times in /proc, fixed at 1/100 s on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// readProcess reads /proc/PID/stat (proc_pid_stat(5)).
func readProcess(pid int) (use, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return use{}, false
	}
	// The second field, the name in parentheses, may hold anything.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 22 {
		return use{}, false
	}
	n := func(field int) uint64 { // numbered as in the manual, from 1
		v, _ := strconv.ParseUint(f[field-3], 10, 64)
		return v
	}
	return use{
		cpu:       time.Duration(n(14)+n(15)+n(16)+n(17)) * clockTick,
		rss:       n(24) * uint64(os.Getpagesize()),
		faults:    n(10),
		bigFaults: n(12),
		processes: 1,
	}, true
}

func memoryUsage(now time.Time, u use, limit int64) *runtimeapi.MemoryUsage {
	m := &runtimeapi.MemoryUsage{
		Timestamp:       now.UnixNano(),
		WorkingSetBytes: &runtimeapi.UInt64Value{Value: u.rss},
		UsageBytes:      &runtimeapi.UInt64Value{Value: u.rss},
		RssBytes:        &runtimeapi.UInt64Value{Value: u.rss},
		PageFaults:      &runtimeapi.UInt64Value{Value: u.faults},
		MajorPageFaults: &runtimeapi.UInt64Value{Value: u.bigFaults},
	}
	if limit > 0 {
		m.AvailableBytes = &runtimeapi.UInt64Value{Value: uint64(max(0, limit-int64(u.rss)))}
	}
	return m
}

func (s *server) containerStats(c *container, uses map[uint64]use, now time.Time) *runtimeapi.ContainerStats {
	c.mu.Lock()
	var u use
	if c.state != nil {
		u = uses[c.state.MountNS]
	}
	limit := c.rec.Resources.GetMemoryLimitInBytes()
	c.mu.Unlock()
	size, inodes := treeUse(filepath.Join(c.dir, "upper"))
	hostSize, hostInodes := treeUse(filepath.Join(c.dir, "host"))
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.rec.ID, Metadata: c.rec.Config.Metadata,
			Labels: c.rec.Config.Labels, Annotations: c.rec.Config.Annotations,
		},
		Cpu:    s.usage.cpu(c.rec.ID, now, u.cpu),
		Memory: memoryUsage(now, u, limit),
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp:  now.UnixNano(),
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.containersDir()},
			UsedBytes:  &runtimeapi.UInt64Value{Value: size + hostSize},
			InodesUsed: &runtimeapi.UInt64Value{Value: inodes + hostInodes},
		},
		Swap: &runtimeapi.SwapUsage{Timestamp: now.UnixNano()},
	}
}

// treeUse is what the files below dir take: bytes on disk and inodes.
func treeUse(dir string) (bytes, inodes uint64) {
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			bytes, inodes = bytes+uint64(st.Blocks)*512, inodes+1
		}
		return nil
	})
	return bytes, inodes
}

// ContainerStats reads the usage of one container.
func (s *server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.containerStats(c, readUse(), time.Now())}, nil
}

// ListContainerStats reads the usage of running containers.
func (s *server) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: s.listContainerStats(req.Filter)}, nil
}

// StreamContainerStats is ListContainerStats in pieces.
func (s *server) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, to runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	return inPieces(s.listContainerStats(req.Filter), func(part []*runtimeapi.ContainerStats) error {
		return to.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: part})
	})
}

func (s *server) listContainerStats(f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	uses, now := readUse(), time.Now()
	var list []*runtimeapi.ContainerStats
	for _, c := range s.sortedContainersOf("") {
		if c.pid() == 0 ||
			f.GetId() != "" && !strings.HasPrefix(c.rec.ID, f.GetId()) ||
			f.GetPodSandboxId() != "" && !strings.HasPrefix(c.rec.SandboxID, f.GetPodSandboxId()) ||
			!selects(f.GetLabelSelector(), c.rec.Config.Labels) {
			continue
		}
		list = append(list, s.containerStats(c, uses, now))
	}
	return list
}

// PodSandboxStats reads the usage of one pod.
func (s *server) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(sb, readUse(), time.Now())}, nil
}

// ListPodSandboxStats reads the usage of pods.
func (s *server) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: s.listPodStats(req.Filter)}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s *server) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, to runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	return inPieces(s.listPodStats(req.Filter), func(part []*runtimeapi.PodSandboxStats) error {
		return to.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

func (s *server) listPodStats(f *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	uses, now := readUse(), time.Now()
	s.mu.Lock()
	var all []*sandbox
	for _, sb := range s.sandboxes {
		all = append(all, sb)
	}
	s.mu.Unlock()
	var list []*runtimeapi.PodSandboxStats
	for _, sb := range all {
		if !sb.ready() ||
			f.GetId() != "" && !strings.HasPrefix(sb.rec.ID, f.GetId()) ||
			!selects(f.GetLabelSelector(), sb.rec.Config.Labels) {
			continue
		}
		list = append(list, s.podStats(sb, uses, now))
	}
	return list
}

func (s *server) podStats(sb *sandbox, uses map[uint64]use, now time.Time) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	var sum use
	for _, c := range s.sortedContainersOf(sb.rec.ID) {
		if c.pid() == 0 {
			continue
		}
		c.mu.Lock()
		sum.add(uses[c.state.MountNS])
		c.mu.Unlock()
		linux.Containers = append(linux.Containers, s.containerStats(c, uses, now))
	}
	linux.Cpu = s.usage.cpu(sb.rec.ID, now, sum.cpu)
	linux.Memory = memoryUsage(now, sum, 0)
	linux.Process = &runtimeapi.ProcessUsage{
		Timestamp: now.UnixNano(), ProcessCount: &runtimeapi.UInt64Value{Value: sum.processes},
	}
	linux.Network = networkUsage(sb.rec.ShimPID, now)
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: sb.rec.ID, Metadata: sb.rec.Config.Metadata,
			Labels: sb.rec.Config.Labels, Annotations: sb.rec.Config.Annotations,
		},
		Linux: linux,
	}
}

// networkUsage reads the counters of the interfaces that a pod's shim sees.
func networkUsage(shimPID int, now time.Time) *runtimeapi.NetworkUsage {
	u := &runtimeapi.NetworkUsage{Timestamp: now.UnixNano()}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(shimPID) + "/net/dev")
	if err != nil {
		return u
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(f) < 16 || name == "lo" {
			continue
		}
		n := func(i int) *runtimeapi.UInt64Value {
			v, _ := strconv.ParseUint(f[i], 10, 64)
			return &runtimeapi.UInt64Value{Value: v}
		}
		i := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)}
		u.Interfaces = append(u.Interfaces, i)
		if name == podInterface {
			u.DefaultInterface = i
		}
	}
	return u
}
