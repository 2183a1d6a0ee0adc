// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Bounds of one port's UDP sessions. Datagrams beyond them are dropped.
const (
	// maxSessions is how many clients there may be at a time: each has a socket and a goroutine. A new one takes the place of
	// one that its endpoint has not answered, so that forged ones keep nobody out.
	maxSessions = 16384
	// maxEarly is how many datagrams of a client wait until its endpoint's name is resolved, and maxEarlyBytes how many
	// bytes of all clients do.
	maxEarly      = 16
	maxEarlyBytes = 1 << 20
	// lateAnswers is for how long an endpoint may still answer that a client's datagrams no longer go to.
	lateAnswers = 2 * time.Second
)

// udpSessions are the clients of one port.
type udpSessions struct {
	port *port

	mu         sync.Mutex
	all        map[netip.AddrPort]*udpSession
	most       int                 // maxSessions
	unanswered list.List           // those that the endpoint has not answered yet, the oldest first
	names      map[string]*udpName // that sessions use, by their endpoints' addresses
	early      int                 // bytes that wait for their endpoints' names
	back       sync.WaitGroup
}

// udpSession is one client's datagrams on their way to one endpoint and back. It keeps its endpoint until it is quiet
// for the idle time, the endpoint refuses datagrams, its name leads elsewhere, or the tables no longer have the client
// sent there.
type udpSession struct {
	client  netip.AddrPort
	last    atomic.Int64         // Unix nanoseconds
	checked atomic.Uint64        // the tables' change after which it was found to stand
	rule    atomic.Pointer[rule] // for its figures

	// Guarded by the port's lock.
	endpoint *endpoint
	name     *udpName      // of the endpoint; nil: it has none, or the session has left
	conn     *net.UDPConn  // to the endpoint; nil as long as its name is being looked up
	early    [][]byte      // sent meanwhile
	waits    *list.Element // among those that have not been answered; nil: it has been, or has ended
	left     time.Time     // when the client's datagrams went elsewhere; zero: they come here
	over     bool
}

// serve carries datagrams until the socket is closed. It waits for nothing but the next one.
func (s *udpSessions) serve() {
	p := s.port
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		s.mu.Lock()
		for _, u := range s.all {
			s.end(u)
		}
		s.mu.Unlock()
		s.back.Wait()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, client, err := p.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		if c := s.to(ctx, client, buf[:n]); c != nil {
			_, _ = c.Write(buf[:n]) // datagrams may be lost; a refusal ends the session in answers
		}
	}
}

// to gives the connection for a client's datagram; nil when it goes nowhere, or waits.
func (s *udpSessions) to(ctx context.Context, client netip.AddrPort, datagram []byte) *net.UDPConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.all[client]
	if u != nil {
		switch s.check(u) {
		case kicked:
			s.end(u)
			u = nil
		case moved:
			s.leave(u)
			u = nil
		}
	}
	if u == nil {
		if len(s.all) >= s.most && !s.makeRoom() {
			s.port.srv.stats.overLimit.Add(1)
			return nil
		}
		if u = s.begin(ctx, client); u == nil {
			s.port.srv.stats.streamsFailed.Add(1)
			return nil
		}
	}
	u.last.Store(time.Now().UnixNano()) // with the lock held, so that it does not end just now
	if u.conn == nil && len(u.early) < maxEarly && s.early+len(datagram) <= maxEarlyBytes {
		s.early += len(datagram)
		u.early = append(u.early, bytes.Clone(datagram))
	}
	return u.conn
}

// makeRoom ends the oldest session that has not been answered, if there is one. The caller holds the lock.
func (s *udpSessions) makeRoom() bool {
	oldest := s.unanswered.Front()
	if oldest != nil {
		s.end(oldest.Value.(*udpSession))
	}
	return oldest != nil
}

// settle takes a session out of those that have not been answered. The caller holds the lock.
func (s *udpSessions) settle(u *udpSession) {
	if u.waits != nil {
		s.unanswered.Remove(u.waits)
		u.waits = nil
	}
}

// begin makes a session; nil when the tables have no endpoint for the client. The caller holds the lock.
func (s *udpSessions) begin(ctx context.Context, client netip.AddrPort) *udpSession {
	u := &udpSession{client: client}
	u.checked.Store(s.port.srv.changes.Load())
	r, b, err := s.port.table.Load().only.target("", client.Addr().Unmap())
	if err != nil {
		return nil
	}
	if u.endpoint = b.pick(time.Now().UnixNano(), nil); u.endpoint == nil {
		return nil
	}
	e := u.endpoint
	if addr, err := netip.ParseAddrPort(e.address); err == nil {
		if u.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr)); err != nil {
			return nil
		}
	} else if u.name = s.named(ctx, e.address); u.name == nil {
		return nil
	} else if len(u.name.addrs) > 0 {
		if u.conn = u.name.connect(); u.conn == nil {
			return nil
		}
	}
	if u.name != nil {
		u.name.sessions[u] = struct{}{}
	}
	e.inflight.Add(1)
	r.stats.streams.Add(1)
	u.rule.Store(r)
	s.all[client] = u
	u.waits = s.unanswered.PushBack(u)
	if u.conn != nil {
		s.back.Go(func() { s.carryBack(u) })
	}
	return u
}

