// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nstest"
	"github.com/weft-net/weft/internal/service"
)

func open(t testing.TB) *Table { return openWith(t, Options{}) }

// openShared makes tables that everybody may change, as before Linux 6.9.
func openShared(t testing.TB) *Table { return openWith(t, Options{Shared: true}) }

func openWith(t testing.TB, o Options) *Table {
	t.Helper()
	tab, err := Open(service.Scope{
		Pods:       []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")},
		ClusterIPs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")},
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tab.Close() })
	return tab
}

type rules map[service.Frontend]*service.Rule

// All yields Service by Service, in an order of its own each time.
func (r rules) All(yield func(service.Frontend, *service.Rule)) {
	by := make(map[model.Name][]service.Frontend)
	for fe, rule := range r {
		by[rule.Service] = append(by[rule.Service], fe)
	}
	for _, fes := range by {
		for _, fe := range fes {
			yield(fe, r[fe])
		}
	}
}

func (r rules) Len() int { return len(r) }

func endpoints(f model.Family, from, n int) []netip.AddrPort {
	out := make([]netip.AddrPort, n)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, 128 + byte((from+i)>>16), byte((from + i) >> 8), byte(from + i)})
		if f == model.IPv6 {
			b := netip.MustParseAddr("fd00:244::").As16()
			b[14], b[15] = byte((from+i)>>8), byte(from+i)
			a = netip.AddrFrom16(b)
		}
		out[i] = netip.AddrPortFrom(a, 8080)
	}
	return out
}

// random makes up the rules of one Service: all kinds of frontends in both families.
func random(r *rand.Rand, n int) rules {
	out := make(rules)
	name := model.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%d", n)}
	affinity := []time.Duration{0, 0, time.Minute, 3 * time.Hour}[r.IntN(4)]
	local := r.IntN(2) == 0
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		count := []int{0, 1, 2, 3, 5, 40}[r.IntN(6)]
		eps := endpoints(f, r.IntN(50), count)
		if r.IntN(4) == 0 && count > 1 { // a named port that is not the same in all pods
			eps[0] = netip.AddrPortFrom(eps[0].Addr(), 9090)
		}
		pool := service.Pool{Endpoints: eps}
		if count == 0 {
			pool.Action = service.Reject
		}
		base := service.Rule{Service: name, Port: "p", Main: pool, Affinity: affinity}
		for i, ep := range eps {
			base.Backends = append(base.Backends, service.Backend{AddrPort: ep, Serving: true, Local: i%2 == 0})
		}
		addr := func(v4, v6 string) netip.Addr {
			s := v4
			if f == model.IPv6 {
				s = v6
			}
			return netip.MustParseAddr(strings.ReplaceAll(s, "N", fmt.Sprint(n)))
		}
		if affinity > 0 && (n+count)%4 > 0 { // else each frontend by itself
			base.ClusterIP = netip.AddrPortFrom(addr("10.96.0.N", "fd00:96::N"), 80)
		}
		put := func(a netip.Addr, port uint16, rule service.Rule) {
			out[service.Frontend{Addr: a, Protocol: model.Protocol([]model.Protocol{model.TCP, model.UDP, model.SCTP}[n%3]), Port: port}] = &rule
		}
		put(addr("10.96.0.N", "fd00:96::N"), 80, base)
		ext := base
		ext.Masquerade = true
		if local && count > 0 {
			inside := pool
			ext.Masquerade, ext.Inside = false, &inside
			ext.Main = service.Pool{Endpoints: eps[:r.IntN(count+1)]}
			if len(ext.Main.Endpoints) == 0 {
				ext.Main.Action = service.Drop
			}
		}
		if r.IntN(3) > 0 {
			ext.Kind = service.NodePort
			put(addr("0.0.0.0", "::"), uint16(30000+n), ext)
		}
		if r.IntN(3) > 0 {
			ext.Kind = service.LoadBalancerIP
			if r.IntN(2) == 0 {
				ext.Restricted = true
				ext.Sources = []netip.Prefix{netip.PrefixFrom(addr("192.168.0.0", "fd00:192::"), 24).Masked(), hostPrefix(addr("198.51.100.N", "fd00:1980::N"))}
			}
			put(addr("203.0.113.N", "fd00:203::N"), 80, ext)
		}
	}
	return out
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// changes is what turns one set of rules into another, Service by Service.
func changes(old, next rules) []service.Change {
	var out []service.Change
	for fe, r := range next {
		if old[fe] == nil || !old[fe].Equal(r) {
			out = append(out, service.Change{Frontend: fe, Old: old[fe], New: r})
		}
	}
	for fe, r := range old {
		if next[fe] == nil {
			out = append(out, service.Change{Frontend: fe, Old: r})
		}
	}
	slices.SortStableFunc(out, func(a, b service.Change) int { return owner(a).Compare(owner(b)) })
	return out
}

