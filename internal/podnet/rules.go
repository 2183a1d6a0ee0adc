// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableSets are the table's sets and maps.
func tableSets(t *nftables.Table) []*nftables.Set {
	addr := map[string]nftables.SetDatatype{"4": nftables.TypeIPAddr, "6": nftables.TypeIP6Addr}
	var sets []*nftables.Set
	for _, f := range []string{"4", "6"} {
		port := nftables.MustConcatSetType(addr[f], nftables.TypeInetService)
		sets = append(sets,
			&nftables.Set{Table: t, Name: "cluster" + f, Interval: true, KeyType: addr[f]},
			&nftables.Set{Table: t, Name: "own" + f, Interval: true, KeyType: addr[f]},
			&nftables.Set{Table: t, Name: "hairpin" + f, Concatenation: true, KeyType: nftables.MustConcatSetType(addr[f], addr[f])},
			&nftables.Set{Table: t, Name: "host-ports" + f, Concatenation: true, IsMap: true, DataType: port,
				KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)},
			&nftables.Set{Table: t, Name: "host-ip-ports" + f, Concatenation: true, IsMap: true, DataType: port,
				KeyType: nftables.MustConcatSetType(addr[f], nftables.TypeInetProto, nftables.TypeInetService)},
		)
	}
	for i, s := range sets {
		s.ID = uint32(i + 1) // names it within a batch; the library's own counter is not safe for concurrent use
	}
	return sets
}

// Registers: r1 is 16 bytes, and the 4-byte ones from w(0) on overlap it.
const r1 = unix.NFT_REG_1

func w(i uint32) uint32 { return unix.NFT_REG32_00 + i }

// ipFamily is where one IP family keeps its addresses.
type ipFamily struct {
	nfproto  byte
	size     uint32
	src, dst uint32 // offsets in its header
	suffix   string // of set names
}

var families = []ipFamily{
	{nfproto: unix.NFPROTO_IPV4, size: 4, src: 12, dst: 16, suffix: "4"},
	{nfproto: unix.NFPROTO_IPV6, size: 16, src: 8, dst: 24, suffix: "6"},
}

func (f ipFamily) only() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: r1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{f.nfproto}},
	}
}

func (f ipFamily) load(offset, register uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size, DestRegister: register}
}

// words is how many 4-byte registers an address fills.
func (f ipFamily) words() uint32 { return f.size / 4 }

// within matches an address field against a prefix, as nft prints it; op is for the whole.
func (f ipFamily) within(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	if p.Bits()%8 == 0 {
		return []expr.Any{
			&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(p.Bits() / 8), DestRegister: r1},
			&expr.Cmp{Op: op, Register: r1, Data: p.Addr().AsSlice()[:p.Bits()/8]},
		}
	}
	return []expr.Any{
		f.load(offset, r1),
		&expr.Bitwise{SourceRegister: r1, DestRegister: r1, Len: f.size, Mask: ipNet(p).Mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: op, Register: r1, Data: p.Addr().AsSlice()},
	}
}

func linkName(key expr.MetaKey, op expr.CmpOp, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: r1},
		&expr.Cmp{Op: op, Register: r1, Data: []byte(prefix)},
	}
}

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

var (
	accept = verdict(expr.VerdictAccept, "")
	drop   = verdict(expr.VerdictDrop, "")
)

