// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/flowlog"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/policytable"
	"github.com/weft-net/weft/internal/policy"
)

// PolicyConfig is how the policy part is to work.
type PolicyConfig struct {
	Node string // this node's name

	// Local lists the pods that are wired on this node. It is asked once, before the kernel is brought up to date
	// for the first time: an address that the API has not got yet must not lose its guard by an agent's restart.
	Local func() []model.LocalPod

	// Confirm reads from the API server itself a namespace, its NetworkPolicies and all ClusterNetworkPolicies, as they
	// are after the call: a pod starts only once what Update was told is as new. Nil asks nobody.
	Confirm func(ctx context.Context, namespace string) (*model.Delta, error)
	// Behind is told of a kind ("NetworkPolicy") of which Update was not told in time what Confirm knows.
	Behind func(kind string)

	// Netns is a file descriptor of the node's network namespace; 0 is the process's own.
	Netns int

	LogAdmitted bool   // report new connections that policies admit too
	FlowSocket  string // where flow events are served; "" is flowlog.DefaultSocket

	// Resolvers are DNS servers whose answers count for policies that go by name, beside those of the cluster's DNS.
	Resolvers []netip.Addr
	// DNSNamespace is where the cluster's DNS Service is, if not in kube-system.
	DNSNamespace string
	NamesFile    string // where what names resolved to is kept; "" is DefaultNamesFile

	// Shared leaves the kernel's table for everybody to change, as it is anyway before Linux 6.9.
	Shared bool

	Registerer prometheus.Registerer
	Events     func(model.Event) // may be nil
	Log        *slog.Logger
}

// Policy is the Part that enforces NetworkPolicy and ClusterNetworkPolicy.
type Policy struct {
	cfg     PolicyConfig
	log     *slog.Logger
	table   *policytable.Table
	tracked *conntrack.Table
	metrics *policyMetrics
	flows   *flowlog.Log
	told    map[string]*told // by pod UID; used by one goroutine

	mu       sync.Mutex
	compiler *policy.Compiler
	complete bool                // the API's first full picture is here
	stale    bool                // the kernel may hold something else than the program: only Sync helps
	uncut    map[netip.Addr]bool // whose flows have still to be looked at
	pinned   map[string]string   // wirings to the UIDs that they are pinned under
	news     chan struct{}       // closed and replaced when the kernel holds something new
	closed   bool

	services serviceNames
	asking   confirmer

	expiry    *expiries // until when answers of resolvers count
	names     namesFile
	lapser    *time.Timer
	nextLapse time.Time // when it goes off; zero: it doesn't
}

// NewPolicy connects to the kernel. It changes nothing there before the first Update with a full picture: until
// then what an earlier agent left stays in force.
func NewPolicy(cfg PolicyConfig) (*Policy, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Netns == 0 {
		cfg.Netns = -1
	}
	t, err := policytable.Open(policytable.Options{Netns: cfg.Netns, LogAdmitted: cfg.LogAdmitted, Shared: cfg.Shared})
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	tracked, err := conntrack.Open(max(cfg.Netns, 0))
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("policy: %w", err)
	}
	p := &Policy{
		cfg: cfg, log: cfg.Log, table: t, tracked: tracked, compiler: policy.NewCompiler(cfg.Node), stale: true,
		uncut: map[netip.Addr]bool{}, pinned: map[string]string{}, news: make(chan struct{}), expiry: newExpiries(),
		services: serviceNames{},
	}
	p.names.path = cmp.Or(cfg.NamesFile, DefaultNamesFile)
	p.asking = confirmer{read: cfg.Confirm, latest: map[string]*confirmation{}}
	p.compiler.Trust(cfg.Resolvers...)
	if cfg.DNSNamespace != "" {
		p.compiler.TrustDNSOf(cfg.DNSNamespace)
	}
	if err := p.recallNames(time.Now()); err != nil {
		p.log.Warn("policies that go by name admit nothing until it is asked for again", "err", err)
	}
	p.flows, p.told = flowlog.New(keptFlows), map[string]*told{}
	if p.metrics, err = newPolicyMetrics(cfg.Registerer, p.dropCounts, p.nameCount); err != nil {
		t.Close()
		_ = tracked.Close()
		return nil, fmt.Errorf("policy: %w", err)
	}
	return p, nil
}

// Name implements Part.
func (p *Policy) Name() string { return "policy" }

