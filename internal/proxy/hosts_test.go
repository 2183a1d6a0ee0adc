// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// Whatever comes and goes, the index finds what a map of the same hostnames finds.
func TestHostIndex(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var names []string
	for i := range 300 {
		names = append(names, fmt.Sprintf("h%d.example.com", i), fmt.Sprintf("*.w%d.example.com", i))
	}
	names = append(names, "", "*.example.com", "*.com")
	x, now := newHostIndex(), map[string]*hostCell{}
	for range 5000 {
		n := names[rnd.IntN(len(names))]
		if rnd.IntN(2) == 0 {
			now[n] = &hostCell{name: n}
		} else {
			delete(now, n)
		}
		x.set(n, now[n])
		host := strings.Replace(names[rnd.IntN(len(names))], "*.", "a.b.", 1)
		var want route.Hosts[*hostCell]
		for n, c := range now {
			want.Set(n, c)
		}
		var a, b []*hostCell
		most := rnd.IntN(3)
		want.Find(host, func(c *hostCell) bool { a = append(a, c); return len(a) <= most })
		x.find(host, func(c *hostCell) bool { b = append(b, c); return len(b) <= most })
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("%s: %v, want %v", host, b, a)
		}
	}
	for n := range now {
		x.set(n, nil)
	}
	if x.wildcards.Load() != 0 {
		t.Errorf("%d wildcards are left", x.wildcards.Load())
	}
	for i := range x.exact {
		if x.exact[i].Load() != nil || x.wildcard[i].Load() != nil {
			t.Error("an empty part is kept")
		}
	}
}
