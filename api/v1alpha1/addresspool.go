// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the resources of the weft.dev/v1alpha1 API group as Go types, for those who read or write
// them with a Kubernetes client. Their validation and defaults are in the CustomResourceDefinitions of the Helm
// chart (deploy/chart/crds), which a test holds against these types.
//
// It imports k8s.io/apimachinery and k8s.io/api only.
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is weft.dev/v1alpha1.
var GroupVersion = schema.GroupVersion{Group: "weft.dev", Version: "v1alpha1"}

// AddressPools is the resource of AddressPool objects.
var AddressPools = GroupVersion.WithResource("addresspools")

// SchemeBuilder and AddToScheme register the group's kinds with a scheme.
var (
	SchemeBuilder = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
		s.AddKnownTypes(GroupVersion, &AddressPool{}, &AddressPoolList{}, &GatewayConfig{}, &GatewayConfigList{}, &TrafficPolicy{}, &TrafficPolicyList{})
		metav1.AddToGroupVersion(s, GroupVersion)
		return nil
	})
	AddToScheme = SchemeBuilder.AddToScheme
)

// AddressPool is addresses that Services of type LoadBalancer may get. It is cluster-scoped.
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddressPoolSpec   `json:"spec"`
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolSpec says which addresses, and for whom.
type AddressPoolSpec struct {
	// Addresses are ranges ("192.0.2.10-192.0.2.20"), CIDRs and single addresses, of either family or both. No two
	// pools may have an address in common: the pool that was created later is refused.
	Addresses []string `json:"addresses"`

	// NamespaceSelector admits only Services of namespaces with matching labels. Absent: of all namespaces.
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// ServiceSelector admits only Services with matching labels. Absent: all.
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`

	// AutoAssign, when false, keeps the pool for Services that ask for it by the weft.dev/address-pool annotation or
	// ask for one of its addresses. Absent: true.
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// AvoidBuggyIPs leaves out IPv4 addresses that end in .0 or .255, which some equipment refuses to talk to.
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`
}

// ConditionAccepted is the condition of an AddressPool that says whether addresses are assigned from it.
const ConditionAccepted = "Accepted"

// AddressPoolStatus is what the controller made of the pool.
type AddressPoolStatus struct {
	// ObservedGeneration is the metadata.generation that this status is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// IPv4 and IPv6 count the pool's addresses by family; a family that the pool has none of is absent.
	IPv4 *AddressPoolUsage `json:"ipv4,omitempty"`
	IPv6 *AddressPoolUsage `json:"ipv6,omitempty"`

	// Conditions are Accepted, with the reasons Accepted, Conflict, InvalidAddresses and NoAddresses.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AddressPoolUsage counts addresses of one family. Counts end at 9223372036854775807.
type AddressPoolUsage struct {
	Total int64 `json:"total"` // in the pool
	Used  int64 `json:"used"`  // assigned to Services; one that is shared counts once
	Free  int64 `json:"free"`  // neither used, nor an address of a node or of something else, nor left out
}

// AddressPoolList is a list of AddressPools.
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []AddressPool `json:"items"`
}
