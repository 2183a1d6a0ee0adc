// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/route"
)

func ptr[T any](v T) *T { return &v }

func TestRedirects(t *testing.T) {
	u := simple("127.0.0.1:1")
	u.Listeners[0].PublicPort = 8080
	rules := &u.Routes[0].Rules
	*rules = nil
	add := func(prefix string, c route.Redirect) {
		*rules = append(*rules, route.Rule{Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: prefix}}}, Filters: []route.Filter{{Redirect: &c}}})
	}
	add("/host", route.Redirect{Hostname: "b.example.com"})
	add("/https", route.Redirect{Scheme: "https", Status: 301})
	add("/http", route.Redirect{Scheme: "http"})
	add("/port", route.Redirect{Port: 9000})
	add("/tlsport", route.Redirect{Scheme: "https", Port: 8443, Status: 308})
	add("/full", route.Redirect{Path: &route.PathRewrite{Full: ptr("/new")}, Status: 303})
	add("/prefix", route.Redirect{Path: &route.PathRewrite{Prefix: ptr("/p")}, Status: 307})
	r := start(t, u)
	for _, c := range []struct {
		path, want string
		status     int
	}{
		{"/host/x?q=1", "http://b.example.com:8080/host/x?q=1", 302},
		{"/https", "https://a.example.com/https", 301},
		{"/http", "http://a.example.com/http", 302},
		{"/port", "http://a.example.com:9000/port", 302},
		{"/tlsport", "https://a.example.com:8443/tlsport", 308},
		{"/full/y?q", "http://a.example.com:8080/new?q", 303},
		{"/prefix/y", "http://a.example.com:8080/p/y", 307},
	} {
		if resp, _ := r.once("GET", c.path, nil, ""); resp.Header.Get("Location") != c.want || resp.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d %s", c.path, resp.StatusCode, resp.Header.Get("Location"), c.status, c.want)
		}
	}
}

// Behind a trusted proxy a redirect leads where the client had come from; browsers ask it too whether a page may see it.
func TestRedirectsBehindAProxy(t *testing.T) {
	u := simple("127.0.0.1:1")
	u.Listeners[0].PublicPort = 8080
	u.Listeners[0].TrustedProxies = prefixes("127.0.0.0/8")
	u.Routes[0].Rules[0].Filters = []route.Filter{{CORS: &route.CORS{AllowOrigins: []string{"https://ok.example"}}}, {Redirect: &route.Redirect{Hostname: "b.example.com"}}}
	r := start(t, u)
	for _, c := range []struct {
		proto, port, want string
	}{
		{"", "", "http://b.example.com:8080/x"},
		{"http", "", "http://b.example.com:8080/x"},
		{"https", "", "https://b.example.com/x"},
		{"https", "443", "https://b.example.com/x"},
		{"https", "8443", "https://b.example.com:8443/x"},
		{"", "80", "http://b.example.com/x"},
		{"ftp", "no", "http://b.example.com:8080/x"},
	} {
		header := map[string]string{"Origin": "https://ok.example"}
		if c.proto != "" {
			header["X-Forwarded-Proto"] = c.proto
		}
		if c.port != "" {
			header["X-Forwarded-Port"] = c.port
		}
		resp, _ := r.once("GET", "/x", header, "")
		if got := resp.Header.Get("Location"); got != c.want || resp.StatusCode != 302 {
			t.Errorf("%q %q: %d %s, want %s", c.proto, c.port, resp.StatusCode, got, c.want)
		}
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "https://ok.example" {
			t.Errorf("%q %q: pages may not see it: %q", c.proto, c.port, got)
		}
	}
}

// A match of Upgrade sees what the client asks for, though the field itself goes no further.
func TestMatchUpgrade(t *testing.T) {
	e := newEcho(t, "all")
	u := simple(e.addr())
	u.Routes[0].Rules = append(u.Routes[0].Rules, route.Rule{
		Matches: []route.Match{{Headers: []route.ValueMatch{{Name: "Upgrade", Value: "websocket"}}}},
		Filters: []route.Filter{{Redirect: &route.Redirect{Hostname: "ws.example.com"}}}})
	r := start(t, u)
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != 302 {
		t.Errorf("an upgrade: %d", resp.StatusCode)
	}
	if status, _ := r.get("/", nil); status != 200 {
		t.Errorf("no upgrade: %d", status)
	}
}

