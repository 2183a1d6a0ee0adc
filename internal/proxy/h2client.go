// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// h2up is an HTTP/2 connection to an endpoint, for as many requests at a time as it takes.
type h2up struct {
	endpoint *endpoint
	mux      *h2mux

	// Guarded by the mux's lock.
	nextID   uint32
	most     uint32 // streams at a time, as the endpoint says
	mostHead uint32 // bytes of a request's head, as it says
	closing  bool   // it takes no more requests
	takes    extended

	told     chan struct{} // closed when the endpoint has said how it is to be spoken to, or will not
	toldOnce sync.Once
}

const (
	// streamsUntold is how many streams an endpoint gets before it says how many it takes.
	streamsUntold = 100
	// h2Idle is how long an unused connection is kept.
	h2Idle = 30 * time.Second
	// h2Silence is how long one in use may be silent before it is asked for a sign of life. Servers of gRPC take more
	// frequent questions for abuse.
	h2Silence = 5*time.Minute + 10*time.Second
	// goneTries is how often a request is sent again to an endpoint that turned it down unread.
	goneTries = 3
	// largestHead is a limit in bytes that no request comes to.
	largestHead = 1 << 20
)

// h2pool is an endpoint's HTTP/2 connections: as many as its limit of streams makes necessary.
type h2pool struct {
	mu       sync.Mutex
	conns    []*h2up
	dialing  *h2dialing
	gone     bool
	most     atomic.Uint32 // streams at a time, as the endpoint said last; 0: it has not
	mostHead atomic.Uint32 // bytes of a request's head, likewise
	extended atomic.Uint32
}

// h2dialing is a connection being made, for all who wait for one.
type h2dialing struct {
	done chan struct{}
	err  error
}

// h2call is a stream to an endpoint, with the response's head.
type h2call struct {
	h2stream
	method string
	socket bool // it asks for a WebSocket
	infos  []h2info
	headed bool
	status int
	fields []field
}

// h2info is an informational response.
type h2info struct {
	status int
	fields []field
}

var h2calls = sync.Pool{New: func() any { return &h2call{} }}

// errUnprocessed is a GOAWAY's word that the endpoint has not looked at a stream (RFC 9113 section 6.8).
var errUnprocessed = errors.New("the endpoint closes the connection and has not looked at the request")

// openH2 sends the request's head on a connection that takes it. fresh tells that the connection is new.
func (x *exchange) openH2(e *endpoint, call *h2call, by time.Time) (fresh, sent bool, err error) {
	p := &e.h2
	var ctx context.Context
	for range 100 { // connections that were just made may be full already
		begun := false
		p.mu.Lock()
		kept := p.conns[:0]
		for _, o := range p.conns {
			if !begun {
				sent, err = o.begin(x, call)
				begun = err == nil
			}
			if !o.over() {
				kept = append(kept, o)
			}
		}
		clear(p.conns[len(kept):])
		p.conns = kept
		d, alone := p.dialing, p.gone || !e.reusable()
		mine := d == nil && !begun && !alone
		if mine {
			d = &h2dialing{done: make(chan struct{})}
			p.dialing = d
		}
		p.mu.Unlock()
		if begun {
			return fresh, sent, nil
		}
		if ctx == nil {
			var end func()
			ctx, end = x.connecting(by)
			defer end()
		}
		if alone {
			u, err := e.dialH2(ctx, x.dialLimits(e), x.peer)
			if err != nil {
				return false, false, err
			}
			sent, err := u.begin(x, call)
			u.retire()
			return true, sent, err
		}
		if mine {
			fresh = true
			go e.dialShared(d, x.dialLimits(e), x.peer)
		}
		select {
		case <-d.done:
		case <-ctx.Done():
			return false, false, ctx.Err()
		}
		if d.err != nil {
			return false, false, d.err
		}
	}
	return false, false, errors.New("no connection to the endpoint takes a request")
}

