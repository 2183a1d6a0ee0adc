// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Range is an inclusive range of addresses of one family.
type Range struct {
	From, To netip.Addr
}

// Contains tells whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// rangeOf is the range of a prefix; an IPv4-mapped one becomes IPv4.
func rangeOf(p netip.Prefix) Range {
	p = p.Masked()
	from := p.Addr()
	b := from.AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	to, _ := netip.AddrFromSlice(b)
	if from.Is4In6() && to.Is4In6() {
		from, to = from.Unmap(), to.Unmap()
	}
	return Range{from, to}
}

// blockRanges is an ipBlock: a prefix without its exceptions.
func blockRanges(block netip.Prefix, except []netip.Prefix) []Range {
	out := []Range{rangeOf(block)}
	for _, e := range except {
		out = subtract(out, rangeOf(e))
	}
	return out
}

func subtract(in []Range, cut Range) []Range {
	var out []Range
	for _, r := range in {
		if r.From.BitLen() != cut.From.BitLen() || cut.To.Less(r.From) || r.To.Less(cut.From) {
			out = append(out, r)
			continue
		}
		if r.From.Less(cut.From) {
			out = append(out, Range{r.From, cut.From.Prev()})
		}
		if cut.To.Less(r.To) {
			out = append(out, Range{cut.To.Next(), r.To})
		}
	}
	return out
}

// mergeRanges sorts ranges and joins those that overlap or touch.
func mergeRanges(in []Range) []Range {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b Range) int { return a.From.Compare(b.From) })
	var out []Range
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].From.BitLen() == r.From.BitLen() {
			last := &out[n-1]
			// Next is invalid after the family's last address, where the range already reaches the end.
			if next := last.To.Next(); !next.IsValid() || r.From.Compare(next) <= 0 {
				if last.To.Less(r.To) {
					last.To = r.To
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// PortRange is an inclusive range of a protocol's ports. In a set of kind PortMap or RangeMap, Target is the chain that decides
// about them by the peer's address; "" admits them from anyone.
type PortRange struct {
	Protocol model.Protocol
	From, To uint16
	Target   string
}

// portRange reads a numeric PolicyPort; one with neither name nor number means every port of its protocol.
func portRange(p model.PolicyPort) PortRange {
	switch {
	case p.Port == 0:
		return PortRange{Protocol: p.Protocol, From: 0, To: 65535}
	case p.EndPort == 0:
		return PortRange{Protocol: p.Protocol, From: p.Port, To: p.Port}
	}
	return PortRange{Protocol: p.Protocol, From: p.Port, To: p.EndPort}
}

// shortRange is how many ports a range may have to be listed one by one.
const shortRange = 16

// singles parts ranges into those ports that are listed one by one and the ranges that stay.
func singles(in []PortRange) (one, ranges []PortRange) {
	one = make([]PortRange, 0, len(in))
	for _, r := range in {
		if int(r.To)-int(r.From) >= shortRange {
			ranges = append(ranges, r)
			continue
		}
		for p := int(r.From); p <= int(r.To); p++ {
			one = append(one, PortRange{r.Protocol, uint16(p), uint16(p), r.Target})
		}
	}
	return one, ranges
}

// comparePorts tells what single ports, sorted by protocol and port, have come and gone.
func comparePorts(old, now []PortRange) (add, del []PortRange) {
	order := func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
	}
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(old) > 0 && order(old[0], now[0]) < 0:
			del, old = append(del, old[0]), old[1:]
		case len(old) == 0 || order(now[0], old[0]) < 0:
			add, now = append(add, now[0]), now[1:]
		default:
			if old[0] != now[0] {
				del, add = append(del, old[0]), append(add, now[0])
			}
			old, now = old[1:], now[1:]
		}
	}
	return add, del
}
