// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// A route moves from one backend to the next in the update that takes the former away: no request falls between.
func TestBackendGoesWithItsRoute(t *testing.T) {
	r := start(t, simple(newEcho(t, "a").addr()))
	ends := []string{newEcho(t, "b").addr(), newEcho(t, "c").addr()}
	wrong := func(resp *http.Response, _ string) string {
		if resp.StatusCode != http.StatusOK {
			return "failed"
		}
		return ""
	}
	last, policy := "b", ""
	r.underLoad(300, []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, wrong, func(i int) {
		key := fmt.Sprint("b", i)
		rt := r.update.Routes[0]
		rt.Rules = []route.Rule{{Backends: []route.WeightedBackend{{Backend: key, Weight: 1}}, Policies: []string{"p" + key}}}
		u := &route.Update{
			Routes: []route.Route{rt}, Backends: []route.Backend{{Key: key, Endpoints: key}},
			Endpoints: []route.EndpointSet{{Key: key, Endpoints: []route.Endpoint{{Address: ends[i%2]}}}},
			Policies:  []route.Policy{{Key: "p" + key, HideHeaders: []string{"X-None"}}},
			Removed:   []route.Ref{{Kind: route.KindBackend, Key: last}, {Kind: route.KindEndpointSet, Key: last}},
		}
		if policy != "" {
			u.Removed = append(u.Removed, route.Ref{Kind: route.KindPolicy, Key: policy})
		}
		if err := r.srv.Apply(u); err != nil {
			t.Fatal(err)
		}
		last, policy = key, "p"+key
	})
	r.srv.tables.mu.Lock()
	defer r.srv.tables.mu.Unlock()
	if n := len(r.srv.tables.backends); n != 1 {
		t.Errorf("%d backends are remembered, of which one is there", n)
	}
	if n := len(r.srv.tables.usedBy); n != 1 {
		t.Errorf("%d sets are remembered, of which one is there", n)
	}
	if n := len(r.srv.tables.policies); n != 1 {
		t.Errorf("%d policies are remembered, of which one is there", n)
	}
}

// What is removed and still referred to is missing: 500 of a backend, 503 of a policy; and it may come again.
func TestRemovedAndStillNamed(t *testing.T) {
	u := simple(newEcho(t, "a").addr())
	u.Routes[0].Policies = []string{"p"}
	u.Policies = []route.Policy{{Key: "p", HideHeaders: []string{"X-None"}}}
	r := start(t, u)
	for _, c := range []struct {
		change route.Update
		want   int
	}{
		{route.Update{}, 200},
		{route.Update{Removed: []route.Ref{{Kind: route.KindBackend, Key: "b"}}}, 500},
		{route.Update{Backends: u.Backends}, 200},
		{route.Update{Removed: []route.Ref{{Kind: route.KindPolicy, Key: "p"}}}, 503},
		{route.Update{Policies: u.Policies}, 200},
		{route.Update{Removed: []route.Ref{{Kind: route.KindEndpointSet, Key: "e"}}}, 503},
		{route.Update{Endpoints: u.Endpoints}, 200},
	} {
		if err := r.srv.Apply(&c.change); err != nil {
			t.Fatal(err)
		}
		if code, _ := r.get("/", nil); code != c.want {
			t.Errorf("after %+v: %d, want %d", c.change.Removed, code, c.want)
		}
	}
}

// A connection whose server name no listener of a passthrough port has is closed without an alert.
func TestUnknownServerNameIsClosed(t *testing.T) {
	u := simple(newEcho(t, "a").addr())
	u.Listeners = []route.Listener{{Key: "http", Protocol: route.TLS, Hostname: "a.example.com", TLS: &route.ListenerTLS{Passthrough: true}}}
	r := start(t, u)
	_, err := tls.Dial("tcp", r.tcp(), &tls.Config{ServerName: "b.example.com", InsecureSkipVerify: true})
	if !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end of the connection", err)
	}
}
