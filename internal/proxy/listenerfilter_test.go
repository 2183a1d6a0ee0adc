// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// asks is a filter that asks a backend over HTTP, as Gateway API has it.
func asks(backend string) route.Filter {
	return route.Filter{ExternalAuth: &route.ExternalAuth{Backend: backend, Path: "$request_uri", AllResponseHeaders: true}}
}

// stamping is an authority that lets pass whom the header X-Deny does not name, and whose word is its name in X-Stamp. It
// writes down what it was asked.
func stamping(t *testing.T, name string, log func(string)) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		log(fmt.Sprintf("%s after %s", name, strings.Join(r.Header.Values("X-Stamp"), ",")))
		w.Header().Set("X-Stamp", name)
		if r.Header.Get("X-Deny") == name {
			w.WriteHeader(403)
			fmt.Fprintf(w, "%s says no", name)
		}
	})
}

// The filters of a listener act in their order, each on what the one before it made of the request, before a route is looked
// for: that is found by what they say, not by what the client claims, and once. A no is the answer, whoever else there is.
func TestListenerFiltersActInOrderBeforeRouting(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	log := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, s)
	}
	taken := func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { asked = nil }()
		return asked
	}
	one, two, rest := newEcho(t, "one"), newEcho(t, "two"), newEcho(t, "rest")
	u := simple(one.addr())
	u = withBackend(withBackend(withBackend(u, "two", two.addr()), "forged", rest.addr()), "A", stamping(t, "A", log))
	u = withBackend(withBackend(u, "B", stamping(t, "B", log)), "R", stamping(t, "R", log))
	rule := func(stamp, backend string) route.Rule {
		return route.Rule{Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/in"}, Headers: []route.ValueMatch{{Name: "x-stamp", Value: stamp}}}},
			Backends: []route.WeightedBackend{{Backend: backend, Weight: 1}}}
	}
	u.Routes[0].Rules = []route.Rule{rule("forged", "forged"), rule("A", "b"), rule("B", "two")}
	u.Routes[0].Rules[1].Policies = []string{"p"}
	u.Policies = []route.Policy{{Key: "p", ExternalAuth: asks("R").ExternalAuth}}
	u.Listeners[0].Filters = []route.Filter{asks("A"), asks("B")}
	r := start(t, u)
	forged := map[string]string{"X-Stamp": "forged"}
	if status, s := r.get("/in?x=1", forged); status != 200 || s.Server != "two" || !slices.Equal(s.Header.Values("X-Stamp"), []string{"B"}) {
		t.Errorf("A, B: %d %+v", status, s)
	}
	if got, want := taken(), []string{"A after forged", "B after A"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	r.update.Listeners[0].Filters = []route.Filter{asks("B"), asks("A")}
	r.apply()
	if status, s := r.get("/in", forged); status != 200 || s.Server != "one" || !slices.Equal(s.Header.Values("X-Stamp"), []string{"R"}) {
		t.Errorf("B, A: %d %+v", status, s)
	}
	if got, want := taken(), []string{"B after forged", "A after B", "R after A"}; !slices.Equal(got, want) { // the rule's own comes after
		t.Errorf("asked %q, want %q", got, want)
	}
	// Every request passes them, those that no route has as well; who is refused is not one without a route.
	unrouted := r.srv.stats.unrouted.Load()
	r.want(404, "/elsewhere", forged)
	if got := taken(); len(got) != 2 {
		t.Errorf("asked %q", got)
	}
	for _, path := range []string{"/in", "/elsewhere"} {
		resp, body := r.once("GET", path, map[string]string{"X-Deny": "B"}, "")
		if got := taken(); resp.StatusCode != 403 || body != "B says no" || !slices.Equal(got, []string{"B after "}) {
			t.Errorf("%s: %d %q, asked %q", path, resp.StatusCode, body, got)
		}
	}
	if n := r.srv.stats.unrouted.Load() - unrouted; n != 1 || r.srv.stats.denied[deniedExternal].Load() != 2 {
		t.Errorf("%d requests without a route, %d refused", n, r.srv.stats.denied[deniedExternal].Load())
	}
	if rest.count.Load() != 0 {
		t.Error("a client got a route by what it claims")
	}
	// The same one may be there twice, and is asked twice.
	r.update.Listeners[0].Filters = []route.Filter{asks("B"), asks("B")}
	r.apply()
	r.want(200, "/in", nil)
	if got := taken(); len(got) != 2 {
		t.Errorf("asked %q", got)
	}
	r.update.Listeners[0].Filters = nil
	r.apply()
	r.want(404, "/in", nil)
	if got := taken(); len(got) != 0 {
		t.Errorf("asked %q without filters", got)
	}
}

