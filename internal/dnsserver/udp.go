// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch   = 128  // packets of one system call
	maxAsk  = 2048 // octets of a query that is looked at; a longer one is malformed
	maxUDP  = 4096 // octets of an answer over UDP at most
	ctlSize = 64   // room for the control message with a packet's destination
)

// udpSocket is one of several sockets on the same address and port, among which the kernel spreads the clients.
type udpSocket struct {
	fd     int
	closed sync.Once
	mu     sync.RWMutex // held for reading while a late answer is sent
	gone   bool
}

// listenUDP opens a socket. With an unspecified address each packet's own destination is learnt, to answer from it.
func listenUDP(addr netip.AddrPort) (*udpSocket, netip.AddrPort, error) {
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, addr, err
	}
	err = setUDPOptions(fd, family, addr.Addr().IsUnspecified())
	// Sockets that may share a port are given one that others of theirs have, when the kernel chooses.
	share := func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	if err == nil && addr.Port() != 0 {
		err = share()
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(addr))
	}
	if err == nil && addr.Port() == 0 {
		err = share()
	}
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, addr, fmt.Errorf("listen on %s (UDP): %w", addr, err)
	}
	switch b := bound.(type) {
	case *unix.SockaddrInet4:
		addr = netip.AddrPortFrom(addr.Addr(), uint16(b.Port))
	case *unix.SockaddrInet6:
		addr = netip.AddrPortFrom(addr.Addr(), uint16(b.Port))
	}
	return &udpSocket{fd: fd}, addr, nil
}

func setUDPOptions(fd, family int, anyAddr bool) error {
	var err error
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && anyAddr {
		if family == unix.AF_INET6 {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	}
	if err == nil {
		// As much as the system allows: a burst that waits is better than one that is lost.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
		// Forged ICMP messages must not shrink answers below what fits (RFC 8899 section 4.6; as BIND and Knot do).
		if family == unix.AF_INET {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
		} else {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
		}
	}
	return err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// slice is how long a reader asks to run at a time.
const slice = 100 * time.Microsecond

// runSoon asks the kernel to run this thread soon when it has something to do, for shorter at a time in return: an
// answer takes microseconds and should not wait for the turns of whatever else keeps the processor busy. Beside two
// programs that never rest, the median wait falls from hundreds of microseconds to fifty. It takes no more of the
// processor for that, and needs no privilege (Linux 6.12; earlier ones take no notice).
func runSoon() {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return
	}
	attr.Runtime = uint64(slice)
	_ = unix.SchedSetAttr(0, attr, 0)
}

// stop has the socket's reader return once what it has read is answered.
func (u *udpSocket) stop() {
	// On a socket without a peer this reports ENOTCONN, and yet wakes the reader.
	_ = unix.Shutdown(u.fd, unix.SHUT_RD)
}

func (u *udpSocket) close() {
	u.closed.Do(func() {
		u.mu.Lock()
		u.gone = true
		u.mu.Unlock()
		_ = unix.Close(u.fd)
	})
}

// serveUDP answers what comes to a socket until it is stopped. It keeps a thread to itself: it waits in the kernel,
// not in the runtime, which saves a system call for each burst.
func (s *Server) serveUDP(u *udpSocket, addr netip.AddrPort) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	runSoon()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0)
	b := newBurst(addr.Addr().IsUnspecified())
	w := s.newWorker()
	current := 0
	p := packet{udp: true, to: func() responder { return b.late(u, current) }}
	for {
		n, err := b.receive(u.fd)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		p.now = s.now()
		k, stopped := 0, true
		for i := range n {
			in := &b.in[i]
			if in.n > 0 || in.hdr.Namelen > 0 {
				stopped = false
			}
			if in.hdr.Flags&unix.MSG_TRUNC != 0 {
				s.stats.badPackets.Add(1)
				continue
			}
			current = i
			p.data = b.ask[i][:in.n]
			p.client = b.client(i)
			if p.client.Addr == (netip.Addr{}) {
				continue
			}
			if answer := w.serve(&p, b.answer[i][:0]); answer != nil {
				b.reply(k, i, answer)
				k++
			}
		}
		if stopped {
			return nil
		}
		if k > 0 {
			b.send(u.fd, k)
		}
	}
}

