// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
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

	// PrimaryNodePorts has node ports on the node's primary address of each family only, the first of its InternalIPs
	// (kube-proxy's --nodeport-addresses=primary), in place of NodePorts.
	PrimaryNodePorts bool

	// Loopback puts node ports on 127.0.0.1 and ::1 as well, for processes on the node.
	Loopback bool

	// Pods are the ranges of this node's pods where they are not the node's spec.podCIDRs.
	Pods []netip.Prefix

	// Shared leaves the kernel's tables for everybody to change, as they are anyway before Linux 6.9.
	Shared bool

	Registerer prometheus.Registerer
	Events     func(model.Event) // may be nil
	Log        *slog.Logger
}

// Services is the Part that forwards Service traffic.
type Services struct {
	cfg     ServicesConfig
	log     *slog.Logger
	metrics *serviceMetrics
	flows   flowTable
	checks  *healthChecks
	health  *proxyHealth

	mu       sync.Mutex
	table    *service.Table
	kernel   service.Forwarder
	refused  map[model.Name]error // Services that the kernel does not take
	complete bool                 // the API's first full picture is here
	scope    service.Scope
	waiting  waiting
	ranges   map[string]*model.ServiceCIDR

	lost   lost          // what is still to be done about tracked connections
	sweep  chan struct{} // capacity 1: there is something to be done
	urgent chan struct{} // capacity 1: at once
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
		cfg: cfg, log: cfg.Log, table: service.NewTable(cfg.Node), lost: lost{unsure: true}, sweep: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
		ranges: make(map[string]*model.ServiceCIDR), refused: make(map[model.Name]error),
		scope: service.Scope{Pods: cfg.Pods, ClusterIPs: cfg.ClusterIPs, NodePorts: cfg.NodePorts, LoopbackNodePorts: cfg.Loopback},
	}
	if cfg.PrimaryNodePorts {
		s.scope.NodePorts = service.PrimaryNodePorts(nil)
	}
	kernel, err := servicetable.Open(s.scope, servicetable.Options{Shared: cfg.Shared})
	if err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	s.kernel = kernel
	s.health = newProxyHealth()
	if s.health.inForce, err = kernel.Present(); err != nil {
		_ = kernel.Close()
		return nil, fmt.Errorf("services: %w", err)
	}
	if s.flows, err = conntrack.Open(0); err != nil {
		_ = kernel.Close()
		return nil, fmt.Errorf("services: %w", err)
	}
	if s.metrics, err = newServiceMetrics(cfg.Registerer); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("services: %w", err)
	}
	if cfg.Registerer != nil {
		for _, c := range []prometheus.Collector{s.health.healthz, s.health.livez} {
			if err := cfg.Registerer.Register(c); err != nil {
				_ = s.Close()
				return nil, fmt.Errorf("services: %w", err)
			}
		}
	}
	s.checks = newHealthChecks(cfg, s.scope.NodePorts, s.inForce)
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
	s.waiting.add(d)
	s.metrics.changes(d, &s.waiting)
	s.table.Update(d) // what there is to say of objects is the same on every node: the controller says it
	s.rescope(d)
	if n, ok := d.Nodes[s.cfg.Node]; ok {
		s.health.node(n)
	}
	s.complete = s.complete || d.Complete
	if !s.complete {
		return nil
	}
	start := time.Now()
	s.health.behind()
	did, err := s.enforce()
	if err != nil {
		s.metrics.failed(did)
		return err
	}
	s.health.upToDate()
	s.metrics.synced(start, did, s.table, len(s.refused), &s.waiting)
	s.checks.set(s.table.Health())
	s.sweepSoon()
	return nil
}

// sweepSoon has connections looked at if there is reason to. Callers hold mu.
func (s *Services) sweepSoon() {
	if !s.lost.any() && !s.table.AnyLeft() {
		return
	}
	poke(s.sweep)
}

// rescope takes in what the kernel must know besides Services: the node's pods and the ranges of cluster IPs.
func (s *Services) rescope(d *model.Delta) {
	next := s.scope
	if n := d.Nodes[s.cfg.Node]; n != nil {
		if len(s.cfg.Pods) == 0 {
			next.Pods = n.PodCIDRs
		}
		if s.cfg.PrimaryNodePorts {
			next.NodePorts = service.PrimaryNodePorts(n)
		}
		s.checks.listenOn(next.NodePorts)
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
	if slices.Equal(next.Pods, s.scope.Pods) && slices.Equal(next.ClusterIPs, s.scope.ClusterIPs) && slices.Equal(next.NodePorts, s.scope.NodePorts) {
		return
	}
	s.scope = next
	s.kernel.Configure(s.scope)
}

// enforce brings the kernel to the table, and tells what there was to do. Callers hold mu.
func (s *Services) enforce() (work, error) {
	changes := s.table.Pending()
	did := workOf(changes)
	if s.kernel.Synced() {
		err := s.kernel.Apply(s.retried(changes))
		if err == nil {
			s.lost.applied(changes, s.table.HasPod)
			s.table.Done()
			return did, nil
		}
		s.log.Warn("the kernel refused a change of the service tables; comparing all of them", "err", err)
		if err := s.isolate(err, owners(changes)); err != nil {
			return did, err
		}
		s.lost.applied(changes, s.table.HasPod)
		s.table.Done()
		return everything(), nil
	}
	did = everything()
	start := time.Now()
	if err := s.sync(); err != nil {
		if err := s.isolate(err, nil); err != nil {
			return did, err
		}
	}
	s.lost.applied(changes, s.table.HasPod)
	s.table.Done()
	s.log.Info("service tables in force", "frontends", s.table.Len(), "took", time.Since(start))
	return did, nil
}

// sync compares all that the kernel holds with the table. What connections met meanwhile is not known: all of them are
// to be looked at. Callers hold mu.
func (s *Services) sync() error {
	gone, err := s.kernel.Sync(accepted{s.table, s.refused})
	if err != nil {
		return err
	}
	s.lost.synced(gone)
	return nil
}

// inForce tells whether the kernel holds what the API said last, for health checks.
func (s *Services) inForce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.complete && s.kernel.Synced()
}

// Forwards tells whether the node forwards Services' traffic: the tables are in force, and what came last from the API
// is there or about to be. It never waits.
func (s *Services) Forwards() bool { return s.health.forwards() }

// ProxyHealth answers what kube-proxy answers on its healthz port.
func (s *Services) ProxyHealth() http.Handler { return s.health.handler() }

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
			s.health.behind()
			if err = s.sync(); err == nil {
				s.health.upToDate()
				poke(s.urgent) // what was sent while the tables were not there went elsewhere, and would go on doing so
			}
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
func (s *Services) Cleanup(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kernel.Remove()
}
