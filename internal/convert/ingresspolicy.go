// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// fields are a spec's as JSON.
func fields(spec *v1alpha1.TrafficPolicySpec) map[string]json.RawMessage {
	var out map[string]json.RawMessage
	if err := json.Unmarshal([]byte(mustJSON(spec)), &out); err != nil {
		panic(err) // it was written by the line above
	}
	delete(out, "targetRefs")
	return out
}

// guards belong to those that asked for them, however many they are: they are never the Gateway's default.
var guards = []string{"sources", "basicAuth", "externalAuth", "satisfy", "rateLimits", "connectionLimit", "firewall", "errorPages", "sessionCookie", "rewrite", "redirect"}

// findDefaults finds what the policies of Ingresses mostly say, ingress-nginx's defaults usually: the Gateway's own
// policy says it once, and those of routes what differs. A field that some Ingress lacks is no default, since there is
// no way to take it back.
func (c *ingressConverter) findDefaults() {
	counts, routes := map[string]map[string]int{}, 0
	for i := range c.tables.Routes {
		r := &c.tables.Routes[i]
		ns, n, ok := strings.Cut(r.Name, "/")
		if !ok || r.Kind != route.HTTPRoute {
			continue
		}
		routes++
		for k, v := range fields(c.spec(r.Policies, model.Name{Namespace: ns, Name: n})) {
			if counts[k] == nil {
				counts[k] = map[string]int{}
			}
			counts[k][string(v)]++
		}
	}
	c.defaults = map[string]json.RawMessage{}
	for k, values := range counts {
		total, most := 0, ""
		for _, v := range slices.Sorted(maps.Keys(values)) {
			total += values[v]
			if most == "" || values[v] > values[most] {
				most = v
			}
		}
		if total == routes && !slices.Contains(guards, k) {
			c.defaults[k] = json.RawMessage(most)
		}
	}
	if len(c.defaults) > 0 {
		c.attach(c.Gateway.Name, c.Gateway.Namespace, c.defaults, tree{"group": gatewayGroup, "kind": "Gateway", "name": c.Gateway.Name})
	}
}

// attach has a TrafficPolicy for a target: that of the namespace with the same content, if there is one with room.
func (c *ingressConverter) attach(name, namespace string, all map[string]json.RawMessage, target tree) {
	const room = 16
	id := namespace + " " + mustJSON(all)
	if old, ok := c.attached[id]; ok {
		if refs := sub(old.Object, "spec")["targetRefs"].([]any); len(refs) < room {
			sub(old.Object, "spec")["targetRefs"] = append(refs, target)
			return
		}
	}
	spec := tree{"targetRefs": []any{target}}
	for k, v := range all {
		var plain any
		if err := json.Unmarshal(v, &plain); err != nil {
			panic(err) // a RawMessage is JSON
		}
		spec[k] = plain
	}
	o := c.object(v1alpha1.GroupVersion.String(), "TrafficPolicy", c.free("TrafficPolicy", namespace, name), namespace, spec)
	c.attached[id] = o
	c.extra = append(c.extra, o)
}

// trafficPolicies writes the policies of a route and of its rules.
func (c *ingressConverter) trafficPolicies(r *route.Route, name model.Name, o Object, named map[string]*v1alpha1.TrafficPolicySpec) {
	if r.Kind != route.HTTPRoute {
		return
	}
	target := tree{"group": gatewayGroup, "kind": o.GetKind(), "name": o.GetName()}
	all := fields(c.spec(r.Policies, name))
	maps.DeleteFunc(all, func(k string, v json.RawMessage) bool { return string(c.defaults[k]) == string(v) })
	if len(all) > 0 {
		c.attach(name.Name, name.Namespace, all, target)
	}
	for _, section := range slices.Sorted(maps.Keys(named)) {
		if !slices.ContainsFunc(ruleNames(o), func(n string) bool { return n == section }) {
			continue
		}
		target := maps.Clone(target)
		target["sectionName"] = section
		c.attach(o.GetName()+"-"+section, name.Namespace, fields(named[section]), target)
	}
}

