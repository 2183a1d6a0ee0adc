// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/service"
)

// TableName is the name of both tables. A layout that can't take over the elements of the one before gets a name of
// its own, so that it can be filled beside the old one and put in its place in one transaction.
const TableName = firstName + "-2"

// firstName is what all names of tables begin with, and is the name of the first layout's.
const firstName = "weft-services"

// chainPrerouting is the base chain by which what arrives comes to the tables: those that have it are in force.
const chainPrerouting = "prerouting"

// MasqueradeMark is the packet mark bit that asks postrouting to masquerade.
const MasqueradeMark = 0x1000

// nodePortPrefix starts the names of chains that look up node ports instead of addresses.
const nodePortPrefix = "nodeport-"

// maxAffinity bounds the clients that are remembered; beyond it new ones are not kept at their endpoint.
const maxAffinity = 1 << 20

// priorityRaw, -DNAT and -SNAT are netfilter's own places for these jobs (uapi NF_IP_PRI_*).
const (
	priorityRaw  = -300
	priorityDNAT = -100
	prioritySNAT = 100
)

// family is one of the two tables: its sets, and how its keys are made.
type family struct {
	table nft.Table
	bits  int // of an address: 32 or 128

	services, admitted, outside, inside *nft.Set
	rows, endpoints                     *nft.Set
	ids, stay, stayInside, affinity     *nft.Set
	ports                               *nft.Set
	sources                             *nft.Set
	clusterIPs, hairpin                 *nft.Set
	pods, serviceRanges, nodePortRanges *nft.Set
	dispatch, admit, picks              *nft.Set
	nodePortDispatch, nodePortPicks     *nft.Set
	slot, nodePortSlot                  *nft.Set
}

func newFamily(f nft.Family) *family {
	t := nft.Table{Family: f, Name: TableName}
	addr := nft.Addr(f)
	fe := nft.Type{addr, nft.Proto, nft.Port}
	with := func(fields ...nft.Field) nft.Type { return append(append(nft.Type{}, fe...), fields...) }
	set := func(name string, key, data nft.Type, text string) *nft.Set {
		return &nft.Set{Table: t, Name: name, Key: key, Data: data, Comment: text}
	}
	ep, verdict := nft.Type{addr, nft.Port}, nft.Type{nft.Verdict}
	label, id := nft.Type{nft.Priority}, nft.Type{nft.Priority}
	out := &family{
		table:     t,
		bits:      8 * addrLen(f),
		services:  set("services", fe, label, "where the traffic of a frontend goes"),
		admitted:  set("admitted", fe, label, "the same, for sources that a restricted frontend admits"),
		outside:   set("outside", fe, label, "external frontends: where traffic goes"),
		inside:    set("inside", fe, label, "externalTrafficPolicy Local: where traffic of this node and its pods goes"),
		endpoints: set("endpoints", with(nft.Slot), ep, "frontend and slot to endpoint, where ports differ"),

		ids:        set("ids", with(nft.Slot), id, "frontend and slot to the number of an endpoint"),
		stay:       set("stay", with(nft.Priority), ep, "frontend and number to endpoint"),
		stayInside: set("stay-inside", with(nft.Priority), ep, "the same, for this node and its pods"),
		affinity:   set("affinity", append(nft.Type{addr}, fe...), id, "client and Service port to the number of its endpoint"),
		ports:      set("service-ports", fe, append(nft.Type{nft.Priority}, fe...), "frontend to that of its Service port's cluster IP; the class is none"),
		sources:    set("sources", with(addr), nil, "loadBalancerSourceRanges"),

		clusterIPs:     set("cluster-ips", nft.Type{addr}, nil, "allocated cluster IPs"),
		hairpin:        set("hairpin", nft.Type{addr, addr}, nil, "local endpoints that may reach themselves"),
		pods:           set("pods", nft.Type{addr}, nil, "this node's pods"),
		serviceRanges:  set("service-ranges", nft.Type{addr}, nil, "ranges of cluster IPs"),
		nodePortRanges: set("nodeport-addresses", nft.Type{addr}, nil, "addresses that have node ports"),

		dispatch:         set("dispatch", label, verdict, ""),
		admit:            set("admit", label, verdict, ""),
		picks:            set("picks", label, verdict, ""),
		nodePortDispatch: set("nodeport-dispatch", label, verdict, ""),
		nodePortPicks:    set("nodeport-picks", label, verdict, ""),
		slot:             set("slot", label, verdict, "place in a row"),
		nodePortSlot:     set("nodeport-slot", label, verdict, ""),
	}
	row := make(nft.Type, out.perRow(), out.perRow()+1)
	for i := range row {
		row[i] = addr
	}
	out.rows = set("rows", with(nft.Priority), append(row, nft.Port), "frontend and slot to endpoints")
	out.affinity.Flags, out.affinity.Size, out.affinity.Timeout = nft.Dynamic|nft.Timeouts, maxAffinity, 3*time.Hour
	for _, s := range []*nft.Set{out.sources, out.pods, out.serviceRanges, out.nodePortRanges} {
		s.Flags = nft.Interval
	}
	return out
}

