// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxElements is how many bytes of elements one message carries: an attribute's length has 16 bits, and one element
// must still fit beside them.
const maxElements = 1<<16 - 1 - 512

// Batch is one transaction in the making. The zero value is empty and ready. It may be reset and used again, so
// that steady work allocates nothing.
type Batch struct {
	create []byte // tables, sets, chains and rules, in the order of the calls
	elems  []elements
	finish []byte // what is deleted after the elements are in place
	err    error
}

// elements are those that one set loses or gains.
type elements struct {
	set  *Set
	add  bool
	buf  []byte // whole messages, and the last one open
	msg  int    // where the open message starts
	list int    // where its list of elements starts
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	b.create, b.finish, b.err = b.create[:0], b.finish[:0], nil
	for i := range b.elems {
		b.elems[i].buf = b.elems[i].buf[:0]
	}
}

// Len is the size of the transaction so far, in bytes.
func (b *Batch) Len() int {
	n := 2*headerLen + len(b.create) + len(b.finish)
	for i := range b.elems {
		n += len(b.elems[i].buf)
	}
	return n
}

// Empty tells whether there is nothing to commit.
func (b *Batch) Empty() bool { return b.Len() == 2*headerLen }

// AddTable creates a table that need not be new.
func (b *Batch) AddTable(t Table, text string) { b.newTable(t, text, 0) }

// OwnTable creates a table of which the Conn that commits this is the owner, as far as Conn.CanOwn says that the kernel
// can: others can't change it, and a flush of the whole ruleset passes it by. When the Conn is closed, or its process
// ends, the table stays and has no owner. Of one that was created by OwnTable, and that has no owner, the Conn becomes
// it.
func (b *Batch) OwnTable(t Table, text string) { b.newTable(t, text, tableOwner|tablePersist) }

func (b *Batch) newTable(t Table, text string, flags uint32) {
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, t.Family)
	m = appendString(m, unix.NFTA_TABLE_NAME, t.Name)
	if flags != 0 {
		m = appendUint32(m, unix.NFTA_TABLE_FLAGS, flags)
	}
	if ud := comment(nil, udataTableComment, text); ud != nil {
		m = appendAttr(m, tableUserdata, ud)
	}
	b.create = endMessage(m, start)
}

// DiscardTable deletes a table, which may be there or not, before everything that is called after it.
func (b *Batch) DiscardTable(t Table) {
	b.AddTable(t, "")
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_DELTABLE, 0, t.Family)
	b.create = endMessage(appendString(m, unix.NFTA_TABLE_NAME, t.Name), start)
}

// DeleteTable deletes a table and all it holds, after everything else in the batch.
func (b *Batch) DeleteTable(t Table) {
	start := len(b.finish)
	m := appendMessage(b.finish, unix.NFT_MSG_DELTABLE, 0, t.Family)
	b.finish = endMessage(appendString(m, unix.NFTA_TABLE_NAME, t.Name), start)
}

// AddChain creates a chain. One that is there keeps its rules.
func (b *Batch) AddChain(c Chain) {
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.Table.Family)
	m = appendString(m, unix.NFTA_CHAIN_TABLE, c.Table.Name)
	m = appendString(m, unix.NFTA_CHAIN_NAME, c.Name)
	if h := c.Hook; h != nil {
		nest := len(m)
		m = openNest(m, unix.NFTA_CHAIN_HOOK)
		m = appendUint32(m, unix.NFTA_HOOK_HOOKNUM, h.Num)
		m = appendUint32(m, unix.NFTA_HOOK_PRIORITY, uint32(h.Priority))
		m = closeNest(m, nest)
		m = appendUint32(m, unix.NFTA_CHAIN_POLICY, nfAccept)
		m = appendString(m, unix.NFTA_CHAIN_TYPE, h.Type)
	}
	b.create = endMessage(m, start)
}

// FlushChain deletes the rules of a chain; rules added after it in the same batch replace them.
func (b *Batch) FlushChain(c Chain) {
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_DELRULE, 0, c.Table.Family)
	m = appendString(m, unix.NFTA_RULE_TABLE, c.Table.Name)
	b.create = endMessage(appendString(m, unix.NFTA_RULE_CHAIN, c.Name), start)
}

