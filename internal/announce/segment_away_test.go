// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/addresses"
)

// answeredFor is which node hosts that ask are told that has the address; "" is none. It fails if they are told of two.
func (s *sim) answeredFor(a netip.Addr) string {
	s.t.Helper()
	said := map[mac]bool{}
	for _, n := range s.names() {
		if at, ok := s.nodes[n].seg.at(a, s.nodes[n].mac); ok {
			said[at] = true
		}
	}
	if len(said) > 1 {
		s.t.Fatalf("%s is said to be at %d nodes", a, len(said))
	}
	for n, x := range s.nodes {
		if said[x.mac] {
			return n
		}
	}
	return ""
}

// TestAway: an agent dies and its node does not. Its addresses stay where they are, others answer for them, and when it is
// back it has them as if nothing had been: hosts never hear of another node, nor of none for longer than it takes to miss it.
func TestAway(t *testing.T) {
	for _, loss := range []float64{0, 0.1} {
		s, owners := settled(t, 1)
		s.loss = loss
		stays := func(when string, d, without time.Duration) {
			t.Helper()
			silent := 0
			s.run(d, func() {
				unanswered := false
				for _, a := range s.addrs {
					switch who := s.answeredFor(a); who {
					case owners[a]:
					case "":
						unanswered = true
					default:
						t.Fatalf("loss %v, %s, after %s: %s went from %s to %s", loss, when, s.now.Sub(time.Unix(1000, 0)), a, owners[a], who)
					}
				}
				if unanswered {
					silent++
				}
			})
			if silent > int(without/time.Millisecond) {
				t.Errorf("loss %v, %s: for %d ms nobody answered for an address", loss, when, silent)
			}
		}
		s.nodes["b"].dead, s.nodes["b"].answers = true, true
		stays("b's agent is away", 30*time.Second, deadAfter+50*time.Millisecond)
		s.start("b")
		for _, a := range s.addrs {
			s.want("b", a, same(abc...)...)
		}
		stays("b's agent is back", 10*time.Second, 10*time.Millisecond)
		s.loss = 0
		s.run(time.Second, nil)
		if again := s.oneEach("b's agent is back"); fmt.Sprint(again) != fmt.Sprint(owners) {
			t.Errorf("loss %v: owners went from %v to %v", loss, owners, again)
		}
		for _, n := range abc {
			if x := s.nodes[n].seg.standIns; len(x) > 0 {
				t.Errorf("loss %v: %s still stands in: %v", loss, n, x)
			}
		}
	}
}

// TestAwayEnds: what moves the addresses of a node whose agent is away after all.
func TestAwayEnds(t *testing.T) {
	// its is an address of b's.
	its := func(s *sim, owners map[netip.Addr]string) netip.Addr {
		return s.addrs[slices.IndexFunc(s.addrs, func(a netip.Addr) bool { return owners[a] == "b" })]
	}
	without := func(score int) []addresses.Candidate {
		return []addresses.Candidate{{Node: "a", Score: 2}, {Node: "b", Score: score}, {Node: "c", Score: 2}}
	}
	for _, c := range []struct {
		name  string
		event func(s *sim, a netip.Addr)
		after time.Duration // until it has moved, at most
	}{
		{"the node dies", func(s *sim, _ netip.Addr) { s.nodes["b"].answers = false }, deadAfter + 10*time.Millisecond},
		{"the node may not have it any more", func(s *sim, a netip.Addr) { s.wantAll(a, same("a", "c")...) }, 10 * time.Millisecond},
		{"others serve it better", func(s *sim, a netip.Addr) { s.wantAll(a, without(1)...) }, 10 * time.Millisecond},
		{"the agent is back and says that the node does not forward", func(s *sim, a netip.Addr) {
			s.start("b")
			s.want("b", a, same(abc...)...)
			s.apply("b", s.nodes["b"].seg.enable(s.now, false))
		}, 2*helloEvery + 10*time.Millisecond},
		{"it is away for too long", func(*sim, netip.Addr) {}, awayFor - 10*time.Second + 10*time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, owners := settled(t, 1)
			a := its(s, owners)
			s.nodes["b"].dead, s.nodes["b"].answers = true, true
			s.run(10*time.Second, func() {
				if len(s.announcers(a)) > 0 && s.announcers(a)[0] != "b" {
					t.Fatalf("%s is announced by %v", a, s.announcers(a))
				}
			})
			c.event(s, a)
			before := s.now
			moved := func() bool { who := s.announcers(a); return len(who) == 1 && who[0] != "b" }
			for !moved() {
				if s.run(time.Millisecond, nil); s.now.Sub(before) > c.after {
					t.Fatalf("%s has not moved after %s", a, c.after)
				}
			}
			if who := s.answeredFor(a); who != s.announcers(a)[0] {
				t.Errorf("%s is announced by %v, and hosts are told of %s", a, s.announcers(a), who)
			}
		})
	}
	// An address that no node had when b's agent went is nobody's to keep for b.
	s, _ := settled(t, 1)
	s.nodes["b"].dead, s.nodes["b"].answers = true, true
	s.run(5*time.Second, nil)
	fresh := netip.MustParseAddr("192.0.2.99")
	s.wantAll(fresh, []addresses.Candidate{{Node: "b", Score: 2}, {Node: "c", Score: 2}}...)
	s.run(10*time.Millisecond, nil)
	if who := s.announcers(fresh); !slices.Equal(who, []string{"c"}) {
		t.Errorf("a new address is announced by %v", who)
	}
}

