// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// host is one hostname with the Ingresses that have rules for it: what nginx calls a server. It is compiled as a whole,
// since Ingresses share a host's paths, canaries, certificate and way of matching.
type host struct {
	name     string // "" is the catch-all
	members  map[model.Name]*ingress
	problems map[model.Name][]problem
	claims   []string // names that it claims besides its own

	// What it produced.
	listeners []string
	routes    []string
	policies  []string
	certs     []string
	secrets   []model.Name
	// emptyWatch are the backends whose having endpoints or not matters to the rules.
	emptyWatch []string
}

// byAge lists the members, the oldest first: it wins conflicts.
func (h *host) byAge() []*ingress {
	return slices.SortedFunc(maps.Values(h.members), func(a, b *ingress) int {
		return cmp.Or(cmp.Compare(a.obj.Created, b.obj.Created), cmp.Compare(a.obj.Namespace, b.obj.Namespace), cmp.Compare(a.obj.Name.Name, b.obj.Name.Name))
	})
}

func (h *host) problem(i *ingress, reason, format string, args ...any) {
	p := problem{reason: reason, message: fmt.Sprintf(format, args...)}
	if !slices.Contains(h.problems[i.obj.Name], p) { // rules are made twice: for TLS and for plain text
		h.problems[i.obj.Name] = append(h.problems[i.obj.Name], p)
	}
}

// location is one path of a host: the Ingress that won it, and its canary.
type location struct {
	by        *ingress
	path      string
	kind      model.IngressPathType
	backend   *model.IngressBackend // nil: 404
	namespace string                // of the backend
	field     string                // where it is written, for messages
	isDefault bool                  // of what no path matches
	canary    *canary
}

// canary is an Ingress with the canary annotation, for one location.
type canary struct {
	by      *ingress
	backend *model.IngressBackend
}

// server is a host on its way to being compiled.
type server struct {
	s         *State
	h         *host
	members   []*ingress
	locations []*location
	regex     bool // every path is a regular expression
	names     []string
	wildcard  *route.ValueMatch
	denied    string // why nobody may see anything of the host

	hasCert   bool
	certs     []string
	certWatch map[model.Name]bool
	loose     map[string]string // names of spec.tls without a rule to their certificate; "" is the default one
	client    *route.ClientValidation
	ciphers   []string

	listeners map[string]route.Listener
	routes    map[string]route.Route
	policies  map[string]route.Policy
	backends  map[string]backend
	empty     map[string]bool
}

// compileHost makes what a hostname's Ingresses ask for and gives out the difference.
func (s *State) compileHost(name string) {
	h := s.hosts[name]
	if h == nil {
		if name != "" {
			return
		}
		h = &host{members: map[model.Name]*ingress{}}
		s.hosts[""] = h
	}
	for m := range h.members {
		s.touch[m] = true
	}
	v := &server{
		s: s, h: h, members: h.byAge(), listeners: map[string]route.Listener{}, routes: map[string]route.Route{},
		policies: map[string]route.Policy{}, backends: map[string]backend{}, empty: map[string]bool{},
		certWatch: map[model.Name]bool{}, loose: map[string]string{},
	}
	h.problems = map[model.Name][]problem{}
	if len(h.members) > 0 || name == "" {
		v.gather()
		v.claim()
		v.tls()
		if name == "" {
			v.looseTLS()
		}
		v.listen()
		v.route()
		v.www()
	}
	if len(h.members) == 0 {
		v.reclaim(nil)
	}
	v.give()
	if len(h.members) == 0 && name != "" {
		delete(s.hosts, name)
		s.appeared(name)
	}
	if strings.HasPrefix(name, "*.") {
		s.dirty[""] = true // whose rules wildcards fall back to
	}
}

