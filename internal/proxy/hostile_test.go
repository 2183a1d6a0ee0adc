// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// Who is not on a list of those denied has shown nothing by that: "any" of a password and such a list is the password,
// as with nginx.
func TestSatisfyAnyNeedsMoreThanNotToBeDenied(t *testing.T) {
	e := newEcho(t, "e")
	p := route.Policy{BasicAuth: &route.BasicAuth{Users: "u:{SHA}" + sha("secret")}, SatisfyAny: pointer(true)}
	for _, s := range []*route.Sources{{Deny: prefixes("192.0.2.0/24")}, {}} {
		p.Sources = s
		r := start(t, guarded(p, e.addr()))
		r.want(401, "/", nil)
		r.want(200, "/", basic("u", "secret"))
	}
}

// protected is a host whose path /admin needs a password, and whose other paths do not.
func protected(t *testing.T, kind route.PathKind) (*rig, *echo) {
	e := newEcho(t, "e")
	u := simple(e.addr())
	guard := u.Routes[0].Rules[0]
	guard.Matches = []route.Match{{Path: &route.PathMatch{Kind: kind, Value: "/admin"}}}
	guard.Policies = []string{"p"}
	u.Routes[0].Rules = append(u.Routes[0].Rules, guard)
	u.Policies = []route.Policy{{Key: "p", BasicAuth: &route.BasicAuth{Users: "u:{SHA}" + sha("secret")}}}
	return start(t, u), e
}

// raw makes a request whose target no client library has its own idea of.
func (r *rig) raw(status int, target string) {
	r.t.Helper()
	c := r.dial()
	c.send("GET " + target + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != status {
		r.t.Errorf("%s: %d, want %d", target, resp.StatusCode, status)
	}
}

// What an endpoint may take for a guarded path is guarded, however it is written.
func TestPathsThatEndpointsMayReadOtherwise(t *testing.T) {
	for _, kind := range []route.PathKind{route.PathPrefix, route.PathExact, route.PathStringPrefix} {
		r, e := protected(t, kind)
		for _, target := range []string{
			"/admin", "//admin", "///admin", "/./admin", "//./admin", "/x/..//admin", "/%2fadmin", "/%2Fadmin", "/x%2f..%2fadmin", "/x/..%2fadmin", "/x/%2e%2e%2fadmin",
			"/%61dmin", "/x//../../admin", "/%2e/admin", "/x/%2F%2E%2E/admin", "/admin;x", "/x/..;/admin", "/;a/admin", "/;/;/admin", "/x;/../admin", "/x\\..\\admin", "/%5cadmin", "/%5C/%2f;a=b%2Fadmin;c",
		} {
			r.raw(401, target)
		}
		if n := e.count.Load(); n != 0 {
			t.Errorf("%s: %d requests came through", kind, n)
		}
		r.raw(400, "/x%2f..%2f..%2fadmin")
		// What no other rule could be meant by stays as it came.
		for in, out := range map[string]string{"/a//b": "/a//b", "/a%2Fb": "/a%2Fb", "/a/https://b/c%2fd": "/a/https://b/c%2fd", "/a;b": "/a;b"} {
			if status, s := r.get(in, nil); status != 200 || s.Path != out {
				t.Errorf("%s: %d %s", in, status, s.Path)
			}
		}
		if status, s := r.get("/x%2f..//admin", basic("u", "secret")); status != 200 || s.Path != "/admin" {
			t.Errorf("what was checked is not what the endpoint got: %d %s", status, s.Path)
		}
	}
}

// A question of external authentication to a route of the gateway's own gets no further than its client would.
func TestExternalAuthIsNoWayAroundOthersPolicies(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	for name, guard := range map[string]route.Policy{
		"a password":       {BasicAuth: &route.BasicAuth{Users: "u:{SHA}" + sha("secret")}},
		"sources":          {Sources: &route.Sources{Allow: prefixes("192.0.2.0/24")}},
		"other authority":  {ExternalAuth: &route.ExternalAuth{Backend: "other", Path: "/"}},
		"what is not made": {Invalid: "its Secret is missing"},
	} {
		u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Host: "victim.example.com", Path: "/secret", Method: "DELETE"}}, e.addr()), "victim", a.addr)
		guard.Key = "theirs"
		u.Policies = append(u.Policies, guard)
		u.Routes = append(u.Routes, route.Route{Key: "theirs", Kind: route.HTTPRoute, Policies: []string{"theirs"},
			Parents: []route.Parent{{Listener: "http", Hostnames: []string{"victim.example.com"}}},
			Rules:   []route.Rule{{Backends: []route.WeightedBackend{{Backend: "victim", Weight: 1}}}}})
		r := start(t, u)
		before := a.count.Load()
		r.want(500, "/", map[string]string{"X-Ask": "ann"})
		if a.count.Load() != before {
			t.Errorf("%s: the guarded backend was asked", name)
		}
	}
}

