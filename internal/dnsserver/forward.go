// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/dnszone"
)

// Policy is the order in which a forwarder's upstreams are tried.
type Policy string

// The policies. Upstreams that do not answer come last in each.
const (
	Random     Policy = "random"
	Sequential Policy = "sequential"
	RoundRobin Policy = "round_robin"
)

// forwarder sends the questions of some zones to their upstreams.
type forwarder struct {
	zone      string // as metrics have it: "." or "corp.example."
	apex      string // on the wire, in lower case
	labels    int
	index     int // of the zone, in stats
	resolvers []*resolver
	sources   string // the resolvers as one text: two that have the same give the same answers
	policy    Policy
	timeout   time.Duration // for all tries together
	panicked  func(any)     // is told of a bug that a try hit
	next      atomic.Uint32
}

// newForwarder makes a forwarder that has no resolvers yet.
func newForwarder(zone string, f *Forward) (*forwarder, error) {
	zone = strings.TrimSuffix(strings.ToLower(zone), ".") + "."
	apex, err := dnszone.PackName(zone)
	if err != nil {
		return nil, err
	}
	var q dnszone.Question
	q.Read(apex)
	return &forwarder{zone: zone, apex: string(apex), labels: q.Labels(), policy: f.Policy, timeout: time.Duration(f.Timeout)}, nil
}

// sortRoutes puts the longest zone first.
func sortRoutes(fs []*forwarder) {
	slices.SortStableFunc(fs, func(a, b *forwarder) int { return b.labels - a.labels })
}

// routeOf is the forwarder of the longest zone that a name is in; the last is the root's.
func routeOf(fs []*forwarder, q *dnszone.Question) *forwarder {
	for _, f := range fs {
		if f.matches(q) {
			return f
		}
	}
	return fs[len(fs)-1]
}

// matches tells whether a name is the forwarder's.
func (f *forwarder) matches(q *dnszone.Question) bool { return q.Under(f.apex, f.labels) }

// order is the resolvers as they are to be tried. Those in a loop are left out.
func (f *forwarder) order() []*resolver {
	out := make([]*resolver, 0, len(f.resolvers))
	switch f.policy {
	case Sequential:
		out = append(out, f.resolvers...)
	case RoundRobin:
		k := int(f.next.Add(1)) % len(f.resolvers)
		out = append(append(out, f.resolvers[k:]...), f.resolvers[:k]...)
	default:
		out = append(out, f.resolvers...)
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	out = slices.DeleteFunc(out, func(r *resolver) bool { return r.looping.Load() })
	slices.SortStableFunc(out, func(a, b *resolver) int {
		switch ah, bh := a.healthy(), b.healthy(); {
		case ah == bh:
			return 0
		case ah:
			return -1
		}
		return 1
	})
	return out
}

var (
	errNoUpstream = errors.New("no upstream to ask")
	errLoop       = errors.New("every upstream sends the questions back here")
	errPanic      = errors.New("an error of this server")
)

// maxRounds is how often one resolver is asked the same: questions get lost.
const maxRounds = 4

// try is one resolver's turn at a question, and what came of it.
type try struct {
	r      *resolver
	answer []byte
	err    error
}

// exchange asks one resolver after the other until one has an answer: the next whenever one has failed, or let more
// than its usual time pass. Those that were asked before are listened to all the same, until ctx ends: an answer that
// comes late is an answer. One that only says that the resolver could not find out is handed on when no other does
// better. probe is called with each resolver that is down.
func (f *forwarder) exchange(ctx context.Context, ask []byte, probe func(*resolver)) ([]byte, error) {
	if len(f.resolvers) == 0 {
		return nil, errNoUpstream
	}
	list := f.order()
	if len(list) == 0 {
		return nil, errLoop
	}
	x := &exchange{
		panicked: f.panicked, ask: ask, list: list, rounds: maxRounds, probe: probe, began: time.Now(),
		got: make(chan try, maxRounds*len(list)), state: make([]tries, len(list)),
	}
	var cancel context.CancelFunc
	x.ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	return x.run()
}

// exchange is a question at work.
type exchange struct {
	ctx    context.Context // ends the tries
	ask    []byte
	list   []*resolver
	rounds int
	probe  func(*resolver)
	began  time.Time

	panicked func(any)

	got   chan try
	state []tries // of the resolvers in the list
	next  int     // which try comes next: the resolver's place, and the round
	out   int     // tries under way
	poor  []byte
	err   error
}

// tries are those of one resolver.
type tries struct {
	since    time.Time // when it was first asked
	patience time.Duration
	open     int // under way
	failed   int // ended without an answer
	answered bool
}

func (x *exchange) run() ([]byte, error) {
	timer := time.NewTimer(x.start())
	defer timer.Stop()
	for {
		wait := time.Duration(-1)
		select {
		case t := <-x.got:
			answer, done := x.take(&t)
			if done {
				x.judge(t.r)
				return answer, nil
			}
			wait = x.start()
		case <-timer.C:
			wait = x.start()
		case <-x.ctx.Done():
			if errors.Is(x.ctx.Err(), context.Canceled) {
				return nil, x.ctx.Err() // the server is shutting down: no resolver's fault
			}
			x.judge(nil)
			return x.end()
		}
		if wait == 0 {
			x.judge(nil)
			return x.end()
		}
		timer.Reset(wait)
	}
}

func (x *exchange) end() ([]byte, error) {
	if x.poor != nil {
		return x.poor, nil
	}
	if x.err == nil {
		x.err = fmt.Errorf("no answer within %s", time.Since(x.began).Round(time.Millisecond))
	}
	return nil, x.err
}

// take takes in what came of a try. done says that its answer is the question's.
func (x *exchange) take(t *try) (answer []byte, done bool) {
	x.out--
	st := &x.state[slices.Index(x.list, t.r)]
	st.open--
	if t.err != nil {
		st.failed++
		x.err = fmt.Errorf("%s: %w", t.r, t.err)
		return nil, false
	}
	st.answered = true
	if definite(t.answer[3]&15, t.answer[2]&(flagTC>>8) != 0) {
		return t.answer, true
	}
	if x.poor == nil {
		x.poor = t.answer
	}
	return nil, false
}

// definite tells whether an answer says what is: all else only says that the resolver could not find out, and is no
// reason to give up another answer (RFC 8767 section 5).
func definite(rcode uint8, truncated bool) bool {
	return (rcode == rcodeOK || rcode == rcodeNXDomain) && !truncated
}

// start begins the next try, and returns for how long to wait for the outcome of any; 0 is not at all.
func (x *exchange) start() time.Duration {
	for ; x.next < x.rounds*len(x.list); x.next++ {
		i, round := x.next%len(x.list), x.next/len(x.list)
		st, r := &x.state[i], x.list[i]
		// Once one could not find out, each of the others has one turn. Who said no twice, or answered, is not
		// asked again.
		if st.answered || st.failed > 1 || (round > 0 && x.poor != nil) {
			continue
		}
		x.next++
		if round == 0 {
			st.since, st.patience = time.Now(), r.patience()
		}
		st.open++
		x.out++
		go func() {
			t := try{r: r, err: errPanic}
			defer func() {
				if p := recover(); p != nil {
					x.panicked(p)
				}
				x.got <- t
			}()
			t.answer, t.err = r.exchange(x.ctx, x.ask, round > 0)
		}()
		return st.patience << round
	}
	switch {
	case x.out == 0:
		return 0
	case x.poor != nil && x.patient() <= 0:
		return 0
	case x.poor != nil:
		return x.patient()
	}
	return time.Hour // until ctx ends
}

// patient is for how long those that are under way may still take.
func (x *exchange) patient() (left time.Duration) {
	for i := range x.state {
		if st := &x.state[i]; st.open > 0 {
			left = max(left, st.patience-time.Since(st.since))
		}
	}
	return left
}

// judge notes which resolvers did not answer in the time that they had, once for each question.
func (x *exchange) judge(winner *resolver) {
	for i, r := range x.list {
		st := &x.state[i]
		if st.since.IsZero() || st.answered || r == winner {
			continue
		}
		if waited := time.Since(st.since); st.failed > 0 || waited > st.patience {
			r.fail(waited)
		}
		if r.failures.Load() >= failuresDown {
			x.probe(r)
		}
	}
}

// appendAsk makes the message that is sent upstream: recursion desired, EDNS0 with a size that needs no fragments.
// AD asks to be told whether the answer was validated (RFC 6840 section 5.7).
func appendAsk(b []byte, name []byte, typ uint16, do, cd bool) []byte {
	flags := uint16(flagRD | flagAD)
	if cd {
		flags |= flagCD
	}
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 1)
	b = append(b, name...)
	b = append(b, byte(typ>>8), byte(typ), 0, classIN)
	dobit := byte(0)
	if do {
		dobit = 0x80
	}
	return append(b, 0, 0, typeOPT, upstreamSize>>8, upstreamSize&255, 0, 0, dobit, 0, 0, 0)
}

