// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"hash/maphash"
	"maps"
	"strings"
	"sync/atomic"
)

// hostIndex is a listener's hostnames. Requests read it without locks; one that comes or goes costs the copy of a small
// part, however many there are.
type hostIndex struct {
	seed      maphash.Seed
	exact     [hostShards]hostShard
	wildcard  [hostShards]hostShard // keyed without "*."
	wildcards atomic.Int64
	any       atomic.Pointer[hostCell]
}

const hostShards = 64

// hostShard is an immutable map, nil when it is empty.
type hostShard struct {
	atomic.Pointer[map[string]*hostCell]
}

func newHostIndex() *hostIndex { return &hostIndex{seed: maphash.MakeSeed()} }

// set puts a cell at a hostname: exact, "*.example.com" or ""; nil takes it away. For one goroutine at a time.
func (x *hostIndex) set(hostname string, c *hostCell) {
	if hostname == "" || hostname == "*" {
		x.any.Store(c)
		return
	}
	shards := &x.exact
	rest, wild := strings.CutPrefix(hostname, "*.")
	if wild {
		shards = &x.wildcard
	}
	shard := x.shard(shards, rest)
	next := map[string]*hostCell{}
	if old := shard.Load(); old != nil {
		next = maps.Clone(*old)
	}
	_, had := next[rest]
	if c != nil {
		next[rest] = c
	} else {
		delete(next, rest)
	}
	switch {
	case !wild || had == (c != nil):
	case had:
		x.wildcards.Add(-1)
	default:
		x.wildcards.Add(1)
	}
	if len(next) == 0 {
		shard.Store(nil)
	} else {
		shard.Store(&next)
	}
}

func (x *hostIndex) shard(shards *[hostShards]hostShard, host string) *hostShard {
	return &shards[maphash.String(x.seed, host)%hostShards]
}

func (s *hostShard) get(host string) *hostCell {
	if m := s.Load(); m != nil {
		return (*m)[host]
	}
	return nil
}

// find calls yield with the cells for a host, the most specific hostname's first, until it returns false.
func (x *hostIndex) find(host string, yield func(*hostCell) bool) {
	if c := x.shard(&x.exact, host).get(host); c != nil && !yield(c) {
		return
	}
	for rest := host; x.wildcards.Load() > 0; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		if c := x.shard(&x.wildcard, rest).get(rest); c != nil && !yield(c) {
			return
		}
	}
	if c := x.any.Load(); c != nil {
		yield(c)
	}
}
