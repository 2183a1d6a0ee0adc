// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/weft-net/weft/internal/dnszone"
)

// shards keep the cores from waiting for one another.
const shards = 64

// cache holds entries by question, bounded in number and memory. What has not been asked for since the clock's
// hand last passed goes first.
type cache struct {
	seed      maphash.Seed
	shard     [shards]shard
	evictions atomic.Uint64
}

type shard struct {
	mu      sync.Mutex
	entries map[string]*entry
	ring    []*entry
	hand    int
	bytes   int

	maxEntries, maxBytes int

	_ [64]byte // a cache line of its own
}

// newCache makes a cache of at most that many entries and about that many bytes.
func newCache(entries, bytes int) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shard {
		s := &c.shard[i]
		s.entries = make(map[string]*entry)
		s.maxEntries, s.maxBytes = max(entries/shards, 1), max(bytes/shards, 1)
	}
	return c
}

// Parts of a key beside the question: answers differ by them.
const (
	keyDO = 1
	keyCD = 2
)

// maxKey is room for the longest key: name, type, bits.
const maxKey = 255 + 2 + 1

// appendKey makes a question's key.
func appendKey(b []byte, q *dnszone.Question, do, cd bool) []byte {
	b = append(b, q.Wire()...)
	bits := byte(0)
	if do {
		bits |= keyDO
	}
	if cd {
		bits |= keyCD
	}
	return append(b, byte(q.Type>>8), byte(q.Type), bits)
}

// keyQuestion is the question of a key.
func keyQuestion(key string) (q dnszone.Question) {
	q.Read([]byte(key))
	q.Type = uint16(key[len(key)-3])<<8 | uint16(key[len(key)-2])
	return q
}

func (c *cache) of(key []byte) *shard { return &c.shard[maphash.Bytes(c.seed, key)%shards] }

// get is the question's entry, fresh or not, or nil.
func (c *cache) get(key []byte) *entry {
	s := c.of(key)
	s.mu.Lock()
	e := s.entries[string(key)]
	s.mu.Unlock()
	if e != nil && !e.touched.Load() {
		e.touched.Store(true)
	}
	return e
}

// put keeps an entry in the place of what was there.
func (c *cache) put(e *entry) {
	s := c.of([]byte(e.key))
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.entries[e.key]; old != nil {
		s.bytes += e.size() - old.size()
		s.entries[e.key] = e
		e.slot = old.slot
		s.ring[e.slot] = e
	} else {
		s.bytes += e.size()
		s.entries[e.key] = e
		e.slot = len(s.ring)
		s.ring = append(s.ring, e)
	}
	for len(s.ring) > 1 && (len(s.ring) > s.maxEntries || s.bytes > s.maxBytes) {
		s.evict(e)
		c.evictions.Add(1)
	}
}

// drop takes an entry out, if it is still there.
func (c *cache) drop(e *entry) {
	s := c.of([]byte(e.key))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[e.key] == e {
		s.remove(e)
	}
}

// forget takes out what which says.
func (c *cache) forget(which func(key string) bool) {
	for i := range c.shard {
		s := &c.shard[i]
		s.mu.Lock()
		for key, e := range s.entries {
			if which(key) {
				s.remove(e)
			}
		}
		s.mu.Unlock()
	}
}

func (s *shard) remove(e *entry) {
	last := len(s.ring) - 1
	s.ring[e.slot] = s.ring[last]
	s.ring[e.slot].slot = e.slot
	s.ring[last] = nil
	s.ring = s.ring[:last]
	delete(s.entries, e.key)
	s.bytes -= e.size()
}

// evict drops one entry, not the one given.
func (s *shard) evict(keep *entry) {
	for {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		e := s.ring[s.hand]
		if e == keep || e.touched.Swap(false) {
			s.hand++
			continue
		}
		s.remove(e)
		return
	}
}

// count is how many entries there are, by whether they say yes or no.
func (c *cache) count() (success, denial int) {
	for i := range c.shard {
		s := &c.shard[i]
		s.mu.Lock()
		for _, e := range s.ring {
			if e.rcode == rcodeOK && e.answers > 0 {
				success++
			} else {
				denial++
			}
		}
		s.mu.Unlock()
	}
	return success, denial
}
