// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// How long what a name leads to is good for.
const (
	leastWait = time.Second      // whatever the records say
	untoldTTL = 30 * time.Second // of what is not from DNS, such as the hosts file
	askAgain  = 2 * time.Second  // after a lookup that failed
)

// udpName is an endpoint's name with the sessions that use it. It is looked up once for all of them, and again whenever
// the records' time to live is over, until there is no session left: one that never ends follows its name.
type udpName struct {
	address string // as the tables have it
	host    string
	port    uint16
	cancel  context.CancelFunc

	// Guarded by the port's lock.
	addrs    []netip.Addr // what it leads to, the preferred ones first; none: not known yet
	sessions map[*udpSession]struct{}
}

func newUDPName(address string) (*udpName, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" {
		return nil, fmt.Errorf("%q is not a name and a port's number", address)
	}
	return &udpName{address: address, host: host, port: uint16(n), sessions: map[*udpSession]struct{}{}}, nil
}

// named gives the name of an address that is none of IP; nil when it is no name either. The caller holds the lock, and
// gives it a session.
func (s *udpSessions) named(ctx context.Context, address string) *udpName {
	if n := s.names[address]; n != nil {
		return n
	}
	n, err := newUDPName(address)
	if err != nil {
		return nil
	}
	ctx, n.cancel = context.WithCancel(ctx)
	s.names[address] = n
	s.back.Go(func() { s.follow(ctx, n) })
	return n
}

// unname takes a session off its name, which is forgotten with the last one. The caller holds the lock.
func (s *udpSessions) unname(u *udpSession) {
	n := u.name
	if n == nil {
		return
	}
	u.name = nil
	if delete(n.sessions, u); len(n.sessions) == 0 {
		n.cancel()
		delete(s.names, n.address)
	}
}

// follow looks a name up for as long as it has sessions.
func (s *udpSessions) follow(ctx context.Context, n *udpName) {
	t := time.NewTimer(0)
	defer t.Stop()
	for known := false; ; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		addrs, wait, err := lookUp(ctx, s.port.srv.conf.Resolver, n.host, known)
		s.mu.Lock()
		if ctx.Err() != nil {
			s.mu.Unlock()
			return
		}
		var none *net.DNSError
		switch {
		case err == nil:
			n.addrs, known = addrs, true
		case errors.As(err, &none) && none.IsNotFound:
			n.addrs = nil
		default: // as long as nobody can tell, what was known stands
			wait = askAgain
		}
		s.lead(n)
		s.mu.Unlock()
		t.Reset(wait)
	}
}

// lead connects the sessions that wait for their name, and has those move on whose address it no longer leads to. The
// caller holds the lock.
func (s *udpSessions) lead(n *udpName) {
	for u := range n.sessions {
		if u.conn != nil {
			if !slices.Contains(n.addrs, addrOf(u.conn.RemoteAddr())) {
				s.leave(u)
			}
			continue
		}
		if u.conn = n.connect(); u.conn == nil {
			s.port.srv.stats.streamsFailed.Add(1)
			u.endpoint.failed(time.Now())
			s.end(u)
			continue
		}
		for _, b := range s.takeEarly(u) {
			_, _ = u.conn.Write(b)
		}
		s.back.Go(func() { s.carryBack(u) })
	}
}

// connect gives a socket for the first address that this host has a route to; nil: for none.
func (n *udpName) connect() *net.UDPConn {
	for _, a := range n.addrs {
		if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, n.port))); err == nil {
			return c
		}
	}
	return nil
}

func addrOf(a net.Addr) netip.Addr {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// lookUp gives the addresses of a host, and for how long they are good. whole asks for all of them or an error, where
// what can be had is enough otherwise.
func lookUp(ctx context.Context, r *net.Resolver, host string, whole bool) ([]netip.Addr, time.Duration, error) {
	dial := (&net.Dialer{}).DialContext
	if r != nil && r.Dial != nil {
		dial = r.Dial
	}
	var least leastTTL
	q := net.Resolver{PreferGo: true, StrictErrors: whole, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return watched(c, &least), nil
	}}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := q.LookupNetIP(ctx, "ip", host)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	return addrs, least.wait(), err
}

// leastTTL is the least time to live of the records seen, in seconds and one more; 0: of none. The library's resolver
// does not tell it, so it is read off the answers on their way there.
type leastTTL struct{ atomic.Uint64 }

func (l *leastTTL) wait() time.Duration {
	if n := l.Load(); n > 0 {
		return max(time.Duration(n-1)*time.Second, leastWait)
	}
	return untoldTTL
}

// see reads a message of DNS.
func (l *leastTTL) see(message []byte) {
	var p dnsmessage.Parser
	if h, err := p.Start(message); err != nil || !h.Response || p.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return
		}
		switch h.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME:
			for n := uint64(h.TTL) + 1; ; {
				old := l.Load()
				if old != 0 && old <= n || l.CompareAndSwap(old, n) {
					break
				}
			}
		}
		if p.SkipAnswer() != nil {
			return
		}
	}
}

// watched has what comes on a connection to a server of DNS seen.
func watched(c net.Conn, l *leastTTL) net.Conn {
	if pc, ok := c.(net.PacketConn); ok {
		return &watchedPackets{c, pc, l}
	}
	return &watchedStream{Conn: c, least: l}
}

// watchedPackets is a connection of datagrams; the resolver knows it by what it implements.
type watchedPackets struct {
	net.Conn
	packets net.PacketConn
	least   *leastTTL
}

func (w *watchedPackets) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.least.see(p[:n])
	return n, err
}

// ReadFrom and WriteTo implement net.PacketConn.
func (w *watchedPackets) ReadFrom(p []byte) (int, net.Addr, error)   { return w.packets.ReadFrom(p) }
func (w *watchedPackets) WriteTo(p []byte, to net.Addr) (int, error) { return w.packets.WriteTo(p, to) }

// watchedStream is a connection on which a message follows its length (RFC 1035 section 4.2.2).
type watchedStream struct {
	net.Conn
	least *leastTTL
	come  []byte // of a message that is not complete
}

func (w *watchedStream) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.come = append(w.come, p[:n]...)
	for len(w.come) >= 2 {
		size := 2 + int(w.come[0])<<8 + int(w.come[1])
		if len(w.come) < size {
			break
		}
		w.least.see(w.come[2:size])
		w.come = w.come[size:]
	}
	return n, err
}
