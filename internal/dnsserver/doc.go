// SPDX-License-Identifier: Apache-2.0

// Package dnsserver is DNS on the wire: it serves a dnszone.Zone over UDP and TCP, and everything else from a cache
// in front of forwarders.
//
// What is known, from the zone or from the cache, is answered where the query was read: one goroutine for each
// socket and core, no allocation, no lock but the cache's, system calls in batches. What is not known becomes a
// flight: one question to an upstream, however many clients wait for it. Flights, waiting clients, connections and
// the cache are bounded; beyond a bound a client gets SERVFAIL at once, and nothing grows.
//
// It imports dnszone, model, and miekg/dns for messages off the hot path. It knows nothing of Kubernetes.
package dnsserver
