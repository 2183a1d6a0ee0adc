// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Flow is a connection that the kernel tracks: where the client sent it, and who answers. They differ if a
// destination was replaced.
type Flow struct {
	Protocol   model.Protocol
	Dest, Peer netip.AddrPort
	Answered   bool // something came back
}

// forwarded tells whether the connection was sent on to another destination than the client's.
func (f Flow) forwarded() bool { return f.Dest != f.Peer }

// Loses tells whether the change takes away from a connection where it goes, so that it must be looked at anew. pod
// tells whether a pod has an address.
//
// A UDP "connection" never ends by itself while the client sends. It is lost when its endpoint no longer serves, and
// when its Service is gone. A TCP or SCTP one is lost only when its endpoint was a pod that is no more; the client then
// gets a reset instead of silence. While the pod lives, its connections do, whether or not any Service leads there: a
// selector that changes, or a label that is taken off, is no reason to break what works. Of endpoints written by hand
// nobody knows whether they live; they are left to answer for themselves.
//
// A connection that began before the Service had the frontend is lost too, so that it gets one: of UDP any, of TCP and
// SCTP one that nobody has answered.
//
// Nothing else ends a connection: not a policy, not topology, not an endpoint that is terminating.
func (c *Change) Loses(f Flow, node []netip.Addr, pod func(netip.Addr) bool) bool {
	if f.Protocol != c.Frontend.Protocol || f.Dest.Port() != c.Frontend.Port {
		return false
	}
	if !c.Frontend.NodePort() {
		if f.Dest.Addr() != c.Frontend.Addr {
			return false
		}
	} else if model.FamilyOf(f.Dest.Addr()) != c.Frontend.Family() {
		return false
	} else if f.forwarded() {
		// Any address can be the node's; that it went to one of the Service's endpoints tells.
		if !c.Old.has(f.Peer) && !c.New.has(f.Peer) {
			return false
		}
	} else if !slices.Contains(node, f.Dest.Addr()) && !f.Dest.Addr().IsLoopback() {
		return false
	}
	if c.New == nil && f.Protocol == model.UDP {
		return f.forwarded()
	}
	if c.New != nil && c.New.loses(f) {
		return true
	}
	b, ok := c.Old.find(f.Peer)
	return ok && b.Pod && f.forwarded() && f.Protocol != model.UDP && !c.New.has(f.Peer) && !pod(f.Peer.Addr()) &&
		c.New.resets(c.Old.Kind)
}

// has tells whether the rule is there and has such a backend.
func (r *Rule) has(a netip.AddrPort) bool {
	_, ok := r.find(a)
	return ok
}

// find is backend, for a rule that need not be there.
func (r *Rule) find(a netip.AddrPort) (Backend, bool) {
	if r == nil {
		return Backend{}, false
	}
	return r.backend(a)
}

// loses tells whether a connection must be looked at anew for what the rule says, whatever was before.
func (r *Rule) loses(f Flow) bool {
	b, ok := r.backend(f.Peer)
	if f.Protocol == model.UDP {
		return !ok || !b.Serving
	}
	return !ok && !f.forwarded() && !f.Answered
}

// resets tells whether a packet from the middle of a connection, if the kernel forgets the connection, is answered with
// a reset: by an endpoint that knows nothing of it, by a frontend that rejects, or, where there is no Service any more,
// for a cluster IP. Where it would vanish instead, the connection is better left alone.
func (r *Rule) resets(was Kind) bool {
	if r == nil {
		return was == ClusterIP
	}
	return r.Main.Action != Drop
}

// MayLose tells whether the change can take away anything from any connection. pod is as for Loses.
func (c *Change) MayLose(pod func(netip.Addr) bool) bool {
	if c.Old == nil {
		return true
	}
	udp := c.Frontend.Protocol == model.UDP
	if c.New == nil && udp {
		return len(c.Old.Backends)+len(c.Old.Main.Endpoints) > 0
	}
	for b := range c.Old.AllBackends() {
		now, ok := c.New.find(b.AddrPort)
		if udp && (!ok || b.Serving && !now.Serving) || !udp && !ok && b.Pod && !pod(b.Addr()) {
			return true
		}
	}
	return false
}

// Left are the addresses that no pod has any more. It hands them out once; Leaves takes them.
func (t *Table) Left() map[netip.Addr]bool {
	out := t.pods.left
	if len(out) == 0 {
		return nil
	}
	t.pods.left = make(map[netip.Addr]bool)
	return out
}

// AnyLeft tells whether Left has something.
func (t *Table) AnyLeft() bool { return len(t.pods.left) > 0 }

// HasPod tells whether a pod has the address.
func (t *Table) HasPod(a netip.Addr) bool { return t.pods.has(a) }

// Leaves tells whether a connection went to one of the addresses left, its Service having let go of that endpoint
// before: then no Change says that it is lost. inRange tells whether an address is from the cluster's ranges of cluster
// IPs.
func (t *Table) Leaves(f Flow, left map[netip.Addr]bool, inRange func(netip.Addr) bool) bool {
	if f.Protocol == model.UDP || !f.forwarded() || !left[f.Peer.Addr()] || t.pods.has(f.Peer.Addr()) {
		return false
	}
	r := t.ruleOf(f)
	if r == nil {
		return inRange(f.Dest.Addr())
	}
	return !r.has(f.Peer) && r.resets(r.Kind)
}

// ruleOf is the rule that a new connection to the same destination would meet; nil is none.
func (t *Table) ruleOf(f Flow) *Rule {
	fe := Frontend{f.Dest.Addr(), f.Protocol, f.Dest.Port()}
	r := t.Rule(fe)
	if r == nil && (slices.Contains(t.node.Addresses, fe.Addr) || fe.Addr.IsLoopback()) {
		fe.Addr = unspecified(model.FamilyOf(fe.Addr))
		r = t.Rule(fe)
	}
	return r
}

func unspecified(f model.Family) netip.Addr {
	if f == model.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// Loses tells, of any connection at all, whether it has lost where it goes: for when what changed is not known. gone
// are frontends that there were. Whether an endpoint was a pod is not known then either, so no TCP connection counts as
// lost for its endpoint's sake: a pod's node answers for it.
func (t *Table) Loses(f Flow, gone map[Frontend]bool) bool {
	if r := t.ruleOf(f); r != nil {
		return r.loses(f)
	}
	if f.Protocol != model.UDP || !f.forwarded() {
		return false
	}
	fe := Frontend{f.Dest.Addr(), f.Protocol, f.Dest.Port()}
	if gone[fe] {
		return true
	}
	fe.Addr = unspecified(model.FamilyOf(fe.Addr))
	return gone[fe] && (slices.Contains(t.node.Addresses, f.Dest.Addr()) || f.Dest.Addr().IsLoopback())
}
