// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// TestBadInput: whatever can't be used in full is said on the object that it is wrong in, once, with what was done;
// and it stops neither the rest of the object nor any other.
func TestBadInput(t *testing.T) {
	good := &model.Service{Meta: model.Meta{Name: named("good"), UID: "g"}, ClusterIPs: ips("10.96.0.9"),
		Ports: []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80}}}
	plain := func() *model.Service {
		return &model.Service{Meta: model.Meta{Name: named("web"), UID: "u"}, ClusterIPs: ips("10.96.0.1"),
			Ports: []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80}}}
	}
	at := func(addrs ...string) (out []model.Endpoint) {
		for _, a := range addrs {
			out = append(out, model.Endpoint{Addresses: ips(a), Ready: true, Serving: true})
		}
		return out
	}
	many := make([]model.Endpoint, MaxAffinity+1)
	for i := range many {
		many[i] = model.Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}, Ready: true, Serving: true}
	}
	for _, c := range []struct {
		name   string
		mod    func(*model.Service)
		slice  func(*model.EndpointSlice)
		eps    []model.Endpoint
		kind   string
		reason string
		says   []string // what the message must name
		pool   int      // endpoints of the cluster IP all the same
	}{
		{"all is well", nil, nil, at("10.0.0.1"), "", "", nil, 1},
		{"loopback endpoint", nil, nil, at("127.0.0.1", "10.0.0.1"), "EndpointSlice", "UnusableEndpoint", []string{"endpoints[0].addresses", "127.0.0.1", "use one"}, 1},
		{"link-local endpoint", nil, nil, at("10.0.0.1", "169.254.0.1"), "EndpointSlice", "UnusableEndpoint", []string{"endpoints[1].addresses", "169.254.0.1"}, 1},
		{"multicast endpoint", nil, nil, at("224.0.0.5"), "EndpointSlice", "UnusableEndpoint", []string{"224.0.0.5"}, 0},
		{"unspecified endpoint", nil, nil, at("0.0.0.0"), "EndpointSlice", "UnusableEndpoint", []string{"0.0.0.0"}, 0},
		{"endpoint of another family", nil, nil, at("fd00::1", "10.0.0.1"), "EndpointSlice", "UnusableEndpoint", []string{"fd00::1", "IPv4"}, 1},
		{"names in place of addresses", nil, func(s *model.EndpointSlice) { s.FQDN = true }, nil, "EndpointSlice", "UnusableEndpoint", []string{"addressType FQDN"}, 0},
		{"unusable external IP", func(s *model.Service) { s.ExternalIPs = ips("127.0.0.1") }, nil, at("10.0.0.1"), "Service", "UnusableAddress", []string{"externalIP", "127.0.0.1"}, 1},
		{"affinity for too many", func(s *model.Service) { s.AffinityTimeout = time.Hour }, nil, many, "Service", "AffinityIgnored",
			[]string{"port 80", fmt.Sprint(len(many)), "fewer endpoints"}, len(many)},
		{"an address that another has", func(s *model.Service) { s.ExternalIPs = ips("10.96.0.9") }, nil, at("10.0.0.1"), "Service", "FrontendConflict",
			[]string{"10.96.0.9:80/TCP", "ns/good", "another address or port"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := plain()
			if c.mod != nil {
				c.mod(s)
			}
			sl := &model.EndpointSlice{Meta: model.Meta{Name: named("web-1"), UID: "e"}, Service: "web", Family: model.IPv4, Endpoints: c.eps,
				Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}}
			if c.slice != nil {
				c.slice(sl)
			}
			tab := NewTable("n1")
			d := &model.Delta{Services: map[model.Name]*model.Service{s.Name: s, good.Name: good}, EndpointSlices: map[model.Name]*model.EndpointSlice{sl.Name: sl}}
			events := tab.Update(d)
			if c.reason == "" {
				if len(events) > 0 {
					t.Errorf("events %+v", events)
				}
			} else if len(events) != 1 {
				t.Fatalf("%d events, want 1: %+v", len(events), events)
			} else {
				e := events[0]
				uid, name := "u", s.Name
				if c.kind == "EndpointSlice" {
					uid, name = "e", sl.Name
				}
				if !e.Warning || e.Kind != c.kind || e.Reason != c.reason || e.UID != uid || e.Name != name {
					t.Errorf("event %+v", e)
				}
				for _, want := range c.says {
					if !strings.Contains(e.Message, want) {
						t.Errorf("message %q lacks %q", e.Message, want)
					}
				}
			}
			if again := tab.Update(d); len(again) > 0 {
				t.Errorf("said again: %+v", again)
			}
			for fe, want := range map[Frontend]int{{ips("10.96.0.1")[0], model.TCP, 80}: c.pool, {ips("10.96.0.9")[0], model.TCP, 80}: 0} {
				r := tab.Rule(fe)
				if r == nil || len(r.Main.Endpoints) != want || slices.ContainsFunc(r.Main.Endpoints, func(a netip.AddrPort) bool { return neverForwarded(a.Addr()) }) {
					t.Errorf("%s: %+v, want %d endpoints", fe, r, want)
				}
			}
		})
	}
}
