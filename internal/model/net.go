// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Protocol is a transport protocol by its IANA number, which is what nftables and conntrack speak.
type Protocol uint8

// The protocols that Kubernetes Services and NetworkPolicies know (core/v1 Protocol).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String gives the API's spelling: "TCP", "UDP" or "SCTP".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// ParseProtocol reads the API's spelling in any case. The empty string is TCP, the API's default.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToUpper(s) {
	case "", "TCP":
		return TCP, nil
	case "UDP":
		return UDP, nil
	case "SCTP":
		return SCTP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q: want TCP, UDP or SCTP", s)
}

// Family is an IP family.
type Family uint8

// The two IP families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf tells an address's family; an IPv4-mapped IPv6 address counts as IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// String gives the API's spelling: "IPv4" or "IPv6".
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Name is an object's namespace and name. Cluster-scoped objects have no namespace.
type Name struct {
	Namespace, Name string
}

// String is "namespace/name", or "name" for a cluster-scoped object.
func (n Name) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// Compare orders by namespace, then name.
func (n Name) Compare(o Name) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// Meta is what every object carries of its ObjectMeta.
type Meta struct {
	Name
	UID         string
	Labels      map[string]string
	Annotations map[string]string // only those that weft reads; see package kube
	Created     int64             // creationTimestamp, seconds since the Unix epoch
	Generation  int64
	Deleting    bool // has a deletionTimestamp
}
