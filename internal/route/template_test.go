// SPDX-License-Identifier: Apache-2.0

package route

import (
	"strings"
	"testing"
)

// known are values that tell which variable was asked for.
type known map[Variable]string

func (k known) Value(v Variable, name string, group int) string {
	if v == VarGroup {
		return "g" + string(rune('0'+group))
	}
	return k[v] + name
}

func TestTemplates(t *testing.T) {
	v := known{VarHost: "a.example.com", VarURI: "/x", VarArgs: "q=1", VarArg: "arg-", VarHeader: "header-", VarCookie: "cookie-",
		VarScheme: "https", VarRemoteAddr: "192.0.2.1", VarRequestURI: "/x?q=1\r\nX: y"}
	for in, want := range map[string]string{
		"":                                 "",
		"plain":                            "plain",
		"https://$host/start":              "https://a.example.com/start",
		"${host}name":                      "a.example.comname",
		"$scheme://$host$uri?$args":        "https://a.example.com/x?q=1",
		"/$2/$1":                           "/g2/g1",
		"/$11":                             "/g11",
		"$arg_user $http_X_User $cookie_s": "arg-user header-x-user cookie-s",
		"$http_user-agent":                 "header-user-agent",
		"$binary_remote_addr":              "192.0.2.1",
		"cost: 5$":                         "cost: 5$",
		"$$host":                           "$host",
		"a$/b":                             "a$/b",
		"$request_uri":                     "/x?q=1X: y", // no line of one's own
	} {
		parsed, err := ParseTemplate(Template(in))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got := parsed.Eval(v); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"$hots": "$hots", "${host": "not closed", "${}": "not a variable", "${a b}": "not a variable", "$http_": "$http_", "$0": "$0",
	} {
		if _, err := ParseTemplate(Template(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want one that names %q", in, err, want)
		}
	}
}

func TestTemplateConstant(t *testing.T) {
	for in, want := range map[string]bool{"": true, "/x": true, "$$1": true, "$host": false, "/x$1": false} {
		parsed, err := ParseTemplate(Template(in))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := parsed.Constant(); ok != want {
			t.Errorf("%q: %v", in, ok)
		}
	}
}

func TestReplacements(t *testing.T) {
	v := known{VarHost: "a.example.com"}
	for _, c := range []struct {
		r    Replacement
		fold bool
		in   string
		want string // "": nothing to replace
	}{
		{Replacement{From: "http://backend/", To: "https://$host/"}, false, "http://backend/x", "https://a.example.com/x"},
		{Replacement{From: "http://backend/", To: "/"}, false, "http://other/x", ""},
		{Replacement{From: "Backend.Local", To: "example.com"}, true, "backend.local", "example.com"},
		{Replacement{From: "Backend.Local", To: "example.com"}, false, "backend.local", ""},
		{Replacement{From: `^http://[^/]+/(\w+)`, Regex: true, To: "https://$host/$1"}, false, "http://b:80/in/x", "https://a.example.com/in/x"},
		{Replacement{From: `(?i)/OLD/`, Regex: true, To: "/new/"}, false, "/a/old/b", "/a/new/b"},
		{Replacement{From: `x(y)?`, Regex: true, To: "<$1>"}, false, "x", "<>"},
	} {
		r, err := c.r.Compile()
		if err != nil {
			t.Errorf("%v: %v", c.r, err)
			continue
		}
		got, ok := r.Replace(c.in, c.fold, v)
		if ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%v of %q: %q, %v, want %q", c.r, c.in, got, ok, c.want)
		}
	}
	for _, r := range []Replacement{
		{From: "", To: "/"}, {From: "(", Regex: true}, {From: "x", Regex: true, To: "$1"}, {From: "/", To: "$nothing"},
	} {
		if _, err := r.Compile(); err == nil {
			t.Errorf("%v was accepted", r)
		}
	}
}

func TestCookiesMatch(t *testing.T) {
	m := path(PathPrefix, "/")
	m.Cookies = []ValueMatch{{Name: "canary", Value: "always"}}
	tab := table(t, path(PathPrefix, "/"), m)
	for header, want := range map[string]string{
		"":                      "r0",
		"canary=never":          "r0",
		"canary=always":         "r1",
		"a=1,2; canary=always":  "r1",
		"a=1;canary=\"always\"": "r1",
		"xcanary=always":        "r0",
		"x=canary=always":       "r0",
	} {
		if got := winner(tab, Request{Path: "/", Header: headers{"cookie": header}}); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
	// A header counts more than a cookie, a cookie more than a query parameter.
	h, q := path(PathPrefix, "/"), path(PathPrefix, "/")
	h.Headers = []ValueMatch{{Name: "X-Canary", Value: "always"}}
	q.Query = []ValueMatch{{Name: "canary", Value: "always"}}
	tab = table(t, q, m, h)
	if got := winner(tab, Request{Path: "/", Query: "canary=always", Header: headers{"cookie": "canary=always", "x-canary": "always"}}); got != "r2" {
		t.Errorf("header, cookie and query: %s", got)
	}
	if got := winner(tab, Request{Path: "/", Query: "canary=always", Header: headers{"cookie": "canary=always"}}); got != "r1" {
		t.Errorf("cookie and query: %s", got)
	}
}

// Of expressions the longest is tried first, after exact paths: what Ingress' use-regex asks for.
func TestExpressionsGoByLength(t *testing.T) {
	re := func(s string) Match {
		return Match{Path: &PathMatch{Kind: PathRegex, Value: s + ".*", CaseInsensitive: true}}
	}
	tab := table(t, re("/"), re("/foo/bar/.+"), re("/foo/bar"), path(PathExact, "/foo/bar/exact"), path(PathPrefix, "/foo/bar/exact/longer"))
	for p, want := range map[string]string{
		"/x": "r0", "/foo/bar": "r2", "/FOO/bar/x": "r1", "/foo/bar/exact": "r3", "/foo/bar/exact/longer": "r1", "/foo": "r0",
	} {
		if got := winner(tab, Request{Path: p}); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}

func FuzzParseTemplate(f *testing.F) {
	f.Add("https://${host}$request_uri$1$$")
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := ParseTemplate(Template(s))
		if err != nil {
			return
		}
		if c, ok := parsed.Constant(); !strings.Contains(s, "$") && (!ok || c != s) {
			t.Errorf("%q became %q", s, c)
		}
		if out := parsed.Eval(known{VarHost: "h\n"}); strings.Contains(out, "\n") && !strings.Contains(s, "\n") {
			t.Errorf("%q lets a line end through", s)
		}
	})
}
