// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/addresses"
)

// sim is some nodes on one link, in a time of their own. Frames take a millisecond; they can be lost, and the link can
// be split.
type sim struct {
	t     *testing.T
	now   time.Time
	nodes map[string]*simNode
	loss  float64
	rnd   *rand.Rand
	side  map[string]int // of a split link; 0 for all: whole
	queue []frameInFlight
	last  map[netip.Addr]string // whom hosts heard announce it last
	addrs []netip.Addr
}

type simNode struct {
	seg         *segment
	mac         mac
	incarnation uint64
	tick        uint64
	next        time.Time
	dead        bool // the agent is
	answers     bool // the kernel does though the agent is dead
}

type frameInFlight struct {
	at   time.Time
	from string
	h    hello
	to   string // of an answer to a probe, which has no hello
}

func newSim(t *testing.T, seed uint64, names ...string) *sim {
	s := &sim{t: t, now: time.Unix(1000, 0), nodes: map[string]*simNode{}, rnd: rand.New(rand.NewPCG(seed, 2)),
		side: map[string]int{}, last: map[netip.Addr]string{}}
	for _, n := range names {
		s.start(n)
	}
	return s
}

// start starts a node's agent, anew if it ran before.
func (s *sim) start(name string) {
	inc := uint64(s.now.UnixNano())
	s.nodes[name] = &simNode{seg: newSegment(name, s.now), mac: mac{5: name[0]}, incarnation: inc}
}

// want tells the node who may announce the address.
func (s *sim) want(name string, a netip.Addr, candidates ...addresses.Candidate) {
	s.apply(name, s.nodes[name].seg.want(s.now, a, candidates))
}

func (s *sim) wantAll(a netip.Addr, candidates ...addresses.Candidate) {
	if !slices.Contains(s.addrs, a) {
		s.addrs = append(s.addrs, a)
	}
	for _, n := range s.names() {
		s.want(n, a, candidates...)
	}
}

