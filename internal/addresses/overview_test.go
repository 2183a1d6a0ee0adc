// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestView(t *testing.T) {
	d := delta(apool("p", "192.0.2.1-192.0.2.9", manual), svc("a", mark, status("192.0.2.1")), svc("b", fromPool("x")),
		svc("c", class("other")), node("n1"), node("n2", excluded))
	got := View(d, ours, map[string][]netip.Addr{"n1": {anAddr}, "n2": {anAddr6}})
	want := Overview{
		Pools: []PoolView{{Name: "p", Addresses: []string{"192.0.2.1-192.0.2.9"}, Accepted: true, Reason: PoolAccepted,
			Message: "addresses are assigned from this pool", IPv4: Usage{9, 1, 8}}},
		Services: []ServiceView{
			{Namespace: "default", Name: "a", Addresses: []AddressView{{Address: anAddr, Pool: "p", Shown: true, Announcers: []string{"n1"},
				Asked: true, Owner: "n1", Candidates: []string{"n1"}}}},
			{Namespace: "default", Name: "b", Reason: ReasonNoPool,
				Message: `annotation weft.dev/address-pool: there is no AddressPool "x": name another pool, or remove the annotation`},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if a := View(d, ours, nil).Services[0].Addresses[0]; a.Asked || a.Announcers != nil {
		t.Errorf("nobody was asked, yet %+v", a)
	}
}

// TestViewNobody: an address that no node may announce comes with the cause.
func TestViewNobody(t *testing.T) {
	for _, c := range []struct {
		why  string
		with []any
		want string
	}{
		{"Local, without an endpoint", []any{svc("a", mark, status("192.0.2.1"), local), node("n1")}, "externalTrafficPolicy is Local, and no node"},
		{"no node but an excluded one", []any{svc("a", mark, status("192.0.2.1")), node("n1", excluded)}, "no node may: each has the label"},
		{"not in the status", []any{svc("a", fromPool("p")), node("n1")}, "the Service's status does not have it yet"},
		{"a node may", []any{svc("a", mark, status("192.0.2.1")), node("n1")}, ""},
	} {
		a := View(delta(append(c.with, apool("p", "192.0.2.1-192.0.2.9", manual))...), ours, nil).Services[0].Addresses[0]
		if !strings.HasPrefix(a.Nobody, c.want) || (c.want == "") != (a.Nobody == "") {
			t.Errorf("%s: %q, want %q", c.why, a.Nobody, c.want)
		}
	}
}
