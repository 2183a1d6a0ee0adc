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

	// What is still to be done about tracked connections: those that pending changes touch, or, if unsure, all.
	touched []service.Change
	gone    map[service.Frontend]bool
	unsure  bool
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
		cfg: cfg, log: cfg.Log, table: service.NewTable(cfg.Node), unsure: true,
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
	return s.endFlows()
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
	gone, err := s.kernel.Sync(s.table.All)
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
		if !s.unsure && c.MayLose() {
			s.touched = append(s.touched, c)
		}
	}
	s.table.Done()
}

// endFlows ends tracked connections that have lost where they go. Callers hold mu.
func (s *Services) endFlows() error {
	if !s.unsure && len(s.touched) == 0 {
		return nil
	}
	start := time.Now()
	byPort := make(map[portKey][]*service.Change, len(s.touched))
	for i := range s.touched {
		c := &s.touched[i]
		k := portKey{c.Frontend.Protocol, c.Frontend.Port}
		byPort[k] = append(byPort[k], c)
	}
	node := s.table.Node().Addresses
	var errs []error
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if !s.unsure && !slices.ContainsFunc(s.touched, func(c service.Change) bool { return c.Frontend.Family() == f }) {
			continue
		}
		n, err := s.flows.Delete(f, func(ct conntrack.Flow) bool {
			flow := service.Flow{Protocol: ct.Protocol, Dest: ct.Dest, Peer: ct.Peer}
			if s.unsure {
				return s.table.Loses(flow, s.gone)
			}
			for _, c := range byPort[portKey{flow.Protocol, flow.Dest.Port()}] {
				if c.Loses(flow, node) {
					return true
				}
			}
			return false
		})
		errs = append(errs, err)
		s.metrics.ended(f, start, n)
	}
	if err := errors.Join(errs...); err != nil {
		s.unsure = true
		return err
	}
	s.unsure, s.touched, s.gone = false, nil, nil
	return nil
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
			_, err = s.kernel.Sync(s.table.All)
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
