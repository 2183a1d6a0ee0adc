// SPDX-License-Identifier: Apache-2.0

// Package servicetable keeps the Rules of package service in the kernel: two nftables tables, "ip weft-services" and
// "ip6 weft-services", of the same shape.
//
// # Hooks
//
//	chain        hook         priority  does
//	guard        prerouting   raw       keeps others out of 127.0.0.0/8 (ip only)
//	prerouting   prerouting   dstnat    picks an endpoint for what arrives, from pods and from outside
//	output       output       dstnat    the same for what the node itself sends
//	postrouting  postrouting  srcnat    masquerades what must come back through this node
//
// Chains of other tables that run before dstnat see the address of the Service; those after it the endpoint's. What
// is rejected or dropped ends at dstnat and has no conntrack entry.
//
// # Layout
//
// The number of chains does not depend on the number of Services. All that belongs to one Service is elements of
// maps, with the frontend as their key: address, protocol and port. A node port has the address 0.0.0.0 or ::.
//
//	services   frontend -> label        where its traffic goes; @dispatch leads there
//	admitted   frontend -> label        the same, for sources that @sources admits to a "restricted" frontend
//	outside    frontend -> label        behind "external" and "external-local": where it goes from there
//	inside     frontend -> label        behind "external-local": for pods of this node and the node itself
//	endpoints  frontend, slot -> endpoint
//	members    frontend, endpoint       the endpoints among which session affinity may keep a client
//	members-inside                      the same for those inside
//	affinity   client, frontend -> endpoint   written by the kernel, with a timeout; never by the agent
//	sources    frontend, client ranges
//
// A label is a word: "reject", "drop", "external" (masquerade, then outside), "external-local", "restricted", or
// "pick-N": one chain for each number of endpoints, that draws a slot below N and looks the endpoint up. With
// session affinity it is "st-N-T", T being the seconds. "in-N" and "si-N-T" are the same for inside, whose slots
// start higher up; and a prime at the end marks the spare range of slots, used when a change is too big for one
// transaction: the new endpoints are written there first, then one label changes.
//
// Labels are plain data and not verdicts, so that the kernel need not walk every Service for loops whenever one of
// them changes; only the few elements of @dispatch, @picks and @admit lead to chains.
//
// # Mark
//
// Bit 12 of the packet mark (0x1000) marks what postrouting is to masquerade, and is taken off there. Others may see
// it on the first packet of a connection between dstnat and srcnat.
//
// It imports nft, service and model.
package servicetable
