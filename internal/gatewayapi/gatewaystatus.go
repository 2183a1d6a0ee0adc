// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// listenerProgrammed decides a listener's Programmed condition. It is true only when every pod has confirmed tables
// that have the listener as it is, and the Gateway's Service sends them its clients.
func (s *State) listenerProgrammed(g *gateway, l *listener) verdict {
	programmed := yes(gwv1.ListenerReasonProgrammed, "every pod of the gateway serves it")
	switch {
	case !l.conflict.ok:
		return l.conflict
	case !l.accepted.ok:
		return no(gwv1.ListenerReasonInvalid, "the listener is not accepted: "+l.accepted.message)
	case l.unservable != "":
		return no(gwv1.ListenerReasonInvalid, "connections are refused: "+l.unservable)
	case l.failing != "":
		return no(gwv1.ListenerReasonInvalid, "requests get 500: "+l.failing)
	case g.feedback != nil && g.feedback.Problem != nil && !g.feedback.Problem.Serves:
		return no(gwv1.ListenerReasonPending, "the Gateway is not programmed: "+g.feedback.Problem.Message)
	case !g.feedback.has(l.port, l.protocol):
		return no(gwv1.ListenerReasonPending, fmt.Sprintf("the gateway's Service does not have its port %d yet", l.port))
	case g.unheard() && s.wasProgrammed(g, l):
		return programmed
	case g.feedback == nil || g.feedback.Confirmed == 0 || g.feedback.Confirmed < g.tables.since[l.key]:
		return g.unconfirmed()
	case g.feedback.Unserved[l.key] != "":
		return no(gwv1.ListenerReasonInvalid, "a pod of the gateway can't serve it: "+g.feedback.Unserved[l.key])
	}
	return programmed
}

// unconfirmed is the verdict on a Gateway or listener that not every pod has as it is.
func (g *gateway) unconfirmed() verdict {
	if g.feedback != nil && len(g.feedback.CutOff) > 0 {
		return no(gwv1.ListenerReasonPending, fmt.Sprintf("pods of the gateway are ready and have no connection to the controller, so they do not have it yet: %s",
			strings.Join(g.feedback.CutOff, ", ")))
	}
	return no(gwv1.ListenerReasonPending, "the gateway's pods have not confirmed it yet")
}

// has tells whether the Gateway's Service sends a listener's clients to where the pods bind its port, as far as is known.
func (f *Feedback) has(port uint16, protocol route.Protocol) bool {
	want := model.TCP
	if protocol == route.UDP {
		want = model.UDP
	}
	return f == nil || f.Ports == nil || slices.ContainsFunc(f.Ports, func(p Port) bool {
		return p.Port == port && p.Protocol == want && p.BindPort == BindPort(port)
	})
}

// unheard says that the pods had no chance yet to tell this process what they serve.
func (g *gateway) unheard() bool {
	return g.feedback == nil || g.feedback.Restarted && g.feedback.Confirmed == 0
}

// wasProgrammed tells whether the object's own status has the listener as programmed, in the object's generation.
func (s *State) wasProgrammed(g *gateway, l *listener) bool {
	generation := g.obj.Generation
	var own []metav1.Condition
	if l.parent.kind == "Gateway" {
		for i := range g.obj.Status.Listeners {
			if st := &g.obj.Status.Listeners[i]; st.Name == l.spec.Name {
				own = st.Conditions
			}
		}
	} else if ls := s.listenerSets[l.parent.Name]; ls != nil {
		generation = ls.obj.Generation
		for i := range ls.obj.Status.Listeners {
			if st := &ls.obj.Status.Listeners[i]; st.Name == l.spec.Name {
				own = st.Conditions
			}
		}
	}
	return holds(own, string(gwv1.ListenerConditionProgrammed), generation)
}

func holds(conditions []metav1.Condition, typ string, generation int64) bool {
	return slices.ContainsFunc(conditions, func(c metav1.Condition) bool {
		return c.Type == typ && c.Status == metav1.ConditionTrue && c.ObservedGeneration == generation
	})
}

