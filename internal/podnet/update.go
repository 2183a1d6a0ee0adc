// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Update brings the node's routes, tunnels and masquerading to what the Deltas so far say of the cluster's nodes.
// Nothing changes before one is complete: until then an absent node may only be late. After an error what could be
// done is done, and the next call, with any Delta, does the rest.
func (n *Network) Update(_ context.Context, d *model.Delta) error {
	n.routing.Lock()
	defer n.routing.Unlock()
	n.complete = n.complete || d.Complete
	var touched []netip.Prefix
	changed := false
	selfChanged := false
	for name, node := range d.Nodes {
		if name == n.cfg.NodeName {
			old := n.topo.self
			selfChanged = selfChanged || node == nil || old == nil || !sameWiring(old, node)
			n.topo.self = node
			continue
		}
		if !n.synced {
			n.topo.nodes[name] = node
			if node == nil {
				delete(n.topo.nodes, name)
			}
			continue
		}
		if old := n.topo.nodes[name]; old != nil && node != nil && sameWiring(old, node) {
			n.topo.nodes[name] = node
			continue
		}
		ds, c := n.topo.set(name, node, n.router.lookup)
		touched = append(touched, ds...)
		changed = changed || c
	}
	if !n.complete {
		return nil
	}
	if n.topo.self == nil || len(n.topo.self.PodCIDRs) == 0 {
		return n.notReady()
	}
	if selfChanged || !n.synced {
		return n.resync(!n.synced)
	}
	if len(touched) == 0 && !changed {
		return nil
	}
	var err error
	if changed {
		// First: what becomes reachable under a pod's own address is known before anyone can send to it.
		err = n.table.setRanges(n.topo.clusterRanges(), n.topo.ownRanges())
	}
	if err = errors.Join(err, n.applyRoutes(touched)); err != nil {
		n.synced = false // the next call looks at everything
		return fmt.Errorf("pod network: %w", err)
	}
	n.reportUnserved()
	return nil
}

// sameWiring tells whether nothing differs that routes are made of.
func sameWiring(a, b *model.Node) bool {
	return slices.Equal(a.InternalIPs, b.InternalIPs) && slices.Equal(a.PodCIDRs, b.PodCIDRs) && a.Created == b.Created
}

// notReady tells why ADD has to wait. It is no error: the Delta that brings what is missing brings Update back.
func (n *Network) notReady() error {
	why := fmt.Errorf("node %s: there is no such Node object in the cluster: is --node-name right?", n.cfg.NodeName)
	if n.topo.self != nil {
		why = fmt.Errorf("node %s: spec.podCIDRs is empty: run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set spec.podCIDRs", n.cfg.NodeName)
	}
	n.mu.Lock()
	changed := n.notice == nil || n.notice.Error() != why.Error()
	n.notice = why
	n.mu.Unlock()
	if changed {
		n.log.Warn("podnet: pods can't be wired yet", "err", why)
	}
	return nil
}

// resync looks at the node as it is, replans everything, and changes what differs. Pods whose links need a look are
// looked at too, by Run.
func (n *Network) resync(pods bool) error {
	n.synced = false
	if err := n.ns.do(forwardPackets); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	if err := errors.Join(n.router.survey(), n.router.adopt()); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	mtu := n.cfg.MTU
	if mtu == 0 {
		var err error
		if mtu, err = n.router.underlayMTU(n.topo.self); err != nil {
			return fmt.Errorf("pod network: %w", err)
		}
	}
	old := n.topo
	n.topo = newTopology(n.cfg.NoMasquerade)
	n.topo.self = old.self
	for name, node := range old.nodes {
		n.topo.set(name, node, n.router.lookup)
	}
	n.mu.Lock()
	moved := false
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		src := firstOf(n.topo.self.InternalIPs, f)
		if !n.router.local[src] {
			src = netip.Addr{}
		}
		moved = moved || n.sources[f] != src
		n.sources[f] = src
	}
	n.mtu = mtu
	n.pool.setRanges(n.topo.self.PodCIDRs)
	links := make([]string, 0, len(n.pods))
	for link := range n.pods {
		links = append(links, link)
	}
	n.mu.Unlock()
	touched := n.topo.destinations()
	for d := range n.router.have {
		touched = append(touched, d)
	}
	if err := n.table.setRanges(n.topo.clusterRanges(), n.topo.ownRanges()); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	// A node that can't be reached is no reason to take no pods here.
	err := n.applyRoutes(touched)
	if n.synced = err == nil; err != nil {
		err = fmt.Errorf("pod network: %w", err)
	}
	if pods || moved {
		// Not here: it may have to wait for a policy, which comes with a later Delta.
		n.lost.add(news{links: links})
	}
	n.mu.Lock()
	n.notice = nil
	n.mu.Unlock()
	n.readyOnce.Do(func() { close(n.ready) })
	n.reportUnserved()
	return err
}

// applyRoutes puts tunnels up, then routes, then takes tunnels down.
func (n *Network) applyRoutes(touched []netip.Prefix) error {
	n.mu.Lock()
	mtu := n.mtu
	n.mu.Unlock()
	tunnels := n.topo.tunnels()
	var errs []error
	for f, peers := range tunnels {
		errs = append(errs, n.router.ensureTunnel(f, n.topo.self, mtu, peers))
	}
	errs = append(errs, n.router.apply(n.topo, touched))
	if errors.Join(errs...) == nil {
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			errs = append(errs, n.router.dropPeers(f, tunnels[f]))
		}
	}
	return errors.Join(errs...)
}

// reportUnserved logs, once, the nodes whose pods can't be reached, which no repetition would change.
func (n *Network) reportUnserved() {
	for name, err := range n.topo.errs {
		if n.reported[name] != err.Error() {
			n.log.Error("podnet: a node's pods can't be reached", "err", err)
		}
	}
	clear(n.reported)
	for name, err := range n.topo.errs {
		n.reported[name] = err.Error()
	}
}
