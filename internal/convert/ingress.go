// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// IngressOptions choose what Ingresses become.
type IngressOptions struct {
	// Gateway is the Gateway that is made, and GatewayClass its class.
	Gateway      model.Name
	GatewayClass string
	// NewNamespace says that the Gateway's namespace isn't there yet: it is made, too.
	NewNamespace bool
	// Compile is how Ingresses are read, as the Ingress controller is set up.
	Compile ingress.Options
	// Sources tells where Ingresses were read, "file:line".
	Sources map[model.Name]string
}

// Conversion is what became of Ingresses.
type Conversion struct {
	Objects []Object
	Notes   []Note
	// Tables are what the Ingresses mean; Dropped the request headers of theirs that backends no longer get.
	Tables  *route.Update
	Dropped []string
	// Plain are the hosts that had no certificate of their own: they are not served over TLS any more.
	Plain []string
}

// FromIngresses rewrites Ingresses as one Gateway, ListenerSets (GEP-1713) that keep each certificate in its own
// namespace, routes, and weft's policies. It compiles the Ingresses as the Ingress controller would, and writes the
// tables that come of it as Gateway API objects: what an annotation does is converted, not what it says. Secrets that
// the Ingresses name must be there.
func FromIngresses(opt IngressOptions, in *ingress.Changes) *Conversion {
	state := ingress.New(opt.Compile)
	state.Apply(in)
	c := &ingressConverter{
		IngressOptions: opt, in: in, tables: state.Complete(), routes: map[string][]Object{},
		backends: map[string]*route.Backend{}, policies: map[string]*route.Policy{}, dropped: map[string]bool{},
		namespaces: map[string]bool{}, sets: map[string][]any{}, sources: opt.Sources, attached: map[string]Object{}, plain: map[string]bool{},
	}
	for i := range c.tables.Backends {
		c.backends[c.tables.Backends[i].Key] = &c.tables.Backends[i]
	}
	for i := range c.tables.Policies {
		c.policies[c.tables.Policies[i].Key] = &c.tables.Policies[i]
	}
	ours := slices.SortedFunc(maps.Keys(in.Ingresses), model.Name.Compare)
	c.ingressesOf(state, ours)
	c.findDefaults()
	c.listenersOf(ours)
	for _, key := range slices.Sorted(maps.Keys(c.byKey())) {
		c.route(c.byKey()[key])
	}
	c.backendPolicies()
	if names := slices.Sorted(maps.Keys(c.dropped)); len(names) > 0 {
		c.notes = append(c.notes, Note{Object: "Gateway " + opt.Gateway.String(), Text: fmt.Sprintf(
			"backends no longer get %s, which ingress-nginx sets: X-Forwarded-For, -Proto, -Host and -Port tell the same", strings.Join(names, ", "))})
	}
	if opt.NewNamespace {
		c.notes = append(c.notes, Note{Object: "Namespace " + opt.Gateway.Namespace, Text: "made for Gateway " + opt.Gateway.String() +
			": leave it out where it is there, for applying it may take labels away"})
	}
	return &Conversion{Objects: c.all(), Notes: c.notes, Tables: c.tables, Dropped: slices.Sorted(maps.Keys(c.dropped)), Plain: slices.Sorted(maps.Keys(c.plain))}
}

// ingressConverter is one conversion of Ingresses.
type ingressConverter struct {
	IngressOptions
	in      *ingress.Changes
	tables  *route.Update
	sources map[model.Name]string

	backends   map[string]*route.Backend
	policies   map[string]*route.Policy
	defaults   map[string]json.RawMessage // fields of policies that all Ingresses share: the Gateway's own policy
	namespaces map[string]bool            // with routes
	gateway    []any                      // listeners of the Gateway
	sets       map[string][]any           // and of the ListenerSets, by namespace
	secure     map[string]tree            // hosts over TLS, and the parentRef of their listener
	shown      map[model.Name][]string    // Secrets with a certificate, and the hosts of their listeners
	routes     map[string][]Object        // by kind, Ingress and content
	order      []string
	extra      []Object
	attached   map[string]Object // TrafficPolicies by namespace and content
	dropped    map[string]bool
	plain      map[string]bool // hosts without a certificate
	notes      []Note
}

func (c *ingressConverter) note(name model.Name, decide bool, field, format string, args ...any) {
	n := Note{Source: c.sources[name], Object: "Ingress " + name.String(), Field: field, Text: fmt.Sprintf(format, args...), Decide: decide}
	if !slices.Contains(c.notes, n) {
		c.notes = append(c.notes, n)
	}
}

func (c *ingressConverter) byKey() map[string]*route.Route {
	out := make(map[string]*route.Route, len(c.tables.Routes))
	for i := range c.tables.Routes {
		out[c.tables.Routes[i].Key] = &c.tables.Routes[i]
	}
	return out
}

