// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// h2conn serves one client's HTTP/2 connection. Each request is an exchange like those of HTTP/1.1, in a goroutine of
// its own.
type h2conn struct {
	srv  *Server
	peer *peer
	mux  *h2mux
	late uint32 // the highest stream that came after closing; of the reading goroutine

	// Of the way to the connection's end, guarded by the mux's lock.
	goodbye time.Time // when the client was told that the connection will end; zero: it was not
	pongs   int       // then
	closing bool      // the client was told which streams are the last
}

// serveH2 serves a connection to its end. The wire may have begun to read.
func (s *Server) serveH2(w *wire, p *peer) {
	c := &h2conn{srv: s, peer: p}
	m := newMux(w, c, s.conf.IdleTimeout, s.conf.HeadTimeout, s.conf.SendTimeout)
	c.mux = m
	forget := s.idlers.add(c)
	defer forget()
	m.open(setting{http2.SettingMaxConcurrentStreams, s.conf.MaxStreams}, setting{http2.SettingEnableConnectProtocol, 1})
	if b, err := m.take(len(http2.ClientPreface)); err == nil && !bytes.Equal(b, []byte(http2.ClientPreface)) {
		m.shut(http2.ErrCodeProtocol, "not the preface of HTTP/2")
		m.fail(errPreface)
	}
	err := m.read()
	var fault *h2error
	if errors.As(err, &fault) {
		s.refused(0)
	}
	w.release()
}

var errPreface = errors.New("not the preface of HTTP/2")

// h2request is a stream with its exchange.
type h2request struct {
	h2stream
	x       exchange
	refusal *parseError
	noBody  bool
}

var h2requests = sync.Pool{New: func() any {
	r := &h2request{}
	r.x.from = r
	return r
}}

func (c *h2conn) isIdle(stream uint32) bool { return stream%2 == 0 || stream > max(c.mux.last, c.late) }
func (c *h2conn) fromServer() bool          { return false }
func (c *h2conn) setting(setting)           {}
func (c *h2conn) settled()                  {}

// goAway needs no answer: the client goes on reading what it has asked for.
func (c *h2conn) goAway(uint32, http2.ErrCode) {}

// quiet asks the client for a sign of life while it has requests; without any it is sent away.
func (c *h2conn) quiet(time.Duration) (wait time.Duration, ping bool) {
	c.mux.mu.Lock()
	defer c.mux.mu.Unlock()
	if len(c.mux.streams) == 0 {
		return 0, false
	}
	return pongTimeout, true
}

// pongTimeout is how long a peer may take to answer a PING.
const pongTimeout = 15 * time.Second

func (c *h2conn) head(b *h2block) *h2error {
	m, id := c.mux, b.stream
	if id%2 == 0 {
		return connError(http2.ErrCodeProtocol, "a client's stream with an even number")
	}
	m.mu.Lock()
	if id <= m.last {
		defer m.mu.Unlock()
		if s := m.streams[id]; s != nil && s.gone == nil {
			return s.trailing(b)
		}
		fault := m.closed(id)
		if fault != nil && fault.stream != 0 {
			return connError(http2.ErrCodeProtocol, "streams are not opened in order")
		}
		return fault
	}
	if c.closing { // the client knows that this is for nothing, or will soon
		defer m.mu.Unlock()
		if id > c.late {
			c.late = id
			m.remember(id, true)
		}
		return m.ignored()
	}
	m.last = id
	m.calm.earn()
	full := len(m.streams) >= int(c.srv.conf.MaxStreams)
	m.mu.Unlock()
	if full {
		return &h2error{id, http2.ErrCodeRefusedStream, "too many streams"}
	}
	r := h2requests.Get().(*h2request)
	x := &r.x
	x.srv, x.peer, x.sink, x.major, x.client = c.srv, c.peer, r, 2, r
	x.reset()
	x.minor, x.began = 1, time.Now()
	malformed, refusal := b.request(x)
	if malformed == "" && b.end && b.length > 0 {
		malformed = "content-length without data"
	}
	if malformed != "" {
		h2requests.Put(r)
		return &h2error{id, http2.ErrCodeProtocol, malformed}
	}
	m.mu.Lock()
	r.prepare(m, id)
	r.patience = c.srv.conf.BodyTimeout
	r.refusal, r.noBody = refusal, false
	r.declared, r.recvEnd = b.length, b.end
	m.mu.Unlock()
	if !b.end && x.upgrade == "" && b.length != 0 {
		x.body, x.length = r, b.length
	}
	if x.upgrade != "" {
		for i := range x.fields {
			if equalFold(x.fields[i].name, "sec-websocket-key") { // the client's own, which means nothing
				x.fields[i].id = fDropped
			}
		}
		x.fields = append(x.fields, field{raw("sec-websocket-key"), websocketKey(), other})
	}
	go r.serve()
	return nil
}

