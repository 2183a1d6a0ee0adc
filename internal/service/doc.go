// SPDX-License-Identifier: Apache-2.0

// Package service decides what one node does with traffic to Services: which frontends there are (cluster IPs, node
// ports, external IPs, load balancer IPs), which endpoints serve each from this node, and what happens where none
// does. Explain gives the reason for every endpoint from the same decision.
//
// The reference is the API documentation of core/v1 Service and discovery/v1 EndpointSlice and, where they leave it
// open, what kube-proxy does: KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy), KEP-2433 and
// KEP-4444 with KEP-3015 (hints, trafficDistribution), KEP-1860 (ipMode).
//
// It is pure: no clock, no I/O, no goroutine. It imports model and the standard library. Work is proportional to
// what changed: an EndpointSlice touches its Service, never another.
package service
