// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/internal/model"
)

// The parts of the Gateway API's objects that are looked at. Its own types are not used: objects of every version, of
// either channel, are read alike.
type (
	gatewaySpec struct {
		GatewayClassName string
		Listeners        []listener
	}
	listener struct {
		Name, Protocol, Hostname string
		Port                     int32
		TLS                      *struct {
			CertificateRefs []ref
		}
		AllowedRoutes *struct {
			Namespaces *struct {
				From     string
				Selector *metav1.LabelSelector
			}
		}
	}
	ref struct {
		Group, Kind, Namespace, Name, SectionName string
		Port                                      *int32
		Weight                                    *int32
	}
	routeSpec struct {
		ParentRefs []ref
		Hostnames  []string
		Rules      []struct {
			Matches     []json.RawMessage
			BackendRefs []ref
			Filters     []struct{ Type string }
		}
	}
	grantSpec struct {
		From []struct{ Group, Kind, Namespace string }
		To   []struct{ Group, Kind, Name string }
	}
)

const gatewayGroup = "gateway.networking.k8s.io"

// spec reads an object's spec into one of the types above.
func spec[T any](o *object) (out T, ok bool) {
	b, err := json.Marshal(o.Object)
	if err != nil {
		return out, false
	}
	var whole struct{ Spec T }
	err = json.Unmarshal(b, &whole)
	return whole.Spec, err == nil
}

func (c *checker) gateways() {
	for i := range c.objects["Gateway"] {
		o := &c.objects["Gateway"][i]
		g, ok := spec[gatewaySpec](o)
		if !ok || o.Object.GetObjectKind().GroupVersionKind().Group != gatewayGroup {
			continue
		}
		switch {
		case g.GatewayClassName == "":
			c.report("gateway-class", o, "set spec.gatewayClassName", "spec.gatewayClassName is not set")
		case c.find("GatewayClass", model.Name{Name: g.GatewayClassName}) == nil && c.Whole:
			c.report("gateway-class", o, "name a GatewayClass that exists (kubectl get gatewayclass)", "there is no GatewayClass %s", g.GatewayClassName)
		}
		for j, l := range g.Listeners {
			if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && l.AllowedRoutes.Namespaces.From == "All" {
				c.report("gateway-open", o, "take them from: Selector, with the labels of the namespaces that should be able to, or from: Same",
					"spec.listeners[%d] (%s): allowedRoutes.namespaces.from is All", j, l.Name)
			}
			if l.TLS == nil {
				continue
			}
			for k, r := range l.TLS.CertificateRefs {
				if r.Kind != "" && r.Kind != "Secret" {
					continue
				}
				field := fmt.Sprintf("spec.listeners[%d].tls.certificateRefs[%d]", j, k)
				n := model.Name{Namespace: cmp.Or(r.Namespace, o.name.Namespace), Name: r.Name}
				if n.Namespace != o.name.Namespace && !c.granted("Gateway", o.name.Namespace, "", "Secret", n) {
					c.report("gateway-tls-namespace", o, "keep the Secret in the Gateway's namespace, or add a ReferenceGrant in "+n.Namespace, "%s: Secret %s is in another namespace, and no ReferenceGrant there allows it", field, n)
					continue
				}
				var hosts []string
				if l.Hostname != "" {
					hosts = []string{l.Hostname}
				}
				c.certificate(o, field, n, hosts)
			}
		}
	}
}

// granted tells whether a ReferenceGrant lets a kind of a namespace refer to an object of another.
func (c *checker) granted(kind, from, group, toKind string, to model.Name) bool {
	for i := range c.objects["ReferenceGrant"] {
		o := &c.objects["ReferenceGrant"][i]
		g, ok := spec[grantSpec](o)
		if !ok || o.name.Namespace != to.Namespace {
			continue
		}
		for _, f := range g.From {
			for _, t := range g.To {
				if f.Group == gatewayGroup && f.Kind == kind && f.Namespace == from && t.Group == group && t.Kind == toKind && (t.Name == "" || t.Name == to.Name) {
					return true
				}
			}
		}
	}
	return !c.Whole && len(c.objects["ReferenceGrant"]) == 0
}

