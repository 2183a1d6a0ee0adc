// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// unwatch has a client that leaves end nothing any more. A tunnel notices by itself; cut off from outside, it would lose what
// is under way, and whoever closes its connection to the endpoint waits for the tunnel, which may be waiting for them.
func (x *exchange) unwatch() {
	if x.client != nil {
		x.client.unwatch()
	}
}

// switchProtocols turns the connection into a tunnel after the endpoint's 101 (WebSocket and other upgrades).
func (x *exchange) switchProtocols(u *upstream) outcome {
	x.unwatch()
	if r, ok := x.sink.(*h2request); ok {
		return x.switchStream(r, u)
	}
	h, ok := x.sink.(*h1conn)
	if !ok {
		u.discard()
		return outcome{status: http.StatusBadGateway, reason: "endpoint: switched protocols for a client that can't"}
	}
	x.endpoint.succeeded()
	x.status, x.started, h.hijack = http.StatusSwitchingProtocols, true, true
	b := append(h.w.out, statusLine(http.StatusSwitchingProtocols)...)
	b = appendFields(b, x.forClient(u.endpoint, http.StatusSwitchingProtocols, u.head.fields))
	h.w.out = append(b, "\r\n"...)
	h.w.out = append(h.w.out, u.w.buffered()...)
	u.w.out = append(u.w.out[:0], h.w.buffered()...)
	h.w.deliverBy(time.Now(), stuck)
	u.w.deliverBy(time.Now(), stuck)
	if h.w.flush() == nil && u.w.flush() == nil {
		u.w.release()
		forget := x.srv.tunnels.add(closer{h.w.conn, u.w.conn})
		x.sent = tunnel(h.w.conn, u.w.conn, x.tunnelIdle())
		forget()
	}
	u.discard()
	return outcome{done: true}
}

// switchStream turns an HTTP/2 stream into a tunnel (RFC 8441).
func (x *exchange) switchStream(r *h2request, u *upstream) outcome {
	defer u.discard()
	x.endpoint.succeeded()
	fields := u.head.fields
	for i := range fields {
		if equalFold(fields[i].name, "sec-websocket-accept") { // the answer to a key that the client knows nothing of
			fields[i].id = fDropped
		}
	}
	return x.tunnelStream(u.endpoint, r, fields, &connSide{c: u.w.conn, ahead: u.w.buffered()}, closer{u.w.conn, u.w.conn})
}

// closer ends a tunnel.
type closer [2]net.Conn

func (c closer) interrupt() { c.end() }

// end closes both connections, whoever is at work on them: closing one waits until what has it in hand lets go, and that
// may be waiting for the other. TLS is not told goodbye.
func (c closer) end() {
	for i, conn := range c {
		if t, ok := conn.(*tls.Conn); ok {
			c[i] = t.NetConn()
		}
		_ = c[i].SetDeadline(time.Unix(1, 0))
	}
	for _, conn := range c {
		conn.Close()
	}
}

// tunnel copies both ways until both sides are done, one breaks, or neither says anything for the idle time. An end
// of one direction is passed on, and the other goes on (half-close). It returns the bytes sent to a. TCP to TCP is
// spliced in the kernel.
func tunnel(a, b net.Conn, idle time.Duration) int64 {
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(b, a, &last, idle)
	}()
	n := pipe(a, b, &last, idle)
	<-done
	return n
}

// pipe copies from src to dst.
func pipe(dst, src net.Conn, last *atomic.Int64, idle time.Duration) (total int64) {
	_ = dst.SetWriteDeadline(time.Time{})
	for {
		_ = src.SetReadDeadline(time.Now().Add(idle / 4)) // so that each direction knows in time of the other's life
		n, err := copySome(dst, src)
		if total += n; n > 0 {
			last.Store(time.Now().UnixNano())
		}
		var t net.Error
		if errors.As(err, &t) && t.Timeout() && time.Since(time.Unix(0, last.Load())) < idle {
			continue // quiet here, but not the other way
		}
		if err != nil { // broken: the other direction ends too
			closer{dst, src}.end()
			return total
		}
		if c, ok := dst.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
			dst.Close()
		}
		return total
	}
}

