// SPDX-License-Identifier: Apache-2.0

//go:build bench

package policy

import (
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/policytable"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/policy/policytest"
)

var (
	results = flag.String("results", "", "folder for the results; without it nothing is measured")
	sizes   = flag.String("policies", "1,100,1000,10000", "numbers of policies")
	pods    = flag.Int("pods", 10000, "number of pods in the cluster")
	rounds  = flag.Int("rounds", 7, "alternations between policies and none")
	slice   = flag.Duration("slice", 700*time.Millisecond, "length of each")
	pairs   = flag.Int("pairs", 200, "alternations for the bulk traffic")
)

// local is how many of the pods are on the node.
const local = 110

// result is one number of policies in one shape.
type result struct {
	Policies int    `json:"policies"`
	Pods     int    `json:"pods"`
	Shape    string `json:"shape"`

	FullSync    time.Duration `json:"fullSyncNs"`    // everything at once into an empty kernel
	PodChange   latency       `json:"podChangeNs"`   // a remote pod's label, until it is in the kernel
	LocalChange latency       `json:"localChangeNs"` // a local pod's label
	Edit        latency       `json:"editNs"`        // a policy's port
	Heap        uint64        `json:"heapBytes"`     // of the compiler, beside the objects themselves
	Resident    uint64        `json:"residentBytes"` // of a process with the objects that enforces the policies
	traffic

	Error string `json:"error,omitempty"` // why there are no figures, or not all
}

// traffic is what goes through the node's kernel with policies.
type traffic struct {
	Connections float64              `json:"connections"` // ratio of new connections for the same work of a processor to none
	Bulk        float64              `json:"bulk"`        // ratio of bytes for the same work to none: the median of many pairs
	BulkError   float64              `json:"bulkError"`   // standard error of that median
	PerSecond   map[string][]float64 `json:"connectionsPerProcessorSecond"`
}

// latency is of a sample of changes.
type latency struct {
	P50, P99, Max time.Duration
}

// The shapes: every policy in another namespace than the last, so that a pod is selected by few; or all of them
// selecting the pod that is talked to.
const (
	spread = "spread"
	stack  = "stacked"
)

func TestPolicyCost(t *testing.T) {
	if *results == "" {
		t.Fatal("-results is not set: make bench-policy sets it")
	}
	own := finished(t, each(t, measure))
	record(t, func(d *document) { d.run = own })
}

// each measures every number of policies in both shapes.
func each(t *testing.T, measure func(t *testing.T, policies int, shape string) result) (all []result) {
	for _, shape := range []string{spread, stack} {
		for s := range strings.SplitSeq(*sizes, ",") {
			var n int
			if _, err := fmt.Sscan(s, &n); err != nil {
				t.Fatalf("-policies: %v", err)
			}
			r := measure(t, n, shape)
			t.Logf("%+v", r)
			all = append(all, r)
		}
	}
	return all
}

// cluster is the objects of a size.
type cluster struct {
	delta  *model.Delta
	client *model.Pod
	server *model.Pod
	podNo  map[int]*model.Pod
}

func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(1 + i/65536), byte(i / 256), byte(i)})
}

func generate(policies int, shape string) *cluster {
	c := &cluster{podNo: map[int]*model.Pod{}, delta: &model.Delta{
		Complete: true, Pods: map[model.Name]*model.Pod{}, Namespaces: map[string]*model.Namespace{},
		NetworkPolicies: map[model.Name]*model.NetworkPolicy{},
	}}
	for i := range 100 {
		ns := fmt.Sprintf("ns%02d", i)
		c.delta.Namespaces[ns] = &model.Namespace{Meta: model.Meta{Name: model.Name{Name: ns}, Labels: map[string]string{"team": fmt.Sprint(i % 10)}}}
	}
	for i := range *pods {
		p := &model.Pod{
			Meta: model.Meta{Name: model.Name{Namespace: fmt.Sprintf("ns%02d", i%100), Name: fmt.Sprintf("pod-%05d", i)}, UID: fmt.Sprint(i),
				Labels: map[string]string{"app": fmt.Sprint(i / 100 % 10), "version": fmt.Sprint(i % 3)}},
			Node: "other", IPs: []netip.Addr{address(i)},
		}
		if i < local {
			p.Node = "n1"
		}
		c.podNo[i] = p
		c.delta.Pods[p.Name] = p
	}
	c.server, c.client = c.podNo[0], c.podNo[100] // of one namespace
	for i := range policies {
		ns, app := i%100, i/100%10
		if shape == stack {
			ns, app = 0, 0
		}
		np := c.policy(i, ns, app, uint16(5000+i%40000))
		c.delta.NetworkPolicies[np.Name] = np
	}
	return c
}

