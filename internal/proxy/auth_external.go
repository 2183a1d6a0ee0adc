// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// externalAuth is a route.ExternalAuth made ready, with the answers that it remembers.
type externalAuth struct {
	conf     *route.ExternalAuth
	cell     *backendCell // nil: the listener's own routes are asked
	host     *route.Text
	path     *route.Text
	signin   *route.Text
	cacheKey *route.Text
	headers  []headerText
	copied   []string // lower case
	told     []string // lower case; nil: all
	cache    *answerCache
	invalid  string // why nobody can be asked; nothing passes
}

// Bounds of external authentication.
const (
	externalTimeout = 60 * time.Second
	answerMost      = 64 << 10 // bytes of an answer's body
	rememberAnswers = 4096
)

func (t *tables) newExternalAuth(c *route.ExternalAuth) *externalAuth {
	if c == nil || c.Disabled {
		return nil
	}
	a := &externalAuth{conf: c, invalid: c.Invalid, host: text(route.Template(c.Host)), path: text(c.Path), signin: text(c.Signin), cacheKey: text(c.CacheKey)}
	if c.Backend != "" {
		a.cell = t.cell(c.Backend)
	}
	for _, h := range c.RequestHeaders {
		if !route.Framing(h.Name) {
			a.headers = append(a.headers, headerText{h.Name, text(route.Template(h.Value))})
		}
	}
	for _, h := range c.ResponseHeaders {
		a.copied = append(a.copied, strings.ToLower(h))
	}
	if c.Headers != nil {
		if !c.GRPC {
			a.told = []string{"authorization"}
		}
		for _, h := range c.Headers {
			a.told = append(a.told, strings.ToLower(h))
		}
	}
	if a.cacheKey != nil && len(c.CacheFor) > 0 {
		a.cache = &answerCache{byKey: map[[sha256.Size]byte]cachedAnswer{}}
	}
	return a
}

// externalFilter makes the filter of a listener or a backend ready; nil when it is one that asks nobody. err is what of it
// can't be asked, and then nothing passes.
func (t *tables) externalFilter(c *route.ExternalAuth) (a *externalAuth, err error) {
	if a = t.newExternalAuth(c); a == nil {
		return nil, nil
	}
	if err = c.Check(); err != nil && a.invalid == "" {
		a.invalid = err.Error()
	}
	return a, err
}

// admit asks whether the request may pass. Else the client has been answered; otherwise is what else it may try.
func (a *externalAuth) admit(x *exchange, otherwise ...field) bool {
	if a.invalid != "" {
		x.deny(deniedExternal, http.StatusInternalServerError, "external authentication: "+a.invalid)
		return false
	}
	body, ok := a.forwarded(x)
	if !ok {
		return false
	}
	if a.conf.GRPC {
		return a.admitGRPC(x, body, otherwise)
	}
	got, err := a.verdict(x, body)
	if err != nil {
		x.deny(deniedExternal, http.StatusInternalServerError, "external authentication: "+err.Error())
		return false
	}
	d := x.detail()
	if !a.conf.AuthRequest && got.status >= 300 && got.status < 500 && !x.isGRPC() {
		if got.status == http.StatusUnauthorized {
			d.added = append(d.added, otherwise...)
		}
		a.handOn(x, got)
		return false
	}
	for _, f := range got.fields {
		if equalFold(f.name, "set-cookie") {
			d.cookies = append(d.cookies, f)
		}
	}
	success := got.status >= 200 && got.status < 300
	switch {
	case got.status == http.StatusOK || success && a.conf.AuthRequest:
		d.always = a.conf.AlwaysSetCookie
		a.copyHeaders(x, got)
		return true
	case got.status == http.StatusUnauthorized && a.signin != nil && !x.isGRPC():
		d.always = true
		x.srv.stats.denied[deniedExternal].Add(1)
		x.respond(http.StatusFound, "", []field{newField("Location", a.signinURL(x))}, nil)
	case got.status == http.StatusUnauthorized:
		d.always, d.added = true, append(d.added, otherwise...)
		if challenge := got.lookup("www-authenticate"); challenge != "" {
			d.added = append(d.added, newField("WWW-Authenticate", challenge))
		}
		x.deny(deniedExternal, http.StatusUnauthorized, "external authentication")
	case got.status == http.StatusForbidden || success:
		d.always = !success
		x.deny(deniedExternal, http.StatusForbidden, "external authentication: answered with status "+strconv.Itoa(got.status))
	default:
		x.deny(deniedExternal, http.StatusInternalServerError, "external authentication: answered with status "+strconv.Itoa(got.status))
	}
	return false
}