// addChains replaces the rules of the table's chains.
func addChains(c *nftables.Conn, t *nftables.Table) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept
		ch := &nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: prio}
		if hook != nil {
			ch.Policy = &policy
		}
		c.AddChain(ch)
		c.FlushChain(ch)
		return ch
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		var es []expr.Any
		for _, p := range parts {
			es = append(es, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: es})
	}
	is := func(e ...expr.Any) []expr.Any { return e }
	v4, v6 := families[0], families[1]

	from := chain("from-pods", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	rule(from, linkName(expr.MetaKeyIIFNAME, expr.CmpOpNeq, podLinkPrefix), is(accept))
	rule(from, v4.only(), v4.within(v4.dst, netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpEq), is(drop))
	// Without an address there is only duplicate address detection (RFC 4862), and what joins its group.
	rule(from, v6.only(), is(
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{unix.IPPROTO_ICMPV6}},
		v6.load(v6.src, r1), &expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: make([]byte, 16)}, accept))
	rule(from, v6.only(), v6.within(v6.src, netip.MustParsePrefix("fe80::/10"), expr.CmpOpEq), is(accept))
	rule(from, is(
		&expr.Fib{Register: r1, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: make([]byte, 4)},
		drop))

	// The route says "unreachable" where there is no such pod. New connections fail at that; established ones take it
	// for a passing trouble and go on for a quarter of an hour.
	gone := chain("gone", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityFilter)
	for _, f := range families {
		rule(gone, f.only(), is(
			f.load(f.dst, r1),
			&expr.Lookup{SourceRegister: r1, SetName: "own" + f.suffix},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: r1},
			&expr.Bitwise{SourceRegister: r1, DestRegister: r1, Len: 1, Mask: []byte{0x02}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{0}}, // no SYN
			&expr.Fib{Register: r1, FlagDADDR: true, ResultOIF: true, FlagPRESENT: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: make([]byte, 4)},
			&expr.Fib{Register: r1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: r1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}))
	}

	to := chain("to-host-port", "", nil, nil)
	for _, f := range families {
		rule(to, f.only(), is(
			f.load(f.dst, r1),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: w(f.words())},
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: w(f.words() + 1)},
			&expr.Lookup{SourceRegister: r1, DestRegister: r1, IsDestRegSet: true, SetName: "host-ip-ports" + f.suffix},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: r1, RegProtoMin: w(f.words())}))
	}
	for _, f := range families {
		rule(to, f.only(), is(
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r1},
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: w(1)},
			&expr.Lookup{SourceRegister: r1, DestRegister: r1, IsDestRegSet: true, SetName: "host-ports" + f.suffix},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: r1, RegProtoMin: w(f.words())}))
	}
	for _, ch := range []*nftables.Chain{
		chain("host-ports", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
		chain("host-ports-node", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
	} {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
			rule(ch, is(
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{proto}},
				&expr.Fib{Register: r1, FlagDADDR: true, ResultADDRTYPE: true},
				&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
				verdict(expr.VerdictGoto, to.Name)))
		}
	}

	out := chain("outbound", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, f := range families {
		rule(out, f.only(), is(
			f.load(f.src, r1), f.load(f.dst, w(f.words())),
			&expr.Lookup{SourceRegister: r1, SetName: "hairpin" + f.suffix},
			&expr.Masq{}))
	}
	rule(out, v4.only(), v4.within(v4.src, netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpEq),
		linkName(expr.MetaKeyOIFNAME, expr.CmpOpEq, podLinkPrefix), is(&expr.Masq{}))
	rule(out, linkName(expr.MetaKeyIIFNAME, expr.CmpOpNeq, podLinkPrefix), is(accept))
	rule(out, linkName(expr.MetaKeyOIFNAME, expr.CmpOpEq, podLinkPrefix), is(accept))
	for i, multicast := range []string{"224.0.0.0/4", "ff00::/8"} {
		f := families[i]
		rule(out, f.only(), is(f.load(f.dst, r1), &expr.Lookup{SourceRegister: r1, SetName: "cluster" + f.suffix, Invert: true}),
			f.within(f.dst, netip.MustParsePrefix(multicast), expr.CmpOpNeq), is(&expr.Masq{}))
	}

	mss := chain("tunnel-mss", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityMangle)
	rule(mss, linkName(expr.MetaKeyOIFNAME, expr.CmpOpEq, tunnelPrefix), is(
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: r1},
		&expr.Bitwise{SourceRegister: r1, DestRegister: r1, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r1, Data: []byte{0x02}}, // SYN without RST
		&expr.Rt{Register: r1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: r1, DestRegister: r1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{Op: expr.ExthdrOpTcpopt, Type: 2, Offset: 2, Len: 2, SourceRegister: r1}))
}