// programmed decides the Gateway's Programmed condition.
func (s *State) programmed(g *gateway) verdict {
	if !g.accepted.ok {
		return no(gwv1.GatewayReasonInvalid, "the Gateway is not accepted: "+g.accepted.message)
	}
	for i, a := range g.obj.Spec.Addresses {
		if a.Value == "" {
			continue
		}
		if _, err := netip.ParseAddr(a.Value); err != nil {
			return no(gwv1.GatewayReasonAddressNotUsable, fmt.Sprintf("addresses[%d]: %q is not an IP address", i, a.Value))
		}
	}
	f, was := g.feedback, holds(g.obj.Status.Conditions, string(gwv1.GatewayConditionProgrammed), g.obj.Generation)
	switch {
	case f == nil && was:
	case f == nil:
		return no(gwv1.GatewayReasonPending, "the gateway's infrastructure is being made")
	case f.Problem != nil:
		return no(f.Problem.Reason, f.Problem.Message)
	case len(f.Addresses) == 0:
		return no(gwv1.GatewayReasonAddressNotAssigned, "the gateway's Service has no address yet")
	}
	some := false
	for _, l := range g.byParent[parentID{"Gateway", g.name}] {
		v := s.listenerProgrammed(g, l)
		if l.valid() && !v.ok {
			return no(gwv1.GatewayConditionReason(v.reason), fmt.Sprintf("listener %s: %s", l.name, v.message))
		}
		some = some || v.ok
	}
	if !some {
		return no(gwv1.GatewayReasonInvalid, "no listener can be served, see their conditions")
	}
	if !(g.unheard() && was) && f.Confirmed < g.since {
		return g.unconfirmed()
	}
	return yes(gwv1.GatewayReasonProgrammed, "every pod of the gateway serves its listeners")
}

// tellCounts makes the status of a Gateway alone, or of one of its ListenerSets.
func (s *State) tellCounts(w *work, g *gateway, p parentID) {
	if p.kind == "Gateway" {
		s.tellGateway(w, g, false)
		return
	}
	for i := range g.sets {
		if g.sets[i].name == p.Name {
			s.tellSet(w, g, &g.sets[i], s.programmed(g))
		}
	}
}

// tellGateway makes the statuses of a Gateway and, if so wanted, of its ListenerSets.
func (s *State) tellGateway(w *work, g *gateway, sets bool) {
	gen := g.obj.Generation
	programmed := s.programmed(g)
	out := &gwv1.GatewayStatus{Conditions: []metav1.Condition{
		condition(gwv1.GatewayConditionAccepted, g.accepted, gen),
		condition(gwv1.GatewayConditionProgrammed, programmed, gen),
		condition(gwv1.GatewayConditionResolvedRefs, g.resolved, gen),
	}}
	if insecureFrontend(g.obj.Spec.TLS) {
		v := yes(gwv1.GatewayReasonConfigurationChanged, "tls.frontend has AllowInsecureFallback: clients get in without a valid certificate")
		out.Conditions = append(out.Conditions, condition(gwv1.GatewayConditionInsecureFrontendValidationMode, v, gen))
	}
	if g.feedback != nil {
		out.Addresses = statusAddresses(g.feedback.Addresses)
	} else {
		out.Addresses = g.obj.Status.Addresses
	}
	for _, l := range g.byParent[parentID{"Gateway", g.name}] {
		out.Listeners = append(out.Listeners, gwv1.ListenerStatus{
			Name: l.spec.Name, SupportedKinds: supportedKinds(l.kinds), AttachedRoutes: int32(len(g.attached[l.key])),
			Conditions: s.listenerConditions(g, l, gen),
		})
	}
	n := int32(0)
	for i := range g.sets {
		if g.sets[i].accepted.ok {
			n++
		}
		if sets {
			s.tellSet(w, g, &g.sets[i], programmed)
		}
	}
	if a := g.obj.Spec.AllowedListeners; n > 0 || a != nil && a.Namespaces != nil {
		out.AttachedListenerSets = &n
	}
	if g.stale || g.told == nil || !reflect.DeepEqual(g.told, out) {
		g.told, g.stale = out, false
		w.out.GatewayStatuses[g.name] = out
	}
}