// DeleteChain deletes a chain with its rules, after the elements that led to it.
func (b *Batch) DeleteChain(c Chain) {
	start := len(b.finish)
	m := appendMessage(b.finish, unix.NFT_MSG_DELCHAIN, 0, c.Table.Family)
	m = appendString(m, unix.NFTA_CHAIN_TABLE, c.Table.Name)
	b.finish = endMessage(appendString(m, unix.NFTA_CHAIN_NAME, c.Name), start)
}

// AddRule appends a rule to a chain.
func (b *Batch) AddRule(c Chain, text string, exprs ...expr.Any) {
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, c.Table.Family)
	m = appendString(m, unix.NFTA_RULE_TABLE, c.Table.Name)
	m = appendString(m, unix.NFTA_RULE_CHAIN, c.Name)
	nest := len(m)
	m = openNest(m, unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range exprs {
		data, err := marshal(c.Table.Family, e)
		if err != nil {
			b.err = fmt.Errorf("nftables: rule of chain %s %s: %T: %w", c.Table, c.Name, e, err)
			return
		}
		m = appendAttr(m, unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, data)
	}
	m = closeNest(m, nest)
	if ud := comment(nil, udataRuleComment, text); ud != nil {
		m = appendAttr(m, unix.NFTA_RULE_USERDATA, ud)
	}
	b.create = endMessage(m, start)
}

// AddSet creates a set or map. One that is there must have the same types and flags and keeps its elements; since
// Linux 6.5 its Size becomes the new one unless that is 0. A set of keys that is created with a Size, and with no Flags,
// is made for so many elements, to which it costs less to add.
func (b *Batch) AddSet(s *Set) {
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, s.Table.Family)
	m = appendString(m, unix.NFTA_SET_TABLE, s.Table.Name)
	m = appendString(m, unix.NFTA_SET_NAME, s.Name)
	m = appendUint32(m, unix.NFTA_SET_FLAGS, s.flags())
	m = appendUint32(m, unix.NFTA_SET_KEY_TYPE, s.Key.id())
	m = appendUint32(m, unix.NFTA_SET_KEY_LEN, uint32(s.Key.Len()))
	if len(s.Data) > 0 {
		m = appendUint32(m, unix.NFTA_SET_DATA_TYPE, s.Data.id())
		m = appendUint32(m, unix.NFTA_SET_DATA_LEN, uint32(s.Data.Len()))
	}
	// The kernel wants a number that tells the sets of one transaction apart, and one that is not 0.
	m = appendUint32(m, unix.NFTA_SET_ID, uint32(start+1))
	if s.Timeout > 0 {
		m = appendUint64(m, unix.NFTA_SET_TIMEOUT, uint64(s.Timeout.Milliseconds()))
	}
	if s.Size > 0 || s.ranges() {
		nest := len(m)
		m = openNest(m, unix.NFTA_SET_DESC)
		if s.Size > 0 {
			m = appendUint32(m, unix.NFTA_SET_DESC_SIZE, s.Size)
		}
		if s.ranges() {
			fields := len(m)
			m = openNest(m, setDescConcat)
			for _, f := range s.Key {
				one := len(m)
				m = openNest(m, unix.NFTA_LIST_ELEM)
				m = closeNest(appendUint32(m, setFieldLen, uint32(f.length)), one)
			}
			m = closeNest(m, fields)
		}
		m = closeNest(m, nest)
	}
	var ud []byte
	if s.Key.host() {
		ud = appendUserData(ud, udataSetKeyOrder, binary.NativeEndian.AppendUint32(nil, hostEndian))
	}
	if s.Data.host() {
		ud = appendUserData(ud, udataSetDataOrder, binary.NativeEndian.AppendUint32(nil, hostEndian))
	}
	if t := s.Key.typeof(); t != nil {
		ud = appendUserData(ud, udataSetKeyTypeof, t)
		ud = appendUserData(ud, udataSetDataTypeof, typeofOf(s.Data))
	}
	if ud = comment(ud, udataSetComment, s.Comment); ud != nil {
		m = appendAttr(m, setUserdata, ud)
	}
	b.create = endMessage(m, start)
}

// hostEndian is the nft tool's number of the machine's byte order.
const hostEndian = 1

func typeofOf(t Type) []byte {
	const exprConcat = 13
	var list []byte
	for i, f := range t {
		list = appendUserData(list, byte(i), f.typeof)
	}
	return typeofExpr(exprConcat, list)
}