// Filters of one of a rule's backends act when that one is chosen, beside the rule's own.
func TestBackendFilters(t *testing.T) {
	e := newEcho(t, "one")
	u := simple(e.addr())
	rule := &u.Routes[0].Rules[0]
	rule.Matches = []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/p"}}}
	rule.Filters = []route.Filter{{ResponseHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "X-Rule", Value: "r"}}}}}
	backend := &rule.Backends[0]

	backend.Filters = []route.Filter{{Redirect: &route.Redirect{Status: 307, Hostname: "b.example.com", Path: &route.PathRewrite{Prefix: ptr("/q")}}},
		{ResponseHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "X-Backend", Value: "b"}}}}}
	r := start(t, u)
	resp, _ := r.once("GET", "/p/x?y", nil, "")
	if resp.StatusCode != 307 || !strings.HasPrefix(resp.Header.Get("Location"), "http://b.example.com") || !strings.HasSuffix(resp.Header.Get("Location"), "/q/x?y") ||
		resp.Header.Get("X-Rule") != "r" || resp.Header.Get("X-Backend") != "b" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}

	origin := map[string]string{"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
	backend.Filters = []route.Filter{{CORS: &route.CORS{AllowOrigins: []string{"https://a.example"}, AllowMethods: []string{"PUT"}, ExposeHeaders: []string{"X-From"}}}}
	r = start(t, u)
	resp, _ = r.once("OPTIONS", "/p", origin, "")
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != "https://a.example" || resp.Header.Get("Access-Control-Allow-Methods") != "PUT" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if e.count.Load() != 0 {
		t.Error("the endpoint was asked")
	}
	if resp, _ = r.once("GET", "/p", origin, ""); resp.StatusCode != 200 || resp.Header.Get("Access-Control-Expose-Headers") != "X-From" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}

	// What can't be forwarded is not redirected either.
	backend.Filters = []route.Filter{{Redirect: &route.Redirect{}}}
	backend.Invalid = "no such Service"
	r = start(t, u)
	r.want(500, "/p", nil)
}

// The table of HTTPPathModifier's documentation.
func TestPathRewrites(t *testing.T) {
	for _, c := range []struct{ path, match, replacement, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"}, {"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"}, {"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"}, {"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"}, {"/foo/", "/foo", "", "/"}, {"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"}, {"/foo", "/foo", "/", "/"}, {"/a/b", "/", "/c", "/c/a/b"},
	} {
		es, _ := route.Entries(&route.Route{Rules: []route.Rule{{Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: c.match}}}}}}, func(int) any { return nil })
		if got := rewritePath(&route.PathRewrite{Prefix: &c.replacement}, c.path, es[0].PrefixLength()); got != c.want {
			t.Errorf("%s with %s for %s: %s, want %s", c.path, c.replacement, c.match, got, c.want)
		}
	}
}

func TestHeadersAndRewrites(t *testing.T) {
	e := newEcho(t, "one")
	u := simple(e.addr())
	rule := &u.Routes[0].Rules[0]
	rule.Filters = []route.Filter{
		{RequestHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "X-Set", Value: "s"}, {Name: "X-New", Value: "n"}}, Add: []route.Header{{Name: "X-Add", Value: "2"}}, Remove: []string{"X-Gone"}}},
		{ResponseHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "x-from", Value: "gateway"}}, Add: []route.Header{{Name: "X-Extra", Value: "e\r\nEvil: 1"}}, Remove: []string{"content-type"}}},
		{Rewrite: &route.Rewrite{Hostname: "inner", Path: &route.PathRewrite{Full: ptr("/all")}}},
	}
	rule.Backends[0].Filters = []route.Filter{{RequestHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "X-Backend", Value: "b"}}}}}
	r := start(t, u)
	resp, b := r.once("GET", "/x?q", map[string]string{"X-Set": "old", "X-Add": "1", "X-Gone": "g"}, "")
	var s seen
	if err := json.Unmarshal([]byte(b), &s); err != nil {
		t.Fatal(b)
	}
	if s.Path != "/all?q" || s.Host != "inner" || s.Header.Get("X-Forwarded-Host") != "a.example.com" {
		t.Errorf("%+v", s)
	}
	if s.Header.Get("X-Set") != "s" || s.Header.Get("X-New") != "n" || fmt.Sprint(s.Header["X-Add"]) != "[1 2]" || s.Header.Get("X-Gone") != "" || s.Header.Get("X-Backend") != "b" {
		t.Errorf("%v", s.Header)
	}
	if resp.Header.Get("X-From") != "gateway" || resp.Header.Get("Evil") != "" || resp.Header.Get("X-Extra") == "" || resp.Header.Get("Content-Type") != "" {
		t.Errorf("%v", resp.Header)
	}
}

