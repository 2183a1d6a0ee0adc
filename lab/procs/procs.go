// SPDX-License-Identifier: Apache-2.0

// Package procs starts, watches and restarts processes from within the init (PID 1) of a process namespace.
//
// An init must reap every orphan of its namespace, which rules out os/exec: the two would steal each other's exit
// statuses. So everything that an init of the lab starts, it starts here.
//
// It imports the standard library and golang.org/x/sys/unix only.
package procs

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Table is the processes that an init has started. The zero value is not usable; see NewTable.
type Table struct {
	mu      sync.Mutex // held from fork to registration, so that no exit is seen before its owner is known
	running map[int]*Process
}

// Process is a started process.
type Process struct {
	Pid    int
	done   chan struct{}
	status syscall.WaitStatus
}

// Spec says what to start.
type Spec struct {
	Path  string
	Args  []string // Args[0] included
	Env   []string
	Dir   string
	Files []*os.File // the process's descriptors from 0 on; nil entries are closed in it
	Attr  *syscall.SysProcAttr

	// Inside runs the fork on a thread that has entered namespaces first; nil forks where we are.
	Inside func(fork func() error) error
}

// NewTable starts reaping every child and orphan of this process. There is one Table in a process.
func NewTable() *Table {
	t := &Table{running: map[int]*Process{}}
	died := make(chan os.Signal, 1) // one pending notice is enough: each reaps all there is
	signal.Notify(died, syscall.SIGCHLD)
	go func() {
		for range died {
			t.reap()
		}
	}()
	return t
}

func (t *Table) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || pid <= 0:
			return
		}
		if p := t.running[pid]; p != nil {
			delete(t.running, pid)
			p.status = status
			close(p.done)
		}
	}
}

// Start starts a process. The caller keeps ownership of spec.Files.
func (t *Table) Start(spec Spec) (*Process, error) {
	files := make([]uintptr, len(spec.Files))
	for i, f := range spec.Files {
		files[i] = ^uintptr(0)
		if f != nil {
			files[i] = f.Fd()
		}
	}
	attr := &syscall.ProcAttr{Dir: spec.Dir, Env: spec.Env, Files: files, Sys: spec.Attr}
	var p *Process
	fork := func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		pid, err := syscall.ForkExec(spec.Path, spec.Args, attr)
		if err != nil {
			return fmt.Errorf("start %s: %w", spec.Path, err)
		}
		p = &Process{Pid: pid, done: make(chan struct{})}
		t.running[pid] = p
		return nil
	}
	inside := spec.Inside
	if inside == nil {
		inside = func(fork func() error) error { return fork() }
	}
	if err := inside(fork); err != nil {
		return nil, err
	}
	return p, nil
}

// Done is closed when the process has exited and been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode waits for the process to end and gives its exit status, as a shell does: 128+N for death by signal N.
func (p *Process) ExitCode() int {
	<-p.done
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// Signal sends a signal, unless the process has exited already.
func (t *Table) Signal(p *Process, sig syscall.Signal) error {
	t.mu.Lock() // a process that is still in the table has not been reaped, so its number is still its own
	defer t.mu.Unlock()
	if t.running[p.Pid] != p {
		return nil
	}
	return unix.Kill(p.Pid, sig)
}

// SignalGroup sends a signal to the process group that the process leads.
func (t *Table) SignalGroup(p *Process, sig syscall.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[p.Pid] != p {
		return nil
	}
	return unix.Kill(-p.Pid, sig)
}