// verify reads the kernel's tables with a fresh Table and compares them, element by element, with the rules.
func verify(t *testing.T, want rules) {
	t.Helper()
	fresh := open(t)
	ips, local := make(map[netip.Addr]bool), make(map[netip.Addr]bool)
	for i, c := range readAll(t, fresh) {
		f := []*family{fresh.v4, fresh.v6}[i]
		if !c.there || len(c.strays) > 0 {
			t.Fatalf("%s: there %v, foreign %v, strays %v", f.table, c.there, c.foreign, c.strays)
		}
		for a := range c.ips {
			ips[a] = true
		}
		for a := range c.local {
			local[a] = true
		}
		fixed := make(map[string]chain)
		for _, ch := range f.chains(&fresh.cfg) {
			fixed[ch.name] = ch
		}
		for _, name := range c.chains {
			ch, ok := fixed[name]
			if !ok {
				p, ok := parsePick(strings.TrimPrefix(name, nodePortPrefix))
				if !ok {
					t.Errorf("%s: chain %s is nobody's", f.table, name)
				}
				ch = chain{name: name, rules: f.pickRules(p, strings.HasPrefix(name, nodePortPrefix))}
			}
			fresh.rewritten = 0
			if fresh.ensureChain(f, &c, ch); fresh.rewritten > 0 {
				t.Errorf("%s: chain %s is not as it should be", f.table, name)
			}
		}
	}
	wantIPs, wantLocal := make(map[netip.Addr]bool), make(map[netip.Addr]bool)
	for fe, r := range want {
		h := fresh.held[fe]
		if h == nil {
			t.Errorf("%s: not in the kernel", fe)
			continue
		}
		w := wanted(r, h.main.span, h.within.span)
		if h.services != w.services || h.admitted != w.admitted || h.outside != w.outside || h.inside != w.inside {
			t.Errorf("%s: labels %q %q %q %q, want %q %q %q %q", fe, h.services, h.admitted, h.outside, h.inside, w.services, w.admitted, w.outside, w.inside)
		}
		compareSlots(t, fe, h.main, w.main)
		compareSlots(t, fe, h.within, w.within)
		compareGroup(t, fe, h, r, w.main.kind == sticky)
		if !slices.Equal(h.sources, w.sources) {
			t.Errorf("%s: sources %v, want %v", fe, h.sources, w.sources)
		}
		if w.clusterIP {
			wantIPs[fe.Addr] = true
		}
		for _, a := range w.local {
			wantLocal[a] = true
		}
	}
	for fe := range fresh.held {
		if want[fe] == nil {
			t.Errorf("%s: still in the kernel", fe)
		}
	}
	if !reflect.DeepEqual(ips, wantIPs) || !reflect.DeepEqual(local, wantLocal) {
		t.Errorf("cluster IPs %v, want %v; local endpoints %v, want %v", ips, wantIPs, local, wantLocal)
	}
}