func TestWeights(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	u := simple(a.addr())
	u.Backends = append(u.Backends, route.Backend{Key: "b2", Endpoints: "e2"})
	u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: "e2", Endpoints: []route.Endpoint{{Address: b.addr()}}})
	u.Routes[0].Rules[0].Backends = []route.WeightedBackend{{Backend: "b", Weight: 90}, {Backend: "b2", Weight: 10}, {Backend: "none", Weight: 0}}
	r := start(t, u)
	c := r.dial()
	for range 1000 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.answer("GET")
	}
	if n := b.count.Load(); n < 50 || n > 170 || n+a.count.Load() != 1000 {
		t.Errorf("%d of 1000 requests went to the backend with a tenth", n)
	}
}

func TestWhereNothingIs(t *testing.T) {
	e := newEcho(t, "one")
	for name, c := range map[string]struct {
		change func(*route.Update)
		want   int
	}{
		"no endpoints":      {func(u *route.Update) { u.Endpoints = nil }, 503},
		"no backend":        {func(u *route.Update) { u.Backends = nil }, 500},
		"invalid reference": {func(u *route.Update) { u.Routes[0].Rules[0].Backends[0].Invalid = "not permitted" }, 500},
		"invalid backend":   {func(u *route.Update) { u.Backends[0].Invalid = "no CA" }, 500},
		"invalid rule":      {func(u *route.Update) { u.Routes[0].Rules[0].Invalid = "unknown filter" }, 500},
		"no weight":         {func(u *route.Update) { u.Routes[0].Rules[0].Backends[0].Weight = 0 }, 500},
		"no backends":       {func(u *route.Update) { u.Routes[0].Rules[0].Backends = nil }, 500},
		"other host":        {func(u *route.Update) { u.Routes[0].Parents[0].Hostnames = []string{"b.example.com"} }, 404},
		"no hostnames":      {func(u *route.Update) { u.Routes[0].Parents[0].Hostnames = nil }, 404},
		"other listener":    {func(u *route.Update) { u.Listeners[0].Hostname = "*.example.org" }, 404},
		"refused":           {func(u *route.Update) { u.Endpoints[0].Endpoints[0].Address = "127.0.0.1:1" }, 502},
	} {
		t.Run(name, func(t *testing.T) {
			u := simple(e.addr())
			c.change(&u)
			if resp, _ := start(t, u).once("GET", "/", nil, ""); resp.StatusCode != c.want {
				t.Errorf("%d, want %d", resp.StatusCode, c.want)
			}
		})
	}
}

func TestMirrors(t *testing.T) {
	one := newEcho(t, "one")
	got := make(chan string, 10)
	copies := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r.Method + " " + r.RequestURI + " " + string(b)
	})
	u := simple(one.addr())
	u.Backends = append(u.Backends, route.Backend{Key: "m", Endpoints: "m"})
	u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: "m", Endpoints: []route.Endpoint{{Address: copies}}})
	u.Routes[0].Rules[0].Filters = []route.Filter{{Mirror: &route.Mirror{Backend: "m", Numerator: 100}}, {Mirror: &route.Mirror{Backend: "m", Numerator: 0}}}
	r := start(t, u)
	for _, body := range []string{"small", strings.Repeat("x", 300000)} {
		if resp, b := r.once("POST", "/p?q", nil, body); resp.StatusCode != 200 || !strings.Contains(b, body) {
			t.Fatalf("%d", resp.StatusCode)
		}
		if m := <-got; m != "POST /p?q "+body {
			t.Errorf("%.50s", m)
		}
	}
}