// forwarded gives the request's body as far as the question tells it, nothing where it does not. It is false when the
// client has been answered, or has broken off: a body that can't be told whole is not let through.
func (a *externalAuth) forwarded(x *exchange) ([]byte, bool) {
	limit := int64(a.conf.ForwardBody)
	if limit == 0 || x.body == nil {
		return nil, true
	}
	if x.length > limit {
		x.tooLarge()
		return nil, false
	}
	if n := x.length; !x.isWhole {
		if n < 0 {
			n = limit
		}
		if !x.hold(int(n)) {
			x.deny(deniedExternal, http.StatusServiceUnavailable, "external authentication: too many bodies to be told")
			return nil, false
		}
	}
	if !x.takeBody(limit) {
		return nil, false
	}
	if x.isWhole {
		return x.whole, true
	}
	first := x.body.(*prefixBody).first // there is more, or trailers
	if int64(len(first)) > limit {
		x.tooLarge()
		return nil, false
	}
	return first, true
}

// handOn answers with the authority's refusal.
func (a *externalAuth) handOn(x *exchange, got *answer) {
	x.srv.stats.denied[deniedExternal].Add(1)
	x.reason = "external authentication: answered with status " + strconv.Itoa(got.status)
	if x.plan.errors != nil && x.errorPage(got.status) {
		return
	}
	fields := make([]field, 0, len(got.fields)+len(x.cors))
	for _, f := range got.fields {
		if f.id == other {
			fields = append(fields, f)
		}
	}
	if x.cors != nil {
		fields = x.replaceCORS(fields)
	}
	x.respond(got.status, "", fields, got.body)
}

// copyHeaders gives the backend what the answer tells, and nothing that the client claims instead.
func (a *externalAuth) copyHeaders(x *exchange, got *answer) {
	if a.conf.AllResponseHeaders {
		for _, f := range got.fields {
			if f.id == other && !ofBody(f.name) && !equalFold(f.name, "set-cookie") {
				x.dropField(strings.ToLower(view(f.name)))
			}
		}
		for _, f := range got.fields {
			if f.id == other && !ofBody(f.name) && !equalFold(f.name, "set-cookie") {
				x.fields = append(x.fields, f)
			}
		}
	}
	for _, name := range a.copied {
		x.dropField(name)
		for _, f := range got.fields {
			if equalFold(f.name, name) {
				x.fields = append(x.fields, field{f.name, f.value, f.id})
			}
		}
	}
}

// ofBody tells of fields that are about an answer itself.
func ofBody(name []byte) bool {
	return len(name) > 8 && equalFold(name[:8], "content-") || equalFold(name, "date") || equalFold(name, "server") || equalFold(name, "vary") ||
		equalFold(name, "etag") || equalFold(name, "last-modified") || equalFold(name, "cache-control") || equalFold(name, "www-authenticate")
}

// signinURL is where a browser goes to log in, and where it comes back to.
func (a *externalAuth) signinURL(x *exchange) string {
	to := a.signin.Eval(x)
	param := a.conf.SigninParam
	if param == "" {
		return to
	}
	if u, err := url.Parse(to); err == nil && u.Query().Has(param) {
		return to
	}
	sep := "?"
	if strings.Contains(to, "?") {
		sep = "&"
	}
	return to + sep + param + "=" + url.QueryEscape(x.scheme()+"://"+x.asked.authority+x.uri())
}

// verdict gives the answer, remembered or new.
func (a *externalAuth) verdict(x *exchange, body []byte) (*answer, error) {
	var key [sha256.Size]byte
	if a.cache != nil {
		// The key is of the answer's policy only; what it holds may be a secret, so its hash is kept.
		// An authority decides by host and path too, so an answer is for the host and the rule that it was given for.
		about := append([]byte(x.host), 0)
		if x.entry != nil { // else it is a listener's
			about = binary.BigEndian.AppendUint32(append(append(about, x.entry.Route.Key...), 0), uint32(x.entry.Rule))
		}
		about = append(about, x.method...)
		key = sha256.Sum256(a.cacheKey.Append(append(about, 0), x))
		if got, ok := a.cache.get(key, x.began); ok {
			return got, nil
		}
	}
	q := a.question(x, body)
	b, err := a.backend(x, q)
	if err != nil {
		return nil, err
	}
	got := &collector{limit: answerMost}
	if err := x.ask(b, q, got); err != nil {
		return nil, err
	}
	if a.cache != nil {
		if d := a.keepFor(got.status); d > 0 {
			a.cache.put(key, &got.answer, x.began.Add(d))
		}
	}
	return &got.answer, nil
}

// backend gives whom to ask: the policy's backend, or that of the listener's route for the question.
func (a *externalAuth) backend(x *exchange, q *question) (*backend, error) {
	if a.cell != nil {
		return a.cell.Load(), nil
	}
	host := hostOf(q.authority)
	if x.peer.port.table.Load().find(host) != x.listener {
		if l := x.peer.port.table.Load().find(host); l != nil {
			return a.answering(x, l, host, q)
		}
	}
	return a.answering(x, x.listener, host, q)
}

