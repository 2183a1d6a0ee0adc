// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// h2stream is one stream (RFC 9113 section 5): what has come and is not consumed, and what may be sent. All is guarded
// by its connection's lock. At most one goroutine reads and one writes.
type h2stream struct {
	m    *h2mux
	id   uint32
	call *h2call // to an endpoint; nil on a client's connection
	// gone is why the stream was cut off: reset by either side, or the connection's end.
	gone    error
	watcher interrupter // told when gone is set

	// Receiving.
	chunks     []*h2chunk
	given      int   // bytes of chunks[0] that the reader looks at
	recvEnd    bool  // END_STREAM has come
	declared   int64 // content-length; -1: none
	got        int64
	recvWindow int64 // what the peer thinks it may send is at most this
	recvSize   int64
	recvTaken  int64
	ends       []field              // trailers
	patience   time.Duration        // for each wait of the reader
	more       func() time.Duration // how much longer it waits when that is over; nil: not at all
	readEnd    int64                // when it is to stop waiting whatever comes; 0: never
	cancelled  bool                 // the reader is to give up
	reading    bool
	readBy     int64 // Unix nanoseconds; 0: no end
	readLate   bool
	readWake   chan struct{}

	// Sending.
	sendPatience time.Duration // for each piece; 0: the connection's
	sendWindow   int64
	sentEnd      bool
	writing      bool
	queued       bool // in the connection's waiting list
	needsWindow  bool // there for the connection's window, not only for room in its output
	turn         bool // taken from there: others wait for this one
	writeBy      int64
	writeLate    bool
	writeWake    chan struct{}
	frameAt      int    // offset of the stream's last frame in the output
	frameGen     uint32 // of that output
}

// h2chunk is received data: buf[r:w].
type h2chunk struct {
	buf  []byte
	r, w int
}

var (
	smallChunks  = sync.Pool{New: func() any { return &h2chunk{buf: make([]byte, smallBuffer)} }}
	mediumChunks = sync.Pool{New: func() any { return &h2chunk{buf: make([]byte, mediumBuffer)} }}
)

func (c *h2chunk) free() {
	c.r, c.w = 0, 0
	if len(c.buf) == smallBuffer {
		smallChunks.Put(c)
	} else {
		mediumChunks.Put(c)
	}
}

// prepare makes a stream ready for use, with the connection's lock held.
func (s *h2stream) prepare(m *h2mux, id uint32) {
	read, write := s.readWake, s.writeWake
	if read == nil {
		read, write = make(chan struct{}, 1), make(chan struct{}, 1)
	}
	*s = h2stream{
		m: m, id: id, readWake: read, writeWake: write, chunks: s.chunks[:0], declared: -1,
		gone: m.dead, recvWindow: streamWindow, recvSize: streamWindow, sendWindow: m.initialWindow, frameAt: -1,
	}
	m.streams[id] = s
}

// abandon cuts the stream off. The lock is held, also while the watcher is told, so that after unwatch nothing comes.
func (s *h2stream) abandon(why error) {
	s.gone = why
	s.wakeReader()
	s.wakeWriter()
	if s.watcher != nil {
		s.watcher.interrupt()
		s.watcher = nil
	}
}

// watch has i interrupted when the stream is cut off; it is false when it has been already.
func (s *h2stream) watch(i interrupter) bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.gone != nil {
		return false
	}
	s.watcher = i
	return true
}

func (s *h2stream) unwatch() bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	untold := s.watcher != nil
	s.watcher = nil
	return untold
}

// finish takes the stream out of its connection when its exchange is over. code is for a stream whose sending or
// receiving has not ended.
func (s *h2stream) finish(code http2.ErrCode) {
	m := s.m
	m.mu.Lock()
	ours := false
	if s.gone == nil {
		if !s.sentEnd || !s.recvEnd {
			m.out = appendReset(m.room(), s.id, code)
			ours = true
		} else {
			m.done++
		}
	} else if _, theirs := s.gone.(*resetError); !theirs {
		ours = true
	}
	left := int64(0)
	for i, c := range s.chunks {
		left += int64(c.w - c.r)
		c.free()
		s.chunks[i] = nil
	}
	s.chunks = s.chunks[:0]
	m.consumed(left)
	m.grown -= s.recvSize - streamWindow
	delete(m.streams, s.id)
	m.remember(s.id, ours)
	m.pass(s)
	if m.ending {
		m.endWith()
	}
	m.flush()
}

