// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// Family is the protocol family of a table.
type Family uint8

// The families that weft uses.
const (
	Inet Family = unix.NFPROTO_INET
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// String is the nft tool's spelling.
func (f Family) String() string {
	switch f {
	case Inet:
		return "inet"
	case IPv4:
		return "ip"
	case IPv6:
		return "ip6"
	}
	return "unknown"
}

// Table names a table.
type Table struct {
	Family Family
	Name   string
}

// String is the nft tool's spelling: "ip weft-services".
func (t Table) String() string { return t.Family.String() + " " + t.Name }

// Hook attaches a base chain to netfilter.
type Hook struct {
	Type     string // "filter", "nat" or "route"
	Num      uint32 // unix.NF_INET_PRE_ROUTING and its siblings
	Priority int32
}

// Chain is a chain; one with a Hook is a base chain, its policy accept.
type Chain struct {
	Table Table
	Name  string
	Hook  *Hook
}

// Set is a set or, where Data has fields, a map. It is compared by pointer: make one of each.
type Set struct {
	Table   Table
	Name    string
	Key     Type
	Data    Type // empty for a plain set
	Flags   SetFlags
	Timeout time.Duration // the default of elements; 0 is none
	Size    uint32        // the most elements; 0 is unlimited
	Comment string
}

// SetFlags say how a set is used (uapi NFT_SET_*).
type SetFlags uint32

// The flags of sets.
const (
	Interval SetFlags = unix.NFT_SET_INTERVAL
	Timeouts SetFlags = unix.NFT_SET_TIMEOUT
	Dynamic  SetFlags = unix.NFT_SET_EVAL // rules add elements
)

const (
	setConcat       = 0x80 // NFT_SET_CONCAT
	setDescConcat   = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen     = 1    // NFTA_SET_FIELD_LEN
	setElemKeyEnd   = 10   // NFTA_SET_ELEM_KEY_END
	setUserdata     = 13   // NFTA_SET_USERDATA
	tableUserdata   = 6    // NFTA_TABLE_USERDATA
	tableOwnerPort  = 7    // NFTA_TABLE_OWNER
	tableOwner      = 0x2  // NFT_TABLE_F_OWNER
	tablePersist    = 0x4  // NFT_TABLE_F_PERSIST, Linux 6.9
	verdictDataType = 0xffffff00
)

// User data types of the nft tool.
const (
	udataTableComment = 0
	udataRuleComment  = 0
	udataElemComment  = 0

	udataSetKeyOrder   = 0
	udataSetDataOrder  = 1
	udataSetKeyTypeof  = 3
	udataSetDataTypeof = 4
	udataSetComment    = 7
)

// Type is a data type or a concatenation of several.
type Type []Field

// Field is one component of a Type.
type Field struct {
	id     uint32 // the nft tool's number of the type
	length int    // bytes
	typeof []byte // where the type alone does not give the tool the length: what it is the type of
}

// The types that weft's sets are made of. Slot is the random number that chooses an endpoint; unlike the others it
// has the machine's byte order.
var (
	IPv4Addr  = Field{id: 7, length: 4, typeof: typeofPayload(12, 12)}
	IPv6Addr  = Field{id: 8, length: 16, typeof: typeofPayload(13, 9)}
	Proto     = Field{id: 12, length: 1, typeof: typeofMeta(unix.NFT_META_L4PROTO)}
	Port      = Field{id: 13, length: 2, typeof: typeofPayload(11, 2)}
	Mark      = Field{id: 19, length: 4, typeof: typeofMeta(unix.NFT_META_MARK)}
	Interface = Field{id: 41, length: 16, typeof: typeofMeta(unix.NFT_META_IIFNAME)}
	Priority  = Field{id: 23, length: 4, typeof: typeofMeta(unix.NFT_META_PRIORITY)}
	Slot      = Field{id: 4, length: 4, typeof: typeofNumgen()}
	Verdict   = Field{id: 1}
)

// Addr is the address type of a family.
func Addr(f Family) Field {
	if f == IPv6 {
		return IPv6Addr
	}
	return IPv4Addr
}

func (t Type) verdict() bool { return len(t) == 1 && t[0].id == Verdict.id }

// Len is the length in bytes; each component of a concatenation fills whole registers of four.
func (t Type) Len() int {
	if len(t) == 1 {
		return t[0].length
	}
	n := 0
	for _, f := range t {
		n += (f.length + 3) &^ 3
	}
	return n
}

// id is the nft tool's number: six bits a component.
func (t Type) id() uint32 {
	if t.verdict() {
		return verdictDataType
	}
	var id uint32
	for _, f := range t {
		id = id<<6 | f.id
	}
	return id
}

// host tells whether the type is a number in the machine's byte order, which the tool must be told.
func (t Type) host() bool { return len(t) == 1 && (t[0].id == Priority.id || t[0].id == Mark.id) }

// typeof is the user data from which the tool learns what the type is the type of, for which it keeps the tool's
// own numbers of expressions and headers. It is nil where the type's number says it all.
func (t Type) typeof() []byte {
	need := false
	for _, f := range t {
		need = need || f.id == Slot.id
	}
	if !need {
		return nil
	}
	const exprConcat = 13
	var list []byte
	for i, f := range t {
		list = appendUserData(list, byte(i), f.typeof)
	}
	return typeofExpr(exprConcat, list)
}

// typeofExpr, -Payload, -Meta and -Numgen describe an expression in the nft tool's user data.
func typeofExpr(expr uint32, body []byte) []byte {
	return appendUserData(appendUserData(nil, 0, binary.NativeEndian.AppendUint32(nil, expr)), 1, body)
}

func typeofPayload(header, field uint32) []byte {
	const exprPayload = 7
	b := appendUserData(nil, 0, binary.NativeEndian.AppendUint32(nil, header))
	return typeofExpr(exprPayload, appendUserData(b, 1, binary.NativeEndian.AppendUint32(nil, field)))
}

func typeofMeta(key uint32) []byte {
	const exprMeta = 9
	return typeofExpr(exprMeta, appendUserData(nil, 0, binary.NativeEndian.AppendUint32(nil, key)))
}

func typeofNumgen() []byte {
	const exprNumgen = 23
	b := appendUserData(nil, 0, binary.NativeEndian.AppendUint32(nil, unix.NFT_NG_RANDOM))
	b = appendUserData(b, 1, binary.NativeEndian.AppendUint32(nil, 2))
	return typeofExpr(exprNumgen, appendUserData(b, 2, binary.NativeEndian.AppendUint32(nil, 0)))
}

// The final verdicts (uapi linux/netfilter.h).
const (
	nfDrop   = 0
	nfAccept = 1
)
