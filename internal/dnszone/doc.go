// SPDX-License-Identifier: Apache-2.0

// Package dnszone decides what a name resolves to: it compiles Services, EndpointSlices, Namespaces and Pods into
// the records of the Kubernetes DNS specification (kubernetes/dns, docs/specification.md, schema 1.1.0), and
// Services' external-dns annotations into zones for the outside world.
//
// A Zone is updated by one goroutine, with work proportional to what changed, while any number of readers look
// names up: they take no lock and never wait. Address records lie ready as wire bytes; a lookup copies them.
// Every lookup first finds what a name is and then renders it; Explain words that same finding, so explanation and
// answer can't disagree.
//
// The package does no I/O, reads no clock and starts no goroutine. It imports model and the standard library.
package dnszone
