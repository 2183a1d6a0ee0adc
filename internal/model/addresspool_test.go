// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"net/netip"
	"strings"
	"testing"
)

func TestParseAddressRange(t *testing.T) {
	for _, c := range []struct {
		in, want string // want "" is an error that holds err
		size     int64
		err      string
	}{
		{"192.0.2.0/24", "192.0.2.0-192.0.2.255", 256, ""},
		{"192.0.2.7", "192.0.2.7", 1, ""},
		{"192.0.2.7/32", "192.0.2.7", 1, ""},
		{" 192.0.2.10 - 192.0.2.20 ", "192.0.2.10-192.0.2.20", 11, ""},
		{"2001:db8::/64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", math.MaxInt64, ""},
		{"2001:db8::1-2001:db8::10", "2001:db8::1-2001:db8::10", 16, ""},
		{"192.0.2.20-192.0.2.10", "", 0, "did you mean 192.0.2.10-192.0.2.20?"},
		{"192.0.2.5/24", "", 0, "did you mean 192.0.2.0/24?"},
		{"192.0.2.1-2001:db8::1", "", 0, "different families"},
		{"::ffff:192.0.2.1", "", 0, "write 192.0.2.1"},
		{"::ffff:192.0.2.0/120", "", 0, "not a CIDR"},
		{"fe80::1%eth0", "", 0, "zone"},
		{"127.0.0.0/8", "", 0, "no Service can have"},
		{"0.0.0.0/0", "", 0, "no Service can have"},
		{"ff02::1", "", 0, "no Service can have"},
		{"192.0.2.1-", "", 0, "not an IP address"},
		{"", "", 0, "not an IP address"},
		{"ten", "", 0, "not an IP address"},
	} {
		r, err := ParseAddressRange(c.in)
		switch {
		case c.want == "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%q: got %v, %v; want an error with %q", c.in, r, err, c.err)
		case c.want != "" && (err != nil || r.String() != c.want || r.Size() != c.size):
			t.Errorf("%q: got %v (%d), %v; want %s (%d)", c.in, r, r.Size(), err, c.want, c.size)
		}
	}
}

func FuzzParseAddressRange(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24", "192.0.2.1-192.0.2.9", "2001:db8::/64", "::1%x", "-", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseAddressRange(s)
		if err != nil {
			return
		}
		again, err := ParseAddressRange(r.String())
		if err != nil || again != r || r.Size() < 1 || !r.Contains(r.First) || !r.Contains(r.Last) {
			t.Fatalf("%q: %v reads back as %v, %v", s, r, again, err)
		}
	})
}

func TestAddressRangeOverlaps(t *testing.T) {
	r := func(s string) AddressRange {
		x, err := ParseAddressRange(s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"192.0.2.0/24", "192.0.2.255-192.0.3.1", true},
		{"192.0.2.0/25", "192.0.2.128/25", false},
		{"192.0.2.0/24", "192.0.2.9", true},
		{"192.0.2.0/24", "2001:db8::/64", false},
	} {
		if got := r(c.a).Overlaps(r(c.b)); got != c.want || r(c.b).Overlaps(r(c.a)) != got {
			t.Errorf("%s and %s: overlap %v, want %v both ways", c.a, c.b, got, c.want)
		}
	}
	if r("192.0.2.0/24").Contains(netip.MustParseAddr("2001:db8::1")) {
		t.Error("an IPv4 range contains an IPv6 address")
	}
}
