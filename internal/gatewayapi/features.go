// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// supportedFeatures are all that the API knows but those of service meshes, in the order that the API wants.
var supportedFeatures = func() (out []gwv1.SupportedFeature) {
	for _, f := range features.AllFeatures.Difference(features.MeshCoreFeatures).Difference(features.MeshExtendedFeatures).UnsortedList() {
		out = append(out, gwv1.SupportedFeature{Name: gwv1.FeatureName(f.Name)})
	}
	slices.SortFunc(out, func(a, b gwv1.SupportedFeature) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return out
}()