// dialShared makes the connection that requests wait for. It has as much time as the endpoint may take: whoever wanted it
// first may have less than others.
func (e *endpoint) dialShared(d *h2dialing, limits dialLimits, pe *peer) {
	u, err := e.dialH2(context.Background(), limits, pe)
	p := &e.h2
	p.mu.Lock()
	p.dialing = nil
	gone := p.gone
	if err == nil && !gone {
		p.conns = append(p.conns, u)
	}
	p.mu.Unlock()
	if err == nil && gone { // those that wait get one each
		u.retire()
	}
	if err != nil { // once for all who wait, and where nobody does any more
		e.unconnected(err)
		d.err = told{err}
	}
	close(d.done)
}

// told is the error of a connection of which its endpoint has been told.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

func (e *endpoint) dialH2(ctx context.Context, limits dialLimits, pe *peer) (*h2up, error) {
	c, err := e.dial(ctx, limits, pe, nil)
	if err != nil {
		return nil, err
	}
	if tc, ok := c.(*tls.Conn); ok && tc.ConnectionState().NegotiatedProtocol != "h2" {
		c.Close()
		return nil, errors.New("the endpoint does not speak HTTP/2 in TLS")
	}
	u := &h2up{endpoint: e, nextID: 1, most: streamsUntold, takes: notOffered, told: make(chan struct{})}
	if n := e.h2.most.Load(); n > 0 {
		u.most = min(n, streamsUntold)
	}
	u.mux = newMux(newWire(c), u, h2Idle, h2Idle, stuck)
	u.mux.out = append(u.mux.room(), http2.ClientPreface...)
	u.mux.open(setting{http2.SettingEnablePush, 0})
	go func() {
		_ = u.mux.read()
		u.mux.w.release()
		u.toldOnce.Do(func() { close(u.told) })
	}()
	return u, nil
}

var errFull = errors.New("the connection takes no more requests")

// begin opens a stream with the request's head, and its body when that is here and fits. sent tells that all of the
// request is in the output.
func (u *h2up) begin(x *exchange, call *h2call) (sent bool, err error) {
	m := u.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.dead != nil:
		return false, m.dead
	case u.closing || len(m.streams) >= int(u.most):
		return false, errFull
	}
	s := &call.h2stream
	s.prepare(m, u.nextID)
	s.call = call
	call.method, call.headed, call.infos, call.status = x.method, false, call.infos[:0], 0
	if u.nextID += 2; u.nextID > maxWindow-2 {
		u.closing = true
	}
	// A call without a message ends with a frame of DATA, for which servers of gRPC wait.
	empty := !call.socket && (x.body == nil || x.isWhole && len(x.whole) == 0 && !x.call)
	scheme, authority := x.addressed(u.endpoint)
	s.sendHead(empty, func(b []byte) []byte {
		if call.socket {
			return appendSocketHead(b, scheme, authority, x)
		}
		b = appendRequestHead(b, x.method, scheme, authority, x.path, x.query)
		b = appendAsked(b, x.fields, false)
		if !empty && x.length > 0 {
			b = appendLengthField(b, x.length)
		}
		return b
	})
	if empty || call.socket {
		return true, nil
	}
	n := int64(len(x.whole))
	if !x.isWhole || n > min(s.sendWindow, m.sendWindow, int64(m.sendFrame)) || len(m.waiting) > 0 || len(m.out) > spill {
		return false, nil
	}
	m.reserve(frameHeader + len(x.whole))
	m.out = append(appendFrame(m.out, len(x.whole), http2.FrameData, http2.FlagDataEndStream, s.id), x.whole...)
	s.sendWindow -= n
	m.sendWindow -= n
	s.sentEnd = true
	return true, nil
}

// addressed is what an endpoint is told of the request's scheme and authority.
func (x *exchange) addressed(e *endpoint) (scheme, authority string) {
	scheme, authority = "http", x.authority
	if e.backend.tls != nil {
		scheme = "https"
	}
	if authority == "" {
		authority = e.address
	}
	return scheme, authority
}

