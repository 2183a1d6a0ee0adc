// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// Shot is one packet that opens a flow between two pods.
type Shot struct {
	From, To string // pods' names
	Dst      netip.AddrPort
	Protocol model.Protocol
}

// Range is pods that shoot at each other.
type Range struct {
	t     testing.TB // the pods live as long as this test
	node  *Node
	pods  map[string]*Pod
	sinks map[string]map[uint16]*Sink
	sctp  map[string]*sctpSink
	ports []uint16
	round int
}

// NewRange lets pods that are added to it be shot at, on these ports of TCP, UDP and SCTP.
func NewRange(t testing.TB, n *Node, ports ...uint16) *Range {
	return &Range{t: t, node: n, pods: map[string]*Pod{}, sinks: map[string]map[uint16]*Sink{}, sctp: map[string]*sctpSink{}, ports: ports}
}

// Pod returns the pod of a name, which it makes if there is none yet.
func (r *Range) Pod(name string, addrs func() []netip.Addr) *Pod {
	r.t.Helper()
	if p := r.pods[name]; p != nil {
		return p
	}
	p := r.node.Connect(r.t, addrs()...)
	r.pods[name], r.sinks[name], r.sctp[name] = p, map[uint16]*Sink{}, p.sctpSink(r.t)
	for _, port := range r.ports {
		p.Listen(r.t, model.TCP, port)
		r.sinks[name][port] = p.Sink(r.t, port)
	}
	// A new link and a new IPv6 address work a moment later; until then what is sent is lost.
	for _, a := range p.Addrs {
		r.sinks[name][r.ports[0]].Drain(r.t, r.node, a)
	}
	return p
}

// Shots are all packets from each of the named pods to each other one.
func (r *Range) Shots(names []string) []Shot {
	var out []Shot
	for _, from := range names {
		for _, to := range names {
			if from == to {
				continue // never leaves the pod
			}
			for _, a := range r.pods[to].Addrs {
				for _, port := range r.ports {
					for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
						out = append(out, Shot{from, to, netip.AddrPortFrom(a, port), proto})
					}
				}
			}
		}
	}
	return out
}

// Fire sends the shots, all at once, and tells which hit. want says what is expected: what should hit is awaited,
// and when all of that is there, so is what should not.
func (r *Range) Fire(t testing.TB, shots []Shot, want []bool) []bool {
	t.Helper()
	r.round++
	bySource := map[string][]int{}
	for i, s := range shots {
		bySource[s.From] = append(bySource[s.From], i)
	}
	hit := make([]bool, len(shots))
	fds := make([]int, len(shots))
	payload := func(i int) string { return fmt.Sprintf("%d/%d", r.round, i) }
	tag := func(i int) uint32 { return uint32(r.round)<<16 | uint32(i) }
	for from, list := range bySource {
		r.pods[from].Do(t, func() error {
			for _, i := range list {
				var err error
				switch shots[i].Protocol {
				case model.UDP:
					err = send(shots[i].Dst.Addr(), shots[i].Dst.Port(), payload(i))
				case model.SCTP:
					err = sendSCTP(40000, shots[i].Dst, tag(i))
				default:
					fds[i], err = startConnect(shots[i].Dst)
				}
				if err != nil {
					return fmt.Errorf("from %s to %s: %w", from, shots[i].Dst, err)
				}
			}
			return nil
		})
	}
	look := func() (missing bool) {
		for i, s := range shots {
			if !hit[i] {
				switch s.Protocol {
				case model.UDP:
					hit[i] = r.sinks[s.To][s.Dst.Port()].Count(payload(i)) > 0
				case model.SCTP:
					hit[i] = r.sctp[s.To].has(tag(i))
				default:
					hit[i] = connected(fds[i])
				}
				missing = missing || want[i] && !hit[i]
			}
		}
		return missing
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(Deadline); look() && time.Now().Before(end); <-tick.C {
	}
	for name, sinks := range r.sinks {
		for _, a := range r.pods[name].Addrs {
			sinks[r.ports[0]].Drain(t, r.node, a)
		}
	}
	look()
	for i, s := range shots {
		if s.Protocol == model.TCP {
			_ = unix.SetsockoptLinger(fds[i], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fds[i])
		}
	}
	return hit
}

func startConnect(dst netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

func connected(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0
}

// Table shows, of failed shots, what went wrong.
func Table(shots []Shot, got, want []bool) string {
	var b strings.Builder
	for i, s := range shots {
		if got[i] != want[i] {
			fmt.Fprintf(&b, "\n  %s to %s (%s %s): passed %v, want %v", s.From, s.To, s.Protocol, s.Dst, got[i], want[i])
		}
	}
	return b.String()
}
