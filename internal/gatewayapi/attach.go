// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// maxParents is how many entries a route's status may have.
const maxParents = 32

// parentID names what a route may be attached to.
type parentID struct {
	kind string // Gateway or ListenerSet
	model.Name
}

// listenerID names a listener by its gateway and its key in that gateway's tables.
type listenerID struct {
	gateway model.Name
	key     string
}

// routeState is a route with what was made of it.
type routeState struct {
	id        RouteID
	name      string // "namespace/name"
	meta      *metav1.ObjectMeta
	spec      *gwv1.CommonRouteSpec
	hostnames []string
	compile   func() *content

	content *content // nil: to be compiled again
	parents []parentState
	// hosts are the hostnames by the listener that it wants, whether it gets them or not.
	hosts map[listenerID][]string
	// names are the route's own hostnames that have hosts in common with each of those listeners'; "" is any.
	names map[listenerID][]string

	attached map[listenerID][]string   // what it got
	placed   map[model.Name]*placement // what it has in each gateway's tables
	told     []gwv1.RouteParentStatus
	stale    bool // the object's status is not what was told
}

// parentState is what became of one parentRef.
type parentState struct {
	ref       gwv1.ParentReference
	refused   verdict      // why no listener takes the route; ok when some do
	listeners []listenerID // that would take it
}

// wants finds the listeners that the route asks for and that would take it. Two routes of different kinds may still
// want the same hostname (see contest).
func (s *State) wants(r *routeState) {
	r.parents, r.hosts, r.names = nil, map[listenerID][]string{}, map[listenerID][]string{}
	refs := r.spec.ParentRefs
	if r.spec.UseDefaultGateways == gwv1.GatewayDefaultScopeAll {
		refs = append(slices.Clone(refs), s.defaultParents()...)
	}
	for _, ref := range refs {
		p, ours := s.parent(r.id.Namespace, ref)
		if !ours || len(r.parents) == maxParents {
			continue
		}
		state := parentState{ref: ref}
		s.match(r, p, &state)
		r.parents = append(r.parents, state)
	}
}

// defaultParents are the Gateways that take routes which ask for a default one (GEP-3793).
func (s *State) defaultParents() (out []gwv1.ParentReference) {
	for _, name := range slices.SortedFunc(maps.Keys(s.defaultGateways), model.Name.Compare) {
		group, kind, ns := gwv1.Group(GroupName), gwv1.Kind("Gateway"), gwv1.Namespace(name.Namespace)
		out = append(out, gwv1.ParentReference{Group: &group, Kind: &kind, Namespace: &ns, Name: gwv1.ObjectName(name.Name)})
	}
	return out
}

// parentKey reads a parentRef; ok is false for kinds that are not ours.
func parentKey(namespace string, ref gwv1.ParentReference) (p parentID, ok bool) {
	p = parentID{kind: "Gateway", Name: model.Name{Namespace: namespace, Name: string(ref.Name)}}
	if ref.Kind != nil {
		p.kind = string(*ref.Kind)
	}
	if ref.Namespace != nil && *ref.Namespace != "" {
		p.Namespace = string(*ref.Namespace)
	}
	return p, (ref.Group == nil || *ref.Group == GroupName) && (p.kind == "Gateway" || p.kind == "ListenerSet")
}

// parent finds what a parentRef names, if it is a Gateway of ours or a ListenerSet of one.
func (s *State) parent(namespace string, ref gwv1.ParentReference) (parentID, bool) {
	p, ok := parentKey(namespace, ref)
	return p, ok && s.gatewayOf(p) != nil
}

func (s *State) gatewayOf(p parentID) *gateway {
	if p.kind == "Gateway" {
		return s.gateways[p.Name]
	}
	if ls := s.listenerSets[p.Name]; ls != nil {
		return s.gateways[ls.gateway]
	}
	return nil
}

