// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUpdateSurvivesJSON(t *testing.T) {
	prefix := "/"
	in := Update{
		Revision: 7, Complete: true,
		Listeners: []Listener{{Key: "a/b/c", Protocol: HTTPS, Port: 443, Hostname: "*.example.com",
			TLS: &ListenerTLS{Certificates: []string{"x"}, Client: &ClientValidation{CAs: "pem"}}}},
		Routes: []Route{{Key: "r", Kind: HTTPRoute, Parents: []Parent{{"a/b/c", []string{"a.example.com"}}},
			Rules: []Rule{{Matches: []Match{{Path: &PathMatch{Kind: PathPrefix, Value: "/x"}}},
				Filters:  []Filter{{Rewrite: &Rewrite{Path: &PathRewrite{Prefix: &prefix}}}},
				Backends: []WeightedBackend{{Backend: "s", Weight: 1}}, Timeouts: Timeouts{Request: Duration(1500 * time.Millisecond)}}}}},
		Backends:     []Backend{{Key: "s", Endpoints: "e"}},
		Endpoints:    []EndpointSet{{Key: "e", Endpoints: []Endpoint{{Address: "[2001:db8::1]:80"}}}},
		Certificates: []Certificate{{Key: "x", Chain: "c", PrivateKey: "k"}},
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"timeouts":{"request":"1.5s"}`) {
		t.Errorf("timeouts are not written as people write them: %s", b)
	}
	var out Update
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in.Routes, out.Routes); d != "" {
		t.Error(d)
	}
	if out.Certificates[0].PrivateKey != "k" || out.Listeners[0].TLS.Client.CAs != "pem" {
		t.Errorf("lost in JSON: %s", b)
	}
}

func TestDurationRefusesNonsense(t *testing.T) {
	for _, s := range []string{`5`, `"5"`, `"-1s"`, `"soon"`} {
		var d Duration
		if err := json.Unmarshal([]byte(s), &d); err == nil {
			t.Errorf("%s was taken for %v", s, time.Duration(d))
		}
	}
}

func TestPrivateKeysAreNotPrinted(t *testing.T) {
	c := Certificate{Key: "shop/tls", PrivateKey: "SECRET"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d"} {
		for _, v := range []any{c, &c, []Certificate{c}, Update{Certificates: []Certificate{c}}} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, "SECRET") {
				t.Errorf("%s of %T tells the key: %s", verb, v, s)
			}
		}
	}
}