// insecureFrontend tells whether a Gateway's tls lets clients in whose certificates are not valid, at any port: the API wants
// it to be told as soon as it is written, though no listener may have it yet.
func insecureFrontend(t *gwv1.GatewayTLSConfig) bool {
	if t == nil || t.Frontend == nil {
		return false
	}
	is := func(v *gwv1.FrontendTLSValidation) bool { return v != nil && v.Mode == gwv1.AllowInsecureFallback }
	return is(t.Frontend.Default.Validation) ||
		slices.ContainsFunc(t.Frontend.PerPort, func(p gwv1.TLSPortConfig) bool { return is(p.TLS.Validation) })
}

// parentNotProgrammed is a reason that the API documents for a ListenerSet's Programmed condition without a constant.
const parentNotProgrammed = "ParentNotProgrammed"

// tellSet makes a ListenerSet's status.
func (s *State) tellSet(w *work, g *gateway, set *setState, parent verdict) {
	ls := s.listenerSets[set.name]
	gen := ls.obj.Generation
	out := &gwv1.ListenerSetStatus{}
	programmed := set.accepted
	if programmed.reason == string(gwv1.ListenerSetReasonParentNotAccepted) {
		programmed.reason = parentNotProgrammed
	}
	for _, l := range set.own {
		out.Listeners = append(out.Listeners, gwv1.ListenerEntryStatus{
			Name: l.spec.Name, SupportedKinds: supportedKinds(l.kinds), AttachedRoutes: int32(len(g.attached[l.key])),
			Conditions: s.listenerConditions(g, l, gen),
		})
	}
	if set.accepted.ok {
		programmed = yes(gwv1.ListenerSetReasonProgrammed, "every pod of the gateway serves it")
		if !parent.ok {
			programmed = no(parentNotProgrammed, fmt.Sprintf("Gateway %s is not programmed, see its status", g.name))
		} else {
			for _, l := range set.own {
				if v := s.listenerProgrammed(g, l); l.valid() && !v.ok {
					programmed = no(gwv1.ListenerSetConditionReason(v.reason), fmt.Sprintf("listener %s: %s", l.name, v.message))
					break
				}
			}
		}
	}
	out.Conditions = []metav1.Condition{
		condition(gwv1.ListenerSetConditionAccepted, set.accepted, gen),
		condition(gwv1.ListenerSetConditionProgrammed, programmed, gen),
	}
	if ls.stale || ls.told == nil || !reflect.DeepEqual(ls.told, out) {
		ls.told, ls.stale = out, false
		w.out.ListenerSetStatuses[ls.name] = out
	}
}

// tellOrphan takes back what was said of a ListenerSet whose Gateway is deleted. A Gateway that only became another
// controller's is not for us to speak of.
func (s *State) tellOrphan(w *work, name model.Name) {
	ls := s.listenerSets[name]
	if ls == nil || ls.told == nil && !ls.stale || s.gatewayObjects[ls.gateway] != nil {
		return
	}
	v := no(gwv1.ListenerSetReasonParentNotAccepted, fmt.Sprintf("there is no Gateway %s", ls.gateway))
	out := &gwv1.ListenerSetStatus{Conditions: []metav1.Condition{
		condition(gwv1.ListenerSetConditionAccepted, v, ls.obj.Generation),
		condition(gwv1.ListenerSetConditionProgrammed, no(parentNotProgrammed, v.message), ls.obj.Generation),
	}}
	if ls.stale || !reflect.DeepEqual(ls.told, out) {
		ls.told, ls.stale = out, false
		w.out.ListenerSetStatuses[name] = out
	}
}

