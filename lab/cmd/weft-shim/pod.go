// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/wire"
)

// readyFD is where the pod's shim writes one byte once its socket answers.
const readyFD = 3

// pod is the shim's state: the containers it was asked to start.
type pod struct {
	spawn    *spawner
	pausePID int

	mu         sync.Mutex
	containers map[string]*container
	watchers   map[chan wire.Status]struct{}
	leaving    bool
}

// runPod serves the sandbox whose directory is dir, until it is asked to leave.
func runPod(dir string, withPause bool) error {
	// A terminal's or the server's signals are none of ours: the pod ends when the server says so.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	unix.CloseOnExec(readyFD)
	s, err := newSpawner()
	if err != nil {
		return err
	}
	p := &pod{spawn: s, containers: map[string]*container{}, watchers: map[chan wire.Status]struct{}{}}
	l, err := wire.Listen(dir)
	if err != nil {
		return err
	}
	go func() {
		if withPause {
			if err := p.startPause(); err != nil {
				fatal(err)
			}
		}
		if _, err := unix.Write(readyFD, []byte{1}); err != nil {
			fatal(fmt.Errorf("tell the server that the pod is ready: %w", err))
		}
		unix.Close(readyFD)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				fatal(err)
			}
			go p.serve(wire.Conn{U: c})
		}
	}()
	s.run()
	return nil
}

func (p *pod) startPause() error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	c, err := p.spawn.start(launch{args: []string{"pause"}, stdio: [3]*os.File{null, null, null}, newPID: true},
		// Without it no process of the pod can live on: the kernel has killed them all.
		func(unix.WaitStatus) { fatal(errors.New("the pod's pause process is gone")) })
	if err != nil {
		return fmt.Errorf("start the pod's pause process: %w", err)
	}
	p.pausePID = c.pid
	return nil
}

// serve answers the requests of one connection.
func (p *pod) serve(c wire.Conn) {
	defer c.Close()
	for {
		var req wire.Request
		files, err := c.Receive(&req)
		if err != nil {
			return
		}
		switch req.Op {
		case wire.OpWatch:
			p.watch(c)
			return
		case wire.OpExec:
			p.exec(c, req, files)
			return
		case wire.OpAttach:
			p.attach(c, req, files)
			return
		}
		for _, f := range files {
			f.Close()
		}
		reply := p.handle(req)
		if err := c.Send(reply); err != nil {
			return
		}
		if req.Op == wire.OpExit {
			os.Exit(0)
		}
	}
}

// handle answers a request that has one reply and no files.
func (p *pod) handle(req wire.Request) wire.Reply {
	switch req.Op {
	case wire.OpList:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.list()
	case wire.OpStart:
		return p.start(req)
	case wire.OpExit:
		p.killAll()
		return wire.Reply{}
	}
	ctr, err := p.get(req.Container)
	if err != nil {
		return wire.Reply{Error: err.Error()}
	}
	switch req.Op {
	case wire.OpSignal:
		err = ctr.signal(unix.Signal(req.Signal), req.All)
	case wire.OpReopen:
		err = ctr.log.reopen()
	case wire.OpResize:
		err = ctr.resize(req.Cols, req.Rows)
	case wire.OpRemove:
		err = p.remove(ctr)
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	if err != nil {
		return wire.Reply{Error: err.Error()}
	}
	return wire.Reply{}
}

func (p *pod) get(id string) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctr := p.containers[id]
	if ctr == nil {
		return nil, fmt.Errorf("container %s has not been started", id)
	}
	return ctr, nil
}

// list is called with mu held.
func (p *pod) list() wire.Reply {
	r := wire.Reply{Containers: map[string]wire.Status{}, PausePID: p.pausePID}
	for id, ctr := range p.containers {
		r.Containers[id] = ctr.snapshot()
	}
	return r
}

// watch tells all states now and every change from then on, until the peer leaves.
func (p *pod) watch(c wire.Conn) {
	changes := make(chan wire.Status, 64)
	p.mu.Lock()
	p.watchers[changes] = struct{}{}
	first := p.list()
	p.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		io.Copy(io.Discard, c.U)
		close(gone)
	}()
	defer func() {
		p.mu.Lock()
		delete(p.watchers, changes)
		p.mu.Unlock()
	}()
	if c.Send(first) != nil {
		return
	}
	for {
		select {
		case <-gone:
			return
		case st, ok := <-changes:
			if !ok || c.Send(wire.Reply{Status: &st}) != nil {
				return
			}
		}
	}
}

// notify tells the watchers; one that is too slow is cut off and will begin anew.
func (p *pod) notify(st wire.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ch := range p.watchers {
		select {
		case ch <- st:
		default:
			close(ch)
			delete(p.watchers, ch)
		}
	}
}

