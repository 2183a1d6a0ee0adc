// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/weft-net/weft/internal/route"
)

// guarded is simple with a policy on its rule.
func guarded(p route.Policy, endpoints ...string) route.Update {
	u := simple(endpoints...)
	p.Key = "p"
	u.Policies = []route.Policy{p}
	u.Routes[0].Rules[0].Policies = []string{"p"}
	return u
}

func basic(user, password string) map[string]string {
	return map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))}
}

func (r *rig) want(status int, target string, header map[string]string) *http.Response {
	r.t.Helper()
	resp, body := r.once("GET", target, header, "")
	if resp.StatusCode != status {
		r.t.Errorf("%s with %v: %d %s, want %d", target, header, resp.StatusCode, body, status)
	}
	return resp
}

func pointer[T any](v T) *T { return &v }

// A policy that is not there, or can't be enforced, lets nobody in; it works from the moment that it comes.
func TestPoliciesFailClosed(t *testing.T) {
	e := newEcho(t, "e")
	u := simple(e.addr())
	u.Routes[0].Policies = []string{"p"}
	r := start(t, u)
	r.want(503, "/", nil)
	r.update.Policies = []route.Policy{{Key: "p"}}
	r.apply()
	r.want(200, "/", nil)
	r.update.Policies = []route.Policy{{Key: "p", Invalid: "its Secret is missing"}}
	r.apply()
	r.want(503, "/", nil)
	r.update.Policies = []route.Policy{{Key: "p", Balance: &route.Balance{Kind: "Dice"}}}
	if err := r.srv.Apply(&r.update); err == nil || !strings.Contains(err.Error(), "Dice") {
		t.Errorf("the mistake is not told: %v", err)
	}
	r.want(503, "/", nil)
	r.update.Policies = nil
	r.apply()
	r.want(503, "/", nil)
	if e.count.Load() != 1 {
		t.Errorf("%d requests came through", e.count.Load())
	}
}

// A rule's policies come before its route's, those before the listener's, and of one list the last.
func TestPoliciesMerge(t *testing.T) {
	e := newEcho(t, "e")
	u := simple(e.addr())
	u.Listeners[0].Policies = []string{"l"}
	u.Routes[0].Policies = []string{"r1", "r2"}
	u.Routes[0].Rules = append(u.Routes[0].Rules, u.Routes[0].Rules[0])
	u.Routes[0].Rules[0].Policies = []string{"rule"}
	u.Routes[0].Rules[0].Matches = []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/rule"}}}
	deny := &route.Sources{Deny: prefixes("127.0.0.0/8")}
	hide := []string{"X-From"}
	u.Policies = []route.Policy{
		{Key: "l", Sources: deny, HideHeaders: hide}, {Key: "r1", Sources: deny}, {Key: "r2", Sources: &route.Sources{}}, {Key: "rule", Sources: deny},
	}
	r := start(t, u)
	r.want(403, "/rule", nil)
	if resp := r.want(200, "/", nil); resp.Header.Get("X-From") != "" {
		t.Error("the listener's policy is not in force")
	}
	// One that changes is merged anew, as is one that only another listener has.
	r.update.Policies[2].Sources = deny
	r.update.Policies[3].Sources = &route.Sources{}
	r.apply()
	r.want(200, "/rule", nil)
	r.want(403, "/", nil)
	r.update.Listeners[0].Policies = nil
	r.apply()
	if resp := r.want(200, "/rule", nil); resp.Header.Get("X-From") != "e" {
		t.Error("the listener's policy is still in force")
	}
}

