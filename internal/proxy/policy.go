// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// policyCell is the place of a policy, so that what names it needs no change when the policy does. nil: there is none.
type policyCell struct {
	atomic.Pointer[policy]
	key string
}

// policy is a route.Policy made ready.
type policy struct {
	conf     route.Policy
	invalid  string
	basic    *basicAuth
	external *externalAuth
	limits   []*limit
	conns    *connectionLimit
	errors   *errorPages
	hsts     []field
	cookies  *cookieEdit
	locs     []*route.Replacer
	hide     []string
	balance  *balancer
	firewall Firewall
	rewrites []rewrite
	redirect *redirect
}

// plan is what the settings of a rule and the policies of its listener, route and itself come to. A rule without
// policies has one that is made once; it is never nil in an exchange that has a rule.
type plan struct {
	session  *route.Session
	timeouts route.Timeouts
	retry    *route.Retry
	connect  time.Duration // 0, of this and the next two: the gateway's
	read     time.Duration
	send     time.Duration
	hop      string    // the Connection header for backends
	balance  *balancer // nil: least request
	guards   *guards   // nil: nothing to be passed
	shape    *shape    // nil: answers go as they come
	errors   *errorPages
	rewrites []rewrite // where the rule has none
	redirect *redirect // where the rule has none
	invalid  string    // why nothing is served
	log      *bool
	names    []string // the policies' keys, for explanations

	// What it was made of.
	listener *listener
	parts    []*policy
}

// guards are what a request must pass before a backend is asked.
type guards struct {
	sources       *route.Sources
	basic         *basicAuth
	external      *externalAuth
	any           bool
	limits        []*limit
	conns         *connectionLimit
	firewall      Firewall
	maxBody       int64 // 0: none
	bufferRequest bool
}

// shape is what is done to answers.
type shape struct {
	hsts    []field
	cookies *cookieEdit
	locs    []*route.Replacer
	hide    []string
	rate    *route.ResponseRate
	buffer  bool
}

func (t *tables) policyCell(key string) *policyCell {
	c := t.policies[key]
	if c == nil {
		c = &policyCell{key: key}
		t.policies[key] = c
	}
	return c
}

func (t *tables) policyCells(lists ...[]string) (out []*policyCell) {
	for _, keys := range lists {
		for _, k := range keys {
			out = append(out, t.policyCell(k))
		}
	}
	return out
}

// setPolicy compiles a policy. One that can't be enforced is told of, and refuses all that it applies to.
func (t *tables) setPolicy(conf route.Policy, ch *touched) {
	cell := t.policyCell(conf.Key)
	old := cell.Load()
	if old != nil && reflect.DeepEqual(old.conf, conf) {
		return
	}
	p, err := t.compilePolicy(conf, old)
	if err != nil {
		err = fmt.Errorf("policy %s: %w", conf.Key, err)
		ch.errs = append(ch.errs, err)
	}
	cell.Store(p)
}

