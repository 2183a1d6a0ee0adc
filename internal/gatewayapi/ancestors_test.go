// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

// eighteenGateways are 18 Gateways, a route on all of them, and a policy for its Service whose status has an entry of somebody else's.
func eighteenGateways() *Change {
	c := emptyChange()
	c.GatewayClasses["weft"] = &gwv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "weft"}, Spec: gwv1.GatewayClassSpec{ControllerName: ControllerName}}
	r := &gwv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "r"}}
	for i := range 18 {
		name := fmt.Sprintf("g%02d", i)
		c.Gateways[model.Name{Namespace: "infra", Name: name}] = &gwv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: name},
			Spec: gwv1.GatewaySpec{GatewayClassName: "weft", Listeners: []gwv1.Listener{{Name: "http", Port: 80, Protocol: gwv1.HTTPProtocolType}}}}
		r.Spec.ParentRefs = append(r.Spec.ParentRefs, gwv1.ParentReference{Name: gwv1.ObjectName(name)})
	}
	r.Spec.Rules = []gwv1.HTTPRouteRule{{BackendRefs: []gwv1.HTTPBackendRef{{BackendRef: gwv1.BackendRef{
		BackendObjectReference: gwv1.BackendObjectReference{Name: "secure", Port: new(gwv1.PortNumber(443))}}}}}}
	c.HTTPRoutes[model.Name{Namespace: "infra", Name: "r"}] = r
	svc := model.Name{Namespace: "infra", Name: "secure"}
	c.Services[svc] = &model.Service{Meta: model.Meta{Name: svc}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 443}}}
	c.BackendTLSPolicies[svc] = policyOfSecure(entry("example.com/other", "theirs"))
	return c
}

func entry(controller, gateway string) gwv1.PolicyAncestorStatus {
	return gwv1.PolicyAncestorStatus{ControllerName: gwv1.GatewayController(controller),
		AncestorRef: gwv1.ParentReference{Namespace: new(gwv1.Namespace("infra")), Name: gwv1.ObjectName(gateway)}}
}

func policyOfSecure(status ...gwv1.PolicyAncestorStatus) *gwv1.BackendTLSPolicy {
	return &gwv1.BackendTLSPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "secure"},
		Spec: gwv1.BackendTLSPolicySpec{
			TargetRefs: []gwv1.LocalPolicyTargetReferenceWithSectionName{{LocalPolicyTargetReference: gwv1.LocalPolicyTargetReference{Kind: "Service", Name: "secure"}}},
			Validation: gwv1.BackendTLSPolicyValidation{Hostname: "secure.example.com", WellKnownCACertificates: new(gwv1.WellKnownCACertificatesSystem)}},
		Status: gwv1.PolicyStatus{Ancestors: status}}
}

// refusers applies a change and looks which Gateways refuse requests then.
func refusers(t *testing.T, s *State, have *told, what, want string, change *Change) {
	t.Helper()
	have.take(s.Apply(change))
	if got := refusing(t, s, have); got != want {
		t.Errorf("%s: %s refuse; want %s", what, got, want)
	}
}

// refusing gives the Gateways that refuse requests to the Service, checked against what the route and policy say.
func refusing(t *testing.T, s *State, have *told) string {
	t.Helper()
	var out []string
	for name := range have.gateways {
		refused := ""
		for _, b := range s.Tables(name).Backends {
			refused += b.Invalid
			if b.TLS == nil {
				t.Errorf("%s speaks plain text", name)
			}
		}
		for _, p := range have.routes[RouteID{"HTTPRoute", model.Name{Namespace: "infra", Name: "r"}}] {
			if string(p.ParentRef.Name) != name.Name {
				continue
			}
			for _, c := range p.Conditions {
				if c.Type == "ResolvedRefs" && (c.Status == metav1.ConditionTrue) != (refused == "") {
					t.Errorf("at %s the route says %s %s: %s; the Gateway's backend: %q", name, c.Status, c.Reason, c.Message, refused)
				}
			}
		}
		for _, l := range s.Tables(name).Listeners {
			if c := find(have.gateways[name].Listeners[0].Conditions, "ResolvedRefs"); len(l.Filters) > 0 && (c.Status == metav1.ConditionTrue) != (refused == "") {
				t.Errorf("at %s the listener says %s %s: %s; the Gateway's backend: %q", name, c.Status, c.Reason, c.Message, refused)
			}
		}
		for _, a := range have.policies[model.Name{Namespace: "infra", Name: "secure"}] {
			if string(a.AncestorRef.Name) == name.Name && (a.Conditions[0].Status == metav1.ConditionTrue) != (refused == "") {
				t.Errorf("of %s the policy says %+v", name, a.Conditions[0])
			}
		}
		if refused != "" {
			out = append(out, name.Name)
		}
	}
	return strings.Join(slices.Sorted(slices.Values(out)), " ")
}