// policy isolates the pods of an app and admits some of its namespace and of a team, on two ports of their own; the
// first one admits the client.
func (c *cluster) policy(i, ns, app int, port uint16) *model.NetworkPolicy {
	from := func(labels map[string]string) *model.Selector {
		s := model.MatchLabels(labels)
		return &s
	}
	np := &model.NetworkPolicy{
		Meta:        model.Meta{Name: model.Name{Namespace: fmt.Sprintf("ns%02d", ns), Name: fmt.Sprintf("policy-%05d", i)}},
		PodSelector: model.MatchLabels(map[string]string{"app": fmt.Sprint(app)}), Ingress: true,
		IngressFrom: []model.PolicyRule{{
			Peers: []model.PolicyPeer{
				{PodSelector: from(map[string]string{"app": fmt.Sprint(i % 10)})},
				{NamespaceSelector: from(map[string]string{"team": fmt.Sprint(i % 10)}), PodSelector: from(map[string]string{"version": fmt.Sprint(i % 3)})},
			},
			Ports: []model.PolicyPort{{Protocol: model.TCP, Port: port}, {Protocol: model.UDP, Port: port}},
		}},
	}
	if i == 0 {
		np.IngressFrom = append(np.IngressFrom, model.PolicyRule{
			Peers: []model.PolicyPeer{{PodSelector: from(c.client.Labels)}}, Ports: []model.PolicyPort{{Protocol: model.TCP, Port: 80}},
		})
	}
	return np
}

// relabel gives a pod an app that is not its own, and its own back.
func (c *cluster) relabel(i int) (d, back *model.Delta) {
	p := *c.podNo[i]
	p.Labels = map[string]string{"app": fmt.Sprint((i/100 + 1 + i%9) % 10), "version": "0"}
	of := func(p *model.Pod) *model.Delta { return &model.Delta{Pods: map[model.Name]*model.Pod{p.Name: p}} }
	return of(&p), of(c.podNo[i])
}

// edit gives one of the first hundred policies another port.
func (c *cluster) edit(policies int, shape string, i int) *model.Delta {
	n := i % min(policies, 100)
	ns := 0
	if shape == spread {
		ns = n
	}
	np := c.policy(n, ns, 0, uint16(45001+i))
	return &model.Delta{NetworkPolicies: map[model.Name]*model.NetworkPolicy{np.Name: np}}
}

func measure(t *testing.T, policies int, shape string) result {
	r := result{Policies: policies, Pods: *pods, Shape: shape}
	c := generate(policies, shape)
	runtime.GC()
	runtime.GC() // the second takes what the first found to have a finalizer
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)

	node := policytest.NewNode(t)
	table, err := policytable.Open(policytable.Options{Netns: node.FD})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	k := policy.NewCompiler("n1")
	if err := table.Sync(k.Program()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := table.Apply(k.Update(c.delta)); err != nil {
		t.Fatal(err)
	}
	r.FullSync = time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	r.Heap = after.HeapAlloc - min(after.HeapAlloc, before.HeapAlloc)

	update := func(d *model.Delta) time.Duration {
		start := time.Now()
		if err := table.Apply(k.Update(d)); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	r.PodChange = sample(200, func(i int) time.Duration {
		d, back := c.relabel(local + i)
		defer update(back)
		return update(d)
	})
	r.LocalChange = sample(100, func(i int) time.Duration {
		d, back := c.relabel(1 + i%90)
		defer update(back)
		return update(d)
	})
	r.Edit = sample(100, func(i int) time.Duration { return update(c.edit(policies, shape, i)) })
	r.through(t, node, table, k, c)
	if shape == spread {
		r.Resident = resident(t, policies)
	}
	return r
}

func sample(n int, f func(int) time.Duration) latency {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = f(i)
	}
	slices.Sort(all)
	return latency{all[n/2], all[n*99/100], all[n-1]}
}

// through measures weft's table. Without policies connection tracking stays on, as Services need it in every cluster.
func (r *result) through(t *testing.T, node *policytest.Node, table *policytable.Table, k *policy.Compiler, c *cluster) {
	w := newWay(t, node, c)
	none := policy.NewCompiler("n1")
	r.connect(t, w, func(with bool) {
		p := none.Program()
		if with {
			p = k.Program()
		}
		if err := table.Sync(p); err != nil {
			t.Fatal(err)
		}
	})
	if err := table.Sync(k.Program()); err != nil {
		t.Fatal(err)
	}
	// To switch for one connection takes but the client's and the server's own elements, so there can be many short
	// turns, and what else goes on falls on both alike.
	on, off := map[netip.Addr]policy.EntryChange{}, map[netip.Addr]policy.EntryChange{}
	for _, a := range []netip.Addr{w.client.Addrs[0], w.to.Addr()} {
		if e, ok := k.Program().Pods[a]; ok {
			on[a], off[a] = policy.EntryChange{New: e}, policy.EntryChange{Old: e}
		}
	}
	if len(on) == 0 {
		t.Fatal("no policy is about the connection")
	}
	is := true
	r.pour(t, w, func(with bool) {
		pods := on
		if !with {
			pods = off
		}
		if with == is {
			return
		}
		if err := table.Apply(&policy.Change{Pods: pods}); err != nil {
			t.Fatal(err)
		}
		is = with
	})
}