// readAll reads what the kernel holds, again if it changed meanwhile.
func readAll(t *testing.T, tab *Table) (out [2]contents) {
	t.Helper()
	for range maxReads {
		var errs []error
		tab.held, tab.picks, tab.codes = make(map[service.Frontend]*held), make(map[pickChain]int), newCodes()
		tab.groups = make(map[service.Frontend]*group)
		for i, f := range []*family{tab.v4, tab.v6} {
			c, err := tab.read(f)
			out[i], errs = c, append(errs, err)
		}
		err := errors.Join(errs...)
		if err == nil {
			return out
		}
		if !errors.Is(err, nft.ErrInterrupted) {
			t.Fatal(err)
		}
	}
	t.Fatal("the tables never came to rest")
	return out
}

func compareSlots(t *testing.T, fe service.Frontend, got, want slotted) {
	t.Helper()
	slots := slices.Clone(got.slots)
	slices.SortFunc(slots, netip.AddrPort.Compare)
	if !slices.Equal(slots, want.slots) {
		t.Errorf("%s: slots %v, want %v in some order", fe, got.slots, want.slots)
	}
	if want.kind != sticky {
		if len(got.members) > 0 {
			t.Errorf("%s: members %v without affinity", fe, got.members)
		}
		return
	}
	if !slices.Equal(got.members, want.slots) {
		t.Errorf("%s: members %v, want %v", fe, got.members, want.slots)
	}
}

// compareGroup checks that a frontend with affinity is known as one of its Service port, and that the port knows each
// endpoint by a number of its own.
func compareGroup(t *testing.T, fe service.Frontend, h *held, r *service.Rule, affinity bool) {
	t.Helper()
	if !affinity {
		if h.group != nil {
			t.Errorf("%s: one of %s, without affinity", fe, h.group.port)
		}
		return
	}
	if h.group == nil || h.group.port != portOf(fe, r) {
		t.Errorf("%s: one of %v, want %s", fe, h.group, portOf(fe, r))
		return
	}
	seen := make(map[uint16]bool)
	for ep, n := range h.group.numbers {
		if seen[n.n] || n.n == 0 {
			t.Errorf("%s: endpoint %s shares its number with another", fe, ep)
		}
		seen[n.n] = true
	}
}

// TestRandomChanges lets one Table, that knows what it did, and then another, that has to read it back, turn random
// rules into others, and compares the kernel with what was wanted each time. Small limits force it to cut changes
// into several transactions.
func TestRandomChanges(t *testing.T) {
	for _, limit := range []int{0, 60_000, 24_000} {
		t.Run(fmt.Sprintf("limit %d", limit), func(t *testing.T) {
			nstest.Enter(t)
			r := rand.New(rand.NewPCG(1, uint64(limit)))
			tab := open(t)
			reopen := func() {
				if limit > 0 {
					tab.limit = limit
				}
			}
			reopen()
			now := make(rules)
			if _, err := tab.Sync(now); err != nil {
				t.Fatal(err)
			}
			verify(t, now)
			for step := range 60 {
				next := make(rules)
				for n := range 12 {
					if r.IntN(4) == 0 {
						for fe, rule := range random(r, n+1) {
							next[fe] = rule
						}
					} else if r.IntN(6) > 0 {
						for fe, rule := range now {
							if rule.Service.Name == fmt.Sprintf("svc-%d", n+1) {
								next[fe] = rule
							}
						}
					}
				}
				if step%7 == 6 {
					_ = tab.Close()
					tab = open(t)
					reopen()
					gone, err := tab.Sync(next)
					if err != nil {
						t.Fatalf("step %d: sync: %v", step, err)
					}
					for _, fe := range gone {
						if next[fe] != nil || now[fe] == nil {
							t.Errorf("step %d: %s was reported gone", step, fe)
						}
					}
				} else if err := tab.Apply(changes(now, next)); err != nil {
					t.Fatalf("step %d: apply: %v", step, err)
				}
				now = next
				verify(t, now)
				if t.Failed() {
					t.Fatalf("step %d, limit %d", step, limit)
				}
			}
		})
	}
}

