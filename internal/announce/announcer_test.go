// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestResolves: a client's kernel resolves the addresses, of both families, to the node that announces them, and at
// steady state never two nodes answer.
func TestResolves(t *testing.T) {
	l, agents, addrs := threeNodes(t, 6)
	owners := announcers(agents, addrs)
	client := l.hosts["client"]
	for _, a := range addrs {
		client.dial(t, a)
		eventually(t, fmt.Sprint(a, " is resolved"), func() bool {
			m, ok := client.neighbor(t, a)
			return ok && m == l.hosts[owners[a]].mac
		})
	}
	from := time.Now()
	p := l.newProbe("client", addrs)
	for _, a := range addrs {
		eventually(t, fmt.Sprint("fifty answers for ", a), func() bool { return len(p.since(a, from)) >= 50 })
	}
	for _, a := range addrs {
		if who := by(p.since(a, from)); len(who) != 1 || who[0] != l.hosts[owners[a]].mac {
			t.Errorf("%s, of %s, is answered for by %v", a, owners[a], who)
		}
	}
	// What nobody is to have, nobody answers for.
	for _, a := range agents {
		a.Update(labKey, nil, wanted(addrs))
	}
	eventually(t, "nothing is announced", func() bool {
		return len(agents["a"].Announced())+len(agents["b"].Announced())+len(agents["c"].Announced()) == 0
	})
	p.stop()
	q := l.newProbe("client", append(slices.Clone(addrs), netip.MustParseAddr("192.0.2.201")))
	from = time.Now()
	eventually(t, "a node answers for its own address", func() bool { return len(q.since(netip.MustParseAddr("192.0.2.201"), from)) >= 20 })
	for _, a := range addrs {
		if who := by(q.since(a, from)); len(who) > 0 {
			t.Errorf("%s is nobody's, and answered for by %v", a, who)
		}
	}
}

// TestFailover: a node dies. Its addresses are answered for by others within two seconds, the client's kernel has
// learned so by then without asking, and at no time do two living nodes answer for one address. It returns, and its
// addresses with it. It is the same to the others whether it had an agent when it died.
func TestFailover(t *testing.T) {
	for _, how := range []string{"with its agent", "after its agent", "and can't be probed"} {
		t.Run(how, func(t *testing.T) {
			l, agents, addrs := threeNodes(t, 8)
			owners := announcers(agents, addrs)
			victim := owners[addrs[0]]
			client := l.hosts["client"]
			for _, a := range addrs {
				client.dial(t, a)
				eventually(t, fmt.Sprint(a, " is resolved"), func() bool { _, ok := client.neighbor(t, a); return ok })
			}
			p := l.newProbe("client", addrs)
			eventually(t, "answers", func() bool { return len(p.since(addrs[0], time.Time{})) > 5 })
			switch how {
			case "after its agent":
				agents[victim].stop()
				from := time.Now().Add(deadAfter + helloEvery)
				eventually(t, "others answer for the node", func() bool {
					return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return len(p.since(a, from)) < 20 })
				})
			case "and can't be probed":
				for _, a := range agents {
					a.Update(labKey, map[string][]netip.Addr{"a": nil, "b": nil, "c": nil}, nil)
				}
			}
			died, late := time.Now(), lateness()
			if how == "and can't be probed" {
				agents[victim].stop()
			} else {
				l.cut(victim, true)
			}
			moved := func(a netip.Addr) bool {
				m, ok := client.neighbor(t, a)
				return ok && (owners[a] != victim || m != l.hosts[victim].mac)
			}
			eventually(t, "the client's kernel knows the new nodes", func() bool { return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !moved(a) }) })
			took, busy := time.Since(died).Round(time.Millisecond), late()
			t.Logf("taken over after %s; the machine was late by %s", took, busy)
			if took > 2*time.Second+3*busy {
				t.Errorf("taken over after %s, want at most 2 s and what the machine takes, which was late by %s", took, busy)
			}
			for _, a := range addrs {
				var last answer
				for _, x := range p.since(a, died.Add(50*time.Millisecond)) {
					if owners[a] == victim && x.by == l.hosts[victim].mac && how != "after its agent" {
						t.Errorf("%s: the dead node answered", a)
					}
					if last.by != (mac{}) && x.by != last.by && last.by != l.hosts[victim].mac {
						t.Errorf("%s: answered for by %v, %s after %v", a, x.by, x.at.Sub(last.at), last.by)
					}
					last = x
				}
			}

			if how != "with its agent" {
				agents[victim].stop()
				agents[victim] = l.agent(victim, Options{})
				agents[victim].Update(labKey, labNodes(), wanted(addrs, abc...))
			}
			if how != "and can't be probed" {
				l.cut(victim, false)
			}
			eventually(t, "the owners are the former ones", func() bool { return fmt.Sprint(announcers(agents, addrs)) == fmt.Sprint(owners) })
			from := time.Now().Add(50 * time.Millisecond)
			eventually(t, "answers after the return", func() bool {
				return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return len(p.since(a, from)) < 20 })
			})
			for _, a := range addrs {
				if who := by(p.since(a, from)); len(who) != 1 || who[0] != l.hosts[owners[a]].mac {
					t.Errorf("after the return %s, of %s, is answered for by %v", a, owners[a], who)
				}
			}
		})
	}
}

