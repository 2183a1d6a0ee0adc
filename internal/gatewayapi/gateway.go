// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// gateway is a Gateway of ours with what was made of it.
type gateway struct {
	name     model.Name
	obj      *gwv1.Gateway
	feedback *Feedback

	accepted   verdict
	resolved   verdict
	clientCert string // key of the certificate for backends; "" is none
	listeners  []*listener
	byKey      map[string]*listener
	byParent   map[parentID][]*listener
	sets       []setState  // of the ListenerSets that name it, in their order of precedence
	parameters *model.Name // the GatewayConfig that it names itself
	infra      *Infrastructure
	cluster    set[int] // which of spec.addresses are to be ClusterIPs

	// What it was compiled from, besides the Gateway and its ListenerSets.
	refs      set[ref]
	foreign   set[string] // namespaces of others that it refers to
	services  set[model.Name]
	wantCerts map[string]*route.Certificate

	tables   *tables
	renewed  bool                    // it was compiled of another generation, and the tables not flushed since
	moved    set[string]             // listeners, by key, that may have got other routes by their spec since then
	since    uint64                  // the serial that holds what its newest generation led to
	asked    set[backendID]          // by filters of listeners that are in the tables
	attached map[string]set[RouteID] // by the listener's key

	told      *gwv1.GatewayStatus
	stale     bool // the object's status is not what was told
	toldInfra *Infrastructure
}

// ref names an object of which the contents matter.
type ref struct {
	kind string
	model.Name
}

// listenerSet is a ListenerSet.
type listenerSet struct {
	name    model.Name
	order   string // "namespace/name"
	obj     *gwv1.ListenerSet
	gateway model.Name
	told    *gwv1.ListenerSetStatus
	stale   bool
}

// setState is what became of a ListenerSet at its Gateway.
type setState struct {
	name     model.Name
	allowed  verdict
	accepted verdict
	own      []*listener
}

// allows tells whether a ListenerSet is one that may be attached.
func (g *gateway) allows(name model.Name) bool {
	return slices.ContainsFunc(g.sets, func(s setState) bool { return s.name == name && s.allowed.ok })
}

// compileGateway brings a Gateway up to date with its spec, its ListenerSets and what they refer to.
func (s *State) compileGateway(w *work, name model.Name) {
	obj := s.gatewayObjects[name]
	g := s.gateways[name]
	if obj == nil || s.classes[string(obj.Spec.GatewayClassName)] == nil {
		if g != nil {
			s.dropGateway(w, g)
		}
		return
	}
	var before []*listener
	if g == nil {
		g = &gateway{name: name, tables: newTables(), attached: map[string]set[RouteID]{}}
		s.gateways[name] = g
		g.feedback = s.feedback[name]
		s.dirtyParents(w, parentID{"Gateway", name}) // routes may have waited for it
		for ls := range s.setsByGateway.of(name) {
			s.dirtyParents(w, parentID{"ListenerSet", ls})
		}
	} else {
		before = g.listeners
	}
	certBefore := g.clientCert
	g.renewed = g.obj == nil || g.obj.UID != obj.UID || g.obj.Generation != obj.Generation
	g.obj, g.refs, g.foreign, g.wantCerts = obj, set[ref]{}, set[string]{}, map[string]*route.Certificate{}
	g.services = set[model.Name]{}
	params := s.parametersOf(g)
	s.gatherListeners(g)
	s.acceptGateway(g)
	s.acceptSets(g)
	s.resolveBackendTLS(g)

	policiesBefore := listenerPolicies(g.tables)
	for _, l := range g.listeners {
		if l.served {
			t := l.table(params)
			t.Policies = s.listenerPolicies(l)
			if l.unservable != "" && l.protocol == route.HTTP { // with TLS the handshake fails
				t.Policies = append(t.Policies, l.unservableKey())
			}
			g.tables.listeners.put(l.key, t)
		}
	}
	for key := range g.tables.listeners.now {
		if l := g.byKey[key]; l == nil || !l.served {
			g.tables.listeners.put(key, nil)
		}
	}
	s.exchangePolicies(w, g, policiesBefore, listenerPolicies(g.tables))
	for _, l := range g.listeners {
		if l.served && l.unservable != "" && l.protocol == route.HTTP {
			g.tables.policies.put(l.unservableKey(), &route.Policy{Key: l.unservableKey(), Invalid: "listener " + l.name + ": " + l.unservable})
		}
	}
	s.exchangeAsked(w, g)
	for key, c := range g.wantCerts {
		g.tables.certs.put(key, c)
	}
	for key := range g.tables.certs.now {
		if g.wantCerts[key] == nil {
			g.tables.certs.put(key, nil)
		}
	}
	s.gatewaysByRef.set(name, slices.Collect(maps.Keys(g.refs)))
	s.gatewaysByForeign.set(name, slices.Collect(maps.Keys(g.foreign)))
	s.gatewaysByService.set(name, slices.Collect(maps.Keys(g.services)))
	rescoped := s.defaultGateways.has(name) != (obj.Spec.DefaultScope == gwv1.GatewayDefaultScopeAll)
	if rescoped {
		if s.defaultGateways.has(name) {
			delete(s.defaultGateways, name)
		} else {
			s.defaultGateways.add(name)
		}
		for id := range s.defaultRoutes {
			w.wants.add(id)
		}
	}
	s.dirtyChanged(w, g, before)
	g.moved = movedListeners(g, before, rescoped || g.renewed && g.clientCert != certBefore)
	g.infra = g.infrastructure(s)
	w.tables.add(name)
	w.gatewayStatus.add(name)
}

