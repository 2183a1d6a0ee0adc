// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/servicetable"
	"github.com/weft-net/weft/internal/service"
)

// ServicesConfig is how the services part is to work.
type ServicesConfig struct {
	Node string // this node's name

	// ClusterIPs are the ranges of cluster IPs (kube-apiserver's --service-cluster-ip-range): traffic to those that no
	// Service has is dropped instead of routed away. Empty: the cluster's ServiceCIDR objects say (KEP-1880).
	ClusterIPs []netip.Prefix

	// NodePorts are the ranges of node addresses that have node ports (kube-proxy's --nodeport-addresses). Empty, or
	// none of a family: all addresses of it.
	NodePorts []netip.Prefix

	// Loopback puts node ports on 127.0.0.1 and ::1 as well, for processes on the node.
	Loopback bool

	// Pods are the ranges of this node's pods where they are not the node's spec.podCIDRs.
	Pods []netip.Prefix

	Registerer prometheus.Registerer
	Events     func(model.Event) // may be nil
	Log        *slog.Logger
}

// Services is the Part that forwards Service traffic.
type Services struct {
	cfg     ServicesConfig
	log     *slog.Logger
	metrics *serviceMetrics
	flows   *conntrack.Table
	checks  *healthChecks

	mu       sync.Mutex
	table    *service.Table
	kernel   service.Forwarder
	complete bool // the API's first full picture is here
	scope    service.Scope
	triggers triggers
	ranges   map[string]*model.ServiceCIDR

	// What is still to be done about tracked connections: those that the changes touch, or, if unsure, all.
	touched map[service.Frontend]service.Change
	gone    map[service.Frontend]bool
	unsure  bool
	sweep   chan struct{} // capacity 1: there is something to be done
}

// NewServices connects to the kernel in the network namespace of the calling thread. It changes nothing there before
// the first Update with a full picture: until then what an earlier agent left goes on forwarding.
func NewServices(cfg ServicesConfig) (*Services, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Events == nil {
		cfg.Events = func(model.Event) {}
	}
	s := &Services{
		cfg: cfg, log: cfg.Log, table: service.NewTable(cfg.Node), unsure: true, sweep: make(chan struct{}, 1),
		ranges: make(map[string]*model.ServiceCIDR),
		scope:  service.Scope{Pods: cfg.Pods, ClusterIPs: cfg.ClusterIPs, NodePorts: cfg.NodePorts, LoopbackNodePorts: cfg.Loopback},
	}
	kernel, err := servicetable.Open(s.scope)
	if err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	s.kernel = kernel
	if s.flows, err = conntrack.Open(); err != nil {
		_ = kernel.Close()
		return nil, fmt.Errorf("services: %w", err)
	}
	if s.metrics, err = newServiceMetrics(cfg.Registerer); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("services: %w", err)
	}
	s.checks = newHealthChecks(cfg, s.inForce)
	return s, nil
}

// Close lets go of the kernel, which goes on forwarding.
func (s *Services) Close() error {
	return errors.Join(s.kernel.Close(), s.flows.Close())
}

// Name implements Part.
func (s *Services) Name() string { return "services" }

// Update implements Part.
func (s *Services) Update(_ context.Context, d *model.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics.changes(d)
	s.triggers.add(d)
	for _, e := range s.table.Update(d) {
		s.cfg.Events(e)
	}
	s.rescope(d)
	s.complete = s.complete || d.Complete
	if !s.complete {
		return nil
	}
	start := time.Now()
	if err := s.enforce(); err != nil {
		s.metrics.failures.Inc()
		return err
	}
	s.metrics.synced(start, s.table, &s.triggers)
	s.checks.set(s.table.Health())
	if s.unsure || len(s.touched) > 0 {
		select {
		case s.sweep <- struct{}{}:
		default:
		}
	}
	return nil
}

// rescope takes in what the kernel must know besides Services: the node's pods and the ranges of cluster IPs.
func (s *Services) rescope(d *model.Delta) {
	next := s.scope
	if n := d.Nodes[s.cfg.Node]; n != nil && len(s.cfg.Pods) == 0 {
		next.Pods = n.PodCIDRs
	}
	if len(d.ServiceCIDRs) > 0 && len(s.cfg.ClusterIPs) == 0 {
		for name, c := range d.ServiceCIDRs {
			if c == nil {
				delete(s.ranges, name)
			} else {
				s.ranges[name] = c
			}
		}
		next.ClusterIPs = nil
		for _, name := range slices.Sorted(maps.Keys(s.ranges)) {
			next.ClusterIPs = append(next.ClusterIPs, s.ranges[name].CIDRs...)
		}
	}
	if slices.Equal(next.Pods, s.scope.Pods) && slices.Equal(next.ClusterIPs, s.scope.ClusterIPs) {
		return
	}
	s.scope = next
	s.kernel.Configure(s.scope)
}

