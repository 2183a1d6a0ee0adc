// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// mirrorTimeout bounds copies, whose answers nobody waits for: those of a whole request in all, those of one that is
	// still coming in the silence of both sides.
	mirrorTimeout = 15 * time.Second
	// mirrorsAtMost bounds how many there are at a time.
	mirrorsAtMost = 1000
	// mirrorMost is the most bytes of a body that wait for a copy to take them; larger bodies of a known length are not
	// mirrored.
	mirrorMost = 1 << 20
)

// mirror sends copies of the request to those mirrors whose share it falls into. A body that is not here yet goes to
// them as the request's endpoint gets it, so that the request waits for nothing.
func (x *exchange) mirror(list []mirror) {
	for i := range list {
		m := &list[i]
		if m.invalid != "" || rand.Uint32N(m.denominator) >= m.numerator {
			continue
		}
		b := m.cell.Load()
		if b == nil || b.err != nil || b.conf.Invalid != "" {
			continue
		}
		comes := x.body != nil && !x.isWhole && !m.withoutBody
		if comes && (x.length > mirrorMost || !x.srv.held.room(int(max(x.length, 0)))) {
			continue
		}
		c := x.copy()
		if m.hostname != "" {
			c.authority = m.hostname
		}
		if m.withoutBody {
			c.length, c.whole, c.isWhole = 0, nil, false
		}
		if !comes {
			x.srv.mirror(c, b, time.Now().Add(mirrorTimeout))
			continue
		}
		part := newCopiedBody(&x.srv.held, x.length)
		c.body, c.from, c.plan = part, part, &plan{read: mirrorTimeout}
		if x.srv.mirror(c, b, time.Time{}) {
			x.tee(part)
		}
	}
}

// copy makes an exchange that outlives this one, without a client.
func (x *exchange) copy() *exchange {
	c := &exchange{
		srv: x.srv, began: x.began, peer: x.peer, sink: nobody{}, major: x.major,
		method: string(append([]byte(nil), x.method...)), path: string(append([]byte(nil), x.path...)),
		query: string(append([]byte(nil), x.query...)), authority: string(append([]byte(nil), x.authority...)),
		length: x.length, whole: bytes.Clone(x.whole), isWhole: x.isWhole,
	}
	for _, f := range x.fields {
		c.fields = append(c.fields, field{bytes.Clone(f.name), bytes.Clone(f.value), f.id})
	}
	return c
}

// mirror sends a copy. When too many are under way it is left out: copies must not hurt the original.
func (s *Server) mirror(x *exchange, b *backend, by time.Time) bool {
	if s.mirrors.Add(1) > mirrorsAtMost {
		s.mirrors.Add(-1)
		return false
	}
	if !s.held.room(len(x.whole)) {
		s.mirrors.Add(-1)
		return false
	}
	s.held.add(len(x.whole))
	part, _ := x.body.(*copiedBody)
	go func() {
		defer s.mirrors.Add(-1)
		defer s.held.add(-len(x.whole))
		if e := b.pick(x.began.UnixNano(), nil); e != nil {
			x.attempt(e, by, func(int) bool { return false })
		}
		if part != nil {
			part.end(errNotWanted)
		}
	}()
	return true
}

// nobody takes the answers to mirrored requests.
type nobody struct{}

func (nobody) informational(int, []field) error                   { return nil }
func (nobody) start(*exchange, int, string, []field, int64) error { return nil }
func (nobody) data([]byte) error                                  { return nil }
func (nobody) flush() error                                       { return nil }
func (nobody) end([]field) error                                  { return nil }

// tee has what is read of the body go to a copy as well.
func (x *exchange) tee(part *copiedBody) {
	t, ok := x.body.(*teeBody)
	if !ok {
		t = &teeBody{body: x.body}
		x.body, x.copied = t, t
	}
	t.parts = append(t.parts, part)
}

// teeBody is a body of which there are copies.
type teeBody struct {
	body
	parts []*copiedBody
}

func (t *teeBody) next() ([]byte, error) {
	p, err := t.body.next()
	for _, c := range t.parts {
		switch err {
		case nil:
			c.add(p)
		case io.EOF:
			c.trail(t.body.trailers())
		default:
			c.end(err)
		}
	}
	return p, err
}

// end tells that no more is read, whether or not that was all.
func (t *teeBody) end() {
	for _, c := range t.parts {
		c.end(errBrokenOff)
	}
}

var (
	errBrokenOff = errors.New("the request was broken off")
	errNotWanted = errors.New("the copy is over")
	errLags      = errors.New("the copy lags behind")
)

// copiedBody is a copy's body. It may lag behind the original by so many bytes, which count as held.
type copiedBody struct {
	held *holding
	left int64 // bytes until its end; -1: unknown

	mu     sync.Mutex
	change sync.Cond
	list   [][]byte
	size   int
	err    error // after what is in the list
	fields []field
}

func newCopiedBody(held *holding, length int64) *copiedBody {
	c := &copiedBody{held: held, left: length}
	c.change.L = &c.mu
	return c
}

func (c *copiedBody) add(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
	case c.size+len(p) > mirrorMost || !c.held.room(len(p)):
		c.drop(errLags)
	default:
		c.list = append(c.list, bytes.Clone(p))
		c.size += len(p)
		c.held.add(len(p))
		if c.left >= 0 {
			if c.left -= int64(len(p)); c.left == 0 { // nobody need read on for the end to be known
				c.err = io.EOF
			}
		}
		c.change.Broadcast()
	}
}

// trail ends the body well.
func (c *copiedBody) trail(trailers []field) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		for _, f := range trailers {
			c.fields = append(c.fields, field{bytes.Clone(f.name), bytes.Clone(f.value), f.id})
		}
		c.err = io.EOF
		c.change.Broadcast()
	}
}

// end cuts the body off, unless it has come to its end; a copy that is over has no use for the rest either.
func (c *copiedBody) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil || why == errNotWanted {
		c.drop(why)
	}
}

func (c *copiedBody) drop(why error) {
	c.held.add(-c.size)
	c.list, c.size, c.err = nil, 0, why
	c.change.Broadcast()
}

// next implements body.
func (c *copiedBody) next() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.list) == 0 && c.err == nil {
		c.change.Wait()
	}
	if len(c.list) == 0 {
		return nil, c.err
	}
	p := c.list[0]
	c.list = c.list[1:]
	c.size -= len(p)
	c.held.add(-len(p))
	return p, nil
}

// ready implements body.
func (c *copiedBody) ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.list) > 0 || c.err != nil
}

// trailers implements body.
func (c *copiedBody) trailers() []field { return c.fields }

// giveUp implements origin.
func (c *copiedBody) giveUp() { c.end(errNotWanted) }

// bear implements origin: how long a copy waits is its request's to say.
func (c *copiedBody) bear(func() time.Duration) {}
