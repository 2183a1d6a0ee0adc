// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// A dump has all that is served, and nothing that is secret.
func TestConfigDump(t *testing.T) {
	ca := newAuthority(t)
	u := secure(t, ca, "127.0.0.1:1", "a.example.com")
	u.Policies = []route.Policy{{Key: "p", BasicAuth: &route.BasicAuth{Users: "ann:{SHA}" + sha("secret")},
		ExternalAuth: &route.ExternalAuth{Backend: "b", Path: "/", RequestHeaders: []route.Header{{Name: "X-Token", Value: "TOKEN"}}}}, {Key: "q", Balance: &route.Balance{Kind: route.Hash, Key: "$host"}}}
	u.Routes[0].Policies = []string{"p", "missing"}
	auth := func() []route.Filter {
		f := asks("b")
		f.ExternalAuth.RequestHeaders = []route.Header{{Name: "X-Token", Value: "TOKEN"}}
		return []route.Filter{f}
	}
	u.Listeners[0].Filters, u.Routes[0].Rules[0].Backends[0].Filters = auth(), auth()
	r := start(t, u)
	b, err := json.Marshal(r.srv.Config())
	if err != nil {
		t.Fatal(err)
	}
	var out route.Update
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Listeners) != 1 || len(out.Routes) != 1 || len(out.Backends) != 1 || len(out.Endpoints) != 1 || len(out.Certificates) != 1 || len(out.Policies) != 2 ||
		out.Revision != r.update.Revision || out.Certificates[0].Chain == "" || out.Policies[0].BasicAuth.Users != "ann:(hidden)\n" || out.Policies[1].Balance.Key != "$host" ||
		out.Listeners[0].Filters[0].ExternalAuth.RequestHeaders[0].Name != "X-Token" || out.Routes[0].Rules[0].Backends[0].Filters[0].ExternalAuth.Backend != "b" {
		t.Errorf("%s", b)
	}
	for _, secret := range []string{"PRIVATE KEY", sha("secret"), "TOKEN"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("%s is told", secret)
		}
	}
	// What is served is not what was dumped.
	if r.srv.tables.certs["a.example.com"].PrivateKey == hiddenValue || u.Listeners[0].Filters[0].ExternalAuth.RequestHeaders[0].Value != "TOKEN" ||
		u.Routes[0].Rules[0].Backends[0].Filters[0].ExternalAuth.RequestHeaders[0].Value != "TOKEN" {
		t.Error("the dump has changed what is served")
	}
}
