// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// request is one to be replayed.
type request struct {
	scheme, host, method, path string
	header                     [2]string // a name in lower case and its value, or none
}

// String is as one would type it.
func (q *request) String() string {
	out := ""
	if q.method != "GET" {
		out = "-X " + q.method + " "
	}
	if q.header[0] != "" {
		out += fmt.Sprintf("-H '%s: %s' ", q.header[0], q.header[1])
	}
	return "curl " + out + q.scheme + "://" + q.host + q.path
}

// Lookup implements route.Lookup.
func (q *request) Lookup(name string) (string, bool) {
	return q.header[1], q.header[0] == name && name != ""
}

// outcome is what becomes of a request, by aspect.
type outcome map[string]string

// replay answers what tables do with requests.
type replay struct {
	tables    *route.Update
	dropped   []string
	listeners map[string]*route.Hosts[*route.Listener] // by scheme
	hosts     map[string]*route.Hosts[*route.HostTable]
	passed    map[string]*route.Hosts[string] // backends of TLSRoutes, by listener
	policies  map[string]*route.Policy
	backends  map[string]*route.Backend
	services  map[model.Name]*model.Service
	outside   map[string]string // backends that are a name outside the cluster
}

func newReplay(u *route.Update, dropped []string, services map[model.Name]*model.Service) *replay {
	t := &replay{
		tables: u, dropped: dropped, services: services, outside: map[string]string{}, policies: map[string]*route.Policy{}, backends: map[string]*route.Backend{}, passed: map[string]*route.Hosts[string]{},
		listeners: map[string]*route.Hosts[*route.Listener]{"http": {}, "https": {}}, hosts: map[string]*route.Hosts[*route.HostTable]{},
	}
	for i := range u.Policies {
		t.policies[u.Policies[i].Key] = &u.Policies[i]
	}
	for i := range u.Backends {
		t.backends[u.Backends[i].Key] = &u.Backends[i]
	}
	for _, set := range u.Endpoints {
		if len(set.Endpoints) == 1 {
			host, _, _ := strings.Cut(set.Endpoints[0].Address, ":")
			if _, err := netip.ParseAddr(host); err != nil && !strings.HasPrefix(set.Endpoints[0].Address, "[") {
				t.outside[set.Key] = set.Endpoints[0].Address
			}
		}
	}
	for i := range u.Backends {
		b := &u.Backends[i]
		t.backends[b.Key] = b
		if to := t.outside[b.Endpoints]; to != "" {
			t.outside[b.Key] = to
		}
	}
	for i := range u.Listeners {
		switch l := &u.Listeners[i]; l.Protocol {
		case route.HTTP:
			t.listeners["http"].Set(l.Hostname, l)
		case route.HTTPS, route.TLS:
			t.listeners["https"].Set(l.Hostname, l)
		}
	}
	entries := map[string]map[string][]*route.Entry{} // by listener and hostname
	for i := range u.Routes {
		r := &u.Routes[i]
		var es []*route.Entry
		if r.Kind == route.HTTPRoute || r.Kind == route.GRPCRoute {
			es, _ = route.Entries(r, func(int) any { return nil }) // a rule that can't be compiled matches nothing on either side
		}
		for _, p := range r.Parents {
			for _, h := range p.Hostnames {
				if r.Kind == route.TLSRoute && len(r.Rules) > 0 {
					if t.passed[p.Listener] == nil {
						t.passed[p.Listener] = &route.Hosts[string]{}
					}
					t.passed[p.Listener].Set(h, t.backendsOf(r.Rules[0].Backends))
					continue
				}
				if entries[p.Listener] == nil {
					entries[p.Listener] = map[string][]*route.Entry{}
				}
				entries[p.Listener][h] = append(entries[p.Listener][h], es...)
			}
		}
	}
	for listener, byHost := range entries {
		t.hosts[listener] = &route.Hosts[*route.HostTable]{}
		for h, es := range byHost {
			t.hosts[listener].Set(h, route.NewHostTable(es))
		}
	}
	return t
}

