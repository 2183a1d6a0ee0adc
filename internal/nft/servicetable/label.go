// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// The labels that are not picks.
const (
	labelReject        = "reject"
	labelDrop          = "drop"
	labelExternal      = "external"
	labelExternalLocal = "external-local"
	labelRestricted    = "restricted"
	labelUnknown       = "?" // of an element that was read and makes no sense: it is replaced
)

// A span is a range of slots: its first one. Picks of the span draw from there.
type span uint32

const (
	spareBit  span = 1 << 20
	insideBit span = 2 << 20
	slotsOf   span = 1<<20 - 1 // the bits of a slot within its span
)

const (
	pickMain   = "pick-"
	pickIn     = "in-"
	mixedMain  = "mix-"
	mixedIn    = "mi-"
	stickyMain = "st-"
	stickyIn   = "si-"
	spareMark  = "'"
)

// pick says how an endpoint is drawn: all that a chain of that kind depends on.
type pick struct {
	n        int
	span     span
	affinity int  // seconds; 0 is none
	mixed    bool // endpoints have different ports; not with affinity
}

// kind is where the slots are that the pick draws from.
func (p pick) kind() slotKind {
	switch {
	case p.affinity > 0:
		return sticky
	case p.mixed:
		return mixed
	}
	return rows
}

func (p pick) inside() bool { return p.span&insideBit != 0 }

// plainLabels are the names of the most common picks.
var plainLabels = func() (out [maxPlain + 1]string) {
	for n := range out {
		out[n] = pickMain + strconv.Itoa(n)
	}
	return out
}()

const maxPlain = 64

// label is the pick's name.
func (p pick) label() string {
	if p.span == 0 && p.affinity == 0 && !p.mixed && p.n <= maxPlain {
		return plainLabels[p.n]
	}
	main, in := pickMain, pickIn
	switch p.kind() {
	case sticky:
		main, in = stickyMain, stickyIn
	case mixed:
		main, in = mixedMain, mixedIn
	}
	prefix := main
	if p.inside() {
		prefix = in
	}
	s := prefix + strconv.Itoa(p.n)
	if p.affinity > 0 {
		s += "-" + strconv.Itoa(p.affinity)
	}
	if p.span&spareBit != 0 {
		s += spareMark
	}
	return s
}

// parsePick reads a label back; ok is false for labels that are no picks.
func parsePick(label string) (p pick, ok bool) {
	if count, plain := strings.CutPrefix(label, pickMain); plain && len(count) <= 2 {
		if n, err := strconv.Atoi(count); err == nil && n >= 1 && n <= maxPlain && label == plainLabels[n] {
			return pick{n: n}, true
		}
	}
	rest, spare := strings.CutSuffix(label, spareMark)
	if spare {
		p.span |= spareBit
	}
	kind := rows
	for _, k := range []struct {
		prefix string
		span   span
		kind   slotKind
	}{
		{pickMain, 0, rows}, {pickIn, insideBit, rows}, {mixedMain, 0, mixed}, {mixedIn, insideBit, mixed},
		{stickyMain, 0, sticky}, {stickyIn, insideBit, sticky},
	} {
		if after, found := strings.CutPrefix(rest, k.prefix); found {
			rest, kind, ok = after, k.kind, true
			p.span |= k.span
			break
		}
	}
	if !ok {
		return pick{}, false
	}
	count, seconds, two := strings.Cut(rest, "-")
	var err1, err2 error
	p.n, err1 = strconv.Atoi(count)
	if two {
		p.affinity, err2 = strconv.Atoi(seconds)
	}
	p.mixed = kind == mixed
	if err1 != nil || err2 != nil || two != (kind == sticky) || p.n < 1 || p.label() != label {
		return pick{}, false
	}
	return p, true
}

// codes are the numbers that stand for labels in the kernel's maps. A number has 16 bits: more would make the packet
// priority, where it is for a moment, choose a traffic class.
//
// The plain picks have the number of endpoints, written so that the tool, which prints hexadecimal digits, shows it
// in decimal ones: ":0012" is pick-12. The other fixed labels have the first numbers with a letter in front. The
// rest get numbers as they come up; @dispatch tells what they are.
type codes struct {
	byLabel map[string]uint16
	byCode  map[uint16]string
	next    uint16
}

const (
	maxDecimal = 9999
	firstFixed = 0xf000
	firstOther = 0xa000
)

func newCodes() *codes {
	c := &codes{byLabel: make(map[string]uint16), byCode: make(map[uint16]string), next: firstOther}
	for i, l := range []string{labelReject, labelDrop, labelExternal, labelExternalLocal, labelRestricted} {
		c.set(l, firstFixed+uint16(i))
	}
	return c
}

func (c *codes) set(label string, code uint16) {
	c.byLabel[label], c.byCode[code] = code, label
}

// decimal writes a number so that its hexadecimal digits are its decimal ones.
func decimal(n int) uint16 {
	v, err := strconv.ParseUint(strconv.Itoa(n), 16, 16)
	if err != nil {
		panic("servicetable: " + err.Error()) // n has four digits
	}
	return uint16(v)
}

// code is a label's number, a new one if it has none.
func (c *codes) code(label string) uint16 {
	if code, ok := c.byLabel[label]; ok {
		return code
	}
	if p, ok := parsePick(label); ok && p.span == 0 && p.kind() == rows && p.n <= maxDecimal {
		c.set(label, decimal(p.n))
		return decimal(p.n)
	}
	for {
		code := c.next
		if c.next++; c.next == firstFixed {
			c.next = firstOther
		}
		if _, taken := c.byCode[code]; !taken {
			c.set(label, code)
			return code
		}
	}
}

// forget frees the number of a label that nothing has any more.
func (c *codes) forget(label string) {
	delete(c.byCode, c.byLabel[label])
	delete(c.byLabel, label)
}

// learn notes the number that the kernel's tables use for a label.
func (c *codes) learn(label string, key []byte) {
	code, ok := codeOf(key)
	if !ok || label == "" || code >= firstFixed {
		return
	}
	if _, is := parsePick(label); is {
		c.set(label, code)
	}
}

// label is what a number in a map stands for.
func (c *codes) label(data []byte) (string, bool) {
	code, ok := codeOf(data)
	if !ok {
		return "", false
	}
	l, ok := c.byCode[code]
	return l, ok
}

func codeOf(b []byte) (uint16, bool) {
	if len(b) != 4 {
		return 0, false
	}
	v := binary.NativeEndian.Uint32(b)
	return uint16(v), v < 1<<16
}

// code is the label as the value of an element.
func (t *Table) code(label string) []byte { return native32(uint32(t.codes.code(label))) }