// bulk is after how many full buffers in a row a stream is worth a pipe of the kernel's.
const bulk = 4

// copySome copies until the end (nil) or an error, a passed deadline included. What flows on and on from TCP to TCP is
// spliced, without a copy.
func copySome(dst, src net.Conn) (total int64, err error) {
	d, ok := dst.(*socket)
	s, tcp := src.(*socket)
	splice := ok && tcp
	buffers, full := &largeBuffers, 0
	if splice {
		buffers = &mediumBuffers
	}
	err = arrivals(src, buffers, func(p []byte) (bool, error) {
		n, err := dst.Write(p)
		total += int64(n)
		if full++; !splice || len(p) < mediumBuffer {
			full = 0
		}
		return full < bulk, err
	})
	if err == nil {
		n, err := d.ReadFrom(s.TCPConn)
		return total + n, err
	}
	if err == io.EOF {
		err = nil
	}
	return total, err
}

// arrivals has take called with what comes on a connection, until that wants no more (nil), fails, or the connection does
// (io.EOF is its end). It holds a buffer only while there is something to read, so that connections that wait cost none.
func arrivals(c net.Conn, buffers *sync.Pool, take func([]byte) (more bool, err error)) error {
	raw, read, err := reader(c)
	if err != nil {
		return err
	}
	var result error
	err = raw.Read(func(fd uintptr) bool {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		for {
			n, err := read(int(fd), *buf)
			if err == errNothing {
				return false
			}
			more := err == nil
			if n > 0 {
				var failed error
				if more, failed = take((*buf)[:n]); failed != nil {
					err = failed
				}
			}
			if result = err; err != nil || !more {
				return true
			}
		}
	})
	if err != nil {
		return err
	}
	return result
}

// errNothing is the error of a read that would have to wait.
var errNothing = os.ErrDeadlineExceeded // which TLS takes as a reason to try again later

// reader gives a connection's socket, and what reads from it without waiting, to be called while the socket can be read.
func reader(c net.Conn) (syscall.RawConn, func(fd int, p []byte) (int, error), error) {
	switch c := c.(type) {
	case *socket:
		return c.raw, readNow, nil
	case *transport:
		raw, err := c.SyscallConn()
		return raw, c.readNow, err
	case *tls.Conn:
		under, ok := c.NetConn().(*transport)
		if !ok {
			break
		}
		raw, err := under.SyscallConn()
		return raw, func(fd int, p []byte) (int, error) {
			under.now, under.fd = true, fd
			n, err := c.Read(p)
			under.now = false
			if n > 0 && err == errNothing {
				err = nil
			}
			return n, err
		}, err
	}
	return nil, nil, errors.ErrUnsupported
}

// readNow reads from a socket, if there is anything.
func readNow(fd int, p []byte) (int, error) {
	n, err := rawFD(fd).read(p)
	switch {
	case err == syscall.EAGAIN:
		return 0, errNothing
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// transport is a TCP connection beneath TLS, or one of which some bytes have been read ahead.
type transport struct {
	net.Conn
	ahead []byte
	now   bool // reads don't wait; fd is the socket then
	fd    int
}

func (t *transport) Read(p []byte) (int, error) {
	switch {
	case t.now:
		return t.readNow(t.fd, p)
	case len(t.ahead) > 0:
		return t.readAhead(p), nil
	}
	return t.Conn.Read(p)
}

func (t *transport) readAhead(p []byte) int {
	n := copy(p, t.ahead)
	if t.ahead = t.ahead[n:]; len(t.ahead) == 0 {
		t.ahead = nil
	}
	return n
}

func (t *transport) readNow(fd int, p []byte) (int, error) {
	if len(t.ahead) > 0 {
		return t.readAhead(p), nil
	}
	return readNow(fd, p)
}

// CloseWrite passes a half-close on.
func (t *transport) CloseWrite() error {
	if c, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn implements syscall.Conn.
func (t *transport) SyscallConn() (syscall.RawConn, error) {
	if c, ok := t.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
