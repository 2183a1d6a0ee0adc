// SPDX-License-Identifier: Apache-2.0

package dnsserver

import "errors"

// errPointer is for a name that points to where no name is known to be.
var errPointer = errors.New("compression pointer to no name")

// nameMap notes where in a message labels start: the only places that compression may point to. What is there never
// changes, while TTLs do and ends may be cut off; so a name that only points there stays the name that it is.
type nameMap [(1 << 14) / 64]uint64

func (n *nameMap) has(at int) bool { return at < 1<<14 && n[at/64]>>(at%64)&1 != 0 }

func (n *nameMap) add(at int) {
	if at < 1<<14 {
		n[at/64] |= 1 << (at % 64)
	}
}

// check reads a name that must end before end and returns the offset behind it; 0 where it is none, -1 where it
// points to no name.
func (n *nameMap) check(m []byte, at, end int) int {
	start := at
	for at < end {
		l := int(m[at])
		switch {
		case l == 0:
			if at-start >= 255 {
				return 0
			}
			n.add(at)
			return at + 1
		case l >= 0xc0:
			if at+2 > end {
				return 0
			}
			to := int(m[at]&0x3f)<<8 | int(m[at+1])
			if to >= start || !n.has(to) {
				return -1
			}
			return at + 2
		case l > 63:
			return 0
		}
		n.add(at)
		at += 1 + l
	}
	return 0
}

// inData checks the names in a record's data, of the types that may have compressed ones (RFC 3597 section 4) or that
// others' names are known to point into.
func (n *nameMap) inData(m []byte, typ uint16, at, end int) error {
	names := 0
	switch typ {
	case 2, 3, 4, 5, 7, 8, 9, 12, 39: // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME
		names = 1
	case 6, 14, 17: // SOA, MINFO, RP
		names = 2
	case 15, 18, 21, 36: // MX, AFSDB, RT, KX
		names, at = 1, at+2
	case 33: // SRV
		names, at = 1, at+6
	case 26: // PX
		names, at = 2, at+2
	}
	for range names {
		switch at = n.check(m, at, end); {
		case at < 0:
			return errPointer
		case at == 0:
			return errMalformed
		}
	}
	return nil
}