// A copy may have a host of its own, and leave the body out.
func TestMirrorsWithoutBody(t *testing.T) {
	one := newEcho(t, "one")
	got := make(chan string, 10)
	copies := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r.Method + " " + r.Host + " " + string(b)
	})
	u := withBackend(simple(one.addr()), "m", copies)
	u.Routes[0].Rules[0].Filters = []route.Filter{{Mirror: &route.Mirror{Backend: "m", Numerator: 100, Hostname: "copy.example.com", WithoutBody: true}}}
	r := start(t, u)
	for _, body := range []string{"small", strings.Repeat("x", 3_000_000)} {
		if resp, b := r.once("POST", "/", nil, body); resp.StatusCode != 200 || !strings.Contains(b, body) {
			t.Fatalf("%d", resp.StatusCode)
		}
		if m := <-got; m != "POST copy.example.com " {
			t.Errorf("%.50s", m)
		}
	}
}

func TestCORS(t *testing.T) {
	e := newEcho(t, "one")
	u := simple(e.addr())
	u.Routes[0].Rules[0].Filters = []route.Filter{{CORS: &route.CORS{AllowOrigins: []string{"https://a.example", "https://*.b.example"}, AllowMethods: []string{"GET", "PUT"}, AllowHeaders: []string{"X-A"}, ExposeHeaders: []string{"X-From"}, AllowCredentials: true, MaxAge: 60}}}
	r := start(t, u)
	preflight := func(origin string) http.Header {
		resp, _ := r.once("OPTIONS", "/", map[string]string{"Origin": origin, "Access-Control-Request-Method": "PUT"}, "")
		if resp.StatusCode != 204 {
			t.Errorf("%s: %d", origin, resp.StatusCode)
		}
		return resp.Header
	}
	for origin, ok := range map[string]bool{"https://a.example": true, "https://x.b.example": true, "https://x.y.b.example": true,
		"https://b.example": false, "http://a.example": false, "https://a.example.evil": false, "null": false} {
		h := preflight(origin)
		if (h.Get("Access-Control-Allow-Origin") == origin) != ok {
			t.Errorf("%s: %v", origin, h)
		}
		if ok && (h.Get("Access-Control-Allow-Methods") != "GET, PUT" || h.Get("Access-Control-Allow-Headers") != "X-A" || h.Get("Access-Control-Max-Age") != "60" || h.Get("Access-Control-Allow-Credentials") != "true") {
			t.Errorf("%s: %v", origin, h)
		}
	}
	if e.count.Load() != 0 {
		t.Error("preflight requests reached the endpoint")
	}
	resp, _ := r.once("GET", "/", map[string]string{"Origin": "https://a.example"}, "")
	if resp.Header.Get("Access-Control-Allow-Origin") != "https://a.example" || resp.Header.Get("Access-Control-Expose-Headers") != "X-From" {
		t.Errorf("%v", resp.Header)
	}
	if resp, _ := r.once("GET", "/", nil, ""); resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without origin: %v", resp.Header)
	}
}