// way is from a client to a server that accepts and reads, both pods of the node.
type way struct {
	client *policytest.Pod
	to     netip.AddrPort
}

func newWay(t *testing.T, node *policytest.Node, c *cluster) *way {
	w := &way{client: node.Connect(t, c.client.IPs...), to: netip.AddrPortFrom(c.server.IPs[0], 80)}
	server := node.Connect(t, c.server.IPs...)
	var lis net.Listener
	server.Do(t, func() (err error) {
		lis, err = net.Listen("tcp", w.to.String())
		return err
	})
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}()
		}
	}()
	return w
}

// connect opens connections with and without policies in turn.
func (r *traffic) connect(t *testing.T, w *way, policies func(with bool)) {
	var ratios []float64
	r.PerSecond = map[string][]float64{}
	for round := range *rounds {
		var connections [2]float64
		for turn := range 2 {
			i := (round + turn) % 2 // whoever comes second has it easier, or harder
			policies(i == 1)
			w.client.Do(t, func() error {
				n, work, err := connect(w.to, *slice)
				connections[i] = float64(n) / work.Seconds()
				return err
			})
		}
		r.PerSecond["none"] = append(r.PerSecond["none"], connections[0])
		r.PerSecond["policies"] = append(r.PerSecond["policies"], connections[1])
		ratios = append(ratios, connections[1]/connections[0])
	}
	r.Connections = median(ratios)
}

// Where to switch between policies and none takes long, there are fewer pairs of turns.
const (
	bulkPatience = time.Minute
	fewestPairs  = 20
)

// pour measures what one established connection carries: two differ more than anything that is measured here.
func (r *traffic) pour(t *testing.T, w *way, policies func(with bool)) {
	policies(true)
	stream := w.client.Dial(t, w.to)
	raw, err := stream.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := unix.SetNonblock(int(raw.Fd()), false); err != nil {
		t.Fatal(err)
	}
	turn := func(with bool) float64 {
		policies(with)
		return pour(t, w.client, int(raw.Fd()))
	}
	var ratios []float64
	for start := time.Now(); len(ratios) < *pairs; {
		if len(ratios) >= fewestPairs && time.Since(start) > bulkPatience {
			break
		}
		// None, policies, policies, none: what gets slower or faster by itself, as a processor's clock, does so in both.
		first := turn(false)
		with := turn(true) + turn(true)
		ratios = append(ratios, with/(first+turn(false)))
	}
	r.Bulk = median(ratios)
	var distances []float64
	for _, v := range ratios {
		distances = append(distances, max(v-r.Bulk, r.Bulk-v))
	}
	// The median's standard error, by the median absolute deviation of a normal distribution.
	r.BulkError = 1.2533 * 1.4826 * median(distances) / math.Sqrt(float64(len(ratios)))
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// worked is the processor time of the calling thread. A packet's whole way through the node's kernel, to the receiver's
// queue, is worked off in the sender's, so this is what policies add to, and other programs on the machine do not.
func worked() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// connect opens and resets connections from the calling thread for a while and returns how many, for how much work.
func connect(to netip.AddrPort, d time.Duration) (n int, work time.Duration, err error) {
	start := worked()
	defer func() { work = worked() - start }()
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	for end := time.Now().Add(d); time.Now().Before(end); n++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return n, 0, err
		}
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		if err := unix.Connect(fd, sa); err != nil {
			_ = unix.Close(fd)
			return n, 0, fmt.Errorf("connect to %s: %w", to, err)
		}
		_ = unix.Close(fd)
	}
	return n, 0, nil
}

// bulkTurn is how long bulk traffic goes on until policies come or go.
const bulkTurn = 20 * time.Millisecond

// pour sends as much as it can over a connection for a while and returns the bytes for a second of work.
func pour(t *testing.T, client *policytest.Pod, fd int) float64 {
	var total int
	var work time.Duration
	client.Do(t, func() error {
		buf := make([]byte, 1<<17)
		start := worked()
		for end := time.Now().Add(bulkTurn); time.Now().Before(end); {
			n, err := unix.Write(fd, buf)
			if err != nil {
				return err
			}
			total += n
		}
		work = worked() - start
		return nil
	})
	return float64(total) / work.Seconds()
}
