// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// experimentalFields are features whose fields the CRDs of the standard channel do not have. Others are experimental by
// name only.
var experimentalFields = []gwv1.FeatureName{
	gwv1.FeatureName(features.SupportHTTPRouteRetry),
	gwv1.FeatureName(features.SupportHTTPRouteRetryBackendTimeout),
	gwv1.FeatureName(features.SupportHTTPRouteRetryConnectionError),
}

// supportedFeatures are all that the API knows but those of service meshes, as far as CRDs of the channel let one ask
// for them, in the order that the API wants.
func supportedFeatures(channel string) []gwv1.SupportedFeature {
	if channel != string(features.FeatureChannelStandard) {
		return allFeatures
	}
	return slices.DeleteFunc(slices.Clone(allFeatures), func(f gwv1.SupportedFeature) bool {
		return slices.Contains(experimentalFields, f.Name)
	})
}

var allFeatures = func() (out []gwv1.SupportedFeature) {
	for _, f := range features.AllFeatures.Difference(features.MeshCoreFeatures).Difference(features.MeshExtendedFeatures).UnsortedList() {
		out = append(out, gwv1.SupportedFeature{Name: gwv1.FeatureName(f.Name)})
	}
	slices.SortFunc(out, func(a, b gwv1.SupportedFeature) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return out
}()
