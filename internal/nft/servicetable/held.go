// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/service"
)

// held is what the kernel holds for a frontend. There is one for each: what most have not, and what many have in common,
// they share.
type held struct {
	*labels
	*extras
	main      slotted
	clusterIP bool
}

// labels are where a frontend's traffic goes, in each of the maps; "" is no element.
type labels struct {
	services, admitted, outside, inside string
}

// extras are what few frontends have.
type extras struct {
	within slotted // of the inside

	group *group // nil without affinity

	sources []netip.Prefix
	local   []netip.Addr // counted in Table.local
}

// none is what is held for a frontend that the kernel does not have. It is shared, and read only.
var none = held{labels: &labels{}, extras: &extras{within: slotted{span: insideBit}}}

// newHeld is none, to be filled.
func newHeld() held {
	return held{labels: &labels{}, extras: &extras{within: slotted{span: insideBit}}}
}

// share has h use what others have as well.
func (t *Table) share(h *held) {
	if l, ok := t.shared[*h.labels]; ok {
		h.labels = l
	} else {
		t.shared[*h.labels] = h.labels
	}
	if x := h.extras; x.within.span == insideBit && x.within.kind == rows && len(x.within.slots) == 0 && x.group == nil &&
		len(x.sources) == 0 && len(x.local) == 0 {
		h.extras = none.extras
	}
}

// slotted is the endpoints of a pool, each at the index of its slot. Slots that a dump did not have are invalid.
type slotted struct {
	span    span
	kind    slotKind
	slots   []netip.AddrPort
	members []netip.AddrPort // where affinity may stay; sorted; only if sticky
}

// slotKind is how slots are kept.
type slotKind uint8

const (
	rows   slotKind = iota // several in one element: all have the same port
	mixed                  // one in each, with its port
	sticky                 // one in each: the number that affinity knows the endpoint by
)

// kindOf is how the slots of sorted endpoints are to be kept.
func kindOf(endpoints []netip.AddrPort, seconds int) slotKind {
	if seconds > 0 {
		return sticky
	}
	for _, ep := range endpoints {
		if ep.Port() != endpoints[0].Port() {
			return mixed
		}
	}
	return rows
}

// wanted is what the kernel should hold for a rule; its pools are in the order of the rule, not of slots.
func wanted(r *service.Rule, main, within span) held {
	h := newHeld()
	seconds := int((r.Affinity + time.Second - 1) / time.Second)
	if len(r.Main.Endpoints) > service.MaxAffinity || r.Inside != nil && len(r.Inside.Endpoints) > service.MaxAffinity {
		seconds = 0
	}
	label := func(p service.Pool, s slotted) string {
		switch p.Action {
		case service.Forward:
			return pick{n: len(p.Endpoints), span: s.span, affinity: seconds, mixed: s.kind == mixed}.label()
		case service.Reject:
			return labelReject
		}
		return labelDrop
	}
	h.main = slotted{span: main, slots: r.Main.Endpoints, kind: kindOf(r.Main.Endpoints, seconds)}
	h.within = slotted{span: within}
	h.services = label(r.Main, h.main)
	if r.Inside != nil {
		h.within = slotted{span: within, slots: r.Inside.Endpoints, kind: kindOf(r.Inside.Endpoints, seconds)}
		h.inside, h.outside, h.services = label(*r.Inside, h.within), h.services, labelExternalLocal
	} else if r.Masquerade && r.Main.Action == service.Forward {
		h.outside, h.services = h.services, labelExternal
	}
	if r.Restricted {
		h.services, h.admitted, h.sources = labelRestricted, h.services, r.Sources
	}
	h.clusterIP = r.Kind == service.ClusterIP
	h.local = localAddrs(r)
	return h
}

// localAddrs are the addresses of the rule's endpoints on this node that may get traffic, without duplicates.
func localAddrs(r *service.Rule) []netip.Addr {
	var out []netip.Addr
	for _, b := range r.Backends { // where they are nil, none is local
		if b.Local && (len(out) == 0 || out[len(out)-1] != b.Addr()) {
			out = append(out, b.Addr())
		}
	}
	return out
}

func (t *Table) family(fe service.Frontend) *family { return t.familyOf(fe.Family()) }

func (f *family) name() model.Family {
	if f.bits == 128 {
		return model.IPv6
	}
	return model.IPv4
}