// Nothing passes a filter that can't be asked, and each listener has its own.
func TestListenerFiltersFailClosed(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(simple(e.addr()), "auth", a.addr)
	u.Listeners = append(u.Listeners, route.Listener{Key: "open", Protocol: route.HTTP, Hostname: "open.example.com"})
	u.Routes[0].Parents = append(u.Routes[0].Parents, route.Parent{Listener: "open", Hostnames: []string{"open.example.com"}})
	u.Listeners[0].Filters = []route.Filter{asks("auth")}
	r := start(t, u)
	ann, open := map[string]string{"X-Ask": "ann"}, map[string]string{"Host": "open.example.com"}
	shut := func(what string, filters ...route.Filter) {
		t.Helper()
		before := e.count.Load()
		r.update.Listeners[0].Filters = filters
		r.update.Revision++
		_ = r.srv.Apply(&r.update)
		r.want(500, "/", ann)
		if e.count.Load() != before {
			t.Errorf("%s lets pass", what)
		}
		r.want(200, "/", open)
	}
	r.want(200, "/", ann)
	r.want(401, "/", nil)
	r.want(200, "/", open)
	count := a.count.Load()
	shut("one that is invalid", route.Filter{ExternalAuth: &route.ExternalAuth{Invalid: "there is no Service auth"}})
	shut("one that is not known", asks("auth"), route.Filter{})
	shut("one of another kind", route.Filter{Mirror: &route.Mirror{Backend: "b"}})
	shut("one that can't be read", route.Filter{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "$nothing"}})
	shut("one whose backend is not there", asks("nobody"))
	if got := a.count.Load() - count; got != 1 {
		t.Errorf("the authority was asked %d times", got)
	}
	r.update.Listeners[0].Filters = []route.Filter{asks("auth")}
	r.apply()
	r.want(200, "/", ann)
	backends, sets := r.update.Backends, r.update.Endpoints
	r.update.Endpoints = sets[:1]
	r.apply()
	r.want(500, "/", ann)
	r.update.Backends = backends[:1]
	r.apply()
	r.want(500, "/", ann)
	r.update.Backends, r.update.Endpoints = backends, sets
	r.apply()
	r.want(200, "/", ann)
}

// An authority's word on Host is of no effect: neither on the route, nor on what the endpoint gets.
func TestListenerFiltersCannotChangeHost(t *testing.T) {
	e := newEcho(t, "e")
	web := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Host", "evil.example.com")
		w.Header()[":authority"] = []string{"evil.example.com"}
		w.Header().Set("X-Said", "yes")
	})
	call := newAuthority2(t, func(*checked) (string, error) {
		return `{"ok_response": {"headers": [{"header": {"key": "Host", "value": "evil.example.com"}}, {"header": {"key": ":authority", "value": "evil.example.com"}},
			{"header": {"key": "X-Said", "value": "yes"}}]}}`, nil
	})
	for name, c := range map[string]struct {
		conf     route.ExternalAuth
		addr     string
		protocol route.BackendProtocol
	}{
		"all headers":  {route.ExternalAuth{Path: "/", AllResponseHeaders: true}, web, route.HTTP1},
		"some headers": {route.ExternalAuth{Path: "/", ResponseHeaders: []string{"Host", ":authority", "X-Said"}}, web, route.HTTP1},
		"gRPC":         {route.ExternalAuth{GRPC: true}, call.addr, route.HTTP2},
	} {
		t.Run(name, func(t *testing.T) {
			u := withBackend(withBackend(simple(e.addr()), "evil", serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) })), "auth", c.addr)
			u.Backends[2].Protocol = c.protocol
			u.Routes[0].Parents[0].Hostnames = []string{"a.example.com"}
			u.Routes = append(u.Routes, route.Route{Key: "evil", Kind: route.HTTPRoute, Parents: []route.Parent{{Listener: "http", Hostnames: []string{"evil.example.com"}}},
				Rules: []route.Rule{{Backends: []route.WeightedBackend{{Backend: "evil", Weight: 1}}}}})
			c.conf.Backend = "auth"
			u.Listeners[0].Filters = []route.Filter{{ExternalAuth: &c.conf}}
			if status, s := start(t, u).get("/", nil); status != 200 || s.Host != "a.example.com" || s.Header.Get("X-Said") != "yes" || s.Header.Get(":authority") != "" {
				t.Errorf("%d %+v", status, s)
			}
		})
	}
}

