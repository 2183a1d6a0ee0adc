// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"time"

	"github.com/weft-net/weft/internal/route"
)

// retire takes away resources that others refer to, once the tables that no longer do are published. A request that
// began before goes on with what it had: what nobody refers to any more keeps its content, and only its place is given
// up. What something still refers to is missing there from now on, as the tables say.
func (t *tables) retire(removed []route.Ref) {
	if len(removed) == 0 {
		return
	}
	gone := make(map[route.Ref]bool, len(removed))
	for _, r := range removed {
		gone[r] = true
	}
	named := t.named(gone)
	for _, r := range removed {
		switch r.Kind {
		case route.KindBackend:
			cell := t.backends[r.Key]
			if cell == nil {
				continue
			}
			b := cell.Load()
			if named[r] {
				cell.Store(nil)
			} else {
				delete(t.backends, r.Key)
			}
			if b != nil {
				delete(t.usedBy[b.conf.Endpoints], r.Key)
				if len(t.usedBy[b.conf.Endpoints]) == 0 {
					delete(t.usedBy, b.conf.Endpoints)
				}
				b.close()
			}
		case route.KindPolicy:
			if cell := t.policies[r.Key]; named[r] && cell != nil {
				cell.Store(nil)
			} else {
				delete(t.policies, r.Key)
			}
		}
	}
	for _, r := range removed {
		if r.Kind == route.KindEndpointSet { // after the backends, which may go together with it
			t.setEndpoints(r.Key, nil, time.Time{})
			delete(t.sets, r.Key)
		}
	}
}

// named finds those of the resources that listeners, routes or policies still refer to. It looks at all of them, since
// backends and policies go seldom, and with what named them.
func (t *tables) named(of map[route.Ref]bool) map[route.Ref]bool {
	found := make(map[route.Ref]bool)
	see := func(kind route.Kind, keys ...string) {
		for _, k := range keys {
			if r := (route.Ref{Kind: kind, Key: k}); of[r] {
				found[r] = true
			}
		}
	}
	filters := func(all []route.Filter) {
		for _, f := range all {
			if f.Mirror != nil {
				see(route.KindBackend, f.Mirror.Backend)
			}
			if f.ExternalAuth != nil {
				see(route.KindBackend, f.ExternalAuth.Backend)
			}
		}
	}
	worth := false
	for r := range of {
		worth = worth || r.Kind == route.KindBackend || r.Kind == route.KindPolicy
	}
	if !worth {
		return found
	}
	for _, l := range t.listeners {
		see(route.KindPolicy, l.conf.Policies...)
		filters(l.conf.Filters)
	}
	for _, c := range t.routes {
		see(route.KindPolicy, c.conf.Policies...)
		for i := range c.conf.Rules {
			rule := &c.conf.Rules[i]
			see(route.KindPolicy, rule.Policies...)
			filters(rule.Filters)
			for _, b := range rule.Backends {
				see(route.KindBackend, b.Backend)
				filters(b.Filters)
			}
		}
	}
	for key, cell := range t.policies {
		if p := cell.Load(); p != nil && !of[route.Ref{Kind: route.KindPolicy, Key: key}] {
			if p.conf.ExternalAuth != nil {
				see(route.KindBackend, p.conf.ExternalAuth.Backend)
			}
			if p.conf.ErrorPages != nil {
				see(route.KindBackend, p.conf.ErrorPages.Backend)
			}
		}
	}
	return found
}
