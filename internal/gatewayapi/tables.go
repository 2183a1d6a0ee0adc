// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"maps"
	"reflect"
	"slices"

	"github.com/weft-net/weft/internal/route"
)

// tables are one gateway's tables as they are wanted, with what became different since they were told.
type tables struct {
	serial    uint64
	listeners resources[route.Listener]
	routes    resources[route.Route]
	backends  resources[route.Backend]
	endpoints resources[route.EndpointSet]
	certs     resources[route.Certificate]
	policies  resources[route.Policy]

	// since is the serial with which each listener became what it is, and got the routes that its spec lets in.
	since map[string]uint64
	// How many routes and policies need each backend, and backends each set of endpoints.
	uses        map[backendID]int
	endpointUse map[endpointsID]int
	policyUse   map[string]int
}

func newTables() *tables {
	return &tables{
		listeners: newResources[route.Listener](), routes: newResources[route.Route](),
		backends: newResources[route.Backend](), endpoints: newResources[route.EndpointSet](),
		certs: newResources[route.Certificate](), policies: newResources[route.Policy](),
		since: map[string]uint64{}, uses: map[backendID]int{}, endpointUse: map[endpointsID]int{}, policyUse: map[string]int{},
	}
}

// resources are those of one kind, by key. Values are not changed once they are in.
type resources[T any] struct {
	now    map[string]*T
	before map[string]*T // of what was touched since the last flush: the value told then, or nil
}

func newResources[T any]() resources[T] {
	return resources[T]{now: map[string]*T{}, before: map[string]*T{}}
}

// put sets a resource, or with nil removes it.
func (r *resources[T]) put(key string, v *T) {
	old := r.now[key]
	if old == nil && v == nil {
		return
	}
	if _, touched := r.before[key]; !touched {
		r.before[key] = old
	}
	if v == nil {
		delete(r.now, key)
	} else {
		r.now[key] = v
	}
}

// flush gives what is different from what was told last, ordered by key.
func (r *resources[T]) flush(kind route.Kind, gone *[]route.Ref) (changed []T) {
	if len(r.before) == 0 {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(r.before)) {
		old, now := r.before[key], r.now[key]
		switch {
		case now == nil && old != nil:
			*gone = append(*gone, route.Ref{Kind: kind, Key: key})
		case now != nil && (old == nil || old != now && !reflect.DeepEqual(old, now)):
			changed = append(changed, *now)
		}
	}
	r.before = map[string]*T{} // not cleared: a map that was large once takes long to go through ever after
	return changed
}

// all gives every resource, ordered by key.
func (r *resources[T]) all() (out []T) {
	for _, key := range slices.Sorted(maps.Keys(r.now)) {
		out = append(out, *r.now[key])
	}
	return out
}

// flush gives the change since the last flush, which gets the next serial; nil when there is none.
func (t *tables) flush(last *uint64) *route.Update {
	var u route.Update
	u.Listeners = t.listeners.flush(route.KindListener, &u.Removed)
	u.Routes = t.routes.flush(route.KindRoute, &u.Removed)
	u.Backends = t.backends.flush(route.KindBackend, &u.Removed)
	u.Endpoints = t.endpoints.flush(route.KindEndpointSet, &u.Removed)
	u.Certificates = t.certs.flush(route.KindCertificate, &u.Removed)
	u.Policies = t.policies.flush(route.KindPolicy, &u.Removed)
	if len(u.Listeners)+len(u.Routes)+len(u.Backends)+len(u.Endpoints)+len(u.Certificates)+len(u.Policies)+len(u.Removed) == 0 {
		return nil
	}
	*last++
	t.serial = *last
	for i := range u.Listeners {
		t.since[u.Listeners[i].Key] = t.serial
	}
	for _, r := range u.Removed {
		if r.Kind == route.KindListener {
			delete(t.since, r.Key)
		}
	}
	return &u
}

func (t *tables) complete() *route.Update {
	return &route.Update{
		Complete: true, Listeners: t.listeners.all(), Routes: t.routes.all(), Backends: t.backends.all(),
		Endpoints: t.endpoints.all(), Certificates: t.certs.all(), Policies: t.policies.all(),
	}
}
