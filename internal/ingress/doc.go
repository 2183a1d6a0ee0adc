// SPDX-License-Identifier: Apache-2.0

// Package ingress decides what Ingresses mean: which routing tables their gateway serves, which addresses they show, and
// what their owners must be told. It knows the Ingress API in full and ingress-nginx's annotations and ConfigMap keys, with
// ingress-nginx's own semantics; the one table of them (Annotations, ConfigKeys) says of each whether it is honoured,
// accepted without effect, or refused, and why. State takes in changes and gives out the difference, with work
// proportional to what changed: the unit of work is one hostname.
//
// It imports packages model and route and the standard library only, does no I/O, has no clock and starts no goroutine.
package ingress
