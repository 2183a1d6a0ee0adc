// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/addresses"
)

// segment decides what this node announces on one link. It is a value that time and hellos are given to: it reads no
// clock and sends nothing.
type segment struct {
	self     string
	able     bool                                 // this node forwards what comes to an address
	wanted   map[netip.Addr][]addresses.Candidate // addresses of this link and who may announce them
	peers    map[string]*peer
	mine     map[netip.Addr]*claim
	trials   map[netip.Addr]*trial // addresses that are ours and not claimed yet, or claimed by another too
	standIns map[netip.Addr]string // addresses that a node whose agent is away has, by which this node answers that they are there

	age       time.Duration // of this node's picture of the API
	listening time.Time     // since when
	waiting   time.Time     // since when there is something to announce; zero: there is nothing
	settled   bool          // has listened long enough to claim
	shadowed  time.Time     // until when another link of this node, with a lower index, is the same link
}

// peer is another node, alive.
type peer struct {
	mac         mac
	heard       time.Time
	inOrder     time.Time // when it was last heard settled, in this incarnation or one before
	probed      time.Time // since it fell silent
	answered    time.Time // when its kernel last answered a probe
	away        bool      // its agent is silent, its kernel is not
	spared      time.Time // see spare
	incarnation uint64
	tick        uint64
	settled     bool
	age         time.Duration
	listed      map[netip.Addr]listing
	parts       map[uint8]bool      // of this tick
	kept        map[netip.Addr]bool // what its agent had before it started anew, or what others say that it had; until it has settled
}

// has tells whether the address is the peer's though its agent does not say so now.
func (p *peer) has(a netip.Addr) bool {
	return p.away && p.listed[a].claim || p.kept[a]
}

// had is what the peer announced when it last said so, and had before its agent started anew.
func (p *peer) had() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a, l := range p.listed {
			if l.claim && !yield(a) {
				return
			}
		}
		for a := range p.kept {
			if !p.listed[a].claim && !yield(a) {
				return
			}
		}
	}
}

// ready tells whether the peer may claim addresses.
func (p *peer) ready() bool { return !p.away && p.settled }

// signOfLife is when something last came from the node.
func (p *peer) signOfLife() time.Time {
	if p.away {
		return later(p.heard, p.answered)
	}
	return p.heard
}

// listing is what a peer says of an address: it announces it, or wishes to.
type listing struct {
	tick  uint64 // the last that said so
	claim bool
}

// claim is an address that this node announces.
type claim struct {
	next time.Time // when to announce it to all hosts again
	step int       // of repeats
	from time.Time // that repeats count from
}

// trial is an address on the way to being ours alone.
type trial struct {
	since time.Time // when patience with those who claim it too began; zero: nobody does
	until time.Time // held down until then
	holds int       // how often it was
}

// outcome is what a segment decided.
type outcome struct {
	claimed, released  []netip.Addr
	stoodIn, stoodDown []netip.Addr // began or ceased to stand in for the node that has the address
	hello              bool         // the others should hear of it now
}

func (o *outcome) add(p outcome) {
	o.claimed = append(o.claimed, p.claimed...)
	o.released = append(o.released, p.released...)
	o.stoodIn = append(o.stoodIn, p.stoodIn...)
	o.stoodDown = append(o.stoodDown, p.stoodDown...)
	o.hello = o.hello || p.hello
}

func newSegment(self string, now time.Time) *segment {
	return &segment{
		self: self, able: true, listening: now,
		wanted:   make(map[netip.Addr][]addresses.Candidate),
		peers:    make(map[string]*peer),
		mine:     make(map[netip.Addr]*claim),
		trials:   make(map[netip.Addr]*trial),
		standIns: make(map[netip.Addr]string),
	}
}

