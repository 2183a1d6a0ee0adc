// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

func sameRules(a, b []route.Rule) bool { return reflect.DeepEqual(a, b) }

// sortLocations puts the host's locations into the order in which ingress-nginx has them: the longest first. Within a
// route it breaks ties alone.
func (v *server) sortLocations() {
	slices.SortStableFunc(v.locations, func(a, b *location) int {
		return cmp.Or(cmp.Compare(len(b.path), len(a.path)), cmp.Compare(b.path, a.path), cmp.Compare(a.kind, b.kind))
	})
}

// rules makes an Ingress's rules for the host, over TLS or in plain text.
func (v *server) rules(i *ingress, secure bool) (out []route.Rule) {
	if root := v.appRoot(); root == i && root != nil {
		out = append(out, route.Rule{
			Name: "app-root", Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathExact, Value: "/"}, Headers: v.hostMatch()}},
			Filters: []route.Filter{{Redirect: &route.Redirect{Location: route.Template("$scheme://$http_host" + i.set.appRoot), Status: 302}}},
		})
	}
	for _, l := range v.locations {
		if l.by == i {
			out = append(out, v.locationRules(l, secure)...)
		}
	}
	return out
}

// appRoot is the oldest Ingress of the host with an app-root: it takes "/" whatever else is there.
func (v *server) appRoot() *ingress {
	for _, i := range v.members {
		if i.set.appRoot != "" && !i.set.canary && slices.ContainsFunc(v.locations, func(l *location) bool { return l.by == i }) {
			return i
		}
	}
	return nil
}

// hostMatch is the match on the Host header that every rule of a wildcard has.
func (v *server) hostMatch() []route.ValueMatch {
	if v.wildcard == nil {
		return nil
	}
	return []route.ValueMatch{*v.wildcard}
}

// locationRules makes the rules of one location. Rules with more to match come first.
func (v *server) locationRules(l *location, secure bool) (out []route.Rule) {
	path, broken := v.path(l)
	base := route.Match{Path: path, Headers: v.hostMatch()}
	name := l.name()
	if broken != nil {
		v.h.problem(l.by, "InvalidPath", "%s.path: %v: weft's regular expressions are RE2, which has no lookaround and no backreferences; "+
			"what begins like it gets 503", l.field, broken)
		return []route.Rule{{Name: name, Matches: []route.Match{base}, Respond: 503}}
	}
	if m := blockedMatches(base, &l.by.set); len(m) > 0 {
		out = append(out, route.Rule{Name: name + " blocked", Matches: m, Respond: 403})
	}
	serve := v.serve(l, base, secure)
	if !v.redirectsToTLS(l, secure) {
		return append(out, append(serve, v.slash(l)...)...)
	}
	if v.s.globalConfig().forwardedHeaders && !v.asksForCertificates() {
		// The proxy in front has ended TLS for those: they are not sent round again.
		for _, r := range serve {
			r.Matches = slices.Clone(r.Matches)
			for k := range r.Matches {
				r.Matches[k].Headers = append(slices.Clone(r.Matches[k].Headers), route.ValueMatch{Name: "x-forwarded-proto", Value: "https"})
			}
			out = append(out, r)
		}
	}
	return append(out, route.Rule{Name: name + " to TLS", Matches: []route.Match{base}, Filters: []route.Filter{{Redirect: v.toTLS(&l.by.set)}}})
}

// name is the rule's in metrics and logs.
func (l *location) name() string {
	if l.isDefault {
		return "default"
	}
	return l.path
}

// redirectsToTLS tells whether plain requests are sent to TLS: always when forced, else where the host has a certificate.
func (v *server) redirectsToTLS(l *location, secure bool) bool {
	if secure || slices.ContainsFunc(l.by.set.noTLSRedirect, func(p string) bool { return strings.HasPrefix(l.path, p) }) {
		return false
	}
	return l.by.set.forceSSLRedirect || l.by.set.sslRedirect && v.hasCert || v.asksForCertificates()
}

