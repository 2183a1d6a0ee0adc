// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/policy"
)

// The chains that every table has.
const (
	chainForward   = "forward"
	chainInput     = "input"
	chainGuard     = "guard"
	chainIngress   = "ingress"
	chainMidstream = "midstream"
	chainAdmitted  = "admitted"
	chainAnswers   = "answers" // only where policies go by name
)

// chain is a kernel chain with its rules.
type chain struct {
	name  string
	hook  int // of a base chain; noHook else
	rules [][]expr.Any
}

const (
	noHook        = -1
	verdictAccept = 1 // linux/netfilter.h NF_ACCEPT
)

func (t *Table) newChain(c *chain) nft.Message {
	var a nft.Attrs
	a.String(unix.NFTA_CHAIN_TABLE, t.name)
	a.String(unix.NFTA_CHAIN_NAME, c.name)
	if c.hook != noHook {
		a.Nest(unix.NFTA_CHAIN_HOOK, func(a *nft.Attrs) {
			a.Uint32(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook))
			a.Uint32(unix.NFTA_HOOK_PRIORITY, 0)
		})
		a.Uint32(unix.NFTA_CHAIN_POLICY, verdictAccept)
		a.String(unix.NFTA_CHAIN_TYPE, "filter")
	}
	return nft.Message{Type: unix.NFT_MSG_NEWCHAIN, Flags: unix.NLM_F_CREATE, Body: a, About: "chain " + c.name}
}

func (t *Table) delChain(name string) nft.Message {
	var a nft.Attrs
	a.String(unix.NFTA_CHAIN_TABLE, t.name)
	a.String(unix.NFTA_CHAIN_NAME, name)
	return nft.Message{Type: unix.NFT_MSG_DELCHAIN, Body: a, About: "removal of chain " + name}
}

// flushChain removes a chain's rules.
func (t *Table) flushChain(name string) nft.Message {
	var a nft.Attrs
	a.String(unix.NFTA_RULE_TABLE, t.name)
	a.String(unix.NFTA_RULE_CHAIN, name)
	return nft.Message{Type: unix.NFT_MSG_DELRULE, Body: a, About: "rules of chain " + name}
}

// newRules makes a chain's rules. Each carries a seal of what it says as user data, because what the kernel lists of
// a rule is not what it was given: Sync compares seals.
func (t *Table) newRules(c *chain) (msgs []nft.Message, seals []string, err error) {
	for _, r := range c.rules {
		var list nft.Attrs
		for _, e := range r {
			b, err := expr.Marshal(byte(nft.Inet), e)
			if err != nil {
				return nil, nil, fmt.Errorf("encode a rule of chain %s: %w", c.name, err)
			}
			list.Put(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, b)
		}
		var a nft.Attrs
		a.String(unix.NFTA_RULE_TABLE, t.name)
		a.String(unix.NFTA_RULE_CHAIN, c.name)
		a.Put(unix.NLA_F_NESTED|unix.NFTA_RULE_EXPRESSIONS, list)
		sum := sha256.Sum256(list)
		seal := append([]byte{udataRuleSeal, sealLength}, sum[:sealLength]...)
		a.Put(unix.NFTA_RULE_USERDATA, seal)
		seals = append(seals, string(seal))
		msgs = append(msgs, nft.Message{Type: unix.NFT_MSG_NEWRULE, Flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, Body: a,
			About: "a rule of chain " + c.name})
	}
	return msgs, seals, nil
}

// A type of user data that nft does not know, and so leaves alone.
const (
	udataRuleSeal = 0x77
	sealLength    = 8
)

// Registers: a value alone goes to the first of 16 bytes, a concatenation to those of 4 bytes from the same place.
const (
	regVerdict = unix.NFT_REG_VERDICT
	reg        = unix.NFT_REG_1
	reg32      = unix.NFT_REG32_00
)

// half is a family as rules see it.
type half struct {
	suffix       string
	nfproto      byte
	source, dest uint32 // offsets in the header
	size         uint32
}

var families = [familyCount]half{
	{family4, unix.NFPROTO_IPV4, 12, 16, 4},
	{family6, unix.NFPROTO_IPV6, 8, 24, 16},
}

func rule(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func (h *half) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{h.nfproto}},
	}
}

