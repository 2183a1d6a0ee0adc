// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"net/netip"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// ControllerName is what a GatewayClass's spec.controllerName must be for weft to serve its Gateways.
const ControllerName = "weft.dev/gateway"

// GroupName is the API group of all the kinds that are compiled here.
const GroupName = gwv1.GroupName

// Change is what became different: the newest value of each object, or nil when it is gone. Objects are read-only from
// then on. A ListenerSet has managedFields if weft wrote its status, and only then: it does not say itself who did. Kinds that are served in older versions are to be converted to v1, whose schema is a superset.
type Change struct {
	GatewayClasses     map[string]*gwv1.GatewayClass
	Gateways           map[model.Name]*gwv1.Gateway
	ListenerSets       map[model.Name]*gwv1.ListenerSet
	HTTPRoutes         map[model.Name]*gwv1.HTTPRoute
	GRPCRoutes         map[model.Name]*gwv1.GRPCRoute
	TLSRoutes          map[model.Name]*gwv1.TLSRoute
	TCPRoutes          map[model.Name]*gwv1.TCPRoute
	UDPRoutes          map[model.Name]*gwv1.UDPRoute
	BackendTLSPolicies map[model.Name]*gwv1.BackendTLSPolicy
	ReferenceGrants    map[model.Name]*gwv1.ReferenceGrant

	// Unknown are the fields of those objects that their types do not have (model.Object.Unknown). They are refused as far
	// as they are not understood: a listener or rule that has some serves nobody.
	Unknown map[model.ObjectKey]map[string]any

	Services       map[model.Name]*model.Service
	EndpointSlices map[model.Name]*model.EndpointSlice
	Namespaces     map[string]*model.Namespace
	Secrets        map[model.Name]*model.Secret
	ConfigMaps     map[model.Name]*model.ConfigMap

	ClusterTrustBundles map[string]*model.ClusterTrustBundle

	// Parameters are the GatewayConfigs that parametersRef may name.
	Parameters map[model.Name]*Parameters
	// Attachments are the policies of weft.dev by what they apply to.
	Attachments map[Target]*Attachment
	// Policies are what Attachments name by key.
	Policies map[string]*Policy
	// Feedback tells of each Gateway what became of it.
	Feedback map[model.Name]*Feedback
	// CRDs are the CustomResourceDefinitions of Gateway API, by their resource ("httproutes"). Before that of GatewayClass is
	// known nothing is said about versions.
	CRDs map[string]*CRD
}

// CRD is what a CustomResourceDefinition of Gateway API tells of its release.
type CRD struct {
	Version string // such as "v1.6.3"; "" when it does not say
	Channel string // "standard" or "experimental"; "" when it does not say
}

// Parameters are the parts of a GatewayConfig (weft.dev) that concern listeners. A Gateway's own come before its
// class's.
type Parameters struct {
	// Invalid is why the object can't be used; a Gateway that refers to it is not accepted.
	Invalid string
	// ProxyProtocol requires a PROXY protocol header on every TCP port; nil leaves it open.
	ProxyProtocol *bool
	// ProxySources are those whose PROXY header is believed; nil leaves it open, and without any it is all.
	ProxySources []netip.Prefix
	// TrustedProxies may tell the client's address in X-Forwarded-For; nil leaves it open.
	TrustedProxies []netip.Prefix
	// Forwarded tells backends in Forwarded (RFC 7239), too; nil leaves it open.
	Forwarded *bool
}

// Target is what a policy of weft.dev applies to.
type Target struct {
	Kind string // Gateway, ListenerSet, HTTPRoute, GRPCRoute
	model.Name
	Section string // a listener's or a rule's name; "" is all of the object
}

// Attachment is the policies of one Target: keys, later ones before earlier ones.
type Attachment struct {
	Policies []string
}

// Policy is a policy with the Services that it names, which need to be in the tables where it is.
type Policy struct {
	route.Policy
	// Backends are Services that the policy names by BackendKey.
	Backends []ServicePort
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Service model.Name
	Port    uint16
}

// Feedback is what is known of a Gateway's infrastructure and pods. Before the first one, what the Gateway's own status
// says of being programmed and of its addresses stands, as an earlier process wrote it.
type Feedback struct {
	// Addresses at which clients reach it.
	Addresses []Address
	// Ports are those that its Service has; nil is not known.
	Ports []Port
	// Problem is what keeps it from being programmed, if anything does.
	Problem *Problem
	// Confirmed is the Serial of the newest Gateway change that every pod serves that is connected or ready; 0 is none.
	Confirmed uint64
	// CutOff are the pods, in order, that are ready and not connected: what they serve is not known.
	CutOff []string
	// Unserved are the listeners, by their keys in the tables, that some pod can't serve, with the pod and the reason.
	Unserved map[string]string
	// Restarted says that this process has just begun and the pods had no time yet to connect: what an earlier process
	// said stands as far as it is of the same generation. So a restart does not make Gateways look broken.
	Restarted bool
}

// Address is one address of a Gateway.
type Address struct {
	IP       netip.Addr // invalid when only a hostname is known
	Hostname string
	Cluster  bool // it is a ClusterIP that was asked for as such
}

// Problem is why a Gateway is not programmed.
type Problem struct {
	// Reason is one of Gateway API's for Programmed: AddressNotAssigned, AddressNotUsable, NoResources, Invalid, Pending.
	Reason gwv1.GatewayConditionReason
	// Message names the object, the field and the cure.
	Message string
	// Serves tells that what listeners there are serve clients all the same: something else of the Gateway can't be written.
	Serves bool
}
