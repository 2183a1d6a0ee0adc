// SPDX-License-Identifier: Apache-2.0

// Package gatewayapi decides what Gateway API objects mean: it compiles GatewayClasses, Gateways, ListenerSets, routes,
// BackendTLSPolicies and what they refer to into the tables of each gateway (package route), the infrastructure that a
// Gateway asks for, and the status that every object gets.
//
// A State holds what is known and what followed from it. Apply takes what changed and tells what changes because of it;
// the work is proportional to that: an EndpointSlice touches its Service's endpoints, a route itself, a listener the
// routes that ask for its Gateway.
//
// It imports packages model and route and the types of the API (sigs.k8s.io/gateway-api, apimachinery's meta/v1), does
// no I/O, has no clock and starts no goroutine.
package gatewayapi
