// SPDX-License-Identifier: Apache-2.0

package dnspath

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func name(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

// dnsService is the Service that the chart makes, changed by f.
func dnsService(n string, f ...func(*model.Service)) *model.Service {
	s := &model.Service{
		Meta:         model.Meta{Name: name(n), Annotations: map[string]string{Annotation: "node"}},
		ClusterIPs:   addrs("10.96.0.10", "fd00:96::a"),
		Distribution: model.PreferSameNode,
		Ports: []model.ServicePort{
			{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53}, {Name: "node", Protocol: model.UDP, Port: 1053},
		},
	}
	for _, f := range f {
		f(s)
	}
	return s
}

// slice has "address@node[!]" as its endpoints: "!" is not ready.
func slice(n, of string, eps ...string) *model.EndpointSlice {
	s := &model.EndpointSlice{Meta: model.Meta{Name: name(n)}, Service: of, Ports: []model.EndpointPort{
		{Name: "dns-tcp", Protocol: model.TCP, Port: 53}, {Name: "dns", Protocol: model.UDP, Port: 5300}, {Name: "node", Protocol: model.UDP, Port: 1053},
	}}
	for _, e := range eps {
		a, node, _ := strings.Cut(e, "@")
		node, unready := strings.CutSuffix(node, "!")
		s.Endpoints = append(s.Endpoints, model.Endpoint{Addresses: addrs(a), Node: node, Ready: !unready, Serving: true, Terminating: unready})
	}
	return s
}

func delta(objects ...any) *model.Delta {
	d := &model.Delta{Complete: true, Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *model.Service:
			d.Services[o.Meta.Name] = o
		case *model.EndpointSlice:
			d.EndpointSlices[o.Meta.Name] = o
		case *model.Node:
			d.Nodes = map[string]*model.Node{o.Meta.Name.Name: o}
		}
	}
	return d
}

func show(p Paths) string {
	var b strings.Builder
	for _, q := range p.Queries {
		fmt.Fprintf(&b, "%s>%s ", q.Frontend, q.Server)
	}
	for _, s := range p.Servers {
		fmt.Fprintf(&b, "%s:%d<%s ", netip.AddrPortFrom(s.Addr, s.Port), s.Untracked, s.Frontend)
	}
	return strings.TrimSpace(b.String())
}

