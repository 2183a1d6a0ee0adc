// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/model"
)

// Source hands out Deltas: kube.Watcher in an agent.
type Source interface {
	Next(ctx context.Context) (*model.Delta, error)
}

// Cleaner is a Part that can remove every trace of itself from the node.
type Cleaner interface {
	Cleanup(ctx context.Context) error
}

// retry bounds the backoff after a failed Update.
const (
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
)

// Agent feeds each Part from one Source.
type Agent struct {
	log   *slog.Logger
	lanes []*lane

	settled func() // may be nil
	once    sync.Once
}

// NewAgent assembles the parts; reg takes the agent's metrics.
func NewAgent(log *slog.Logger, reg prometheus.Registerer, parts ...Part) (*Agent, error) {
	m := newMetrics()
	if err := m.register(reg); err != nil {
		return nil, err
	}
	a := &Agent{log: log}
	for _, p := range parts {
		a.lanes = append(a.lanes, &lane{part: p, log: log.With("part", p.Name()), metrics: m, wake: make(chan struct{}, 1)})
	}
	return a, nil
}

// WhenSettled has f called once, as soon as every Part has brought the kernel to the API's first full picture. It is
// for before Run.
func (a *Agent) WhenSettled(f func()) { a.settled = f }

func (a *Agent) updated() {
	if a.settled == nil {
		return
	}
	for _, l := range a.lanes {
		if !l.hasSynced() {
			return
		}
	}
	a.once.Do(a.settled)
}

// Run works until ctx is done (then the error is nil: what is in the kernel stays) or a Part gives up.
func (a *Agent) Run(ctx context.Context, src Source) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range a.lanes {
		g.Go(func() error {
			if err := l.part.Run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", l.part.Name(), err)
			}
			return nil
		})
		g.Go(func() error { l.run(ctx, a.updated); return nil })
	}
	g.Go(func() error {
		for {
			d, err := src.Next(ctx)
			if err != nil {
				return nil // ctx is done
			}
			for _, l := range a.lanes {
				l.add(d)
			}
		}
	})
	return g.Wait()
}

// Ready is nil once every Part has brought the kernel to the API's first full picture and has no failure pending;
// else it says which part lacks what.
func (a *Agent) Ready() error {
	var errs []error
	for _, l := range a.lanes {
		if err := l.ready(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.part.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// Live is nil while no Part has been busy with one Update for longer than the limit.
func (a *Agent) Live(limit time.Duration) error {
	for _, l := range a.lanes {
		if busy := l.busy(); busy > limit {
			return fmt.Errorf("%s: stuck in an update for %s", l.part.Name(), busy.Round(time.Second))
		}
	}
	return nil
}

// Cleanup has every Part remove its traces, the last first.
func (a *Agent) Cleanup(ctx context.Context) error {
	var errs []error
	for i := len(a.lanes) - 1; i >= 0; i-- {
		if c, ok := a.lanes[i].part.(Cleaner); ok {
			if err := c.Cleanup(ctx); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", a.lanes[i].part.Name(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// lane is a Part with its own queue, so that a slow Part holds up no other. What waits in the queue is merged.
type lane struct {
	part    Part
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // capacity 1

	mu      sync.Mutex
	pending *model.Delta
	synced  bool
	failure error
	started time.Time // of the Update under way; zero when idle
}

func (l *lane) add(d *model.Delta) {
	l.mu.Lock()
	if l.pending == nil {
		// The Delta is shared between the lanes: merge into a copy, never into it.
		l.pending = &model.Delta{}
	}
	l.pending.Merge(d)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run calls updated after each update that did not fail.
func (l *lane) run(ctx context.Context, updated func()) {
	backoff := retryMin
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-retry:
		}
		d := l.begin()
		start := time.Now()
		err := l.part.Update(ctx, d)
		if ctx.Err() != nil {
			return
		}
		l.metrics.observe(l.part.Name(), time.Since(start), err)
		l.end(d, err)
		retry = nil
		if err == nil {
			backoff = retryMin
			updated()
			continue
		}
		l.log.Error("can't bring the node up to date; trying again", "err", err, "in", backoff)
		retry = time.After(backoff)
		backoff = min(2*backoff, retryMax)
	}
}

func (l *lane) begin() *model.Delta {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.pending
	l.pending = nil
	if d == nil {
		d = &model.Delta{Complete: true, Since: time.Now()} // a second try of what failed
	}
	l.started = time.Now()
	return d
}

func (l *lane) end(d *model.Delta, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.started = time.Time{}
	l.failure = err
	l.synced = l.synced || (err == nil && d.Complete)
}

func (l *lane) hasSynced() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

func (l *lane) ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return l.failure
	}
	if !l.synced {
		return errors.New("waiting for the first full picture from the API server")
	}
	return nil
}

func (l *lane) busy() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started.IsZero() {
		return 0
	}
	return time.Since(l.started)
}
