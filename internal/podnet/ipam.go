// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// restTime is how long a freed address is left alone while another one is free: others may still hold connections,
// DNS answers or conntrack entries for it.
const restTime = time.Minute

// errNoAddress is returned where every address of a family is in use.
var errNoAddress = errors.New("no free address")

// pool hands out the addresses of a node's podCIDRs. It does no I/O and is not safe for concurrent use.
type pool struct {
	ranges []*addressRange                // in the order of the node's podCIDRs
	used   map[netip.Addr]string          // address -> link name; may hold addresses outside all ranges
	freed  map[netip.Addr]time.Time       // when; entries older than restTime are dropped as they are met
	cursor map[netip.Prefix]netip.Addr    // the last address handed out; survives the loss of its range
	start  func(*addressRange) netip.Addr // where a range without a cursor starts; tests pin it
}

// addressRange is one podCIDR: the addresses from first to last, both included, go to pods.
type addressRange struct {
	prefix      netip.Prefix
	first, last netip.Addr
}

// newRange leaves out the network's own address, which is the node's on its tunnels, and IPv4's broadcast address.
// A range of fewer than four addresses is used whole, as it has neither.
func newRange(p netip.Prefix) *addressRange {
	p = p.Masked()
	r := &addressRange{prefix: p, first: p.Addr(), last: lastAddr(p)}
	if p.Addr().BitLen()-p.Bits() >= 2 {
		r.first = r.first.Next()
		if p.Addr().Is4() {
			r.last = r.last.Prev()
		}
	}
	return r
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// size is the number of addresses for pods, at most 2^53 (it is for gauges).
func (r *addressRange) size() float64 {
	host := r.prefix.Addr().BitLen() - r.prefix.Bits()
	if host > 53 {
		host = 53
	}
	n := float64(uint64(1) << host)
	if r.first != r.prefix.Addr() {
		n--
		if r.first.Is4() {
			n--
		}
	}
	return n
}

func newPool() *pool {
	return &pool{
		used:   make(map[netip.Addr]string),
		freed:  make(map[netip.Addr]time.Time),
		cursor: make(map[netip.Prefix]netip.Addr),
		start:  func(r *addressRange) netip.Addr { return r.last },
	}
}

// setRanges replaces the podCIDRs. What is in use stays so.
func (p *pool) setRanges(cidrs []netip.Prefix) {
	p.ranges = p.ranges[:0]
	for _, c := range cidrs {
		p.ranges = append(p.ranges, newRange(c))
	}
}

// families lists the families of the ranges, each once, in their order.
func (p *pool) families() []model.Family {
	var fs []model.Family
	for _, r := range p.ranges {
		if f := model.FamilyOf(r.first); !slices.Contains(fs, f) {
			fs = append(fs, f)
		}
	}
	return fs
}

// allocate gives owner one address of each family, in the families' order, or nothing and an error that says which
// ranges are full.
func (p *pool) allocate(owner string, now time.Time) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, f := range p.families() {
		a, r := p.pick(f, now)
		if r == nil {
			for _, a := range ips {
				delete(p.used, a)
			}
			var full []netip.Prefix
			for _, r := range p.ranges {
				if model.FamilyOf(r.first) == f {
					full = append(full, r.prefix)
				}
			}
			return nil, fmt.Errorf("%w: all %s addresses of the node's podCIDRs %v are in use by %d pods", errNoAddress, f, full, len(p.owners()))
		}
		p.used[a] = owner
		p.cursor[r.prefix] = a
		delete(p.freed, a)
		ips = append(ips, a)
	}
	return ips, nil
}

// pick finds the next free address after the last one handed out, round the range and over the ranges, that has
// rested; failing that the one that has rested longest.
func (p *pool) pick(f model.Family, now time.Time) (netip.Addr, *addressRange) {
	var resting netip.Addr
	var restingIn *addressRange
	for _, r := range p.ranges {
		if model.FamilyOf(r.first) != f {
			continue
		}
		from, ok := p.cursor[r.prefix]
		if !ok || !r.contains(from) {
			from = p.start(r)
		}
		// Each step either returns or meets an address that is in use or resting, of which there are few.
		for a := r.after(from); ; a = r.after(a) {
			if _, used := p.used[a]; !used {
				since, rests := p.freed[a]
				if rests && now.Sub(since) >= restTime {
					delete(p.freed, a)
					rests = false
				}
				if !rests {
					return a, r
				}
				if restingIn == nil || since.Before(p.freed[resting]) {
					resting, restingIn = a, r
				}
			}
			if a == from {
				break
			}
		}
	}
	return resting, restingIn
}

func (r *addressRange) contains(a netip.Addr) bool {
	return a.BitLen() == r.first.BitLen() && r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0
}

// after is the next address, the first one after the last.
func (r *addressRange) after(a netip.Addr) netip.Addr {
	if a == r.last {
		return r.first
	}
	return a.Next()
}

// take marks addresses that a record holds as in use; it names the other owner of one that is taken.
func (p *pool) take(owner string, ips []netip.Addr) (other string) {
	for _, a := range ips {
		if o, ok := p.used[a]; ok && o != owner {
			return o
		}
	}
	for _, a := range ips {
		p.used[a] = owner
		delete(p.freed, a)
	}
	return ""
}

// release frees what owner holds of ips.
func (p *pool) release(owner string, ips []netip.Addr, now time.Time) {
	for _, a := range ips {
		if p.used[a] == owner {
			delete(p.used, a)
			p.freed[a] = now
		}
	}
	maps.DeleteFunc(p.freed, func(_ netip.Addr, since time.Time) bool { return now.Sub(since) >= restTime })
}

func (p *pool) owners() map[string]struct{} {
	m := make(map[string]struct{})
	for _, o := range p.used {
		m[o] = struct{}{}
	}
	return m
}

// inUse counts the addresses of a range that pods hold.
func (p *pool) inUse(r *addressRange) int {
	n := 0
	for a := range p.used {
		if r.contains(a) {
			n++
		}
	}
	return n
}
