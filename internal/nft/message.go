// SPDX-License-Identifier: Apache-2.0

package nft

// Attrs are a message's netlink attributes in the making, for who encodes objects of its own.
type Attrs []byte

// Put appends an attribute.
func (a *Attrs) Put(typ uint16, data []byte) { *a = appendAttr(*a, typ, data) }

// String appends an attribute that holds a string, ended by a zero.
func (a *Attrs) String(typ uint16, s string) { *a = appendString(*a, typ, s) }

// Uint32 appends an attribute that holds a number in network byte order.
func (a *Attrs) Uint32(typ uint16, v uint32) { *a = appendUint32(*a, typ, v) }

// Uint64 appends an attribute that holds a number in network byte order.
func (a *Attrs) Uint64(typ uint16, v uint64) { *a = appendUint64(*a, typ, v) }

// Nest appends an attribute that holds those that f appends.
func (a *Attrs) Nest(typ uint16, f func(*Attrs)) {
	start := len(*a)
	*a = openNest(*a, typ)
	f(a)
	*a = closeNest(*a, start)
}

// EachAttr calls f for each attribute of b, its type without flag bits; it stops at the first malformed one.
func EachAttr(b []byte, f func(typ uint16, data []byte)) { eachAttr(b, f) }

// CString is a NUL-terminated attribute's text.
func CString(b []byte) string { return cString(b) }

// Message is one request of a transaction whose parts go in an order of the caller's own.
type Message struct {
	Type  uint16 // unix.NFT_MSG_NEWCHAIN and so on
	Flags uint16 // beside NLM_F_REQUEST
	Body  Attrs
	About string // the object, for errors; "" is worked out
}

// Size is what the message takes of Limit.
func (m *Message) Size() int { return headerLen + (len(m.Body)+3)&^3 }

// BatchSize is what a transaction takes of Limit beside its messages.
const BatchSize = 2 * headerLen

// CommitMessages is Commit for messages, in their order.
func (c *Conn) CommitMessages(f Family, msgs []Message) error {
	if len(msgs) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := beginBatch(c.out)
	for i := range msgs {
		start := len(out)
		out = appendMessage(out, msgs[i].Type, msgs[i].Flags, f)
		out = endMessage(append(out, msgs[i].Body...), start)
	}
	var last uint32
	c.out, last = endBatch(out)
	return c.exchange(last, func(seq uint32) string {
		if i := int(seq) - 1; i >= 0 && i < len(msgs) && msgs[i].About != "" {
			return msgs[i].About
		}
		return describe(c.out, seq)
	})
}

// Dump asks for all objects of a kind (unix.NFT_MSG_GETSET and so on), of those that attrs name, and calls f with each
// one's attributes, which are valid until it returns. What does not exist is an error of unix.ENOENT, or nothing at all.
func (c *Conn) Dump(msg uint16, f Family, attrs Attrs, each func(attrs []byte)) error {
	return c.dump(msg, f, attrs, func(m message) {
		if _, ok := m.nft(); ok {
			each(m.attrs())
		}
	})
}
