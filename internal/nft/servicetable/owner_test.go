// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nstest"
	"github.com/weft-net/weft/internal/service"
)

// owned opens a Table that has its tables as their owner.
func owned(t *testing.T) *Table {
	t.Helper()
	tab := open(t)
	if !tab.owns {
		nstest.Require(t, errors.New("a kernel that keeps others from a table (Linux 6.9)"))
	}
	return tab
}

func dial(t *testing.T) *nft.Conn {
	t.Helper()
	c, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestOwner: nobody else changes the tables, by force or by the way; when their owner is gone they stay in force, and the
// next one takes them over as they are.
func TestOwner(t *testing.T) {
	nstest.Enter(t)
	tab, other := owned(t), dial(t)
	now := random(rand.New(rand.NewPCG(7, 7)), 1)
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]func(*nft.Batch){
		"deletes a table": func(b *nft.Batch) { b.DeleteTable(tab.v4.table) },
		"flushes a map":   func(b *nft.Batch) { b.FlushSet(tab.v6.services) },
		"flushes a chain": func(b *nft.Batch) { b.FlushChain(nft.Chain{Table: tab.v4.table, Name: "services"}) },
		"owns a table":    func(b *nft.Batch) { b.OwnTable(tab.v4.table, "") },
	} {
		var b nft.Batch
		harm(&b)
		if err := other.Commit(&b); !errors.Is(err, unix.EPERM) {
			t.Errorf("somebody %s: %v, want %v", name, err, unix.EPERM)
		}
	}
	flushRuleset(t, other)
	verify(t, now)

	// A second agent beside the first one waits its turn, whatever it is asked to do.
	second := open(t)
	if _, err := second.Sync(make(rules)); !errors.Is(err, unix.EPERM) || second.Synced() {
		t.Errorf("beside the owner: %v, want %v", err, unix.EPERM)
	}
	if err := second.Remove(); !errors.Is(err, unix.EPERM) {
		t.Errorf("Remove beside the owner: %v, want %v", err, unix.EPERM)
	}
	if verify(t, now); t.Failed() {
		t.FailNow()
	}

	// The first one is gone.
	_ = tab.Close()
	verify(t, now)
	before := tableInfos(t, other)
	next := random(rand.New(rand.NewPCG(8, 8)), 1)
	gone, err := second.Sync(next)
	if err != nil {
		t.Fatal(err)
	}
	for _, fe := range gone {
		if now[fe] == nil || next[fe] != nil {
			t.Errorf("%s was reported gone", fe)
		}
	}
	verify(t, next)
	for f, infos := range tableInfos(t, other) {
		if len(infos) != 1 || infos[0].Name != before[f][0].Name || infos[0].Owner != second.conn.Port() || before[f][0].Owner != 0 {
			t.Errorf("%s: tables %+v, before %+v; want the same one, of port %d", f, infos, before[f], second.conn.Port())
		}
	}
	if err := second.Remove(); err != nil {
		t.Fatal(err)
	}
	for f, infos := range tableInfos(t, other) {
		if len(infos) > 0 {
			t.Errorf("%s: after Remove: %+v", f, infos)
		}
	}
}

func tableInfos(t *testing.T, c *nft.Conn) map[nft.Family][]nft.TableInfo {
	t.Helper()
	out := make(map[nft.Family][]nft.TableInfo)
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		infos, err := c.TableInfos(f)
		if err != nil {
			t.Fatal(err)
		}
		out[f] = infos
	}
	return out
}

// flushRuleset is "nft flush ruleset".
func flushRuleset(t *testing.T, c *nft.Conn) {
	t.Helper()
	del := nft.Message{Type: unix.NFT_MSG_DELTABLE, About: "everything"}
	if err := c.CommitMessages(0, []nft.Message{del}); err != nil {
		t.Fatal(err)
	}
}

// TestFlushOfOrphans: nothing keeps others from tables whose owner is gone; the next agent makes them anew.
func TestFlushOfOrphans(t *testing.T) {
	nstest.Enter(t)
	tab, other := owned(t), dial(t)
	now := random(rand.New(rand.NewPCG(7, 7)), 1)
	if _, err := tab.Sync(now); err != nil {
		t.Fatal(err)
	}
	_ = tab.Close()
	flushRuleset(t, other)
	for f, infos := range tableInfos(t, other) {
		if len(infos) > 0 {
			t.Fatalf("%s: a flush of everything leaves %+v", f, infos)
		}
	}
	next := open(t)
	if _, err := next.Sync(now); err != nil {
		t.Fatal(err)
	}
	verify(t, now)
}

