// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// HTTP/2's connections, frames and floods (rapid reset, CONTINUATION, settings, pings) are net/http's; each request
// comes in here and goes through the same exchange as one of HTTP/1.1.

// h2server is a net/http server that is handed connections which have turned out to be HTTP/2's.
type h2server struct {
	http.Server
	once  sync.Once
	conns chan net.Conn
	open  sync.Map // net.Conn -> *h2conn
}

func (s *Server) h2() *h2server {
	h := &s.h2srv
	h.once.Do(func() {
		h.conns = make(chan net.Conn)
		h.Protocols = &http.Protocols{}
		h.Protocols.SetHTTP2(true)
		h.Protocols.SetUnencryptedHTTP2(true)
		h.HTTP2 = &http.HTTP2Config{
			MaxConcurrentStreams: int(s.conf.MaxStreams), MaxReadFrameSize: 16 << 10,
			MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10,
			SendPingTimeout: s.conf.IdleTimeout, WriteByteTimeout: stuck,
		}
		h.IdleTimeout, h.ReadHeaderTimeout, h.MaxHeaderBytes = s.conf.IdleTimeout, s.conf.HeadTimeout, maxHead
		h.ErrorLog = log.New(io.Discard, "", 0) // it tells of what clients do wrong
		h.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			conn, _ := h.open.Load(c)
			return context.WithValue(ctx, h2connKey{}, conn)
		}
		h.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Context().Value(h2connKey{}).(*h2conn).ServeHTTP(w, r)
		})
		h.ConnState = func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				if conn, ok := h.open.LoadAndDelete(c); ok {
					close(conn.(*h2conn).done)
				}
			}
		}
		s.running.Go(func() { _ = h.Serve(handedOver{s}) }) // ends by Close or Shutdown only
	})
	return h
}

type h2connKey struct{}

// handedOver is a net.Listener of the connections that serveH2 is given.
type handedOver struct{ s *Server }

