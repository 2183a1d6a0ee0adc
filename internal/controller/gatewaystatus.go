// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/model"
)

// statusOf merges what weft says into the status that an object has: conditions, listeners, parents and ancestors that
// others wrote stay, and a condition that has not changed keeps its time. o is the object as the API shows it and is
// not changed; wanted is one of what packages gatewayapi and trafficpolicy gave. Both statuses returned are the object's Go type.
func statusOf(o, wanted any, now metav1.Time) (old, merged any) {
	own := &gatewayapi.OwnedConditions
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		w, out := wanted.(*gatewayv1.GatewayClassStatus), o.Status.DeepCopy()
		out.Conditions = conditions(o.Status.Conditions, w.Conditions, own.GatewayClass, now)
		out.SupportedFeatures = w.SupportedFeatures
		return &o.Status, out
	case *gatewayv1.Gateway:
		w, out := wanted.(*gatewayv1.GatewayStatus), o.Status.DeepCopy()
		out.Conditions = conditions(o.Status.Conditions, w.Conditions, own.Gateway, now)
		out.Addresses, out.AttachedListenerSets = w.Addresses, w.AttachedListenerSets
		out.Listeners = make([]gatewayv1.ListenerStatus, len(w.Listeners))
		for i, l := range w.Listeners {
			var had []metav1.Condition
			for _, old := range o.Status.Listeners {
				if old.Name == l.Name {
					had = old.Conditions
				}
			}
			l.Conditions = conditions(had, l.Conditions, own.Listener, now)
			out.Listeners[i] = l
		}
		return &o.Status, out
	case *gatewayv1.ListenerSet:
		w, out := wanted.(*gatewayv1.ListenerSetStatus), o.Status.DeepCopy()
		out.Conditions = conditions(o.Status.Conditions, w.Conditions, own.ListenerSet, now)
		out.Listeners = make([]gatewayv1.ListenerEntryStatus, len(w.Listeners))
		for i, l := range w.Listeners {
			var had []metav1.Condition
			for _, old := range o.Status.Listeners {
				if old.Name == l.Name {
					had = old.Conditions
				}
			}
			l.Conditions = conditions(had, l.Conditions, own.Listener, now)
			out.Listeners[i] = l
		}
		return &o.Status, out
	case *gatewayv1.BackendTLSPolicy:
		out := o.Status.DeepCopy()
		out.Ancestors = ancestors(o.Status.Ancestors, wanted.([]gatewayv1.PolicyAncestorStatus), now)
		return &o.Status, out
	}
	if o, ok := o.(*v1alpha1.TrafficPolicy); ok {
		return &o.Status, &v1alpha1.TrafficPolicyStatus{Ancestors: targets(o.Status.Ancestors, wanted.(*v1alpha1.TrafficPolicyStatus).Ancestors, now)}
	}
	parents := parentsOf(o)
	if parents == nil {
		return nil, nil
	}
	return &gatewayv1.RouteStatus{Parents: *parents}, &gatewayv1.RouteStatus{Parents: routeParents(*parents, wanted.([]gatewayv1.RouteParentStatus), now)}
}

// conditions merges the conditions that weft wants into those that are there. Of the types that are weft's those not
// wanted go.
func conditions(there, wanted []metav1.Condition, own []string, now metav1.Time) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(there)+len(wanted))
	for _, c := range there {
		if !slices.Contains(own, c.Type) || meta.FindStatusCondition(wanted, c.Type) != nil {
			out = append(out, c)
		}
	}
	for _, c := range wanted {
		old := meta.FindStatusCondition(out, c.Type)
		c.LastTransitionTime = now
		if old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		if old != nil {
			*old = c
		} else {
			out = append(out, c)
		}
	}
	return out
}

// entries merges ours into a status's list, with their conditions. Those of others stay, and all keep their places, so
// that controllers which write to the same list don't turn each other's order around for ever; new ones come last, as
// many as the list has room for. The result is never nil: the API requires the field. of gives an entry's controller,
// what it is about, and its conditions.
func entries[T any](there, wanted []T, of func(*T) (controller gatewayv1.GatewayController, about any, conditions *[]metav1.Condition),
	owned []string, most int, now metav1.Time) []T {
	out := make([]T, 0, len(there)+len(wanted))
	placed := make([]bool, len(wanted))
	for i := range there {
		controller, about, had := of(&there[i])
		if controller != gatewayapi.ControllerName {
			out = append(out, there[i])
			continue
		}
		for k := range wanted {
			w := wanted[k]
			if _, what, conds := of(&w); !placed[k] && reflect.DeepEqual(what, about) {
				placed[k] = true
				*conds = conditions(*had, *conds, owned, now)
				out = append(out, w)
				break
			}
		}
	}
	for k, w := range wanted {
		if placed[k] || len(out) >= most {
			continue
		}
		_, _, conds := of(&w)
		*conds = conditions(nil, *conds, owned, now)
		out = append(out, w)
	}
	return out
}

// mostParents is how many entries the API lets a route's status have, whoever wrote them.
const mostParents = 32

// cutOff gives the Gateways for which a policy's status had no room. The API wants that to be told elsewhere.
func cutOff(wanted, merged any) (out []model.Name) {
	m, ok := merged.(*gatewayv1.PolicyStatus)
	if !ok {
		return nil
	}
	for _, w := range wanted.([]gatewayv1.PolicyAncestorStatus) {
		if !slices.ContainsFunc(m.Ancestors, func(a gatewayv1.PolicyAncestorStatus) bool {
			return a.ControllerName == gatewayapi.ControllerName && reflect.DeepEqual(a.AncestorRef, w.AncestorRef)
		}) {
			out = append(out, model.Name{Namespace: string(*w.AncestorRef.Namespace), Name: string(w.AncestorRef.Name)})
		}
	}
	return out
}