func addrLen(f nft.Family) int {
	if f == nft.IPv6 {
		return 16
	}
	return 4
}

func (f *family) sets() []*nft.Set {
	return []*nft.Set{
		f.services, f.admitted, f.outside, f.inside, f.rows, f.endpoints, f.ids, f.stay, f.stayInside, f.affinity, f.ports, f.sources,
		f.clusterIPs, f.hairpin, f.pods, f.serviceRanges, f.nodePortRanges,
		f.dispatch, f.admit, f.picks, f.nodePortDispatch, f.nodePortPicks, f.slot, f.nodePortSlot,
	}
}

// chains are the fixed chains, targets before those that lead to them.
func (f *family) chains(cfg *service.Scope) []chain {
	vip, np := key{f, false}, key{f, true}
	toLabel := func(k key, m, v *nft.Set) []expr.Any {
		return k.load(vipReg, lookup(m, vipReg, labelReg),
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: labelReg},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: labelReg},
			lookup(v, labelReg, verdictReg))
	}
	mark := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 8},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 4, Mask: native32(^uint32(MasqueradeMark)), Xor: native32(MasqueradeMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 8},
	}
	ext := func(k key, picks *nft.Set) []rule {
		return []rule{newRule("", mark), newRule("", toLabel(k, f.outside, picks))}
	}
	extLocal := func(k key, picks *nft.Set) []rule {
		return []rule{
			newRule("pods of this node: as within the cluster", f.saddr(8), one(lookup(f.pods, 8, noReg)), toLabel(k, f.inside, picks)),
			newRule("", fibLocal(false), mark),
			newRule("the node itself: as within the cluster", fibLocal(false), toLabel(k, f.inside, picks)),
			newRule("", toLabel(k, f.outside, picks)),
		}
	}
	services := []rule{}
	if len(ofFamily(cfg.Pods, f)) > 0 {
		services = append(services, newRule("to cluster IPs from elsewhere: come back through here",
			f.daddr(8), one(lookup(f.clusterIPs, 8, noReg)), f.saddr(8), one(notIn(f.pods, 8)), mark))
	}
	services = append(services,
		newRule("", toLabel(vip, f.services, f.dispatch)),
		newRule("cluster IP without such a port", f.daddr(8), one(lookup(f.clusterIPs, 8, noReg)), one(gotoChain(labelReject))),
		newRule("the middle of a connection to a Service that was", f.daddr(8), one(lookup(f.serviceRanges, 8, noReg)), noSYN(), one(gotoChain(labelReject))),
		newRule("no Service has it", f.daddr(8), one(lookup(f.serviceRanges, 8, noReg)), one(verdict(expr.VerdictDrop))),
	)
	nodePorts := fibLocal(true)
	if len(f.withNodePorts(cfg)) > 0 {
		nodePorts = append(append(nodePorts, f.daddr(8)...), lookup(f.nodePortRanges, 8, noReg))
	}
	services = append(services, newRule("", nodePorts, one(gotoChain("nodeports"))))

	tcp := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 8},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{byte(model.TCP)}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}
	out := []chain{
		{name: labelReject, rules: []rule{newRule("", tcp), newRule("", one(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.portUnreachable()}))}},
		{name: labelExternal, rules: ext(vip, f.picks)},
		{name: labelExternalLocal, rules: extLocal(vip, f.picks)},
		{name: nodePortPrefix + labelExternal, rules: ext(np, f.nodePortPicks)},
		{name: nodePortPrefix + labelExternalLocal, rules: extLocal(np, f.nodePortPicks)},
		{name: labelRestricted, rules: []rule{
			newRule("", vip.load(vipReg), f.saddr(vipReg+uint32(f.bits/32)+2), one(lookup(f.sources, vipReg, noReg)), toLabel(vip, f.admitted, f.admit)),
			newRule("", one(verdict(expr.VerdictDrop))),
		}},
		{name: "nodeports", rules: []rule{newRule("", toLabel(np, f.services, f.nodePortDispatch))}},
		{name: "services", rules: services},
		{name: chainPrerouting, hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_PRE_ROUTING, Priority: priorityDNAT}, rules: []rule{newRule("", one(gotoChain("services")))}},
		{name: "output", hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_LOCAL_OUT, Priority: priorityDNAT}, rules: []rule{newRule("", one(gotoChain("services")))}},
		{name: "postrouting", hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_POST_ROUTING, Priority: prioritySNAT}, rules: f.postrouting()},
	}
	for i := range f.perRow() {
		out = append(out, chain{name: slotChain(i, false), rules: f.slotRules(vip, i)}, chain{name: slotChain(i, true), rules: f.slotRules(np, i)})
	}
	if f.onLoopback(cfg) {
		out = append(out, f.loopbackChains()...)
	}
	return out
}

