// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Options choose among what a conversion may do.
type Options struct {
	// Namespace of objects that name none.
	Namespace string
	// Controller takes the place of GatewayClasses' controllerName; "" leaves it.
	Controller string
	// HTTPS binds a route that names an HTTP listener to the Gateway's HTTPS listeners of the same hostnames too.
	HTTPS bool
}

const gatewayGroup = "gateway.networking.k8s.io"

// converter is one conversion.
type converter struct {
	Options
	objects []Object
	notes   []Note
}

func (c *converter) note(o Object, field, format string, args ...any) {
	c.notes = append(c.notes, Note{Source: o.Source, Object: o.name(), Field: field, Text: fmt.Sprintf(format, args...)})
}

func (c *converter) decide(o Object, field, format string, args ...any) {
	c.note(o, field, format, args...)
	c.notes[len(c.notes)-1].Decide = true
}

// namespace is a namespaced object's.
func (c *converter) namespace(o Object) string {
	if ns := o.GetNamespace(); ns != "" {
		return ns
	}
	return c.Namespace
}

// Upgrade rewrites objects of Gateway API and Ingress, of older versions or of shapes that were never an API's but are
// found in guides, as what today's API servers accept, and says what it changed. All other objects stay as they are.
// The objects are seen together: a reference that can only mean one of them is completed. The input is not changed.
func Upgrade(opt Options, objects []Object) ([]Object, []Note) {
	c := &converter{Options: opt}
	for _, o := range objects {
		c.objects = append(c.objects, Object{o.Source, o.DeepCopy()})
	}
	for _, o := range c.objects {
		c.shape(o)
	}
	// References are looked at when all shapes are known. The conversion's own objects need no second look.
	for _, o := range slices.Clone(c.objects) {
		c.refer(o)
	}
	// In the order of the objects, not of the passes over them.
	place := make(map[string]int, len(c.objects))
	for i, o := range c.objects {
		place[o.Source+" "+o.name()] = i
	}
	slices.SortStableFunc(c.notes, func(a, b Note) int {
		return place[a.Source+" "+a.Object] - place[b.Source+" "+b.Object]
	})
	return c.objects, c.notes
}

// shape rewrites one object by itself.
func (c *converter) shape(o Object) {
	gk := o.GroupVersionKind().GroupKind()
	if v := current(o.GroupVersionKind()); v != "" && v != o.GetAPIVersion() {
		c.note(o, "apiVersion", "%s became %s", o.GetAPIVersion(), v)
		o.SetAPIVersion(v)
	}
	switch gk {
	case schema.GroupKind{Group: "extensions", Kind: "Ingress"}, schema.GroupKind{Group: "networking.k8s.io", Kind: "Ingress"}:
		c.ingress(o)
	}
	if gk.Group != gatewayGroup {
		return
	}
	switch gk.Kind {
	case "GatewayClass":
		c.gatewayClass(o)
	case "Gateway":
		c.gateway(o)
	case "HTTPRoute":
		c.httpRoute(o)
	case "GRPCRoute":
		c.grpcRoute(o)
	case "TLSRoute":
		c.tlsRoute(o)
	case "BackendTLSPolicy":
		c.backendTLSPolicy(o)
	}
}

// refer completes one object's references to the others.
func (c *converter) refer(o Object) {
	if o.GroupVersionKind().Group != gatewayGroup {
		return
	}
	switch kind := o.GetKind(); kind {
	case "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute":
		c.parentNamespaces(o)
		if kind == "TLSRoute" {
			c.passthrough(o)
		} else if c.HTTPS {
			c.alsoHTTPS(o)
		}
	case "BackendTLSPolicy":
		c.clientCertificate(o)
	}
}

