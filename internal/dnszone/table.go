// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"hash/maphash"
	"sync/atomic"
)

// table maps keys to values that know their own keys: any number of readers without a lock, one writer. Open
// addressing with linear probing; hash and value lie in the slot itself, so a lookup mostly touches one line of the
// table, then the value, then what the value compares the key with. A new value for a key is one atomic store; growing
// builds a second array beside the first and swaps it in.
type table[V any, P keyed[V]] struct {
	seed maphash.Seed
	cur  atomic.Pointer[[]slot[V]] // length a power of two

	// The writer's own:
	used int // slots with a hash, those without a value included
	live int // slots with a value
}

// keyed is a value that tells whether a key is its own.
type keyed[V any] interface {
	*V
	is(key []byte) bool
}

// slot is free while its hash is 0, and no longer anybody's while its value is nil.
type slot[V any] struct {
	hash  atomic.Uint64
	value atomic.Pointer[V]
}

func newTable[V any, P keyed[V]]() *table[V, P] {
	t := &table[V, P]{seed: maphash.MakeSeed()}
	a := make([]slot[V], 16)
	t.cur.Store(&a)
	return t
}

// hash is never 0.
func (t *table[V, P]) hash(key []byte) uint64 { return maphash.Bytes(t.seed, key) | 1 }

// get is the key's value, or nil.
func (t *table[V, P]) get(key []byte) *V {
	h := t.hash(key)
	a := *t.cur.Load()
	mask := uint64(len(a) - 1)
	for i := h >> 1 & mask; ; i = (i + 1) & mask {
		switch a[i].hash.Load() {
		case 0:
			return nil
		case h:
			if v := a[i].value.Load(); v != nil && P(v).is(key) {
				return v
			}
		}
	}
}

// set gives the key a value, or takes it away with nil.
func (t *table[V, P]) set(key []byte, v *V) {
	h := t.hash(key)
	a := *t.cur.Load()
	mask := uint64(len(a) - 1)
	for i := h >> 1 & mask; a[i].hash.Load() != 0; i = (i + 1) & mask {
		if a[i].hash.Load() != h {
			continue
		}
		if old := a[i].value.Load(); old != nil && P(old).is(key) {
			a[i].value.Store(v)
			if v == nil {
				t.live--
			}
			return
		}
	}
	if v == nil {
		return
	}
	if 3*(t.used+1) > 2*len(a) {
		a = t.grow()
	}
	t.used++
	t.live++
	place(a, h, v)
}

// place enters a value whose key is not there yet.
func place[V any](a []slot[V], h uint64, v *V) {
	mask := uint64(len(a) - 1)
	i := h >> 1 & mask
	for a[i].hash.Load() != 0 {
		i = (i + 1) & mask
	}
	// The value first: whoever sees the hash sees the value.
	a[i].value.Store(v)
	a[i].hash.Store(h)
}

// grow moves the values to an array with room for as many again.
func (t *table[V, P]) grow() []slot[V] {
	size := 16
	for size < 2*(t.live+1) {
		size *= 2
	}
	a := make([]slot[V], size)
	old := *t.cur.Load()
	t.used = 0
	for i := range old {
		if v := old[i].value.Load(); v != nil {
			place(a, old[i].hash.Load(), v)
			t.used++
		}
	}
	t.cur.Store(&a)
	return a
}
