// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Controller is the spec.controller of IngressClasses that weft serves.
const Controller = "weft.dev/ingress"

// NginxController is that of ingress-nginx, whose classes weft can take over.
const NginxController = "k8s.io/ingress-nginx"

// Options are what a State is made with; they do not change.
type Options struct {
	// Controllers are the values of IngressClass spec.controller that are served. None: Controller alone.
	Controllers []string
	// WithoutClass serves Ingresses that name no class, whether or not a class is the default.
	WithoutClass bool
	// Config is the ConfigMap with ingress-nginx's keys; those of a class with parameters have that ConfigMap instead.
	Config model.Name
	// DefaultBackend is the Service, and port, of what no rule matches. Port 0 is the Service's first.
	DefaultBackend model.Name
	// DefaultCertificate is the Secret with the certificate of hosts that have none of their own.
	DefaultCertificate model.Name
	// Fallback is the certificate where that Secret is not there; nil has handshakes fail.
	Fallback *route.Certificate
	// HTTPPort and HTTPSPort are the ports that the gateway binds; 0 is 80 and 443. PublicHTTP and PublicHTTPS are those
	// that clients connect to, where they differ.
	HTTPPort, HTTPSPort     uint16
	PublicHTTP, PublicHTTPS uint16
}

// Changes is what changed since the last Apply: new values, nil for what is gone. Addresses is nil when they are as they
// were.
type Changes struct {
	Ingresses      map[model.Name]*model.Ingress
	Classes        map[string]*model.IngressClass
	Services       map[model.Name]*model.Service
	EndpointSlices map[model.Name]*model.EndpointSlice
	Secrets        map[model.Name]*model.Secret
	ConfigMaps     map[model.Name]*model.ConfigMap
	// Addresses are where the gateway can be reached: what Ingresses show.
	Addresses *[]model.IngressAddress
	// Unreachable is why the gateway has no address, where something is to be done about it; "" is nothing, nil that it is as
	// it was.
	Unreachable *string
}

// Output is what follows from changes.
type Output struct {
	// Update is the change of the gateway's tables, without a revision; nil when there is none.
	Update *route.Update
	// Statuses are those Ingresses of ours whose status is not what it should be, and those that are no longer ours and
	// still show the gateway's addresses.
	Statuses []Status
	// Events are told once for each problem, until it is gone and comes again.
	Events []model.Event
}

// Status is the status.loadBalancer.ingress that an Ingress should have.
type Status struct {
	Name      model.Name
	UID       string
	Addresses []model.IngressAddress
}

// State is all that Ingresses decide, kept up to date. It is for one goroutine at a time.
type State struct {
	opts Options

	ingresses  map[model.Name]*ingress
	classes    map[string]*model.IngressClass
	services   map[model.Name]*model.Service
	slices     map[model.Name]map[model.Name]*model.EndpointSlice // by Service
	sliceOwner map[model.Name]model.Name
	secrets    map[model.Name]*model.Secret
	configMaps map[model.Name]*model.ConfigMap
	addresses  []model.IngressAddress

	unreachable string // why there are none

	configs map[model.Name]*config // judged ConfigMaps; made again when one changes
	hosts   map[string]*host
	// referredBy are the Ingresses that name a Secret, ConfigMap or Service in an annotation or in spec.tls.
	referredBy map[reference]map[model.Name]bool
	// claims are names of hosts that a host claims besides its own (aliases, www): they give way to a host of the name.
	claims   map[string]map[string]bool
	backends backends
	certs    certificates
	nobody   *ingress // owner of what no Ingress asked for: the catch-all's 404

	out    output
	gone   []Status // Ingresses that left us with our addresses
	dirty  map[string]bool
	touch  map[model.Name]bool // Ingresses whose problems may have changed
	global bool                // the ConfigMap, default backend or certificate changed
}

// reference is an object that an Ingress names.
type reference struct {
	kind string // "Secret", "ConfigMap", "Service"
	name model.Name
}

