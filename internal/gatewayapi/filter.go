// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/route"
)

// What the API leaves to the implementation.
const (
	defaultAttempts = 2                     // retries when retry says no number
	defaultBackoff  = 25 * time.Millisecond // before the first of them
)

// ofRule is where a rule's own filters stand in it.
const ofRule = "filters"

// httpFilters translates filters of a rule, or of one of its backends; at is where they stand. prefix says that the rule
// matches by one prefix, which a prefix replacement needs.
func (r *ruleCompiler) httpFilters(at string, in []gwv1.HTTPRouteFilter, prefix bool) (out []route.Filter) {
	var redirects, rewrites, asks bool
	for i := range in {
		f := &in[i]
		missing := func() {
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: type is %s, and the field of that name is missing", f.Type)
		}
		switch f.Type {
		case gwv1.HTTPRouteFilterRequestHeaderModifier:
			if f.RequestHeaderModifier == nil {
				missing()
				continue
			}
			out = append(out, route.Filter{RequestHeaders: r.headerEdit("requestHeaderModifier", f.RequestHeaderModifier)})
		case gwv1.HTTPRouteFilterResponseHeaderModifier:
			if f.ResponseHeaderModifier == nil {
				missing()
				continue
			}
			out = append(out, route.Filter{ResponseHeaders: r.headerEdit("responseHeaderModifier", f.ResponseHeaderModifier)})
		case gwv1.HTTPRouteFilterRequestRedirect:
			if f.RequestRedirect == nil {
				missing()
				continue
			}
			redirects = true
			out = append(out, route.Filter{Redirect: r.redirect(f.RequestRedirect, prefix)})
		case gwv1.HTTPRouteFilterURLRewrite:
			if f.URLRewrite == nil {
				missing()
				continue
			}
			rewrites = true
			rw := &route.Rewrite{Path: r.pathRewrite(f.URLRewrite.Path, prefix)}
			if f.URLRewrite.Hostname != nil {
				rw.Hostname = string(*f.URLRewrite.Hostname)
			}
			out = append(out, route.Filter{Rewrite: rw})
		case gwv1.HTTPRouteFilterRequestMirror:
			if f.RequestMirror == nil {
				missing()
				continue
			}
			out = append(out, route.Filter{Mirror: r.mirror(f.RequestMirror)})
		case gwv1.HTTPRouteFilterCORS:
			if f.CORS == nil {
				missing()
				continue
			}
			out = append(out, route.Filter{CORS: cors(f.CORS)})
		case gwv1.HTTPRouteFilterExtensionRef:
			r.extension(f.ExtensionRef)
		case gwv1.HTTPRouteFilterExternalAuth:
			if f.ExternalAuth == nil {
				missing()
				continue
			}
			if asks {
				r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: externalAuth is there twice")
			}
			asks = true
			switch a := r.externalAuth(fmt.Sprintf("%s[%d]", at, i), f.ExternalAuth); {
			case a == nil:
			case at == ofRule:
				r.askFirst(a)
			default:
				out = append(out, route.Filter{ExternalAuth: a})
			}
		default:
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: type %q is not supported", f.Type)
		}
	}
	if redirects && rewrites {
		r.refuse(gwv1.RouteReasonIncompatibleFilters, "filters: RequestRedirect and URLRewrite can't go together: a request is either redirected or forwarded")
	}
	return out
}

func (r *ruleCompiler) grpcFilters(in []gwv1.GRPCRouteFilter) (out []route.Filter) {
	for i := range in {
		f := &in[i]
		switch {
		case f.Type == gwv1.GRPCRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out = append(out, route.Filter{RequestHeaders: r.headerEdit("requestHeaderModifier", f.RequestHeaderModifier)})
		case f.Type == gwv1.GRPCRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out = append(out, route.Filter{ResponseHeaders: r.headerEdit("responseHeaderModifier", f.ResponseHeaderModifier)})
		case f.Type == gwv1.GRPCRouteFilterRequestMirror && f.RequestMirror != nil:
			out = append(out, route.Filter{Mirror: r.mirror(f.RequestMirror)})
		case f.Type == gwv1.GRPCRouteFilterExtensionRef:
			r.extension(f.ExtensionRef)
		default:
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: type %q is not supported, or the field of that name is missing", f.Type)
		}
	}
	return out
}

// externalAuth is whom a filter of the rule, or of one of its backends, has asked; nil when that is refused. at is where it
// stands.
func (r *ruleCompiler) externalAuth(at string, f *gwv1.HTTPExternalAuthFilter) *route.ExternalAuth {
	if r.refused {
		return nil
	}
	body := 0
	if f.ForwardBody != nil {
		body = int(f.ForwardBody.MaxSize)
		r.extra.take(at+".externalAuth.forwardBody.maxSize", &body) // release 1.7 has a wider one
	}
	a, refusal, problem := r.s.externalAuth(r.c, f, body)
	if refusal != "" {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: %s", refusal)
		return nil
	}
	if problem != nil {
		problem.message = "filters: " + problem.message
		r.unresolved(*problem)
	}
	return a
}

