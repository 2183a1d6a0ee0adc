// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const (
	headerLen = unix.SizeofNlMsghdr + 4 // nlmsghdr and nfgenmsg
	attrLen   = unix.SizeofNlAttr
)

// appendMessage starts a netlink message of the nf_tables subsystem; endMessage fixes its length.
func appendMessage(b []byte, msg uint16, flags uint16, family Family) []byte {
	return appendHeader(b, unix.NFNL_SUBSYS_NFTABLES<<8|msg, flags, family, 0)
}

func appendHeader(b []byte, typ, flags uint16, family Family, resource uint16) []byte {
	b = append(b, 0, 0, 0, 0) // length
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number and port
	b = append(b, byte(family), unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, resource)
}

func endMessage(b []byte, start int) []byte {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func pad(b []byte) []byte {
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(b, data...))
}

func appendString(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(append(b, s...), 0))
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, attrLen+4)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint32(b, v)
}

func appendUint64(b []byte, typ uint16, v uint64) []byte {
	b = binary.NativeEndian.AppendUint16(b, attrLen+8)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint64(b, v)
}

// openNest starts a nested attribute; closeNest fixes its length.
func openNest(b []byte, typ uint16) []byte {
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, unix.NLA_F_NESTED|typ)
}

func closeNest(b []byte, start int) []byte {
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// eachAttr calls f for each attribute of b; it stops at the first malformed one, as the kernel sends none.
func eachAttr(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= attrLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrLen || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[attrLen:n])
		b = b[min((n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
}

// cString is a NUL-terminated attribute's text.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// appendUserData appends one field of the user data by which the nft tool finds comments and types again. Its
// encoding is the tool's: a byte of type, a byte of length, the value.
func appendUserData(b []byte, typ byte, data []byte) []byte {
	return append(append(b, typ, byte(len(data))), data...)
}

// comment is the user data of a commented object or element, cut to what the tool accepts.
func comment(b []byte, typ byte, s string) []byte {
	if s == "" {
		return b
	}
	if len(s) > maxComment {
		s = s[:maxComment]
	}
	b = append(b, typ, byte(len(s)+1))
	return append(append(b, s...), 0)
}

// userComment finds the comment in user data.
func userComment(b []byte, typ byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		n := 2 + int(b[1])
		if b[0] == typ {
			return cString(b[2:n])
		}
		b = b[n:]
	}
	return ""
}

// maxComment is the longest comment, in bytes, that the nft tool reads back.
const maxComment = 127
