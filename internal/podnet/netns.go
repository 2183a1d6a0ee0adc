// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// netNS is an open network namespace.
type netNS struct{ f *os.File }

// openNetNS opens a network namespace by path; "" is the calling thread's own.
func openNetNS(path string) (*netNS, error) {
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return newNetNS(f)
}

// newNetNS takes ownership of f and refuses what is no network namespace.
func newNetNS(f *os.File) (*netNS, error) {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.Join(fmt.Errorf("%s is no network namespace", f.Name()), f.Close())
	}
	return &netNS{f: f}, nil
}

func (n *netNS) fd() int      { return int(n.f.Fd()) }
func (n *netNS) close() error { return n.f.Close() }

// is tells whether both are one namespace.
func (n *netNS) is(o *netNS) bool {
	var a, b unix.Stat_t
	return unix.Fstat(n.fd(), &a) == nil && unix.Fstat(o.fd(), &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// do runs fn on a thread inside the namespace. Sockets that fn opens stay there.
func (n *netNS) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with this goroutine, and with it its namespace.
		runtime.LockOSThread()
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w (the agent needs CAP_SYS_ADMIN)", n.f.Name(), err)
			return
		}
		done <- fn()
	}()
	return <-done
}
