// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// How endpoints are judged. A failure is a connection that can't be made or breaks before an answer, an answer that does
// not come in time (see blames), or one that a proxy gives for such (502, 503, 504).
const (
	ejectAfter   = 3                // failures in a row
	ejectFor     = 5 * time.Second  // the first time, then twice as long each time up to ejectAtMost
	ejectAtMost  = 60 * time.Second //
	slowStart    = 10 * time.Second // an endpoint that joins others gets its full share only after this
	keepIdle     = 50 * time.Second // unused connections to endpoints
	keepIdleMost = 1024             // for each endpoint
)

// backend is a route.Backend at work.
type backend struct {
	conf route.Backend
	tls  *tls.Config // nil: plain text
	err  error       // why its TLS can't be used

	endpoints atomic.Pointer[endpointList]
	turn      atomic.Uint64 // of round robin
	retrying  atomic.Int64  // attempts under way that are not a request's first
}

// endpointList is an immutable view of a backend's endpoints.
type endpointList struct {
	all    []*endpoint // by session identity
	active []*endpoint // those that get new requests
}

// endpoint is one server of one backend, with its idle connections. It keeps its identity across updates.
type endpoint struct {
	backend *backend
	address string
	id      uint64 // names it in session cookies
	since   int64  // when it joined, Unix nanoseconds; 0: it was among the first

	inflight atomic.Int64
	fails    atomic.Int32 // in a row
	ejected  atomic.Int64 // until, Unix nanoseconds; 0 is not
	times    atomic.Int32 // ejected in a row
	took     latency      // known where a policy balances by it

	mu   sync.Mutex
	idle []*upstream
	gone bool // removed: connections are closed instead of kept
	h2   h2pool
}

// sessionID names an endpoint without telling its address.
func sessionID(backend, address string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(backend + "\x00" + address))
	return h.Sum64()
}

// update takes a new set of endpoints; those that stay keep their connections and their standing.
func (b *backend) update(set []route.Endpoint, now time.Time) {
	old := b.endpoints.Load()
	var kept map[string]*endpoint
	if old != nil {
		kept = make(map[string]*endpoint, len(old.all))
		for _, e := range old.all {
			kept[e.address] = e
		}
	}
	list := &endpointList{}
	var terminating []*endpoint
	for _, s := range set {
		e := kept[s.Address]
		if e == nil {
			e = &endpoint{backend: b, address: s.Address, id: sessionID(b.conf.Key, s.Address)}
			if old != nil && len(old.active) > 0 {
				e.since = now.UnixNano()
			}
		}
		delete(kept, s.Address)
		list.all = append(list.all, e)
		if s.Terminating {
			terminating = append(terminating, e)
		} else {
			list.active = append(list.active, e)
		}
	}
	if len(list.active) == 0 {
		list.active = terminating
	}
	b.endpoints.Store(list)
	for _, e := range kept {
		e.remove()
	}
}

// close lets go of all idle connections; those in use end with their requests.
func (b *backend) close() {
	if list := b.endpoints.Load(); list != nil {
		for _, e := range list.all {
			e.remove()
		}
	}
}

// pick chooses an endpoint: of two random ones that with fewer requests. tried are not chosen again while there are
// others. It returns nil when there are no endpoints.
func (b *backend) pick(now int64, tried []*endpoint) *endpoint {
	list := b.endpoints.Load()
	if list == nil || len(list.active) == 0 {
		return nil
	}
	active := list.active
	if len(active) == 1 {
		return active[0]
	}
	one, two := candidate(active, now, tried), candidate(active, now, tried)
	if two.inflight.Load() < one.inflight.Load() {
		return two
	}
	return one
}

// candidate draws a random endpoint, and again a few times when it would rather not be used.
func candidate(active []*endpoint, now int64, tried []*endpoint) *endpoint {
	var e *endpoint
	for range 8 {
		e = active[rand.IntN(len(active))]
		if e.usable(now, tried) {
			return e
		}
	}
	start := rand.IntN(len(active))
	for i := range active {
		if e := active[(start+i)%len(active)]; e.ejected.Load() <= now && !contains(tried, e) {
			return e
		}
	}
	for i := range active {
		if e := active[(start+i)%len(active)]; !contains(tried, e) {
			return e
		}
	}
	return e
}

