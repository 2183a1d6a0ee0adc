// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// withBackend adds a backend with one endpoint.
func withBackend(u route.Update, key, addr string) route.Update {
	u.Backends = append(u.Backends, route.Backend{Key: key, Endpoints: key})
	u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: key, Endpoints: []route.Endpoint{{Address: addr}}})
	return u
}

// authServer answers by the query's "user": who is not "ann" gets 401, or the status that "status" names.
type authServer struct {
	addr  string
	count atomic.Int64
	last  atomic.Pointer[http.Request]
}

func newAuthServer(t *testing.T) *authServer {
	s := &authServer{}
	s.addr = serve(t, func(w http.ResponseWriter, r *http.Request) {
		s.count.Add(1)
		s.last.Store(r)
		w.Header().Add("Set-Cookie", "auth=1")
		w.Header().Set("X-User", "user-"+r.Header.Get("X-Ask"))
		w.Header().Set("WWW-Authenticate", "Bearer realm=x")
		w.Header().Set("Location", "https://login.example.com/")
		switch status := r.Header.Get("X-Status"); {
		case status != "":
			var n int
			_, _ = fmt.Sscan(status, &n)
			w.WriteHeader(n)
			fmt.Fprint(w, "the authority's own text")
		case r.Header.Get("X-Ask") != "ann":
			w.WriteHeader(401)
		}
	})
	return s
}

func TestExternalAuth(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{
		Backend: "auth", Host: "auth.example.com", Path: "/check?who=$arg_who", Method: "GET", RequestHeaders: []route.Header{{Name: "X-Fixed", Value: "v-$host"}},
		ResponseHeaders: []string{"X-User"},
	}}, e.addr()), "auth", a.addr)
	u.Policies[0].ExternalAuth.AuthRequest = true
	r := start(t, u)
	resp, body := r.once("POST", "/a/b?who=x", map[string]string{"X-Ask": "ann", "X-User": "forged", "Cookie": "c=1", "If-None-Match": "x"}, "the body")
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	if got := s.Header.Values("X-User"); len(got) != 1 || got[0] != "user-ann" || s.Body != "the body" || s.Method != "POST" || s.Header.Get("If-None-Match") != "x" {
		t.Errorf("the endpoint got %+v", s)
	}
	if resp.Header.Get("Set-Cookie") != "auth=1" {
		t.Errorf("the authority's cookie is not passed on: %v", resp.Header)
	}
	q := a.last.Load()
	for name, want := range map[string]string{
		"X-Original-URL": "http://a.example.com/a/b?who=x", "X-Original-Method": "POST", "X-Original-URI": "/a/b?who=x", "X-Auth-Request-Redirect": "/a/b?who=x",
		"X-Fixed": "v-a.example.com", "Cookie": "c=1", "X-Real-IP": "127.0.0.1", "If-None-Match": "", "Content-Type": "",
	} {
		if got := q.Header.Get(name); got != want {
			t.Errorf("the question's %s is %q, want %q", name, got, want)
		}
	}
	if q.Method != "GET" || q.RequestURI != "/check?who=x" || q.Host != "auth.example.com" || q.ContentLength != 0 {
		t.Errorf("the question is %s %s %s, %d bytes", q.Method, q.Host, q.RequestURI, q.ContentLength)
	}
	resp = r.want(401, "/", nil)
	if resp.Header.Get("WWW-Authenticate") != "Bearer realm=x" || resp.Header.Get("Set-Cookie") != "auth=1" {
		t.Errorf("%v", resp.Header)
	}
	r.want(403, "/", map[string]string{"X-Status": "403"})
	for _, status := range []string{"201", "204"} {
		r.want(200, "/", map[string]string{"X-Status": status})
	}
	before := e.count.Load()
	for _, status := range []string{"500", "302", "404", "503"} {
		r.want(500, "/", map[string]string{"X-Status": status})
	}
	if e.count.Load() != before {
		t.Error("a refused request came through")
	}
	// Without the authority nobody gets in.
	r.update.Endpoints = r.update.Endpoints[:1]
	r.apply()
	r.want(500, "/", map[string]string{"X-Ask": "ann"})
	r.update.Backends = r.update.Backends[:1]
	r.apply()
	r.want(500, "/", map[string]string{"X-Ask": "ann"})
}