// want sets who may announce an address; none takes the address away from the segment.
func (s *segment) want(now time.Time, a netip.Addr, candidates []addresses.Candidate) outcome {
	if len(candidates) == 0 {
		delete(s.wanted, a)
		o := s.decide(now, a)
		delete(s.trials, a)
		if len(s.wanted) == 0 {
			s.waiting, s.settled = time.Time{}, false
		}
		return o
	}
	s.wanted[a] = candidates
	if s.waiting.IsZero() {
		// Until now nobody had a reason to send hellos: whom we have heard says nothing.
		s.waiting = now
		return outcome{hello: true}
	}
	return s.decide(now, a)
}

// hear takes in a hello from another node.
func (s *segment) hear(now time.Time, h *hello, from mac) outcome {
	if h.absent {
		s.hearOf(now, h)
		return outcome{}
	}
	p := s.peers[h.node]
	if p != nil && (h.incarnation < p.incarnation || (h.incarnation == p.incarnation && h.tick < p.tick)) {
		return outcome{} // a packet that was overtaken, or a replay
	}
	if h.unable {
		if p == nil {
			return outcome{}
		}
		delete(s.peers, h.node) // it is as good as dead
		return s.decideAll(now)
	}
	if p == nil || h.incarnation > p.incarnation {
		fresh := &peer{incarnation: h.incarnation, listed: make(map[netip.Addr]listing), parts: make(map[uint8]bool)}
		if p != nil {
			fresh.inOrder, fresh.kept = p.inOrder, make(map[netip.Addr]bool)
			for a := range p.had() {
				fresh.kept[a] = true
			}
		} else {
			// If a split of the link has just healed, hosts on its other side may have heard this one last.
			for a := range s.mine {
				s.repeat(now, a)
			}
		}
		p = fresh
		s.peers[h.node] = p
	}
	news := p.heard.IsZero() || p.settled != h.settled || p.away
	if h.settled {
		p.kept = nil
	}
	if h.settled || p.inOrder.IsZero() {
		p.inOrder = now
	}
	if h.tick != p.tick {
		p.tick = h.tick
		clear(p.parts)
	}
	p.mac, p.heard, p.settled, p.age = from, now, h.settled, h.age
	p.away, p.probed, p.spared = false, time.Time{}, time.Time{}
	p.parts[h.part] = true
	var changed []netip.Addr
	list := func(addrs []netip.Addr, claim bool) {
		for _, a := range addrs {
			if old, ok := p.listed[a]; !ok || old.claim != claim {
				changed = append(changed, a)
			}
			p.listed[a] = listing{h.tick, claim}
		}
	}
	list(h.claims, true)
	list(h.wishes, false)
	if len(p.parts) == int(h.parts) {
		for a, l := range p.listed {
			if l.tick != h.tick {
				delete(p.listed, a)
				changed = append(changed, a)
			}
		}
	}
	if news {
		return s.decideAll(now)
	}
	var o outcome
	for _, a := range changed {
		o.add(s.decide(now, a))
	}
	return o
}

// hearOf takes in what another node tells of one whose agent is away. It is for who has just started: who has settled knows
// the link as well as others do, and whom it took for dead stays dead.
func (s *segment) hearOf(now time.Time, h *hello) {
	p := s.peers[h.node]
	if s.settled || h.node == s.self || p != nil && p.ready() {
		return
	}
	if p == nil {
		p = &peer{incarnation: h.incarnation, tick: h.tick, mac: h.mac, listed: make(map[netip.Addr]listing), parts: make(map[uint8]bool),
			away: true, answered: now, inOrder: now.Add(-h.age)}
		s.peers[h.node] = p
	}
	if p.kept == nil {
		p.kept = make(map[netip.Addr]bool)
	}
	for _, a := range h.claims {
		p.kept[a] = true
	}
}