func (t *Table) familyOf(f model.Family) *family {
	if f == model.IPv6 {
		return t.v6
	}
	return t.v4
}

// plan is the way of one frontend from what is held to what is wanted.
type plan struct {
	fe        service.Frontend
	rule      *service.Rule
	f         *family
	old, next held
}

func (t *Table) plan(c service.Change) plan {
	p := plan{fe: c.Frontend, rule: c.New, f: t.family(c.Frontend), old: none, next: none}
	if h := t.held[c.Frontend]; h != nil {
		p.old = *h
	}
	if p.rule != nil {
		p.next = wanted(p.rule, p.old.main.span, p.old.within.span)
		p.next.main.slots = reslot(p.old.main.slots, p.next.main.slots)
		p.next.within.slots = reslot(p.old.within.slots, p.next.within.slots)
		p.next.main.keep(p.rule.Main.Endpoints)
		if p.rule.Inside != nil {
			p.next.within.keep(p.rule.Inside.Endpoints)
		}
		if p.next.main.kind == sticky {
			p.next.group = t.join(p.fe, p.rule)
			p.next.group.number(p.next.main.members)
			p.next.group.number(p.next.within.members)
		}
	}
	return p
}

// keep makes sorted endpoints the members, if the pool has affinity.
func (s *slotted) keep(sorted []netip.AddrPort) {
	if s.kind == sticky {
		s.members = sorted
	}
}

// Upper bounds of what parts of a transaction take, in bytes.
const (
	elementBytes  = 112
	frontendBytes = 4 * 256 // the labels, one with a comment
	pickBytes     = 4096
)

// size is an upper bound of what the plan adds to the transaction if it is carried out in place.
func (p *plan) size() int {
	n := frontendBytes + elementBytes*2*(1+len(p.old.sources)+len(p.next.sources)+len(p.old.local)+len(p.next.local))
	if p.old.services != p.next.services || p.old.outside != p.next.outside || p.old.inside != p.next.inside || p.old.admitted != p.next.admitted {
		n += 4 * pickBytes
	}
	for _, s := range [][2]slotted{{p.old.main, p.next.main}, {p.old.within, p.next.within}} {
		p.eachSlot(s[0], s[1], func(_ int, remove, add bool) {
			n += elementBytes * (b2i(remove) + b2i(add))
		})
		if s[0].kind == sticky || s[1].kind == sticky {
			n += elementBytes * (len(s[0].members) + len(s[1].members))
		}
	}
	return n
}

// applyService brings the changes of one Service into force at the same moment. They are put in place in one
// transaction if they fit. If not, the new endpoints are first written to the spare slots, where nothing leads yet,
// in as many transactions as it takes; then one transaction changes the labels; then the old slots are cleared.
func (t *Table) applyService(changes []service.Change) error {
	size := 0
	t.plans = t.plans[:0]
	for _, c := range changes {
		p := t.plan(c)
		size += p.size()
		t.plans = append(t.plans, p)
	}
	defer func() {
		for i := range t.plans {
			t.leave(&t.plans[i].old)
		}
	}()
	if size <= t.limit/2 {
		for i := range t.plans {
			p := &t.plans[i]
			t.replace(p, p.old.main, p.next.main)
			t.replace(p, p.old.within, p.next.within)
			if err := t.setMembers(p, true, true); err != nil {
				return err
			}
			t.switchTo(p)
		}
		return t.flush(false)
	}
	for i := range t.plans {
		if err := t.prepare(&t.plans[i]); err != nil {
			return err
		}
	}
	for i := range t.plans {
		t.switchTo(&t.plans[i])
	}
	if err := t.flush(true); err != nil {
		return err
	}
	for i := range t.plans {
		if err := t.cleanUp(&t.plans[i]); err != nil {
			return err
		}
	}
	return nil
}

// prepare writes the plan's endpoints to spare slots and redirects the plan there.
func (t *Table) prepare(p *plan) error {
	if p.rule == nil {
		return nil
	}
	was := p.next
	p.next = wanted(p.rule, p.old.main.span^spareBit, p.old.within.span^spareBit)
	p.next.main.members, p.next.within.members, p.next.group = was.main.members, was.within.members, was.group
	for _, s := range []slotted{p.next.main, p.next.within} {
		for i := 0; i < len(s.slots); i += p.f.step(s.kind) {
			t.addSlots(p, s, i)
			if err := t.flush(false); err != nil {
				return err
			}
		}
	}
	if err := t.setMembers(p, true, false); err != nil {
		return err
	}
	return t.flush(true)
}

