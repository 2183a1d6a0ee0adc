// SPDX-License-Identifier: Apache-2.0

// Package dnspath decides which queries to a cluster's DNS Service a node's own server takes without connection
// tracking. It is pure: a table of the Services that ask for it and their endpoints on one node, changed by Deltas.
//
// # Why
//
// A resolver sends its A and its AAAA question from one port at the same moment. Where each packet is tracked, both
// may become a connection of their own, of which one is dropped, and the client waits five seconds for an answer that
// never comes (kubernetes#56903). What is not tracked can't lose that race, nor fill the connection table.
//
// # How
//
// Without tracking nothing remembers, when an answer leaves the server, whether the client had asked the Service's
// address or the server's own. So each server listens on a port more, for queries to the Service alone: what it sends
// from there goes back under the Service's address. That port is one of the Service's, whose targetPort is a container
// port's name: EndpointSlices then list it only for pods that have it, so a server of an older version is never asked
// there. The annotation weft.dev/untracked-dns-port of the Service says which port it is.
//
// It imports model.
package dnspath
