// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/service"
)

// maxReads is how often a Sync starts again because the ruleset changed while it was read.
const maxReads = 20

// Sync implements service.Forwarder. Tables that are there are taken over as they are; where there are none, new ones
// come into force when they are complete.
func (t *Table) Sync(want service.Rules) (gone []service.Frontend, err error) {
	for range maxReads {
		gone, err = t.sync(want)
		if later := t.await(); err == nil {
			err = later
		}
		if !errors.Is(err, nft.ErrInterrupted) {
			break
		}
	}
	t.adopting = false
	t.batch, t.spare = new(nft.Batch), nil // a single change needs much less
	t.synced = err == nil
	return gone, err
}

func (t *Table) sync(want service.Rules) (gone []service.Frontend, err error) {
	t.synced, t.adopting = false, true
	t.held = make(map[service.Frontend]*held, want.Len())
	t.shared = make(map[labels]*labels)
	t.groups = make(map[service.Frontend]*group)
	t.picks = make(map[pickChain]int)
	t.codes = newCodes()
	t.ips, t.local = make(map[netip.Addr]int, want.Len()), make(map[netip.Addr]int)
	t.unused = t.unused[:0]
	t.batch.Reset()
	t.commits = 0
	start, err := t.conn.Generation()
	if err != nil {
		return nil, err
	}

	var contents [2]contents
	for i, f := range []*family{t.v4, t.v6} {
		if contents[i], err = t.read(f); err != nil {
			return nil, err
		}
	}
	for i, f := range []*family{t.v4, t.v6} {
		if err := t.own(f, &contents[i]); err != nil {
			return nil, fmt.Errorf("table %s: %w", f.table, err)
		}
	}
	for _, h := range t.held {
		t.share(h)
	}
	for i, f := range []*family{t.v4, t.v6} {
		if !contents[i].there {
			if err := t.create(f, contents[i].foreign, want.Len()); err != nil {
				return nil, fmt.Errorf("table %s: %w", f.table, err)
			}
		}
		if err := t.skeleton(f, &contents[i]); err != nil {
			return nil, fmt.Errorf("table %s: %w", f.table, err)
		}
	}
	partial, _ := want.(service.Partial)
	if gone, err = t.applyAll(want, partial, &contents); err != nil {
		return nil, err
	}
	for i, f := range []*family{t.v4, t.v6} {
		if err := t.counted(f, &contents[i], partial != nil); err != nil {
			return nil, err
		}
		if err := t.inherit(f, &contents[i]); err != nil {
			return nil, err
		}
	}
	alone, err := t.listen(start)
	if err != nil {
		return nil, err
	}
	for i, f := range []*family{t.v4, t.v6} {
		t.finish(f, &contents[i])
	}
	if err := t.flush(true); err != nil {
		return nil, err
	}
	if err := t.setAliases(); err != nil {
		return nil, err
	}
	if !alone {
		return nil, nft.ErrInterrupted
	}
	return gone, nil
}

// applyAll changes what there is, Service by Service, into what is wanted, and tells which frontends are gone. Of a Partial
// those stay that it says nothing of.
func (t *Table) applyAll(want service.Rules, partial service.Partial, have *[2]contents) (gone []service.Frontend, err error) {
	var wanted map[service.Frontend]bool
	if len(t.held) > 0 {
		wanted = make(map[service.Frontend]bool, len(t.held))
		want.All(func(fe service.Frontend, _ *service.Rule) { wanted[fe] = true })
	}
	// What a Service no longer has goes in the transaction that changes the rest of it.
	goneOf := make(map[string][]service.Frontend)
	for fe := range t.held {
		if !wanted[fe] && (partial == nil || !partial.Keeps(fe)) {
			gone = append(gone, fe)
			name := ownerOf(have[0].comments, have[1].comments, fe)
			goneOf[name] = append(goneOf[name], fe)
		}
	}
	var group []service.Change
	apply := func(owner string) {
		for _, fe := range goneOf[owner] {
			group = append(group, service.Change{Frontend: fe})
		}
		delete(goneOf, owner)
		if err == nil && len(group) > 0 {
			err = t.applyService(group)
		}
		group = group[:0]
	}
	want.All(func(fe service.Frontend, r *service.Rule) {
		if len(group) > 0 && group[0].New.Service != r.Service {
			apply(group[0].New.Service.String())
		}
		group = append(group, service.Change{Frontend: fe, New: r})
	})
	if len(group) > 0 {
		apply(group[0].New.Service.String())
	}
	for owner := range goneOf {
		apply(owner)
	}
	return gone, err
}