func (s *sim) names() []string {
	var out []string
	for n, x := range s.nodes {
		if !x.dead {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func (s *sim) apply(name string, o outcome) {
	n := s.nodes[name]
	if o.hello {
		s.greet(name)
	}
	for _, a := range n.seg.due(s.now) {
		s.last[a] = name
	}
}

func (s *sim) greet(name string) {
	n := s.nodes[name]
	n.next = s.now.Add(helloEvery)
	n.tick++
	h := hello{node: name, settled: n.seg.settled, unable: !n.seg.able, incarnation: n.incarnation, tick: n.tick, parts: 1, age: n.seg.age, claims: sorted(n.seg.mine), wishes: n.seg.wishes()}
	for _, h := range append(n.seg.absences(s.now), h) {
		s.queue = append(s.queue, frameInFlight{at: s.now.Add(time.Millisecond), from: name, h: h})
	}
}

// run lets the time pass, looking at each millisecond; watch may be nil.
func (s *sim) run(d time.Duration, watch func()) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(time.Millisecond)
		for len(s.queue) > 0 && !s.queue[0].at.After(s.now) {
			f := s.queue[0]
			s.queue = s.queue[1:]
			for _, to := range s.names() {
				switch {
				case to == f.from || s.side[to] != s.side[f.from] || s.rnd.Float64() < s.loss:
				case f.to == "":
					s.apply(to, s.nodes[to].seg.hear(s.now, &f.h, s.nodes[f.from].mac))
				case f.to == to:
					s.nodes[to].seg.answer(s.now, s.nodes[f.from].mac)
				}
			}
		}
		for _, name := range s.names() {
			n := s.nodes[name]
			if at := n.seg.next(s.now); !at.IsZero() && !at.After(s.now) {
				s.apply(name, n.seg.pass(s.now))
				for _, of := range n.seg.probes(s.now) {
					if x := s.nodes[of]; (!x.dead || x.answers) && s.side[of] == s.side[name] {
						s.queue = append(s.queue, frameInFlight{at: s.now.Add(time.Millisecond), from: of, to: name})
					}
				}
				if again := n.seg.next(s.now); !again.IsZero() && !again.After(s.now) {
					s.t.Fatalf("%s would not let time pass: due at %s, now %s", name, again, s.now)
				}
			}
			if len(n.seg.wanted) > 0 && !s.now.Before(n.next) {
				s.greet(name)
			}
		}
		if watch != nil {
			watch()
		}
	}
}

// announcers are the living nodes that announce the address.
func (s *sim) announcers(a netip.Addr) []string {
	var out []string
	for _, n := range s.names() {
		if s.nodes[n].seg.mine[a] != nil {
			out = append(out, n)
		}
	}
	return out
}

// oneEach fails unless each address has exactly one announcer, the one that hosts heard last, and tells who.
func (s *sim) oneEach(when string) map[netip.Addr]string {
	s.t.Helper()
	out := map[netip.Addr]string{}
	for _, a := range s.addrs {
		who := s.announcers(a)
		if len(who) != 1 || s.last[a] != who[0] {
			s.t.Fatalf("%s: %s is announced by %v, and hosts heard %q last", when, a, who, s.last[a])
		}
		out[a] = who[0]
	}
	return out
}

// noTwo is a watch that fails when an address has two announcers on one side of the link.
func (s *sim) noTwo(when string) func() {
	return func() {
		for _, a := range s.addrs {
			who := s.announcers(a)
			for i, x := range who {
				for _, y := range who[i+1:] {
					if s.side[x] == s.side[y] {
						s.t.Fatalf("%s, at %s: %s is announced by %v", when, s.now.Sub(time.Unix(1000, 0)), a, who)
					}
				}
			}
		}
	}
}

func same(names ...string) []addresses.Candidate {
	var out []addresses.Candidate
	for _, n := range names {
		out = append(out, addresses.Candidate{Node: n, Score: 2})
	}
	return out
}

func someAddrs(n int) []netip.Addr {
	var out []netip.Addr
	for i := range n {
		if i%2 == 0 {
			out = append(out, netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)))
		} else {
			out = append(out, netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)))
		}
	}
	return out
}

// TestUnable: a node whose tables are not in force hands over what it has, and takes it back when they are.
func TestUnable(t *testing.T) {
	s, before := settled(t, 7)
	enable := func(able bool, names ...string) {
		for _, n := range names {
			s.apply(n, s.nodes[n].seg.enable(s.now, able))
		}
	}
	enable(false, "b")
	s.run(deadAfter+helloEvery, nil)
	for a, who := range s.oneEach("b is unable") {
		if who == "b" || before[a] != "b" && before[a] != who {
			t.Errorf("b is unable: %s went from %s to %s", a, before[a], who)
		}
	}
	enable(true, "b")
	s.run(3*time.Second, s.noTwo("b is able again"))
	for a, who := range s.oneEach("b is able again") {
		if who != before[a] {
			t.Errorf("b is able again: %s is announced by %s, want %s", a, who, before[a])
		}
	}
	// Nobody is: what somebody has is better than nothing.
	enable(false, abc...)
	s.run(5*time.Second, nil)
	for a, who := range s.oneEach("nobody is able") {
		if who != before[a] {
			t.Errorf("nobody is able: %s went from %s to %s", a, before[a], who)
		}
	}
	enable(true, abc...)
	s.run(3*time.Second, s.noTwo("all are able again"))
	s.oneEach("all are able again")

	// One that starts unable, as after a reboot, takes nothing, though the others know that it should have it.
	s.start("b")
	enable(false, "b")
	for a := range before {
		s.want("b", a, same(abc...)...)
	}
	s.run(5*time.Second, nil)
	for a, who := range s.oneEach("b has started") {
		if who == "b" {
			t.Errorf("b has started, unable: it announces %s", a)
		}
	}
}

var abc = []string{"a", "b", "c"}

