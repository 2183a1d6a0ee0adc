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
}

// Loses tells whether the change takes away from a connection where it goes, so that it must be looked at anew.
//
// A UDP "connection" never ends by itself while the client sends. It is lost when its endpoint no longer serves,
// when its Service is gone, and when it began before the Service had that frontend. A TCP or SCTP one is lost only
// when its endpoint is gone altogether; the client then gets a reset instead of silence. Nothing else ends a
// connection: not a policy, not topology, not an endpoint that is terminating.
func (c *Change) Loses(f Flow, node []netip.Addr) bool {
	if f.Protocol != c.Frontend.Protocol || f.Dest.Port() != c.Frontend.Port {
		return false
	}
	if !c.Frontend.NodePort() {
		if f.Dest.Addr() != c.Frontend.Addr {
			return false
		}
	} else if model.FamilyOf(f.Dest.Addr()) != c.Frontend.Family() {
		return false
	} else if f.Dest != f.Peer {
		// Any address can be the node's; that it went to one of the Service's endpoints tells.
		if !c.Old.has(f.Peer) && !c.New.has(f.Peer) {
			return false
		}
	} else if !slices.Contains(node, f.Dest.Addr()) && !f.Dest.Addr().IsLoopback() {
		return false
	}
	if c.New == nil {
		return f.Protocol == model.UDP && f.Dest != f.Peer
	}
	return c.New.loses(f)
}

// has tells whether the rule is there and has such a backend.
func (r *Rule) has(a netip.AddrPort) bool {
	if r == nil {
		return false
	}
	_, ok := r.backend(a)
	return ok
}

func (r *Rule) loses(f Flow) bool {
	b, ok := r.backend(f.Peer)
	if f.Protocol == model.UDP {
		return !ok || !b.Serving
	}
	return !ok && f.Dest != f.Peer
}

// MayLose tells whether the change can take away anything from any connection.
func (c *Change) MayLose() bool {
	if c.Old == nil {
		return c.Frontend.Protocol == model.UDP
	}
	if c.New == nil {
		return c.Frontend.Protocol == model.UDP && len(c.Old.Backends)+len(c.Old.Main.Endpoints) > 0
	}
	for b := range c.Old.AllBackends() {
		now, ok := c.New.backend(b.AddrPort)
		if !ok || c.Frontend.Protocol == model.UDP && b.Serving && !now.Serving {
			return true
		}
	}
	return false
}

// Loses tells, of any connection at all, whether it has lost where it goes: for when what changed is not known. gone
// are frontends that there were.
func (t *Table) Loses(f Flow, gone map[Frontend]bool) bool {
	fe := Frontend{f.Dest.Addr(), f.Protocol, f.Dest.Port()}
	r := t.Rule(fe)
	if r == nil && !gone[fe] && (slices.Contains(t.node.Addresses, fe.Addr) || fe.Addr.IsLoopback()) {
		fe.Addr = netip.IPv4Unspecified()
		if f.Dest.Addr().Is6() {
			fe.Addr = netip.IPv6Unspecified()
		}
		r = t.Rule(fe)
	}
	if r == nil {
		return gone[fe] && f.Protocol == model.UDP && f.Dest != f.Peer
	}
	return r.loses(f)
}