// As Gateway API has it, 200 alone lets a request pass, and a refusal is the client's as the authority says it.
func TestExternalAuthOfGatewayAPI(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	r := start(t, withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "$request_uri"}}, e.addr()), "auth", a.addr))
	r.want(200, "/", map[string]string{"X-Ask": "ann"})
	before := e.count.Load()
	for status, want := range map[string]int{"201": 403, "202": 403, "204": 403, "206": 403, "302": 302, "400": 400, "401": 401, "403": 403, "404": 404, "429": 429, "500": 500, "503": 500} {
		resp, body := r.once("GET", "/", map[string]string{"X-Status": status}, "")
		if resp.StatusCode != want {
			t.Errorf("%s of the authority: %d, want %d", status, resp.StatusCode, want)
		}
		if fmt.Sprint(want) == status && want < 500 {
			if body != "the authority's own text" || resp.Header.Get("WWW-Authenticate") != "Bearer realm=x" || len(resp.Header.Values("Set-Cookie")) != 1 {
				t.Errorf("%s of the authority: %q %v", status, body, resp.Header)
			}
		}
	}
	if resp := r.want(302, "/", map[string]string{"X-Status": "302"}); resp.Header.Get("Location") != "https://login.example.com/" {
		t.Errorf("%v", resp.Header)
	}
	if e.count.Load() != before {
		t.Error("a refused request came through")
	}
}

// What the authority is told, and what it tells backends, may be some or all.
func TestExternalAuthHeaders(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	r := start(t, withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/pre$request_uri", Headers: []string{"X-Ask"}, AllResponseHeaders: true}},
		e.addr()), "auth", a.addr))
	status, s := r.get("/x?y", map[string]string{"X-Ask": "ann", "Cookie": "c=1", "Authorization": "Bearer t", "X-Other": "o", "X-User": "forged"})
	if q := a.last.Load(); status != 200 || q.Header.Get("Cookie") != "" || q.Header.Get("X-Other") != "" || q.Header.Get("Authorization") != "Bearer t" || q.RequestURI != "/pre/x?y" {
		t.Errorf("%d, asked %s %v", status, q.RequestURI, q.Header)
	}
	if got := s.Header.Values("X-User"); len(got) != 1 || got[0] != "user-ann" || s.Header.Get("Cookie") != "c=1" || s.Header.Get("Www-Authenticate") != "" || s.Header.Get("Date") != "" {
		t.Errorf("the endpoint got %v", s.Header)
	}
}

func TestExternalAuthSignin(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	for signin, want := range map[route.Template]string{
		"https://login.example.com/start":        "https://login.example.com/start?rd=http%3A%2F%2Fa.example.com%2Fx%3Fy%3D1%262",
		"https://$host/start?x=1":                "https://a.example.com/start?x=1&rd=http%3A%2F%2Fa.example.com%2Fx%3Fy%3D1%262",
		"/start?rd=$escaped_request_uri":         "/start?rd=%2Fx%3Fy%3D1%262",
		"https://l.example.com/?x=$http_x_evil.": "https://l.example.com/?x=bad.&rd=http%3A%2F%2Fa.example.com%2Fx%3Fy%3D1%262",
	} {
		u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", AuthRequest: true, Path: "/", Signin: signin, SigninParam: "rd"}}, e.addr()), "auth", a.addr)
		r := start(t, u)
		resp := r.want(302, "/x?y=1&2", map[string]string{"X-Evil": "bad"})
		if got := resp.Header.Get("Location"); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", signin, got, want)
		}
		r.want(403, "/", map[string]string{"X-Status": "403"}) // no use to sign in
		r.want(200, "/", map[string]string{"X-Ask": "ann"})
	}
}

