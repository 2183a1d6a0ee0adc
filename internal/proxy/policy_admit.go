// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net/http"
	"net/netip"

	"github.com/weft-net/weft/internal/route"
)

// denial is why a policy refused a request.
type denial uint8

const (
	deniedPolicy denial = iota // the policy itself can't be enforced
	deniedCertificate
	deniedConnections
	deniedRate
	deniedSource
	deniedBasic
	deniedExternal
	deniedBody
	deniedFirewall
	denials // their number
)

// denialNames are the values of the metric's label.
var denialNames = [denials]string{"policy", "client-certificate", "connections", "rate", "source", "basic-auth", "external-auth", "body-size", "firewall"}

// deny answers a request that a policy refuses.
func (x *exchange) deny(why denial, status int, reason string) {
	x.srv.stats.denied[why].Add(1)
	x.reply(status, reason)
}

// admit makes the checks that policies ask for, in the order of nginx's phases: how much a client may, who may, what may
// be in it. It is false when the request has been answered.
func (x *exchange) admit(g *guards) bool {
	if x.limited(g) || !x.authorized(g) {
		return false
	}
	if g.maxBody > 0 && x.length > g.maxBody {
		x.tooLarge()
		return false
	}
	if g.maxBody > 0 && x.body != nil && x.length < 0 {
		x.body = &boundedBody{body: x.body, left: g.maxBody}
	}
	if g.firewall != nil && !x.inspect(g) {
		return false
	}
	if g.bufferRequest && x.body != nil && !x.isWhole {
		return x.holdBody(bufferLimit(g))
	}
	return true
}

// authorized tells whether the client is one of those who may; else it has been answered. A password that was for the
// gateway is kept from the backend.
func (x *exchange) authorized(g *guards) bool {
	if !x.identified(g) {
		return false
	}
	if g.basic != nil {
		x.dropField("authorization")
	}
	return true
}

func allowed(s *route.Sources, a netip.Addr) bool {
	return (len(s.Allow) == 0 || within(s.Allow, a)) && !within(s.Deny, a)
}

func (x *exchange) identified(g *guards) bool {
	if g.sources != nil {
		a := x.source()
		let := allowed(g.sources, a)
		others := g.any && (g.basic != nil || g.external != nil)
		switch {
		case let && g.any && (len(g.sources.Allow) > 0 || !others): // not to be denied is to have shown nothing
			return true
		case !let && !others:
			x.deny(deniedSource, http.StatusForbidden, "source "+a.String()+" may not")
			return false
		}
	}
	if g.basic != nil {
		v := g.basic.check(x)
		if v == passed && g.any {
			return true
		}
		if v != passed && (!g.any || g.external == nil) {
			g.basic.answer(x, v)
			return false
		}
	}
	if g.external == nil {
		return true
	}
	if g.any && g.basic != nil { // the client may try either; a browser knows how to answer the challenge
		return g.external.admit(x, g.basic.challenge)
	}
	return g.external.admit(x)
}

func (x *exchange) dropField(name string) { dropFields(x.fields, name) }

// left is told when the exchange is over.
func (x *exchange) left() {
	d := x.more
	if d.conns != nil {
		d.conns.leave(d.connsKey)
		d.conns = nil
	}
	x.srv.held.add(-d.held)
	d.held = 0
}

// Bodies that are read before a backend is asked are held in memory, up to this many bytes; what is larger is passed on
// as it comes, though never more than the policy's limit.
const bufferRequestMost = 8 << 20

// holdBody reads the body, unless the gateway holds too much already.
func (x *exchange) holdBody(limit int64) bool {
	n := int(limit)
	if x.length >= 0 {
		n = int(min(x.length, limit))
	}
	return !x.hold(n) || x.takeBody(limit)
}

// hold counts bytes that the gateway holds for the request until it is over; false when it holds too many already.
func (x *exchange) hold(n int) bool {
	if !x.srv.held.room(n) {
		return false
	}
	x.srv.held.add(n)
	x.detail().held += n
	return true
}

func bufferLimit(g *guards) int64 {
	if g.maxBody > 0 {
		return min(g.maxBody, bufferRequestMost)
	}
	return bufferRequestMost
}

// takeBody reads the body, when it has at most limit bytes, telling a client that waits for it to go on. It is false
// when the client broke off, or was answered.
func (x *exchange) takeBody(limit int64) bool { return x.proceed() && x.collect(limit) }

// proceed tells a client to go on that waits with its body; false when it has left.
func (x *exchange) proceed() bool {
	if x.body == nil || !x.expect {
		return true
	}
	if err := x.sink.informational(http.StatusContinue, nil); err != nil {
		x.fail("client: " + err.Error())
		return false
	}
	x.expect = false
	return true
}

func (x *exchange) tooLarge() {
	x.last = true
	x.deny(deniedBody, http.StatusRequestEntityTooLarge, errTooLarge.reason)
}

var errTooLarge = &parseError{http.StatusRequestEntityTooLarge, "the body is larger than the policy allows"}

// boundedBody ends with an error when more comes than is allowed.
type boundedBody struct {
	body
	left int64
}

func (b *boundedBody) next() ([]byte, error) {
	p, err := b.body.next()
	if b.left -= int64(len(p)); b.left < 0 {
		return nil, errTooLarge
	}
	return p, err
}

// bodyStatus gives the status that an error of a client's body deserves.
func bodyStatus(err error) int {
	var p *parseError
	if errors.As(err, &p) {
		return p.status
	}
	return http.StatusBadRequest
}
