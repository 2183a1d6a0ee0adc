// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"net/netip"
	"testing"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

// crowd is a Gateway with many HTTPRoutes, each with a Service of its own.
func crowd(routes int) *Change {
	c := emptyChange()
	class := &gwv1.GatewayClass{}
	class.Name, class.Spec.ControllerName = "weft", ControllerName
	c.GatewayClasses["weft"] = class
	web := model.Name{Namespace: "infra", Name: "web"}
	all := gwv1.NamespacesFromAll
	g := &gwv1.Gateway{}
	g.Namespace, g.Name, g.Generation = web.Namespace, web.Name, 1
	g.Spec.GatewayClassName = "weft"
	for i := range 2 {
		g.Spec.Listeners = append(g.Spec.Listeners, gwv1.Listener{
			Name: gwv1.SectionName(fmt.Sprint("http-", i)), Port: int32(80 + i), Protocol: gwv1.HTTPProtocolType,
			AllowedRoutes: &gwv1.AllowedRoutes{Namespaces: &gwv1.RouteNamespaces{From: &all}},
		})
	}
	c.Gateways[web] = g
	c.Feedback[web] = &Feedback{Confirmed: 1, Addresses: []Address{{IP: netip.MustParseAddr("192.0.2.1")}}}
	for i := range routes {
		n := model.Name{Namespace: fmt.Sprint("team-", i%50), Name: fmt.Sprint("app-", i)}
		c.HTTPRoutes[n] = crowdRoute(n, 1)
		c.Services[n] = &model.Service{Meta: model.Meta{Name: n}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
		c.EndpointSlices[n] = crowdSlice(n, 2)
	}
	return c
}

func crowdRoute(n model.Name, generation int64) *gwv1.HTTPRoute {
	infra, port := gwv1.Namespace("infra"), gwv1.PortNumber(80)
	path := fmt.Sprint("/v", generation)
	r := &gwv1.HTTPRoute{}
	r.Namespace, r.Name, r.Generation = n.Namespace, n.Name, generation
	r.Spec.ParentRefs = []gwv1.ParentReference{{Namespace: &infra, Name: "web"}}
	r.Spec.Hostnames = []gwv1.Hostname{gwv1.Hostname(n.Name + ".example.com")}
	r.Spec.Rules = []gwv1.HTTPRouteRule{{
		Matches:     []gwv1.HTTPRouteMatch{{Path: &gwv1.HTTPPathMatch{Value: &path}}},
		BackendRefs: []gwv1.HTTPBackendRef{{BackendRef: gwv1.BackendRef{BackendObjectReference: gwv1.BackendObjectReference{Name: gwv1.ObjectName(n.Name), Port: &port}}}},
	}}
	return r
}

func crowdSlice(n model.Name, endpoints int) *model.EndpointSlice {
	s := &model.EndpointSlice{Meta: model.Meta{Name: n}, Service: n.Name, Family: model.IPv4,
		Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for i := range endpoints {
		s.Endpoints = append(s.Endpoints, model.Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}, Ready: true, Serving: true})
	}
	return s
}

const many = 3000

func BenchmarkAllAtOnce(b *testing.B) {
	c := crowd(many)
	b.ReportAllocs()
	for b.Loop() {
		New(Options{}).Apply(c)
	}
}

func BenchmarkOneOfMany(b *testing.B) {
	n := model.Name{Namespace: "team-1", Name: "app-1"}
	start := func(b *testing.B) *State {
		s := New(Options{})
		s.Apply(crowd(many))
		b.ReportAllocs()
		return s
	}
	b.Run("EndpointSlice", func(b *testing.B) {
		s, i := start(b), 0
		for b.Loop() {
			i++
			out := s.Apply(&Change{EndpointSlices: map[model.Name]*model.EndpointSlice{n: crowdSlice(n, 3+i%2)}})
			if len(out.Gateways) != 1 {
				b.Fatal("nothing changed")
			}
		}
	})
	b.Run("HTTPRoute", func(b *testing.B) {
		s, i := start(b), int64(1)
		for b.Loop() {
			i++
			out := s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{n: crowdRoute(n, i)}})
			if len(out.RouteStatuses) != 1 || len(out.Gateways) != 1 {
				b.Fatal("nothing changed")
			}
		}
	})
	b.Run("new HTTPRoute", func(b *testing.B) {
		s, i := start(b), 0
		for b.Loop() {
			i++
			m := model.Name{Namespace: "team-1", Name: fmt.Sprint("new-", i)}
			s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{m: crowdRoute(m, 1)}})
			s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{m: nil}})
		}
	})
	b.Run("listener", func(b *testing.B) {
		c := crowd(many)
		s, i := New(Options{}), 0
		s.Apply(c)
		b.ReportAllocs()
		web := model.Name{Namespace: "infra", Name: "web"}
		for b.Loop() {
			i++
			g := c.Gateways[web].DeepCopy()
			g.Generation += int64(i)
			g.Spec.Listeners[1].Port = int32(90 + i%2)
			s.Apply(&Change{Gateways: map[model.Name]*gwv1.Gateway{web: g}})
		}
	})
}

