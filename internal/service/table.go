// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Table keeps the Rules of one node up to date. It is not safe for concurrent use.
type Table struct {
	node     Node
	services map[model.Name]*known
	slices   map[model.Name]model.Name // EndpointSlice -> Service
	owners   map[Frontend]*known
	losers   map[Frontend][]*known // claims that another Service's keeps out; rare

	pending []Change
	index   map[Frontend]int // into pending
	health  map[model.Name]Health
	noLocal [2]int
}

// known is a Service as it is known, which may be only by its EndpointSlices yet.
type known struct {
	service *model.Service
	slices  []*model.EndpointSlice // by name
	compiled
}

// NewTable makes an empty table for the node of that name, which must match the nodeName of endpoints.
func NewTable(node string) *Table {
	return &Table{
		node:     Node{Name: node},
		services: make(map[model.Name]*known),
		slices:   make(map[model.Name]model.Name),
		owners:   make(map[Frontend]*known),
		losers:   make(map[Frontend][]*known),
		index:    make(map[Frontend]int),
		health:   make(map[model.Name]Health),
	}
}

// Update takes in a Delta and returns what the owners of objects should be told. The changes it makes are Pending.
func (t *Table) Update(d *model.Delta) []model.Event {
	dirty := make(map[model.Name]*known)
	for name, s := range d.Services {
		st := t.state(name)
		st.service = s
		dirty[name] = st
	}
	for name, s := range d.EndpointSlices {
		t.slice(name, s, dirty)
	}
	if n := d.Nodes[t.node.Name]; n != nil && t.setNode(n) {
		dirty = t.services
	}
	var events []model.Event
	for name, st := range dirty {
		events = append(events, t.refresh(name, st)...)
	}
	return events
}

func (t *Table) state(name model.Name) *known {
	st := t.services[name]
	if st == nil {
		st = &known{}
		t.services[name] = st
	}
	return st
}

// slice files an EndpointSlice under its Service and takes it away from the one that had it before.
func (t *Table) slice(name model.Name, s *model.EndpointSlice, dirty map[model.Name]*known) {
	var next model.Name
	if s != nil && s.Service != "" && s.Labels[headlessLabel] == "" {
		next = model.Name{Namespace: name.Namespace, Name: s.Service}
	}
	if owner, ok := t.slices[name]; ok && owner != next {
		st := t.services[owner]
		st.slices = slices.DeleteFunc(slices.Clone(st.slices), func(x *model.EndpointSlice) bool { return x.Name == name })
		dirty[owner] = st
		delete(t.slices, name)
	}
	if next.Name == "" {
		return
	}
	st := t.state(next)
	i, found := slices.BinarySearchFunc(st.slices, name, func(x *model.EndpointSlice, n model.Name) int { return x.Name.Compare(n) })
	if found {
		st.slices[i] = s
	} else {
		st.slices = slices.Insert(st.slices, i, s)
	}
	t.slices[name] = next
	dirty[next] = st
}

func (t *Table) setNode(n *model.Node) bool {
	next := NodeOf(n)
	if next.Zone == t.node.Zone && slices.Equal(next.Addresses, t.node.Addresses) {
		return false
	}
	t.node = next
	return true
}

// NodeOf is what decisions need to know of a node.
func NodeOf(n *model.Node) Node {
	return Node{Name: n.Name.Name, Zone: n.Zone, Addresses: slices.Concat(n.InternalIPs, n.ExternalIPs)}
}

// refresh compiles a Service again and settles what became of its frontends.
func (t *Table) refresh(name model.Name, st *known) []model.Event {
	old := st.compiled
	st.compiled = compiled{}
	if st.service != nil {
		st.compiled = compile(st.service, st.slices, &t.node)
	} else if len(st.slices) == 0 {
		delete(t.services, name)
	}
	for i := range old.noLocal {
		t.noLocal[i] += st.noLocal[i] - old.noLocal[i]
	}
	if st.health.Port != 0 {
		t.health[name] = st.health
	} else if old.health.Port != 0 {
		delete(t.health, name)
	}
	events := st.events
	if slices.EqualFunc(old.events, events, func(a, b model.Event) bool { return a == b }) {
		events = nil // said already
	}
	for _, e := range old.entries {
		if st.rule(e.frontend) == nil {
			t.release(e.frontend, st, e.rule)
		}
	}
	for i := range st.entries {
		events = append(events, t.claim(st.entries[i].frontend, st, old.rule(st.entries[i].frontend))...)
	}
	return events
}

