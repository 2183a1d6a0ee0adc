// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"hash/maphash"
	"sync/atomic"
)

// table maps keys to values: any number of readers without a lock, one writer. Open addressing with linear probing
// over pointers to nodes; a key's node keeps its place and identity while the key stays, so a change of value is
// one atomic store. Growing builds a second array beside the first and swaps it in.
type table[V any] struct {
	seed maphash.Seed
	cur  atomic.Pointer[[]atomic.Pointer[node[V]]] // length a power of two

	// The writer's own:
	used int // nodes in the array, those without a value included
	live int // nodes with a value
}

// node is a key's place. A nil value means that the key is not there.
type node[V any] struct {
	hash  uint64
	key   string
	value atomic.Pointer[V]
}

func newTable[V any]() *table[V] {
	t := &table[V]{seed: maphash.MakeSeed()}
	a := make([]atomic.Pointer[node[V]], 16)
	t.cur.Store(&a)
	return t
}

// get is the key's value, or nil.
func (t *table[V]) get(key []byte) *V {
	if n := t.find(key); n != nil {
		return n.value.Load()
	}
	return nil
}

func (t *table[V]) find(key []byte) *node[V] {
	h := maphash.Bytes(t.seed, key)
	a := *t.cur.Load()
	mask := uint64(len(a) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		n := a[i].Load()
		if n == nil {
			return nil
		}
		if n.hash == h && n.key == string(key) {
			return n
		}
	}
}

// set gives the key a value, or takes it away with nil, and returns the key's node (nil if it has none).
func (t *table[V]) set(key string, v *V) *node[V] {
	h := maphash.String(t.seed, key)
	a := *t.cur.Load()
	mask := uint64(len(a) - 1)
	i := h & mask
	for ; ; i = (i + 1) & mask {
		n := a[i].Load()
		if n == nil {
			break
		}
		if n.hash == h && n.key == key {
			old := n.value.Swap(v)
			switch {
			case old == nil && v != nil:
				t.live++
			case old != nil && v == nil:
				t.live--
			}
			return n
		}
	}
	if v == nil {
		return nil
	}
	if 2*(t.used+1) > len(a) {
		t.rehash()
		return t.set(key, v)
	}
	n := &node[V]{hash: h, key: key}
	n.value.Store(v)
	a[i].Store(n)
	t.used++
	t.live++
	return n
}

// rehash moves the nodes that have a value to an array with room to double.
func (t *table[V]) rehash() {
	size := 16
	for size < 4*(t.live+1) {
		size *= 2
	}
	a := make([]atomic.Pointer[node[V]], size)
	mask := uint64(size - 1)
	t.used = 0
	for n := range t.all() {
		i := n.hash & mask
		for a[i].Load() != nil {
			i = (i + 1) & mask
		}
		a[i].Store(n)
		t.used++
	}
	t.cur.Store(&a)
}

// all goes over the nodes that have a value.
func (t *table[V]) all() func(yield func(*node[V]) bool) {
	return func(yield func(*node[V]) bool) {
		a := *t.cur.Load()
		for i := range a {
			if n := a[i].Load(); n != nil && n.value.Load() != nil && !yield(n) {
				return
			}
		}
	}
}