// cleanUp deletes what prepare's new places have replaced.
func (t *Table) cleanUp(p *plan) error {
	for _, s := range []slotted{p.old.main, p.old.within} {
		for i := 0; i < len(s.slots); i += p.f.step(s.kind) {
			if anyValid(s.from(i, p.f)) {
				t.batch.Delete(p.f.slots(s.kind), t.slotKey(p.fe, s.span, i))
				if err := t.flush(false); err != nil {
					return err
				}
			}
		}
	}
	if err := t.setMembers(p, false, true); err != nil {
		return err
	}
	return t.flush(false)
}

// switchTo writes all of a plan but its slots and members: with the labels, its traffic changes over.
func (t *Table) switchTo(p *plan) {
	text := ""
	if p.rule != nil && p.old.services != p.next.services {
		text = comment(p.rule)
	}
	t.setSources(p.f, p.fe, p.old.sources, p.next.sources)
	t.setGroup(p)
	t.label(p.f, p.fe, p.f.services, p.old.services, p.next.services, text)
	t.label(p.f, p.fe, p.f.admitted, p.old.admitted, p.next.admitted, "")
	t.label(p.f, p.fe, p.f.outside, p.old.outside, p.next.outside, "")
	t.label(p.f, p.fe, p.f.inside, p.old.inside, p.next.inside, "")
	t.countClusterIP(p.f, p.fe.Addr, b2i(p.next.clusterIP)-b2i(p.old.clusterIP))
	for _, a := range p.next.local {
		t.countLocal(p.f, a, 1)
	}
	for _, a := range p.old.local {
		t.countLocal(p.f, a, -1)
	}
	if p.rule == nil {
		delete(t.held, p.fe)
		return
	}
	next := p.next
	t.share(&next)
	t.held[p.fe] = &next
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// label replaces the label of a frontend in one of the maps, with the chains that it leads to.
func (t *Table) label(f *family, fe service.Frontend, m *nft.Set, old, next, text string) {
	if old == next {
		return
	}
	t.key = appendKey(t.key[:0], fe)
	if next != "" {
		t.usePick(f, fe, next)
	}
	if old != "" {
		t.batch.Delete(m, t.key)
		t.freePick(f, fe, old)
	}
	if next != "" {
		t.data = append(t.data[:0], t.code(next)...)
		t.batch.Add(m, t.key, t.data, text)
	}
}

// usePick makes sure of the chain that a label leads to.
func (t *Table) usePick(f *family, fe service.Frontend, label string) {
	p, ok := parsePick(label)
	if !ok {
		return
	}
	c := pickChain{p, fe.Family(), fe.NodePort()}
	n, there := t.picks[c]
	t.picks[c] = n + 1
	if !there {
		t.addPick(f, c)
	}
}

func (t *Table) addPick(f *family, c pickChain) {
	ch, dispatch, picks := f.pickTargets(c)
	t.batch.AddChain(ch)
	t.batch.FlushChain(ch)
	for _, r := range f.pickRules(c.pick, c.nodePort) {
		t.batch.AddRule(ch, r.text, r.exprs...)
	}
	key := t.code(c.label())
	t.batch.AddVerdict(dispatch, key, nft.Goto(ch.Name), "")
	t.batch.AddVerdict(picks, key, nft.Goto(ch.Name), "")
}

func (f *family) pickTargets(c pickChain) (ch nft.Chain, dispatch, picks *nft.Set) {
	ch = nft.Chain{Table: f.table, Name: c.label()}
	if c.nodePort {
		ch.Name = nodePortPrefix + ch.Name
		return ch, f.nodePortDispatch, f.nodePortPicks
	}
	return ch, f.dispatch, f.picks
}

// freePick deletes the chain that a label led to if it was the last one.
func (t *Table) freePick(f *family, fe service.Frontend, label string) {
	p, ok := parsePick(label)
	if !ok {
		return
	}
	c := pickChain{p, fe.Family(), fe.NodePort()}
	if t.picks[c]--; t.picks[c] == 0 {
		t.unused = append(t.unused, c)
	}
}

// keepUnused is how many picks stay that no label leads to: counts of endpoints come back, and to add a pick is dear.
const keepUnused = 48

// dropUnused deletes the picks that nothing has led to for longest, where there are many.
func (t *Table) dropUnused() {
	if len(t.unused) <= keepUnused {
		return
	}
	unused := t.unused[:0]
	for _, c := range t.unused {
		if n, there := t.picks[c]; there && n == 0 && !slices.Contains(unused, c) {
			unused = append(unused, c)
		}
	}
	for len(unused) > keepUnused {
		t.dropPick(unused[0])
		unused = unused[1:]
	}
	t.unused = unused
}

func (t *Table) dropPick(c pickChain) {
	delete(t.picks, c)
	label := c.label()
	ch, dispatch, picks := t.familyOf(c.family).pickTargets(c)
	key := t.code(label)
	t.batch.Delete(dispatch, key)
	t.batch.Delete(picks, key)
	t.batch.DeleteChain(ch)
	if !t.used(label) {
		t.codes.forget(label)
	}
}

// used tells whether there is a pick of that label in either family, for addresses or node ports.
func (t *Table) used(label string) bool {
	p, _ := parsePick(label)
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		for _, np := range []bool{false, true} {
			if _, there := t.picks[pickChain{p, f, np}]; there {
				return true
			}
		}
	}
	return false
}

