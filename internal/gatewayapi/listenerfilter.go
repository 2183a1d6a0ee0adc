// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"encoding/json"
	"fmt"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/route"
)

// Reasons of listeners' conditions of release 1.7 (GEP-5224).
const (
	reasonInvalidFilter    gwv1.ListenerConditionReason = "InvalidListenerFilter"
	reasonInvalidFilterRef gwv1.ListenerConditionReason = "InvalidListenerFilterRef"
)

// listenerFilter is one of a listener's filters.requests, which the API's Go types do not have: release 1.7's.
type listenerFilter struct {
	Type         string                     `json:"type"`
	ExternalAuth *laterExternalAuth         `json:"externalAuth"`
	ExtensionRef *gwv1.LocalObjectReference `json:"extensionRef"`
}

// laterExternalAuth has that release's wider forwardBody.
type laterExternalAuth struct {
	gwv1.HTTPExternalAuthFilter
	ForwardBody struct {
		MaxSize int `json:"maxSize"`
	} `json:"forwardBody"`
}

// readFilters makes of x, the listener's fields that its type does not have, what its requests pass before they are routed,
// in the order written. One that can't be done as written refuses the listener. One whose reference can't be followed stays
// where it is, and has all requests fail that come to it.
func (s *State) readFilters(g *gateway, l *listener, x extra) {
	var in struct {
		Requests []json.RawMessage `json:"requests"`
	}
	if l.protocol == "" || !x.take("filters", &in) || len(in.Requests) == 0 {
		return
	}
	if l.protocol != route.HTTP && l.protocol != route.HTTPS {
		l.refuse(reasonInvalidFilter, fmt.Sprintf("filters: a listener of protocol %s has no requests to filter: remove them, or use HTTP or HTTPS", l.protocol))
		return
	}
	c := &content{from: from{l.parent.kind, l.parent.Name}}
	for i, raw := range in.Requests {
		at := fmt.Sprintf("filters.requests[%d]: ", i)
		var f listenerFilter
		err := strictly(raw, &f)
		switch {
		case err != nil:
			l.refuse(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf("%s%s, which weft does not know: remove it", at, strings.TrimPrefix(err.Error(), "json: ")))
		case f.Type == "ExternalAuth" && f.ExternalAuth != nil && f.ExtensionRef == nil:
			s.askBefore(l, c, at, f.ExternalAuth)
		case f.Type == "ExtensionRef" && f.ExtensionRef != nil && f.ExternalAuth == nil:
			why := fmt.Sprintf("%sextensionRef refers to kind %s of group %q, which is not a filter that weft knows: remove it", at, f.ExtensionRef.Kind, f.ExtensionRef.Group)
			l.unresolved(no(reasonInvalidFilterRef, why))
			l.refuse(gwv1.ListenerReasonUnsupportedValue, why)
		case f.Type == "ExternalAuth" || f.Type == "ExtensionRef":
			l.refuse(reasonInvalidFilter, fmt.Sprintf("%sthe type is %s, so the field of that name must be there, and no other", at, f.Type))
		default:
			l.refuse(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf("%stype %q is not supported: ExternalAuth is", at, f.Type))
		}
	}
	l.asked = c.backends
	for _, svc := range c.services {
		g.services.add(svc)
	}
	for _, ns := range c.foreign {
		g.foreign.add(ns)
	}
}

// askBefore adds the filter that asks an authority.
func (s *State) askBefore(l *listener, c *content, at string, f *laterExternalAuth) {
	a, refusal, problem := s.externalAuth(c, &f.HTTPExternalAuthFilter, f.ForwardBody.MaxSize)
	if refusal != "" {
		l.refuse(gwv1.ListenerReasonUnsupportedValue, at+refusal)
		return
	}
	l.filters = append(l.filters, route.Filter{ExternalAuth: a})
	if problem != nil {
		l.unanswerable(at + problem.message)
		l.unresolved(filterProblem(at, problem))
	}
}

// filterProblem is what a listener's ResolvedRefs says of a reference of its filters.
func filterProblem(at string, problem *verdict) verdict {
	if problem.reason == string(gwv1.RouteReasonRefNotPermitted) {
		return no(gwv1.ListenerReasonRefNotPermitted, at+problem.message)
	}
	return no(reasonInvalidFilterRef, at+problem.message)
}

// unanswerable notes why every request of the listener fails, though it is served.
func (l *listener) unanswerable(why string) {
	if l.failing == "" {
		l.failing = why
	}
}

// refuse notes why the listener can't be served as it is written; the first reason counts.
func (l *listener) refuse(reason gwv1.ListenerConditionReason, why string) {
	if l.refusal == nil {
		v := no(reason, why)
		l.refusal = &v
	}
}

// exchangeAsked makes the tables have the backends that listeners' filters ask now, in place of those before.
func (s *State) exchangeAsked(w *work, g *gateway) {
	now := set[backendID]{}
	for _, l := range g.listeners {
		if !l.served || l.refusal != nil {
			continue
		}
		for _, id := range l.asked {
			now.add(id)
		}
	}
	for id := range now {
		if !g.asked.has(id) {
			s.need(w, g, id)
		}
	}
	for id := range g.asked {
		if !now.has(id) {
			s.release(w, g, id)
		}
	}
	g.asked = now
}

// resolvedRefs is the listener's condition: what its references are by themselves, and which policies of the backends that
// its filters ask are not in force here.
func (s *State) resolvedRefs(g *gateway, l *listener) verdict {
	if !l.resolved.ok {
		return l.resolved
	}
	for _, id := range l.asked {
		if v := s.excludes(g.name, id); v != nil {
			return filterProblem("filters: externalAuth: ", v)
		}
	}
	return l.resolved
}
