// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/lab/node"
	"github.com/weft-net/weft/lab/procs"
	"github.com/weft-net/weft/lab/topology"
	"golang.org/x/sys/unix"
)

// Status is the result of OpStatus. Memory is in bytes.
type Status struct {
	Name       string               `json:"name"`
	Ready      bool                 `json:"ready"`
	Server     string               `json:"server"` // the API server's URL on the host
	Families   string               `json:"ipFamily"`
	UptimeS    int                  `json:"uptimeSeconds"`
	Memory     Memory               `json:"memory"`
	Components []procs.ServiceState `json:"components"`
	Hosts      []HostStatus         `json:"hosts"`
	Nodes      []NodeStatus         `json:"nodes"`
	APIError   string               `json:"apiError,omitempty"` // why the nodes' readiness is unknown
}

// Memory is what a lab costs: its processes' proportional set sizes, and its files, which lie in memory too.
type Memory struct {
	Total     uint64            `json:"total"`
	Files     uint64            `json:"files"`
	Processes map[string]uint64 `json:"processes"` // by what they are part of
}

// HostStatus is a host of the lab that is no node.
type HostStatus struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
}

// NodeStatus is a node.
type NodeStatus struct {
	Name      string               `json:"name"`
	State     string               `json:"state"` // Ready, NotReady, Stopped, PowerOff, Partitioned, Unregistered or Unknown
	Message   string               `json:"message,omitempty"`
	Addresses []netip.Addr         `json:"addresses"`
	PodCIDRs  []string             `json:"podCIDRs"`
	Zone      string               `json:"zone"`
	Segment   int                  `json:"segment"`
	Services  []procs.ServiceState `json:"services"`
}

func (l *lab) status() (*Status, error) {
	l.mu.Lock()
	nodes, ready := slices.Clone(l.nodes), l.ready
	l.mu.Unlock()
	s := &Status{
		Name: l.cfg.Name, Ready: ready, Server: l.server, Families: l.plan.Families.String(),
		UptimeS: int(time.Since(l.started).Seconds()),
		Hosts: []HostStatus{
			{Outside, topology.Addrs(append(l.plan.Outside(), l.plan.Internet()...))},
			{Control, topology.Addrs(l.plan.Control())},
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	known, err := l.api.nodes(ctx)
	if err != nil {
		s.APIError = err.Error()
	}
	owners := map[int]string{os.Getpid(): "supervisor"}
	for _, c := range l.services {
		state := c.State()
		s.Components = append(s.Components, state)
		if state.Pid != 0 {
			owners[state.Pid] = c.Name
		}
	}
	for _, n := range nodes {
		status, init := l.nodeStatus(n, known)
		s.Nodes = append(s.Nodes, status)
		if init != 0 {
			owners[init] = n.Name
		}
	}
	s.Memory, err = l.memory(owners)
	return s, err
}

// nodeStatus gives the node's status and its init's process number, 0 where it has no power. Known are the API's nodes;
// nil, where it can't be asked.
func (l *lab) nodeStatus(n *clusterNode, known map[string]apiNode) (NodeStatus, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	api, registered := known[n.Name]
	s := NodeStatus{
		Name: n.Name, Addresses: topology.Addrs(l.plan.Node(n.Number)), PodCIDRs: api.Spec.PodCIDRs,
		Zone: l.plan.Zone(n.Number), Segment: l.plan.Segment(n.Number),
	}
	ready, why := api.condition()
	switch {
	case !n.running():
		s.State = "PowerOff"
		return s, 0
	case n.stopped:
		s.State = "Stopped"
	case n.partitioned:
		s.State = "Partitioned"
	case known == nil: // the API server doesn't answer
		s.State = "Unknown"
	case !registered:
		s.State = "Unregistered"
	case ready:
		s.State = "Ready"
	default:
		s.State, s.Message = "NotReady", why
	}
	services, err := n.ask(node.Request{Op: node.OpState})
	if err != nil {
		s.Message = err.Error()
	}
	s.Services = services
	return s, n.init.Pid
}

// memory adds up what the lab uses. Owners says which process heads which part; its descendants are part of it.
func (l *lab) memory(owners map[int]string) (Memory, error) {
	m := Memory{Processes: map[string]uint64{}}
	var fs unix.Statfs_t
	if err := unix.Statfs(l.files.dir, &fs); err != nil {
		return m, err
	}
	m.Files = (fs.Blocks - fs.Bfree) * uint64(fs.Bsize)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return m, err
	}
	parents := map[int]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			parents[pid] = parent(pid)
		}
	}
	for pid := range parents {
		m.Processes[owner(pid, parents, owners)] += anonymous(pid)
	}
	m.Total = m.Files
	for _, bytes := range m.Processes {
		m.Total += bytes
	}
	return m, nil
}

// owner climbs from a process to the first ancestor that heads a part of the lab.
func owner(pid int, parents map[int]int, owners map[int]string) string {
	for p := pid; p != 0; p = parents[p] {
		if name, ok := owners[p]; ok {
			return name
		}
	}
	return "others" // commands that `weft lab exec` runs
}

// parent is a process's parent, 0 where there is none.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command's name is in parentheses and may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}

// anonymous is a process's proportional set size in bytes, without what it maps of tmpfs files, which count as files.
func anonymous(pid int) uint64 {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	defer f.Close()
	var kib uint64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		value, _ := strconv.ParseUint(number, 10, 64)
		switch name {
		case "Pss":
			kib += value
		case "Pss_Shmem":
			kib -= value
		}
	}
	return kib << 10
}
