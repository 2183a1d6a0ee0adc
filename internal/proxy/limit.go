// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// limit is a route.RateLimit at work: a leaky bucket for each key.
type limit struct {
	conf      *route.RateLimit
	key       *route.Text // nil: the client's address
	interval  int64       // nanoseconds that a request takes to leak out
	tolerance int64       // nanoseconds that a bucket may be ahead
	buckets   *buckets
}

func newLimit(conf *route.RateLimit, old []*limit) *limit {
	l := &limit{conf: conf, key: text(conf.Key)}
	l.interval = max(int64(conf.Per)/int64(conf.Requests), 1)
	l.tolerance = l.interval * int64(conf.Burst)
	for _, o := range old {
		if o.conf.Name == conf.Name && o.conf.Key == conf.Key {
			l.buckets = o.buckets
		}
	}
	if l.buckets == nil {
		l.buckets = &buckets{seed: maphash.MakeSeed()}
	}
	return l
}

// allows counts a request.
func (l *limit) allows(x *exchange) bool {
	client := x.source()
	if within(l.conf.Exempt, client) {
		return true
	}
	var key uint64
	if l.key == nil {
		key = l.buckets.ofAddr(client)
	} else {
		var space [128]byte
		b := l.key.Append(space[:0], x)
		if len(b) == 0 {
			return true // as nginx: what has no key is not counted
		}
		key = maphash.Bytes(l.buckets.seed, b)
	}
	return l.buckets.take(key, time.Now().UnixNano(), l.interval, l.tolerance)
}

// statusOf is what a limit answers with.
func statusOf(s int) int {
	if s == 0 {
		return http.StatusServiceUnavailable
	}
	return s
}

// buckets are leaky buckets by the hash of their key. Of each only the time is kept when it will have run empty (the
// "theoretical arrival time" of the generic cell rate algorithm); one that is empty needs none. Their number is bounded:
// when too many keys are busy, the emptiest of a few is forgotten, which forgives the least.
type buckets struct {
	seed   maphash.Seed
	shards [64]bucketShard
}

type bucketShard struct {
	mu sync.Mutex
	at map[uint64]int64
	_  [48]byte // shards have a cache line each
}

// shardMost bounds a shard: 64 of them hold 131,072 keys, some 5 MB.
const shardMost = 2048

func (b *buckets) ofAddr(a netip.Addr) uint64 {
	raw := a.As16()
	return maphash.Bytes(b.seed, raw[:])
}

// take puts a request into the bucket, unless it would then be ahead of its rate by more than tolerance.
func (b *buckets) take(key uint64, now, interval, tolerance int64) bool {
	s := &b.shards[key%uint64(len(b.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.at[key]
	if at < now {
		at = now
	}
	if at-now > tolerance {
		return false
	}
	if !known && len(s.at) >= shardMost {
		s.forget(now)
	}
	if s.at == nil {
		s.at = map[uint64]int64{}
	}
	s.at[key] = at + interval
	return true
}

// forget makes room: of the keys that the map gives first, in random order, those with an empty bucket go, or else the
// one that is empty soonest.
func (s *bucketShard) forget(now int64) {
	var soonest uint64
	least, n, gone := int64(1<<63-1), 0, 0
	for k, at := range s.at {
		switch {
		case at <= now:
			delete(s.at, k)
			gone++
		case at < least:
			soonest, least = k, at
		}
		if n++; n == 16 {
			break
		}
	}
	if gone == 0 {
		delete(s.at, soonest)
	}
}

// sweep forgets all buckets that are empty.
func (b *buckets) sweep(now int64) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for k, at := range s.at {
			if at <= now {
				delete(s.at, k)
			}
		}
		if len(s.at) == 0 {
			s.at = nil
		}
		s.mu.Unlock()
	}
}

// connectionLimit is a route.Connections at work. It holds as many keys as there are requests under way.
type connectionLimit struct {
	conf  *route.Connections
	count *counts
}

type counts struct {
	seed maphash.Seed
	mu   [16]sync.Mutex
	n    [16]map[uint64]uint32
}

func newConnectionLimit(conf *route.Connections, old *connectionLimit) *connectionLimit {
	if old != nil { // requests under way have been counted there
		return &connectionLimit{conf: conf, count: old.count}
	}
	return &connectionLimit{conf: conf, count: &counts{seed: maphash.MakeSeed()}}
}

// enter counts a request until leave, unless there are too many.
func (c *connectionLimit) enter(a netip.Addr) (key uint64, ok bool) {
	if within(c.conf.Exempt, a) {
		return 0, true
	}
	raw := a.As16()
	key = maphash.Bytes(c.count.seed, raw[:]) | 1 // 0 stands for one that is not counted
	i := key >> 60
	c.count.mu[i].Lock()
	defer c.count.mu[i].Unlock()
	if c.count.n[i] == nil {
		c.count.n[i] = map[uint64]uint32{}
	}
	if c.count.n[i][key] >= c.conf.Max {
		return 0, false
	}
	c.count.n[i][key]++
	return key, true
}

func (c *connectionLimit) leave(key uint64) {
	if key == 0 {
		return
	}
	i := key >> 60
	c.count.mu[i].Lock()
	defer c.count.mu[i].Unlock()
	if c.count.n[i][key]--; c.count.n[i][key] == 0 {
		delete(c.count.n[i], key)
	}
}

// limited tells whether a limit refuses the request, which it then answers.
func (x *exchange) limited(g *guards) bool {
	if g.conns != nil {
		key, ok := g.conns.enter(x.source())
		if !ok {
			x.deny(deniedConnections, statusOf(g.conns.conf.Status), "too many requests under way")
			return true
		}
		d := x.detail()
		d.conns, d.connsKey = g.conns, key
	}
	for _, l := range g.limits {
		if !l.allows(x) {
			x.tooFast(l)
			return true
		}
	}
	return false
}

// tooFast answers with the status of a limit, and when another try makes sense.
func (x *exchange) tooFast(l *limit) {
	status := statusOf(l.conf.Status)
	if status == http.StatusTooManyRequests {
		seconds := (time.Duration(l.interval) + time.Second - 1) / time.Second
		x.detail().added = append(x.detail().added, newField("Retry-After", strconv.FormatInt(int64(seconds), 10)))
	}
	x.deny(deniedRate, status, "rate limit "+l.conf.Name)
}
