// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// A relay carries connections of plain TCP, thousands in one goroutine: a connection costs no goroutine, no timer and a
// dozen system calls, where two of package net cost two goroutines and twice the calls. The relay alone touches its
// sockets, which never block, and an epoll of its own tells of them (edge-triggered); that is in turn watched by the
// runtime's, so a relay that waits is a goroutine that waits. There is one for each core.
//
// What needs more than bytes carried goes the way of all others (handOver): a PROXY header to be read, TLS, an endpoint
// that has a name.
type relay struct {
	srv  *Server
	ep   *os.File
	raw  syscall.RawConn // of ep
	fd   rawFD           // of ep, which is open for as long as the relay runs
	now  int64           // Unix nanoseconds, of this round
	tick int64           // when sweep is next due
	look int64           // when all pairs are next looked at
	load atomic.Int64    // pairs

	pairs      []*pair // by slot
	free       []int   // slots
	tags       uint32  // the last one given
	connecting map[*pair]struct{}
	listeners  []relayed
	again      []*pair // have more to move than is fair at a time
	buf        []byte
	pipes      []*kernelPipe
	events     []syscall.EpollEvent

	mu      sync.Mutex
	orders  []func() // from other goroutines
	stopped bool
}

// relayed is a port whose connections a relay takes.
type relayed struct {
	port   *port
	fd     rawFD // -1: no longer
	paused bool  // until there may be file descriptors again
}

const (
	edge = 1 << 31 // syscall.EPOLLET, which is negative there

	acceptMost = 64                     // connections taken at a time, before others are moved
	sweepEvery = 100 * time.Millisecond // while connections are made to endpoints
)

func newRelay(s *Server) (*relay, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // which os takes as a sign that it can be waited for
		_ = syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	r := &relay{srv: s, fd: rawFD(fd), ep: os.NewFile(uintptr(fd), "epoll"), connecting: map[*pair]struct{}{},
		buf: make([]byte, mediumBuffer), events: make([]syscall.EpollEvent, 128)}
	if r.raw, err = r.ep.SyscallConn(); err == nil {
		err = r.ep.SetReadDeadline(time.Time{})
	}
	if err != nil {
		r.ep.Close()
		return nil, err
	}
	return r, nil
}

// post has f done by the relay. It is false when the relay has ended.
func (r *relay) post(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	if r.orders = append(r.orders, f); len(r.orders) == 1 {
		_ = r.ep.SetReadDeadline(time.Unix(1, 0))
	}
	return true
}

// order is post, and waits until it is done.
func (r *relay) order(f func()) bool {
	done := make(chan struct{})
	if !r.post(func() { f(); close(done) }) {
		return false
	}
	<-done
	return true
}

// listen has the relay take a port's connections, from a listening socket that is its own from now on.
func (r *relay) listen(p *port, fd rawFD) (err error) {
	if !r.order(func() {
		slot := len(r.listeners)
		for i := range r.listeners {
			if r.listeners[i].fd < 0 {
				slot = i
			}
		}
		if slot == len(r.listeners) {
			r.listeners = append(r.listeners, relayed{})
		}
		if err = r.fd.watch(fd, syscall.EPOLLIN, ^slot, 0); err != nil {
			fd.close()
			fd = -1
		}
		r.listeners[slot] = relayed{port: p, fd: fd}
	}) {
		fd.close()
		return net.ErrClosed
	}
	return err
}

// unlisten closes the socket that listen was given.
func (r *relay) unlisten(p *port) {
	r.order(func() {
		for i := range r.listeners {
			if l := &r.listeners[i]; l.port == p && l.fd >= 0 {
				l.fd.close()
				*l = relayed{fd: -1}
			}
		}
	})
}

// stop ends the relay and all that it carries.
func (r *relay) stop() {
	r.order(func() {
		r.mu.Lock()
		r.stopped = true
		r.mu.Unlock()
	})
}

// run carries until stop.
func (r *relay) run() {
	defer r.end()
	for {
		n := 0
		err := r.raw.Read(func(uintptr) bool {
			n = r.fd.events(r.events)
			return n > 0 || len(r.again) > 0
		})
		r.now = time.Now().UnixNano()
		for i := range r.events[:n] {
			r.event(&r.events[i])
		}
		again := r.again
		r.again = nil
		for _, p := range again {
			p.queued = false
			r.move(p)
		}
		if err != nil || r.now >= r.tick {
			if !r.due() {
				return
			}
		}
		runtime.Gosched() // under load the relay never waits, and others want to run too
	}
}

// due does what others have ordered and time asks for. It is false when the relay is to end.
func (r *relay) due() bool {
	r.mu.Lock()
	orders := r.orders
	r.orders = nil
	r.mu.Unlock()
	for _, f := range orders {
		f()
	}
	if r.now >= r.tick {
		r.sweep()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.orders) == 0 {
		_ = r.ep.SetReadDeadline(time.Unix(0, r.tick))
	}
	return !r.stopped
}

// within sees to it that sweep comes soon enough.
func (r *relay) within(d time.Duration) {
	if at := r.now + int64(d); at < r.tick {
		r.tick = at
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.orders) == 0 {
			_ = r.ep.SetReadDeadline(time.Unix(0, at))
		}
	}
}

// sweep ends what has waited for too long.
func (r *relay) sweep() {
	for p := range r.connecting {
		if r.now >= p.connectBy {
			r.unconnected(p, noAnswer{os.NewSyscallError("connect", syscall.ETIMEDOUT)})
		}
	}
	if r.now >= r.look {
		r.look = r.now + r.lookAtAll()
	}
	r.tick = r.look
	if len(r.connecting) > 0 {
		r.tick = min(r.tick, r.now+int64(sweepEvery))
	}
	for i := range r.listeners {
		if l := &r.listeners[i]; l.paused && l.fd >= 0 {
			if l.paused = r.fd.watch(l.fd, syscall.EPOLLIN, ^i, 0) != nil; l.paused {
				r.tick = min(r.tick, r.now+int64(sweepEvery))
			}
		}
	}
}