func TestSources(t *testing.T) {
	e := newEcho(t, "e")
	for _, c := range []struct {
		allow, deny []string
		forwarded   string
		want        int
	}{
		{nil, nil, "", 200},
		{[]string{"127.0.0.1/32"}, nil, "", 200},
		{[]string{"192.0.2.0/24"}, nil, "", 403},
		{[]string{"192.0.2.0/24"}, nil, "192.0.2.7", 200},
		{[]string{"192.0.2.0/24"}, nil, "192.0.2.7, 198.51.100.9", 403},            // what the client wrote before its own address counts for nothing
		{[]string{"192.0.2.0/24"}, nil, "198.51.100.9, 192.0.2.7, 127.0.0.2", 200}, // another trusted proxy
		{[]string{"192.0.2.0/24"}, nil, "192.0.2.7:1234", 200},
		{[]string{"192.0.2.0/24"}, nil, "192.0.2.7, nonsense", 403},
		{nil, []string{"127.0.0.1/32"}, "", 403},
		{[]string{"2001:db8::/32"}, []string{"2001:db8:1::/48"}, "2001:db8::1", 200},
		{[]string{"2001:db8::/32"}, []string{"2001:db8:1::/48"}, "2001:db8:1::1", 403},
		{[]string{"192.0.2.0/24"}, nil, "::ffff:192.0.2.7", 200},
	} {
		u := guarded(route.Policy{Sources: &route.Sources{Allow: prefixes(c.allow...), Deny: prefixes(c.deny...)}}, e.addr())
		u.Listeners[0].TrustedProxies = prefixes("127.0.0.0/8")
		r := start(t, u)
		header := map[string]string{}
		if c.forwarded != "" {
			header["X-Forwarded-For"] = c.forwarded
		}
		if resp, _ := r.once("GET", "/", header, ""); resp.StatusCode != c.want {
			t.Errorf("%+v: %d", c, resp.StatusCode)
		}
	}
	// Of others the header is not believed.
	r := start(t, guarded(route.Policy{Sources: &route.Sources{Allow: prefixes("192.0.2.0/24")}}, e.addr()))
	r.want(403, "/", map[string]string{"X-Forwarded-For": "192.0.2.7"})
}

func TestBasicAuth(t *testing.T) {
	e := newEcho(t, "e")
	r := start(t, guarded(route.Policy{BasicAuth: &route.BasicAuth{Realm: `a "b"`, Users: users(t)}}, e.addr()))
	resp := r.want(401, "/", nil)
	if got := resp.Header.Get("WWW-Authenticate"); got != `Basic realm="a \"b\"", charset="UTF-8"` {
		t.Errorf("challenge %s", got)
	}
	for _, user := range []string{"bcrypt", "sha", "apr1", "sha512"} {
		for range 2 { // the second time from memory
			if status, s := r.get("/", basic(user, "secret")); status != 200 || s.Header.Get("Authorization") != "" {
				t.Errorf("%s: %d, and the endpoint got %v", user, status, s.Header)
			}
			r.want(401, "/", basic(user, "Secret"))
			r.want(401, "/", basic(user, ""))
		}
	}
	r.want(401, "/", basic("nobody", "secret"))
	for _, bad := range []string{"Basic", "Basic !", "Bearer x", "Basic " + base64.StdEncoding.EncodeToString([]byte("bcrypt"))} {
		r.want(401, "/", map[string]string{"Authorization": bad})
	}
	// A changed password holds at once.
	r.update.Policies[0].BasicAuth = &route.BasicAuth{Users: "bcrypt:{SHA}" + sha("other")}
	r.apply()
	r.want(401, "/", basic("bcrypt", "secret"))
	r.want(200, "/", basic("bcrypt", "other"))
	// Without users nobody may.
	r.update.Policies[0].BasicAuth = &route.BasicAuth{}
	r.apply()
	r.want(401, "/", basic("bcrypt", "other"))
}

// countedHash is a hash that fits every password, and knows how often it was asked.
type countedHash struct{ n atomic.Int64 }

func (h *countedHash) MatchesPassword(string) bool { h.n.Add(1); return true }