func (p *pod) start(req wire.Request) wire.Reply {
	var spec wire.Container
	if err := wire.ReadFile(filepath.Join(req.Dir, wire.SpecName), &spec); err != nil {
		return wire.Reply{Error: err.Error()}
	}
	p.mu.Lock()
	switch {
	case p.leaving:
		p.mu.Unlock()
		return wire.Reply{Error: "the pod is being stopped"}
	case p.containers[spec.ID] != nil:
		p.mu.Unlock()
		return wire.Reply{Error: fmt.Sprintf("container %s has been started already", spec.ID)}
	}
	ctr := newContainer(p, req.Dir, &spec)
	p.containers[spec.ID] = ctr
	p.mu.Unlock()

	if err := ctr.start(); err != nil {
		ctr.failed(err)
	}
	st := ctr.snapshot()
	return wire.Reply{Status: &st, Error: st.StartError}
}

func (p *pod) remove(ctr *container) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if st := ctr.snapshot(); st.State != wire.Exited {
		return fmt.Errorf("container %s is still running", ctr.spec.ID)
	}
	delete(p.containers, ctr.spec.ID)
	return nil
}

// killAll kills every container and waits, for a bounded time, until their ends are written down.
func (p *pod) killAll() {
	p.mu.Lock()
	p.leaving = true
	all := make([]*container, 0, len(p.containers))
	for _, ctr := range p.containers {
		all = append(all, ctr)
	}
	p.mu.Unlock()
	limit := time.After(10 * time.Second)
	for _, ctr := range all {
		_ = ctr.signal(unix.SIGKILL, true) // an error means that it has ended
	}
	for _, ctr := range all {
		select {
		case <-ctr.done:
		case <-limit:
			return
		}
	}
}

// exec runs a process in a container for the client on c: the client leaves, the process is killed.
func (p *pod) exec(c wire.Conn, req wire.Request, files []*os.File) {
	fail := func(err error) {
		for _, f := range files {
			f.Close()
		}
		_ = c.Send(wire.Reply{Error: err.Error()})
	}
	ctr, err := p.get(req.Container)
	if err != nil {
		fail(err)
		return
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		fail(err)
		return
	}
	l := launch{args: []string{"exec"}, stdio: [3]*os.File{null, null, null}}
	if !req.Process.TTY {
		copy(l.stdio[:], files)
	}
	session := execSession{Process: *req.Process, ContainerPID: ctr.pid()}
	if session.ContainerPID == 0 {
		null.Close()
		fail(fmt.Errorf("container %s is not running", req.Container))
		return
	}
	if ctr.spec.PID != wire.PIDNode {
		l.joinPIDOf = session.ContainerPID
	}
	l.stdin = session
	ended := make(chan unix.WaitStatus, 1)
	child, err := p.spawn.start(l, func(ws unix.WaitStatus) { ended <- ws })
	null.Close()
	if err != nil {
		fail(err)
		return
	}
	for _, f := range files {
		f.Close()
	}
	started := wire.Reply{Status: &wire.Status{State: wire.Running, PID: child.pid}}
	if child.master != nil {
		err = c.Send(started, child.master)
		defer child.master.Close()
	} else {
		err = c.Send(started)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for err == nil {
			var more wire.Request
			if _, err := c.Receive(&more); err != nil {
				return
			}
			switch {
			case more.Op == wire.OpResize && child.master != nil:
				_ = setSize(child.master, more.Cols, more.Rows)
			case more.Op == wire.OpSignal:
				_ = p.spawn.kill(child.pid, unix.Signal(more.Signal))
			}
		}
	}()
	select {
	case <-gone:
		_ = p.spawn.kill(child.pid, unix.SIGKILL)
		<-ended
	case ws := <-ended:
		_ = c.Send(wire.Reply{Status: &wire.Status{State: wire.Exited, PID: child.pid, ExitCode: exitCode(ws)}})
	}
}

// attach joins the client's files to a container's stdio until the container ends or the client leaves.
func (p *pod) attach(c wire.Conn, req wire.Request, files []*os.File) {
	ctr, err := p.get(req.Container)
	if err == nil && len(files) != len(req.Streams) {
		err = fmt.Errorf("attach to %s: %d streams, %d files", req.Container, len(req.Streams), len(files))
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		_ = c.Send(wire.Reply{Error: err.Error()})
		return
	}
	for i := range files {
		if files[i], err = wire.Stream(files[i]); err != nil {
			_ = c.Send(wire.Reply{Error: err.Error()})
			return
		}
	}
	detach := ctr.attach(req.Streams, files)
	defer detach()
	if c.Send(wire.Reply{}) != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		io.Copy(io.Discard, c.U)
		close(gone)
	}()
	select {
	case <-gone:
	case <-ctr.done:
		st := ctr.snapshot()
		_ = c.Send(wire.Reply{Status: &st})
	}
}

// exitCode is a shell's view of a wait status: 128 plus the signal for a killed process.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func setSize(master *os.File, cols, rows uint16) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	}); err != nil {
		return err
	}
	return ioctlErr
}
