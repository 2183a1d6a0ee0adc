// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"strings"
	"time"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// content is what a route says, apart from where it is attached.
type content struct {
	from  from
	rules []route.Rule
	// terminated are the rules for listeners that end TLS; of TLSRoutes and TCPRoutes only.
	terminated []route.Rule
	backends   []backendID // of rules, each once
	reencrypts []backendID // of terminated

	// own are policies that filters of its rules ask for.
	own []route.Policy

	// What it was compiled from, besides the route, each once.
	services []model.Name
	foreign  []string // namespaces of others that it refers to

	invalid  []verdict // of rules that can't be served as written
	bad      int       // how many those are
	resolved []verdict // of references that can't be followed
	notes    []string  // of what is passed over, and serves all the same
}

// rejected tells whether no rule can be served as written: the route is not accepted then.
func (c *content) rejected() bool { return c.bad > 0 && c.bad == len(c.rules) }

func newContent(kind route.RouteKind, name model.Name) *content {
	return &content{from: from{string(kind), name}}
}

// ruleCompiler makes one rule.
type ruleCompiler struct {
	s     *State
	c     *content
	index int
	as    spoken
	extra extra // fields of the rule that the API's types do not have
	rule  route.Rule

	refused bool
}

// compiler begins a rule.
func (s *State) compiler(c *content, index int, as spoken) *ruleCompiler {
	x := s.extraOf(c.from.kind, c.from.Name)
	r := &ruleCompiler{s: s, c: c, index: index, as: as, extra: x.under(fmt.Sprintf("spec.rules[%d]", index))}
	if why := notKnown(x.without("spec.rules[")); why != "" {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "%s", why)
	}
	if as == spokenTCP || as == spokenUDP {
		r.refuseExtra() // before its backends
	}
	return r
}

// refuseExtra refuses a rule with fields that were not understood.
func (r *ruleCompiler) refuseExtra() {
	if why := notKnown(r.extra.without()); why != "" {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "%s", why)
	}
	r.extra = nil
}

// refuse marks the rule as one that can't be served: requests that it wins get an error.
func (r *ruleCompiler) refuse(reason gwv1.RouteConditionReason, format string, args ...any) {
	v := no(reason, fmt.Sprintf("rules[%d]: ", r.index)+fmt.Sprintf(format, args...))
	r.c.invalid = append(r.c.invalid, v)
	if !r.refused {
		r.refused = true
		r.c.bad++
	}
	if r.rule.Invalid == "" {
		r.rule.Invalid = v.message
	}
}

// unresolved notes a reference that can't be followed.
func (r *ruleCompiler) unresolved(v verdict) {
	v.message = fmt.Sprintf("rules[%d]: %s", r.index, v.message)
	r.c.resolved = append(r.c.resolved, v)
}

func (r *ruleCompiler) done(name *gwv1.SectionName) route.Rule {
	if name != nil {
		r.rule.Name = string(*name)
	}
	r.refuseExtra()
	r.checkExpressions()
	return r.rule
}

// weighted resolves a backendRef. An invalid one keeps its share of requests and fails them.
func (r *ruleCompiler) weighted(ref gwv1.BackendRef, filters []route.Filter) route.WeightedBackend {
	out := route.WeightedBackend{Weight: 1, Filters: filters}
	if ref.Weight != nil {
		out.Weight = uint32(max(*ref.Weight, 0))
	}
	if r.refused && (r.as == spokenTCP || r.as == spokenUDP) {
		out.Invalid = r.rule.Invalid // a connection has no rule's answer, only a backend's
		return out
	}
	id, problem := r.s.resolve(r.c, ref.BackendObjectReference, r.as)
	if problem != nil {
		r.unresolved(*problem)
		out.Invalid = problem.message
		return out
	}
	if problem = r.s.unmet(id); problem != nil {
		r.unresolved(*problem)
	}
	once(&r.c.backends, id)
	out.Backend = id.key()
	return out
}