func ruleNames(o Object) (out []string) {
	for _, rule := range items(sub(o.Object, "spec"), "rules") {
		out = append(out, text(rule, "name"))
	}
	return out
}

// spec is what policies of the tables say, merged, as a TrafficPolicy has it.
func (c *ingressConverter) spec(keys []string, name model.Name) *v1alpha1.TrafficPolicySpec {
	out := &v1alpha1.TrafficPolicySpec{}
	for _, key := range keys {
		if p := c.policies[key]; p != nil {
			c.access(out, p, name)
			c.limits(out, p)
			c.answers(out, p, name)
			c.upstream(out, p)
			if p.Connection != "" {
				c.note(name, true, "", "backends no longer get Connection: %s: it concerns one hop, and no policy sets it", p.Connection)
			}
		}
	}
	return out
}

// access writes who may.
func (c *ingressConverter) access(out *v1alpha1.TrafficPolicySpec, p *route.Policy, name model.Name) {
	if p.Invalid != "" {
		c.note(name, true, "", "is not served as it is, its requests get 503: %s. The route is written without what can't be enforced: put that right before you use it", p.Invalid)
	}
	if s := p.Sources; s != nil {
		out.Sources = &v1alpha1.SourceRanges{Allow: prefixes(s.Allow), Deny: prefixes(s.Deny)}
	}
	if b := p.BasicAuth; b != nil {
		out.BasicAuth = &v1alpha1.BasicAuth{Realm: b.Realm, SecretRef: v1alpha1.SecretKey{Name: c.annotationName(name, "auth-secret")}}
		if c.annotation(name, "auth-secret-type") == "auth-map" {
			c.note(name, true, "", "the Secret of auth-secret has a key for each user (auth-map): basicAuth wants one key, auth, with a line for each")
		}
	}
	if e := p.ExternalAuth; e != nil {
		out.ExternalAuth = c.externalAuth(e, name)
	}
	if p.SatisfyAny != nil {
		out.Satisfy = map[bool]string{true: "Any", false: "All"}[*p.SatisfyAny]
	}
	if w := p.WAF; w != nil {
		out.Firewall = &v1alpha1.Firewall{Mode: "Enforce", CoreRules: &w.CoreRules, Rules: w.Rules}
		if w.DetectOnly {
			out.Firewall.Mode = "Detect"
		}
		if w.Disabled {
			out.Firewall = &v1alpha1.Firewall{Mode: "Off"}
		}
	}
}

func (c *ingressConverter) externalAuth(e *route.ExternalAuth, name model.Name) *v1alpha1.ExternalAuth {
	out := &v1alpha1.ExternalAuth{
		Disabled: e.Disabled, Host: e.Host, Path: string(e.Path), Method: e.Method, SignInURL: string(e.Signin), SignInParameter: e.SigninParam,
		ResponseHeaders: e.ResponseHeaders,
	}
	for _, h := range e.RequestHeaders {
		out.RequestHeaders = append(out.RequestHeaders, v1alpha1.HeaderTemplate{Name: h.Name, Value: h.Value})
	}
	if e.CacheKey != "" {
		out.Cache = &v1alpha1.ExternalAuthCache{Key: string(e.CacheKey)}
		for _, f := range e.CacheFor {
			out.Cache.For = append(out.Cache.For, v1alpha1.ExternalAuthCacheTime{Statuses: numbers(f.Statuses), Duration: duration(f.For)})
		}
	}
	if e.Timeout != 0 {
		out.Timeout = duration(e.Timeout)
	}
	if e.AlwaysSetCookie {
		c.note(name, true, "", "auth-always-set-cookie: cookies of the authentication server reach clients with the backend's answer only where it is no error")
	}
	if e.Backend != "" {
		out.BackendRef = c.servicePort(e.Backend, name, "externalAuth")
	}
	return out
}

