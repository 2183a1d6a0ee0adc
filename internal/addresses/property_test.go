// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// check holds the Allocator's own books against each other and against the rules that must hold after every Delta:
// no address is had by two who may not share it, none is had from outside the pools, every count is right.
func check(t *testing.T, a *Allocator) {
	t.Helper()
	who := make(map[netip.Addr][]model.Name)
	for name, e := range a.services {
		for _, x := range e.held.all() {
			who[x] = append(who[x], name)
			if a.holders[x] == nil || a.holders[x].services[name] != e {
				t.Fatalf("%s has %s, and its holder does not know", name, x)
			}
			if !slices.Contains(e.req.families, model.FamilyOf(x)) {
				t.Fatalf("%s has %s of a family that it does not want", name, x)
			}
			if _, why := a.usable(name, e, x); why != (Problem{}) {
				t.Fatalf("%s has %s, which it may not have: %s", name, x, why.Message)
			}
		}
	}
	used := make(map[string]*[2]int64)
	for x, h := range a.holders {
		if len(h.services) == 0 || len(h.services) != len(who[x]) {
			t.Fatalf("%s: holder knows %d Services, %v have it", x, len(h.services), who[x])
		}
		if used[h.pool] == nil {
			used[h.pool] = new([2]int64)
		}
		used[h.pool][index(x)]++
		n := 0
		for name, e := range h.services {
			n += len(e.req.ports)
			if e.req.share != "" && !a.shared[e.req.share][x] {
				t.Fatalf("%s: share key %q of %s is not in the index", x, e.req.share, name)
			}
		}
		if len(h.ports) != n {
			t.Fatalf("%s: %d ports noted, its Services have %d", x, len(h.ports), n)
		}
		for _, p := range a.order {
			if !p.contains(x) {
				continue
			}
			for f := range 2 {
				if lowest := p.lowest([]model.Family{model.IPv4, model.IPv6}[f], func(y netip.Addr) bool { return a.holders[y] == nil && len(a.reserved[y]) == 0 }); lowest == x {
					t.Fatalf("%s is had and called free", x)
				}
			}
		}
	}
	for key, in := range a.shared {
		for x := range in {
			if a.holders[x] == nil {
				t.Fatalf("share key %q: nobody has %s", key, x)
			}
		}
	}
	for name, n := range a.used {
		want := used[name]
		if want == nil {
			want = new([2]int64)
		}
		if *n != *want {
			t.Fatalf("pool %s: %v counted, %v had", name, *n, *want)
		}
	}
	for name := range a.services {
		e := a.services[name]
		incomplete := slices.ContainsFunc(e.req.families, func(f model.Family) bool { return !e.held.of(f).IsValid() })
		if (incomplete || e.problem != (Problem{})) && !e.alien != a.waiting[name] {
			t.Fatalf("%s: waits %v, incomplete %v, problem %q", name, a.waiting[name], incomplete, e.problem.Message)
		}
	}
}

// world is a cluster that changes at random.
type world struct {
	rnd   *rand.Rand
	pools map[string]*model.AddressPool
	svcs  map[model.Name]*model.Service
	clock int64
}

func (w *world) pick(n int) int { return w.rnd.IntN(n) }

func (w *world) service(i int) *model.Service {
	w.clock++
	opts := []svcOption{created(w.clock / 3)}
	if w.pick(3) == 0 {
		opts = append(opts, shares(fmt.Sprint("k", w.pick(2))))
	}
	opts = append(opts, ports(uint16(80+w.pick(3))))
	opts = append(opts, []svcOption{func(*model.Service) {}, preferDual, requireDual, v6}[w.pick(4)])
	switch w.pick(8) {
	case 0:
		opts = append(opts, wants(fmt.Sprintf("192.0.2.%d", w.pick(12))))
	case 1:
		opts = append(opts, fromPool(fmt.Sprint("p", w.pick(4))))
	case 2:
		opts = append(opts, local)
	case 3:
		opts = append(opts, class("other"), status(fmt.Sprintf("192.0.2.%d", w.pick(12))))
	case 4:
		opts = append(opts, labels("tier", "web"))
	}
	return svc(fmt.Sprint("s", i), opts...)
}