// became tells, by the groups of ingress-nginx's annotations, what those that are honoured turn into.
var became = map[string]string{
	"Answers":                  "filters of the route, and the TrafficPolicy",
	"Backend":                  "backends of the route, and the TrafficPolicy",
	"Backend TLS":              "the BackendTLSPolicy",
	"Basic authentication":     "basicAuth of the TrafficPolicy",
	"CORS":                     "the route's CORS filter",
	"Canary":                   "weights and matches of the route",
	"Client certificates":      "tls.frontend of the Gateway",
	"External authentication":  "externalAuth of the TrafficPolicy",
	"Logs and traces":          "accessLog of the TrafficPolicy",
	"Mirror":                   "the route's RequestMirror filter",
	"Proxy":                    "the TrafficPolicy",
	"Rate limits":              "rateLimits, connections and responseRate of the TrafficPolicy",
	"Redirect":                 "the route's RequestRedirect filter",
	"Rewrite":                  "the route's URLRewrite filter, its header filters, or its hostnames",
	"Session affinity":         "session of the TrafficPolicy",
	"Source addresses":         "sources of the TrafficPolicy",
	"TLS":                      "listeners and redirects, and hsts of the TrafficPolicy",
	"Web application firewall": "waf of the TrafficPolicy",
}

// ingressesOf reports what became of each annotation, and what the compiler says.
func (c *ingressConverter) ingressesOf(state *ingress.State, names []model.Name) {
	table := map[string]ingress.Annotation{}
	for _, a := range ingress.Annotations() {
		table[a.Name] = a
	}
	for _, name := range names {
		o := c.in.Ingresses[name]
		for _, full := range slices.Sorted(maps.Keys(o.Annotations)) {
			short, ok := strings.CutPrefix(full, ingress.Prefix)
			a, known := table[short]
			if !ok || !known {
				continue // the compiler reports those that it does not know
			}
			field := "metadata.annotations[" + full + "]"
			switch a.Verdict {
			case ingress.Honoured:
				c.note(name, false, field, "became %s", became[a.Group])
			case ingress.Accepted:
				c.note(name, false, field, "has no effect: %s", a.Note)
			}
		}
		for _, p := range state.Problems(name) {
			// What Services there are is the cluster's to know, not the manifests'.
			c.note(name, p.Reason() != "BackendNotFound", "", "%s", p.Message())
		}
	}
}

