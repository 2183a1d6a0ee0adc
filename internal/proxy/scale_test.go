// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// many is n routes, each with a host, backend and endpoint of its own.
func many(n int) *route.Update {
	u := &route.Update{Complete: true, Listeners: []route.Listener{{Key: "http", Protocol: route.HTTP, Addresses: loopback}}}
	for i := range n {
		key := fmt.Sprintf("ns/s%d/80", i)
		u.Routes = append(u.Routes, oneRoute(i))
		u.Backends = append(u.Backends, route.Backend{Key: key, Endpoints: key})
		u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: key, Endpoints: []route.Endpoint{{Address: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250)}}})
	}
	return u
}

func oneRoute(i int) route.Route {
	return route.Route{Key: fmt.Sprintf("HTTPRoute/ns/r%d", i), Kind: route.HTTPRoute, Name: fmt.Sprintf("ns/r%d", i),
		Parents: []route.Parent{{Listener: "http", Hostnames: []string{fmt.Sprintf("h%d.example.com", i)}}},
		Rules: []route.Rule{{Matches: []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: "/"}}},
			Backends: []route.WeightedBackend{{Backend: fmt.Sprintf("ns/s%d/80", i), Weight: 1}}}}}
}

// 5,000 routes take at most 40 MB.
func TestManyRoutesAreSmall(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(r.Close)
	if err := r.Apply(many(5000)); err != nil {
		t.Fatal(err)
	}
	grown := heap() - before
	runtime.KeepAlive(r)
	if grown > 40<<20 {
		t.Errorf("%d MB for 5,000 routes", grown>>20)
	}
	t.Logf("%.1f MB for 5,000 routes", float64(grown)/(1<<20))
}

// How long one more route takes beside 5,000 others.
func BenchmarkOneMoreRoute(b *testing.B) {
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	defer r.Close()
	if err := r.Apply(many(5000)); err != nil {
		b.Fatal(err)
	}
	i := 5000
	var worst time.Duration
	for b.Loop() {
		begin := time.Now()
		if err := r.Apply(&route.Update{Routes: []route.Route{oneRoute(i)}}); err != nil {
			b.Fatal(err)
		}
		worst = max(worst, time.Since(begin))
		i++
	}
	b.ReportMetric(float64(worst.Microseconds()), "worst-us")
}

// How long a change of one route takes that shares its host with 5,000 others.
func BenchmarkRouteOfABusyHost(b *testing.B) {
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	defer r.Close()
	u := many(5000)
	for i := range u.Routes {
		u.Routes[i].Parents[0].Hostnames = []string{"shop.example.com"}
		u.Routes[i].Rules[0].Matches[0].Path.Value = fmt.Sprintf("/p%d", i)
	}
	if err := r.Apply(u); err != nil {
		b.Fatal(err)
	}
	one := u.Routes[77]
	for b.Loop() {
		one.Created++
		one.Rules = []route.Rule{{Matches: one.Rules[0].Matches, Backends: one.Rules[0].Backends}}
		if err := r.Apply(&route.Update{Routes: []route.Route{one}}); err != nil {
			b.Fatal(err)
		}
	}
}
