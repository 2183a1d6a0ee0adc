// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"crypto/tls"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// exchange is one request and its response. For HTTP/1.1 there is one a connection, used again and again.
type exchange struct {
	srv   *Server
	began time.Time

	// Of the connection.
	peer   *peer
	sink   sink
	major  int // HTTP/1 or HTTP/2, of the client
	minor  byte
	client canceller // tells when the client gives up; nil: there is none that could

	// The request. Strings and fields point into the connection's buffer.
	method      string
	path, query string
	authority   string // as the client wrote it
	host        string // lower case, without port
	fields      []field
	body        body  // nil: none
	length      int64 // 0: none, -1: unknown
	upgrade     string
	expect      bool
	whole       []byte // the body, when it is all here: it can be sent again
	isWhole     bool

	// What became of it.
	listener *listener
	shown    *clientCertificate // nil: the request does not depend on it
	entry    *route.Entry       // that won
	rule     *rule
	plan     *plan    // what applies to the rule's requests here
	asked    asked    // as the request came
	more     *details // nil: nothing that policies ask for
	backend  string
	cell     *backendCell // the backend's place
	endpoint *endpoint
	status   int
	reason   string // why the proxy itself answered or gave up
	attempts int
	sent     int64 // bytes of the response's body
	started  bool  // the response's head is on its way
	last     bool  // the connection (HTTP/1) ends after this response
	abort    bool  // the connection (HTTP/1) or stream (HTTP/2) must be cut off
	filtered bool  // a filter of the listener has answered: no route was looked for
	tried    []*endpoint
	bound    bound // of the attempt
	id       [32]byte
	joined   string // of the last Lookup that had to join

	from   origin   // of the body; nil where there is none
	duplex *duplex  // while the body is being sent and after; nil: it is not, or was before an answer was awaited
	call   bool     // of gRPC
	cutOff bool     // a kept connection of HTTP/2 has ended under it: it may be why, and is to end one other at most
	copied *teeBody // the body, where there are copies of it; nil: there are none

	whole1    bytesBody
	edits     []edit // of responses, from rule and backend
	cors      []field
	exposeAll bool // all of the answer's fields are told to be exposed
}

// peer is what is known of a connection's other end.
type peer struct {
	port      *port
	remote    netip.AddrPort
	local     netip.AddrPort
	tls       *tls.ConnectionState
	sni       *listener // chosen by SNI; nil for plain text
	addr      []byte    // remote's address in text
	portText  []byte
	scheme    string
	forwarded bool               // its X-Forwarded headers are believed
	client    *clientCertificate // nil: requests do not depend on it
	judged    atomic.Pointer[judgement]
}

// canceller tells of a client that gives up its request.
type canceller interface {
	// watch has i interrupted when the client gives up, once; it is false when it has already.
	watch(i interrupter) bool
	// unwatch ends that: when it returns, i is not interrupted any more. It is false when i has been.
	unwatch() bool
	left() bool
}

// sink is where a response goes.
type sink interface {
	// informational passes a 1xx on.
	informational(status int, fields []field) error
	// start sends a head; length is that of the body, -1 when it is not known.
	start(x *exchange, status int, reason string, fields []field, length int64) error
	data(p []byte) error
	flush() error
	end(trailers []field) error
}

// Lookup finds a request's field for the matching of routes.
func (x *exchange) Lookup(name string) (string, bool) {
	switch name {
	case "host":
		return x.authority, true
	case "upgrade": // no field any more
		return x.upgrade, x.upgrade != ""
	}
	value, found := "", false
	for i := range x.fields {
		f := &x.fields[i]
		if f.id == fDropped || !equalFold(f.name, name) {
			continue
		}
		if !found {
			value, found = view(f.value), true
			continue
		}
		sep := ","
		if name == "cookie" { // RFC 9113 section 8.2.3
			sep = "; "
		}
		x.joined = value + sep + view(f.value)
		value = x.joined
	}
	return value, found
}

// hostOf gives an authority's host in lower case, without port and the root's dot.
func hostOf(authority string) string {
	host := authority
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	for i := range len(host) {
		if c := host[i]; c >= 'A' && c <= 'Z' {
			return strings.ToLower(host)
		}
	}
	return host
}

// run answers the request. When it returns, the response has ended or x.abort is set.
func (x *exchange) run() {
	x.srv.active.Add(1)
	defer x.srv.active.Add(-1)
	x.serve()
	if x.more != nil {
		x.left()
	}
	x.srv.done(x)
}