// absences are what to tell others of the nodes that this one stands in for.
func (s *segment) absences(now time.Time) []hello {
	var out []hello
	for _, a := range sorted(s.standIns) {
		name := s.standIns[a]
		i := slices.IndexFunc(out, func(h hello) bool { return h.node == name })
		if i < 0 {
			p := s.peers[name]
			i = len(out)
			out = append(out, hello{node: name, absent: true, mac: p.mac, incarnation: p.incarnation, tick: p.tick, parts: 1,
				age: (now.Sub(p.inOrder) + time.Second - 1).Truncate(time.Second)})
		}
		out[i].claims = append(out[i].claims, a)
	}
	return out
}

// pass lets time go by: peers die, this node settles, patience ends.
func (s *segment) pass(now time.Time) outcome {
	all := false
	for name, p := range s.peers {
		if p.kept != nil && !now.Before(p.inOrder.Add(awayFor)) {
			p.kept, all = nil, true
		}
		if now.Before(p.ends()) {
			continue
		}
		all = true
		if !p.away && now.Before(p.answered.Add(deadAfter)) {
			p.away = true
		} else {
			delete(s.peers, name)
		}
	}
	settles := s.able && !s.settled && !s.waiting.IsZero() && now.Sub(later(s.listening, s.waiting)) >= settleTime
	if settles {
		s.settled, all = true, true
	}
	if !s.shadowed.IsZero() && !now.Before(s.shadowed) {
		s.shadowed, all = time.Time{}, true
	}
	if all {
		o := s.decideAll(now)
		o.hello = o.hello || settles
		return o
	}
	var o outcome
	for _, a := range sorted(s.trials) {
		o.add(s.decide(now, a))
	}
	return o
}

// ends is when the peer is dead, or its agent away, unless something comes from it before.
func (p *peer) ends() time.Time {
	end := p.signOfLife().Add(deadAfter)
	if limit := p.inOrder.Add(awayFor); p.away && limit.Before(end) {
		end = limit
	}
	return later(end, p.spared)
}

// probes are the silent peers that are to be probed now: has only the agent gone, or the node?
func (s *segment) probes(now time.Time) []string {
	var out []string
	for name, p := range s.peers {
		if at := s.nextProbe(p); !at.IsZero() && !now.Before(at) {
			p.probed = now
			out = append(out, name)
		}
	}
	return out
}

// nextProbe is when to probe the peer if it is silent until then; the zero time if it has nothing that it could keep.
func (s *segment) nextProbe(p *peer) time.Time {
	for a := range p.had() {
		switch {
		case s.wanted[a] == nil:
		case p.probed.IsZero():
			return p.heard.Add(silentAfter)
		default:
			return p.probed.Add(helloEvery)
		}
	}
	return time.Time{}
}

// answer takes in that the kernel of the node at the Ethernet address has answered a probe.
func (s *segment) answer(now time.Time, from mac) {
	for _, p := range s.peers {
		if p.mac == from {
			p.answered = now
		}
	}
}

// shadow says that another link of this node, which goes first, is the same link.
func (s *segment) shadow(now time.Time) outcome {
	was := now.Before(s.shadowed)
	s.shadowed = now.Add(deadAfter)
	if was {
		return outcome{}
	}
	return s.decideAll(now)
}

func (s *segment) decideAll(now time.Time) outcome {
	var o outcome
	for _, a := range sorted(s.wanted) {
		o.add(s.decide(now, a))
	}
	return o
}

// decide claims or releases an address, or stands in for the node that has it.
func (s *segment) decide(now time.Time, a netip.Addr) outcome {
	held := s.mine[a] != nil
	if absent := s.absent(a); absent != "" && !held {
		delete(s.trials, a)
		if !s.ready() || now.Before(s.shadowed) || s.heir(a, absent) != s.self {
			absent = ""
		}
		return s.standIn(a, absent)
	}
	o := s.standIn(a, "")
	o.add(s.dispose(now, a, held))
	return o
}

