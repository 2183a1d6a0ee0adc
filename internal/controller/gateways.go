// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/trafficpolicy"
)

// settle is how long a new leader waits for a Gateway's pods before it says that the Gateway is not programmed: they
// look for it for less than a second, and may be held up by whatever took the last leader away.
const settle = 15 * time.Second

// configurationFirst is how long the writing of statuses waits for pods that have yet to confirm what was published. On a
// busy machine writes, and what the API server makes of them, take from routes the time in which they get to pods; a pod
// that is slow does not hold statuses up for longer.
const configurationFirst = 20 * time.Millisecond

// GatewayOptions say how Gateways are served.
type GatewayOptions struct {
	Server     *configsync.Server
	Identities *Identities
	Pods       PodOptions
	// Class is the name of the GatewayClass that is made where Gateway API is installed; "" makes none.
	Class string

	configurationFirst time.Duration // a test's; 0 is the constant
}

// Gateways is the Part that serves Gateway API: packages gatewayapi and trafficpolicy decide, this publishes each Gateway's tables, makes
// what its pods need, and writes statuses.
type Gateways struct {
	opts    GatewayOptions
	client  dynamic.Interface
	record  func(model.Event)
	log     *slog.Logger
	queue   *outbox[gatewayItem]
	metrics *gatewayMetrics
	served  chan struct{} // capacity 1: some gateway's pods have confirmed something

	mu       sync.Mutex
	state    *gatewayapi.State
	policies *trafficpolicy.State
	began    time.Time                    // of the first full picture
	objects  map[model.ObjectKey]any      // as the API last showed them
	wanted   map[model.ObjectKey]any      // statuses, as the packages that decide gave them
	inUse    map[string]bool              // classes of ours
	gateways map[model.Name]*gatewayState // those that are ours
	parts    map[model.Name]map[partID]any
	nodes    map[string][]string       // nodes' addresses
	fronts   map[model.Name]model.Name // Gateways by their own Services
	slices   map[model.Name]model.Name // and by those Services' EndpointSlices
	told     map[string]bool           // gateways of which the stream has news, by their key
	writing  map[model.ObjectKey]string
	flying   map[model.Name]bool // Gateways whose pods have yet to confirm something
	landed   chan struct{}       // closed when there are none any more; nil while there are none
}

// gatewayItem is something whose writing is due: the status of an object, or with an empty Kind the parts of a
// Gateway.
type gatewayItem struct{ model.ObjectKey }

// gatewayState is what is known of a Gateway beside its object.
type gatewayState struct {
	infra     *gatewayapi.Infrastructure
	serials   []serial            // published and not confirmed, ascending
	confirmed uint64              // the newest serial that is served
	errors    []string            // what pods could not serve, as last told
	refused   *gatewayapi.Problem // why what is made for it can't be as it should; nil: it can
	feedback  *gatewayapi.Feedback
	asked     *asked                 // when it was accepted last; nil: it was not yet
	applied   map[partID]appliedPart // the writer's
	failures  int                    // the writer's: how often in a row it could not write all parts
}

// serial is a change of a Gateway's tables and the revision that holds it.
type serial struct {
	serial, revision uint64
	since            time.Time // when its cause reached this process; zero with no pod there
}