func (s *State) match(r *routeState, p parentID, out *parentState) {
	g := s.gatewayOf(p)
	all := g.byParent[p]
	if p.kind == "ListenerSet" && !g.allows(p.Name) {
		out.refused = no(gwv1.RouteReasonNoMatchingParent, fmt.Sprintf("ListenerSet %s is not attached to Gateway %s, see its status", p.Name, g.name))
		return
	}
	var named, allowed, hosted int
	var others, closed []string // listeners that don't take routes of its kind, and those that don't of its namespace
	for _, l := range all {
		if out.ref.SectionName != nil && *out.ref.SectionName != "" && string(*out.ref.SectionName) != l.name ||
			out.ref.Port != nil && uint16(*out.ref.Port) != l.port {
			continue
		}
		named++
		if !slices.Contains(l.kinds, r.id.Kind) {
			others = append(others, l.name)
			continue
		}
		if !s.namespaceAllowed(&l.attachSpec, r.id.Namespace) {
			closed = append(closed, l.name)
			continue
		}
		allowed++
		id := listenerID{g.name, l.key}
		hosts, names := []string{""}, []string{""}
		if r.id.Kind != route.TCPRoute && r.id.Kind != route.UDPRoute {
			if hosts, names = intersectHostnames(l.hostname, r.hostnames); len(hosts) == 0 {
				continue
			}
		}
		for _, n := range names {
			if !slices.Contains(r.names[id], n) {
				r.names[id] = append(r.names[id], n)
			}
		}
		hosted++
		out.listeners = append(out.listeners, id)
		for _, h := range hosts {
			if !slices.Contains(r.hosts[id], h) {
				r.hosts[id] = append(r.hosts[id], h)
			}
		}
	}
	switch {
	case named == 0:
		out.refused = no(gwv1.RouteReasonNoMatchingParent, fmt.Sprintf("%s %s has no listener that sectionName and port of the parentRef name", p.kind, p.Name))
	case allowed == 0 && len(closed) == 0:
		out.refused = no(gwv1.RouteReasonNotAllowedByListeners, fmt.Sprintf("%s no %ss: see sectionName and port of the parentRef, and protocol and allowedRoutes.kinds there",
			take(p, others), r.id.Kind))
	case allowed == 0:
		out.refused = no(gwv1.RouteReasonNotAllowedByListeners, fmt.Sprintf("%s no %ss from namespace %s: see allowedRoutes.namespaces there",
			take(p, closed), r.id.Kind, r.id.Namespace))
	case hosted == 0:
		out.refused = no(gwv1.RouteReasonNoMatchingListenerHostname, fmt.Sprintf("no hostname of the route (%s) is within one of %s %s's listeners",
			strings.Join(r.hostnames, ", "), p.kind, p.Name))
	default:
		out.refused.ok = true
	}
}

// take begins a sentence about what listeners take.
func take(p parentID, listeners []string) string {
	subject, verb := "listener", "takes"
	if len(listeners) > 1 {
		subject, verb = "listeners", "take"
	}
	return fmt.Sprintf("%s %s of %s %s %s", subject, strings.Join(listeners, ", "), p.kind, p.Name, verb)
}

// namespaceAllowed tells whether a listener takes routes of a namespace.
func (s *State) namespaceAllowed(l *attachSpec, namespace string) bool {
	switch l.from {
	case gwv1.NamespacesFromAll:
		return true
	case gwv1.NamespacesFromSame:
		return l.parent.Namespace == namespace
	case gwv1.NamespacesFromSelector:
		return s.selected(l.selector, namespace)
	}
	return false
}

// selected tells whether a namespace has the labels that a selector wants; nil is no selector, which wants nothing.
func (s *State) selected(sel *model.Selector, namespace string) bool {
	if sel == nil {
		return false
	}
	labels := map[string]string{"kubernetes.io/metadata.name": namespace}
	if ns := s.namespaces[namespace]; ns != nil {
		labels = ns.Labels
	}
	return sel.Matches(labels)
}

// attach puts the route into the tables of the gateways that take it, and makes its status.
func (s *State) attach(w *work, r *routeState) {
	now := map[listenerID][]string{}
	for id, hosts := range r.hosts {
		if c := s.contests[id]; c != nil {
			if _, isLost := c.lost[r.id]; isLost {
				continue
			}
		}
		now[id] = hosts
	}
	if r.content.rejected() {
		clear(now)
	}
	s.count(w, r, now)
	s.place(w, r, now)
	s.tellRoute(w, r)
}

