// SPDX-License-Identifier: Apache-2.0

package model

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"strings"
)

// AddressPool is weft.dev/v1alpha1 AddressPool: addresses that LoadBalancer Services may get.
type AddressPool struct {
	Meta
	Ranges  []AddressRange // spec.addresses in the order written
	Invalid []string       // the entries of spec.addresses that can't be used, each with the reason and the cure

	NamespaceSelector *Selector // the Service's namespace must match; nil admits all
	ServiceSelector   *Selector // the Service's labels must match; nil admits all

	// ManualOnly is autoAssign: false: only Services that name the pool, or an address of it, are served.
	ManualOnly bool

	// AvoidBuggyIPs leaves out IPv4 addresses that end in .0 or .255, which some equipment takes for a subnet's
	// network or broadcast address whatever its prefix length.
	AvoidBuggyIPs bool
}

// AddressRange is the addresses from First to Last, both included, of one family.
type AddressRange struct {
	First, Last netip.Addr
}

// ParseAddressRange reads "first-last", a CIDR, or a single address.
func ParseAddressRange(s string) (AddressRange, error) {
	var r AddressRange
	s = strings.TrimSpace(s)
	if first, last, ok := strings.Cut(s, "-"); ok {
		var err error
		if r.First, err = parsePoolAddr(first); err != nil {
			return AddressRange{}, err
		}
		if r.Last, err = parsePoolAddr(last); err != nil {
			return AddressRange{}, err
		}
		if FamilyOf(r.First) != FamilyOf(r.Last) {
			return AddressRange{}, fmt.Errorf("%q: its ends are of different families: write one range for each", s)
		}
		if r.Last.Less(r.First) {
			return AddressRange{}, fmt.Errorf("%q: the first address is above the last: did you mean %s-%s?", s, r.Last, r.First)
		}
	} else if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return AddressRange{}, fmt.Errorf("%q is not a CIDR: write it like 192.0.2.0/24 or 2001:db8::/64", s)
		}
		if p != p.Masked() {
			return AddressRange{}, fmt.Errorf("%q has bits set after its prefix: did you mean %s?", s, p.Masked())
		}
		r = AddressRange{First: p.Addr(), Last: lastOf(p)}
	} else {
		a, err := parsePoolAddr(s)
		if err != nil {
			return AddressRange{}, err
		}
		r = AddressRange{First: a, Last: a}
	}
	for _, p := range unassignable {
		if r.Overlaps(p) {
			return AddressRange{}, fmt.Errorf("%q holds addresses of %s, which no Service can have", s, p)
		}
	}
	return r, nil
}

// unassignable are addresses that no host may have as its own, or only on itself: "this network", loopback,
// multicast and above (RFC 6890, RFC 4291).
var unassignable = []AddressRange{
	{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("0.255.255.255")},
	{netip.MustParseAddr("127.0.0.0"), netip.MustParseAddr("127.255.255.255")},
	{netip.MustParseAddr("224.0.0.0"), netip.MustParseAddr("239.255.255.255")},
	{netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("255.255.255.255")},
	{netip.MustParseAddr("::"), netip.MustParseAddr("::1")},
	{netip.MustParseAddr("fe80::"), netip.MustParseAddr("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff")},
	{netip.MustParseAddr("ff00::"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")},
}

func parsePoolAddr(s string) (netip.Addr, error) {
	s = strings.TrimSpace(s)
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%q is not an IP address: write an address, a CIDR, or first-last", s)
	}
	if a.Zone() != "" {
		return a, errors.New(s + " has a zone: leave out " + "%" + a.Zone())
	}
	if a.Is4In6() {
		return a, fmt.Errorf("%s is an IPv4 address in IPv6 clothes: write %s", s, a.Unmap())
	}
	return a, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// RangeOf are all addresses of a prefix.
func RangeOf(p netip.Prefix) AddressRange {
	p = p.Masked()
	return AddressRange{First: p.Addr(), Last: lastOf(p)}
}

// Family is the family of the range's addresses.
func (r AddressRange) Family() Family { return FamilyOf(r.First) }

// Contains tells whether the address lies in the range.
func (r AddressRange) Contains(a netip.Addr) bool {
	return FamilyOf(a) == r.Family() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps tells whether the two ranges have an address in common.
func (r AddressRange) Overlaps(o AddressRange) bool {
	return r.Family() == o.Family() && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// Size is the number of addresses in the range, at most math.MaxInt64.
func (r AddressRange) Size() int64 {
	first, last := r.First.As16(), r.Last.As16()
	n := new(big.Int).Sub(new(big.Int).SetBytes(last[:]), new(big.Int).SetBytes(first[:]))
	if !n.IsInt64() || n.Int64() == math.MaxInt64 {
		return math.MaxInt64
	}
	return n.Int64() + 1
}

// String is "first-last", or the address where there is only one.
func (r AddressRange) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}