// NewGateways returns the Part's Role.
func NewGateways(api *rest.Config, opts GatewayOptions, record func(model.Event), log *slog.Logger) *Role {
	kinds := kube.GatewayAPI | kube.GatewayConfigs | kube.GatewayParts | kube.Services | kube.EndpointSlices |
		kube.Namespaces | kube.Secrets | kube.ConfigMaps | kube.ClusterTrustBundles | kube.Nodes
	return &Role{Kinds: kinds, Begin: func(reg prometheus.Registerer) (Part, error) {
		client, err := dynamic.NewForConfig(api)
		if err != nil {
			return nil, fmt.Errorf("API client: %w", err)
		}
		p := &Gateways{
			opts: opts, client: client, record: record, log: log,
			served:   make(chan struct{}, 1),
			state:    gatewayapi.New(gatewayapi.Options{ReservedPorts: []uint16{gatewayMetricsPort}}),
			policies: trafficpolicy.New(),
			objects:  make(map[model.ObjectKey]any),
			wanted:   make(map[model.ObjectKey]any),
			inUse:    make(map[string]bool),
			gateways: make(map[model.Name]*gatewayState),
			parts:    make(map[model.Name]map[partID]any),
			nodes:    make(map[string][]string),
			fronts:   make(map[model.Name]model.Name),
			slices:   make(map[model.Name]model.Name),
			told:     make(map[string]bool),
			writing:  make(map[model.ObjectKey]string),
			flying:   make(map[model.Name]bool),
		}
		if p.opts.configurationFirst == 0 {
			p.opts.configurationFirst = configurationFirst
		}
		p.queue = newOutbox(p.write, p.moot, p.failed)
		p.metrics = newGatewayMetrics(p)
		return p, reg.Register(p.metrics)
	}}
}

// Name implements Part.
func (*Gateways) Name() string { return "gateways" }

// Update implements Part.
func (p *Gateways) Update(d *model.Delta) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = time.Now()
		p.queue.Add(gatewayItem{model.ObjectKey{Kind: "GatewayClass", Name: p.opts.Class}})
	}
	due := map[model.Name]bool{} // Gateways whose parts are to be looked at
	for key, o := range d.Objects {
		p.observe(key, o, due)
	}
	moved := false
	for name, n := range d.Nodes {
		var addrs []string
		if n != nil {
			addrs = nodeAddresses(n)
		}
		if !slices.Equal(p.nodes[name], addrs) {
			p.nodes[name], moved = addrs, true
		}
		if n == nil {
			delete(p.nodes, name)
		}
	}
	c, policies := changeOf(d)
	for name, status := range p.policies.Apply(c, policies) {
		p.want("TrafficPolicy", name, status)
	}
	p.apply(c, d.Since)
	for name := range due {
		p.queue.Add(gatewayItem{model.ObjectKey{Namespace: name.Namespace, Name: name.Name}})
	}
	if moved {
		for name := range p.gateways {
			due[name] = true
		}
	}
	p.observeSlices(d.EndpointSlices, due)
	p.feedback(slices.Collect(maps.Keys(due)))
}

// observeSlices notes whose own Service's endpoints changed. The caller holds the lock.
func (p *Gateways) observeSlices(changed map[model.Name]*model.EndpointSlice, due map[model.Name]bool) {
	for name, s := range changed {
		if s == nil {
			if gw, ours := p.slices[name]; ours {
				delete(p.slices, name)
				due[gw] = true
			}
			continue
		}
		if gw, ours := p.fronts[model.Name{Namespace: s.Namespace, Name: s.Service}]; ours {
			p.slices[name] = gw
			due[gw] = true
		}
	}
}

func nodeAddresses(n *model.Node) []string {
	from := n.ExternalIPs
	if len(from) == 0 {
		from = n.InternalIPs
	}
	out := make([]string, len(from))
	for i, a := range from {
		out[i] = a.String()
	}
	return out
}

// observe notes what the API shows. The caller holds the lock.
func (p *Gateways) observe(key model.ObjectKey, o *model.Object, due map[model.Name]bool) {
	switch key.Kind {
	case "Deployment", "Service", "ServiceAccount", "Secret", "PodDisruptionBudget":
		p.observePart(key, o, due)
		return
	case "GatewayConfig":
		for name, g := range p.gateways {
			if g.infra != nil && (refersTo(g.infra.Parameters, key) || refersTo(g.infra.ClassParameters, key)) {
				due[name] = true
			}
		}
	case kube.CRDKind:
		p.queue.Add(gatewayItem{model.ObjectKey{Kind: "GatewayClass", Name: p.opts.Class}})
	case "Gateway":
		if p.concernsParts(key, o) {
			due[model.Name{Namespace: key.Namespace, Name: key.Name}] = true
		}
	}
	if o == nil {
		delete(p.objects, key)
		delete(p.wanted, key)
		delete(p.writing, key)
		if key.Kind == "GatewayClass" {
			delete(p.inUse, key.Name)
			if key.Name == p.opts.Class {
				p.queue.Add(gatewayItem{key})
			}
		}
		return
	}
	p.objects[key] = o.Value
	if p.wanted[key] != nil {
		p.queue.Add(gatewayItem{key})
	}
}

