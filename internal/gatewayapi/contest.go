// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/route"
)

// contest is the HTTPRoutes and GRPCRoutes that want one listener and are not rejected for what they say. Where their
// hostnames meet, the API has exactly one of two routes of different kinds accepted: the older one, then the first by name.
type contest struct {
	hosts map[RouteID][]string
	count map[route.RouteKind]int
	lost  map[RouteID]RouteID // who lost, and to whom
	// byHost finds routes by hostname; nil while all are of one kind, which is nearly always.
	byHost map[route.RouteKind]*routesByHost
	// seeds are routes to be decided anew; true: because they themselves are new or have other hostnames.
	seeds map[RouteID]bool
}

func otherKind(k route.RouteKind) route.RouteKind {
	if k == route.HTTPRoute {
		return route.GRPCRoute
	}
	return route.HTTPRoute
}

// enter notes what a route wants of its listeners, and which contests became different. before is what it wanted; one that is
// rejected leaves the field to others.
func (s *State) enter(w *work, r *routeState, before map[listenerID][]string) {
	if r.id.Kind != route.HTTPRoute && r.id.Kind != route.GRPCRoute {
		return
	}
	wanted := r.hosts
	if r.content.rejected() {
		wanted = nil
	}
	for id := range before {
		if _, still := wanted[id]; !still {
			s.leave(w, r.id, id)
		}
	}
	for id, hosts := range wanted {
		c := s.contests[id]
		if c == nil {
			c = &contest{hosts: map[RouteID][]string{}, count: map[route.RouteKind]int{}, lost: map[RouteID]RouteID{}, seeds: map[RouteID]bool{}}
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
	c.seeds[r] = true
	if c.byHost != nil {
		c.byHost[r.Kind].add(r, hosts)
		return
	}
	if len(c.count) == 2 {
		c.byHost = map[route.RouteKind]*routesByHost{route.HTTPRoute: newRoutesByHost(), route.GRPCRoute: newRoutesByHost()}
		for id, h := range c.hosts {
			c.byHost[id.Kind].add(id, h)
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
	if _, lost := c.lost[r]; !lost { // nobody lost to one that lost
		c.byHost[otherKind(r.Kind)].meeting(hosts, func(o RouteID) {
			if !c.seeds[o] {
				c.seeds[o] = false
			}
		})
	}
	if len(c.count) < 2 {
		c.byHost = nil
	}
}

// decide finds who loses the contest for a listener; routes for which that changed are attached anew. Whether a route
// loses depends only on older ones, so it goes from the oldest seed to those younger that each change reaches.
func (s *State) decide(w *work, id listenerID) {
	c := s.contests[id]
	if c == nil {
		return
	}
	open := &byAge{s: s}
	for r := range c.seeds {
		if _, is := c.hosts[r]; is {
			heap.Push(open, r)
		}
	}
	seeds := c.seeds
	c.seeds = map[RouteID]bool{}
	if c.byHost == nil && len(c.lost) == 0 {
		return
	}
	seen := set[RouteID]{}
	for open.Len() > 0 {
		r := heap.Pop(open).(RouteID)
		if seen.has(r) {
			continue
		}
		seen.add(r)
		to, loses := c.winner(s, r)
		before, lost := c.lost[r]
		if loses {
			c.lost[r] = to
		} else {
			delete(c.lost, r)
		}
		if loses != lost || to != before {
			w.attach.add(r)
		}
		if c.byHost != nil && (loses != lost || seeds[r] && !loses) {
			c.byHost[otherKind(r.Kind)].meeting(c.hosts[r], func(o RouteID) {
				if !seen.has(o) && s.olderRoute(r, o) {
					heap.Push(open, o)
				}
			})
		}
	}
}

// winner gives the oldest of the older routes of the other kind that are accepted and meet the route, if there is one.
func (c *contest) winner(s *State, r RouteID) (to RouteID, found bool) {
	if c.byHost == nil {
		return RouteID{}, false
	}
	c.byHost[otherKind(r.Kind)].meeting(c.hosts[r], func(o RouteID) {
		if _, lost := c.lost[o]; !lost && s.olderRoute(o, r) && (!found || s.olderRoute(o, to)) {
			to, found = o, true
		}
	})
	return to, found
}

// olderRoute tells whether a route comes before another: by its age, then its name.
func (s *State) olderRoute(a, b RouteID) bool {
	ra, rb := s.routes[a], s.routes[b]
	return cmp.Or(ra.meta.CreationTimestamp.Time.Compare(rb.meta.CreationTimestamp.Time),
		strings.Compare(ra.name, rb.name), cmp.Compare(a.Kind, b.Kind)) < 0
}

// byAge is a heap of routes, the oldest first.
type byAge struct {
	s    *State
	list []RouteID
}

func (h *byAge) Len() int           { return len(h.list) }
func (h *byAge) Less(i, j int) bool { return h.s.olderRoute(h.list[i], h.list[j]) }
func (h *byAge) Swap(i, j int)      { h.list[i], h.list[j] = h.list[j], h.list[i] }
func (h *byAge) Push(v any)         { h.list = append(h.list, v.(RouteID)) }
func (h *byAge) Pop() any {
	last := h.list[len(h.list)-1]
	h.list = h.list[:len(h.list)-1]
	return last
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