// A remembered answer is one about a host and a rule: an authority decides by them as well.
func TestRememberedAnswersAreOfTheirRule(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/", CacheKey: "$http_x_session",
		CacheFor: []route.CacheEntry{{For: route.Duration(time.Hour)}}}}, e.addr()), "auth", a.addr)
	admin := u.Routes[0].Rules[0]
	admin.Matches = []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/admin"}}}
	u.Routes[0].Rules = append(u.Routes[0].Rules, admin)
	r := start(t, u)
	r.want(200, "/", map[string]string{"X-Session": "s", "X-Ask": "ann"})
	r.want(200, "/", map[string]string{"X-Session": "s"}) // remembered
	r.want(401, "/admin", map[string]string{"X-Session": "s"})
	r.want(401, "/", map[string]string{"X-Session": "s", "Host": "other.example.com"})
}

// Routes' edits can't change where a request ends, nor send two hosts.
func TestEditsDoNotFrameRequests(t *testing.T) {
	got := make(chan string, 1)
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		var head strings.Builder
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			head.WriteString(line)
			if line == "\r\n" {
				break
			}
		}
		got <- strings.ToLower(head.String())
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	u := simple(addr)
	framing := []route.Header{{Name: "Content-Length", Value: "0"}, {Name: "Transfer-Encoding", Value: "chunked"}, {Name: "Connection", Value: "x-a"}, {Name: "Upgrade", Value: "h2c"}}
	u.Routes[0].Rules[0].Filters = []route.Filter{
		{RequestHeaders: &route.HeaderEdit{Set: framing}},
		{RequestHeaders: &route.HeaderEdit{Add: framing}},
		{RequestHeaders: &route.HeaderEdit{SetTemplates: []route.TemplateHeader{{Name: "transfer-encoding", Value: "$http_x_t"}}}},
	}
	r := start(t, u)
	resp, _ := r.once("POST", "/", map[string]string{"X-T": "chunked"}, "hello")
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	head := <-got
	for _, name := range []string{"content-length: 0", "transfer-encoding", "connection", "upgrade"} {
		if strings.Contains(head, "\n"+name) {
			t.Errorf("the endpoint got %s: %q", name, head)
		}
	}
	if strings.Count(head, "\nhost:") != 1 || strings.Count(head, "\ncontent-length: 5\r") != 1 {
		t.Errorf("%q", head)
	}
}

// However HTTP/2 is asked for among other protocols, no tunnel to an endpoint's HTTP/2 is made, where no rule is in force.
func TestUpgradeToH2cAmongOthersIsNot(t *testing.T) {
	for _, upgrade := range []string{"h2c, websocket", "websocket,H2C", "foo , h2c"} {
		e := newEcho(t, "one")
		r := start(t, simple(e.addr()))
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: " + upgrade + "\r\n\r\n")
		if _, b := c.answer("GET"); strings.Contains(b, "Upgrade") {
			t.Errorf("%s: the endpoint got it: %s", upgrade, b)
		}
	}
}

// Several Connection fields are one list (RFC 9110 sections 5.3 and 7.6.1).
func TestConnectionFieldsAreOneList(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-hop\r\nConnection: close\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n")
	if _, b := c.answer("GET"); strings.Contains(b, "X-Hop") || !strings.Contains(b, "X-End") {
		t.Errorf("the endpoint got %s", b)
	}
	addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Connection"] = []string{"x-hop", "keep-alive"}
		w.Header().Set("X-Hop", "1")
	})
	r = start(t, simple(addr))
	if resp, _ := r.once("GET", "/", nil, ""); resp.Header.Get("X-Hop") != "" {
		t.Error("a field that concerns the endpoint's connection reached the client")
	}
}

// A Host that its reader may take apart differently is refused.
func TestHostsThatAreAmbiguous(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	for host, status := range map[string]int{
		"a.example.com": 200, "a.example.com:80": 200, "a.example.com.": 200, "[::1]": 200, "[::1]:80": 200, "a.example.com:": 200,
		"a:b": 400, "a:80:90": 400, "::1": 400, "[::1": 400, "::1]": 400, "a]": 400, "[::1]x": 400, "a:80.example.com": 400, ":80": 400, "[]": 400, "[a.b]": 400,
	} {
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.StatusCode != status {
			t.Errorf("Host %s: %d, want %d", host, resp.StatusCode, status)
		}
	}
}