// concernsParts tells whether a Gateway's parts, and what is told of it, may have to be others than before. Its status,
// which changes with each route, is no reason. The caller holds the lock, and has not noted the object yet.
func (p *Gateways) concernsParts(key model.ObjectKey, o *model.Object) bool {
	old, _ := p.objects[key].(*gatewayv1.Gateway)
	if old == nil || o == nil {
		return true
	}
	now := o.Value.(*gatewayv1.Gateway)
	return old.UID != now.UID || old.Generation != now.Generation || old.DeletionTimestamp.IsZero() != now.DeletionTimestamp.IsZero()
}

func refersTo(n *model.Name, key model.ObjectKey) bool {
	return n != nil && n.Namespace == key.Namespace && n.Name == key.Name
}

// observePart notes an object that was made for a Gateway.
func (p *Gateways) observePart(key model.ObjectKey, o *model.Object, due map[model.Name]bool) {
	id := partID{key.Kind, key.Name}
	if o == nil {
		for name, parts := range p.parts {
			if name.Namespace == key.Namespace && parts[id] != nil {
				delete(parts, id)
				due[name] = true
				if key.Kind == "Service" {
					delete(p.fronts, model.Name{Namespace: key.Namespace, Name: key.Name})
				}
				if len(parts) == 0 {
					delete(p.parts, name)
				}
			}
		}
		return
	}
	owner := metav1.GetControllerOf(o.Value.(metav1.Object))
	if owner == nil || owner.Kind != "Gateway" {
		return
	}
	name := model.Name{Namespace: key.Namespace, Name: owner.Name}
	if p.parts[name] == nil {
		p.parts[name] = make(map[partID]any)
	}
	p.parts[name][id] = o.Value
	due[name] = true
	if key.Kind == "Service" {
		p.fronts[model.Name{Namespace: key.Namespace, Name: key.Name}] = name
	}
}

// apply has package gatewayapi take a change, and sees to what follows. The caller holds the lock.
func (p *Gateways) apply(c *gatewayapi.Change, since time.Time) {
	out := p.state.Apply(c)
	if out == nil {
		return
	}
	for name, g := range out.Gateways {
		item := gatewayItem{model.ObjectKey{Namespace: name.Namespace, Name: name.Name}}
		if g.Gone {
			p.opts.Server.Remove(gatewayKey(name))
			p.land(name)
			delete(p.gateways, name)
			p.queue.Add(item)
			continue
		}
		s := p.gateways[name]
		if s == nil {
			s = &gatewayState{applied: make(map[partID]appliedPart)}
			p.gateways[name] = s
		}
		if g.Update != nil {
			if p.opts.Server.Served(gatewayKey(name)).Connected == 0 {
				since = time.Time{} // how long pods take to start is another matter
			} else {
				p.fly(name)
			}
			revision := p.opts.Server.Publish(gatewayKey(name), g.Update)
			s.serials = append(thinned(s.serials), serial{g.Serial, revision, since})
			p.told[gatewayKey(name)] = true // an update that changed nothing is confirmed by nobody's ack
			p.news()
		}
		if g.Infrastructure != nil {
			s.infra = g.Infrastructure
			p.queue.Add(item)
		}
	}
	for name, s := range out.ClassStatuses {
		p.want("GatewayClass", model.Name{Name: name}, s)
	}
	for name, s := range out.GatewayStatuses {
		p.want("Gateway", name, s)
	}
	for name, s := range out.ListenerSetStatuses {
		p.want("ListenerSet", name, s)
	}
	for id, s := range out.RouteStatuses {
		p.want(string(id.Kind), id.Name, s)
	}
	for name, s := range out.PolicyStatuses {
		p.want("BackendTLSPolicy", name, s)
	}
	for name, used := range out.ClassesInUse {
		p.inUse[name] = used
		p.queue.Add(gatewayItem{model.ObjectKey{Kind: "GatewayClass", Name: name}})
	}
}