// TestAwayNewcomer: while another agent starts, and has not settled, who stands in goes on, be the newcomer the better one.
func TestAwayNewcomer(t *testing.T) {
	s, owners := settled(t, 1)
	s.nodes["b"].dead, s.nodes["b"].answers = true, true
	s.nodes["c"].dead = true
	s.run(5*time.Second, nil)
	s.start("c")
	for _, a := range s.addrs {
		s.want("c", a, same(abc...)...)
	}
	s.run(settleTime-10*time.Millisecond, func() {
		for _, a := range s.addrs {
			if who := s.answeredFor(a); owners[a] == "b" && who != "b" {
				t.Fatalf("%s, of b, is answered for as %q's", a, who)
			}
		}
	})
}

// TestAwayToldToNewcomers: who starts while another's agent is away, as in an upgrade that takes several nodes at a time,
// hears from those who stand in for it what it has.
func TestAwayToldToNewcomers(t *testing.T) {
	back := func(s *sim, name string) {
		s.start(name)
		for _, a := range s.addrs {
			s.want(name, a, same(abc...)...)
		}
	}
	for _, loss := range []float64{0, 0.1} {
		s, owners := settled(t, 1)
		s.loss = loss
		stay := func() {
			for _, a := range s.addrs {
				if who := s.answeredFor(a); who != "" && who != owners[a] {
					t.Fatalf("loss %v: %s went from %s to %s", loss, a, owners[a], who)
				}
			}
		}
		for _, name := range []string{"b", "c"} {
			s.nodes[name].dead, s.nodes[name].answers = true, true
		}
		s.run(5*time.Second, stay)
		back(s, "c")
		s.run(10*time.Second, stay)
		for _, a := range s.addrs {
			if who := s.answeredFor(a); owners[a] == "b" && who == "" {
				t.Errorf("loss %v: nobody answers for %s, of b", loss, a)
			}
		}
		back(s, "b")
		s.run(10*time.Second, stay)
		s.loss = 0
		s.run(time.Second, nil)
		if again := s.oneEach("both are back"); fmt.Sprint(again) != fmt.Sprint(owners) {
			t.Errorf("loss %v: owners went from %v to %v", loss, owners, again)
		}
	}
	// Two start at the same time: neither takes what the other had before.
	s, owners := settled(t, 1)
	for _, name := range []string{"b", "c"} {
		s.nodes[name].dead, s.nodes[name].answers = true, true
	}
	s.run(5*time.Second, nil)
	back(s, "c")
	s.run(300*time.Millisecond, nil)
	back(s, "b")
	s.run(5*time.Second, func() {
		for _, a := range s.addrs {
			if who := s.announcers(a); len(who) > 0 && who[0] != owners[a] {
				t.Fatalf("%s went from %s to %s", a, owners[a], who)
			}
		}
	})
	// What is told ends as what was heard does: with the node, or a minute after its agent was last there.
	for _, c := range []struct {
		what  string
		dies  bool
		after time.Duration
	}{
		{"the node dies", true, deadAfter + 10*time.Millisecond},
		{"its agent stays away", false, awayFor - 10*time.Second + time.Second + 10*time.Millisecond}, // told in whole seconds
	} {
		s, owners := settled(t, 1)
		for _, name := range []string{"b", "c"} {
			s.nodes[name].dead, s.nodes[name].answers = true, true
		}
		s.run(5*time.Second, nil)
		back(s, "c")
		s.run(5*time.Second, nil)
		s.nodes["a"].dead = true // so that only who was told is left
		s.nodes["b"].answers = !c.dies
		before := s.now
		for _, a := range s.addrs {
			for owners[a] == "b" && !slices.Equal(s.announcers(a), []string{"c"}) {
				if s.run(time.Millisecond, nil); s.now.Sub(before) > c.after {
					t.Fatalf("%s: %s has not moved after %s", c.what, a, c.after)
				}
			}
		}
		if !c.dies && s.now.Sub(before) < c.after-5*time.Second {
			t.Errorf("%s: it moved after %s", c.what, s.now.Sub(before))
		}
	}
}

// TestToldTooLate: whom a node that has settled took for dead stays dead, whatever others tell of it.
func TestToldTooLate(t *testing.T) {
	s, owners := settled(t, 1)
	s.nodes["b"].dead = true
	s.run(2*time.Second, nil)
	now := s.oneEach("b is dead")
	its := s.addrs[slices.IndexFunc(s.addrs, func(a netip.Addr) bool { return owners[a] == "b" })]
	s.apply("c", s.nodes["c"].seg.hear(s.now, &hello{node: "b", absent: true, mac: s.nodes["b"].mac, incarnation: 1, parts: 1, claims: []netip.Addr{its}}, s.nodes["a"].mac))
	if s.nodes["c"].seg.peers["b"] != nil || s.answeredFor(its) != now[its] {
		t.Errorf("%s, which was b's, is answered for as %q's", its, s.answeredFor(its))
	}
}

// TestAwayOverAndOver: an agent that never lives long enough to take in the API is away all the same, and for no longer.
func TestAwayOverAndOver(t *testing.T) {
	s, owners := settled(t, 1)
	died := s.now
	for s.now.Sub(died) < awayFor+5*time.Second {
		s.nodes["b"].dead, s.nodes["b"].answers = true, true
		s.run(10*time.Second, nil)
		s.start("b")
		for _, a := range s.addrs {
			s.want("b", a, same(abc...)...)
		}
		s.run(300*time.Millisecond, nil)
	}
	s.nodes["b"].dead, s.nodes["b"].answers = true, true
	s.run(100*time.Millisecond, nil)
	for _, a := range s.addrs {
		if who := s.announcers(a); owners[a] == "b" && len(who) != 1 {
			t.Errorf("%s, of b, whose agent has not been there for %s, is announced by %v", a, s.now.Sub(died), who)
		}
	}
}