// TestHalfMade: a table that an agent left unfinished does not forward, and the next agent finishes it.
func TestHalfMade(t *testing.T) {
	nstest.Enter(t)
	now := random(rand.New(rand.NewPCG(7, 7)), 1)
	died := errors.New("died")
	first := open(t)
	first.serial = true
	commits := 0
	first.commit = func(b *nft.Batch) error {
		if commits++; commits > 4 {
			return died
		}
		return first.conn.Commit(b)
	}
	if _, err := first.Sync(now); !errors.Is(err, died) {
		t.Fatal(err)
	}
	_ = first.Close()
	next := open(t)
	if there, err := next.Present(); err != nil || there {
		t.Errorf("unfinished: present %v, %v", there, err)
	}
	if _, err := next.Sync(now); err != nil {
		t.Fatal(err)
	}
	if there, err := next.Present(); err != nil || !there {
		t.Errorf("finished: present %v, %v", there, err)
	}
	verify(t, now)
}

// TestSharedAfterOwned: an agent that is told to share the tables takes those over that had an owner, and one that is
// not those that had none.
func TestSharedAfterOwned(t *testing.T) {
	nstest.Enter(t)
	r := rand.New(rand.NewPCG(7, 7))
	for _, shared := range []bool{false, true, false, true, true, false} {
		tab := openWith(t, Options{Shared: shared})
		now := random(r, 1)
		if _, err := tab.Sync(now); err != nil {
			t.Fatalf("shared %v: %v", shared, err)
		}
		verify(t, now)
		_ = tab.Close()
	}
}

// TestOlderLayout: the tables of an agent before this layout are in force until the new ones are, and are gone then. What
// they remember of clients with session affinity is not lost with them. That holds wherever an agent dies on the way.
func TestOlderLayout(t *testing.T) {
	for lives := 0; ; lives++ {
		whole := false
		t.Run(fmt.Sprintf("dies after %d transactions", lives), func(t *testing.T) { whole = olderLayout(t, lives) })
		if whole || t.Failed() {
			return
		}
	}
}

// olderLayout has an agent die after so many transactions, unless it is done before, which is told, and another one
// finish.
func olderLayout(t *testing.T, lives int) (whole bool) {
	nstest.Enter(t)
	other := dial(t)
	tab := open(t)
	now := make(rules)
	for _, f := range []struct {
		*family
		vip, lb, was, last, moved string
	}{
		{tab.v4, "10.96.0.1", "203.0.113.1", "192.168.1.1", "192.168.1.2", "192.168.1.3"},
		{tab.v6, "fd00:96::1", "fd00:203::1", "fd00:192::1", "fd00:192::2", "fd00:192::3"},
	} {
		eps := endpoints(f.name(), 1, 3)
		rule := &service.Rule{Service: model.Name{Namespace: "ns", Name: "web"}, Main: service.Pool{Endpoints: eps[:2]}, Affinity: time.Hour,
			ClusterIP: netip.AddrPortFrom(netip.MustParseAddr(f.vip), 80)}
		vip := service.Frontend{Addr: netip.MustParseAddr(f.vip), Protocol: model.TCP, Port: 80}
		lb := service.Frontend{Addr: netip.MustParseAddr(f.lb), Protocol: model.TCP, Port: 80}
		now[vip], now[lb] = rule, rule

		// As the first layout had it: each frontend with numbers of its own, and a third endpoint that is gone by now.
		old := nft.Table{Family: f.table.Family, Name: firstName}
		set := func(s *nft.Set) *nft.Set {
			is := *s
			is.Table = old
			return &is
		}
		stay, affinity := set(f.stay), set(f.affinity)
		var b nft.Batch
		b.AddTable(old, "")
		b.AddChain(nft.Chain{Table: old, Name: chainPrerouting, Hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_PRE_ROUTING, Priority: priorityDNAT}})
		b.AddSet(stay)
		b.AddSet(affinity)
		for i, ep := range eps {
			b.Add(stay, append(appendKey(nil, vip), native32(uint32(1+i))...), appendEndpoint(nil, ep), "")
			b.Add(stay, append(appendKey(nil, lb), native32(uint32(7-i))...), appendEndpoint(nil, ep), "")
		}
		remember := func(client string, fe service.Frontend, n uint32, left time.Duration) {
			b.AddTimed(affinity, appendKey(netip.MustParseAddr(client).AsSlice(), fe), native32(n), time.Hour, left)
		}
		remember(f.was, vip, 2, 30*time.Minute)  // the second
		remember(f.last, vip, 1, 20*time.Minute) // the first, before
		remember(f.last, lb, 6, 40*time.Minute)  // the second
		remember(f.moved, lb, 5, 30*time.Minute) // the third
		if err := other.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	if there, err := tab.Present(); err != nil || !there {
		t.Errorf("present: %v, %v", there, err)
	}
	died := errors.New("died")
	commits := 0
	tab.serial = true
	tab.commit = func(b *nft.Batch) error {
		if commits == lives {
			return died
		}
		for f, infos := range tableInfos(t, other) {
			if !slices.ContainsFunc(infos, func(i nft.TableInfo) bool { return i.Name == firstName }) {
				t.Errorf("%s: after %d transactions the old table is gone, and there are more to come", f, commits)
			}
		}
		commits++
		return tab.conn.Commit(b)
	}
	_, err := tab.Sync(now)
	if whole = err == nil; !whole {
		if !errors.Is(err, died) {
			t.Fatal(err)
		}
		_ = tab.Close()
		tab = open(t)
		if there, err := tab.Present(); err != nil || !there {
			t.Errorf("present: %v, %v", there, err)
		}
		if _, err := tab.Sync(now); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, now)
	for f, infos := range tableInfos(t, other) {
		if len(infos) != 1 || infos[0].Name != TableName {
			t.Errorf("%s: tables %+v", f, infos)
		}
	}
	for _, f := range []*family{tab.v4, tab.v6} {
		left := make(map[string]time.Duration)
		err := other.Elements(f.affinity, func(e nft.Elem) {
			client, _ := netip.AddrFromSlice(e.Key[:f.bits/8])
			port, _, _ := f.parseKey(e.Key[f.bits/8:])
			n, _ := codeOf(e.Data)
			g := tab.groups[port]
			if want := endpoints(f.name(), 2, 1)[0]; g == nil || g.of(want) != n {
				t.Errorf("%s of %s stays at number %d of %+v, want that of %s", client, port, n, g, want)
			}
			if e.Timeout != time.Hour {
				t.Errorf("%s: timeout %s", client, e.Timeout)
			}
			left[client.String()[len(client.String())-1:]] = e.Expires
		})
		if err != nil {
			t.Fatal(err)
		}
		within := func(client string, most time.Duration) bool {
			return left[client] > most-10*time.Minute && left[client] <= most
		}
		if len(left) != 2 || !within("1", 30*time.Minute) || !within("2", 40*time.Minute) {
			t.Errorf("%s: what is left of clients' time: %v", f.table, left)
		}
	}
	return whole
}

