// SPDX-License-Identifier: Apache-2.0

// Package announce makes a link's other hosts send LoadBalancer addresses' packets to this node: it answers ARP
// (RFC 826, RFC 5227) and Neighbor Discovery (RFC 4861) for the addresses that are this node's to announce, and
// agrees with the other nodes on whose they are. The addresses are on no interface; the service tables take the
// packets from there.
//
// # One announcer, always
//
// Every node knows from the API who may announce an address (addresses.Electorate) and comes to the same owner
// without a word (addresses.Owner). What it must hear from the others is that they live. So each node that has
// anything to say sends a hello to the broadcast address of each link four times a second (see hello.go): who it is,
// and which addresses it announces there. That is the very medium on which two announcers would fight: who can fight
// can hear. A node that was not heard for 1.25 s is dead to the others, who take its addresses over at once.
//
//   - Nobody takes an address while someone living announces it. The node whose it has become says in its hellos that
//     it wishes for it; the old owner, who comes to the same conclusion, lets go then and says so at once. Who may
//     announce an address never lets go of it before it is asked: there is no moment with two announcers, nor, but for
//     two frames on their way, with none. Only if the old owner does not let go within a second (it may see an older
//     state of the API) is the address claimed all the same, and the two, who now hear each other's claims, settle by
//     one rule: who has the older picture of the API lets go, else the one that the address's hash ranks lower.
//   - A node that has just started listens before it claims, for a bit over two hellos. Nobody gives it an address
//     before it is through with that, and nobody takes one from it that it is about to claim.
//   - An address that moves breaks the connections that are open, as only the node that had it knows where each of them
//     goes. A node goes on forwarding when its agent dies. So whoever falls silent is probed: its kernel is asked
//     for an address of the node's own, by unicast. While that answers, the node keeps what it has: who would take an
//     address over stands in for it, and answers requests for the address with the other node's Ethernet address. That ends
//     when the agent has returned and claims the address, when it stays away for a minute (its tables grow old), or
//     when somebody living may serve the address better; and the node is dead 1.25 s after its last answer.
//     Who stands in tells those who start meanwhile, and have not heard the other's agent, what they are not to claim.
//   - A node whose Service tables are not in force says so, and is as dead to the others, who take what it has; it
//     lets go as soon as one does. Until somebody does, it goes on: nobody else may be there.
//   - A link that was split and heals has two announcers until the first hello, and then one, which says so again to
//     all hosts. What it says to all hosts, it says several times, as a packet may be lost.
//
// Links are independent: an address may have an announcer on each of two links that can't hear each other.
//
// Hellos carry a code that only those who can read the cluster's API can make (see hello.go), travel outside IP, and
// pass no router; no pod can send one, as pods' links are not listened to.
//
// It imports addresses, model and the netlink and socket libraries; no other room.
package announce

import "time"

// The protocol's times.
const (
	helloEvery  = 250 * time.Millisecond
	deadAfter   = 1250 * time.Millisecond // since the last hello, or the last answer of a node whose agent is away
	silentAfter = 550 * time.Millisecond  // since the last hello, when a node is first probed: two hellos and a bit
	awayFor     = time.Minute             // that an agent may be away: longer than an upgrade takes that has an image to pull
	settleTime  = 550 * time.Millisecond  // of listening, before the first claim: two hellos and a bit
	patience    = time.Second             // with a node that should let go
	holdDown    = 30 * time.Second        // of one that had to let go though it was sure; doubled each time
	maxHold     = 5 * time.Minute
)

// repeats are when an address is announced to all hosts after it was claimed, counted from there: at once, and again
// in case that was lost. RFC 5227 asks for at least two.
var repeats = []time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}
