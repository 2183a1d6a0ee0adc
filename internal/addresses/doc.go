// SPDX-License-Identifier: Apache-2.0

// Package addresses decides which LoadBalancer Service gets which address of which AddressPool (Allocator), and
// which node announces it (Electorate, Owner). It is pure: no clock, no I/O, no goroutine; the same history gives
// the same answer on every machine, and the cluster's state alone is history enough: nothing is lost when the
// controller restarts.
//
// It imports model and the standard library.
package addresses

import "net/netip"

// The annotations of a Service that weft reads or writes for its load balancer.
const (
	// RequestAnnotation asks for addresses: one, or one of each family with a comma between. It says the same as
	// the deprecated spec.loadBalancerIP, for both families.
	RequestAnnotation = "weft.dev/load-balancer-ips"

	// PoolAnnotation asks for addresses of the AddressPool with this name.
	PoolAnnotation = "weft.dev/address-pool"

	// ShareAnnotation lets Services have an address together. All of them must have the same key, no port in
	// common, and the same externalTrafficPolicy; where that is Local, the same selector too.
	ShareAnnotation = "weft.dev/share-key"

	// AllocatedAnnotation is written by the controller: the pools of the Service's addresses, with commas between.
	// It marks the addresses in the Service's status as weft's, which nodes ask for before they announce one.
	AllocatedAnnotation = "weft.dev/allocated-from"
)

// DefaultClass is the spec.loadBalancerClass of the Services that weft serves.
const DefaultClass = "weft.dev/load-balancer"

// Reasons of the Events and problems that the Allocator finds.
const (
	ReasonAssigned    = "AddressAssigned"
	ReasonReleased    = "AddressReleased"
	ReasonBadRequest  = "InvalidAddressRequest"
	ReasonUnavailable = "AddressUnavailable"
	ReasonNoPool      = "NoAddressPool"
	ReasonExhausted   = "AddressPoolExhausted"
)

// Problem is why a Service lacks an address, or does not have the one that it asks for. The zero Problem is none.
type Problem struct {
	Reason  string // CamelCase
	Message string // the field, what is wrong, the cure
}

// Decision is what the Allocator wants a Service to have.
type Decision struct {
	// Ours is false for a Service that is no load balancer of weft's, or no longer, or is being deleted: whatever
	// weft wrote on it is to be taken back.
	Ours bool

	Addresses []Assigned // in the order of the Service's families
	Problem   Problem
}

// Assigned is an address and the AddressPool that it is from.
type Assigned struct {
	Addr netip.Addr
	Pool string
}
