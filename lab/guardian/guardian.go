// SPDX-License-Identifier: Apache-2.0

// Package guardian starts a lab and stands between it and the host: it is the one process of a lab that is in the
// host's namespaces. It holds the lab's name (the control socket), checks who connects, and hands connections on.
//
// The supervisor that it starts is PID 1 of a process namespace and owns a mount namespace; the kernel kills it when
// the guardian dies, and with it everything in those namespaces. So however a lab ends, nothing of it is left.
//
// It imports package control, supervisor's Config and Event, and golang.org/x/sys/unix.
package guardian

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/supervisor"
	"golang.org/x/sys/unix"
)

// Run starts a lab and guards it until ctx ends, `weft lab down` is asked for, or the supervisor dies. Every event of
// the start-up goes to report; the lab is usable from its Ready event on. The error is nil only where the end was
// asked for.
func Run(ctx context.Context, cfg supervisor.Config, report func(supervisor.Event)) error {
	// PDEATHSIG is tied to the thread that forked, so that thread must live as long as we do.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	listener, err := control.Listen(cfg.UID, cfg.Name)
	if err != nil {
		return err
	}
	defer listener.Close()
	link, child, err := control.Pair()
	if err != nil {
		return err
	}
	defer link.Close()
	last := &lastWords{}
	cmd, err := startSupervisor(cfg, child, last)
	child.Close()
	if err != nil {
		return err
	}

	ended := make(chan error, 1)
	go func() { ended <- readEvents(link, report) }()
	go passConnections(listener, link, cfg.UID)

	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
	}
	// The kernel ends every process of the namespace before wait returns.
	if killErr := cmd.Process.Kill(); killErr != nil && !errors.Is(killErr, os.ErrProcessDone) {
		return killErr
	}
	cmd.Wait() // its status is that of our own kill, or told by the event that ended it
	if errors.Is(err, errDied) && last.text() != "" {
		return fmt.Errorf("%w; it said:\n%s", err, last.text())
	}
	return err
}

var errDied = errors.New("the lab's supervisor died")

// lastWords keeps the end of what the supervisor writes to stderr: nothing, unless it crashes.
type lastWords struct {
	mu  sync.Mutex
	end []byte
}

const lastWordsMax = 16 << 10

func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = append(l.end, b...)
	if over := len(l.end) - lastWordsMax; over > 0 {
		l.end = l.end[over:]
	}
	return len(b), nil
}

func (l *lastWords) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.end)
}

// readEvents passes events on until the lab ends, and gives the reason: nil where it was asked to.
func readEvents(link io.Reader, report func(supervisor.Event)) error {
	dec := json.NewDecoder(link)
	for {
		var e supervisor.Event
		if err := dec.Decode(&e); err != nil {
			return errDied
		}
		if e.Failed != "" {
			return errors.New(e.Failed)
		}
		if e.Down {
			return nil
		}
		report(e)
	}
}

func passConnections(l *net.UnixListener, link *net.UnixConn, owner int) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		if err := control.Authorize(conn, owner); err != nil {
			json.NewEncoder(conn).Encode(control.Message{Error: err.Error()})
		} else {
			control.SendConn(link, conn) // fails when the lab is ending, and then the connection just ends too
		}
		conn.Close()
	}
}

// startSupervisor starts the supervisor in its namespaces. Descriptor 3 is its link to us, 4 its configuration.
func startSupervisor(cfg supervisor.Config, link *os.File, stderr io.Writer) (*exec.Cmd, error) {
	mapping, err := userMapping(cfg.UID, cfg.GID)
	if err != nil {
		return nil, err
	}
	cfg.Rootless = mapping != nil
	boot, err := supervisor.BootFile(cfg)
	if err != nil {
		return nil, err
	}
	defer boot.Close()

	cmd := exec.Command("/proc/self/exe", "supervisor", "--name", cfg.Name)
	cmd.Args[0] = "weft-lab"
	cmd.ExtraFiles = []*os.File{link, boot}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		Setsid:     true, // a Ctrl-C at the terminal is ours to act on
		Pdeathsig:  syscall.SIGKILL,
	}
	if mapping != nil {
		return cmd, mapping.start(cmd)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the supervisor in new namespaces: %w (root needs CAP_SYS_ADMIN for it: in a container, "+
			"start that with --privileged, or run the lab as an ordinary user)", err)
	}
	return cmd, nil
}
