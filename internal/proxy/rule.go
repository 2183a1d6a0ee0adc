// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// rule is a route.Rule made ready for requests.
type rule struct {
	route    *route.Route
	conf     *route.Rule
	invalid  string
	filters  filters
	backends []weighted
	total    uint64 // of the weights
	stats    *ruleStats
}

// weighted is one of a rule's backends. upto is the sum of weights so far.
type weighted struct {
	cell    *backendCell
	key     string
	upto    uint64
	filters filters
	invalid string
}

// filters are a rule's or a backend's filters, sorted by when they act.
type filters struct {
	request  []edit
	response []edit
	redirect *route.Redirect
	rewrite  []*route.Rewrite
	mirrors  []mirror
	cors     *cors
}

// edit is a HeaderEdit whose names are ready to be compared.
type edit struct {
	set, add []field
	remove   []string // lower case
}

type mirror struct {
	cell        *backendCell
	numerator   uint32
	denominator uint32
	invalid     string
}

func (t *tables) compileRule(r *route.Route, i int) *rule {
	conf := &r.Rules[i]
	out := &rule{route: r, conf: conf, invalid: conf.Invalid, filters: t.compileFilters(conf.Filters), stats: newRuleStats()}
	for _, b := range conf.Backends {
		out.total += uint64(b.Weight)
		w := weighted{key: b.Backend, upto: out.total, invalid: b.Invalid, filters: t.compileFilters(b.Filters)}
		if b.Invalid == "" {
			w.cell = t.cell(b.Backend)
		}
		out.backends = append(out.backends, w)
	}
	return out
}

func (t *tables) compileFilters(in []route.Filter) (f filters) {
	for i := range in {
		switch c := &in[i]; {
		case c.RequestHeaders != nil:
			f.request = append(f.request, compileEdit(c.RequestHeaders))
		case c.ResponseHeaders != nil:
			f.response = append(f.response, compileEdit(c.ResponseHeaders))
		case c.Redirect != nil:
			f.redirect = c.Redirect
		case c.Rewrite != nil:
			f.rewrite = append(f.rewrite, c.Rewrite)
		case c.Mirror != nil:
			m := mirror{cell: t.cell(c.Mirror.Backend), numerator: c.Mirror.Numerator, denominator: c.Mirror.Denominator, invalid: c.Mirror.Invalid}
			if m.denominator == 0 {
				m.denominator = 100
			}
			f.mirrors = append(f.mirrors, m)
		case c.CORS != nil:
			f.cors = compileCORS(c.CORS)
		}
	}
	return f
}

func compileEdit(c *route.HeaderEdit) (e edit) {
	for _, h := range c.Set {
		e.set = append(e.set, newField(h.Name, h.Value))
	}
	for _, h := range c.Add {
		e.add = append(e.add, newField(h.Name, h.Value))
	}
	for _, n := range c.Remove {
		e.remove = append(e.remove, strings.ToLower(n))
	}
	return e
}

// newField makes a field of configured text. What could break a message apart is made harmless.
func newField(name, value string) field {
	clean := func(s string, ok *[256]bool) string {
		return strings.Map(func(r rune) rune {
			if r < 0x80 && !ok[byte(r)] {
				return -1
			}
			return r
		}, s)
	}
	name = clean(name, &isToken)
	return field{name: []byte(name), value: []byte(clean(value, &isValue)), id: identify([]byte(name))}
}

// apply edits fields in place: it sets, then adds, then removes.
func (e *edit) apply(fields []field) []field {
	for _, s := range e.set {
		found := false
		for i := range fields {
			if fields[i].id != fDropped && sameName(fields[i].name, s.name) {
				if found {
					fields[i].id = fDropped
				} else {
					fields[i].value, found = s.value, true
				}
			}
		}
		if !found {
			fields = append(fields, s)
		}
	}
	fields = append(fields, e.add...)
	for _, name := range e.remove {
		for i := range fields {
			if equalFold(fields[i].name, name) {
				fields[i].id = fDropped
			}
		}
	}
	return fields
}

func sameName(a, b []byte) bool {
	return len(a) == len(b) && strings.EqualFold(view(a), view(b))
}

// choose picks a backend by weight; nil when there is none with a weight.
func (r *rule) choose() *weighted {
	if r.total == 0 {
		return nil
	}
	if len(r.backends) == 1 {
		return &r.backends[0]
	}
	n := rand.Uint64N(r.total)
	i, _ := slices.BinarySearchFunc(r.backends, n, func(w weighted, n uint64) int {
		if w.upto <= n {
			return -1
		}
		return 1
	})
	return &r.backends[i]
}

// retries tells whether an answer of that status is worth another attempt.
func (r *rule) retries(status int) bool {
	return r.conf.Retry != nil && slices.Contains(r.conf.Retry.Codes, status)
}

// attempts is how often one request may be tried in all.
func (r *rule) attempts() int {
	if r.conf.Retry == nil {
		return 1
	}
	return 1 + min(max(r.conf.Retry.Attempts, 0), 10)
}

// backoff is the wait before the attempt of that number, the first retry being 1.
func (r *rule) backoff(attempt int) time.Duration {
	if r.conf.Retry == nil {
		return 0
	}
	return min(time.Duration(r.conf.Retry.Backoff)<<min(attempt-1, 10), 10*time.Second)
}

// rewritePath replaces a path as the API prescribes (HTTPPathModifier); prefix is the length of what matched.
func rewritePath(p *route.PathRewrite, path string, prefix int) string {
	switch {
	case p == nil:
		return path
	case p.Full != nil:
		path = *p.Full
	case p.Prefix != nil:
		path = strings.TrimRight(*p.Prefix, "/") + path[min(prefix, len(path)):]
	}
	if path == "" || path[0] != '/' {
		path = "/" + path
	}
	return path
}

// location is where a redirect points to (HTTPRequestRedirectFilter).
func location(c *route.Redirect, l *route.Listener, scheme, host, path, query string, prefix int) string {
	port := l.PublicPort
	if port == 0 {
		port = l.Port
	}
	if c.Scheme != "" {
		scheme = strings.ToLower(c.Scheme)
		switch scheme {
		case "http":
			port = 80
		case "https":
			port = 443
		}
	}
	if c.Port != 0 {
		port = c.Port
	}
	if c.Hostname != "" {
		host = c.Hostname
	}
	var b strings.Builder
	b.WriteString(scheme + "://" + host)
	if !(scheme == "http" && port == 80 || scheme == "https" && port == 443) {
		b.WriteString(":" + strconv.Itoa(int(port)))
	}
	b.WriteString(rewritePath(c.Path, path, prefix))
	if query != "" {
		b.WriteString("?" + query)
	}
	return b.String()
}

func redirectStatus(c *route.Redirect) int {
	if c.Status == 0 {
		return http.StatusFound
	}
	return c.Status
}