// listen has what others do to the tables be noticed from here on, and tells whether nobody did anything to any table
// since the generation start. New tables are filled before anybody listens, which is why that has to be asked.
func (t *Table) listen(start uint32) (alone bool, err error) {
	if t.monitor.Joined() {
		return true, nil
	}
	if err := t.flush(true); err != nil {
		return false, err
	}
	if err := t.monitor.Join(); err != nil {
		return false, err
	}
	now, err := t.conn.Generation()
	return now == start+t.commits, err
}

// ownerOf is the Service that a frontend's comment names: "namespace/name:port".
func ownerOf(v4, v6 map[service.Frontend]string, fe service.Frontend) string {
	text := v4[fe]
	if text == "" {
		text = v6[fe]
	}
	name, _, _ := strings.Cut(text, ":")
	return name
}

// contents is what a family's table has besides what is kept in held.
type contents struct {
	twice    bool // an element was read twice
	there    bool // the table is one that can be taken over
	foreign  bool // there is a table of this name with another layout
	obsolete []nft.Table
	owners   []uint32              // of tables of any layout
	orphan   bool                  // the table had an owner, and has none
	rules    map[string][]nft.Rule // of each chain
	chains   []string
	comments map[service.Frontend]string
	ips      map[netip.Addr]bool
	local    map[netip.Addr]bool
	strays   []stray // elements that belong to nothing
}

type stray struct {
	set *nft.Set
	key []byte
}

// ours tells a table of any layout of weft's from those of others.
func ours(name string) bool {
	return name == firstName || strings.HasPrefix(name, firstName+"-")
}

// read takes what the kernel holds into held.
func (t *Table) read(f *family) (contents, error) {
	c := contents{comments: make(map[service.Frontend]string), ips: make(map[netip.Addr]bool), local: make(map[netip.Addr]bool)}
	tables, err := t.conn.TableInfos(f.table.Family)
	if err != nil {
		return c, err
	}
	for _, n := range tables {
		if !ours(n.Name) {
			continue
		}
		if n.Owner != 0 {
			c.owners = append(c.owners, n.Owner)
		}
		if n.Name == TableName {
			c.there, c.orphan = true, n.Ownable && n.Owner == 0
		} else {
			c.obsolete = append(c.obsolete, nft.Table{Family: f.table.Family, Name: n.Name})
		}
	}
	if !c.there {
		return c, nil
	}
	// What somebody does to it while it is read must be noticed.
	if err := t.monitor.Join(); err != nil {
		return c, err
	}
	sets, err := t.conn.Sets(f.table)
	if err != nil {
		return c, err
	}
	for _, s := range f.sets() {
		if !slices.ContainsFunc(sets, func(i nft.SetInfo) bool { return i.Is(s) }) {
			c.there, c.foreign = false, true
			return c, nil
		}
	}
	if c.chains, err = t.conn.Chains(f.table); err != nil {
		return c, err
	}
	if c.rules, err = t.conn.ChainRules(f.table); err != nil {
		return c, err
	}
	if err := t.readElements(f, &c); err != nil {
		return c, err
	}
	if c.twice {
		// The kernel reordered a map between two parts of its answer, as it does some time after the map has grown.
		// For each element that came twice another did not come.
		return c, nft.ErrInterrupted
	}
	return c, nil
}

