// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Bounds on waiting for endpoints.
const (
	dialTimeout = 5 * time.Second
	// quickDial bounds a connection that is made while there are other endpoints to try: as long as it takes until the
	// kernel asks a second time.
	quickDial = time.Second
	// quiet is how long an endpoint may say nothing, when the rule sets no timeout.
	quiet = 5 * time.Minute
	// stuck is how long a peer may take no data that is for it.
	stuck = 60 * time.Second
	// maxHead is the most bytes of a head.
	maxHead = 32 << 10
)

// upstream is an HTTP/1.1 connection to an endpoint.
type upstream struct {
	endpoint  *endpoint
	w         *wire
	idleSince time.Time
	head      responseHead
	body      wireBody
}

func (u *upstream) close() {
	u.w.conn.Close()
}

// interrupt ends the connection when the client has left. It waits for nothing: TLS is not told goodbye.
func (u *upstream) interrupt() {
	if t, ok := u.w.conn.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	u.w.conn.Close()
}

// dialLimits bound a connection to an endpoint: until it is there, and until TLS is.
type dialLimits struct{ connect, all time.Duration }

// noAnswer is the error of a connection that an endpoint has not answered for as long as it may.
type noAnswer struct{ error }

func (e noAnswer) Unwrap() error { return e.error }

// connecting is how long the request waits for a connection: until a deadline (zero: none but the endpoint's limits), and
// until the client leaves. end ends that.
func (x *exchange) connecting(by time.Time) (ctx context.Context, end func()) {
	var cancel context.CancelFunc
	if by.IsZero() {
		ctx, cancel = context.WithCancel(context.Background())
	} else {
		ctx, cancel = context.WithDeadline(context.Background(), by)
	}
	if x.client == nil {
		return ctx, cancel
	}
	if !x.client.watch(canceled(cancel)) {
		cancel()
	}
	return ctx, func() {
		x.client.unwatch()
		cancel()
	}
}

// canceled is called when the client gives up.
type canceled context.CancelFunc

func (c canceled) interrupt() { c() }

// dial connects to the endpoint, with TLS where the backend has it.
func (e *endpoint) dial(ctx context.Context, limits dialLimits, p *peer, protos []string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limits.all)
	defer cancel()
	began := time.Now()
	d := net.Dialer{Timeout: limits.connect, KeepAlive: -1} // connections that wait are bounded in time anyway, in tunnels by the client's
	c, err := d.DialContext(ctx, "tcp", e.address)
	if err != nil {
		if timedOut(err) && time.Since(began) >= limits.connect {
			err = noAnswer{err}
		}
		return nil, err
	}
	c = quick(c)
	if v := e.backend.conf.ProxyProtocol; v != 0 {
		if _, err := c.Write(proxyHeader(v, p.remote, p.local)); err != nil {
			c.Close()
			return nil, err
		}
	}
	if e.backend.tls == nil {
		return c, nil
	}
	conf := e.backend.tls
	if len(protos) > 0 {
		conf = conf.Clone()
		conf.NextProtos = protos
	}
	t := tls.Client(&transport{Conn: c}, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return t, nil
}

// reusable tells whether connections may serve other clients too. A PROXY header speaks for one client.
func (e *endpoint) reusable() bool { return e.backend.conf.ProxyProtocol == 0 }

// idempotent methods may be sent again when a kept connection turns out to be closed (RFC 9110 section 9.2.2).
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

func (x *exchange) attemptH1(e *endpoint, by time.Time, retryable func(int) bool) outcome {
	now := time.Now()
	whole := x.body == nil || x.isWhole
	kept := e.reusable()
	for {
		var u *upstream
		if kept {
			u = e.takeFor(now, whole)
		}
		if kept = u != nil; !kept {
			ctx, end := x.connecting(by)
			c, err := e.dial(ctx, x.dialLimits(e), x.peer, nil)
			end()
			if err != nil {
				return x.unconnected(e, err)
			}
			u = &upstream{endpoint: e, w: newWire(c)}
		}
		out, end := x.over(u, kept, by, now, retryable)
		switch {
		case end == unsent:
			continue // with another one
		case kept && end == stale && whole && idempotent(x.method):
			kept = false // the others may be as old
			if x.isWhole {
				x.whole1.done = false
			}
			continue
		}
		return out
	}
}

// unconnected ends an attempt for which there is no connection.
func (x *exchange) unconnected(e *endpoint, err error) outcome {
	if x.client != nil && x.client.left() {
		x.fail("client left")
		return outcome{done: true}
	}
	var known told
	if !errors.As(err, &known) && x.blames(err) {
		e.unconnected(err)
	}
	return outcome{safe: true, status: unreachable(err), reason: err.Error()}
}

