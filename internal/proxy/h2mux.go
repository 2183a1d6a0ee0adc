// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// h2mux is one HTTP/2 connection, of a client or to an endpoint. One goroutine reads its frames (read); exchanges write
// theirs into a common output, which whoever has written last puts on the wire together with what others have written
// meanwhile. Frames are read where they are in the connection's buffer.
type h2mux struct {
	w    *wire
	role h2role

	// Of the reading goroutine.
	block   *h2block
	settled bool      // the peer's first SETTINGS have come
	late    time.Time // when what has begun to come must be complete; zero: nothing has
	waits   time.Time // since when nothing has come
	probed  bool      // a PING is out because the peer is quiet
	calm    h2budget

	idlePatience time.Duration // for anything to come
	headPatience time.Duration // for what has begun to be complete
	sendPatience time.Duration // for the peer to take a part of a body

	mu      sync.Mutex
	streams map[uint32]*h2stream // of which the exchange is not over
	last    uint32               // the highest stream of the peer's that was looked at
	recent  [recentStreams]uint32
	recents int
	done    int   // streams that ended well and are not counted yet
	pongs   int   // answers to PINGs
	pieces  int   // frames of bodies that were sent, and have not earned the peer anything yet
	ending  bool  // the connection ends with its last stream
	dead    error // why the connection is over

	out      []byte
	spare    []byte
	flushing bool
	flushed  chan struct{} // closed when nobody is flushing any more; nil: nobody waits for that
	gen      uint32        // counts buffers, so that an offset into out says whether it is still good
	shrunk   bool          // the peer's table got smaller, which the next head must acknowledge

	sendWindow    int64
	initialWindow int64 // of new streams
	sendFrame     int
	waiting       []*h2stream // for the connection's window or output, in turn

	recvWindow int64 // what the peer may still send
	recvSize   int64 // the window that it is brought back to
	recvTaken  int64 // taken from it, and not yet given back
	grown      int64 // bytes by which streams' windows are larger than at first

	timer   *time.Timer
	timerAt int64 // Unix nanoseconds; 0: not set
}

// h2role is what a client's connections do and those to endpoints do differently.
type h2role interface {
	// head takes a complete header block.
	head(b *h2block) *h2error
	// setting is told of the peer's settings, with the lock held.
	setting(s setting)
	// settled is told at the end of each SETTINGS, with the lock held.
	settled()
	goAway(last uint32, code http2.ErrCode)
	// isIdle tells whether a stream was never opened.
	isIdle(stream uint32) bool
	// quiet is asked when nothing has come for a while: how much longer to wait, 0 not at all, and whether to ask for a
	// sign of life.
	quiet(since time.Duration) (wait time.Duration, ping bool)
	fromServer() bool
}

const (
	// recentStreams is how many streams that have ended are remembered.
	recentStreams = 128
	// maxUnsent is how much output of ours, in bytes, a peer may leave unread before it is not listened to either.
	maxUnsent = 256 << 10

	streamWindow    = 64 << 10 // what a peer may send ahead on a stream, at first
	maxStreamWindow = 1 << 20  // and when the exchange keeps up
	connWindow      = 1 << 20  // and on all of the connection's streams
	maxConnWindow   = 4 << 20
	// maxGrown is by how much the windows of an endpoint's streams may grow in all. The connection's is given back as data
	// comes, for many clients' answers share it and any of them may stand still: what waits is bounded by the streams' own.
	maxGrown = 4 << 20
)

func newMux(w *wire, role h2role, idle, head, send time.Duration) *h2mux {
	now := time.Now()
	return &h2mux{
		w: w, role: role, block: newBlock(), streams: map[uint32]*h2stream{}, calm: newBudget(now),
		late: now.Add(head), idlePatience: idle, headPatience: head, sendPatience: send,
		sendWindow: defaultWindow, initialWindow: defaultWindow, sendFrame: maxFrame, recvWindow: connWindow, recvSize: connWindow,
	}
}

