// SPDX-License-Identifier: Apache-2.0

// Package trafficpolicy decides what TrafficPolicies (weft.dev) mean: what a gateway enforces, where, and which status
// each of them has. It takes the same changes as package gatewayapi, and adds to them what follows from the policies.
//
// It imports packages model, route and gatewayapi, the types of the API that it compiles, and the standard library; it
// does no I/O, has no clock and starts no goroutine. Work is proportional to what changed.
package trafficpolicy

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/model"
)

// State is all policies, and what of other objects matters to them. It is for one goroutine at a time.
type State struct {
	policies map[model.Name]*policy
	secrets  map[model.Name]*model.Secret
	services map[model.Name]*model.Service
	classes  map[string]bool // those of weft
	targets  map[gatewayapi.Target]*target

	bySecret, byService map[model.Name]map[model.Name]bool // the policies that name them
}

// policy is one TrafficPolicy with what was made of it.
type policy struct {
	obj              *v1alpha1.TrafficPolicy
	made             *gatewayapi.Policy
	invalid, missing error
	secrets          map[model.Name]bool
	services         map[model.Name]bool
	told             *v1alpha1.TrafficPolicyStatus
}

// target is an object that policies may apply to.
type target struct {
	exists   bool
	class    string          // of a Gateway
	sections map[string]bool // listeners, or named rules
	policies map[model.Name]bool
	attached map[string]bool // sections ("" is all of it) that have policies
}

// New makes a State without policies.
func New() *State {
	return &State{
		policies: map[model.Name]*policy{}, secrets: map[model.Name]*model.Secret{}, services: map[model.Name]*model.Service{},
		classes: map[string]bool{}, targets: map[gatewayapi.Target]*target{},
		bySecret: map[model.Name]map[model.Name]bool{}, byService: map[model.Name]map[model.Name]bool{},
	}
}

// Key is a policy's key in the tables.
func Key(n model.Name) string { return "TrafficPolicy/" + n.String() }

// work collects what a change makes necessary.
type work struct {
	policies map[model.Name]bool        // to be translated again
	targets  map[gatewayapi.Target]bool // to be attached again; without section
}

// Apply takes a change of policies (nil are gone) and of the other objects in c. It sets c's Policies and Attachments
// to what follows, so that package gatewayapi can take c next, and gives the statuses that differ from those told
// before; only weft's own entries of status.ancestors are in them, without times.
func (s *State) Apply(c *gatewayapi.Change, changed map[model.Name]*v1alpha1.TrafficPolicy) map[model.Name]*v1alpha1.TrafficPolicyStatus {
	w := &work{policies: map[model.Name]bool{}, targets: map[gatewayapi.Target]bool{}}
	s.takeRefs(c, w)
	s.takeTargets(c, w)
	for name, obj := range changed {
		s.take(name, obj, w)
	}
	for name := range w.policies {
		s.translate(c, name, w)
	}
	statuses := map[model.Name]bool{}
	maps.Copy(statuses, w.policies)
	for t := range w.targets {
		s.attach(c, t, statuses)
	}
	out := map[model.Name]*v1alpha1.TrafficPolicyStatus{}
	for name := range statuses {
		p := s.policies[name]
		if p == nil {
			continue
		}
		status := s.status(name, p)
		_, came := changed[name]
		if p.told == nil || !reflect.DeepEqual(p.told, status) || came && !says(&p.obj.Status, status) {
			p.told, out[name] = status, status
		}
	}
	return out
}

// says tells whether a status has all of another's entries already, times apart.
func says(there, wanted *v1alpha1.TrafficPolicyStatus) bool {
	if len(there.Ancestors) != len(wanted.Ancestors) {
		return false
	}
	for i := range wanted.Ancestors {
		a, b := there.Ancestors[i], wanted.Ancestors[i]
		if a.AncestorRef != b.AncestorRef || a.ControllerName != b.ControllerName || len(a.Conditions) != len(b.Conditions) {
			return false
		}
		for j := range b.Conditions {
			c := a.Conditions[j]
			c.LastTransitionTime = b.Conditions[j].LastTransitionTime
			if c != b.Conditions[j] {
				return false
			}
		}
	}
	return true
}