// askFirst makes a policy of the rule that asks an authority: it takes the place of more general ones. Its key stays as long
// as the rule has its place.
func (r *ruleCompiler) askFirst(a *route.ExternalAuth) {
	key := fmt.Sprintf("%s/%s/rules/%d/externalAuth", r.c.from.kind, r.c.from.Name, r.index)
	r.rule.Policies = []string{key}
	r.c.own = append(r.c.own, route.Policy{Key: key, ExternalAuth: a})
}

// extension answers filters of others: none is known, and the API forbids to skip them.
func (r *ruleCompiler) extension(ref *gwv1.LocalObjectReference) {
	what := "nothing"
	if ref != nil {
		what = fmt.Sprintf("kind %s of group %q", ref.Kind, ref.Group)
	}
	v := no(gwv1.RouteReasonInvalidKind, "filters: extensionRef refers to "+what+", which is not a filter that weft knows; requests of the rule get an error until it is removed")
	r.unresolved(v)
	if r.rule.Invalid == "" {
		r.rule.Invalid = v.message
	}
}

// headerEdit translates a modifier of headers. Those that frame messages stay as they are, and of those that one list names
// twice the first counts; the route says so. The API has one action for a header: with two nobody knows what is meant.
func (r *ruleCompiler) headerEdit(field string, h *gwv1.HTTPHeaderFilter) *route.HeaderEdit {
	out := &route.HeaderEdit{}
	note := func(format string, args ...any) {
		r.c.notes = append(r.c.notes, fmt.Sprintf("rules[%d]: filters: ", r.index)+fmt.Sprintf(format, args...))
	}
	actions := map[string]string{} // the list by the header's name
	first := func(list, name string) bool {
		if route.Framing(name) && !(list == "set" && field == "requestHeaderModifier" && strings.EqualFold(name, "host")) {
			note("%s does not change %s, which says how messages travel and is the gateway's own: remove it there", field, name)
		}
		key := strings.ToLower(name)
		before, again := actions[key]
		switch {
		case again && before == list:
			if list == "remove" {
				return false // the same thing twice
			}
			note("%s.%s names %s again: the first counts", field, list, name)
			return false
		case again:
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: %s has header %s in %s and in %s: a header takes one action, keep one of them", field, name, before, list)
		}
		actions[key] = list
		return true
	}
	for _, s := range h.Set {
		if first("set", string(s.Name)) {
			out.Set = append(out.Set, route.Header{Name: string(s.Name), Value: s.Value})
		}
	}
	for _, a := range h.Add {
		if first("add", string(a.Name)) {
			out.Add = append(out.Add, route.Header{Name: string(a.Name), Value: a.Value})
		}
	}
	for _, name := range h.Remove {
		if first("remove", name) {
			out.Remove = append(out.Remove, name)
		}
	}
	return out
}

func (r *ruleCompiler) redirect(f *gwv1.HTTPRequestRedirectFilter, prefix bool) *route.Redirect {
	out := &route.Redirect{Path: r.pathRewrite(f.Path, prefix)}
	if f.Scheme != nil {
		out.Scheme = *f.Scheme
		if out.Scheme != "http" && out.Scheme != "https" {
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: requestRedirect.scheme %q is not supported: http and https are", out.Scheme)
		}
	}
	if f.Hostname != nil {
		out.Hostname = string(*f.Hostname)
	}
	if f.Port != nil {
		out.Port = uint16(*f.Port)
	}
	if f.StatusCode != nil {
		out.Status = *f.StatusCode
		if !slices.Contains([]int{301, 302, 303, 307, 308}, out.Status) {
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: requestRedirect.statusCode %d is not supported: 301, 302, 303, 307 and 308 are", out.Status)
		}
	}
	return out
}

func (r *ruleCompiler) pathRewrite(p *gwv1.HTTPPathModifier, prefix bool) *route.PathRewrite {
	if p == nil {
		return nil
	}
	switch p.Type {
	case gwv1.FullPathHTTPPathModifier:
		full := ""
		if p.ReplaceFullPath != nil {
			full = *p.ReplaceFullPath
		}
		return &route.PathRewrite{Full: &full}
	case gwv1.PrefixMatchHTTPPathModifier:
		if !prefix {
			r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: path.replacePrefixMatch needs that the rule has exactly one match, of path.type PathPrefix")
		}
		replacement := ""
		if p.ReplacePrefixMatch != nil {
			replacement = *p.ReplacePrefixMatch
		}
		return &route.PathRewrite{Prefix: &replacement}
	}
	r.refuse(gwv1.RouteReasonUnsupportedValue, "filters: path.type %q is not supported: ReplaceFullPath and ReplacePrefixMatch are", p.Type)
	return nil
}