// asksForCertificates tells whether nobody gets in without a client certificate: in plain text there is none to show.
func (v *server) asksForCertificates() bool {
	return v.client != nil && !v.client.Optional && !v.client.AllowInsecureFallback
}

func (v *server) toTLS(set *settings) *route.Redirect {
	to := "https://$host"
	if set.portInRedirects {
		to += ":" + strconv.Itoa(int(cmp.Or(v.s.opts.PublicHTTPS, 443)))
	}
	if set.preserveTrailingSlash {
		to += "$request_uri"
	} else {
		to += "$request_uri_unslashed"
	}
	return &route.Redirect{Location: route.Template(to), Status: set.redirectCode}
}

// slash is the redirect that nginx makes from "/a" to "/a/" where a location ends with a slash.
func (v *server) slash(l *location) []route.Rule {
	short := strings.TrimSuffix(l.path, "/")
	if v.regex || l.kind != model.IngressImplementationSpecific || short == l.path || short == "" ||
		slices.ContainsFunc(v.locations, func(o *location) bool { return o.path == short }) {
		return nil
	}
	return []route.Rule{{
		Name: l.path + " slash", Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathExact, Value: short}, Headers: v.hostMatch()}},
		Filters: []route.Filter{{Redirect: &route.Redirect{Location: route.Template("$scheme://$http_host" + escapeTemplate(l.path) + "$is_args$args"), Status: 301}}},
	}}
}