// give hands out what was made, and takes back what is no longer.
func (v *server) give() {
	s, h := v.s, v.h
	h.listeners = exchange(&s.out.listeners, h.name, h.listeners, v.listeners)
	h.routes = exchange(&s.out.routes, h.name, h.routes, v.routes)
	h.policies = exchange(&s.out.policies, h.name, h.policies, v.policies)
	serves := map[string]bool{}
	for _, l := range v.listeners {
		if l.TLS != nil {
			for _, key := range l.TLS.Certificates {
				serves[key] = true
			}
		}
	}
	s.serveCertificates(hostUnit+h.name, &h.certs, serves)
	s.watchSecrets(h.name, &h.secrets, v.certWatch)
	s.backends.use(hostUnit+h.name, v.backends)
	s.backends.watch(h.name, &h.emptyWatch, v.empty)
}

// exchange sets new resources and removes those that are no longer among them.
func exchange[T any](r *resources[T], unit string, old []string, now map[string]T) (keys []string) {
	for _, k := range old {
		if _, ok := now[k]; !ok {
			r.remove(unit, k)
		}
	}
	keys = slices.Sorted(maps.Keys(now))
	for _, k := range keys {
		r.set(unit, k, now[k])
	}
	return keys
}

// gather collects the host's locations: of equal ones the oldest Ingress's wins.
func (v *server) gather() {
	type key struct {
		path string
		kind model.IngressPathType
	}
	taken := map[key]*location{}
	var canaries []*location
	for _, i := range v.members {
		for ri, r := range i.obj.Rules {
			if r.Host != v.h.name {
				continue
			}
			for pi := range r.Paths {
				p := &r.Paths[pi]
				l := &location{
					by: i, path: cmp.Or(p.Path, "/"), kind: p.Type, backend: &p.Backend, namespace: i.obj.Namespace,
					field: fmt.Sprintf("spec.rules[%d].http.paths[%d]", ri, pi),
				}
				if !v.usable(l) {
					continue
				}
				if i.set.canary {
					canaries = append(canaries, l)
					continue
				}
				k := key{l.path, l.kind}
				if first := taken[k]; first != nil {
					if first.by != i {
						v.h.problem(i, "PathConflict", "%s: %s%s (%s) is taken by the older Ingress %s: this path is not served; remove one of the two",
							l.field, v.h.name, l.path, l.kind, first.by.obj.Name)
					} else {
						v.h.problem(i, "PathConflict", "%s: %s%s (%s) is there twice: the first one counts", l.field, v.h.name, l.path, l.kind)
					}
					continue
				}
				taken[k] = l
				v.locations = append(v.locations, l)
			}
		}
	}
	all := slices.ContainsFunc(v.locations, func(l *location) bool { return l.path == "/" && l.kind != model.IngressExact })
	if d := v.defaultLocation(); d != nil && !all {
		taken[key{"/", model.IngressPrefix}] = d
		v.locations = append(v.locations, d)
	}
	for _, c := range canaries {
		v.addCanary(c, taken[key{c.path, c.kind}])
	}
	v.defaultCanaries(taken[key{"/", model.IngressPrefix}])
	for _, l := range v.locations {
		set := &l.by.set
		strips := set.rewriteTarget == "/" && set.rewriteRoot == "strip" && l.kind == model.IngressPrefix && !isRegex(l.path)
		if !l.isDefault && (set.useRegex || set.rewriteTarget != "" && set.rewriteTarget != l.path && !strips) {
			v.regex = true
		}
	}
}

// usable tells whether a path can be served at all, and says why not.
func (v *server) usable(l *location) bool {
	switch {
	case l.backend.Resource != "":
		v.h.problem(l.by, "ResourceBackend", "%s.backend.resource: %s: weft sends requests to Services only; requests get 503: name a Service",
			l.field, l.backend.Resource)
	case l.backend.Service == "":
		v.h.problem(l.by, "InvalidBackend", "%s.backend names no Service; requests get 503", l.field)
	case !strings.HasPrefix(l.path, "/"):
		v.h.problem(l.by, "InvalidPath", "%s.path: %q does not begin with \"/\": it is not served", l.field, l.path)
		return false
	case l.kind != model.IngressExact && l.kind != model.IngressPrefix && l.kind != model.IngressImplementationSpecific:
		v.h.problem(l.by, "InvalidPath", "%s.pathType: %q is not one of Exact, Prefix, ImplementationSpecific: the path is not served", l.field, l.kind)
		return false
	}
	return true
}

