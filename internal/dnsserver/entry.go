// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// entry is an upstream's answer, kept as it came but for its OPT record: what a cache hit copies.
type entry struct {
	key     string
	msg     []byte   // header, question, records
	ttls    []uint16 // where each record's TTL is in msg
	answers int      // records in the answer section
	rcode   uint8
	stored  int64 // nanoseconds on the server's clock
	life    int64 // nanoseconds

	// A run of records of one owner, type and size, which take turns at being first.
	runAt, runSize, runLen int

	hits      atomic.Uint32
	touched   atomic.Bool  // since the clock's hand was last here; see cache
	slot      int          // in its shard's ring, under the shard's lock
	refreshed atomic.Int64 // when a refresh was last begun, or failed
}

// Bounds of how long an answer is kept.
type lifetimes struct {
	max, maxNegative, servFail time.Duration
}

var errMalformed = errors.New("malformed answer")

// newEntry reads an upstream's answer to a question, whose name it must be about. The answer's bytes are copied.
func newEntry(key string, m []byte, qlen int, now int64, lt lifetimes) (*entry, error) {
	e, err := readEntry(key, m, qlen, now, lt)
	if !errors.Is(err, errPointer) {
		return e, err
	}
	// Names that point where no name is known to be: odd, but it may be right. Written anew they are beyond doubt.
	var msg dns.Msg
	if msg.Unpack(m) != nil {
		return nil, errMalformed
	}
	msg.Compress = true
	again, err := msg.Pack()
	if err != nil || new(dns.Msg).Unpack(again) != nil { // a record without data, say, is not written as it was read
		return nil, errMalformed
	}
	return readEntry(key, again, qlen, now, lt)
}

func readEntry(key string, m []byte, qlen int, now int64, lt lifetimes) (*entry, error) {
	if len(m) < headerSize+qlen || len(m) > maxMessage {
		return nil, errMalformed
	}
	var names nameMap
	if names.check(m, headerSize, headerSize+qlen-4) != headerSize+qlen-4 {
		return nil, errMalformed
	}
	e := &entry{key: key, rcode: m[3] & 15, stored: now}
	counts := [3]int{}
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(m[6+2*i:]))
	}
	if counts[0]+counts[1]+counts[2] > 4096 {
		return nil, errMalformed
	}
	e.answers = counts[0]
	at := headerSize + qlen
	minTTL := uint32(1<<31 - 1)
	negative := e.rcode == rcodeNXDomain
	sameType := false
	qtype := binary.BigEndian.Uint16(m[headerSize+qlen-4:])
	soaTTL, haveSOA := uint32(0), false
	end := at
	cutOPT := false
	for section, n := range counts {
		for range n {
			recordAt := at
			at = names.check(m, at, len(m))
			if at < 0 {
				return nil, errPointer
			}
			if at == 0 || at+10 > len(m) {
				return nil, errMalformed
			}
			typ := binary.BigEndian.Uint16(m[at:])
			ttl := binary.BigEndian.Uint32(m[at+4:])
			next := at + 10 + int(binary.BigEndian.Uint16(m[at+8:]))
			if next > len(m) {
				return nil, errMalformed
			}
			if err := names.inData(m, typ, at+10, next); err != nil {
				return nil, err
			}
			if typ == typeOPT {
				if section != 2 || cutOPT {
					return nil, errMalformed
				}
				// The OPT record belongs to this hop. What lies behind it (rare: it is mostly last) goes too, for
				// the records' own pointers to stay right.
				cutOPT, end = true, recordAt
				e.rcode |= m[at+4] << 4
				at = next
				continue
			}
			if ttl > 1<<31-1 {
				ttl = 0 // RFC 2181 section 8
			}
			if !cutOPT {
				e.ttls = append(e.ttls, uint16(at+4))
				minTTL = min(minTTL, ttl)
				end = next
			} else {
				counts[2]--
			}
			if section == 0 {
				sameType = sameType || typ == qtype
			}
			if section == 1 && typ == typeSOA && next-at >= 10+22 {
				haveSOA = true
				soaTTL = min(ttl, binary.BigEndian.Uint32(m[next-4:]))
			}
			at = next
		}
	}
	if cutOPT {
		counts[2]--
	}
	e.msg = append(make([]byte, 0, end), m[:end]...)
	binary.BigEndian.PutUint16(e.msg[10:], uint16(counts[2]))
	negative = negative || (e.rcode == rcodeOK && !sameType && haveSOA)
	switch {
	case e.truncated():
		e.life = 0 // RFC 2181 section 9
	case e.rcode != rcodeOK && e.rcode != rcodeNXDomain:
		e.life = int64(lt.servFail)
	case negative && haveSOA: // RFC 2308 section 5
		e.life = int64(min(time.Duration(min(soaTTL, minTTL))*time.Second, lt.maxNegative))
	case negative || len(e.ttls) == 0:
		e.life = 0 // without a SOA nobody says how long it holds
	default:
		e.life = int64(min(time.Duration(minTTL)*time.Second, lt.max))
	}
	e.findRun(headerSize + qlen)
	return e, nil
}