// postrouting replaces the client's address where answers would not come back this way otherwise. It keeps the client's port
// if that is free. kube-proxy has ports drawn at random, against a race of two clients with the same port to the same
// endpoint within microseconds; but a client that uses a port again, soon after a server has closed the connection, then comes
// from another one, where the endpoint may have an older connection in TIME_WAIT (RFC 6191) whose numbers don't fit.
func (f *family) postrouting() []rule {
	mark := native32(MasqueradeMark)
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 8},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 4, Mask: mark, Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 8, Data: native32(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 8},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 4, Mask: native32(^uint32(MasqueradeMark)), Xor: native32(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 8},
		&expr.Masq{},
	}
	second := uint32(8 + f.bits/32)
	hairpin := append(append(f.saddr(8), f.daddr(second)...), lookup(f.hairpin, 8, noReg),
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 8},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 4, Mask: native32(statusDNAT), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 8, Data: native32(0)},
		&expr.Masq{},
	)
	return []rule{{"", marked}, {"a pod that reaches itself", hairpin}}
}

// statusDNAT is IPS_DST_NAT of conntrack's status.
const statusDNAT = 1 << 5

type chain struct {
	name  string
	hook  *nft.Hook
	rules []rule
}

type rule struct {
	text  string
	exprs []expr.Any
}

func newRule(text string, parts ...[]expr.Any) rule { return rule{text, slices.Concat(parts...)} }

// Registers: 8 is the first of sixteen that hold 4 bytes each.
const (
	verdictReg = 0
	noReg      = 1 << 31 // a lookup that only matches
	vipReg     = 8
	labelReg   = 16

	endpointReg = 18
	numberReg   = 23
)

// key loads the frontend of a packet: its destination, or any address for node ports.
type key struct {
	f        *family
	nodePort bool
}

// words is how many registers the key fills.
func (k key) words() uint32 { return uint32(k.f.bits/32) + 2 }

func (k key) load(reg uint32, then ...expr.Any) []expr.Any {
	words := uint32(k.f.bits / 32)
	out := k.f.daddr(reg)
	if k.nodePort {
		none := make([]byte, k.f.bits/8)
		out = append(out, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(none)), Mask: none, Xor: none})
	}
	out = append(out,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg + words},
		&expr.Payload{DestRegister: reg + words + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	return append(out, then...)
}

