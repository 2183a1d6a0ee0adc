// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// The reasons of an AddressPool's Accepted condition.
const (
	PoolAccepted    = "Accepted"
	PoolConflict    = "Conflict"         // it has addresses that an older pool has
	PoolInvalid     = "InvalidAddresses" // some of spec.addresses can't be read; the others are used
	PoolNoAddresses = "NoAddresses"      // none of spec.addresses can be read
)

// PoolStatus is what became of an AddressPool.
type PoolStatus struct {
	Generation int64
	UID        string
	Accepted   bool // addresses are assigned from it
	Reason     string
	Message    string
	IPv4, IPv6 Usage
}

// Usage counts a pool's addresses of one family. Each count ends at math.MaxInt64.
type Usage struct {
	Total int64 `json:"total"` // in the pool
	Used  int64 `json:"used"`  // had by Services
	Free  int64 `json:"free"`  // to be had
}

// pool is an AddressPool and where to look in it for a free address.
type pool struct {
	*model.AddressPool
	spans    []span // ascending, no two overlapping
	accepted bool
	reason   string
	message  string
}

// span is a range of a pool: no address below next is free.
type span struct {
	model.AddressRange
	next netip.Addr // invalid: the range is used up
}

func newPool(p *model.AddressPool) *pool {
	out := &pool{AddressPool: p, accepted: true, reason: PoolAccepted, message: "addresses are assigned from this pool"}
	ranges := slices.SortedFunc(slices.Values(p.Ranges), func(a, b model.AddressRange) int {
		return cmp.Or(a.First.Compare(b.First), b.Last.Compare(a.Last))
	})
	for _, r := range ranges {
		if n := len(out.spans); n > 0 && out.spans[n-1].Overlaps(r) {
			if last := &out.spans[n-1]; last.Last.Less(r.Last) {
				last.Last = r.Last
			}
			continue
		}
		out.spans = append(out.spans, span{AddressRange: r, next: r.First})
	}
	if len(p.Invalid) > 0 {
		out.reason, out.message = PoolInvalid, "left out: "+strings.Join(p.Invalid, "; ")
	}
	if len(out.spans) == 0 {
		out.refuse(PoolNoAddresses, "spec.addresses has no usable address; "+out.message)
	}
	return out
}

func (p *pool) refuse(reason, message string) {
	p.accepted, p.reason, p.message = false, reason, message
}

// judge refuses each pool that has an address in common with the cluster's own ranges or with an older accepted one, and
// puts the pools in the order
// in which they are tried: accepted ones first, of those the ones made for some Services only, then by name.
func judge(pools map[string]*pool, inUse map[string][]model.AddressRange) []*pool {
	byAge := make([]*pool, 0, len(pools))
	for _, p := range pools {
		byAge = append(byAge, p)
	}
	slices.SortFunc(byAge, func(a, b *pool) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.Name.Name, b.Name.Name))
	})
	for i, p := range byAge {
		for _, what := range slices.Sorted(maps.Keys(inUse)) {
			for _, r := range inUse[what] {
				if mine, ok := p.overlaps(r); ok && p.accepted {
					p.refuse(PoolConflict, fmt.Sprintf(
						"%s overlaps %s, which is for %s: no addresses are assigned from this pool until spec.addresses is changed", mine, r, what))
				}
			}
		}
		for _, older := range byAge[:i] {
			if mine, theirs, ok := common(p, older); ok && p.accepted && older.accepted {
				p.refuse(PoolConflict, fmt.Sprintf(
					"%s overlaps %s of the older AddressPool %q: no addresses are assigned from this pool until spec.addresses of one of them is changed",
					mine, theirs, older.Name))
			}
		}
	}
	rank := func(p *pool) int {
		switch {
		case !p.accepted:
			return 2
		case p.NamespaceSelector == nil && p.ServiceSelector == nil:
			return 1
		}
		return 0
	}
	slices.SortFunc(byAge, func(a, b *pool) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Name.Name, b.Name.Name))
	})
	return byAge
}

// overlaps finds what of the pool has an address in common with a range.
func (p *pool) overlaps(r model.AddressRange) (model.AddressRange, bool) {
	for i := range p.spans {
		if p.spans[i].Overlaps(r) {
			return p.spans[i].AddressRange, true
		}
	}
	return model.AddressRange{}, false
}

func common(a, b *pool) (model.AddressRange, model.AddressRange, bool) {
	for _, x := range a.spans {
		for _, y := range b.spans {
			if x.Overlaps(y.AddressRange) {
				return x.AddressRange, y.AddressRange, true
			}
		}
	}
	return model.AddressRange{}, model.AddressRange{}, false
}

// admits tells whether the pool is meant for the Service, given its namespace's labels.
func (p *pool) admits(s *model.Service, namespace map[string]string) bool {
	return (p.NamespaceSelector == nil || p.NamespaceSelector.Matches(namespace)) &&
		(p.ServiceSelector == nil || p.ServiceSelector.Matches(s.Labels))
}

func (p *pool) contains(a netip.Addr) bool {
	for i := range p.spans {
		if p.spans[i].Contains(a) {
			return !p.skips(a)
		}
	}
	return false
}

// skips tells whether avoidBuggyIPs leaves the address out.
func (p *pool) skips(a netip.Addr) bool {
	if !p.AvoidBuggyIPs || !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// lowest finds the lowest address of the family that is free; the zero Addr says that there is none.
func (p *pool) lowest(f model.Family, free func(netip.Addr) bool) netip.Addr {
	for i := range p.spans {
		s := &p.spans[i]
		if s.Family() != f {
			continue
		}
		for s.next.IsValid() {
			if !p.skips(s.next) && free(s.next) {
				return s.next
			}
			if s.next = s.next.Next(); !s.Contains(s.next) {
				s.next = netip.Addr{}
			}
		}
	}
	return netip.Addr{}
}

// freed says that the address may be free again.
func (p *pool) freed(a netip.Addr) {
	for i := range p.spans {
		if s := &p.spans[i]; s.Contains(a) && (!s.next.IsValid() || a.Less(s.next)) {
			s.next = a
		}
	}
}

// has tells whether the pool has addresses of the family at all.
func (p *pool) has(f model.Family) bool {
	return slices.ContainsFunc(p.spans, func(s span) bool { return s.Family() == f })
}

// total is the number of the pool's addresses of the family, at most math.MaxInt64.
func (p *pool) total(f model.Family) int64 {
	var n int64
	for _, s := range p.spans {
		if s.Family() != f {
			continue
		}
		size := s.Size()
		if p.AvoidBuggyIPs && f == model.IPv4 {
			size -= skipped(s.AddressRange)
		}
		if n > math.MaxInt64-size {
			return math.MaxInt64
		}
		n += size
	}
	return n
}

// skipped is how many addresses of an IPv4 range end in .0 or .255.
func skipped(r model.AddressRange) int64 {
	number := func(a netip.Addr) int64 {
		b := a.As4()
		return int64(b[0])<<24 | int64(b[1])<<16 | int64(b[2])<<8 | int64(b[3])
	}
	upTo := func(n int64) int64 { // of the addresses 0 to n-1
		return (n+255)/256 + n/256
	}
	return upTo(number(r.Last)+1) - upTo(number(r.First))
}
