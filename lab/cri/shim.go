// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/wire"
)

// shimStart bounds the time a shim takes to begin answering.
const shimStart = 20 * time.Second

// startShim starts the shim of a sandbox inside the pod's namespaces and waits until it answers. It belongs to no
// process group or session of the server's and lives on when the server dies.
func startShim(cfg *Config, sb *sandbox) error {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	logName := sb.dir + "/shim.log"
	logFile, err := os.OpenFile(logName, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		theirs.Close()
		return err
	}
	defer logFile.Close()
	args := []string{"pod", sb.dir}
	if sb.rec.SharedPID {
		args = append(args, "--pause")
	}
	cmd := exec.Command(cfg.Shim, args...)
	cmd.Env = []string{"GOMAXPROCS=2", "GOMEMLIMIT=16MiB"}
	cmd.Stderr = logFile
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	attr := &syscall.SysProcAttr{Setsid: true}
	if !sb.rec.HostIPC {
		attr.Cloneflags |= unix.CLONE_NEWIPC
	}
	if !sb.rec.HostNetwork {
		attr.Cloneflags |= unix.CLONE_NEWUTS
	}
	cmd.SysProcAttr = attr
	err = onOwnThread(func() error {
		if sb.rec.NetNS != "" {
			if err := joinNetNS(sb.rec.NetNS); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the pod's shim: %w", err)
	}
	// Its end is noticed on its socket; this only keeps it from staying a zombie.
	go cmd.Wait()
	_ = ready.SetReadDeadline(time.Now().Add(shimStart))
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		cmd.Process.Kill()
		said, _ := os.ReadFile(logName)
		return fmt.Errorf("the pod's shim did not come up: %w: %s", err, strings.TrimSpace(string(said)))
	}
	sb.rec.ShimPID = cmd.Process.Pid
	return inNamespacesOf(cmd.Process.Pid, func() error {
		if !sb.rec.HostNetwork && sb.rec.Hostname != "" {
			if err := unix.Sethostname([]byte(sb.rec.Hostname)); err != nil {
				return fmt.Errorf("host name %q: %w", sb.rec.Hostname, err)
			}
		}
		ipc := map[string]string{}
		for name, value := range sb.rec.Sysctls {
			if sysctlScope(name) == "ipc" {
				ipc[name] = value
			}
		}
		return writeSysctls(ipc)
	})
}

// inNamespacesOf runs f on a thread in the UTS and IPC namespaces of a process.
func inNamespacesOf(pid int, f func() error) error {
	return onOwnThread(func() error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("the pod's shim: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWUTS|unix.CLONE_NEWIPC); err != nil {
			return fmt.Errorf("namespaces of the pod's shim: %w", err)
		}
		return f()
	})
}

// errShimGone says that a sandbox's shim is dead, and with it the sandbox's containers.
var errShimGone = errors.New("the pod's shim is gone")

func dialShim(dir string) (wire.Conn, error) {
	c, err := wire.Dial(dir)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return c, errShimGone
	}
	return c, err
}

// ask sends one request to a sandbox's shim and returns its answer.
func (sb *sandbox) ask(ctx context.Context, req wire.Request) (wire.Reply, error) {
	c, err := dialShim(sb.dir)
	if err != nil {
		return wire.Reply{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var reply wire.Reply
	if err := c.Send(req); err == nil {
		_, err = c.Receive(&reply)
		if err != nil {
			if ctx.Err() != nil {
				return reply, ctx.Err()
			}
			return reply, errShimGone
		}
	} else {
		return reply, errShimGone
	}
	if reply.Error != "" {
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}

// follow keeps the server's view of a sandbox's containers up to date until the shim is gone.
func (s *server) follow(sb *sandbox, c wire.Conn, first wire.Reply) {
	for _, st := range first.Containers {
		s.observe(st)
	}
	for {
		var reply wire.Reply
		if _, err := c.Receive(&reply); err != nil {
			c.Close()
			if next, first, err := watchShim(sb.dir); err == nil {
				c = next // it had cut us off for being slow
				for _, st := range first.Containers {
					s.observe(st)
				}
				continue
			}
			s.shimGone(sb)
			return
		}
		if reply.Status != nil {
			s.observe(*reply.Status)
		}
	}
}

// watchShim connects to a shim and returns its first report, after which changes follow.
func watchShim(dir string) (wire.Conn, wire.Reply, error) {
	var first wire.Reply
	c, err := dialShim(dir)
	if err != nil {
		return c, first, err
	}
	if err = c.Send(wire.Request{Op: wire.OpWatch}); err == nil {
		_, err = c.Receive(&first)
	}
	if err != nil {
		c.Close()
		return c, first, err
	}
	return c, first, nil
}
