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
	slices   map[model.Name]*known // of EndpointSlices: their Service
	owners   map[Frontend]*known
	losers   map[Frontend][]*known // claims that another Service's keeps out; rare

	pending []Change
	index   map[Frontend]int // into pending
	dirty   []namedService   // what Update has still to compile, each once
	cands   []candidate      // scratch
	health  map[model.Name]Health
	pods    pods
	noLocal noLocal
}

// known is a Service as it is known, which may be only by its EndpointSlices yet.
type known struct {
	service *model.Service
	slices  []*model.EndpointSlice // by name
	dirty   bool                   // is among Table.dirty
	was     *compiled              // during an Update that compiled it again: what it was before
	compiled
}

// namedService is a Service that an Update compiles again.
type namedService struct {
	name model.Name
	*known
	before compiled
}

// touch has a Service compiled again at the end of the Update.
func (t *Table) touch(name model.Name, st *known) {
	if !st.dirty {
		st.dirty = true
		t.dirty = append(t.dirty, namedService{name: name, known: st})
	}
}

// NewTable makes an empty table for the node of that name, which must match the nodeName of endpoints.
func NewTable(node string) *Table {
	return &Table{
		node:     Node{Name: node},
		services: make(map[model.Name]*known),
		slices:   make(map[model.Name]*known),
		owners:   make(map[Frontend]*known),
		losers:   make(map[Frontend][]*known),
		index:    make(map[Frontend]int),
		health:   make(map[model.Name]Health),
		pods:     newPods(),
	}
}

// Update takes in a Delta and returns what the owners of objects should be told. The changes it makes are Pending.
func (t *Table) Update(d *model.Delta) []model.Event {
	t.grow(len(d.Services), len(d.EndpointSlices))
	t.pods.update(d.Pods)
	for name, s := range d.Services {
		st := t.state(name)
		st.service = s
		t.touch(name, st)
	}
	for name, s := range d.EndpointSlices {
		t.slice(name, s)
	}
	if n := d.Nodes[t.node.Name]; n != nil && t.setNode(n) {
		for name, st := range t.services {
			t.touch(name, st)
		}
	}
	events := t.refresh()
	if cap(t.dirty) > keptPending {
		t.dirty = nil
	}
	clear(t.dirty)
	t.dirty = t.dirty[:0]
	return events
}

// grow makes room before the first full picture comes in.
func (t *Table) grow(services, endpointSlices int) {
	if len(t.services) > 0 {
		return
	}
	t.services = make(map[model.Name]*known, services)
	t.slices = make(map[model.Name]*known, endpointSlices)
	t.owners = make(map[Frontend]*known, services)
	t.index = make(map[Frontend]int, services)
	t.pending = make([]Change, 0, services)
	t.dirty = make([]namedService, 0, services)
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
func (t *Table) slice(name model.Name, s *model.EndpointSlice) {
	var next model.Name
	if s != nil && s.Service != "" && !s.Headless {
		next = model.Name{Namespace: name.Namespace, Name: s.Service}
	}
	byName := func(x *model.EndpointSlice, n model.Name) int { return x.Name.Compare(n) }
	if st := t.slices[name]; st != nil {
		i, _ := slices.BinarySearchFunc(st.slices, name, byName)
		if owner := (model.Name{Namespace: name.Namespace, Name: st.slices[i].Service}); owner != next {
			st.slices = slices.Delete(slices.Clone(st.slices), i, i+1)
			t.touch(owner, st)
			delete(t.slices, name)
		}
	}
	if next.Name == "" {
		return
	}
	st := t.state(next)
	i, found := slices.BinarySearchFunc(st.slices, name, byName)
	if found {
		st.slices[i] = s
	} else {
		st.slices = slices.Insert(st.slices, i, s)
	}
	t.slices[name] = st
	t.touch(next, st)
}

func (t *Table) setNode(n *model.Node) bool {
	next := nodeOf(n)
	if next.Zone == t.node.Zone && slices.Equal(next.Addresses, t.node.Addresses) {
		return false
	}
	t.node = next
	return true
}

// nodeOf is what decisions need to know of a node.
func nodeOf(n *model.Node) Node {
	return Node{Name: n.Name.Name, Zone: n.Zone, Addresses: slices.Concat(n.InternalIPs, n.ExternalIPs)}
}

// refresh compiles the dirty Services again and settles what became of their frontends. First all let go of what they
// have no longer, then all claim what they have: so Services that exchange addresses don't stand in each other's way,
// whichever comes first.
func (t *Table) refresh() (events []model.Event) {
	for i := range t.dirty {
		t.compile(&t.dirty[i])
	}
	for i := range t.dirty {
		d := &t.dirty[i]
		for _, e := range d.before.entries {
			if d.rule(e.frontend) == nil && t.owners[e.frontend] != d.known {
				t.withdraw(e.frontend, d.known)
			}
		}
	}
	for i := range t.dirty {
		d := &t.dirty[i]
		for _, e := range d.before.entries {
			if d.rule(e.frontend) == nil && t.owners[e.frontend] == d.known {
				t.release(e.frontend, e.rule)
			}
		}
	}
	for i := range t.dirty {
		d := &t.dirty[i]
		if !slices.Equal(d.before.events, d.events) { // else they were said already
			events = append(events, d.events...)
		}
		for j := range d.entries {
			fe := d.entries[j].frontend
			events = append(events, t.claim(fe, d.known, d.before.rule(fe))...)
		}
	}
	for i := range t.dirty {
		t.dirty[i].dirty, t.dirty[i].was = false, nil
	}
	return events
}

// compile compiles one Service again, and keeps what it was.
func (t *Table) compile(d *namedService) {
	st := d.known
	d.before, st.compiled = st.compiled, compiled{}
	st.was = &d.before
	if st.service != nil {
		st.compiled, t.cands = compile(st.service, st.slices, &t.node, t.cands)
	} else if len(st.slices) == 0 {
		delete(t.services, d.name)
	}
	t.noLocal.add(st.noLocal, 1)
	t.noLocal.add(d.before.noLocal, -1)
	if st.health.Port != 0 {
		t.health[d.name] = st.health
	} else if d.before.health.Port != 0 {
		delete(t.health, d.name)
	}
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
		// Its claim may have become the worse one: what was a cluster IP may now be an external IP.
		if best := t.best(f); best != nil && better(f, best, st) {
			return t.contest(f, best, st)
		}
		return nil
	case better(f, st, owner):
		return t.contest(f, st, owner)
	}
	return t.lose(f, st, owner)
}

