// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// resolution is one address of one name.
type resolution struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"address"`
}

// learned is a resolution as it is kept.
type learned struct {
	resolution
	Until time.Time `json:"until"`
}

// expiring is a resolution that is known.
type expiring struct {
	learned
	kept  time.Time // until when it counts for the next agent
	index int       // in the queue
}

// expiries are the resolutions that count, and until when. Nothing in them costs more the more there are, but for
// bisection.
type expiries struct {
	at   map[resolution]*expiring
	next queue
}

// queue is a heap: what lapses next comes first.
type queue []*expiring

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].Until.Before(q[j].Until) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	e := x.(*expiring)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return e
}

func newExpiries() *expiries { return &expiries{at: map[resolution]*expiring{}} }

func (x *expiries) len() int { return len(x.at) }

func (x *expiries) knows(r resolution) bool { return x.at[r] != nil }

// extend has a resolution count until then, or longer if it does already.
func (x *expiries) extend(r resolution, until time.Time) *expiring {
	e := x.at[r]
	switch {
	case e == nil:
		e = &expiring{learned: learned{r, until}}
		x.at[r] = e
		heap.Push(&x.next, e)
	case until.After(e.Until):
		e.Until = until
		heap.Fix(&x.next, e.index)
	}
	return e
}

// first is when the next one lapses; zero if there is none.
func (x *expiries) first() time.Time {
	if len(x.next) == 0 {
		return time.Time{}
	}
	return x.next[0].Until
}

// due takes out what has lapsed by now: addresses by name.
func (x *expiries) due(now time.Time) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for len(x.next) > 0 && !x.next[0].Until.After(now) {
		e := heap.Pop(&x.next).(*expiring)
		delete(x.at, e.resolution)
		out[e.Name] = append(out[e.Name], e.Addr)
	}
	return out
}

const (
	// keptWithin is how much shorter the next agent may believe a resolution to count than this one: to write each time
	// that a name is asked for again would be much for little. It is less than nameGrace.
	keptWithin = 10 * time.Second

	// keptSpare is how many entries of a names file may be outdated, beside as many as there are resolutions.
	keptSpare = 1024
)

// namesFile is where resolutions are kept for the next agent: JSON lists, one a line; of what is in several the last counts.
type namesFile struct {
	path    string
	entries int // of all lists; 0: the file is to be written anew
}

// keep writes those of the changed resolutions of which the next agent would know too little. All are those that count.
func (f *namesFile) keep(changed []*expiring, all *expiries) error {
	changed = slices.DeleteFunc(changed, func(e *expiring) bool { return e.Until.Sub(e.kept) <= keptWithin })
	if len(changed) == 0 {
		return nil
	}
	if f.entries > 0 && f.entries+len(changed) <= 2*all.len()+keptSpare {
		if err := f.append(changed); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return f.rewrite(all)
}

func (f *namesFile) append(changed []*expiring) error {
	text, err := lineOf(changed)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return keepError(err)
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		f.entries = 0 // there may be half a line
		return keepError(err)
	}
	f.entries += len(changed)
	markKept(changed)
	return nil
}

func (f *namesFile) rewrite(all *expiries) error {
	text, err := lineOf(all.next)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return keepError(err)
	}
	if err := os.WriteFile(f.path+".new", text, 0o600); err != nil {
		return keepError(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		return keepError(err)
	}
	f.entries = all.len()
	markKept(all.next)
	return nil
}

// read gives what an earlier agent kept. What can be read counts, with an error that says of what can't.
func (f *namesFile) read() ([]learned, error) {
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []learned
	for d := json.NewDecoder(bytes.NewReader(text)); err == nil; {
		var some []learned
		if err = d.Decode(&some); err == nil {
			all = append(all, some...)
		}
	}
	if errors.Is(err, io.EOF) {
		return all, nil
	}
	return all, fmt.Errorf("what names resolved to is forgotten, but for %d entries of %s: %w", len(all), f.path, err)
}

func lineOf(all []*expiring) ([]byte, error) {
	list := make([]learned, len(all))
	for i, e := range all {
		list[i] = e.learned
	}
	text, err := json.Marshal(list)
	return append(text, '\n'), err
}

func markKept(all []*expiring) {
	for _, e := range all {
		e.kept = e.Until
	}
}

func keepError(err error) error { return fmt.Errorf("keep what names resolve to: %w", err) }
