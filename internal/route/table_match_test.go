// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

type headers map[string]string

func (h headers) Lookup(name string) (string, bool) { v, ok := h[name]; return v, ok }

func path(kind PathKind, v string) Match { return Match{Path: &PathMatch{Kind: kind, Value: v}} }

// table makes one route for each match; the names are r0, r1, ... and r0 is the oldest.
func table(t *testing.T, matches ...Match) *HostTable {
	t.Helper()
	var all []*Entry
	for i, m := range matches {
		name := "r" + string(rune('0'+i))
		es, errs := Entries(&Route{Key: name, Name: name, Created: int64(i), Rules: []Rule{{Matches: []Match{m}}}}, func(int) any { return nil })
		if errs != nil {
			t.Fatal(errs)
		}
		all = append(all, es...)
	}
	return NewHostTable(all)
}

func winner(t *HostTable, r Request) string {
	if r.Method == "" {
		r.Method = "GET"
	}
	if r.Header == nil {
		r.Header = headers{}
	}
	e := t.Match(&r)
	for _, v := range t.Explain(&r) { // explanation and decision are one
		if v.Wins != (v.Entry == e) {
			return "Explain and Match disagree"
		}
	}
	if e == nil {
		return ""
	}
	return e.Route.Key
}

func TestPathsMatch(t *testing.T) {
	for _, c := range []struct {
		match Match
		path  string
		want  bool
	}{
		{path(PathExact, "/a"), "/a", true},
		{path(PathExact, "/a"), "/a/", false},
		{path(PathExact, "/a/"), "/a/", true},
		{path(PathExact, "/a"), "/A", false},
		{path(PathPrefix, "/a"), "/a", true},
		{path(PathPrefix, "/a"), "/a/", true},
		{path(PathPrefix, "/a"), "/a/b/c", true},
		{path(PathPrefix, "/a"), "/ab", false},
		{path(PathPrefix, "/a/"), "/a", true},
		{path(PathPrefix, "/a/b"), "/a", false},
		{path(PathPrefix, "/a/b"), "/a/b//c", true},
		{path(PathPrefix, "/"), "/anything", true},
		{path(PathPrefix, "/"), "*", true},
		{path(PathRegex, "/[0-9]+"), "/12", true},
		{path(PathRegex, "/[0-9]+"), "/12/x", false},
		{path(PathRegex, "/a|/b"), "/bb", false},
		{path(PathStringPrefix, "/a"), "/ab", true},
		{path(PathStringPrefix, "/a"), "/a/b", true},
		{path(PathStringPrefix, "/a/"), "/a", false},
		{path(PathStringPrefix, "/"), "/x", true},
		{Match{}, "/x", true},
		{Match{GRPC: &GRPCMatch{Service: "s.S", Method: "M"}}, "/s.S/M", true},
		{Match{GRPC: &GRPCMatch{Service: "s.S"}}, "/s.S/Other", true},
		{Match{GRPC: &GRPCMatch{Service: "s.S"}}, "/s.SS/Other", false},
		{Match{GRPC: &GRPCMatch{Method: "M"}}, "/x.Y/M", true},
		{Match{GRPC: &GRPCMatch{Method: "M"}}, "/x.Y/MM", false},
		{Match{GRPC: &GRPCMatch{Method: "M"}}, "/a/b/M", false},
		{Match{GRPC: &GRPCMatch{Service: "s\\..*", Method: "M", Regex: true}}, "/s.T/M", true},
		{Match{GRPC: &GRPCMatch{Service: "s\\..*", Regex: true}}, "/t.T/M", false},
		{Match{GRPC: &GRPCMatch{}}, "/t.T/M", true},
	} {
		if got := winner(table(t, c.match), Request{Path: c.path}) != ""; got != c.want {
			t.Errorf("%+v on %s: %v", c.match, c.path, got)
		}
	}
}

