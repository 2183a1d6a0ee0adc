// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// A backend's own question is asked once that backend is chosen, and before it gets anything; the others' requests are no
// concern of it.
func TestBackendsExternalAuth(t *testing.T) {
	one, two, a := newEcho(t, "one"), newEcho(t, "two"), newAuthServer(t)
	u := withBackend(withBackend(simple(one.addr()), "two", two.addr()), "auth", a.addr)
	rule := &u.Routes[0].Rules[0]
	rule.Backends[0].Filters = []route.Filter{{RequestHeaders: &route.HeaderEdit{Remove: []string{"X-Secret"}}}, asks("auth"),
		{Rewrite: &route.Rewrite{Path: &route.PathRewrite{Full: pointer("/rewritten")}}}, {ResponseHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "X-Edited", Value: "yes"}}}},
		{CORS: &route.CORS{AllowOrigins: []string{"https://x.example.com"}}}}
	rule.Filters = []route.Filter{{RequestHeaders: &route.HeaderEdit{Set: []route.Header{{Name: "X-Rule", Value: "yes"}}}}}
	r := start(t, u)
	status, s := r.get("/asked?x=1", map[string]string{"X-Ask": "ann", "X-User": "forged", "X-Secret": "for the authority"})
	if got := s.Header.Values("X-User"); status != 200 || s.Server != "one" || s.Path != "/rewritten?x=1" || len(got) != 1 || got[0] != "user-ann" || s.Header.Get("X-Secret") != "" {
		t.Errorf("%d %+v", status, s)
	}
	if q := a.last.Load(); q.RequestURI != "/asked?x=1" || q.Header.Get("X-Rule") != "yes" || q.Header.Get("X-Secret") == "" {
		t.Errorf("asked %s %v", q.RequestURI, q.Header)
	}
	// Refused, redirected to where one logs in, or an error: nothing reaches the backend.
	before := one.count.Load()
	for status, want := range map[string]int{"401": 401, "403": 403, "302": 302, "204": 403, "503": 500} {
		resp, body := r.once("GET", "/", map[string]string{"X-Status": status, "Origin": "https://x.example.com"}, "")
		if resp.StatusCode != want || resp.Header.Get("Access-Control-Allow-Origin") != "https://x.example.com" {
			t.Errorf("%s of the authority: %d %v", status, resp.StatusCode, resp.Header)
		}
		if status == "302" && (resp.Header.Get("Location") != "https://login.example.com/" || !strings.Contains(body, "own text")) {
			t.Errorf("%v %q", resp.Header, body)
		}
	}
	r.want(401, "/", nil)
	count := a.count.Load()
	if resp, _ := r.once("OPTIONS", "/", map[string]string{"Origin": "https://x.example.com", "Access-Control-Request-Method": "GET"}, ""); resp.StatusCode != 204 {
		t.Errorf("a preflight request: %d", resp.StatusCode)
	}
	if a.count.Load() != count || one.count.Load() != before {
		t.Error("a request came through, or a preflight request was asked about")
	}
	// The other backend's requests are not asked about, nor do those of a weight of none matter.
	filters := rule.Backends[0].Filters
	r.balance(route.WeightedBackend{Backend: "b", Weight: 0, Filters: filters}, route.WeightedBackend{Backend: "two", Weight: 1})
	r.apply()
	if status, s := r.get("/", nil); status != 200 || s.Server != "two" || a.count.Load() != count {
		t.Errorf("%d %+v", status, s)
	}
	r.balance(route.WeightedBackend{Backend: "b", Weight: 1, Filters: filters}, route.WeightedBackend{Backend: "two", Weight: 1})
	r.apply()
	got := map[int]int{}
	for range 200 {
		resp, _ := r.once("GET", "/", nil, "")
		got[resp.StatusCode]++
	}
	if got[401] == 0 || got[200] == 0 || got[200]+got[401] != 200 || one.count.Load() != before {
		t.Errorf("of two backends, one of them guarded: %v", got)
	}
	if asked := int(a.count.Load() - count); asked != got[401] {
		t.Errorf("asked %d times about %d requests", asked, got[401])
	}
}

// balance gives the first rule other backends.
func (r *rig) balance(backends ...route.WeightedBackend) {
	rt := r.update.Routes[0] // what was applied stays as it is
	rt.Rules = slices.Clone(rt.Rules)
	rt.Rules[0].Backends = backends
	r.update.Routes = []route.Route{rt}
}

// Where nobody can be asked nobody gets to that backend. The listener's, the rule's and the backend's question are each asked.
func TestBackendsExternalAuthFailsClosed(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: asks("auth").ExternalAuth}, e.addr()), "auth", a.addr)
	u.Listeners[0].Filters = []route.Filter{asks("auth")}
	u.Routes[0].Rules[0].Backends[0].Filters = []route.Filter{asks("auth")}
	r := start(t, u)
	ann := map[string]string{"X-Ask": "ann"}
	r.want(200, "/", ann)
	if n := a.count.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
	before := e.count.Load()
	for _, f := range []route.Filter{asks("nobody"), {ExternalAuth: &route.ExternalAuth{Invalid: "there is no Service auth"}}, {ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "$nothing"}}} {
		r.balance(route.WeightedBackend{Backend: "b", Weight: 1, Filters: []route.Filter{f}})
		r.update.Revision++
		_ = r.srv.Apply(&r.update)
		r.want(500, "/", ann)
	}
	// A rule's is a policy: as a filter it would be asked beside it, so that is no way to write it.
	u = withBackend(simple(e.addr()), "auth", a.addr)
	u.Routes[0].Rules[0].Filters = []route.Filter{asks("auth")}
	r = start(t, route.Update{})
	r.update = u
	r.update.Listeners[0].Addresses = loopback
	if err := r.srv.Apply(&u); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("the update is taken: %v", err)
	}
	r.want(500, "/", ann)
	if e.count.Load() != before {
		t.Error("a request came through")
	}
}

