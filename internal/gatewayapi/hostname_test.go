// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

func TestIntersectHostnames(t *testing.T) {
	for _, c := range []struct{ listener, route, want string }{
		{"", "", ""},
		{"", "a.example.com", "a.example.com"},
		{"a.example.com", "", "a.example.com"},
		{"a.example.com", "a.example.com", "a.example.com"},
		{"a.example.com", "b.example.com", "none"},
		{"*.example.com", "a.example.com", "a.example.com"},
		{"*.example.com", "a.b.example.com", "a.b.example.com"},
		{"*.example.com", "example.com", "none"},
		{"*.example.com", "aexample.com", "none"},
		{"*.example.com", "*.b.example.com", "*.b.example.com"},
		{"*.b.example.com", "*.example.com", "*.b.example.com"},
		{"a.example.com", "*.example.com", "a.example.com"},
		{"example.com", "*.example.com", "none"},
		{"*.example.com", "*.example.net", "none"},
	} {
		got, ok := intersectHostname(c.listener, c.route)
		if !ok {
			got = "none"
		}
		if got != c.want {
			t.Errorf("%q and %q: %q, want %q", c.listener, c.route, got, c.want)
		}
	}
	if got, _ := intersectHostnames("*.example.com", nil); !slices.Equal(got, []string{"*.example.com"}) {
		t.Errorf("a route without hostnames has %q", got)
	}
	if got, _ := intersectHostnames("a.example.com", []string{"*.example.com", "", "b.example.com"}); !slices.Equal(got, []string{"a.example.com"}) {
		t.Errorf("hostnames are told more than once: %q", got)
	}
}

// Of many routes those are found that have a host in common with a hostname, and no others.
func TestRoutesByHost(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		labels := []string{"", "*."}[rnd.IntN(2)]
		for range 1 + rnd.IntN(3) {
			labels += string(rune('a'+rnd.IntN(2))) + "."
		}
		if rnd.IntN(20) == 0 {
			return ""
		}
		return strings.TrimSuffix(labels, ".")
	}
	for range 5000 {
		x := newRoutesByHost()
		want, got := set[RouteID]{}, set[RouteID]{}
		asked := name()
		for i := range rnd.IntN(6) {
			id := RouteID{route.HTTPRoute, model.Name{Name: string(rune('a' + i))}}
			hosts := []string{name(), name()}
			x.add(id, hosts)
			switch {
			case rnd.IntN(3) == 0:
				x.remove(id, hosts)
			case overlaps(hosts, asked):
				want.add(id)
			}
		}
		x.meeting([]string{asked}, got.add)
		if !maps.Equal(want, got) {
			t.Fatalf("%q meets %v, want %v", asked, got, want)
		}
	}
}

func overlaps(hosts []string, host string) bool {
	return slices.ContainsFunc(hosts, func(h string) bool { _, ok := intersectHostname(h, host); return ok })
}

func TestBindPort(t *testing.T) {
	seen := map[uint16]bool{}
	for p := uint16(1); p < 1024; p++ {
		b := BindPort(p)
		if b < 61000 || seen[b] {
			t.Fatalf("port %d is bound at %d", p, b)
		}
		seen[b] = true
	}
	if BindPort(1024) != 1024 || BindPort(65535) != 65535 {
		t.Error("unprivileged ports are moved")
	}
}