// open appends our first frames.
func (m *h2mux) open(settings ...setting) {
	m.mu.Lock()
	m.out = appendSettings(m.room(), append(settings,
		setting{http2.SettingInitialWindowSize, streamWindow}, setting{http2.SettingMaxHeaderListSize, maxHead})...)
	m.out = appendWindowUpdate(m.out, 0, connWindow-defaultWindow)
	m.mu.Unlock()
}

// read takes frames until the connection ends, and tells why it did.
func (m *h2mux) read() error {
	err := m.frames()
	var fault *h2error
	switch {
	case errors.As(err, &fault):
		m.shut(fault.code, fault.reason)
	case timedOut(err):
		m.shut(http2.ErrCodeNo, "")
	}
	m.fail(err)
	if m.timer != nil {
		m.timer.Stop()
	}
	return err
}

func (m *h2mux) frames() error {
	for {
		if m.settled && !m.block.open {
			m.late = time.Time{}
		}
		b, err := m.need(frameHeader)
		if err != nil {
			return err
		}
		f := parseFrameHeader(b)
		m.w.r += frameHeader
		fault := m.frame(f)
		if fault == nil {
			continue
		}
		var e *h2error
		if !errors.As(fault, &e) || e.stream == 0 {
			return fault
		}
		m.mu.Lock()
		asked := m.asked(e.stream)
		m.mu.Unlock()
		if !asked && !m.calm.spend(costFault) {
			return connError(http2.ErrCodeEnhanceYourCalm, "too many faults")
		}
		m.reset(e.stream, e.code, e)
	}
}

// need waits until n bytes are in the buffer.
func (m *h2mux) need(n int) ([]byte, error) {
	for m.w.w-m.w.r < n {
		if m.late.IsZero() && m.w.w > m.w.r {
			m.late = time.Now().Add(m.headPatience)
		}
		if err := m.more(n); err != nil {
			return nil, err
		}
	}
	return m.w.buf[m.w.r : m.w.r+n], nil
}

// take gives n bytes of a frame and consumes them.
func (m *h2mux) take(n int) ([]byte, error) {
	if m.w.w-m.w.r < n && m.late.IsZero() {
		m.late = time.Now().Add(m.headPatience)
	}
	b, err := m.need(n)
	if err == nil {
		m.w.r += n
	}
	return b, err
}

// more reads on, so that at least want bytes come to have room.
func (m *h2mux) more(want int) error {
	w := m.w
	if w.r == w.w {
		w.r, w.w = 0, 0
	}
	if want > len(w.buf)-w.r {
		if w.r > 0 {
			w.w = copy(w.buf, w.buf[w.r:w.w])
			w.r = 0
		}
		if want > len(w.buf) {
			w.grow()
		}
	}
	if err := m.beforeRead(); err != nil {
		return err
	}
	for {
		err := w.fill()
		if err == nil {
			m.probed = false
			return nil
		}
		if !timedOut(err) {
			return unexpected(err)
		}
		if !m.late.IsZero() || m.probed {
			return err
		}
		now := time.Now()
		wait, ping := m.role.quiet(now.Sub(m.waits))
		m.mu.Lock()
		over := wait == 0 || m.ending && len(m.streams) == 0
		if w.setRead(now.Add(wait)); ping && !over {
			m.probed = true
			m.out = appendPing(m.room(), 0, make([]byte, 8))
		}
		m.mu.Unlock()
		switch {
		case over:
			return err
		case !ping:
			continue
		}
		if err := m.beforeRead(); err != nil {
			return err
		}
	}
}

// beforeRead puts what this goroutine has written on its way: it must not wait for the peer itself, which may be
// waiting for us to read.
func (m *h2mux) beforeRead() error {
	m.mu.Lock()
	dead, unread, idle := m.dead, len(m.out) > maxUnsent, len(m.streams) == 0
	if len(m.out) > 0 && !m.flushing && dead == nil {
		m.flushing = true
		go m.write()
	}
	if idle && m.w.r == m.w.w {
		m.w.shrink()
		if m.spare != nil {
			recycle(m.spare[:cap(m.spare)])
			m.spare = nil
		}
	}
	defer m.mu.Unlock()
	switch {
	case dead != nil:
		return dead
	case m.ending && idle:
		return os.ErrDeadlineExceeded
	case unread && !m.role.fromServer():
		return connError(http2.ErrCodeEnhanceYourCalm, "answers are not read")
	case !m.late.IsZero():
		m.w.setRead(m.late)
	case !m.probed:
		m.waits = time.Now()
		m.w.expectBy(m.waits, m.idlePatience)
	}
	return nil
}