// outsizes tells whether the request's head is more than the endpoint takes: servers end connections over that.
func (x *exchange) outsizes(e *endpoint, socket bool) bool {
	most := e.h2.mostHead.Load()
	if most == 0 {
		return false
	}
	scheme, authority := x.addressed(e)
	return headSize(x, socket, scheme, authority) > int(most)
}

// over tells whether the connection will take no request any more.
func (u *h2up) over() bool {
	u.mux.mu.Lock()
	defer u.mux.mu.Unlock()
	return u.closing || u.mux.dead != nil
}

// retire lets the connection end with its last stream.
func (u *h2up) retire() {
	u.mux.mu.Lock()
	u.closing = true
	u.mux.endWith()
	u.mux.mu.Unlock()
}

func (p *h2pool) retire() {
	p.mu.Lock()
	conns := p.conns
	p.conns, p.gone = nil, true
	p.mu.Unlock()
	for _, u := range conns {
		u.retire()
	}
}

func (u *h2up) quiet(since time.Duration) (wait time.Duration, ping bool) {
	u.mux.mu.Lock()
	defer u.mux.mu.Unlock()
	switch {
	case len(u.mux.streams) == 0:
		u.closing = true
		return 0, false
	case since < h2Silence:
		return h2Silence - since, false
	}
	return pongTimeout, true
}

func (u *h2up) fromServer() bool { return true }

func (u *h2up) isIdle(stream uint32) bool {
	u.mux.mu.Lock()
	defer u.mux.mu.Unlock()
	return stream%2 == 0 || stream >= u.nextID
}

func (u *h2up) setting(s setting) {
	switch s.id {
	case http2.SettingMaxConcurrentStreams:
		u.most = s.value
		u.endpoint.h2.most.Store(s.value)
	case http2.SettingMaxHeaderListSize:
		if u.mostHead = s.value; s.value >= largestHead {
			u.mostHead = 0
		}
	case http2.SettingEnableConnectProtocol:
		if s.value == 1 {
			u.takes = offered
		}
	}
}

func (u *h2up) settled() {
	u.endpoint.h2.mostHead.Store(u.mostHead)
	u.toldOnce.Do(func() {
		u.endpoint.h2.extended.Store(uint32(u.takes))
		close(u.told)
	})
}

func (u *h2up) goAway(last uint32, _ http2.ErrCode) {
	m := u.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	u.closing = true
	for id, s := range m.streams {
		if id > last && s.gone == nil {
			s.abandon(errUnprocessed)
		}
	}
	m.endWith()
}