func unreachable(err error) int {
	if timedOut(err) {
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// takeFor gives a kept connection that the endpoint has neither closed nor said anything on unasked. Where that can be found
// out as the request is sent (see wire.ask), it is.
func (e *endpoint) takeFor(now time.Time, whole bool) *upstream {
	for {
		u := e.take(now)
		if u == nil || whole && u.w.asks() || alive(u.w.conn) {
			return u
		}
		u.discard()
	}
}

// ending is how an exchange ended with its connection.
type ending int

const (
	used   ending = iota // something came back, or it took too long
	stale                // the connection ended before anything came back
	unsent               // the connection had ended, or was of no use, before anything was sent
)

// over carries the exchange over a connection, which may be a kept one.
func (x *exchange) over(u *upstream, kept bool, by, now time.Time, retryable func(int) bool) (outcome, ending) {
	e := u.endpoint
	u.w.more = nil
	u.w.deliverBy(now, x.sendTimeout())
	if by.IsZero() {
		u.w.patience = x.readTimeout()
		u.w.expectBy(now, u.w.patience)
	} else {
		u.w.patience = 0
		u.w.setRead(by)
	}
	if x.client != nil && !x.client.watch(u) {
		u.discard()
		x.fail("client left")
		return outcome{done: true}, used
	}
	keep := false // for other requests, once the client can't close it any more
	defer func() {
		untold := x.client == nil || x.client.unwatch()
		switch {
		case keep && untold:
			e.put(u, time.Now())
		case keep:
			u.discard()
		}
	}()
	x.writeRequest(u.w)
	streams := x.body != nil && !x.isWhole
	if x.isWhole {
		u.w.out = append(u.w.out, x.whole...)
	}
	var asked bool
	var err error
	if kept && !streams && u.w.asks() {
		if asked, err = u.w.ask(); !asked && err == nil {
			u.discard()
			return outcome{}, unsent
		}
	} else {
		err = u.w.flush()
		asked = err == nil
	}
	if !asked {
		u.discard()
		if x.blames(err) {
			e.failed(now)
		}
		return outcome{status: unreachable(err), reason: "endpoint: " + err.Error()}, stale
	}
	var p *pump
	if streams {
		p = x.startPump(u)
	}
	if err == nil {
		err = u.readHead(x)
	} else {
		err = unexpected(err)
	}
	if err == nil && u.head.status == http.StatusSwitchingProtocols {
		return x.switchProtocols(u), used
	}
	if err == nil && x.major == 2 && x.upgrade != "" && u.head.status < 300 { // it would look like a tunnel to the client
		err = &parseError{502, "response: protocol not switched"}
	}
	if err != nil {
		var malformed *parseError
		nothing := u.w.r == u.w.w && !timedOut(err) && !errors.As(err, &malformed)
		blamed := x.blames(err) // while the rest of the request may still be on its way
		u.close()
		if p != nil && x.stopPump(p) {
			u.discard()
			x.clientBroke(p.err)
			return outcome{done: true}, used
		}
		u.discard()
		if x.client != nil && x.client.left() {
			x.fail("client left")
			return outcome{done: true}, used
		}
		if (!nothing || p != nil || !kept) && blamed {
			e.failed(now)
		}
		out := outcome{status: unreachable(err), reason: "endpoint: " + err.Error()}
		if nothing {
			return out, stale
		}
		return out, used
	}
	h := &u.head
	if h.status >= 502 && h.status <= 504 {
		e.failed(now)
	} else {
		e.succeeded()
	}
	if retryable(h.status) {
		u.discard()
		return outcome{answered: true, status: h.status, reason: "endpoint: " + strconv.Itoa(h.status)}, used
	}
	u.body.reset(u.w, h.length)
	early := p != nil && !p.ended()
	complete := x.relay(e, h.status, view(h.reason), h.fields, &u.body, h.length)
	if p != nil {
		if !x.letEnd(p) { // the rest of the request is not wanted
			u.close()
			x.stopPump(p)
		}
		// An endpoint that answers early may throw away whatever comes after, another request as well.
		complete = complete && p.err == nil && p.complete && !early
		x.last = x.last || !p.complete
	}
	if keep = complete && !h.close && u.w.r == u.w.w && e.reusable() && x.hop() != "close"; !keep {
		u.discard()
	}
	return outcome{done: true}, used
}

// discard closes the connection and gives its buffers back.
func (u *upstream) discard() {
	u.close()
	u.w.release()
}

// readHead reads up to the final response's head.
func (u *upstream) readHead(x *exchange) error {
	w := u.w
	for {
		n, perr := w.scanHead()
		if perr != nil {
			return &parseError{502, perr.reason}
		}
		if n > maxHead || n == 0 && w.w-w.r >= maxHead {
			return &parseError{502, "response: head too large"}
		}
		if n == 0 {
			if err := w.fill(); err != nil && !w.bears(err) {
				return unexpected(err)
			}
			continue
		}
		head := w.buffered()[:n]
		w.r += n
		if perr := parseResponse(head, x.method, &u.head); perr != nil {
			return perr
		}
		switch s := u.head.status; {
		case s == http.StatusSwitchingProtocols:
			if x.upgrade == "" {
				return &parseError{502, "response: protocol switched unasked"}
			}
			return nil
		case s >= 200:
			return nil
		case s != http.StatusContinue:
			if err := x.sink.informational(s, u.head.fields); err != nil {
				return err
			}
		}
	}
}

// writeRequest puts the request's head into the connection's output.
func (x *exchange) writeRequest(w *wire) {
	b := w.out
	b = append(b, x.method...)
	b = append(b, ' ')
	b = append(b, x.path...)
	if x.query != "" {
		b = append(b, '?')
		b = append(b, x.query...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, x.authority...)
	b = append(b, "\r\n"...)
	b = appendFields(b, x.fields)
	if hop := x.hop(); hop != "" && x.upgrade == "" {
		b = append(b, "Connection: "...)
		b = append(b, hop...)
		b = append(b, "\r\n"...)
	}
	switch {
	case x.upgrade != "":
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		b = append(b, x.upgrade...)
		b = append(b, "\r\n"...)
	case x.body == nil:
		if x.method == http.MethodPost || x.method == http.MethodPut || x.method == http.MethodPatch {
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case x.length >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, x.length, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	w.out = append(b, "\r\n"...)
}

func appendFields(b []byte, fields []field) []byte {
	for i := range fields {
		f := &fields[i]
		if f.id == fDropped {
			continue
		}
		b = append(b, f.name...)
		b = append(b, ": "...)
		b = append(b, f.value...)
		b = append(b, "\r\n"...)
	}
	return b
}

// appendChunk frames a piece of a body.
func appendChunk(b, p []byte) []byte {
	b = strconv.AppendUint(b, uint64(len(p)), 16)
	b = append(b, "\r\n"...)
	b = append(b, p...)
	return append(b, "\r\n"...)
}

// pump sends a request's body while the response is awaited, in a goroutine of its own: an endpoint may answer before
// it has read everything.
type pump struct {
	done     chan struct{}
	duplex   *duplex
	send     time.Duration // how long an endpoint may take nothing of the body
	complete bool
	touched  atomic.Bool // some of the body has been read
	broke    atomic.Bool // the client did
	err      error       // how; known when done is closed
}

func (x *exchange) startPump(u *upstream) *pump {
	p := &pump{done: make(chan struct{}), duplex: x.duplexed(u.endpoint), send: x.sendTimeout()}
	if u.w.patience > 0 { // else it is a deadline that bounds the wait
		u.w.bear(p.duplex.endpoint)
	}
	go func() {
		defer close(p.done)
		defer p.duplex.sent()
		p.run(x.body, x.length, u)
	}()
	return p
}

func (p *pump) run(b body, length int64, u *upstream) {
	w := u.w
	for {
		if !b.ready() {
			w.deliverBy(time.Now(), p.send)
			if err := w.flush(); err != nil {
				p.unsent(err, w)
				return
			}
		}
		piece, err := b.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			p.err = err
			p.broke.Store(true)
			u.close() // wakes the reader of the answer
			return
		}
		p.duplex.move()
		if length >= 0 && len(piece) >= large {
			w.deliverBy(time.Now(), p.send)
			if err := w.flushWith(piece); err != nil {
				p.unsent(err, w)
				return
			}
		} else if length >= 0 {
			w.out = append(w.out, piece...)
		} else {
			w.out = appendChunk(w.out, piece)
		}
		if len(w.out) >= spill {
			w.deliverBy(time.Now(), p.send)
			if err := w.flush(); err != nil {
				p.unsent(err, w)
				return
			}
		}
	}
	if length < 0 {
		w.out = append(w.out, "0\r\n"...)
		w.out = appendFields(w.out, b.trailers())
		w.out = append(w.out, "\r\n"...)
	}
	err := w.flush()
	p.unsent(err, w)
	p.complete = err == nil
}

// unsent is told why a part of the body could not be sent. The endpoint's answer, if any, says more; of one that takes
// nothing none is awaited, unless a deadline bounds that anyway.
func (p *pump) unsent(err error, w *wire) {
	if err == nil || !timedOut(err) || w.more == nil {
		return
	}
	p.duplex.stuck.Store(true)
	_ = w.conn.SetReadDeadline(time.Unix(1, 0))
}

// ended tells whether the body's goroutine has ended.
func (p *pump) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// letEnd gives the rest of a request that has been answered already a little time, so that a client of HTTP/1 need not
// connect again; it tells whether the body's goroutine has ended.
func (x *exchange) letEnd(p *pump) bool {
	if p.ended() {
		return true
	}
	if x.major != 1 || x.abort || x.last || x.sink.flush() != nil {
		return false
	}
	t := time.NewTimer(lingerFor)
	defer t.Stop()
	select {
	case <-p.done:
		return true
	case <-t.C:
		return false
	}
}

// stopPump ends the body's goroutine; it tells whether the client is to blame for the end.
func (x *exchange) stopPump(p *pump) (client bool) {
	if p.broke.Load() {
		<-p.done
		return true
	}
	if p.ended() { // nothing reads from the client's connection, which may go on
		return false
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		if x.from != nil && !x.isWhole { // the client's connection is none of a body's that is here
			x.from.giveUp()
		}
		select {
		case <-p.done:
			return false
		case <-t.C:
		}
	}
}
