// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/wire"
)

// spawner starts and reaps the shim's children. Children are started by one goroutine that owns a thread for the
// life of the shim: the parent death signal follows the parent's thread, and joining a PID namespace is a thread's
// affair too.
type spawner struct {
	jobs chan func()

	mu    sync.Mutex                    // held from a fork until the child is in waits
	waits map[int]func(unix.WaitStatus) // by PID
}

func newSpawner() (*spawner, error) {
	// Orphans of containers without a PID namespace of their own come to us instead of the node's init.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a subreaper: %w", err)
	}
	s := &spawner{jobs: make(chan func()), waits: map[int]func(unix.WaitStatus){}}
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	go func() {
		for range chld {
			s.reap()
		}
	}()
	return s, nil
}

// run is the goroutine that owns the spawning thread; the main one.
func (s *spawner) run() {
	for job := range s.jobs {
		job()
	}
}

func (s *spawner) reap() {
	for {
		var ws unix.WaitStatus
		// In one step with forgetting the PID, which the kernel may give to another process from then on.
		s.mu.Lock()
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		ended := s.waits[pid]
		delete(s.waits, pid)
		s.mu.Unlock()
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if ended != nil {
			ended(ws)
		}
	}
}

// kill sends a signal to a child, or fails with ESRCH when it has been reaped.
func (s *spawner) kill(pid int, sig unix.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ours := s.waits[pid]; !ours {
		return unix.ESRCH
	}
	return unix.Kill(pid, sig)
}

// child is a started process of a container, by now executing the container's own program.
type child struct {
	pid    int
	master *os.File // of its terminal, if it has one
}

// launch describes a child.
type launch struct {
	args      []string
	stdio     [3]*os.File
	newMount  bool
	newPID    bool
	joinPIDOf int // a PID whose namespace to join, 0 for none
	stdin     any // sent to the child over its control socket, if not nil
}

// start forks the child, lets it set itself up and returns when it has executed its program. ended is called once
// the child has exited, if start succeeded. A failure of the child to set up is a *setupError.
func (s *spawner) start(l launch, ended func(unix.WaitStatus)) (child, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return child{}, fmt.Errorf("control socket: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "control")
	theirs := os.NewFile(uintptr(fds[1]), "control")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return child{}, err
	}
	defer conn.Close()
	ctl := wire.Conn{U: conn.(*net.UnixConn)}

	var pid int
	up := make(chan struct{}) // closed when the child's set-up has been judged, so that ended comes after it
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		pid, err = s.fork(l, theirs, func(ws unix.WaitStatus) {
			go func() {
				<-up
				if ended != nil {
					ended(ws)
				}
			}()
		})
	}
	<-done
	theirs.Close()
	if err != nil {
		return child{}, err
	}
	defer close(up)
	c := child{pid: pid}
	if l.stdin != nil {
		if err := ctl.Send(l.stdin); err != nil {
			_ = s.kill(pid, unix.SIGKILL)
			ended = nil
			return child{}, fmt.Errorf("set up process: %w", err)
		}
	}
	for {
		var report setupReport
		files, err := ctl.Receive(&report)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
			return c, nil // closed by execve, or by a death that ended will tell of
		case err != nil:
			_ = s.kill(pid, unix.SIGKILL)
			ended = nil
			return child{}, fmt.Errorf("set up process: %w", err)
		case report.Error != "":
			ended = nil // the child exits by itself; nobody waits for it
			if c.master != nil {
				c.master.Close()
			}
			return child{}, &setupError{report.Error}
		case len(files) == 1:
			if c.master, err = wire.Stream(files[0]); err != nil {
				_ = s.kill(pid, unix.SIGKILL)
				ended = nil
				return child{}, err
			}
		}
	}
}

// setupReport is what a child says on its control socket before it executes: an error, or nothing together with
// the master of its terminal.
type setupReport struct{ Error string }

// setupError is the reason why a process could not be set up, in the words of the child.
type setupError struct{ reason string }

func (e *setupError) Error() string { return e.reason }

// fork runs on the spawning thread.
func (s *spawner) fork(l launch, control *os.File, ended func(unix.WaitStatus)) (int, error) {
	if l.joinPIDOf != 0 {
		leave, err := joinPIDNamespace(l.joinPIDOf)
		if err != nil {
			return 0, err
		}
		defer leave()
	}
	var flags uintptr
	if l.newMount {
		flags |= unix.CLONE_NEWNS
	}
	if l.newPID {
		flags |= unix.CLONE_NEWPID
	}
	files := make([]uintptr, 0, 4)
	for _, f := range l.stdio {
		files = append(files, f.Fd())
	}
	files = append(files, control.Fd())
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{"weft-shim"}, l.args...), &syscall.ProcAttr{
		Env:   []string{"GODEBUG=", "GOMAXPROCS=1"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Cloneflags: flags, Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("fork: %w", err)
	}
	s.waits[pid] = ended
	return pid, nil
}

// joinPIDNamespace makes the children of this thread members of the PID namespace of process pid, until leave.
func joinPIDNamespace(pid int) (leave func(), err error) {
	own, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	target, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	if err != nil {
		own.Close()
		return nil, fmt.Errorf("process namespace of %d: %w", pid, err)
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWPID); err != nil {
		own.Close()
		return nil, fmt.Errorf("join process namespace of %d: %w", pid, err)
	}
	return func() {
		defer own.Close()
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWPID); err != nil {
			fatal(fmt.Errorf("return to the shim's process namespace: %w", err))
		}
	}, nil
}

// pause is PID 1 of a process namespace shared by a pod's containers: it reaps what they leave behind.
func pause() {
	name := []byte("pause\x00") // instead of "exe", the file that it was executed as
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	dieWithParent()
	// The control socket's other end must see EOF, as after an execve.
	unix.Close(controlFD)
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	for range chld {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}

const controlFD = 3 // a child's end of its control socket

// report sends the child's set-up error to the shim and exits.
func reportAndExit(err error) {
	body, _ := json.Marshal(setupReport{Error: err.Error()})
	head := make([]byte, 8)
	head[0], head[1], head[2] = byte(len(body)), byte(len(body)>>8), byte(len(body)>>16)
	unix.Write(controlFD, append(head, body...))
	os.Exit(128)
}
