// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// guarded has /admin, which is not for everybody, and all else.
func guarded() *route.Update {
	prefix := func(p string) []route.Match {
		return []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: p}}}
	}
	backend := []route.WeightedBackend{{Backend: "b", Weight: 1}}
	return &route.Update{
		Complete:  true,
		Listeners: []route.Listener{{Key: "l", Port: 80, Protocol: route.HTTP, Hostname: "*.example.com"}, {Key: "other", Port: 80, Protocol: route.HTTP, Hostname: "other.example.org"}},
		Policies:  []route.Policy{{Key: "keep-out", Sources: &route.Sources{Deny: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}},
		Backends:  []route.Backend{{Key: "b", Endpoints: "e"}},
		Routes: []route.Route{
			{Key: "open", Name: "shop/open", Kind: route.HTTPRoute, Parents: []route.Parent{{Listener: "l", Hostnames: []string{"*.example.com"}}},
				Rules: []route.Rule{{Matches: prefix("/"), Backends: backend}, {Matches: prefix("/files"), Backends: backend}}},
			{Key: "admin", Name: "shop/admin", Kind: route.HTTPRoute, Parents: []route.Parent{{Listener: "l", Hostnames: []string{"*.example.com"}}},
				Rules: []route.Rule{{Matches: prefix("/admin"), Backends: backend, Policies: []string{"keep-out"}}}},
		},
	}
}

// What is told is what the proxy does, however a path is written and whatever the Host field says.
func TestExplainReadsPathsAsTheProxyDoes(t *testing.T) {
	for _, tc := range []struct{ url, host, wins, says string }{
		{"http://a.example.com/x", "", "open rule 0", ""},
		{"http://a.example.com", "", "open rule 0", ""},
		{"http://a.example.com/admin", "", "admin rule 0", "keep-out"},
		{"http://a.example.com/a/../admin", "", "admin rule 0", "path /a/../admin is read as /admin"},
		{"http://a.example.com/%61dmin", "", "admin rule 0", "is read as /admin"},
		{"http://a.example.com/a/%2e%2e/admin", "", "admin rule 0", "is read as /admin"},
		{"http://a.example.com//admin", "", "admin rule 0", "path //admin is read as /admin"},
		{"http://a.example.com/files//x", "", "open rule 1", ""},
		{"http://a.example.com/x%5c..%5cadmin", "", "admin rule 0", "is read as /admin"},
		{"http://a.example.com/files/x;y", "", "open rule 1", ""},
		{"http://a.example.com/..", "", "", "400: path leaves the root"},
		{"http://203.0.113.7/admin", "a.example.com", "admin rule 0", "listener l"},
		{"http://203.0.113.7/admin", "A.Example.com.:80", "admin rule 0", "listener l"},
		{"http://a.example.com/admin", "other.example.org", "", "404: no route matches"},
		{"http://a.example.com/admin", "nobody.example.org", "", "404: no HTTP listener on port 80 has host nobody.example.org"},
	} {
		u, err := url.Parse(tc.url)
		if err != nil {
			t.Fatal(err)
		}
		q := Question{Method: "GET", URL: u, Headers: map[string]string{}}
		if tc.host != "" {
			q.Headers["host"] = tc.host
		}
		var out strings.Builder
		found, err := Explain(&out, guarded(), q)
		if err != nil || found != (tc.wins != "") || tc.wins != "" && !strings.Contains(out.String(), "* "+tc.wins) || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%s of %q: want %q with %q: %v\n%s", tc.url, tc.host, tc.wins, tc.says, err, &out)
		}
	}
}

// Whom requests are asked about is told, before routing and of a backend, and where nobody can be.
func TestExplainTellsWhoIsAsked(t *testing.T) {
	u := guarded()
	asks := func(a route.ExternalAuth) []route.Filter { return []route.Filter{{ExternalAuth: &a}} }
	u.Listeners[0].Filters = append(asks(route.ExternalAuth{Backend: "auth", Path: "/"}), asks(route.ExternalAuth{Invalid: "there is no Service x"})...)
	u.Routes[0].Rules[0].Backends = []route.WeightedBackend{{Backend: "b", Weight: 1, Filters: asks(route.ExternalAuth{Backend: "own", Path: "/"})},
		{Backend: "c", Weight: 2, Filters: asks(route.ExternalAuth{Invalid: "there is no Service y"})}}
	at, err := url.Parse("http://a.example.com/x")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if found, err := Explain(&out, u, Question{Method: "GET", URL: at}); err != nil || !found {
		t.Fatal(found, err)
	}
	for _, want := range []string{"listener l\n  before routing, 0: asks auth;", "before routing, 1: 500: there is no Service x", "b (weight 1), having asked own", "c (weight 2), but 500: there is no Service y"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}
