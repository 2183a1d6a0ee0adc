// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/policy"
)

// Where policies go by domain name, an answer of a resolver to a pod that they guard takes a detour: the kernel hands
// it to this process and drops it, and Deliver sends it on once its addresses are in the sets. The detour is open only
// while the set awake has elements, which expire unless this process renews them: without it names resolve as ever,
// only that no new address is let through.
const (
	setAwake    = "awake"
	awakeFor    = 5 * time.Second
	awakeAgain  = time.Second
	dnsPort     = 53
	answerLimit = 1<<16 - 1

	ctDirectionReply = 1 // linux/netfilter/nf_conntrack_tuple_common.h IP_CT_DIR_REPLY
)

func awakeSet() *set {
	return &set{name: setAwake, fields: []field{fieldProto}, expires: true, comment: "protocols whose answers are held"}
}

// answersGroup is the netlink log group that answers are sent to.
func (t *Table) answersGroup() uint16 { return t.group + 1 }

// answers is the chain that hands answers over.
func (t *Table) answers() *chain {
	return &chain{name: chainAnswers, hook: noHook, rules: [][]expr.Any{
		{&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group: t.answersGroup(), Snaplen: answerLimit, Data: []byte(chainAnswers),
		}},
		verdict(expr.VerdictDrop, ""),
	}}
}

// heldAnswers are the rules that lead answers there: those that connection tracking knows for replies, and those of a
// node's own server, which answers without.
func heldAnswers() [][]expr.Any {
	awake := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Lookup{SourceRegister: reg, SetName: setAwake},
	}
	fromDNS := []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, dnsPort)},
	}
	reply := []expr.Any{
		&expr.Ct{Register: reg, Key: expr.CtKeyDIRECTION},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{ctDirectionReply}},
	}
	var out [][]expr.Any
	for i := range families {
		h := &families[i]
		ends := rule(h.in(h.dest, policy.Asking), []expr.Any{
			h.load(h.source, reg), &expr.Lookup{SourceRegister: reg, SetName: policy.Resolvers + h.suffix},
		}, verdict(expr.VerdictGoto, chainAnswers))
		out = append(out,
			rule(awake, fromDNS, tracked(expr.CtStateBitESTABLISHED), reply, ends),
			rule(awake, isProtocol(unix.IPPROTO_UDP), tracked(expr.CtStateBitUNTRACKED), marked(markAnswer), ends))
	}
	return out
}

// planNames makes or removes what policies that go by name need beside their sets.
func (t *Table) planNames(p *plan, names bool) error {
	if names == t.names {
		return nil
	}
	for _, c := range t.rootChains(names) {
		have := &chainShape{hook: c.hook}
		switch c.name {
		case chainAnswers:
			have = nil
		case chainForward:
		default:
			continue
		}
		if err := t.planChain(p, c, have); err != nil {
			return err
		}
	}
	if names {
		p.sets = append(p.sets, t.newSet(awakeSet()))
		return nil
	}
	p.flush = append(p.flush, t.flushChain(chainAnswers))
	p.delSets = append(p.delSets, t.delSet(setAwake))
	p.delChain = append(p.delChain, t.delChain(chainAnswers))
	return nil
}

// Answer is a packet from a resolver that is held.
type Answer struct {
	packet []byte
	mark   uint32

	Resolver, Pod netip.Addr
	Messages      [][]byte // the DNS messages that are whole with this packet
}

// Answers calls f with each answer that is held, which f must Deliver, until ctx is done. Then the error is nil.
func (t *Table) Answers(ctx context.Context, f func(*Answer)) error {
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	open := streams{}
	go func() {
		failed <- t.hear(ctx, t.answersGroup(), answerLimit, 0, func(a *nflog.Attribute) {
			if a.Payload == nil {
				return
			}
			held := &Answer{packet: *a.Payload}
			if a.Mark != nil {
				held.mark = *a.Mark
			}
			if held.read(open) {
				f(held)
			}
		})
	}()
	tick := time.NewTicker(awakeAgain)
	defer tick.Stop()
	for {
		err := t.stayAwake(awakeFor)
		select {
		case err := <-failed:
			cancel()
			return errors.Join(err, t.stayAwake(0))
		case <-tick.C:
		}
		if err != nil {
			cancel()
			return errors.Join(err, <-failed)
		}
	}
}

// stayAwake keeps the detour open for so long from now; 0 closes it.
func (t *Table) stayAwake(d time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.names {
		return nil
	}
	var list, a nft.Attrs
	a.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
	a.String(unix.NFTA_SET_ELEM_LIST_SET, setAwake)
	msgs := []nft.Message{{Type: unix.NFT_MSG_DELSETELEM, Body: a, About: "elements of " + setAwake}} // all of them
	if d > 0 {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			list.Nest(unix.NFTA_LIST_ELEM, func(a *nft.Attrs) {
				a.Nest(unix.NFTA_SET_ELEM_KEY, func(a *nft.Attrs) { a.Put(unix.NFTA_DATA_VALUE, []byte{proto}) })
				a.Put(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(d.Milliseconds())))
			})
		}
		var add nft.Attrs
		add.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
		add.String(unix.NFTA_SET_ELEM_LIST_SET, setAwake)
		add.Put(unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		msgs = append(msgs, nft.Message{Type: unix.NFT_MSG_NEWSETELEM, Flags: unix.NLM_F_CREATE, Body: add, About: "elements of " + setAwake})
	}
	if err := t.transact(msgs); err != nil && !errors.Is(err, unix.ENOENT) { // somebody removed the table: Sync will tell
		return fmt.Errorf("keep answers of resolvers held: %w", err)
	}
	return nil
}