// takeEarly gives what waits. The caller holds the lock.
func (s *udpSessions) takeEarly(u *udpSession) [][]byte {
	all := u.early
	u.early = nil
	for _, b := range all {
		s.early -= len(b)
	}
	return all
}

// end ends a session, unless it is over. The caller holds the lock.
func (s *udpSessions) end(u *udpSession) {
	if u.over {
		return
	}
	u.over = true
	if s.all[u.client] == u {
		delete(s.all, u.client)
	}
	s.settle(u)
	s.takeEarly(u)
	s.unname(u)
	u.endpoint.inflight.Add(-1)
	if u.conn != nil {
		u.conn.Close()
	}
}

// leave ends a session but for answers that are under way. The caller holds the lock.
func (s *udpSessions) leave(u *udpSession) {
	delete(s.all, u.client)
	s.settle(u)
	s.unname(u)
	if u.left = time.Now(); u.conn == nil {
		s.end(u)
		return
	}
	_ = u.conn.SetReadDeadline(u.left.Add(lateAnswers))
}

// standing is what the tables say of a session.
type standing int

const (
	stands standing = iota
	moved           // its client is to have another endpoint
	kicked          // its client is to have none
)

// check tells whether the tables still let the session's client use its endpoint. One that ends gets datagrams only
// where there is no other: nothing tells when a client is done with it. The caller holds the lock.
func (s *udpSessions) check(u *udpSession) standing {
	now := s.port.srv.changes.Load()
	if u.checked.Load() == now {
		return stands
	}
	r, err := s.port.table.Load().only.admit("", u.client.Addr().Unmap())
	if err != nil {
		return kicked
	}
	if !u.left.IsZero() {
		return stands
	}
	e := r.keeps(u.endpoint.address)
	if e == nil {
		return moved
	}
	if e != u.endpoint { // the same server, of a backend that is new
		u.endpoint.inflight.Add(-1)
		e.inflight.Add(1)
		u.endpoint = e
	}
	u.rule.Store(r)
	u.checked.Store(now)
	return stands
}

// carryBack carries the endpoint's datagrams to the client until the session is over.
func (s *udpSessions) carryBack(u *udpSession) {
	c := u.conn // which stays the one that it is
	for {
		err := s.answers(u, c)
		s.mu.Lock()
		over := u.over || !timedOut(err) || u.quiet(s.port.srv.conf.UDPIdle) || !u.left.IsZero()
		if over {
			if !u.over && !timedOut(err) && !errors.Is(err, errKicked) {
				u.endpoint.failed(time.Now())
			}
			s.end(u)
		}
		s.mu.Unlock()
		if over {
			return
		}
	}
}

func (u *udpSession) quiet(idle time.Duration) bool {
	return time.Since(time.Unix(0, u.last.Load())) >= idle
}

var errKicked = errors.New("the tables no longer let the client in")

// answers carries datagrams back until the endpoint is quiet for the idle time, which is a timeout, or the session has
// failed.
func (s *udpSessions) answers(u *udpSession, c *net.UDPConn) error {
	p := s.port
	for answered := false; ; answered = true {
		s.mu.Lock()
		if u.left.IsZero() {
			_ = c.SetReadDeadline(time.Unix(0, u.last.Load()).Add(p.srv.conf.UDPIdle))
		}
		s.mu.Unlock()
		if err := receive(c, func(b []byte) error {
			if !answered || u.checked.Load() != p.srv.changes.Load() {
				s.mu.Lock()
				if u.over { // it has made room for another one
					s.mu.Unlock()
					return net.ErrClosed
				}
				state := s.check(u)
				if state == moved {
					s.leave(u)
				}
				s.settle(u)
				u.endpoint.succeeded()
				s.mu.Unlock()
				if state == kicked {
					return errKicked
				}
			}
			u.last.Store(time.Now().UnixNano())
			u.rule.Load().stats.bytes.Add(uint64(len(b)))
			if _, err := p.udp.WriteToUDPAddrPort(b, u.client); errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil // what can't be passed on is lost
		}); err != nil {
			return err
		}
	}
}

// receive waits for a datagram and has it taken. It holds a buffer only then, so that sessions that wait cost none.
func receive(c *net.UDPConn, take func([]byte) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var broke error
	var buf *[]byte
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		b := largeBuffers.Get().(*[]byte)
		for {
			n, broke = syscall.Read(int(fd), *b)
			switch {
			case broke == syscall.EINTR:
				continue
			case broke == syscall.EAGAIN:
				largeBuffers.Put(b)
				return false
			}
			buf = b
			return true
		}
	})
	if buf != nil {
		defer largeBuffers.Put(buf)
	}
	switch {
	case err != nil:
		return err
	case broke != nil:
		return os.NewSyscallError("read", broke)
	}
	return take((*buf)[:n]) // not in Read's hands: who closes the connection waits for those, and has the port's lock
}