// replace turns the slots of a pool into others of the same span.
func (t *Table) replace(p *plan, old, next slotted) {
	p.eachSlot(old, next, func(i int, remove, add bool) {
		if remove {
			t.batch.Delete(p.f.slots(old.kind), t.slotKey(p.fe, old.span, i))
		}
		if add {
			t.addSlots(p, next, i)
		}
	})
}

// eachSlot calls f for the first slot of each element that must change if the slots of a pool are to become others of
// the same span: whether the old element must go, and whether a new one comes.
func (p *plan) eachSlot(old, next slotted, f func(i int, remove, add bool)) {
	if old.kind != next.kind {
		p.eachSlot(old, slotted{kind: old.kind}, f)
		old = slotted{kind: next.kind}
	}
	step := p.f.step(next.kind)
	for i := 0; i < max(len(old.slots), len(next.slots)); i += step {
		was, is := old.from(i, p.f), next.from(i, p.f)
		if slices.Equal(was, is) && (next.kind != sticky || p.old.group.of(was[0]) == p.next.group.of(is[0])) {
			continue
		}
		f(i, anyValid(was), len(is) > 0)
	}
}

// from are the slots in the element of which the first is i.
func (s slotted) from(i int, f *family) []netip.AddrPort {
	return s.slots[min(i, len(s.slots)):min(i+f.step(s.kind), len(s.slots))]
}

func anyValid(eps []netip.AddrPort) bool { return slices.ContainsFunc(eps, netip.AddrPort.IsValid) }

// step is how many slots an element has.
func (f *family) step(k slotKind) int {
	if k == rows {
		return f.perRow()
	}
	return 1
}

// perRow is how many endpoints there are in a row. It is a power of two, and with their port and the key that leads
// there they fit into the registers.
func (f *family) perRow() int {
	if f.bits == 128 {
		return 2
	}
	return 4
}

// slots is the map of slots of a kind.
func (f *family) slots(k slotKind) *nft.Set {
	switch k {
	case sticky:
		return f.ids
	case mixed:
		return f.endpoints
	}
	return f.rows
}

// addSlots adds the element of which the first slot is i.
func (t *Table) addSlots(p *plan, s slotted, i int) {
	switch s.kind {
	case rows:
		t.data = p.f.appendRow(t.data[:0], s.from(i, p.f))
	case mixed:
		t.data = appendEndpoint(t.data[:0], s.slots[i])
	case sticky:
		t.data = binary.NativeEndian.AppendUint32(t.data[:0], uint32(p.next.group.of(s.slots[i])))
	}
	t.batch.Add(p.f.slots(s.kind), t.slotKey(p.fe, s.span, i), t.data, "")
}

// reslot gives each of the endpoints a slot. One that has a slot keeps it, unless there are fewer endpoints than
// that now: so a change writes as little as can be.
func reslot(old, want []netip.AddrPort) []netip.AddrPort {
	if len(old) == 0 || slices.Equal(old, want) {
		return want
	}
	out := make([]netip.AddrPort, len(want))
	// kept marks the wanted that have a slot already. They are sorted: find them by search.
	kept := make([]bool, len(want))
	for i, ep := range old {
		if i >= len(out) {
			break
		}
		if j, ok := slices.BinarySearchFunc(want, ep, netip.AddrPort.Compare); ok && !kept[j] {
			out[i], kept[j] = ep, true
		}
	}
	j := 0
	for i := range out {
		if out[i].IsValid() {
			continue
		}
		for kept[j] {
			j++
		}
		out[i] = want[j]
		j++
	}
	return out
}

