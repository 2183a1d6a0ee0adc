// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// keep gives a Service back the addresses that it had, as far as it may have them still, and says why not all.
func (a *Allocator) keep(name model.Name, e *entry, had []netip.Addr) Problem {
	var problem Problem
	if e.alien = a.alien(e.svc); e.alien {
		return problem
	}
	for _, x := range had {
		why := Problem{ReasonReleased, fmt.Sprintf("spec.ipFamilies has no %s any more", model.FamilyOf(x))}
		if f := model.FamilyOf(x); slices.Contains(e.req.families, f) {
			if e.held.of(f).IsValid() {
				continue // status listed two of a family
			}
			p, bad := a.usable(name, e, x)
			if bad == (Problem{}) {
				a.take(name, e, x, p)
				continue
			}
			why = bad
		}
		if problem == (Problem{}) {
			problem = Problem{ReasonReleased, fmt.Sprintf("%s is taken from the Service: %s", x, why.Message)}
		}
	}
	return problem
}

// usable tells whether the Service may have the address, and from which pool, or why not. A pool that was refused
// still lets those who have an address of it keep it.
func (a *Allocator) usable(name model.Name, e *entry, x netip.Addr) (*pool, Problem) {
	var in *pool
	var closed string
	for _, p := range a.order {
		if !p.contains(x) {
			continue
		}
		if p.admits(e.svc, a.namespaces[name.Namespace]) {
			in = p
			break
		}
		closed = p.Name.Name
	}
	switch {
	case in == nil && closed != "":
		return nil, Problem{ReasonUnavailable, fmt.Sprintf(
			"AddressPool %q has %s, but its namespaceSelector or serviceSelector does not admit this Service", closed, x)}
	case in == nil:
		return nil, Problem{ReasonUnavailable, fmt.Sprintf("no AddressPool has %s: ask for another address, or add it to a pool", x)}
	}
	return in, a.clash(name, e, x)
}

// clash tells why the Service can't have the address beside those who have it.
func (a *Allocator) clash(name model.Name, e *entry, x netip.Addr) Problem {
	h := a.holders[x]
	if h == nil {
		return Problem{}
	}
	for _, other := range slices.SortedFunc(maps.Keys(h.services), model.Name.Compare) {
		o := h.services[other]
		var why string
		switch {
		case other == name:
			continue
		case e.req.share == "" || e.req.share != o.req.share:
			why = "to share it, give both Services the same " + ShareAnnotation + " annotation"
		case e.req.backend != o.req.backend:
			why = "Services that share an address must have the same externalTrafficPolicy, and with Local the same selector"
		default:
			continue
		}
		return Problem{ReasonUnavailable, fmt.Sprintf("Service %s has %s: %s", other, x, why)}
	}
	for _, p := range e.req.ports {
		if other, ok := h.ports[p]; ok && other != name {
			return Problem{ReasonUnavailable, fmt.Sprintf("Service %s has port %s of %s: Services that share an address can't share a port", other, p, x)}
		}
	}
	return Problem{}
}

