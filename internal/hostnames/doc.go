// SPDX-License-Identifier: Apache-2.0

// Package hostnames decides which names Ingresses and Gateway API's routes declare for the world outside, and where
// they lead: to the addresses in the status of the Ingress, or of the Gateways that have accepted the route.
//
// It is pure, and tells only what changed. It follows external-dns in what counts: the hosts of an Ingress's rules and
// TLS entries; the hostnames that a route and a listener it is attached to have in common (GEP-1294); and the
// external-dns annotations hostname, target and ttl, which a Gateway may have as well.
//
// It imports model, dnszone, and the types of Gateway API.
package hostnames
