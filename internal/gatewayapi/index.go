// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import "slices"

// set is a set of values.
type set[T comparable] map[T]struct{}

func (s set[T]) add(v T) { s[v] = struct{}{} }

func (s set[T]) has(v T) bool { _, ok := s[v]; return ok }

// once appends a value that is not there yet. It is for lists that stay short.
func once[T comparable](list *[]T, v T) {
	if !slices.Contains(*list, v) {
		*list = append(*list, v)
	}
}

// index tells which owners depend on a key, so that a change of the key's object finds them without looking at all.
type index[K, O comparable] struct {
	owners map[K]set[O]
	keys   map[O][]K
}

func newIndex[K, O comparable]() index[K, O] {
	return index[K, O]{owners: map[K]set[O]{}, keys: map[O][]K{}}
}

// set replaces all keys of the owner.
func (x *index[K, O]) set(o O, keys []K) {
	for _, k := range x.keys[o] {
		if owners := x.owners[k]; owners != nil {
			delete(owners, o)
			if len(owners) == 0 {
				delete(x.owners, k)
			}
		}
	}
	if len(keys) == 0 {
		delete(x.keys, o)
		return
	}
	x.keys[o] = keys
	for _, k := range keys {
		owners := x.owners[k]
		if owners == nil {
			owners = set[O]{}
			x.owners[k] = owners
		}
		owners.add(o)
	}
}

// of gives the owners that depend on the key. It must not be changed meanwhile.
func (x *index[K, O]) of(k K) set[O] { return x.owners[k] }