func (c *checker) routes() {
	for _, kind := range []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"} {
		for i := range c.objects[kind] {
			o := &c.objects[kind][i]
			if r, ok := spec[routeSpec](o); ok && o.Object.GetObjectKind().GroupVersionKind().Group == gatewayGroup {
				c.route(o, &r)
			}
		}
	}
}

func (c *checker) route(o *object, r *routeSpec) {
	if len(r.ParentRefs) == 0 {
		c.report("route-parent", o, "name a Gateway in spec.parentRefs", "spec.parentRefs is empty")
	}
	for j, p := range r.ParentRefs {
		if p.Kind == "" || p.Kind == "Gateway" {
			c.parent(o, r, fmt.Sprintf("spec.parentRefs[%d]", j), &p)
		}
	}
	seen := map[string]int{}
	for j, rule := range r.Rules {
		total, weighted := int32(0), len(rule.BackendRefs) > 0
		for k, b := range rule.BackendRefs {
			c.backend(o, fmt.Sprintf("spec.rules[%d].backendRefs[%d]", j, k), &b)
			if b.Weight == nil {
				total++
			} else {
				total += *b.Weight
			}
		}
		if weighted && total == 0 {
			c.report("route-weight", o, "give a backend a weight above 0, or remove the rule", "spec.rules[%d]: every backend has weight 0", j)
		}
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []json.RawMessage{[]byte("{}")}
		}
		for k, m := range matches {
			var v any
			if json.Unmarshal(m, &v) != nil {
				continue
			}
			key, _ := json.Marshal(v) // keys in order
			if first, ok := seen[string(key)]; ok && first != j {
				c.report("route-shadowed", o, "remove one of the two, or split traffic by weight in one rule", "spec.rules[%d].matches[%d] is the same as one of rules[%d]", j, k, first)
			} else {
				seen[string(key)] = j
			}
		}
	}
}

func (c *checker) parent(o *object, r *routeSpec, field string, p *ref) {
	n := model.Name{Namespace: cmp.Or(p.Namespace, o.name.Namespace), Name: p.Name}
	g := c.find("Gateway", n)
	if g == nil {
		if c.Whole || len(c.objects["Gateway"]) > 0 {
			c.report("route-parent", o, "name a Gateway that exists, with its namespace if it is in another", "%s: there is no Gateway %s", field, n)
		}
		return
	}
	gs, ok := spec[gatewaySpec](g)
	if !ok {
		return
	}
	var admitting []listener
	named := false
	for _, l := range gs.Listeners {
		if p.SectionName != "" && l.Name != p.SectionName || p.Port != nil && l.Port != *p.Port {
			continue
		}
		named = true
		if c.admits(&l, g.name.Namespace, o.name.Namespace) {
			admitting = append(admitting, l)
		}
	}
	switch {
	case !named:
		c.report("route-parent", o, "name one of the Gateway's listeners, or leave sectionName out", "%s: Gateway %s has no listener %q", field, n, p.SectionName)
	case len(admitting) == 0:
		c.report("route-parent", o, "widen the listener's allowedRoutes.namespaces (its default is Same)", "%s: no listener of Gateway %s admits routes from namespace %s", field, n, o.name.Namespace)
	case len(r.Hostnames) > 0 && !slices.ContainsFunc(admitting, func(l listener) bool {
		return l.Hostname == "" || slices.ContainsFunc(r.Hostnames, func(h string) bool { return hostsMeet(l.Hostname, h) })
	}):
		c.report("route-hostname", o, "use a hostname that a listener serves", "%s: no listener of Gateway %s serves %s", field, n, strings.Join(r.Hostnames, ", "))
	}
}