// websocketKey is what asks for a WebSocket in HTTP/1.1's way (RFC 6455 section 4.1). HTTP/2's has none.
func websocketKey() []byte {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.StdEncoding.AppendEncode(nil, b[:])
}

// trailing takes a trailer section. The lock is held.
func (s *h2stream) trailing(b *h2block) *h2error {
	if s.recvEnd {
		return &h2error{s.id, http2.ErrCodeStreamClosed, "HEADERS after END_STREAM"}
	}
	if !b.end {
		return &h2error{s.id, http2.ErrCodeProtocol, "trailers that do not end the stream"}
	}
	fields, malformed := b.trailing()
	if malformed != "" {
		return &h2error{s.id, http2.ErrCodeProtocol, malformed}
	}
	s.ends = fields
	if !s.endOfInput() {
		return &h2error{s.id, http2.ErrCodeProtocol, "less data than content-length says"}
	}
	return nil
}

func (r *h2request) serve() {
	x := &r.x
	if r.refusal != nil {
		x.srv.refused(r.refusal.status)
		x.reply(r.refusal.status, r.refusal.reason)
	} else {
		x.run()
	}
	code := http2.ErrCodeNo // the rest of the request is not wanted (RFC 9113 section 8.1)
	if x.abort || !r.sentEnd {
		code = http2.ErrCodeInternal
	}
	r.finish(code)
	h2requests.Put(r)
}

// informational implements sink.
func (r *h2request) informational(status int, fields []field) error {
	r.m.mu.Lock()
	if err := r.cleared(new(int64), false); err != nil {
		r.m.mu.Unlock()
		return err
	}
	r.sendHead(false, func(b []byte) []byte { return appendHeadFields(appendStatus(b, status), fields) })
	r.m.flush()
	return nil
}

// start implements sink. There are no reasons beside statuses in HTTP/2.
func (r *h2request) start(x *exchange, status int, _ string, fields []field, length int64) error {
	r.noBody = bodyless(x.method, status)
	tell := length > 0 && status != http.StatusNoContent || length == 0 && !r.noBody && !x.isGRPC()
	var by int64
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if err := r.cleared(&by, false); err != nil {
		return err
	}
	r.sendHead(r.noBody, func(b []byte) []byte {
		b = appendHeadFields(appendStatus(b, status), fields)
		if tell {
			b = appendLengthField(b, length)
		}
		return b
	})
	return nil
}

// data implements sink.
func (r *h2request) data(p []byte) error {
	if r.noBody {
		return nil
	}
	return r.sendData(p)
}

// flush implements sink.
func (r *h2request) flush() error {
	r.m.mu.Lock()
	r.m.flush()
	return nil
}

// end implements sink. finish puts it on the wire.
func (r *h2request) end(trailers []field) error {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.gone != nil {
		return r.gone
	}
	r.sendEnd(trailers)
	return nil
}

// interrupt is called again and again while the server drains. A client may be sending requests that it could not know
// to be unwelcome, so it is told twice, with a round trip in between (RFC 9113 section 6.8).
func (c *h2conn) interrupt() {
	m := c.mux
	select {
	case <-c.srv.stop:
		m.fail(net.ErrClosed)
		return
	default:
	}
	now := time.Now()
	m.mu.Lock()
	switch {
	case c.goodbye.IsZero():
		c.goodbye, c.pongs = now, m.pongs
		m.out = appendGoAway(m.room(), maxWindow, http2.ErrCodeNo, "")
		m.out = appendPing(m.out, 0, []byte("goodbye!"))
	case !c.closing && (m.pongs != c.pongs || now.Sub(c.goodbye) > time.Second):
		c.closing = true
		m.out = appendGoAway(m.room(), m.last, http2.ErrCodeNo, "")
		m.endWith()
	}
	if m.dead == nil && !m.flushing && len(m.out) > 0 {
		m.flushing = true
		go m.write()
	}
	m.mu.Unlock()
}