// dropGateway forgets a Gateway that is gone or no longer ours.
func (s *State) dropGateway(w *work, g *gateway) {
	name := g.name
	for id := range g.tables.uses {
		delete(s.users[id.Service], name)
		if len(s.users[id.Service]) == 0 {
			delete(s.users, id.Service)
		}
		w.policiesOf(s, id.Service)
	}
	for key := range g.tables.policyUse {
		delete(s.policyUsers[key], name)
	}
	delete(s.gateways, name)
	s.gatewaysByRef.set(name, nil)
	s.gatewaysByForeign.set(name, nil)
	s.gatewaysByService.set(name, nil)
	if s.defaultGateways.has(name) {
		delete(s.defaultGateways, name)
		for id := range s.defaultRoutes {
			w.wants.add(id)
		}
	}
	for p := range g.byParent {
		s.dirtyParents(w, p)
	}
	s.dirtyParents(w, parentID{"Gateway", name})
	for ls := range s.setsByGateway.of(name) {
		s.dirtyParents(w, parentID{"ListenerSet", ls})
		w.orphans.add(ls)
	}
	w.out.Gateways[name] = &GatewayChange{Gone: true}
}

func (s *State) dirtyParents(w *work, p parentID) {
	for id := range s.routesByParent.of(p) {
		w.wants.add(id)
	}
	if p.kind == "Gateway" {
		for id := range s.defaultRoutes {
			w.wants.add(id)
		}
	}
}

// dirtyChanged looks at the routes of every parent whose listeners are not what they were, as far as routes see them.
func (s *State) dirtyChanged(w *work, g *gateway, before []*listener) {
	old := map[parentID][]attachSpec{}
	for _, l := range before {
		old[l.parent] = append(old[l.parent], l.attachSpec)
	}
	now := map[parentID][]attachSpec{}
	for _, l := range g.listeners {
		now[l.parent] = append(now[l.parent], l.attachSpec)
	}
	for p, specs := range now {
		if !reflect.DeepEqual(old[p], specs) {
			s.dirtyParents(w, p)
		}
	}
	for p := range old {
		if _, still := now[p]; !still {
			s.dirtyParents(w, p)
		}
	}
}

// movedListeners gives those, by key, that others than before may be attached to, or with all every one.
func movedListeners(g *gateway, before []*listener, all bool) set[string] {
	out := set[string]{}
	for _, l := range before {
		if now := g.byKey[l.key]; now != nil && (all || !reflect.DeepEqual(now.attachSpec, l.attachSpec)) {
			out.add(l.key)
		}
	}
	return out
}