// fly notes that something is on its way to a Gateway's pods. The caller holds the lock.
func (p *Gateways) fly(name model.Name) {
	if len(p.flying) == 0 {
		p.landed = make(chan struct{})
	}
	p.flying[name] = true
}

// land notes that nothing is on its way to a Gateway's pods, or nobody can tell. The caller holds the lock.
func (p *Gateways) land(name model.Name) {
	if !p.flying[name] {
		return
	}
	if delete(p.flying, name); len(p.flying) == 0 {
		close(p.landed)
		p.landed = nil
	}
}

// wait lets configuration go first, and tells whether there was any.
func (p *Gateways) wait(ctx context.Context) bool {
	p.mu.Lock()
	landed := p.landed
	p.mu.Unlock()
	if landed == nil {
		return false
	}
	timer := time.NewTimer(p.opts.configurationFirst)
	defer timer.Stop()
	select {
	case <-landed:
	case <-timer.C:
	case <-ctx.Done():
	}
	return true
}

// thinned keeps the list of what is not confirmed short, however long pods stay away: coarser steps do as well.
func thinned(all []serial) []serial {
	if len(all) < 1024 {
		return all
	}
	kept := all[:0]
	for i := 1; i < len(all); i += 2 {
		kept = append(kept, all[i])
	}
	return kept
}

// want notes what an object's status is to be. The caller holds the lock.
func (p *Gateways) want(kind string, name model.Name, status any) {
	key := model.ObjectKey{Kind: kind, Namespace: name.Namespace, Name: name.Name}
	p.wanted[key] = status
	p.queue.Add(gatewayItem{key})
}

// feedback tells package gatewayapi what became of Gateways. The caller holds the lock.
func (p *Gateways) feedback(names []model.Name) {
	c := &gatewayapi.Change{}
	for _, name := range names {
		g := p.gateways[name]
		if g == nil || g.infra == nil {
			continue
		}
		state := p.opts.Server.Served(gatewayKey(name))
		svc, deployment := p.servedBy(name)
		ready, cutOff := true, []string(nil)
		if svc != nil {
			var pods []string
			ready, pods = p.state.Serving(model.Name{Namespace: svc.Namespace, Name: svc.Name})
			for _, pod := range pods {
				if !state.Pods[pod] { // it is sent clients, and what it makes of them nobody knows
					cutOff = append(cutOff, pod)
				}
			}
		}
		done := 0
		for done < len(g.serials) && state.Connected > 0 && len(cutOff) == 0 && state.Revision >= g.serials[done].revision {
			g.confirmed = g.serials[done].serial
			if since := g.serials[done].since; !since.IsZero() {
				p.metrics.propagation.Observe(time.Since(since).Seconds())
			}
			done++
		}
		g.serials = g.serials[done:]
		if len(g.serials) == 0 || state.Connected == 0 || len(cutOff) > 0 {
			p.land(name)
		}
		f := &gatewayapi.Feedback{Confirmed: g.confirmed, CutOff: cutOff, Unserved: state.Unserved, Restarted: g.confirmed == 0 && time.Since(p.began) < settle}
		var nodes []string
		for _, n := range slices.Sorted(maps.Keys(p.nodes)) {
			nodes = append(nodes, p.nodes[n]...)
		}
		f.Addresses, f.Problem = addressesOf(svc, g.infra, nodes)
		f.Ports = portsOf(svc)
		if f.Problem == nil {
			f.Problem = podProblem(deployment)
		}
		// Pods that have the tables serve nobody before the Service sends to one.
		if f.Problem == nil && !ready {
			f.Problem = &gatewayapi.Problem{Reason: gatewayv1.GatewayReasonPending, Message: fmt.Sprintf(
				"No pod of Deployment %s/%s is ready.", svc.Namespace, svc.Name)}
		}
		if g.refused != nil {
			refused := *g.refused
			refused.Serves = f.Problem == nil
			f.Problem = &refused
		}
		p.complain(name, g, state.Errors)
		if g.feedback != nil && reflect.DeepEqual(g.feedback, f) {
			continue
		}
		g.feedback = f
		if c.Feedback == nil {
			c.Feedback = make(map[model.Name]*gatewayapi.Feedback)
		}
		c.Feedback[name] = f
	}
	if c.Feedback != nil {
		p.apply(c, time.Now())
	}
}