func TestPrecedence(t *testing.T) {
	hdr := func(m Match, names ...string) Match {
		for _, n := range names {
			m.Headers = append(m.Headers, ValueMatch{Name: n, Value: "1"})
		}
		return m
	}
	method := func(m Match, name string) Match { m.Method = name; return m }
	query := func(m Match, n string) Match { m.Query = append(m.Query, ValueMatch{Name: n, Value: "1"}); return m }
	one := headers{"a": "1", "b": "1"}
	for _, c := range []struct {
		name    string
		matches []Match
		req     Request
		want    string
	}{
		{"exact before prefix", []Match{path(PathPrefix, "/a/b"), path(PathExact, "/a/b")}, Request{Path: "/a/b"}, "r1"},
		{"longest prefix", []Match{path(PathPrefix, "/"), path(PathPrefix, "/a"), path(PathPrefix, "/a/b")}, Request{Path: "/a/b/c"}, "r2"},
		{"falls to a shorter prefix", []Match{path(PathPrefix, "/"), hdr(path(PathPrefix, "/a"), "x")}, Request{Path: "/a"}, "r0"},
		{"regex before prefix", []Match{path(PathPrefix, "/a/b"), path(PathRegex, "/a/.*")}, Request{Path: "/a/b"}, "r1"},
		{"exact before regex", []Match{path(PathRegex, "/a.*"), path(PathExact, "/a")}, Request{Path: "/a"}, "r1"},
		{"method before headers", []Match{hdr(path(PathPrefix, "/"), "a", "b"), method(path(PathPrefix, "/"), "GET")}, Request{Path: "/", Header: one}, "r1"},
		{"more headers", []Match{hdr(Match{}, "A"), hdr(Match{}, "a", "b")}, Request{Path: "/", Header: one}, "r1"},
		{"headers before query", []Match{query(Match{}, "q"), hdr(Match{}, "a")}, Request{Path: "/", Query: "q=1", Header: one}, "r1"},
		{"query", []Match{{}, query(Match{}, "q")}, Request{Path: "/", Query: "x=2&q=1"}, "r1"},
		{"first of several parameters", []Match{query(Match{}, "q")}, Request{Path: "/", Query: "q=2&q=1"}, ""},
		{"query decoded", []Match{{Query: []ValueMatch{{Name: "a b", Value: "c&d"}}}}, Request{Path: "/", Query: "a+b=c%26d"}, "r0"},
		{"oldest", []Match{path(PathPrefix, "/a"), path(PathPrefix, "/a")}, Request{Path: "/a"}, "r0"},
		{"duplicate header names: the first", []Match{{Headers: []ValueMatch{{Name: "a", Value: "1"}, {Name: "A", Value: "2"}}}}, Request{Path: "/", Header: one}, "r0"},
		{"gRPC service before method", []Match{{GRPC: &GRPCMatch{Method: "M"}}, {GRPC: &GRPCMatch{Service: "s.S"}}}, Request{Path: "/s.S/M"}, "r1"},
		{"gRPC method before any", []Match{{GRPC: &GRPCMatch{}}, {GRPC: &GRPCMatch{Method: "M"}}}, Request{Path: "/s.S/M"}, "r1"},
	} {
		if got := winner(table(t, c.matches...), c.req); got != c.want {
			t.Errorf("%s: %q won, want %q", c.name, got, c.want)
		}
	}
}

func TestBrokenExpressionsMatchNothing(t *testing.T) {
	for _, expr := range []string{"(", ")(", "a{9999}", strings.Repeat("a", 5000)} {
		es, errs := Entries(&Route{Key: "r", Rules: []Rule{{Matches: []Match{path(PathRegex, expr), path(PathPrefix, "/")}}}}, func(int) any { return nil })
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "r: rules[0].matches[0]") {
			t.Errorf("%.20q: %v", expr, errs)
		}
		if e := NewHostTable(es).Match(&Request{Method: "GET", Path: "/x", Header: headers{}}); e == nil || e.Match != 1 {
			t.Errorf("%.20q: %+v won", expr, e)
		}
	}
}