// Who asks for a name that is not there waits for as long as for one that is: the time tells no names.
func TestUnknownUsersAreChecked(t *testing.T) {
	for _, cheap := range []bool{false, true} {
		var h countedHash
		// What is checked is remembered: another run's hash is another one.
		b := &basicAuth{users: map[string]passwordHash{"ann": {text: fmt.Sprint("h", cheap, time.Now().UnixNano()), encoded: &h, cheap: cheap}}}
		b.decoys = []passwordHash{b.users["ann"]}
		for i, want := range map[string]verdict{"nobody": refused, "ann": passed} {
			before := h.n.Load()
			x := &exchange{fields: []field{newField("Authorization", basic(i, "pw")["Authorization"])}}
			if got := b.check(x); got != want || h.n.Load() != before+1 {
				t.Errorf("%s, cheap %v: %v after %d checks, want %v after 1", i, cheap, got, h.n.Load()-before, want)
			}
		}
	}
	b, _ := newBasicAuth(&route.BasicAuth{Users: "ann:{SHA}" + base64.StdEncoding.EncodeToString(make([]byte, 20)) + "\nbob:nonsense\n"})
	if len(b.decoys) != 1 {
		t.Errorf("%d hashes for names that are not there", len(b.decoys))
	}
	if b, _ := newBasicAuth(&route.BasicAuth{}); b.check(&exchange{fields: []field{newField("Authorization", basic("a", "b")["Authorization"])}}) != refused {
		t.Error("without users somebody may")
	}
}

// However many wrong passwords come, few are being hashed at a time, and right ones that are known get through.
func TestPasswordFloodIsBounded(t *testing.T) {
	m := newPasswordMemory(1)
	slow := &slowHash{right: "secret"}
	hash := passwordHash{text: "h", encoded: slow}
	if m.check("u", "secret", hash) != passed {
		t.Fatal("the right password")
	}
	gate := make(chan struct{})
	slow.gate = gate
	var done sync.WaitGroup
	results := make(chan verdict, 1000)
	for i := range 1000 {
		done.Go(func() { results <- m.check("u", fmt.Sprint(i), hash) })
	}
	busyOnes := 0
	for range 1000 - waitForPasswords {
		if v := <-results; v == busy {
			busyOnes++
		} else {
			t.Errorf("verdict %d of one that should not have waited", v)
		}
	}
	if m.check("u", "secret", hash) != passed {
		t.Error("the known password has to wait")
	}
	close(gate)
	done.Wait()
	if most := slow.most(); most != 1 {
		t.Errorf("%d hashed at a time", most)
	}
	if n := slow.count(); n != 1+waitForPasswords {
		t.Errorf("%d hashed", n)
	}
	if m.check("u", "0", passwordHash{text: "other", encoded: slow}) == passed {
		t.Error("remembered for another hash")
	}
	for i := range 3 * rememberPasswords {
		var id [32]byte
		id[0], id[1], id[2] = byte(i), byte(i>>8), byte(i>>16)
		remember(m.wrong, id)
	}
	if len(m.wrong) > rememberPasswords {
		t.Errorf("%d remembered", len(m.wrong))
	}
}

// slowHash counts how it is used.
type slowHash struct {
	right     string
	gate      chan struct{}
	mu        sync.Mutex
	now, max_ int
	n         int
}

func (h *slowHash) MatchesPassword(p string) bool {
	h.mu.Lock()
	h.n++
	h.now++
	h.max_ = max(h.max_, h.now)
	h.mu.Unlock()
	if h.gate != nil {
		<-h.gate
	}
	h.mu.Lock()
	h.now--
	h.mu.Unlock()
	return p == h.right
}

func (h *slowHash) most() int  { h.mu.Lock(); defer h.mu.Unlock(); return h.max_ }
func (h *slowHash) count() int { h.mu.Lock(); defer h.mu.Unlock(); return h.n }

