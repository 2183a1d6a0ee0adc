// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"net/netip"
)

// Forwarder is what carries Rules out: the one boundary between deciding and the kernel. Package servicetable is the
// one for nftables.
type Forwarder interface {
	// Configure changes the Scope. It is in force after the next Sync.
	Configure(Scope)

	// Sync reads what the kernel holds and changes it to exactly these rules, without a moment in which existing
	// frontends don't forward. It returns the frontends that the kernel had and that are gone. Rules may be Partial.
	Sync(Rules) (gone []Frontend, err error)

	// Synced tells whether Apply will do. After an error, and before the first Sync, only Sync does.
	Synced() bool

	// Apply brings changes into force, the frontends of a Service at the same moment.
	Apply([]Change) error

	// Wait returns true when somebody else has changed what the kernel holds, so that Sync is needed, and false when
	// ctx is done. It is safe beside the other methods, which are not safe beside each other.
	Wait(ctx context.Context) (bool, error)

	// Remove deletes all that this and earlier processes brought into force.
	Remove() error

	// Close lets go of the kernel, which goes on forwarding.
	Close() error
}

// Rules are all rules of a node: a Table.
type Rules interface {
	// All calls f with every frontend and its rule, Service by Service.
	All(f func(Frontend, *Rule))

	// Len is how many there are.
	Len() int
}

// Partial are Rules of which some are left open: for a frontend that is not among them, Keeps tells whether the kernel
// goes on holding what it has, instead of having it taken away.
type Partial interface {
	Rules
	Keeps(Frontend) bool
}

// Scope is what a Forwarder needs to know besides Services.
type Scope struct {
	// Pods are the ranges of this node's own pods. Empty: unknown; then nothing counts as a pod of the node, and
	// traffic to cluster IPs is masqueraded only where a pod reaches itself.
	Pods []netip.Prefix

	// ClusterIPs are the ranges that cluster IPs come from. What is sent to one that no Service has is dropped, not
	// routed away. May be empty.
	ClusterIPs []netip.Prefix

	// NodePorts are the ranges of the node's addresses that have node ports. Empty, or none of a family: all of the
	// family's.
	NodePorts []netip.Prefix

	// LoopbackNodePorts puts node ports on 127.0.0.1 and ::1 too, for the node itself, where NodePorts does not leave
	// them out.
	LoopbackNodePorts bool
}
