// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Tunnels of which a side, or both, is a stream of HTTP/2 (RFC 8441).

// isWebSocket tells whether the client asks for a WebSocket, which is all that can be asked for in HTTP/2.
func (x *exchange) isWebSocket() bool { return equalFold(raw(x.upgrade), "websocket") }

// extended tells whether endpoints take an extended CONNECT: what each of their connections says at its beginning holds
// for all.
type extended uint32

const (
	unknown extended = iota
	offered
	notOffered
)

// takesSockets tells whether the endpoint offers WebSockets. The first who asks makes a connection for that, which others
// use as well.
func (x *exchange) takesSockets(e *endpoint, by time.Time) (extended, error) {
	if known := extended(e.h2.extended.Load()); known != unknown {
		return known, nil
	}
	ctx, end := x.connecting(by)
	defer end()
	u, err := e.dialH2(ctx, x.dialLimits(e), x.peer)
	if err != nil {
		return unknown, err
	}
	t := time.NewTimer(dialTimeout)
	defer t.Stop()
	select {
	case <-u.told:
	case <-t.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.h2.mu.Lock()
	keep := e.reusable() && !e.h2.gone
	if keep {
		e.h2.conns = append(e.h2.conns, u)
	}
	e.h2.mu.Unlock()
	if !keep {
		u.retire()
	}
	if known := extended(e.h2.extended.Load()); known != unknown {
		return known, nil
	}
	return unknown, cmp.Or(err, errNoSettings)
}

var (
	errNoSettings = errors.New("the endpoint does not begin to speak HTTP/2")
	errNoSockets  = errors.New("the endpoint speaks HTTP/2 and offers no WebSockets in it (RFC 8441)")
	errTunnelOver = errors.New("the tunnel is over")
)

// asSocket tells whether the request is to be an extended CONNECT, or why it can't be made. Of clients of HTTP/1.1 the
// wish is passed over where it can't be granted (RFC 9110 section 7.8); to those of HTTP/2 an answer would look like a
// WebSocket.
func (x *exchange) asSocket(e *endpoint, by time.Time) (bool, error) {
	if !x.isWebSocket() {
		return false, nil
	}
	takes, err := x.takesSockets(e, by)
	if err == nil && takes == notOffered && x.major == 2 {
		err = errNoSockets
	}
	return takes == offered, err
}

// websocketAccept answers a key of HTTP/1.1 (RFC 6455 section 4.2.2).
func websocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tunnelCall turns a call that the endpoint has taken for a tunnel into one with the client.
func (x *exchange) tunnelCall(e *endpoint, call *h2call) outcome {
	x.unwatch()
	call.m.mu.Lock()
	call.readEnd = 0 // a bound on the answer, not on what it began
	call.m.mu.Unlock()
	far := &streamSide{s: &call.h2stream}
	switch to := x.sink.(type) {
	case *h2request:
		return x.tunnelStream(e, to, call.fields, far, cancelCall{call})
	case *h1conn:
		return x.tunnelConn(e, to, call, far)
	}
	return outcome{status: http.StatusBadGateway, reason: "endpoint: a tunnel for a client that can't"}
}

// tunnelStream begins a tunnel with a client's stream.
func (x *exchange) tunnelStream(e *endpoint, r *h2request, fields []field, far side, end interrupter) outcome {
	x.status, x.started = http.StatusOK, true
	if err := r.start(x, http.StatusOK, "", x.forClient(e, http.StatusOK, fields), -1); err != nil {
		x.fail("client: " + err.Error())
		return outcome{done: true}
	}
	_ = r.flush()
	forget := x.srv.tunnels.add(end)
	defer forget()
	x.sent = join(&streamSide{s: &r.h2stream}, far, x.tunnelIdle())
	if r.left() || !r.sentEnd {
		x.fail("tunnel: cut off")
	}
	return outcome{done: true}
}

// tunnelConn begins a tunnel with a client's connection of HTTP/1.1.
func (x *exchange) tunnelConn(e *endpoint, h *h1conn, call *h2call, far side) outcome {
	x.status, x.started, h.hijack = http.StatusSwitchingProtocols, true, true
	fields := append(call.fields, newField("Upgrade", x.upgrade))
	if key, ok := x.Lookup("sec-websocket-key"); ok {
		fields = append(fields, newField("Sec-WebSocket-Accept", websocketAccept(key)))
	}
	b := append(h.w.out, statusLine(http.StatusSwitchingProtocols)...)
	b = append(b, "Connection: Upgrade\r\n"...)
	h.w.out = append(appendFields(b, x.forClient(e, http.StatusSwitchingProtocols, fields)), "\r\n"...)
	h.w.deliverBy(time.Now(), stuck)
	if err := h.w.flush(); err != nil {
		x.fail("client: " + err.Error())
		return outcome{done: true}
	}
	forget := x.srv.tunnels.add(cancelCall{call})
	defer forget()
	x.sent = join(&connSide{h.w.conn, h.w.buffered()}, far, x.tunnelIdle())
	return outcome{done: true}
}

// side is one end of a tunnel.
type side interface {
	// receive hands what comes to take, for as long as wait at least where nothing does: a timeout is its error then, and
	// io.EOF at the end.
	receive(wait time.Duration, take func([]byte) error) error
	send(p []byte) error
	// end tells that no more will be sent.
	end()
	// cut ends it in both directions, whoever waits for something.
	cut()
}

// join copies both ways, each until its end, and both until one breaks or nothing has moved for the idle time. It gives
// the bytes sent to a.
func join(a, b side, idle time.Duration) int64 {
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(b, a, &last, idle)
	}()
	n := carry(a, b, &last, idle)
	<-done
	return n
}