// addCanary gives a location its canary. There can be one: the oldest Ingress's.
func (v *server) addCanary(c, main *location) {
	switch {
	case main == nil || main.backend == nil:
		v.h.problem(c.by, "CanaryWithoutMain", "%s: no Ingress without the canary annotation serves %s%s (%s): the canary gets nothing",
			c.field, v.h.name, c.path, c.kind)
	case main.canary != nil:
		v.h.problem(c.by, "CanaryConflict", "%s: %s%s has the canary of Ingress %s already: this one gets nothing",
			c.field, v.h.name, c.path, main.canary.by.obj.Name)
	case *main.backend == *c.backend && main.by.obj.Namespace == c.by.obj.Namespace:
		v.h.problem(c.by, "CanaryConflict", "%s: the canary's Service is the one that requests go to anyhow", c.field)
	default:
		main.canary = &canary{by: c.by, backend: c.backend}
	}
}

// defaultCanaries gives the catch-all's default backend its canary.
func (v *server) defaultCanaries(main *location) {
	if v.h.name != "" || main == nil || !main.isDefault {
		return
	}
	for _, i := range v.members {
		if i.set.canary && i.obj.Default != nil && len(i.obj.Rules) == 0 && i.obj.Default.Service != "" {
			v.addCanary(&location{by: i, path: "/", kind: model.IngressPrefix, backend: i.obj.Default, field: "spec.defaultBackend"}, main)
		}
	}
}

// defaultLocation is what serves requests of the host that no path matches: the default backend of its oldest Ingress,
// of the class, of the controller, or 404. On the catch-all it is that of the oldest Ingress that has no rules, and where
// there is none of these, that of the oldest with rules: as the API has it, what matches no host of an Ingress goes to
// its default backend.
func (v *server) defaultLocation() *location {
	l := &location{path: "/", kind: model.IngressPrefix, isDefault: true, field: "spec.defaultBackend"}
	var withRules *ingress
	for _, i := range v.members {
		if i.set.canary {
			continue
		}
		if v.h.name != "" {
			l.by = i
			break
		}
		if i.obj.Default == nil {
			continue
		}
		if len(i.obj.Rules) == 0 {
			l.by = i
			break
		}
		if withRules == nil {
			withRules = i
		}
	}
	if l.by == nil {
		if v.h.name != "" {
			return nil // canaries only: the catch-all has it
		}
		l.by = v.s.nobody
		if l.backend, l.namespace = v.s.fallback(l.by); l.backend == nil && withRules != nil {
			l.by = withRules
		}
	}
	if d := l.by.obj.Default; d != nil {
		l.backend, l.namespace = d, l.by.obj.Namespace
		v.usable(l)
	} else if l.backend == nil {
		l.backend, l.namespace = v.s.fallback(l.by)
	}
	return l
}

// fallback is the default backend of an Ingress's class, or the controller's.
func (s *State) fallback(i *ingress) (*model.IngressBackend, string) {
	if name, port, ok := splitService(i.cfg.defaultBackend); ok {
		return &model.IngressBackend{Service: name.Name, Port: port}, name.Namespace
	}
	if d := s.opts.DefaultBackend; d.Name != "" {
		return &model.IngressBackend{Service: d.Name}, d.Namespace
	}
	return nil, ""
}