func (c *compiled) rule(f Frontend) *Rule {
	for i := range c.entries {
		if c.entries[i].frontend == f {
			return c.entries[i].rule
		}
	}
	return nil
}

// claim gives a frontend to the Service, whose rule for it was old, unless one with a better claim has it.
func (t *Table) claim(f Frontend, st *known, old *Rule) []model.Event {
	rule := st.rule(f)
	owner := t.owners[f]
	switch {
	case owner == nil:
		t.owners[f] = st
		t.change(f, nil, rule)
		return nil
	case owner == st:
		if !old.Equal(rule) {
			t.change(f, old, rule)
		}
		return nil
	}
	winner, loser := owner, st
	if better(f, st, owner) {
		winner, loser = st, owner
		t.owners[f] = st
		t.losers[f] = slices.DeleteFunc(t.losers[f], func(x *known) bool { return x == st })
		t.change(f, owner.rule(f), rule)
	}
	if slices.Contains(t.losers[f], loser) {
		return nil
	}
	t.losers[f] = append(t.losers[f], loser)
	return []model.Event{{APIVersion: "v1", Kind: "Service", Name: loser.service.Name, UID: loser.service.UID, Warning: true,
		Reason: "FrontendConflict", Message: fmt.Sprintf("%s %s is served by Service %s, which has the older claim; this "+
			"Service's endpoints do not get its traffic: give one of the two another address or port",
			loser.rule(f).Kind, f, winner.service.Name)}}
}

// better tells whether a's claim to a frontend goes before b's: a cluster IP, which the API server allocates, before
// an address that somebody wrote down; then the older Service; then the first by name.
func better(f Frontend, a, b *known) bool {
	return cmp.Or(
		cmp.Compare(b2i(a.rule(f).Kind.External()), b2i(b.rule(f).Kind.External())),
		cmp.Compare(a.service.Created, b.service.Created),
		a.service.Name.Compare(b.service.Name)) < 0
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// release takes a frontend away from the Service, whose rule for it was old, and gives it to the next best claim.
func (t *Table) release(f Frontend, st *known, old *Rule) {
	rest := slices.DeleteFunc(t.losers[f], func(x *known) bool { return x == st })
	if t.owners[f] == st {
		delete(t.owners, f)
		var rule *Rule
		if len(rest) > 0 {
			best := slices.MinFunc(rest, func(a, b *known) int { return b2i(better(f, b, a)) - b2i(better(f, a, b)) })
			t.owners[f], rule = best, best.rule(f)
			rest = slices.DeleteFunc(rest, func(x *known) bool { return x == best })
		}
		t.change(f, old, rule)
	}
	if len(rest) == 0 {
		delete(t.losers, f)
	} else {
		t.losers[f] = rest
	}
}

func (t *Table) change(f Frontend, old, new *Rule) {
	if i, ok := t.index[f]; ok {
		t.pending[i].New = new
		return
	}
	t.index[f] = len(t.pending)
	t.pending = append(t.pending, Change{Frontend: f, Old: old, New: new})
}

// Pending are the changes since the last Done, one a frontend, in no particular order.
func (t *Table) Pending() []Change { return t.pending }

// Done says that the Pending changes are in force.
func (t *Table) Done() {
	t.pending = nil
	clear(t.index)
}

// Rule is the rule of a frontend, nil if the node has no such frontend.
func (t *Table) Rule(f Frontend) *Rule {
	if st := t.owners[f]; st != nil {
		return st.rule(f)
	}
	return nil
}

// All calls f with every frontend and its rule, Service by Service.
func (t *Table) All(f func(Frontend, *Rule)) {
	for _, st := range t.services {
		for _, e := range st.entries {
			if t.owners[e.frontend] == st {
				f(e.frontend, e.rule)
			}
		}
	}
}

// Len is how many frontends the node has.
func (t *Table) Len() int { return len(t.owners) }

// Health are the health check node ports and what they answer. Read only.
func (t *Table) Health() map[model.Name]Health { return t.health }

// NoLocal counts the frontends that drop traffic for want of a local endpoint: by internalTrafficPolicy and by
// externalTrafficPolicy.
func (t *Table) NoLocal() (internal, external int) { return t.noLocal[0], t.noLocal[1] }

// Node is the node that the table decides for.
func (t *Table) Node() Node { return t.node }
