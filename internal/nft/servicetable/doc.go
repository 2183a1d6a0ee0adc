// SPDX-License-Identifier: Apache-2.0

// Package servicetable keeps the Rules of package service in the kernel: two nftables tables, "ip weft-services-2" and
// "ip6 weft-services-2", of the same shape. The 2 is the layout's number.
//
// # Owner
//
// Where the kernel can (Linux 6.9), the tables have the agent's socket as their owner: nobody else can change them, and
// a flush of the whole ruleset passes them by. They outlive the agent, however it ends; then they have no owner until the
// next agent becomes it, which may also change or delete them. Two agents can't disturb each other: the second waits until
// the first has ended.
//
// # Hooks
//
//	chain          hook         priority  does
//	prerouting     prerouting   dstnat    picks an endpoint for what arrives, from pods and from outside
//	output         output       dstnat    the same for what the node itself sends
//	postrouting    postrouting  srcnat    masquerades what must come back through this node
//	loopback       output       raw       node ports on 127.0.0.1 and ::1: takes them for an alias, see loopback.go
//	loopback-undo  input        300       and back
//
// Chains of other tables that run before dstnat see the address of the Service; those after it the endpoint's. What
// is rejected or dropped ends at dstnat and has no conntrack entry.
//
// # Layout
//
// The number of chains does not depend on the number of Services. All that belongs to one Service is elements of
// maps, with the frontend as their key: address, protocol and port. A node port has the address 0.0.0.0 or ::.
//
//	services     frontend -> label          where its traffic goes; @dispatch leads there
//	admitted     frontend -> label          the same, for those whom @sources admits to a "restricted" frontend
//	outside      frontend -> label          behind "external" and "external-local": where it goes from there
//	inside       frontend -> label          behind "external-local": for pods of this node and the node itself
//	rows         frontend, slot -> the endpoints of this slot and the next ones, and their port
//	endpoints    frontend, slot -> endpoint, where the endpoints have several ports
//	sources      frontend, ranges of clients
//
// and with session affinity, in place of endpoints, which a number stands for that means the same endpoint for as
// long as there is one:
//
//	ids            frontend, slot -> number
//	stay           frontend, number -> endpoint
//	stay-inside    the same, for those inside
//	service-ports  frontend -> frontend of the cluster IP, by which its Service port is known
//	affinity       client, Service port -> number    written by the kernel, with a timeout
//
// All frontends of a Service port know an endpoint by the same number. So a client that uses another of them stays where
// it was, unless the traffic policy leaves that endpoint out. An endpoint that goes takes its clients' affinity along in
// the transaction in which it goes, and an agent's restart changes none.
//
// Labels: "reject", "drop", "external" (masquerade, then outside), "external-local", "restricted", or "pick-N", a
// chain for each number of endpoints, which draws a slot below N and goes to "slot-P", P being the slot's place in
// its row: that looks the row up and takes its endpoint number P. A row has 4 endpoints in IPv4, 2 in IPv6: what a
// full sync takes depends on the number of elements, hardly on their size. "mix-N" looks an endpoint up by itself.
// With session affinity it is "st-N-T", T being the seconds. "in-N", "mi-N" and "si-N-T" are the same for inside,
// whose slots start higher up. A prime at the end marks the spare slots, higher up again: a change too big for one
// transaction writes its endpoints there first; then one label changes.
//
// In the maps a label is a number, ":0012" being pick-12; the maps dispatch, admit and picks tell which chain each
// number is. That is for the sake of time: if a map of every Service led to chains by itself, the kernel would walk
// all of it, in search of loops, whenever one Service changed (5 ms at 50,000 Services; 0.02 ms this way). Within a
// rule the number goes through the packet priority, since that is the way in which old releases of the nft tool can
// print it, on the first packet of a connection only. A label is below 2^16, which no traffic class is; it, and the
// slot or number that takes its place there, are cleared before the packet goes on.
//
// # Mark
//
// Bit 12 of the packet mark (0x1000) marks what postrouting is to masquerade, and is taken off there. Others may see
// it on the first packet of a connection between dstnat and srcnat.
//
// It imports nft, service and model.
package servicetable
