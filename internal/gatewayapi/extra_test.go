// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import "testing"

// A field of a later release is told from a mistake by its place, at whichever of a list's.
func TestReadsLater(t *testing.T) {
	for _, c := range []struct {
		kind, path string
		reads      bool
	}{
		{"Gateway", "spec.listeners[0].filters", true},
		{"Gateway", "spec.listeners[12].filters", true},
		{"ListenerSet", "spec.listeners[1].filters", true},
		{"HTTPRoute", "spec.rules[0].backendRefs[2].filters[1].externalAuth.forwardBody.maxSize", true},
		{"GRPCRoute", "spec.rules[3].sessionPersistence.header", true},
		{"GRPCRoute", "spec.rules[3].filters[0].externalAuth.forwardBody.maxSize", false},
		{"Gateway", "spec.listeners[0].filter", false},
		{"Gateway", "spec.filters", false},
		{"HTTPRoute", "spec.listeners[0].filters", false},
	} {
		if got := ReadsLater(c.kind, c.path); got != c.reads {
			t.Errorf("%s %s: %v", c.kind, c.path, got)
		}
	}
}