// TestEveryMoment looks at the kernel after each transaction, and lets the agent die after any of them: at each moment
// every Service is as it was or as it is to be, none is in between, and the next agent gets it right.
func TestEveryMoment(t *testing.T) {
	nstest.Enter(t)
	r := rand.New(rand.NewPCG(5, 5))
	now := make(rules)
	first := open(t)
	if _, err := first.Sync(now); err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	died := errors.New("died")
	for step := range 80 {
		next := make(rules)
		for n := range 6 {
			for fe, rule := range random(r, n+1) {
				next[fe] = rule
			}
		}
		tab := open(t)
		tab.limit = 16_000
		if _, err := tab.Sync(now); err != nil {
			t.Fatal(err)
		}
		tab.serial = true // each transaction is looked at before the next
		lives := r.IntN(12)
		tab.commit = func(b *nft.Batch) error {
			if lives == 0 {
				return died
			}
			if lives--; b.Empty() {
				return nil
			}
			if err := tab.conn.Commit(b); err != nil {
				return err
			}
			between(t, now, next)
			return nil
		}
		var err error
		if step%3 == 0 {
			_, err = tab.Sync(next)
		} else {
			err = tab.Apply(changes(now, next))
		}
		if err != nil && !errors.Is(err, died) {
			t.Fatalf("step %d: %v", step, err)
		}
		if err == nil {
			verify(t, next)
		} else if tab.Synced() {
			t.Error("synced after an error")
		}
		_ = tab.Close()
		heir := open(t)
		if _, err := heir.Sync(next); err != nil {
			t.Fatalf("step %d: the next agent: %v", step, err)
		}
		verify(t, next)
		_ = heir.Close()
		if now = next; t.Failed() {
			t.Fatalf("step %d", step)
		}
	}
}

// between checks that the kernel treats each Service as one of two sets of rules says: all its frontends alike.
func between(t *testing.T, old, next rules) {
	t.Helper()
	fresh := open(t)
	defer func() { _ = fresh.Close() }()
	readAll(t, fresh)
	does := func(fe service.Frontend, r *service.Rule) bool {
		h := fresh.held[fe]
		if r == nil {
			return h == nil || h.services == ""
		}
		if h == nil {
			return false
		}
		w := wanted(r, h.main.span, h.within.span)
		return h.services == w.services && h.admitted == w.admitted && h.outside == w.outside && h.inside == w.inside &&
			sameSlots(h.main, w.main) && sameSlots(h.within, w.within) && slices.Equal(h.sources, w.sources)
	}
	for n := range 6 {
		name := fmt.Sprintf("svc-%d", n+1)
		was, is := true, true
		for _, r := range []rules{old, next} {
			for fe, rule := range r {
				if rule.Service.Name == name {
					was, is = was && does(fe, old[fe]), is && does(fe, next[fe])
				}
			}
		}
		if !was && !is {
			t.Errorf("%s is neither as it was nor as it is to be", name)
		}
	}
}

func sameSlots(got, want slotted) bool {
	// Slots beyond those that are drawn from do not matter.
	slots := slices.Clone(got.slots[:min(len(got.slots), len(want.slots))])
	slices.SortFunc(slots, netip.AddrPort.Compare)
	return slices.Equal(slots, want.slots)
}

// TestBigService has more endpoints than a transaction takes.
func TestBigService(t *testing.T) {
	nstest.Enter(t)
	tab := open(t)
	tab.limit = 64_000
	fe := service.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: model.TCP, Port: 80}
	rule := func(from, n int, affinity time.Duration) rules {
		r := &service.Rule{Service: model.Name{Namespace: "ns", Name: "big"}, Main: service.Pool{Endpoints: endpoints(model.IPv4, from, n)}, Affinity: affinity}
		return rules{fe: r}
	}
	now := rule(0, 10000, 0)
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	verify(t, now)
	for _, next := range []rules{
		rule(0, 9999, 0),
		rule(10000, 10000, 0), // none stays
		rule(10000, 10000, time.Hour),
		rule(12000, 10000, time.Hour),
		rule(12000, 3, time.Hour),
		rule(0, 20000, time.Hour), // too many to number: without affinity
		rule(0, 5000, 0),
		{},
	} {
		if err := tab.Apply(changes(now, next)); err != nil {
			t.Fatal(err)
		}
		now = next
		verify(t, now)
	}
}

