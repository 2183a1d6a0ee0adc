// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A wire is one HTTP/1.x connection, to a client or to an endpoint, with its buffers. Reading and writing are
// independent of each other: two goroutines may do one each.
type wire struct {
	conn net.Conn
	// buf[r:w] has been read and not yet consumed.
	buf  []byte
	r, w int
	// base is where reads start when the buffer has been consumed: what is before it, a request's head, stays as long
	// as its exchange. pinned are earlier buffers that are still looked at.
	base   int
	pinned [][]byte
	out    []byte // not yet written

	// patience bounds each wait for a part of a body; 0 leaves the deadline alone. given is set when another goroutine
	// wants the reader of a body to give up.
	patience time.Duration
	more     func() time.Duration // how much longer a reader waits whose patience is over; nil: not at all
	given    atomic.Bool

	readBy, writeBy time.Time // the deadlines set
	head            int       // bytes of buf that head parsing has looked at
}

// Sizes of buffers in bytes. Most heads fit the small one; heads up to the limit and bodies get a large one.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
	// mediumBuffer is for what is copied and not kept.
	mediumBuffer = 16 << 10
	// spill is how much output is collected before it is written.
	spill = 32 << 10
	// large pieces are written from where they are.
	large = 8 << 10
	// minRoom is the least that a read should ask for.
	minRoom = 512
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
	// mediumBuffers are for tunnels.
	mediumBuffers = sync.Pool{New: func() any { b := make([]byte, mediumBuffer); return &b }}
)

func newWire(c net.Conn) *wire {
	w := &wire{conn: c}
	w.buf = *smallBuffers.Get().(*[]byte)
	return w
}

// shrink gives a large buffer back once it is empty, so that idle connections are small.
func (w *wire) shrink() {
	w.unpin()
	if w.r == w.w {
		w.r, w.w = 0, 0
		if len(w.buf) == largeBuffer {
			b := w.buf
			largeBuffers.Put(&b)
			w.buf = *smallBuffers.Get().(*[]byte)
		}
	}
	if cap(w.out) > smallBuffer && len(w.out) == 0 {
		w.out = nil
	}
}

// grow makes room for large reads.
func (w *wire) grow() {
	if len(w.buf) >= largeBuffer {
		return
	}
	old := w.buf
	w.buf = *largeBuffers.Get().(*[]byte)
	w.w = copy(w.buf, old[w.r:w.w])
	w.r = 0
	if w.base > 0 {
		w.pinned, w.base = append(w.pinned, old), 0
	} else {
		recycle(old)
	}
}

// pin keeps what has been consumed so far, until unpin.
func (w *wire) pin() { w.base = w.r }

func (w *wire) unpin() {
	w.base = 0
	for i, b := range w.pinned {
		recycle(b)
		w.pinned[i] = nil
	}
	w.pinned = w.pinned[:0]
}

func recycle(b []byte) {
	switch len(b) {
	case smallBuffer:
		smallBuffers.Put(&b)
	case largeBuffer:
		largeBuffers.Put(&b)
	}
}

// release gives the buffers back; the wire can't be used afterwards.
func (w *wire) release() {
	w.unpin()
	b := w.buf
	w.buf, w.r, w.w = nil, 0, 0
	recycle(b)
}

func (w *wire) buffered() []byte { return w.buf[w.r:w.w] }

// expectBy bounds reads. Setting a timer costs, so a deadline that is at most an eighth early is left alone; d <= 0
// is none.
func (w *wire) expectBy(now time.Time, d time.Duration) {
	if d <= 0 {
		if !w.readBy.IsZero() {
			w.readBy = time.Time{}
			_ = w.conn.SetReadDeadline(w.readBy)
		}
		return
	}
	want := now.Add(d)
	if early := want.Sub(w.readBy); early >= 0 && early <= d/8 {
		return
	}
	w.setRead(want)
}

func (w *wire) setRead(t time.Time) {
	w.readBy = t
	_ = w.conn.SetReadDeadline(t) // fails on closed connections only, which the read tells
}

// deliverBy bounds writes, as expectBy does reads.
func (w *wire) deliverBy(now time.Time, d time.Duration) {
	want := now.Add(d)
	if early := want.Sub(w.writeBy); early >= 0 && early <= d/8 {
		return
	}
	w.writeBy = want
	_ = w.conn.SetWriteDeadline(want)
}