func (x *exchange) serve() {
	x.host = hostOf(x.authority)
	if !x.findListener() {
		return
	}
	x.forwardedFields()
	x.asked = asked{x.path, x.query, x.authority}
	if x.srv.conf.Tracer != nil {
		x.traced()
	}
	if x.shown != nil && !x.certified() {
		return
	}
	if x.listener.filters != nil && !x.beforeRouting() {
		return
	}
	e, perr := x.match()
	if perr != nil {
		x.reply(perr.status, perr.reason)
		return
	}
	if e == nil {
		x.plan = x.listener.unrouted.planFor(x.listener)
		x.reply(http.StatusNotFound, "no route matches")
		return
	}
	r := e.Target.(*rule)
	x.entry, x.rule, x.plan = e, r, r.planFor(x.listener)
	if r.invalid != "" {
		x.reply(http.StatusInternalServerError, r.invalid)
		return
	}
	if x.plan.invalid != "" {
		x.deny(deniedPolicy, http.StatusServiceUnavailable, x.plan.invalid)
		return
	}
	if r.filters.cors != nil && x.crossOrigin(r.filters.cors) {
		return
	}
	x.edits = append(x.edits, r.filters.response...)
	if to := cmp.Or(r.filters.redirect, x.plan.redirect); to != nil {
		x.redirect(to, e.PrefixLength())
		return
	}
	if x.plan.guards != nil && !x.admit(x.plan.guards) {
		return
	}
	if r.conf.Respond != 0 {
		x.reply(r.conf.Respond, "the rule says so")
		return
	}
	x.editRequest(r.filters.request)
	var w *weighted
	var sticky *endpoint
	if x.plan.session != nil {
		w, sticky = x.persisted(r)
	}
	if w == nil {
		w = r.choose()
	}
	x.forward(r, w, sticky, e.PrefixLength())
}

// findListener chooses by host among the port's listeners, and refuses requests that came over a connection made to
// another one (GEP-3567).
func (x *exchange) findListener() bool {
	l := x.peer.port.table.Load().find(x.host)
	switch {
	case l == nil:
		x.reply(http.StatusNotFound, "no listener has this host")
		return false
	case x.peer.sni != nil && x.peer.sni.conf.Key != l.conf.Key && !x.unnamed(l):
		x.reply(http.StatusMisdirectedRequest, "the connection was made to another host's listener")
		return false
	}
	x.listener = l
	if x.peer.sni != nil && x.peer.sni != l {
		j := x.peer.judge(l)
		if x.shown = j.shown; !j.admitted {
			x.last = true
			x.reply(http.StatusMisdirectedRequest, "the connection was made before the listener's check of clients became what it is")
		}
		return j.admitted
	}
	x.shown = x.peer.client
	return true
}

// unnamed tells whether the client named no server in its handshake and the listener takes such clients: one that
// checks clients has not seen this one's certificate.
func (x *exchange) unnamed(l *listener) bool {
	return x.peer.tls.ServerName == "" && l.tls != nil && l.conf.TLS.Client == nil
}

// forward sends the request to a backend.
func (x *exchange) forward(r *rule, w *weighted, sticky *endpoint, prefix int) {
	if w == nil || w.invalid != "" {
		reason := "the rule has no backend with a weight"
		if w != nil {
			reason = w.invalid
		}
		x.reply(http.StatusInternalServerError, reason)
		return
	}
	b := w.cell.Load()
	x.backend, x.cell = w.key, w.cell
	switch {
	case b == nil:
		x.reply(http.StatusInternalServerError, "backend "+w.key+" does not exist")
		return
	case b.conf.Invalid != "" || b.err != nil:
		reason := b.conf.Invalid
		if reason == "" {
			reason = b.err.Error()
		}
		x.reply(http.StatusInternalServerError, reason)
		return
	}
	if w.filters.cors != nil && x.crossOrigin(w.filters.cors) {
		return
	}
	x.edits = append(x.edits, w.filters.response...)
	if w.filters.redirect != nil {
		x.redirect(w.filters.redirect, prefix)
		return
	}
	for _, a := range w.filters.external {
		if !a.admit(x) {
			return
		}
	}
	x.editRequest(w.filters.request)
	rewrites := r.filters.rewrite
	if len(rewrites) == 0 {
		rewrites = x.plan.rewrites
	}
	if len(w.filters.rewrite) > 0 {
		rewrites = w.filters.rewrite
	}
	for i := range rewrites {
		x.rewrite(&rewrites[i], prefix)
	}
	x.mirror(r.filters.mirrors)
	x.mirror(w.filters.mirrors)
	x.send(r, b, sticky)
	if x.copied != nil {
		x.copied.end()
	}
}

func (x *exchange) edited(fields []field, edits []edit) []field {
	for i := range edits {
		fields = edits[i].apply(fields, x)
	}
	return fields
}

// editRequest is edited for the request itself, with the host that edits give it.
func (x *exchange) editRequest(edits []edit) {
	x.fields = x.edited(x.fields, edits)
	for i := range edits {
		if h := edits[i].host; h != nil {
			if host := h.Eval(x); host != "" && isAuthority(raw(host)) {
				x.authority = host
			}
		}
	}
}