// fill gives a Service what it asks for and does not have.
func (a *Allocator) fill(name model.Name, e *entry) {
	e.problem = e.bad
	if e.alien {
		e.problem = Problem{}
		delete(a.waiting, name)
		return
	}
	before := e.held
	note := func(p Problem) {
		if e.problem == (Problem{}) {
			e.problem = p
		}
	}
	var missing []model.Family
	for _, f := range e.req.families {
		has, want := *e.held.of(f), *e.req.addrs.of(f)
		switch {
		case want.IsValid() && want == has:
		case want.IsValid():
			if p, why := a.requested(name, e, want); why != (Problem{}) {
				note(why)
			} else {
				a.take(name, e, want, p)
			}
		case e.bad != (Problem{}) && !has.IsValid():
			// What it wants is not known: it gets nothing rather than just anything.
		case !has.IsValid() || (e.req.pool != "" && a.holders[has].pool != e.req.pool):
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		note(a.assign(name, e, missing))
	}
	complete := true
	for _, f := range e.req.families {
		complete = complete && e.held.of(f).IsValid()
	}
	if e.req.require && !complete && e.held != before {
		a.letGo(name, e)
		for _, x := range before.all() {
			if p, why := a.usable(name, e, x); why == (Problem{}) {
				a.take(name, e, x, p)
			}
		}
	}
	if e.problem != (Problem{}) || !complete {
		a.waiting[name] = true
	} else {
		delete(a.waiting, name)
	}
}

// requested tells whether the Service may get the address that it asks for by number.
func (a *Allocator) requested(name model.Name, e *entry, x netip.Addr) (*pool, Problem) {
	p, why := a.usable(name, e, x)
	switch {
	case why != (Problem{}):
		return nil, why
	case !p.accepted:
		return nil, Problem{ReasonUnavailable, fmt.Sprintf("%s is of AddressPool %q, which is refused: %s", x, p.Name, p.message)}
	case e.req.pool != "" && p.Name.Name != e.req.pool:
		return nil, Problem{ReasonBadRequest, fmt.Sprintf("annotation %s asks for AddressPool %q, but %s is of AddressPool %q: remove one of the two wishes",
			PoolAnnotation, e.req.pool, x, p.Name)}
	case len(a.reserved[x]) > 0:
		return nil, Problem{ReasonUnavailable, fmt.Sprintf("%s is an address of %s: ask for another", x, a.reserved[x][0])}
	}
	return p, Problem{}
}

// assign finds addresses of the missing families: all from one pool if one has them, else each from the first pool
// that has one.
func (a *Allocator) assign(name model.Name, e *entry, missing []model.Family) Problem {
	pools, why := a.candidates(name, e)
	if why != (Problem{}) {
		return why
	}
	for _, p := range pools {
		found := make([]netip.Addr, 0, len(missing))
		for _, f := range missing {
			if x := a.find(name, e, p, f); x.IsValid() {
				found = append(found, x)
			}
		}
		if len(found) == len(missing) {
			for _, x := range found {
				a.take(name, e, x, p)
			}
			return Problem{}
		}
	}
	var problem Problem
	for _, f := range missing {
		i := slices.IndexFunc(pools, func(p *pool) bool {
			x := a.find(name, e, p, f)
			if x.IsValid() {
				a.take(name, e, x, p)
			}
			return x.IsValid()
		})
		if i < 0 && problem == (Problem{}) {
			problem = lacking(pools, f, e)
		}
	}
	return problem
}

// lacking says that no pool has a free address of the family, unless the Service can do without.
func lacking(pools []*pool, f model.Family, e *entry) Problem {
	var full, without []string
	for _, p := range pools {
		if p.has(f) {
			full = append(full, p.Name.Name)
		} else {
			without = append(without, p.Name.Name)
		}
	}
	if len(full) > 0 {
		return Problem{ReasonExhausted, fmt.Sprintf("no free %s address in AddressPool %s: add addresses to it, or delete a Service that has one",
			f, strings.Join(full, ", "))}
	}
	if len(e.req.families) > 1 && !e.req.require {
		return Problem{} // PreferDualStack: the other family will do
	}
	return Problem{ReasonNoPool, fmt.Sprintf("AddressPool %s has no %s addresses: add some, or change the Service's ipFamilyPolicy and ipFamilies",
		strings.Join(without, ", "), f)}
}

// candidates are the pools that may serve a Service that does not ask for an address by number, in the order in
// which to try them.
func (a *Allocator) candidates(name model.Name, e *entry) ([]*pool, Problem) {
	if want := e.req.pool; want != "" {
		p := a.pools[want]
		var why string
		switch {
		case p == nil:
			why = fmt.Sprintf("there is no AddressPool %q", want)
		case !p.accepted:
			why = fmt.Sprintf("AddressPool %q is refused: %s", want, p.message)
		case !p.admits(e.svc, a.namespaces[name.Namespace]):
			why = fmt.Sprintf("AddressPool %q does not admit this Service by its namespaceSelector or serviceSelector", want)
		default:
			return []*pool{p}, Problem{}
		}
		return nil, Problem{ReasonNoPool, "annotation " + PoolAnnotation + ": " + why + ": name another pool, or remove the annotation"}
	}
	var out []*pool
	var manual, closed []string
	for _, p := range a.order {
		switch {
		case !p.accepted:
		case !p.admits(e.svc, a.namespaces[name.Namespace]):
			closed = append(closed, p.Name.Name)
		case p.ManualOnly:
			manual = append(manual, p.Name.Name)
		default:
			out = append(out, p)
		}
	}
	if len(out) > 0 {
		// A pool that the Service has an address of comes first, so that both families are of one pool.
		slices.SortStableFunc(out, func(x, y *pool) int { return cmp.Compare(a.holds(e, y), a.holds(e, x)) })
		return out, Problem{}
	}
	switch {
	case len(manual) > 0:
		return nil, Problem{ReasonNoPool, fmt.Sprintf("AddressPool %s has autoAssign: false: name it in annotation %s",
			strings.Join(manual, ", "), PoolAnnotation)}
	case len(closed) > 0:
		return nil, Problem{ReasonNoPool, fmt.Sprintf("no AddressPool admits this Service: see the selectors of %s", strings.Join(closed, ", "))}
	}
	return nil, Problem{ReasonNoPool, "there is no AddressPool to assign an address from: create one (kubectl explain addresspool)"}
}

func (a *Allocator) holds(e *entry, p *pool) int {
	n := 0
	for _, x := range e.held.all() {
		if a.holders[x].pool == p.Name.Name {
			n++
		}
	}
	return n
}

// find is the address of the pool that the Service would get: one that it can share, else the lowest free one.
func (a *Allocator) find(name model.Name, e *entry, p *pool, f model.Family) netip.Addr {
	if e.req.share != "" {
		var best netip.Addr
		for x := range a.shared[e.req.share] {
			if model.FamilyOf(x) == f && a.holders[x].pool == p.Name.Name && a.clash(name, e, x) == (Problem{}) && len(a.reserved[x]) == 0 &&
				(!best.IsValid() || x.Less(best)) {
				best = x
			}
		}
		if best.IsValid() {
			return best
		}
	}
	return p.lowest(f, func(x netip.Addr) bool { return a.holders[x] == nil && len(a.reserved[x]) == 0 })
}