// fill reads once, into whatever room there is or can be made.
func (w *wire) fill() error {
	if w.r == w.w {
		w.r, w.w = w.base, w.base
	} else if w.w == len(w.buf) && w.r > w.base {
		w.w = w.base + copy(w.buf[w.base:], w.buf[w.r:w.w])
		w.r = w.base
	}
	if len(w.buf)-w.w < minRoom {
		w.grow()
	}
	n, err := w.conn.Read(w.buf[w.w:])
	w.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// fillBody is fill with patience of its own for each part.
func (w *wire) fillBody() error {
	if w.patience > 0 && !w.given.Load() {
		w.expectBy(time.Now(), w.patience)
	}
	for {
		if w.given.Load() {
			return os.ErrDeadlineExceeded
		}
		if err := w.fill(); err == nil || !w.bears(err) {
			return err
		}
	}
}

// bears tells whether a read that was not in time is to be tried again, and until when.
func (w *wire) bears(err error) bool {
	if w.more == nil || !timedOut(err) || w.given.Load() {
		return false
	}
	d := w.more()
	if d > 0 {
		w.setRead(time.Now().Add(d))
		d = w.more() // it may have been told, and woken up, meanwhile
	}
	return d > 0
}

// bear implements origin.
func (w *wire) bear(more func() time.Duration) { w.more = more }

// giveUp makes a reader of the body return soon; the connection can't be read from until resume. It may have to be called
// again: the reader may be about to set a deadline.
func (w *wire) giveUp() {
	w.given.Store(true)
	_ = w.conn.SetReadDeadline(time.Unix(1, 0))
}

// resume has the connection be read from again where the reader that was to give up had come to the body's end by itself.
// It has returned.
func (w *wire) resume() {
	if w.given.Swap(false) {
		w.setRead(time.Time{})
	}
}

// flush writes what has been collected.
func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

// asks tells whether ask is possible.
func (w *wire) asks() bool {
	_, ok := w.conn.(*socket)
	return ok
}

// ask writes what has been collected to a connection that was kept, and reads the first of the answer: err is of writing, or
// once asked of reading. Without an error and not asked, nothing was written: the other end has closed the connection, or
// said something before it was asked.
func (w *wire) ask() (asked bool, err error) {
	n, asked, err := w.conn.(*socket).ask(w.out, w.buf)
	if asked {
		w.out = w.out[:0]
	}
	w.r, w.w = 0, n
	return asked, err
}

// flushWith writes what has been collected and then p, of which no copy is made.
func (w *wire) flushWith(p []byte) error {
	var err error
	if s, ok := w.conn.(*socket); ok {
		_, err = s.writeBoth(w.out, p)
	} else if err = w.flush(); err == nil {
		_, err = w.conn.Write(p)
	}
	w.out = w.out[:0]
	return err
}

// lingerFor is how long a peer is listened to after the last word, and lingerMost how many bytes: clients write a large body
// to its end before they read what there is to say to it.
const (
	lingerFor  = time.Second
	lingerMost = 64 << 20
)

// linger closes in a way that the last word arrives: closing with unread input makes the kernel reset the connection.
func (w *wire) linger() {
	c, ok := w.conn.(interface{ CloseWrite() error })
	if !ok || c.CloseWrite() != nil {
		return
	}
	_ = w.conn.SetReadDeadline(time.Now().Add(lingerFor))
	for n := 0; n < lingerMost; {
		k, err := w.conn.Read(w.buf)
		if n += k; err != nil {
			return
		}
	}
}

var endOfHead = []byte("\r\n\r\n")

// scanHead gives the length of the head that the buffer begins with; 0 is not complete yet. It refuses a bare line
// feed at once instead of waiting for an end that would never come.
func (w *wire) scanHead() (int, *parseError) {
	b := w.buffered()
	from := max(0, w.head-3)
	if i := bytes.Index(b[from:], endOfHead); i >= 0 {
		w.head = 0
		return from + i + 4, nil
	}
	for rest, at := b[w.head:], w.head; ; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		if at+i == 0 || b[at+i-1] != '\r' {
			return 0, errLine
		}
		rest, at = rest[i+1:], at+i+1
	}
	w.head = len(b)
	return 0, nil
}

// A body gives a message's body piece by piece. A piece is valid until the next call; io.EOF is the end, after which
// trailers are known.
type body interface {
	next() ([]byte, error)
	// ready tells whether next has something without waiting.
	ready() bool
	trailers() []field
}

var errChunk = errors.New("malformed chunk")

// maxTrailers is the most bytes of a trailer section, and of one chunk's first line.
const (
	maxTrailers  = 8 << 10
	maxChunkLine = 256
)

// wireBody reads a body off a wire.
type wireBody struct {
	w       *wire
	length  int64 // bytes left: of the body, or of the chunk
	chunked bool
	toEOF   bool
	started bool // a chunk has come before, so a CRLF ends it
	done    bool
	fields  []field // trailers
	err     error
}

// reset prepares for a body of the length that a head told: -1 is chunked, -2 until the connection ends.
func (b *wireBody) reset(w *wire, length int64) {
	*b = wireBody{w: w, length: length, fields: b.fields[:0]}
	switch length {
	case -1:
		b.chunked, b.length = true, 0
	case -2:
		b.toEOF = true
	case 0:
		b.done = true
	}
}