func (h *half) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: h.size}
}

// vmap looks an address up in a map of verdicts.
func (h *half) vmap(offset uint32, name string) []expr.Any {
	return append(h.is(), h.load(offset, reg), &expr.Lookup{SourceRegister: reg, SetName: name + h.suffix, IsDestRegSet: true, DestRegister: regVerdict})
}

func (h *half) in(offset uint32, name string) []expr.Any {
	return append(h.is(), h.load(offset, reg), &expr.Lookup{SourceRegister: reg, SetName: name + h.suffix})
}

// loadPort loads the protocol and the destination port to two registers. A protocol without ports never matches a
// set of them, whatever the two bytes are, because the protocol is part of the key.
func loadPort(at uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: at + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// tracked matches packets in any of these states of connection tracking.
func tracked(states uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func isProtocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{p}},
	}
}

// logged is a rule that logs at most a few packets a second, so that a flood costs little and every chain is heard.
func (t *Table) logged(prefix string) []expr.Any {
	return []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: dropsPerSecond, Unit: expr.LimitTimeSecond, Burst: 2 * dropsPerSecond},
		t.log(prefix),
	}
}

const (
	dropsPerSecond = 10
	snapLength     = 96 // both families' headers and the ports
)

func (t *Table) log(prefix string) expr.Any {
	return &expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
		Group: t.group, Snaplen: snapLength, Data: []byte(prefix),
	}
}

func dropped() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// markAnswer is the bit of the packet mark that answers of a node's own DNS server have.
const markAnswer = 0x2000

func marked(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// rootChains are the chains that every table has, and those for policies that go by name; see the package comment.
func (t *Table) rootChains(names bool) []*chain {
	const (
		openers  = 0x17 // FIN, SYN, RST, ACK
		synOnly  = 0x02
		tcpFlags = 13
	)
	guard := &chain{name: chainGuard, hook: noHook}
	mid := &chain{name: chainMidstream, hook: noHook}
	ingress := &chain{name: chainIngress, hook: noHook}
	for i := range families {
		h := &families[i]
		guard.rules = append(guard.rules, rule(h.is(), []expr.Any{
			h.load(h.source, reg32), h.load(h.dest, reg32+h.size/4),
			&expr.Lookup{SourceRegister: reg32, SetName: setSelf + h.suffix},
		}, verdict(expr.VerdictAccept, "")))
	}
	guard.rules = append(guard.rules, rule(isProtocol(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{openers}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{synOnly}},
	}, verdict(expr.VerdictJump, chainMidstream)))
	for i := range families {
		h := &families[i]
		guard.rules = append(guard.rules, h.vmap(h.source, mapEgress))
		ingress.rules = append(ingress.rules, h.vmap(h.dest, mapIngress))
		for _, offset := range []uint32{h.source, h.dest} {
			mid.rules = append(mid.rules,
				rule(h.in(offset, setGuarded), t.logged(PrefixMidstream)),
				rule(h.in(offset, setGuarded), dropped()))
		}
	}
	guard.rules = append(guard.rules, verdict(expr.VerdictGoto, chainIngress))
	ingress.rules = append(ingress.rules, verdict(expr.VerdictGoto, chainAdmitted))

	admitted := &chain{name: chainAdmitted, hook: noHook}
	if t.logAdmitted {
		// Of what is not tracked every packet passes here, not only the first of a connection.
		admitted.rules = append(admitted.rules,
			rule(tracked(expr.CtStateBitUNTRACKED), isProtocol(unix.IPPROTO_UDP), verdict(expr.VerdictAccept, "")),
			[]expr.Any{t.log(PrefixAdmitted)})
	}
	admitted.rules = append(admitted.rules, verdict(expr.VerdictAccept, ""))

	// A node's own DNS server answers without connection tracking. Only what came from its link, for a query that was
	// judged on its way, has this mark.
	answered := rule(tracked(expr.CtStateBitUNTRACKED), isProtocol(unix.IPPROTO_UDP), marked(markAnswer), verdict(expr.VerdictAccept, ""))
	known := rule(tracked(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept, ""))
	out := []*chain{admitted, ingress, mid, guard}
	forward := &chain{name: chainForward, hook: unix.NF_INET_FORWARD}
	if names {
		out = append(out, t.answers())
		forward.rules = heldAnswers()
	}
	forward.rules = append(forward.rules, known, answered, verdict(expr.VerdictGoto, chainGuard))
	input := &chain{name: chainInput, hook: unix.NF_INET_LOCAL_IN, rules: [][]expr.Any{
		// Neighbour discovery and multicast listening are how the pod's link works (RFC 4861, RFC 2710, RFC 3810).
		rule(isProtocol(unix.IPPROTO_ICMPV6), tracked(expr.CtStateBitUNTRACKED), verdict(expr.VerdictAccept, "")),
	}}
	input.rules = append(input.rules, linkLocal()...)
	input.rules = append(input.rules, known, answered, verdict(expr.VerdictGoto, chainGuard))
	return append(out, forward, input)
}

