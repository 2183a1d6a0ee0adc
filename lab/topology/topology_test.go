// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"testing"
)

func TestPlan(t *testing.T) {
	dual := Plan{Families: Families{IPv4: true, IPv6: true}, Segments: 1}
	split := Plan{Families: Families{IPv6: true}, Segments: 2}
	for _, c := range []struct{ got, want any }{
		{dual.Router(0), "[172.30.0.1/24 fd00:30::1/64]"},
		{dual.Node(1), "[172.30.0.11/24 fd00:30::11/64]"},
		{dual.Node(150), "[172.30.0.160/24 fd00:30::160/64]"},
		{dual.ServiceIP(10), "[10.96.0.10 fd00:10:96::a]"},
		{split.Node(2), "[fd00:30:0:1::12/64]"},
		{split.Node(3), "[fd00:30::13/64]"},
		{split.Zone(4), "zone-a"},
		{split.Families, "ipv6"},
	} {
		if got := fmt.Sprint(c.got); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestServiceIPsAreInTheirRange(t *testing.T) {
	p := Plan{Families: Families{IPv4: true, IPv6: true}, Segments: 1}
	for i, r := range p.ServiceRanges() {
		if ip := p.ServiceIP(10)[i]; !r.Contains(ip) {
			t.Errorf("%s is not in %s", ip, r)
		}
	}
}

func TestParseFamilies(t *testing.T) {
	for _, s := range []string{"dual", "ipv4", "ipv6"} {
		f, err := ParseFamilies(s)
		if err != nil || f.String() != s {
			t.Errorf("ParseFamilies(%q) = %v, %v", s, f, err)
		}
	}
	if _, err := ParseFamilies("ipv5"); err == nil {
		t.Error("ipv5 was accepted")
	}
}