// outcome is what becomes of a request.
func (t *replay) outcome(q *request) outcome {
	var l *route.Listener
	t.listeners[q.scheme].Find(q.host, func(found *route.Listener) bool { l = found; return false })
	switch {
	case l == nil && q.scheme == "https":
		return outcome{"connection": "refused"} // no certificate for the name
	case l == nil:
		return outcome{"status": "404"}
	case l.Protocol == route.TLS:
		out := outcome{"connection": "refused"}
		if hosts := t.passed[l.Key]; hosts != nil {
			hosts.Find(q.host, func(to string) bool { out = outcome{"connection": "passed to " + to}; return false })
		}
		return out
	}
	path, query, _ := strings.Cut(q.path, "?")
	req := &route.Request{Method: q.method, Path: path, Query: query, Header: q}
	var e *route.Entry
	if hosts := t.hosts[l.Key]; hosts != nil {
		hosts.Find(q.host, func(table *route.HostTable) bool {
			e = table.Match(req)
			return e == nil
		})
	}
	if e == nil {
		return outcome{"status": "404"}
	}
	rule := &e.Route.Rules[e.Rule]
	if rule.Respond == 404 {
		return outcome{"status": "404"}
	}
	out := outcome{}
	if rule.Respond != 0 {
		out["status"] = strconv.Itoa(rule.Respond)
	}
	if rule.Invalid != "" {
		out["status"] = "500: " + rule.Invalid
	}
	if to := t.backendsOf(rule.Backends); to != "" {
		out["to"] = to
	}
	maps.Copy(out, t.policyOf(l, e.Route, rule))
	t.filtered(out, q, l, e, rule, path, query)
	return out
}