// gatherListeners makes the list of all listeners: the Gateway's own, then those of its ListenerSets, the oldest first.
func (s *State) gatherListeners(g *gateway) {
	g.listeners, g.sets = nil, nil
	g.byKey, g.byParent = map[string]*listener{}, map[parentID][]*listener{}
	add := func(p parentID, i int, spec *gwv1.Listener) *listener {
		l := s.newListener(g, p, spec)
		x := s.extraOf(p.kind, p.Name).under(fmt.Sprintf("spec.listeners[%d]", i))
		s.readFilters(g, l, x)
		if why := s.unknown(g, p, x); why != "" {
			l.refuse(gwv1.ListenerReasonUnsupportedValue, why)
		}
		g.listeners, g.byKey[l.key], g.byParent[p] = append(g.listeners, l), l, append(g.byParent[p], l)
		return l
	}
	own := parentID{"Gateway", g.name}
	g.byParent[own] = nil
	for i := range g.obj.Spec.Listeners {
		add(own, i, &g.obj.Spec.Listeners[i])
	}
	taken := claims{}
	taken.settle(g.byParent[own], true)
	var order []*listenerSet
	for name := range s.setsByGateway.of(g.name) {
		order = append(order, s.listenerSets[name])
	}
	slices.SortFunc(order, func(a, b *listenerSet) int {
		return cmp.Or(a.obj.CreationTimestamp.Time.Compare(b.obj.CreationTimestamp.Time), strings.Compare(a.order, b.order))
	})
	for _, ls := range order {
		state := setState{name: ls.name, allowed: s.setAllowed(g, ls.name.Namespace)}
		if state.allowed.ok {
			p := parentID{"ListenerSet", ls.name}
			for i := range ls.obj.Spec.Listeners {
				spec := gwv1.Listener(ls.obj.Spec.Listeners[i])
				state.own = append(state.own, add(p, i, &spec))
			}
			taken.settle(state.own, false)
		}
		g.sets = append(g.sets, state)
	}
	unbindable(g.listeners)
	for _, l := range g.listeners {
		if l.protocol == "" {
			continue
		}
		ok := l.accepted.ok
		s.resolveCertificates(g, l)
		s.resolveValidation(g, l)
		if ok && l.refusal != nil {
			l.accepted = *l.refusal
			l.unservable = l.refusal.message
		}
		stream := l.protocol == route.TCP || l.protocol == route.UDP
		l.served = ok && (l.refusal == nil || !stream) // also when it then refuses every connection: its hostname is not to fall to another listener
	}
	findOverlaps(g.listeners)
}

// setAllowed tells whether the Gateway takes ListenerSets of a namespace.
func (s *State) setAllowed(g *gateway, namespace string) verdict {
	denied := no(gwv1.ListenerSetReasonNotAllowed, fmt.Sprintf("Gateway %s does not allow ListenerSets from namespace %s: see its allowedListeners", g.name, namespace))
	a := g.obj.Spec.AllowedListeners
	if a == nil || a.Namespaces == nil || a.Namespaces.From == nil {
		return denied
	}
	allowed := false
	switch *a.Namespaces.From {
	case gwv1.NamespacesFromAll:
		allowed = true
	case gwv1.NamespacesFromSame:
		allowed = namespace == g.name.Namespace
	case gwv1.NamespacesFromSelector:
		sel, problem := selector("allowedListeners.namespaces.selector", a.Namespaces.Selector)
		if problem != "" {
			denied.message = fmt.Sprintf("Gateway %s: %s", g.name, problem)
		}
		allowed = s.selected(sel, namespace)
	}
	if !allowed {
		return denied
	}
	return verdict{ok: true}
}

