// SPDX-License-Identifier: Apache-2.0

// Package probe sends real packets from a pod's network namespace, or the node's own, and says what came back. It is
// how `weft why --probe` asks the kernel what the model claims to know. It runs on the node. It imports the standard
// library, and vishvananda/netlink to find a namespace by its address.
package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Outcome is what came back.
type Outcome string

// The outcomes.
const (
	Answered    Outcome = "answered"    // TCP: the connection was opened; UDP: a datagram came back
	Refused     Outcome = "refused"     // a TCP reset, or ICMP says that nobody listens on the port
	Unreachable Outcome = "unreachable" // ICMP says that there is no way, or it is prohibited
	Silent      Outcome = "silent"      // nothing, until the patience was over
	Failed      Outcome = "failed"      // nothing could be sent
)

// Target is where a probe goes.
type Target struct {
	Protocol string         `json:"protocol"` // "TCP" or "UDP"
	Addr     netip.AddrPort `json:"address"`
}

// Result is what became of one probe.
type Result struct {
	Target
	Outcome Outcome       `json:"outcome"`
	Source  netip.Addr    `json:"source,omitzero"` // the address that it was sent from, where that is known
	Took    time.Duration `json:"took"`            // nanoseconds
	Text    string        `json:"text,omitempty"`  // the kernel's words
}

// NamespaceDir is where container runtimes keep the pods' network namespaces.
const NamespaceDir = "/run/netns"

// Find opens the network namespace, of those in a folder, that has an address. The caller closes it.
func Find(dir string, addr netip.Addr) (*os.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for the pod's network namespace: %w", err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // it went in the meantime
		}
		if has(f, addr) {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("no network namespace in %s has the address %s: is the pod on this node, and running?", dir, addr)
}

func has(ns *os.File, addr netip.Addr) bool {
	found := false
	_ = Inside(ns, func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			found = found || ok && ip.Unmap() == addr
		}
		return err
	})
	return found
}

// Inside runs f on a thread of its own that is in a network namespace; nil is the caller's own.
func Inside(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Send sends to all targets at once, from a network namespace (nil: the caller's own), and waits for each at most as
// long as patience.
func Send(ctx context.Context, ns *os.File, patience time.Duration, targets ...Target) []Result {
	out := make([]Result, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() {
			start := time.Now()
			out[i] = Result{Target: t, Outcome: Failed}
			if err := Inside(ns, func() error { send(ctx, &out[i], patience); return nil }); err != nil {
				out[i].Text = err.Error()
			}
			out[i].Took = time.Since(start)
		})
	}
	wg.Wait()
	return out
}

func send(ctx context.Context, r *Result, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	switch r.Protocol {
	case "TCP":
		c, err := d.DialContext(ctx, "tcp", r.Addr.String())
		if err != nil {
			r.Outcome, r.Text = judge(err), err.Error()
			return
		}
		r.from(c)
		_ = c.Close()
		r.Outcome = Answered
	case "UDP":
		c, err := d.DialContext(ctx, "udp", r.Addr.String())
		if err != nil {
			r.Outcome, r.Text = judge(err), err.Error()
			return
		}
		defer c.Close()
		r.from(c)
		r.datagrams(ctx, c)
	default:
		r.Text = fmt.Sprintf("%s can't be probed: only TCP and UDP can", r.Protocol)
	}
}

func (r *Result) from(c net.Conn) {
	if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil {
		r.Source = a.Addr().Unmap()
	}
}

// again is after how long a datagram is sent once more: one may be lost on its way.
const again = 500 * time.Millisecond

// datagrams sends until something comes back.
func (r *Result) datagrams(ctx context.Context, c net.Conn) {
	buf := make([]byte, 1)
	deadline, _ := ctx.Deadline()
	for {
		if _, err := c.Write(question(r.Addr.Port())); err != nil {
			r.Outcome, r.Text = judge(err), err.Error()
			return
		}
		next := time.Now().Add(again)
		if next.After(deadline) {
			next = deadline
		}
		_ = c.SetReadDeadline(next)
		_, err := c.Read(buf)
		switch {
		case err == nil:
			r.Outcome = Answered
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			r.Outcome, r.Text = judge(err), err.Error()
			return
		case ctx.Err() != nil || !time.Now().Before(deadline):
			r.Outcome = Silent
			return
		}
	}
}

// question is a datagram that a server of the port may answer: to DNS one about the root (RFC 1035), to others
// nothing but the word.
func question(port uint16) []byte {
	if port != 53 {
		return []byte("weft probe\n")
	}
	b := binary.BigEndian.AppendUint16(nil, 0x7765)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	return append(b, 0, 0, 2, 0, 1)             // the root's name servers
}

// judge reads an error of the kernel's.
func judge(err error) Outcome {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return Refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return Unreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Silent
	}
	return Failed
}