// Servers that know fields by names of environments, where "-" is "_", can't be told what only the gateway may tell.
func TestNamesThatEndpointsMayTakeForOthers(t *testing.T) {
	e, a := newEcho(t, "e"), newAuthServer(t)
	r := start(t, withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/", ResponseHeaders: []string{"X-User"}}}, e.addr()), "auth", a.addr))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX-Ask: ann\r\nX_User: root\r\nx_forwarded_for: 1.2.3.4\r\nX-Forwarded_Proto: https\r\nX_Other: 1\r\n\r\n")
	resp, b := c.answer("GET")
	if resp.StatusCode != 200 || strings.Contains(b, "root") || strings.Contains(b, "1.2.3.4") || strings.Contains(b, "Forwarded_") || !strings.Contains(b, "X_other") {
		t.Errorf("%d: the endpoint got %s", resp.StatusCode, b)
	}
}

// A client writes no line of the access log: what it sends stays in the field that it belongs to.
func TestLogFieldsStayWhole(t *testing.T) {
	e := newEcho(t, "e")
	var out bytes.Buffer
	log, closeLog := NewAccessLog(&out, false, 1)
	r := start(t, simple(e.addr()), Config{AccessLog: log})
	r.raw(200, `/a"\b?c="d`)
	until(t, "the exchange is over", func() bool { return r.srv.conns.Load() == 0 })
	closeLog()
	if want := `"GET /a\"\\b?c=\"d HTTP/1.1" 200 `; !strings.Contains(out.String(), want) {
		t.Errorf("%q lacks %q", out.String(), want)
	}
}

// What is held for copies of requests is bounded for all clients together: beyond that there are no copies.
func TestMirroredBodiesAreBounded(t *testing.T) {
	e, m := newEcho(t, "e"), newEcho(t, "m")
	u := withBackend(simple(e.addr()), "m", m.addr())
	u.Routes[0].Rules[0].Filters = []route.Filter{{Mirror: &route.Mirror{Backend: "m", Numerator: 1, Denominator: 1}}}
	r := start(t, u)
	post := func() {
		if resp, _ := r.once("POST", "/", nil, strings.Repeat("x", 300<<10)); resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
	}
	post()
	until(t, "a copy comes", func() bool { return m.count.Load() == 1 })
	r.srv.held.add(holdMostAll - 100<<10)
	post()
	r.srv.held.add(100<<10 - holdMostAll)
	post()
	until(t, "a copy comes again", func() bool { return m.count.Load() >= 2 && r.srv.mirrors.Load() == 0 })
	if n := m.count.Load(); n != 2 {
		t.Errorf("%d copies", n)
	}
	until(t, "nothing is held", func() bool { return r.srv.held.bytes.Load() == 0 })
}

// A PROXY header is believed of those who may send one; of others it is read, and counts for nothing.
func TestProxyHeadersOfStrangers(t *testing.T) {
	e := newEcho(t, "e")
	for from, want := range map[string]string{"127.0.0.0/8": "192.0.2.7", "10.0.0.0/8": "127.0.0.1"} {
		u := simple(e.addr())
		u.Listeners[0].ProxyProtocol, u.Listeners[0].ProxySources = true, prefixes(from)
		r := start(t, u)
		c := r.dial()
		c.send("PROXY TCP4 192.0.2.7 192.0.2.8 1234 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, b := c.answer("GET"); resp.StatusCode != 200 || !strings.Contains(b, `"X-Forwarded-For":["`+want+`"]`) {
			t.Errorf("%s: %d %s", from, resp.StatusCode, b)
		}
	}
}

// Sessions that wait hold no buffers: clients whose addresses are made up cost a socket each, and no more.
func TestUDPSessionsAreSmall(t *testing.T) {
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	u := simple(far.LocalAddr().String())
	u.Listeners[0].Protocol, u.Routes[0].Kind, u.Backends[0].Protocol = route.UDP, route.UDPRoute, route.Raw
	r := start(t, u)
	const sessions = 300
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range sessions {
		c, err := net.Dial("udp", r.addr(true))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_, _ = c.Write([]byte("x"))
		_ = far.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, _, err := far.ReadFrom(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > sessions*(16<<10) {
		t.Errorf("%d bytes a session", grown/sessions)
	}
}