// acceptGateway decides the Gateway's Accepted condition.
func (s *State) acceptGateway(g *gateway) {
	class := s.classes[string(g.obj.Spec.GatewayClassName)]
	var bad []string
	accepted := 0
	for _, l := range g.byParent[parentID{"Gateway", g.name}] {
		if l.accepted.ok {
			accepted++
		} else {
			bad = append(bad, l.name+": "+l.accepted.message)
		}
	}
	var unsupported string
	for i, a := range g.obj.Spec.Addresses {
		if a.Type != nil && *a.Type != gwv1.IPAddressType {
			unsupported = fmt.Sprintf("addresses[%d]: type %s is not supported: IPAddress is", i, *a.Type)
			break
		}
	}
	own, problem := s.parametersRef(g)
	g.parameters = own
	x := s.extraOf("Gateway", g.name)
	asked := x.under("spec.addresses")
	g.cluster = nil
	for i := range g.obj.Spec.Addresses {
		var routability string
		if !asked.take(fmt.Sprintf("[%d].routability", i), &routability) || routability == "" {
			continue
		}
		if routability != "Cluster" && unsupported == "" {
			unsupported = fmt.Sprintf("addresses[%d].routability: %q is not supported: Cluster is", i, routability)
		}
		if g.cluster == nil {
			g.cluster = set[int]{}
		}
		g.cluster.add(i)
	}
	if left := asked.without(); len(left) > 0 && unsupported == "" {
		for i := range left {
			left[i] = "addresses" + left[i]
		}
		unsupported = notKnown(left)
	}
	if why := notKnown(x.within("spec.infrastructure")); why != "" && problem == "" {
		problem = why
	}
	switch {
	case !class.accepted.ok:
		g.accepted = no(gwv1.GatewayReasonInvalidParameters, fmt.Sprintf("GatewayClass %s is not accepted: %s", class.obj.Name, class.accepted.message))
	case problem != "":
		g.accepted = no(gwv1.GatewayReasonInvalidParameters, problem)
	case unsupported != "":
		g.accepted = no(gwv1.GatewayReasonUnsupportedAddress, unsupported)
	case accepted == 0:
		g.accepted = no(gwv1.GatewayReasonListenersNotValid, "no listener can be accepted: "+strings.Join(bad, "; "))
	case len(bad) > 0:
		g.accepted = yes(gwv1.GatewayReasonListenersNotValid, "some listeners are not accepted: "+strings.Join(bad, "; "))
	default:
		g.accepted = yes(gwv1.GatewayReasonAccepted, "the Gateway is accepted")
	}
}

// acceptSets decides the ListenerSets' Accepted conditions.
func (s *State) acceptSets(g *gateway) {
	for i := range g.sets {
		set := &g.sets[i]
		var bad []string
		valid := 0
		for _, l := range set.own {
			switch {
			case l.valid():
				valid++
			case !l.accepted.ok:
				bad = append(bad, l.name+": "+l.accepted.message)
			default:
				bad = append(bad, l.name+": "+l.resolved.message)
			}
		}
		switch {
		case !set.allowed.ok:
			set.accepted = set.allowed
		case !g.accepted.ok:
			set.accepted = no(gwv1.ListenerSetReasonParentNotAccepted, fmt.Sprintf("Gateway %s is not accepted, see its status", g.name))
		case valid == 0:
			set.accepted = no(gwv1.ListenerSetReasonListenersNotValid, "no listener can be accepted: "+strings.Join(bad, "; "))
		case len(bad) > 0:
			set.accepted = yes(gwv1.ListenerSetReasonListenersNotValid, "some listeners are not accepted: "+strings.Join(bad, "; "))
		default:
			set.accepted = yes(gwv1.ListenerSetReasonAccepted, "the ListenerSet is accepted")
		}
	}
}

// resolveBackendTLS finds the certificate that the gateway shows to its backends (GEP-3155).
func (s *State) resolveBackendTLS(g *gateway) {
	cert := ""
	g.resolved = yes(gwv1.GatewayReasonResolvedRefs, "all references are resolved")
	if t := g.obj.Spec.TLS; t != nil && t.Backend != nil && t.Backend.ClientCertificateRef != nil {
		c, v := s.certificate(g, from{"Gateway", g.name}, *t.Backend.ClientCertificateRef, string(gwv1.GatewayReasonInvalidClientCertificateRef))
		if v != nil {
			v.message = "tls.backend.clientCertificateRef: " + v.message
			g.resolved = *v
		} else {
			cert = c.Key
			g.wantCerts[cert] = c
		}
	}
	if g.resolved.ok {
		var bad []string
		for _, l := range g.byParent[parentID{"Gateway", g.name}] {
			if !l.resolved.ok {
				bad = append(bad, l.name+": "+l.resolved.message)
			}
		}
		if len(bad) > 0 {
			g.resolved = no(gwv1.GatewayReasonListenersNotResolved, "listeners have references that can't be followed: "+strings.Join(bad, "; "))
		}
	}
	if cert != g.clientCert {
		g.clientCert = cert
		for id := range g.tables.uses {
			g.tables.backends.put(id.key(), s.backend(g, id))
		}
	}
}