func (x *exchange) rewrite(c *rewrite, prefix int) {
	if c.conf.Hostname != "" {
		x.authority = c.conf.Hostname
	}
	if c.template == nil {
		x.path = rewritePath(c.conf.Path, x.path, prefix)
		return
	}
	path, query := x.template(c.template)
	x.path = path
	switch {
	case x.query == "":
		x.query = query
	case query != "":
		x.query = query + "&" + x.query
	}
}

// template makes a path, and perhaps a query, of a template: what the client sent must not lead out of the root, nor
// make another request of this one.
func (x *exchange) template(t *route.Text) (path, query string) {
	var b []byte
	for _, c := range []byte(t.Eval(x)) {
		if isTarget[c] {
			b = append(b, c)
		}
	}
	if len(b) == 0 || b[0] != '/' {
		b = append([]byte{'/'}, b...)
	}
	path, query, _ = strings.Cut(view(b), "?")
	if c, perr := cleanPath(raw(path)); perr == nil {
		path = view(c)
	} else {
		path = "/"
	}
	return path, query
}

// forwardedFields replaces what the client claims about where it came from by what is true, unless it is a proxy that
// is trusted; and gives the request an id.
func (x *exchange) forwardedFields() {
	p := x.peer
	var chain, forwarded []byte
	hasID := false
	seen := [4]bool{}
	for i := range x.fields {
		f := &x.fields[i]
		switch f.id {
		case fForwardedFor:
			if p.forwarded {
				if chain != nil {
					chain = append(append(chain, ", "...), f.value...)
				} else {
					chain = append([]byte(nil), f.value...)
				}
			}
			f.id = fDropped
		case fForwardedProto, fForwardedHost, fForwardedPort:
			if p.forwarded {
				seen[f.id-fForwardedFor] = true
			} else {
				f.id = fDropped
			}
		case fForwarded:
			if p.forwarded {
				if forwarded != nil {
					forwarded = append(forwarded, ", "...)
				}
				forwarded = append(forwarded, f.value...)
			}
			f.id = fDropped
		case fRequestID:
			hasID = true
		case other:
			if disguised(f.name) {
				f.id = fDropped
			}
		}
	}
	if forwarded != nil && chain == nil {
		chain = []byte(forwardedFor(view(forwarded)))
	}
	if forwarded != nil || x.listener.conf.Forwarded {
		x.fields = append(x.fields, x.forwardedField(forwarded))
	}
	from := p.addr
	if chain != nil {
		from = append(append(chain, ", "...), p.addr...)
	}
	x.fields = append(x.fields, field{raw("X-Forwarded-For"), from, fForwardedFor})
	if !seen[1] {
		x.fields = append(x.fields, field{raw("X-Forwarded-Proto"), raw(p.scheme), fForwardedProto})
	}
	if !seen[2] {
		x.fields = append(x.fields, field{raw("X-Forwarded-Host"), raw(x.authority), fForwardedHost})
	}
	if !seen[3] {
		x.fields = append(x.fields, field{raw("X-Forwarded-Port"), p.portText, fForwardedPort})
	}
	if !hasID {
		var b [16]byte
		for i, v := 0, rand.Uint64(); i < 8; i, v = i+1, v>>8 {
			b[i] = byte(v)
		}
		for i, v := 8, rand.Uint64(); i < 16; i, v = i+1, v>>8 {
			b[i] = byte(v)
		}
		hex.Encode(x.id[:], b[:])
		x.fields = append(x.fields, field{raw("X-Request-Id"), x.id[:], fRequestID})
	}
}

// crossOrigin answers preflight requests, and prepares the fields of the others' answers.
func (x *exchange) crossOrigin(c *cors) (answered bool) {
	origin, ok := x.Lookup("origin")
	if !ok {
		return false
	}
	method, asks := x.Lookup("access-control-request-method")
	if x.method == http.MethodOptions && asks {
		headers, _ := x.Lookup("access-control-request-headers")
		x.respond(http.StatusNoContent, "", c.fields(origin, method, headers, true), nil)
		return true
	}
	x.cors = c.fields(origin, "", "", false)
	x.exposeAll = c.exposeAll && x.cors != nil
	return false
}

func (x *exchange) redirect(c *redirect, prefix int) {
	to := ""
	switch {
	case c.location != nil:
		to = c.location.Eval(x)
	case c.template != nil:
		path, query := x.template(c.template)
		if query == "" {
			query = x.query
		}
		to = location(c.conf, x.port(), x.scheme(), x.host, path, query)
	default:
		to = location(c.conf, x.port(), x.scheme(), x.host, rewritePath(c.conf.Path, x.path, prefix), x.query)
	}
	fields := append([]field{newField("Location", to)}, x.cors...) // browsers ask a redirect as well whether they may
	x.respond(redirectStatus(c.conf), "", x.edited(fields, x.edits), nil)
}