// udpResponder answers a packet later.
type udpResponder struct {
	u       *udpSocket
	name    unix.RawSockaddrInet6
	nameLen uint32
	ctl     [ctlSize]byte
	ctlLen  int
}

func (b *burst) late(u *udpSocket, i int) responder {
	in := &b.in[i].hdr
	r := &udpResponder{u: u, name: b.names[i], nameLen: in.Namelen}
	if b.needsInfo {
		r.ctl = b.ctl[i]
		r.ctlLen = fromDestination(r.ctl[:in.Controllen])
	}
	return r
}

func (r *udpResponder) respond(msg []byte) {
	r.u.mu.RLock()
	defer r.u.mu.RUnlock()
	if r.u.gone {
		return
	}
	iov := unix.Iovec{Base: &msg[0]}
	iov.SetLen(len(msg))
	h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&r.name)), Namelen: r.nameLen, Iov: &iov}
	h.SetIovlen(1)
	if r.ctlLen > 0 {
		h.Control = &r.ctl[0]
		h.SetControllen(r.ctlLen)
	}
	_, _, _ = unix.Syscall(unix.SYS_SENDMSG, uintptr(r.u.fd), uintptr(unsafe.Pointer(&h)), 0)
}

// Listener is a set of sockets on one address and port, open but not yet served.
type Listener struct {
	s    *Server
	addr netip.AddrPort
	udp  []*udpSocket
	tcp  *tcpListener // nil without
}

// Listen opens sockets on an address and port (0: any one), for UDP as many as there are to be readers: one for each
// core. An address must be of one family: for both, listen on 0.0.0.0 and on [::].
func (s *Server) Listen(ctx context.Context, addr netip.AddrPort, readers int) (*Listener, error) {
	for {
		l, err := s.listen(ctx, addr, readers)
		// The kernel's choice for UDP may be taken for TCP: then it is to choose again.
		if addr.Port() == 0 && errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		return l, err
	}
}

// ListenUDP is Listen without TCP.
func (s *Server) ListenUDP(addr netip.AddrPort, readers int) (*Listener, error) {
	l := &Listener{s: s, addr: addr}
	if err := l.openUDP(readers); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (s *Server) listen(ctx context.Context, addr netip.AddrPort, readers int) (*Listener, error) {
	l, err := s.ListenUDP(addr, readers)
	if err != nil {
		return nil, err
	}
	if l.tcp, err = listenTCP(ctx, l.addr); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Listener) openUDP(readers int) error {
	for range readers {
		u, bound, err := listenUDP(l.addr)
		if err != nil {
			return err
		}
		l.addr = bound
		l.udp = append(l.udp, u)
	}
	return nil
}

// Addr is the address and port.
func (l *Listener) Addr() netip.AddrPort { return l.addr }

// Serve answers queries until Stop; then it returns nil once the last one that was received is answered or under way.
func (l *Listener) Serve() error {
	errs := make([]error, len(l.udp)+1)
	var wg sync.WaitGroup
	for i, u := range l.udp {
		wg.Go(func() {
			if errs[i] = l.s.serveUDP(u, l.addr); errs[i] != nil {
				l.Stop()
			}
		})
	}
	if l.tcp != nil {
		wg.Go(func() {
			if err := l.s.serveTCP(l.tcp); err != nil {
				errs[len(l.udp)] = err
				l.Stop()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Stop has Serve return. Answers that are under way can still be sent until Close.
func (l *Listener) Stop() {
	for _, u := range l.udp {
		u.stop()
	}
	if l.tcp != nil {
		l.tcp.stop()
	}
}

// Close closes the sockets. Serve must have returned, or not have been called.
func (l *Listener) Close() {
	for _, u := range l.udp {
		u.close()
	}
	if l.tcp != nil {
		l.tcp.close()
	}
}
