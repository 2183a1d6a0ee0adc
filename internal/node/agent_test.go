// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/model"
)

// script is a Part that notes what it is given and fails while told to.
type script struct {
	name  string
	block chan struct{} // when set, Update waits for it

	mu   sync.Mutex
	fail error
	got  []*model.Delta
	cond *sync.Cond
}

func newScript(name string) *script {
	s := &script{name: name}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *script) Name() string                  { return s.name }
func (s *script) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (s *script) Update(_ context.Context, d *model.Delta) error {
	if s.block != nil {
		<-s.block
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, d)
	s.cond.Broadcast()
	return s.fail
}

// wait blocks until ok holds of what was received.
func (s *script) wait(ok func([]*model.Delta) bool) []*model.Delta {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok(s.got) {
		s.cond.Wait()
	}
	return s.got
}

func (s *script) setFail(err error) {
	s.mu.Lock()
	s.fail = err
	s.mu.Unlock()
}

type source chan *model.Delta

func (s source) Next(ctx context.Context) (*model.Delta, error) {
	select {
	case d := <-s:
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func start(t *testing.T, parts ...Part) (*Agent, source) {
	t.Helper()
	a, err := NewAgent(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), parts...)
	if err != nil {
		t.Fatal(err)
	}
	src := make(source)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, src) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a, src
}

func serviceDelta(name string) *model.Delta {
	n := model.Name{Namespace: "ns", Name: name}
	return &model.Delta{Complete: true, Services: map[model.Name]*model.Service{n: {Meta: model.Meta{Name: n}}}}
}

// A failed Update is tried again by itself, and readiness follows.
func TestFailureIsTriedAgain(t *testing.T) {
	p := newScript("services")
	p.setFail(errors.New("no buffer space"))
	a, src := start(t, p)
	if err := a.Ready(); err == nil || !strings.Contains(err.Error(), "services: waiting for the first") {
		t.Errorf("before the first Delta: Ready() = %v", err)
	}
	src <- serviceDelta("a")
	p.wait(func(got []*model.Delta) bool { return len(got) >= 2 })
	if err := a.Ready(); err == nil || !strings.Contains(err.Error(), "no buffer space") {
		t.Errorf("while failing: Ready() = %v", err)
	}
	p.setFail(nil)
	got := p.wait(func(got []*model.Delta) bool { return len(got) >= 3 })
	if len(got[0].Services) != 1 || len(got[1].Services) != 0 {
		t.Errorf("want the change once, then empty Deltas; got %d and %d services", len(got[0].Services), len(got[1].Services))
	}
	deadline := time.Now().Add(endurance)
	for a.Ready() != nil {
		if time.Now().After(deadline) {
			t.Fatalf("not ready after success: %v", a.Ready())
		}
		time.Sleep(time.Millisecond)
	}
}

// A Part that is stuck holds up no other; what waited for it arrives as one Delta.
func TestSlowPartHoldsUpNoOther(t *testing.T) {
	slow, quick := newScript("policy"), newScript("services")
	slow.block = make(chan struct{})
	a, src := start(t, slow, quick)
	for _, n := range []string{"a", "b", "c"} {
		src <- serviceDelta(n)
	}
	quick.wait(func(got []*model.Delta) bool {
		total := 0
		for _, d := range got {
			total += len(d.Services)
		}
		return total == 3
	})
	if err := a.Live(0); err == nil || !strings.Contains(err.Error(), "policy: stuck") {
		t.Errorf("Live(0) = %v, want the stuck part named", err)
	}
	if err := a.Live(time.Hour); err != nil {
		t.Errorf("Live(1h) = %v", err)
	}
	close(slow.block)
	got := slow.wait(func(got []*model.Delta) bool {
		total := 0
		for _, d := range got {
			total += len(d.Services)
		}
		return total == 3
	})
	if len(got) > 2 {
		t.Errorf("three waiting Deltas came as %d, want them merged", len(got))
	}
}

// What waits for the agent to settle is called once, and not before the last part has its first picture.
func TestWhenSettled(t *testing.T) {
	slow, quick := newScript("policy"), newScript("services")
	slow.block = make(chan struct{})
	a, err := NewAgent(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), slow, quick)
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 10)
	a.WhenSettled(func() { calls <- struct{}{} })
	src := make(source)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, src) }()
	src <- serviceDelta("a")
	quick.wait(func(got []*model.Delta) bool { return len(got) >= 1 })
	select {
	case <-calls:
		t.Error("settled while a part was busy with its first picture")
	default:
	}
	close(slow.block)
	<-calls
	src <- serviceDelta("b")
	slow.wait(func(got []*model.Delta) bool { return len(got) >= 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(calls) > 0 {
		t.Error("settled more than once")
	}
}
