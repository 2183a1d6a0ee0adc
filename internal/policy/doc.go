// SPDX-License-Identifier: Apache-2.0

// Package policy decides what NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy
// (policy.networking.k8s.io/v1alpha2) allow.
//
// It does so in two ways that must never disagree. [Cluster.Evaluate] answers for one flow and says why, policy by
// policy: it is what `weft why`, lint, the drop log and the tests ask. [Compiler] turns the same objects into the
// [Program] that one node's kernel runs: chains, and sets of addresses, that only differ by what changed.
//
// The compiled form keeps a packet's cost independent of the number of policies and pods. A pod's address leads to
// one chain a direction; pods that the same policies select share it. In it, the rules of all those policies are one
// union: the packet's protocol and port lead, by one lookup in a map of disjoint port ranges, to one set of the
// peers that any rule allows there. A pod that comes, goes or changes its labels changes elements of sets.
//
// The package is pure: no clock, no I/O, no goroutine. It imports model and the standard library.
package policy
