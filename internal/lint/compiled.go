// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/fronts"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// compiled looks at what the controller would make of Gateways, routes and Ingresses.
func (c *checker) compiled() {
	list, err := fronts.Of(c.Cluster, c.Whole)
	c.unusable(err)
	for i := range list {
		c.problems(&list[i])
		c.shadowed(&list[i])
	}
	c.overlapping(list)
}

// problems reports what keeps objects from being served as they are written, where nothing else was found that would.
func (c *checker) problems(f *explain.Front) {
	for _, p := range f.Problems {
		o := c.object(p.Object)
		if o == nil {
			continue
		}
		if o.kind == "Ingress" {
			// Of another controller's class it is that one's; of none at all rule ingress-class tells.
			if strings.HasPrefix(p.Text, "spec.ingressClassName:") || c.saidOf(o, p.Text) || !c.Whole && strings.Contains(p.Text, "there is no ") {
				continue
			}
			c.report("ingress-problem", o, "change the annotation or field that the message names", "%s", p.Text)
			continue
		}
		if !c.found(o) && !c.elsewhere(p.Text) {
			c.report("gateway-problem", o, "change the field that the message names", "%s", p.Text)
		}
	}
}

// saidOf tells whether something is reported already of the field that a message begins with.
func (c *checker) saidOf(o *object, message string) bool {
	field, _, ok := strings.Cut(message, ":")
	return ok && slices.ContainsFunc(c.findings, func(f Finding) bool {
		said, _, ok := strings.Cut(f.Message, ":")
		return f.Object == o.String() && ok && (said == field || strings.HasPrefix(said, field+".") || strings.HasPrefix(field, said+"."))
	})
}

// elsewhere tells whether a problem may be only that files don't hold everything.
func (c *checker) elsewhere(text string) bool {
	return !c.Whole && (strings.HasPrefix(text, "BackendNotFound") || strings.HasPrefix(text, "RefNotPermitted"))
}

// object finds an object by "Kind ns/name".
func (c *checker) object(s string) *object {
	kind, name, _ := strings.Cut(s, " ")
	ns, n, _ := strings.Cut(name, "/")
	return c.find(kind, model.Name{Namespace: ns, Name: n})
}

// found tells whether something that keeps an object of Gateway API from being served is reported already.
func (c *checker) found(o *object) bool {
	return slices.ContainsFunc(c.findings, func(f Finding) bool {
		return f.Object == o.String() && f.Severity > Info &&
			(strings.HasPrefix(f.Rule, "route-") || strings.HasPrefix(f.Rule, "gateway-") || strings.HasPrefix(f.Rule, "tls-") || f.Rule == "manifest-unusable")
	})
}

// shadowed looks for rules of different routes with the same match: of those only the first is ever reached.
func (c *checker) shadowed(f *explain.Front) {
	first := map[string]*route.Route{} // by listener, host and match
	routes := slices.Clone(f.Tables.Routes)
	slices.SortStableFunc(routes, func(a, b route.Route) int {
		if a.Created != b.Created {
			return int(a.Created - b.Created)
		}
		return strings.Compare(a.Name, b.Name)
	})
	for i := range routes {
		r := &routes[i]
		if r.Kind != route.HTTPRoute && r.Kind != route.GRPCRoute || f.Owner != "" {
			continue
		}
		for j, rule := range r.Rules {
			matches := rule.Matches
			if len(matches) == 0 {
				matches = []route.Match{{}}
			}
			for k, m := range matches {
				c.shadow(f, r, first, fmt.Sprintf("spec.rules[%d].matches[%d]", j, k), m)
			}
		}
	}
}

func (c *checker) shadow(f *explain.Front, r *route.Route, first map[string]*route.Route, field string, m route.Match) {
	text, err := json.Marshal(m)
	if err != nil {
		return
	}
	for _, p := range r.Parents {
		for _, h := range p.Hostnames {
			key := strings.Join([]string{p.Listener, string(r.Kind), h, string(text)}, " ")
			by := first[key]
			if by == nil {
				first[key] = r
				continue
			}
			o := c.object(string(r.Kind) + " " + r.Name)
			if by.Key == r.Key || o == nil {
				continue
			}
			c.report("route-shadowed", o, "remove one of the two, or split traffic by weight in one rule",
				"%s: what it matches for %s at %s is taken by %s %s, which is older or comes first by name", field, hostText(h), f.Object, by.Kind, by.Name)
			return
		}
	}
}

func hostText(h string) string {
	if h == "" {
		return "any host"
	}
	return h
}

// overlapping looks for hosts that several gateways serve: which of them clients reach is not written anywhere.
func (c *checker) overlapping(list []explain.Front) {
	type server struct {
		front  int
		object string
	}
	servers := map[string][]server{}
	for i := range list {
		f := &list[i]
		for _, r := range f.Tables.Routes {
			if r.Name == "" || r.Kind != route.HTTPRoute {
				continue
			}
			kind := f.Owner
			if kind == "" {
				kind = string(r.Kind)
			}
			for _, p := range r.Parents {
				for _, h := range p.Hostnames {
					h = narrower(h, f.Tables.Listeners, p.Listener)
					s := server{i, kind + " " + r.Name}
					if h != "" && !strings.HasPrefix(h, "*") && !slices.Contains(servers[h], s) {
						servers[h] = append(servers[h], s)
					}
				}
			}
		}
	}
	for h, list2 := range servers {
		for _, s := range list2[1:] {
			if s.front == list2[0].front {
				continue
			}
			if o := c.object(s.object); o != nil {
				c.report("route-host-overlap", o, "serve the host by one of them, or leave an ignore comment while it moves from one to the other",
					"host %s is served by %s too, through %s", h, list2[0].object, list[list2[0].front].Object)
			}
		}
	}
}

// narrower is a route's hostname at a listener: the listener's own where that is one of those that the route's means.
func narrower(h string, listeners []route.Listener, key string) string {
	if h != "" && !strings.HasPrefix(h, "*") {
		return h
	}
	i := slices.IndexFunc(listeners, func(l route.Listener) bool { return l.Key == key })
	if i < 0 || listeners[i].Hostname == "" || strings.HasPrefix(listeners[i].Hostname, "*") {
		return h
	}
	return listeners[i].Hostname
}