func (s *State) listenerConditions(g *gateway, l *listener, gen int64) []metav1.Condition {
	conflicted := verdict{false, string(gwv1.ListenerReasonNoConflicts), "no other listener has its port and hostname"}
	if !l.conflict.ok {
		conflicted = verdict{true, l.conflict.reason, l.conflict.message}
	}
	out := []metav1.Condition{
		condition(gwv1.ListenerConditionAccepted, l.accepted, gen),
		condition(gwv1.ListenerConditionProgrammed, s.listenerProgrammed(g, l), gen),
		condition(gwv1.ListenerConditionResolvedRefs, s.resolvedRefs(g, l), gen),
		condition(gwv1.ListenerConditionConflicted, conflicted, gen),
	}
	if l.overlaps {
		v := yes(gwv1.ListenerReasonOverlappingHostnames, fmt.Sprintf("port %d: another listener's hostname has hosts in common with this one's: "+
			"the more specific one gets them", l.port))
		out = append(out, condition(gwv1.ListenerConditionOverlappingTLSConfig, v, gen))
	}
	return out
}

func supportedKinds(kinds []route.RouteKind) []gwv1.RouteGroupKind {
	out := []gwv1.RouteGroupKind{}
	for _, k := range kinds {
		group := gwv1.Group(GroupName)
		out = append(out, gwv1.RouteGroupKind{Group: &group, Kind: gwv1.Kind(k)})
	}
	return out
}

// statusAddresses gives at most as many addresses as the API takes.
func statusAddresses(in []Address) (out []gwv1.GatewayStatusAddress) {
	const most = 16
	for _, a := range in {
		ip, host := gwv1.IPAddressType, gwv1.HostnameAddressType
		switch {
		case len(out) == most:
			return out
		case a.IP.IsValid():
			out = append(out, gwv1.GatewayStatusAddress{Type: &ip, Value: a.IP.String()})
		case a.Hostname != "":
			out = append(out, gwv1.GatewayStatusAddress{Type: &host, Value: a.Hostname})
		}
	}
	return out
}

// gatewayStated tells whether a Gateway's own status says what was told.
func gatewayStated(have, told *gwv1.GatewayStatus) bool {
	if told == nil || !says(have.Conditions, told.Conditions, OwnedConditions.Gateway) || !sameStatus(have.Addresses, told.Addresses) ||
		!reflect.DeepEqual(have.AttachedListenerSets, told.AttachedListenerSets) || len(have.Listeners) != len(told.Listeners) {
		return false
	}
	for i := range told.Listeners {
		t := &told.Listeners[i]
		h := slices.IndexFunc(have.Listeners, func(l gwv1.ListenerStatus) bool { return l.Name == t.Name })
		if h < 0 || have.Listeners[h].AttachedRoutes != t.AttachedRoutes || !sameStatus(have.Listeners[h].SupportedKinds, t.SupportedKinds) ||
			!says(have.Listeners[h].Conditions, t.Conditions, OwnedConditions.Listener) {
			return false
		}
	}
	return true
}

// setStated tells whether a ListenerSet's own status says what was told.
func setStated(have, told *gwv1.ListenerSetStatus) bool {
	if told == nil || !says(have.Conditions, told.Conditions, OwnedConditions.ListenerSet) || len(have.Listeners) != len(told.Listeners) {
		return false
	}
	for i := range told.Listeners {
		t := &told.Listeners[i]
		h := slices.IndexFunc(have.Listeners, func(l gwv1.ListenerEntryStatus) bool { return l.Name == t.Name })
		if h < 0 || have.Listeners[h].AttachedRoutes != t.AttachedRoutes || !sameStatus(have.Listeners[h].SupportedKinds, t.SupportedKinds) ||
			!says(have.Listeners[h].Conditions, t.Conditions, OwnedConditions.Listener) {
			return false
		}
	}
	return true
}

// policyStated tells whether a policy's own status says what was told.
func policyStated(have *gwv1.PolicyStatus, told []gwv1.PolicyAncestorStatus) bool {
	n := 0
	for i := range have.Ancestors {
		if have.Ancestors[i].ControllerName != ControllerName {
			continue
		}
		n++
		if !slices.ContainsFunc(told, func(t gwv1.PolicyAncestorStatus) bool {
			return reflect.DeepEqual(t.AncestorRef, have.Ancestors[i].AncestorRef) && says(have.Ancestors[i].Conditions, t.Conditions, OwnedConditions.Policy)
		}) {
			return false
		}
	}
	return n == len(told)
}
