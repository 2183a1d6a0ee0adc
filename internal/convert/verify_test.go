// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

func TestVerify(t *testing.T) {
	opt := IngressOptions{
		Gateway: model.Name{Namespace: "infra", Name: "ingress"}, GatewayClass: "weft",
		Compile: ingress.Options{Controllers: []string{ingress.NginxController}},
	}
	in := world(t, "testdata/ingress/shop.yaml")
	c := FromIngresses(opt, in)
	differences, requests, err := Verify(c, opt, in)
	if err != nil {
		t.Fatal(err)
	}
	if requests < 1000 {
		t.Errorf("only %d requests were compared", requests)
	}
	// What Gateway API can't say, and the conversion has notes on.
	want := map[string]string{
		"curl http://asked.example.com/api":     "backend's path /",
		"curl http://old.example.com/?x=1":      "redirect 301 https://new.example.com/home?x=1",
		"curl http://old.example.com/a?x=1&y=2": "redirect 301 https://new.example.com/home?x=1&y=2",
	}
	for _, d := range differences {
		if w, ok := want[d.Request]; !ok || !strings.HasPrefix(d.After, w) {
			t.Error(d)
		}
		delete(want, d.Request)
	}
	if len(want) > 0 {
		t.Errorf("not seen: %v", want)
	}
}

// TestVerifyFinds changes what was converted, one thing at a time, and sees it found.
func TestVerifyFinds(t *testing.T) {
	opt := IngressOptions{
		Gateway: model.Name{Namespace: "infra", Name: "ingress"}, GatewayClass: "weft",
		Compile: ingress.Options{Controllers: []string{ingress.NginxController}},
	}
	route := func(c *Conversion, kind, name string) tree {
		for _, o := range c.Objects {
			if o.GetKind() == kind && o.GetName() == name {
				return sub(o.Object, "spec")
			}
		}
		t.Fatalf("no %s %s", kind, name)
		return nil
	}
	for name, tc := range map[string]struct {
		change func(c *Conversion)
		found  string
	}{
		"a weight": {func(c *Conversion) {
			last(items(route(c, "HTTPRoute", "shop"), "rules"))["backendRefs"].([]any)[1].(tree)["weight"] = int64(80)
		}, "(50%)"},
		"a hostname":    {func(c *Conversion) { route(c, "HTTPRoute", "guarded")["hostnames"] = []any{"other.example.com"} }, "status 404"},
		"a password":    {func(c *Conversion) { delete(route(c, "TrafficPolicy", "guarded-rule-1"), "basicAuth") }, "no policy basicAuth"},
		"a rewrite":     {func(c *Conversion) { delete(items(route(c, "HTTPRoute", "asked"), "rules")[0], "filters") }, "no backend's path"},
		"a limit":       {func(c *Conversion) { delete(route(c, "TrafficPolicy", "shop"), "rateLimits") }, "no policy rateLimits"},
		"a passthrough": {func(c *Conversion) { route(c, "TLSRoute", "passed-passthrough")["hostnames"] = []any{"x.example.com"} }, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			in := world(t, "testdata/ingress/shop.yaml")
			c := FromIngresses(opt, in)
			tc.change(c)
			differences, _, err := Verify(c, opt, in)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(differences, func(d Difference) bool { return strings.Contains(d.After, tc.found) }) {
				t.Errorf("no difference with %q among %v", tc.found, differences)
			}
		})
	}
}

func last(m map[int]tree) tree { return m[len(m)-1] }