// New makes a State in which nothing exists yet. Its first Apply gives out the gateway's listeners.
func New(opts Options) *State {
	if len(opts.Controllers) == 0 {
		opts.Controllers = []string{Controller}
	}
	opts.HTTPPort, opts.HTTPSPort = cmp.Or(opts.HTTPPort, 80), cmp.Or(opts.HTTPSPort, 443)
	s := &State{
		opts: opts, ingresses: map[model.Name]*ingress{}, classes: map[string]*model.IngressClass{},
		services: map[model.Name]*model.Service{}, slices: map[model.Name]map[model.Name]*model.EndpointSlice{},
		sliceOwner: map[model.Name]model.Name{}, secrets: map[model.Name]*model.Secret{},
		configMaps: map[model.Name]*model.ConfigMap{}, configs: map[model.Name]*config{}, hosts: map[string]*host{},
		referredBy: map[reference]map[model.Name]bool{}, claims: map[string]map[string]bool{},
		dirty: map[string]bool{"": true}, touch: map[model.Name]bool{}, global: true,
	}
	s.backends.init()
	s.certs = certificates{checked: map[model.Name]checkedCertificate{}, watch: map[model.Name]map[string]bool{}, serve: map[string]map[string]bool{}}
	return s
}

// Complete gives all of the tables as of the last Apply.
func (s *State) Complete() *route.Update { return s.out.complete() }

// Apply takes changes in and gives out what follows.
func (s *State) Apply(c *Changes) Output {
	again := map[model.Name]bool{} // Ingresses to read again
	s.takeClasses(c, again)
	s.takeObjects(c, again)
	for name := range c.Ingresses {
		again[name] = true
		if v := c.Ingresses[name]; v == nil {
			s.forget(name)
			delete(again, name)
		} else if old := s.ingresses[name]; old != nil {
			old.obj = v
		} else {
			s.ingresses[name] = &ingress{obj: v}
		}
	}
	for name := range again {
		s.read(name)
	}
	if s.global {
		s.compileGlobal()
	}
	for len(s.dirty) > 0 { // a host that comes or goes can make others dirty
		hosts := slices.Sorted(maps.Keys(s.dirty))
		clear(s.dirty)
		for _, h := range hosts {
			s.compileHost(h)
		}
	}
	s.backends.settle(s)
	out := Output{Update: s.out.take()}
	statusOfAll := c.Addresses != nil
	if statusOfAll {
		s.addresses = *c.Addresses
	}
	if c.Unreachable != nil && *c.Unreachable != s.unreachable {
		s.unreachable = *c.Unreachable
		for name := range s.ingresses {
			s.touch[name] = true
		}
	}
	out.Statuses = s.statuses(c, again, statusOfAll)
	out.Events = s.events()
	return out
}

// takeClasses notes IngressClasses. A class that changes may make Ingresses ours or not: all are looked at.
func (s *State) takeClasses(c *Changes, again map[model.Name]bool) {
	if len(c.Classes) == 0 {
		return
	}
	for name, v := range c.Classes {
		if v == nil {
			delete(s.classes, name)
		} else {
			s.classes[name] = v
		}
	}
	for name := range s.ingresses {
		again[name] = true
	}
}

// takeObjects notes what Ingresses refer to, and which of them do.
func (s *State) takeObjects(c *Changes, again map[model.Name]bool) {
	referrers := func(kind string, name model.Name) {
		for i := range s.referredBy[reference{kind, name}] {
			again[i] = true
		}
	}
	for name, v := range c.ConfigMaps {
		put(s.configMaps, name, v)
		referrers("ConfigMap", name)
		if _, used := s.configs[name]; used || name == s.opts.Config {
			delete(s.configs, name)
			s.global = true
			for i := range s.ingresses {
				again[i] = true
			}
		}
	}
	for name, v := range c.Secrets {
		put(s.secrets, name, v)
		referrers("Secret", name)
		if name == s.defaultSecret() {
			s.global = true
		}
		for h := range s.certs.watch[name] {
			s.dirty[h] = true
		}
	}
	for name, v := range c.Services {
		put(s.services, name, v)
		referrers("Service", name)
		s.backends.touched(name)
		for h := range s.backends.hostsOf(name) {
			s.dirty[h] = true // what is wrong with the Service may be another thing now
		}
	}
	for name, v := range c.EndpointSlices {
		if owner, ok := s.sliceOwner[name]; ok {
			delete(s.slices[owner], name)
			if len(s.slices[owner]) == 0 {
				delete(s.slices, owner)
			}
			delete(s.sliceOwner, name)
			s.backends.touched(owner)
		}
		if v == nil || v.Service == "" {
			continue
		}
		owner := model.Name{Namespace: name.Namespace, Name: v.Service}
		if s.slices[owner] == nil {
			s.slices[owner] = map[model.Name]*model.EndpointSlice{}
		}
		s.slices[owner][name] = v
		s.sliceOwner[name] = owner
		s.backends.touched(owner)
	}
	for h := range s.backends.flipped(s) {
		s.dirty[h] = true
	}
}