// Accept implements net.Listener.
func (l handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.h2srv.conns:
		return c, nil
	case <-l.s.stop:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (handedOver) Close() error { return nil }

// Addr implements net.Listener.
func (handedOver) Addr() net.Addr { return &net.TCPAddr{} }

// serveH2 serves a connection to its end.
func (s *Server) serveH2(c net.Conn, p *peer) {
	h := s.h2()
	conn := &h2conn{srv: s, peer: p, done: make(chan struct{})}
	h.open.Store(c, conn)
	select {
	case h.conns <- c:
		<-conn.done
	case <-s.stop:
		h.open.Delete(c)
		c.Close()
	}
}

// h2conn handles the requests of one connection.
type h2conn struct {
	srv  *Server
	peer *peer
	done chan struct{} // closed with the connection
}

// h2exchange is an exchange with what belongs to HTTP/2; they are used again.
type h2exchange struct {
	x    exchange
	sink h2sink
	body readerBody
}

var h2exchanges = sync.Pool{New: func() any { return &h2exchange{} }}

// ServeHTTP implements http.Handler.
func (c *h2conn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := h2exchanges.Get().(*h2exchange)
	x := &e.x
	e.sink = h2sink{w: w}
	*x = exchange{
		srv: c.srv, peer: c.peer, sink: &e.sink, major: 2, minor: 1, ctx: r.Context(), began: time.Now(),
		fields: x.fields[:0], tried: x.tried[:0], edits: x.edits[:0],
	}
	x.cancelBody = func() { r.Body.Close() }
	if perr := x.fromHTTP2(r, &e.body); perr != nil {
		c.srv.refused(perr.status)
		http.Error(w, perr.reason, perr.status)
	} else {
		x.run()
	}
	abort := x.abort
	h2exchanges.Put(e)
	if abort {
		panic(http.ErrAbortHandler) // resets the stream
	}
}

// fromHTTP2 takes a request over. What HTTP/1.1 can't say must not come through: an endpoint would read something
// else than was checked here (request smuggling by downgrade).
func (x *exchange) fromHTTP2(r *http.Request, b *readerBody) *parseError {
	x.method, x.authority = r.Method, r.Host
	for i := range len(x.method) {
		if !isToken[x.method[i]] {
			return errRequestLine
		}
	}
	for i := range len(x.authority) {
		if !isHost[x.authority[i]] {
			return errHost
		}
	}
	if r.Method == http.MethodConnect {
		return errMethod
	}
	target := r.RequestURI
	if target == "" || target[0] != '/' && (target != "*" || r.Method != http.MethodOptions) {
		return errTarget
	}
	for i := range len(target) {
		if !isTarget[target[i]] {
			return errTarget
		}
	}
	path, query, _ := strings.Cut(target, "?")
	clean, perr := cleanPath(raw(path))
	if perr != nil {
		return perr
	}
	x.path, x.query = view(clean), query
	for name, values := range r.Header {
		for _, v := range values {
			f := field{name: raw(name), value: trimSpace(raw(v)), id: identify(raw(name))}
			for _, c := range f.name {
				if !isToken[c] {
					return errFieldName
				}
			}
			for _, c := range f.value {
				if !isValue[c] {
					return errFieldValue
				}
			}
			if len(x.fields) == maxFields {
				return errManyFields
			}
			x.fields = append(x.fields, f)
		}
	}
	x.fields = dropHopByHop(x.fields, nil)
	x.length = r.ContentLength
	if r.Body != nil && r.Body != http.NoBody && x.length != 0 {
		b.reset(r.Body, &r.Trailer)
		x.body = b
		if x.length < 0 {
			x.length = -1
		}
	}
	return nil
}

// readerBody is a body that comes out of a reader.
type readerBody struct {
	r      io.Reader
	header *http.Header // the trailers, known after the end
	buf    []byte
	fields []field
}

func (b *readerBody) reset(r io.Reader, trailer *http.Header) {
	b.r, b.header, b.fields = r, trailer, b.fields[:0]
	if b.buf == nil {
		b.buf = make([]byte, 16<<10)
	}
}

func (b *readerBody) next() ([]byte, error) {
	for {
		n, err := b.r.Read(b.buf)
		if n > 0 {
			return b.buf[:n], nil
		}
		if err == io.EOF {
			b.fields = headerFields(b.fields[:0], *b.header)
		}
		if err != nil {
			return nil, err
		}
	}
}

// ready is never known, so each piece is passed on as it comes.
func (b *readerBody) ready() bool       { return false }
func (b *readerBody) trailers() []field { return b.fields }

func headerFields(out []field, h http.Header) []field {
	for name, values := range h {
		for _, v := range values {
			out = append(out, field{name: raw(name), value: raw(v), id: identify(raw(name))})
		}
	}
	return out
}

// h2sink writes a response to an HTTP/2 stream.
type h2sink struct {
	w http.ResponseWriter
}

func (s *h2sink) put(fields []field) {
	h := s.w.Header()
	for i := range fields {
		if f := &fields[i]; f.id != fDropped {
			h.Add(string(f.name), string(f.value))
		}
	}
}

func (s *h2sink) informational(status int, fields []field) error {
	if status == http.StatusContinue { // sent when the body is read
		return nil
	}
	s.put(fields)
	s.w.WriteHeader(status)
	clear(s.w.Header())
	return nil
}

func (s *h2sink) start(x *exchange, status int, _ string, fields []field, length int64) error {
	s.put(fields)
	h := s.w.Header()
	if length > 0 || length == 0 && x.method != http.MethodHead && status != http.StatusNotModified && status != http.StatusNoContent && !x.isGRPC() {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	if h["Date"] == nil {
		h["Date"] = nil // ours to pass on, not to invent
	}
	s.w.WriteHeader(status)
	return nil
}

func (s *h2sink) data(p []byte) error {
	_, err := s.w.Write(p)
	if errors.Is(err, http.ErrBodyNotAllowed) {
		return nil
	}
	return err
}

func (s *h2sink) flush() error {
	return http.NewResponseController(s.w).Flush()
}

func (s *h2sink) end(trailers []field) error {
	for i := range trailers {
		if f := &trailers[i]; f.id != fDropped {
			s.w.Header().Add(http.TrailerPrefix+string(f.name), string(f.value))
		}
	}
	return nil
}

// drainH2 tells all HTTP/2 clients to make no more requests on their connections.
func (s *Server) drainH2(ctx context.Context) {
	h := s.h2()
	go func() { _ = h.Shutdown(ctx) }() // Drain itself waits for the connections to end
}
