// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"maps"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// take stores what a change brings, and notes what has to be looked at again because of it.
func (s *State) take(w *work, c *Change) {
	for key, unknown := range c.Unknown {
		if len(unknown) > 0 {
			s.extras[key] = unknown
		} else {
			delete(s.extras, key)
		}
	}
	s.takeReferents(w, c)
	for name, obj := range c.GatewayClasses {
		put(s.classObjects, name, obj)
		w.classes.add(name)
		if k := s.classes[name]; k != nil && obj != nil && !classStated(&obj.Status, k.told) {
			k.stale = true
		}
	}
	for name, obj := range c.Gateways {
		s.takeGateway(w, name, obj)
	}
	for name, obj := range c.ListenerSets {
		s.takeListenerSet(w, name, obj)
	}
	s.takeRoutes(w, c)
	for name, obj := range c.BackendTLSPolicies {
		old := s.policyObjects[name]
		put(s.policyObjects, name, obj)
		if p := s.tlsPolicies[name]; p != nil && obj != nil && !policyStated(&obj.Status, p.told) {
			p.stale = true
			w.policyStatus.add(name)
		}
		if old == nil || obj == nil || !sameSpec(&old.ObjectMeta, &obj.ObjectMeta, &old.Spec, &obj.Spec) {
			w.tlsPolicy.add(name)
		} else if p := s.tlsPolicies[name]; p != nil {
			p.obj = obj
		}
	}
	for t, a := range c.Attachments {
		s.setAttachment(w, t, a)
	}
	for key, p := range c.Policies {
		s.setPolicy(w, key, p)
	}
	for name, f := range c.Feedback {
		put(s.feedback, name, f)
		if g := s.gateways[name]; g != nil {
			g.feedback = f
			w.gatewayStatus.add(name)
		}
	}
	for resource, crd := range c.CRDs {
		put(s.crds, resource, crd)
	}
	if len(c.CRDs) > 0 {
		for name := range s.classes {
			w.classStatus.add(name)
		}
	}
}

// takeReferents takes what Gateways and routes refer to.
func (s *State) takeReferents(w *work, c *Change) {
	for name, svc := range c.Services {
		old := s.services[name]
		put(s.services, name, svc)
		w.services.add(name)
		if old == nil || svc == nil || !slices.Equal(old.Ports, svc.Ports) ||
			old.Annotations[model.ProxyProtocolAnnotation] != svc.Annotations[model.ProxyProtocolAnnotation] {
			w.usersOf(s, name)
			w.policiesOf(s, name)
		}
	}
	for name, slice := range c.EndpointSlices {
		for _, e := range []*model.EndpointSlice{s.endpointSlices[name], slice} {
			if e != nil {
				w.services.add(model.Name{Namespace: name.Namespace, Name: e.Service})
			}
		}
		put(s.endpointSlices, name, slice)
		var svc []model.Name
		if slice != nil {
			svc = []model.Name{{Namespace: name.Namespace, Name: slice.Service}}
		}
		s.slices.set(name, svc)
	}
	for name, ns := range c.Namespaces {
		old := s.namespaces[name]
		put(s.namespaces, name, ns)
		if old == nil || ns == nil || !maps.Equal(old.Labels, ns.Labels) {
			w.namespaces.add(name)
		}
	}
	s.takeNamespaces(w)
	for name, secret := range c.Secrets {
		if old := s.secrets[name]; old != nil {
			delete(s.keyPairs, old)
		}
		put(s.secrets, name, secret)
		s.dirtyRef(w, ref{"Secret", name})
	}
	for name, m := range c.ConfigMaps {
		put(s.configMaps, name, m)
		s.dirtyRef(w, ref{"ConfigMap", name})
	}
	for name, b := range c.ClusterTrustBundles {
		put(s.trustBundles, name, b)
		s.dirtyRef(w, ref{trustBundleKind, model.Name{Name: name}})
	}
	for name, p := range c.Parameters {
		put(s.parameters, name, p)
		for class := range s.classesByParameters.of(name) {
			w.classes.add(class)
		}
		s.dirtyRef(w, ref{parametersKind, name})
	}
	for name, g := range c.ReferenceGrants {
		in := s.grants[name.Namespace]
		if g == nil || s.extraOf("ReferenceGrant", name) != nil { // a grant of which only a part is known may permit less
			delete(in, name.Name)
			if len(in) == 0 {
				delete(s.grants, name.Namespace)
			}
		} else {
			if in == nil {
				in = map[string]*gwv1.ReferenceGrant{}
				s.grants[name.Namespace] = in
			}
			in[name.Name] = g
		}
		for id := range s.routesByForeign.of(name.Namespace) {
			w.content.add(id)
		}
		for gw := range s.gatewaysByForeign.of(name.Namespace) {
			w.gateways.add(gw)
		}
	}
}