// count keeps how many routes each listener has.
func (s *State) count(w *work, r *routeState, now map[listenerID][]string) {
	for id := range r.attached {
		if _, still := now[id]; !still {
			if g := s.gateways[id.gateway]; g != nil && g.attached[id.key].has(r.id) {
				delete(g.attached[id.key], r.id)
				if len(g.attached[id.key]) == 0 {
					delete(g.attached, id.key)
				}
				w.counted(g, id.key)
			}
		}
	}
	for id := range now {
		g := s.gateways[id.gateway]
		if !g.attached[id.key].has(r.id) {
			g.attached[id.key] = addTo(g.attached[id.key], r.id)
			w.counted(g, id.key)
		}
	}
	r.attached = now
}

// place makes the Route resources of each gateway.
func (s *State) place(w *work, r *routeState, now map[listenerID][]string) {
	want := map[model.Name]*placement{}
	for _, id := range slices.SortedFunc(maps.Keys(now), func(a, b listenerID) int {
		return cmp.Or(a.gateway.Compare(b.gateway), cmp.Compare(a.key, b.key))
	}) {
		g := s.gateways[id.gateway]
		l := g.byKey[id.key]
		if l == nil || !l.served {
			continue
		}
		p := want[id.gateway]
		if p == nil {
			p = &placement{}
			want[id.gateway] = p
		}
		parent := route.Parent{Listener: id.key, Hostnames: r.names[id]}
		if l.protocol == route.TLS && !l.passthrough {
			p.terminated = append(p.terminated, parent)
		} else {
			p.parents = append(p.parents, parent)
		}
	}
	for name := range r.placed {
		if want[name] == nil {
			if g := s.gateways[name]; g != nil {
				s.withdraw(w, g, r)
			}
			delete(r.placed, name)
		}
	}
	for name, p := range want {
		s.publish(w, s.gateways[name], r, p)
	}
}

// placement is what a route has in one gateway's tables.
type placement struct {
	parents, terminated []route.Parent
	backends            []backendID
	policies            []string
	own                 []route.Policy // of its filters
}

// terminatedSuffix is what the key of the second resource of a TLSRoute or TCPRoute ends with: the one for listeners
// that end TLS.
const terminatedSuffix = "/terminated"

func (s *State) publish(w *work, g *gateway, r *routeState, p *placement) {
	key, t := r.id.String(), g.tables
	old := r.placed[g.name]
	if len(p.parents) > 0 {
		p.backends = r.content.backends
	}
	if len(p.terminated) > 0 {
		p.backends = slices.Concat(p.backends, r.content.reencrypts)
	}
	p.policies = s.routePolicies(r)
	for _, id := range p.backends {
		s.need(w, g, id)
	}
	for _, k := range p.policies {
		s.needPolicy(w, g, k)
	}
	s.releaseAll(w, g, old)
	p.own = r.content.own
	if old != nil {
		for i := range old.own {
			t.policies.put(old.own[i].Key, nil)
		}
	}
	for i := range p.own {
		t.policies.put(p.own[i].Key, &p.own[i])
	}
	put := func(key string, parents []route.Parent, rules []route.Rule) {
		if len(parents) == 0 {
			t.routes.put(key, nil)
			return
		}
		t.routes.put(key, &route.Route{
			Key: key, Kind: r.id.Kind, Parents: parents, Created: created(r.meta), Name: r.name,
			Rules: rules, Policies: s.attachedPolicies(Target{Kind: string(r.id.Kind), Name: r.id.Name}),
		})
	}
	put(key, p.parents, s.withRulePolicies(r, r.content.rules))
	if r.id.Kind == route.TLSRoute || r.id.Kind == route.TCPRoute {
		put(key+terminatedSuffix, p.terminated, r.content.terminated)
	}
	r.placed[g.name] = p
	w.tables.add(g.name)
}

// withdraw takes the route out of a gateway's tables.
func (s *State) withdraw(w *work, g *gateway, r *routeState) {
	for _, p := range r.placed[g.name].own {
		g.tables.policies.put(p.Key, nil)
	}
	s.releaseAll(w, g, r.placed[g.name])
	g.tables.routes.put(r.id.String(), nil)
	g.tables.routes.put(r.id.String()+terminatedSuffix, nil)
	w.tables.add(g.name)
}

func (s *State) releaseAll(w *work, g *gateway, p *placement) {
	if p == nil {
		return
	}
	for _, id := range p.backends {
		s.release(w, g, id)
	}
	for _, k := range p.policies {
		s.releasePolicy(w, g, k)
	}
}