func (s *State) compileHTTP(obj *gwv1.HTTPRoute, name model.Name) *content {
	c := newContent(route.HTTPRoute, name)
	rules := obj.Spec.Rules
	if len(rules) == 0 {
		rules = []gwv1.HTTPRouteRule{{}} // the API's default: everything
	}
	for i := range rules {
		r := s.compiler(c, i, spokenHTTP)
		in := &rules[i]
		for _, m := range in.Matches {
			r.rule.Matches = append(r.rule.Matches, r.httpMatch(&m))
		}
		prefix := len(in.Matches) == 0
		if len(in.Matches) == 1 {
			p := in.Matches[0].Path
			prefix = p == nil || p.Type == nil || *p.Type == gwv1.PathMatchPathPrefix
		}
		r.rule.Filters = r.httpFilters(ofRule, in.Filters, prefix)
		for j, b := range in.BackendRefs {
			filters := r.httpFilters(fmt.Sprintf("backendRefs[%d].filters", j), b.Filters, prefix)
			r.rule.Backends = append(r.rule.Backends, r.weighted(b.BackendRef, filters))
		}
		if t := in.Timeouts; t != nil {
			to := route.Timeouts{Request: r.duration("timeouts.request", t.Request), BackendRequest: r.duration("timeouts.backendRequest", t.BackendRequest)}
			to.Unbounded = isZero(t.Request) || isZero(t.BackendRequest)
			r.rule.Timeouts = to
		}
		r.retry(in.Retry)
		r.session(in.SessionPersistence)
		c.rules = append(c.rules, r.done(in.Name))
	}
	return c
}

func (s *State) compileGRPC(obj *gwv1.GRPCRoute, name model.Name) *content {
	c := newContent(route.GRPCRoute, name)
	for i := range obj.Spec.Rules {
		r := s.compiler(c, i, spokenGRPC)
		in := &obj.Spec.Rules[i]
		for _, m := range in.Matches {
			r.rule.Matches = append(r.rule.Matches, r.grpcMatch(&m))
		}
		if len(in.Matches) == 0 {
			r.rule.Matches = []route.Match{{GRPC: &route.GRPCMatch{}}}
		}
		r.rule.Filters = r.grpcFilters(in.Filters)
		for _, b := range in.BackendRefs {
			r.rule.Backends = append(r.rule.Backends, r.weighted(b.BackendRef, r.grpcFilters(b.Filters)))
		}
		r.session(in.SessionPersistence)
		c.rules = append(c.rules, r.done(in.Name))
	}
	return c
}

func (s *State) compileTLS(obj *gwv1.TLSRoute, name model.Name) *content {
	c := newContent(route.TLSRoute, name)
	for i := range obj.Spec.Rules {
		in := &obj.Spec.Rules[i]
		r := s.compiler(c, i, spokenTCP)
		for _, b := range in.BackendRefs {
			r.rule.Backends = append(r.rule.Backends, r.weighted(b, nil))
		}
		c.rules = append(c.rules, r.done(in.Name))
	}
	c.terminate()
	return c
}

// terminate makes the rules for listeners that end TLS: the same references, spoken to in another way.
func (c *content) terminate() {
	for _, r := range c.rules {
		passed := r.Backends
		r.Backends = nil
		for _, b := range passed {
			if b.Invalid == "" {
				b.Backend = strings.TrimSuffix(b.Backend, "/"+string(spokenTCP)) + "/" + string(spokenTLS)
			}
			r.Backends = append(r.Backends, b)
		}
		c.terminated = append(c.terminated, r)
	}
	for _, id := range c.backends {
		id.As = spokenTLS
		once(&c.reencrypts, id)
	}
}

func (s *State) compileTCP(obj *gwv1.TCPRoute, name model.Name) *content {
	c := newContent(route.TCPRoute, name)
	for i := range obj.Spec.Rules {
		in := &obj.Spec.Rules[i]
		r := s.compiler(c, i, spokenTCP)
		for _, b := range in.BackendRefs {
			r.rule.Backends = append(r.rule.Backends, r.weighted(b, nil))
		}
		c.rules = append(c.rules, r.done(in.Name))
	}
	c.terminate()
	return c
}