func carry(dst, src side, last *atomic.Int64, idle time.Duration) (total int64) {
	take := func(p []byte) error {
		last.Store(time.Now().UnixNano())
		total += int64(len(p))
		if err := dst.send(p); err != nil {
			return errLeft
		}
		last.Store(time.Now().UnixNano())
		return nil
	}
	for {
		err := src.receive(idle/4, take) // so that each direction knows in time of the other's life
		switch {
		case err == io.EOF:
			dst.end()
			return total
		case timedOut(err) && time.Since(time.Unix(0, last.Load())) < idle:
		default:
			dst.cut()
			src.cut()
			return total
		}
	}
}

// streamSide is a stream, of a client or to an endpoint.
type streamSide struct{ s *h2stream }

func (t *streamSide) receive(wait time.Duration, take func([]byte) error) error {
	t.s.patience = wait
	for {
		p, err := t.s.next()
		if err != nil {
			return err
		}
		if err := take(p); err != nil {
			return err
		}
	}
}

func (t *streamSide) send(p []byte) error {
	if err := t.s.sendData(p); err != nil {
		return err
	}
	t.s.m.mu.Lock()
	t.s.m.flush()
	return nil
}

func (t *streamSide) end() {
	t.s.m.mu.Lock()
	if t.s.gone == nil {
		t.s.sendEnd(nil)
	}
	t.s.m.flush()
}

func (t *streamSide) cut() {
	t.s.m.reset(t.s.id, http2.ErrCodeCancel, errTunnelOver)
	t.s.m.mu.Lock()
	t.s.m.flush()
}

var errLeft = errors.New("the other side takes nothing any more")

// connSide is a connection, of which some has been read ahead.
type connSide struct {
	c     net.Conn
	ahead []byte
}

func (t *connSide) receive(wait time.Duration, take func([]byte) error) error {
	if p := t.ahead; len(p) > 0 {
		if t.ahead = nil; take(p) != nil {
			return errLeft
		}
	}
	_ = t.c.SetReadDeadline(time.Now().Add(wait))
	return arrivals(t.c, &mediumBuffers, func(p []byte) (bool, error) {
		err := take(p)
		return err == nil, err
	})
}

func (t *connSide) send(p []byte) error {
	_ = t.c.SetWriteDeadline(time.Time{})
	_, err := t.c.Write(p)
	return err
}

func (t *connSide) end() {
	if c, ok := t.c.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		t.c.Close()
	}
}

func (t *connSide) cut() { closer{t.c, t.c}.end() }
