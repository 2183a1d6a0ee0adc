// SPDX-License-Identifier: Apache-2.0

package dnstable

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nft"
)

// TableName is the name of both tables.
const TableName = "weft-dns"

// AnswerMark is the packet mark bit of an answer that was not tracked.
const AnswerMark = 0x2000

// priorityRaw and -SNAT are netfilter's own places for these jobs (uapi NF_IP_PRI_*).
const (
	priorityRaw  = -300
	prioritySNAT = 100
)

// Registers of four bytes: a key, and behind it (IPv6 has the longer ones) what it leads to.
const (
	keyReg   = unix.NFT_REG32_00
	valueReg = unix.NFT_REG32_00 + 5
)

// family is one of the two tables.
type family struct {
	table                                     nft.Table
	words                                     uint32 // of an address, in registers
	source, dest                              uint32 // where the header has the addresses
	queries, targets, ports, answers, servers *nft.Set
}

func newFamily(f nft.Family) *family {
	t := nft.Table{Family: f, Name: TableName}
	addr := nft.Addr(f)
	pair := nft.Type{addr, nft.Port}
	set := func(name string, key, data nft.Type, text string) *nft.Set {
		return &nft.Set{Table: t, Name: name, Key: key, Data: data, Comment: text}
	}
	out := &family{
		table: t, words: 1, source: 12, dest: 16,
		queries: set("queries", pair, nft.Type{addr}, "the DNS Service, and this node's server"),
		targets: set("targets", pair, nft.Type{nft.Port}, "a server, and its port that the Service's stands for"),
		ports:   set("ports", pair, nft.Type{nft.Port}, "where a server takes untracked queries"),
		answers: set("answers", pair, nft.Type{addr}, "where a server's answers come from"),
		servers: set("servers", nft.Type{addr}, nil, "this node's servers"),
	}
	if f == nft.IPv6 {
		out.words, out.source, out.dest = 4, 8, 24
	}
	return out
}

func (f *family) sets() []*nft.Set {
	return []*nft.Set{f.queries, f.targets, f.ports, f.answers, f.servers}
}

type chain struct {
	name  string
	hook  nft.Hook
	rules []rule
}

type rule struct {
	text  string
	exprs []expr.Any
}

// Where UDP has the ports.
const (
	sourcePort = 0
	destPort   = 2
)

// queryPort is the Service's port (package dnspath).
const queryPort = 53

func (f *family) chains() []chain {
	count := &expr.Counter{}
	query := rule{"queries to the node's own server", slices.Concat(udp(),
		one(f.load(keyReg, f.source)), one(&expr.Lookup{SourceRegister: keyReg, SetName: f.servers.Name, Invert: true}),
		f.setAddr(f.dest, destPort, f.queries), one(&expr.Notrack{}), f.setPort(f.dest, destPort, f.targets), one(count),
	)}
	answer := rule{"answers of the node's own server", slices.Concat(udp(), f.in(f.source, sourcePort, f.answers), []expr.Any{
		&expr.Fib{Register: keyReg, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: keyReg, Data: []byte{1}},
	}, one(&expr.Notrack{}), mark(^uint32(AnswerMark), AnswerMark), one(count))}
	// An answer may be held back, and sent by the node in the server's place when the addresses in it are admitted (see
	// policytable): it has the mark, and comes by another way.
	held := rule{"answers that the node held back", slices.Concat(udp(), marked(), f.in(f.source, sourcePort, f.answers), one(&expr.Notrack{}))}
	restore := rule{"answers: from the Service's address", slices.Concat(udp(), marked(), f.setAddr(f.source, sourcePort, f.answers), []expr.Any{
		&expr.Immediate{Register: valueReg, Data: binary.BigEndian.AppendUint16(nil, queryPort)},
		nft.NewRewrite(valueReg, expr.PayloadBaseTransportHeader, sourcePort, 2),
	}, mark(^uint32(AnswerMark), 0))}
	arrive := rule{"queries: to the port for those untracked", slices.Concat(udp(), untracked(), f.setPort(f.dest, destPort, f.ports))}
	return []chain{
		{"prerouting", nft.Hook{Type: "filter", Num: unix.NF_INET_PRE_ROUTING, Priority: priorityRaw}, []rule{query, answer}},
		{"output", nft.Hook{Type: "route", Num: unix.NF_INET_LOCAL_OUT, Priority: priorityRaw}, []rule{query, held}},
		{"postrouting", nft.Hook{Type: "filter", Num: unix.NF_INET_POST_ROUTING, Priority: prioritySNAT}, []rule{arrive, restore}},
		{"input", nft.Hook{Type: "filter", Num: unix.NF_INET_LOCAL_IN, Priority: prioritySNAT}, []rule{restore}},
	}
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func udp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: keyReg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: keyReg, Data: []byte{unix.IPPROTO_UDP}},
	}
}

func untracked() []expr.Any {
	return has(&expr.Ct{Key: expr.CtKeySTATE, Register: keyReg}, expr.CtStateBitUNTRACKED)
}

func marked() []expr.Any { return has(&expr.Meta{Key: expr.MetaKeyMARK, Register: keyReg}, AnswerMark) }

// has matches where what is loaded to keyReg has a bit.
func has(load expr.Any, bit uint32) []expr.Any {
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: keyReg, DestRegister: keyReg, Len: 4, Mask: native32(bit), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: keyReg, Data: native32(0)},
	}
}

// mark keeps some bits of the packet mark and sets others.
func mark(keep, set uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: keyReg},
		&expr.Bitwise{SourceRegister: keyReg, DestRegister: keyReg, Len: 4, Mask: native32(keep), Xor: native32(set)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: keyReg},
	}
}

func (f *family) load(reg, at uint32) *expr.Payload {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: 4 * f.words}
}

// key loads an address and a port.
func (f *family) key(addr, port uint32) []expr.Any {
	return []expr.Any{
		f.load(keyReg, addr),
		&expr.Payload{DestRegister: keyReg + f.words, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
	}
}

// in matches packets whose address and port a map has.
func (f *family) in(addr, port uint32, m *nft.Set) []expr.Any {
	return append(f.key(addr, port), &expr.Lookup{SourceRegister: keyReg, SetName: m.Name})
}

func (f *family) lookup(addr, port uint32, m *nft.Set) []expr.Any {
	return append(f.key(addr, port), &expr.Lookup{SourceRegister: keyReg, SetName: m.Name, IsDestRegSet: true, DestRegister: valueReg})
}

// setAddr puts what a map has for an address and port in the place of the address; without, the rule does not match.
// Checksums follow, here and with setPort; one that is left out, as IPv4 allows, stays so.
func (f *family) setAddr(addr, port uint32, m *nft.Set) []expr.Any {
	var write expr.Any = nft.NewRewrite(valueReg, expr.PayloadBaseNetworkHeader, addr, 4*f.words)
	if f.table.Family == nft.IPv4 {
		write = &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: valueReg, Base: expr.PayloadBaseNetworkHeader,
			Offset: addr, Len: 4, CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}
	}
	return append(f.lookup(addr, port, m), write)
}

// setPort does so in the place of the port.
func (f *family) setPort(addr, port uint32, m *nft.Set) []expr.Any {
	return append(f.lookup(addr, port, m), nft.NewRewrite(valueReg, expr.PayloadBaseTransportHeader, port, 2))
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// appendPair is an address and a port as a key or value.
func appendPair(b []byte, ap netip.AddrPort) []byte {
	return append(binary.BigEndian.AppendUint16(append(b, ap.Addr().AsSlice()...), ap.Port()), 0, 0)
}
