// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// lost is what is known of connections that may have lost where they go: those that the changes touch, those to
// addresses that no pod has any more, or, if unsure, any at all.
type lost struct {
	touched map[service.Frontend]service.Change
	gone    map[service.Frontend]bool
	left    map[netip.Addr]bool
	unsure  bool
}

func (l *lost) any() bool { return l.unsure || len(l.touched) > 0 || len(l.left) > 0 }

// applied notes changes that are in force.
func (l *lost) applied(changes []service.Change, pod func(netip.Addr) bool) {
	for _, c := range changes {
		was, ok := l.touched[c.Frontend]
		switch {
		case l.unsure && c.Old == nil: // that is seen without
		case ok: // not looked at yet: what counts is how it was then and how it is now
			was.New = c.New
			l.touched[c.Frontend] = was
		case c.MayLose(pod):
			if l.touched == nil {
				l.touched = make(map[service.Frontend]service.Change)
			}
			l.touched[c.Frontend] = c
		}
	}
}

// synced notes that all was compared, and which frontends the kernel had and has no longer.
func (l *lost) synced(gone []service.Frontend) {
	l.unsure = true
	for _, fe := range gone {
		if l.gone == nil {
			l.gone = make(map[service.Frontend]bool)
		}
		l.gone[fe] = true
	}
}

// restore puts back what could not be dealt with, beside what has come since.
func (l *lost) restore(old lost) {
	since := *l
	*l = old
	l.unsure = l.unsure || since.unsure
	for fe, c := range since.touched {
		if was, ok := l.touched[fe]; ok {
			c.Old = was.Old
		}
		if l.touched == nil {
			l.touched = make(map[service.Frontend]service.Change)
		}
		l.touched[fe] = c
	}
	l.gone = union(l.gone, since.gone)
	l.left = union(l.left, since.left)
}

func union[K comparable](a, b map[K]bool) map[K]bool {
	if a == nil {
		return b
	}
	maps.Copy(a, b)
	return a
}

// sweepShare and sweepRest bound what looking for lost connections costs: so many times the processor time that it took,
// it rests, but no longer than that, for until then clients of what is gone may wait. A change after a rest is acted on at
// once, and a repair even within one: then any connection may be lost. On a busy machine the clock would not do as a
// measure: it counts what others take.
const (
	sweepShare = 9
	sweepRest  = 2 * time.Second
)

// sweepFlows ends connections that have lost where they go, whenever something changed that can do that, until ctx is
// done. It works beside Update, for reading the connections of a busy node takes longer than programming a change.
func (s *Services) sweepFlows(ctx context.Context) {
	runtime.LockOSThread() // by which its processor time is known
	defer runtime.UnlockOSThread()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.sweep:
		case <-s.urgent:
		}
		before := threadTime()
		if err := s.endFlows(); err != nil {
			s.log.Error("can't end all connections that lost where they go; trying again", "err", err)
			poke(s.sweep)
		}
		rest := time.NewTimer(min(sweepShare*(threadTime()-before), sweepRest))
		select {
		case <-ctx.Done():
		case <-rest.C:
		case <-s.urgent:
			poke(s.urgent)
		}
		rest.Stop()
	}
}

// threadTime is the processor time that the calling thread has used, in the kernel too.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0 // it never fails with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// poke wakes who waits for the channel, of capacity 1, now or later.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// flowTable is conntrack's.
type flowTable interface {
	Flows(model.Family) ([]conntrack.Flow, error)
	Delete([]conntrack.Flow) (int, error)
	Close() error
}

// endFlows looks once at the connections that what has changed so far can have touched. After an error all of it is to
// be done again.
func (s *Services) endFlows() error {
	s.mu.Lock()
	now := s.lost
	now.left = union(now.left, s.table.Left())
	s.lost = lost{}
	loses := s.losing(&now)
	s.mu.Unlock()

	families := now.families()
	var errs []error
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if !families[f] {
			continue
		}
		start := time.Now()
		flows, err := s.flows.Flows(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n, err := s.flows.Delete(slices.DeleteFunc(flows, func(ct conntrack.Flow) bool {
			return !loses(service.Flow{Protocol: ct.Protocol, Dest: ct.Dest, Peer: ct.Peer, Answered: ct.Answered})
		}))
		errs = append(errs, err)
		s.metrics.ended(f, start, n)
	}
	err := errors.Join(errs...)
	if err != nil {
		s.mu.Lock()
		s.lost.restore(now)
		s.mu.Unlock()
	}
	return err
}

// families are those whose connections are to be read.
func (l *lost) families() map[model.Family]bool {
	if l.unsure {
		return map[model.Family]bool{model.IPv4: true, model.IPv6: true}
	}
	out := make(map[model.Family]bool)
	for fe := range l.touched {
		out[fe.Family()] = true
	}
	for a := range l.left {
		out[model.FamilyOf(a)] = true
	}
	return out
}

// losing is the question whether a connection has lost where it goes. It locks the table for each that it must look up
// there. Callers hold mu.
func (s *Services) losing(l *lost) func(service.Flow) bool {
	node, ranges := s.table.Node().Addresses, s.scope.ClusterIPs
	inRange := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	pod := func(a netip.Addr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.table.HasPod(a)
	}
	byPort := make(map[portKey][]*service.Change, len(l.touched))
	for fe, c := range l.touched {
		k := portKey{fe.Protocol, fe.Port}
		byPort[k] = append(byPort[k], &c)
	}
	return func(f service.Flow) bool {
		if slices.ContainsFunc(byPort[portKey{f.Protocol, f.Dest.Port()}], func(c *service.Change) bool { return c.Loses(f, node, pod) }) {
			return true
		}
		if !l.unsure && !l.left[f.Peer.Addr()] {
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return l.unsure && s.table.Loses(f, l.gone) || s.table.Leaves(f, l.left, inRange)
	}
}

type portKey struct {
	protocol model.Protocol
	port     uint16
}