func (s *State) compileUDP(obj *gwv1.UDPRoute, name model.Name) *content {
	c := newContent(route.UDPRoute, name)
	for i := range obj.Spec.Rules {
		in := &obj.Spec.Rules[i]
		r := s.compiler(c, i, spokenUDP)
		for _, b := range in.BackendRefs {
			r.rule.Backends = append(r.rule.Backends, r.weighted(b, nil))
		}
		c.rules = append(c.rules, r.done(in.Name))
	}
	return c
}

// httpMatch translates one match. What it can't translate makes the rule invalid.
func (r *ruleCompiler) httpMatch(m *gwv1.HTTPRouteMatch) (out route.Match) {
	if p := m.Path; p != nil {
		kind, value := gwv1.PathMatchPathPrefix, "/"
		if p.Type != nil {
			kind = *p.Type
		}
		if p.Value != nil {
			value = *p.Value
		}
		out.Path = &route.PathMatch{Value: value}
		switch kind {
		case gwv1.PathMatchExact:
			out.Path.Kind = route.PathExact
		case gwv1.PathMatchPathPrefix:
			out.Path.Kind = route.PathPrefix
		case gwv1.PathMatchRegularExpression:
			out.Path.Kind = route.PathRegex
		default:
			r.refuse(gwv1.RouteReasonUnsupportedValue, "matches: path.type %q is not supported: Exact, PathPrefix and RegularExpression are", kind)
			out.Path.Kind = route.PathExact // it takes no more than what is written
		}
	}
	if m.Method != nil {
		out.Method = string(*m.Method)
	}
	for _, h := range m.Headers {
		regex := r.regex("headers", (*string)(h.Type))
		out.Headers = append(out.Headers, route.ValueMatch{Name: string(h.Name), Value: h.Value, Regex: regex})
	}
	for _, q := range m.QueryParams {
		regex := r.regex("queryParams", (*string)(q.Type))
		out.Query = append(out.Query, route.ValueMatch{Name: string(q.Name), Value: q.Value, Regex: regex})
	}
	return out
}

func (r *ruleCompiler) grpcMatch(m *gwv1.GRPCRouteMatch) (out route.Match) {
	out.GRPC = &route.GRPCMatch{}
	if g := m.Method; g != nil {
		out.GRPC.Regex = r.regex("method", (*string)(g.Type))
		if g.Service != nil {
			out.GRPC.Service = *g.Service
		}
		if g.Method != nil {
			out.GRPC.Method = *g.Method
		}
	}
	for _, h := range m.Headers {
		regex := r.regex("headers", (*string)(h.Type))
		out.Headers = append(out.Headers, route.ValueMatch{Name: string(h.Name), Value: h.Value, Regex: regex})
	}
	return out
}

// regex reads the type of a comparison: Exact, the default, or RegularExpression.
func (r *ruleCompiler) regex(field string, typ *string) bool {
	if typ == nil || *typ == "" || *typ == "Exact" {
		return false
	}
	if *typ != "RegularExpression" {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "matches: %s.type %q is not supported: Exact and RegularExpression are", field, *typ)
		return false
	}
	return true
}

// checkExpressions refuses a rule whose regular expressions do not compile.
func (r *ruleCompiler) checkExpressions() {
	if !hasExpression(&r.rule) {
		return
	}
	one := route.Route{Rules: []route.Rule{{Matches: r.rule.Matches}}}
	if _, errs := route.Entries(&one, func(int) any { return nil }); len(errs) > 0 {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "%s", strings.TrimPrefix(errs[0].Error(), ": rules[0]."))
	}
}

func hasExpression(r *route.Rule) bool {
	for i := range r.Matches {
		m := &r.Matches[i]
		if m.Path != nil && m.Path.Kind == route.PathRegex || m.GRPC != nil && m.GRPC.Regex {
			return true
		}
		for _, h := range m.Headers {
			if h.Regex {
				return true
			}
		}
		for _, q := range m.Query {
			if q.Regex {
				return true
			}
		}
	}
	return false
}

// isZero tells of a duration that is written, and is none.
func isZero(d *gwv1.Duration) bool {
	if d == nil {
		return false
	}
	v, err := time.ParseDuration(string(*d))
	return err == nil && v == 0
}
