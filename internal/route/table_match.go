// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"net/url"
	"strings"
)

// Request is what rules look at. Its strings need to live only as long as the call that gets it.
type Request struct {
	Method string
	Path   string // without query, normalised by the caller
	Query  string // raw, without "?"
	Header Lookup
}

// Lookup finds a header by its lower-case name. Several of one name are joined by ",", those of Cookie by ";".
type Lookup interface {
	Lookup(name string) (value string, ok bool)
}

// Match gives the entry that wins, or nil.
func (t *HostTable) Match(r *Request) *Entry {
	if e := first(t.exact.get(r.Path), r); e != nil {
		return e
	}
	for _, e := range t.regex {
		if e.matches(r) {
			return e
		}
	}
	// From the longest prefix of whole elements to the shortest, "/" left for last.
	lengths := t.lengths
	for p := t.longest(r.Path); p != ""; {
		for len(lengths) > 0 && lengths[0] > len(p) {
			if e := t.stringPrefix(lengths[0], r); e != nil {
				return e
			}
			lengths = lengths[1:]
		}
		if e := first(t.prefix.get(p), r); e != nil {
			return e
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			break
		}
		p = p[:i]
	}
	for _, n := range lengths {
		if e := t.stringPrefix(n, r); e != nil {
			return e
		}
	}
	if e := first(t.anySvc, r); e != nil {
		return e
	}
	return first(t.prefix.get(""), r)
}

// stringPrefix looks for a prefix of n bytes.
func (t *HostTable) stringPrefix(n int, r *Request) *Entry {
	if n > len(r.Path) {
		return nil
	}
	return first(t.byString.get(r.Path[:n]), r)
}

// longest cuts the path to as many elements as the longest prefix of the table has.
func (t *HostTable) longest(path string) string {
	slashes := 0
	for i := range len(path) {
		if path[i] == '/' {
			if slashes++; slashes > t.maxDepth {
				return path[:i]
			}
		}
	}
	return path
}

func first(entries []*Entry, r *Request) *Entry {
	for _, e := range entries {
		if e.matches(r) {
			return e
		}
	}
	return nil
}

func (e *Entry) matches(r *Request) bool {
	if e.broken || e.method != "" && e.method != r.Method {
		return false
	}
	return e.pathMatches(r.Path) && e.failing(r) == ""
}

func (e *Entry) pathMatches(path string) bool {
	switch e.class {
	case exactPath:
		return path == e.path
	case regexPath:
		return e.regex.MatchString(path)
	case stringPrefix:
		return strings.HasPrefix(path, e.path)
	case prefixPath:
		return strings.HasPrefix(path, e.path) && (len(path) == len(e.path) || path[len(e.path)] == '/') || e.path == ""
	default: // /service/Method
		return strings.HasSuffix(path, e.path) && strings.Count(path, "/") == 2
	}
}

// failing names the first header, cookie or query parameter that does not match, or is "".
func (e *Entry) failing(r *Request) string {
	for i := range e.headers {
		if m := &e.headers[i]; !m.matches(r.Header.Lookup(m.name)) {
			return "header " + m.name
		}
	}
	for i := range e.cookies {
		header, _ := r.Header.Lookup("cookie")
		if m := &e.cookies[i]; !m.matches(Cookie(header, m.name)) {
			return "cookie " + m.name
		}
	}
	for i := range e.query {
		if m := &e.query[i]; !m.matches(queryParam(r.Query, m.name)) {
			return "query parameter " + m.name
		}
	}
	return ""
}

// Cookie finds a cookie in the value of a Cookie header (RFC 6265 section 4.2); several are to be joined by ";".
func Cookie(header, name string) (string, bool) {
	for header != "" {
		var pair string
		pair, header, _ = strings.Cut(header, ";")
		if k, v, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && k == name {
			return strings.Trim(v, `"`), true
		}
	}
	return "", false
}

// queryParam finds the first parameter of the name, decoded.
func queryParam(query, name string) (string, bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(pair, "=")
		if unescape(key) == name && pair != "" {
			return unescape(value), true
		}
	}
	return "", false
}

func unescape(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// Verdict says of one entry what became of it for one request.
type Verdict struct {
	Entry *Entry
	Wins  bool
	Why   string // "wins", or why not
}

// Explain tells for every entry, in the order of precedence, why it wins or loses. It agrees with Match.
func (t *HostTable) Explain(r *Request) []Verdict {
	winner := t.Match(r)
	all := t.sorted()
	out := make([]Verdict, 0, len(all))
	for _, e := range all {
		v := Verdict{Entry: e, Wins: e == winner}
		switch {
		case v.Wins:
			v.Why = "wins"
		case e.broken:
			v.Why = "its regular expression is not valid"
		case !e.pathMatches(r.Path):
			v.Why = fmt.Sprintf("path %s does not match", r.Path)
		case e.method != "" && e.method != r.Method:
			v.Why = fmt.Sprintf("method is not %s", e.method)
		default:
			if f := e.failing(r); f != "" {
				v.Why = f + " does not match"
			} else {
				v.Why = fmt.Sprintf("matches, but %s goes first", winner.Route.Key)
			}
		}
		out = append(out, v)
	}
	return out
}

// Hosts is a map from hostnames to values which is asked with a request's host.
type Hosts[V any] struct {
	exact    map[string]V
	wildcard map[string]V // keyed without "*."
	any      *V
}

// Set adds a hostname: exact, "*.example.com", or "".
func (h *Hosts[V]) Set(hostname string, v V) {
	hostname = strings.ToLower(hostname)
	if hostname == "" || hostname == "*" {
		h.any = &v
		return
	}
	m := &h.exact
	if rest, ok := strings.CutPrefix(hostname, "*."); ok {
		m, hostname = &h.wildcard, rest
	}
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[hostname] = v
}

// Find calls yield with the values for host, the most specific hostname's first, until it returns false.
func (h *Hosts[V]) Find(host string, yield func(V) bool) {
	more := true
	if len(h.exact) > 0 {
		if v, ok := h.exact[host]; ok {
			more = yield(v)
		}
	}
	for rest := host; more && len(h.wildcard) > 0; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		if v, ok := h.wildcard[rest]; ok {
			more = yield(v)
		}
	}
	if more && h.any != nil {
		yield(*h.any)
	}
}

// Each calls f with every value.
func (h *Hosts[V]) Each(f func(V)) {
	for _, v := range h.exact {
		f(v)
	}
	for _, v := range h.wildcard {
		f(v)
	}
	if h.any != nil {
		f(*h.any)
	}
}
