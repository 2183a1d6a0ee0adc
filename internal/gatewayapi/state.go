// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"maps"
	"reflect"
	"slices"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Options are what a State needs to know of its surroundings.
type Options struct {
	// ReservedPorts are ports that a gateway's pod binds for itself, such as that of its metrics: no listener can be
	// bound there.
	ReservedPorts []uint16
}

// State holds the objects and what was compiled from them. It is for one goroutine at a time.
type State struct {
	opts Options

	// Objects as they are, which nothing was made of.
	classObjects   map[string]*gwv1.GatewayClass
	gatewayObjects map[model.Name]*gwv1.Gateway
	policyObjects  map[model.Name]*gwv1.BackendTLSPolicy
	grants         map[string]map[string]*gwv1.ReferenceGrant // by namespace and name
	services       map[model.Name]*model.Service
	endpointSlices map[model.Name]*model.EndpointSlice
	namespaces     map[string]*model.Namespace
	secrets        map[model.Name]*model.Secret
	configMaps     map[model.Name]*model.ConfigMap
	trustBundles   map[string]*model.ClusterTrustBundle
	parameters     map[model.Name]*Parameters
	attachments    map[Target]*Attachment
	policies       map[string]*Policy
	feedback       map[model.Name]*Feedback
	extras         map[model.ObjectKey]extra
	crds           map[string]*CRD // by resource

	serial uint64 // the newest given to any Gateway's change: one that is made anew gets none that was confirmed before

	// What was made of them.
	classes         map[string]*class
	gateways        map[model.Name]*gateway
	listenerSets    map[model.Name]*listenerSet
	routes          map[RouteID]*routeState
	tlsPolicies     map[model.Name]*tlsPolicy
	contests        map[listenerID]*contest
	keyPairs        map[*model.Secret]string
	defaultGateways set[model.Name]
	defaultRoutes   set[RouteID]
	users           map[model.Name]map[model.Name]set[backendID] // of a Service, by gateway
	policyUsers     map[string]set[model.Name]

	// Who depends on what.
	gatewaysByClass     index[string, model.Name]
	gatewaysByRef       index[ref, model.Name]
	gatewaysByForeign   index[string, model.Name]
	gatewaysByService   index[model.Name, model.Name] // that filters of listeners ask
	classesByParameters index[model.Name, string]
	setsByGateway       index[model.Name, model.Name]
	routesByParent      index[parentID, RouteID]
	routesByService     index[model.Name, RouteID]
	routesByForeign     index[string, RouteID]
	policiesByService   index[model.Name, model.Name]
	policiesByRef       index[ref, model.Name]
	slices              index[model.Name, model.Name] // EndpointSlices by Service
}

// New makes a State that knows of nothing.
func New(opts Options) *State {
	return &State{
		opts:         opts,
		classObjects: map[string]*gwv1.GatewayClass{}, gatewayObjects: map[model.Name]*gwv1.Gateway{},
		policyObjects: map[model.Name]*gwv1.BackendTLSPolicy{}, grants: map[string]map[string]*gwv1.ReferenceGrant{},
		services: map[model.Name]*model.Service{}, endpointSlices: map[model.Name]*model.EndpointSlice{},
		namespaces: map[string]*model.Namespace{}, secrets: map[model.Name]*model.Secret{}, configMaps: map[model.Name]*model.ConfigMap{},
		trustBundles: map[string]*model.ClusterTrustBundle{},
		parameters:   map[model.Name]*Parameters{}, attachments: map[Target]*Attachment{}, policies: map[string]*Policy{},
		feedback: map[model.Name]*Feedback{}, crds: map[string]*CRD{}, extras: map[model.ObjectKey]extra{},

		classes: map[string]*class{}, gateways: map[model.Name]*gateway{}, listenerSets: map[model.Name]*listenerSet{},
		routes: map[RouteID]*routeState{}, tlsPolicies: map[model.Name]*tlsPolicy{}, contests: map[listenerID]*contest{},
		keyPairs: map[*model.Secret]string{}, defaultGateways: set[model.Name]{}, defaultRoutes: set[RouteID]{},
		users: map[model.Name]map[model.Name]set[backendID]{}, policyUsers: map[string]set[model.Name]{},

		gatewaysByClass: newIndex[string, model.Name](), gatewaysByRef: newIndex[ref, model.Name](),
		gatewaysByForeign: newIndex[string, model.Name](), gatewaysByService: newIndex[model.Name, model.Name](), classesByParameters: newIndex[model.Name, string](),
		setsByGateway: newIndex[model.Name, model.Name](), routesByParent: newIndex[parentID, RouteID](),
		routesByService: newIndex[model.Name, RouteID](), routesByForeign: newIndex[string, RouteID](),
		policiesByService: newIndex[model.Name, model.Name](), policiesByRef: newIndex[ref, model.Name](),
		slices: newIndex[model.Name, model.Name](),
	}
}

