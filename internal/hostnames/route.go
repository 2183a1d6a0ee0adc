// SPDX-License-Identifier: Apache-2.0

package hostnames

import (
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// route is what the kinds of routes with hostnames have in common.
type route struct {
	created     int64
	annotations map[string]string
	hostnames   []gatewayv1.Hostname
	parents     []gatewayv1.RouteParentStatus
	protocols   []gatewayv1.ProtocolType // of listeners that it can attach to
}

var (
	protocolsHTTP = []gatewayv1.ProtocolType{gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType}
	protocolsTLS  = []gatewayv1.ProtocolType{gatewayv1.TLSProtocolType}
)

func newRoute(o any) *route {
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		return &route{o.CreationTimestamp.Unix(), o.Annotations, o.Spec.Hostnames, o.Status.Parents, protocolsHTTP}
	case *gatewayv1.GRPCRoute:
		return &route{o.CreationTimestamp.Unix(), o.Annotations, o.Spec.Hostnames, o.Status.Parents, protocolsHTTP}
	case *gatewayv1.TLSRoute:
		return &route{o.CreationTimestamp.Unix(), o.Annotations, o.Spec.Hostnames, o.Status.Parents, protocolsTLS}
	}
	return &route{}
}

// attachment is a parent that has accepted a route.
type attachment struct{ *gatewayv1.ParentReference }

func (a attachment) parent(namespace string) key {
	return key{Kind: string(deref(a.Kind, "Gateway")), Namespace: string(deref(a.Namespace, gatewayv1.Namespace(namespace))), Name: string(a.Name)}
}

// accepted are the Gateways and ListenerSets, or single listeners of theirs, that have accepted a route.
func (r *route) accepted() (out []attachment) {
	for i := range r.parents {
		p := &r.parents[i]
		if deref(p.ParentRef.Group, gatewayv1.GroupName) != gatewayv1.GroupName {
			continue
		}
		for _, c := range p.Conditions {
			if c.Type == string(gatewayv1.RouteConditionAccepted) && c.Status == "True" {
				out = append(out, attachment{&p.ParentRef})
				break
			}
		}
	}
	return out
}

// listener is what a route's attachment depends on.
type listener struct {
	name     gatewayv1.SectionName
	port     gatewayv1.PortNumber
	protocol gatewayv1.ProtocolType
	hostname string
	allowed  *gatewayv1.AllowedRoutes
}

// listeners are those of a parent, and the Gateway whose addresses they have.
func (t *Table) listeners(parent key) (out []listener, gw *gatewayv1.Gateway) {
	switch parent.Kind {
	case "Gateway":
		if gw = t.gateways[parent]; gw == nil {
			return nil, nil
		}
		for i := range gw.Spec.Listeners {
			l := &gw.Spec.Listeners[i]
			out = append(out, listener{l.Name, l.Port, l.Protocol, string(deref(l.Hostname, "")), l.AllowedRoutes})
		}
	case "ListenerSet":
		s := t.sets[parent]
		if s == nil {
			return nil, nil
		}
		gw = t.gateways[gatewayOf(s)]
		for i := range s.Spec.Listeners {
			l := &s.Spec.Listeners[i]
			out = append(out, listener{l.Name, l.Port, l.Protocol, string(deref(l.Hostname, "")), l.AllowedRoutes})
		}
	}
	return out, gw
}

// fromRoute reads a route: one declaration for each Gateway.
func (t *Table) fromRoute(k key, r *route) (out []dnszone.Declaration) {
	at := make(map[*gatewayv1.Gateway]int)
	for _, a := range r.accepted() {
		parent := a.parent(k.Namespace)
		ls, gw := t.listeners(parent)
		if gw == nil {
			continue
		}
		i, ok := at[gw]
		if !ok {
			i = len(out)
			at[gw] = i
			d := declaration(k, r.created, r.annotations)
			d.Object += " at Gateway " + model.Name{Namespace: gw.Namespace, Name: gw.Name}.String()
			toGateway(&d, gw)
			out = append(out, d)
		}
		for _, l := range ls {
			if a.SectionName != nil && *a.SectionName != l.name || a.Port != nil && *a.Port != l.port ||
				!slices.Contains(r.protocols, l.protocol) || !t.admits(&l, k.Namespace, parent.Namespace) {
				continue
			}
			out[i].Hostnames = append(out[i].Hostnames, common(r.hostnames, l.hostname)...)
		}
		out[i].Hostnames = compact(out[i].Hostnames)
	}
	return out
}

// admits tells whether a listener lets in routes of a namespace.
func (t *Table) admits(l *listener, route, own string) bool {
	from, sel := gatewayv1.NamespacesFromSame, model.Selector(nil)
	if l.allowed != nil && l.allowed.Namespaces != nil {
		n := l.allowed.Namespaces
		from = deref(n.From, from)
		if from == gatewayv1.NamespacesFromSelector {
			if n.Selector == nil {
				return false
			}
			sel = model.MatchLabels(n.Selector.MatchLabels)
			for _, e := range n.Selector.MatchExpressions {
				op, ok := operators[string(e.Operator)]
				if listed := op == model.In || op == model.NotIn; !ok || listed != (len(e.Values) > 0) {
					return false // what can't be read selects nothing
				}
				sel = append(sel, model.Requirement{Key: e.Key, Op: op, Values: e.Values})
			}
		}
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return route == own
	case gatewayv1.NamespacesFromSelector:
		labels, ok := t.namespaces[route]
		return ok && sel.Matches(labels)
	}
	return false
}

var operators = map[string]model.SelectorOp{"In": model.In, "NotIn": model.NotIn, "Exists": model.Exists, "DoesNotExist": model.DoesNotExist}

// common are the names that a route and a listener both serve. Without any of its own, each serves all of the other's.
func common(hostnames []gatewayv1.Hostname, listener string) (out []string) {
	listener = strings.ToLower(listener)
	if len(hostnames) == 0 && listener != "" {
		return []string{listener}
	}
	for _, h := range hostnames {
		name := strings.ToLower(string(h))
		switch {
		case listener == "" || covers(listener, name):
			out = append(out, name)
		case covers(name, listener):
			out = append(out, listener)
		}
	}
	return out
}

// covers tells whether a name, or a wildcard for any number of labels, is or matches another.
func covers(pattern, name string) bool {
	suffix, wild := strings.CutPrefix(pattern, "*")
	return pattern == name || wild && strings.HasSuffix(name, suffix) && len(name) > len(suffix)
}
