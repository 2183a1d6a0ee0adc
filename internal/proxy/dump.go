// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weft-net/weft/internal/route"
)

// hiddenValue stands for what a dump does not tell.
const hiddenValue = "(hidden)"

// Config is the tables that are served, ordered by key, as an update that would bring another gateway to the same.
// What is secret is left out: private keys, passwords' hashes, the values of headers for authorities.
func (s *Server) Config() *route.Update {
	t := s.tables
	t.mu.Lock()
	defer t.mu.Unlock()
	u := &route.Update{Revision: t.revision, Complete: true}
	for _, key := range slices.Sorted(maps.Keys(t.listeners)) {
		l := t.listeners[key].conf
		l.Filters = redactedFilters(l.Filters)
		u.Listeners = append(u.Listeners, l)
	}
	for _, key := range slices.Sorted(maps.Keys(t.routes)) {
		u.Routes = append(u.Routes, redactedRoute(*t.routes[key].conf))
	}
	for _, key := range slices.Sorted(maps.Keys(t.backends)) {
		if b := t.backends[key].Load(); b != nil {
			u.Backends = append(u.Backends, b.conf)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(t.sets)) {
		u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: key, Endpoints: t.sets[key]})
	}
	for _, key := range slices.Sorted(maps.Keys(t.certs)) {
		c := t.certs[key]
		c.PrivateKey = hiddenValue
		u.Certificates = append(u.Certificates, c)
	}
	for key, cell := range t.policies {
		if p := cell.Load(); p != nil {
			u.Policies = append(u.Policies, redacted(key, p))
		}
	}
	slices.SortFunc(u.Policies, func(a, b route.Policy) int { return cmp.Compare(a.Key, b.Key) })
	return u
}

func redacted(key string, p *policy) route.Policy {
	c := p.conf
	c.Key, c.Invalid = key, p.invalid
	if c.BasicAuth != nil {
		b := *c.BasicAuth
		b.Users = ""
		if p.basic != nil {
			for _, user := range slices.Sorted(maps.Keys(p.basic.users)) {
				b.Users += user + ":" + hiddenValue + "\n"
			}
		}
		c.BasicAuth = &b
	}
	c.ExternalAuth = redactedAuth(c.ExternalAuth)
	return c
}

func redactedAuth(c *route.ExternalAuth) *route.ExternalAuth {
	if c == nil || len(c.RequestHeaders) == 0 {
		return c
	}
	a := *c
	a.RequestHeaders = slices.Clone(a.RequestHeaders)
	for i := range a.RequestHeaders {
		a.RequestHeaders[i].Value = hiddenValue
	}
	return &a
}

func redactedFilters(in []route.Filter) []route.Filter {
	out := slices.Clone(in)
	for i := range out {
		out[i].ExternalAuth = redactedAuth(out[i].ExternalAuth)
	}
	return out
}

// redactedRoute leaves out what is secret of the filters of its backends, the only ones of a route that have something.
func redactedRoute(r route.Route) route.Route {
	r.Rules = slices.Clone(r.Rules)
	for i := range r.Rules {
		rule := &r.Rules[i]
		rule.Backends = slices.Clone(rule.Backends)
		for j := range rule.Backends {
			rule.Backends[j].Filters = redactedFilters(rule.Backends[j].Filters)
		}
	}
	return r
}