// listenersOf makes the Gateway's listener for plain HTTP, and for each host with a certificate one over TLS, in the
// ListenerSet of the certificate's namespace.
func (c *ingressConverter) listenersOf(names []model.Name) {
	c.secure, c.shown = map[string]tree{}, map[model.Name][]string{}
	for _, r := range c.tables.Routes {
		if ns, _, ok := strings.Cut(r.Name, "/"); ok {
			c.namespaces[ns] = true
		}
	}
	c.gateway = []any{tree{"name": "http", "protocol": "HTTP", "port": int64(80), "allowedRoutes": c.allowed()}}
	passed := map[string]string{} // hosts that are passed through, and the namespace of the Ingress
	for _, r := range c.tables.Routes {
		if ns, _, ok := strings.Cut(r.Name, "/"); ok && r.Kind == route.TLSRoute {
			for _, p := range r.Parents {
				for _, h := range p.Hostnames {
					passed[h] = ns
				}
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(passed)) {
		c.listener(passed[host], host, tree{"name": "tls-" + label(host), "protocol": "TLS", "port": int64(443), "hostname": host, "tls": tree{"mode": "Passthrough"}})
	}
	for i := range c.tables.Listeners {
		l := &c.tables.Listeners[i]
		if l.Protocol != route.HTTPS || l.Hostname == "" || c.secure[l.Hostname] != nil {
			continue
		}
		secret, ok := c.certificateOf(l)
		if !ok {
			c.plain[l.Hostname] = true
			continue
		}
		tls := tree{"mode": "Terminate", "certificateRefs": []any{tree{"name": secret.Name}}}
		c.shown[secret] = append(c.shown[secret], l.Hostname)
		c.listener(secret.Namespace, l.Hostname, tree{
			"name": "https-" + label(l.Hostname), "protocol": "HTTPS", "port": int64(443), "hostname": l.Hostname, "tls": tls,
		})
	}
	for _, name := range names {
		for i := range c.in.Ingresses[name].TLS {
			c.tls(name, i)
		}
	}
	if hosts := slices.Sorted(maps.Keys(c.plain)); len(hosts) > 0 {
		c.notes = append(c.notes, Note{Object: "Gateway " + c.Gateway.String(), Text: strings.Join(hosts, ", ") +
			": no certificate of their own: over HTTPS, where the controller's default certificate was shown, they are not served any more"})
	}
}

// tls reports what became of an entry of an Ingress's spec.tls. Hosts have one certificate: the oldest Ingress's.
func (c *ingressConverter) tls(name model.Name, i int) {
	o := c.in.Ingresses[name]
	t := &o.TLS[i]
	if t.Secret == "" {
		return
	}
	hosts := slices.Clone(t.Hosts)
	for _, r := range o.Rules {
		hosts = append(hosts, r.Host)
	}
	field := fmt.Sprintf("spec.tls[%d]", i)
	for _, h := range c.shown[model.Name{Namespace: name.Namespace, Name: t.Secret}] {
		if slices.ContainsFunc(hosts, func(own string) bool { return strings.EqualFold(own, h) }) {
			c.note(name, false, field, "became listeners of ListenerSet %s/%s, with the certificate of Secret %s", name.Namespace, c.Gateway.Name, t.Secret)
			return
		}
	}
	c.note(name, false, field, "became no listener: no host has the certificate of Secret %s by this Ingress", t.Secret)
}

// certificateOf is the Secret of an Ingress that a listener's certificate is from.
func (c *ingressConverter) certificateOf(l *route.Listener) (model.Name, bool) {
	if l.TLS == nil || len(l.TLS.Certificates) == 0 {
		return model.Name{}, false
	}
	ns, n, ok := strings.Cut(l.TLS.Certificates[0], "/")
	name := model.Name{Namespace: ns, Name: n}
	return name, ok && c.in.Secrets[name] != nil && name != c.Compile.DefaultCertificate
}

// listener adds one to the ListenerSet of a namespace, for routes of all that have some.
func (c *ingressConverter) listener(namespace, host string, l tree) {
	l["allowedRoutes"] = c.allowed()
	c.sets[namespace] = append(c.sets[namespace], l)
	c.secure[host] = tree{"group": gatewayGroup, "kind": "ListenerSet", "name": c.Gateway.Name, "namespace": namespace, "sectionName": l["name"]}
}

// allowed lets routes in from the namespaces that have some.
func (c *ingressConverter) allowed() tree {
	return tree{"namespaces": tree{"from": "Selector", "selector": tree{"matchExpressions": []any{tree{
		"key": "kubernetes.io/metadata.name", "operator": "In", "values": anys(slices.Sorted(maps.Keys(c.namespaces))),
	}}}}}
}

// label makes a part of an object's name of a hostname.
func label(host string) string {
	return strings.ReplaceAll(strings.ReplaceAll(host, "*", "any"), ".", "-")
}

// parentRefs are the listeners that a route is bound to, and its hostnames.
func (c *ingressConverter) parentRefs(r *route.Route, name model.Name) (refs []any, hostnames []string) {
	add := func(ref tree) {
		if !slices.ContainsFunc(refs, func(o any) bool { return fmt.Sprint(o) == fmt.Sprint(ref) }) {
			refs = append(refs, ref)
		}
	}
	for _, p := range r.Parents {
		scheme, host, _ := strings.Cut(p.Listener, "/")
		if len(p.Hostnames) == 1 && p.Hostnames[0] == "" && host != "" {
			continue // what a host's listener leaves to the catch-all: the catch-all's own listener has it
		}
		for _, h := range p.Hostnames {
			if h != "" && !slices.Contains(hostnames, h) {
				hostnames = append(hostnames, h)
			}
		}
		if scheme == "http" {
			ref := tree{"name": c.Gateway.Name, "sectionName": "http"}
			if name.Namespace != c.Gateway.Namespace {
				ref["namespace"] = c.Gateway.Namespace
			}
			add(ref)
			continue
		}
		ref := c.listenerFor(host)
		if ref == nil {
			continue
		}
		ref = maps.Clone(ref)
		if ref["namespace"] == name.Namespace {
			delete(ref, "namespace")
		}
		add(ref)
	}
	return refs, hostnames
}

// listenerFor is the parentRef of the listener that has a host over TLS: its own, or that of a wildcard.
func (c *ingressConverter) listenerFor(host string) tree {
	if ref := c.secure[host]; ref != nil {
		return ref
	}
	if _, domain, ok := strings.Cut(host, "."); ok {
		return c.secure["*."+domain]
	}
	return nil
}

// route writes one route of the tables. Those of an Ingress that differ by hostname alone become one.
func (c *ingressConverter) route(r *route.Route) {
	ns, n, ok := strings.Cut(r.Name, "/")
	if !ok {
		return // the catch-all's 404, which is nobody's
	}
	name := model.Name{Namespace: ns, Name: n}
	refs, hostnames := c.parentRefs(r, name)
	if len(refs) == 0 {
		return
	}
	rules, named := c.rules(r, name)
	if len(rules) == 0 {
		return
	}
	kind := string(r.Kind)
	if r.Kind == route.HTTPRoute && c.isGRPC(r) {
		kind = "GRPCRoute"
		for _, rule := range rules {
			delete(rule.(tree), "matches")
		}
	}
	id := kind + " " + r.Name + " " + mustJSON(rules) + mustJSON(r.Policies)
	if old := c.routes[id]; old != nil {
		for _, o := range old {
			bind(o, refs, hostnames)
		}
		return
	}
	// A route has at most 16 rules.
	for part := range slices.Chunk(rules, 16) {
		o := c.object(gatewayGroup+"/v1", kind, c.free(kind, ns, c.routeName(r, n)), ns, tree{"parentRefs": []any{}, "rules": part})
		o.Source = c.sources[name]
		bind(o, refs, hostnames)
		c.routes[id] = append(c.routes[id], o)
		c.trafficPolicies(r, name, o, named)
	}
	c.order = append(c.order, id)
}

// bind adds listeners and hostnames to a route.
func bind(o Object, refs []any, hostnames []string) {
	spec := sub(o.Object, "spec")
	list, _ := spec["parentRefs"].([]any)
	for _, ref := range refs {
		if !slices.ContainsFunc(list, func(o any) bool { return mustJSON(o) == mustJSON(ref) }) {
			list = append(list, ref)
		}
	}
	spec["parentRefs"] = list
	all := texts(spec, "hostnames")
	for _, h := range hostnames {
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	if len(all) > 0 {
		spec["hostnames"] = anys(all)
	}
}

// routeName is the Ingress's, with what tells its routes apart.
func (c *ingressConverter) routeName(r *route.Route, ingress string) string {
	parts := strings.SplitN(strings.TrimPrefix(r.Key, "Ingress/"+r.Name+"/"), "/", 2)
	switch suffix := parts[len(parts)-1]; {
	case len(parts) == 1:
		return ingress
	case suffix == "http":
		return ingress + "-http"
	default:
		return ingress + "-" + label(suffix)
	}
}

// free makes a name that no other object of the kind has.
func (c *ingressConverter) free(kind, namespace, name string) string {
	out := name
	for i := 2; c.has(kind, namespace, out); i++ {
		out = fmt.Sprintf("%s-%d", name, i)
	}
	return out
}

// has tells whether an object was made already.
func (c *ingressConverter) has(kind, namespace, name string) bool {
	is := func(o Object) bool {
		return o.GetKind() == kind && o.GetNamespace() == namespace && o.GetName() == name
	}
	for _, some := range c.routes {
		if slices.ContainsFunc(some, is) {
			return true
		}
	}
	return slices.ContainsFunc(c.extra, is)
}

// object makes one.
func (c *ingressConverter) object(apiVersion, kind, name, namespace string, spec tree) Object {
	return Object{Unstructured: &unstructured.Unstructured{Object: tree{
		"apiVersion": apiVersion, "kind": kind, "metadata": tree{"name": name, "namespace": namespace}, "spec": spec,
	}}}
}

// all are the objects made, those that others refer to first.
func (c *ingressConverter) all() []Object {
	if len(c.order) == 0 {
		return nil
	}
	spec := tree{"gatewayClassName": c.GatewayClass, "listeners": c.gateway}
	if len(c.sets) > 0 {
		spec["allowedListeners"] = tree{"namespaces": tree{"from": "Selector", "selector": tree{"matchExpressions": []any{tree{
			"key": "kubernetes.io/metadata.name", "operator": "In", "values": anys(slices.Sorted(maps.Keys(c.sets))),
		}}}}}
	}
	var out []Object
	if c.NewNamespace {
		out = append(out, Object{Unstructured: &unstructured.Unstructured{Object: tree{
			"apiVersion": "v1", "kind": "Namespace", "metadata": tree{"name": c.Gateway.Namespace},
		}}})
	}
	out = append(out, c.object(gatewayGroup+"/v1", "Gateway", c.Gateway.Name, c.Gateway.Namespace, spec))
	for _, ns := range slices.Sorted(maps.Keys(c.sets)) {
		out = append(out, c.object(gatewayGroup+"/v1", "ListenerSet", c.Gateway.Name, ns, tree{
			"parentRef": tree{"group": gatewayGroup, "kind": "Gateway", "name": c.Gateway.Name, "namespace": c.Gateway.Namespace},
			"listeners": c.sets[ns],
		}))
	}
	for _, id := range c.order {
		out = append(out, c.routes[id]...)
	}
	return append(out, c.extra...)
}

// mustJSON writes plain maps and lists, which can't fail.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
