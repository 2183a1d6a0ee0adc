// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Bounds of RFC 1035, section 2.3.4.
const (
	maxName  = 255 // octets of a name on the wire, the root's included
	maxLabel = 63
)

// Question is one question in a form made for looking up: the name on the wire, in lower case, cut into labels.
// The zero value is ready for Read or SetName; it is meant to be used again and again without allocating.
type Question struct {
	Type uint16

	name   [maxName + 1]byte
	off    [maxName/2 + 2]uint8 // where each label starts; off[labels] is the root's
	labels int
	end    int // octets of name in use
}

// lower maps each octet to its lower-case form (RFC 4343). Label lengths are below 'A' and map to themselves.
var lower = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
		if 'A' <= i && i <= 'Z' {
			t[i] = byte(i) + 'a' - 'A'
		}
	}
	return t
}()

// Read takes the uncompressed name at the start of wire and returns how many octets it has there; 0 means that it
// is no name, or a compressed one, which a question never needs to be.
func (q *Question) Read(wire []byte) int {
	i, n := 0, 0
	for {
		if i >= len(wire) {
			return 0
		}
		l := int(wire[i])
		q.off[n] = uint8(i)
		if l == 0 {
			q.name[i] = 0
			q.labels, q.end = n, i+1
			return i + 1
		}
		next := i + 1 + l
		if l > maxLabel || next >= maxName || next > len(wire) {
			return 0
		}
		q.name[i] = byte(l)
		src, dst := wire[i+1:next], q.name[i+1:next]
		for j := range src {
			dst[j] = lower[src[j]]
		}
		n++
		i = next
	}
}

// SetName takes a name as people write it. A trailing dot makes no difference.
func (q *Question) SetName(s string) error {
	w, err := PackName(s)
	if err != nil {
		return err
	}
	q.Read(w)
	return nil
}

// Wire is the name on the wire, in lower case. It stays valid until the Question is read into again.
func (q *Question) Wire() []byte { return q.name[:q.end] }

// Labels is how many labels the name has; the root has none.
func (q *Question) Labels() int { return q.labels }

// label is the i-th label without its length.
func (q *Question) label(i int) []byte { return q.name[q.off[i]+1 : q.off[i+1]] }

// from is the name from its i-th label on, on the wire.
func (q *Question) from(i int) []byte { return q.name[q.off[i]:q.end] }

// under tells whether the name is at or below the apex, which is given on the wire in lower case, and how many
// labels it has before it.
func (q *Question) under(apex string, apexLabels int) (before int, ok bool) {
	before = q.labels - apexLabels
	if before < 0 || string(q.from(before)) != apex {
		return 0, false
	}
	return before, true
}

// String is the name as people write it, fully qualified.
func (q *Question) String() string { return FormatName(q.Wire()) }

// PackName puts a name on the wire, in its own case. A trailing dot makes no difference; escapes are not taken.
func PackName(s string) ([]byte, error) {
	s = strings.TrimSuffix(s, ".")
	if s == "" {
		return []byte{0}, nil
	}
	w := make([]byte, 0, len(s)+2)
	for label := range strings.SplitSeq(s, ".") {
		switch {
		case label == "":
			return nil, fmt.Errorf("name %q has an empty label", s)
		case len(label) > maxLabel:
			return nil, fmt.Errorf("name %q: label %q is longer than %d octets", s, label, maxLabel)
		case strings.ContainsRune(label, '\\'):
			return nil, fmt.Errorf("name %q: write it without escapes", s)
		}
		w = append(w, byte(len(label)))
		w = append(w, label...)
	}
	w = append(w, 0)
	if len(w) > maxName {
		return nil, fmt.Errorf("name %q is longer than %d octets on the wire", s, maxName)
	}
	return w, nil
}

// FormatName is the text of a well-formed uncompressed name on the wire, with RFC 1035's escapes.
func FormatName(w []byte) string {
	if len(w) <= 1 {
		return "."
	}
	var b strings.Builder
	b.Grow(len(w))
	for i := 0; i < len(w) && w[i] != 0; {
		next := min(i+1+int(w[i]), len(w))
		for _, c := range w[i+1 : next] {
			switch {
			case c == '.' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c <= ' ' || c > '~':
				fmt.Fprintf(&b, "\\%03d", c)
			default:
				b.WriteByte(c)
			}
		}
		b.WriteByte('.')
		i = next
	}
	return b.String()
}

// packLower is PackName in lower case, as a string: a key, or an apex.
func packLower(s string) (string, error) {
	w, err := PackName(strings.ToLower(s))
	return string(w), err
}

// countLabels counts the labels of a well-formed name on the wire.
func countLabels(w string) (n int) {
	for i := 0; w[i] != 0; i += 1 + int(w[i]) {
		n++
	}
	return n
}

// validLabel tells whether an API field's text can be a label.
func validLabel(s string) bool {
	return s != "" && len(s) <= maxLabel && !strings.ContainsAny(s, ".\\")
}

