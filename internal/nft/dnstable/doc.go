// SPDX-License-Identifier: Apache-2.0

// Package dnstable keeps the paths of package dnspath in the kernel: two nftables tables, "ip weft-dns" and
// "ip6 weft-dns", of the same shape. They carry queries to the cluster's DNS Service to the node's own server, and its
// answers back, without connection tracking.
//
// # Hooks
//
//	chain          hook         priority  does
//	prerouting     prerouting   raw       a pod's query: not tracked, goes to the server; the server's answer: not
//	                                      tracked, marked
//	output         output       raw       the same for a query of the node itself, and for answers that it held back
//	postrouting    postrouting  srcnat    a query that is through all filters: to the server's port for untracked
//	                                      queries; an answer: from the Service's address
//	input          input        srcnat    an answer to the node itself: from the Service's address
//
// All chains between raw and srcnat, those of policies among them, see what they would see of a tracked query: the
// client, and the server at the port that the Service stands for. What they see of an answer is its mark: bit 13
// (0x2000), which no pod can set, on what comes from a server's port for untracked queries, through the link that
// leads to that server. It is taken off when the answer has got its source.
//
// # Layout
//
//	queries   ClusterIP, port 53 -> server   those that a ready server of this node takes
//	targets   server, port 53 -> port        the port that the Service's stands for
//	ports     server, that port -> port      where it takes untracked ones
//	answers   server, that port -> ClusterIP where its answers come from
//	servers   server                         whose own queries go the common way, as those to itself must
//
// All but queries hold every server of the node that is listed, ready or not, for the sake of what is under way.
//
// Where there is no element, a query goes on to the tables of Services: that is how it falls over to another node's
// server. TCP always does, for there a change of server would break the connection.
//
// It imports nft and dnspath.
package dnstable