// findRun finds the longest run in the answer section that can be turned without moving what a pointer points at:
// records in a row whose owners are one and the same pointer to before the run.
func (e *entry) findRun(at int) {
	var runAt, runSize, runLen int
	for i := range e.answers {
		if i >= len(e.ttls) {
			return
		}
		t := int(e.ttls[i])
		next := t + 6 + int(binary.BigEndian.Uint16(e.msg[t+4:]))
		typ := binary.BigEndian.Uint16(e.msg[t-4:])
		ok := t-at == 6 && e.msg[at] >= 0xc0 && (typ == typeA || typ == typeAAAA)
		if ok {
			ok = int(binary.BigEndian.Uint16(e.msg[at:])&0x3fff) < at
		}
		switch {
		case ok && runLen > 0 && next-at == runSize && string(e.msg[at:t]) == string(e.msg[runAt:runAt+6]):
			runLen++
		case ok:
			runAt, runSize, runLen = at, next-at, 1
		default:
			runLen = 0
		}
		if runLen > 1 && runLen > e.runLen {
			e.runAt, e.runSize, e.runLen = runAt, runSize, runLen
		}
		at = next
	}
}

// truncated tells whether the upstream cut it short.
func (e *entry) truncated() bool { return e.msg[2]&(flagTC>>8) != 0 }

// size is about what the entry takes in memory.
func (e *entry) size() int { return len(e.key) + cap(e.msg) + 2*cap(e.ttls) + 160 }

// left is how much of its life is left, in nanoseconds.
func (e *entry) left(now int64) int64 { return e.stored + e.life - now }

// staleTTL is the TTL of stale data in seconds (RFC 8767 section 4).
const staleTTL = 30

// append appends the entry's records to msg, which holds header and question, as far as limit allows, with the TTL
// that is left of them.
func (e *entry) append(msg []byte, qlen, limit int, now int64, turn uint32, stale bool) ([]byte, outcome) {
	o := outcome{rcode: e.rcode, ede: edeNone}
	flags := binary.BigEndian.Uint16(e.msg[2:])
	o.flags = flags & (flagAD | flagTC)
	start := headerSize + qlen
	whole := len(e.msg)
	o.answer = binary.BigEndian.Uint16(e.msg[6:])
	o.authority = binary.BigEndian.Uint16(e.msg[8:])
	o.additional = binary.BigEndian.Uint16(e.msg[10:])
	records := len(e.ttls)
	if whole > limit {
		// Whole records only; the additional section may be cut short without saying so (RFC 2181 section 9).
		whole, records = start, 0
		for _, t := range e.ttls {
			next := int(t) + 6 + int(binary.BigEndian.Uint16(e.msg[t+4:]))
			if next > limit {
				break
			}
			whole = next
			records++
		}
		n := uint16(records)
		if n < o.answer+o.authority {
			o.flags |= flagTC
		}
		o.answer = min(o.answer, n)
		o.authority = min(o.authority, n-o.answer)
		o.additional = min(o.additional, n-o.answer-o.authority)
	}
	msg = append(msg, e.msg[start:whole]...)
	if n := e.runLen; n > 1 && e.runAt+e.runSize*n <= whole {
		if k := int(turn%uint32(n)) * e.runSize; k != 0 {
			run := e.msg[e.runAt : e.runAt+e.runSize*n]
			copy(msg[e.runAt:], run[k:])
			copy(msg[e.runAt+len(run)-k:], run[:k])
		}
	}
	age := uint32(max(now-e.stored, 0) / int64(time.Second))
	for _, t := range e.ttls[:records] {
		ttl := uint32(staleTTL)
		if !stale {
			if ttl = binary.BigEndian.Uint32(msg[t:]); ttl > 1<<31-1 {
				ttl = 0
			}
			// What is kept for less than its records say, a "no" for one, ends for the client when it ends here.
			if ttl = min(ttl, uint32(e.life/int64(time.Second))); ttl > age {
				ttl -= age
			} else {
				ttl = min(ttl, 1)
			}
		}
		binary.BigEndian.PutUint32(msg[t:], ttl)
	}
	if stale {
		o.ede = edeStale
	}
	return msg, o
}
