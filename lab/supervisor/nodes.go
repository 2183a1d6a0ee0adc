// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/weft-net/weft/lab/components"
	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/fabric"
	"github.com/weft-net/weft/lab/namespace"
	"github.com/weft-net/weft/lab/node"
	"github.com/weft-net/weft/lab/procs"
	"github.com/weft-net/weft/lab/topology"
	"golang.org/x/sys/unix"
)

// clusterNode is one node of the lab. Its disk stays when its power is cut.
type clusterNode struct {
	Name   string
	Number int

	mu          sync.Mutex // one request at a time
	init        *procs.Process
	net         *namespace.Net
	link        *net.UnixConn
	answers     *json.Decoder
	stopped     bool // shut down on purpose
	partitioned bool
}

// port is the name of the switch's end of the node's link.
func (n *clusterNode) port() string { return fmt.Sprintf("node%d", n.Number) }

// running tells whether the node has power.
func (n *clusterNode) running() bool {
	if n.init == nil {
		return false
	}
	select {
	case <-n.init.Done():
		return false
	default:
		return true
	}
}

// startNodes boots all nodes at once, and waits until the API server knows them.
func (l *lab) startNodes() error {
	var wg sync.WaitGroup
	nodes := l.allNodes()
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() { errs[i] = l.boot(n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	err := poll(time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		known, err := l.api.nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if _, ok := known[n.Name]; !ok {
				return fmt.Errorf("node %s has not registered", n.Name)
			}
		}
		return nil
	})
	if err != nil {
		return l.withNodeLog(err, nodes[0])
	}
	return nil
}

// allNodes is the nodes as they are now.
func (l *lab) allNodes() []*clusterNode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.nodes)
}

// waitNodesReady waits until every node is Ready, where there is a pod network to make it so.
func (l *lab) waitNodesReady() error {
	if l.cfg.NoWeft {
		return nil
	}
	return poll(time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		known, err := l.api.nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range l.allNodes() {
			if ready, why := known[n.Name].condition(); !ready {
				return fmt.Errorf("node %s is not ready: %s", n.Name, why)
			}
		}
		return nil
	})
}

func (l *lab) withNodeLog(err error, n *clusterNode) error {
	for _, service := range []string{node.CRI, node.Kubelet} {
		if tail := procs.Tail(l.nodeLog(n, service), 2000); tail != "" {
			err = fmt.Errorf("%w; the end of %s's log on %s:\n%s", err, service, n.Name, tail)
		}
	}
	return err
}

// nodeLog is the file that a node's service logs to.
func (l *lab) nodeLog(n *clusterNode, service string) string {
	return filepath.Join(l.files.node(n.Name), node.LogDir, service+".log")
}

// boot gives the node power: namespaces and an init, then its network, then its kubelet and CRI server.
func (l *lab) boot(n *clusterNode) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running() {
		return fmt.Errorf("node %s runs already", n.Name)
	}
	if err := l.boot1(n); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

