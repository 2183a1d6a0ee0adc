// SPDX-License-Identifier: Apache-2.0

package route

import (
	"hash/maphash"
	"iter"
	"maps"
	"slices"
)

// pathMap is entries by path, each path's in the order of precedence. It is immutable: a change gives another one, which
// shares with it all but the parts that the change falls into.
type pathMap struct {
	parts []map[string][]*Entry // none, one, or manyParts
	n     int                   // of paths
}

const (
	manyParts = 64
	fewPaths  = 128 // so many fit into one part
)

// pathSeed decides in which part a path is, and nothing that can be seen.
var pathSeed = maphash.MakeSeed()

func (m *pathMap) part(path string) int {
	if len(m.parts) < 2 {
		return 0
	}
	return int(maphash.String(pathSeed, path) % manyParts)
}

func (m *pathMap) get(path string) []*Entry {
	if len(m.parts) == 0 {
		return nil
	}
	return m.parts[m.part(path)][path]
}

// all gives the entries in no order.
func (m *pathMap) all() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for _, part := range m.parts {
			for _, es := range part {
				for _, e := range es {
					if !yield(e) {
						return
					}
				}
			}
		}
	}
}

// pathEdit is a change of a pathMap under way: the parts that are its own already.
type pathEdit struct {
	pathMap
	own [manyParts]bool
}

func (m pathMap) edit() *pathEdit {
	m.parts = slices.Clone(m.parts)
	return &pathEdit{pathMap: m}
}

// writable gives the part of a path, as one that may be written to.
func (m *pathEdit) writable(path string) map[string][]*Entry {
	if len(m.parts) == 0 {
		m.parts = []map[string][]*Entry{{}}
		m.own[0] = true
	}
	i := m.part(path)
	if !m.own[i] {
		m.parts[i], m.own[i] = maps.Clone(m.parts[i]), true
	}
	return m.parts[i]
}

// put adds an entry, unless it is there.
func (m *pathEdit) put(e *Entry) {
	part := m.writable(e.path)
	old, had := part[e.path]
	part[e.path] = insert(old, e)
	if had {
		return
	}
	if m.n++; m.n > fewPaths && len(m.parts) == 1 {
		few := m.parts[0]
		m.parts = make([]map[string][]*Entry, manyParts)
		for i := range m.parts {
			m.parts[i], m.own[i] = map[string][]*Entry{}, true
		}
		for path, es := range few {
			m.parts[m.part(path)][path] = es
		}
	}
}

// drop takes an entry away, if it is there.
func (m *pathEdit) drop(e *Entry) {
	if !slices.Contains(m.get(e.path), e) {
		return
	}
	part := m.writable(e.path)
	if left := without(part[e.path], e); len(left) > 0 {
		part[e.path] = left
		return
	}
	delete(part, e.path)
	m.n--
}

// insert gives a list with an entry more, in its place of precedence; the same list when it is in there.
func insert(list []*Entry, e *Entry) []*Entry {
	if slices.Contains(list, e) {
		return list
	}
	i, _ := slices.BinarySearchFunc(list, e, compare)
	out := make([]*Entry, 0, len(list)+1)
	return append(append(append(out, list[:i]...), e), list[i:]...)
}

// without gives a list with an entry less.
func without(list []*Entry, e *Entry) []*Entry {
	i := slices.Index(list, e)
	if i < 0 {
		return list
	}
	return append(append(make([]*Entry, 0, len(list)-1), list[:i]...), list[i+1:]...)
}