// settled is a sim of three nodes and twelve addresses, each with its one announcer.
func settled(t *testing.T, seed uint64) (*sim, map[netip.Addr]string) {
	s := newSim(t, seed, abc...)
	s.run(3*time.Second, nil) // an agent idles long before the first LoadBalancer Service
	for _, a := range someAddrs(12) {
		s.wantAll(a, same(abc...)...)
	}
	s.run(time.Second, s.noTwo("cold start"))
	return s, s.oneEach("cold start")
}

func TestColdStart(t *testing.T) {
	s, owners := settled(t, 1)
	has := map[string]int{}
	for _, n := range owners {
		has[n]++
	}
	if len(has) != 3 {
		t.Errorf("addresses are spread over %v", has)
	}
	s.run(10*time.Second, s.noTwo("steady state"))
	if again := s.oneEach("later"); fmt.Sprint(again) != fmt.Sprint(owners) {
		t.Errorf("owners went from %v to %v with no cause", owners, again)
	}
}

func TestDeath(t *testing.T) {
	s, owners := settled(t, 1)
	s.nodes["b"].dead = true
	died := s.now
	for s.now.Sub(died) < 2*time.Second && slices.ContainsFunc(s.addrs, func(a netip.Addr) bool { return len(s.announcers(a)) == 0 }) {
		s.run(time.Millisecond, s.noTwo("death"))
	}
	if took := s.now.Sub(died); took > 1300*time.Millisecond {
		t.Errorf("taken over after %s", took)
	}
	for a, n := range s.oneEach("after death") {
		if owners[a] != "b" && owners[a] != n {
			t.Errorf("%s moved from %s to %s, though b died", a, owners[a], n)
		}
	}
	// It comes back: what it had goes back to it, and nobody is ever without or with two announcers.
	s.start("b")
	for _, a := range s.addrs {
		s.want("b", a, same(abc...)...)
	}
	none := 0
	s.run(2*time.Second, func() {
		s.noTwo("return")()
		for _, a := range s.addrs {
			if len(s.announcers(a)) == 0 {
				none++
			}
		}
	})
	if again := s.oneEach("after return"); fmt.Sprint(again) != fmt.Sprint(owners) {
		t.Errorf("owners went from %v to %v", owners, again)
	}
	if none > 4*len(s.addrs) { // from letting go to the other's hearing of it
		t.Errorf("%d address-milliseconds without an announcer", none)
	}
}

// TestProbesEnd: nobody probes whoever has nothing, as after the last LoadBalancer Service is gone.
func TestProbesEnd(t *testing.T) {
	s, _ := settled(t, 1)
	probed := func() bool {
		return slices.ContainsFunc(abc, func(n string) bool {
			return slices.ContainsFunc(abc, func(of string) bool { p := s.nodes[n].seg.peers[of]; return p != nil && !p.probed.IsZero() })
		})
	}
	for _, a := range s.addrs {
		for _, n := range abc {
			s.want(n, a)
		}
	}
	s.run(3*time.Second, func() {
		if probed() {
			t.Fatal("a node is probed that has nothing")
		}
	})
	for _, n := range abc {
		if got := len(s.nodes[n].seg.peers); got != 0 {
			t.Errorf("%s still counts on %d silent nodes", n, got)
		}
	}
}

// TestQuickRestart: an agent that is back within the time in which it would be missed keeps its addresses.
func TestQuickRestart(t *testing.T) {
	s, owners := settled(t, 1)
	s.nodes["b"].dead = true
	s.run(900*time.Millisecond, nil)
	s.start("b")
	for _, a := range s.addrs {
		s.want("b", a, same(abc...)...)
	}
	s.run(3*time.Second, func() {
		for _, a := range s.addrs {
			if who := s.announcers(a); len(who) > 0 && who[0] != owners[a] {
				t.Fatalf("%s went from %s to %s", a, owners[a], who[0])
			}
		}
	})
	s.oneEach("after the restart")
}