// appendDashed adds the label that stands for an address: 10-1-2-3, 2001-db8--1. A label must not end in a dash
// (RFC 1123), so 2001:db8:: is 2001-db8--0; nor begin with one, so ::1 is 0--1.
func appendDashed(b []byte, a netip.Addr) []byte {
	start := len(b)
	b = a.AppendTo(b)
	if b[start] == ':' {
		b = append(b[:start], '0')
		b = a.AppendTo(b)
	}
	for i := start; i < len(b); i++ {
		if b[i] == '.' || b[i] == ':' {
			b[i] = '-'
		}
	}
	if b[len(b)-1] == '-' {
		b = append(b, '0')
	}
	return b
}

// parseDashed reads what appendDashed writes, and nothing else: each address has one name.
func parseDashed(label []byte) (netip.Addr, bool) {
	if len(label) > 45 {
		return netip.Addr{}, false
	}
	var text [48]byte
	copy(text[:], label)
	dashes, double := 0, false
	for i, c := range label {
		if c == '-' {
			dashes++
			double = double || (i > 0 && label[i-1] == '-')
		}
	}
	sep := byte(':')
	if dashes == 3 && !double {
		sep = '.'
	}
	for i, c := range label {
		if c == '-' {
			text[i] = sep
		}
	}
	a, ok := parseAddr(text[:len(label)])
	if !ok {
		return netip.Addr{}, false
	}
	var back [48]byte
	if string(appendDashed(back[:0], a)) != string(label) {
		return netip.Addr{}, false
	}
	return a, true
}

func parseAddr(text []byte) (netip.Addr, bool) {
	a, err := netip.ParseAddr(string(text))
	return a, err == nil && a.Zone() == ""
}

// The trees that addresses are looked up backwards in (RFC 1035 section 3.5, RFC 3596 section 2.5).
const (
	inAddrArpa = "\x07in-addr\x04arpa\x00"
	ip6Arpa    = "\x03ip6\x04arpa\x00"
)

// reverseName is a name in one of the reverse trees, read as far as it can be.
type reverseName struct {
	addr   netip.Addr // what its last labels say; the rest is 0
	labels int        // that it has before the tree's
	read   int        // how many of them, from the last on, are part of an address
	per    int        // bits of an address in a label
}

// whole tells whether the name is that of one address.
func (r *reverseName) whole() bool { return r.read == r.labels && r.labels*r.per == r.addr.BitLen() }

// reverse reads a name; ok is false where it is in neither of the trees.
func (q *Question) reverse() (r reverseName, ok bool) {
	if n, in := q.under(inAddrArpa, 2); in {
		var b [4]byte
		r = reverseName{labels: n, per: 8}
		for ; r.read < min(n, 4); r.read++ {
			v, ok := reverseLabel(q.label(n-1-r.read), 10, 8)
			if !ok {
				break
			}
			b[r.read] = v
		}
		r.addr = netip.AddrFrom4(b)
		return r, true
	}
	if n, in := q.under(ip6Arpa, 2); in {
		var b [16]byte
		r = reverseName{labels: n, per: 4}
		for ; r.read < min(n, 32); r.read++ {
			v, ok := reverseLabel(q.label(n-1-r.read), 16, 4)
			if !ok {
				break
			}
			b[r.read/2] |= v << (4 - r.read%2*4)
		}
		r.addr = netip.AddrFrom16(b)
		return r, true
	}
	return r, false
}

// reverseLabel reads a part of an address. Each has one form: 010 is not 10.
func reverseLabel(l []byte, base, bits int) (byte, bool) {
	v, err := strconv.ParseUint(string(l), base, bits)
	return byte(v), err == nil && (l[0] != '0' || len(l) == 1)
}

// ReversePrefix is the range of addresses whose reverse names are at and below a name; ok is false where it is none.
func ReversePrefix(name string) (p netip.Prefix, ok bool) {
	var q Question
	if q.SetName(name) != nil {
		return p, false
	}
	r, ok := q.reverse()
	if !ok || r.read < r.labels {
		return p, false
	}
	return netip.PrefixFrom(r.addr, r.labels*r.per), true
}

// ReverseName is the name that an address is looked up backwards by.
func ReverseName(a netip.Addr) string {
	var b strings.Builder
	if a.Is4() {
		v := a.As4()
		fmt.Fprintf(&b, "%d.%d.%d.%d.in-addr.arpa.", v[3], v[2], v[1], v[0])
		return b.String()
	}
	v := a.As16()
	for i := len(v) - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "%x.%x.", v[i]&15, v[i]>>4)
	}
	b.WriteString("ip6.arpa.")
	return b.String()
}

// Under tells whether the name is at or below an apex of that many labels, given on the wire in lower case.
func (q *Question) Under(apex string, labels int) bool {
	_, ok := q.under(apex, labels)
	return ok
}