// With credentials clients take "*" for a name, so that none is ever sent (HTTPCORSFilter).
func TestCORSWildcards(t *testing.T) {
	e := newEcho(t, "one")
	for _, c := range []struct {
		credentials bool
		asked       string // Access-Control-Request-Headers
		preflight   string // origin, methods, headers, exposed
		answer      string
	}{
		{false, "x-a, x-b", "*|*|*|*", "*|||*"},
		{false, "", "*|*|*|*", "*|||*"},
		{true, "x-a, x-b", "https://a.example|PUT|x-a, x-b|", "https://a.example|||"},
		{true, "", "https://a.example|PUT||", "https://a.example|||"},
	} {
		u := simple(e.addr())
		any := []string{"*"}
		u.Routes[0].Rules[0].Filters = []route.Filter{{CORS: &route.CORS{AllowOrigins: any, AllowMethods: any, AllowHeaders: any, ExposeHeaders: any, AllowCredentials: c.credentials}}}
		r := start(t, u)
		says := func(h http.Header) string {
			return h.Get("Access-Control-Allow-Origin") + "|" + h.Get("Access-Control-Allow-Methods") + "|" + h.Get("Access-Control-Allow-Headers") + "|" + h.Get("Access-Control-Expose-Headers")
		}
		header := map[string]string{"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
		if c.asked != "" {
			header["Access-Control-Request-Headers"] = c.asked
		}
		resp, _ := r.once("OPTIONS", "/", header, "")
		if got := says(resp.Header); got != c.preflight {
			t.Errorf("%+v: preflight: %s", c, got)
		}
		resp, _ = r.once("GET", "/", map[string]string{"Origin": "https://a.example"}, "")
		if c.credentials { // what there is to be exposed is named
			got := resp.Header.Get("Access-Control-Expose-Headers")
			if !strings.Contains(got, "X-From") || strings.Contains(got, "*") || strings.Contains(got, "Access-Control") || strings.Contains(strings.ToLower(got), "cookie") {
				t.Errorf("%+v: exposed: %s", c, got)
			}
			resp.Header.Del("Access-Control-Expose-Headers")
		}
		if got := says(resp.Header); got != c.answer {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// A port that is the scheme's own may be named or not.
func TestCORSPorts(t *testing.T) {
	c := compileCORS(&route.CORS{AllowOrigins: []string{"https://a.example:443", "http://b.example", "https://*.c.example:443", "https://d.example:8443"}})
	for origin, want := range map[string]bool{
		"https://a.example": true, "https://a.example:443": true, "https://a.example:80": false, "http://b.example:80": true, "http://b.example:443": false,
		"https://x.c.example": true, "https://x.c.example:444": false, "https://d.example:8443": true, "https://d.example": false,
	} {
		if c.allows(origin) != want {
			t.Errorf("%s: %v", origin, !want)
		}
	}
}

func TestRetries(t *testing.T) {
	var n atomic.Int64
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if n.Add(1)%3 != 0 {
			w.WriteHeader(500)
			return
		}
		_, _ = w.Write(b)
	})
	u := simple(addr)
	u.Routes[0].Rules[0].Retry = &route.Retry{Codes: []int{500}, Attempts: 2, Backoff: route.Duration(time.Millisecond)}
	r := start(t, u)
	for _, body := range []string{"", "again", strings.Repeat("y", 40000)} {
		if resp, b := r.once("POST", "/", nil, body); resp.StatusCode != 200 || b != body {
			t.Errorf("%d, %d bytes", resp.StatusCode, len(b))
		}
	}
	n.Store(0)
	if resp, _ := r.once("POST", "/", nil, strings.Repeat("y", 400000)); resp.StatusCode != 500 || n.Load() != 1 {
		t.Errorf("a body too large to keep: %d after %d attempts", resp.StatusCode, n.Load())
	}
}

// A dead endpoint among others costs no request.
func TestDeadEndpoints(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple("127.0.0.1:1", e.addr(), "127.0.0.1:2"))
	c := r.dial()
	for i := range 100 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Fatalf("%d: %d", i, resp.StatusCode)
		}
	}
	ejected := 0
	for _, e := range r.srv.tables.backends["b"].Load().endpoints.Load().all {
		if e.ejected.Load() > 0 {
			ejected++
		}
	}
	if ejected != 2 {
		t.Errorf("%d endpoints are ejected, want 2", ejected)
	}
}

func TestTimeouts(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	addr := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	for name, to := range map[string]route.Timeouts{"request": {Request: route.Duration(50 * time.Millisecond)}, "backend": {BackendRequest: route.Duration(50 * time.Millisecond)}} {
		u := simple(addr)
		u.Routes[0].Rules[0].Timeouts = to
		begin := time.Now()
		if resp, _ := start(t, u).once("GET", "/", nil, ""); resp.StatusCode != 504 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
		if d := time.Since(begin); d < 50*time.Millisecond || d > 10*time.Second {
			t.Errorf("%s: after %v", name, d)
		}
	}
}