// frame handles one frame. What it returns ends the stream or the connection.
func (m *h2mux) frame(f h2frame) error {
	if f.length > maxFrame {
		return connError(http2.ErrCodeFrameSize, "a frame of more than 16384 bytes")
	}
	if m.block.open && (f.kind != http2.FrameContinuation || f.stream != m.block.stream) {
		return connError(http2.ErrCodeProtocol, "a header block is interrupted")
	}
	if !m.settled && (f.kind != http2.FrameSettings || f.flags.Has(http2.FlagSettingsAck)) {
		return connError(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
	}
	if f.kind == http2.FrameData {
		return m.data(f)
	}
	if f.kind > http2.FrameContinuation { // unknown kinds are ignored (RFC 9113 section 4.1)
		if !m.calm.spend(costFrame) {
			return connError(http2.ErrCodeEnhanceYourCalm, "too many frames of unknown kinds")
		}
		return m.skip(f.length)
	}
	p, err := m.take(f.length)
	if err != nil {
		return err
	}
	if fault := m.control(f, p); fault != nil {
		return fault
	}
	return nil
}

// control handles frames other than DATA, whose payload is all there.
func (m *h2mux) control(f h2frame, p []byte) *h2error {
	switch f.kind {
	case http2.FrameHeaders:
		return m.headers(f, p)
	case http2.FrameContinuation:
		if !m.block.open {
			return connError(http2.ErrCodeProtocol, "CONTINUATION without HEADERS")
		}
		return m.fragment(f, p)
	case http2.FramePriority:
		return m.priority(f, p)
	case http2.FrameRSTStream:
		return m.resetByPeer(f, p)
	case http2.FrameSettings:
		return m.settings(f, p)
	case http2.FramePing:
		return m.ping(f, p)
	case http2.FrameGoAway:
		switch {
		case f.stream != 0:
			return connError(http2.ErrCodeProtocol, "GOAWAY on a stream")
		case len(p) < 8:
			return connError(http2.ErrCodeFrameSize, "GOAWAY is too short")
		}
		m.role.goAway(binary.BigEndian.Uint32(p)&maxWindow, http2.ErrCode(binary.BigEndian.Uint32(p[4:])))
		return nil
	case http2.FrameWindowUpdate:
		return m.windowUpdate(f, p)
	}
	return connError(http2.ErrCodeProtocol, "PUSH_PROMISE") // no client may send it, and we allow no server to
}

// skip consumes n bytes that nobody wants.
func (m *h2mux) skip(n int) error {
	for n > 0 {
		if m.w.r == m.w.w {
			if err := m.more(1); err != nil {
				return err
			}
		}
		k := min(n, m.w.w-m.w.r)
		m.w.r += k
		n -= k
	}
	return nil
}

// data takes a DATA frame piece by piece as it comes, into the stream's buffer.
func (m *h2mux) data(f h2frame) error {
	if f.stream == 0 {
		return connError(http2.ErrCodeProtocol, "DATA without a stream")
	}
	left, pad := f.length, 0
	if f.flags.Has(http2.FlagDataPadded) {
		if left == 0 {
			return connError(http2.ErrCodeFrameSize, "a padded frame without the length of its padding")
		}
		p, err := m.take(1)
		if err != nil {
			return err
		}
		pad = int(p[0])
		if left -= 1 + pad; left < 0 {
			return connError(http2.ErrCodeProtocol, "more padding than frame")
		}
	}
	if m.role.isIdle(f.stream) {
		return connError(http2.ErrCodeProtocol, "DATA on an idle stream")
	}
	end := f.flags.Has(http2.FlagDataEndStream)
	if left == 0 && !end {
		if !m.calm.spend(costFrame) {
			return connError(http2.ErrCodeEnhanceYourCalm, "too many empty DATA frames")
		}
	} else {
		m.calm.earn()
	}
	m.mu.Lock()
	if m.recvWindow -= int64(f.length); m.recvWindow < 0 {
		m.mu.Unlock()
		return connError(http2.ErrCodeFlowControl, "more than the connection's window")
	}
	if m.role.fromServer() {
		m.giveBack(int64(f.length))
	}
	s := m.streams[f.stream]
	fault := m.admits(s, f, left)
	if fault != nil || s == nil || s.gone != nil {
		m.consumed(int64(f.length))
		m.mu.Unlock()
		if err := m.skip(left + pad); err != nil {
			return err
		}
		if fault != nil {
			return fault
		}
		return nil
	}
	if over := int64(f.length - left); over > 0 { // padding is consumed at once
		s.taken(over)
	}
	m.mu.Unlock()
	for left > 0 {
		if m.w.r == m.w.w {
			if left > smallBuffer {
				m.w.grow()
			}
			if err := m.more(1); err != nil {
				return err
			}
		}
		p := m.w.buf[m.w.r:min(m.w.w, m.w.r+left)]
		m.w.r += len(p)
		left -= len(p)
		m.mu.Lock()
		if m.streams[f.stream] == s {
			s.received(p)
		} else {
			m.consumed(int64(len(p)))
		}
		m.mu.Unlock()
	}
	if err := m.skip(pad); err != nil {
		return err
	}
	if end {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.streams[f.stream] == s {
			if !s.endOfInput() {
				return &h2error{f.stream, http2.ErrCodeProtocol, "less data than content-length says"}
			}
		}
	}
	return nil
}

// admits tells whether a stream takes a DATA frame, with the lock held.
func (m *h2mux) admits(s *h2stream, f h2frame, left int) *h2error {
	if s == nil || s.gone != nil {
		return m.closed(f.stream)
	}
	switch {
	case s.recvEnd:
		return &h2error{f.stream, http2.ErrCodeStreamClosed, "DATA after END_STREAM"}
	case s.call != nil && !s.call.headed:
		return &h2error{f.stream, http2.ErrCodeProtocol, "DATA before the response's head"}
	}
	if s.recvWindow -= int64(f.length); s.recvWindow < 0 {
		return &h2error{f.stream, http2.ErrCodeFlowControl, "more than the stream's window"}
	}
	if s.got += int64(left); s.declared >= 0 && s.got > s.declared {
		return &h2error{f.stream, http2.ErrCodeProtocol, "more data than content-length says"}
	}
	return nil
}

// closed says what a frame on a stream that is over deserves: nothing when we have reset it, since the peer may not
// have known (RFC 9113 section 5.1). The lock is held.
func (m *h2mux) closed(stream uint32) *h2error {
	for _, id := range m.recent {
		if id>>1 == stream {
			if id&1 == 1 {
				return m.ignored()
			}
			return connError(http2.ErrCodeStreamClosed, "a frame on a closed stream")
		}
	}
	if s := m.streams[stream]; s != nil { // reset, and its exchange is not over yet
		var r *resetError
		if errors.As(s.gone, &r) {
			return connError(http2.ErrCodeStreamClosed, "a frame on a stream that was reset")
		}
		return m.ignored()
	}
	return &h2error{stream, http2.ErrCodeStreamClosed, "a frame on a closed stream"}
}

// ignored counts a frame that nobody wants.
func (m *h2mux) ignored() *h2error {
	if !m.calm.spend(costFrame) {
		return connError(http2.ErrCodeEnhanceYourCalm, "too many frames on streams that are over")
	}
	return nil
}

// bodyless tells whether a response has no body whatever its fields say (RFC 9110 section 6.4.1).
func bodyless(method string, status int) bool {
	return method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
}