// Update implements Part.
func (p *Policy) Update(_ context.Context, d *model.Delta) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	change := p.compiler.Update(d)
	p.services.update(d)
	if d.Complete && !p.complete {
		p.complete = true
		if p.cfg.Local != nil {
			for _, l := range p.cfg.Local() {
				p.merge(p.pin(l, p.uid(l)))
			}
		}
	}
	return p.enforce(change)
}

// enforce brings the kernel to the program and, where that tightened, ends flows. Callers hold mu.
func (p *Policy) enforce(change *policy.Change) error {
	p.merge(change)
	if !p.complete {
		p.stale = true
		return nil
	}
	if p.stale {
		program := p.compiler.Program()
		if err := p.table.Sync(program); err != nil {
			return err
		}
		p.stale = false
		// Whatever the kernel held may have let through what it should not, and a connection once open is not asked
		// about again.
		for a := range program.Pods {
			p.uncut[a] = true
		}
	} else if !change.Empty() {
		if err := p.table.Apply(change); err != nil {
			p.log.Warn("a change of the policy table was refused; comparing all of it", "err", err)
			p.stale = true
			return p.enforce(&policy.Change{})
		}
	}
	close(p.news)
	p.news = make(chan struct{})
	return p.cut()
}

// merge remembers whose flows a change may have made unlawful, until they have been looked at.
func (p *Policy) merge(change *policy.Change) {
	for a := range change.Tightened {
		p.uncut[a] = true
	}
}

// uid is the UID under which the API has a wired pod. Where the runtime does not tell one, the pod's name does; the
// API's image of a static pod (mirror pod) has another UID than the kubelet gave to the runtime.
func (p *Policy) uid(l model.LocalPod) string {
	if pod := p.compiler.Pod(l.Name); pod != nil && (l.UID == "" || pod.Annotations[mirrorAnnotation] == l.UID) {
		return pod.UID
	}
	return l.UID
}

// pin tells the compiler of a wiring, and remembers under which UID: when the pod is unwired the API may have forgotten
// it.
func (p *Policy) pin(l model.LocalPod, uid string) *policy.Change {
	p.pinned[wiring(l)] = uid
	return p.compiler.Pin(l.Name, uid, l.Link, l.IPs)
}

// wiring is a key for a pod with its addresses.
func wiring(l model.LocalPod) string { return fmt.Sprint(l.Name, l.IPs) }

// mirrorAnnotation holds, on a mirror pod, the UID of the static pod that it mirrors (k8s.io/kubernetes
// pkg/kubelet/types ConfigMirrorAnnotationKey).
const mirrorAnnotation = "kubernetes.io/config.mirror"

// Unprotect tells that a pod is no longer wired.
func (p *Policy) Unprotect(l model.LocalPod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := wiring(l)
	uid, ok := p.pinned[key]
	if !ok {
		uid = p.uid(l)
	}
	delete(p.pinned, key)
	if err := p.enforce(p.compiler.Unpin(l.Name, uid, l.IPs)); err != nil {
		// The next Update, or the table's watch, tries again.
		p.log.Error("can't take a pod out of the policy table", "pod", l.Name.String(), "err", err)
	}
}

// Run implements Part: it repairs the table when somebody else changed it, and reports drops.
func (p *Policy) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.table.Watch(ctx, func() { p.repair(ctx) }) })
	g.Go(func() error {
		// Whoever can't be told of flows must not cost anybody the policies.
		if err := p.flows.Serve(ctx, cmp.Or(p.cfg.FlowSocket, flowlog.DefaultSocket)); err != nil {
			p.log.Error("flow events can't be asked for on this node", "err", err)
		}
		return nil
	})
	g.Go(func() error { p.listen(ctx); return nil })
	g.Go(func() error { p.followNames(ctx); return nil })
	return g.Wait()
}

// repair compares the table with the program until they agree.
func (p *Policy) repair(ctx context.Context) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := p.tryRepair()
		if err == nil {
			return
		}
		p.log.Error("can't repair the policy table; trying again", "err", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (p *Policy) tryRepair() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.complete {
		return nil
	}
	p.stale = true
	p.metrics.repairs.Inc()
	return p.enforce(&policy.Change{})
}

// Cleanup implements Cleaner: all traffic is open afterwards.
func (p *Policy) Cleanup(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = true
	return p.table.Erase()
}

// Close gives up the connection to the kernel; what it holds stays in force.
func (p *Policy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.lapser != nil {
		p.lapser.Stop()
	}
	p.table.Close()
	_ = p.tracked.Close()
}
