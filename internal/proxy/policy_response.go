// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// cookieEdit is a route.Cookies made ready.
type cookieEdit struct {
	domains, paths []*route.Replacer
}

func newCookieEdit(c *route.Cookies) *cookieEdit {
	if c == nil || len(c.Domains)+len(c.Paths) == 0 {
		return nil
	}
	return &cookieEdit{replacers(c.Domains), replacers(c.Paths)}
}

// shaped does to an endpoint's fields what policies ask for.
func (x *exchange) shaped(fields []field) []field {
	if x.plan == nil || x.plan.shape == nil {
		return fields
	}
	s := x.plan.shape
	for i := range fields {
		f := &fields[i]
		switch {
		case f.id == fDropped:
		case hidden(s.hide, f.name):
			f.id = fDropped
		case s.cookies != nil && equalFold(f.name, "set-cookie"):
			f.value = s.cookies.edit(f.value, x)
		case len(s.locs) > 0 && equalFold(f.name, "location"):
			f.value = relocate(s.locs, f.value, 0, x)
		case len(s.locs) > 0 && equalFold(f.name, "refresh"): // "5; url=https://..."
			if i := bytes.Index(bytes.ToLower(f.value), []byte("url=")); i >= 0 {
				f.value = relocate(s.locs, f.value, i+4, x)
			}
		}
	}
	return fields
}

func hidden(list []string, name []byte) bool {
	for _, h := range list {
		if equalFold(name, h) {
			return true
		}
	}
	return false
}

// relocate replaces what begins at a place of a value, by the first of the replacements that has something to replace.
func relocate(list []*route.Replacer, value []byte, at int, x *exchange) []byte {
	for _, r := range list {
		if to, ok := r.Replace(string(value[at:]), false, x); ok {
			return clean(append(bytes.Clone(value[:at]), to...))
		}
	}
	return value
}

// clean drops what can't be in a field's value.
func clean(value []byte) []byte {
	out := value[:0]
	for _, c := range value {
		if isValue[c] {
			out = append(out, c)
		}
	}
	return out
}

// edit rewrites the domain and path of a Set-Cookie field (RFC 6265 section 4.1).
func (e *cookieEdit) edit(value []byte, x *exchange) []byte {
	parts := strings.Split(string(value), ";")
	changed := false
	for i, part := range parts[1:] {
		name, v, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		list, fold := e.paths, false
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "path":
		case "domain":
			list, fold, v = e.domains, true, strings.TrimPrefix(strings.TrimSpace(v), ".")
		default:
			continue
		}
		for _, r := range list {
			if to, ok := r.Replace(strings.TrimSpace(v), fold, x); ok {
				parts[i+1], changed = name+"="+strings.ReplaceAll(to, ";", ""), true
				break
			}
		}
	}
	if !changed {
		return value
	}
	return clean([]byte(strings.Join(parts, ";")))
}

// outgoing completes the fields of an answer, whoever gives it.
func (x *exchange) outgoing(status int, fields []field) []field {
	if x.plan != nil && x.plan.shape != nil && len(x.plan.shape.hsts) > 0 && x.scheme() == "https" {
		for i := range fields {
			if equalFold(fields[i].name, "strict-transport-security") {
				fields[i].id = fDropped
			}
		}
		fields = append(fields, x.plan.shape.hsts...)
	}
	if d := x.more; d != nil {
		fields = append(fields, d.added...)
		if d.always || goodForCookies(status) {
			fields = append(fields, d.cookies...)
		}
	}
	return fields
}

// goodForCookies tells of the statuses to which nginx's add_header adds.
func goodForCookies(status int) bool {
	switch status {
	case 200, 201, 204, 206, 301, 302, 303, 304, 307, 308:
		return true
	}
	return false
}