// ranges tells a set of ranges over several components from other sets: the kernel keeps it differently.
func (s *Set) ranges() bool { return s.Flags&Interval != 0 && len(s.Key) > 1 }

func (s *Set) flags() uint32 {
	f := uint32(s.Flags)
	if len(s.Data) > 0 {
		f |= unix.NFT_SET_MAP
	}
	if s.ranges() {
		f |= setConcat
	}
	return f
}

// FlushSet deletes all elements of a set; elements added in the same batch replace them.
func (b *Batch) FlushSet(s *Set) {
	start := len(b.create)
	m := appendMessage(b.create, unix.NFT_MSG_DELSETELEM, 0, s.Table.Family)
	m = appendString(m, unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	b.create = endMessage(appendString(m, unix.NFTA_SET_ELEM_LIST_SET, s.Name), start)
}

// Target is where a verdict map leads: a chain to go on in, or a verdict that ends.
type Target struct {
	Code  int32  // unix.NFT_GOTO, unix.NFT_JUMP, or nfAccept, unix.NF_DROP
	Chain string // for goto and jump
}

// Goto is the verdict that goes on in a chain and does not come back.
func Goto(chain string) Target { return Target{Code: unix.NFT_GOTO, Chain: chain} }

// Drop is the verdict that ends a packet.
var Drop = Target{Code: nfDrop}

// Add adds an element. The key of an element that the set has with other data must be deleted in the same batch.
// data is nil for a plain set; text is a comment for people, may be "".
func (b *Batch) Add(s *Set, key, data []byte, text string) {
	e, elem := b.open(s, true)
	m := appendValue(e.buf, unix.NFTA_SET_ELEM_KEY, key)
	if data != nil {
		m = appendValue(m, unix.NFTA_SET_ELEM_DATA, data)
	}
	e.close(appendElemComment(m, text), elem)
}

// AddTimed adds an element that expires when what it has left of its timeout is over, 0 being the set's; left is at most that.
func (b *Batch) AddTimed(s *Set, key, data []byte, timeout, left time.Duration) {
	e, elem := b.open(s, true)
	m := appendValue(e.buf, unix.NFTA_SET_ELEM_KEY, key)
	if data != nil {
		m = appendValue(m, unix.NFTA_SET_ELEM_DATA, data)
	}
	if timeout > 0 {
		m = appendUint64(m, unix.NFTA_SET_ELEM_TIMEOUT, uint64(timeout.Milliseconds()))
	}
	e.close(appendUint64(m, unix.NFTA_SET_ELEM_EXPIRATION, uint64(left.Milliseconds())), elem)
}

// AddVerdict adds an element to a verdict map.
func (b *Batch) AddVerdict(s *Set, key []byte, to Target, text string) {
	e, elem := b.open(s, true)
	m := appendValue(e.buf, unix.NFTA_SET_ELEM_KEY, key)
	data := len(m)
	m = openNest(m, unix.NFTA_SET_ELEM_DATA)
	verdict := len(m)
	m = openNest(m, unix.NFTA_DATA_VERDICT)
	m = appendUint32(m, unix.NFTA_VERDICT_CODE, uint32(to.Code))
	if to.Chain != "" {
		m = appendString(m, unix.NFTA_VERDICT_CHAIN, to.Chain)
	}
	m = closeNest(closeNest(m, verdict), data)
	e.close(appendElemComment(m, text), elem)
}

// AddRange adds the range from first to last, both within it, to an Interval set. A set of one component keeps a
// range as its first key and, marked as an end, the key after its last, which AddRange works out.
func (b *Batch) AddRange(s *Set, first, last []byte, text string) {
	b.interval(s, true, first, last, text)
}

// DeleteRange deletes what AddRange added.
func (b *Batch) DeleteRange(s *Set, first, last []byte) { b.interval(s, false, first, last, "") }

func (b *Batch) interval(s *Set, add bool, first, last []byte, text string) {
	if s.ranges() {
		e, elem := b.open(s, add)
		m := appendValue(e.buf, unix.NFTA_SET_ELEM_KEY, first)
		e.close(appendElemComment(appendValue(m, setElemKeyEnd, last), text), elem)
		return
	}
	e, elem := b.open(s, add)
	e.close(appendElemComment(appendValue(e.buf, unix.NFTA_SET_ELEM_KEY, first), text), elem)
	if end, ok := after(last); ok {
		e, elem = b.open(s, add)
		m := appendUint32(e.buf, unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		e.close(appendValue(m, unix.NFTA_SET_ELEM_KEY, end), elem)
	}
}

// after is the key that follows; ok is false after the very last, where the range has no end to mark.
func after(key []byte) (next []byte, ok bool) {
	next = append(next, key...)
	for i := len(next) - 1; i >= 0; i-- {
		next[i]++
		if next[i] != 0 {
			return next, true
		}
	}
	return nil, false
}

// Delete deletes the element of a key.
func (b *Batch) Delete(s *Set, key []byte) {
	e, elem := b.open(s, false)
	e.close(appendValue(e.buf, unix.NFTA_SET_ELEM_KEY, key), elem)
}

func appendValue(m []byte, typ uint16, value []byte) []byte {
	nest := len(m)
	m = openNest(m, typ)
	return closeNest(appendAttr(m, unix.NFTA_DATA_VALUE, value), nest)
}

func appendElemComment(m []byte, text string) []byte {
	if text == "" {
		return m
	}
	text = text[:min(len(text), maxComment)]
	nest := len(m)
	m = openNest(m, unix.NFTA_SET_ELEM_USERDATA)
	binary.NativeEndian.PutUint16(m[nest+2:], unix.NFTA_SET_ELEM_USERDATA)
	m = append(m, udataElemComment, byte(len(text)+1))
	m = append(append(m, text...), 0)
	return pad(closeNest(m, nest))
}

// open starts an element in the last message for its set, or in a new one; close ends it.
func (b *Batch) open(s *Set, add bool) (e *elements, elem int) {
	e = b.elements(s, add)
	if len(e.buf) == 0 || len(e.buf)-e.list > maxElements {
		typ, flags := uint16(unix.NFT_MSG_DELSETELEM), uint16(0)
		if add {
			typ, flags = unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE
		}
		e.msg = len(e.buf)
		m := appendMessage(e.buf, typ, flags, s.Table.Family)
		m = appendString(m, unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		m = appendString(m, unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		e.list = len(m)
		e.buf = openNest(m, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	}
	elem = len(e.buf)
	e.buf = openNest(e.buf, unix.NFTA_LIST_ELEM)
	return e, elem
}

func (e *elements) close(m []byte, elem int) {
	e.buf = endMessage(closeNest(closeNest(m, elem), e.list), e.msg)
}

func (b *Batch) elements(s *Set, add bool) *elements {
	for i := range b.elems {
		if b.elems[i].set == s && b.elems[i].add == add {
			return &b.elems[i]
		}
	}
	b.elems = append(b.elems, elements{set: s, add: add})
	return &b.elems[len(b.elems)-1]
}

// assemble writes the whole transaction to buf: sequence numbers count the messages from 0, and only the last one
// before the end asks to be acknowledged.
func (b *Batch) assemble(buf []byte) (msg []byte, last uint32) {
	msg = append(beginBatch(buf), b.create...)
	for _, add := range []bool{false, true} {
		for i := range b.elems {
			if b.elems[i].add == add {
				msg = append(msg, b.elems[i].buf...)
			}
		}
	}
	return endBatch(append(msg, b.finish...))
}

// batchFlags are none.
const batchFlags = 0

// beginBatch starts a transaction.
func beginBatch(buf []byte) []byte {
	return endMessage(appendHeader(buf[:0], unix.NFNL_MSG_BATCH_BEGIN, batchFlags, 0, unix.NFNL_SUBSYS_NFTABLES), 0)
}

// endBatch numbers a transaction's messages, asks for the acknowledgement of the last one, and ends it.
func endBatch(msg []byte) (whole []byte, last uint32) {
	at, prev := 0, 0
	for ; at < len(msg); last++ {
		binary.NativeEndian.PutUint32(msg[at+8:], last)
		prev, at = at, at+int(binary.NativeEndian.Uint32(msg[at:]))
	}
	last--
	flags := binary.NativeEndian.Uint16(msg[prev+6:])
	binary.NativeEndian.PutUint16(msg[prev+6:], flags|unix.NLM_F_ACK)
	end := len(msg)
	msg = appendHeader(msg, unix.NFNL_MSG_BATCH_END, batchFlags, 0, unix.NFNL_SUBSYS_NFTABLES)
	binary.NativeEndian.PutUint32(msg[end+8:], last+1)
	return endMessage(msg, end), last
}