// The same holds where filters of listeners, and no routes, refer to the policy's Service.
func TestPolicyWithFullStatusOfListenerFilters(t *testing.T) {
	svc := model.Name{Namespace: "infra", Name: "secure"}
	c := eighteenGateways()
	c.HTTPRoutes = nil
	for name := range c.Gateways {
		c.Unknown[model.ObjectKey{Kind: "Gateway", Namespace: name.Namespace, Name: name.Name}] = map[string]any{"spec.listeners[0].filters": map[string]any{
			"requests": []any{map[string]any{"type": "ExternalAuth", "externalAuth": map[string]any{"protocol": "HTTP", "backendRef": map[string]any{"name": "secure", "port": 443}}}}}}
	}
	s, have := New(Options{}), newTold()
	step := func(what, want string, change *Change) { t.Helper(); refusers(t, s, have, what, want, change) }
	step("at first", "g15 g16 g17", c)
	step("without g03", "g16 g17", &Change{Gateways: map[model.Name]*gwv1.Gateway{{Namespace: "infra", Name: "g03"}: nil}})
	step("without the entry of somebody else", "g17", &Change{BackendTLSPolicies: map[model.Name]*gwv1.BackendTLSPolicy{svc: policyOfSecure()}})
	have.take(s.Apply(&Change{Services: map[model.Name]*model.Service{svc: nil}}))
	step("with the Service back", "g17", &Change{Services: c.Services})
}

// A policy whose status is full is not in force at further Gateways: requests fail there instead of going out as if there
// were no policy, and the route says why. Whoever is in the status stays; where room comes, the next one has it.
func TestPolicyWithFullStatus(t *testing.T) {
	s, have := New(Options{}), newTold()
	step := func(what, want string, change *Change) { t.Helper(); refusers(t, s, have, what, want, change) }
	svc := model.Name{Namespace: "infra", Name: "secure"}
	step("at first", "g15 g16 g17", eighteenGateways())
	for seed := range uint64(20) { // in whatever order they come
		parts := pieces(eighteenGateways(), 1)
		slices.SortFunc(parts, func(a, b piece) int { return strings.Compare(a.id, b.id) })
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(parts), func(i, k int) { parts[i], parts[k] = parts[k], parts[i] })
		one, told := New(Options{}), newTold()
		for _, p := range parts {
			c := emptyChange()
			p.put(c, true)
			told.take(one.Apply(c))
		}
		if got := refusing(t, one, told); got != "g15 g16 g17" {
			t.Errorf("one by one, seed %d: %s refuse", seed, got)
		}
	}
	step("with an entry of g16", "g14 g15 g17", &Change{BackendTLSPolicies: map[model.Name]*gwv1.BackendTLSPolicy{
		svc: policyOfSecure(entry("example.com/other", "theirs"), entry(ControllerName, "g16"))}})
	step("without g03", "g15 g17", &Change{Gateways: map[model.Name]*gwv1.Gateway{{Namespace: "infra", Name: "g03"}: nil}})
	step("without the entry of somebody else", "g17", &Change{BackendTLSPolicies: map[model.Name]*gwv1.BackendTLSPolicy{
		svc: policyOfSecure(entry(ControllerName, "g16"))}})
	delete(have.policies, svc)
	have.take(s.Apply(&Change{BackendTLSPolicies: map[model.Name]*gwv1.BackendTLSPolicy{svc: nil}}))
	for _, p := range have.routes[RouteID{"HTTPRoute", model.Name{Namespace: "infra", Name: "r"}}] {
		for _, c := range p.Conditions {
			if c.Type == "ResolvedRefs" && c.Status != metav1.ConditionTrue && p.ParentRef.Name != "g03" {
				t.Errorf("without the policy, at %s: %+v", p.ParentRef.Name, c)
			}
		}
	}
}