// TestAnotherPort: a frontend that becomes another Service port's knows each endpoint by that port's number, also where
// a number was another endpoint's before.
func TestAnotherPort(t *testing.T) {
	for _, limit := range []int{0, 16_000} {
		nstest.Enter(t)
		tab := open(t)
		if limit > 0 {
			tab.limit = limit
		}
		eps := colliding(80)
		lb := service.Frontend{Addr: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}
		rule := func(service_, clusterIP string, eps []netip.AddrPort) *service.Rule {
			slices.SortFunc(eps, netip.AddrPort.Compare)
			return &service.Rule{Service: model.Name{Namespace: "ns", Name: service_}, Main: service.Pool{Endpoints: eps}, Affinity: time.Hour,
				ClusterIP: netip.AddrPortFrom(netip.MustParseAddr(clusterIP), 80)}
		}
		vip := func(ip string) service.Frontend {
			return service.Frontend{Addr: netip.MustParseAddr(ip), Protocol: model.TCP, Port: 80}
		}
		// The two Services number the same endpoints in other orders: each has had half of them before.
		first, second := slices.Clone(eps[:40]), slices.Clone(eps[40:])
		now := rules{
			vip("10.96.0.1"): rule("one", "10.96.0.1", first), lb: rule("one", "10.96.0.1", slices.Clone(first)),
			vip("10.96.0.2"): rule("two", "10.96.0.2", second),
		}
		if _, err := tab.Sync(now); err != nil {
			t.Fatal(err)
		}
		all := func() []netip.AddrPort { return slices.Clone(eps) }
		for _, next := range []rules{
			{vip("10.96.0.1"): rule("one", "10.96.0.1", all()), lb: rule("one", "10.96.0.1", all()), vip("10.96.0.2"): rule("two", "10.96.0.2", all())},
			{vip("10.96.0.1"): rule("one", "10.96.0.1", all()), lb: rule("two", "10.96.0.2", all()), vip("10.96.0.2"): rule("two", "10.96.0.2", all())},
			{vip("10.96.0.1"): rule("one", "10.96.0.1", all()), lb: rule("one", "10.96.0.1", all()), vip("10.96.0.2"): rule("two", "10.96.0.2", all())},
		} {
			if err := tab.Apply(changes(now, next)); err != nil {
				t.Fatalf("limit %d: %v", limit, err)
			}
			now = next
			if verify(t, now); t.Failed() {
				t.Fatalf("limit %d", limit)
			}
		}
		differ := false
		for _, ep := range eps {
			differ = differ || tab.held[vip("10.96.0.1")].group.of(ep) != tab.held[vip("10.96.0.2")].group.of(ep)
		}
		if !differ {
			t.Error("both Services have the same numbers: nothing was tested")
		}
	}
}

// colliding are endpoints that all would have the same number, if they could, in no order.
func colliding(n int) (out []netip.AddrPort) {
	want := hashEndpoint(endpoints(model.IPv4, 0, 1)[0])
	for port := uint16(1); len(out) < n; port++ {
		for _, ep := range endpoints(model.IPv4, 0, 1<<15) {
			if ep = netip.AddrPortFrom(ep.Addr(), port); hashEndpoint(ep) == want {
				out = append(out, ep)
			}
		}
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:n]
}