// compilePolicy makes a policy ready. It goes on with the state that an earlier version of it had: a changed limit
// forgives nobody.
func (t *tables) compilePolicy(conf route.Policy, old *policy) (*policy, error) {
	p := &policy{conf: conf, invalid: conf.Invalid}
	err := conf.Check()
	if err != nil && p.invalid == "" {
		p.invalid = err.Error()
	}
	if p.invalid != "" {
		return p, err
	}
	if old == nil {
		old = &policy{}
	}
	var users error
	if conf.BasicAuth != nil {
		p.basic, users = newBasicAuth(conf.BasicAuth)
	}
	p.external = t.newExternalAuth(conf.ExternalAuth)
	for i := range conf.RateLimits {
		p.limits = append(p.limits, newLimit(&conf.RateLimits[i], old.limits))
	}
	if conf.Connections != nil {
		p.conns = newConnectionLimit(conf.Connections, old.conns)
	}
	p.errors = t.newErrorPages(conf.ErrorPages)
	if h := conf.HSTS; h != nil && !h.Disabled {
		p.hsts = []field{newField("Strict-Transport-Security", hstsValue(h))}
	}
	p.cookies = newCookieEdit(conf.Cookies)
	if conf.Locations != nil {
		p.locs = replacers(conf.Locations.Replace)
	}
	for _, h := range conf.HideHeaders {
		p.hide = append(p.hide, strings.ToLower(h))
	}
	p.balance = newBalancer(conf.Balance)
	if conf.Rewrite != nil {
		p.rewrites = []rewrite{{conf.Rewrite, pathText(conf.Rewrite.Path)}}
	}
	if c := conf.Redirect; c != nil {
		p.redirect = &redirect{conf: c, location: text(c.Location), template: pathText(c.Path)}
	}
	if w := conf.WAF; w != nil && !w.Disabled {
		if t.newFirewall == nil {
			err = errors.New("waf: this gateway has no web application firewall")
		} else if p.firewall, err = t.newFirewall(w); err != nil {
			err = fmt.Errorf("waf: %w", err)
		}
		if err != nil {
			p.invalid = err.Error()
		}
	}
	return p, errors.Join(users, err)
}

func hstsValue(h *route.HSTS) string {
	v := "max-age=" + strconv.FormatInt(h.MaxAge, 10)
	if h.IncludeSubdomains {
		v += "; includeSubDomains"
	}
	if h.Preload {
		v += "; preload"
	}
	return v
}