func TestSatisfyAny(t *testing.T) {
	e := newEcho(t, "e")
	inside, outside := &route.Sources{Allow: prefixes("127.0.0.0/8")}, &route.Sources{Allow: prefixes("192.0.2.0/24")}
	auth := &route.BasicAuth{Users: "u:{SHA}" + sha("secret")}
	for _, c := range []struct {
		p             route.Policy
		none, with    int
		authenticated bool
	}{
		{route.Policy{Sources: inside, BasicAuth: auth}, 401, 200, true},
		{route.Policy{Sources: outside, BasicAuth: auth}, 403, 403, true},
		{route.Policy{Sources: inside, BasicAuth: auth, SatisfyAny: pointer(true)}, 200, 200, true},
		{route.Policy{Sources: outside, BasicAuth: auth, SatisfyAny: pointer(true)}, 401, 200, true},
		{route.Policy{Sources: outside, SatisfyAny: pointer(true)}, 403, 403, true},
	} {
		r := start(t, guarded(c.p, e.addr()))
		r.want(c.none, "/", nil)
		r.want(c.with, "/", basic("u", "secret"))
	}
}

func TestRateLimits(t *testing.T) {
	e := newEcho(t, "e")
	p := route.Policy{RateLimits: []route.RateLimit{{Requests: 1, Per: route.Duration(time.Hour), Burst: 2, Status: 429}}}
	u := guarded(p, e.addr())
	u.Listeners[0].TrustedProxies = prefixes("127.0.0.0/8")
	r := start(t, u)
	from := func(a string) map[string]string { return map[string]string{"X-Forwarded-For": a} }
	for range 3 {
		r.want(200, "/", from("192.0.2.1"))
	}
	if resp := r.want(429, "/", from("192.0.2.1")); resp.Header.Get("Retry-After") != "3600" {
		t.Errorf("Retry-After: %q", resp.Header.Get("Retry-After"))
	}
	r.want(200, "/", from("2001:db8::1"))
	// A change of the policy forgives nobody.
	r.update.Policies[0].HSTS = &route.HSTS{MaxAge: 1}
	r.apply()
	r.want(429, "/", from("192.0.2.1"))
	r.update.Policies[0].RateLimits = []route.RateLimit{{Requests: 1, Per: route.Duration(time.Hour), Key: "$arg_user", Exempt: prefixes("192.0.2.9/32")}}
	r.apply()
	r.want(200, "/?user=a", nil)
	r.want(503, "/?user=a", nil)
	r.want(200, "/?user=a", from("192.0.2.9"))
	r.want(200, "/?user=b", nil)
	for range 3 {
		r.want(200, "/", nil) // no key, no limit
	}
}

// The bucket is nginx's: it lets burst more through at once, and then one each interval.
func TestBuckets(t *testing.T) {
	b := &buckets{}
	const interval, burst = 100, 2
	at := func(now int64) bool { return b.take(7, now, interval, interval*burst) }
	for _, c := range []struct {
		now  int64
		want bool
	}{{1000, true}, {1000, true}, {1000, true}, {1000, false}, {1099, false}, {1100, true}, {1101, false}, {2000, true}, {2000, true}, {2000, true}, {2000, false}} {
		if got := at(c.now); got != c.want {
			t.Errorf("at %d: %v", c.now, got)
		}
	}
	if !b.take(8, 2000, interval, 0) || b.take(8, 2099, interval, 0) || !b.take(8, 2100, interval, 0) {
		t.Error("without burst there is one each interval")
	}
}

// However many keys come, memory is bounded, and those that are most in debt stay known.
func TestBucketsAreBounded(t *testing.T) {
	b := &buckets{}
	for range 100 {
		b.take(64*1000, 0, 1000, 1<<40)
	}
	for i := range uint64(10 * shardMost) {
		b.take(64*(2000+i), 0, 1000, 1<<40)
	}
	if n := len(b.shards[0].at); n > shardMost {
		t.Errorf("%d keys in a shard", n)
	}
	if b.take(64*1000, 0, 1000, 50*1000) {
		t.Error("the key that asked most has been forgotten")
	}
	b.sweep(1 << 50)
	if len(b.shards[0].at) != 0 {
		t.Error("empty buckets are kept")
	}
}

