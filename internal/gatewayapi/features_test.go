// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"
	"strings"
	"testing"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// What is claimed is what the installed CRDs know by that name and have the fields for.
func TestFeaturesOfEachRelease(t *testing.T) {
	const old, codes, connection, rewrite = "HTTPRouteRetry", "HTTPRouteRetryCodes", "HTTPRouteRetryConnectionError", "HTTPRouteBackendURLRewrite"
	for _, c := range []struct {
		version, channel string
		has, lacks       []string
	}{
		{"v1.0.0", "experimental", nil, []string{"HTTPRoute"}},
		{"v1.1.0", "standard", nil, []string{"HTTPRoute"}},
		{"v1.2.1", "standard", []string{"HTTPRoute", "Gateway"}, []string{old, codes, connection, rewrite}},
		{"v1.6.3", "standard", []string{"HTTPRoute", "GRPCRoute"}, []string{old, codes, connection, rewrite, "GRPCRouteRequestHeaderModifier"}},
		{"v1.6.3", "experimental", []string{old, "HTTPRouteRetryBackendTimeout", connection}, []string{codes, rewrite}},
		{"v1.7.0", "standard", []string{codes, connection, rewrite, "GRPCRouteRequestHeaderModifier", "GatewayRouteHostnameIntersectionPrecedence"},
			[]string{old, "HTTPRouteRetryBackendTimeout", "GatewayListenerFilters", "ClusterTrustBundle"}},
		{"v1.7.0", "experimental", []string{codes, connection, "ClusterTrustBundle", "GatewayListenerFilters"},
			[]string{old, "GatewayAddressRoutability", "GatewayAddressRoutabilityCluster"}},
	} {
		got := supportedFeatures(c.version, c.channel)
		has := func(name string) bool {
			return slices.ContainsFunc(got, func(f gwv1.SupportedFeature) bool { return string(f.Name) == name })
		}
		for _, name := range c.has {
			if !has(name) {
				t.Errorf("%s %s: %s is not claimed", c.version, c.channel, name)
			}
		}
		for _, name := range c.lacks {
			if has(name) {
				t.Errorf("%s %s: %s is claimed", c.version, c.channel, name)
			}
		}
		if !slices.IsSortedFunc(got, func(a, b gwv1.SupportedFeature) int { return strings.Compare(string(a.Name), string(b.Name)) }) || len(got) > 64 {
			t.Errorf("%s %s: %d features, not in order or too many", c.version, c.channel, len(got))
		}
	}
}