func (r *ruleCompiler) mirror(f *gwv1.HTTPRequestMirrorFilter) *route.Mirror {
	out := &route.Mirror{Numerator: 100, Denominator: 100}
	switch {
	case f.Fraction != nil:
		out.Numerator = uint32(max(f.Fraction.Numerator, 0))
		if f.Fraction.Denominator != nil && *f.Fraction.Denominator > 0 {
			out.Denominator = uint32(*f.Fraction.Denominator)
		}
	case f.Percent != nil:
		out.Numerator = uint32(max(*f.Percent, 0))
	}
	id, problem := r.s.resolve(r.c, f.BackendRef, r.as)
	if problem != nil {
		problem.message = "filters: requestMirror: " + problem.message
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

func cors(f *gwv1.HTTPCORSFilter) *route.CORS {
	out := &route.CORS{MaxAge: f.MaxAge, AllowCredentials: f.AllowCredentials != nil && *f.AllowCredentials}
	for _, o := range f.AllowOrigins {
		out.AllowOrigins = append(out.AllowOrigins, string(o))
	}
	for _, m := range f.AllowMethods {
		out.AllowMethods = append(out.AllowMethods, string(m))
	}
	for _, h := range f.AllowHeaders {
		out.AllowHeaders = append(out.AllowHeaders, string(h))
	}
	for _, h := range f.ExposeHeaders {
		out.ExposeHeaders = append(out.ExposeHeaders, string(h))
	}
	return out
}

// duration reads a GEP-2257 duration, which Go's notation includes; nil is 0.
func (r *ruleCompiler) duration(field string, d *gwv1.Duration) route.Duration {
	if d == nil {
		return 0
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil || v < 0 {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "%s: %q is not a duration: write it like 10s or 500ms", field, *d)
		return 0
	}
	return route.Duration(v)
}

func (r *ruleCompiler) retry(in *gwv1.HTTPRouteRetry) {
	if in == nil {
		return
	}
	out := &route.Retry{Attempts: defaultAttempts, Backoff: route.Duration(defaultBackoff)}
	for _, c := range in.Codes {
		out.Codes = append(out.Codes, int(c))
	}
	if in.Attempts != nil {
		out.Attempts = max(*in.Attempts, 0)
	}
	if in.Backoff != nil {
		out.Backoff = r.duration("retry.backoff", in.Backoff)
	}
	r.rule.Retry = out
}

func (r *ruleCompiler) session(in *gwv1.SessionPersistence) {
	if in == nil {
		return
	}
	out := &route.Session{Kind: route.SessionCookie, Name: r.sessionName(), ChangeOnFailure: true, AbsoluteTimeout: r.duration("sessionPersistence.absoluteTimeout", in.AbsoluteTimeout)}
	if in.Type != nil {
		switch *in.Type {
		case gwv1.CookieBasedSessionPersistence:
		case gwv1.HeaderBasedSessionPersistence:
			out.Kind, out.Name = route.SessionHeader, "X-Weft-Session"
		default:
			r.refuse(gwv1.RouteReasonUnsupportedValue, "sessionPersistence.type %q is not supported: Cookie and Header are", *in.Type)
		}
	}
	if in.SessionName != nil && *in.SessionName != "" {
		out.Name = *in.SessionName
	}
	if c := in.CookieConfig; c != nil && c.LifetimeType != nil {
		out.Permanent = *c.LifetimeType == gwv1.PermanentCookieLifetimeType
	}
	r.laterSession(out)
	if out.Permanent && out.AbsoluteTimeout == 0 {
		r.refuse(gwv1.RouteReasonUnsupportedValue, "sessionPersistence: a Permanent cookie needs absoluteTimeout")
	}
	r.rule.Session = out
}

// laterSession reads sessionPersistence's fields of release 1.7, which took the place of sessionName and cookieConfig.
func (r *ruleCompiler) laterSession(out *route.Session) {
	var cookie struct {
		Name         string                  `json:"name"`
		Path         string                  `json:"path"`
		LifetimeType gwv1.CookieLifetimeType `json:"lifetimeType"`
	}
	if out.Kind == route.SessionCookie && r.extra.take("sessionPersistence.cookie", &cookie) {
		if cookie.Name != "" {
			out.Name = cookie.Name
		}
		out.Path, out.Permanent = cookie.Path, cookie.LifetimeType == gwv1.PermanentCookieLifetimeType
		switch cookie.LifetimeType {
		case "", gwv1.SessionCookieLifetimeType, gwv1.PermanentCookieLifetimeType:
		default:
			r.refuse(gwv1.RouteReasonUnsupportedValue, "sessionPersistence.cookie.lifetimeType %q is not supported: Session and Permanent are", cookie.LifetimeType)
		}
	}
	var header struct {
		Name string `json:"name"`
	}
	if out.Kind == route.SessionHeader && r.extra.take("sessionPersistence.header", &header) && header.Name != "" {
		out.Name = header.Name
	}
}

// sessionName is a cookie's name that the rules of one host do not share, and that stays when others come and go.
func (r *ruleCompiler) sessionName() string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s/%s/%d", r.c.from.kind, r.c.from.Name, r.index)
	return fmt.Sprintf("weft-session-%08x", h.Sum32())
}

// lower is for hostnames, which have no case.
func lower[T ~string](in []T) (out []string) {
	for _, h := range in {
		out = append(out, strings.ToLower(string(h)))
	}
	return out
}
