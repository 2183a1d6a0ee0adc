// SPDX-License-Identifier: Apache-2.0

package model

import "net/netip"

// NetworkPolicy is networking.k8s.io/v1 NetworkPolicy with policyTypes' default filled in.
type NetworkPolicy struct {
	Meta
	PodSelector Selector
	Ingress     bool // policyTypes holds Ingress: the selected pods are isolated for it
	Egress      bool
	IngressFrom []PolicyRule
	EgressTo    []PolicyRule
}

// PolicyRule allows traffic with any of its peers on any of its ports.
type PolicyRule struct {
	Peers []PolicyPeer // empty: any peer
	Ports []PolicyPort // empty: any port
}

// PolicyPeer is one NetworkPolicyPeer: either Block is valid, or at least one selector is set. A nil
// NamespaceSelector is the policy's own namespace; a nil PodSelector is every pod.
type PolicyPeer struct {
	PodSelector       *Selector
	NamespaceSelector *Selector
	Block             netip.Prefix
	Except            []netip.Prefix
}

// PolicyPort is one NetworkPolicyPort. Name and Port are both unset for "every port of the protocol".
type PolicyPort struct {
	Protocol Protocol
	Name     string // a container port's name on the destination pod
	Port     uint16
	EndPort  uint16 // inclusive; 0: only Port
}
