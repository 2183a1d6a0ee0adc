// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Node is what the decision needs to know of the node it is made for.
type Node struct {
	Name      string
	Zone      string       // topology.kubernetes.io/zone; "" is unknown
	Addresses []netip.Addr // the node's own
}

// candidate is an endpoint of one Service port and family.
type candidate struct {
	addr netip.AddrPort
	ep   *model.Endpoint
}

func (c candidate) local(n *Node) bool { return n.Name != "" && c.ep.Node == n.Name }

// fallback tells whether the endpoint may serve when none is ready (KEP-1669).
func (c candidate) fallback() bool { return !c.ep.Ready && c.ep.Serving && c.ep.Terminating }

// topology is which hints, if any, narrow down the ready endpoints for this node.
type topology uint8

const (
	noTopology topology = iota
	sameZone
	sameNode
)

// choice is which endpoints serve traffic of either policy from one node.
type choice struct {
	topology topology
	cluster  Pool // under policy Cluster
	local    Pool // under policy Local
}

// choose decides among the candidates. They are sorted, one an address; reasonCluster and reasonLocal in explain.go
// say why a candidate was left out and follow this function line by line.
func choose(cands []candidate, n *Node) choice {
	var c choice
	c.topology = topologyFor(cands, n)
	c.cluster.Endpoints = make([]netip.AddrPort, 0, len(cands))
	for _, ep := range cands {
		if !ep.ep.Ready {
			continue
		}
		if c.topology.admits(ep, n) {
			c.cluster.Endpoints = append(c.cluster.Endpoints, ep.addr)
		}
		if ep.local(n) {
			c.local.Endpoints = append(c.local.Endpoints, ep.addr)
		}
	}
	// Terminating endpoints step in where no ready one is, for each policy by itself.
	for _, ep := range cands {
		if len(c.cluster.Endpoints) == 0 && ep.fallback() {
			c.cluster.Endpoints = fallbacks(cands, func(candidate) bool { return true })
		}
		if len(c.local.Endpoints) == 0 && ep.fallback() && ep.local(n) {
			c.local.Endpoints = fallbacks(cands, func(c candidate) bool { return c.local(n) })
		}
	}
	if len(c.cluster.Endpoints) == 0 {
		c.cluster.Endpoints = nil
		c.cluster.Action, c.local.Action = Reject, Reject
	} else if len(c.local.Endpoints) == 0 {
		c.local.Action = Drop
	}
	if slices.Equal(c.cluster.Endpoints, c.local.Endpoints) {
		c.local.Endpoints = c.cluster.Endpoints
	}
	return c
}

func fallbacks(cands []candidate, ok func(candidate) bool) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ep := range cands {
		if ep.fallback() && ok(ep) {
			out = append(out, ep.addr)
		}
	}
	return out
}

// topologyFor reads the hints of the ready endpoints. They count only when every one of them has some and at least
// one is meant for here; node hints come before zone hints. trafficDistribution itself is not looked at: whoever
// writes the EndpointSlices expresses it by hints (KEP-2433, KEP-4444, KEP-3015).
func topologyFor(cands []candidate, n *Node) topology {
	ready, forNode, forZone := false, false, false
	allNode, allZone := true, true
	for _, c := range cands {
		if !c.ep.Ready {
			continue
		}
		ready = true
		allNode = allNode && len(c.ep.HintNodes) > 0
		allZone = allZone && len(c.ep.HintZones) > 0
		forNode = forNode || sameNode.admits(c, n)
		forZone = forZone || sameZone.admits(c, n)
	}
	switch {
	case ready && allNode && forNode:
		return sameNode
	case ready && allZone && forZone:
		return sameZone
	}
	return noTopology
}

func (t topology) admits(c candidate, n *Node) bool {
	switch t {
	case sameNode:
		return n.Name != "" && slices.Contains(c.ep.HintNodes, n.Name)
	case sameZone:
		return n.Zone != "" && slices.Contains(c.ep.HintZones, n.Zone)
	}
	return true
}

// candidates collects the endpoints of a Service port in one family: those of all slices whose port has its name
// and protocol. An endpoint that two slices list, as happens while it moves, counts once, in the better state. They are
// appended to out, which is empty.
func candidates(out []candidate, eps []*model.EndpointSlice, f model.Family, name string, proto model.Protocol) []candidate {
	for _, s := range eps {
		if s.Family != f || s.FQDN {
			continue
		}
		for _, p := range s.Ports {
			if p.Name != name || p.Protocol != proto || p.Port == 0 {
				continue
			}
			for i := range s.Endpoints {
				ep := &s.Endpoints[i]
				// A consumer uses the first address only (EndpointSlice API documentation).
				if len(ep.Addresses) > 0 && usable(ep.Addresses[0], f) {
					out = append(out, candidate{netip.AddrPortFrom(ep.Addresses[0].Unmap(), p.Port), ep})
				}
			}
		}
	}
	byAddr := func(a, b candidate) int {
		if c := a.addr.Compare(b.addr); c != 0 {
			return c
		}
		return state(b.ep) - state(a.ep)
	}
	if !slices.IsSortedFunc(out, byAddr) {
		slices.SortFunc(out, byAddr)
	}
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.addr == b.addr })
}

// state ranks an endpoint's conditions, best highest.
func state(ep *model.Endpoint) int {
	switch {
	case ep.Ready:
		return 2
	case ep.Serving:
		return 1
	}
	return 0
}