func TestSessions(t *testing.T) {
	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	for _, kind := range []route.SessionKind{route.SessionCookie, route.SessionHeader} {
		u := simple(a.addr(), b.addr(), c.addr())
		u.Routes[0].Rules[0].Session = &route.Session{Kind: kind, Name: "sid", AbsoluteTimeout: route.Duration(time.Hour), Permanent: true}
		r := start(t, u)
		resp, _ := r.once("GET", "/", nil, "")
		header, from := map[string]string{}, resp.Header.Get("X-From")
		if kind == route.SessionCookie {
			cookie := resp.Cookies()[0]
			if cookie.Name != "sid" || !cookie.HttpOnly || cookie.MaxAge != 3600 || strings.Contains(cookie.Value, "127") {
				t.Errorf("%+v", cookie)
			}
			header["Cookie"] = "x=1; sid=" + cookie.Value
		} else {
			header["sid"] = resp.Header.Get("sid")
		}
		for range 30 {
			if resp, _ := r.once("GET", "/", header, ""); resp.Header.Get("X-From") != from {
				t.Fatalf("%s: went to %s instead of %s", kind, resp.Header.Get("X-From"), from)
			}
		}
		header["Cookie"], header["sid"] = "sid=nonsense", "nonsense"
		if resp, _ := r.once("GET", "/", header, ""); resp.StatusCode != 200 {
			t.Errorf("a false session: %d", resp.StatusCode)
		}
	}
}

// A session stays with a backend that gets no new ones (GEP-1619), and a new one starts by weight.
func TestSessionsAndWeights(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	u := withBackend(simple(a.addr()), "other", b.addr())
	u.Routes[0].Rules[0].Backends = []route.WeightedBackend{{Backend: "b", Weight: 0}, {Backend: "other", Weight: 1}}
	u.Routes[0].Rules[0].Session = &route.Session{Kind: route.SessionHeader, Name: "sid"}
	r := start(t, u)
	if resp := r.want(200, "/", nil); resp.Header.Get("X-From") != "b" {
		t.Errorf("a new session went to %s", resp.Header.Get("X-From"))
	}
	old := sessionToken(r.srv.tables.backends["b"].Load().endpoints.Load().all[0].id, time.Now())
	if resp := r.want(200, "/", map[string]string{"sid": old}); resp.Header.Get("X-From") != "a" || resp.Header.Get("sid") != old {
		t.Errorf("an old session went to %s, and is %q", resp.Header.Get("X-From"), resp.Header.Get("sid"))
	}
}

// A session ends when its time is over, counted from its beginning, however often it was used meanwhile.
func TestSessionsExpire(t *testing.T) {
	a := newEcho(t, "a")
	for _, kind := range []route.SessionKind{route.SessionCookie, route.SessionHeader} {
		u := simple(a.addr())
		u.Routes[0].Rules[0].Session = &route.Session{Kind: kind, Name: "sid", AbsoluteTimeout: route.Duration(time.Hour)}
		r := start(t, u)
		told := func(token string) string {
			t.Helper()
			header := map[string]string{"sid": token}
			if kind == route.SessionCookie {
				header = map[string]string{"Cookie": "sid=" + token}
			}
			resp := r.want(200, "/", header)
			if kind == route.SessionHeader {
				return resp.Header.Get("sid")
			}
			for _, c := range resp.Cookies() {
				return c.Value
			}
			return ""
		}
		e := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
		current := sessionToken(e.id, time.Now().Add(-59*time.Minute))
		want := "" // a cookie is kept by the client
		if kind == route.SessionHeader {
			want = current
		}
		if got := told(current); got != want {
			t.Errorf("%s: the session goes on as %q, want %q", kind, got, want)
		}
		began := time.Now().Add(-time.Second)
		_, at, ok := readToken(u.Routes[0].Rules[0].Session, told(sessionToken(e.id, time.Now().Add(-61*time.Minute))), time.Now())
		if !ok || at.Before(began) {
			t.Errorf("%s: after its end the session goes on from %v", kind, at)
		}
	}
}

