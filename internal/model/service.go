// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"time"
)

// ServiceType is core/v1 ServiceType.
type ServiceType uint8

// The types of core/v1 Service.
const (
	ClusterIP ServiceType = iota
	NodePort
	LoadBalancer
	ExternalName
)

// String gives the API's spelling.
func (t ServiceType) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}[t]
}

// Service is core/v1 Service.
type Service struct {
	Meta
	Type     ServiceType
	Selector map[string]string // empty: endpoints are written by hand
	Ports    []ServicePort

	Headless   bool         // clusterIP: None
	ClusterIPs []netip.Addr // none when Headless, ExternalName, or not yet allocated
	Families   []Family     // spec.ipFamilies
	// RequireDualStack is ipFamilyPolicy: RequireDualStack. PreferDualStack and SingleStack show in Families alone.
	RequireDualStack bool
	ExternalName     string
	ExternalIPs      []netip.Addr

	InternalLocal bool // internalTrafficPolicy: Local
	ExternalLocal bool // externalTrafficPolicy: Local

	// HealthCheckNodePort is set by the API server for ExternalLocal LoadBalancers; 0 is none.
	HealthCheckNodePort uint16

	// AffinityTimeout is sessionAffinityConfig.clientIP.timeoutSeconds; 0 means sessionAffinity: None.
	AffinityTimeout time.Duration

	PublishNotReadyAddresses bool
	Distribution             Distribution

	LoadBalancer LoadBalancerSpec
	Ingress      []LoadBalancerIngress // status.loadBalancer.ingress
	// AddressCondition is that of status.conditions of which the type is ConditionAddressAssigned; nil is none.
	AddressCondition *Condition
	// CleanupFinalizer says that the Service has the service.kubernetes.io/load-balancer-cleanup finalizer: it stays,
	// whatever its type, until the controller of its load balancer has let go.
	CleanupFinalizer bool
}

// ConditionAddressAssigned is the type of the condition that says whether a Service of weft's has the load balancer
// addresses that it asks for.
const ConditionAddressAssigned = "weft.dev/AddressAssigned"

// Condition is what a condition of an object's status says.
type Condition struct {
	Status          bool // True; anything else is not
	Reason, Message string
}

// ProxyNameLabel is the well-known label that hands a Service to another proxy.
const ProxyNameLabel = "service.kubernetes.io/service-proxy-name"

// OtherProxy tells whether the Service is another proxy's: it has the ProxyNameLabel, whatever its value, which may be
// empty. Nobody here forwards for it, so nobody may announce its addresses either.
func (s *Service) OtherProxy() bool {
	_, ok := s.Labels[ProxyNameLabel]
	return ok
}

// ServicePort is one of a Service's ports.
type ServicePort struct {
	Name        string
	Protocol    Protocol
	Port        uint16
	NodePort    uint16 // 0: none
	TargetPort  string // as written: a number or a container port's name; only for explaining
	AppProtocol string
}

// Distribution is spec.trafficDistribution (KEP-4444, KEP-3015).
type Distribution uint8

// The values of spec.trafficDistribution. PreferClose is the older spelling of PreferSameZone.
const (
	DistributeEvenly Distribution = iota
	PreferSameZone
	PreferSameNode
)

// LoadBalancerSpec is the part of a Service's spec that concerns its LoadBalancer.
type LoadBalancerSpec struct {
	Class        string         // spec.loadBalancerClass; "" is unset
	RequestedIP  netip.Addr     // spec.loadBalancerIP; invalid is unset, or unreadable
	UnreadableIP string         // spec.loadBalancerIP where it is no address
	SourceRanges []netip.Prefix // spec.loadBalancerSourceRanges; empty admits all; an invalid one could not be read and admits nobody
	NoNodePorts  bool           // allocateLoadBalancerNodePorts: false
}

// LoadBalancerIngress is one entry of status.loadBalancer.ingress.
type LoadBalancerIngress struct {
	IP       netip.Addr // invalid when only a hostname is given
	Hostname string
	Proxy    bool // ipMode: Proxy, so nodes must not short-cut to the Service (KEP-1860)
}

// ServiceCIDR is networking.k8s.io/v1 ServiceCIDR (KEP-1880): ranges that cluster IPs are allocated from.
type ServiceCIDR struct {
	Meta
	CIDRs []netip.Prefix
}

// EndpointSlice is discovery/v1 EndpointSlice.
type EndpointSlice struct {
	Meta
	Service   string // the kubernetes.io/service-name label: a Service of the same namespace
	Family    Family
	FQDN      bool // addressType FQDN: not forwarded to
	Headless  bool // has the service.kubernetes.io/headless label: nobody forwards to it
	Ports     []EndpointPort
	Endpoints []Endpoint
}

// EndpointPort is a port that every endpoint of a slice serves.
type EndpointPort struct {
	Name        string // equals the ServicePort's name
	Protocol    Protocol
	Port        uint16 // 0: nil in the API, "all ports", which no Service port maps to
	AppProtocol string
}

// Endpoint is one backend of a slice. Conditions have their API defaults filled in: a nil ready is ready, a nil
// serving equals ready, a nil terminating is false.
type Endpoint struct {
	Addresses   []netip.Addr
	Ready       bool
	Serving     bool
	Terminating bool
	Hostname    string // the per-endpoint DNS label; "" is none
	Node        string
	Zone        string
	OfPod       bool     // targetRef is of kind Pod: nobody wrote the endpoint by hand
	Pod         string   // the targetRef's name, same namespace; "" is none, or left out
	HintZones   []string // hints.forZones
	HintNodes   []string // hints.forNodes
}
