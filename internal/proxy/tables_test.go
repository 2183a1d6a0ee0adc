// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// A route moves from one backend and policy to others, and what it had before is taken away in the same update: no
// request fails, whatever it was about when that happened.
func TestNothingFailsWhenBackendsAreReplaced(t *testing.T) {
	one, two := newEcho(t, "one"), newEcho(t, "two")
	auth := serve(t, func(http.ResponseWriter, *http.Request) {})
	// round is the update that makes the i-th version of the route out of the one before.
	round := func(i int) route.Update {
		key, addr := fmt.Sprint("b", i), []string{one.addr(), two.addr()}[i%2]
		u := simple(addr)
		u.Listeners = nil
		u.Backends[0] = route.Backend{Key: key, Endpoints: key}
		u.Endpoints[0].Key = key
		u.Routes[0].Rules[0].Backends[0].Backend = key
		u.Routes[0].Policies = []string{key}
		u = withBackend(u, "auth"+key, auth)
		u.Policies = []route.Policy{{Key: key, ExternalAuth: &route.ExternalAuth{Backend: "auth" + key, Path: "/"}, BufferRequest: pointer(true)}}
		old := fmt.Sprint("b", i-1)
		u.Removed = []route.Ref{
			{Kind: route.KindEndpointSet, Key: old}, {Kind: route.KindPolicy, Key: old}, {Kind: route.KindBackend, Key: old},
			{Kind: route.KindBackend, Key: "auth" + old}, {Kind: route.KindEndpointSet, Key: "auth" + old},
		}
		return u
	}
	first := round(0)
	first.Listeners, first.Removed = simple().Listeners, nil
	r := start(t, first)
	wrong := func(resp *http.Response, body string) string {
		if resp.StatusCode != 200 || !strings.Contains(body, "hello") {
			return "answered " + body
		}
		return ""
	}
	r.underLoad(299, []string{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel", "lo"}, wrong, func(i int) {
		u := round(i + 1)
		if err := r.srv.Apply(&u); err != nil {
			t.Fatal(err)
		}
	})
	r.srv.tables.mu.Lock()
	defer r.srv.tables.mu.Unlock()
	if b, p, e := len(r.srv.tables.backends), len(r.srv.tables.policies), len(r.srv.tables.sets); b != 2 || p != 1 || e != 2 {
		t.Errorf("%d backends, %d policies, %d endpoint sets are left", b, p, e)
	}
}

// What is taken away and still named is missed: a backend by rules, mirrors and policies, a policy by listeners and
// routes. When it comes again all is well.
func TestWhatIsNamedAndGone(t *testing.T) {
	e := newEcho(t, "e")
	auth := serve(t, func(http.ResponseWriter, *http.Request) {})
	u := withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/"}}, e.addr()), "auth", auth)
	u.Listeners[0].Policies = []string{"l"}
	u.Policies = append(u.Policies, route.Policy{Key: "l"})
	r := start(t, u)
	remove := func(kind route.Kind, key string) {
		if err := r.srv.Apply(&route.Update{Removed: []route.Ref{{Kind: kind, Key: key}}}); err != nil {
			t.Fatal(err)
		}
	}
	r.want(200, "/", nil)
	for _, c := range []struct {
		kind   route.Kind
		key    string
		status int
		again  route.Update
	}{
		{route.KindBackend, "b", 500, route.Update{Backends: u.Backends[:1]}},
		{route.KindBackend, "auth", 500, route.Update{Backends: u.Backends[1:]}},
		{route.KindPolicy, "p", 503, route.Update{Policies: u.Policies[:1]}},
		{route.KindPolicy, "l", 503, route.Update{Policies: u.Policies[1:]}},
		{route.KindEndpointSet, "e", 503, route.Update{Endpoints: u.Endpoints[:1]}},
	} {
		remove(c.kind, c.key)
		r.want(c.status, "/", nil)
		// Removed and brought in one update is there.
		c.again.Removed = []route.Ref{{Kind: c.kind, Key: c.key}}
		for range 2 {
			if err := r.srv.Apply(&c.again); err != nil {
				t.Fatal(err)
			}
			r.want(200, "/", nil)
		}
	}
}

// A backend and its certificate go together without a word.
func TestBackendGoesWithItsCertificate(t *testing.T) {
	u := simple("127.0.0.1:1")
	u.Certificates = []route.Certificate{newAuthority(t).issue(t, "c", "client")}
	u.Backends[0].TLS = &route.BackendTLS{ServerName: "x", ClientCertificate: "c"}
	r := start(t, u)
	err := r.srv.Apply(&route.Update{Removed: []route.Ref{
		{Kind: route.KindRoute, Key: "r"}, {Kind: route.KindCertificate, Key: "c"}, {Kind: route.KindBackend, Key: "b"}, {Kind: route.KindEndpointSet, Key: "e"}}})
	if err != nil {
		t.Error(err)
	}
}
