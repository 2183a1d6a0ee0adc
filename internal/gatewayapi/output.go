// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Output is what follows from a Change. Values are complete for their object and read-only; what is not in here stays
// as it was told before.
//
// Statuses hold only what weft says: conditions without lastTransitionTime, and of routes and policies only the entries
// with our ControllerName. Whoever writes them keeps all that is others' (see OwnedConditions), and sets the times. A
// status is told when it differs from what was told before, and also when an object arrives whose own status says
// otherwise. A deleted object has no status.
type Output struct {
	Gateways map[model.Name]*GatewayChange

	ClassStatuses       map[string]*gwv1.GatewayClassStatus
	GatewayStatuses     map[model.Name]*gwv1.GatewayStatus
	ListenerSetStatuses map[model.Name]*gwv1.ListenerSetStatus
	// RouteStatuses are the entries of status.parents that are ours; none: ours are to be removed.
	RouteStatuses map[RouteID][]gwv1.RouteParentStatus
	// PolicyStatuses are the entries of status.ancestors of BackendTLSPolicies that are ours, which may be more than there is
	// room for.
	PolicyStatuses map[model.Name][]gwv1.PolicyAncestorStatus

	// ClassesInUse tells of classes of ours whether Gateways have them: a class in use should have the finalizer
	// gwv1.GatewayClassFinalizerGatewaysExist.
	ClassesInUse map[string]bool
}

// RouteID names a route of any kind.
type RouteID struct {
	Kind route.RouteKind
	model.Name
}

// String is the route's key in the tables: "HTTPRoute/shop/cart".
func (r RouteID) String() string { return string(r.Kind) + "/" + r.Name.String() }

// GatewayChange is what changed of one Gateway.
type GatewayChange struct {
	// Gone says that the Gateway is deleted or is no longer ours: nothing of it may stay. The rest is empty then.
	Gone bool
	// Serial grows with every change of the Gateway's tables, also when it is deleted and made anew. Feedback.Confirmed
	// names the newest one that is served.
	Serial uint64
	// Update is the change of its tables, without a revision; nil when only the rest changed.
	Update *route.Update
	// Infrastructure is what it asks for; nil when that did not change.
	Infrastructure *Infrastructure
}

// Infrastructure is what a Gateway needs in the cluster.
type Infrastructure struct {
	// Accepted: what is not accepted gets no infrastructure; what has one keeps it as it is meanwhile.
	Accepted bool
	// Ports of its Service, ordered by port, TCP before UDP.
	Ports []Port
	// Cluster says that a ClusterIP is asked for (routability Cluster, of release 1.7), ClusterOnly that nothing else is.
	Cluster, ClusterOnly bool
	// Addresses and ClusterAddresses are those of either kind that spec.addresses asks for by value, ordered as written.
	Addresses, ClusterAddresses []string
	// Labels and Annotations for every object that is made for it.
	Labels, Annotations map[string]string
	// ClassParameters and Parameters name the GatewayConfigs of its class and its own; nil is none. Its own come first.
	ClassParameters, Parameters *model.Name
}

// Port is one port of a Gateway's Service.
type Port struct {
	Name     string // unique: "tcp-443", "udp-53"
	Protocol model.Protocol
	Port     uint16 // what clients connect to
	BindPort uint16 // what the pods bind: the Service's targetPort
}

// OwnedConditions are the types of conditions that weft sets and removes, by what they are of. All others are not
// touched.
var OwnedConditions = struct {
	GatewayClass, Gateway, Listener, ListenerSet, Route, Policy []string
}{
	GatewayClass: []string{string(gwv1.GatewayClassConditionStatusAccepted), string(gwv1.GatewayClassConditionStatusSupportedVersion)},
	Gateway: []string{string(gwv1.GatewayConditionAccepted), string(gwv1.GatewayConditionProgrammed),
		string(gwv1.GatewayConditionResolvedRefs), string(gwv1.GatewayConditionInsecureFrontendValidationMode)},
	Listener: []string{string(gwv1.ListenerConditionAccepted), string(gwv1.ListenerConditionProgrammed),
		string(gwv1.ListenerConditionResolvedRefs), string(gwv1.ListenerConditionConflicted),
		string(gwv1.ListenerConditionOverlappingTLSConfig)},
	ListenerSet: []string{string(gwv1.ListenerSetConditionAccepted), string(gwv1.ListenerSetConditionProgrammed)},
	Route: []string{string(gwv1.RouteConditionAccepted), string(gwv1.RouteConditionResolvedRefs),
		string(gwv1.RouteConditionPartiallyInvalid)},
	Policy: []string{string(gwv1.PolicyConditionAccepted), string(gwv1.BackendTLSPolicyConditionResolvedRefs)},
}