// read finds the ends and the messages; false if it is no packet that could be sent on.
func (a *Answer) read(open streams) bool {
	p, ok := parse(a.packet)
	if !ok {
		return false
	}
	a.Resolver, a.Pod = p.Src, p.Dst
	head, ok := transportOffset(a.packet)
	if !ok {
		return false
	}
	l4 := a.packet[head:]
	switch {
	case p.Protocol == unix.IPPROTO_UDP && len(l4) >= udpHeader:
		for _, d := range datagrams(a.packet, head) {
			a.Messages = append(a.Messages, d[head+udpHeader:])
		}
	case p.Protocol == unix.IPPROTO_TCP && len(l4) >= 20:
		n := int(l4[12]>>4) * 4
		if n < 20 || n > len(l4) {
			return false
		}
		a.Messages = open.take(stream{p.Src, p.Dst, p.SrcPort, p.DstPort}, binary.BigEndian.Uint32(l4[4:]), l4[13], l4[n:])
	default:
		return false
	}
	return true
}

// transportOffset is where the header behind the IP headers begins.
func transportOffset(b []byte) (int, bool) {
	if b[0]>>4 == 4 {
		n := int(b[0]&15) * 4
		return n, n >= 20 && n <= len(b)
	}
	at, next := 40, b[6]
	for isExtension(model.Protocol(next)) && len(b) >= at+8 {
		n := 8 + 8*int(b[at+1])
		if next == unix.IPPROTO_FRAGMENT {
			n = 8
		}
		next, at = b[at], at+n
	}
	return at, at <= len(b)
}

// Deliver sends the packet on to its pod.
func (t *Table) Deliver(a *Answer) error {
	head, ok := transportOffset(a.packet)
	if !ok {
		return errors.New("deliver a resolver's answer: not a packet")
	}
	return inNetns(t.netns, func() error {
		family, proto := unix.AF_INET, unix.IPPROTO_RAW
		if a.Pod.Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return fmt.Errorf("deliver a resolver's answer: %w", err)
		}
		defer unix.Close(fd)
		if a.mark != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(a.mark)); err != nil {
				return fmt.Errorf("deliver a resolver's answer: %w", err)
			}
		}
		for _, packet := range segments(a.packet, head) {
			checksum(packet, head)
			if err := unix.Sendto(fd, packet, 0, rawAddr(a.Pod)); err != nil {
				return fmt.Errorf("deliver an answer of resolver %s to %s: %w", a.Resolver, a.Pod, err)
			}
		}
		return nil
	})
}

func rawAddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// segmentSize is how much of a TCP stream goes into a packet: what fits any link of IPv6 (RFC 8200, section 5).
const segmentSize = 1280 - 40 - 60

// segments cuts a packet that the kernel had left uncut for its network card, or the receiver's socket, to cut.
func segments(b []byte, head int) [][]byte {
	if protocolAt(b) != unix.IPPROTO_TCP {
		return datagrams(b, head)
	}
	start := head + int(b[head+12]>>4)*4
	data := b[start:]
	if len(data) <= segmentSize {
		return [][]byte{b}
	}
	const finPush = 0x01 | 0x08
	var out [][]byte
	seq := binary.BigEndian.Uint32(b[head+4:])
	for at := 0; at < len(data); at += segmentSize {
		end := min(at+segmentSize, len(data))
		s := append(append([]byte(nil), b[:start]...), data[at:end]...)
		binary.BigEndian.PutUint32(s[head+4:], seq+uint32(at))
		if end < len(data) {
			s[head+13] &^= finPush
		}
		if s[0]>>4 == 4 {
			binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
		} else {
			binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		}
		out = append(out, s)
	}
	return out
}

func protocolAt(b []byte) byte {
	p, _ := parse(b)
	return byte(p.Protocol)
}

// checksum works out the transport's checksum (RFC 1071): between a node's own links the kernel leaves it undone.
func checksum(b []byte, head int) {
	l4, at := b[head:], 16
	proto := protocolAt(b)
	if proto == unix.IPPROTO_UDP {
		at = 6
	}
	l4[at], l4[at+1] = 0, 0
	sum := uint32(proto) + uint32(len(l4))
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	if b[0]>>4 == 4 {
		add(b[12:20])
	} else {
		add(b[8:40])
	}
	add(l4)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	c := ^uint16(sum)
	if c == 0 && proto == unix.IPPROTO_UDP {
		c = 0xffff // 0 says that there is none
	}
	binary.BigEndian.PutUint16(l4[at:], c)
}