// TestAgentAway: an agent is gone for far longer than it takes to miss it, and its node is not. Whoever asks is told that
// the node's addresses are where they were, by another node, and no host is ever told anything else.
func TestAgentAway(t *testing.T) {
	l, agents, addrs := threeNodes(t, 8)
	owners := announcers(agents, addrs)
	victim := owners[addrs[0]]
	p := l.newProbe("client", addrs)
	eventually(t, "answers", func() bool { return len(p.since(addrs[0], time.Time{})) > 5 })
	agents[victim].stop()
	from := time.Now().Add(2 * deadAfter)
	eventually(t, "others answer for the node", func() bool {
		return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return len(p.since(a, from)) < 100 })
	})
	stood := 0
	for name, a := range agents {
		if name == victim {
			continue
		}
		stood += testutil.CollectAndCount(a.metrics, "weft_announce_stand_in")
		if n := peersHeard(t, a); n != 1 {
			t.Errorf("%s hears %v other nodes, want the one whose agent is there", name, n)
		}
	}
	had := 0
	for _, who := range owners {
		if who == victim {
			had++
		}
	}
	if stood != had {
		t.Errorf("the others stand in for %d addresses, the node has %d", stood, had)
	}
	agents[victim] = l.agent(victim, Options{})
	agents[victim].Update(labKey, labNodes(), wanted(addrs, abc...))
	eventually(t, "the agent announces again", func() bool { return fmt.Sprint(announcers(agents, addrs)) == fmt.Sprint(owners) })
	from = time.Now()
	eventually(t, "answers after the return", func() bool {
		return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return len(p.since(a, from)) < 20 })
	})
	l.onlyAt(p, owners)
}

// TestTwoAgentsAway: the one that is back first is told what the other has, and takes none of it.
func TestTwoAgentsAway(t *testing.T) {
	l, agents, addrs := threeNodes(t, 8)
	owners := announcers(agents, addrs)
	p := l.newProbe("client", addrs)
	eventually(t, "answers", func() bool { return len(p.since(addrs[0], time.Time{})) > 5 })
	first, last := owners[addrs[0]], ""
	for _, who := range owners {
		if who != first {
			last = who
		}
	}
	agents[first].stop()
	agents[last].stop()
	answered := func(what string, from time.Time) {
		t.Helper()
		eventually(t, what, func() bool {
			return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return len(p.since(a, from)) < 100 })
		})
	}
	answered("the third answers for both", time.Now().Add(2*deadAfter))
	for _, name := range []string{first, last} {
		agents[name] = l.agent(name, Options{})
		agents[name].Update(labKey, labNodes(), wanted(addrs, abc...))
		answered(name+" is back", time.Now().Add(2*settleTime))
	}
	eventually(t, "all announce what they had", func() bool { return fmt.Sprint(announcers(agents, addrs)) == fmt.Sprint(owners) })
	l.onlyAt(p, owners)
}