func (s *State) takeRefs(c *gatewayapi.Change, w *work) {
	for name, o := range c.Secrets {
		put(s.secrets, name, o)
		maps.Copy(w.policies, s.bySecret[name])
	}
	for name, o := range c.Services {
		put(s.services, name, o)
		maps.Copy(w.policies, s.byService[name])
	}
}

func put[K comparable, V any](m map[K]*V, key K, v *V) {
	if v == nil {
		delete(m, key)
	} else {
		m[key] = v
	}
}

// takeTargets notes which objects there are, and their parts.
func (s *State) takeTargets(c *gatewayapi.Change, w *work) {
	for name, o := range c.GatewayClasses {
		ours := o != nil && string(o.Spec.ControllerName) == gatewayapi.ControllerName
		if s.classes[name] == ours {
			continue
		}
		if s.classes[name] = ours; !ours {
			delete(s.classes, name)
		}
		for t, g := range s.targets {
			if t.Kind == "Gateway" && g.class == name {
				w.targets[t] = true
			}
		}
	}
	for name, o := range c.Gateways {
		t := target{exists: o != nil, sections: map[string]bool{}}
		if o != nil {
			t.class = string(o.Spec.GatewayClassName)
			for _, l := range o.Spec.Listeners {
				t.sections[string(l.Name)] = true
			}
		}
		s.setTarget("Gateway", name, t, w)
	}
	for name, o := range c.ListenerSets {
		t := target{exists: o != nil, sections: map[string]bool{}}
		if o != nil {
			for _, l := range o.Spec.Listeners {
				t.sections[string(l.Name)] = true
			}
		}
		s.setTarget("ListenerSet", name, t, w)
	}
	for name, o := range c.HTTPRoutes {
		t := target{exists: o != nil, sections: map[string]bool{}}
		if o != nil {
			for i := range o.Spec.Rules {
				t.named(o.Spec.Rules[i].Name)
			}
		}
		s.setTarget("HTTPRoute", name, t, w)
	}
	for name, o := range c.GRPCRoutes {
		t := target{exists: o != nil, sections: map[string]bool{}}
		if o != nil {
			for i := range o.Spec.Rules {
				t.named(o.Spec.Rules[i].Name)
			}
		}
		s.setTarget("GRPCRoute", name, t, w)
	}
}

func (t *target) named(n *gwv1.SectionName) {
	if n != nil {
		t.sections[string(*n)] = true
	}
}

func (s *State) setTarget(kind string, name model.Name, now target, w *work) {
	id := gatewayapi.Target{Kind: kind, Name: name}
	old := s.targets[id]
	if old == nil { // no policy names it
		if now.exists {
			s.targets[id] = &now
		}
		return
	}
	same := old.exists == now.exists && old.class == now.class && maps.Equal(old.sections, now.sections)
	old.exists, old.class, old.sections = now.exists, now.class, now.sections
	if !same && len(old.policies) > 0 {
		w.targets[id] = true
	}
	if !old.exists && len(old.policies) == 0 {
		delete(s.targets, id)
	}
}

// take notes a policy that changed, and takes it off its old targets.
func (s *State) take(name model.Name, obj *v1alpha1.TrafficPolicy, w *work) {
	p := s.policies[name]
	if p != nil {
		for _, id := range targetsOf(p.obj) {
			delete(s.targets[id].policies, name)
			w.targets[id] = true
		}
	}
	w.policies[name] = true
	if obj == nil {
		if p != nil {
			unindex(s.bySecret, p.secrets, name)
			unindex(s.byService, p.services, name)
			delete(s.policies, name)
		}
		return
	}
	if p == nil {
		p = &policy{}
		s.policies[name] = p
	}
	p.obj = obj
	for _, id := range targetsOf(obj) {
		t := s.targets[id]
		if t == nil {
			t = &target{}
			s.targets[id] = t
		}
		if t.policies == nil {
			t.policies = map[model.Name]bool{}
		}
		t.policies[name] = true
		w.targets[id] = true
	}
}

