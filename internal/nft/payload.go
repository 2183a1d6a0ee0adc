// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rewrite writes a register over a part of a packet and has the checksum of the transport protocol follow, in a packet
// whose checksum is for the network card to finish as well. What Payload writes it does only together with another
// checksum, which neither an IPv6 address nor a port has.
type Rewrite struct{ *expr.Payload }

// NewRewrite writes length octets from a register to an offset from a header.
func NewRewrite(reg uint32, base expr.PayloadBase, offset, length uint32) Rewrite {
	return Rewrite{&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: base, Offset: offset, Len: length}}
}

// marshal encodes an expression.
func marshal(f Family, e expr.Any) ([]byte, error) {
	w, ok := e.(Rewrite)
	if !ok {
		return expr.Marshal(byte(f), canonical(e))
	}
	p := canonical(w.Payload).(*expr.Payload)
	var data []byte
	data = appendUint32(data, unix.NFTA_PAYLOAD_SREG, p.SourceRegister)
	data = appendUint32(data, unix.NFTA_PAYLOAD_BASE, uint32(p.Base))
	data = appendUint32(data, unix.NFTA_PAYLOAD_OFFSET, p.Offset)
	data = appendUint32(data, unix.NFTA_PAYLOAD_LEN, p.Len)
	data = appendUint32(data, unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_NONE)
	data = appendUint32(data, unix.NFTA_PAYLOAD_CSUM_OFFSET, 0)
	data = appendUint32(data, unix.NFTA_PAYLOAD_CSUM_FLAGS, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR)
	out := appendString(nil, unix.NFTA_EXPR_NAME, "payload")
	nest := len(out)
	out = openNest(out, unix.NFTA_EXPR_DATA)
	out = append(out, data...)
	return closeNest(out, nest), nil
}