// The lookup by maps finds what trying every entry in the order of precedence finds.
func TestMatchAgreesWithPrecedence(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := []string{"", "/", "/a", "/a/", "/a/b", "/a/b/c", "/b", "/ab", "//", "/a//b", "/s/M"}
	pick := func() string { return words[rnd.IntN(len(words))] }
	for range 3000 {
		var ms []Match
		for range 1 + rnd.IntN(9) {
			m := path([]PathKind{PathExact, PathPrefix, PathRegex, PathStringPrefix}[rnd.IntN(4)], pick())
			switch rnd.IntN(5) {
			case 0:
				m.Method = "POST"
			case 1:
				m.Headers = []ValueMatch{{Name: "a", Value: "1"}}
			case 2:
				m.Path, m.GRPC = nil, &GRPCMatch{Service: strings.Trim(pick(), "/"), Method: []string{"", "M"}[rnd.IntN(2)]}
			}
			ms = append(ms, m)
		}
		tab := table(t, ms...)
		r := Request{Method: []string{"GET", "POST"}[rnd.IntN(2)], Path: pick(), Header: headers{}}
		if rnd.IntN(2) == 0 {
			r.Header = headers{"a": "1"}
		}
		var want *Entry
		for _, e := range tab.sorted() {
			if e.matches(&r) {
				want = e
				break
			}
		}
		if got := tab.Match(&r); got != want {
			t.Fatalf("%+v on %+v:\ngot  %+v\nwant %+v", ms, r, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	var h Hosts[string]
	for _, n := range []string{"a.example.com", "*.example.com", "*.b.example.com", ""} {
		h.Set(n, n)
	}
	for host, want := range map[string]string{
		"a.example.com":   "a.example.com *.example.com ",
		"x.b.example.com": "*.b.example.com *.example.com ",
		"b.example.com":   "*.example.com ",
		"example.com":     "",
		"":                "",
		"192.0.2.1":       "",
	} {
		var got []string
		h.Find(host, func(v string) bool { got = append(got, v); return true })
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %q, want %q", host, s, want)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	var all []*Entry
	for i := range 5000 {
		es, _ := Entries(&Route{Rules: []Rule{{Matches: []Match{path(PathPrefix, "/route/"+string(rune('a'+i%26))+strings.Repeat("x", i/26))}}}}, func(int) any { return nil })
		all = append(all, es...)
	}
	t := NewHostTable(all)
	r := &Request{Method: "GET", Path: "/route/cxxxx/item", Header: headers{}}
	b.ReportAllocs()
	for b.Loop() {
		if t.Match(r) == nil {
			b.Fatal("no route")
		}
	}
}

// Changes one after another come to the table that all entries make at once.
func TestTablesChange(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 15 {
		tab := NewHostTable(nil)
		var now []*Entry
		made := 0
		for step := range 40 {
			var gone, fresh []*Entry
			for range rnd.IntN(4) {
				if len(now) > 0 {
					i := rnd.IntN(len(now))
					gone = append(gone, now[i])
					now = append(now[:i], now[i+1:]...)
				}
			}
			for range rnd.IntN(12) {
				kind := []PathKind{PathExact, PathPrefix, PathRegex, PathStringPrefix}[rnd.IntN(4)]
				made++
				name := fmt.Sprint("r", made) // nothing else tells some of them apart
				p := "/" + strings.Repeat("a", rnd.IntN(3)) + string(rune('a'+rnd.IntN(26))) + strings.Repeat("/b", rnd.IntN(3)) + string(rune('a'+rnd.IntN(26)))
				es, errs := Entries(&Route{Key: name, Name: name, Created: int64(rnd.IntN(3)), Rules: []Rule{{Matches: []Match{path(kind, p)}}}}, func(int) any { return nil })
				if errs != nil {
					t.Fatal(errs)
				}
				fresh = append(fresh, es...)
			}
			before := tab.sorted()
			next := tab.With(gone, fresh)
			if !slices.Equal(before, tab.sorted()) {
				t.Fatal("the table that was there has changed")
			}
			now, tab = append(now, fresh...), next
			want := NewHostTable(now)
			if got := tab.sorted(); len(got) != len(now) || !slices.Equal(got, want.sorted()) {
				t.Fatalf("step %d: %d entries, want %d", step, len(got), len(now))
			}
			for _, e := range now {
				r := Request{Method: "GET", Path: e.path, Header: headers{}}
				if e.regex != nil {
					r.Path = strings.TrimSuffix(strings.TrimPrefix(e.regex.String(), "^(?:"), ")$")
				}
				if got, w := tab.Match(&r), want.Match(&r); got != w {
					t.Fatalf("step %d: %s has %v, want %v", step, r.Path, got, w)
				}
			}
		}
	}
}