// escapeTemplate makes text that a template gives out as it is.
func escapeTemplate(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// path makes a location's comparison. In a host with regular expressions every path is one, matched without case from
// its beginning, the longest first, as in ingress-nginx. broken is why an expression can't be used; path is then what
// begins like it.
func (v *server) path(l *location) (path *route.PathMatch, broken error) {
	if l.isDefault || l.path == "/" && !v.regex && l.kind != model.IngressExact {
		return &route.PathMatch{Kind: route.PathPrefix, Value: "/"}, nil
	}
	if !v.regex {
		kind := map[model.IngressPathType]route.PathKind{
			model.IngressExact: route.PathExact, model.IngressPrefix: route.PathPrefix, model.IngressImplementationSpecific: route.PathStringPrefix,
		}[l.kind]
		return &route.PathMatch{Kind: kind, Value: l.path}, nil
	}
	m := &route.PathMatch{Kind: route.PathRegex, CaseInsensitive: true, Value: "(?:" + l.path + ")" + anyRest}
	if l.strips() {
		m.Value = "(?:" + regexp.QuoteMeta(strings.TrimRight(l.path, "/")) + ")" + groupedRest
	}
	if _, err := regexp.Compile("(?i)^(?:" + m.Value + ")$"); err != nil {
		literal := l.path
		if k := strings.IndexAny(literal, `^$[](){}*+?|\.`); k >= 0 {
			literal = literal[:k]
		}
		return &route.PathMatch{Kind: route.PathRegex, CaseInsensitive: true, Value: "(?:" + regexp.QuoteMeta(literal) + ")" + anyRest}, err
	}
	return m, nil
}

// What follows a path in its expression: anything, or whole elements of which $1 is the text. The longest expression is
// tried first, so that both have the same length: the path's own decides.
const (
	anyRest     = "(?s:.*)(?:)(?:)"
	groupedRest = "(?:/((?s:.*)))?"
)

// strips tells whether a location's rewrite-target "/" takes its prefix off, as the Kubernetes documentation's examples
// mean it, in place of sending every request to "/".
func (l *location) strips() bool {
	return l.by.set.rewriteTarget == "/" && l.by.set.rewriteRoot == "strip" && l.kind == model.IngressPrefix && !isRegex(l.path) && !l.by.set.useRegex
}

// serve makes the rules that answer a location's requests.
func (v *server) serve(l *location, base route.Match, secure bool) (out []route.Rule) {
	set := &l.by.set
	rule := route.Rule{Name: l.name(), Matches: []route.Match{base}}
	if l.by.authPolicy != "" && !slices.ContainsFunc(set.noAuth, func(p string) bool { return strings.HasPrefix(l.path, p) }) {
		rule.Policies = append(rule.Policies, l.by.authPolicy)
	}
	if to, code := set.redirect(); to != "" && !l.isDefault {
		rule.Filters = []route.Filter{{Redirect: &route.Redirect{Location: route.Template(to), Status: code}}}
		return []route.Rule{rule}
	}
	switch {
	case l.backend == nil:
		rule.Respond = 404
		return []route.Rule{rule}
	case l.backend.Service == "":
		rule.Respond = 503
		return []route.Rule{rule}
	}
	rule.Filters = v.filters(l, secure)
	rule.Session = session(l)
	rule.Retry = set.retry()
	if p := v.errorPages(l); p != "" {
		rule.Policies = append(rule.Policies, p)
	}
	main := v.backend(l, l.backend, secure)
	if instead, ok := v.instead(l, main.Backend, secure); ok {
		rule.Backends = []route.WeightedBackend{instead}
		rule.Filters = append(rule.Filters, route.Filter{RequestHeaders: &route.HeaderEdit{
			Set:          append([]route.Header{{Name: "X-Code", Value: "503"}}, l.describe()...),
			SetTemplates: []route.TemplateHeader{{Name: "X-Format", Value: "$http_accept"}},
		}})
		return []route.Rule{rule}
	}
	if l.canary == nil {
		main.Weight = 1
		rule.Backends = []route.WeightedBackend{main}
		return []route.Rule{rule}
	}
	return v.canaryRules(l, rule, main, secure)
}

// canaryRules sends requests to the canary by header, cookie and weight, in this order, as ingress-nginx does.
func (v *server) canaryRules(l *location, rule route.Rule, main route.WeightedBackend, secure bool) (out []route.Rule) {
	c, by := &l.canary.by.set, l.canary.by
	other := v.backend(&location{by: l.by, backend: l.canary.backend, namespace: by.obj.Namespace, field: l.field}, l.canary.backend, secure)
	to := func(suffix string, b route.WeightedBackend, edit func(*route.Match)) {
		r := rule
		r.Name = rule.Name + " " + suffix
		r.Matches = slices.Clone(rule.Matches)
		edit(&r.Matches[0])
		b.Weight = 1
		r.Backends = []route.WeightedBackend{b}
		out = append(out, r)
	}
	header := func(m route.ValueMatch) func(*route.Match) {
		return func(r *route.Match) { r.Headers = append(slices.Clone(r.Headers), m) }
	}
	if h := c.canaryHeader; h != "" {
		switch {
		case c.canaryHeaderValue != "":
			to("canary by header", other, header(route.ValueMatch{Name: h, Value: c.canaryHeaderValue}))
		case c.canaryHeaderPattern != "":
			to("canary by header", other, header(route.ValueMatch{Name: h, Value: anywhere(c.canaryHeaderPattern), Regex: true}))
		default:
			to("canary by header", other, header(route.ValueMatch{Name: h, Value: "always"}))
			to("not canary by header", main, header(route.ValueMatch{Name: h, Value: "never"}))
		}
	}
	if n := c.canaryCookie; n != "" {
		cookie := func(value string) func(*route.Match) {
			return func(r *route.Match) {
				r.Cookies = append(slices.Clone(r.Cookies), route.ValueMatch{Name: n, Value: value})
			}
		}
		to("canary by cookie", other, cookie("always"))
		to("not canary by cookie", main, cookie("never"))
	}
	if c.affinityCanary == "legacy" && rule.Session != nil {
		each := *rule.Session
		each.PerBackend = true
		rule.Session = &each
	}
	total := max(c.canaryWeightTotal, 100)
	weight := min(max(c.canaryWeight, 0), total)
	main.Weight, other.Weight = uint32(total-weight), uint32(weight)
	rule.Backends = []route.WeightedBackend{main, other}
	if weight == 0 {
		main.Weight = 1
		rule.Backends = []route.WeightedBackend{main}
	}
	return append(out, rule)
}

// filters are what is changed of requests and answers.
func (v *server) filters(l *location, secure bool) (out []route.Filter) {
	set := &l.by.set
	if c := set.cors(); c != nil {
		out = append(out, route.Filter{CORS: c})
	}
	edit := &route.HeaderEdit{Remove: []string{"Proxy"}} // httpoxy (CVE-2016-5385)
	if l.by.basic {
		edit.Remove = append(edit.Remove, "Authorization")
	}
	if v.client != nil && !secure { // over TLS the proxy tells, or drops, them
		edit.Set = append(edit.Set, route.Header{Name: "ssl-client-verify", Value: "NONE"})
		edit.Remove = append(edit.Remove, "ssl-client-cert", "ssl-client-subject-dn", "ssl-client-issuer-dn")
	}
	edit.SetTemplates = append([]route.TemplateHeader{
		{Name: "X-Real-IP", Value: "$remote_addr"},
		{Name: "X-Scheme", Value: "$http_x_forwarded_proto"},
		{Name: "X-Forwarded-Scheme", Value: "$http_x_forwarded_proto"},
	}, l.by.requestHeaders...)
	if set.forwardedPrefix != "" {
		edit.SetTemplates = append(edit.SetTemplates, route.TemplateHeader{Name: "X-Forwarded-Prefix", Value: route.Template(set.forwardedPrefix)})
	}
	out = append(out, route.Filter{RequestHeaders: edit})
	if len(l.by.responseHeaders) > 0 {
		out = append(out, route.Filter{ResponseHeaders: &route.HeaderEdit{Set: l.by.responseHeaders}})
	}
	rewrite := route.Rewrite{Hostname: l.expand(set.upstreamHost)}
	switch target := set.rewriteTarget; {
	case target == "" || target == l.path || l.isDefault:
	case l.strips() && !v.regex:
		root := "/"
		rewrite.Path = &route.PathRewrite{Prefix: &root}
	case l.strips():
		t := route.Template("/$1")
		rewrite.Path = &route.PathRewrite{Template: &t}
	default:
		t := route.Template(target)
		rewrite.Path = &route.PathRewrite{Template: &t}
	}
	if rewrite != (route.Rewrite{}) {
		out = append(out, route.Filter{Rewrite: &rewrite})
	}
	if l.by.mirror != nil {
		v.backends[l.by.mirror.conf.Key] = *l.by.mirror
		out = append(out, route.Filter{Mirror: &route.Mirror{
			Backend: l.by.mirror.conf.Key, Numerator: 100, Denominator: 100, Hostname: l.by.mirrorHost, WithoutBody: !set.mirrorWithBody,
		}})
	}
	return out
}

// expand puts the Service's name, namespace and port into a value: the variables of ingress-nginx that service meshes have
// people use in upstream-vhost.
func (l *location) expand(text string) string {
	if !strings.Contains(text, "$") {
		return text
	}
	port := l.backend.PortName
	if l.backend.Port != 0 {
		port = strconv.Itoa(int(l.backend.Port))
	}
	return strings.NewReplacer(
		"$service_name", l.backend.Service, "${service_name}", l.backend.Service, "$namespace", l.namespace, "${namespace}", l.namespace,
		"$service_port", port, "${service_port}", port, "$ingress_name", l.by.obj.Name.Name,
	).Replace(text)
}

// describe are the headers by which a default backend is told what a request was for.
func (l *location) describe() []route.Header {
	port := l.backend.PortName
	if l.backend.Port != 0 {
		port = strconv.Itoa(int(l.backend.Port))
	}
	return []route.Header{
		{Name: "X-Namespace", Value: l.by.obj.Namespace}, {Name: "X-Ingress-Name", Value: l.by.obj.Name.Name},
		{Name: "X-Service-Name", Value: l.backend.Service}, {Name: "X-Service-Port", Value: port},
	}
}

// errorPages makes the policy for custom-http-errors, which tells the default backend which Service it stands in for.
func (v *server) errorPages(l *location) string {
	set := &l.by.set
	if len(set.errorStatuses) == 0 || !set.interceptErrors {
		return ""
	}
	b, namespace := v.defaultBackend(l)
	if b == nil {
		if !l.isDefault {
			v.h.problem(l.by, "NoDefaultBackend", "%scustom-http-errors: there is no default backend that could answer: set %sdefault-backend to a Service "+
				"with endpoints, or have the administrator name one; errors are passed on as they are", Prefix, Prefix)
		}
		return ""
	}
	pages := serviceBackend(namespace, b, route.Backend{Protocol: route.HTTP1}, "")
	v.backends[pages.conf.Key] = pages
	key := fmt.Sprintf("Ingress/%s/%s/errors/%s/%s", l.by.obj.Name, cmp.Or(v.h.name, "_"), l.backend.Service, cmp.Or(l.backend.PortName, strconv.Itoa(int(l.backend.Port))))
	v.policies[key] = route.Policy{Key: key, ErrorPages: &route.ErrorPages{Statuses: set.errorStatuses, Backend: pages.conf.Key, Headers: l.describe()}}
	return key
}

// defaultBackend is that of the default-backend annotation when it has endpoints, or the class's or controller's.
func (v *server) defaultBackend(l *location) (*model.IngressBackend, string) {
	if name := l.by.set.defaultBackend; name != "" {
		b := &model.IngressBackend{Service: name}
		def := serviceBackend(l.by.obj.Namespace, b, route.Backend{Protocol: route.HTTP1}, "")
		v.backends[def.conf.Key] = def // so that its endpoints are followed
		set, _ := v.s.endpointsOf(&def)
		v.empty[def.conf.Key] = len(set) > 0
		if len(set) > 0 {
			return b, l.by.obj.Namespace
		}
	}
	return v.s.fallback(l.by)
}

// instead gives the default-backend annotation's Service when the location's own has no endpoints.
func (v *server) instead(l *location, key string, secure bool) (route.WeightedBackend, bool) {
	if l.by.set.defaultBackend == "" {
		return route.WeightedBackend{}, false
	}
	b := v.backends[key]
	set, _ := v.s.endpointsOf(&b)
	v.empty[key] = len(set) > 0
	if len(set) > 0 {
		return route.WeightedBackend{}, false
	}
	d, namespace := v.defaultBackend(l)
	if d == nil || d.Service != l.by.set.defaultBackend || namespace != l.by.obj.Namespace {
		return route.WeightedBackend{}, false
	}
	def := serviceBackend(namespace, d, route.Backend{Protocol: route.HTTP1}, "")
	return route.WeightedBackend{Backend: def.conf.Key, Weight: 1}, true
}

// backend names a Service's port, spoken to as the location's Ingress says.
func (v *server) backend(l *location, b *model.IngressBackend, secure bool) route.WeightedBackend {
	conf, variant := l.by.speak(b, l.namespace, secure)
	return v.use(l, b, conf, variant)
}

func (v *server) use(l *location, b *model.IngressBackend, conf route.Backend, variant string) route.WeightedBackend {
	if l.by.set.serviceUpstream {
		variant = strings.Trim("clusterip/"+variant, "/")
	}
	out := serviceBackend(l.namespace, b, conf, variant)
	out.clusterIP = l.by.set.serviceUpstream
	v.backends[out.conf.Key] = out
	if _, why := v.s.endpointsOf(&out); why != "" {
		v.h.problem(l.by, "BackendNotFound", "%s: %s; requests get 503", l.field, why)
	}
	return route.WeightedBackend{Backend: out.conf.Key, Weight: 1}
}

// session keeps clients with one endpoint. ingress-nginx's cookie has the location's path.
func session(l *location) *route.Session {
	set := &l.by.set
	if set.affinity != "cookie" {
		return nil
	}
	age := cmp.Or(set.cookieMaxAge, set.cookieExpires)
	s := &route.Session{
		Kind: route.SessionCookie, Name: set.cookieName, Path: set.cookiePath, Domain: set.cookieDomain, SameSite: set.cookieSameSite,
		Secure: set.cookieSecure, ChangeOnFailure: set.cookieChangeOnFailure,
	}
	if s.Path == "" && !isRegex(l.path) {
		s.Path = l.path
	}
	if age > 0 {
		s.AbsoluteTimeout, s.Permanent = route.Duration(time.Duration(age)*time.Second), true
	}
	return s
}