// extraOf gives the fields of an object that its type does not have; nil is none.
func (s *State) extraOf(kind string, n model.Name) extra {
	return s.extras[model.ObjectKey{Kind: kind, Namespace: n.Namespace, Name: n.Name}]
}

// work is what one Apply has to look at again, in the order in which it does: each step may add to those after it.
type work struct {
	classes    set[string]
	tlsPolicy  set[model.Name]
	gateways   set[model.Name]
	wants      set[RouteID]    // routes whose listeners are to be found again
	content    set[RouteID]    // routes whose rules are to be compiled again
	aged       set[RouteID]    // routes whose creation time changed: made anew under the same name
	contests   set[listenerID] // listeners for which HTTPRoutes and GRPCRoutes are to be told apart again
	attach     set[RouteID]    // routes that are to be put into tables again
	services   set[model.Name] // Services whose backends and endpoints changed
	tables     set[model.Name] // gateways whose tables may have changed
	namespaces set[string]

	classStatus   set[string]
	gatewayStatus set[model.Name] // with those of its ListenerSets
	countStatus   set[parentID]   // of Gateways and ListenerSets of which only attachedRoutes changed
	orphans       set[model.Name] // ListenerSets whose Gateway is no longer there
	policyStatus  set[model.Name]

	out *Output
}

func newWork() *work {
	return &work{
		classes: set[string]{}, tlsPolicy: set[model.Name]{}, gateways: set[model.Name]{}, wants: set[RouteID]{},
		content: set[RouteID]{}, aged: set[RouteID]{}, contests: set[listenerID]{}, attach: set[RouteID]{}, services: set[model.Name]{},
		tables: set[model.Name]{}, namespaces: set[string]{}, classStatus: set[string]{}, gatewayStatus: set[model.Name]{}, countStatus: set[parentID]{},
		orphans: set[model.Name]{}, policyStatus: set[model.Name]{},
		out: &Output{
			Gateways: map[model.Name]*GatewayChange{}, ClassStatuses: map[string]*gwv1.GatewayClassStatus{},
			GatewayStatuses: map[model.Name]*gwv1.GatewayStatus{}, ListenerSetStatuses: map[model.Name]*gwv1.ListenerSetStatus{},
			RouteStatuses: map[RouteID][]gwv1.RouteParentStatus{}, PolicyStatuses: map[model.Name][]gwv1.PolicyAncestorStatus{},
			ClassesInUse: map[string]bool{},
		},
	}
}

// counted notes that a listener's number of routes changed.
func (w *work) counted(g *gateway, key string) {
	if l := g.byKey[key]; l != nil {
		w.countStatus.add(l.parent)
	}
}

// usersOf has the rules of all routes to a Service compiled again, and the Gateways with filters that ask it.
func (w *work) usersOf(s *State, svc model.Name) {
	for id := range s.routesByService.of(svc) {
		w.content.add(id)
	}
	for name := range s.gatewaysByService.of(svc) {
		w.gateways.add(name)
	}
}

