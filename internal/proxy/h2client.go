// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// h2transport makes connections and holds none: endpoints do. Whom to dial comes with the context.
var h2transport = func() *http.Transport {
	t := &http.Transport{
		DisableCompression: true, MaxResponseHeaderBytes: maxHead, Protocols: &http.Protocols{},
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: stuck, MaxReadFrameSize: 16 << 10},
	}
	t.Protocols.SetHTTP2(true)
	t.Protocols.SetUnencryptedHTTP2(true)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := ctx.Value(h2dialKey{}).(h2dial)
		c, err := d.endpoint.dial(d.peer, d.by, nil)
		if tc, ok := c.(*tls.Conn); ok && err == nil && tc.ConnectionState().NegotiatedProtocol != "h2" {
			c.Close()
			return nil, errors.New("the endpoint does not speak HTTP/2 in TLS")
		}
		return c, err
	}
	t.DialContext, t.DialTLSContext = dial, dial
	return t
}()

type h2dialKey struct{}

type h2dial struct {
	endpoint *endpoint
	peer     *peer
	by       time.Time
}

// h2pool is an endpoint's HTTP/2 connections: as many as its limit of streams makes necessary.
type h2pool struct {
	mu    sync.Mutex
	conns []*http.ClientConn
	gone  bool
}

// getH2 gives a connection that takes another request. done is to be called after that request.
func (e *endpoint) getH2(p *peer, by time.Time) (c *http.ClientConn, done func(), err error) {
	e.h2.mu.Lock()
	defer e.h2.mu.Unlock() // one dials, the others wait for the same connection
	kept := e.h2.conns[:0]
	for _, o := range e.h2.conns {
		if o.Err() != nil {
			o.Close()
			continue
		}
		kept = append(kept, o)
		if c == nil && o.Reserve() == nil {
			c = o
		}
	}
	clear(e.h2.conns[len(kept):])
	e.h2.conns = kept
	if c != nil {
		return c, func() {}, nil
	}
	scheme := "http"
	if e.backend.tls != nil {
		scheme = "https"
	}
	ctx := context.WithValue(context.Background(), h2dialKey{}, h2dial{e, p, by})
	if c, err = h2transport.NewClientConn(ctx, scheme, e.address); err != nil {
		return nil, nil, err
	}
	if err := c.Reserve(); err != nil {
		c.Close()
		return nil, nil, err
	}
	if e.h2.gone || !e.reusable() {
		return c, func() { c.Close() }, nil
	}
	e.h2.conns = append(e.h2.conns, c)
	return c, func() {}, nil
}

// retire lets connections end with their last request.
func (p *h2pool) retire() {
	p.mu.Lock()
	conns := p.conns
	p.conns, p.gone = nil, true
	p.mu.Unlock()
	for _, c := range conns {
		c.SetStateHook(func(c *http.ClientConn) {
			if c.InFlight() == 0 {
				c.Close()
			}
		})
		if c.InFlight() == 0 {
			c.Close()
		}
	}
}

// attemptH2 sends the request to an endpoint that speaks HTTP/2.
func (x *exchange) attemptH2(e *endpoint, by time.Time, retryable func(int) bool) outcome {
	c, done, err := e.getH2(x.peer, by)
	if err != nil {
		e.failed(time.Now())
		return outcome{safe: true, status: unreachable(err), reason: err.Error()}
	}
	defer done()
	ctx := x.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !by.IsZero() {
		var end context.CancelFunc
		ctx, end = context.WithDeadline(ctx, by)
		defer end()
	}
	req, sent := x.toHTTP2(ctx, e)
	resp, err := c.RoundTrip(req)
	if err != nil {
		if sent != nil {
			x.stopReading(sent)
			if sent.err != nil {
				x.clientBroke(sent.err)
				return outcome{done: true}
			}
		}
		e.failed(time.Now())
		return outcome{safe: unprocessed(err) && (sent == nil || !sent.touched), status: unreachable(err), reason: "endpoint: " + err.Error()}
	}
	if resp.StatusCode >= 502 && resp.StatusCode <= 504 {
		e.failed(time.Now())
	} else {
		e.succeeded()
	}
	if retryable(resp.StatusCode) {
		resp.Body.Close()
		return outcome{status: resp.StatusCode, reason: "endpoint: " + resp.Status}
	}
	x.relayH2(e, resp)
	resp.Body.Close()
	if sent != nil && !sent.finished() {
		x.stopReading(sent)
		x.last = true
	}
	return outcome{done: true}
}