// answering gives the backend of the route that a question goes to, rewritten as that route says. What that route asks
// of clients holds for a question as well: whoever names an authority gets no further by that than by asking himself.
func (a *externalAuth) answering(x *exchange, l *listener, host string, q *question) (*backend, error) {
	e := l.route(host, &route.Request{Method: http.MethodGet, Path: q.path, Query: q.query, Header: fieldsLookup(q.fields)})
	if e == nil {
		return nil, errNoRoute
	}
	r := e.Target.(*rule)
	w := r.choose()
	if r.invalid != "" || r.filters.redirect != nil || w == nil || w.cell == nil || w.filters.redirect != nil {
		return nil, errNoBackend
	}
	if len(l.filters) > 0 || len(w.filters.external) > 0 || !a.mayAsk(x, l, r.planFor(l)) {
		return nil, errGuarded
	}
	for _, c := range r.filters.rewrite {
		if c.template == nil {
			q.path = rewritePath(c.conf.Path, q.path, e.PrefixLength())
		}
		if c.conf.Hostname != "" {
			q.authority = c.conf.Hostname
		}
	}
	q.fields = x.edited(q.fields, r.filters.request)
	return w.cell.Load(), nil
}

// mayAsk tells whether a question passes what is asked of the requests of a rule.
func (a *externalAuth) mayAsk(x *exchange, l *listener, p *plan) bool {
	g := p.guards
	switch {
	case p.invalid != "" || p.redirect != nil || l != x.listener && l.tls != nil && l.tls.client != nil:
		return false
	case g == nil:
		return true
	case g.sources != nil && !allowed(g.sources, x.source()) || g.basic != nil:
		return false
	}
	return g.external == nil || g.external == a || reflect.DeepEqual(g.external.conf, a.conf)
}

type fieldsLookup []field

// Lookup implements route.Lookup.
func (f fieldsLookup) Lookup(name string) (string, bool) {
	for i := range f {
		if f[i].id != fDropped && equalFold(f[i].name, name) {
			return view(f[i].value), true
		}
	}
	return "", false
}

// question is what is asked: the request's fields, with what it was in fields of their own, as ingress-nginx and
// oauth2-proxy name them.
func (a *externalAuth) question(x *exchange, body []byte) *question {
	q := &question{method: a.conf.Method, authority: x.asked.authority, timeout: time.Duration(a.conf.Timeout), fields: x.asIs(len(body) > 0), body: body}
	if q.timeout <= 0 {
		q.timeout = externalTimeout
	}
	if q.method == "" {
		q.method = x.method
	}
	if a.host != nil {
		q.authority = a.host.Eval(x)
	}
	q.path, q.query, _ = strings.Cut(a.path.Eval(x), "?")
	if path, perr := cleanPath([]byte(q.path)); perr == nil && len(path) > 0 && path[0] == '/' {
		q.path = string(path)
	} else {
		q.path = "/"
	}
	if a.told != nil {
		q.fields = slices.DeleteFunc(q.fields, func(f field) bool { return !hidden(a.told, f.name) })
	}
	scheme := x.scheme()
	f := q.fields
	f = set(f, "X-Original-URL", scheme+"://"+x.asked.authority+x.uri())
	f = set(f, "X-Original-Method", x.method)
	f = set(f, "X-Original-URI", x.uri())
	f = set(f, "X-Auth-Request-Redirect", x.uri())
	f = set(f, "X-Scheme", scheme)
	f = set(f, "X-Real-IP", x.source().String())
	for _, h := range a.headers {
		f = set(f, h.name, h.value.Eval(x))
	}
	q.fields = f
	return q
}

// keepFor tells how long an answer of that status is remembered.
func (a *externalAuth) keepFor(status int) time.Duration {
	for _, c := range a.conf.CacheFor {
		if len(c.Statuses) == 0 || slices.Contains(c.Statuses, status) {
			return time.Duration(c.For)
		}
	}
	return 0
}

// answerCache remembers answers, the number of which is bounded.
type answerCache struct {
	mu    sync.Mutex
	byKey map[[sha256.Size]byte]cachedAnswer
}

type cachedAnswer struct {
	*answer
	until time.Time
}

func (c *answerCache) get(key [sha256.Size]byte, now time.Time) (*answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.byKey[key]
	if ok && !now.Before(a.until) {
		delete(c.byKey, key)
		ok = false
	}
	return a.answer, ok
}

func (c *answerCache) put(key [sha256.Size]byte, a *answer, until time.Time) {
	kept := *a
	kept.body = nil // what may be large is not remembered
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byKey) >= rememberAnswers {
		for k := range c.byKey { // some: the order is random
			delete(c.byKey, k)
			break
		}
	}
	c.byKey[key] = cachedAnswer{&kept, until}
}
