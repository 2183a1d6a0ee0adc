// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

// tables with policies at each level.
func withPolicies() *route.Update {
	yes, no := true, false
	return &route.Update{
		Complete:  true,
		Listeners: []route.Listener{{Key: "web", Protocol: route.HTTP, Port: 80, Policies: []string{"l"}}},
		Routes: []route.Route{{Key: "HTTPRoute/shop/cart", Kind: route.HTTPRoute, Parents: []route.Parent{{Listener: "web", Hostnames: []string{""}}}, Policies: []string{"r", "gone"},
			Rules: []route.Rule{{Policies: []string{"bad"}}}}},
		Policies: []route.Policy{
			{Key: "l", AccessLog: &yes, HideHeaders: []string{"Server"}},
			{Key: "r", AccessLog: &no, BasicAuth: &route.BasicAuth{Users: "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="}},
			{Key: "bad", Invalid: "its Secret is missing"},
		},
	}
}

func TestExplainPolicies(t *testing.T) {
	var out strings.Builder
	u, _ := url.Parse("http://shop.example.com/cart")
	if _, err := Explain(&out, withPolicies(), Question{Method: "GET", URL: u}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"l: hideHeaders, accessLog", "r: basicAuth, accessLog", "gone: 503: it is not there", "bad: 503: its Secret is missing",
		"accessLog of r: false", "hideHeaders of l: [\"Server\"]", "basicAuth of r: \"realm \\\"\\\", 1 users\"",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "5en6G6") {
		t.Errorf("a hash is told:\n%s", out.String())
	}
}

// The tables are told to the gateway's own host, and to nobody else.
func TestConfigOfAGateway(t *testing.T) {
	server := proxy.New(proxy.Config{Log: slog.New(slog.DiscardHandler)})
	defer server.Close()
	u := withPolicies()
	u.Listeners[0].Port, u.Listeners[0].Addresses = uint16(freePort(t)), []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if err := server.Apply(u); err != nil {
		t.Fatal(err)
	}
	h := withConfig(http.NotFoundHandler(), server)
	s := httptest.NewServer(h)
	defer s.Close()
	got, err := Fetch(context.Background(), s.URL+"/config")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Routes) != 1 || len(got.Policies) != 3 || got.Policies[2].BasicAuth.Users != "ann:(hidden)\n" {
		t.Errorf("%+v", got)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/config", nil)
	r.RemoteAddr = "192.0.2.1:1234"
	if h.ServeHTTP(w, r); w.Code != http.StatusForbidden {
		t.Errorf("told to %s: %d", r.RemoteAddr, w.Code)
	}
	if _, err := Fetch(context.Background(), s.URL+"/none"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
}
