// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// duplex is known to both sides of an exchange whose request is still being sent while its answer is awaited, or comes.
// Each of them may be silent for longer than its patience where the other one is not, or is meant to be listened to: a
// client that watches says nothing for hours, an endpoint nothing while an upload goes on.
type duplex struct {
	idle    time.Duration // neither may say anything for longer than this
	answer  time.Duration // the endpoint, once the request has been sent
	talks   atomic.Bool   // the sides speak when they like: the answer has begun, or it is a call of gRPC
	sending atomic.Bool   // the request has not ended
	stuck   atomic.Bool   // the endpoint has taken nothing of it for longer than it may: no answer is awaited any more
	moved   atomic.Int64  // when anything did last, Unix nanoseconds
}

// duplexed tells that the request's body is being sent to an endpoint. Before an answer begins a client's silence is that of a slow sender, which holds the endpoint for nothing, but
// for a call, where streams cost little and either side may begin (gRPC over HTTP/2).
func (x *exchange) duplexed(e *endpoint) *duplex {
	d := &duplex{idle: x.tunnelIdle(), answer: x.readTimeout()}
	d.talks.Store(x.call && e.backend.conf.Protocol == route.HTTP2)
	d.sending.Store(true)
	d.move()
	x.duplex = d
	if x.from != nil && !x.isWhole {
		x.from.bear(d.client)
	}
	return d
}

func (d *duplex) move() { d.moved.Store(time.Now().UnixNano()) }

// sent tells that the request has ended, or won't.
func (d *duplex) sent() {
	d.move()
	d.sending.Store(false)
}

// client tells how much longer the client may be silent; not at all when that is not positive.
func (d *duplex) client() time.Duration {
	if !d.talks.Load() {
		return 0
	}
	return d.left(d.idle)
}

// endpoint tells how much longer the endpoint may be silent. Whoever holds up the sending is told by his own patience.
func (d *duplex) endpoint() time.Duration {
	if d.stuck.Load() && !d.talks.Load() {
		return 0
	}
	if d.sending.Load() {
		return d.left(max(d.idle, d.answer))
	}
	return d.left(d.answer)
}

func (d *duplex) left(of time.Duration) time.Duration {
	return of - time.Since(time.Unix(0, d.moved.Load()))
}

// origin is where a request's body comes from.
type origin interface {
	// giveUp makes a reader of the body return.
	giveUp()
	// bear has a reader whose patience is over go on for as long as more says.
	bear(more func() time.Duration)
}