func TestExternalAuthCache(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/", CacheKey: "$http_x_ask", ResponseHeaders: []string{"X-User"},
		CacheFor: []route.CacheEntry{{Statuses: []int{200, 202}, For: route.Duration(time.Hour)}, {Statuses: []int{401}, For: route.Duration(time.Millisecond)}}}}, e.addr()), "auth", a.addr)
	r := start(t, u)
	for range 5 {
		if status, s := r.get("/", map[string]string{"X-Ask": "ann"}); status != 200 || s.Header.Get("X-User") != "user-ann" {
			t.Fatalf("%d %v", status, s.Header)
		}
	}
	if n := a.count.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	until(t, "a remembered refusal is forgotten", func() bool {
		r.want(401, "/", map[string]string{"X-Ask": "bob"})
		return a.count.Load() >= 3
	})
	before := a.count.Load()
	for range 3 {
		r.want(403, "/", map[string]string{"X-Ask": "cat", "X-Status": "403"})
	}
	if n := a.count.Load() - before; n != 3 {
		t.Errorf("a status without a time was remembered: asked %d times", n)
	}
	c := &answerCache{byKey: map[[32]byte]cachedAnswer{}}
	for i := range 2 * rememberAnswers {
		var key [32]byte
		key[0], key[1], key[2] = byte(i), byte(i>>8), byte(i>>16)
		c.put(key, &answer{}, time.Now().Add(time.Hour))
	}
	if len(c.byKey) > rememberAnswers {
		t.Errorf("%d answers are remembered", len(c.byKey))
	}
}

// A question may go to the gateway's own routes: oauth2-proxy behind the same host.
func TestExternalAuthByOwnRoutes(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Host: "$host", Path: "/oauth2/auth"}}, e.addr()), "auth", a.addr)
	u.Routes[0].Policies, u.Routes[0].Rules[0].Policies = u.Routes[0].Rules[0].Policies, nil
	other := u.Routes[0]
	other.Key, other.Policies = "oauth2", []string{"p"} // even where it is guarded itself
	prefix := "/"
	other.Rules = []route.Rule{{Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/oauth2"}}},
		Filters: []route.Filter{{Rewrite: &route.Rewrite{Path: &route.PathRewrite{Prefix: &prefix}}}}, Backends: []route.WeightedBackend{{Backend: "auth", Weight: 1}}}}
	u.Routes = append(u.Routes, other)
	r := start(t, u)
	r.want(200, "/", map[string]string{"X-Ask": "ann"})
	if q := a.last.Load(); q.RequestURI != "/auth" || q.Host != "a.example.com" {
		t.Errorf("asked %s %s", q.Host, q.RequestURI)
	}
	r.want(401, "/", nil)
}

// Either the source, a password or the authority.
func TestSatisfyAnyWithExternalAuth(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	r := start(t, withBackend(guarded(route.Policy{
		Sources: &route.Sources{Allow: prefixes("192.0.2.0/24")}, BasicAuth: &route.BasicAuth{Users: "u:{SHA}" + sha("secret")}, SatisfyAny: pointer(true),
		ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/"},
	}, e.addr()), "auth", a.addr))
	r.want(200, "/", basic("u", "secret"))
	if a.count.Load() != 0 {
		t.Error("asked in vain")
	}
	resp := r.want(200, "/", map[string]string{"X-Ask": "ann"})
	if resp.Header.Get("WWW-Authenticate") != "" {
		t.Error("a challenge with a good answer")
	}
	resp = r.want(401, "/", nil)
	if got := strings.Join(resp.Header.Values("WWW-Authenticate"), "; "); !strings.Contains(got, "Basic") || !strings.Contains(got, "Bearer") {
		t.Errorf("challenges: %s", got)
	}
}

