// SPDX-License-Identifier: Apache-2.0

// Package namespace makes, enters and leaves Linux namespaces, so that the rest of the lab never moves a thread
// itself. A namespace is held by an open file: it lives as long as its holder, and leaves no name in any file
// system.
//
// It imports the standard library and golang.org/x/sys/unix only.
package namespace

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Net is a network namespace, held open. The holder's death, or Close, lets the kernel destroy it.
type Net struct{ file *os.File }

// NewNet makes an empty network namespace and returns a hold on it.
func NewNet() (*Net, error) {
	var held *os.File
	err := onDoomedThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		held, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Net{file: held}, nil
}

// NetOf holds the network namespace of a process.
func NetOf(pid int) (*Net, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	return &Net{file: f}, nil
}

// Fd is the open file's descriptor, valid until Close.
func (n *Net) Fd() int { return int(n.file.Fd()) }

// Close lets go of the namespace.
func (n *Net) Close() error { return n.file.Close() }

// Do runs f on a thread that is inside the namespace, and returns f's error. Sockets that f opens stay inside for
// good, so f may return them; the thread itself is never used again.
func (n *Net) Do(f func() error) error {
	return onDoomedThread(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// Machine is all that makes a process part of one node: its mount, UTS, IPC, network and process namespaces,
// reached through the node's init.
type Machine struct{ pidfd int }

// MachineOf holds the namespaces of the process.
func MachineOf(pid int) (*Machine, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Machine{pidfd: fd}, nil
}

// Close lets go of the machine.
func (m *Machine) Close() error { return unix.Close(m.pidfd) }

// Do runs f on a thread that is inside the machine. Processes that f starts are in its process namespace; f's own
// thread is not (that is how setns(2) treats it).
func (m *Machine) Do(f func() error) error {
	return onDoomedThread(func() error {
		// A thread may change its mount namespace only when it shares its root and working directory with nobody.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the working directory: %w", err)
		}
		const all = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWPID
		if err := unix.Setns(m.pidfd, all); err != nil {
			return fmt.Errorf("enter the node's namespaces: %w", err)
		}
		return f()
	})
}

// PrivateMounts gives the calling thread a mount namespace of its own, which processes that it starts share. It may
// only be called from within a Do.
func PrivateMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	return nil
}

// onDoomedThread runs f on an operating system thread of its own, which ends with it: a thread that has changed
// namespaces must never run other goroutines.
func onDoomedThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		done <- f()
	}()
	return <-done
}