// current is today's version of a kind that has moved; "" of all others.
func current(k schema.GroupVersionKind) string {
	switch {
	case k.Group == gatewayGroup && slices.Contains([]string{"GatewayClass", "Gateway", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy", "ListenerSet"}, k.Kind):
		return gatewayGroup + "/v1"
	case k.Group == gatewayGroup && k.Kind == "ReferenceGrant":
		return gatewayGroup + "/v1beta1" // what every installed version of the API serves
	case k.Kind == "Ingress" && (k.Group == "extensions" || k.Group == "networking.k8s.io"),
		k.Kind == "IngressClass" && k.Group == "networking.k8s.io",
		k.Kind == "NetworkPolicy" && (k.Group == "extensions" || k.Group == "networking.k8s.io"):
		return "networking.k8s.io/v1"
	}
	return ""
}

func (c *converter) gatewayClass(o Object) {
	spec := sub(o.Object, "spec")
	if old, ok := spec["controller"]; ok {
		if _, both := spec["controllerName"]; !both {
			spec["controllerName"] = old
		}
		delete(spec, "controller")
		c.note(o, "spec.controller", "became spec.controllerName")
	}
	if old := text(spec, "controllerName"); c.Controller != "" && spec != nil && old != c.Controller {
		spec["controllerName"] = c.Controller
		c.note(o, "spec.controllerName", "%q became %q, the controller that serves the class here", old, c.Controller)
	}
}

func (c *converter) gateway(o Object) {
	spec := sub(o.Object, "spec")
	for i, l := range ordered(items(spec, "listeners")) {
		at := func(field string) string { return fmt.Sprintf("spec.listeners[%d].%s", i, field) }
		allowed := sub(l, "allowedRoutes")
		if from, ok := allowed["from"]; ok {
			delete(allowed, "from")
			made(allowed, "namespaces")["from"] = from
			c.note(o, at("allowedRoutes.from"), "became allowedRoutes.namespaces.from")
		}
		if from := text(l, "from"); from != "" {
			delete(l, "from")
			made(l, "allowedRoutes", "namespaces")["from"] = from
			c.note(o, at("from"), "became allowedRoutes.namespaces.from")
		}
		tls := sub(l, "tls")
		if ref, ok := tls["certificateRef"]; ok {
			delete(tls, "certificateRef")
			list, _ := tls["certificateRefs"].([]any)
			tls["certificateRefs"] = append(list, ref)
			c.note(o, at("tls.certificateRef"), "became an entry of tls.certificateRefs")
		}
		if name := text(tls, "secretName"); name != "" {
			delete(tls, "secretName")
			tls["certificateRefs"] = []any{tree{"name": name}}
			c.note(o, at("tls.secretName"), "became tls.certificateRefs")
		}
		if text(l, "name") == "" {
			l["name"] = strings.ToLower(text(l, "protocol")) + "-" + strconv.Itoa(i)
			c.note(o, at("name"), "a listener needs a name; it is %q now", l["name"])
		}
	}
}

func (c *converter) httpRoute(o Object) {
	for i, rule := range ordered(items(sub(o.Object, "spec"), "rules")) {
		for j, m := range ordered(items(rule, "matches")) {
			at := fmt.Sprintf("spec.rules[%d].matches[%d].method", i, j)
			if method := sub(m, "method"); method != nil {
				name := strings.ToUpper(text(method, "name"))
				if name == "" {
					c.decide(o, at, "is no method: write it like method: GET")
					continue
				}
				m["method"] = name
				c.note(o, at, "{name: %s} became %s", text(method, "name"), name)
			}
		}
		if old, ok := rule["forwardTo"].([]any); ok {
			delete(rule, "forwardTo")
			for _, to := range old {
				if to, ok := to.(tree); ok && text(to, "serviceName") != "" {
					to["name"] = to["serviceName"]
					delete(to, "serviceName")
				}
			}
			rule["backendRefs"] = old
			c.note(o, fmt.Sprintf("spec.rules[%d].forwardTo", i), "became backendRefs")
		}
	}
}

func (c *converter) grpcRoute(o Object) {
	for i, rule := range ordered(items(sub(o.Object, "spec"), "rules")) {
		for j, m := range ordered(items(rule, "matches")) {
			method := sub(m, "method")
			name, ok := method["name"]
			if !ok {
				continue
			}
			delete(method, "name")
			if _, both := method["method"]; !both {
				method["method"] = name
			}
			c.note(o, fmt.Sprintf("spec.rules[%d].matches[%d].method.name", i, j), "became method.method")
		}
	}
}

// tlsRoute moves the names that rules matched to the route's hostnames: a TLSRoute has no other match.
func (c *converter) tlsRoute(o Object) {
	spec := sub(o.Object, "spec")
	hostnames := texts(spec, "hostnames")
	for i, rule := range ordered(items(spec, "rules")) {
		if _, ok := rule["matches"]; !ok {
			continue
		}
		var names []string
		for _, m := range ordered(items(rule, "matches")) {
			for _, field := range []string{"sniHosts", "snis"} {
				names = append(names, texts(m, field)...)
			}
		}
		delete(rule, "matches")
		at := fmt.Sprintf("spec.rules[%d].matches", i)
		fresh := slices.DeleteFunc(names, func(n string) bool { return slices.Contains(hostnames, n) })
		if len(fresh) == 0 {
			c.note(o, at, "was dropped: spec.hostnames says the same")
		} else {
			hostnames = append(hostnames, fresh...)
			spec["hostnames"] = anys(hostnames)
			c.note(o, at, "became spec.hostnames: %s", strings.Join(fresh, ", "))
		}
	}
	if rules, _ := spec["rules"].([]any); len(rules) > 1 {
		c.decide(o, "spec.rules", "a TLSRoute has one rule: make a TLSRoute for each set of hostnames")
	}
}

// backendTLSPolicy knows v1alpha2 (targetRef, spec.tls with caCertRefs and wellKnownCACerts) and v1alpha3, and a shape
// with a mode and CAs by Secret that no version had.
func (c *converter) backendTLSPolicy(o Object) {
	spec := sub(o.Object, "spec")
	if ref, ok := spec["targetRef"].(tree); ok {
		delete(spec, "targetRef")
		delete(ref, "namespace")
		spec["targetRefs"] = []any{ref}
		c.note(o, "spec.targetRef", "became spec.targetRefs")
	}
	old, ok := spec["tls"].(tree)
	if ok {
		delete(spec, "tls")
	} else {
		old = tree{}
	}
	validation := made(spec, "validation")
	maps.Copy(validation, sub(old, "validation"))
	if host, ok := old["hostname"]; ok {
		validation["hostname"] = host
		c.note(o, "spec.tls.hostname", "became spec.validation.hostname")
	}
	for _, was := range []string{"caCertRefs", "caCertificateRefs"} {
		if refs, ok := old[was]; ok {
			validation["caCertificateRefs"] = refs
			c.note(o, "spec.tls."+was, "became spec.validation.caCertificateRefs")
		}
	}
	for _, was := range []string{"wellKnownCACerts", "wellKnownCACertificates"} {
		if refs, ok := old[was]; ok {
			validation["wellKnownCACertificates"] = refs
			c.note(o, "spec.tls."+was, "became spec.validation.wellKnownCACertificates")
		}
	}
	if cas, ok := validation["caCertificates"].(tree); ok {
		delete(validation, "caCertificates")
		ref := tree{"group": "", "kind": "ConfigMap", "name": firstText(cas, "configMapName", "name")}
		if name := text(cas, "secretName"); name != "" {
			ref["kind"], ref["name"] = "Secret", name
		}
		validation["caCertificateRefs"] = []any{ref}
		c.note(o, "spec.tls.validation.caCertificates", "became spec.validation.caCertificateRefs: %s %s, key ca.crt", ref["kind"], ref["name"])
	}
	switch mode := text(old, "mode"); mode {
	case "":
	case "RequireTLS":
		c.note(o, "spec.tls.mode", "was dropped: the policy itself requires TLS")
	default:
		c.decide(o, "spec.tls.mode", "%s has no counterpart and was dropped: the policy itself requires TLS; without TLS, have no policy", mode)
	}
	if text(validation, "hostname") == "" {
		if first, ok := items(spec, "targetRefs")[0]; ok {
			validation["hostname"] = fmt.Sprintf("%s.%s.svc", text(first, "name"), c.namespace(o))
			c.decide(o, "spec.validation.hostname", "is required: the backends' certificates must be for this name. It is %q now", validation["hostname"])
		}
	}
	if refs, ok := old["certificateRefs"]; ok {
		// For refer, which knows the Gateways.
		spec["certificateRefs"] = refs
	}
}

// clientCertificate moves the certificate that backends get to see to the Gateways whose routes lead to them (GEP-3155).
func (c *converter) clientCertificate(o Object) {
	spec := sub(o.Object, "spec")
	refs, _ := spec["certificateRefs"].([]any)
	if len(refs) == 0 {
		return
	}
	delete(spec, "certificateRefs")
	ref, _ := refs[0].(tree)
	const at = "spec.tls.certificateRefs"
	gateways := c.gatewaysOf(o)
	if len(gateways) == 0 || ref == nil {
		c.decide(o, at, "a Gateway has the certificate that it shows to backends: write spec.tls.backend.clientCertificateRef of the Gateway; "+
			"it was dropped here, since no Gateway of these manifests has a route to the Service")
		return
	}
	for _, g := range gateways {
		ref := maps.Clone(ref)
		if c.namespace(g) != c.namespace(o) {
			ref["namespace"] = c.namespace(o)
			grant := c.secretGrant(g, o, text(ref, "name"))
			c.objects = append(c.objects, grant)
			c.decide(o, at, "%s needs the Secret of namespace %s: %s allows it. Who may use the Gateway shows that certificate to backends of theirs",
				g.name(), c.namespace(o), grant.name())
		}
		made(g.Object, "spec", "tls", "backend")["clientCertificateRef"] = ref
		c.note(o, at, "became spec.tls.backend.clientCertificateRef of %s, for all of its backends", g.name())
	}
}

// secretGrant lets a Gateway refer to a Secret beside another object.
func (c *converter) secretGrant(gateway, beside Object, secret string) Object {
	u := &unstructured.Unstructured{Object: tree{
		"apiVersion": gatewayGroup + "/v1beta1", "kind": "ReferenceGrant",
		"metadata": tree{"name": gateway.GetName() + "-" + secret, "namespace": c.namespace(beside)},
		"spec": tree{
			"from": []any{tree{"group": gatewayGroup, "kind": "Gateway", "namespace": c.namespace(gateway)}},
			"to":   []any{tree{"group": "", "kind": "Secret", "name": secret}},
		},
	}}
	return Object{Unstructured: u}
}

// gatewaysOf are the Gateways with a route to a policy's Services.
func (c *converter) gatewaysOf(policy Object) []Object {
	targets := make(map[string]bool)
	for _, ref := range items(sub(policy.Object, "spec"), "targetRefs") {
		targets[text(ref, "name")] = true
	}
	var out []Object
	for _, route := range c.objects {
		if route.GroupVersionKind().Group != gatewayGroup || !strings.HasSuffix(route.GetKind(), "Route") || c.namespace(route) != c.namespace(policy) {
			continue
		}
		leads := false
		for _, rule := range items(sub(route.Object, "spec"), "rules") {
			for _, b := range items(rule, "backendRefs") {
				leads = leads || targets[text(b, "name")]
			}
		}
		if !leads {
			continue
		}
		for _, parent := range ordered(items(sub(route.Object, "spec"), "parentRefs")) {
			if g, ok := c.parent(route, parent); ok && !slices.ContainsFunc(out, func(o Object) bool { return o.Unstructured == g.Unstructured }) {
				out = append(out, g)
			}
		}
	}
	return out
}

// parent is the Gateway that a parentRef means, if it is among the objects: the one of its namespace, or, where the
// reference has no namespace, the only one of its name.
func (c *converter) parent(route Object, ref tree) (Object, bool) {
	if kind := text(ref, "kind"); kind != "" && kind != "Gateway" {
		return Object{}, false
	}
	ns, explicit := text(ref, "namespace"), text(ref, "namespace") != ""
	if !explicit {
		ns = c.namespace(route)
	}
	var named []Object
	for _, g := range c.objects {
		if g.GetKind() != "Gateway" || g.GroupVersionKind().Group != gatewayGroup || g.GetName() != text(ref, "name") {
			continue
		}
		if c.namespace(g) == ns {
			return g, true
		}
		named = append(named, g)
	}
	if !explicit && len(named) == 1 {
		return named[0], true
	}
	return Object{}, false
}

// parentNamespaces writes the namespace of a Gateway that a parentRef can only mean.
func (c *converter) parentNamespaces(o Object) {
	for i, ref := range ordered(items(sub(o.Object, "spec"), "parentRefs")) {
		g, ok := c.parent(o, ref)
		if ok && text(ref, "namespace") == "" && c.namespace(g) != c.namespace(o) {
			ref["namespace"] = c.namespace(g)
			c.note(o, fmt.Sprintf("spec.parentRefs[%d].namespace", i),
				"is %s now: without it the Gateway is looked for in namespace %q, and there is none of that name", c.namespace(g), c.namespace(o))
		}
	}
}

// passthrough gives the Gateway a listener that hands TLS on as it is, where a TLSRoute is bound to one that ends TLS
// by itself: that one accepts no TLSRoutes. Both share the port, told apart by hostname.
func (c *converter) passthrough(o Object) {
	spec := sub(o.Object, "spec")
	for i, ref := range ordered(items(spec, "parentRefs")) {
		g, ok := c.parent(o, ref)
		if !ok {
			continue
		}
		gspec := sub(g.Object, "spec")
		for _, l := range ordered(items(gspec, "listeners")) {
			if text(l, "name") != text(ref, "sectionName") || text(l, "protocol") != "HTTPS" {
				continue
			}
			hostnames := texts(spec, "hostnames")
			if len(hostnames) == 0 {
				c.decide(o, "spec.hostnames", "are needed: the route shares port %v with HTTPS, by hostname", l["port"])
				continue
			}
			added := make([]any, 0, len(hostnames))
			for j, host := range hostnames {
				name := fmt.Sprintf("tls-%s", o.GetName())
				if j > 0 {
					name += "-" + strconv.Itoa(j)
				}
				more := tree{"name": name, "protocol": "TLS", "port": l["port"], "hostname": host, "tls": tree{"mode": "Passthrough"}}
				if allowed, ok := l["allowedRoutes"].(tree); ok {
					more["allowedRoutes"] = maps.Clone(allowed)
				}
				list, _ := gspec["listeners"].([]any)
				gspec["listeners"] = append(list, more)
				parent := maps.Clone(ref)
				parent["sectionName"] = name
				added = append(added, parent)
				c.note(g, "spec.listeners", "%s was added, TLS passthrough for %s on port %v: the HTTPS listener %s ends TLS itself and takes no TLSRoutes",
					name, host, l["port"], text(l, "name"))
			}
			refs, _ := spec["parentRefs"].([]any)
			spec["parentRefs"] = slices.Replace(refs, i, i+1, added...)
			c.note(o, fmt.Sprintf("spec.parentRefs[%d].sectionName", i), "%s became %s", text(l, "name"), text(added[0].(tree), "sectionName"))
			return // the indexes have moved; one reference to a Gateway's listener is all there is in such manifests
		}
	}
}

// alsoHTTPS binds a route of an HTTP listener to the Gateway's HTTPS listeners.
func (c *converter) alsoHTTPS(o Object) {
	spec := sub(o.Object, "spec")
	for i, ref := range ordered(items(spec, "parentRefs")) {
		g, ok := c.parent(o, ref)
		if !ok || text(ref, "sectionName") == "" {
			continue
		}
		listeners := items(sub(g.Object, "spec"), "listeners")
		plain := false
		for _, l := range listeners {
			plain = plain || text(l, "name") == text(ref, "sectionName") && text(l, "protocol") == "HTTP"
		}
		if !plain {
			continue
		}
		for _, l := range ordered(listeners) {
			if text(l, "protocol") != "HTTPS" {
				continue
			}
			more := maps.Clone(ref)
			more["sectionName"] = l["name"]
			refs, _ := spec["parentRefs"].([]any)
			spec["parentRefs"] = append(refs, more)
			c.note(o, fmt.Sprintf("spec.parentRefs[%d]", i), "the route is bound to the HTTPS listener %s too", text(l, "name"))
		}
	}
}

// ingress turns the shapes of extensions/v1beta1 and networking.k8s.io/v1beta1 into those of v1.
func (c *converter) ingress(o Object) {
	spec := sub(o.Object, "spec")
	if b, ok := spec["backend"].(tree); ok {
		delete(spec, "backend")
		spec["defaultBackend"] = b
		c.note(o, "spec.backend", "became spec.defaultBackend")
	}
	c.ingressBackend(o, "spec.defaultBackend", sub(spec, "defaultBackend"))
	for i, rule := range ordered(items(spec, "rules")) {
		for j, p := range ordered(items(sub(rule, "http"), "paths")) {
			at := fmt.Sprintf("spec.rules[%d].http.paths[%d]", i, j)
			c.ingressBackend(o, at+".backend", sub(p, "backend"))
			if text(p, "pathType") == "" {
				p["pathType"] = "ImplementationSpecific"
				c.note(o, at+".pathType", "is required; it is ImplementationSpecific now, as it was by default")
			}
		}
	}
}

func (c *converter) ingressBackend(o Object, at string, b tree) {
	name := text(b, "serviceName")
	if name == "" {
		return
	}
	port := tree{}
	switch p := b["servicePort"].(type) {
	case string:
		if n, err := strconv.ParseInt(p, 10, 64); err == nil {
			port["number"] = n
		} else {
			port["name"] = p
		}
	case nil:
	default:
		port["number"] = p
	}
	delete(b, "serviceName")
	delete(b, "servicePort")
	b["service"] = tree{"name": name, "port": port}
	c.note(o, at+".serviceName", "became service.name, servicePort service.port")
}

func firstText(t tree, fields ...string) string {
	for _, f := range fields {
		if s := text(t, f); s != "" {
			return s
		}
	}
	return ""
}

// ordered walks a list's objects in order.
func ordered(m map[int]tree) func(yield func(int, tree) bool) {
	return func(yield func(int, tree) bool) {
		for _, i := range slices.Sorted(maps.Keys(m)) {
			if !yield(i, m[i]) {
				return
			}
		}
	}
}
