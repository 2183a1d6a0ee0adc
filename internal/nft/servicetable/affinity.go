// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"errors"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/service"
)

// group is the frontends of a Service port, with session affinity: they share what is remembered of a client, so they
// must know each endpoint by the same number.
type group struct {
	port      service.Frontend // of the cluster IP, by which the kernel's maps know the group
	frontends int
	numbers   map[netip.AddrPort]number
}

// number is what affinity knows an endpoint by.
type number struct {
	n     uint16
	pools int // that have the endpoint
}

// of is the number of an endpoint that the group has; of others, and without a group, 0, which is none.
func (g *group) of(ep netip.AddrPort) uint16 {
	if g == nil {
		return 0
	}
	return g.numbers[ep].n
}

// portOf is how the kernel's maps know the group of a frontend.
func portOf(fe service.Frontend, r *service.Rule) service.Frontend {
	if !r.ClusterIP.IsValid() {
		return fe
	}
	return service.Frontend{Addr: r.ClusterIP.Addr(), Protocol: fe.Protocol, Port: r.ClusterIP.Port()}
}

// join makes a frontend one of its group.
func (t *Table) join(fe service.Frontend, r *service.Rule) *group {
	g := t.groupOf(portOf(fe, r))
	g.frontends++
	return g
}

func (t *Table) groupOf(port service.Frontend) *group {
	g := t.groups[port]
	if g == nil {
		g = &group{port: port, numbers: make(map[netip.AddrPort]number)}
		t.groups[port] = g
	}
	return g
}

// number has a pool be of these endpoints and gives each a number that no other of the group has, nor had before this
// change: what affinity remembers must not come to mean another endpoint. An endpoint keeps its number.
func (g *group) number(members []netip.AddrPort) {
	var taken map[uint16]bool
	for _, ep := range members {
		num, ok := g.numbers[ep]
		if !ok {
			if taken == nil {
				taken = make(map[uint16]bool, len(g.numbers)+len(members))
				for _, other := range g.numbers {
					taken[other.n] = true
				}
			}
			for num.n = hashEndpoint(ep); num.n == 0 || taken[num.n]; {
				num.n++
			}
			taken[num.n] = true
		}
		num.pools++
		g.numbers[ep] = num
	}
}

// leave takes what was held for a frontend out of its group: for when the kernel does not hold it any more.
func (t *Table) leave(h *held) {
	g := h.group
	if g == nil {
		return
	}
	for _, s := range []*slotted{&h.main, &h.within} {
		for _, ep := range s.members {
			num := g.numbers[ep]
			if num.pools--; num.pools == 0 {
				delete(g.numbers, ep)
			} else {
				g.numbers[ep] = num
			}
		}
	}
	if g.frontends--; g.frontends == 0 {
		delete(t.groups, g.port)
	}
}

// hashEndpoint spreads endpoints over the numbers, so that one that comes back is likely to be known again.
func hashEndpoint(ep netip.AddrPort) uint16 {
	h := fnv.New32a()
	b, _ := ep.MarshalBinary() // of an AddrPort it never fails
	_, _ = h.Write(b)          // nor does this
	v := h.Sum32()
	return uint16(v>>16) ^ uint16(v)
}

// clashes are the numbers of a pool before and after a plan that takes its frontend from one group to another.
func (p *plan) clashes(old, next []netip.AddrPort) (was, is map[uint16]bool) {
	if p.old.group == nil || p.next.group == nil || p.old.group == p.next.group {
		return nil, nil
	}
	numbers := func(g *group, members []netip.AddrPort) map[uint16]bool {
		out := make(map[uint16]bool, len(members))
		for _, ep := range members {
			out[g.of(ep)] = true
		}
		return out
	}
	return numbers(p.old.group, old), numbers(p.next.group, next)
}

// setGroup has the kernel know the group of a frontend.
func (t *Table) setGroup(p *plan) {
	was, is := p.old.group, p.next.group
	if was == is {
		return
	}
	if was != nil {
		t.key = appendKey(t.key[:0], p.fe)
		t.batch.Delete(p.f.ports, t.key)
	}
	if is != nil {
		t.key = appendKey(t.key[:0], p.fe)
		t.data = appendKey(append(t.data[:0], 0, 0, 0, 0), is.port)
		t.batch.Add(p.f.ports, t.key, t.data, "")
	}
}