func (c *checker) admits(l *listener, gateway, route string) bool {
	if l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil {
		return gateway == route
	}
	switch ns := l.AllowedRoutes.Namespaces; ns.From {
	case "All":
		return true
	case "Selector":
		sel, err := metav1.LabelSelectorAsSelector(ns.Selector)
		return err == nil && sel.Matches(labelSet(c.labelsOf(route)))
	case "None":
		return false
	}
	return gateway == route
}

// labelSet makes labels of a map, for apimachinery's selectors.
type labelSet map[string]string

// Has implements labels.Labels.
func (l labelSet) Has(k string) bool { _, ok := l[k]; return ok }

// Get implements labels.Labels.
func (l labelSet) Get(k string) string { return l[k] }

// Lookup implements labels.Labels.
func (l labelSet) Lookup(k string) (string, bool) { v, ok := l[k]; return v, ok }

// hostsMeet tells whether some host matches both hostnames, either of which may begin with "*.".
func hostsMeet(a, b string) bool {
	wa, wb := strings.HasPrefix(a, "*."), strings.HasPrefix(b, "*.")
	switch {
	case wa && wb:
		return strings.HasSuffix(a[1:], b[1:]) || strings.HasSuffix(b[1:], a[1:])
	case wa:
		return strings.HasSuffix(b, a[1:])
	case wb:
		return strings.HasSuffix(a, b[1:])
	}
	return a == b
}

func (c *checker) backend(o *object, field string, b *ref) {
	if b.Kind != "" && b.Kind != "Service" || b.Group != "" {
		return
	}
	n := model.Name{Namespace: cmp.Or(b.Namespace, o.name.Namespace), Name: b.Name}
	s := c.d.Services[n]
	switch {
	case s == nil && (c.Whole || len(c.d.Services) > 0):
		c.report("route-backend", o, "name a Service that exists", "%s: there is no Service %s", field, n)
	case s != nil && b.Port == nil:
		c.report("route-backend", o, "give the Service's port", "%s: port is not set", field)
	case s != nil && !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return int32(p.Port) == *b.Port }):
		c.report("route-backend", o, "give a port of the Service (its port, not its targetPort)", "%s: Service %s has no port %d", field, n, *b.Port)
	}
	if (o.kind == "HTTPRoute" || o.kind == "GRPCRoute") && s != nil && b.Port != nil {
		c.backendTLS(o, field, s, uint16(*b.Port))
	}
	if n.Namespace != o.name.Namespace && !c.granted(o.kind, o.name.Namespace, "", "Service", n) {
		c.report("route-reference", o, "add a ReferenceGrant in "+n.Namespace, "%s: Service %s is in another namespace, and no ReferenceGrant there allows it", field, n)
	}
}

// backendTLS looks for a backend that by its port speaks TLS, while the gateway would not.
func (c *checker) backendTLS(o *object, field string, s *model.Service, port uint16) {
	i := slices.IndexFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == port })
	if i < 0 {
		return
	}
	p := s.Ports[i]
	if p.AppProtocol != "https" && p.AppProtocol != "kubernetes.io/wss" && (p.AppProtocol != "" || p.Port != 443 && p.Name != "https") {
		return
	}
	for j := range c.objects["BackendTLSPolicy"] {
		policy := &c.objects["BackendTLSPolicy"][j]
		spec, ok := spec[struct{ TargetRefs []ref }](policy)
		if ok && policy.name.Namespace == s.Namespace && slices.ContainsFunc(spec.TargetRefs, func(r ref) bool {
			return r.Kind == "Service" && r.Name == s.Name.Name && (r.SectionName == "" || r.SectionName == p.Name)
		}) {
			return
		}
	}
	c.report("route-backend-tls", o, "add a BackendTLSPolicy for the Service, or name its plain port", "%s: port %d of Service %s is for TLS by its number, name or appProtocol", field, port, s.Name)
}
