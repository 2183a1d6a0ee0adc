// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
	policy    Policy
	next      atomic.Uint32
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
)

// exchange asks one resolver after the other until one has an answer. An answer that only says that the resolver
// could not find out is handed on when no other does better. probe is called with each resolver that is down.
func (f *forwarder) exchange(ctx context.Context, ask, buf []byte, probe func(*resolver)) ([]byte, error) {
	if len(f.resolvers) == 0 {
		return nil, errNoUpstream
	}
	list := f.order()
	if len(list) == 0 {
		return nil, errLoop
	}
	var poor []byte
	err := error(nil)
	for round := range 2 {
		for i, r := range list {
			one, cancel := context.WithTimeout(ctx, r.patience())
			answer, e := r.exchange(one, ask, buf)
			cancel()
			if e != nil {
				err = fmt.Errorf("%s: %w", r, e)
				if r.failures.Load() >= failuresDown {
					probe(r)
				}
				if ctx.Err() != nil {
					return poor, err
				}
				continue
			}
			switch answer[3] & 15 {
			case rcodeServFail, rcodeRefused, rcodeNotImp:
				if i < len(list)-1 {
					poor = append([]byte(nil), answer...)
					continue
				}
			}
			return answer, nil
		}
		if poor != nil || round > 0 {
			break
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, err
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

// loopEvery is how often resolvers in a loop are asked whether they still are.
const loopEvery = 30 * time.Second

// watchLoops asks each resolver a question that nobody else could; if it comes back here, the resolver forwards to
// us, and asking it would go round for ever.
func (s *Server) watchLoops(ctx context.Context, fs []*forwarder) {
	tick := time.NewTicker(loopEvery)
	defer tick.Stop()
	asked := make(map[*resolver]bool)
	buf := make([]byte, maxMessage)
	for {
		for _, f := range fs {
			for _, r := range f.resolvers {
				if asked[r] && !r.looping.Load() {
					continue
				}
				asked[r] = true
				r.looping.Store(false)
				s.askLoop(ctx, f, r, buf)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) askLoop(ctx context.Context, f *forwarder, r *resolver, buf []byte) {
	token := fmt.Sprintf("%016x", rand.Uint64())
	s.loops.Store(token, r)
	defer s.loops.Delete(token)
	name, err := dnszone.PackName(token + ".weft-loop.")
	if f.apex != "\x00" {
		name, err = dnszone.PackName(token + ".weft-loop." + f.zone)
	}
	if err != nil {
		return // a zone so long that the question does not fit
	}
	one, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, _ = r.exchange(one, appendAsk(nil, name, typeHINFO, false, false), buf)
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
