// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

// objectKind is a kind of Gateway API that is compiled here: its v1 type, and its place in a Change.
type objectKind struct {
	make func() any
	set  func(c *Change, n model.Name, v any)
}

var objectKinds = map[string]objectKind{
	"GatewayClass":     kindIn(func(c *Change) *map[string]*gwv1.GatewayClass { return &c.GatewayClasses }, clusterScoped),
	"Gateway":          kindIn(func(c *Change) *map[model.Name]*gwv1.Gateway { return &c.Gateways }, itself),
	"ListenerSet":      kindIn(func(c *Change) *map[model.Name]*gwv1.ListenerSet { return &c.ListenerSets }, itself),
	"HTTPRoute":        kindIn(func(c *Change) *map[model.Name]*gwv1.HTTPRoute { return &c.HTTPRoutes }, itself),
	"GRPCRoute":        kindIn(func(c *Change) *map[model.Name]*gwv1.GRPCRoute { return &c.GRPCRoutes }, itself),
	"TLSRoute":         kindIn(func(c *Change) *map[model.Name]*gwv1.TLSRoute { return &c.TLSRoutes }, itself),
	"TCPRoute":         kindIn(func(c *Change) *map[model.Name]*gwv1.TCPRoute { return &c.TCPRoutes }, itself),
	"UDPRoute":         kindIn(func(c *Change) *map[model.Name]*gwv1.UDPRoute { return &c.UDPRoutes }, itself),
	"BackendTLSPolicy": kindIn(func(c *Change) *map[model.Name]*gwv1.BackendTLSPolicy { return &c.BackendTLSPolicies }, itself),
	"ReferenceGrant":   kindIn(func(c *Change) *map[model.Name]*gwv1.ReferenceGrant { return &c.ReferenceGrants }, itself),
}

func itself(n model.Name) model.Name    { return n }
func clusterScoped(n model.Name) string { return n.Name }

func kindIn[K comparable, T any](in func(*Change) *map[K]*T, key func(model.Name) K) objectKind {
	return objectKind{
		make: func() any { return new(T) },
		set: func(c *Change, n model.Name, v any) {
			m := in(c)
			if *m == nil {
				*m = make(map[K]*T)
			}
			o, _ := v.(*T) // nil: gone
			(*m)[key(n)] = o
		},
	}
}

// NewObject is a pointer to a new object of v1's type of a kind that is compiled here; nil for any other kind.
func NewObject(kind string) any {
	if k, ok := objectKinds[kind]; ok {
		return k.make()
	}
	return nil
}

// Set notes the newest value of an object: of the type that NewObject gives for its kind, or nil when it is gone. It
// tells whether the kind is one that is compiled here.
func (c *Change) Set(kind string, n model.Name, v any) bool {
	if v == nil {
		return c.SetObject(kind, n, nil)
	}
	return c.SetObject(kind, n, &model.Object{Value: v})
}

// SetObject is Set for an object with what its type does not hold; nil is gone.
func (c *Change) SetObject(kind string, n model.Name, o *model.Object) bool {
	k, ok := objectKinds[kind]
	if !ok {
		return false
	}
	if o == nil {
		o = &model.Object{}
	}
	k.set(c, n, o.Value)
	if c.Unknown == nil {
		c.Unknown = make(map[model.ObjectKey]map[string]any)
	}
	c.Unknown[model.ObjectKey{Kind: kind, Namespace: n.Namespace, Name: n.Name}] = o.Unknown
	return true
}
