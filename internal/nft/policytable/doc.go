// SPDX-License-Identifier: Apache-2.0

// Package policytable keeps a policy.Program in the kernel: it owns the nftables table "inet weft-policy" and nothing
// else. It imports policy, model, nft, and what it needs to hear of packets.
//
// # Hooks
//
//	chain    hook     priority  what it sees
//	forward  forward  filter    every packet between a pod and anything but its own node: destinations after the
//	                            Service's address was replaced (dstnat, -100), sources before masquerading (srcnat, 100)
//	input    input    filter    packets from a pod to its own node: only the pod's egress is asked
//
// There is no output chain: what a node itself sends to its own pods, such as kubelet's probes, is never asked about.
//
// # A packet's way
//
//  1. Replies, and what relates to an admitted connection (ICMP errors), are accepted at once; so is what the node's
//     own DNS server answers without connection tracking, which has a mark. Where policies go by domain name, a
//     resolver's answer to a pod that they guard is held instead, and sent on when its addresses are in the sets.
//  2. A pod that talks to itself through a Service is accepted (set self4, self6).
//  3. A TCP packet that belongs to no known connection and does not open one is dropped if it comes from or goes to
//     a guarded pod: a connection that a stricter policy cut can't come back by the server's next packet.
//  4. The source's address leads, by one lookup in out4 or out6, to the chain of its egress policies. What comes
//     to the node from a link-local address is led there by its link (map links), every packet of it; neighbour
//     discovery passes.
//  5. The destination's address leads, by in4 or in6, to the chain of its ingress policies.
//  6. What nobody objects to is accepted, which leaves other tables free to drop it.
//
// A drop is counted, and logged (a few a second for each chain) to a netlink group with the chain's name as prefix.
//
// # Owner
//
// Where the kernel can (Linux 6.9: NFT_TABLE_F_OWNER with NFT_TABLE_F_PERSIST) the table belongs to this process's
// netlink socket, so that a firewall's reload, which flushes the whole ruleset, opens nothing. It stays when the
// process ends, and the next one takes it over as it is. Two agents of one node can't be at work at a time: the second
// waits for the first one's end.
//
// # Changes
//
// A Change is one transaction. Where the socket's buffer can't be as large as that takes (in a user namespace) it is
// sent as several, in an order in which every part of the way is safe: new sets and chains, then what leads to them,
// then the removal of what nothing leads to. An agent that starts takes over the table it finds and changes only
// what differs.
package policytable
