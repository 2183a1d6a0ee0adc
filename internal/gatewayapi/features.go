// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"maps"
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// span is in which releases of the API, by their minor versions, a feature has its name, and the field that one asks for
// it by. A feature that is not in spans has been there in all, in both channels.
type span struct {
	first, last  int // 0 is no bound
	experimental int // the last release in which only the experimental channel has the field; 0 is none
}

// spans are the features that came, went or moved to the standard channel since release 1.2, the first that can hold
// them (see supportedFeatures). Features that are experimental by name only are not here.
var spans = map[features.FeatureName]span{
	features.SupportHTTPRouteRetry:                {last: 6, experimental: 6},
	features.SupportHTTPRouteRetryBackendTimeout:  {last: 6, experimental: 6},
	features.SupportHTTPRouteRetryConnectionError: {experimental: 6},

	// Names of release 1.7, which the Go module of the API in use does not have. GatewayAddressRoutability and
	// GatewayAddressRoutabilityCluster are not among them: to claim them wants a condition AddressesAssigned, the value
	// testing.x-k8s.io/sentinel and a routability of every address in status (GEP-5093), none of which is here.
	"ClusterTrustBundle":                         {first: 7, experimental: 7},
	"GatewayListenerFilters":                     {first: 7, experimental: 7},
	"HTTPRouteRetryCodes":                        {first: 7},
	"HTTPRouteBackendURLRewrite":                 {first: 7},
	"GRPCRouteRequestHeaderModifier":             {first: 7},
	"GatewayRouteHostnameIntersectionPrecedence": {first: 7},
}

// supportedFeatures are all that weft has of those that CRDs of a version and channel know and let one ask for, in the
// order that the API wants: everything but what is about service meshes. Before release 1.2 status had no list of
// features, or one of plain names, so nothing is claimed. A version that can't be told is taken for the newest one.
func supportedFeatures(version, channel string) []gwv1.SupportedFeature {
	minor, ok := minorVersion(version)
	if !ok {
		minor = newestMinor
	}
	if minor < 2 {
		return nil
	}
	var out []gwv1.SupportedFeature
	for _, name := range allFeatures {
		s := spans[name]
		switch {
		case minor < s.first, s.last > 0 && minor > s.last:
		case minor <= s.experimental && channel == string(features.FeatureChannelStandard):
		default:
			out = append(out, gwv1.SupportedFeature{Name: gwv1.FeatureName(name)})
		}
	}
	return out
}

// allFeatures are the names of all releases, in order.
var allFeatures = func() []features.FeatureName {
	names := map[features.FeatureName]bool{}
	for f := range features.AllFeatures.Difference(features.MeshCoreFeatures).Difference(features.MeshExtendedFeatures) {
		names[f.Name] = true
	}
	for name := range spans {
		names[name] = true
	}
	return slices.SortedFunc(maps.Keys(names), func(a, b features.FeatureName) int { return strings.Compare(string(a), string(b)) })
}()
