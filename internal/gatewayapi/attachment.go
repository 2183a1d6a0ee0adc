// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"

	"github.com/weft-net/weft/internal/route"
)

// attachedPolicies gives the keys of the policies that apply to a target itself.
func (s *State) attachedPolicies(t Target) []string {
	if a := s.attachments[t]; a != nil {
		return a.Policies
	}
	return nil
}

// listenerPolicies gives the policies of a listener: its Gateway's, its ListenerSet's, its own.
func (s *State) listenerPolicies(l *listener) (out []string) {
	g := s.gatewayOf(l.parent)
	out = append(out, s.attachedPolicies(Target{Kind: "Gateway", Name: g.name})...)
	if l.parent.kind == "ListenerSet" {
		out = append(out, s.attachedPolicies(Target{Kind: "ListenerSet", Name: l.parent.Name})...)
	}
	return append(out, s.attachedPolicies(Target{Kind: l.parent.kind, Name: l.parent.Name, Section: l.name})...)
}

// listenerPolicies counts the policies that the listeners of the tables name.
func listenerPolicies(t *tables) map[string]int {
	out := map[string]int{}
	for _, l := range t.listeners.now {
		for _, k := range l.Policies {
			out[k]++
		}
	}
	return out
}

// exchangePolicies makes the tables need what listeners name now in place of what they named before.
func (s *State) exchangePolicies(w *work, g *gateway, before, now map[string]int) {
	for k := range now {
		if before[k] == 0 {
			s.needPolicy(w, g, k)
		}
	}
	for k := range before {
		if now[k] == 0 {
			s.releasePolicy(w, g, k)
		}
	}
}

// routePolicies gives every policy that a route or one of its rules has.
func (s *State) routePolicies(r *routeState) (out []string) {
	out = append(out, s.attachedPolicies(Target{Kind: string(r.id.Kind), Name: r.id.Name})...)
	for i := range r.content.rules {
		if n := r.content.rules[i].Name; n != "" {
			out = append(out, s.attachedPolicies(Target{Kind: string(r.id.Kind), Name: r.id.Name, Section: n})...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// withRulePolicies gives the rules with the policies that apply to each.
func (s *State) withRulePolicies(r *routeState, rules []route.Rule) []route.Rule {
	out := rules
	for i := range rules {
		if rules[i].Name == "" {
			continue
		}
		if keys := s.attachedPolicies(Target{Kind: string(r.id.Kind), Name: r.id.Name, Section: rules[i].Name}); len(keys) > 0 {
			if &out[0] == &rules[0] {
				out = slices.Clone(rules)
			}
			out[i].Policies = slices.Concat(keys, rules[i].Policies) // a filter says it last
		}
	}
	return out
}

// needPolicy counts one more use of a policy in a gateway's tables. A key without a policy needs nothing: what names it
// fails closed.
func (s *State) needPolicy(w *work, g *gateway, key string) {
	if g.tables.policyUse[key]++; g.tables.policyUse[key] == 1 {
		s.putPolicy(w, g, key, nil, s.policies[key])
		s.policyUsers[key] = addTo(s.policyUsers[key], g.name)
	}
}

// releasePolicy takes one use of a policy back.
func (s *State) releasePolicy(w *work, g *gateway, key string) {
	if g.tables.policyUse[key]--; g.tables.policyUse[key] > 0 {
		return
	}
	delete(g.tables.policyUse, key)
	delete(s.policyUsers[key], g.name)
	if len(s.policyUsers[key]) == 0 {
		delete(s.policyUsers, key)
	}
	s.putPolicy(w, g, key, s.policies[key], nil)
}

// putPolicy replaces a policy in a gateway's tables, with the backends that it names.
func (s *State) putPolicy(w *work, g *gateway, key string, old, now *Policy) {
	if now != nil {
		for _, b := range now.Backends {
			s.need(w, g, backendID{Service: b.Service, Port: b.Port})
		}
		p := now.Policy
		p.Key = key
		g.tables.policies.put(key, &p)
	} else {
		g.tables.policies.put(key, nil)
	}
	if old != nil {
		for _, b := range old.Backends {
			s.release(w, g, backendID{Service: b.Service, Port: b.Port})
		}
	}
	w.tables.add(g.name)
}

// setPolicy takes a policy that changed into the tables that have it.
func (s *State) setPolicy(w *work, key string, now *Policy) {
	old := s.policies[key]
	if now == nil {
		delete(s.policies, key)
	} else {
		s.policies[key] = now
	}
	for name := range s.policyUsers[key] {
		if g := s.gateways[name]; g != nil {
			s.putPolicy(w, g, key, old, now)
		}
	}
}

// setAttachment looks again at what a target's policies apply to.
func (s *State) setAttachment(w *work, t Target, a *Attachment) {
	if a == nil {
		delete(s.attachments, t)
	} else {
		s.attachments[t] = a
	}
	switch t.Kind {
	case "Gateway":
		w.gateways.add(t.Name)
	case "ListenerSet":
		if ls := s.listenerSets[t.Name]; ls != nil {
			w.gateways.add(ls.gateway)
		}
	default:
		w.attach.add(RouteID{route.RouteKind(t.Kind), t.Name})
	}
}

func addTo[T comparable](s set[T], v T) set[T] {
	if s == nil {
		s = set[T]{}
	}
	s.add(v)
	return s
}