func put[V any](m map[model.Name]*V, name model.Name, v *V) {
	if v == nil {
		delete(m, name)
	} else {
		m[name] = v
	}
}

// forget drops an Ingress that is gone.
func (s *State) forget(name model.Name) {
	if i := s.ingresses[name]; i != nil {
		s.leave(i)
		delete(s.ingresses, name)
	}
}

// leave takes an Ingress out of its hosts and drops what it alone produced.
func (s *State) leave(i *ingress) {
	for _, h := range i.hosts {
		if unit := s.hosts[h]; unit != nil {
			delete(unit.members, i.obj.Name)
			s.dirty[h] = true
		}
	}
	i.hosts = nil
	for _, key := range i.policies {
		s.out.policies.remove(i.unit(), key)
	}
	i.policies = nil
	s.backends.use(i.unit(), nil)
	s.serveCertificates(i.unit(), &i.certs, nil)
	for r := range i.refs {
		delete(s.referredBy[r], i.obj.Name)
		if len(s.referredBy[r]) == 0 {
			delete(s.referredBy, r)
		}
	}
	i.refs = nil
}

// read judges an Ingress (again): whose it is, what its annotations say, which hosts it has.
func (s *State) read(name model.Name) {
	i := s.ingresses[name]
	wasOurs := i.ours
	s.leave(i)
	s.touch[name] = true
	i.class, i.ours = s.classOf(i.obj)
	i.problems, i.denied = nil, nil
	if !i.ours {
		if wasOurs && shows(i.obj.Status, s.addresses) {
			s.gone = append(s.gone, Status{Name: name, UID: i.obj.UID})
		}
		return
	}
	i.refs = map[reference]bool{}
	i.cfg = s.configOf(i.class)
	s.judge(i)
	for r := range i.refs {
		if s.referredBy[r] == nil {
			s.referredBy[r] = map[model.Name]bool{}
		}
		s.referredBy[r][name] = true
	}
	i.hosts = hostsOf(i.obj)
	for _, h := range i.hosts {
		unit := s.hosts[h]
		if unit == nil {
			unit = &host{name: h, members: map[model.Name]*ingress{}}
			s.hosts[h] = unit
			s.appeared(h)
		}
		unit.members[name] = i
		s.dirty[h] = true
	}
}

// appeared has those looked at again whose claims depend on whether there is a host of a name.
func (s *State) appeared(name string) {
	for claimant := range s.claims[name] {
		s.dirty[claimant] = true
	}
	s.dirty[""] = true
}

// globalConfig is the controller's own ConfigMap: what it says of the gateway as a whole counts.
func (s *State) globalConfig() *config {
	cfg := s.configs[s.opts.Config]
	if cfg == nil {
		cfg = readConfig(s.opts.Config, s.opts.Config, s.configMaps[s.opts.Config])
		s.configs[s.opts.Config] = cfg
	}
	return cfg
}

// compileGlobal has everything compiled again after a change that concerns all hosts.
func (s *State) compileGlobal() {
	s.global = false
	s.nobody = &ingress{obj: &model.Ingress{}, cfg: s.globalConfig(), set: s.globalConfig().set}
	s.dirty[""] = true
	for h := range s.hosts {
		s.dirty[h] = true
	}
}

// hostsOf lists the hosts that an Ingress has a say in. All have one in the catch-all host, where names of spec.tls
// without a rule, and default backends, belong.
func hostsOf(o *model.Ingress) []string {
	seen := map[string]bool{}
	if o.Default != nil || len(o.Rules) == 0 || len(looseNames(o)) > 0 {
		seen[""] = true
	}
	for _, r := range o.Rules {
		seen[r.Host] = true
	}
	return slices.Sorted(maps.Keys(seen))
}