// pickRules are the rules of a pick's chain.
func (f *family) pickRules(p pick, nodePort bool) []rule {
	k := key{f, nodePort}
	words := uint32(f.bits / 32)
	slot := vipReg + k.words()
	number := &expr.Numgen{Register: slot, Modulus: uint32(p.n), Type: unix.NFT_NG_RANDOM, Offset: uint32(p.span)}
	if p.kind() == rows {
		slots := f.slot
		if nodePort {
			slots = f.nodePortSlot
		}
		return []rule{
			{"a slot", []expr.Any{number, setPriority(slot)}},
			{"its place in its row", []expr.Any{
				&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: slot},
				&expr.Bitwise{SourceRegister: slot, DestRegister: slot, Len: 4, Mask: native32(uint32(f.perRow() - 1)), Xor: native32(0)},
				lookup(slots, slot, verdictReg),
			}},
		}
	}
	dnat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.table.Family), RegAddrMin: endpointReg, RegProtoMin: endpointReg + words}
	reset := rule{"the label was there", []expr.Any{
		&expr.Immediate{Register: vipReg, Data: native32(0)}, setPriority(vipReg),
	}}
	if p.kind() == mixed {
		return []rule{reset, {"", k.load(vipReg, number, lookup(f.endpoints, vipReg, endpointReg), dnat)}}
	}
	stay := f.stay
	if p.inside() {
		stay = f.stayInside
	}
	// The number of the client's endpoint goes through the packet priority, as labels do.
	at := vipReg + words // the Service port's place in the key of affinity, behind the client
	fromPriority := func(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg} }
	// The nft tool can't print a key of which a part was looked up. So the tool is given the frontend to print, which is
	// where the Service port ends up; before that is what the tool takes the looked up for, and then the client.
	client := slices.Concat(k.load(at, lookup(f.ports, at, at-1)), f.saddr(vipReg))
	endpoint := k.load(vipReg, fromPriority(slot), lookup(stay, vipReg, endpointReg))
	send := append(slices.Clone(reset.exprs), dnat)
	remember := func(op uint32) []expr.Any {
		return slices.Concat(client, one(fromPriority(numberReg)), one(&expr.Dynset{
			SrcRegKey: vipReg, SrcRegData: numberReg, SetName: f.affinity.Name, Operation: op,
			Timeout: time.Duration(p.affinity) * time.Second,
		}))
	}
	return []rule{
		reset,
		newRule("the client's endpoint at this Service port", client, []expr.Any{lookup(f.affinity, vipReg, numberReg), setPriority(numberReg)}),
		newRule("if it is one still", endpoint, remember(unix.NFT_DYNSET_OP_UPDATE), send),
		newRule("else another", k.load(vipReg, number, lookup(f.ids, vipReg, numberReg), setPriority(numberReg)),
			remember(dynsetDelete), remember(unix.NFT_DYNSET_OP_UPDATE), endpoint, send),
		newRule("too many clients to remember", endpoint, send),
	}
}

// slotChain is the chain that sends to one place of a row.
func slotChain(place int, nodePort bool) string {
	name := "slot-" + strconv.Itoa(place)
	if nodePort {
		return nodePortPrefix + name
	}
	return name
}

// slotRules are the rules of a slotChain: look up the row of the slot that is in the packet priority, which is cleared,
// and take one of its endpoints.
//
// The nft tool can't print what uses a part of a map's value. So the row is looked up twice where its first endpoint
// is not the one: once to where the tool takes it for what the packet is sent to, then to where the right endpoint
// ends up in its place (in IPv6 that is over the key, which is of no use any more). And where the port is to be, the
// tool is given the packet's port to print.
func (f *family) slotRules(k key, place int) []rule {
	words := uint32(f.bits / 32)
	slot := vipReg + k.words()
	value := slot + 1
	first := value - uint32(place)*words
	port := first + uint32(f.perRow())*words
	exprs := k.load(vipReg,
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: slot},
		&expr.Bitwise{SourceRegister: slot, DestRegister: slot, Len: 4, Mask: native32(^uint32(f.perRow() - 1)), Xor: native32(0)},
		&expr.Immediate{Register: value, Data: native32(0)}, setPriority(value),
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		lookup(f.rows, vipReg, value))
	if place > 0 {
		exprs = append(exprs, lookup(f.rows, vipReg, first))
	}
	exprs = append(exprs, &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.table.Family), RegAddrMin: value, RegProtoMin: port})
	return []rule{{"place " + strconv.Itoa(place) + " of the row, and the row's port", exprs}}
}

