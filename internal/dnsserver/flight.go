// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
)

// responder is where an answer goes.
type responder interface {
	// respond sends a message and does not keep it.
	respond(msg []byte)
}

// waiter is a client that waits for a flight.
type waiter struct {
	m      query
	asked  []byte // header and question, as asked
	limit  int    // of the answer, without its OPT record
	size   int    // that its OPT record names
	client clientAddr
	to     responder
	turn   uint32
	began  time.Time
	udp    bool
	zone   int // index in stats

	// prefix is what comes before the awaited records: a message with the CNAMEs that lead to their name.
	prefix []byte

	// done takes the outcome in place of a client: the server itself wants to know. err is nil if there is an entry.
	done func(e *entry, err error)
}

// flight is a question under way to an upstream.
type flight struct {
	flightKey
	waiters []*waiter
}

// flightKey is what makes two questions one: the answer that is looked for, and who is asked. A new configuration may
// ask others.
type flightKey struct {
	key string
	fw  *forwarder
}

// flights are those under way, one for each question, bounded.
type flights struct {
	mu      sync.Mutex
	byKey   map[flightKey]*flight
	waiting int

	maxFlights, maxWaiting int
}

// join adds a waiter (or none: a refresh) to the question's flight. start says that the caller must fly it; ok that
// there was room.
func (fs *flights) join(key flightKey, w *waiter) (f *flight, start, ok bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if w != nil && fs.waiting >= fs.maxWaiting {
		return nil, false, false
	}
	f = fs.byKey[key]
	if f == nil {
		if len(fs.byKey) >= fs.maxFlights {
			return nil, false, false
		}
		f = &flight{flightKey: key}
		fs.byKey[key] = f
		start = true
	}
	if w != nil {
		f.waiters = append(f.waiters, w)
		fs.waiting++
	}
	return f, start, true
}

// take empties a flight of its waiters; landed takes the flight off the list, too.
func (fs *flights) take(f *flight, landed bool) []*waiter {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	ws := f.waiters
	f.waiters = nil
	fs.waiting -= len(ws)
	if landed {
		delete(fs.byKey, f.flightKey)
	}
	return ws
}

// idle tells whether nothing is under way.
func (fs *flights) idle() bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.byKey) == 0
}

// What RFC 8767 section 5 proposes: how long a client waits before it gets stale data, and how long a failure keeps
// a question from being asked again.
const (
	staleAfter   = 1800 * time.Millisecond
	failureHolds = 30 * time.Second
)

// asking is a question that is to go upstream.
type asking struct {
	name   []byte // on the wire, in lower case
	typ    uint16
	do, cd bool
	fw     *forwarder
	old    *entry // what the cache has
	anew   bool   // even if that still holds
}

// fly asks upstream, keeps the answer, and hands it to all who wait.
func (s *Server) fly(v *view, f *flight, a *asking) {
	defer s.background.Done()
	defer func() {
		if r := recover(); r != nil {
			s.panicked(r)
			for _, w := range s.flights.take(f, true) {
				s.fail(w, edeNetworkError)
			}
		}
	}()
	// A flight may have landed between the look into the cache and the start of this one.
	if e := v.cache.get([]byte(f.key)); !a.anew && e != nil && e.left(s.now()) > 0 {
		for _, w := range s.flights.take(f, true) {
			s.deliver(v, w, e, false)
		}
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, a.fw.timeout)
	defer cancel()
	// What there is must not give way to less.
	old := a.old
	if old != nil && !definite(old.rcode, false) {
		old = nil
	}
	if old != nil {
		late := time.AfterFunc(staleAfter, func() {
			if !s.holds(v, old) {
				return
			}
			// Who comes now need not wait as long: it is known that the answer takes longer.
			old.refreshed.Store(s.now() + int64(failureHolds))
			for _, w := range s.flights.take(f, false) {
				s.deliver(v, w, old, old.left(s.now()) <= 0)
			}
		})
		defer late.Stop()
	}
	e, err := s.resolve(ctx, f.key, a, v.lifetimes)
	if err != nil {
		s.stats.forwardFailures.Add(1)
		s.log.Debug("question not answered by any upstream", "name", dnszone.FormatName(a.name), "type", dns.Type(a.typ).String(), "err", err)
	}
	if old != nil && (err != nil || !definite(e.rcode, e.truncated())) && s.holds(v, old) {
		old.refreshed.Store(s.now() + int64(failureHolds))
		for _, w := range s.flights.take(f, true) {
			s.deliver(v, w, old, old.left(s.now()) <= 0)
		}
		return
	}
	if err == nil && e.life > 0 {
		s.keep(v, a.fw, e)
	}
	for _, w := range s.flights.take(f, true) {
		if err != nil {
			s.fail(w, edeNetworkError)
		} else {
			s.deliver(v, w, e, false)
		}
	}
}

