// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// TestServiceEvents: what is wrong with a Service is said once, and again only when it is something else.
func TestServiceEvents(t *testing.T) {
	var told []model.Event
	p, err := NewServiceEvents(func(e model.Event) { told = append(told, e) }).Begin(nil)
	if err != nil {
		t.Fatal(err)
	}
	name := model.Name{Namespace: "shop", Name: "web"}
	bad := func(ip string) *model.Delta {
		s := &model.Service{Meta: model.Meta{Name: name, UID: "u"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			ExternalIPs: []netip.Addr{netip.MustParseAddr(ip)}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}
		return &model.Delta{Complete: true, Services: map[model.Name]*model.Service{name: s}}
	}
	for i, want := range []int{1, 0, 1} {
		told = nil
		p.Update(bad([]string{"127.0.0.1", "127.0.0.1", "224.0.0.1"}[i]))
		if len(told) != want {
			t.Errorf("%d: told %+v, want %d", i, told, want)
		}
		for _, e := range told {
			if e.Reason != "UnusableAddress" || e.UID != "u" || e.Name != name {
				t.Errorf("%d: %+v", i, e)
			}
		}
	}
}