// TestSlotsStay checks that a change writes no more than it must: the endpoints that stay keep their slots.
func TestSlotsStay(t *testing.T) {
	ep := func(n ...int) (out []netip.AddrPort) {
		for _, i := range n {
			out = append(out, endpoints(model.IPv4, i, 1)...)
		}
		return out
	}
	for _, c := range []struct{ old, want, got []netip.AddrPort }{
		{nil, ep(1, 2, 3), ep(1, 2, 3)},
		{ep(1, 2, 3), ep(1, 2, 3), ep(1, 2, 3)},
		{ep(3, 1, 2), ep(1, 2, 3), ep(3, 1, 2)},
		{ep(1, 2, 3), ep(2, 3), ep(3, 2)},
		{ep(1, 2, 3), ep(1, 3), ep(1, 3)},
		{ep(1, 2, 3), ep(1, 2), ep(1, 2)},
		{ep(1, 3), ep(1, 2, 3), ep(1, 3, 2)},
		{ep(1, 2, 3), ep(4, 5), ep(4, 5)},
		{append(ep(1), netip.AddrPort{}), ep(1, 2), ep(1, 2)},
		{ep(1, 1), ep(1, 2), ep(1, 2)},
		{ep(1, 2), nil, ep()},
	} {
		if got := reslot(c.old, c.want); !slices.Equal(got, c.got) {
			t.Errorf("%v to %v: %v, want %v", c.old, c.want, got, c.got)
		}
	}
}

func TestLabels(t *testing.T) {
	for _, p := range []pick{{n: 1}, {n: 12}, {n: 1, mixed: true}, {n: 70, span: insideBit, mixed: true}, {n: 10000, span: spareBit}, {n: 3, span: insideBit}, {n: 3, affinity: 10800},
		{n: 65535, span: insideBit | spareBit, affinity: 86400}} {
		got, ok := parsePick(p.label())
		if !ok || got != p {
			t.Errorf("%+v: label %s reads back as %+v, %v", p, p.label(), got, ok)
		}
	}
	for _, l := range []string{"", "reject", "pick-", "pick-0", "pick-1-2", "st-3", "in-3-4", "pick-03", "pick-x"} {
		if p, ok := parsePick(l); ok {
			t.Errorf("%q was taken for %+v", l, p)
		}
	}
	c := newCodes()
	if got := c.code("pick-12"); got != 0x0012 {
		t.Errorf("pick-12 is %#x, want the digits 12", got)
	}
	a, b := c.code("st-2-60"), c.code("pick-10000")
	if a == b || a < firstOther || b < firstOther {
		t.Errorf("st-2-60 is %#x, pick-10000 %#x", a, b)
	}
	c.forget("st-2-60")
	if _, ok := c.label(native32(uint32(a))); ok {
		t.Errorf("%#x still stands for something", a)
	}
}

// TestAliasesAreNeutral: an alias must have the ones' complement sum of what it stands for.
func TestAliasesAreNeutral(t *testing.T) {
	sum := func(a netip.Addr) int {
		n := 0
		for i, b := range a.AsSlice() {
			n += int(b) << (8 * (1 - i%2))
		}
		return n % 0xffff
	}
	for f, a := range aliases {
		if sum(a) != sum(loopbacks[f]) {
			t.Errorf("%s: %s adds up to %#x, %s to %#x", f, a, sum(a), loopbacks[f], sum(loopbacks[f]))
		}
	}
}

