// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// h1conn serves one client's HTTP/1.x connection.
type h1conn struct {
	srv  *Server
	w    *wire
	x    exchange
	head requestHead
	body wireBody

	idle atomic.Bool // waits for a request

	mu      sync.Mutex
	watcher interrupter // told when the client has hung up
	gone    bool        // it has

	// Of the response under way.
	chunked bool
	noBody  bool // HEAD, 204, 304
	hijack  bool // the connection became a tunnel
}

func (s *Server) serveH1(c net.Conn, p *peer) {
	h := &h1conn{srv: s, w: newWire(c)}
	h.x.srv, h.x.peer, h.x.sink, h.x.major, h.x.from, h.x.client = s, p, h, 1, h.w, h
	h.w.patience = s.conf.BodyTimeout
	forget := s.idlers.add(h)
	preface := h.serve()
	forget()
	if preface {
		s.serveH2(h.w, p)
		return
	}
	c.Close()
	h.w.release()
}

// preface is how HTTP/2 with prior knowledge begins (RFC 9113 section 3.4), as far as it looks like a head.
var preface = []byte("PRI * HTTP/2.0\r\n\r\n")

// interrupt ends the connection when it waits for a request, or its client has hung up.
func (h *h1conn) interrupt() {
	if h.idle.Load() {
		_ = h.w.conn.SetReadDeadline(time.Unix(1, 0))
		return
	}
	h.look()
}

// look ends the request under way when its client has hung up. Nobody reads from a client while an answer is awaited, and to
// be told of each socket's end would cost all connections something; so the server looks now and then.
func (h *h1conn) look() {
	if h.idle.Load() || !hungUp(h.w.conn) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = true
	if h.watcher != nil {
		h.watcher.interrupt()
		h.watcher = nil
	}
}

// watch implements canceller.
func (h *h1conn) watch(i interrupter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.gone {
		h.watcher = i
	}
	return !h.gone
}

// unwatch implements canceller.
func (h *h1conn) unwatch() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	untold := h.watcher != nil
	h.watcher = nil
	return untold
}

// left implements canceller.
func (h *h1conn) left() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

// serve answers requests until the connection ends, or turns out to be one of HTTP/2.
func (h *h1conn) serve() (http2 bool) {
	for first := true; ; first = false {
		if !h.next(first) {
			return first && bytes.HasPrefix(h.w.buffered(), preface)
		}
		x := &h.x
		x.run()
		if h.hijack || x.abort {
			return false
		}
		h.w.deliverBy(x.began, h.srv.conf.SendTimeout)
		if err := h.w.flush(); err != nil {
			return false
		}
		if x.last || !h.drained() {
			h.w.linger()
			return false
		}
		h.w.shrink()
	}
}

// next reads a request's head into the exchange. It answers malformed ones itself; false ends the connection.
func (h *h1conn) next(first bool) bool {
	w := h.w
	w.resume()
	h.x.reset()
	var late time.Time // when the head must be complete
	for {
		n, perr := w.scanHead()
		if perr == nil && (n > maxHead || n == 0 && w.w-w.r >= maxHead) {
			perr = errHeadTooLarge
		}
		if perr == nil && n > 0 {
			if n == 2 && w.head == 0 { // an empty line before a request is skipped (RFC 9112 section 2.2)
				w.r += n
				continue
			}
			head := w.buffered()[:n]
			if first && bytes.Equal(head, preface) {
				return false
			}
			w.r += n
			if perr = parseRequest(skipEmptyLine(head), &h.head); perr == nil {
				perr = h.accept()
			}
			if perr == nil {
				return true
			}
		}
		if perr != nil {
			h.refuse(perr)
			return false
		}
		now := time.Now()
		waiting := w.r == w.w
		switch {
		case waiting && !first:
			if h.srv.draining.Load() {
				return false
			}
			w.expectBy(now, h.srv.conf.IdleTimeout)
			h.idle.Store(true)
			if h.srv.draining.Load() { // since the look above
				h.interrupt()
			}
		case late.IsZero():
			late = now.Add(h.srv.conf.HeadTimeout)
			w.setRead(late)
		}
		err := w.fill()
		h.idle.Store(false)
		if err != nil {
			if errors.Is(err, io.EOF) || waiting {
				return false
			}
			if timedOut(err) {
				h.refuse(&parseError{408, "the head did not come in time"})
			}
			return false
		}
	}
}

func skipEmptyLine(b []byte) []byte {
	if len(b) > 4 && b[0] == '\r' && b[1] == '\n' {
		return b[2:]
	}
	return b
}

