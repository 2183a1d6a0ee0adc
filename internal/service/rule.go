// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// Frontend is where clients send: an address and port that this node answers for. A node port has the unspecified
// address of its family (0.0.0.0 or ::), for it is on every address of the node.
type Frontend struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

// NodePort tells whether the frontend is on the node's own addresses.
func (f Frontend) NodePort() bool { return f.Addr.IsUnspecified() }

// Family is the IP family of the frontend and of the endpoints behind it.
func (f Frontend) Family() model.Family { return model.FamilyOf(f.Addr) }

// String is "10.96.0.10:53/UDP", or "*:30080/TCP (IPv4)" for a node port.
func (f Frontend) String() string {
	if f.NodePort() {
		return fmt.Sprintf("*:%d/%s (%s)", f.Port, f.Protocol, f.Family())
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol)
}

// Compare orders by address, protocol and port.
func (f Frontend) Compare(o Frontend) int {
	return cmp.Or(f.Addr.Compare(o.Addr), cmp.Compare(f.Protocol, o.Protocol), cmp.Compare(f.Port, o.Port))
}

// Kind is what makes a frontend one.
type Kind uint8

// The kinds of frontends. All but ClusterIP are external: externalTrafficPolicy governs them.
const (
	ClusterIP Kind = iota
	NodePort
	LoadBalancerIP
	ExternalIP
)

// String is the field of the Service that the frontend comes from, in the API's spelling.
func (k Kind) String() string {
	return [...]string{"clusterIP", "nodePort", "loadBalancerIP", "externalIP"}[k]
}

// External tells whether externalTrafficPolicy governs the kind.
func (k Kind) External() bool { return k != ClusterIP }

// Action is what happens to a new connection.
type Action uint8

// The actions. Reject answers "connection refused" at once: no endpoint exists anywhere. Drop says nothing: there
// are endpoints, but none that the Local traffic policy allows here, and a load balancer must notice by its health
// check, not by refused clients.
const (
	Forward Action = iota
	Reject
	Drop
)

// String is a lower-case word.
func (a Action) String() string { return [...]string{"forward", "reject", "drop"}[a] }

// Pool is what a class of clients gets: endpoints to choose from, each with the same chance, if Action is Forward.
type Pool struct {
	Action    Action
	Endpoints []netip.AddrPort // sorted, without duplicates; shared, read-only
}

func (p Pool) equal(o Pool) bool {
	return p.Action == o.Action && slices.Equal(p.Endpoints, o.Endpoints)
}

// Backend is an endpoint of a Service port that exists, whether this node sends new connections to it or not.
type Backend struct {
	netip.AddrPort
	Local   bool // on this node
	Serving bool // by its conditions, be it terminating or not
	Pod     bool // is a pod, not written by hand
}

// MaxAffinity is up to how many endpoints session affinity works: a Forwarder may number them with 16 bits, those before
// a change and those after it.
const MaxAffinity = 16000

// Rule is all that the node does with the traffic of one Frontend.
type Rule struct {
	Service model.Name
	Port    string // the Service port's name
	Kind    Kind

	// Main is for everyone, or for everyone else where Inside is set.
	Main Pool

	// Inside, where set, is what pods of this node and the node itself get in spite of externalTrafficPolicy: Local:
	// their traffic is the cluster's own, whatever address it uses.
	Inside *Pool

	// Masquerade has external traffic come back through this node, since its endpoint may be on another.
	Masquerade bool

	// Restricted admits Sources only (loadBalancerSourceRanges), which may be nobody; others are dropped. Sources are
	// sorted and of the frontend's family.
	Restricted bool
	Sources    []netip.Prefix

	// Affinity keeps a client at its endpoint for so long after its last new connection; 0 is off, as it is for pools of
	// more than MaxAffinity.
	Affinity time.Duration

	// ClusterIP is that of the Service port, with Affinity: a client that uses one frontend of the port and then another
	// stays at its endpoint. Of a rule that has none, the frontend stands by itself.
	ClusterIP netip.AddrPort

	// Backends are all endpoints of the Service port in the frontend's family, sorted; shared, read-only. They are nil
	// where they are those of Main, are pods, serve, and are on other nodes, as in most Services: see AllBackends.
	Backends []Backend
}

// AllBackends yields Backends, also where they are nil.
func (r *Rule) AllBackends() iter.Seq[Backend] {
	return func(yield func(Backend) bool) {
		if r.Backends == nil {
			for _, a := range r.Main.Endpoints {
				if !yield(Backend{AddrPort: a, Serving: true, Pod: true}) {
					return
				}
			}
		}
		for _, b := range r.Backends {
			if !yield(b) {
				return
			}
		}
	}
}

// backend is the one of an address; ok is false if there is none.
func (r *Rule) backend(a netip.AddrPort) (b Backend, ok bool) {
	if r.Backends == nil {
		_, ok := slices.BinarySearchFunc(r.Main.Endpoints, a, netip.AddrPort.Compare)
		return Backend{AddrPort: a, Serving: ok, Pod: ok}, ok
	}
	i, ok := slices.BinarySearchFunc(r.Backends, a, func(b Backend, a netip.AddrPort) int { return b.Compare(a) })
	if !ok {
		return b, false
	}
	return r.Backends[i], true
}

// Equal tells whether both rules do the same.
func (r *Rule) Equal(o *Rule) bool {
	return r.Service == o.Service && r.Port == o.Port && r.Kind == o.Kind && r.Masquerade == o.Masquerade &&
		r.Affinity == o.Affinity && r.ClusterIP == o.ClusterIP && r.Restricted == o.Restricted && r.Main.equal(o.Main) &&
		(r.Inside == nil) == (o.Inside == nil) && (r.Inside == nil || r.Inside.equal(*o.Inside)) &&
		slices.Equal(r.Sources, o.Sources) && slices.Equal(r.Backends, o.Backends)
}

// Change is a Frontend whose Rule is not what it was. Old is nil for a new frontend, New for one that is gone.
type Change struct {
	Frontend Frontend
	Old, New *Rule
}
