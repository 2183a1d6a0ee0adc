// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// rules writes a route's rules, and gives by their names the policies that rules have of their own.
func (c *ingressConverter) rules(r *route.Route, name model.Name) (out []any, named map[string]*v1alpha1.TrafficPolicySpec) {
	named = map[string]*v1alpha1.TrafficPolicySpec{}
	for i := range r.Rules {
		rule := &r.Rules[i]
		if rule.Respond == 404 {
			continue // what no rule matches is answered so
		}
		if rule.Respond != 0 {
			c.note(name, true, "", "rule %s answers %d at once: Gateway API has no counterpart, and the rule was left out", rule.Name, rule.Respond)
			continue
		}
		if plain, stripped := strip(rule); stripped {
			c.note(name, false, "", "rule %s takes a prefix off with a regular expression: it became a PathPrefix with ReplacePrefixMatch, which looks at the path's case", rule.Name)
			rule = plain
		}
		t, ok := c.rule(r, rule, name)
		if !ok {
			continue
		}
		if spec := c.ruleSpec(rule, name); spec != nil && r.Kind == route.HTTPRoute {
			n := "rule-" + strconv.Itoa(i+1)
			t["name"] = n
			named[n] = spec
		}
		out = append(out, t)
	}
	return out, named
}

func (c *ingressConverter) rule(r *route.Route, rule *route.Rule, name model.Name) (out tree, ok bool) {
	out = tree{}
	var matches []any
	for i := range rule.Matches {
		m, ok := c.match(&rule.Matches[i], name)
		if !ok {
			return nil, false
		}
		matches = append(matches, m)
	}
	if len(matches) > 0 && r.Kind == route.HTTPRoute {
		out["matches"] = matches
	}
	filters, ok := c.filters(rule, name)
	if !ok {
		return nil, false
	}
	if len(filters) > 0 {
		out["filters"] = filters
	}
	var backends []any
	for _, b := range rule.Backends {
		ref, ok := c.backendRef(b.Backend, name)
		if !ok {
			continue
		}
		if len(rule.Backends) > 1 {
			ref["weight"] = int64(b.Weight)
		}
		backends = append(backends, ref)
	}
	if len(backends) > 0 {
		out["backendRefs"] = backends
	}
	if t := (tree{}); rule.Timeouts != (route.Timeouts{}) {
		if d := rule.Timeouts.Request; d != 0 {
			t["request"] = duration(d)
		}
		if d := rule.Timeouts.BackendRequest; d != 0 {
			t["backendRequest"] = duration(d)
		}
		out["timeouts"] = t
	}
	return out, true
}

// stripping are the forms of regular expressions that are written to take a prefix off, with the group that is left.
var stripping = []struct {
	expr  *regexp.Regexp
	group string
}{
	{regexp.MustCompile(`^\(\?:((?:[\w/~-]|\\.)*)\)\(\?:/\(\(\?s:\.\*\)\)\)\?$`), "/$1"},          // what the compiler makes of rewrite-target: /
	{regexp.MustCompile(`^\(\?:((?:[\w/~-]|\\.)*)\(/\|\$\)\(\.\*\)\$?\)\(\?s:\.\*\)$`), "/$2"},    // /app(/|$)(.*)
	{regexp.MustCompile(`^\(\?:((?:[\w/~-]|\\.)*)/\(\.\*\)\$?\)\(\?s:\.\*\)$`), "/$1"},            // /app/(.*)
	{regexp.MustCompile(`^\(\?:((?:[\w/~-]|\\.)*)/\?\(\.\*\)\$?\)\(\?s:\.\*\)$`), "/$1"},          // /app/?(.*)
	{regexp.MustCompile(`^\(\?:((?:[\w/~-]|\\.)*)\(\?:/\|\$\)\(\.\*\)\$?\)\(\?s:\.\*\)$`), "/$1"}, // /app(?:/|$)(.*)
}

// withoutRank takes off the empty groups by which the compiler ranks expressions.
func withoutRank(expr string) string {
	for strings.HasSuffix(expr, "(?:)") {
		expr = strings.TrimSuffix(expr, "(?:)")
	}
	return expr
}

