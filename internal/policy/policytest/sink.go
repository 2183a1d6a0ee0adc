// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Sink counts the datagrams that reach a UDP port of a namespace.
type Sink struct {
	conn *net.UDPConn
	port uint16

	mu     sync.Mutex
	counts map[string]int // by payload
}

// Sink opens a UDP port on every address of the namespace.
func (n *Namespace) Sink(t testing.TB, port uint16) *Sink {
	t.Helper()
	s := &Sink{port: port, counts: map[string]int{}}
	n.Do(t, func() (err error) {
		s.conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	t.Cleanup(func() { _ = s.conn.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			k, _, err := s.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.counts[string(buf[:k])]++
			s.mu.Unlock()
		}
	}()
	return s
}

// Count tells how many datagrams with a payload have come.
func (s *Sink) Count(payload string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[payload]
}

// Drain returns when everything that had reached one of the pod's addresses before the call is counted. It asks the
// node, which no policy ever keeps from its own pods, to send one more datagram and waits for that.
func (s *Sink) Drain(t testing.TB, n *Node, to netip.Addr) {
	t.Helper()
	sentinel := fmt.Sprintf("sentinel %d", time.Now().UnixNano())
	Eventually(t, Deadline, "the node's own datagram arrives", func() bool {
		if s.Count(sentinel) > 0 {
			return true
		}
		n.Do(t, func() error { return send(to, s.port, sentinel) })
		return false
	})
}

// send sends one datagram from the calling thread's namespace.
func send(to netip.Addr, port uint16, payload string) error {
	family := unix.AF_INET
	if to.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(payload), 0, sockaddr(netip.AddrPortFrom(to, port)))
}

// Flood sends datagrams from the namespace to a port of these addresses as fast as one thread can, whether there is
// a way or not, until the returned function is called. That tells how many left the namespace.
func (n *Namespace) Flood(t testing.TB, port uint16, payload string, to ...netip.Addr) (stop func() int) {
	t.Helper()
	quit, sent, started := make(chan struct{}), make(chan int, 1), make(chan struct{})
	go func() {
		count := 0
		err := inNamespace(n.FD, func() error {
			close(started)
			for {
				select {
				case <-quit:
					return nil
				default:
				}
				for _, a := range to {
					if send(a, port, payload) == nil {
						count++
					}
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
		sent <- count
	}()
	<-started
	return func() int {
		close(quit)
		return <-sent
	}
}