// policiesOf has the status of a Service's BackendTLSPolicies made again.
func (w *work) policiesOf(s *State, svc model.Name) {
	for name := range s.policiesByService.of(svc) {
		w.policyStatus.add(name)
	}
}

// Apply takes a change and tells what follows. The first Change should be the whole state: what is not known counts as
// not existing.
func (s *State) Apply(c *Change) *Output {
	w := newWork()
	s.take(w, c)
	for name := range w.classes {
		s.compileClass(w, name)
	}
	for name := range w.tlsPolicy {
		s.compilePolicy(w, name)
	}
	for name := range w.gateways {
		s.compileGateway(w, name)
	}
	s.compileRoutes(w)
	s.admit(w)
	for svc := range w.services {
		s.refresh(w, svc)
	}
	for _, name := range slices.SortedFunc(maps.Keys(w.tables), model.Name.Compare) {
		s.flush(w, name)
	}
	for name := range w.classStatus {
		s.tellClass(w, name)
	}
	for name := range w.gatewayStatus {
		if g := s.gateways[name]; g != nil {
			s.tellGateway(w, g, true)
		}
	}
	for p := range w.countStatus {
		if g := s.gatewayOf(p); g != nil && !w.gatewayStatus.has(g.name) {
			s.tellCounts(w, g, p)
		}
	}
	for name := range w.orphans {
		s.tellOrphan(w, name)
	}
	for name := range w.policyStatus {
		s.tellPolicy(w, name)
	}
	return w.out
}

// compileRoutes goes through the routes that something changed for: first what each says and wants, then who gets it.
func (s *State) compileRoutes(w *work) {
	for id := range w.content {
		r := s.routes[id]
		if r == nil {
			continue
		}
		old := r.content
		r.content = r.compile()
		s.routesByService.set(id, r.content.services)
		s.routesByForeign.set(id, r.content.foreign)
		if old != nil && reflect.DeepEqual(old, r.content) {
			r.content = old
			continue
		}
		w.attach.add(id)
		if old != nil && old.rejected() != r.content.rejected() {
			s.enter(w, r, r.hosts)
		}
	}
	for id := range w.wants {
		r := s.routes[id]
		if r == nil {
			continue
		}
		before := r.hosts
		s.wants(r)
		s.enter(w, r, before)
		w.attach.add(id)
	}
	for id := range w.contests {
		s.decide(w, id)
	}
	for id := range w.attach {
		if r := s.routes[id]; r != nil {
			s.attach(w, r)
		}
	}
}

// flush tells a gateway's changes.
func (s *State) flush(w *work, name model.Name) {
	g := s.gateways[name]
	if g == nil {
		return
	}
	change := &GatewayChange{Update: g.tables.flush(&s.serial)}
	change.Serial = g.tables.serial
	if change.Update != nil {
		if g.renewed {
			g.since = change.Serial
		}
		for key := range g.moved {
			if g.tables.listeners.now[key] != nil {
				g.tables.since[key] = change.Serial
			}
		}
	}
	g.renewed, g.moved = false, nil
	if g.toldInfra == nil || !reflect.DeepEqual(g.toldInfra, g.infra) {
		g.toldInfra, change.Infrastructure = g.infra, g.infra
	}
	if change.Update != nil || change.Infrastructure != nil {
		w.out.Gateways[name] = change
	}
	if change.Update != nil && len(change.Update.Listeners) > 0 {
		w.gatewayStatus.add(name)
	}
}

// Tables gives all of a Gateway's tables: a Complete update without a revision; nil for what is not a Gateway of ours.
func (s *State) Tables(gateway model.Name) *route.Update {
	g := s.gateways[gateway]
	if g == nil {
		return nil
	}
	return g.tables.complete()
}