// TestHandOver: candidates change, and each node hears of it at another time.
func TestHandOver(t *testing.T) {
	for seed := range uint64(30) {
		s, owners := settled(t, seed)
		a := s.addrs[int(seed)%len(s.addrs)]
		var others []string
		for _, n := range abc {
			if n != owners[a] {
				others = append(others, n)
			}
		}
		order := slices.Clone(abc)
		s.rnd.Shuffle(3, func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, n := range order {
			s.want(n, a, same(others...)...)
			s.run(time.Duration(s.rnd.IntN(700))*time.Millisecond, s.noTwo("hand over"))
		}
		s.run(1200*time.Millisecond, s.noTwo("hand over"))
		if got := s.oneEach("after")[a]; !slices.Contains(others, got) {
			t.Errorf("%s is announced by %s, want one of %v", a, got, others)
		}
	}
}

// TestKeepsUntilAsked: another is to have the address, but does not know yet. Who has it keeps it until then: at no
// time are there two, and never is there none for longer than two frames take.
func TestKeepsUntilAsked(t *testing.T) {
	for seed := range uint64(30) {
		s, owners := settled(t, seed)
		a := s.addrs[int(seed)%len(s.addrs)]
		var now []addresses.Candidate
		for _, n := range abc {
			score := 3
			if n == owners[a] {
				score = 1 // its last endpoint is going
			}
			now = append(now, addresses.Candidate{Node: n, Score: score})
		}
		order := slices.Clone(abc)
		s.rnd.Shuffle(3, func(i, j int) { order[i], order[j] = order[j], order[i] })
		none := 0
		watch := func() {
			s.noTwo("hand over")()
			if len(s.announcers(a)) == 0 {
				none++
			}
		}
		for _, n := range order {
			s.want(n, a, now...)
			s.run(time.Duration(s.rnd.IntN(700))*time.Millisecond, watch)
		}
		s.run(1200*time.Millisecond, watch)
		if got := s.oneEach("after")[a]; got == owners[a] {
			t.Errorf("seed %d: %s is still announced by %s", seed, a, got)
		}
		if none > 2 {
			t.Errorf("seed %d: nobody announced %s for %d ms", seed, a, none)
		}
	}
}

// TestSpare: a node that overslept gives the others time once, not for ever.
func TestSpare(t *testing.T) {
	s, _ := settled(t, 1)
	seg := s.nodes["a"].seg
	now := s.now.Add(5 * time.Second)
	seg.spare(now, catchUp)
	if seg.pass(now); len(seg.peers) != 2 {
		t.Fatalf("peers left: %d, want both", len(seg.peers))
	}
	now = now.Add(2 * catchUp)
	seg.spare(now, catchUp)
	if seg.pass(now); len(seg.peers) != 0 {
		t.Errorf("peers left: %d, want none", len(seg.peers))
	}
}

func TestSplitAndHeal(t *testing.T) {
	for seed := range uint64(10) {
		s, owners := settled(t, seed)
		s.side["c"] = 1
		s.run(5*time.Second, s.noTwo("split"))
		for _, a := range s.addrs {
			if len(s.announcers(a)) != 2 {
				t.Fatalf("split: %s is announced by %v, want one on each side", a, s.announcers(a))
			}
		}
		s.side["c"] = 0
		s.run(300*time.Millisecond, nil)
		s.run(5*time.Second, s.noTwo("healed"))
		if again := s.oneEach("healed"); fmt.Sprint(again) != fmt.Sprint(owners) {
			t.Errorf("owners went from %v to %v", owners, again)
		}
	}
}

// TestStaleView: a node that has lost the API server goes by an old picture. It may hold an address for a moment, but
// not against those who know better, and there is no fight.
func TestStaleView(t *testing.T) {
	for _, fresher := range []bool{false, true} {
		s, owners := settled(t, 1)
		a := s.addrs[0]
		old := owners[a]
		var others []string
		for _, n := range abc {
			if n != old {
				others = append(others, n)
			}
		}
		if fresher {
			s.nodes[old].seg.age = 5 * time.Minute
		}
		for _, n := range others {
			s.want(n, a, same(others...)...) // the old owner does not hear of this
		}
		claims := 0
		had := s.announcers(a)
		s.run(3*time.Second, nil)
		s.run(25*time.Second, func() {
			if now := s.announcers(a); !slices.Equal(now, had) {
				claims++
				had = now
			}
			if len(had) > 1 {
				t.Fatalf("fresher %v: both %v announce it", fresher, had)
			}
		})
		if claims > 1 || len(had) != 1 {
			t.Errorf("fresher %v: %d changes of announcer, at last %v", fresher, claims, had)
		}
		if fresher && had[0] == old {
			t.Errorf("%s has it, going by a picture 5 minutes old", old)
		}
	}
}

func TestLoss(t *testing.T) {
	for seed := range uint64(6) {
		s, _ := settled(t, seed)
		s.loss = 0.2
		two := 0
		s.run(20*time.Second, func() {
			for _, a := range s.addrs {
				if len(s.announcers(a)) > 1 {
					two++
				}
			}
		})
		// Five hellos in a row are lost once in 3,000 times; then the wrong death is noticed at the next hello.
		if two > 12*1500 {
			t.Errorf("seed %d: %d address-milliseconds with two announcers", seed, two)
		}
		s.loss = 0
		s.run(3*time.Second, nil)
		s.oneEach("after the loss")
	}
}

func TestShadow(t *testing.T) {
	s, owners := settled(t, 1)
	seg := s.nodes["a"].seg
	o := seg.shadow(s.now)
	for a, n := range owners {
		if (n == "a") != slices.Contains(o.released, a) {
			t.Errorf("%s of %s: released %v", a, n, o.released)
		}
	}
	s.now = s.now.Add(deadAfter)
	if o = seg.pass(s.now); len(o.claimed) == 0 {
		t.Error("nothing claimed after the other link fell silent")
	}
}

func TestWithdrawn(t *testing.T) {
	s, _ := settled(t, 1)
	for _, a := range s.addrs {
		s.wantAll(a)
	}
	s.run(100*time.Millisecond, nil)
	for _, a := range s.addrs {
		if who := s.announcers(a); len(who) > 0 {
			t.Errorf("%s is nobody's, and announced by %v", a, who)
		}
	}
	before := s.nodes["a"].tick
	s.run(2*time.Second, nil)
	if got := s.nodes["a"].tick; got != before {
		t.Errorf("%d hellos though there is nothing to announce", got-before)
	}
}

// TestHearIgnoresOldHellos: a packet that was overtaken, or is played again, changes nothing.
func TestHearIgnoresOldHellos(t *testing.T) {
	now := time.Unix(1, 0)
	s := newSegment("a", now)
	h := hello{node: "b", incarnation: 5, tick: 9, parts: 1, claims: someAddrs(2)}
	s.hear(now, &h, mac{})
	old := hello{node: "b", incarnation: 5, tick: 8, parts: 1}
	s.hear(now.Add(time.Second), &old, mac{1})
	older := hello{node: "b", incarnation: 4, tick: 99, parts: 1}
	s.hear(now.Add(time.Second), &older, mac{1})
	if p := s.peers["b"]; p.tick != 9 || len(p.listed) != 2 || !p.heard.Equal(now) {
		t.Errorf("an old hello was believed: %+v", p)
	}
	// Claims that take two frames: complete only with both.
	next := hello{node: "b", incarnation: 5, tick: 10, part: 0, parts: 2, claims: someAddrs(1)}
	s.hear(now, &next, mac{})
	if len(s.peers["b"].listed) != 2 {
		t.Error("half a hello took a claim away")
	}
	next.part, next.claims = 1, nil
	s.hear(now, &next, mac{})
	if len(s.peers["b"].listed) != 1 {
		t.Error("a whole hello left a claim that it does not list")
	}
}
