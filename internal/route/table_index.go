// SPDX-License-Identifier: Apache-2.0

package route

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Entry is one match of one rule, ready to be compared with requests.
type Entry struct {
	Route *Route
	Rule  int // index into Route.Rules
	Match int // index into the rule's Matches; 0 as well when it has none
	// Target is whatever the owner of the table attached to the rule.
	Target any

	class   class
	path    string // exact: the path; prefix: without a trailing slash, "" for "/"; method: "/Method"
	regex   *regexp.Regexp
	method  string
	headers []valueMatcher
	cookies []valueMatcher
	query   []valueMatcher
	// What breaks ties within one class and path, besides the route's age: characters of a regular expression, and of
	// gRPC's service and method.
	weights [3]int
	broken  bool // a regular expression that does not compile: never matches
}

// class is how an entry compares paths; the order is that of precedence, except that longer prefixes come first among
// prefixes, and the prefix "/" after methods.
type class uint8

const (
	exactPath class = iota
	regexPath
	prefixPath
	stringPrefix
	anyService // a gRPC method of whatever service
)

// PrefixLength is the number of bytes of the path that the entry's prefix covers: what a prefix rewrite replaces.
func (e *Entry) PrefixLength() int {
	if e.class == prefixPath || e.class == stringPrefix {
		return len(e.path)
	}
	return 0
}

// Regex is the compiled expression of a Regex path, for rewrites with groups; nil otherwise.
func (e *Entry) Regex() *regexp.Regexp { return e.regex }

type valueMatcher struct {
	name  string
	value string
	regex *regexp.Regexp
}

func (m *valueMatcher) matches(v string, ok bool) bool {
	if !ok {
		return false
	}
	if m.regex != nil {
		return m.regex.MatchString(v)
	}
	return m.value == v
}

// Entries compiles a route's matches. target gives what to attach to the entries of a rule. An entry whose regular
// expression does not compile matches nothing; errs tell which. RE2 runs in time linear to its input.
func Entries(r *Route, target func(rule int) any) (entries []*Entry, errs []error) {
	for i := range r.Rules {
		t := target(i)
		matches := r.Rules[i].Matches
		if len(matches) == 0 {
			matches = []Match{{}}
		}
		for j := range matches {
			e := &Entry{Route: r, Rule: i, Match: j, Target: t}
			if err := e.compile(&matches[j]); err != nil {
				errs = append(errs, fmt.Errorf("%s: rules[%d].matches[%d]: %w", r.Key, i, j, err))
				e.broken = true
			}
			entries = append(entries, e)
		}
	}
	return entries, errs
}

func (e *Entry) compile(m *Match) error {
	e.method = m.Method
	var err error
	switch {
	case m.GRPC != nil:
		err = e.compileGRPC(m.GRPC)
	case m.Path == nil:
		e.class = prefixPath
	case m.Path.Kind == PathExact:
		e.class, e.path = exactPath, m.Path.Value
	case m.Path.Kind == PathPrefix:
		e.class, e.path = prefixPath, strings.TrimRight(m.Path.Value, "/")
	case m.Path.Kind == PathStringPrefix && (m.Path.Value == "" || m.Path.Value == "/"):
		e.class = prefixPath
	case m.Path.Kind == PathStringPrefix:
		e.class, e.path = stringPrefix, m.Path.Value
	case m.Path.Kind == PathRegex:
		e.class = regexPath
		e.weights[0] = len(m.Path.Value)
		flags := ""
		if m.Path.CaseInsensitive {
			flags = "(?i)"
		}
		e.regex, err = whole(flags, m.Path.Value)
	default:
		err = fmt.Errorf("path.kind: %q is not one of Exact, Prefix, Regex, StringPrefix", m.Path.Kind)
	}
	if err != nil {
		return err
	}
	if e.headers, err = valueMatchers(m.Headers, true); err != nil {
		return fmt.Errorf("headers: %w", err)
	}
	if e.cookies, err = valueMatchers(m.Cookies, false); err != nil {
		return fmt.Errorf("cookies: %w", err)
	}
	if e.query, err = valueMatchers(m.Query, false); err != nil {
		return fmt.Errorf("query: %w", err)
	}
	return nil
}

// compileGRPC turns a call's service and method into what its path, /service/method, must be.
func (e *Entry) compileGRPC(g *GRPCMatch) error {
	e.weights = [3]int{0, len(g.Service), len(g.Method)}
	switch {
	case g.Service == "" && g.Method == "":
		e.class = prefixPath
	case g.Regex:
		e.class = regexPath
		service, method := g.Service, g.Method
		if service == "" {
			service = "[^/]+"
		}
		if method == "" {
			method = "[^/]+"
		}
		var err error
		e.regex, err = whole("", "/(?:"+service+")/(?:"+method+")")
		return err
	case g.Service == "":
		e.class, e.path = anyService, "/"+g.Method
	case g.Method == "":
		e.class, e.path = prefixPath, "/"+g.Service
	default:
		e.class, e.path = exactPath, "/"+g.Service+"/"+g.Method
	}
	return nil
}

// maxRegex is the most bytes of a regular expression.
const maxRegex = 4096

// whole compiles an expression that must match all of the input.
func whole(flags, expr string) (*regexp.Regexp, error) {
	if len(expr) > maxRegex {
		return nil, fmt.Errorf("the expression has %d bytes, more than %d", len(expr), maxRegex)
	}
	if _, err := regexp.Compile(expr); err != nil { // by itself, so that ")(" can't break out
		return nil, err
	}
	return regexp.Compile(flags + "^(?:" + expr + ")$")
}

