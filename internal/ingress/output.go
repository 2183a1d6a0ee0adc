// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/weft-net/weft/internal/route"
)

// output is the gateway's tables as they were last given out, and what has changed since. Every resource has one
// producer; backends, endpoint sets and certificates are made on demand of those that name them.
type output struct {
	listeners    resources[route.Listener]
	routes       resources[route.Route]
	backends     resources[route.Backend]
	endpoints    resources[route.EndpointSet]
	certificates resources[route.Certificate]
	policies     resources[route.Policy]
}

// resources are those of one kind by key.
type resources[T any] struct {
	all     map[string]T
	owner   map[string]string // the unit that made it
	given   map[string]T      // as the gateway has it
	changed map[string]bool
	removed map[string]bool
}

// set has a unit make a resource, or take over another's: a name goes from one host to another.
func (r *resources[T]) set(unit, key string, v T) {
	if r.all == nil {
		r.all, r.owner, r.given = map[string]T{}, map[string]string{}, map[string]T{}
		r.changed, r.removed = map[string]bool{}, map[string]bool{}
	}
	r.owner[key] = unit
	if old, ok := r.all[key]; ok && reflect.DeepEqual(old, v) {
		return
	}
	r.all[key] = v
	r.changed[key] = true
	delete(r.removed, key)
}

// remove drops a unit's resource, unless it is another's by now.
func (r *resources[T]) remove(unit, key string) {
	if _, ok := r.all[key]; !ok || r.owner[key] != unit {
		return
	}
	delete(r.all, key)
	delete(r.owner, key)
	delete(r.changed, key)
	if _, ok := r.given[key]; ok {
		r.removed[key] = true
	}
}

// take hands out what has changed, in the order of keys.
func (r *resources[T]) take(kind route.Kind, u *route.Update) (out []T) {
	for _, k := range slices.Sorted(maps.Keys(r.changed)) {
		v := r.all[k]
		if old, ok := r.given[k]; ok && reflect.DeepEqual(old, v) {
			continue // dropped and made again
		}
		out = append(out, v)
		r.given[k] = v
	}
	for _, k := range slices.Sorted(maps.Keys(r.removed)) {
		u.Removed = append(u.Removed, route.Ref{Kind: kind, Key: k})
		delete(r.given, k)
	}
	clear(r.changed)
	clear(r.removed)
	return out
}

// take gives the difference since the last take, nil when there is none.
func (o *output) take() *route.Update {
	u := &route.Update{}
	u.Listeners = o.listeners.take(route.KindListener, u)
	u.Routes = o.routes.take(route.KindRoute, u)
	u.Backends = o.backends.take(route.KindBackend, u)
	u.Endpoints = o.endpoints.take(route.KindEndpointSet, u)
	u.Certificates = o.certificates.take(route.KindCertificate, u)
	u.Policies = o.policies.take(route.KindPolicy, u)
	if reflect.DeepEqual(u, &route.Update{}) {
		return nil
	}
	return u
}

// complete gives all of the tables.
func (o *output) complete() *route.Update {
	return &route.Update{
		Complete:  true,
		Listeners: sorted(o.listeners.all), Routes: sorted(o.routes.all), Backends: sorted(o.backends.all),
		Endpoints: sorted(o.endpoints.all), Certificates: sorted(o.certificates.all), Policies: sorted(o.policies.all),
	}
}

func sorted[K cmp.Ordered, V any](m map[K]V) (out []V) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}