func routeParents(there, wanted []gatewayv1.RouteParentStatus, now metav1.Time) []gatewayv1.RouteParentStatus {
	return entries(there, wanted, func(p *gatewayv1.RouteParentStatus) (gatewayv1.GatewayController, any, *[]metav1.Condition) {
		return p.ControllerName, p.ParentRef, &p.Conditions
	}, gatewayapi.OwnedConditions.Route, mostParents, now)
}

func ancestors(there, wanted []gatewayv1.PolicyAncestorStatus, now metav1.Time) []gatewayv1.PolicyAncestorStatus {
	return entries(there, wanted, func(p *gatewayv1.PolicyAncestorStatus) (gatewayv1.GatewayController, any, *[]metav1.Condition) {
		return p.ControllerName, p.AncestorRef, &p.Conditions
	}, gatewayapi.OwnedConditions.Policy, gatewayapi.MaxAncestors, now)
}

func targets(there, wanted []v1alpha1.TrafficPolicyAncestor, now metav1.Time) []v1alpha1.TrafficPolicyAncestor {
	return entries(there, wanted, func(p *v1alpha1.TrafficPolicyAncestor) (gatewayv1.GatewayController, any, *[]metav1.Condition) {
		return gatewayv1.GatewayController(p.ControllerName), p.AncestorRef, &p.Conditions
	}, gatewayapi.OwnedConditions.Policy, len(there)+len(wanted), now)
}

// withRoutability completes the patch of a Gateway's status with which of its addresses are ClusterIPs that were asked for
// as such: a field of release 1.7 that the Go type does not have. Addresses are in every patch then, since what the object
// says of it is not known here; what it is to say changes with the object's spec only, and that is in patches anyway.
func withRoutability(patch []byte, merged *gatewayv1.GatewayStatus, addrs []gatewayapi.Address) []byte {
	cluster := map[string]bool{}
	for _, a := range addrs {
		if a.Cluster {
			cluster[a.IP.String()] = true
		}
	}
	list := []any{}
	for _, a := range merged.Addresses {
		f := fields(a)
		if cluster[a.Value] {
			f["routability"] = "Cluster"
		}
		list = append(list, f)
	}
	out := fields(json.RawMessage(patch))
	out["status"].(map[string]any)["addresses"] = list
	return encode(out)
}

// mergePatch is a JSON merge patch (RFC 7386) that brings a status from one to the other; nil when they are the same.
// It holds for the very version of the object that was looked at: if that has changed since, the API server says so.
func mergePatch(o metav1.Object, old, merged any) []byte {
	was, is := fields(old), fields(merged)
	diff := map[string]any{}
	for k, v := range is {
		if !reflect.DeepEqual(was[k], v) {
			diff[k] = v
		}
	}
	for k := range was {
		if _, ok := is[k]; !ok {
			diff[k] = nil
		}
	}
	if len(diff) == 0 {
		return nil
	}
	return encode(map[string]any{
		"metadata": map[string]any{"uid": o.GetUID(), "resourceVersion": o.GetResourceVersion()},
		"status":   diff,
	})
}

func fields(v any) map[string]any {
	var out map[string]any
	if err := json.Unmarshal(encode(v), &out); err != nil {
		panic(err) // what was just encoded from a struct
	}
	return out
}

// worsened lists the conditions of weft's that a status newly has and that tell of a mistake to correct, for Events.
func worsened(old, merged any) []metav1.Condition {
	was := map[string]metav1.Condition{}
	eachCondition(old, func(path string, c metav1.Condition) { was[path+"/"+c.Type] = c })
	var out []metav1.Condition
	eachCondition(merged, func(path string, c metav1.Condition) {
		bad := c.Status == metav1.ConditionFalse && (c.Type == string(gatewayv1.RouteConditionAccepted) || c.Type == string(gatewayv1.RouteConditionResolvedRefs)) ||
			c.Status == metav1.ConditionTrue && (c.Type == string(gatewayv1.ListenerConditionConflicted) || c.Type == string(gatewayv1.RouteConditionPartiallyInvalid))
		b := was[path+"/"+c.Type]
		if bad && (b.Status != c.Status || b.Reason != c.Reason) {
			out = append(out, c)
		}
	})
	return out
}

// eachCondition goes through weft's conditions of a status, each with where it is.
func eachCondition(status any, f func(path string, c metav1.Condition)) {
	each := func(path string, conditions []metav1.Condition) {
		for _, c := range conditions {
			f(path, c)
		}
	}
	switch s := status.(type) {
	case *gatewayv1.GatewayClassStatus:
		each("", s.Conditions)
	case *gatewayv1.GatewayStatus:
		each("", s.Conditions)
		for _, l := range s.Listeners {
			each("listener/"+string(l.Name), l.Conditions)
		}
	case *gatewayv1.ListenerSetStatus:
		each("", s.Conditions)
		for _, l := range s.Listeners {
			each("listener/"+string(l.Name), l.Conditions)
		}
	case *gatewayv1.RouteStatus:
		for _, p := range s.Parents {
			if p.ControllerName == gatewayapi.ControllerName {
				each("parent/"+string(encode(p.ParentRef)), p.Conditions)
			}
		}
	case *v1alpha1.TrafficPolicyStatus:
		for _, a := range s.Ancestors {
			each("target/"+string(encode(a.AncestorRef)), a.Conditions)
		}
	case *gatewayv1.PolicyStatus:
		for _, a := range s.Ancestors {
			if a.ControllerName == gatewayapi.ControllerName {
				each("ancestor/"+string(encode(a.AncestorRef)), a.Conditions)
			}
		}
	}
}