// A filter of which a gateway knows nothing may be one that keeps somebody out: a newer controller wrote it.
func TestFiltersThatAreNotKnown(t *testing.T) {
	e := newEcho(t, "e")
	for name, put := range map[string]func(*route.Rule){
		"of a rule":    func(r *route.Rule) { r.Filters = make([]route.Filter, 1) },
		"of a backend": func(r *route.Rule) { r.Backends[0].Filters = make([]route.Filter, 1) },
	} {
		u := simple(e.addr())
		u.Listeners[0].Addresses = loopback
		put(&u.Routes[0].Rules[0])
		r := start(t, route.Update{})
		if err := r.srv.Apply(&u); err == nil || !strings.Contains(err.Error(), "not known") {
			t.Errorf("one %s: %v", name, err)
		}
		r.want(500, "/", nil)
	}
	if e.count.Load() != 0 {
		t.Error("a request came through")
	}
}

// Over gRPC, with bodies, and for calls: as a rule's.
func TestBackendsExternalAuthOverGRPC(t *testing.T) {
	e := newEcho(t, "e")
	a := newAuthority2(t, func(c *checked) (string, error) {
		if c.Attributes.Request.Http.Body != "open sesame" {
			return `{"status": {"code": 7}, "denied_response": {"status": {"code": 429}, "body": "later"}}`, nil
		}
		return `{"ok_response": {"headers": [{"header": {"key": "X-User", "value": "ann"}}], "query_parameters_to_set": [{"key": "user", "value": "ann"}],
			"response_headers_to_add": [{"header": {"key": "X-Seen", "value": "yes"}}]}}`, nil
	})
	u := withBackend(simple(e.addr()), "auth", a.addr)
	u.Backends[1].Protocol = route.HTTP2
	u.Routes[0].Rules[0].Backends[0].Filters = []route.Filter{{ExternalAuth: &route.ExternalAuth{Backend: "auth", GRPC: true, ForwardBody: 100}}}
	u.Routes[0].Rules[0].Retry = &route.Retry{Attempts: 2, Codes: []int{503}}
	r := start(t, u)
	resp, body := r.once("POST", "/", nil, "open sesame")
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil || resp.StatusCode != 200 || s.Body != "open sesame" || s.Path != "/?user=ann" || s.Header.Get("X-User") != "ann" || resp.Header.Get("X-Seen") != "yes" {
		t.Errorf("%d %s %v", resp.StatusCode, body, resp.Header)
	}
	before := e.count.Load()
	if resp, body := r.once("POST", "/", nil, "open barley"); resp.StatusCode != 429 || body != "later" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if resp, _ := r.once("POST", "/", nil, strings.Repeat("x", 101)); resp.StatusCode != 413 {
		t.Errorf("a body that is too large: %d", resp.StatusCode)
	}
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest("POST", "http://"+r.tcp()+"/pkg.Service/Call", strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	resp, err = tr.RoundTrip(req)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "14" {
		t.Errorf("a call that is refused: %v %v", err, resp)
	}
	resp.Body.Close()
	if e.count.Load() != before {
		t.Error("a refused request came through")
	}
}

// A path that may be read in several ways does not get around a backend's question.
func TestBackendsExternalAuthAndPathsReadOtherwise(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(simple(e.addr()), "auth", a.addr)
	prefix := func(p string) []route.Match {
		return []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: p}}}
	}
	u.Routes[0].Rules = []route.Rule{
		{Matches: prefix("/admin/x"), Backends: []route.WeightedBackend{{Backend: "b", Weight: 1, Filters: []route.Filter{asks("auth")}}}},
		{Matches: prefix("/"), Backends: []route.WeightedBackend{{Backend: "b", Weight: 1}}},
	}
	r := start(t, u)
	r.want(200, "/open", nil)
	r.want(401, "/admin/x", nil)
	r.want(401, "/admin%2fx", nil)
}

// A question of external authentication to a route of the gateway's own does not get to a backend that has another authority.
func TestBackendsExternalAuthIsAskedOfQuestions(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Host: "victim.example.com", Path: "/secret", Method: "DELETE"}}, e.addr()), "victim", a.addr)
	u.Routes = append(u.Routes, route.Route{Key: "theirs", Kind: route.HTTPRoute,
		Parents: []route.Parent{{Listener: "http", Hostnames: []string{"victim.example.com"}}},
		Rules:   []route.Rule{{Backends: []route.WeightedBackend{{Backend: "victim", Weight: 1, Filters: []route.Filter{asks("other")}}}}}})
	r := start(t, u)
	r.want(500, "/", map[string]string{"X-Ask": "ann"})
	if a.count.Load() != 0 {
		t.Error("the guarded backend was asked")
	}
}