// servedBy gives the Service and Deployment of a Gateway, as far as they are there. The caller holds the lock.
func (p *Gateways) servedBy(name model.Name) (svc *corev1.Service, deployment *appsv1.Deployment) {
	if gw := p.gateway(name); gw != nil {
		svc, _ = p.parts[name][partID{"Service", partName(gw)}].(*corev1.Service)
		deployment, _ = p.parts[name][partID{"Deployment", partName(gw)}].(*appsv1.Deployment)
	}
	return svc, deployment
}

// gateway is a Gateway as the API shows it; nil is none. The caller holds the lock.
func (p *Gateways) gateway(name model.Name) *gatewayv1.Gateway {
	gw, _ := p.objects[model.ObjectKey{Kind: "Gateway", Namespace: name.Namespace, Name: name.Name}].(*gatewayv1.Gateway)
	return gw
}

// complain tells, once, what pods can't serve of a Gateway.
func (p *Gateways) complain(name model.Name, g *gatewayState, errs []string) {
	if slices.Equal(g.errors, errs) {
		return
	}
	g.errors = errs
	gw := p.gateway(name)
	if len(errs) == 0 || gw == nil {
		return
	}
	p.record(model.Event{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", UID: string(gw.UID), Warning: true, Name: name,
		Reason: "NotServedInFull", Message: fmt.Sprintf("The gateway's pods can't serve: %.900s", strings.Join(errs, "; "))})
}

// podProblem is why no pod serves a Gateway, where the cluster says so.
func podProblem(d *appsv1.Deployment) *gatewayapi.Problem {
	if d == nil || d.Status.AvailableReplicas > 0 {
		return nil
	}
	for _, c := range d.Status.Conditions {
		bad := c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue ||
			c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse
		if bad {
			return &gatewayapi.Problem{Reason: gatewayv1.GatewayReasonNoResources, Message: fmt.Sprintf(
				"Deployment %s/%s has no pod that serves: %s", d.Namespace, d.Name, c.Message)}
		}
	}
	return nil
}

func parseAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil
}

// news wakes whoever gives feedback.
func (p *Gateways) news() {
	select {
	case p.served <- struct{}{}:
	default:
	}
}

// Run implements Part.
func (p *Gateways) Run(ctx context.Context) {
	defer p.opts.Server.Subscribe(func(gateway string) {
		p.mu.Lock()
		p.told[gateway] = true
		p.mu.Unlock()
		p.news()
	})()
	p.opts.Identities.onRenewal(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for name := range p.gateways {
			p.queue.Add(gatewayItem{model.ObjectKey{Namespace: name.Namespace, Name: name.Name}})
		}
	})
	end := p.queue.start(ctx)
	settled := time.NewTimer(settle + time.Second)
	defer settled.Stop()
	for ctx.Err() == nil {
		all := false
		select {
		case <-p.served:
		case <-settled.C:
			all = true
		case <-ctx.Done():
		}
		p.mu.Lock()
		var names []model.Name
		for name := range p.gateways {
			if all || p.told[gatewayKey(name)] {
				names = append(names, name)
			}
		}
		clear(p.told)
		p.feedback(names)
		p.mu.Unlock()
	}
	end()
}

// config is a GatewayConfig as the API shows it; nil is none. The caller holds the lock.
func (p *Gateways) config(n *model.Name) *v1alpha1.GatewayConfig {
	if n == nil {
		return nil
	}
	c, _ := p.objects[model.ObjectKey{Kind: "GatewayConfig", Namespace: n.Namespace, Name: n.Name}].(*v1alpha1.GatewayConfig)
	return c
}