// backendsOf are backends with their shares of a hundred, and how they are spoken to.
func (t *replay) backendsOf(in []route.WeightedBackend) string {
	total := uint32(0)
	for _, b := range in {
		total += b.Weight
	}
	var out []string
	for _, b := range in {
		if b.Weight == 0 {
			continue
		}
		to := t.serviceOf(b.Backend)
		if c := t.backends[b.Backend]; c != nil {
			if c.Protocol == route.HTTP2 {
				to += " HTTP/2"
			}
			if c.TLS != nil {
				to += " TLS " + c.TLS.ServerName
			}
			if c.Invalid != "" {
				to += " invalid: " + c.Invalid
			}
		}
		if b.Invalid != "" {
			to += " invalid: " + b.Invalid
		}
		if share := b.Weight * 100 / total; share != 100 {
			to += fmt.Sprintf(" (%d%%)", share)
		}
		out = append(out, to)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// filtered adds what the rule's filters do.
func (t *replay) filtered(out outcome, q *request, l *route.Listener, e *route.Entry, rule *route.Rule, path, query string) {
	v := &values{q: q, l: l, path: path, query: query}
	if re := e.Regex(); re != nil {
		v.groups = re.FindStringSubmatchIndex(path)
	}
	newPath := path
	edits := map[string][]string{}
	edit := func(side string, h *route.HeaderEdit) {
		for _, x := range h.Set {
			edits[side] = append(edits[side], "set "+x.Name+": "+x.Value)
		}
		for _, x := range h.SetTemplates {
			if !slices.Contains(t.dropped, x.Name) {
				edits[side] = append(edits[side], "set "+x.Name+": "+eval(x.Value, v))
			}
		}
		for _, x := range h.Add {
			edits[side] = append(edits[side], "add "+x.Name+": "+x.Value)
		}
		for _, x := range h.Remove {
			if !slices.Contains(t.dropped, x) {
				edits[side] = append(edits[side], "remove "+x)
			}
		}
	}
	for _, f := range t.filters(l, e.Route, rule) {
		switch {
		case f.RequestHeaders != nil:
			edit("request headers", f.RequestHeaders)
		case f.ResponseHeaders != nil:
			edit("response headers", f.ResponseHeaders)
		case f.CORS != nil:
			c := *f.CORS
			c.OneLabel = c.OneLabel && slices.ContainsFunc(c.AllowOrigins, func(o string) bool { return strings.Contains(o, "*.") })
			out["CORS"] = mustJSON(c)
		case f.Mirror != nil:
			out["mirror"] = t.serviceOf(f.Mirror.Backend)
		case f.Rewrite != nil:
			if f.Rewrite.Hostname != "" {
				out["backend's host"] = f.Rewrite.Hostname
			}
			newPath = rewritten(f.Rewrite.Path, e, path, v)
		case f.Redirect != nil:
			out["redirect"] = redirected(f.Redirect, e, v)
		}
	}
	if newPath != path {
		out["backend's path"] = newPath
	}
	for side, list := range edits {
		slices.Sort(list)
		out[side] = strings.Join(list, ", ")
	}
}

// filters are a rule's, with the rewrite and redirect of its policies where it has none of its own.
func (t *replay) filters(l *route.Listener, r *route.Route, rule *route.Rule) []route.Filter {
	var more route.Filter
	for _, keys := range [][]string{l.Policies, r.Policies, rule.Policies} {
		for _, key := range keys {
			if p := t.policies[key]; p != nil {
				more.Rewrite, more.Redirect = cmp.Or(p.Rewrite, more.Rewrite), cmp.Or(p.Redirect, more.Redirect)
			}
		}
	}
	out := slices.Clone(rule.Filters)
	for _, f := range rule.Filters {
		if f.Rewrite != nil {
			more.Rewrite = nil
		}
		if f.Redirect != nil {
			more.Redirect = nil
		}
	}
	if more.Rewrite != nil {
		out = append(out, route.Filter{Rewrite: more.Rewrite})
	}
	if more.Redirect != nil {
		out = append(out, route.Filter{Redirect: more.Redirect})
	}
	return out
}

func rewritten(p *route.PathRewrite, e *route.Entry, path string, v *values) string {
	switch {
	case p == nil:
		return path
	case p.Full != nil:
		return *p.Full
	case p.Template != nil:
		return eval(*p.Template, v)
	case p.Prefix != nil:
		rest := path[min(e.PrefixLength(), len(path)):]
		return "/" + strings.Trim(strings.TrimSuffix(*p.Prefix, "/")+"/"+strings.TrimPrefix(rest, "/"), "/") + trailing(rest)
	}
	return path
}

// trailing is the slash that a rest of a path ends with, unless it is all of it.
func trailing(rest string) string {
	if len(rest) > 1 && strings.HasSuffix(rest, "/") {
		return "/"
	}
	return ""
}

// redirected is where a redirect leads. One "/" at the end is not told: see redirect in ingressrule.go.
func redirected(r *route.Redirect, e *route.Entry, v *values) string {
	status := strconv.Itoa(cmp.Or(r.Status, 302))
	if r.Location != "" {
		return status + " " + strings.TrimSuffix(eval(r.Location, v), "/")
	}
	scheme := cmp.Or(r.Scheme, v.q.scheme)
	host := cmp.Or(r.Hostname, v.q.host)
	if r.Port != 0 && !(scheme == "http" && r.Port == 80) && !(scheme == "https" && r.Port == 443) {
		host += ":" + strconv.Itoa(int(r.Port))
	}
	to := url.URL{Scheme: scheme, Host: host}
	path := rewritten(r.Path, e, v.path, v)
	out := to.String() + path
	if v.query != "" {
		out += "?" + v.query
	}
	return status + " " + strings.TrimSuffix(out, "/")
}

func eval(t route.Template, v *values) string {
	text, err := route.ParseTemplate(t)
	if err != nil {
		return string(t)
	}
	return text.Eval(v)
}

// values are a request's for templates. What only a real request has is told by its name.
type values struct {
	q           *request
	l           *route.Listener
	path, query string
	groups      []int
}

// Value implements route.Values.
func (v *values) Value(variable route.Variable, name string, group int) string {
	uri := v.path
	if v.query != "" {
		uri += "?" + v.query
	}
	switch variable {
	case route.VarHost:
		return v.q.host
	case route.VarURI:
		return v.path
	case route.VarArgs:
		return v.query
	case route.VarIsArgs:
		if v.query != "" {
			return "?"
		}
		return ""
	case route.VarRequestURI:
		return uri
	case route.VarUnslashedURI:
		return strings.TrimSuffix(uri, "/")
	case route.VarEscapedURI:
		return url.QueryEscape(uri)
	case route.VarScheme:
		return v.q.scheme
	case route.VarRequestMethod:
		return v.q.method
	case route.VarHeader:
		if name == "host" {
			return v.q.host
		}
		h, _ := v.q.Lookup(name)
		return h
	case route.VarGroup:
		return route.Group(v.path, v.groups, group)
	case route.VarServerPort:
		return strconv.Itoa(int(cmp.Or(v.l.PublicPort, v.l.Port)))
	}
	return fmt.Sprintf("(variable %d %s)", variable, name)
}

// requests are those that show every decision of the tables.
func (t *replay) requests() []request {
	seen := map[request]bool{}
	var out []request
	add := func(q request) {
		if !seen[q] {
			seen[q] = true
			out = append(out, q)
		}
	}
	for _, scheme := range []string{"http", "https"} {
		for _, host := range t.hostnames() {
			paths, headers, methods := t.edges()
			for _, p := range paths {
				add(request{scheme: scheme, host: host, method: "GET", path: p})
				for _, h := range headers {
					add(request{scheme: scheme, host: host, method: "GET", path: p, header: h})
				}
				for _, m := range methods {
					add(request{scheme: scheme, host: host, method: m, path: p})
				}
			}
		}
	}
	return out
}

// hostnames are those of the tables, names below the wildcards, and one that nobody has.
func (t *replay) hostnames() []string {
	all := map[string]bool{"host.that.nobody.has": true}
	add := func(h string) {
		if domain, ok := strings.CutPrefix(h, "*."); ok {
			all["a."+domain], all["a.b."+domain] = true, true
		} else if h != "" {
			all[h] = true
		}
	}
	for _, l := range t.tables.Listeners {
		add(l.Hostname)
	}
	for _, r := range t.tables.Routes {
		for _, p := range r.Parents {
			for _, h := range p.Hostnames {
				add(h)
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// literal is the beginning of a regular expression that stands for itself, and the text within its first groups.
var literal = regexp.MustCompile(`^(?:\(\?[a-z:]*\)?)*((?:[\w/~%-]|\\.)*)`)

// edges are paths on both sides of every border that rules draw, and the headers and methods that they look at.
func (t *replay) edges() (paths []string, headers [][2]string, methods []string) {
	p, h, m := map[string]bool{"/": true, "/a-path-that-nobody-has": true, "/dir/": true, "/?x=1": true}, map[[2]string]bool{}, map[string]bool{"POST": true}
	for i := range t.tables.Routes {
		for j := range t.tables.Routes[i].Rules {
			for _, match := range t.tables.Routes[i].Rules[j].Matches {
				if match.Path != nil {
					base := match.Path.Value
					if match.Path.Kind == route.PathRegex {
						base = strings.ReplaceAll(literal.FindStringSubmatch(base)[1], `\`, "")
					}
					short := strings.TrimSuffix(base, "/")
					for _, more := range []string{base, short, short + "/", short + "/a", short + "/a/b/", short + "x", short + "/a?x=1&y=2"} {
						if strings.HasPrefix(more, "/") {
							p[more] = true
						}
					}
				}
				for _, v := range match.Headers {
					h[[2]string{strings.ToLower(v.Name), "another value"}] = true
					if !v.Regex {
						h[[2]string{strings.ToLower(v.Name), v.Value}] = true
					}
				}
				for _, v := range match.Cookies {
					if !v.Regex {
						for _, c := range []string{v.Name + "=" + v.Value, "a=b; " + v.Name + "=" + v.Value + "; c=d", "x" + v.Name + "=" + v.Value, v.Name + "=" + v.Value + "x"} {
							h[[2]string{"cookie", c}] = true
						}
					}
				}
				if match.Method != "" {
					m[match.Method] = true
				}
			}
		}
	}
	byName := func(a, b [2]string) int { return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1])) }
	return slices.Sorted(maps.Keys(p)), slices.SortedFunc(maps.Keys(h), byName), slices.Sorted(maps.Keys(m))
}