// accept turns the head into the exchange's request.
func (h *h1conn) accept() *parseError {
	x, r := &h.x, &h.head
	x.began = time.Now()
	x.method = view(r.method)
	target := view(r.target)
	x.path = target
	for i := range len(target) {
		if target[i] == '?' {
			x.path, x.query = target[:i], target[i+1:]
			break
		}
	}
	path, perr := cleanPath(raw(x.path))
	if perr != nil {
		return perr
	}
	x.path = view(path)
	x.authority = view(r.authority)
	x.minor = r.minor
	x.fields, r.fields = r.fields, x.fields[:0]
	x.expect = r.expect && r.minor == 1
	x.last = r.close
	if r.upgrade != nil && r.minor == 1 && len(r.upgrade) > 0 && r.length == 0 && !names(r.upgrade, []byte("h2c")) {
		x.upgrade = view(r.upgrade)
	}
	x.length = r.length
	h.w.pin()
	h.w.more = nil
	h.body.reset(h.w, r.length)
	if r.length != 0 {
		x.body = &h.body
	}
	return nil
}

// refuse answers a malformed request and ends the connection: where the next request would begin is not known.
func (h *h1conn) refuse(perr *parseError) {
	h.srv.refused(perr.status)
	text := http.StatusText(perr.status) + ": " + perr.reason + "\n"
	b := append(h.w.out[:0], "HTTP/1.1 "+strconv.Itoa(perr.status)+" "+http.StatusText(perr.status)+
		"\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: "+strconv.Itoa(len(text))+"\r\n\r\n"+text...)
	h.w.out = b
	h.w.deliverBy(time.Now(), 5*time.Second)
	if h.w.flush() == nil {
		h.w.linger()
	}
}

// drained gets rid of what is left of the request's body, if it is little and here already.
func (h *h1conn) drained() bool {
	for !h.body.done {
		if !h.body.ready() {
			return false
		}
		if _, err := h.body.next(); err != nil && err != io.EOF {
			return false
		}
	}
	return true
}

func (h *h1conn) informational(status int, fields []field) error {
	if h.x.minor == 0 {
		return nil
	}
	b := append(h.w.out, statusLine(status)...)
	b = appendFields(b, fields)
	h.w.out = append(b, "\r\n"...)
	h.w.deliverBy(time.Now(), h.srv.conf.SendTimeout)
	return h.w.flush()
}

// start begins the response. The head is written with the first part of the body.
func (h *h1conn) start(x *exchange, status int, reason string, fields []field, length int64) error {
	b := h.w.out
	if reason != "" && reason != http.StatusText(status) {
		b = append(b, "HTTP/1.1 "...)
		b = strconv.AppendInt(b, int64(status), 10)
		b = append(b, ' ')
		b = append(b, reason...)
		b = append(b, "\r\n"...)
	} else {
		b = append(b, statusLine(status)...)
	}
	b = appendFields(b, fields)
	h.noBody = x.method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	h.chunked = false
	switch {
	case h.noBody:
		if length > 0 && status != http.StatusNoContent {
			b = appendLength(b, length)
		}
	case length >= 0:
		b = appendLength(b, length)
	case x.minor == 0:
		x.last = true
	default:
		h.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if h.srv.draining.Load() {
		x.last = true
	}
	if x.last {
		b = append(b, "Connection: close\r\n"...)
	} else if x.minor == 0 {
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	h.w.out = append(b, "\r\n"...)
	h.w.deliverBy(x.began, h.srv.conf.SendTimeout)
	return nil
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

func (h *h1conn) data(p []byte) error {
	if h.noBody {
		return nil
	}
	w := h.w
	if len(p) < large {
		if h.chunked {
			w.out = appendChunk(w.out, p)
		} else {
			w.out = append(w.out, p...)
		}
		if len(w.out) < spill {
			return nil
		}
		return h.flush()
	}
	if h.chunked {
		w.out = strconv.AppendUint(w.out, uint64(len(p)), 16)
		w.out = append(w.out, "\r\n"...)
	}
	h.w.deliverBy(time.Now(), h.srv.conf.SendTimeout)
	if err := w.flushWith(p); err != nil {
		return err
	}
	if h.chunked {
		w.out = append(w.out, "\r\n"...)
	}
	return nil
}

func (h *h1conn) flush() error {
	if len(h.w.out) == 0 {
		return nil
	}
	h.w.deliverBy(time.Now(), h.srv.conf.SendTimeout)
	return h.w.flush()
}

// end completes the response; serve writes it out, together with nothing else.
func (h *h1conn) end(trailers []field) error {
	if h.chunked {
		b := append(h.w.out, "0\r\n"...)
		b = appendFields(b, trailers)
		h.w.out = append(b, "\r\n"...)
	}
	return nil
}

// statusLines are those of the known statuses.
var statusLines = func() (t [600]string) {
	for i := range t {
		if text := http.StatusText(i); text != "" {
			t[i] = "HTTP/1.1 " + strconv.Itoa(i) + " " + text + "\r\n"
		}
	}
	return t
}()

func statusLine(status int) string {
	if status < len(statusLines) && statusLines[status] != "" {
		return statusLines[status]
	}
	return "HTTP/1.1 " + strconv.Itoa(status) + " \r\n"
}