// takeNamespaces has all looked at again that a namespace's labels decide about. They change seldom.
func (s *State) takeNamespaces(w *work) {
	if len(w.namespaces) == 0 {
		return
	}
	for id := range s.routes {
		if w.namespaces.has(id.Namespace) {
			w.wants.add(id)
		}
	}
	for _, ls := range s.listenerSets {
		if w.namespaces.has(ls.name.Namespace) {
			w.gateways.add(ls.gateway)
		}
	}
}

func (s *State) dirtyRef(w *work, r ref) {
	for g := range s.gatewaysByRef.of(r) {
		w.gateways.add(g)
	}
	for p := range s.policiesByRef.of(r) {
		w.tlsPolicy.add(p)
	}
}

func (s *State) takeGateway(w *work, name model.Name, obj *gwv1.Gateway) {
	old := s.gatewayObjects[name]
	put(s.gatewayObjects, name, obj)
	var class []string
	if old != nil {
		w.classStatus.add(string(old.Spec.GatewayClassName))
	}
	if obj != nil {
		class = []string{string(obj.Spec.GatewayClassName)}
		w.classStatus.add(class[0])
	}
	s.gatewaysByClass.set(name, class)
	g := s.gateways[name]
	if g != nil && obj != nil && !gatewayStated(&obj.Status, g.told) {
		g.stale = true
		w.gatewayStatus.add(name)
	}
	if g == nil || old == nil || obj == nil || !sameSpec(&old.ObjectMeta, &obj.ObjectMeta, &old.Spec, &obj.Spec) {
		w.gateways.add(name)
	} else {
		g.obj = obj
	}
}

func (s *State) takeListenerSet(w *work, name model.Name, obj *gwv1.ListenerSet) {
	ls := s.listenerSets[name]
	if ls != nil && obj != nil {
		if ls.told != nil && !setStated(&obj.Status, ls.told) {
			ls.stale = true
			w.gatewayStatus.add(ls.gateway)
		}
		if sameSpec(&ls.obj.ObjectMeta, &obj.ObjectMeta, &ls.obj.Spec, &obj.Spec) {
			ls.obj = obj
			return
		}
	}
	if ls != nil {
		w.gateways.add(ls.gateway)
	}
	if obj == nil {
		delete(s.listenerSets, name)
		s.setsByGateway.set(name, nil)
		s.dirtyParents(w, parentID{"ListenerSet", name})
		return
	}
	if ls == nil {
		ls = &listenerSet{name: name, order: name.String()}
		s.listenerSets[name] = ls
		ls.stale = len(obj.ManagedFields) > 0 // an earlier process wrote its status, which may no longer hold
	}
	ls.obj = obj
	r := obj.Spec.ParentRef
	parent := model.Name{Namespace: name.Namespace, Name: string(r.Name)}
	if r.Namespace != nil && *r.Namespace != "" {
		parent.Namespace = string(*r.Namespace)
	}
	if r.Group != nil && *r.Group != GroupName || r.Kind != nil && *r.Kind != "Gateway" {
		parent = model.Name{}
	}
	if ls.gateway != parent {
		ls.gateway = parent
		w.orphans.add(name)
		s.dirtyParents(w, parentID{"ListenerSet", name})
	}
	s.setsByGateway.set(name, []model.Name{parent})
	w.gateways.add(parent)
}