// TestReopened: a link that an agent has closed and opened again carries on: the others go on hearing the node.
func TestReopened(t *testing.T) {
	_, agents, addrs := threeNodes(t, 4)
	owners := announcers(agents, addrs)
	name := owners[addrs[0]]
	a := agents[name]
	a.mu.Lock()
	for _, l := range a.links {
		l.tick += 1000 // it has been there for long
		a.greet(time.Now(), l)
	}
	a.mu.Unlock()
	time.Sleep(helloEvery) // for them to hear that
	a.mu.Lock()
	for _, l := range a.links {
		a.drop(l, "a test wants it")
	}
	a.retry = time.Now()
	a.mu.Unlock()
	a.poke()
	time.Sleep(2 * deadAfter) // in which whoever is not heard is missed
	for n, x := range agents {
		if n == name {
			continue
		}
		x.mu.Lock()
		for _, l := range x.links {
			if p := l.seg.peers[name]; p == nil || p.away {
				t.Errorf("%s does not hear %s: %+v", n, name, p)
			}
		}
		x.mu.Unlock()
	}
	eventually(t, "the owners are the former ones", func() bool { return fmt.Sprint(announcers(agents, addrs)) == fmt.Sprint(owners) })
}

// lateness measures how much later than it should a timer fires, in sum until the function is called that it returns: what
// a machine with much else to do takes away from everybody.
func lateness() func() time.Duration {
	const every = 5 * time.Millisecond
	stop, sum := make(chan struct{}), make(chan time.Duration)
	go func() {
		var late time.Duration
		for {
			from := time.Now()
			select {
			case <-stop:
				sum <- late
				return
			case <-time.After(every):
				late += time.Since(from) - every
			}
		}
	}()
	return func() time.Duration { close(stop); return (<-sum).Round(time.Millisecond) }
}

// TestQuickRestartOnTheWire: an agent that is back before it is missed loses no address: no other node ever answers.
func TestQuickRestartOnTheWire(t *testing.T) {
	l, agents, addrs := threeNodes(t, 4)
	owners := announcers(agents, addrs)
	victim := owners[addrs[0]]
	p := l.newProbe("client", addrs)
	agents[victim].stop()
	agents[victim] = l.agent(victim, Options{})
	agents[victim].Update(labKey, labNodes(), wanted(addrs, abc...))
	from := time.Now()
	eventually(t, "the restarted agent answers", func() bool { return len(p.since(addrs[0], from)) >= 50 })
	l.onlyAt(p, owners)
}

// TestSplitLink: a link that splits has an announcer on each side; once it is whole again there is one, and the
// client's kernel, which was on the other side, knows.
func TestSplitLink(t *testing.T) {
	l, agents, addrs := threeNodes(t, 6)
	owners := announcers(agents, addrs)
	client := l.hosts["client"]
	for _, a := range addrs {
		client.dial(t, a)
	}
	victim := owners[addrs[0]]
	l.split(victim, true)
	eventually(t, "the others have taken over", func() bool {
		for _, a := range addrs {
			if m, ok := client.neighbor(t, a); !ok || (owners[a] == victim && m == l.hosts[victim].mac) {
				return false
			}
		}
		return true
	})
	l.split(victim, false)
	healed := time.Now()
	eventually(t, "the client knows the former owners again", func() bool {
		for _, a := range addrs {
			if m, ok := client.neighbor(t, a); !ok || m != l.hosts[owners[a]].mac {
				return false
			}
		}
		return fmt.Sprint(announcers(agents, addrs)) == fmt.Sprint(owners)
	})
	t.Logf("healed after %s", time.Since(healed).Round(time.Millisecond))
}