// servicePort refers to a Service beside the policy. For a server outside a Service of type ExternalName is made.
func (c *ingressConverter) servicePort(key string, name model.Name, what string) *v1alpha1.ServicePort {
	if ns, service, port, _, ok := backendKey(key); ok {
		n, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			n = c.portNumber(model.Name{Namespace: ns, Name: service}, port)
		}
		if ns == name.Namespace && n != 0 {
			return &v1alpha1.ServicePort{Name: service, Port: n}
		}
		c.note(name, true, "", "%s: Service %s/%s port %s: a TrafficPolicy takes Services of its own namespace, by the port's number", what, ns, service, port)
		return &v1alpha1.ServicePort{Name: service, Port: n}
	}
	parts := strings.SplitN(key, "/", 3) // Address/SCHEME/HOST:PORT
	if len(parts) != 3 {
		return nil
	}
	host, port, _ := strings.Cut(parts[2], ":")
	n, err := strconv.ParseInt(port, 10, 32)
	if err != nil || strings.Contains(port, ":") {
		c.note(name, true, "", "%s: make a Service for %s", what, parts[2])
		return nil
	}
	if ns, service, ok := inCluster(host); ok && ns == name.Namespace {
		return &v1alpha1.ServicePort{Name: service, Port: n}
	}
	id := label(host)
	if !c.has("Service", name.Namespace, id) {
		c.extra = append(c.extra, c.object("v1", "Service", id, name.Namespace, tree{
			"type": "ExternalName", "externalName": host, "ports": []any{tree{"port": n}},
		}))
		if parts[1] == "https" {
			c.extra = append(c.extra, c.object(gatewayGroup+"/v1", "BackendTLSPolicy", id, name.Namespace, tree{
				"targetRefs": []any{tree{"group": "", "kind": "Service", "name": id}},
				"validation": tree{"hostname": host, "wellKnownCACertificates": "System"},
			}))
		}
	}
	return &v1alpha1.ServicePort{Name: id, Port: n}
}

// inCluster takes a Service's DNS name apart.
func inCluster(host string) (namespace, service string, ok bool) {
	parts := strings.SplitN(host, ".", 4)
	if len(parts) < 3 || parts[2] != "svc" {
		return "", "", false
	}
	return parts[1], parts[0], true
}

// limits writes how much.
func (c *ingressConverter) limits(out *v1alpha1.TrafficPolicySpec, p *route.Policy) {
	if len(p.RateLimits) > 0 {
		out.RateLimits = nil
	}
	for _, l := range p.RateLimits {
		out.RateLimits = append(out.RateLimits, v1alpha1.RateLimit{
			Name: l.Name, Requests: int64(l.Requests), Per: duration(l.Per), Burst: int64(l.Burst), Status: int64(cmp.Or(l.Status, 503)),
			Key: string(l.Key), Exempt: prefixes(l.Exempt),
		})
	}
	if l := p.Connections; l != nil {
		out.ConnectionLimit = &v1alpha1.ConnectionLimit{Max: int64(l.Max), Status: int64(l.Status), Exempt: prefixes(l.Exempt)}
	}
	if p.MaxRequestBody != nil || p.BufferRequest != nil {
		out.RequestBody = &v1alpha1.RequestBody{Buffer: p.BufferRequest}
		if p.MaxRequestBody != nil {
			out.RequestBody.MaxSize = quantity(*p.MaxRequestBody)
		}
	}
	if p.ResponseRate != nil || p.BufferResponse != nil {
		out.ResponseBody = &v1alpha1.ResponseBody{Buffer: p.BufferResponse}
		if r := p.ResponseRate; r != nil {
			out.ResponseBody.BytesPerSecond = quantity(r.BytesPerSecond)
			if r.After > 0 {
				out.ResponseBody.FullSpeedBytes = quantity(r.After)
			}
		}
	}
}