func (e *endpoint) usable(now int64, tried []*endpoint) bool {
	if e.ejected.Load() > now || contains(tried, e) {
		return false
	}
	if e.since != 0 {
		if age := now - e.since; age < int64(slowStart) {
			return rand.Int64N(int64(slowStart)) < max(age, int64(slowStart)/10)
		}
	}
	return true
}

func contains(list []*endpoint, e *endpoint) bool {
	for _, o := range list {
		if o == e {
			return true
		}
	}
	return false
}

// session finds the endpoint of a session, if it is still there, and unless it fails where sessions may move.
func (b *backend) session(id uint64, now int64, move bool) *endpoint {
	if list := b.endpoints.Load(); list != nil {
		for _, e := range list.all {
			if e.id == id && (!move || e.ejected.Load() <= now) {
				return e
			}
		}
	}
	return nil
}

// succeeded and failed are told of each attempt.
func (e *endpoint) succeeded() {
	if e.fails.Load() != 0 {
		e.fails.Store(0)
		e.times.Store(0)
	}
}

func (e *endpoint) failed(now time.Time) {
	if e.fails.Add(1) >= ejectAfter {
		e.eject(now)
	}
}

// unconnected is told of a connection that could not be made. An endpoint that does not even refuse it is gone with its
// host, and others should not wait for that again.
func (e *endpoint) unconnected(err error) {
	var silent noAnswer
	if errors.As(err, &silent) {
		e.eject(time.Now())
	} else {
		e.failed(time.Now())
	}
}

// dialLimits are those of the n-th endpoint that is tried for a request: short while there are others to try.
func (b *backend) dialLimits(n int) dialLimits {
	l := dialLimits{dialTimeout, dialTimeout}
	if list := b.endpoints.Load(); list != nil && n < connectTries && len(list.active) > n {
		l.connect = quickDial
	}
	return l
}

func (e *endpoint) eject(now time.Time) {
	e.fails.Store(0)
	for _, o := range e.drop() { // what is idle is probably broken as well
		o.close()
	}
	d := min(ejectFor<<min(e.times.Add(1)-1, 8), ejectAtMost)
	e.ejected.Store(now.Add(d).UnixNano())
}

// take gives the idle connection used last, or nil.
func (e *endpoint) take(now time.Time) *upstream {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := len(e.idle)
	if n == 0 {
		return nil
	}
	u := e.idle[n-1]
	e.idle[n-1] = nil
	e.idle = e.idle[:n-1]
	if now.Sub(u.idleSince) > keepIdle {
		// The most recent one is too old, so all are.
		for i, o := range e.idle {
			o.close()
			e.idle[i] = nil
		}
		e.idle = e.idle[:0]
		u.close()
		return nil
	}
	return u
}

// put keeps a connection whose exchange is complete.
func (e *endpoint) put(u *upstream, now time.Time) {
	u.w.shrink()
	u.idleSince = now
	e.mu.Lock()
	keep := !e.gone && len(e.idle) < keepIdleMost
	if keep {
		e.idle = append(e.idle, u)
	}
	e.mu.Unlock()
	if !keep {
		u.close()
	}
}

func (e *endpoint) drop() []*upstream {
	e.mu.Lock()
	defer e.mu.Unlock()
	idle := e.idle
	e.idle = nil
	return idle
}

func (e *endpoint) remove() {
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
	for _, u := range e.drop() {
		u.close()
	}
	e.h2.retire()
}

// sweep closes connections that have been idle for too long.
func (e *endpoint) sweep(now time.Time) {
	var old []*upstream
	e.mu.Lock()
	n := 0
	for n < len(e.idle) && now.Sub(e.idle[n].idleSince) > keepIdle {
		n++
	}
	old = append(old, e.idle[:n]...)
	e.idle = append(e.idle[:0], e.idle[n:]...)
	e.mu.Unlock()
	for _, u := range old {
		u.close()
	}
}