// received takes data, which fits the window.
func (s *h2stream) received(p []byte) {
	for len(p) > 0 {
		var c *h2chunk
		if n := len(s.chunks); n > 0 && s.chunks[n-1].w < len(s.chunks[n-1].buf) {
			c = s.chunks[n-1]
		} else {
			if n == 0 && len(p) <= smallBuffer {
				c = smallChunks.Get().(*h2chunk)
			} else {
				c = mediumChunks.Get().(*h2chunk)
			}
			s.chunks = append(s.chunks, c)
		}
		n := copy(c.buf[c.w:], p)
		c.w += n
		p = p[n:]
	}
	s.wakeReader()
}

// endOfInput takes the peer's END_STREAM; false means that the body was shorter than was declared.
func (s *h2stream) endOfInput() bool {
	if s.declared >= 0 && s.got != s.declared {
		return false
	}
	s.recvEnd = true
	s.wakeReader()
	return true
}

// taken counts what has been consumed and gives the windows back once that is worth a frame. A stream that is consumed
// as fast as it comes gets a larger window, so that distance does not slow it down.
func (s *h2stream) taken(n int64) {
	s.recvTaken += n
	if s.recvTaken >= s.recvSize/2 && !s.recvEnd && s.gone == nil {
		m := s.m
		if s.recvSize < maxStreamWindow && len(s.chunks) <= 1 && (m.grown+s.recvSize <= maxGrown || !m.role.fromServer()) {
			m.grown += s.recvSize
			s.recvTaken += s.recvSize
			s.recvSize *= 2
			if s.recvSize > m.recvSize/2 && m.recvSize < maxConnWindow {
				m.recvTaken += m.recvSize
				m.recvSize *= 2
			}
		}
		m.out = appendWindowUpdate(m.room(), s.id, s.recvTaken)
		s.recvWindow += s.recvTaken
		s.recvTaken = 0
	}
	s.m.consumed(n)
}

// consumed counts what nobody will look at any more. An endpoint has had it back already: see maxGrown.
func (m *h2mux) consumed(n int64) {
	if !m.role.fromServer() {
		m.giveBack(n)
	}
}

// giveBack gives n bytes of the connection's window back.
func (m *h2mux) giveBack(n int64) {
	if m.recvTaken += n; m.recvTaken >= m.recvSize/2 {
		m.out = appendWindowUpdate(m.room(), 0, m.recvTaken)
		m.recvWindow += m.recvTaken
		m.recvTaken = 0
	}
}

func (s *h2stream) wakeReader() {
	if s.reading {
		s.reading = false
		s.readWake <- struct{}{}
	}
}

func (s *h2stream) wakeWriter() {
	if s.writing {
		s.writing = false
		s.writeWake <- struct{}{}
	}
}

