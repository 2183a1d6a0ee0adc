// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// spoilt is a Forwarder that makes of each rule of some Services one that the kernel refuses: with a range of sources of
// the wrong family, whose key has the wrong length.
type spoilt struct {
	service.Forwarder
	bad map[string]bool
}

func (s spoilt) spoil(r *service.Rule) *service.Rule {
	if r == nil || !s.bad[r.Service.Name] {
		return r
	}
	out := *r
	out.Restricted, out.Sources = true, []netip.Prefix{netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("10.0.0.0/8")}
	return &out
}

func (s spoilt) Apply(changes []service.Change) error {
	var out []service.Change
	for _, c := range changes {
		c.New = s.spoil(c.New)
		out = append(out, c)
	}
	return s.Forwarder.Apply(out)
}

func (s spoilt) Sync(r service.Rules) ([]service.Frontend, error) {
	if p, ok := r.(service.Partial); ok {
		return s.Forwarder.Sync(p)
	}
	return s.Forwarder.Sync(spoiltRules{r, s})
}

type spoiltRules struct {
	service.Rules
	s spoilt
}

func (r spoiltRules) All(f func(service.Frontend, *service.Rule)) {
	r.Rules.All(func(fe service.Frontend, x *service.Rule) { f(fe, r.s.spoil(x)) })
}

// TestRefusedService: a Service that the kernel does not take is left out and its owner hears of it; all others are
// served, whether they were there before, come with it or come later.
func TestRefusedService(t *testing.T) {
	c := newCluster(t)
	bad := map[string]bool{}
	c.tamper = func(s *Services) { s.kernel = spoilt{s.kernel, bad} }
	c.start(t)
	numbered := func(n int) *shop {
		s := newShop()
		s.service.Name.Name, s.service.UID = fmt.Sprint("s", n), fmt.Sprint("uid-", n)
		s.service.ClusterIPs = addrs(fmt.Sprint("10.96.1.", n), fmt.Sprint("fd00:96::1:", n))
		s.service.Type, s.service.Ingress, s.service.ExternalIPs = model.ClusterIP, nil, nil
		s.endpoints = s.endpoints[:1]
		return s
	}
	all := &model.Delta{}
	for n := range 20 {
		all.Merge(numbered(n).delta())
	}
	serves := func(when string, n int, want string) {
		t.Helper()
		for _, addr := range []string{fmt.Sprintf("10.96.1.%d:80", n), fmt.Sprintf("[fd00:96::1:%d]:80", n)} {
			wait := patience
			if want == silent {
				wait = impatience
			}
			if got, _ := c.pod["b1"].askFor(wait, "tcp", addr); got != want {
				t.Errorf("%s: %s: %s, want %s", when, addr, got, want)
			}
		}
	}
	told := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, e := range c.events {
			if e.Reason != "ServiceRefused" || !e.Warning || e.UID == "" || !strings.Contains(e.Message, "node1") {
				t.Errorf("%s: event %+v", when, e)
			}
			got = append(got, e.Name.Name)
		}
		c.events = nil
		if len(got) != len(want) || !strings.Contains(fmt.Sprint(want), strings.Join(got, " ")) && len(got) == 1 {
			t.Errorf("%s: told %v, want %v", when, got, want)
		}
	}

	// Two among twenty, in the first full picture.
	bad["s3"], bad["s17"] = true, true
	c.update(t, all)
	for n := range 20 {
		serves("at first", n, map[bool]string{true: silent, false: "a1"}[n == 3 || n == 17])
	}
	told("at first", "s3", "s17")

	// Others change as ever, and what is refused is no news.
	c.update(t, numbered(20).delta())
	serves("another came", 20, "a1")
	told("another came")

	// One comes to be refused while it is in force.
	bad["s5"] = true
	s5 := numbered(5)
	s5.endpoints = append(s5.endpoints, endpoint("c2"))
	c.update(t, s5.delta())
	serves("it has become bad", 5, silent)
	serves("its neighbour", 6, "a1")
	told("it has become bad", "s5")

	// Its owner mends it.
	delete(bad, "s5")
	c.update(t, numbered(5).delta())
	serves("mended", 5, "a1")
	told("mended")
	serves("the neighbour of what is bad still", 4, "a1")
	serves("bad still", 3, silent)

	// A new agent finds the same.
	c.kill()
	c.events = nil
	c.start(t)
	c.update(t, all)
	serves("after a restart", 3, silent)
	serves("after a restart", 4, "a1")
	told("after a restart", "s3", "s17")
}
