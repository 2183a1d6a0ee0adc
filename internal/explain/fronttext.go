// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// filterText puts a filter into words; ends says that the gateway answers by it, and nobody else is asked.
func filterText(f *route.Filter, r *Request) (text string, ends bool) {
	switch {
	case f.Redirect != nil:
		return redirectText(f.Redirect, r), true
	case f.Rewrite != nil:
		return rewriteText(f.Rewrite), false
	case f.RequestHeaders != nil:
		return "request headers: " + headersText(f.RequestHeaders), false
	case f.ResponseHeaders != nil:
		return "response headers: " + headersText(f.ResponseHeaders), false
	case f.Mirror != nil:
		return "a copy goes to " + f.Mirror.Backend, false
	case f.CORS != nil:
		return "CORS for origins " + strings.Join(f.CORS.AllowOrigins, ", "), false
	case f.ExternalAuth != nil:
		return authText(f.ExternalAuth), f.ExternalAuth.Invalid != ""
	}
	return "nothing", false
}

// authText puts into words whom requests are asked about.
func authText(a *route.ExternalAuth) string {
	switch {
	case a.Invalid != "":
		return "whether the request may pass can't be asked, the answer is 500: " + a.Invalid
	case a.GRPC:
		return "whether the request may pass is asked of " + a.Backend + " over gRPC"
	}
	return "whether the request may pass is asked of " + strings.TrimSuffix(a.Backend+" "+string(a.Path), " ")
}

func redirectText(r *route.Redirect, of *Request) string {
	status := r.Status
	if status == 0 {
		status = 302
	}
	to := []string{}
	if r.Location != "" {
		to = append(to, of.location(r.Location))
	}
	if r.Scheme != "" {
		to = append(to, "scheme "+r.Scheme)
	}
	if r.Hostname != "" {
		to = append(to, "host "+r.Hostname)
	}
	if r.Port != 0 {
		to = append(to, fmt.Sprintf("port %d", r.Port))
	}
	if r.Path != nil {
		to = append(to, pathText(r.Path))
	}
	return fmt.Sprintf("the gateway answers with a redirect (%d) to %s", status, strings.Join(to, ", "))
}

// location is where a template leads a request.
func (r *Request) location(t route.Template) string {
	text, err := route.ParseTemplate(t)
	if err != nil {
		return string(t)
	}
	return text.Eval(r)
}

// Value implements route.Values. What a question does not tell, such as the client's address, is "…".
func (r *Request) Value(v route.Variable, name string, _ int) string {
	path, query := cmp.Or(r.URL.EscapedPath(), "/"), ""
	if r.URL.RawQuery != "" {
		query = "?" + r.URL.RawQuery
	}
	switch v {
	case route.VarHost:
		return r.host()
	case route.VarURI:
		return path
	case route.VarArgs:
		return r.URL.RawQuery
	case route.VarIsArgs:
		return query[:min(1, len(query))]
	case route.VarArg:
		return r.URL.Query().Get(name)
	case route.VarRequestURI:
		return path + query
	case route.VarUnslashedURI:
		return strings.TrimSuffix(path+query, "/")
	case route.VarEscapedURI:
		return url.QueryEscape(path + query)
	case route.VarScheme:
		return r.URL.Scheme
	case route.VarRequestMethod:
		return r.Method
	case route.VarServerPort:
		if port, err := r.port(); err == nil {
			return strconv.Itoa(int(port))
		}
	case route.VarHeader:
		if name == "host" {
			return r.Authority()
		}
		return r.Headers[name]
	}
	return "…"
}

func rewriteText(r *route.Rewrite) string {
	var to []string
	if r.Hostname != "" {
		to = append(to, "host "+r.Hostname)
	}
	if r.Path != nil {
		to = append(to, pathText(r.Path))
	}
	return "the backend gets to see " + strings.Join(to, ", ")
}

func pathText(p *route.PathRewrite) string {
	switch {
	case p.Template != nil:
		return "path " + string(*p.Template)
	case p.Full != nil:
		return "path " + *p.Full
	case p.Prefix != nil:
		return "the matched prefix replaced by " + *p.Prefix
	}
	return "the same path"
}

func headersText(h *route.HeaderEdit) string {
	var out []string
	for _, x := range h.Set {
		out = append(out, "set "+x.Name)
	}
	for _, x := range h.SetTemplates {
		out = append(out, "set "+x.Name)
	}
	for _, x := range h.Add {
		out = append(out, "add "+x.Name)
	}
	for _, x := range h.Remove {
		out = append(out, "remove "+x)
	}
	return strings.Join(out, ", ")
}

// policyTexts puts what a policy asks of requests into words.
func policyTexts(p *route.Policy) []string {
	var out []string
	if s := p.Sources; s != nil {
		text := "any client address"
		if len(s.Allow) > 0 {
			text = "only clients of " + joinAny(s.Allow)
		}
		if len(s.Deny) > 0 {
			text += ", not of " + joinAny(s.Deny)
		}
		out = append(out, text+" (403 else)")
	}
	if p.BasicAuth != nil {
		out = append(out, "a name and password are asked for (401 without)")
	}
	if a := p.ExternalAuth; a != nil && !a.Disabled {
		out = append(out, authText(a))
	}
	for _, l := range p.RateLimits {
		out = append(out, fmt.Sprintf("at most %d requests in %s for each client, %d more at once", l.Requests, time.Duration(l.Per), l.Burst))
	}
	if c := p.Connections; c != nil {
		out = append(out, fmt.Sprintf("at most %d requests at a time for each client", c.Max))
	}
	if p.WAF != nil {
		out = append(out, "a web application firewall looks at it")
	}
	return out
}
