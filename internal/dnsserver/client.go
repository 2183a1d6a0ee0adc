// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
)

// clientAddr is where a query came from.
type clientAddr struct{ netip.Addr }

// family is 0 for IPv4, 1 for IPv6.
func (c clientAddr) family() int {
	if c.Is4() {
		return 0
	}
	return 1
}

// bytes is the address for a cookie.
func (c clientAddr) bytes() []byte { return c.AsSlice() }

// limiter bounds the queries of each client over UDP: a token bucket each, in a table of fixed size. Clients that
// share a place share a bucket, which only happens by chance: the hash is keyed.
type limiter struct {
	rate  float64 // a second
	v4    int     // bits of an address that make a client
	v6    int
	seed  maphash.Seed
	locks [64]sync.Mutex
	table [limiterSize]bucket
}

const limiterSize = 1 << 14

type bucket struct {
	tokens float64
	last   int64
	odd    bool
}

// burstSeconds is how many seconds' worth of queries may come at once.
const burstSeconds = 2

// newLimiter makes a limiter; nil for no bound.
func newLimiter(rate float64, v4, v6 int) *limiter {
	if rate <= 0 {
		return nil
	}
	l := &limiter{rate: rate, v4: v4, v6: v6, seed: maphash.MakeSeed()}
	for i := range l.table {
		l.table[i].tokens = rate * burstSeconds
	}
	return l
}

// pace is what the limiter says of a query.
type pace uint8

const (
	goOn  pace = iota
	retry      // over the rate: tell the client to come by TCP, which shows its address to be its own
	hush       // over the rate: say nothing
)

// allow takes one query of a client into account. Of those over the rate every second is answered with TC, so that
// a client whose address is abused by others can still be heard.
func (l *limiter) allow(c clientAddr, now int64) pace {
	bits := l.v6
	if c.Is4() {
		bits = l.v4
	}
	p, err := c.Prefix(bits)
	if err != nil {
		return goOn
	}
	raw := p.Addr().As16()
	i := maphash.Bytes(l.seed, raw[:]) % limiterSize
	mu := &l.locks[i%uint64(len(l.locks))]
	mu.Lock()
	defer mu.Unlock()
	b := &l.table[i]
	b.tokens = math.Min(b.tokens+float64(now-b.last)/1e9*l.rate, l.rate*burstSeconds)
	b.last = now
	if b.tokens >= 1 {
		b.tokens--
		return goOn
	}
	b.odd = !b.odd
	if b.odd {
		return retry
	}
	return hush
}
