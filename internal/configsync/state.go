// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bytes"
	"sort"

	"github.com/weft-net/weft/internal/route"
)

// tables is what a gateway's pods are to serve: every resource in its newest form, and a log of which changed when.
type tables struct {
	revision  uint64
	digest    digest
	resources map[route.Ref]*stored
	log       []change // ascending; forgets its older half when it outgrows the resources
	since     uint64   // the log holds all changes after this revision
}

type stored struct {
	resource
	sum digest
}

type change struct {
	revision uint64
	ref      route.Ref
}

// logSlack is how much longer than the resources the log may be.
const logSlack = 1024

// newTables makes empty tables whose first revision will be the one after the given one.
func newTables(before uint64) *tables {
	return &tables{revision: before, since: before, resources: make(map[route.Ref]*stored)}
}

// merge takes an update in and tells whether it changed anything.
func (t *tables) merge(u *route.Update) bool {
	next := t.revision + 1
	before := len(t.log)
	encoded := encode(u)
	removed := u.Removed
	if u.Complete {
		there := make(map[route.Ref]bool, len(encoded))
		for _, r := range encoded {
			there[r.ref()] = true
		}
		removed = nil
		for ref := range t.resources {
			if !there[ref] {
				removed = append(removed, ref)
			}
		}
	}
	for _, ref := range removed {
		if old := t.resources[ref]; old != nil {
			t.digest.toggle(old.sum)
			delete(t.resources, ref)
			t.log = append(t.log, change{next, ref})
		}
	}
	for _, r := range encoded {
		old := t.resources[r.ref()]
		if old != nil && bytes.Equal(old.Value, r.Value) {
			continue
		}
		if old != nil {
			t.digest.toggle(old.sum)
		}
		s := &stored{r, r.sum()}
		t.digest.toggle(s.sum)
		t.resources[r.ref()] = s
		t.log = append(t.log, change{next, r.ref()})
	}
	if len(t.log) == before {
		return false
	}
	t.revision = next
	if len(t.log) > 2*(len(t.resources)+logSlack) {
		cut := len(t.log) / 2
		for cut < len(t.log) && t.log[cut].revision == t.log[cut-1].revision {
			cut++ // a revision is forgotten in whole or not at all
		}
		t.since = t.log[cut-1].revision
		t.log = append([]change(nil), t.log[cut:]...)
	}
	return true
}

// updateFrom is what brings a pod that serves a revision up to date; all of it where the log no longer tells.
func (t *tables) updateFrom(epoch string, revision uint64) *update {
	out := &update{Epoch: epoch, Revision: t.revision, Digest: t.digest}
	if revision < t.since || revision > t.revision {
		out.Complete = true
		out.Resources = make([]resource, 0, len(t.resources))
		for _, s := range t.resources {
			out.Resources = append(out.Resources, s.resource)
		}
		return out
	}
	first := sort.Search(len(t.log), func(i int) bool { return t.log[i].revision > revision })
	seen := make(map[route.Ref]bool, len(t.log)-first)
	for _, c := range t.log[first:] {
		if seen[c.ref] {
			continue
		}
		seen[c.ref] = true
		if s := t.resources[c.ref]; s != nil {
			out.Resources = append(out.Resources, s.resource)
		} else {
			out.Removed = append(out.Removed, c.ref)
		}
	}
	return out
}
