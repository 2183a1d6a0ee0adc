// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// headers are a request's, by their names in small letters.
type headers map[string]string

func (h headers) Lookup(name string) (string, bool) { v, ok := h[name]; return v, ok }

// winner tells which route and rule a request to a listener gets.
func winner(s *State, gateway, listener, host, path string) string {
	return winnerWith(s, gateway, listener, host, path, nil)
}

// winnerWith is winner for a request with headers. What an invalid rule wins says so.
func winnerWith(s *State, gateway, listener, host, path string, has headers) string {
	entries := map[string][]*route.Entry{}
	var hosts route.Hosts[string]
	u := s.Tables(model.Name{Namespace: "infra", Name: gateway})
	for i := range u.Routes {
		es, _ := route.Entries(&u.Routes[i], func(int) any { return nil })
		for _, p := range u.Routes[i].Parents {
			for _, h := range p.Hostnames {
				if p.Listener == "infra/"+gateway+"/"+listener {
					entries[h] = append(entries[h], es...)
					hosts.Set(h, h)
				}
			}
		}
	}
	won := "none"
	hosts.Find(host, func(h string) bool {
		e := route.NewHostTable(entries[h]).Match(&route.Request{Method: "GET", Path: path, Header: has})
		if e != nil {
			won = fmt.Sprintf("%s %d", e.Route.Name, e.Rule)
			for _, b := range e.Route.Rules[e.Rule].Backends {
				if b.Invalid != "" {
					won += " invalid"
				}
			}
		}
		return e == nil
	})
	return won
}

// precedence makes a Gateway with listeners and routes; of a route "name created hostname path..." is told.
func precedence(kind route.RouteKind, listeners map[string]string, routes ...string) *State {
	c := emptyChange()
	c.GatewayClasses["weft"] = &gwv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "weft"}, Spec: gwv1.GatewayClassSpec{ControllerName: ControllerName}}
	gw := &gwv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "web", Generation: 1}, Spec: gwv1.GatewaySpec{GatewayClassName: "weft"}}
	for name, host := range listeners {
		l := gwv1.Listener{Name: gwv1.SectionName(name), Port: 80, Protocol: gwv1.HTTPProtocolType, Hostname: new(gwv1.Hostname(host))}
		if kind == route.TLSRoute {
			l.Protocol, l.TLS = gwv1.TLSProtocolType, &gwv1.ListenerTLSConfig{Mode: new(gwv1.TLSModePassthrough)}
		}
		gw.Spec.Listeners = append(gw.Spec.Listeners, l)
	}
	c.Gateways[model.Name{Namespace: "infra", Name: "web"}] = gw
	for _, text := range routes {
		f := strings.Fields(text)
		n := model.Name{Namespace: "infra", Name: f[0]}
		var age int64
		_, _ = fmt.Sscan(f[1], &age)
		meta := metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, Generation: 1, CreationTimestamp: metav1.NewTime(time.Unix(age, 0))}
		common := gwv1.CommonRouteSpec{ParentRefs: []gwv1.ParentReference{{Name: "web"}}}
		var hosts []gwv1.Hostname
		if f[2] != "-" {
			hosts = []gwv1.Hostname{gwv1.Hostname(f[2])}
		}
		switch kind {
		case route.HTTPRoute:
			r := &gwv1.HTTPRoute{ObjectMeta: meta, Spec: gwv1.HTTPRouteSpec{CommonRouteSpec: common, Hostnames: hosts}}
			for _, path := range f[3:] {
				r.Spec.Rules = append(r.Spec.Rules, gwv1.HTTPRouteRule{Matches: []gwv1.HTTPRouteMatch{{Path: &gwv1.HTTPPathMatch{Value: &path}}}})
			}
			c.HTTPRoutes[n] = r
		case route.GRPCRoute:
			c.GRPCRoutes[n] = &gwv1.GRPCRoute{ObjectMeta: meta, Spec: gwv1.GRPCRouteSpec{CommonRouteSpec: common, Hostnames: hosts, Rules: []gwv1.GRPCRouteRule{{}}}}
		case route.TLSRoute:
			c.TLSRoutes[n] = &gwv1.TLSRoute{ObjectMeta: meta, Spec: gwv1.TLSRouteSpec{CommonRouteSpec: common, Hostnames: hosts, Rules: []gwv1.TLSRouteRule{{}}}}
		}
	}
	s := New(Options{})
	s.Apply(c)
	return s
}