// contest gives a frontend to the winner and takes it from the loser.
func (t *Table) contest(f Frontend, winner, loser *known) []model.Event {
	t.owners[f] = winner
	t.losers[f] = slices.DeleteFunc(t.losers[f], func(x *known) bool { return x == winner })
	old := loser.rule(f)
	if loser.was != nil {
		old = loser.was.rule(f) // its new rule was never in force
	}
	t.change(f, old, winner.rule(f))
	return t.lose(f, loser, winner)
}

// lose files a claim that another keeps out, and says so once.
func (t *Table) lose(f Frontend, loser, winner *known) []model.Event {
	if slices.Contains(t.losers[f], loser) {
		return nil
	}
	t.losers[f] = append(t.losers[f], loser)
	return []model.Event{{APIVersion: "v1", Kind: "Service", Name: loser.meta.Name, UID: loser.meta.UID, Warning: true,
		Reason: "FrontendConflict", Message: fmt.Sprintf("%s %s is served by Service %s, which has the better claim; this "+
			"Service's endpoints do not get its traffic: give one of the two another address or port",
			loser.rule(f).Kind, f, winner.meta.Name)}}
}

// best is the best of the claims that lost, nil if there is none.
func (t *Table) best(f Frontend) *known {
	var best *known
	for _, l := range t.losers[f] {
		if best == nil || better(f, l, best) {
			best = l
		}
	}
	return best
}

// better tells whether a's claim to a frontend goes before b's: a cluster IP, which the API server allocates, before
// an address that somebody wrote down; then the older Service; then the first by name.
func better(f Frontend, a, b *known) bool {
	return cmp.Or(
		cmp.Compare(b2i(a.rule(f).Kind.External()), b2i(b.rule(f).Kind.External())),
		cmp.Compare(a.meta.Created, b.meta.Created),
		a.meta.Name.Compare(b.meta.Name)) < 0
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// withdraw takes back a claim that lost.
func (t *Table) withdraw(f Frontend, st *known) {
	t.losers[f] = slices.DeleteFunc(t.losers[f], func(x *known) bool { return x == st })
	if len(t.losers[f]) == 0 {
		delete(t.losers, f)
	}
}

// release takes a frontend away from its owner, whose rule for it was old, and gives it to the next best claim.
func (t *Table) release(f Frontend, old *Rule) {
	next := t.best(f)
	if next == nil {
		delete(t.owners, f)
		t.change(f, old, nil)
		return
	}
	t.owners[f] = next
	t.withdraw(f, next)
	t.change(f, old, next.rule(f))
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

// keptPending is how many changes there is room for between Updates; what a full picture took is given back.
const keptPending = 1024

// Done says that the Pending changes are in force.
func (t *Table) Done() {
	if cap(t.pending) > keptPending {
		t.pending, t.index = nil, make(map[Frontend]int)
		return
	}
	clear(t.pending)
	t.pending = t.pending[:0]
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
	if len(t.pending) == len(t.owners) && len(t.losers) == 0 {
		// Most likely the first full picture: in the order in which the rules were made they lie together in memory.
		fresh := !slices.ContainsFunc(t.pending, func(c Change) bool { return c.Old != nil || c.New == nil })
		if fresh {
			for i := range t.pending {
				f(t.pending[i].Frontend, t.pending[i].New)
			}
			return
		}
	}
	for _, st := range t.services {
		for _, e := range st.entries {
			if t.owners[e.frontend] == st {
				f(e.frontend, e.rule)
			}
		}
	}
}

// Service is the Service of a name as it is known, nil if there is none. Read only.
func (t *Table) Service(name model.Name) *model.Service {
	if st := t.services[name]; st != nil {
		return st.service
	}
	return nil
}

// Len is how many frontends the node has.
func (t *Table) Len() int { return len(t.owners) }

// Health are the health check node ports and what they answer. Read only.
func (t *Table) Health() map[model.Name]Health { return t.health }

// NoLocal counts the frontends of a family that drop traffic for want of a local endpoint: by internalTrafficPolicy and
// by externalTrafficPolicy.
func (t *Table) NoLocal(f model.Family) (internal, external int) {
	n := t.noLocal.of(f)
	return n[0], n[1]
}

// Node is the node that the table decides for.
func (t *Table) Node() Node { return t.node }