// targetsOf are the objects that a policy names, each once, without sections.
func targetsOf(p *v1alpha1.TrafficPolicy) (out []gatewayapi.Target) {
	for _, r := range p.Spec.TargetRefs {
		id := gatewayapi.Target{Kind: r.Kind, Name: model.Name{Namespace: p.Namespace, Name: r.Name}}
		if r.Group == gatewayapi.GroupName && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// recorder remembers what a policy names.
type recorder struct {
	s                 *State
	secrets, services map[model.Name]bool
}

func (r *recorder) secret(n model.Name) *model.Secret   { r.secrets[n] = true; return r.s.secrets[n] }
func (r *recorder) service(n model.Name) *model.Service { r.services[n] = true; return r.s.services[n] }

// translate makes a policy anew.
func (s *State) translate(c *gatewayapi.Change, name model.Name, w *work) {
	if c.Policies == nil {
		c.Policies = map[string]*gatewayapi.Policy{}
	}
	p := s.policies[name]
	if p == nil {
		c.Policies[Key(name)] = nil
		return
	}
	r := &recorder{s, map[model.Name]bool{}, map[model.Name]bool{}}
	unindex(s.bySecret, p.secrets, name)
	unindex(s.byService, p.services, name)
	before := fieldsOf(p.made)
	p.made, p.invalid, p.missing = translate(p.obj, r)
	p.secrets, p.services = r.secrets, r.services
	index(s.bySecret, p.secrets, name)
	index(s.byService, p.services, name)
	c.Policies[Key(name)] = p.made
	if !slices.Equal(before, fieldsOf(p.made)) { // others' conflicts
		for _, id := range targetsOf(p.obj) {
			w.targets[id] = true
		}
	}
}

func index(m map[model.Name]map[model.Name]bool, keys map[model.Name]bool, name model.Name) {
	for k := range keys {
		if m[k] == nil {
			m[k] = map[model.Name]bool{}
		}
		m[k][name] = true
	}
}

func unindex(m map[model.Name]map[model.Name]bool, keys map[model.Name]bool, name model.Name) {
	for k := range keys {
		if delete(m[k], name); len(m[k]) == 0 {
			delete(m, k)
		}
	}
}

// attach says which policies an object and its parts have, and whose status may have changed by that.
func (s *State) attach(c *gatewayapi.Change, id gatewayapi.Target, statuses map[model.Name]bool) {
	if c.Attachments == nil {
		c.Attachments = map[gatewayapi.Target]*gatewayapi.Attachment{}
	}
	t := s.targets[id]
	if t == nil {
		t = &target{}
	}
	bySection := map[string][]string{"": nil}
	for section := range t.attached {
		bySection[section] = nil
	}
	for _, name := range s.ordered(t) {
		statuses[name] = true
		if !t.exists {
			continue
		}
		for _, r := range s.policies[name].obj.Spec.TargetRefs {
			if r.Kind == id.Kind && r.Name == id.Name.Name {
				bySection[r.SectionName] = append(bySection[r.SectionName], Key(name))
			}
		}
	}
	t.attached = map[string]bool{}
	for section, keys := range bySection {
		at := id
		at.Section = section
		c.Attachments[at] = nil
		if len(keys) > 0 {
			t.attached[section] = true
			c.Attachments[at] = &gatewayapi.Attachment{Policies: slices.Compact(keys)}
		}
	}
	if !t.exists && len(t.policies) == 0 {
		delete(s.targets, id)
	}
}

// ordered gives a target's policies, that which comes before the others last: the oldest, then by name (GEP-713).
func (s *State) ordered(t *target) []model.Name {
	return slices.SortedFunc(maps.Keys(t.policies), func(a, b model.Name) int {
		x, y := s.policies[a].obj.CreationTimestamp.Time, s.policies[b].obj.CreationTimestamp.Time
		return cmp.Or(y.Compare(x), cmp.Compare(b.String(), a.String()))
	})
}

// fieldsOf names the fields that a policy sets.
func fieldsOf(p *gatewayapi.Policy) []string {
	if p == nil {
		return nil
	}
	return p.Fields()
}

// status is what became of a policy.
func (s *State) status(name model.Name, p *policy) *v1alpha1.TrafficPolicyStatus {
	out := &v1alpha1.TrafficPolicyStatus{}
	for i, r := range p.obj.Spec.TargetRefs {
		if slices.Contains(p.obj.Spec.TargetRefs[:i], r) {
			continue
		}
		a := v1alpha1.TrafficPolicyAncestor{AncestorRef: r, ControllerName: gatewayapi.ControllerName}
		reason, message := s.accepted(name, p, r)
		a.Conditions = append(a.Conditions, s.condition(p, v1alpha1.PolicyConditionAccepted, reason == v1alpha1.PolicyReasonAccepted, reason, message))
		reason, message = v1alpha1.PolicyReasonResolvedRefs, "All Secrets and Services that the policy names are there."
		if p.missing != nil {
			reason, message = v1alpha1.PolicyReasonRefNotFound, oneLine(p.missing)+". Requests get 503 until then."
		}
		a.Conditions = append(a.Conditions, s.condition(p, v1alpha1.PolicyConditionResolvedRefs, p.missing == nil, reason, message))
		out.Ancestors = append(out.Ancestors, a)
	}
	return out
}

func (s *State) condition(p *policy, kind string, yes bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, ObservedGeneration: p.obj.Generation, Reason: reason, Message: message}
	if yes {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// accepted says whether a policy has effect at a target, and why not.
func (s *State) accepted(name model.Name, p *policy, r v1alpha1.TrafficPolicyTarget) (reason, message string) {
	what := r.Kind + " " + p.obj.Namespace + "/" + r.Name
	id := gatewayapi.Target{Kind: r.Kind, Name: model.Name{Namespace: p.obj.Namespace, Name: r.Name}}
	t := s.targets[id]
	switch {
	case r.Group != gatewayapi.GroupName || !slices.Contains([]string{"Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute"}, r.Kind):
		return v1alpha1.PolicyReasonTargetNotFound, fmt.Sprintf("Policies can't apply to a %s of group %q: name a Gateway, ListenerSet, HTTPRoute or GRPCRoute of %s.", r.Kind, r.Group, gatewayapi.GroupName)
	case t == nil || !t.exists:
		return v1alpha1.PolicyReasonTargetNotFound, "There is no " + what + "."
	case r.Kind == "Gateway" && !s.classes[t.class]:
		return v1alpha1.PolicyReasonTargetNotFound, fmt.Sprintf("%s is of class %s, which is not weft's.", what, t.class)
	case r.SectionName != "" && !t.sections[r.SectionName]:
		part := "rule"
		if r.Kind == "Gateway" || r.Kind == "ListenerSet" {
			part = "listener"
		}
		return v1alpha1.PolicyReasonTargetNotFound, fmt.Sprintf("%s has no %s named %s.", what, part, r.SectionName)
	case p.invalid != nil:
		return v1alpha1.PolicyReasonInvalid, oneLine(p.invalid) + ". Requests get 503 until then."
	}
	overridden, by := s.overridden(name, p, t, r)
	mine := fieldsOf(p.made)
	switch {
	case len(overridden) == 0:
		return v1alpha1.PolicyReasonAccepted, "The policy applies to " + what + "."
	case len(overridden) == len(mine):
		return v1alpha1.PolicyReasonConflicted, fmt.Sprintf("Older policies set all that this one sets: %s.", strings.Join(by, ", "))
	}
	return v1alpha1.PolicyReasonAccepted, fmt.Sprintf("The policy applies to %s, but for %s, which older policies set: %s.", what, strings.Join(overridden, ", "), strings.Join(by, ", "))
}

// overridden names the policy's fields that others with the same target set and come first with.
func (s *State) overridden(name model.Name, p *policy, t *target, r v1alpha1.TrafficPolicyTarget) (fields, by []string) {
	mine := fieldsOf(p.made)
	first := false
	for _, other := range s.ordered(t) {
		if other == name {
			first = true
			continue
		}
		o := s.policies[other]
		if !first || !slices.Contains(o.obj.Spec.TargetRefs, r) {
			continue
		}
		counts := false
		for _, f := range fieldsOf(o.made) {
			if slices.Contains(mine, f) {
				counts = true
				if !slices.Contains(fields, f) {
					fields = append(fields, f)
				}
			}
		}
		if counts {
			by = append(by, other.String())
		}
	}
	slices.Sort(fields)
	return fields, by
}