// replacers compiles what Check has found to be right.
func replacers(list []route.Replacement) (out []*route.Replacer) {
	for _, r := range list {
		if c, err := r.Compile(); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// text parses a template that Check has found to be right; nil for none.
func text(t route.Template) *route.Text {
	if t == "" {
		return nil
	}
	parsed, _ := route.ParseTemplate(t)
	return parsed
}

func pathText(p *route.PathRewrite) *route.Text {
	if p == nil || p.Template == nil {
		return nil
	}
	return text(*p.Template)
}

// planFor gives what applies to requests of a rule that came to a listener. Without policies that is what the rule
// itself says. Else it is merged once, and again when a policy has changed.
func (r *rule) planFor(l *listener) *plan {
	if len(r.policies) == 0 && len(l.policies) == 0 {
		return &r.plain
	}
	plans := r.plans.Load()
	if plans != nil {
		for _, p := range *plans {
			if p.listener == l && p.current(r) {
				return p
			}
		}
	}
	made := r.merge(l)
	next := []*plan{made}
	if plans != nil {
		for _, p := range *plans {
			if p.listener.conf.Key != l.conf.Key {
				next = append(next, p)
			}
		}
	}
	r.plans.Store(&next) // two at a time may lose one of them: it is merged again
	return made
}

// current tells whether the policies are those that the plan was made of.
func (p *plan) current(r *rule) bool {
	n := len(p.listener.policies)
	for i, c := range p.listener.policies {
		if c.Load() != p.parts[i] {
			return false
		}
	}
	for i, c := range r.policies {
		if c.Load() != p.parts[n+i] {
			return false
		}
	}
	return true
}

// merge puts the policies of the listener, the route and the rule together: field by field, the later ones win.
func (r *rule) merge(l *listener) *plan {
	p := &plan{listener: l}
	var m policy // what the fields come to
	for _, c := range slices.Concat(l.policies, r.policies) {
		part := c.Load()
		p.parts = append(p.parts, part)
		p.names = append(p.names, c.key)
		switch {
		case part == nil:
			p.invalid = "policy " + c.key + " is not there"
		case part.invalid != "":
			p.invalid = "policy " + c.key + ": " + part.invalid
		default:
			m.add(part)
		}
	}
	c := &m.conf
	p.hop = c.Connection
	p.connect, p.read, p.send = time.Duration(c.ConnectTimeout), time.Duration(c.ReadTimeout), time.Duration(c.SendTimeout)
	p.balance, p.errors, p.log = m.balance, m.errors, c.AccessLog
	p.rewrites, p.redirect = m.rewrites, m.redirect
	p.session, p.retry = c.Session, c.Retry
	if c.Timeouts != nil {
		p.timeouts = *c.Timeouts
	}
	p.own(r.conf)
	g := guards{
		sources: c.Sources, basic: m.basic, external: m.external, any: isSet(c.SatisfyAny), limits: m.limits, conns: m.conns,
		firewall: m.firewall, bufferRequest: isSet(c.BufferRequest),
	}
	if c.MaxRequestBody != nil {
		g.maxBody = *c.MaxRequestBody
	}
	if g.sources != nil || g.basic != nil || g.external != nil || len(g.limits) > 0 || g.conns != nil || g.firewall != nil || g.maxBody > 0 || g.bufferRequest {
		p.guards = &g
	}
	s := shape{hsts: m.hsts, cookies: m.cookies, locs: m.locs, hide: m.hide, rate: c.ResponseRate, buffer: isSet(c.BufferResponse)}
	if s.rate != nil && s.rate.BytesPerSecond == 0 {
		s.rate = nil
	}
	if len(s.hsts) > 0 || s.cookies != nil || len(s.locs) > 0 || len(s.hide) > 0 || s.rate != nil || s.buffer {
		p.shape = &s
	}
	return p
}

func isSet(b *bool) bool { return b != nil && *b }

// own lets what the rule itself says come first.
func (p *plan) own(c *route.Rule) {
	if c.Session != nil {
		p.session = c.Session
	}
	if c.Retry != nil {
		p.retry = c.Retry
	}
	if c.Timeouts.Request != 0 {
		p.timeouts.Request = c.Timeouts.Request
	}
	if c.Timeouts.BackendRequest != 0 {
		p.timeouts.BackendRequest = c.Timeouts.BackendRequest
	}
	p.timeouts.Unbounded = p.timeouts.Unbounded || c.Timeouts.Unbounded
}

// add puts the fields that are set in o in the place of m's.
func (m *policy) add(o *policy) {
	c, oc := &m.conf, &o.conf
	override(&c.Sources, oc.Sources)
	if oc.BasicAuth != nil {
		m.basic = o.basic
	}
	if oc.ExternalAuth != nil {
		m.external = o.external
	}
	override(&c.SatisfyAny, oc.SatisfyAny)
	if oc.RateLimits != nil {
		m.limits = o.limits
	}
	if oc.Connections != nil {
		m.conns = o.conns
	}
	override(&c.MaxRequestBody, oc.MaxRequestBody)
	override(&c.ResponseRate, oc.ResponseRate)
	if oc.ErrorPages != nil {
		m.errors = o.errors
	}
	if oc.Rewrite != nil {
		m.rewrites = o.rewrites
	}
	if oc.Redirect != nil {
		m.redirect = o.redirect
	}
	if oc.HSTS != nil {
		m.hsts = o.hsts
	}
	if oc.Cookies != nil {
		m.cookies = o.cookies
	}
	if oc.Locations != nil {
		m.locs = o.locs
	}
	if oc.HideHeaders != nil {
		m.hide = o.hide
	}
	if oc.Balance != nil {
		m.balance = o.balance
	}
	override(&c.Session, oc.Session)
	if oc.Timeouts != nil {
		both := *oc.Timeouts
		if c.Timeouts != nil {
			both.Request = cmp.Or(both.Request, c.Timeouts.Request)
			both.BackendRequest = cmp.Or(both.BackendRequest, c.Timeouts.BackendRequest)
			both.Unbounded = both.Unbounded || c.Timeouts.Unbounded
		}
		c.Timeouts = &both
	}
	override(&c.Retry, oc.Retry)
	c.ConnectTimeout = cmp.Or(oc.ConnectTimeout, c.ConnectTimeout)
	c.ReadTimeout = cmp.Or(oc.ReadTimeout, c.ReadTimeout)
	c.SendTimeout = cmp.Or(oc.SendTimeout, c.SendTimeout)
	c.Connection = cmp.Or(oc.Connection, c.Connection)
	override(&c.BufferRequest, oc.BufferRequest)
	override(&c.BufferResponse, oc.BufferResponse)
	override(&c.AccessLog, oc.AccessLog)
	if oc.WAF != nil {
		m.firewall = o.firewall
	}
}

func override[T any](field **T, with *T) {
	if with != nil {
		*field = with
	}
}

// attempts is how often a request may be sent in all.
func (p *plan) attempts(method string) int {
	if p.retry == nil || p.retry.Never || p.retry.Idempotent && !idempotent(method) {
		return 1
	}
	return 1 + max(p.retry.Attempts, 0)
}

// tries is how many connections may be tried until one can be made.
func (p *plan) tries() int {
	switch {
	case p.retry == nil:
		return connectTries
	case p.retry.Never:
		return 1
	}
	return 1 + max(p.retry.Attempts, 0)
}

// recovers tells whether another attempt may follow one that failed so, of those that there are still.
func (p *plan) recovers(out outcome, method string) bool {
	r := p.retry
	switch {
	case out.answered || r == nil:
		return true
	case out.status == http.StatusGatewayTimeout && r.NotOnTimeout, out.status != http.StatusGatewayTimeout && r.NotOnError:
		return false
	}
	return out.safe || r.Unsafe || idempotent(method) // else the endpoint may have acted on it
}

// inTime tells whether another attempt may begin.
func (p *plan) inTime(began time.Time) bool {
	return p.retry == nil || p.retry.Within <= 0 || time.Since(began) < time.Duration(p.retry.Within)
}

// retries tells whether an answer of that status is worth another attempt.
func (p *plan) retries(status int) bool {
	return p.retry != nil && slices.Contains(p.retry.Codes, status)
}

// backoffMost is the longest wait before a retry where the first one's is shorter.
const backoffMost = 10 * time.Second

// backoff is the wait before the attempt of that number, the first retry being 1.
func (p *plan) backoff(attempt int) time.Duration {
	if p.retry == nil {
		return 0
	}
	d := time.Duration(p.retry.Backoff)
	for ; attempt > 1 && d > 0 && d < backoffMost; attempt-- {
		d = min(2*d, backoffMost)
	}
	return d
}

// dialLimits, readTimeout and sendTimeout are what an endpoint may take: for a connection, between two parts of its
// answer, and to take the next part of the request.
func (x *exchange) dialLimits(e *endpoint) dialLimits {
	if x.plan != nil && x.plan.connect > 0 {
		return dialLimits{x.plan.connect, max(x.plan.connect, dialTimeout)}
	}
	return e.backend.dialLimits(len(x.tried))
}

// boundless is as long as anything may take that nothing bounds.
const boundless = 30 * 24 * time.Hour

func (x *exchange) readTimeout() time.Duration {
	if x.plan != nil && x.plan.read > 0 {
		return x.plan.read
	}
	if x.plan != nil && x.plan.timeouts.Unbounded {
		return boundless
	}
	if x.call {
		return x.srv.conf.TunnelIdle
	}
	return quiet
}

func (x *exchange) sendTimeout() time.Duration {
	if x.plan != nil && x.plan.send > 0 {
		return x.plan.send
	}
	return stuck
}

// hop is what the backend is told in Connection, if anything.
func (x *exchange) hop() string {
	if x.plan == nil {
		return ""
	}
	return x.plan.hop
}

// tunnelIdle is how long nothing may move in an upgraded connection.
func (x *exchange) tunnelIdle() time.Duration {
	if x.plan != nil && x.plan.read > 0 {
		return max(x.plan.read, x.plan.send)
	}
	return x.srv.conf.TunnelIdle
}
