// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// balancer is a route.Balance made ready.
type balancer struct {
	conf *route.Balance
	key  *route.Text
}

func newBalancer(c *route.Balance) *balancer {
	if c == nil {
		return nil
	}
	return &balancer{conf: c, key: text(c.Key)}
}

// pick chooses the endpoint for the request's next attempt, as the policy says; nil when there is none.
func (x *exchange) pick(b *backend) *endpoint {
	now := x.began.UnixNano()
	if x.plan == nil || x.plan.balance == nil {
		return b.pick(now, x.tried)
	}
	list := b.endpoints.Load()
	if list == nil || len(list.active) < 2 {
		return b.pick(now, x.tried)
	}
	switch p := x.plan.balance; p.conf.Kind {
	case route.RoundRobin:
		first := b.turn.Add(1)
		for i := range uint64(len(list.active)) {
			if e := list.active[(first+i)%uint64(len(list.active))]; e.usable(now, x.tried) {
				return e
			}
		}
	case route.EWMA:
		x.detail().began = time.Now().UnixNano()
		one, two := candidate(list.active, now, x.tried), candidate(list.active, now, x.tried)
		if two.cost(now) < one.cost(now) {
			return two
		}
		return one
	case route.Hash:
		d := x.detail()
		if !d.hashed {
			d.hashed = true
			if key := p.key.Append(nil, x); len(key) > 0 {
				h := fnv.New64a() // the same in all replicas of a gateway
				_, _ = h.Write(key)
				d.subset = h.Sum64() | 1
			}
		}
		if d.subset != 0 {
			return byHash(list.active, d.subset, max(p.conf.SubsetSize, 1), now, x.tried)
		}
	}
	return b.pick(now, x.tried)
}

// byHash chooses by rendezvous hashing: each endpoint has a rank for each key, so that one which comes or goes moves
// only the keys that are its own. Of the size highest the one with fewer requests of two is taken; those that can't be
// used leave their place to the next.
func byHash(active []*endpoint, key uint64, size int, now int64, tried []*endpoint) *endpoint {
	top := make([]ranked, 0, 8)
	rank := func(usable func(*endpoint) bool) {
		for _, e := range active {
			if !usable(e) {
				continue
			}
			r := ranked{mix(key ^ e.id), e}
			i, _ := slices.BinarySearchFunc(top, r, func(a, b ranked) int {
				if a.rank > b.rank {
					return -1
				}
				return 1
			})
			if i < size {
				top = slices.Insert(top, i, r)
				top = top[:min(len(top), size)]
			}
		}
	}
	rank(func(e *endpoint) bool { return e.ejected.Load() <= now && !contains(tried, e) })
	if len(top) == 0 {
		rank(func(e *endpoint) bool { return !contains(tried, e) })
	}
	if len(top) == 0 {
		rank(func(*endpoint) bool { return true })
	}
	one, two := top[rand.IntN(len(top))].e, top[rand.IntN(len(top))].e
	if two.inflight.Load() < one.inflight.Load() {
		return two
	}
	return one
}

type ranked struct {
	rank uint64
	e    *endpoint
}

// mix spreads the bits (the finaliser of splitmix64).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// latency is an endpoint's time to answer, as a moving average that follows peaks at once and forgets them slowly.
type latency struct {
	mu    sync.Mutex
	nanos float64
	at    int64 // Unix nanoseconds of the last change
}

// latencyDecay is how long it takes to forget most of what was.
const latencyDecay = float64(10 * time.Second)

func (l *latency) observe(took, now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.read(now)
	l.at = now
	if t := float64(max(took, 0)); t > old {
		l.nanos = t
	} else {
		const share = 0.2
		l.nanos = old + (t-old)*share
	}
}

// read gives the average as it has decayed: an endpoint that was slow gets another chance.
func (l *latency) read(now int64) float64 {
	return l.nanos * math.Exp(-float64(max(now-l.at, 0))/latencyDecay)
}

// cost is what another request would have to wait for at an endpoint.
func (e *endpoint) cost(now int64) float64 {
	e.took.mu.Lock()
	defer e.took.mu.Unlock()
	return (e.took.read(now) + 1) * float64(e.inflight.Load()+1)
}

// answered is told when an endpoint's answer begins.
func (x *exchange) answered(e *endpoint) {
	if d := x.more; d != nil && d.began != 0 {
		now := time.Now().UnixNano()
		e.took.observe(now-d.began, now)
		d.began = 0
	}
}

// The retry budget: of the requests under way at a backend at most a fifth, or a few, may be retries, so that a backend
// in trouble is not given several times its load.
const (
	retryShare = 5
	retryFew   = 10
)

// mayRetry takes a part of the budget, to be given back after the attempt. It is false when there is none left.
func (b *backend) mayRetry() bool {
	var inflight int64
	if list := b.endpoints.Load(); list != nil {
		for _, e := range list.all {
			inflight += e.inflight.Load()
		}
	}
	if n := b.retrying.Add(1); n > retryFew && n > inflight/retryShare {
		b.retrying.Add(-1)
		return false
	}
	return true
}