// enforce brings the kernel to the table. Callers hold mu.
func (s *Services) enforce() error {
	changes := s.table.Pending()
	if s.kernel.Synced() {
		err := s.kernel.Apply(changes)
		if err == nil {
			s.applied(changes)
			return nil
		}
		s.log.Warn("the kernel refused a change of the service tables; comparing all of them", "err", err)
	}
	start := time.Now()
	gone, err := s.kernel.Sync(s.table)
	if err != nil {
		return err
	}
	for _, fe := range gone {
		if s.gone == nil {
			s.gone = make(map[service.Frontend]bool)
		}
		s.gone[fe] = true
	}
	s.unsure = true
	s.applied(changes)
	s.metrics.full.Observe(time.Since(start).Seconds())
	s.log.Info("service tables in force", "frontends", s.table.Len(), "took", time.Since(start))
	return nil
}

func (s *Services) applied(changes []service.Change) {
	for _, c := range changes {
		was, ok := s.touched[c.Frontend]
		switch {
		case s.unsure:
		case ok: // not looked at yet: what counts is how it was then and how it is now
			was.New = c.New
			s.touched[c.Frontend] = was
		case c.MayLose():
			if s.touched == nil {
				s.touched = make(map[service.Frontend]service.Change)
			}
			s.touched[c.Frontend] = c
		}
	}
	s.table.Done()
}

// sweepShare bounds what looking for lost connections costs: so many times as long as it took, it rests. A change
// after a rest is acted on at once.
const sweepShare = 9

// sweepFlows ends connections that have lost where they go, whenever something changed that can do that, until ctx is
// done. It works beside Update, for reading the connections of a busy node takes longer than programming a change.
func (s *Services) sweepFlows(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.sweep:
		}
		start := time.Now()
		if err := s.endFlows(); err != nil {
			s.log.Error("can't end all connections that lost where they go; trying again", "err", err)
			s.mu.Lock()
			s.unsure = true
			s.mu.Unlock()
			select {
			case s.sweep <- struct{}{}:
			default:
			}
		}
		rest := time.NewTimer(sweepShare * time.Since(start))
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
	}
}

// endFlows looks once at the connections that what has changed so far can have touched.
func (s *Services) endFlows() error {
	s.mu.Lock()
	touched, gone, unsure := s.touched, s.gone, s.unsure
	s.touched, s.gone, s.unsure = nil, nil, false
	node := s.table.Node().Addresses
	s.mu.Unlock()

	byPort := make(map[portKey][]*service.Change, len(touched))
	families := make(map[model.Family]bool)
	for fe, c := range touched {
		k := portKey{fe.Protocol, fe.Port}
		byPort[k] = append(byPort[k], &c)
		families[fe.Family()] = true
	}
	lost := func(f service.Flow) bool {
		return slices.ContainsFunc(byPort[portKey{f.Protocol, f.Dest.Port()}], func(c *service.Change) bool { return c.Loses(f, node) })
	}
	if unsure {
		lost = func(f service.Flow) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.table.Loses(f, gone)
		}
	}
	var errs []error
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if !unsure && !families[f] {
			continue
		}
		start := time.Now()
		flows, err := s.flows.Flows(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n, err := s.flows.Delete(slices.DeleteFunc(flows, func(ct conntrack.Flow) bool {
			return !lost(service.Flow{Protocol: ct.Protocol, Dest: ct.Dest, Peer: ct.Peer})
		}))
		errs = append(errs, err)
		s.metrics.ended(f, start, n)
	}
	return errors.Join(errs...)
}

type portKey struct {
	protocol model.Protocol
	port     uint16
}

// inForce tells whether the kernel holds what the API said last, for health checks.
func (s *Services) inForce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.complete && s.kernel.Synced()
}

// Run implements Part: it repairs the tables when somebody else has changed them, and serves health checks.
func (s *Services) Run(ctx context.Context) error {
	defer s.checks.close()
	ctx, stop := context.WithCancel(ctx)
	var sweeping sync.WaitGroup
	sweeping.Go(func() { s.sweepFlows(ctx) })
	defer sweeping.Wait()
	defer stop()
	for {
		changed, err := s.kernel.Wait(ctx)
		if err != nil {
			return err
		}
		if !changed {
			return nil
		}
		s.repair(ctx)
	}
}

// repairPause is between two tries of a repair that fails.
const repairPause = 200 * time.Millisecond

func (s *Services) repair(ctx context.Context) {
	for {
		s.mu.Lock()
		var err error
		if s.complete {
			s.log.Warn("somebody else changed the service tables; repairing them")
			s.metrics.repairs.Inc()
			_, err = s.kernel.Sync(s.table)
		}
		s.mu.Unlock()
		if err == nil {
			return
		}
		s.log.Error("can't repair the service tables; trying again", "err", err, "in", repairPause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(repairPause):
		}
	}
}

// Cleanup implements Cleaner: it deletes the tables.
func (s *Services) Cleanup(context.Context) error { return servicetable.Remove() }