// linkLocal are the rules for what pods send to their node from link-local addresses. It is not looked at by address,
// and so each packet is judged, not only the first of a connection: nobody could tell whose connections to cut.
func linkLocal() [][]expr.Any {
	from := append(families[1].is(),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: families[1].source, Len: 2},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: []byte{0xff, 0xc0}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0xfe, 0x80}})
	reply := []expr.Any{
		&expr.Ct{Register: reg, Key: expr.CtKeyDIRECTION},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{ctDirectionReply}},
	}
	return [][]expr.Any{
		rule(from, tracked(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), reply, verdict(expr.VerdictAccept, "")),
		rule(from, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
			&expr.Lookup{SourceRegister: reg, SetName: mapLinks, IsDestRegSet: true, DestRegister: regVerdict},
		}),
	}
}

// compile turns a program's chain into the kernel's.
func (t *Table) compile(c *policy.Chain) *chain {
	out := &chain{name: c.Name, hook: noHook}
	for _, r := range c.Rules {
		for _, match := range matches(c, &r) {
			for _, end := range t.ends(c, &r) {
				out.rules = append(out.rules, rule(match, end))
			}
		}
	}
	return out
}

// matches are the ways in which a packet can match a rule: one a family, where the rule looks at addresses.
func matches(c *policy.Chain, r *policy.Rule) [][]expr.Any {
	var port []expr.Any
	if r.Ports != "" {
		port = append(loadPort(reg32), &expr.Lookup{SourceRegister: reg32, SetName: r.Ports})
	}
	if r.Peer == "" && r.Named == "" {
		return [][]expr.Any{port}
	}
	var out [][]expr.Any
	for i := range families {
		h := &families[i]
		peer := h.source
		if c.Direction == policy.Egress {
			peer = h.dest
		}
		m := h.is()
		if r.Peer != "" {
			m = append(m, h.load(peer, reg), &expr.Lookup{SourceRegister: reg, SetName: r.Peer + h.suffix})
		}
		if r.Named != "" {
			m = append(m, h.load(h.dest, reg32))
			m = append(m, loadPort(reg32+h.size/4)...)
			m = append(m, &expr.Lookup{SourceRegister: reg32, SetName: r.Named + h.suffix})
		}
		out = append(out, append(m, port...))
	}
	return out
}

// ends are what happens to a packet that matched: one kernel rule each.
func (t *Table) ends(c *policy.Chain, r *policy.Rule) [][]expr.Any {
	switch r.Op {
	case policy.Admit:
		return [][]expr.Any{verdict(expr.VerdictGoto, admits(c.Direction))}
	case policy.Return:
		return [][]expr.Any{verdict(expr.VerdictReturn, "")}
	case policy.Jump:
		return [][]expr.Any{verdict(expr.VerdictJump, r.Target)}
	case policy.Goto:
		return [][]expr.Any{verdict(expr.VerdictGoto, r.Target)}
	case policy.Lookup:
		return [][]expr.Any{append(loadPort(reg32), &expr.Lookup{SourceRegister: reg32, SetName: r.Target, IsDestRegSet: true, DestRegister: regVerdict})}
	}
	return [][]expr.Any{t.logged(c.Name), dropped()}
}

// admits is where a packet goes that a direction's policies admit.
func admits(d policy.Direction) string {
	if d == policy.Egress {
		return chainIngress
	}
	return chainAdmitted
}
