// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"net/netip"
	"reflect"
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