func TestRequestsUnderWayAreLimited(t *testing.T) {
	release := make(chan struct{})
	var begun sync.WaitGroup
	begun.Add(2)
	slow := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun.Done()
			<-release
		}
	})
	r := start(t, guarded(route.Policy{Connections: &route.Connections{Max: 2}}, slow))
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() { r.want(200, "/slow", nil) })
	}
	begun.Wait()
	r.want(503, "/", nil)
	r.update.Policies[0].Connections = &route.Connections{Max: 2, Status: 429} // those under way still count
	r.apply()
	r.want(429, "/", nil)
	close(release)
	all.Wait()
	until(t, "requests count no more", func() bool { resp, _ := r.once("GET", "/", nil, ""); return resp.StatusCode == 200 })
	until(t, "nothing is kept", func() bool {
		n := 0
		c := r.srv.tables.policies["p"].Load().conns.count
		for i := range c.n {
			c.mu[i].Lock()
			n += len(c.n[i])
			c.mu[i].Unlock()
		}
		return n == 0
	})
}

func TestBodyLimit(t *testing.T) {
	e := newEcho(t, "e")
	for _, buffered := range []bool{false, true} {
		r := start(t, guarded(route.Policy{MaxRequestBody: pointer(int64(50_000)), BufferRequest: &buffered}, e.addr()))
		small, large := strings.Repeat("x", 50_000), strings.Repeat("x", 50_001)
		if resp, _ := r.once("POST", "/", nil, small); resp.StatusCode != 200 {
			t.Errorf("the largest body: %d", resp.StatusCode)
		}
		if resp, _ := r.once("POST", "/", nil, large); resp.StatusCode != 413 {
			t.Errorf("a larger body: %d", resp.StatusCode)
		}
		before := e.count.Load()
		for body, want := range map[string]int{small: 200, large: 413} {
			c := r.dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
			for len(body) > 0 {
				n := min(len(body), 7000)
				fmt.Fprintf(c, "%x\r\n%s\r\n", n, body[:n])
				body = body[n:]
			}
			_, _ = io.WriteString(c, "0\r\n\r\n") // may find the connection closed
			if resp, _ := c.answer("POST"); resp.StatusCode != want {
				t.Errorf("chunked: %d, want %d", resp.StatusCode, want)
			}
		}
		if n := e.count.Load() - before; buffered && n != 1 {
			t.Errorf("an endpoint got %d of the two requests", n)
		}
	}
}

// A buffered request reaches the endpoint when all of it is there.
func TestBufferRequest(t *testing.T) {
	e := newEcho(t, "e")
	r := start(t, guarded(route.Policy{BufferRequest: pointer(true)}, e.addr()))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n")
	if line, _ := c.r.ReadString('\n'); !strings.Contains(line, "100") {
		t.Fatalf("%q", line)
	}
	_, _ = c.r.ReadString('\n')
	c.send(strings.Repeat("x", 99_999))
	until(t, "most of the body is held", func() bool { return r.srv.held.bytes.Load() > 0 })
	if e.count.Load() != 0 {
		t.Error("the endpoint has it already")
	}
	c.send("y")
	if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	until(t, "nothing is held", func() bool { return r.srv.held.bytes.Load() == 0 })
}

func TestRespond(t *testing.T) {
	u := guarded(route.Policy{BasicAuth: &route.BasicAuth{Users: "u:{SHA}" + sha("secret")}})
	u.Routes[0].Rules[0].Backends, u.Routes[0].Rules[0].Respond = nil, 404
	r := start(t, u)
	r.want(401, "/", nil)
	r.want(404, "/", basic("u", "secret"))
}

