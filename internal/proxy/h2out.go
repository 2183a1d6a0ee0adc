// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"runtime"
	"time"

	"golang.org/x/net/http2"
)

// What a connection sends, and how it ends.

// room gives the output to append to. The lock is held.
func (m *h2mux) room() []byte {
	if m.out == nil {
		if m.out, m.spare = m.spare, nil; m.out == nil {
			m.out = (*smallBuffers.Get().(*[]byte))[:0]
		}
	}
	return m.out
}

// reserve makes room for n bytes in one piece, from the pools while it can. The lock is held.
func (m *h2mux) reserve(n int) {
	m.room()
	if cap(m.out)-len(m.out) >= n || cap(m.out) >= largeBuffer {
		return
	}
	b := append((*largeBuffers.Get().(*[]byte))[:0], m.out...)
	recycle(m.out[:cap(m.out)])
	m.out = b
}

// flush puts the output on the wire, unless somebody does already. It is called with the lock held and releases it.
func (m *h2mux) flush() {
	if m.flushing || len(m.out) == 0 || m.dead != nil {
		m.mu.Unlock()
		return
	}
	m.flushing = true
	few := len(m.out) < largeBuffer/4
	m.mu.Unlock()
	if few {
		runtime.Gosched() // others that are about to write come along: a system call costs more than all of this
	}
	m.write()
}

// write writes the output, until there is none: more than once in another goroutine, since exchanges have other things
// to do. flushing is set.
func (m *h2mux) write() {
	m.mu.Lock()
	b := m.out
	m.out = nil
	m.gen++
	m.mu.Unlock()
	m.w.deliverBy(time.Now(), m.sendPatience)
	_, err := m.w.conn.Write(b)
	if err != nil {
		m.fail(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spare == nil && cap(b) == smallBuffer {
		m.spare = b[:0]
	} else {
		recycle(b[:cap(b)])
	}
	if m.next(); len(m.out) > 0 && m.dead == nil {
		go m.write()
		return
	}
	m.flushing = false
	if m.flushed != nil {
		close(m.flushed)
		m.flushed = nil
	}
}

// next lets the stream that has waited longest send, if anything can be sent. The lock is held.
func (m *h2mux) next() {
	if len(m.waiting) == 0 || len(m.out) >= spill {
		return
	}
	s := m.waiting[0]
	if s.needsWindow && m.sendWindow <= 0 {
		return
	}
	m.waiting = append(m.waiting[:0], m.waiting[1:]...)
	s.queued, s.turn = false, true
	s.wakeWriter()
}

// shut says goodbye and why, and waits a while for that to be read.
func (m *h2mux) shut(code http2.ErrCode, reason string) {
	m.mu.Lock()
	if m.dead != nil {
		m.mu.Unlock()
		return
	}
	m.out = appendGoAway(m.room(), m.last, code, reason)
	if !m.flushing {
		m.flushing = true
		go m.write()
	}
	done := make(chan struct{})
	m.flushed = done
	m.mu.Unlock()
	t := time.NewTimer(lingerFor)
	defer t.Stop()
	select {
	case <-done:
		m.w.linger()
	case <-t.C:
	}
}

// fail ends the connection and all its streams.
func (m *h2mux) fail(err error) {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	m.mu.Lock()
	if m.dead != nil {
		m.mu.Unlock()
		return
	}
	m.dead = err
	for _, s := range m.streams {
		if s.gone == nil {
			s.abandon(err)
		}
	}
	m.mu.Unlock()
	m.w.conn.Close()
}

// reset ends a stream from our side.
func (m *h2mux) reset(stream uint32, code http2.ErrCode, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[stream]
	switch {
	case s == nil:
		m.remember(stream, true)
	case s.gone != nil:
		return
	default:
		s.abandon(why)
	}
	m.out = appendReset(m.room(), stream, code)
}

// endWith sees to it that the connection ends with its last stream. The lock is held.
func (m *h2mux) endWith() {
	m.ending = true
	if len(m.streams) == 0 {
		_ = m.w.conn.SetReadDeadline(time.Unix(1, 0)) // the reading goroutine does the rest
	}
}

// remember keeps a stream that has ended; ours tells that we reset it. The lock is held.
func (m *h2mux) remember(stream uint32, ours bool) {
	id := stream << 1
	if ours {
		id |= 1
	}
	m.recent[m.recents%recentStreams] = id
	m.recents++
}

// arm sees to it that expire runs no later than at t (Unix nanoseconds). The lock is held.
func (m *h2mux) arm(t int64) {
	if m.timerAt != 0 && m.timerAt <= t {
		return
	}
	m.timerAt = t
	d := max(time.Until(time.Unix(0, t)), 0)
	if m.timer == nil {
		m.timer = time.AfterFunc(d, m.expire)
	} else {
		m.timer.Reset(d)
	}
}

// expire wakes those who have waited too long.
func (m *h2mux) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now().UnixNano()
	m.timerAt = 0
	soonest := int64(0)
	for _, s := range m.streams {
		s.expire(now)
		for _, t := range [2]int64{s.readBy, s.writeBy} {
			if t != 0 && (soonest == 0 || t < soonest) {
				soonest = t
			}
		}
	}
	if soonest != 0 && m.dead == nil {
		m.arm(soonest)
	}
}