// awaitRead waits for something to happen to what is received, until by (Unix nanoseconds; 0 is for ever). The lock is
// held before and after.
func (s *h2stream) awaitRead(by int64) error {
	s.reading, s.readLate, s.readBy = true, false, by
	if by != 0 {
		s.m.arm(by)
	}
	s.m.mu.Unlock()
	<-s.readWake
	s.m.mu.Lock()
	s.readBy = 0
	if s.readLate {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *h2stream) awaitWrite(by int64) error {
	s.writing, s.writeLate, s.writeBy = true, false, by
	s.m.arm(by)
	s.m.mu.Unlock()
	<-s.writeWake
	s.m.mu.Lock()
	s.writeBy = 0
	if s.writeLate {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// expire wakes those of the stream who have waited too long.
func (s *h2stream) expire(now int64) {
	if s.readBy != 0 && s.readBy <= now {
		s.readBy, s.readLate = 0, true
		s.wakeReader()
	}
	if s.writeBy != 0 && s.writeBy <= now {
		s.writeBy, s.writeLate = 0, true
		s.wakeWriter()
	}
}

// next implements body.
func (s *h2stream) next() ([]byte, error) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.given > 0 {
		c := s.chunks[0]
		n := s.given
		c.r += n
		s.given = 0
		if c.r == c.w {
			if c.r == len(c.buf) || len(s.chunks) > 1 {
				copy(s.chunks, s.chunks[1:])
				s.chunks[len(s.chunks)-1] = nil
				s.chunks = s.chunks[:len(s.chunks)-1]
				c.free()
			} else {
				c.r, c.w = 0, 0
			}
		}
		s.taken(int64(n))
	}
	by := int64(0)
	for {
		if len(s.chunks) > 0 && s.chunks[0].w > s.chunks[0].r && !s.cancelled {
			c := s.chunks[0]
			s.given = c.w - c.r
			return c.buf[c.r:c.w], nil
		}
		switch {
		case s.cancelled && len(s.chunks) > 0: // what is left must not be taken for all there was
			return nil, os.ErrDeadlineExceeded
		case s.recvEnd:
			return nil, io.EOF
		case s.gone != nil:
			return nil, s.gone
		case s.cancelled:
			return nil, os.ErrDeadlineExceeded
		}
		if len(m.out) > 0 && !m.flushing { // a window update, perhaps the one that the peer waits for
			m.flush()
			m.mu.Lock()
			continue
		}
		if by == 0 {
			if by = s.readEnd; by == 0 {
				by = time.Now().Add(s.patience).UnixNano()
			}
		}
		if err := s.awaitRead(by); err != nil && !s.bears(&by) {
			return nil, err
		}
	}
}

// ready implements body.
func (s *h2stream) ready() bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	have := -s.given
	for _, c := range s.chunks {
		have += c.w - c.r
	}
	return have > 0 || s.recvEnd || s.gone != nil
}

// trailers implements body.
func (s *h2stream) trailers() []field { return s.ends }

// bears tells whether a reader that has waited for as long as it has patience waits on, and until when.
func (s *h2stream) bears(by *int64) bool {
	if s.more == nil || s.readEnd != 0 {
		return false
	}
	d := s.more()
	*by = time.Now().Add(d).UnixNano()
	return d > 0
}

// bear implements origin.
func (s *h2stream) bear(more func() time.Duration) { s.more = more }

// giveUp makes a reader of the body return.
func (s *h2stream) giveUp() {
	s.m.mu.Lock()
	s.cancelled = true
	s.wakeReader()
	s.m.mu.Unlock()
}

// sendHead appends a head, which encode makes, with END_STREAM if end is set. It does not wait for room, so that
// streams are opened in the order of their numbers. The lock is held.
func (s *h2stream) sendHead(end bool, encode func(b []byte) []byte) {
	m := s.m
	m.reserve(1 << 10)
	start := len(m.out)
	b := appendFrame(m.out, 0, http2.FrameHeaders, http2.FlagHeadersEndHeaders, s.id)
	if m.shrunk { // the encoder's table is empty: its size may as well be 0 from now on (RFC 7541 section 4.2)
		m.shrunk = false
		b = append(b, 0x20)
	}
	b = encode(b)
	s.frameAt, s.frameGen = start, m.gen
	if end {
		b[start+4] |= byte(http2.FlagHeadersEndStream)
		s.sentEnd = true
	}
	size := len(b) - start - frameHeader
	if size <= m.sendFrame {
		setFrameLength(b[start:], size)
		m.out = b
		return
	}
	block := append([]byte(nil), b[start+frameHeader:]...)
	setFrameLength(b[start:], m.sendFrame)
	b[start+4] &^= byte(http2.FlagHeadersEndHeaders)
	b = b[:start+frameHeader+m.sendFrame]
	for block = block[m.sendFrame:]; len(block) > 0; {
		n, flags := min(len(block), m.sendFrame), http2.Flags(0)
		if n == len(block) {
			flags = http2.FlagContinuationEndHeaders
		}
		b = append(appendFrame(b, n, http2.FrameContinuation, flags, s.id), block[:n]...)
		block = block[n:]
	}
	m.out = b
}

// sendPiece is the largest payload of DATA frames, in bytes: with its header it fits a TLS record.
const sendPiece = maxFrame - frameHeader

// sendData sends a piece of a body as the windows allow. It is not on the wire when it returns: flush sees to that.
func (s *h2stream) sendData(p []byte) error {
	m, by := s.m, int64(0)
	m.mu.Lock()
	for len(p) > 0 {
		if err := s.cleared(&by, true); err != nil {
			m.pass(s)
			m.mu.Unlock()
			return err
		}
		n := int(min(int64(len(p)), s.sendWindow, m.sendWindow, sendPiece))
		m.reserve(frameHeader + n)
		s.frameAt, s.frameGen = len(m.out), m.gen
		m.out = append(appendFrame(m.out, n, http2.FrameData, 0, s.id), p[:n]...)
		p = p[n:]
		s.sendWindow -= int64(n)
		m.sendWindow -= int64(n)
		m.pieces++
		m.next()
		if len(m.out) >= spill {
			m.flush()
			m.mu.Lock()
		}
	}
	m.mu.Unlock()
	return nil
}

// cleared waits until the stream may send a piece of a body, or a head, which needs no window. The lock is held before
// and after.
func (s *h2stream) cleared(by *int64, window bool) error {
	m := s.m
	for {
		switch {
		case s.gone != nil:
			return s.gone
		case m.dead != nil:
			return m.dead
		}
		open := !window || s.sendWindow > 0
		can := (!window || m.sendWindow > 0) && len(m.out) < spill
		if open && can && (s.turn || len(m.waiting) == 0 || !window) {
			s.turn = false
			return nil
		}
		if s.turn { // not for this one now: pass it on
			s.turn = false
			m.next()
		}
		if len(m.out) > 0 && !m.flushing {
			m.flush()
			m.mu.Lock()
			continue
		}
		if open && !s.queued {
			m.enqueue(s, window)
			if m.next(); s.turn {
				continue
			}
		}
		if *by == 0 {
			*by = time.Now().Add(cmp.Or(s.sendPatience, m.sendPatience)).UnixNano()
		}
		err := s.awaitWrite(*by)
		if s.queued && (err != nil || s.gone != nil) {
			m.unqueue(s)
		}
		if err != nil {
			return err
		}
	}
}

// enqueue puts the stream behind those that wait already. Heads go before bodies, which may need a window.
func (m *h2mux) enqueue(s *h2stream, window bool) {
	s.queued, s.needsWindow = true, window
	if window {
		m.waiting = append(m.waiting, s)
	} else {
		m.waiting = append([]*h2stream{s}, m.waiting...)
	}
}

// pass gives a turn that is not used to the next.
func (m *h2mux) pass(s *h2stream) {
	if s.turn {
		s.turn = false
		m.next()
	}
}

func (m *h2mux) unqueue(s *h2stream) {
	for i, o := range m.waiting {
		if o == s {
			m.waiting = append(m.waiting[:i], m.waiting[i+1:]...)
			break
		}
	}
	s.queued = false
}

// sendEnd ends what is sent, with trailers if there are any. The lock is held.
func (s *h2stream) sendEnd(trailers []field) {
	m := s.m
	if s.sentEnd || s.gone != nil {
		return
	}
	live := false
	for i := range trailers {
		live = live || trailers[i].id != fDropped
	}
	switch {
	case live:
		s.sendHead(true, func(b []byte) []byte { return appendHeadFields(b, trailers) })
	case s.frameAt >= 0 && s.frameGen == m.gen && (s.call == nil || http2.FrameType(m.out[s.frameAt+3]) == http2.FrameData):
		// The stream's last frame has not left: it is made the last one. Its flag is the same for HEADERS and DATA. But a
		// request's head is not, once a body was announced: see begin.
		m.out[s.frameAt+4] |= byte(http2.FlagDataEndStream)
	default:
		m.out = appendFrame(m.room(), 0, http2.FrameData, http2.FlagDataEndStream, s.id)
	}
	s.sentEnd = true
}

// left tells whether the stream was cut off.
func (s *h2stream) left() bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.gone != nil
}