// answers writes what else the answer is.
func (c *ingressConverter) answers(out *v1alpha1.TrafficPolicySpec, p *route.Policy, name model.Name) {
	if e := p.ErrorPages; e != nil {
		if ref := c.servicePort(e.Backend, name, "errorPages"); ref != nil {
			out.ErrorPages = &v1alpha1.ErrorPages{Statuses: numbers(e.Statuses), BackendRef: *ref}
		}
	}
	if h := p.HSTS; h != nil {
		out.StrictTransportSecurity = &v1alpha1.StrictTransportSecurity{Disabled: h.Disabled, IncludeSubdomains: h.IncludeSubdomains, Preload: h.Preload}
		if !h.Disabled {
			out.StrictTransportSecurity.MaxAgeSeconds = &h.MaxAge
		}
	}
	if len(p.HideHeaders) > 0 {
		out.HideHeaders = p.HideHeaders
	}
	if k := p.Cookies; k != nil {
		out.Cookies = &v1alpha1.CookieRewrites{Domains: replacements(k.Domains), Paths: replacements(k.Paths)}
	}
	if l := p.Locations; l != nil {
		out.Locations = replacements(l.Replace)
	}
	if p.AccessLog != nil {
		out.AccessLog = p.AccessLog
	}
}

// upstream writes how backends are asked.
func (c *ingressConverter) upstream(out *v1alpha1.TrafficPolicySpec, p *route.Policy) {
	if b := p.Balance; b != nil {
		out.LoadBalancing = &v1alpha1.LoadBalancing{Type: string(b.Kind), HashKey: string(b.Key), SubsetSize: int64(b.SubsetSize)}
	}
	if p.Session != nil {
		out.SessionCookie = sessionCookie(p.Session)
	}
	t := v1alpha1.BackendTimeouts{}
	if p.Timeouts != nil {
		t.Request, t.BackendRequest = unlessZero(p.Timeouts.Request), unlessZero(p.Timeouts.BackendRequest)
	}
	t.Connect, t.Read, t.Send = unlessZero(p.ConnectTimeout), unlessZero(p.ReadTimeout), unlessZero(p.SendTimeout)
	if t != (v1alpha1.BackendTimeouts{}) {
		out.Timeouts = &t
	}
	if p.Retry != nil {
		out.Retry = backendRetry(p.Retry)
	}
}

// ruleSpec is the policy of one rule: its policies, and what only experimental fields of routes could say.
func (c *ingressConverter) ruleSpec(rule *route.Rule, name model.Name) *v1alpha1.TrafficPolicySpec {
	out := c.spec(rule.Policies, name)
	if rule.Session != nil {
		out.SessionCookie = sessionCookie(rule.Session)
	}
	// Two more attempts where a connection fails is ingress-nginx's default, and near enough to weft's.
	if t := rule.Retry; t != nil && (len(t.Codes) > 0 || t.Attempts > 2 || t.Never || !t.Idempotent) {
		out.Retry = backendRetry(t)
	}
	for i := range rule.Filters {
		switch f := &rule.Filters[i]; {
		case f.Redirect != nil:
			if _, ok := redirect(f.Redirect); !ok {
				out.Redirect = &v1alpha1.TemplateRedirect{Location: string(f.Redirect.Location), Status: int64(f.Redirect.Status)}
			}
		case f.Rewrite != nil:
			if _, ok := rewrite(f.Rewrite); !ok {
				out.Rewrite = &v1alpha1.TemplateRewrite{Hostname: f.Rewrite.Hostname, Path: string(*f.Rewrite.Path.Template)}
			}
		}
	}
	if len(fields(out)) == 0 {
		return nil
	}
	return out
}

func sessionCookie(s *route.Session) *v1alpha1.SessionCookie {
	out := &v1alpha1.SessionCookie{Name: s.Name, Path: s.Path, Domain: s.Domain, SameSite: s.SameSite, ChangeOnFailure: &s.ChangeOnFailure}
	if s.Permanent || s.AbsoluteTimeout != 0 {
		out.Lifetime = duration(s.AbsoluteTimeout)
	}
	return out
}