// TestNobodyElse checks that other tables are left alone, that ours are repaired from any state, and that Remove
// leaves nothing.
func TestNobodyElse(t *testing.T) {
	nstest.Enter(t)
	other, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	foreign := nft.Table{Family: nft.IPv4, Name: "weft-servicesx"}
	var b nft.Batch
	b.AddTable(foreign, "somebody else's")
	// A table of our name with a map of another type, and an older layout's.
	b.AddTable(nft.Table{Family: nft.IPv4, Name: TableName}, "")
	b.AddSet(&nft.Set{Table: nft.Table{Family: nft.IPv4, Name: TableName}, Name: "services", Key: nft.Type{nft.IPv4Addr}})
	b.AddTable(nft.Table{Family: nft.IPv6, Name: TableName + "-old"}, "")
	if err := other.Commit(&b); err != nil {
		t.Fatal(err)
	}
	tab := openShared(t)
	now := random(rand.New(rand.NewPCG(7, 7)), 1)
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	verify(t, now)
	tables := func(f nft.Family) []string {
		names, err := other.Tables(f)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names
	}
	if got := tables(nft.IPv4); !slices.Equal(got, []string{TableName, foreign.Name}) {
		t.Errorf("ip tables: %v", got)
	}
	if got := tables(nft.IPv6); !slices.Equal(got, []string{TableName}) {
		t.Errorf("ip6 tables: %v", got)
	}
	for name, harm := range map[string]func(*nft.Batch){
		"table deleted":    func(b *nft.Batch) { b.DeleteTable(tab.v4.table) },
		"map flushed":      func(b *nft.Batch) { b.FlushSet(tab.v4.services) },
		"endpoint deleted": func(b *nft.Batch) { b.FlushSet(tab.v6.endpoints); b.FlushSet(tab.v6.ids); b.FlushSet(tab.v6.ports) },
		"chain flushed":    func(b *nft.Batch) { b.FlushChain(nft.Chain{Table: tab.v4.table, Name: "services"}) },
		"elements added": func(b *nft.Batch) {
			k := appendKey(nil, service.Frontend{Addr: netip.MustParseAddr("1.2.3.4"), Protocol: model.TCP, Port: 5})
			b.Add(tab.v4.services, k, native32(0x77), "")
			b.Add(tab.v4.endpoints, append(slices.Clone(k), native32(1<<19)...), appendEndpoint(nil, netip.MustParseAddrPort("1.1.1.1:1")), "")
			b.Add(tab.v4.clusterIPs, []byte{9, 9, 9, 9}, nil, "")
			b.AddChain(nft.Chain{Table: tab.v4.table, Name: "stranger"})
		},
	} {
		var b nft.Batch
		harm(&b)
		if err := other.Commit(&b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ctx, cancel := contextWithTimeout()
		if changed, err := tab.Wait(ctx); !changed || err != nil {
			t.Errorf("%s: not noticed: %v", name, err)
		}
		cancel()
		tab.rewritten = 0
		if _, err := tab.Sync(now); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if whole := name == "table deleted"; !whole && tab.rewritten > 1 || whole && tab.rewritten < 10 {
			t.Errorf("%s: %d chains were rewritten", name, tab.rewritten)
		}
		if verify(t, now); t.Failed() {
			t.Fatal(name)
		}
	}
	if err := tab.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := append(tables(nft.IPv4), tables(nft.IPv6)...); !slices.Equal(got, []string{foreign.Name}) {
		t.Errorf("after Remove: %v", got)
	}
}

// TestOwnChangesAreNotNews checks that a Table does not hear of what it did itself.
func TestOwnChangesAreNotNews(t *testing.T) {
	nstest.Enter(t)
	tab := openShared(t)
	now := random(rand.New(rand.NewPCG(7, 7)), 1)
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	if err := tab.Apply(changes(now, nil)); err != nil {
		t.Fatal(err)
	}
	// Whatever there is to hear has been queued by now; a change by another ends the wait, and it must be the first.
	other, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	heard := make(chan bool, 1)
	ctx, cancel := contextWithTimeout()
	defer cancel()
	go func() {
		changed, _ := tab.Wait(ctx)
		heard <- changed
	}()
	select {
	case <-heard:
		t.Fatal("woken by its own change")
	case <-time.After(50 * time.Millisecond):
	}
	var b nft.Batch
	b.AddChain(nft.Chain{Table: tab.v4.table, Name: "stranger"})
	if err := other.Commit(&b); err != nil {
		t.Fatal(err)
	}
	if !<-heard {
		t.Fatal("somebody else's change was not noticed")
	}
}

// TestOthersMeanwhile: what somebody else does to new tables while they are filled, when nobody listens yet, is found
// out and repaired.
func TestOthersMeanwhile(t *testing.T) {
	nstest.Enter(t)
	other, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	tab := openShared(t)
	tab.serial = true
	now := random(rand.New(rand.NewPCG(7, 7)), 1)
	harmed := false
	tab.commit = func(b *nft.Batch) error {
		if err := tab.conn.Commit(b); err != nil || harmed || len(tab.held) == 0 {
			return err
		}
		harmed = true
		var harm nft.Batch
		harm.FlushSet(tab.v4.services)
		harm.FlushSet(tab.v6.services)
		return other.Commit(&harm)
	}
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	if !harmed {
		t.Fatal("nothing was done to the tables")
	}
	verify(t, now)
}

// TestSetsGrow: sets that are made for a number of elements hold more; where the kernel can't change their size, they
// are made for no number.
func TestSetsGrow(t *testing.T) {
	nstest.Enter(t)
	for _, resized := range []uint32{unlimited, 0} { // 0 changes nothing, as in a kernel that can't
		tab := open(t)
		tab.resized = resized
		if _, err := tab.Sync(make(rules)); err != nil {
			t.Fatal(err)
		}
		now := make(rules)
		for i := range 3 * leastBuckets {
			fe := service.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Protocol: model.TCP, Port: 80}
			now[fe] = &service.Rule{Service: model.Name{Namespace: "ns", Name: fmt.Sprint(i)}, Main: service.Pool{Endpoints: endpoints(model.IPv4, i, 1)}}
		}
		if err := tab.Apply(changes(nil, now)); err != nil {
			t.Fatalf("size %d: %v", resized, err)
		}
		verify(t, now)
		if err := tab.Remove(); err != nil {
			t.Fatal(err)
		}
		_ = tab.Close()
	}
}