// own becomes the owner of a table that is there and has none any more, or tells that another process may not be
// disturbed.
func (t *Table) own(f *family, c *contents) error {
	for _, port := range c.owners {
		if port != t.conn.Port() {
			return fmt.Errorf("another process owns it (netlink port %d), such as an older agent of this node: it has to end first: %w", port, unix.EPERM)
		}
	}
	if !t.owns || !c.there || !c.orphan {
		return nil
	}
	t.batch.OwnTable(f.table, tableComment)
	return t.flush(true)
}

func (t *Table) readElements(f *family, c *contents) error {
	// What labels mean comes first.
	for _, m := range []*nft.Set{f.dispatch, f.nodePortDispatch} {
		err := t.conn.Elements(m, func(e nft.Elem) {
			t.codes.learn(strings.TrimPrefix(e.To.Chain, nodePortPrefix), e.Key)
		})
		if err != nil {
			return err
		}
	}
	// Then the labels: they say which span of slots is in use, and in which map.
	for _, m := range []struct {
		set   *nft.Set
		label func(*held) *string
	}{
		{f.services, func(h *held) *string { return &h.services }},
		{f.admitted, func(h *held) *string { return &h.admitted }},
		{f.outside, func(h *held) *string { return &h.outside }},
		{f.inside, func(h *held) *string { return &h.inside }},
	} {
		err := t.conn.Elements(m.set, func(e nft.Elem) {
			fe, _, ok := f.parseKey(e.Key)
			if !ok {
				return
			}
			label, ok := t.codes.label(e.Data)
			if !ok {
				label = labelUnknown
			}
			h := t.heldOf(fe)
			c.twice = c.twice || *m.label(h) != ""
			*m.label(h) = label
			if e.Comment != "" {
				c.comments[fe] = e.Comment
			}
			if p, ok := parsePick(label); ok {
				t.picks[pickChain{p, fe.Family(), fe.NodePort()}]++
				pool := &h.main
				if p.inside() {
					pool = &h.within
				}
				pool.span, pool.kind = p.span, p.kind()
			}
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(t.readGroups(f, c), t.readMembers(f, c), t.readSlots(f, c), t.readSources(f), t.readCounted(f, c))
}

func (t *Table) heldOf(fe service.Frontend) *held {
	h := t.held[fe]
	if h == nil {
		fresh := newHeld()
		h = &fresh
		t.held[fe] = h
	}
	return h
}

// readMembers reads the endpoints that affinity may stay with, and their numbers, by which readSlots knows them. What
// does not go with the rest of its group is a stray.
func (t *Table) readMembers(f *family, c *contents) error {
	endpoints := make(map[*group]map[uint16]netip.AddrPort)
	for _, m := range []struct {
		set  *nft.Set
		pool func(*held) *slotted
	}{
		{f.stay, func(h *held) *slotted { return &h.main }},
		{f.stayInside, func(h *held) *slotted { return &h.within }},
	} {
		seen := make(map[*slotted]bool)
		err := t.conn.Elements(m.set, func(e nft.Elem) {
			fe, rest, ok := f.parseKey(e.Key)
			ep, ok2 := f.parseEndpoint(e.Data)
			n, ok3 := codeOf(rest)
			if !ok || !ok2 {
				return
			}
			h := t.heldOf(fe)
			s := m.pool(h)
			if c.twice = c.twice || slices.Contains(s.members, ep); c.twice {
				return
			}
			if !ok3 || !h.group.learn(ep, n, endpoints) {
				c.strays = append(c.strays, stray{m.set, slices.Clone(e.Key)})
				return
			}
			s.members = append(s.members, ep)
			seen[s] = true
		})
		if err != nil {
			return err
		}
		for s := range seen {
			slices.SortFunc(s.members, netip.AddrPort.Compare)
		}
	}
	return nil
}

// readSlots reads the maps of slots. A pool has its slots in one of them; what is in another is a stray.
func (t *Table) readSlots(f *family, c *contents) error {
	for _, kind := range []slotKind{rows, mixed, sticky} {
		set := f.slots(kind)
		endpoints := make(map[*held]map[uint16]netip.AddrPort)
		err := t.conn.Elements(set, func(e nft.Elem) {
			fe, rest, ok := f.parseKey(e.Key)
			if !ok || len(rest) < 4 {
				return
			}
			h := t.heldOf(fe)
			var eps [4]netip.AddrPort
			switch kind {
			case rows:
				eps, ok = f.parseRow(e.Data)
			case mixed:
				eps[0], ok = f.parseEndpoint(e.Data)
			case sticky:
				if endpoints[h] == nil {
					endpoints[h] = make(map[uint16]netip.AddrPort, len(h.main.members)+len(h.within.members))
					for _, ep := range slices.Concat(h.main.members, h.within.members) {
						endpoints[h][h.group.of(ep)] = ep
					}
				}
				n, _ := codeOf(e.Data)
				eps[0], ok = endpoints[h][n]
			}
			n := binary.NativeEndian.Uint32(rest)
			s, slot, step := &h.main, int(span(n)&slotsOf), f.step(kind)
			if span(n)&insideBit != 0 {
				s = &h.within
			}
			if !ok || s.span != span(n)&^slotsOf || s.kind != kind || slot >= 1<<16 || slot%step != 0 {
				c.strays = append(c.strays, stray{set, slices.Clone(e.Key)})
				return
			}
			for i, ep := range eps[:step] {
				if !ep.IsValid() {
					continue
				}
				for len(s.slots) <= slot+i {
					s.slots = append(s.slots, netip.AddrPort{})
				}
				c.twice = c.twice || s.slots[slot+i].IsValid()
				s.slots[slot+i] = ep
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) readSources(f *family) error {
	err := t.conn.Elements(f.sources, func(e nft.Elem) { // a set of ranges, which is never reordered
		fe, first, ok := f.parseKey(e.Key)
		_, last, ok2 := f.parseKey(e.KeyEnd)
		a, ok3 := netip.AddrFromSlice(first)
		if ok && ok2 && ok3 {
			h := t.heldOf(fe)
			h.sources = append(h.sources, netip.PrefixFrom(a, commonBits(first, last)))
		}
	})
	for _, h := range t.held {
		slices.SortFunc(h.sources, comparePrefixes)
	}
	return err
}

// commonBits is how many leading bits two addresses share.
func commonBits(a, b []byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 8 * len(a)
}

func (t *Table) readCounted(f *family, c *contents) error {
	n := f.bits / 8
	read := func(s *nft.Set, into map[netip.Addr]bool) error {
		return t.conn.Elements(s, func(e nft.Elem) {
			if len(e.Key) >= n {
				a, _ := netip.AddrFromSlice(e.Key[:n])
				c.twice = c.twice || into[a]
				into[a] = true
			}
		})
	}
	return errors.Join(read(f.clusterIPs, c.ips), read(f.hairpin, c.local))
}

const (
	tableComment = "Kubernetes Services, by weft"

	// leastBuckets is how many elements a set is made for at least.
	leastBuckets = 1 << 13

	// unlimited is a Size that no set reaches.
	unlimited = 1 << 30
)

// create makes the table with its sets. Those of keys are made for a number of elements, for the kernel adds to such
// ones a third faster, and does not reorder them, than to those that it enlarges step by step. When they are there,
// that number ceases to be a limit. A kernel that can't do this gets the other ones.
func (t *Table) create(f *family, discard bool, frontends int) error {
	add := func(size func(*nft.Set) uint32) error {
		if t.owns {
			t.batch.OwnTable(f.table, tableComment)
		} else {
			t.batch.AddTable(f.table, tableComment)
		}
		for _, s := range f.sets() {
			sized := *s
			if s.Flags == 0 {
				sized.Size = size(s)
			}
			t.batch.AddSet(&sized)
		}
		return t.flush(true)
	}
	if discard {
		t.batch.DiscardTable(f.table)
	}
	err := add(func(s *nft.Set) uint32 {
		switch s {
		case f.services, f.rows, f.clusterIPs:
			return uint32(max(leastBuckets, 2*frontends))
		case f.admitted, f.outside, f.inside, f.endpoints, f.ids, f.stay, f.stayInside, f.hairpin:
			return leastBuckets
		}
		return 0
	})
	if err != nil {
		return err
	}
	if err := add(func(*nft.Set) uint32 { return t.resized }); err != nil {
		return err
	}
	sets, err := t.conn.Sets(f.table)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(sets, func(i nft.SetInfo) bool { return i.Name == f.rows.Name && i.Size < unlimited }) {
		return nil
	}
	t.batch.DiscardTable(f.table)
	return add(func(*nft.Set) uint32 { return 0 })
}

// skeleton writes all that does not belong to a Service: the chains with their rules, what labels lead to, the
// ranges of the Scope. In a table that is taken over this replaces the same with the same, in one transaction; in
// a new one the base chains are left for finish.
func (t *Table) skeleton(f *family, c *contents) error {
	for _, s := range c.strays {
		t.batch.Delete(s.set, s.key)
		if err := t.flush(false); err != nil {
			return err
		}
	}
	if c.there {
		t.keepPicks(f, c.chains)
	}
	known := make(map[string]bool)
	picks := make([]pickChain, 0, len(t.picks))
	for p := range t.picks {
		if t.familyOf(p.family) == f {
			picks = append(picks, p)
		}
	}
	for _, p := range picks {
		ch, _, _ := f.pickTargets(p)
		known[ch.Name] = true
		t.ensureChain(f, c, chain{name: ch.Name, rules: f.pickRules(p.pick, p.nodePort)})
		if err := t.flush(false); err != nil {
			return err
		}
	}
	// Everything from here on belongs together.
	if err := t.flush(true); err != nil {
		return err
	}
	for _, ch := range f.chains(&t.cfg) {
		known[ch.name] = true
		if ch.hook == nil || slices.Contains(c.chains, ch.name) {
			t.ensureChain(f, c, ch)
		}
	}
	for m, nodePort := range map[*nft.Set]bool{f.slot: false, f.nodePortSlot: true} {
		t.batch.FlushSet(m)
		for i := range f.perRow() {
			t.batch.AddVerdict(m, native32(uint32(i)), nft.Goto(slotChain(i, nodePort)), "")
		}
	}
	for _, m := range []*nft.Set{f.dispatch, f.admit, f.picks, f.nodePortDispatch, f.nodePortPicks} {
		t.batch.FlushSet(m)
		t.batch.AddVerdict(m, t.code(labelReject), nft.Goto(labelReject), "")
		t.batch.AddVerdict(m, t.code(labelDrop), nft.Drop, "")
	}
	for _, l := range []string{labelExternal, labelExternalLocal} {
		t.batch.AddVerdict(f.dispatch, t.code(l), nft.Goto(l), "")
		t.batch.AddVerdict(f.admit, t.code(l), nft.Goto(l), "")
		t.batch.AddVerdict(f.nodePortDispatch, t.code(l), nft.Goto(nodePortPrefix+l), "")
	}
	t.batch.AddVerdict(f.dispatch, t.code(labelRestricted), nft.Goto(labelRestricted), "")
	for _, p := range picks {
		ch, dispatch, targets := f.pickTargets(p)
		t.batch.AddVerdict(dispatch, t.code(p.label()), nft.Goto(ch.Name), "")
		t.batch.AddVerdict(targets, t.code(p.label()), nft.Goto(ch.Name), "")
	}
	for _, r := range []struct {
		set    *nft.Set
		ranges []netip.Prefix
	}{
		{f.pods, ofFamily(t.cfg.Pods, f)},
		{f.serviceRanges, ofFamily(t.cfg.ClusterIPs, f)},
		{f.nodePortRanges, f.withNodePorts(&t.cfg)},
	} {
		t.batch.FlushSet(r.set)
		for _, p := range r.ranges {
			first, last := bounds(p)
			t.batch.AddRange(r.set, first, last, "")
		}
	}
	for _, name := range c.chains {
		if !known[name] {
			t.batch.DeleteChain(nft.Chain{Table: f.table, Name: name})
		}
	}
	return t.flush(true)
}

// ensureChain writes a chain unless it is there as it should be: rules that look into a map make the kernel go through
// all of the map.
func (t *Table) ensureChain(f *family, c *contents, ch chain) {
	have, same := c.rules[ch.name], slices.Contains(c.chains, ch.name)
	same = same && len(have) == len(ch.rules)
	for i := 0; same && i < len(have); i++ {
		same = have[i].Is(f.table.Family, ch.rules[i].exprs)
	}
	if !same {
		t.rewritten++
		t.writeChain(f, ch)
	}
}

// keepPicks keeps the picks that are there though no label leads to them.
func (t *Table) keepPicks(f *family, chains []string) {
	for _, name := range chains {
		label, nodePort := strings.CutPrefix(name, nodePortPrefix)
		if p, ok := parsePick(label); ok {
			t.keepPick(pickChain{pick: p, family: f.name(), nodePort: nodePort})
		}
	}
}

func (t *Table) keepPick(c pickChain) {
	if _, there := t.picks[c]; !there {
		t.picks[c] = 0
		t.unused = append(t.unused, c)
	}
}

func (t *Table) writeChain(f *family, ch chain) {
	target := nft.Chain{Table: f.table, Name: ch.name, Hook: ch.hook}
	t.batch.AddChain(target)
	t.batch.FlushChain(target)
	for _, r := range ch.rules {
		t.batch.AddRule(target, r.text, r.exprs...)
	}
}

// counted sets right the sets that several frontends share. Where some frontends were left open, what these sets have is
// not counted, and stays.
func (t *Table) counted(f *family, c *contents, open bool) error {
	for _, s := range []struct {
		set  *nft.Set
		is   map[netip.Addr]bool
		want map[netip.Addr]int
		key  func(netip.Addr) []byte
	}{
		{f.clusterIPs, c.ips, t.ips, func(a netip.Addr) []byte { return appendAddr(nil, a) }},
		{f.hairpin, c.local, t.local, func(a netip.Addr) []byte { return appendAddr(appendAddr(nil, a), a) }},
	} {
		for a := range s.is {
			if s.want[a] == 0 && !open {
				t.batch.Delete(s.set, s.key(a))
			}
			if err := t.flush(false); err != nil {
				return err
			}
		}
		for a := range s.want {
			if !s.is[a] && a.BitLen() == f.bits {
				t.batch.Add(s.set, s.key(a), nil, "")
			}
			if err := t.flush(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish gives a table the base chains that it lacks: all of them, if it is new, or if an agent that made it never came to
// this point. With them it comes into force, in the same transaction in which any older layout goes.
func (t *Table) finish(f *family, c *contents) {
	for _, ch := range f.chains(&t.cfg) {
		if ch.hook != nil && !slices.Contains(c.chains, ch.name) {
			t.writeChain(f, ch)
		}
	}
	for _, old := range c.obsolete {
		t.batch.DeleteTable(old)
	}
}

// disjoint sorts prefixes and leaves out those within others, which the kernel's sets of ranges do not take.
func disjoint(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, comparePrefixes)
	kept := ps[:0]
	for _, p := range ps {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