func TestTemplates(t *testing.T) {
	e := newEcho(t, "e")
	regex := func(s string) []route.Match {
		return []route.Match{{Path: &route.PathMatch{Kind: route.PathRegex, Value: s, CaseInsensitive: true}}}
	}
	rewrite := func(to route.Template) []route.Filter {
		return []route.Filter{{Rewrite: &route.Rewrite{Path: &route.PathRewrite{Template: &to}}}}
	}
	u := simple(e.addr())
	to := u.Routes[0].Rules[0].Backends
	u.Routes[0].Rules = []route.Rule{
		{Matches: regex(`/something(/|$)(.*)`), Filters: rewrite("/$2"), Backends: to},
		{Matches: regex(`/api/(v\d+)/(.*)`), Filters: rewrite("/$2?version=$1"), Backends: to},
		{Matches: regex(`/climb/(.*)`), Filters: rewrite("/in/$1"), Backends: to},
		{Matches: regex(`/old/(.*)`), Filters: []route.Filter{{Redirect: &route.Redirect{Location: "https://new.example.com/$1$is_args$args", Status: 301}}}},
		{Matches: regex(`/move/(.*)`), Filters: []route.Filter{{Redirect: &route.Redirect{Path: &route.PathRewrite{Template: pointer(route.Template("/to/$1"))}}}}},
		{Matches: regex(`/headers`), Backends: to, Filters: []route.Filter{{RequestHeaders: &route.HeaderEdit{
			SetTemplates: []route.TemplateHeader{{Name: "X-Real-IP", Value: "$remote_addr"}, {Name: "X-Scheme", Value: "$scheme"}, {Name: "X-Gone", Value: "$arg_none"}}}},
			{ResponseHeaders: &route.HeaderEdit{SetTemplates: []route.TemplateHeader{{Name: "X-Asked", Value: "$http_host$request_uri"}}}}}},
		{Matches: regex(`/broken`), Filters: rewrite("/$nothing"), Backends: to},
	}
	r := start(t, simple(e.addr()))
	r.update.Routes = u.Routes
	r.update.Revision++
	if err := r.srv.Apply(&r.update); err == nil || !strings.Contains(err.Error(), "$nothing") {
		t.Errorf("the mistake is not told: %v", err)
	}
	for target, want := range map[string]string{
		"/something": "/", "/SOMETHING/new?a=b": "/new?a=b", "/api/v2/x?y=1": "/x?version=v2&y=1", "/api/v2/x": "/x?version=v2",
		"/climb/%2e%2e/%2e%2e/etc": "", "/climb/a%20b": "/in/a%20b",
	} {
		status, s := r.get(target, nil)
		if want == "" && status == 200 && strings.Contains(s.Path, "..") {
			t.Errorf("%s became %s", target, s.Path)
		} else if want != "" && (status != 200 || s.Path != want) {
			t.Errorf("%s: %d %s, want %s", target, status, s.Path, want)
		}
	}
	if resp := r.want(301, "/old/x?y=1", nil); resp.Header.Get("Location") != "https://new.example.com/x?y=1" {
		t.Error(resp.Header)
	}
	if resp := r.want(302, "/move/x?y=1", nil); !strings.HasSuffix(resp.Header.Get("Location"), "/to/x?y=1") {
		t.Error(resp.Header)
	}
	resp, body := r.once("GET", "/headers?q", map[string]string{"X-Gone": "forged", "X-Real-IP": "forged"}, "")
	if resp.Header.Get("X-Asked") != "a.example.com/headers?q" || !strings.Contains(body, `"X-Real-Ip":["127.0.0.1"]`) || !strings.Contains(body, `"X-Scheme":["http"]`) || strings.Contains(body, "forged") {
		t.Errorf("%v %s", resp.Header, body)
	}
	r.want(500, "/broken", nil)
}

// What policies keep secret is in no log and no explanation.
func TestPoliciesAreNotPrinted(t *testing.T) {
	var log bytes.Buffer
	p := route.Policy{Key: "p", BasicAuth: &route.BasicAuth{Users: "u:$2y$05$SECRET"}}
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "policy", p, "policies", []route.Policy{p})
	if s := log.String() + fmt.Sprintf("%+v %#v", p, &p); strings.Contains(s, "SECRET") {
		t.Error(s)
	}
}

