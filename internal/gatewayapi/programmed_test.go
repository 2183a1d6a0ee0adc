// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// A generation is programmed once the pods have confirmed all that it led to, which may be other routes on a listener that
// is as it was. What a generation changes nothing for waits for nobody, nor what changes without one.
func TestProgrammedWaitsForTheGeneration(t *testing.T) {
	name, other := model.Name{Namespace: "infra", Name: "web"}, model.Name{Namespace: "shop", Name: "cart"}
	s, have := New(Options{}), newTold()
	serial := uint64(0)
	apply := func(c *Change) {
		out := s.Apply(c)
		have.take(out)
		if g := out.Gateways[name]; g != nil && g.Update != nil {
			serial = g.Serial
		}
	}
	confirm := func() {
		c := emptyChange()
		c.Feedback[name] = &Feedback{Confirmed: serial, Addresses: []Address{{Hostname: "lb.test"}}}
		apply(c)
	}
	status := func() string {
		one := func(conditions []metav1.Condition) string {
			for _, c := range conditions {
				if c.Type == string(gwv1.GatewayConditionProgrammed) {
					return fmt.Sprint(c.Reason, " ", c.ObservedGeneration)
				}
			}
			return ""
		}
		st := have.gateways[name]
		out := []string{one(st.Conditions)}
		for _, l := range st.Listeners {
			out = append(out, one(l.Conditions))
		}
		return strings.Join(out, ", ")
	}
	expect := func(what, want string) {
		t.Helper()
		if got := status(); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}

	spec := gwv1.GatewaySpec{GatewayClassName: "weft", Listeners: []gwv1.Listener{
		{Name: "a", Port: 80, Protocol: gwv1.HTTPProtocolType}, {Name: "b", Port: 81, Protocol: gwv1.HTTPProtocolType},
	}}
	gateway := func(generation int64, change func(*gwv1.GatewaySpec)) *Change {
		change(&spec)
		c := emptyChange()
		c.Gateways[name] = &gwv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, UID: "u", Generation: generation}, Spec: *spec.DeepCopy()}
		return c
	}
	from := func(from gwv1.FromNamespaces) func(*gwv1.GatewaySpec) {
		return func(s *gwv1.GatewaySpec) {
			s.Listeners[0].AllowedRoutes = &gwv1.AllowedRoutes{Namespaces: &gwv1.RouteNamespaces{From: &from}}
		}
	}
	first := gateway(1, from(gwv1.NamespacesFromAll))
	first.GatewayClasses["weft"] = &gwv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "weft"}, Spec: gwv1.GatewayClassSpec{ControllerName: ControllerName}}
	ns := gwv1.Namespace(name.Namespace)
	route1 := &gwv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: other.Namespace, Name: other.Name, Generation: 1}}
	route1.Spec.ParentRefs = []gwv1.ParentReference{{Namespace: &ns, Name: gwv1.ObjectName(name.Name)}}
	route1.Spec.Rules = []gwv1.HTTPRouteRule{{}}
	first.HTTPRoutes[other] = route1
	apply(first)
	expect("at first", "Pending 1, Pending 1, Pending 1")
	confirm()
	expect("confirmed", "Programmed 1, Programmed 1, Programmed 1")

	apply(gateway(2, from(gwv1.NamespacesFromSame)))
	if u := s.Tables(name); len(u.Routes) > 0 {
		t.Fatalf("the route is still there: %+v", u.Routes)
	}
	expect("routes went with the generation", "Pending 2, Pending 2, Programmed 2")
	confirm()
	expect("which is confirmed", "Programmed 2, Programmed 2, Programmed 2")

	apply(gateway(3, func(s *gwv1.GatewaySpec) {
		s.Infrastructure = &gwv1.GatewayInfrastructure{Labels: map[gwv1.LabelKey]gwv1.LabelValue{"a": "b"}}
	}))
	expect("nothing of it is the pods'", "Programmed 3, Programmed 3, Programmed 3")
	apply(gateway(4, func(s *gwv1.GatewaySpec) { s.DefaultScope = gwv1.GatewayDefaultScopeAll }))
	expect("a scope that nobody asks for", "Programmed 4, Programmed 4, Programmed 4")

	apply(gateway(5, from(gwv1.NamespacesFromAll)))
	expect("routes came with the generation", "Pending 5, Pending 5, Programmed 5")
	confirm()
	gone := emptyChange()
	gone.HTTPRoutes[other] = nil
	apply(gone)
	expect("a route went by itself", "Programmed 5, Programmed 5, Programmed 5")

	apply(gateway(6, func(s *gwv1.GatewaySpec) { s.Listeners = s.Listeners[:1] }))
	expect("a listener went", "Pending 6, Programmed 6")
	confirm()
	expect("which is confirmed", "Programmed 6, Programmed 6")
	if u := s.Tables(name); len(u.Listeners) != 1 || u.Listeners[0].Protocol != route.HTTP {
		t.Errorf("listeners: %+v", u.Listeners)
	}
}