// tellRoute makes the route's status.
func (s *State) tellRoute(w *work, r *routeState) {
	out := []gwv1.RouteParentStatus{}
	c := r.content
	resolved := yes(gwv1.RouteReasonResolvedRefs, "all references are resolved")
	if len(c.resolved) > 0 {
		resolved = c.resolved[0]
		resolved.message = joinMessages(c.resolved)
	}
	for i := range r.parents {
		p := &r.parents[i]
		accepted := s.acceptance(r, p)
		if len(c.notes) > 0 {
			accepted.message += "; note: " + strings.Join(slices.Compact(c.notes), "; ")
		}
		conditions := []metav1.Condition{
			condition(gwv1.RouteConditionAccepted, accepted, r.meta.Generation),
			condition(gwv1.RouteConditionResolvedRefs, s.resolvedAt(r, p, resolved), r.meta.Generation),
		}
		if accepted.ok && c.bad > 0 {
			v := yes(c.invalid[0].reason, "Dropped Rule: requests that it wins get an error: "+joinMessages(c.invalid))
			conditions = append(conditions, condition(gwv1.RouteConditionPartiallyInvalid, v, r.meta.Generation))
		}
		out = append(out, gwv1.RouteParentStatus{ParentRef: p.ref, ControllerName: ControllerName, Conditions: conditions})
	}
	if r.stale || !sameStatus(r.told, out) {
		r.told, r.stale = out, false
		w.out.RouteStatuses[r.id] = out
	}
}

// resolvedAt is what ResolvedRefs says at one parent: that of the route, and which policies are not in force there.
func (s *State) resolvedAt(r *routeState, p *parentState, resolved verdict) verdict {
	var excluded []verdict
	seen := set[model.Name]{}
	for _, l := range p.listeners {
		placed := r.placed[l.gateway]
		if placed == nil || seen.has(l.gateway) {
			continue
		}
		seen.add(l.gateway)
		for _, id := range placed.backends {
			if v := s.excludes(l.gateway, id); v != nil {
				excluded = append(excluded, *v)
			}
		}
	}
	if len(excluded) == 0 {
		return resolved
	}
	if resolved.ok {
		return no(excluded[0].reason, joinMessages(excluded))
	}
	resolved.message = joinMessages(append([]verdict{resolved}, excluded...))
	return resolved
}

func (s *State) acceptance(r *routeState, p *parentState) verdict {
	if !p.refused.ok {
		return p.refused
	}
	if r.content.rejected() {
		v := r.content.invalid[0]
		return no(v.reason, "no rule can be served: "+joinMessages(r.content.invalid))
	}
	var lostTo RouteID
	attached := false
	for _, id := range p.listeners {
		if _, got := r.attached[id]; got {
			attached = true
			if s.gateways[id.gateway].byKey[id.key].served {
				return yes(gwv1.RouteReasonAccepted, "the route is attached")
			}
			continue
		}
		lostTo = s.contests[id].lost[r.id]
	}
	if attached { // the API has it that listeners' status does not matter here
		return yes(gwv1.RouteReasonAccepted, "the route is attached, and none of its listeners is served: see their status")
	}
	return no("HostnameConflict", fmt.Sprintf("%s has one of the hostnames on each of the listeners already, and HTTPRoutes and GRPCRoutes can't share one: "+
		"use different hostnames or listeners", lostTo))
}

func sameStatus[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b))
}

// stated tells whether a route's own status says what was told.
func stated(have *gwv1.RouteStatus, told []gwv1.RouteParentStatus) bool {
	n := 0
	for i := range have.Parents {
		if have.Parents[i].ControllerName != ControllerName {
			continue
		}
		n++
		if !slices.ContainsFunc(told, func(t gwv1.RouteParentStatus) bool {
			return reflect.DeepEqual(t.ParentRef, have.Parents[i].ParentRef) && says(have.Parents[i].Conditions, t.Conditions, OwnedConditions.Route)
		}) {
			return false
		}
	}
	return n == len(told)
}

// created is an object's creation time in Unix seconds; 0 when it has none.
func created(m *metav1.ObjectMeta) int64 {
	if m.CreationTimestamp.IsZero() {
		return 0
	}
	return m.CreationTimestamp.Unix()
}