// dispose claims or releases an address that no node has whose agent is away.
func (s *segment) dispose(now time.Time, a netip.Addr, held bool) outcome {
	if !s.ours(a, held) || now.Before(s.shadowed) {
		delete(s.trials, a)
		return s.release(a)
	}
	rivals, t := s.rivals(a), s.trials[a]
	switch {
	case t != nil && now.Before(t.until):
		return outcome{}
	case len(rivals) == 0:
		if t != nil && held && !t.since.IsZero() {
			s.repeat(now, a) // hosts may have heard the other last
		}
		if t != nil {
			t.since = time.Time{}
			if t.until.IsZero() || now.Sub(t.until) > maxHold {
				delete(s.trials, a)
			}
		}
		return s.claim(now, a)
	case t == nil:
		s.trials[a] = &trial{since: now}
		return outcome{hello: true}
	case t.since.IsZero():
		t.since = now
		return outcome{hello: true}
	case now.Sub(t.since) < patience:
		return outcome{}
	case held && slices.ContainsFunc(rivals, func(r string) bool { return s.yields(a, r) }):
		t.until, t.since = now.Add(min(holdDown<<t.holds, maxHold)), time.Time{}
		t.holds = min(t.holds+1, 8)
		return s.release(a)
	}
	t.since = now
	return s.claim(now, a)
}

// ours tells whether the address is for this node to announce, as far as the living go. Who has it, and may, keeps it
// until the one whose it is to be asks for it: that one may not have settled, or not know yet.
func (s *segment) ours(a netip.Addr, held bool) bool {
	candidates := s.wanted[a]
	mayBe := slices.ContainsFunc(candidates, func(c addresses.Candidate) bool { return c.Node == s.self })
	if !s.ready() {
		return held && mayBe && len(s.rivals(a)) == 0
	}
	owner := addresses.Owner(a, candidates, func(n string) bool { return n == s.self || s.peers[n] != nil && !s.peers[n].away })
	if owner == s.self || owner == "" || !held {
		return owner == s.self
	}
	_, asked := s.peers[owner].listed[a]
	return !asked && mayBe
}

// ready tells whether this node may claim addresses.
func (s *segment) ready() bool { return s.able && s.settled }

// heir is who would have the address if the node that has it were dead, and stands in for it: of those that can now.
func (s *segment) heir(a netip.Addr, absent string) string {
	return addresses.Owner(a, s.wanted[a], func(n string) bool {
		return n == s.self || n != absent && s.peers[n] != nil && s.peers[n].ready()
	})
}

// absent is the node that has the address and may go on having it, though its agent is away or has not settled; "" if
// there is none. Whoever announces it meanwhile has it, and so does a node that serves it better.
func (s *segment) absent(a netip.Addr) string {
	absent, score, best := "", 0, 0
	for _, c := range s.wanted[a] {
		p := s.peers[c.Node]
		switch {
		case p != nil && p.has(a):
			if absent == "" || c.Score > score {
				absent, score = c.Node, c.Score
			}
		case c.Node == s.self && s.ready() || p != nil && p.ready():
			best = max(best, c.Score)
		}
	}
	if absent == "" || best > score || len(s.rivals(a)) > 0 {
		return ""
	}
	return absent
}

// standIn sets for whom this node stands in; "" is nobody.
func (s *segment) standIn(a netip.Addr, absent string) outcome {
	was := s.standIns[a]
	if was == absent {
		return outcome{}
	}
	if absent == "" {
		delete(s.standIns, a)
		return outcome{stoodDown: []netip.Addr{a}}
	}
	s.standIns[a] = absent
	if was != "" {
		return outcome{}
	}
	return outcome{stoodIn: []netip.Addr{a}}
}

// at is where to say that the address is, to whom asks: here, or at the node that this one stands in for.
func (s *segment) at(a netip.Addr, here mac) (mac, bool) {
	if s.mine[a] != nil {
		return here, true
	}
	if p := s.peers[s.standIns[a]]; p != nil {
		return p.mac, true
	}
	return mac{}, false
}