// outlet gives where the answer's body goes: the client, or what slows it down or holds it for the client. finish is
// to be called after the last part; nil when there is nothing to wait for.
func (x *exchange) outlet() (to sink, finish func() error) {
	to = x.sink
	if x.plan == nil || x.plan.shape == nil {
		return to, nil
	}
	s := x.plan.shape
	if s.rate != nil {
		to = &pacedSink{sink: to, x: x, rate: s.rate, began: time.Now()}
	}
	if s.buffer {
		b := &bufferedSink{sink: to, total: &x.srv.held, done: make(chan struct{})}
		b.change.L = &b.mu
		go b.run()
		return b, b.finish
	}
	return to, nil
}

// pacedSink slows an answer's body down.
type pacedSink struct {
	sink
	x     *exchange
	rate  *route.ResponseRate
	began time.Time // of what is slowed down
	sent  int64
}

// data passes a part on in pieces of a tenth of a second.
func (s *pacedSink) data(p []byte) error {
	for len(p) > 0 {
		n := s.rate.After - s.sent
		slow := n <= 0
		if slow {
			n = max(s.rate.BytesPerSecond/10, 1)
		}
		n = min(n, int64(len(p)))
		if err := s.sink.data(p[:n]); err != nil {
			return err
		}
		p = p[n:]
		if s.sent += n; !slow {
			s.began = time.Now()
			continue
		}
		if err := s.sink.flush(); err != nil {
			return err
		}
		due := s.began.Add(time.Duration(float64(s.sent-s.rate.After) / float64(s.rate.BytesPerSecond) * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			t := time.NewTimer(wait) // no longer than a piece takes: the next one finds out whether the client is still there
			select {
			case <-t.C:
			case <-s.x.srv.stop:
				t.Stop()
				return errServerEnds
			}
		}
	}
	return nil
}

var (
	errServerEnds = errors.New("the gateway ends")
	errClientLeft = errors.New("client left")
)

// Bounds in bytes of what is held for clients that are slower than backends: of one answer, and of all.
const (
	holdMost    = 1 << 20
	holdMostAll = 128 << 20
)

// bufferedSink holds parts of an answer while the client takes earlier ones.
type bufferedSink struct {
	sink
	total *holding

	mu     sync.Mutex
	change sync.Cond
	parts  [][]byte
	size   int
	over   bool
	err    error
	done   chan struct{}
}

func (b *bufferedSink) data(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil && b.size > 0 && (b.size+len(p) > holdMost || !b.total.room(len(p))) {
		b.change.Wait()
	}
	if b.err != nil {
		return b.err
	}
	b.parts = append(b.parts, bytes.Clone(p))
	b.size += len(p)
	b.total.add(len(p))
	b.change.Broadcast()
	return nil
}

// flush has nothing to do: what is held is sent as soon as the client takes it.
func (b *bufferedSink) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// finish waits until the client has taken everything.
func (b *bufferedSink) finish() error {
	b.mu.Lock()
	b.over = true
	b.change.Broadcast()
	b.mu.Unlock()
	<-b.done
	b.total.add(-b.size)
	return b.err
}

// run sends parts until the answer is over or the client gone.
func (b *bufferedSink) run() {
	defer close(b.done)
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil {
		if len(b.parts) == 0 {
			if b.over {
				return
			}
			b.change.Wait()
			continue
		}
		p := b.parts[0]
		b.parts = b.parts[1:]
		last := len(b.parts) == 0
		b.mu.Unlock()
		err := b.sink.data(p)
		if err == nil && last {
			err = b.sink.flush()
		}
		b.mu.Lock()
		b.size -= len(p)
		b.total.add(-len(p))
		b.err = err
		b.change.Broadcast()
	}
}

// holding counts the bytes of bodies that the gateway holds for all its clients.
type holding struct{ bytes atomic.Int64 }

func (h *holding) room(n int) bool { return h.bytes.Load()+int64(n) <= holdMostAll }
func (h *holding) add(n int)       { h.bytes.Add(int64(n)) }
