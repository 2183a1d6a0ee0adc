// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"slices"
)

// Pod is core/v1 Pod.
type Pod struct {
	Meta
	Node           string // spec.nodeName; "" until scheduled
	HostNetwork    bool
	IPs            []netip.Addr // status.podIPs
	HostIPs        []netip.Addr // status.hostIPs
	Ports          []ContainerPort
	ServiceAccount string
	Hostname       string
	Subdomain      string
	Ready          bool // the Ready condition
	Finished       bool // phase Succeeded or Failed: its addresses are no longer its own
	DNSPolicy      string
	DNSConfig      *PodDNSConfig // spec.dnsConfig; nil: none
}

// PodDNSConfig is core/v1 PodDNSConfig, as far as it says which names are asked, and whom.
type PodDNSConfig struct {
	Nameservers []string
	Searches    []string
	Ndots       int // -1: not given
}

// ContainerPort is a port that one of a pod's containers (sidecars included) declares.
type ContainerPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	HostPort uint16 // 0: none
}

// Node is core/v1 Node. Meta.Annotations and Labels carry all that the node has under weft.dev and
// topology.kubernetes.io.
type Node struct {
	Meta
	InternalIPs []netip.Addr
	ExternalIPs []netip.Addr
	PodCIDRs    []netip.Prefix
	Zone        string // the topology.kubernetes.io/zone label
	Region      string // the topology.kubernetes.io/region label
	Ready       bool   // the Ready condition is True
	// Unreachable: the control plane has not heard of the node for a while, or never (its Ready condition is Unknown or
	// missing, see the taint node.kubernetes.io/unreachable). A node that says that it is not Ready is heard of.
	Unreachable bool
	// ToBeDeleted is the ToBeDeletedByClusterAutoscaler taint: the node is about to go (KEP-3836).
	ToBeDeleted bool
	// ExcludedFromLB is the node.kubernetes.io/exclude-from-external-load-balancers label.
	ExcludedFromLB bool
}

// TunnelAddr is the address of a podCIDR that its node uses as its own where what it sends to pods goes through a tunnel,
// because it shares no link with their node: the range's first, which no pod gets. It is invalid for a range of fewer
// than four addresses, which has none to spare.
func TunnelAddr(podCIDR netip.Prefix) netip.Addr {
	if podCIDR.Addr().BitLen()-podCIDR.Bits() < 2 {
		return netip.Addr{}
	}
	return podCIDR.Masked().Addr()
}

// Addresses are all that packets from the node itself may come from: those that the API lists, and its TunnelAddrs.
func (n *Node) Addresses() []netip.Addr {
	out := slices.Concat(n.InternalIPs, n.ExternalIPs)
	for _, c := range n.PodCIDRs {
		if a := TunnelAddr(c); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Namespace is core/v1 Namespace.
type Namespace struct {
	Meta
}
