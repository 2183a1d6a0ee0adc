// SPDX-License-Identifier: Apache-2.0

package proxy

import (
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

// switchProtocols turns the connection into a tunnel after the endpoint's 101 (WebSocket and other upgrades).
func (x *exchange) switchProtocols(u *upstream) outcome {
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
	x.status, x.started = http.StatusOK, true
	fields := u.head.fields
	for i := range fields {
		if equalFold(fields[i].name, "sec-websocket-accept") { // the answer to a key that the client knows nothing of
			fields[i].id = fDropped
		}
	}
	if err := r.start(x, http.StatusOK, "", x.forClient(u.endpoint, http.StatusOK, fields), -1); err != nil {
		x.fail("client: " + err.Error())
		return outcome{done: true}
	}
	_ = r.flush()
	forget := x.srv.tunnels.add(closer{u.w.conn, u.w.conn})
	defer forget()
	t := streamTunnel{r: r, u: u, idle: x.tunnelIdle()}
	t.last.Store(time.Now().UnixNano())
	r.patience = t.idle / 4 // so that each direction knows in time of the other's life
	var in sync.WaitGroup
	in.Go(t.upload)
	x.sent = t.download()
	in.Wait()
	if r.left() || !r.sentEnd {
		x.fail("tunnel: cut off")
	}
	return outcome{done: true}
}

// streamTunnel copies between a stream and an endpoint's connection, each way until its end, and both until one
// breaks or neither says anything for the idle time.
type streamTunnel struct {
	r    *h2request
	u    *upstream
	idle time.Duration
	last atomic.Int64
	over atomic.Bool // the endpoint's side broke
}

func (t *streamTunnel) moved()      { t.last.Store(time.Now().UnixNano()) }
func (t *streamTunnel) quiet() bool { return time.Since(time.Unix(0, t.last.Load())) >= t.idle }

func (t *streamTunnel) upload() {
	c := t.u.w.conn
	_ = c.SetWriteDeadline(time.Time{})
	for {
		p, err := t.r.next()
		switch {
		case err == io.EOF:
			if h, ok := c.(interface{ CloseWrite() error }); !ok || h.CloseWrite() != nil {
				c.Close()
			}
			return
		case timedOut(err) && !t.quiet() && !t.over.Load():
			continue
		case err != nil:
			c.Close()
			return
		}
		if _, err := c.Write(p); err != nil {
			c.Close()
			return
		}
		t.moved()
	}
}

func (t *streamTunnel) download() (total int64) {
	c := t.u.w.conn
	p := t.u.w.buffered() // came with the head
	buf := largeBuffers.Get().(*[]byte)
	defer largeBuffers.Put(buf)
	for {
		if len(p) > 0 {
			if t.r.sendData(p) != nil || t.r.flush() != nil {
				c.Close()
				return total
			}
			total += int64(len(p))
			t.moved()
		}
		_ = c.SetReadDeadline(time.Now().Add(t.idle / 4))
		n, err := c.Read(*buf)
		p = (*buf)[:n]
		switch {
		case n > 0:
		case err == io.EOF:
			if t.r.end(nil) == nil {
				_ = t.r.flush()
			}
			return total
		case timedOut(err) && !t.quiet():
		case err != nil:
			t.over.Store(true)
			t.r.giveUp()
			c.Close()
			return total
		}
	}
}

// closer ends a tunnel.
type closer [2]net.Conn

func (c closer) interrupt() {
	c[0].Close()
	c[1].Close()
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
			dst.Close()
			src.Close()
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

// copySome copies until the end (nil) or an error, a passed deadline included.
func copySome(dst, src net.Conn) (int64, error) {
	d, ok := dst.(*net.TCPConn)
	if s, tcp := src.(*net.TCPConn); ok && tcp {
		return copyTCP(d, s)
	}
	buf := largeBuffers.Get().(*[]byte)
	defer largeBuffers.Put(buf)
	var total int64
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			if _, err := dst.Write((*buf)[:n]); err != nil {
				return total, err
			}
			total += int64(n)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// copyTCP copies small pieces through a buffer, which it holds only while there is something in it, so that connections
// that wait cost none; and splices what flows on and on, without a copy.
func copyTCP(dst, src *net.TCPConn) (total int64, err error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return 0, err
	}
	var broke error
	full := 0
	err = raw.Read(func(fd uintptr) bool {
		buf := mediumBuffers.Get().(*[]byte)
		defer mediumBuffers.Put(buf)
		for {
			n, err := syscall.Read(int(fd), *buf)
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				return false
			case err != nil:
				broke = os.NewSyscallError("read", err)
				return true
			case n == 0:
				return true
			}
			k, err := dst.Write((*buf)[:n])
			total += int64(k)
			if err != nil {
				broke = err
				return true
			}
			if full++; n < len(*buf) {
				full = 0
			}
			if full == bulk {
				return true
			}
		}
	})
	if err == nil {
		err = broke
	}
	if err == nil && full == bulk {
		n, err := dst.ReadFrom(src)
		return total + n, err
	}
	return total, err
}

// replay is a connection of which some bytes have been read ahead.
type replay struct {
	net.Conn
	first []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// CloseWrite passes a half-close on.
func (r *replay) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