func TestPaths(t *testing.T) {
	v4 := "10.96.0.10:53>10.1.0.5"
	back4 := "10.1.0.5:5300:1053<10.96.0.10:53"
	for _, c := range []struct {
		name    string
		objects []any
		want    string
	}{
		{"nothing asks for it", []any{dnsService("k/dns", func(s *model.Service) { s.Annotations = nil }), slice("k/a", "dns", "10.1.0.5@n1")}, ""},
		{"the node's own server", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.4@n2", "10.1.0.5@n1")}, v4 + " " + back4},
		{"both families", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.5@n1"), slice("k/b", "dns", "fd00::5@n1")},
			v4 + " [fd00:96::a]:53>fd00::5 " + back4 + " [fd00::5]:5300:1053<[fd00:96::a]:53"},
		{"another node's only", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.4@n2")}, ""},
		{"not ready: what it was asked before it answers still", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.5@n1!")}, back4},
		{"two servers, one of them leaving", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.5@n1!", "10.1.0.6@n1")},
			"10.96.0.10:53>10.1.0.6 " + back4 + " 10.1.0.6:5300:1053<10.96.0.10:53"},
		{"always the same of two", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.6@n1", "10.1.0.5@n1")},
			v4 + " " + back4 + " 10.1.0.6:5300:1053<10.96.0.10:53"},
		{"a server without the port", []any{dnsService("k/dns"), func() any {
			s := slice("k/a", "dns", "10.1.0.5@n1")
			s.Ports = s.Ports[:2]
			return s
		}()}, ""},
		{"the port is of another protocol", []any{dnsService("k/dns"), func() any {
			s := slice("k/a", "dns", "10.1.0.5@n1")
			s.Ports[2].Protocol = model.TCP
			return s
		}()}, ""},
		{"traffic is spread over all nodes", []any{dnsService("k/dns", func(s *model.Service) { s.Distribution = model.DistributeEvenly }), slice("k/a", "dns", "10.1.0.5@n1")}, ""},
		{"traffic stays on the node", []any{dnsService("k/dns", func(s *model.Service) { s.Distribution, s.InternalLocal = 0, true }), slice("k/a", "dns", "10.1.0.5@n1")}, v4 + " " + back4},
		{"a Service of somebody else", []any{dnsService("tenant/dns"), slice("tenant/a", "dns", "10.1.0.5@n1")}, ""},
		{"no port 53", []any{dnsService("k/dns", func(s *model.Service) { s.Ports[0].Port = 54 }), slice("k/a", "dns", "10.1.0.5@n1")}, ""},
		{"headless", []any{dnsService("k/dns", func(s *model.Service) { s.Headless, s.ClusterIPs = true, nil }), slice("k/a", "dns", "10.1.0.5@n1")}, ""},
		{"a server on the node's own network", []any{dnsService("k/dns"), slice("k/a", "dns", "192.0.2.1@n1"), node("n1", "192.0.2.1")}, ""},
		{"two Services of the same servers: the older one", []any{
			dnsService("k/dns", func(s *model.Service) { s.Created = 7 }),
			dnsService("k/old", func(s *model.Service) { s.Created, s.ClusterIPs = 5, addrs("10.96.0.9") }),
			slice("k/a", "dns", "10.1.0.5@n1"), slice("k/b", "old", "10.1.0.5@n1")},
			"10.96.0.9:53>10.1.0.5 10.1.0.5:5300:1053<10.96.0.9:53"},
		{"an endpoint in two slices", []any{dnsService("k/dns"), slice("k/a", "dns", "10.1.0.5@n1"), slice("k/b", "dns", "10.1.0.5@n1")}, v4 + " " + back4},
		{"two Services of the same servers under different ports", []any{
			dnsService("k/dns", func(s *model.Service) { s.Created = 7 }),
			dnsService("k/old", func(s *model.Service) { s.Created, s.ClusterIPs = 5, addrs("10.96.0.9") }),
			slice("k/a", "dns", "10.1.0.5@n1"), func() any {
				s := slice("k/b", "old", "10.1.0.5@n1")
				s.Ports[2].Port = 1054
				return s
			}()},
			"10.96.0.9:53>10.1.0.5 10.1.0.5:5300:1054<10.96.0.9:53"},
	} {
		tab := NewTable("n1", "k")
		touched := tab.Update(delta(c.objects...))
		if got := show(tab.Paths()); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if c.want != "" && !touched {
			t.Errorf("%s: Update says that nothing changed", c.name)
		}
	}
}

func node(n, ip string) *model.Node {
	return &model.Node{Meta: model.Meta{Name: model.Name{Name: n}}, InternalIPs: addrs(ip)}
}

func TestChanges(t *testing.T) {
	tab := NewTable("n1", "k")
	step := func(what string, touched bool, want string, d *model.Delta) {
		t.Helper()
		before := tab.Paths()
		got := tab.Update(d)
		if s := show(tab.Paths()); s != want {
			t.Errorf("%s:\n got %s\nwant %s", what, s, want)
		}
		if got != touched || (!got && !before.Equal(tab.Paths())) {
			t.Errorf("%s: Update says %v", what, got)
		}
	}
	both := "10.96.0.10:53>10.1.0.5 10.1.0.5:5300:1053<10.96.0.10:53"
	step("slices before their Service", false, "", delta(slice("k/a", "dns", "10.1.0.5@n1")))
	step("the Service", true, both, delta(dnsService("k/dns")))
	step("another Service", false, both, delta(&model.Service{Meta: model.Meta{Name: name("k/web")}}, slice("k/w", "web", "10.1.0.7@n1")))
	step("the server ends", true, "10.1.0.5:5300:1053<10.96.0.10:53", delta(slice("k/a", "dns", "10.1.0.5@n1!")))
	step("it is gone, another starts", true, "10.96.0.10:53>10.1.0.6 10.1.0.6:5300:1053<10.96.0.10:53", delta(slice("k/a", "dns", "10.1.0.6@n1")))
	step("the slice goes to another Service", true, "", delta(slice("k/a", "web", "10.1.0.6@n1")))
	step("and comes back", true, "10.96.0.10:53>10.1.0.6 10.1.0.6:5300:1053<10.96.0.10:53", delta(slice("k/a", "dns", "10.1.0.6@n1")))
	step("the annotation goes", true, "", delta(dnsService("k/dns", func(s *model.Service) { s.Annotations = nil })))
	step("and comes back", true, "10.96.0.10:53>10.1.0.6 10.1.0.6:5300:1053<10.96.0.10:53", delta(dnsService("k/dns")))
	gone := delta()
	gone.EndpointSlices[name("k/a")] = nil
	step("the slice is deleted", true, "", gone)
	gone = delta()
	gone.Services[name("k/dns")] = nil
	step("the Service is deleted", true, "", gone)
	if len(tab.slices) != 1 || len(tab.of) != 1 || len(tab.services) != 0 {
		t.Errorf("what is left: %v %v %v", tab.slices, tab.of, tab.services)
	}
}