// isRegex tells whether a path has characters that only regular expressions have.
func isRegex(path string) bool { return strings.ContainsAny(path, `^$[](){}*+?|\`) }

// oneLabel makes the match for names of which some are wildcards: Ingress, unlike Gateway API, has "*.example.com" not
// match "a.b.example.com". It is nil when there is no wildcard.
func oneLabel(names []string) *route.ValueMatch {
	var alternatives []string
	wild := false
	for _, n := range names {
		if rest, ok := strings.CutPrefix(n, "*."); ok {
			wild = true
			alternatives = append(alternatives, `[^.:]+\.`+regexp.QuoteMeta(rest))
		} else {
			alternatives = append(alternatives, regexp.QuoteMeta(n))
		}
	}
	if !wild {
		return nil
	}
	return &route.ValueMatch{Name: "host", Regex: true, Value: `(?i:` + strings.Join(alternatives, "|") + `)\.?(?::[0-9]+)?`}
}

// claim notes the names that the host has besides its own, as long as no Ingress has a rule for them.
func (v *server) claim() {
	s, h := v.s, v.h
	v.names = []string{h.name}
	if h.name == "" {
		v.reclaim(nil)
		return
	}
	var want []string
	var with *ingress
	for _, i := range v.members {
		if len(i.set.aliases) == 0 || i.set.canary {
			continue
		}
		if with != nil {
			h.problem(i, "AliasConflict", "%sserver-alias: the older Ingress %s has set the aliases of %s already: these are not served",
				Prefix, with.obj.Name, h.name)
			continue
		}
		with = i
		for _, a := range i.set.aliases {
			if a != h.name && !slices.Contains(want, a) {
				want = append(want, a)
			}
		}
	}
	aliases := len(want)
	if w := v.wwwOf(); w != "" && !slices.Contains(want, w) {
		want = append(want, w)
	}
	v.reclaim(want)
	for _, a := range want[:aliases] {
		switch owner := slices.Min(slices.Collect(maps.Keys(s.claims[a]))); {
		case s.isHost(a):
			h.problem(with, "AliasConflict", "%sserver-alias: %s is a host of an Ingress's own rule, which goes first", Prefix, a)
		case owner != h.name:
			h.problem(with, "AliasConflict", "%sserver-alias: %s belongs to host %s already", Prefix, a, owner)
		default:
			v.names = append(v.names, a)
		}
	}
	v.wildcard = oneLabel(v.names)
}

// isHost tells whether some Ingress has a rule for a hostname.
func (s *State) isHost(name string) bool {
	return s.hosts[name] != nil && len(s.hosts[name].members) > 0
}

// reclaim replaces the host's claims. Those with an interest in what it gave up or took are looked at again.
func (v *server) reclaim(want []string) {
	s, h := v.s, v.h
	again := func(n string) {
		s.dirty[""] = true // which has the names of spec.tls that nobody has
		for other := range s.claims[n] {
			if other != h.name {
				s.dirty[other] = true
			}
		}
	}
	for _, n := range h.claims {
		if !slices.Contains(want, n) {
			delete(s.claims[n], h.name)
			again(n)
			if len(s.claims[n]) == 0 {
				delete(s.claims, n)
			}
		}
	}
	for _, n := range want {
		if s.claims[n] == nil {
			s.claims[n] = map[string]bool{}
		}
		if !s.claims[n][h.name] {
			s.claims[n][h.name] = true
			again(n)
		}
	}
	h.claims = want
}

// wwwOf is the name that is redirected to the host: with "www." where the host has none, and the other way round.
func (v *server) wwwOf() string {
	if v.h.name == "" || strings.HasPrefix(v.h.name, "*.") {
		return ""
	}
	if !slices.ContainsFunc(v.members, func(i *ingress) bool { return i.set.fromToWWW && !i.set.canary }) {
		return ""
	}
	if rest, ok := strings.CutPrefix(v.h.name, "www."); ok {
		return rest
	}
	return "www." + v.h.name
}