// infrastructure tells what the Gateway asks for.
func (g *gateway) infrastructure(s *State) *Infrastructure {
	out := &Infrastructure{Accepted: g.accepted.ok, Parameters: g.parameters}
	if class := s.classes[string(g.obj.Spec.GatewayClassName)]; class.accepted.ok {
		out.ClassParameters = class.parameters
	}
	seen := set[socket]{}
	for _, l := range g.listeners {
		if !l.served || seen.has(l.socket()) {
			continue
		}
		seen.add(l.socket())
		p := Port{Name: fmt.Sprintf("tcp-%d", l.port), Protocol: model.TCP, Port: l.port, BindPort: BindPort(l.port)}
		if l.protocol == route.UDP {
			p.Name, p.Protocol = fmt.Sprintf("udp-%d", l.port), model.UDP
		}
		out.Ports = append(out.Ports, p)
	}
	slices.SortFunc(out.Ports, func(a, b Port) int { return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol)) })
	out.Cluster = len(g.cluster) > 0
	out.ClusterOnly = out.Cluster && len(g.cluster) == len(g.obj.Spec.Addresses)
	for i, a := range g.obj.Spec.Addresses {
		ip, err := netip.ParseAddr(a.Value)
		switch {
		case err != nil:
		case g.cluster.has(i):
			out.ClusterAddresses = append(out.ClusterAddresses, ip.String()) // as Services have it
		default:
			out.Addresses = append(out.Addresses, a.Value)
		}
	}
	if i := g.obj.Spec.Infrastructure; i != nil {
		for k, v := range i.Labels {
			set1(&out.Labels, string(k), string(v))
		}
		for k, v := range i.Annotations {
			set1(&out.Annotations, string(k), string(v))
		}
	}
	return out
}

func set1(m *map[string]string, k, v string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[k] = v
}

// selector translates an API selector; nil is none, which selects nothing. problem is why it can't be read, by the same
// rules as the API server's own: nothing is then selected, for a term that is left out would let more in.
func selector(field string, in *metav1.LabelSelector) (out *model.Selector, problem string) {
	if in == nil {
		return nil, ""
	}
	read := func(field string, part metav1.LabelSelector) bool {
		if _, err := metav1.LabelSelectorAsSelector(&part); err != nil {
			problem = fmt.Sprintf("%s can't be read, so that it selects nothing: %v", field, err)
		}
		return problem == ""
	}
	for _, k := range slices.Sorted(maps.Keys(in.MatchLabels)) {
		if !read(fmt.Sprintf("%s.matchLabels[%s]", field, k), metav1.LabelSelector{MatchLabels: map[string]string{k: in.MatchLabels[k]}}) {
			return nil, problem
		}
	}
	all := model.MatchLabels(in.MatchLabels)
	for i, e := range in.MatchExpressions {
		if !read(fmt.Sprintf("%s.matchExpressions[%d]", field, i), metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{e}}) {
			return nil, problem
		}
		all = append(all, model.Requirement{Key: e.Key, Op: operators[e.Operator], Values: slices.Sorted(slices.Values(e.Values))})
	}
	return &all, ""
}

var operators = map[metav1.LabelSelectorOperator]model.SelectorOp{
	metav1.LabelSelectorOpIn: model.In, metav1.LabelSelectorOpNotIn: model.NotIn,
	metav1.LabelSelectorOpExists: model.Exists, metav1.LabelSelectorOpDoesNotExist: model.DoesNotExist,
}
