// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// tell adds a Service's Decision and what its owner should hear.
func (a *Allocator) tell(r *Result, name model.Name, e *entry, before pair, lost, was Problem) {
	d := a.decision(e)
	r.Services[name] = d
	event := func(warning bool, p Problem) {
		r.Events = append(r.Events, model.Event{APIVersion: "v1", Kind: "Service", Name: name, UID: e.svc.UID,
			Warning: warning, Reason: p.Reason, Message: p.Message})
	}
	if lost != (Problem{}) {
		event(true, lost)
	}
	if e.held != before {
		for _, x := range d.Addresses {
			if *before.of(model.FamilyOf(x.Addr)) != x.Addr {
				event(false, Problem{ReasonAssigned, fmt.Sprintf("assigned %s of AddressPool %q", x.Addr, x.Pool)})
			}
		}
	}
	if e.problem != (Problem{}) && e.problem != was {
		p := e.problem
		if held := e.held.all(); len(held) > 0 {
			p.Message += fmt.Sprintf(" (the Service keeps %s)", joined(held))
		}
		event(true, p)
	}
}

func joined(addrs []netip.Addr) string {
	s := make([]string, len(addrs))
	for i, x := range addrs {
		s[i] = x.String()
	}
	return strings.Join(s, ", ")
}

func (a *Allocator) decision(e *entry) Decision {
	d := Decision{Ours: !e.alien, Problem: e.problem}
	for _, f := range e.req.families {
		if x := *e.held.of(f); x.IsValid() {
			d.Addresses = append(d.Addresses, Assigned{x, a.holders[x].pool})
		}
	}
	return d
}

// report adds the status of each pool for which it is no longer what it was.
func (a *Allocator) report(r *Result) {
	var reserved map[string]*[2]int64
	for name := range a.pools {
		if reserved == nil {
			reserved = a.outOfReach()
		}
		s := a.status(a.pools[name], reserved[name])
		if old, ok := a.reported[name]; ok && old == s {
			continue
		}
		if s.Reason != PoolAccepted && (a.reported[name].Reason != s.Reason || a.reported[name].Message != s.Message) {
			r.Events = append(r.Events, model.Event{APIVersion: "weft.dev/v1alpha1", Kind: "AddressPool", Name: model.Name{Name: name},
				UID: s.UID, Warning: true, Reason: s.Reason, Message: s.Message})
		}
		a.reported[name] = s
		r.Pools[name] = s
	}
	for name := range a.reported {
		if a.pools[name] == nil {
			delete(a.reported, name)
		}
	}
}

// outOfReach counts, for each pool, the reserved addresses in it that nobody was assigned.
func (a *Allocator) outOfReach() map[string]*[2]int64 {
	out := make(map[string]*[2]int64, len(a.pools))
	for _, p := range a.order {
		out[p.Name.Name] = new([2]int64)
	}
	for x := range a.reserved {
		if a.holders[x] != nil {
			continue
		}
		for _, p := range a.order {
			if p.contains(x) {
				out[p.Name.Name][index(x)]++
			}
		}
	}
	return out
}

func (a *Allocator) status(p *pool, reserved *[2]int64) PoolStatus {
	s := PoolStatus{Generation: p.Generation, UID: p.UID, Accepted: p.accepted, Reason: p.reason, Message: p.message}
	for i, f := range []model.Family{model.IPv4, model.IPv6} {
		u := Usage{Total: p.total(f)}
		if n := a.used[p.Name.Name]; n != nil {
			u.Used = n[i]
		}
		if p.accepted {
			u.Free = max(0, u.Total-u.Used-reserved[i])
		}
		if f == model.IPv4 {
			s.IPv4 = u
		} else {
			s.IPv6 = u
		}
	}
	return s
}

// Decisions gives the standing Decision for every Service of ours.
func (a *Allocator) Decisions() map[model.Name]Decision {
	out := make(map[model.Name]Decision, len(a.services))
	for name, e := range a.services {
		out[name] = a.decision(e)
	}
	return out
}

// Pools gives the standing status of every pool.
func (a *Allocator) Pools() map[string]PoolStatus { return maps.Clone(a.reported) }