// enable says whether this node forwards what comes to an address. While it does not, it takes no address, and says so,
// so that the others take it for dead; what it has it keeps until another announces it, for nobody else might.
// When it does again, it listens first, as after a start.
func (s *segment) enable(now time.Time, able bool) outcome {
	if s.able == able {
		return outcome{}
	}
	s.able = able
	if able {
		s.listening, s.settled = now, false
	}
	return s.decideAll(now)
}

// rivals are the living nodes that announce the address.
func (s *segment) rivals(a netip.Addr) []string {
	var out []string
	for name, p := range s.peers {
		if p.listed[a].claim && !p.away {
			out = append(out, name)
		}
	}
	return out
}

// wishes are the addresses that this node waits for others to let go of.
func (s *segment) wishes() []netip.Addr {
	var out []netip.Addr
	for _, a := range sorted(s.trials) {
		if s.mine[a] == nil && !s.trials[a].since.IsZero() {
			out = append(out, a)
		}
	}
	return out
}

// spare grants peers that would be taken for dead a while longer, once for each silence: what came from them may not have
// been read, and they have not been probed.
func (s *segment) spare(now time.Time, d time.Duration) {
	for _, p := range s.peers {
		if p.spared.Before(p.signOfLife()) && !now.Before(p.ends()) {
			p.spared = now.Add(d)
		}
	}
}

// yields tells whether this node, sure that the address is its own, lets go in favour of another that is just as
// sure. The two see different states of the API: the newer one is right.
func (s *segment) yields(a netip.Addr, rival string) bool {
	const same = 30 * time.Second // pictures no further apart in age than this are taken for equally good
	switch mine, theirs := s.age, s.peers[rival].age; {
	case mine > theirs+same:
		return true
	case theirs > mine+same:
		return false
	}
	return addresses.Owner(a, []addresses.Candidate{{Node: s.self}, {Node: rival}}, func(string) bool { return true }) == rival
}

func (s *segment) claim(now time.Time, a netip.Addr) outcome {
	if s.mine[a] != nil {
		return outcome{}
	}
	s.mine[a] = &claim{from: now, next: now}
	return outcome{claimed: []netip.Addr{a}, hello: true}
}

func (s *segment) release(a netip.Addr) outcome {
	if s.mine[a] == nil {
		return outcome{}
	}
	delete(s.mine, a)
	return outcome{released: []netip.Addr{a}, hello: true}
}

// repeat announces an address to all hosts anew.
func (s *segment) repeat(now time.Time, a netip.Addr) {
	if c := s.mine[a]; c != nil {
		*c = claim{from: now, next: now}
	}
}

// due are the addresses to announce to all hosts now.
func (s *segment) due(now time.Time) []netip.Addr {
	var out []netip.Addr
	for a, c := range s.mine {
		if c.next.IsZero() || now.Before(c.next) {
			continue
		}
		out = append(out, a)
		if c.step++; c.step < len(repeats) {
			c.next = c.from.Add(repeats[c.step])
		} else {
			c.next = time.Time{}
		}
	}
	return out
}

// next is when pass or due has something to do though no hello is heard; the zero time if never.
func (s *segment) next(now time.Time) time.Time {
	var out time.Time
	at := func(t time.Time) {
		if !t.IsZero() && (out.IsZero() || t.Before(out)) {
			out = t
		}
	}
	for _, p := range s.peers {
		at(p.ends())
		at(s.nextProbe(p))
		if p.kept != nil {
			at(p.inOrder.Add(awayFor))
		}
	}
	if s.able && !s.settled && !s.waiting.IsZero() {
		at(later(s.listening, s.waiting).Add(settleTime))
	}
	at(s.shadowed)
	for _, t := range s.trials {
		switch {
		case now.Before(t.until):
			at(t.until)
		case !t.since.IsZero():
			at(t.since.Add(patience))
		}
	}
	for _, c := range s.mine {
		at(c.next)
	}
	return out
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sorted[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), func(a, b netip.Addr) int { return cmp.Compare(a.Compare(b), 0) })
}