func valueMatchers(in []ValueMatch, headers bool) ([]valueMatcher, error) {
	var out []valueMatcher
	for _, v := range in {
		m := valueMatcher{name: v.Name, value: v.Value}
		if headers {
			m.name = strings.ToLower(m.name)
		}
		// The API: of equivalent names only the first entry counts.
		if slices.ContainsFunc(out, func(o valueMatcher) bool { return o.name == m.name }) {
			continue
		}
		if v.Regex {
			var err error
			if m.regex, err = whole("", v.Value); err != nil {
				return nil, fmt.Errorf("%s: %w", v.Name, err)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// HostTable is the entries of one hostname of one listener, arranged for lookup: a request costs one map lookup for
// each element of its path, however many routes there are; only regular expressions are tried one by one. It is
// immutable.
type HostTable struct {
	exact    pathMap
	prefix   pathMap // the key has no trailing slash; "" is "/"
	byString pathMap // of stringPrefix
	lengths  []int   // of the keys of byString, the longest first
	regex    []*Entry
	anySvc   []*Entry
	maxDepth int // the most slashes that a key of prefix has, or has had
}

// NewHostTable arranges entries. It keeps them, and does not keep the slice.
func NewHostTable(entries []*Entry) *HostTable {
	sorted := slices.Clone(entries) // so that each comes last in its list
	slices.SortStableFunc(sorted, compare)
	return new(HostTable).With(nil, sorted)
}

// With gives the table without the entries that are gone, and with fresh ones; no entry may be in both. Its cost is that
// of the change, but for regular expressions.
func (t *HostTable) With(gone, fresh []*Entry) *HostTable {
	exact, prefix, byString := t.exact.edit(), t.prefix.edit(), t.byString.edit()
	out := &HostTable{lengths: t.lengths, regex: t.regex, anySvc: t.anySvc, maxDepth: t.maxDepth}
	prefixes := false
	for _, e := range gone {
		switch e.class {
		case exactPath:
			exact.drop(e)
		case prefixPath:
			prefix.drop(e)
		case stringPrefix:
			byString.drop(e)
			prefixes = true
		case regexPath:
			out.regex = without(out.regex, e)
		case anyService:
			out.anySvc = without(out.anySvc, e)
		}
	}
	for _, e := range fresh {
		switch e.class {
		case exactPath:
			exact.put(e)
		case prefixPath:
			prefix.put(e)
			out.maxDepth = max(out.maxDepth, strings.Count(e.path, "/"))
		case stringPrefix:
			byString.put(e)
			prefixes = true
		case regexPath:
			out.regex = insert(out.regex, e)
		case anyService:
			out.anySvc = insert(out.anySvc, e)
		}
	}
	out.exact, out.prefix, out.byString = exact.pathMap, prefix.pathMap, byString.pathMap
	if prefixes {
		out.lengths = lengthsOf(&out.byString)
	}
	return out
}

// lengthsOf gives the lengths of the paths, each once, the longest first.
func lengthsOf(m *pathMap) (out []int) {
	for e := range m.all() {
		out = append(out, len(e.path))
	}
	slices.Sort(out)
	slices.Reverse(out)
	return slices.Compact(out)
}

// sorted gives all entries in the order of precedence.
func (t *HostTable) sorted() []*Entry {
	out := slices.Concat(t.regex, t.anySvc)
	for _, m := range []*pathMap{&t.exact, &t.prefix, &t.byString} {
		out = slices.AppendSeq(out, m.all())
	}
	slices.SortStableFunc(out, compare)
	return out
}

// compare is the precedence that Gateway API prescribes (HTTPRouteRule.matches, GRPCRouteRule.matches): the exact path,
// the longest prefix, a method, the most headers (then cookies), the most query parameters; for gRPC the longest service, then
// method; the oldest route, its name, the order written. Regular expressions, where the API leaves it open, come
// after exact paths, the longest first.
func compare(a, b *Entry) int {
	return cmp.Or(
		cmp.Compare(tier(a), tier(b)),
		cmp.Compare(len(b.path)*int(tierByLength(b)), len(a.path)*int(tierByLength(a))),
		cmp.Compare(a.class, b.class),
		cmp.Compare(b.weights[0], a.weights[0]),
		cmp.Compare(b.weights[1], a.weights[1]),
		cmp.Compare(b.weights[2], a.weights[2]),
		cmp.Compare(min(len(b.method), 1), min(len(a.method), 1)),
		cmp.Compare(len(b.headers), len(a.headers)),
		cmp.Compare(len(b.cookies), len(a.cookies)),
		cmp.Compare(len(b.query), len(a.query)),
		cmp.Compare(a.Route.Created, b.Route.Created),
		cmp.Compare(a.Route.Name, b.Route.Name),
		cmp.Compare(a.Route.Key, b.Route.Key),
		cmp.Compare(a.Rule, b.Rule),
		cmp.Compare(a.Match, b.Match),
	)
}

func tier(e *Entry) int {
	switch {
	case e.class == exactPath:
		return 0
	case e.class == regexPath:
		return 1
	case e.class == prefixPath && e.path != "", e.class == stringPrefix:
		return 2
	case e.class == anyService:
		return 3
	}
	return 4
}

// tierByLength says whether entries of the class rank by the length of their path: 1, or 0.
func tierByLength(e *Entry) uint8 {
	if e.class == prefixPath || e.class == stringPrefix {
		return 1
	}
	return 0
}

// Len is the number of entries.
func (t *HostTable) Len() int { return len(t.sorted()) }
