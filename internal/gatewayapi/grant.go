// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

// from is the object that refers to another.
type from struct {
	kind string
	model.Name
}

// permitted tells whether an object may refer to one of the core group in the namespace: its own, or one with a
// ReferenceGrant that says so.
func (s *State) permitted(f from, kind string, to model.Name) bool {
	if f.Namespace == to.Namespace {
		return true
	}
	for _, g := range s.grants[to.Namespace] {
		if grants(&g.Spec, f, kind, to.Name) {
			return true
		}
	}
	return false
}

func grants(g *gwv1.ReferenceGrantSpec, f from, kind, name string) bool {
	named := false
	for _, t := range g.To {
		named = named || t.Group == "" && string(t.Kind) == kind && (t.Name == nil || *t.Name == "" || string(*t.Name) == name)
	}
	if !named {
		return false
	}
	for _, a := range g.From {
		if a.Group == GroupName && string(a.Kind) == f.kind && string(a.Namespace) == f.Namespace {
			return true
		}
	}
	return false
}

// grantMissing says which ReferenceGrant would permit a reference.
func grantMissing(f from, kind string, to model.Name) string {
	return fmt.Sprintf("no ReferenceGrant in namespace %s permits %s of namespace %s to refer to %s %s: create one there with from "+
		"{group: %s, kind: %s, namespace: %s} and to {group: \"\", kind: %s, name: %s}",
		to.Namespace, f.kind, f.Namespace, kind, to.Name, GroupName, f.kind, f.Namespace, kind, to.Name)
}
