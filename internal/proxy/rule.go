// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

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
	policies []*policyCell // the route's, then its own
	plain    plan          // without policies
	plans    atomic.Pointer[[]*plan]
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
	redirect *redirect
	rewrite  []rewrite
	mirrors  []mirror
	cors     *cors
	external []*externalAuth // of a backend
}

// edit is a HeaderEdit whose names are ready to be compared. Fields that frame messages or concern one connection are
// not in it: where a message ends is the proxy's to say.
type edit struct {
	set, add  []field
	absent    []field // added where there is none of the name
	present   []field // take the place of what there is, if anything
	templates []headerText
	remove    []string    // lower case
	host      *route.Text // of requests, which have it in another place; nil: as it is
}

// headerText is a header whose value is made for each request.
type headerText struct {
	name  string
	value *route.Text
}

// rewrite and redirect are filters with their templates parsed.
type rewrite struct {
	conf     *route.Rewrite
	template *route.Text // nil: none
}

type redirect struct {
	conf     *route.Redirect
	location *route.Text // nil: as the other fields say
	template *route.Text // of the path; nil: none
}

type mirror struct {
	cell        *backendCell
	numerator   uint32
	denominator uint32
	invalid     string
	hostname    string // "": the request's
	withoutBody bool
}

// compileRule makes a rule ready. One with a mistake in it answers 500 to what it wins; err tells what it is.
func (t *tables) compileRule(r *route.Route, i int) (out *rule, err error) {
	conf := &r.Rules[i]
	out = &rule{route: r, conf: conf, invalid: conf.Invalid, stats: newRuleStats(), policies: t.policyCells(r.Policies, conf.Policies)}
	out.plain.own(conf)
	var errs []error
	out.filters, err = t.compileFilters(conf.Filters)
	errs = append(errs, err)
	if len(out.filters.external) > 0 {
		errs = append(errs, errors.New("filters: externalAuth of a rule is a policy"))
	}
	for _, b := range conf.Backends {
		out.total += uint64(b.Weight)
		w := weighted{key: b.Backend, upto: out.total, invalid: b.Invalid}
		w.filters, err = t.compileFilters(b.Filters)
		errs = append(errs, err)
		if b.Invalid == "" {
			w.cell = t.cell(b.Backend)
		}
		out.backends = append(out.backends, w)
	}
	if err = errors.Join(errs...); err != nil {
		if out.invalid == "" {
			out.invalid = err.Error()
		}
		err = fmt.Errorf("%s: rules[%d]: %w", r.Key, i, err)
	}
	return out, err
}

func (t *tables) compileFilters(in []route.Filter) (f filters, err error) {
	var errs []error
	parse := func(field string, t route.Template) *route.Text {
		out, err := route.ParseTemplate(t)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return out
	}
	pathTemplate := func(field string, p *route.PathRewrite) *route.Text {
		if p == nil || p.Template == nil {
			return nil
		}
		return parse(field, *p.Template)
	}
	edits := func(c *route.HeaderEdit) edit {
		e := compileEdit(c)
		for _, h := range c.SetTemplates {
			value := parse("header "+h.Name, h.Value)
			if strings.EqualFold(h.Name, "host") {
				e.host = value
			} else if !route.Framing(h.Name) {
				e.templates = append(e.templates, headerText{h.Name, value})
			}
		}
		return e
	}
	for i := range in {
		switch c := &in[i]; {
		case c.RequestHeaders != nil:
			f.request = append(f.request, edits(c.RequestHeaders))
		case c.ResponseHeaders != nil:
			f.response = append(f.response, edits(c.ResponseHeaders))
		case c.Redirect != nil:
			f.redirect = &redirect{conf: c.Redirect, template: pathTemplate("redirect.path", c.Redirect.Path)}
			if c.Redirect.Location != "" {
				f.redirect.location = parse("redirect.location", c.Redirect.Location)
			}
		case c.Rewrite != nil:
			f.rewrite = append(f.rewrite, rewrite{c.Rewrite, pathTemplate("rewrite.path", c.Rewrite.Path)})
		case c.Mirror != nil:
			m := mirror{cell: t.cell(c.Mirror.Backend), numerator: c.Mirror.Numerator, denominator: c.Mirror.Denominator, invalid: c.Mirror.Invalid,
				hostname: c.Mirror.Hostname, withoutBody: c.Mirror.WithoutBody}
			if m.denominator == 0 {
				m.denominator = 100
			}
			f.mirrors = append(f.mirrors, m)
		case c.CORS != nil:
			f.cors = compileCORS(c.CORS)
		case c.ExternalAuth != nil:
			a, err := t.externalFilter(c.ExternalAuth)
			if a != nil {
				f.external = append(f.external, a)
			}
			errs = append(errs, err)
		default: // it may be one that keeps somebody out
			errs = append(errs, errors.New("filters: one is of a kind that is not known"))
		}
	}
	return f, errors.Join(errs...)
}

