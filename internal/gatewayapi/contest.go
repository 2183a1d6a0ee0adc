// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/route"
)

// contest is the HTTPRoutes and GRPCRoutes that want one listener. Where their hostnames meet, the API has exactly one
// of two routes of different kinds accepted: the older one, then the first by name.
type contest struct {
	hosts map[RouteID][]string
	count map[route.RouteKind]int
	lost  map[RouteID]RouteID // who lost, and to whom
	// byHost finds routes by hostname; nil while all are of one kind, which is nearly always.
	byHost map[route.RouteKind]*routesByHost
	// seeds are routes of which something changed: they and those that they reach are to be decided anew.
	seeds set[RouteID]
}

func otherKind(k route.RouteKind) route.RouteKind {
	if k == route.HTTPRoute {
		return route.GRPCRoute
	}
	return route.HTTPRoute
}

// enter notes what a route wants of its listeners, and which contests became different.
func (s *State) enter(w *work, r *routeState, before map[listenerID][]string) {
	if r.id.Kind != route.HTTPRoute && r.id.Kind != route.GRPCRoute {
		return
	}
	for id := range before {
		if _, still := r.hosts[id]; !still {
			s.leave(w, r.id, id)
		}
	}
	for id, hosts := range r.hosts {
		c := s.contests[id]
		if c == nil {
			c = &contest{hosts: map[RouteID][]string{}, count: map[route.RouteKind]int{}, lost: map[RouteID]RouteID{}, seeds: set[RouteID]{}}
			s.contests[id] = c
		}
		old, was := c.hosts[r.id]
		if was && slices.Equal(old, hosts) && !w.aged.has(r.id) {
			continue
		}
		if was {
			c.remove(r.id)
		}
		c.add(r.id, hosts)
		w.contests.add(id)
	}
}

func (s *State) leave(w *work, r RouteID, id listenerID) {
	c := s.contests[id]
	if c == nil {
		return
	}
	if _, was := c.hosts[r]; !was {
		return
	}
	c.remove(r)
	delete(c.lost, r)
	if len(c.hosts) == 0 {
		delete(s.contests, id)
	}
	w.contests.add(id)
}

func (c *contest) add(r RouteID, hosts []string) {
	c.hosts[r] = hosts
	c.count[r.Kind]++
	c.seeds.add(r)
	if c.byHost != nil {
		c.byHost[r.Kind].add(r, hosts)
		return
	}
	if len(c.count) == 2 { // from now on there are two kinds: everybody may meet somebody
		c.byHost = map[route.RouteKind]*routesByHost{route.HTTPRoute: newRoutesByHost(), route.GRPCRoute: newRoutesByHost()}
		for id, h := range c.hosts {
			c.byHost[id.Kind].add(id, h)
			c.seeds.add(id)
		}
	}
}

func (c *contest) remove(r RouteID) {
	hosts := c.hosts[r]
	delete(c.hosts, r)
	delete(c.seeds, r)
	if c.count[r.Kind]--; c.count[r.Kind] == 0 {
		delete(c.count, r.Kind)
	}
	if c.byHost == nil {
		return
	}
	c.byHost[r.Kind].remove(r, hosts)
	c.byHost[otherKind(r.Kind)].meeting(hosts, c.seeds.add)
	if len(c.count) < 2 {
		c.byHost = nil
		for id := range c.lost {
			c.seeds.add(id)
		}
	}
}

// concerned are the seeds and everybody that they reach from one route to another that it meets. What becomes of them
// depends on nobody else.
func (c *contest) concerned() set[RouteID] {
	out := set[RouteID]{}
	var open []RouteID
	reach := func(r RouteID) {
		if _, is := c.hosts[r]; is && !out.has(r) {
			out.add(r)
			open = append(open, r)
		}
	}
	for r := range c.seeds {
		reach(r)
	}
	for c.byHost != nil && len(open) > 0 {
		r := open[len(open)-1]
		open = open[:len(open)-1]
		c.byHost[otherKind(r.Kind)].meeting(c.hosts[r], reach)
	}
	return out
}

