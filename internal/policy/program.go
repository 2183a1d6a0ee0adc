// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Program is what one node's kernel has to run: which of its pods' addresses are isolated, and the chains and sets
// that decide about them.
//
// Names are derived from contents: a chain's rules, and the members of a set that isn't Mutable, never change under
// a name; but a PortMap's is derived from the names of the policies that it stands for, so that an edit of one of many
// changes a few of its elements. A packet is looked at in this order, which every adapter has to keep:
//
//  1. replies, and what relates to an admitted connection, pass
//  2. the source address leads to its Egress chain, the destination address to its Ingress chain
//  3. an address that has no such chain is open in that direction
//
// What comes from an IPv6 link-local address (RFC 4291) can only be for the node itself, and the address is whatever the
// pod likes: the link that it comes by leads to the Egress chain, and neighbour discovery passes.
type Program struct {
	Pods   map[netip.Addr]Entry
	Links  map[string]string // nodes' ends of pods' links to Egress chains; those of open pods are not listed
	Chains map[string]*Chain
	Sets   map[string]*Set
}

// Entry is the pair of chains that guard a pod's address; "" is an open direction. An address with an Entry is
// isolated in at least one.
type Entry struct {
	Ingress, Egress string
}

// Chain is a list of rules, tried in order. A packet that reaches the end goes on after the rule that jumped here.
type Chain struct {
	Name      string
	Direction Direction // which address is the peer's: the source for Ingress, the destination for Egress
	Rules     []Rule
}

// Rule applies its Op to packets that match all the sets it names.
type Rule struct {
	Peer   string // a set of kind Addrs or Nets: the peer's address is in it
	Ports  string // a set of kind Ports: protocol and destination port are in it
	Named  string // a set of kind Named: destination address, protocol and port are in it
	Op     Op
	Target string // Jump, Goto: the chain. Lookup: the set of kind PortMap or RangeMap
}

// Op is what a rule does.
type Op uint8

// The ops.
const (
	Admit  Op = iota // this direction is settled: an egress goes on to the destination's ingress, an ingress passes
	Return           // back to the chain that jumped here
	Jump
	Goto
	Lookup // jump to the chain that the PortMap or RangeMap holds for protocol and port, or admit; go on if it holds none
	Drop   // and say so, with the chain's name
)

// SetKind says what a set holds.
type SetKind uint8

// The kinds of sets.
const (
	Addrs    SetKind = iota // Members: addresses. Mutable
	Named                   // Members: address, protocol, port. Mutable
	Nets                    // Ranges
	Ports                   // Ports, disjoint within a protocol
	PortMap                 // Ports with Target, each a single one: a hash table finds it, however many there are
	RangeMap                // Ports with Target, disjoint within a protocol
)

// Set is a set of both families.
type Set struct {
	Name      string
	Kind      SetKind
	Comment   string    // for a person who reads the kernel's tables: the selectors that it stands for
	Direction Direction // PortMap and RangeMap: what admitting means
	Members   map[Member]struct{}
	Ranges    []Range
	Ports     []PortRange

	wants func(Endpoint) []Member // Mutable kinds: what an address contributes
	scope string                  // the only namespace whose pods can be members; "" if there is no such
	nodes bool                    // nodes' addresses may be members
	names bool                    // what names resolve to may be members
	terms []term                  // Addrs: those that it stands for
}

// Mutable tells whether the set's members change under its name.
func (s *Set) Mutable() bool { return s.Kind == Addrs || s.Kind == Named }

// Member is an element of a Mutable set.
type Member struct {
	Addr     netip.Addr
	Protocol model.Protocol // Named only
	Port     uint16         // Named only
}

// Change is how a Program changed.
type Change struct {
	Chains  map[string]*Chain   // new ones; nil: gone
	Sets    map[string]*Set     // new ones with all they hold
	Gone    map[string]SetKind  // sets that go, with their kind
	Members map[string]*Members // of sets that were there before and stay
	Ports   map[string]*Ported  // of PortMaps that were there before and stay
	Pods    map[netip.Addr]EntryChange
	Links   map[string]LinkChange

	// Tightened are the local pods' addresses whose established flows may no longer be allowed.
	Tightened map[netip.Addr]bool
}

// EntryChange is an address's Entry before and after; the zero Entry is none.
type EntryChange struct {
	Old, New Entry
}

// LinkChange is a link's Egress chain before and after; "" is none.
type LinkChange struct {
	Old, New string
}

// Members are elements that a Mutable set gained and lost.
type Members struct {
	Kind     SetKind
	Add, Del map[Member]struct{}
}

// Ported are elements that a PortMap gained and lost; one with another Target is among both.
type Ported struct {
	Direction Direction
	Add, Del  []PortRange

	old []PortRange // as it was before the Change
}

// Empty tells whether nothing changed.
func (c *Change) Empty() bool {
	return len(c.Chains)+len(c.Sets)+len(c.Gone)+len(c.Members)+len(c.Ports)+len(c.Pods)+len(c.Links) == 0
}

// name derives an object's name from what it is.
func name(prefix string, parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return prefix + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(h[:10]))
}