func compileEdit(c *route.HeaderEdit) (e edit) {
	for _, h := range c.Set {
		if strings.EqualFold(h.Name, "host") {
			e.host, _ = route.ParseTemplate(route.Template(strings.ReplaceAll(h.Value, "$", "$$"))) // a constant
		} else if !route.Framing(h.Name) {
			e.set = append(e.set, newField(h.Name, h.Value))
		}
	}
	for _, h := range c.Add {
		if !route.Framing(h.Name) {
			e.add = append(e.add, newField(h.Name, h.Value))
		}
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
func (e *edit) apply(fields []field, v route.Values) []field {
	for _, s := range e.set {
		fields = setField(fields, s)
	}
	for _, t := range e.templates {
		value := t.value.Eval(v)
		if value == "" {
			dropFields(fields, t.name)
		} else {
			fields = setField(fields, newField(t.name, value))
		}
	}
	fields = append(fields, e.add...)
	for _, f := range e.absent {
		if !has(fields, f.name) {
			fields = append(fields, f)
		}
	}
	for _, f := range e.present {
		if has(fields, f.name) {
			fields = setField(fields, f)
		}
	}
	for _, name := range e.remove {
		dropFields(fields, name)
	}
	return fields
}

func has(fields []field, name []byte) bool {
	for i := range fields {
		if fields[i].id != fDropped && sameName(fields[i].name, name) {
			return true
		}
	}
	return false
}

// setField replaces a field, or adds it.
func setField(fields []field, s field) []field {
	found := false
	for i := range fields {
		if fields[i].id != fDropped && sameName(fields[i].name, s.name) {
			if found {
				fields[i].id = fDropped
			} else {
				fields[i].name, fields[i].value, found = s.name, s.value, true
			}
		}
	}
	if !found {
		fields = append(fields, s)
	}
	return fields
}

func dropFields(fields []field, name string) {
	for i := range fields {
		if sameName(fields[i].name, raw(name)) {
			fields[i].id = fDropped
		}
	}
}

// sameName compares names as servers do that hand fields on by the names of environment variables (RFC 3875 section
// 4.1.18): for them "-" and "_" are the same, and what the gateway sets or removes must be so for them too.
func sameName(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && folded(a[i]) != folded(b[i]) {
			return false
		}
	}
	return true
}

func folded(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + ('a' - 'A')
	case c == '_':
		return '-'
	}
	return c
}

// name is what the rule is called in metrics and spans: its own name, or its place.
func (r *rule) name(i int) string {
	if r.conf.Name != "" {
		return r.conf.Name
	}
	return strconv.Itoa(i)
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

// location is where a redirect points to (HTTPRequestRedirectFilter). path is the new one.
func location(c *route.Redirect, port uint16, scheme, host, path, query string) string {
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
	b.WriteString(path)
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