func (s *State) takeRoutes(w *work, c *Change) {
	for name, obj := range c.HTTPRoutes {
		if obj == nil {
			s.dropRoute(w, RouteID{route.HTTPRoute, name})
			continue
		}
		s.takeRoute(w, RouteID{route.HTTPRoute, name}, &obj.ObjectMeta, &obj.Spec.CommonRouteSpec, &obj.Status.RouteStatus,
			lower(obj.Spec.Hostnames), func() *content { return s.compileHTTP(obj, name) })
	}
	for name, obj := range c.GRPCRoutes {
		if obj == nil {
			s.dropRoute(w, RouteID{route.GRPCRoute, name})
			continue
		}
		s.takeRoute(w, RouteID{route.GRPCRoute, name}, &obj.ObjectMeta, &obj.Spec.CommonRouteSpec, &obj.Status.RouteStatus,
			lower(obj.Spec.Hostnames), func() *content { return s.compileGRPC(obj, name) })
	}
	for name, obj := range c.TLSRoutes {
		if obj == nil {
			s.dropRoute(w, RouteID{route.TLSRoute, name})
			continue
		}
		s.takeRoute(w, RouteID{route.TLSRoute, name}, &obj.ObjectMeta, &obj.Spec.CommonRouteSpec, &obj.Status.RouteStatus,
			lower(obj.Spec.Hostnames), func() *content { return s.compileTLS(obj, name) })
	}
	for name, obj := range c.TCPRoutes {
		if obj == nil {
			s.dropRoute(w, RouteID{route.TCPRoute, name})
			continue
		}
		s.takeRoute(w, RouteID{route.TCPRoute, name}, &obj.ObjectMeta, &obj.Spec.CommonRouteSpec, &obj.Status.RouteStatus,
			nil, func() *content { return s.compileTCP(obj, name) })
	}
	for name, obj := range c.UDPRoutes {
		if obj == nil {
			s.dropRoute(w, RouteID{route.UDPRoute, name})
			continue
		}
		s.takeRoute(w, RouteID{route.UDPRoute, name}, &obj.ObjectMeta, &obj.Spec.CommonRouteSpec, &obj.Status.RouteStatus,
			nil, func() *content { return s.compileUDP(obj, name) })
	}
}

func (s *State) takeRoute(w *work, id RouteID, meta *metav1.ObjectMeta, spec *gwv1.CommonRouteSpec, status *gwv1.RouteStatus,
	hostnames []string, compile func() *content) {
	r := s.routes[id]
	if r == nil {
		r = &routeState{id: id, name: id.Name.String(), placed: map[model.Name]*placement{}}
		s.routes[id] = r
		// What an earlier process said of the route is to be taken back where it no longer holds.
		r.stale = slices.ContainsFunc(status.Parents, func(p gwv1.RouteParentStatus) bool { return p.ControllerName == ControllerName })
	} else {
		r.stale = r.stale || !stated(status, r.told)
		if !r.meta.CreationTimestamp.Equal(&meta.CreationTimestamp) {
			w.aged.add(id)
		}
	}
	same := r.meta != nil && r.meta.Generation == meta.Generation && meta.Generation != 0 && r.meta.UID == meta.UID
	r.meta, r.spec, r.hostnames, r.compile = meta, spec, hostnames, compile
	if same {
		if r.stale {
			w.attach.add(id)
		}
		return
	}
	var keys []parentID
	for _, ref := range spec.ParentRefs {
		if p, ok := parentKey(id.Namespace, ref); ok {
			keys = append(keys, p)
		}
	}
	s.routesByParent.set(id, keys)
	if spec.UseDefaultGateways == gwv1.GatewayDefaultScopeAll {
		s.defaultRoutes.add(id)
	} else {
		delete(s.defaultRoutes, id)
	}
	w.wants.add(id)
	w.content.add(id)
	w.attach.add(id)
}

func (s *State) dropRoute(w *work, id RouteID) {
	r := s.routes[id]
	if r == nil {
		return
	}
	for l := range r.hosts {
		s.leave(w, id, l)
	}
	s.count(w, r, nil)
	s.place(w, r, nil)
	s.routesByParent.set(id, nil)
	s.routesByService.set(id, nil)
	s.routesByForeign.set(id, nil)
	delete(s.defaultRoutes, id)
	delete(s.routes, id)
}

// sameSpec tells whether nothing changed of an object that is compiled.
func sameSpec[T any](a, b *metav1.ObjectMeta, sa, sb *T) bool {
	return a.UID == b.UID && a.Generation == b.Generation && a.CreationTimestamp.Equal(&b.CreationTimestamp) && reflect.DeepEqual(sa, sb)
}

func put[K comparable, V any](m map[K]*V, k K, v *V) {
	if v == nil {
		delete(m, k)
		return
	}
	m[k] = v
}