// ready looks ahead to the next chunk's data, or to the end of the trailers.
func (b *wireBody) ready() bool {
	p := b.w.buffered()
	if b.done || b.err != nil || !b.chunked || b.length > 0 {
		return b.done || b.err != nil || len(p) > 0
	}
	if b.started {
		if len(p) < 2 {
			return false
		}
		p = p[2:]
	}
	i := bytes.IndexByte(p, '\n')
	switch {
	case i < 0:
		return false
	case p[0] == '0':
		return bytes.Contains(p, endOfHead)
	}
	return len(p) > i+1
}

func (b *wireBody) trailers() []field { return b.fields }

func (b *wireBody) next() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	if b.done {
		return nil, io.EOF
	}
	p, err := b.read()
	if err != nil && err != io.EOF {
		b.err = err
	}
	return p, err
}

func (b *wireBody) read() ([]byte, error) {
	if b.chunked && b.length == 0 {
		if err := b.nextChunk(); err != nil || b.done {
			if err == nil {
				err = io.EOF
			}
			return nil, err
		}
	}
	w := b.w
	if w.r == w.w {
		if b.toEOF || b.length > smallBuffer {
			w.grow()
		}
		if err := w.fillBody(); err != nil {
			if err == io.EOF && b.toEOF {
				b.done = true
				return nil, io.EOF
			}
			return nil, unexpected(err)
		}
	}
	p := w.buffered()
	if b.toEOF {
		w.r = w.w
		return p, nil
	}
	if int64(len(p)) > b.length {
		p = p[:b.length]
	}
	w.r += len(p)
	b.length -= int64(len(p))
	b.done = b.length == 0 && !b.chunked
	return p, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// nextChunk reads a chunk's first line (RFC 9112 section 7.1), and the trailers after the last chunk.
func (b *wireBody) nextChunk() error {
	if b.started {
		line, err := b.line(2)
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return errChunk
		}
	}
	line, err := b.line(maxChunkLine)
	if err != nil {
		return err
	}
	n := 0
	for n < len(line) && unhex(line[n]) >= 0 {
		if n == 15 {
			return errChunk
		}
		b.length = b.length<<4 | int64(unhex(line[n]))
		n++
	}
	if n == 0 {
		return errChunk
	}
	if rest := trimSpace(line[n:]); len(rest) > 0 && rest[0] != ';' {
		return errChunk
	}
	for _, c := range line[n:] {
		if !isValue[c] {
			return errChunk
		}
	}
	b.started = true
	if b.length > 0 {
		return nil
	}
	return b.readTrailers()
}

// line consumes one line, which must end in CRLF within limit bytes.
func (b *wireBody) line(limit int) ([]byte, error) {
	for {
		p := b.w.buffered()
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			if i == 0 || p[i-1] != '\r' || i+1 > max(limit, 2) {
				return nil, errChunk
			}
			b.w.r += i + 1
			return p[:i-1], nil
		}
		if len(p) >= limit {
			return nil, errChunk
		}
		if err := b.w.fillBody(); err != nil {
			return nil, unexpected(err)
		}
	}
}

func (b *wireBody) readTrailers() error {
	for looked := 0; ; {
		p := b.w.buffered()
		end := -1
		if bytes.HasPrefix(p, []byte("\r\n")) {
			end = 2
		} else if i := bytes.Index(p[min(looked, len(p)):], endOfHead); i >= 0 {
			end = looked + i + 4
		}
		if end > 0 {
			// Trailers outlive the buffer's next read.
			section := bytes.Clone(p[:end])
			b.w.r += end
			b.done = true
			if err := parseFields(section, &b.fields); err != nil {
				return err
			}
			b.fields = dropFraming(b.fields)
			return nil
		}
		if len(p) > maxTrailers {
			return errHeadTooLarge
		}
		looked = max(0, len(p)-3)
		if b.w.w == len(b.w.buf) && b.w.r == 0 {
			b.w.grow()
		}
		if err := b.w.fillBody(); err != nil {
			return unexpected(err)
		}
	}
}

// dropFraming removes what must not be in a trailer (RFC 9110 section 6.5.1): fields that frame, route or authorise.
func dropFraming(fields []field) []field {
	out := fields[:0]
	for _, f := range fields {
		if f.id == other && !equalFold(f.name, "authorization") && !equalFold(f.name, "cookie") && !equalFold(f.name, "set-cookie") {
			out = append(out, f)
		}
	}
	return out
}

// bytesBody is a body that is all there.
type bytesBody struct {
	p    []byte
	done bool
}

func (b *bytesBody) next() ([]byte, error) {
	if b.done || len(b.p) == 0 {
		return nil, io.EOF
	}
	b.done = true
	return b.p, nil
}

func (b *bytesBody) ready() bool       { return true }
func (b *bytesBody) trailers() []field { return nil }
