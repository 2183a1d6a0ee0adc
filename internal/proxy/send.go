// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// Sizes in bytes of request bodies that are collected before they are sent, so that they can be sent again.
const (
	collectSmall = 16 << 10 // always: cheaper than a goroutine for the body
	collectRetry = 64 << 10 // when the rule has retries
)

// connectTries is how many endpoints are tried when connections can't be made, with or without retries of the rule.
const connectTries = 3

// outcome says how an attempt ended.
type outcome struct {
	done     bool   // a response began: nothing is left to do
	safe     bool   // nothing reached the endpoint
	answered bool   // the endpoint's answer is one after which there may be another attempt
	status   int    // otherwise: what to answer unless another attempt is made
	reason   string // and why
}

// send makes attempts until a response begins or no attempt is left.
func (x *exchange) send(r *rule, b *backend, sticky *endpoint) {
	most := x.plan.attempts(x.method)
	limit := int64(collectSmall)
	if most > 1 {
		limit = collectRetry
	}
	if !x.proceed() {
		return
	}
	x.call = x.isGRPC()
	patient := x.length >= 0 // else a client may want an answer before it says more
	if x.body != nil && !x.isWhole && (x.length >= 0 && x.length <= limit || most > 1) && !x.gather(limit, patient) {
		return
	}
	var end time.Time
	whole := time.Duration(x.plan.timeouts.Request) // of which end is the end; 0: it is none of the rule's
	if whole > 0 {
		end = x.began.Add(whole)
	}
	if d, ok := x.callTimeout(); ok {
		if t := x.began.Add(d); end.IsZero() || t.Before(end) {
			end, whole = t, 0
		}
	}
	tries := x.plan.tries()
	for {
		e := sticky
		if e == nil || x.attempts > 0 && x.plan.session.ChangeOnFailure {
			e = x.pick(b)
		}
		if e == nil {
			if x.attempts > 0 {
				b.retrying.Add(-1)
			}
			x.reply(http.StatusServiceUnavailable, "backend "+x.backend+" has no endpoints")
			return
		}
		x.attempts++
		x.tried = append(x.tried, e)
		x.endpoint = e
		again := x.attempts < most && (x.body == nil || x.isWhole)
		by, of := end, whole
		if d := time.Duration(x.plan.timeouts.BackendRequest); d > 0 {
			if t := time.Now().Add(d); by.IsZero() || t.Before(by) {
				by, of = t, d
			}
		}
		x.bind(by, of)
		out := x.attempt(e, by, func(status int) bool { return again && x.plan.retries(status) })
		if x.attempts > 1 {
			b.retrying.Add(-1)
		}
		if out.done {
			return
		}
		expired := !end.IsZero() && !time.Now().Before(end)
		switch {
		case expired:
			out.status = http.StatusGatewayTimeout
		case (out.safe && x.attempts < tries || again) && x.plan.recovers(out, x.method) && x.plan.inTime(x.began) && b.mayRetry():
			if x.pause(x.plan.backoff(x.attempts), end) {
				continue
			}
			b.retrying.Add(-1)
			return
		}
		x.reply(out.status, out.reason)
		return
	}
}

// bound is what a request's own time makes of an attempt.
type bound struct {
	by   time.Time // zero: there is none but the endpoint's
	fair time.Time // when the endpoint must have had the request for by to speak against it; zero: it never does
}

// bind bounds the attempt that begins, by the end of a timeout of the rule, or of the client (0).
func (x *exchange) bind(by time.Time, timeout time.Duration) {
	x.bound = bound{by: by}
	if timeout == 0 {
		return
	}
	if fair := by.Add(-timeout / 2); time.Now().Before(fair) {
		x.bound.fair = fair
	}
}

// blames tells whether the attempt's error speaks against its endpoint. That there was no answer in the request's time does
// not where the time is the client's to choose, or the client has used up most of it before the request was sent: any
// client could have endpoints left out.
func (x *exchange) blames(err error) bool {
	if !timedOut(err) || x.bound.by.IsZero() || time.Now().Before(x.bound.by) {
		return true
	}
	if d := x.duplex; d != nil && (d.sending.Load() || d.moved.Load() > x.bound.fair.UnixNano()) {
		return false
	}
	return !x.bound.fair.IsZero()
}

// pause waits before a retry; false when the client left meanwhile.
func (x *exchange) pause(d time.Duration, end time.Time) bool {
	if !end.IsZero() {
		d = min(d, time.Until(end))
	}
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	closed := make(wakeup)
	if x.client != nil {
		if !x.client.watch(closed) {
			x.fail("client left")
			return false
		}
		defer x.client.unwatch()
	}
	select {
	case <-t.C:
		return true
	case <-closed:
		x.fail("client left")
		return false
	}
}

// wakeup is closed when the client gives up.
type wakeup chan struct{}

func (w wakeup) interrupt() { close(w) }

func (x *exchange) attempt(e *endpoint, by time.Time, retryable func(int) bool) outcome {
	e.inflight.Add(1)
	defer e.inflight.Add(-1)
	if x.isWhole {
		x.whole1 = bytesBody{p: x.whole}
		x.body = &x.whole1
	}
	if e.backend.conf.Protocol == route.HTTP2 {
		return x.attemptH2(e, by, retryable)
	}
	return x.attemptH1(e, by, retryable)
}

// collect reads the body, when it has at most limit bytes, so that it can be sent more than once. Otherwise the body
// goes on where it was. It is false when the client broke off: the exchange is then over.
func (x *exchange) collect(limit int64) bool { return x.gather(limit, true) }

// gather is collect, and waits for no part that is not there when it is told to be impatient.
func (x *exchange) gather(limit int64, patient bool) bool {
	if x.body == nil || x.isWhole || x.length > limit {
		return true
	}
	var all []byte
	for {
		if !patient && !x.body.ready() {
			x.body = &prefixBody{first: all, rest: x.body}
			return true
		}
		p, err := x.body.next()
		if err == io.EOF {
			if len(x.body.trailers()) > 0 { // they could not be sent again
				x.body = &prefixBody{first: all, rest: x.body}
				return true
			}
			x.whole, x.isWhole, x.length = all, true, int64(len(all))
			return true
		}
		if err != nil {
			x.clientBroke(err)
			return false
		}
		if all == nil && int64(len(p)) == x.length {
			x.whole, x.isWhole = p, true // it came with the head, and stays where it is
			return true
		}
		all = append(all, p...)
		if int64(len(all)) > limit {
			x.body = &prefixBody{first: all, rest: x.body}
			return true
		}
	}
}

// clientBroke ends an exchange whose request body can't be read.
func (x *exchange) clientBroke(err error) {
	var malformed *parseError
	x.last = true
	switch {
	case x.started:
		x.fail("client: " + err.Error())
	case errors.Is(err, errChunk) || errors.As(err, &malformed):
		x.reply(bodyStatus(err), "client: "+err.Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.reply(http.StatusRequestTimeout, "client: the body did not come in time")
	default:
		x.fail("client: " + err.Error())
	}
}

// prefixBody is a body of which a part has been read already.
type prefixBody struct {
	first []byte
	rest  body
}

func (b *prefixBody) next() ([]byte, error) {
	if len(b.first) > 0 {
		p := b.first
		b.first = nil
		return p, nil
	}
	return b.rest.next()
}

func (b *prefixBody) ready() bool       { return len(b.first) > 0 || b.rest.ready() }
func (b *prefixBody) trailers() []field { return b.rest.trailers() }

func timedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}