func (t *Table) slotKey(fe service.Frontend, s span, slot int) []byte {
	t.key = binary.NativeEndian.AppendUint32(appendKey(t.key[:0], fe), uint32(s)+uint32(slot))
	return t.key
}

func (t *Table) endpoint(ep netip.AddrPort) []byte {
	t.data = appendEndpoint(t.data[:0], ep)
	return t.data
}

// setMembers turns the members of both pools into those of the plan, or does only half of it. It commits when much
// has gathered only if it does half: then no moment in between is wrong.
func (t *Table) setMembers(p *plan, add, remove bool) error {
	for _, m := range []struct {
		set       *nft.Set
		old, next []netip.AddrPort
	}{{p.f.stay, p.old.main.members, p.next.main.members}, {p.f.stayInside, p.old.within.members, p.next.within.members}} {
		old, next := m.old, m.next
		// Of another group the same number may be another endpoint.
		was, is := p.clashes(old, next)
		for len(old) > 0 || len(next) > 0 {
			c := 0
			switch {
			case len(next) == 0:
				c = -1
			case len(old) == 0:
				c = 1
			default:
				c = old[0].Compare(next[0])
			}
			if c == 0 && p.old.group.of(old[0]) == p.next.group.of(next[0]) {
				old, next = old[1:], next[1:]
				continue
			}
			if c <= 0 {
				if n := p.old.group.of(old[0]); remove && (add || !is[n]) {
					t.batch.Delete(m.set, t.numberKey(p.fe, n))
				}
				old = old[1:]
			}
			if c >= 0 {
				if n := p.next.group.of(next[0]); add {
					if !remove && was[n] {
						t.batch.Delete(m.set, t.numberKey(p.fe, n))
					}
					t.batch.Add(m.set, t.numberKey(p.fe, n), t.endpoint(next[0]), "")
				}
				next = next[1:]
			}
			if !add || !remove {
				if err := t.flush(false); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (t *Table) numberKey(fe service.Frontend, n uint16) []byte {
	t.key = binary.NativeEndian.AppendUint32(appendKey(t.key[:0], fe), uint32(n))
	return t.key
}

func (t *Table) setSources(f *family, fe service.Frontend, old, next []netip.Prefix) {
	if slices.Equal(old, next) {
		return
	}
	for _, p := range old {
		first, last := sourceRange(fe, p)
		t.batch.DeleteRange(f.sources, first, last)
	}
	for _, p := range next {
		first, last := sourceRange(fe, p)
		t.batch.AddRange(f.sources, first, last, "")
	}
}

func sourceRange(fe service.Frontend, p netip.Prefix) (first, last []byte) {
	a, b := bounds(p)
	return append(appendKey(nil, fe), a...), append(appendKey(nil, fe), b...)
}

// bounds are the first and last address of a prefix.
func bounds(p netip.Prefix) (first, last []byte) {
	first = p.Masked().Addr().AsSlice()
	last = slices.Clone(first)
	for i := p.Bits(); i < 8*len(last); i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return first, last
}

func (t *Table) countClusterIP(f *family, a netip.Addr, by int) {
	t.count(f.clusterIPs, t.ips, a, by, func() []byte {
		t.key = appendAddr(t.key[:0], a)
		return t.key
	})
}

func (t *Table) countLocal(f *family, a netip.Addr, by int) {
	t.count(f.hairpin, t.local, a, by, func() []byte {
		t.key = appendAddr(appendAddr(t.key[:0], a), a)
		return t.key
	})
}

func (t *Table) count(s *nft.Set, m map[netip.Addr]int, a netip.Addr, by int, key func() []byte) {
	was := m[a]
	if m[a] = was + by; m[a] == 0 {
		delete(m, a)
	}
	if t.adopting {
		return
	}
	switch {
	case was == 0 && by > 0:
		t.batch.Add(s, key(), nil, "")
	case was > 0 && was+by == 0:
		t.batch.Delete(s, key())
	}
}