// noSYN matches TCP packets that open no connection. What of a connection comes by rules that are for the first packet
// of one has been forgotten by the kernel, or was never known: without an answer its client would wait for minutes.
func noSYN() []expr.Any {
	const flags, syn = 13, 0x02
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 8},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{byte(model.TCP)}},
		&expr.Payload{DestRegister: 8, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 1, Mask: []byte{syn}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{0}},
	}
}

func setPriority(from uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: from}
}

// dynsetDelete is NFT_DYNSET_OP_DELETE.
const dynsetDelete = 2

func (f *family) saddr(reg uint32) []expr.Any {
	if f.bits == 128 {
		return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16})
	}
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4})
}

func (f *family) daddr(reg uint32) []expr.Any {
	if f.bits == 128 {
		return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16})
	}
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4})
}

func (f *family) portUnreachable() uint8 {
	if f.bits == 128 {
		return 4 // ICMPV6_PORT_UNREACH
	}
	return 3 // ICMP_PORT_UNREACH
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func lookup(s *nft.Set, from, to uint32) *expr.Lookup {
	return &expr.Lookup{SetName: s.Name, SourceRegister: from, DestRegister: to, IsDestRegSet: to != noReg}
}

func notIn(s *nft.Set, from uint32) *expr.Lookup {
	return &expr.Lookup{SetName: s.Name, SourceRegister: from, Invert: true}
}

func verdict(k expr.VerdictKind) *expr.Verdict { return &expr.Verdict{Kind: k} }

func gotoChain(name string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name} }

// fibLocal matches what is sent to (or comes from) one of the node's own addresses.
func fibLocal(destination bool) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 8, FlagDADDR: destination, FlagSADDR: !destination, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: native32(unix.RTN_LOCAL)},
	}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// appendKey is the frontend as a key: each component fills words of four bytes.
func appendKey(b []byte, fe service.Frontend) []byte {
	b = appendAddr(b, fe.Addr)
	b = append(b, byte(fe.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, fe.Port), 0, 0)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

func appendEndpoint(b []byte, ep netip.AddrPort) []byte {
	return append(binary.BigEndian.AppendUint16(appendAddr(b, ep.Addr()), ep.Port()), 0, 0)
}

// appendRow is the value of a row: up to perRow endpoints, which have one port.
func (f *family) appendRow(b []byte, eps []netip.AddrPort) []byte {
	for _, ep := range eps {
		b = appendAddr(b, ep.Addr())
	}
	for range f.perRow() - len(eps) {
		b = append(b, unspecified[:f.bits/8]...)
	}
	return append(binary.BigEndian.AppendUint16(b, eps[0].Port()), 0, 0)
}

var unspecified [16]byte

// parseRow reads a row's endpoints back; places without one are invalid.
func (f *family) parseRow(b []byte) (eps [4]netip.AddrPort, ok bool) {
	n := f.bits / 8
	if len(b) < f.perRow()*n+2 {
		return eps, false
	}
	port := binary.BigEndian.Uint16(b[f.perRow()*n:])
	for i := range f.perRow() {
		if a, _ := netip.AddrFromSlice(b[i*n : i*n+n]); !a.IsUnspecified() {
			eps[i], ok = netip.AddrPortFrom(a, port), true
		}
	}
	return eps, ok
}

// parseKey reads a frontend back from the start of a key.
func (f *family) parseKey(b []byte) (fe service.Frontend, rest []byte, ok bool) {
	n := f.bits / 8
	if len(b) < n+8 {
		return fe, nil, false
	}
	fe.Addr, _ = netip.AddrFromSlice(b[:n])
	fe.Protocol = model.Protocol(b[n])
	fe.Port = binary.BigEndian.Uint16(b[n+4:])
	return fe, b[n+8:], true
}

func (f *family) parseEndpoint(b []byte) (netip.AddrPort, bool) {
	n := f.bits / 8
	if len(b) < n+4 {
		return netip.AddrPort{}, false
	}
	a, _ := netip.AddrFromSlice(b[:n])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[n:])), true
}

// comment names a frontend's owner for people who read the table: "namespace/name:port".
func comment(r *service.Rule) string {
	if r.Port == "" {
		return r.Service.Namespace + "/" + r.Service.Name
	}
	return r.Service.Namespace + "/" + r.Service.Name + ":" + r.Port
}
