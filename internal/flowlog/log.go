// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"context"
	"sync"
)

// Log keeps the latest events of a node. The zero value keeps none; see New. It is safe for concurrent use.
type Log struct {
	mu    sync.Mutex
	ring  []Event
	first uint64 // number of the oldest event in ring
	next  uint64 // number of the next event
	wake  chan struct{}
}

// New returns a Log that keeps so many events.
func New(keep int) *Log {
	return &Log{ring: make([]Event, keep), wake: make(chan struct{})}
}

// Add takes an event; the oldest one goes when there is no room.
func (l *Log) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring[l.next%uint64(len(l.ring))] = e
	l.next++
	if l.next-l.first > uint64(len(l.ring)) {
		l.first++
	}
	close(l.wake)
	l.wake = make(chan struct{})
}

// Read calls f with each event that is kept, oldest first, and, if follow is set, with each that comes, until ctx is
// done or f fails. A reader slower than the events misses some; lost tells how many since the event before.
func (l *Log) Read(ctx context.Context, follow bool, f func(e *Event, lost uint64) error) error {
	at := uint64(0)
	for {
		l.mu.Lock()
		lost := uint64(0)
		if at < l.first {
			if at > 0 {
				lost = l.first - at
			}
			at = l.first
		}
		wake := l.wake
		var e Event
		there := at < l.next
		if there {
			e = l.ring[at%uint64(len(l.ring))]
		}
		l.mu.Unlock()
		if there {
			if err := f(&e, lost); err != nil {
				return err
			}
			at++
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
	}
}