// keep puts an answer into the cache, unless a configuration that came meanwhile asks others.
func (s *Server) keep(v *view, fw *forwarder, e *entry) {
	v.cache.put(e)
	now := s.view.Load()
	if now == v || now.cache != v.cache {
		return
	}
	// Looked at after it was put: either this sees the new configuration, or that has seen the entry.
	if q := keyQuestion(e.key); now.route(&q).sources != fw.sources {
		v.cache.drop(e)
	}
}

// holds tells whether an entry may be served: while it is fresh, or stale but not too old.
func (s *Server) holds(v *view, e *entry) bool {
	left := e.left(s.now())
	return left > 0 || (v.serveStale > 0 && left > -int64(v.serveStale) && definite(e.rcode, false))
}

var bigBuffers = sync.Pool{New: func() any { b := make([]byte, maxMessage); return &b }}

func (s *Server) resolve(ctx context.Context, key string, a *asking, lt lifetimes) (*entry, error) {
	ask := appendAsk(nil, a.name, a.typ, a.do, a.cd)
	answer, err := a.fw.exchange(ctx, ask, func(r *resolver) {
		s.background.Add(1)
		go func() {
			defer s.background.Done()
			defer func() {
				if p := recover(); p != nil {
					s.panicked(p)
				}
			}()
			r.probe()
		}()
	})
	if err != nil {
		return nil, err
	}
	return newEntry(key, answer, len(a.name)+4, s.now(), lt)
}

// deliver answers one client from an entry.
func (s *Server) deliver(v *view, w *waiter, e *entry, stale bool) {
	if w.done != nil {
		w.done(e, nil)
		return
	}
	if !w.udp && e.truncated() {
		s.fail(w, edeNetworkError) // whoever comes over TCP is not helped by half of it
		return
	}
	buf := bigBuffers.Get().(*[]byte)
	defer bigBuffers.Put(buf)
	if stale {
		s.stats.servedStale.Add(1)
	}
	if w.prefix != nil {
		s.compose(w, e, stale, (*buf)[:0])
		return
	}
	msg := w.m.start((*buf)[:0], w.asked)
	msg, o := e.append(msg, w.m.qlen, w.limit, s.now(), w.turn, stale)
	s.send(w, msg, &o, pluginForward)
}

// send finishes an answer and lets it go.
func (s *Server) send(w *waiter, msg []byte, o *outcome, from plugin) {
	if !w.m.do && w.m.flags&flagAD == 0 {
		o.flags &^= flagAD
	}
	msg = w.m.finish(msg, o, s.jar, w.client.bytes(), w.size)
	s.stats.slow.answered(w.zone, o.rcode, from, len(msg), w.udp, time.Since(w.began))
	s.logQuery(&w.m, w.client, w.udp, o, len(msg), time.Since(w.began))
	w.to.respond(msg)
}

// fail answers one client with SERVFAIL and the reason.
func (s *Server) fail(w *waiter, ede int) {
	if w.done != nil {
		w.done(nil, errNoAnswer)
		return
	}
	var buf [headerSize + maxKey + 64]byte
	s.send(w, w.m.start(buf[:0], w.asked), &outcome{rcode: rcodeServFail, ede: ede}, pluginForward)
}

// sealPrefix gives a message that has so many answers behind its question, and nothing else, its header.
func sealPrefix(msg []byte, answers uint16) []byte {
	copy(msg[2:headerSize], []byte{flagQR >> 8, 0, 0, 1, byte(answers >> 8), byte(answers), 0, 0, 0, 0})
	return msg
}

var errNoAnswer = errors.New("no upstream answered")

// compose answers with the CNAMEs of the prefix and the records of the entry behind them. Names in the entry point
// into its own question, so both are taken apart and put together anew.
func (s *Server) compose(w *waiter, e *entry, stale bool, buf []byte) {
	var head, tail dns.Msg
	whole, o := e.append(append(buf, e.msg[:headerSize+len(e.question())]...), len(e.question()), maxMessage, s.now(), w.turn, stale)
	if head.Unpack(w.prefix) != nil || tail.Unpack(whole) != nil {
		s.fail(w, edeNetworkError)
		return
	}
	head.Answer = append(head.Answer, tail.Answer...)
	head.Ns = tail.Ns
	// Truncate keeps room for an OPT record as long as the one that will be.
	room := w.m.reserve()
	if room > 0 {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		if pad := room - optSize - 4; pad >= 0 {
			opt.Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, pad)}}
		}
		head.Extra = []dns.RR{opt}
	}
	head.Compress = true
	head.Rcode = 0
	head.Truncate(w.limit + room)
	head.Extra = nil
	msg, err := head.PackBuffer(nil)
	if err != nil || len(msg) < headerSize+w.m.qlen {
		s.fail(w, edeNetworkError)
		return
	}
	o.answer, o.authority, o.additional = uint16(len(head.Answer)), uint16(len(head.Ns)), 0
	o.flags &^= flagAD
	if head.Truncated {
		o.flags |= flagTC
	}
	s.send(w, msg, &o, pluginForward)
}

// question is the question section.
func (e *entry) question() []byte {
	var q dnszone.Question
	return e.msg[headerSize : headerSize+q.Read(e.msg[headerSize:])+4]
}