func TestErrorPages(t *testing.T) {
	pages := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		code := r.Header.Get("X-Code")
		if code == "502" {
			code = "200" // a page may hide the failure
		}
		var n int
		_, _ = fmt.Sscan(code, &n)
		w.WriteHeader(n)
		fmt.Fprintf(w, "page %s %s %s %s %s", r.Header.Get("X-Code"), r.Header.Get("X-Format"), r.Header.Get("X-Original-Uri"), r.Header.Get("X-Namespace"), r.Method)
	})
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var n int
		_, _ = fmt.Sscan(strings.TrimPrefix(r.URL.Path, "/"), &n)
		w.WriteHeader(n)
		fmt.Fprint(w, "the endpoint's own")
	})
	u := withBackend(guarded(route.Policy{HSTS: &route.HSTS{MaxAge: 1},
		ErrorPages: &route.ErrorPages{Statuses: []int{401, 404, 413, 500, 502, 503}, Backend: "pages", Headers: []route.Header{{Name: "X-Namespace", Value: "shop"}}}}, e), "pages", pages)
	u.Listeners[0].Policies = []string{"p"}
	u.Routes[0].Parents[0].Hostnames = []string{"a.example.com"}
	r := start(t, u)
	for _, c := range []struct {
		target, host string
		status       int
		body         string
	}{
		{"/404?x=1", "a.example.com", 404, "page 404 text/x /404?x=1 shop GET"},
		{"/500", "a.example.com", 500, "page 500 text/x /500 shop GET"},
		{"/502", "a.example.com", 200, "page 502 text/x /502 shop GET"},
		{"/418", "a.example.com", 418, "the endpoint's own"},
		{"/", "other.example.com", 404, "page 404 text/x / shop GET"}, // no route
	} {
		resp, body := r.once("GET", c.target, map[string]string{"Accept": "text/x", "Host": c.host}, "")
		if resp.StatusCode != c.status || body != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.target, resp.StatusCode, body, c.status, c.body)
		}
	}
	if resp, body := r.once("HEAD", "/404", nil, ""); resp.StatusCode != 404 || body != "" || resp.Header.Get("Content-Type") != "text/html" {
		t.Errorf("HEAD: %d %v %q", resp.StatusCode, resp.Header, body)
	}
	if resp, body := r.once("POST", "/500", nil, strings.Repeat("x", 300_000)); resp.StatusCode != 500 || !strings.Contains(body, "page 500") {
		t.Errorf("POST: %d %q", resp.StatusCode, body)
	}
	// The proxy's own answers have pages as well, and the connection goes on.
	r.update.Policies[0].BasicAuth = &route.BasicAuth{}
	r.apply()
	c := r.dial()
	for range 3 {
		c.send("GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
		if resp, body := c.answer("GET"); resp.StatusCode != 401 || !strings.Contains(body, "page 401") || resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
		}
	}
	// Without the pages the plain answer has to do.
	r.update.Backends = r.update.Backends[:1]
	r.update.Policies[0].BasicAuth = nil
	r.apply()
	if resp, body := r.once("GET", "/404", nil, ""); resp.StatusCode != 404 || body != "the endpoint's own" {
		t.Errorf("without pages: %d %q", resp.StatusCode, body)
	}
}

// Policies are the same for requests of HTTP/2, and whatever the backends that they name speak.
func TestPoliciesOverHTTP2(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	pages := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(418)
		fmt.Fprintf(w, "page %s", r.Header.Get("X-Code"))
	})
	u := withBackend(withBackend(guarded(route.Policy{
		ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/", ResponseHeaders: []string{"X-User"}}, MaxRequestBody: pointer(int64(100_000)),
		ErrorPages: &route.ErrorPages{Statuses: []int{401}, Backend: "pages"}, BufferResponse: pointer(true),
		Balance: &route.Balance{Kind: route.Hash, Key: "$remote_addr"},
	}, e.addr()), "auth", a.addr), "pages", pages)
	u.Backends[2].Protocol = route.HTTP2
	r := start(t, u)
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	for _, c := range []struct {
		user   string
		size   int
		status int
		body   string
	}{
		{"ann", 0, 200, `"X-User":["user-ann"]`},
		{"ann", 100_000, 200, `"Length":100000`},
		{"ann", 100_001, 413, "Too Large"},
		{"ann", 1_000_000, 413, "Too Large"},
		{"bob", 100, 418, "page 401"},
		{"ann", 10, 200, `"Length":10`},
	} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(strings.Repeat("x", c.size))
			if chunked {
				body = io.MultiReader(body) // of a length that is not known
			}
			req, err := http.NewRequest("POST", "http://"+r.tcp()+"/", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Ask", c.user)
			resp, err := client.Do(req)
			if err != nil {
				t.Errorf("%+v: %v", c, err)
				continue
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if chunked && strings.Contains(c.body, "Length") {
				c.body = ""
			}
			if resp.StatusCode != c.status || !strings.Contains(string(b), c.body) || resp.ProtoMajor != 2 || err != nil {
				t.Errorf("%+v, chunked %v: %d %s %v", c, chunked, resp.StatusCode, b[:min(len(b), 300)], err)
			}
		}
	}
}

// h2cServer is an endpoint that speaks HTTP/2 in plain text.
func h2cServer(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = &http.Protocols{}
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}