func TestLeastRequest(t *testing.T) {
	b := &backend{conf: route.Backend{Key: "b"}}
	b.update([]route.Endpoint{{Address: "a"}, {Address: "b"}}, time.Now())
	b.endpoints.Load().all[0].inflight.Store(10)
	n := 0
	for range 1000 {
		if b.pick(0, nil).address == "a" {
			n++
		}
	}
	if n < 150 || n > 350 { // both draws fall on it a quarter of the time
		t.Errorf("the busy endpoint got %d of 1000", n)
	}
}

func TestEndpointChanges(t *testing.T) {
	b := &backend{conf: route.Backend{Key: "b"}}
	now := time.Now()
	b.update([]route.Endpoint{{Address: "a"}, {Address: "b"}}, now)
	first := b.endpoints.Load().all[0]
	b.update([]route.Endpoint{{Address: "a"}, {Address: "b", Terminating: true}, {Address: "c"}}, now)
	list := b.endpoints.Load()
	if list.all[0] != first || len(list.active) != 2 {
		t.Errorf("%+v", list)
	}
	count := func(at time.Time) (n int) {
		for range 2000 {
			if b.pick(at.UnixNano(), nil).address == "c" {
				n++
			}
		}
		return n
	}
	if early, late := count(now.Add(time.Second)), count(now.Add(time.Minute)); early > 500 || late < 800 {
		t.Errorf("the newcomer got %d of 2000 at first, %d later", early, late)
	}
	b.update([]route.Endpoint{{Address: "b", Terminating: true}}, now)
	if e := b.pick(now.UnixNano(), nil); e == nil || e.address != "b" {
		t.Error("a terminating endpoint is better than none")
	}
	b.update(nil, now)
	if b.pick(now.UnixNano(), nil) != nil {
		t.Error("there is none")
	}
}