// strip writes a rule whose regular expressions and rewrite only take a prefix off with prefixes.
func strip(rule *route.Rule) (*route.Rule, bool) {
	rewrites := -1
	for i, f := range rule.Filters {
		if f.Rewrite != nil && f.Rewrite.Path != nil && f.Rewrite.Path.Template != nil {
			rewrites = i
		}
	}
	if rewrites < 0 || len(rule.Matches) != 1 || rule.Matches[0].Path == nil || rule.Matches[0].Path.Kind != route.PathRegex {
		return rule, false
	}
	value := withoutRank(rule.Matches[0].Path.Value)
	for _, form := range stripping {
		m := form.expr.FindStringSubmatch(value)
		if m == nil || string(*rule.Filters[rewrites].Rewrite.Path.Template) != form.group {
			continue
		}
		prefix := strings.ReplaceAll(m[1], `\`, "")
		out := *rule
		out.Matches = []route.Match{rule.Matches[0]}
		out.Matches[0].Path = &route.PathMatch{Kind: route.PathPrefix, Value: cmp.Or(prefix, "/")}
		out.Filters = slices.Clone(rule.Filters)
		rewrite := *rule.Filters[rewrites].Rewrite
		root := "/"
		rewrite.Path = &route.PathRewrite{Prefix: &root}
		if prefix == "" {
			rewrite.Path = nil // the path as it is
		}
		out.Filters[rewrites] = route.Filter{Rewrite: &rewrite}
		return &out, true
	}
	return rule, false
}

// duration writes GEP-2257's notation: whole units of h, m, s and ms, largest first.
func duration(d route.Duration) string {
	left := time.Duration(d).Round(time.Millisecond)
	var b strings.Builder
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := left / u.unit; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.name)
			left -= n * u.unit
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

func (c *ingressConverter) match(m *route.Match, name model.Name) (out tree, ok bool) {
	out = tree{}
	if p := m.Path; p != nil {
		switch p.Kind {
		case route.PathExact:
			out["path"] = tree{"type": "Exact", "value": p.Value}
		case route.PathPrefix:
			out["path"] = tree{"type": "PathPrefix", "value": p.Value}
		case route.PathStringPrefix:
			// "/a" has "/ab" too, which a prefix of elements does not.
			out["path"] = tree{"type": "RegularExpression", "value": regexp.QuoteMeta(p.Value) + "(?s:.*)"}
			if strings.HasSuffix(p.Value, "/") {
				out["path"] = tree{"type": "PathPrefix", "value": p.Value}
			} else {
				c.note(name, true, "", "path %s of type ImplementationSpecific matches what merely begins like it, as in ingress-nginx, so it became a regular expression; make it a PathPrefix if %s/... is all that is meant", p.Value, p.Value)
			}
		case route.PathRegex:
			value := withoutRank(p.Value)
			if p.CaseInsensitive {
				value = "(?i)" + value
			}
			out["path"] = tree{"type": "RegularExpression", "value": value}
		}
	}
	if m.Method != "" {
		out["method"] = m.Method
	}
	var headers []any
	for _, h := range m.Headers {
		headers = append(headers, valueMatch(h))
	}
	for _, k := range m.Cookies {
		value := regexp.QuoteMeta(k.Value)
		if k.Regex {
			value = k.Value
		}
		headers = append(headers, tree{"name": "cookie", "type": "RegularExpression", "value": "(?:.*;)? *" + regexp.QuoteMeta(k.Name) + "=(?:" + value + ") *(?:;.*)?"})
	}
	if len(headers) > 0 {
		out["headers"] = headers
	}
	var query []any
	for _, q := range m.Query {
		query = append(query, valueMatch(q))
	}
	if len(query) > 0 {
		out["queryParams"] = query
	}
	return out, true
}

func valueMatch(m route.ValueMatch) tree {
	out := tree{"name": m.Name, "value": m.Value}
	if m.Regex {
		out["type"] = "RegularExpression"
	}
	return out
}

// addedByIngress are request headers that ingress-nginx has for backends; the gateway's X-Forwarded-* tell the same.
var addedByIngress = []string{"X-Real-IP", "X-Scheme", "X-Forwarded-Scheme", "X-Format", "X-Code", "X-Namespace", "X-Ingress-Name", "X-Service-Name", "X-Service-Port"}

func (c *ingressConverter) filters(rule *route.Rule, name model.Name) (out []any, ok bool) {
	for i := range rule.Filters {
		switch f := &rule.Filters[i]; {
		case f.RequestHeaders != nil:
			if t := c.requestHeaders(f.RequestHeaders, name); len(t) > 0 {
				out = append(out, tree{"type": "RequestHeaderModifier", "requestHeaderModifier": t})
			}
		case f.ResponseHeaders != nil:
			out = append(out, tree{"type": "ResponseHeaderModifier", "responseHeaderModifier": headerEdit(f.ResponseHeaders)})
		case f.Redirect != nil:
			t, ok := redirect(f.Redirect)
			if ok && t["path"] != nil && !strings.HasSuffix(string(f.Redirect.Location), "$is_args$args") {
				c.note(name, false, "", "rule %s redirects to %s without the request's query: RequestRedirect keeps the query", rule.Name, f.Redirect.Location)
			}
			if !ok {
				continue // RequestRedirect has no variables: see ruleSpec
			}
			out = append(out, tree{"type": "RequestRedirect", "requestRedirect": t})
		case f.Rewrite != nil:
			// What URLRewrite can't say is the TrafficPolicy's: see ruleSpec.
			if t, ok := rewrite(f.Rewrite); ok && len(t) > 0 {
				out = append(out, tree{"type": "URLRewrite", "urlRewrite": t})
			}
		case f.Mirror != nil:
			ref, ok := c.backendRef(f.Mirror.Backend, name)
			if !ok {
				continue
			}
			out = append(out, tree{"type": "RequestMirror", "requestMirror": tree{"backendRef": ref}})
		case f.CORS != nil:
			for _, origin := range f.CORS.AllowOrigins {
				if f.CORS.OneLabel && strings.Contains(origin, "*.") {
					c.note(name, true, "", "rule %s allows the origin %s: in the CORS filter \"*\" stands for any number of labels, in ingress-nginx for one", rule.Name, origin)
				}
			}
			out = append(out, tree{"type": "CORS", "cors": cors(f.CORS)})
		}
	}
	return out, true
}

func (c *ingressConverter) requestHeaders(e *route.HeaderEdit, name model.Name) tree {
	edit := route.HeaderEdit{Add: e.Add}
	for _, h := range e.Set {
		if !slices.Contains(addedByIngress, h.Name) {
			edit.Set = append(edit.Set, h)
		}
	}
	edit.Remove = e.Remove
	for _, h := range e.SetTemplates {
		text, err := route.ParseTemplate(h.Value)
		constant, fixed := "", false
		if err == nil {
			constant, fixed = text.Constant()
		}
		switch {
		case slices.Contains(addedByIngress, h.Name):
			// A backend that trusts them must not get a client's own.
			c.dropped[h.Name] = true
			edit.Remove = append(slices.Clone(edit.Remove), h.Name)
		case fixed:
			edit.Set = append(edit.Set, route.Header{Name: h.Name, Value: constant})
		default:
			c.note(name, true, "", "header %s: %q: RequestHeaderModifier has no variables, and it was left out", h.Name, h.Value)
		}
	}
	return headerEdit(&edit)
}

func headerEdit(e *route.HeaderEdit) tree {
	out := tree{}
	list := func(field string, in []route.Header) {
		var l []any
		for _, h := range in {
			l = append(l, tree{"name": h.Name, "value": h.Value})
		}
		if len(l) > 0 {
			out[field] = l
		}
	}
	list("set", e.Set)
	list("add", e.Add)
	if len(e.Remove) > 0 {
		out["remove"] = anys(e.Remove)
	}
	return out
}

// redirect reads the forms of targets that RequestRedirect can say.
func redirect(r *route.Redirect) (out tree, ok bool) {
	out = tree{}
	if r.Status != 0 {
		out["statusCode"] = int64(r.Status)
		if !slices.Contains([]int{301, 302, 303, 307, 308}, r.Status) {
			out["statusCode"] = int64(302)
		}
	}
	to := string(r.Location)
	if to == "" {
		return out, false
	}
	scheme, rest, found := strings.Cut(to, "://")
	if !found {
		return nil, false
	}
	if scheme != "$scheme" {
		out["scheme"] = scheme
	}
	cut := strings.IndexAny(rest, "/?#")
	if k := strings.Index(rest, "$request_uri"); k >= 0 && (cut < 0 || k < cut) {
		cut = k
	}
	host, path := rest, ""
	if cut >= 0 {
		host, path = rest[:cut], rest[cut:]
	}
	if name, port, ok := strings.Cut(host, ":"); ok {
		n, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			return nil, false
		}
		host, out["port"] = name, n
	}
	switch {
	case host == "$host" || host == "$http_host":
	case strings.Contains(host, "$"):
		return nil, false
	default:
		out["hostname"] = host
	}
	switch path {
	case "$request_uri", "$request_uri_unslashed":
		return out, true
	case "":
		path = "/"
	}
	path = strings.TrimSuffix(path, "$is_args$args") // RequestRedirect keeps the query
	u, err := url.Parse(path)
	if err != nil || strings.Contains(path, "$") || u.RawQuery != "" || u.Fragment != "" {
		return nil, false
	}
	out["path"] = tree{"type": "ReplaceFullPath", "replaceFullPath": path}
	return out, true
}

func rewrite(r *route.Rewrite) (out tree, ok bool) {
	out = tree{}
	if r.Hostname != "" {
		out["hostname"] = r.Hostname
	}
	p := r.Path
	switch {
	case p == nil:
	case p.Prefix != nil:
		out["path"] = tree{"type": "ReplacePrefixMatch", "replacePrefixMatch": *p.Prefix}
	case p.Full != nil:
		out["path"] = tree{"type": "ReplaceFullPath", "replaceFullPath": *p.Full}
	case p.Template != nil:
		text, err := route.ParseTemplate(*p.Template)
		if err != nil {
			return out, false
		}
		full, fixed := text.Constant()
		if !fixed {
			return out, false
		}
		out["path"] = tree{"type": "ReplaceFullPath", "replaceFullPath": full}
	}
	return out, true
}

func cors(c *route.CORS) tree {
	out := tree{}
	for field, list := range map[string][]string{
		"allowOrigins": c.AllowOrigins, "allowMethods": c.AllowMethods, "allowHeaders": c.AllowHeaders, "exposeHeaders": c.ExposeHeaders,
	} {
		if len(list) > 0 {
			out[field] = anys(list)
		}
	}
	if c.AllowCredentials {
		out["allowCredentials"] = true
	}
	if c.MaxAge > 0 {
		out["maxAge"] = int64(c.MaxAge)
	}
	return out
}

// backendRef is a reference to the Service of a backend of the tables: "Service/NAMESPACE/NAME/PORT[/VARIANT]".
func (c *ingressConverter) backendRef(key string, name model.Name) (out tree, ok bool) {
	ns, service, port, variant, ok := backendKey(key)
	if !ok {
		c.note(name, true, "", "backend %s is no Service of the cluster, and was left out: make a Service of type ExternalName, or without selector, for it", key)
		return nil, false
	}
	out = tree{"name": service}
	if ns != name.Namespace {
		out["namespace"] = ns
		c.grant(ns, service, name)
	}
	n, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		if n = c.portNumber(model.Name{Namespace: ns, Name: service}, port); n == 0 {
			c.note(name, true, "", "port %q of Service %s/%s is a name, and the Service is not among these objects: a backendRef needs the number", port, ns, service)
			return nil, false
		}
	}
	out["port"] = n
	if strings.Contains(variant, "clusterip") {
		c.note(name, true, "", "Service %s/%s was asked at its cluster IP (service-upstream): a Gateway sends to its endpoints", ns, service)
	}
	return out, true
}

func backendKey(key string) (ns, service, port, variant string, ok bool) {
	parts := strings.SplitN(key, "/", 5)
	if len(parts) < 4 || parts[0] != "Service" {
		return "", "", "", "", false
	}
	if len(parts) == 5 {
		variant = parts[4]
	}
	return parts[1], parts[2], parts[3], variant, true
}

// portNumber is that of a named port, or the first for "-"; 0 is unknown.
func (c *ingressConverter) portNumber(service model.Name, port string) int64 {
	s := c.in.Services[service]
	if s == nil {
		return 0
	}
	for _, p := range s.Ports {
		if p.Name == port || port == "-" {
			return int64(p.Port)
		}
	}
	return 0
}

// grant lets an Ingress's routes refer to a Service of another namespace, as a default backend is.
func (c *ingressConverter) grant(ns, service string, name model.Name) {
	id := "from-" + name.Namespace
	for _, o := range c.extra {
		if o.GetKind() == "ReferenceGrant" && o.GetNamespace() == ns && o.GetName() == id {
			return
		}
	}
	c.extra = append(c.extra, c.object(gatewayGroup+"/v1beta1", "ReferenceGrant", id, ns, tree{
		"from": []any{tree{"group": gatewayGroup, "kind": "HTTPRoute", "namespace": name.Namespace}},
		"to":   []any{tree{"group": "", "kind": "Service", "name": service}},
	}))
}

// isGRPC tells whether all of a route is gRPC for any method.
func (c *ingressConverter) isGRPC(r *route.Route) bool {
	grpc := false
	for i := range r.Rules {
		rule := &r.Rules[i]
		for _, b := range rule.Backends {
			backend := c.backends[b.Backend]
			if backend == nil || backend.Protocol != route.HTTP2 {
				return false
			}
			grpc = true
		}
		for _, m := range rule.Matches {
			if len(rule.Backends) > 0 && (m.Path == nil || m.Path.Kind != route.PathPrefix || m.Path.Value != "/" || len(m.Headers)+len(m.Cookies) > 0) {
				return false
			}
		}
	}
	return grpc
}