func (l *lab) boot1(n *clusterNode) error {
	identity := components.Node{Name: n.Name, Number: n.Number, Rootless: l.cfg.Rootless}
	dir := l.files.node(n.Name)
	config := filepath.Join(dir, components.NodeConfigDir)
	if err := os.MkdirAll(config, 0o755); err != nil {
		return err
	}
	if err := l.cluster.WriteNode(identity, config); err != nil {
		return err
	}
	bootFile, err := BootFile(node.Boot{
		Name:     n.Name,
		StateDir: l.files.dir,
		Dir:      dir,
		BinDir:   l.files.bin(),
		ImageDir: l.files.images(),
		Hosts:    l.cluster.Hosts(identity),
		Resolv:   l.cluster.Resolv(),
		Kubelet:  l.cluster.Kubelet(identity),
		CRIEnv:   l.criEnv(),
		Rootless: l.cfg.Rootless,
	})
	if err != nil {
		return err
	}
	defer bootFile.Close()
	ours, theirs, err := control.Pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(l.files.log(n.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	init, err := l.table.Start(procs.Spec{
		Path:  l.files.program("weft-lab"),
		Args:  []string{"weft-lab", "node-init", n.Name},
		Env:   append([]string{"PATH=" + defaultPath}, "GOGC=50", "GOMAXPROCS=1"),
		Dir:   "/",
		Files: []*os.File{null, log, log, theirs, bootFile},
		Attr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		},
	})
	if err != nil {
		ours.Close()
		return err
	}
	n.init, n.link, n.answers = init, ours, json.NewDecoder(ours)
	if err := l.connect(n); err != nil {
		l.cutPower(n)
		return err
	}
	return nil
}

// connect attaches a booted node to its segment and starts what it runs.
func (l *lab) connect(n *clusterNode) error {
	var err error
	if n.net, err = namespace.NetOf(n.init.Pid); err != nil {
		return err
	}
	var booted node.Response
	if err := n.answers.Decode(&booted); err != nil {
		return fmt.Errorf("its init died: %w; it said:\n%s", err, procs.Tail(l.files.log(n.Name), 2000))
	}
	if booted.Error != "" {
		return errors.New(booted.Error)
	}
	err = l.fabric.Attach(fabric.Host{
		Net: n.net, Port: n.port(), Segment: l.plan.Segment(n.Number), Addrs: l.plan.Node(n.Number), Forwards: true,
	})
	if err != nil {
		return err
	}
	n.partitioned, n.stopped = false, false
	_, err = n.ask(node.Request{Op: node.OpStart})
	return err
}

// ask sends the node's init a request and waits for its answer. The caller holds n.mu.
func (n *clusterNode) ask(req node.Request) ([]procs.ServiceState, error) {
	if !n.running() {
		return nil, fmt.Errorf("node %s has no power: `weft lab node start %s`", n.Name, n.Name)
	}
	if err := json.NewEncoder(n.link).Encode(req); err != nil {
		return nil, fmt.Errorf("ask node %s: %w", n.Name, err)
	}
	var answer node.Response
	if err := n.answers.Decode(&answer); err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	if answer.Error != "" {
		return answer.Services, fmt.Errorf("node %s: %s", n.Name, answer.Error)
	}
	return answer.Services, nil
}

// cutPower ends everything on the node at once. The caller holds n.mu.
func (l *lab) cutPower(n *clusterNode) error {
	if err := l.table.Signal(n.init, syscall.SIGKILL); err != nil {
		return err
	}
	<-n.init.Done() // the kernel has ended every process of the node by then
	n.link.Close()
	if n.net != nil {
		n.net.Close()
	}
	n.net = nil
	return l.fabric.Detach(n.port())
}

// findNode finds a node by name. The caller holds l.mu.
func (l *lab) findNode(name string) (*clusterNode, error) {
	var names []string
	for _, n := range l.nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return nil, fmt.Errorf("no node %q: want one of %v", name, names)
}

// NodeArgs are the arguments of OpNode.
type NodeArgs struct {
	Action string // add, remove, start, stop, kill, partition or heal
	Name   string // of add: "" for the next of the series
}

// changeNode does what `weft lab node ACTION NAME` says.
func (l *lab) changeNode(reply *control.Reply, args NodeArgs) error {
	l.changes.Lock()
	defer l.changes.Unlock()
	if args.Action == "add" {
		return l.addNode(reply, args.Name)
	}
	n, err := l.lockedNode(args.Name)
	if err != nil {
		return err
	}
	if args.Action == "start" && !n.running() {
		reply.Progress("booting " + n.Name)
		return l.boot(n)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch args.Action {
	case "start":
		_, err = n.ask(node.Request{Op: node.OpStart})
		n.stopped = n.stopped && err != nil
		return err
	case "stop":
		reply.Progress("shutting down " + n.Name)
		_, err = n.ask(node.Request{Op: node.OpStop})
		n.stopped = true
		return err
	case "kill":
		if !n.running() {
			return fmt.Errorf("node %s has no power already", n.Name)
		}
		return l.cutPower(n)
	case "partition":
		if !n.running() {
			return fmt.Errorf("node %s has no power: `weft lab node start %s`", n.Name, n.Name)
		}
		n.partitioned = true
		return l.fabric.Cut(n.port())
	case "heal":
		if !n.running() {
			return fmt.Errorf("node %s has no power: `weft lab node start %s`", n.Name, n.Name)
		}
		n.partitioned = false
		return l.fabric.Join(n.port(), l.plan.Segment(n.Number))
	case "remove":
		return l.removeNode(n)
	}
	return fmt.Errorf("unknown action %q on a node", args.Action)
}

// addNode boots one node more. Its name is its own, or the next of the series. The caller holds l.changes.
func (l *lab) addNode(reply *control.Reply, name string) error {
	number := 1
	l.mu.Lock()
	for _, n := range l.nodes {
		number = max(number, n.Number+1)
	}
	l.mu.Unlock()
	if number > topology.MaxNodes {
		return fmt.Errorf("a lab has at most %d nodes", topology.MaxNodes)
	}
	if name == "" {
		name = fmt.Sprintf("node%d", number)
	}
	if err := control.CheckName(name); err != nil {
		return err
	}
	if _, err := l.lockedNode(name); err == nil || name == Outside || name == Control {
		return fmt.Errorf("there is a %q already", name)
	}
	n := &clusterNode{Name: name, Number: number}
	reply.Progress("booting " + name)
	if err := l.boot(n); err != nil {
		return err
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	reply.Progress("waiting for " + name + " to be ready")
	return poll(time.Minute, 100*time.Millisecond, func(ctx context.Context) error {
		known, err := l.api.nodes(ctx)
		if err != nil {
			return err
		}
		registered, ok := known[name]
		if !ok {
			return fmt.Errorf("node %s has not registered: `weft lab logs kubelet --node %s`", name, name)
		}
		if ready, why := registered.condition(); !ready && !l.cfg.NoWeft {
			return fmt.Errorf("node %s is not ready: %s", name, why)
		}
		return nil
	})
}

// removeNode ends a node for good: its power, its disk and its Node object. The caller holds l.changes and n.mu.
func (l *lab) removeNode(n *clusterNode) error {
	if n.running() {
		if err := l.cutPower(n); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.nodes = slices.DeleteFunc(slices.Clone(l.nodes), func(other *clusterNode) bool { return other == n })
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(l.api.deleteNode(ctx, n.Name), os.RemoveAll(l.files.node(n.Name)))
}