// decide finds who loses the contest for a listener; routes for which that changed are attached anew.
func (s *State) decide(w *work, id listenerID) {
	c := s.contests[id]
	if c == nil {
		return
	}
	if c.byHost == nil && len(c.lost) == 0 {
		clear(c.seeds)
		return
	}
	concerned := c.concerned()
	clear(c.seeds)
	order := slices.SortedFunc(maps.Keys(concerned), func(a, b RouteID) int {
		return cmp.Or(s.routes[a].meta.CreationTimestamp.Time.Compare(s.routes[b].meta.CreationTimestamp.Time),
			strings.Compare(s.routes[a].name, s.routes[b].name), cmp.Compare(a.Kind, b.Kind))
	})
	taken := map[route.RouteKind]*hostSet{route.HTTPRoute: newHostSet(), route.GRPCRoute: newHostSet()}
	lost := map[RouteID]RouteID{}
	for i, r := range order {
		if host, meets := meeting(taken[otherKind(r.Kind)], c.hosts[r]); meets {
			for _, o := range order[:i] { // the first that has the host
				if _, isLost := lost[o]; !isLost && o.Kind != r.Kind && overlaps(c.hosts[o], host) {
					lost[r] = o
					break
				}
			}
			continue
		}
		for _, h := range c.hosts[r] {
			taken[r.Kind].add(h)
		}
	}
	for r := range concerned {
		to, loses := lost[r]
		before, lostBefore := c.lost[r]
		if loses {
			c.lost[r] = to
		} else {
			delete(c.lost, r)
		}
		if loses != lostBefore || to != before {
			w.attach.add(r)
		}
	}
}

func meeting(taken *hostSet, hosts []string) (string, bool) {
	for _, h := range hosts {
		if taken.meets(h) {
			return h, true
		}
	}
	return "", false
}

func overlaps(hosts []string, host string) bool {
	return slices.ContainsFunc(hosts, func(h string) bool { _, ok := intersectHostname(h, host); return ok })
}

// routesByHost finds the routes that have a host in common with a hostname.
type routesByHost struct {
	all   set[RouteID]
	any   set[RouteID]            // with hostname ""
	exact map[string]set[RouteID] // by hostname
	wild  map[string]set[RouteID] // by hostname without "*."
	under map[string]set[RouteID] // by every domain that one of its hostnames lies below
}

func newRoutesByHost() *routesByHost {
	return &routesByHost{all: set[RouteID]{}, any: set[RouteID]{}, exact: map[string]set[RouteID]{},
		wild: map[string]set[RouteID]{}, under: map[string]set[RouteID]{}}
}

func (x *routesByHost) add(r RouteID, hosts []string) {
	x.all.add(r)
	x.each(hosts, func() { x.any.add(r) }, func(m map[string]set[RouteID], key string) { m[key] = addTo(m[key], r) })
}

func (x *routesByHost) remove(r RouteID, hosts []string) {
	delete(x.all, r)
	delete(x.any, r)
	x.each(hosts, func() {}, func(m map[string]set[RouteID], key string) {
		delete(m[key], r)
		if len(m[key]) == 0 {
			delete(m, key)
		}
	})
}

// each calls at for every place where routes with these hostnames are found.
func (x *routesByHost) each(hosts []string, all func(), at func(m map[string]set[RouteID], key string)) {
	for _, h := range hosts {
		domain, wild := strings.CutPrefix(h, "*.")
		switch {
		case h == "":
			all()
			continue
		case wild:
			at(x.wild, domain)
			at(x.under, domain)
		default:
			at(x.exact, h)
		}
		for p := range parents(domain) {
			at(x.under, p)
		}
	}
}

// meeting calls yield with the routes that have a host in common with one of the hostnames, some perhaps twice.
func (x *routesByHost) meeting(hosts []string, yield func(RouteID)) {
	some := func(s set[RouteID]) {
		for r := range s {
			yield(r)
		}
	}
	some(x.any)
	for _, h := range hosts {
		domain, wild := strings.CutPrefix(h, "*.")
		switch {
		case h == "":
			some(x.all)
			return
		case wild:
			some(x.under[domain])
		default:
			some(x.exact[h])
		}
		for p := range parents(domain) {
			some(x.wild[p])
		}
	}
}