// Requests and changes of policies at the same time.
func TestPoliciesChangeUnderLoad(t *testing.T) {
	e := newEcho(t, "e")
	u := guarded(route.Policy{RateLimits: []route.RateLimit{{Requests: 1_000_000, Per: route.Duration(time.Second), Burst: 1_000_000}}}, e.addr())
	u.Listeners[0].Policies = []string{"l"}
	u.Policies = append(u.Policies, route.Policy{Key: "l", HideHeaders: []string{"x-from"}})
	r := start(t, u)
	wrong := func(resp *http.Response, _ string) string {
		if resp.StatusCode != 200 || resp.Header.Get("X-From") != "" {
			return fmt.Sprintf("X-From %q", resp.Header.Get("X-From"))
		}
		return ""
	}
	r.underLoad(200, []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, wrong, func(i int) {
		// Whichever of the two is in force at a time, the header is hidden.
		u := route.Update{Policies: []route.Policy{{Key: "l", HideHeaders: []string{"x-from", fmt.Sprint(i)}}}}
		if err := r.srv.Apply(&u); err != nil {
			t.Fatal(err)
		}
	})
}

func sha(password string) string {
	sum := sha1.Sum([]byte(password))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// users all have the password "secret". The hashes of MD5 and SHA-512 were made by openssl passwd.
func users(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return "bcrypt:" + string(hash) + "\nsha:{SHA}" + sha("secret") + "\napr1:$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0\nsha512:$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1\n"
}

// A policy's rewrite and redirect are for rules that have none of their own.
func TestPolicyRewritesAndRedirects(t *testing.T) {
	e := newEcho(t, "e")
	own, path := "/own", route.Template("/to/$1")
	u := guarded(route.Policy{Rewrite: &route.Rewrite{Hostname: "x.example.com", Path: &route.PathRewrite{Template: &path}}}, e.addr())
	rule := u.Routes[0].Rules[0]
	rule.Matches = []route.Match{{Path: &route.PathMatch{Kind: route.PathRegex, Value: "/from/(.*)"}}}
	with := rule
	with.Matches = []route.Match{{Path: &route.PathMatch{Kind: route.PathExact, Value: "/own"}}}
	with.Filters = []route.Filter{{Rewrite: &route.Rewrite{Path: &route.PathRewrite{Full: &own}}}}
	u.Routes[0].Rules = []route.Rule{rule, with}
	r := start(t, u)
	if _, s := r.get("/from/a/b?c", nil); s.Path != "/to/a/b?c" || s.Host != "x.example.com" {
		t.Errorf("%+v", s)
	}
	if _, s := r.get("/own", nil); s.Path != "/own" || s.Host != "a.example.com" {
		t.Errorf("%+v", s)
	}
	r.update.Policies = []route.Policy{{Key: "p", Redirect: &route.Redirect{Location: "https://new.example.com/$1", Status: 308}}}
	r.apply()
	if resp := r.want(308, "/from/a", nil); resp.Header.Get("Location") != "https://new.example.com/a" {
		t.Errorf("%v", resp.Header)
	}
}

// Connections and sessions that are no requests have sources as well, and fail closed like requests.
func TestSourcesOfStreams(t *testing.T) {
	e := talk(t, func(c net.Conn) { _, _ = io.WriteString(c, "hello"); c.Close() })
	u := guarded(route.Policy{Sources: &route.Sources{Allow: prefixes("127.0.0.0/8")}}, e)
	u.Listeners[0].Protocol, u.Routes[0].Kind, u.Backends[0].Protocol = route.TCP, route.TCPRoute, route.Raw
	r := start(t, u)
	says := func(want string) {
		t.Helper()
		c := r.dial()
		if b, _ := io.ReadAll(c.r); string(b) != want { // a refusal may reset the connection
			t.Errorf("%q, want %q", b, want)
		}
	}
	says("hello")
	r.update.Policies = []route.Policy{{Key: "p", Sources: &route.Sources{Deny: prefixes("127.0.0.0/8")}}}
	r.apply()
	says("")
	r.update.Policies = nil
	r.apply()
	says("")
	r.update.Policies = []route.Policy{{Key: "p"}}
	r.apply()
	says("hello")
}