// readGroups reads which frontends belong together.
func (t *Table) readGroups(f *family, c *contents) error {
	return t.conn.Elements(f.ports, func(e nft.Elem) {
		fe, _, ok := f.parseKey(e.Key)
		if !ok || len(e.Data) < 4 {
			return
		}
		port, _, ok := f.parseKey(e.Data[4:])
		if !ok {
			return
		}
		h := t.heldOf(fe)
		if c.twice = c.twice || h.group != nil; c.twice {
			return
		}
		h.group = t.groupOf(port)
		h.group.frontends++
	})
}

// inherit takes over from tables of the first layout which client is to stay where, as far as that endpoint is one still.
// There every frontend had numbers of its own, and remembered clients for itself.
func (t *Table) inherit(f *family, c *contents) error {
	old := nft.Table{Family: f.table.Family, Name: firstName}
	if !slices.Contains(c.obsolete, old) || slices.Contains(c.chains, chainPrerouting) {
		return nil // there is none, or ours is in force and knows better
	}
	// What is read is to be of one moment.
	if err := t.flush(true); err != nil {
		return err
	}
	set := func(s *nft.Set) *nft.Set {
		is := *s
		is.Table = old
		return &is
	}
	type numbered struct {
		service.Frontend
		n uint16
	}
	// Where a set was reordered while it was read, some elements come twice, and others do not come.
	twice := false
	endpoints := make(map[numbered]netip.AddrPort)
	for _, s := range []*nft.Set{f.stay, f.stayInside} {
		err := t.conn.Elements(set(s), func(e nft.Elem) {
			fe, rest, ok := f.parseKey(e.Key)
			n, ok2 := codeOf(rest)
			if ep, ok3 := f.parseEndpoint(e.Data); ok && ok2 && ok3 {
				was := endpoints[numbered{fe, n}]
				twice = twice || was == ep
				endpoints[numbered{fe, n}] = ep
			}
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	// A client of several frontends stays where it was last.
	type client struct {
		netip.Addr
		port service.Frontend
	}
	type stay struct {
		n             uint16
		timeout, left time.Duration
	}
	clients := make(map[client]stay)
	seen := make(map[string]bool)
	err := t.conn.Elements(set(f.affinity), func(e nft.Elem) {
		if len(e.Key) < f.bits/8 {
			return
		}
		twice = twice || seen[string(e.Key)]
		seen[string(e.Key)] = true
		from, _ := netip.AddrFromSlice(e.Key[:f.bits/8])
		fe, _, ok := f.parseKey(e.Key[f.bits/8:])
		n, ok2 := codeOf(e.Data)
		h := t.held[fe]
		if !ok || !ok2 || h == nil || h.group == nil || e.Expires <= 0 {
			return
		}
		n = h.group.of(endpoints[numbered{fe, n}])
		if k := (client{from, h.group.port}); n != 0 && clients[k].left < e.Expires {
			clients[k] = stay{n, e.Timeout, e.Expires}
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if twice {
		return nft.ErrInterrupted
	}
	for k, s := range clients {
		t.batch.AddTimed(f.affinity, appendKey(appendAddr(nil, k.Addr), k.port), native32(uint32(s.n)), s.timeout, s.left)
		if err := t.flush(false); err != nil {
			return err
		}
	}
	return nil
}

// learn takes in that a pool of the group has an endpoint by a number, and tells whether that goes with what is known.
// endpoints has the same of all groups, by number.
func (g *group) learn(ep netip.AddrPort, n uint16, endpoints map[*group]map[uint16]netip.AddrPort) bool {
	if g == nil {
		return false
	}
	by := endpoints[g]
	if by == nil {
		by = make(map[uint16]netip.AddrPort)
		endpoints[g] = by
	}
	num, known := g.numbers[ep]
	other, taken := by[n]
	if known && num.n != n || taken && other != ep || n == 0 {
		return false
	}
	num.n = n
	num.pools++
	g.numbers[ep], by[n] = num, ep
	return true
}