// TestForeignHost: another host uses an address that a node announces. It is told of, and the address is defended, but
// there is no fight.
func TestForeignHost(t *testing.T) {
	l := newLAN(t)
	l.add("a", 201)
	l.add("client", 100)
	told := make(chan string, 10)
	a := l.agent("a", Options{Taken: func(x netip.Addr, link, mac string) { told <- fmt.Sprint(x, " ", link, " ", mac) }})
	addrs := someAddrs(2)
	a.Update(labKey, nil, wanted(addrs, "a"))
	eventually(t, "announced", func() bool { return len(a.Announced()) == 2 })
	eventually(t, "announcing to all is over", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, lk := range a.links {
			for _, c := range lk.seg.mine {
				if !c.next.IsZero() {
					return false
				}
			}
			return true
		}
		return false
	})
	client := l.hosts["client"]
	eth, err := client.nl.LinkByName("eth0")
	must(t, err)
	arp, err := openPacket(int(client.ns), eth.Attrs().Index, unix.ETH_P_ARP, nil)
	must(t, err)
	defer arp.close()
	nd, err := openPacket(int(client.ns), eth.Attrs().Index, unix.ETH_P_IPV6, ndpFilter)
	must(t, err)
	defer nd.close()
	heard := make(chan mac, 100)
	go func() {
		_ = arp.receive(func(f []byte) {
			if q, ok := parseARP(f); ok && q.sender == addrs[0] {
				heard <- q.senderMAC
			}
		})
	}()
	for range 5 {
		must(t, arp.send(arpAnnouncements(addrs[0], client.mac)[0]))
	}
	if got, want := <-told, fmt.Sprint(addrs[0], " eth0 ", client.mac); got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if got := <-heard; got != l.hosts["a"].mac {
		t.Errorf("defended by %v", got)
	}
	must(t, nd.send(ndpAnnouncement(addrs[1], client.mac)))
	if got, want := <-told, fmt.Sprint(addrs[1], " eth0 ", client.mac); got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if n := len(heard) + 1; n > 2 { // one defence is two frames
		t.Errorf("%d frames in defence at once", n)
	}
	if len(told) > 0 {
		t.Errorf("told again: %s", <-told)
	}
}

// TestTwoLinksOneSegment: a node with two links on one segment announces on one of them only.
func TestTwoLinksOneSegment(t *testing.T) {
	l := newLAN(t)
	h := l.add("a", 201)
	must(t, l.bridge.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "second"}, PeerName: "eth1", PeerNamespace: netlink.NsFd(h.ns)}))
	port, err := l.bridge.nl.LinkByName("second")
	must(t, err)
	br, err := l.bridge.nl.LinkByName("br0")
	must(t, err)
	must(t, l.bridge.nl.LinkSetMaster(port, br))
	must(t, l.bridge.nl.LinkSetUp(port))
	eth1, err := h.nl.LinkByName("eth1")
	must(t, err)
	addr, err := netlink.ParseAddr("192.0.2.210/24")
	must(t, err)
	must(t, h.nl.AddrAdd(eth1, addr))
	must(t, h.nl.LinkSetUp(eth1))
	eth0, err := h.nl.LinkByName("eth0")
	must(t, err)
	first := "eth0"
	if eth1.Attrs().Index < eth0.Attrs().Index {
		first = "eth1"
	}
	a := l.agent("a", Options{})
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	a.Update(labKey, nil, wanted(addrs, "a"))
	eventually(t, "announced on "+first+" alone", func() bool {
		got := a.Announced()
		return len(got) == 1 && got[0].Link == first
	})
}

// TestLinksComeAndGo: a link that gets its subnet after the agent has started is announced on, one that goes down is
// not, and metrics and callbacks say so.
func TestLinksComeAndGo(t *testing.T) {
	l := newLAN(t)
	h := l.add("a", 201)
	eth, err := h.nl.LinkByName("eth0")
	must(t, err)
	must(t, h.nl.LinkSetDown(eth))
	reg := prometheus.NewRegistry()
	moves := make(chan string, 100)
	a := l.agent("a", Options{Metrics: reg, Moved: func(x netip.Addr, link string, here bool) { moves <- fmt.Sprint(x, " ", link, " ", here) }})
	addrs := []netip.Addr{lb4}
	a.Update(labKey, nil, wanted(addrs, "a"))
	must(t, h.nl.LinkSetUp(eth))
	if got, want := <-moves, "192.0.2.1 eth0 true"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	families, err := reg.Gather()
	must(t, err)
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	if !slices.Contains(names, "weft_announced_address") || !slices.Contains(names, "weft_announce_moves_total") {
		t.Errorf("metrics: %v", names)
	}
	must(t, h.nl.LinkSetDown(eth))
	if got, want := <-moves, "192.0.2.1 eth0 false"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Before the cluster's key is known, nothing is said or claimed.
	b := l.agent("a", Options{})
	if got := b.Announced(); len(got) > 0 {
		t.Errorf("announced before anything was asked for: %v", got)
	}
}