func (w *world) pool(i int) *model.AddressPool {
	w.clock++
	lo := w.pick(12)
	addrs := fmt.Sprintf("192.0.2.%d-192.0.2.%d 2001:db8::%x-2001:db8::%x", lo, lo+w.pick(4), lo, lo+w.pick(4))
	opts := []poolOption{made(w.clock / 2)}
	switch w.pick(5) {
	case 0:
		opts = append(opts, manual)
	case 1:
		opts = append(opts, forSvc("tier", "web"))
	case 2:
		opts = append(opts, avoidBuggy)
	}
	return apool(fmt.Sprint("p", i), addrs, opts...)
}

// step makes one random Delta.
func (w *world) step() *model.Delta {
	d := delta()
	for range 1 + w.pick(4) {
		s := w.service(w.pick(14))
		if old := w.svcs[s.Name]; old != nil && w.pick(3) > 0 {
			s.Created = old.Created // an update keeps its age
		}
		if w.pick(4) == 0 {
			d.Services[s.Name] = nil
			delete(w.svcs, s.Name)
			continue
		}
		d.Services[s.Name] = s
		w.svcs[s.Name] = s
	}
	if w.pick(6) == 0 {
		p := w.pool(w.pick(4))
		if old := w.pools[p.Name.Name]; old != nil {
			p.Created = old.Created
		}
		if w.pick(4) == 0 {
			d.AddressPools[p.Name.Name] = nil
			delete(w.pools, p.Name.Name)
		} else {
			d.AddressPools[p.Name.Name] = p
			w.pools[p.Name.Name] = p
		}
	}
	return d
}

// TestRandomHistories: whatever happens in whatever order, the rules of check hold; Deltas in which nothing changes
// change nothing; and a controller that starts anew from what the statuses say takes no address from anyone.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(300) {
		w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), pools: map[string]*model.AddressPool{}, svcs: map[model.Name]*model.Service{}}
		a := New(ours)
		a.Apply(delta())
		for range 40 {
			a.Apply(w.step())
			check(t, a)
		}
		before := a.Decisions()

		same := delta()
		maps.Copy(same.Services, w.svcs)
		maps.Copy(same.AddressPools, w.pools)
		r := a.Apply(same)
		check(t, a)
		for name, d := range a.Decisions() {
			if !slices.Equal(d.Addresses, before[name].Addresses) {
				t.Fatalf("seed %d: nothing changed, and %s went from %v to %v", seed, name, before[name].Addresses, d.Addresses)
			}
		}
		if len(r.Pools) > 0 {
			t.Fatalf("seed %d: nothing changed, yet %v", seed, r.Pools)
		}
		// What a Service lacks may have become more since it was last looked at; once that is said, all is said.
		if r = a.Apply(same); len(r.Events) > 0 {
			t.Fatalf("seed %d: nothing changed, yet %v", seed, r.Events)
		}

		fresh := New(ours)
		for name, s := range same.Services {
			if d, ok := before[name]; ok {
				s := *s
				s.Ingress = nil
				for _, x := range d.Addresses {
					s.Ingress = append(s.Ingress, model.LoadBalancerIngress{IP: x.Addr})
				}
				same.Services[name] = &s
			}
		}
		fresh.Apply(same)
		check(t, fresh)
		for name, d := range fresh.Decisions() {
			for _, x := range before[name].Addresses {
				if !slices.Contains(d.Addresses, x) {
					t.Fatalf("seed %d: after a restart %s went from %v to %v", seed, name, before[name].Addresses, d.Addresses)
				}
			}
		}
	}
}

// BenchmarkOneOfMany: one Service comes and goes among many. Work must not grow with their number.
func BenchmarkOneOfMany(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a := New(ours)
			d := delta(apool("p", "10.0.0.0/8"))
			for i := range n {
				s := svc(fmt.Sprint("s", i))
				d.Services[s.Name] = s
			}
			a.Apply(d)
			one, none := delta(svc("x")), delta(gone("x"))
			one.AddressPools, one.Nodes = nil, nil
			for b.Loop() {
				a.Apply(one)
				a.Apply(none)
			}
		})
	}
}
