// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"time"
)

// question is a request that the gateway makes on behalf of another one: of external authentication, or for an error
// page.
type question struct {
	method, authority, path, query string
	fields                         []field
	body                           []byte // none: it has no body
	call                           bool   // of gRPC
	timeout                        time.Duration
}

// answer is what came back.
type answer struct {
	status   int
	fields   []field
	body     []byte
	trailers []field
}

// ask sends a question to a backend, trying other endpoints when connections can't be made. The answer's body goes to
// sink, whose exchange is the question's.
func (x *exchange) ask(b *backend, q *question, to sink) error {
	if b == nil || b.err != nil || b.conf.Invalid != "" {
		return errNoBackend
	}
	sub := &exchange{
		srv: x.srv, began: time.Now(), peer: x.peer, sink: to, major: x.major, minor: x.minor, method: q.method,
		path: q.path, query: q.query, authority: q.authority, fields: q.fields, call: q.call,
	}
	if len(q.body) > 0 {
		sub.whole, sub.isWhole, sub.length = q.body, true, int64(len(q.body))
	}
	by := sub.began.Add(q.timeout)
	for range connectTries {
		e := b.pick(sub.began.UnixNano(), sub.tried)
		if e == nil {
			return errNoEndpoints
		}
		sub.tried = append(sub.tried, e)
		sub.endpoint = e
		out := sub.attempt(e, by, func(int) bool { return false })
		if out.done {
			if sub.abort {
				return errors.New(sub.reason)
			}
			return nil
		}
		if !out.safe || !time.Now().Before(by) {
			return errors.New(out.reason)
		}
	}
	return errNoEndpoints
}

// collector is a sink that keeps an answer, up to a limit.
type collector struct {
	answer
	limit int
}

var errAnswerTooLarge = errors.New("the answer is too large")

func (c *collector) informational(int, []field) error { return nil }

func (c *collector) start(_ *exchange, status int, _ string, fields []field, _ int64) error {
	c.status, c.fields = status, kept(fields)
	return nil
}

// kept copies fields that are there.
func kept(fields []field) (out []field) {
	for _, f := range fields {
		if f.id != fDropped {
			out = append(out, field{bytes.Clone(f.name), bytes.Clone(f.value), f.id})
		}
	}
	return out
}

func (c *collector) data(p []byte) error {
	if len(c.body)+len(p) > c.limit {
		return errAnswerTooLarge
	}
	c.body = append(c.body, p...)
	return nil
}

func (c *collector) flush() error { return nil }

func (c *collector) end(trailers []field) error {
	c.trailers = kept(trailers)
	return nil
}

// lookup finds the first field of a name in lower case.
func (a *answer) lookup(name string) string {
	for _, f := range a.fields {
		if equalFold(f.name, name) {
			return view(f.value)
		}
	}
	return ""
}

// asIs copies the request's fields that may go with a question: none about the connection, nor about a body unless that
// goes with it.
func (x *exchange) asIs(withBody bool) []field {
	out := make([]field, 0, len(x.fields)+12)
	for _, f := range x.fields {
		if f.id == fDropped || !withBody && (equalFold(f.name, "content-type") || equalFold(f.name, "content-encoding")) || equalFold(f.name, "range") ||
			len(f.name) > 3 && equalFold(f.name[:3], "if-") || equalFold(f.name, "accept-encoding") {
			continue
		}
		out = append(out, f)
	}
	return out
}

// set replaces a field, or adds it.
func set(fields []field, name, value string) []field {
	e := edit{set: []field{newField(name, value)}}
	return e.apply(fields, nil)
}
