// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Whatever comes and goes, of HTTPRoutes and GRPCRoutes on one listener those are accepted that are when all are taken
// in the order of their age, each unless no rule of it can be served, or a hostname of it meets one of an accepted route of
// the other kind.
func TestContest(t *testing.T) {
	type contender struct {
		id     RouteID
		age    int
		hosts  []string
		broken bool // no rule of it can be served
	}
	names := []string{"", "a.example.com", "b.example.com", "a.b.example.com", "*.example.com", "*.b.example.com", "a.example.net", "*.example.net"}
	infra, web := "infra", gwv1.ObjectName("web")
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		c := crowd(0)
		s, have := New(Options{}), newTold()
		have.take(s.Apply(c))
		there := map[RouteID]contender{}
		for step := range 120 {
			id := RouteID{route.HTTPRoute, model.Name{Namespace: infra, Name: fmt.Sprint("r", rnd.IntN(8))}}
			if rnd.IntN(2) == 0 {
				id.Kind = route.GRPCRoute
			}
			change := emptyChange()
			one := contender{id: id, age: rnd.IntN(4)}
			for range 1 + rnd.IntN(2) {
				one.hosts = append(one.hosts, names[rnd.IntN(len(names))])
			}
			one.broken = rnd.IntN(4) == 0
			if was, is := there[id]; is && rnd.IntN(3) == 0 { // it is mended or broken, and nothing else
				one = was
				one.broken = !was.broken
			}
			meta := metav1.ObjectMeta{Namespace: infra, Name: id.Name.Name, Generation: int64(step + 1), CreationTimestamp: metav1.NewTime(time.Unix(int64(1000+one.age), 0))}
			parents := gwv1.CommonRouteSpec{ParentRefs: []gwv1.ParentReference{{Name: web}}}
			var hostnames []gwv1.Hostname
			if !slices.Contains(one.hosts, "") {
				for _, h := range one.hosts {
					hostnames = append(hostnames, gwv1.Hostname(h))
				}
			} else {
				one.hosts = []string{""}
			}
			gone := rnd.IntN(4) == 0
			switch {
			case gone && id.Kind == route.HTTPRoute:
				change.HTTPRoutes[id.Name] = nil
			case gone:
				change.GRPCRoutes[id.Name] = nil
			case id.Kind == route.HTTPRoute:
				r := &gwv1.HTTPRoute{ObjectMeta: meta, Spec: gwv1.HTTPRouteSpec{CommonRouteSpec: parents, Hostnames: hostnames}}
				if one.broken {
					r.Spec.Rules = []gwv1.HTTPRouteRule{{Filters: []gwv1.HTTPRouteFilter{{Type: "Unknown"}}}}
				}
				change.HTTPRoutes[id.Name] = r
			default:
				r := &gwv1.GRPCRoute{ObjectMeta: meta, Spec: gwv1.GRPCRouteSpec{CommonRouteSpec: parents, Hostnames: hostnames}}
				if one.broken {
					r.Spec.Rules = []gwv1.GRPCRouteRule{{Filters: []gwv1.GRPCRouteFilter{{Type: "Unknown"}}}}
				}
				change.GRPCRoutes[id.Name] = r
			}
			if gone {
				delete(there, id)
			} else {
				there[id] = one
			}
			have.take(s.Apply(change))
			have.forget(change)

			var order []contender
			for _, o := range there {
				order = append(order, o)
			}
			slices.SortFunc(order, func(a, b contender) int {
				if a.age != b.age {
					return a.age - b.age
				}
				if d := a.id.Name.Compare(b.id.Name); d != 0 {
					return d
				}
				return cmpString(string(a.id.Kind), string(b.id.Kind))
			})
			var accepted []contender
			for _, o := range order {
				want := !o.broken && !slices.ContainsFunc(accepted, func(a contender) bool {
					return a.id.Kind != o.id.Kind && slices.ContainsFunc(a.hosts, func(h string) bool { return overlaps(o.hosts, h) })
				})
				if want {
					accepted = append(accepted, o)
				}
				got := find(have.routes[o.id][0].Conditions, "Accepted").Status == metav1.ConditionTrue
				if got != want {
					t.Fatalf("seed %d step %d: %s with %q is accepted: %t, want %t", seed, step, o.id, o.hosts, got, want)
				}
			}
		}
	}
}

func TestSupportedVersion(t *testing.T) {
	for v, want := range map[string]bool{"v1.6.3": true, "v1.0.0": true, "v1.7.0-rc.1": true, "v1.99.0": false, "v2.0.0": false, "v0.8.1": false, "": false, "v1.x": false} {
		if got := supportedVersion(map[string]*CRD{classResource: {Version: v}}); got.ok != want {
			t.Errorf("%q: %+v", v, got)
		}
		// A leftover of another release counts, whichever it is.
		if got := supportedVersion(map[string]*CRD{classResource: {Version: "v1.6.3"}, "httproutes": {Version: v}}); got.ok != want || !want && !strings.Contains(got.message, "httproutes.gateway.networking.k8s.io") {
			t.Errorf("%q of httproutes: %+v", v, got)
		}
	}
	s := New(Options{})
	c := crowd(0)
	crds := func(version, channel string) map[string]*CRD {
		return map[string]*CRD{classResource: {version, channel}}
	}
	c.CRDs = crds("v1.6.3", "")
	if st := s.Apply(c).ClassStatuses["weft"]; find(st.Conditions, "SupportedVersion").Status != metav1.ConditionTrue {
		t.Errorf("%+v", st.Conditions)
	}
	if st := s.Apply(&Change{CRDs: crds("v9.0.0", "")}).ClassStatuses["weft"]; st == nil || find(st.Conditions, "SupportedVersion").Status != metav1.ConditionFalse {
		t.Errorf("%+v", st)
	}
	st := s.Apply(&Change{CRDs: crds("v1.6.3", "standard")}).ClassStatuses["weft"]
	if st == nil || len(st.SupportedFeatures) != len(allFeatures)-len(spans) ||
		slices.ContainsFunc(st.SupportedFeatures, func(f gwv1.SupportedFeature) bool { return f.Name == "HTTPRouteRetry" }) {
		t.Errorf("with CRDs that have no retries: %+v", st)
	}
	if n := len(allFeatures); n < 40 || !slices.IsSorted(allFeatures) {
		t.Errorf("%d features, which are to be in order", n)
	}
}
