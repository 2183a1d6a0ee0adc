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

// ClusterNetworkPolicy is policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy. Within a tier policies are tried
// by ascending Priority, then name; within a policy its rules are tried in the order they were written.
type ClusterNetworkPolicy struct {
	Meta
	Tier     PolicyTier
	Priority int // 0 to 1000; lower is tried first

	// The subject: pods that match Pods in namespaces that match Namespaces. Pods on the host's network never are.
	Namespaces Selector
	Pods       Selector

	IngressFrom []ClusterPolicyRule
	EgressTo    []ClusterPolicyRule
}

// PolicyTier says when a ClusterNetworkPolicy is tried: before the namespaces' NetworkPolicies, or after them for
// pods that none of them isolates.
type PolicyTier uint8

// The tiers of ClusterNetworkPolicy.
const (
	AdminTier PolicyTier = iota
	BaselineTier
)

// String gives the API's spelling.
func (t PolicyTier) String() string { return [...]string{"Admin", "Baseline"}[t] }

// PolicyAction is what a ClusterPolicyRule does with traffic it matches.
type PolicyAction uint8

// The actions of a ClusterPolicyRule. The zero value is the safe one.
const (
	DenyTraffic   PolicyAction = iota // drop; nothing else is asked
	AcceptTraffic                     // let through; nothing else is asked
	PassTraffic                       // skip the rest of this tier
)

// String gives the API's spelling.
func (a PolicyAction) String() string { return [...]string{"Deny", "Accept", "Pass"}[a] }

// ClusterPolicyRule applies Action to traffic with any of its peers on any of its ports.
type ClusterPolicyRule struct {
	Name   string // may be empty
	Action PolicyAction
	Peers  []ClusterPolicyPeer

	// Ports narrows the rule to these; empty: every protocol and port. An entry with a Name has protocol 0: any.
	Ports []PolicyPort
}

// ClusterPolicyPeer is one peer, with exactly one kind set. Pods are given by both selectors (a "namespaces" peer
// has Pods select everything). A peer with nothing set is one that this program can't read, as of a newer API: an Accept
// rule with it matches nothing, a Deny or Pass rule denies everything.
type ClusterPolicyPeer struct {
	Namespaces  *Selector
	Pods        *Selector
	Nodes       *Selector      // egress only: the nodes' own addresses
	Networks    []netip.Prefix // egress only
	DomainNames []string       // egress Accept only: "example.com", or "*.example.com" for one or more labels before it
}