// head takes a response's head, or its trailers.
func (u *h2up) head(b *h2block) *h2error {
	m := u.mux
	if u.isIdle(b.stream) {
		return connError(http2.ErrCodeProtocol, "HEADERS on a stream that was not opened")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[b.stream]
	if s == nil || s.gone != nil {
		return m.closed(b.stream)
	}
	m.calm.earn()
	call := s.call
	if call.headed {
		return s.trailing(b)
	}
	if malformed := b.response(); malformed != "" {
		return &h2error{s.id, http2.ErrCodeProtocol, malformed}
	}
	if b.status < 200 {
		if len(call.infos) >= maxInfos {
			return &h2error{s.id, http2.ErrCodeEnhanceYourCalm, "too many informational responses"}
		}
		call.infos = append(call.infos, h2info{b.status, append([]field(nil), b.fields...)})
		s.wakeReader()
		return nil
	}
	s.declared = b.length
	if bodyless(call.method, b.status) {
		if s.declared = 0; b.length >= 0 && b.status != http.StatusNoContent { // it tells of a body that is not here
			b.fields = append(b.fields, field{raw("content-length"), strconv.AppendInt(nil, b.length, 10), other})
		}
	}
	if b.end && !s.endOfInput() {
		return &h2error{s.id, http2.ErrCodeProtocol, "less data than content-length says"}
	}
	call.status, call.headed = b.status, true
	call.fields, b.fields = b.fields, call.fields[:0]
	s.wakeReader()
	return nil
}

// maxInfos is how many informational responses may wait for an exchange.
const maxInfos = 16

// await waits for an informational response, or the final one, whose status it gives.
func (c *h2call) await() (h2info, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	by := c.readEnd
	if by == 0 {
		by = time.Now().Add(c.patience).UnixNano()
	}
	for {
		switch {
		case len(c.infos) > 0:
			info := c.infos[0]
			c.infos = append(c.infos[:0], c.infos[1:]...)
			return info, nil
		case c.headed:
			return h2info{c.status, c.fields}, nil
		case c.gone != nil:
			return h2info{}, c.gone
		}
		if err := c.awaitRead(by); err != nil && !c.bears(&by) {
			return h2info{}, err
		}
	}
}

// cancelCall ends a call whose client left.
type cancelCall struct{ *h2call }

func (c cancelCall) interrupt() { c.m.reset(c.id, http2.ErrCodeCancel, errClientLeft) }

// attemptH2 sends the request to an endpoint that speaks HTTP/2.
func (x *exchange) attemptH2(e *endpoint, by time.Time, retryable func(int) bool) outcome {
	for try := 1; ; try++ {
		out, again := x.overH2(e, by, retryable)
		if !again || try == goneTries {
			return out
		}
		if x.isWhole {
			x.whole1.done = false
		}
	}
}

// overH2 carries the exchange over a stream. again says that the endpoint is well and has not acted on the request, or
// that the kept connection had ended.
func (x *exchange) overH2(e *endpoint, by time.Time, retryable func(int) bool) (out outcome, again bool) {
	var err error
	call := h2calls.Get().(*h2call)
	if call.socket, err = x.asSocket(e, by); err == errNoSockets {
		h2calls.Put(call)
		return outcome{status: http.StatusBadGateway, reason: err.Error()}, false
	}
	if err == nil && x.outsizes(e, call.socket) {
		h2calls.Put(call)
		return outcome{status: http.StatusRequestHeaderFieldsTooLarge, reason: "header fields larger than the endpoint takes"}, false
	}
	var fresh, sent bool
	if err == nil {
		fresh, sent, err = x.openH2(e, call, by)
	}
	if err != nil {
		h2calls.Put(call)
		return x.unconnected(e, err), false
	}
	call.patience, call.sendPatience = x.readTimeout(), x.sendTimeout()
	if !by.IsZero() {
		call.readEnd = by.UnixNano()
	}
	if x.client != nil {
		if !x.client.watch(cancelCall{call}) {
			call.finish(http2.ErrCodeCancel)
			h2calls.Put(call)
			x.fail("client left")
			return outcome{done: true}, false
		}
	}
	call.m.mu.Lock()
	call.m.flush()
	var p *pump
	if !sent {
		p = x.pumpH2(e, call)
	}
	out, again = x.answerH2(e, call, p, fresh, retryable)
	if x.client != nil {
		x.client.unwatch()
	}
	if p != nil {
		x.stopCall(p, call)
	}
	call.finish(http2.ErrCodeCancel)
	h2calls.Put(call)
	return out, again
}

// answerH2 waits for the response and passes it on.
func (x *exchange) answerH2(e *endpoint, call *h2call, p *pump, fresh bool, retryable func(int) bool) (out outcome, again bool) {
	for {
		info, err := call.await()
		switch {
		case err != nil:
			return x.brokenH2(e, call, p, fresh, err)
		case info.status == http.StatusContinue:
			continue
		case info.status < 200:
			if err := x.sink.informational(info.status, info.fields); err != nil {
				x.fail("client: " + err.Error())
				return outcome{done: true}, false
			}
			continue
		}
		break
	}
	if call.status >= 502 && call.status <= 504 {
		e.failed(time.Now())
	} else {
		e.succeeded()
	}
	if retryable(call.status) {
		return outcome{answered: true, status: call.status, reason: "endpoint: " + strconv.Itoa(call.status)}, false
	}
	if call.socket && call.status < 300 {
		return x.tunnelCall(e, call), false
	}
	length := call.length(x.major == 1)
	complete := x.relay(e, call.status, "", call.fields, call, length)
	if p != nil && complete && (!x.letEnd(p) || !p.complete) {
		x.last = true // the rest of the request is not wanted
	}
	return outcome{done: true}, false
}

// length is that of the response's body, as sinks want it. chunked tells that trailers have no place in a response whose
// length is told, as in HTTP/1.1.
func (c *h2call) length(chunked bool) int64 {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	trailers := len(c.ends) > 0
	for i := range c.fields {
		trailers = trailers || c.fields[i].id == fTrailer
	}
	switch {
	case c.declared >= 0 && (!chunked || !trailers || bodyless(c.method, c.status)):
		return c.declared
	case c.recvEnd && len(c.chunks) == 0 && len(c.ends) == 0:
		return 0
	}
	return -1
}

// brokenH2 judges a call that ended before its response began.
func (x *exchange) brokenH2(e *endpoint, call *h2call, p *pump, fresh bool, err error) (outcome, bool) {
	if errors.Is(err, errClientLeft) {
		x.fail("client left")
		return outcome{done: true}, false
	}
	blamed := x.blames(err) // while the rest of the request may still be on its way
	if p != nil && x.stopCall(p, call) {
		x.clientBroke(p.err)
		return outcome{done: true}, false
	}
	untouched := p == nil || x.isWhole || !p.touched.Load()
	out := outcome{status: unreachable(err), reason: "endpoint: " + err.Error()}
	var r *resetError
	switch {
	case errors.Is(err, errUnprocessed):
		out.safe = untouched
		return out, untouched
	case errors.As(err, &r) && r.code == http2.ErrCodeRefusedStream:
		out.safe = untouched
		return out, false
	case errors.As(err, &r):
	case !fresh && !timedOut(err) && !x.cutOff && x.repeatable() && idempotent(x.method):
		x.cutOff = true
		return out, true // a kept connection that the endpoint had closed
	}
	if blamed {
		e.failed(time.Now())
	}
	return out, false
}

// repeatable tells whether the request can be sent again as it is.
func (x *exchange) repeatable() bool { return x.body == nil || x.isWhole }

// pumpH2 sends a request's body while the response is awaited.
func (x *exchange) pumpH2(e *endpoint, call *h2call) *pump {
	p := &pump{done: make(chan struct{}), duplex: x.duplexed(e)}
	call.bear(p.duplex.endpoint)
	go func() {
		defer close(p.done)
		defer p.duplex.sent()
		p.runH2(x.body, call)
	}()
	return p
}

func (p *pump) runH2(b body, call *h2call) {
	m := call.m
	for {
		if !b.ready() {
			m.mu.Lock()
			m.flush()
		}
		piece, err := b.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			p.err = err
			p.broke.Store(true)
			m.reset(call.id, http2.ErrCodeCancel, err) // wakes the reader of the answer
			m.mu.Lock()
			m.flush()
			return
		}
		p.touched.Store(true)
		p.duplex.move()
		if err := call.sendData(piece); err != nil {
			call.unsent(err)
			return
		}
	}
	m.mu.Lock()
	p.complete = call.gone == nil
	// Trailers may be discarded (RFC 9110 section 6.5.1), and HEADERS on an open stream have servers end the connection, with
	// the calls of all others: those of grpc-go always, those of net/http2 when their own end crosses them.
	call.sendEnd(nil)
	m.flush()
}

// unsent is told why a part of the body could not be sent. The endpoint's answer, if any, says more; of one that takes
// nothing none is awaited.
func (c *h2call) unsent(err error) {
	m := c.m
	m.mu.Lock()
	if timedOut(err) && !c.headed && c.gone == nil {
		c.abandon(err)
		m.out = appendReset(m.room(), c.id, http2.ErrCodeCancel)
	}
	m.flush()
}

// stopCall ends the body's goroutine; it tells whether the client is to blame for the end.
func (x *exchange) stopCall(p *pump, call *h2call) (client bool) {
	select {
	case <-p.done:
		return p.broke.Load()
	default:
	}
	call.m.reset(call.id, http2.ErrCodeCancel, context.Canceled) // its writer gives up
	return x.stopPump(p)
}
