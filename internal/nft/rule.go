// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is a rule as the kernel holds it.
type Rule struct {
	exprs []rawExpr
}

type rawExpr struct {
	name string
	data []byte
}

// ChainRules reads the rules of a table, in order, by chain.
func (c *Conn) ChainRules(t Table) (map[string][]Rule, error) {
	out := make(map[string][]Rule)
	req := appendString(nil, unix.NFTA_RULE_TABLE, t.Name)
	err := c.dump(unix.NFT_MSG_GETRULE, t.Family, req, func(m message) {
		var chain string
		var r Rule
		eachAttr(m.attrs(), func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_RULE_CHAIN:
				chain = cString(data)
			case unix.NFTA_RULE_EXPRESSIONS:
				eachAttr(data, func(_ uint16, elem []byte) { r.exprs = append(r.exprs, decodeExpr(elem)) })
			}
		})
		out[chain] = append(out[chain], r)
	})
	return out, err
}

func decodeExpr(b []byte) rawExpr {
	var e rawExpr
	eachAttr(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			e.name = cString(data)
		case unix.NFTA_EXPR_DATA:
			e.data = slices.Clone(data)
		}
	})
	return e
}

// Is tells whether the kernel's rule does what the expressions say. The kernel adds attributes of its own and leaves
// out those that are zero.
func (r Rule) Is(f Family, exprs []expr.Any) bool {
	if len(exprs) != len(r.exprs) {
		return false
	}
	for i, e := range exprs {
		b, err := marshal(f, e)
		if err != nil {
			return false
		}
		want := decodeExpr(b)
		if want.name != r.exprs[i].name || !holds(r.exprs[i].data, want.data, setID[want.name]) {
			return false
		}
	}
	return true
}

// setID is the attribute by which an expression names a set within a transaction; the kernel forgets it.
var setID = map[string]uint16{"lookup": unix.NFTA_LOOKUP_SET_ID, "dynset": unix.NFTA_DYNSET_SET_ID}

// holds tells whether every attribute wanted is there with the same value.
func holds(have, want []byte, skip uint16) bool {
	got := make(map[uint16][]byte)
	eachAttr(have, func(typ uint16, data []byte) { got[typ] = data })
	ok := true
	eachAttr(want, func(typ uint16, data []byte) {
		if typ == skip && skip != 0 || bytes.Equal(got[typ], data) {
			return
		}
		if _, there := got[typ]; !there {
			ok = ok && len(bytes.Trim(data, "\x00")) == 0
			return
		}
		// What differs only in the flags of nested attributes is the same.
		ok = ok && nested(data) && nested(got[typ]) && holds(got[typ], data, 0)
	})
	return ok
}

// nested tells whether the bytes can be attributes.
func nested(b []byte) bool {
	if len(b) < attrLen {
		return false
	}
	n := int(binary.NativeEndian.Uint16(b))
	return n >= attrLen && n <= len(b)
}

// canonical gives the expression the register numbers by which the kernel calls the same registers: those of 16
// bytes where one begins, of 4 bytes elsewhere.
func canonical(e expr.Any) expr.Any {
	reg := func(r *uint32) {
		if *r >= unix.NFT_REG32_00 && (*r-unix.NFT_REG32_00)%4 == 0 {
			*r = (*r-unix.NFT_REG32_00)/4 + unix.NFT_REG_1
		}
	}
	switch e := e.(type) {
	case *expr.Payload:
		c := *e
		reg(&c.DestRegister)
		reg(&c.SourceRegister)
		return &c
	case *expr.Meta:
		c := *e
		reg(&c.Register)
		return &c
	case *expr.Ct:
		c := *e
		reg(&c.Register)
		return &c
	case *expr.Fib:
		c := *e
		reg(&c.Register)
		return &c
	case *expr.Numgen:
		c := *e
		reg(&c.Register)
		return &c
	case *expr.Immediate:
		c := *e
		reg(&c.Register)
		return &c
	case *expr.Cmp:
		c := *e
		reg(&c.Register)
		return &c
	case *expr.Bitwise:
		c := *e
		reg(&c.SourceRegister)
		reg(&c.DestRegister)
		return &c
	case *expr.Lookup:
		c := *e
		reg(&c.SourceRegister)
		reg(&c.DestRegister)
		return &c
	case *expr.Dynset:
		c := *e
		reg(&c.SrcRegKey)
		reg(&c.SrcRegData)
		return &c
	case *expr.NAT:
		c := *e
		reg(&c.RegAddrMin)
		reg(&c.RegAddrMax)
		reg(&c.RegProtoMin)
		reg(&c.RegProtoMax)
		return &c
	}
	return e
}
