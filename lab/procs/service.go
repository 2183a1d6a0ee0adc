// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// Backoff between a component's deaths: the first restart is at once, since a component that was killed on purpose
// should be back before anybody notices.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
	backoffReset = 20 * time.Second // a run this long forgives the deaths before it
)

// Service is a process that is kept running until it is stopped, and can be started again.
type Service struct {
	Name  string
	Spec  func() Spec // asked at every start; Files are set to the log by the Service
	Log   *Log
	Grace time.Duration // between SIGTERM and SIGKILL when stopping; 0 is at once SIGKILL

	table *Table

	mu       sync.Mutex
	process  *Process
	cancel   context.CancelFunc
	ended    chan struct{}
	restarts int
	lastErr  string
}

// ServiceState is what a Service is doing.
type ServiceState struct {
	Name     string `json:"name"`
	Pid      int    `json:"pid,omitempty"` // 0: not running
	Wanted   bool   `json:"wanted"`        // false: stopped on purpose
	Restarts int    `json:"restarts"`
	Error    string `json:"error,omitempty"` // why it ended last
}

// Service adds a service to the table, stopped.
func (t *Table) Service(s *Service) *Service {
	s.table = t
	return s
}

// Start keeps the service running. It does nothing where the service is wanted already.
func (s *Service) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		return nil
	}
	if _, err := s.Log.Writer(); err != nil {
		return fmt.Errorf("log of %s: %w", s.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.ended = cancel, make(chan struct{})
	go s.keep(ctx, s.ended)
	return nil
}

// Stop ends the service and waits until it has ended.
func (s *Service) Stop() {
	s.mu.Lock()
	cancel, ended := s.cancel, s.ended
	s.cancel = nil
	s.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	<-ended
}

// Kill sends SIGKILL to the running process; the service restarts it.
func (s *Service) Kill() error {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%s is not running", s.Name)
	}
	return s.table.Signal(p, syscall.SIGKILL)
}

// State tells what the service is doing.
func (s *Service) State() ServiceState {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := ServiceState{Name: s.Name, Wanted: s.cancel != nil, Restarts: s.restarts, Error: s.lastErr}
	if s.process != nil {
		state.Pid = s.process.Pid
	}
	return state
}

func (s *Service) keep(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	wait := time.Duration(0)
	for {
		started := time.Now()
		err := s.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.restarts++
		s.lastErr = err.Error()
		s.mu.Unlock()
		if time.Since(started) > backoffReset {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(max(2*wait, backoffFirst), backoffMax)
	}
}

// runOnce runs the process until it ends or the context does.
func (s *Service) runOnce(ctx context.Context) error {
	spec := s.Spec()
	out, err := s.Log.Writer()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	spec.Files = []*os.File{null, out, out}
	s.mu.Lock() // whoever sees what the process says finds that it runs
	p, err := s.table.Start(spec)
	s.process = p
	s.mu.Unlock()
	if err != nil {
		fmt.Fprintln(out, "weft-lab:", err)
		return err
	}
	defer func() {
		s.mu.Lock()
		s.process = nil
		s.mu.Unlock()
	}()
	select {
	case <-p.Done():
		return fmt.Errorf("exit status %d", p.ExitCode())
	case <-ctx.Done():
	}
	if s.Grace > 0 {
		if err := s.table.Signal(p, syscall.SIGTERM); err == nil {
			select {
			case <-p.Done():
				return ctx.Err()
			case <-time.After(s.Grace):
			}
		}
	}
	if err := s.table.Signal(p, syscall.SIGKILL); err != nil {
		return err
	}
	<-p.Done()
	return ctx.Err()
}