// TestReadable has the nft tool print the tables: some releases abort on what they don't expect.
func TestReadable(t *testing.T) {
	tool, err := exec.LookPath("nft")
	nstest.Require(t, err)
	nstest.Enter(t)
	tab := open(t)
	tab.cfg.LoopbackNodePorts = true
	now := make(rules)
	r := rand.New(rand.NewPCG(3, 3))
	for n := range 20 {
		for fe, rule := range random(r, n+1) {
			now[fe] = rule
		}
	}
	for f, a := range map[model.Family]string{model.IPv4: "10.96.1.1", model.IPv6: "fd00:96::1:1"} {
		eps := endpoints(f, 1, 3)
		eps[1] = netip.AddrPortFrom(eps[1].Addr(), 9090)
		now[service.Frontend{Addr: netip.MustParseAddr(a), Protocol: model.TCP, Port: 80}] = &service.Rule{
			Service: model.Name{Namespace: "ns", Name: "mixed"}, Main: service.Pool{Endpoints: eps}}
	}
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "Error") {
		t.Errorf("the tool can't print all: %s", out)
	}
	for _, want := range []string{
		`10.96.0.3 . tcp . 80 comment "ns/svc-3:p" : `,
		"meta priority set numgen random mod 3 ",
		"dnat to ip daddr . meta l4proto . th dport . meta priority & ffff:fffc map @rows",
		"10.128.0.22 . 10.128.0.23 . 10.128.0.24 . 0.0.0.0 . 8080",
		"dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints",
		"dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints",
		"goto pick-3", "goto external-local",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the ruleset lacks %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

func contextWithTimeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}