// reply answers in the proxy's own name. To gRPC's clients that is a status of theirs.
func (x *exchange) reply(status int, reason string) {
	x.reason = reason
	if x.isGRPC() {
		code := "14" // UNAVAILABLE
		switch status {
		case http.StatusBadRequest:
			code = "13" // INTERNAL
		case http.StatusNotFound:
			code = "12" // UNIMPLEMENTED
		case http.StatusUnauthorized:
			code = "16" // UNAUTHENTICATED
		case http.StatusForbidden:
			code = "7" // PERMISSION_DENIED
		case http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge:
			code = "8" // RESOURCE_EXHAUSTED
		case http.StatusGatewayTimeout:
			code = "4" // DEADLINE_EXCEEDED
		}
		x.respond(http.StatusOK, "", []field{
			newField("Content-Type", "application/grpc"), newField("Grpc-Status", code), newField("Grpc-Message", http.StatusText(status)),
		}, nil)
		return
	}
	if x.plan != nil && x.plan.errors != nil && x.errorPage(status) {
		return
	}
	x.respond(status, "", append([]field{newField("Content-Type", "text/plain; charset=utf-8")}, x.cors...), []byte(http.StatusText(status)+"\n"))
}

func (x *exchange) isGRPC() bool {
	if x.major != 2 {
		return false
	}
	ct, _ := x.Lookup("content-type")
	return ct == "application/grpc" || strings.HasPrefix(ct, "application/grpc+") || strings.HasPrefix(ct, "application/grpc;")
}

func (x *exchange) respond(status int, reason string, fields []field, text []byte) {
	x.status, x.started = status, true
	if x.plan != nil {
		fields = x.outgoing(status, fields)
	}
	if err := x.sink.start(x, status, reason, fields, int64(len(text))); err != nil {
		x.abort = true
		return
	}
	if x.method != http.MethodHead && len(text) > 0 {
		if err := x.sink.data(text); err != nil {
			x.abort = true
			return
		}
		x.sent = int64(len(text))
	}
	if err := x.sink.end(nil); err != nil {
		x.abort = true
	}
}

// fail ends a response that has begun and can't be completed.
func (x *exchange) fail(reason string) {
	x.reason, x.abort = reason, true
}

// forClient makes the fields of an endpoint's answer what the client gets.
func (x *exchange) forClient(e *endpoint, status int, fields []field) []field {
	if x.plan != nil { // a mirror's exchange, and a policy's question, have none
		fields = x.shaped(fields)
	}
	fields = x.edited(fields, x.edits)
	if x.cors != nil {
		fields = x.replaceCORS(fields)
	}
	if x.plan == nil {
		return fields
	}
	if s := x.plan.session; s != nil {
		if f, told := x.tell(s, e); told {
			fields = append(fields, f)
		}
	}
	return x.outgoing(status, fields)
}

// relay passes an endpoint's response on.
func (x *exchange) relay(e *endpoint, status int, reason string, fields []field, b body, length int64) (complete bool) {
	if x.plan != nil {
		if x.plan.errors != nil && x.errorPage(status) {
			return false
		}
		x.answered(e)
	}
	fields = x.forClient(e, status, fields)
	out, finish := x.sink, (func() error)(nil)
	if x.plan != nil {
		out, finish = x.outlet()
	}
	x.status, x.started = status, true
	if err := x.sink.start(x, status, reason, fields, length); err != nil {
		x.fail("client: " + err.Error())
		return false
	}
	if x.duplex != nil {
		x.duplex.move()
		x.duplex.talks.Store(true)
	}
	for {
		if !b.ready() {
			if err := out.flush(); err != nil {
				x.fail("client: " + err.Error())
				break
			}
		}
		p, err := b.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			x.fail("endpoint: " + err.Error())
			break
		}
		x.sent += int64(len(p))
		if x.duplex != nil {
			x.duplex.move()
		}
		if err := out.data(p); err != nil {
			x.fail("client: " + err.Error())
			break
		}
	}
	if finish != nil {
		if err := finish(); err != nil && !x.abort {
			x.fail("client: " + err.Error())
		}
	}
	if x.abort {
		return false
	}
	if err := x.sink.end(b.trailers()); err != nil {
		x.fail("client: " + err.Error())
	}
	return true
}

// reset makes the exchange ready for another request of the same connection. Inlined, it would leave room for an exchange on
// the stack of each connection that waits.
//
//go:noinline
func (x *exchange) reset() {
	*x = exchange{
		srv: x.srv, peer: x.peer, sink: x.sink, major: x.major, client: x.client, from: x.from, fields: x.fields[:0],
		tried: x.tried[:0], edits: x.edits[:0],
	}
}
