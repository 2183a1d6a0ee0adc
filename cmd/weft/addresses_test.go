// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/addresses"
)

func TestPrintAddresses(t *testing.T) {
	v := addresses.Overview{
		Pools: []addresses.PoolView{
			{Name: "lan", Accepted: true, Auto: true, Reason: addresses.PoolAccepted, IPv4: addresses.Usage{Total: 10, Used: 2, Free: 8}, Addresses: []string{"192.0.2.1-192.0.2.10"}},
			{Name: "old", Reason: addresses.PoolConflict, Message: "overlaps"},
		},
		Services: []addresses.ServiceView{
			{Namespace: "shop", Name: "web", Addresses: []addresses.AddressView{
				{Address: netip.MustParseAddr("192.0.2.1"), Pool: "lan", Asked: true, Announcers: []string{"n1"}, Candidates: []string{"n1", "n2"}},
				{Address: netip.MustParseAddr("192.0.2.2"), Pool: "lan", Owner: "n2"}}},
			{Namespace: "shop", Name: "one", Addresses: []addresses.AddressView{{Address: netip.MustParseAddr("192.0.2.3"), Pool: "lan", Asked: true, Nobody: "it is Local"}}},
			{Namespace: "shop", Name: "cart", Reason: "AddressPoolExhausted", Message: "no free address"},
		},
	}
	for output, want := range map[string][]string{
		"": {"POOL", "lan    yes        yes    2", "shop/web    192.0.2.1   lan    n1", "(n2)", "shop/cart   <pending>",
			"AddressPool old: Conflict: overlaps", "Service shop/cart: AddressPoolExhausted: no free address",
			"192.0.2.3   lan    none", "Service shop/one: 192.0.2.3 is announced by no node: it is Local"},
		"wide": {"192.0.2.1-192.0.2.10", "n1, n2"},
		"json": {`"announcers": [`, `"address": "192.0.2.1"`, `"free": 8`},
		"yaml": {"- address: 192.0.2.1", "autoAssign: true"},
	} {
		var b strings.Builder
		if err := printAddresses(&b, v, output); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("-o %q lacks %q:\n%s", output, w, b.String())
			}
		}
	}
	if err := printAddresses(&strings.Builder{}, v, "xml"); err == nil || !strings.Contains(err.Error(), "want wide, json or yaml") {
		t.Errorf("-o xml: %v", err)
	}
}

func TestAnnouncedBy(t *testing.T) {
	got := announcedBy(map[string]string{"n1": `# HELP weft_announced_address 1 for each
weft_announced_address{address="192.0.2.1",link="eth0"} 1
weft_announced_address{address="2001:db8::1",link="eth0"} 1
weft_announce_peers{link="eth0"} 2
weft_announce_stand_in{address="192.0.2.2",link="eth0",node="n3"} 1
`, "n2": ""})
	if want := netip.MustParseAddr("192.0.2.2"); len(got["n3"]) != 1 || got["n3"][0] != want {
		t.Errorf("n3, for which n1 answers, has %v, want %s", got["n3"], want)
	}
	if len(got["n1"]) != 2 || got["n1"][1] != netip.MustParseAddr("2001:db8::1") || len(got["n2"]) != 0 {
		t.Errorf("%v", got)
	}
	if announcedBy(nil) != nil {
		t.Error("nobody was asked, yet something is known")
	}
}