// Of routes with the same hosts at a listener the one whose own hostname is more specific comes first, before paths and
// age (GatewayRouteHostnameIntersectionPrecedence of release 1.7).
func TestOwnHostnamesDecide(t *testing.T) {
	for _, kind := range []route.RouteKind{route.HTTPRoute, route.GRPCRoute, route.TLSRoute} {
		s := precedence(kind, map[string]string{"l": "abc.example.com"}, "wide 1 *.example.com /", "any 0 - /", "exact 2 abc.example.com /")
		if got := winner(s, "web", "l", "abc.example.com", "/"); got != "infra/exact 0" {
			t.Errorf("%s: %s wins", kind, got)
		}
		s = precedence(kind, map[string]string{"l": "abc.example.com"}, "wide 1 *.com /", "any 0 - /", "wild 2 *.example.com /")
		if got := winner(s, "web", "l", "abc.example.com", "/"); got != "infra/wild 0" {
			t.Errorf("%s: of wildcards %s wins", kind, got)
		}
		s = precedence(kind, map[string]string{"l": "*.example.com"}, "any 0 - /", "wild 2 *.example.com /")
		if got := winner(s, "web", "l", "abc.example.com", "/"); got != "infra/wild 0" {
			t.Errorf("%s: at a wildcard %s wins", kind, got)
		}
	}
	s := precedence(route.HTTPRoute, map[string]string{"l": "abc.example.com"}, "wide 1 *.example.com /a/long/path /", "exact 2 abc.example.com /a")
	for path, want := range map[string]string{"/a/long/path": "infra/exact 0", "/b": "infra/wide 1"} {
		if got := winner(s, "web", "l", "abc.example.com", path); got != want {
			t.Errorf("%s: %s wins, want %s", path, got, want)
		}
	}
	// Hosts beyond the listener's are not its own.
	s = precedence(route.HTTPRoute, map[string]string{"l": "abc.example.com", "m": "def.example.com"}, "wide 1 *.example.com /", "other 0 def.example.com /")
	if got := winner(s, "web", "m", "def.example.com", "/"); got != "infra/other 0" {
		t.Errorf("%s wins", got)
	}
}

// Of two rules of a route that match the same the first one wins, in whatever order they name headers, and whether or not
// its backend is there: release 1.7's conformance tests ask for that.
func TestFirstOfTwoIdenticalRulesWins(t *testing.T) {
	s := precedence(route.HTTPRoute, map[string]string{"l": "a.example.com"}, "r 1 - /x /x /x")
	if got := winner(s, "web", "l", "a.example.com", "/x"); got != "infra/r 0" {
		t.Errorf("%s wins", got)
	}
	header := func(name, value string) gwv1.HTTPHeaderMatch {
		return gwv1.HTTPHeaderMatch{Name: gwv1.HTTPHeaderName(name), Value: value}
	}
	rule := func(backend, path string, h ...gwv1.HTTPHeaderMatch) gwv1.HTTPRouteRule {
		return gwv1.HTTPRouteRule{
			Matches:     []gwv1.HTTPRouteMatch{{Path: &gwv1.HTTPPathMatch{Type: new(gwv1.PathMatchExact), Value: &path}, Headers: h}},
			BackendRefs: []gwv1.HTTPBackendRef{{BackendRef: gwv1.BackendRef{BackendObjectReference: gwv1.BackendObjectReference{Name: gwv1.ObjectName(backend), Port: new(gwv1.PortNumber(80))}}}},
		}
	}
	n, svc := model.Name{Namespace: "infra", Name: "r"}, model.Name{Namespace: "infra", Name: "there"}
	s.Apply(&Change{
		Services: map[model.Name]*model.Service{svc: {Meta: model.Meta{Name: svc}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}},
		HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{n: {ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "r", Generation: 2}, Spec: gwv1.HTTPRouteSpec{
			CommonRouteSpec: gwv1.CommonRouteSpec{ParentRefs: []gwv1.ParentReference{{Name: "web"}}},
			Rules: []gwv1.HTTPRouteRule{
				rule("there", "/headers", header("x-version", "one"), header("x-color", "blue")), rule("there", "/headers", header("x-color", "blue"), header("x-version", "one")),
				rule("gone", "/gone"), rule("there", "/gone"),
			}}}},
	})
	for path, want := range map[string]string{"/headers": "infra/r 0", "/gone": "infra/r 2 invalid"} {
		if got := winnerWith(s, "web", "l", "a.example.com", path, headers{"x-version": "one", "x-color": "blue"}); got != want {
			t.Errorf("%s: %s wins, want %s", path, got, want)
		}
	}
}