// lookAtAll ends pairs on which nothing moves. It tells in how many nanoseconds it is to be done again: when there may be
// another, but seldom, for there may be many.
func (r *relay) lookAtAll() int64 {
	idle := int64(r.srv.conf.TunnelIdle)
	ask := min(idle/8, int64(30*time.Second)) + 1
	next := ask
	for _, p := range r.pairs {
		if p == nil || p.connectBy != 0 {
			continue
		}
		quiet := r.now - p.last
		if quiet >= ask && !p.alive { // a client's socket has it from the listener; here most connections end before
			p.alive = true
			_ = p.half[endpointSide].fd.keepAlive() // a dead endpoint is then found out by the idle time alone
		}
		switch {
		case quiet >= idle:
			r.close(p)
		case p.alive:
			next = min(next, idle-quiet)
		default:
			next = min(next, ask-quiet)
		}
	}
	return max(next, ask/8+1)
}

// end closes everything.
func (r *relay) end() {
	r.mu.Lock()
	orders := r.orders
	r.orders, r.stopped = nil, true
	r.mu.Unlock()
	for _, f := range orders { // what they begin ends with the rest
		f()
	}
	for _, p := range r.pairs {
		if p != nil {
			r.close(p)
		}
	}
	for _, l := range r.listeners {
		if l.fd >= 0 {
			l.fd.close()
		}
	}
	for _, k := range r.pipes {
		k.close()
	}
	r.ep.Close()
}

func (r *relay) event(e *syscall.EpollEvent) {
	if e.Fd < 0 {
		if l := &r.listeners[^e.Fd]; l.fd >= 0 {
			r.accept(l)
		}
		return
	}
	p := r.pairs[e.Fd]
	side, tag := uint32(e.Pad)&1, uint32(e.Pad)&^1
	if p == nil || p.tag != tag { // closed meanwhile
		return
	}
	h := &p.half[side]
	if e.Events&(syscall.EPOLLIN|syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
		h.readable = true
	}
	if e.Events&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
		h.ending = true
	}
	if e.Events&(syscall.EPOLLOUT|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
		h.writable = true
	}
	if p.connectBy != 0 {
		if side == endpointSide {
			r.connected(p, e.Events)
		}
		return
	}
	r.move(p)
}

// accept takes connections.
func (r *relay) accept(l *relayed) {
	s := r.srv
	for range acceptMost {
		fd, client, err := l.fd.accept()
		switch err {
		case nil:
		case syscall.EAGAIN:
			return
		default: // out of file descriptors: connections that end will give some back
			s.stats.acceptErrors.Add(1)
			r.fd.forget(l.fd)
			l.paused = true
			r.within(sweepEvery)
			return
		}
		if s.conns.Add(1) > s.conf.MaxConnections {
			s.conns.Add(-1)
			s.stats.overLimit.Add(1)
			fd.close()
			continue
		}
		port := l.port
		if o := s.lightest(r); o == r {
			r.begin(port, fd, client)
		} else if !o.post(func() { o.begin(port, fd, client) }) {
			fd.close()
			s.conns.Add(-1)
		}
	}
}

// lightest is the relay with the fewest connections, r if there is none with fewer.
func (s *Server) lightest(r *relay) *relay {
	for _, o := range s.relays {
		if o.load.Load() < r.load.Load() {
			r = o
		}
	}
	return r
}

// begin finds an endpoint for a connection.
func (r *relay) begin(port *port, fd rawFD, client netip.AddrPort) {
	t := port.table.Load()
	if t.proxy || t.protocol != route.TCP {
		r.handOver(port, fd)
		return
	}
	p := &pair{client: client, port: port, last: r.now, listener: t.only}
	p.half[clientSide].fd, p.half[endpointSide].fd = fd, -1
	r.admit(p)
	var err error
	if p.rule, p.backend, err = t.only.target("", p.client.Addr()); err == nil {
		err = errMore
		if p.backend.tls == nil {
			err = r.connect(p)
		}
	}
	if err == nil {
		p.watched = true
		err = r.fd.watch(fd, syscall.EPOLLIN|syscall.EPOLLOUT|syscall.EPOLLRDHUP|edge, p.slot, p.tag|clientSide)
	}
	if err != nil {
		r.refuse(p, err)
	}
}

// refuse ends a connection that gets to no endpoint, or gives it to a goroutine of its own that may.
func (r *relay) refuse(p *pair, err error) {
	if errors.Is(err, errMore) {
		fd := p.half[clientSide].fd
		p.half[clientSide].fd = -1
		if p.watched {
			r.fd.forget(fd)
		}
		r.srv.conns.Add(1)
		r.close(p)
		r.handOver(p.port, fd)
		return
	}
	r.srv.stats.streamsFailed.Add(1)
	r.srv.conf.Log.Debug("stream refused", "listener", p.listener.conf.Key, "serverName", "", "client", p.client, "error", err)
	r.close(p)
}

// handOver gives a connection to a goroutine of its own.
func (r *relay) handOver(port *port, fd rawFD) {
	f := os.NewFile(uintptr(fd), "tcp")
	c, err := net.FileConn(f) // which has a descriptor of its own
	f.Close()
	if err != nil {
		r.srv.stats.acceptErrors.Add(1)
		r.srv.conns.Add(-1)
		return
	}
	go func() {
		defer r.srv.conns.Add(-1)
		port.serve(c)
	}()
}