func (x *exchange) relayH2(e *endpoint, resp *http.Response) {
	fields := headerFields(nil, resp.Header)
	length := resp.ContentLength
	none := x.method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	if none {
		length = 0
		fields = dropButLength(fields, nil)
	} else {
		fields = dropHopByHop(fields, nil)
	}
	if length < 0 {
		length = -1
	}
	b := &readerBody{}
	b.reset(resp.Body, &resp.Trailer)
	x.relay(e, resp.StatusCode, "", fields, b, length)
}

// toHTTP2 makes the request; sent is its body as it is read, or nil.
func (x *exchange) toHTTP2(ctx context.Context, e *endpoint) (req *http.Request, sent *bodyReader) {
	scheme := "http"
	if e.backend.tls != nil {
		scheme = "https"
	}
	u := &url.URL{Scheme: scheme, Host: x.authority, Opaque: x.path, RawQuery: x.query}
	if len(x.path) > 1 && x.path[1] == '/' { // an opaque "//x" would be taken for a host
		u.Opaque = "//" + x.authority + x.path
	}
	if u.Host == "" {
		u.Host = e.address
	}
	req = (&http.Request{Method: x.method, URL: u, Host: x.authority, ProtoMajor: 2, Header: make(http.Header, len(x.fields))}).WithContext(ctx)
	for i := range x.fields {
		f := &x.fields[i]
		if f.id == fDropped {
			continue
		}
		name := http.CanonicalHeaderKey(string(f.name))
		req.Header[name] = append(req.Header[name], string(f.value))
	}
	if req.Header["User-Agent"] == nil {
		req.Header["User-Agent"] = []string{""} // none is sent, instead of the library's
	}
	if x.body != nil {
		sent = &bodyReader{b: x.body, req: req}
		req.Body, req.ContentLength = sent, x.length
		req.Trailer = http.Header{}
	}
	return req, sent
}

// unprocessed tells of errors after which the endpoint has certainly not acted on the request (RFC 9113 section 8.7).
func unprocessed(err error) bool {
	var stream http2.StreamError
	if errors.As(err, &stream) {
		return stream.Code == http2.ErrCodeRefusedStream
	}
	// net/http has no type for streams that are above those which a GOAWAY says were looked at.
	return strings.Contains(err.Error(), "graceful shutdown GOAWAY")
}

// bodyReader lets the library read an exchange's body, and knows when it has stopped doing so.
type bodyReader struct {
	b    body
	req  *http.Request
	mu   sync.Mutex // held while reading
	rest []byte
	eof  bool
	shut bool
	err  error // the client's

	touched bool
}

// Read implements io.Reader.
func (r *bodyReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rest) == 0 {
		switch {
		case r.shut:
			return 0, errBodyClosed
		case r.eof:
			return 0, io.EOF
		case r.err != nil:
			return 0, r.err
		}
		r.touched = true
		piece, err := r.b.next()
		if err == io.EOF {
			r.eof = true
			for _, f := range r.b.trailers() {
				r.req.Trailer.Add(string(f.name), string(f.value))
			}
			return 0, io.EOF
		}
		if err != nil {
			if !r.shut {
				r.err = err
			}
			return 0, err
		}
		r.rest = piece
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close implements io.Closer. The library may call it while it reads; the reader finds out by itself.
func (r *bodyReader) Close() error { return nil }

func (r *bodyReader) finished() bool {
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	return r.eof
}

var errBodyClosed = errors.New("the request is over")

// stopReading waits until nobody reads the body any more.
func (x *exchange) stopReading(r *bodyReader) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for !r.mu.TryLock() {
		x.cancelBody()
		<-t.C
	}
	r.shut = true
	r.mu.Unlock()
}