// crowdOfSets is a Gateway with many ListenerSets, each with a route of its own.
func crowdOfSets(n int) *Change {
	c := crowd(0)
	all := gwv1.NamespacesFromAll
	for _, g := range c.Gateways {
		g.Spec.AllowedListeners = &gwv1.AllowedListeners{Namespaces: &gwv1.ListenerNamespaces{From: &all}}
	}
	for i := range n {
		name := model.Name{Namespace: fmt.Sprint("team-", i), Name: "set"}
		c.ListenerSets[name] = crowdSet(name, 1)
		r := crowdRoute(name, 1)
		kind := gwv1.Kind("ListenerSet")
		r.Spec.ParentRefs = []gwv1.ParentReference{{Kind: &kind, Name: "set"}}
		r.Spec.Hostnames = nil
		c.HTTPRoutes[name] = r
	}
	return c
}

func crowdSet(name model.Name, generation int64) *gwv1.ListenerSet {
	infra, host := gwv1.Namespace("infra"), gwv1.Hostname(fmt.Sprintf("v%d.%s.example.com", generation, name.Namespace))
	ls := &gwv1.ListenerSet{}
	ls.Namespace, ls.Name, ls.Generation = name.Namespace, name.Name, generation
	ls.Spec.ParentRef = gwv1.ParentGatewayReference{Namespace: &infra, Name: "web"}
	ls.Spec.Listeners = []gwv1.ListenerEntry{{Name: "http", Port: 80, Protocol: gwv1.HTTPProtocolType, Hostname: &host}}
	return ls
}

func BenchmarkOneOfManyListenerSets(b *testing.B) {
	n := model.Name{Namespace: "team-1", Name: "set"}
	b.Run("ListenerSet", func(b *testing.B) {
		s, i := New(Options{}), int64(1)
		s.Apply(crowdOfSets(1000))
		b.ReportAllocs()
		for b.Loop() {
			i++
			s.Apply(&Change{ListenerSets: map[model.Name]*gwv1.ListenerSet{n: crowdSet(n, i)}})
		}
	})
	b.Run("new HTTPRoute", func(b *testing.B) {
		c := crowdOfSets(1000)
		s, i := New(Options{}), 0
		s.Apply(c)
		b.ReportAllocs()
		for b.Loop() {
			i++
			m := model.Name{Namespace: n.Namespace, Name: fmt.Sprint("new-", i)}
			r := c.HTTPRoutes[n].DeepCopy()
			r.Name = m.Name
			s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{m: r}})
			s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{m: nil}})
		}
	})
}

// HTTPRoutes beside GRPCRoutes have to be told apart by their hostnames, the worst being one that has all of them.
func BenchmarkNewRouteBesideGRPC(b *testing.B) {
	for _, hostnames := range [][]gwv1.Hostname{{"grpc.example.com"}, nil} {
		b.Run(fmt.Sprint(hostnames), func(b *testing.B) {
			c := crowd(many)
			g := model.Name{Namespace: "team-1", Name: "grpc"}
			infra := gwv1.Namespace("infra")
			r := &gwv1.GRPCRoute{}
			r.Namespace, r.Name, r.Generation = g.Namespace, g.Name, 1
			r.Spec.ParentRefs = []gwv1.ParentReference{{Namespace: &infra, Name: "web"}}
			r.Spec.Hostnames = hostnames
			c.GRPCRoutes[g] = r
			s, i := New(Options{}), 0
			s.Apply(c)
			b.ReportAllocs()
			for b.Loop() {
				i++
				m := model.Name{Namespace: "team-1", Name: fmt.Sprint("new-", i)}
				s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{m: crowdRoute(m, 1)}})
				s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{m: nil}})
			}
		})
	}
}

// What one EndpointSlice or route costs must not grow with the number of the others: measured in what is told, which a
// slow machine does not change.
func TestWorkIsProportional(t *testing.T) {
	s := New(Options{})
	s.Apply(crowd(200))
	n := model.Name{Namespace: "team-1", Name: "app-1"}
	out := s.Apply(&Change{EndpointSlices: map[model.Name]*model.EndpointSlice{n: crowdSlice(n, 3)}})
	u := out.Gateways[model.Name{Namespace: "infra", Name: "web"}].Update
	if len(u.Endpoints) != 1 || len(u.Routes)+len(u.Backends)+len(u.Listeners)+len(u.Removed) != 0 || statuses(out) != 0 {
		t.Errorf("one EndpointSlice changed %d sets of endpoints, %d routes, %d backends, %d listeners, %d statuses",
			len(u.Endpoints), len(u.Routes), len(u.Backends), len(u.Listeners), statuses(out))
	}
	out = s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{n: crowdRoute(n, 2)}})
	u = out.Gateways[model.Name{Namespace: "infra", Name: "web"}].Update
	if len(u.Routes) != 1 || len(u.Endpoints)+len(u.Backends)+len(u.Listeners)+len(u.Removed) != 0 || statuses(out) != 1 {
		t.Errorf("one HTTPRoute changed %d routes, %d sets of endpoints, %d backends, %d listeners, %d statuses",
			len(u.Routes), len(u.Endpoints), len(u.Backends), len(u.Listeners), statuses(out))
	}
	if out = s.Apply(&Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{n: crowdRoute(n, 2)}}); len(out.Gateways) != 0 {
		t.Error("a route that did not change was told again")
	}
}