// Over gRPC an authority may change the query, which routes are then found by, and add to the answer; and whatever the client
// speaks, it is asked, and answered in kind.
func TestListenerFiltersOfAllProtocols(t *testing.T) {
	ca := newAuthority(t)
	e := newEcho(t, "e")
	a := newAuthority2(t, func(c *checked) (string, error) {
		if c.header("x-ask") != "ann" {
			return `{"status": {"code": 7}}`, nil
		}
		return `{"ok_response": {"query_parameters_to_set": [{"key": "tenant", "value": "red"}], "response_headers_to_add": [{"header": {"key": "X-Seen", "value": "yes"}}]}}`, nil
	})
	u := withBackend(secure(t, ca, e.addr(), "a.example.com"), "auth", a.addr)
	u.Backends[1].Protocol = route.HTTP2
	u.Routes[0].Rules[0].Matches = []route.Match{{Query: []route.ValueMatch{{Name: "tenant", Value: "red"}}}}
	u.Listeners[0].Filters = []route.Filter{{ExternalAuth: &route.ExternalAuth{Backend: "auth", GRPC: true}}}
	r := start(t, u)
	for _, h2 := range []bool{false, true} {
		resp, body, err := r.askAs(ca, h2, nil, http.Header{"X-Ask": {"ann"}})
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("X-Seen") != "yes" || !strings.Contains(body, "/?tenant=red") {
			t.Errorf("HTTP/2 %v: %v %v %s", h2, err, resp, body)
		}
		if resp, body, err := r.askAs(ca, h2, nil, nil); err != nil || resp.StatusCode != 403 {
			t.Errorf("HTTP/2 %v, refused: %v %v %s", h2, err, resp, body)
		}
	}
	before := e.count.Load()
	resp, _, err := r.askAs(ca, true, nil, http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}})
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "7" || e.count.Load() != before {
		t.Errorf("a call that is refused: %v %v", err, resp)
	}
	resp, _, err = r.askAs(ca, true, nil, http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "X-Ask": {"ann"}})
	if err != nil || resp.StatusCode != 200 || e.count.Load() != before+1 {
		t.Errorf("a call that passes: %v %v", err, resp)
	}
	// Another host's listener refuses what was sent over this one's connection before anybody is asked.
	u.Listeners = append(u.Listeners, route.Listener{Key: "b", Protocol: route.HTTPS, Hostname: "b.example.com", TLS: &route.ListenerTLS{Certificates: []string{"a.example.com"}}})
	u.Listeners[1].Filters = u.Listeners[0].Filters
	r = start(t, u)
	asked := a.count.Load()
	if resp, body, err := r.ask(ca, true, "a.example.com", "b.example.com", nil); err != nil || resp.StatusCode != 421 || a.count.Load() != asked {
		t.Errorf("%v %v %s", err, resp, body)
	}
}

// A body is told to each that asks for it, and arrives.
func TestListenerFiltersTellBodies(t *testing.T) {
	e := newEcho(t, "e")
	var mu sync.Mutex
	var told []string
	web := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		told = append(told, string(b))
	})
	u := withBackend(simple(e.addr()), "auth", web)
	with := asks("auth")
	with.ExternalAuth.ForwardBody = 10
	u.Listeners[0].Filters = []route.Filter{with, with}
	r := start(t, u)
	taken := func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { told = nil }()
		return told
	}
	resp, body := r.once("POST", "/", nil, "the body")
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil || resp.StatusCode != 200 || s.Body != "the body" {
		t.Errorf("%d %s %v", resp.StatusCode, body, err)
	}
	if got := taken(); !slices.Equal(got, []string{"the body", "the body"}) {
		t.Errorf("told %q", got)
	}
	if resp, _ := r.once("POST", "/none", nil, strings.Repeat("x", 11)); resp.StatusCode != 413 {
		t.Errorf("a body that is too large: %d", resp.StatusCode)
	}
	if got := taken(); len(got) != 0 {
		t.Errorf("told %q", got)
	}
}

// A question that the listener's own routes answer does not get past its filters.
func TestQuestionsDoNotPassListenerFilters(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Host: "b.example.com", Path: "/secret", AuthRequest: true}}, e.addr()), "auth", a.addr)
	u.Listeners = append(u.Listeners, route.Listener{Key: "b", Protocol: route.HTTP, Hostname: "b.example.com"})
	u.Routes = append(u.Routes, route.Route{Key: "b", Kind: route.HTTPRoute, Parents: []route.Parent{{Listener: "b", Hostnames: []string{"b.example.com"}}},
		Rules: []route.Rule{{Backends: []route.WeightedBackend{{Backend: "b", Weight: 1}}}}})
	r := start(t, u)
	r.want(200, "/", nil)
	r.update.Listeners[1].Filters = []route.Filter{asks("auth")}
	r.apply()
	before := e.count.Load()
	r.want(500, "/", map[string]string{"X-Ask": "ann"})
	if e.count.Load() != before {
		t.Error("the question came through")
	}
}