// Every request of a storm of changes is answered, by what was right before or after.
func TestChangesLoseNothing(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	u := simple(a.addr())
	r := start(t, u)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var n atomic.Int64
	for range 4 {
		wg.Go(func() {
			c := r.dial()
			for ctx.Err() == nil {
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"); err != nil {
					t.Error(err)
					return
				}
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("%+v, %v", resp, err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				n.Add(1)
			}
		})
	}
	for i := range 300 {
		v := simple([]string{a.addr(), b.addr()}[i%2])
		v.Listeners[0].Addresses = loopback
		for j := range i % 7 {
			v.Routes = append(v.Routes, route.Route{Key: fmt.Sprint("x", j), Kind: route.HTTPRoute, Created: int64(j), Parents: []route.Parent{{Listener: "http", Hostnames: []string{fmt.Sprintf("h%d.example.com", j), ""}}},
				Rules: []route.Rule{{Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/x"}}}}}})
		}
		if i%5 == 0 {
			v.Backends[0].Protocol = route.HTTP1
		}
		if i%11 == 0 {
			v.Listeners[0].TrustedProxies = prefixes("10.0.0.0/8")
		}
		v.Complete, v.Revision = true, uint64(i+10)
		if err := r.srv.Apply(&v); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "requests went on", func() bool { return n.Load() > 100 })
	stop()
	wg.Wait()
	if r.srv.Revision() != 309 {
		t.Errorf("revision %d", r.srv.Revision())
	}
}

func TestIncrementalUpdates(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	r := start(t, simple(a.addr()))
	step := func(u route.Update, want int, from string) {
		t.Helper()
		if err := r.srv.Apply(&u); err != nil {
			t.Fatal(err)
		}
		if code, s := r.get("/", nil); code != want || s.Server != from {
			t.Errorf("%d from %s, want %d from %s", code, s.Server, want, from)
		}
	}
	step(route.Update{}, 200, "a")
	step(route.Update{Endpoints: []route.EndpointSet{{Key: "e", Endpoints: []route.Endpoint{{Address: b.addr()}}}}}, 200, "b")
	step(route.Update{Removed: []route.Ref{{Kind: route.KindEndpointSet, Key: "e"}}}, 503, "")
	step(route.Update{Endpoints: simple(a.addr()).Endpoints}, 200, "a")
	step(route.Update{Removed: []route.Ref{{Kind: route.KindBackend, Key: "b"}}}, 500, "")
	step(route.Update{Backends: simple().Backends}, 200, "a")
	step(route.Update{Removed: []route.Ref{{Kind: route.KindRoute, Key: "r"}}}, 404, "")
	step(route.Update{Routes: simple().Routes}, 200, "a")
}

func TestDrain(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	r := start(t, simple(addr))
	idle := r.dial()
	idle.send("GET /") // a request on its way is served, see below; this one never comes
	busy := r.dial()
	busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-begun
	drained := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	go func() { drained <- r.srv.Drain(ctx) }()
	until(t, "no new connections", func() bool {
		c, err := net.Dial("tcp", r.srv.tables.any(t))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(release)
	if resp, b := busy.answer("GET"); b != "done" || !resp.Close {
		t.Errorf("%q, close %v", b, resp.Close)
	}
	idle.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// any is an address that the tables had.
func (tb *tables) any(*testing.T) string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, p := range tb.ports {
		return p.l.Addr().String()
	}
	return "127.0.0.1:1"
}

func TestAccessLog(t *testing.T) {
	e := newEcho(t, "one")
	for _, asJSON := range []bool{true, false} {
		var out strings.Builder
		log, closeLog := NewAccessLog(&out, asJSON, 1)
		r := start(t, simple(e.addr()), Config{AccessLog: log})
		r.once("GET", "/x?y", map[string]string{"User-Agent": "a\"b"}, "")
		until(t, "the exchange is over", func() bool { return r.srv.conns.Load() == 0 })
		closeLog()
		if asJSON {
			var line map[string]any
			if err := json.Unmarshal([]byte(out.String()), &line); err != nil || line["status"] != 200.0 || line["path"] != "/x" || line["route"] != "r" || line["client"] != "127.0.0.1" {
				t.Errorf("%s: %v", out.String(), err)
			}
		} else if s := out.String(); !strings.Contains(s, `"GET /x?y HTTP/1.1" 200 `) || !strings.HasSuffix(s, " \"-\" \"a\\\"b\"\n") {
			t.Error(s)
		}
	}
}

// Metrics hold what the configuration names, whatever clients send.
func TestMetrics(t *testing.T) {
	e := newEcho(t, "one")
	u := simple(e.addr())
	u.Routes[0].Rules[0].Name = "main"
	r := start(t, u)
	for i := range 20 {
		r.once("GET", fmt.Sprintf("/%d", i), map[string]string{"Host": fmt.Sprintf("h%d.example.com", i)}, "")
	}
	r.update.Listeners[0].Policies, r.update.Policies = []string{"p"}, []route.Policy{{Key: "p", Sources: &route.Sources{Deny: prefixes("127.0.0.0/8")}}}
	r.apply()
	r.want(403, "/", nil)
	c := r.dial()
	c.send("nonsense\r\n\r\n")
	c.answer("GET")
	until(t, "exchanges are over", func() bool { return r.srv.active.Load() == 0 })
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r.srv)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"weft_gateway_requests_total 2xx r main": 20, "weft_gateway_request_duration_seconds r main": 21,
		"weft_gateway_refused_total malformed": 1, "weft_gateway_revision": 2, "weft_gateway_endpoints_ejected b": 0,
		"weft_gateway_denied_total source":          1,
		"weft_gateway_backend_requests_total b 2xx": 20, "weft_gateway_backend_request_duration_seconds b": 20,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if len(got) > 20 {
		t.Errorf("%d series: %v", len(got), got)
	}
}

// A port that is taken is told of, keeps nothing else from being served, and is bound once it is free.
func TestPortsThatAreTaken(t *testing.T) {
	e := newEcho(t, "one")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := start(t, simple(e.addr()))
	u := route.Update{Listeners: []route.Listener{{Key: "second", Protocol: route.HTTP, Addresses: loopback, Port: uint16(taken.Addr().(*net.TCPAddr).Port)}}}
	if err := r.srv.Apply(&u); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("%v", err)
	}
	if code, _ := r.get("/", nil); code != 200 {
		t.Errorf("%d", code)
	}
	taken.Close()
	if err := r.srv.Apply(&route.Update{}); err != nil {
		t.Error(err)
	}
	c, err := net.Dial("tcp", taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