// loopEvery is how often resolvers are asked that have not answered yet, or are in a loop.
const loopEvery, loopWithin = 30 * time.Second, 2 * time.Second

// loopWatch asks each resolver a question that nobody else could; if it comes back here, the resolver forwards to us,
// and asking it would go round for ever. Who answered and is in no loop is asked no more.
type loopWatch struct {
	s     *Server
	fs    []*forwarder
	clear map[*resolver]bool
}

func (s *Server) watchLoops(ctx context.Context, fs []*forwarder) {
	tick := time.NewTicker(loopEvery)
	defer tick.Stop()
	w := loopWatch{s: s, fs: fs}
	for {
		w.round(ctx, loopWithin)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *loopWatch) round(ctx context.Context, within time.Duration) {
	if w.clear == nil {
		w.clear = make(map[*resolver]bool)
	}
	for _, f := range w.fs {
		for _, r := range f.resolvers {
			if w.clear[r] {
				continue
			}
			r.looping.Store(false)
			answered := w.s.askLoop(ctx, f, r, within)
			w.clear[r] = answered && !r.looping.Load()
		}
	}
}

// askLoop tells whether the resolver answered at all.
func (s *Server) askLoop(ctx context.Context, f *forwarder, r *resolver, within time.Duration) bool {
	token := fmt.Sprintf("%016x", rand.Uint64())
	s.loops.Store(token, r)
	defer s.loops.Delete(token)
	name, err := dnszone.PackName(token + ".weft-loop.")
	if f.apex != "\x00" {
		name, err = dnszone.PackName(token + ".weft-loop." + f.zone)
	}
	if err != nil {
		return true // a zone so long that the question does not fit
	}
	one, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err = r.exchange(one, appendAsk(nil, name, typeHINFO, false, false), false)
	return err == nil
}

// ownLoop tells whether a question is one that watchLoops asked, and notes that it came back.
func (s *Server) ownLoop(q *dnszone.Question) bool {
	w := q.Wire()
	if q.Type != typeHINFO || w[0] != 16 {
		return false
	}
	r, ok := s.loops.Load(string(w[1:17]))
	if !ok {
		return false
	}
	if !r.(*resolver).looping.Swap(true) {
		s.log.Error("upstream sends the questions back here: it is left out; point it, or weft, elsewhere", "upstream", r.(*resolver).String())
		s.stats.loops.Add(1)
	}
	return true
}