func backendRetry(r *route.Retry) *v1alpha1.BackendRetry {
	attempts := int64(r.Attempts)
	if r.Never {
		attempts = 0
	}
	return &v1alpha1.BackendRetry{Statuses: numbers(r.Codes), Attempts: &attempts, Backoff: unlessZero(r.Backoff), IdempotentOnly: &r.Idempotent}
}

func unlessZero(d route.Duration) string {
	if d == 0 {
		return ""
	}
	return duration(d)
}

func prefixes(in []netip.Prefix) (out []string) {
	for _, p := range in {
		out = append(out, p.String())
	}
	return out
}

func numbers(in []int) (out []int64) {
	for _, n := range in {
		out = append(out, int64(n))
	}
	return out
}

func replacements(in []route.Replacement) (out []v1alpha1.Replacement) {
	for _, r := range in {
		out = append(out, v1alpha1.Replacement{From: r.From, Regex: r.Regex, To: string(r.To)})
	}
	return out
}

func quantity(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

// backendPolicies writes how backends are spoken to over TLS, one BackendTLSPolicy a Service.
func (c *ingressConverter) backendPolicies() {
	done := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(c.backends)) {
		b := c.backends[key]
		ns, service, _, variant, ok := backendKey(key)
		if !ok {
			continue
		}
		who := c.userOf(key)
		if b.Protocol == route.HTTP2 && b.TLS == nil {
			c.note(who, true, "", "Service %s/%s speaks HTTP/2 without TLS: set appProtocol: kubernetes.io/h2c on its port", ns, service)
		}
		if b.TLS == nil || done[ns+"/"+service] {
			continue
		}
		done[ns+"/"+service] = true
		validation := tree{"hostname": b.TLS.ServerName}
		_, rest, _ := strings.Cut(variant, "/")
		switch {
		case b.TLS.CAs != "" && rest != "":
			validation["caCertificateRefs"] = []any{tree{"group": "", "kind": "Secret", "name": c.annotationName(who, "proxy-ssl-secret")}}
		default:
			validation["wellKnownCACertificates"] = "System"
		}
		if b.TLS.Insecure {
			c.note(who, true, "", "certificates of Service %s/%s were not checked (proxy-ssl-verify: off): BackendTLSPolicy always does; name the CA of theirs in caCertificateRefs, "+
				"and the name that they are for in hostname", ns, service)
		}
		if b.TLS.ClientCertificate != "" {
			c.note(who, true, "", "Service %s/%s is shown the client certificate %s: that is spec.tls.backend.clientCertificateRef of the Gateway, for all of its backends", ns, service, b.TLS.ClientCertificate)
		}
		c.extra = append(c.extra, c.object(gatewayGroup+"/v1", "BackendTLSPolicy", c.free("BackendTLSPolicy", ns, service), ns, tree{
			"targetRefs": []any{tree{"group": "", "kind": "Service", "name": service}}, "validation": validation,
		}))
	}
}

func (c *ingressConverter) annotation(who model.Name, annotation string) string {
	if o := c.in.Ingresses[who]; o != nil {
		return o.Annotations[ingress.Prefix+annotation]
	}
	return ""
}

// annotationName is the name of the object that an annotation refers to, "name" or "namespace/name".
func (c *ingressConverter) annotationName(who model.Name, annotation string) string {
	v := c.annotation(who, annotation)
	return v[strings.LastIndex(v, "/")+1:]
}

// userOf is an Ingress with a rule to a backend.
func (c *ingressConverter) userOf(key string) model.Name {
	for i := range c.tables.Routes {
		r := &c.tables.Routes[i]
		ns, n, ok := strings.Cut(r.Name, "/")
		for j := range r.Rules {
			if ok && slices.ContainsFunc(r.Rules[j].Backends, func(b route.WeightedBackend) bool { return b.Backend == key }) {
				return model.Name{Namespace: ns, Name: n}
			}
		}
	}
	return model.Name{}
}
