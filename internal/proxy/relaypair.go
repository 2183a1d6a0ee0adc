// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"syscall"
)

// pair is a client's connection and the one to its endpoint.
type pair struct {
	slot int
	tag  uint32 // tells it from others that had its slot; even
	half [2]half

	port      *port
	client    netip.AddrPort
	watched   bool // the client's socket is
	listener  *listener
	rule      *rule
	backend   *backend
	endpoint  *endpoint // whose inflight counts it
	tried     []*endpoint
	connectBy int64 // Unix nanoseconds; 0: it is connected
	last      int64 // when something was moved, Unix nanoseconds
	alive     bool  // the kernel has been told to look whether the endpoint is still there
	queued    bool  // in again
	closed    bool
}

const (
	clientSide   = 0
	endpointSide = 1
)

// half is one of the sockets, and what has been read from it.
type half struct {
	fd       rawFD
	readable bool   // there may be something to read
	writable bool   // something may be taken
	ending   bool   // the end, or an error, comes after what there is to read
	ended    bool   // it has come
	passed   bool   // and the other side has been told
	pending  []byte // read, and not yet taken by the other side
	full     int    // full buffers in a row
	pipe     *kernelPipe
	moved    int64 // bytes
}

// errMore is why a relay does not carry a connection: there is more to it.
var errMore = errors.New("TLS to the endpoint, or an endpoint that has a name")

// admit gives a pair its slot.
func (r *relay) admit(p *pair) {
	if n := len(r.free); n > 0 {
		p.slot, r.free = r.free[n-1], r.free[:n-1]
	} else {
		p.slot = len(r.pairs)
		r.pairs = append(r.pairs, nil)
	}
	r.tags += 2
	p.tag = r.tags
	r.pairs[p.slot] = p
	r.load.Add(1)
}

// connect begins a connection to an endpoint that has not been tried. The endpoint's inflight is counted up.
func (r *relay) connect(p *pair) (err error) {
	for len(p.tried) < connectTries {
		e := p.backend.pick(r.now, p.tried)
		if e == nil {
			return errNoEndpoints
		}
		addr, bad := netip.ParseAddrPort(e.address)
		if bad != nil {
			return errMore
		}
		limit := p.backend.dialLimits(len(p.tried) + 1).connect
		if err = r.connectTo(p, addr); err == nil {
			p.endpoint = e
			e.inflight.Add(1)
			p.connectBy = r.now + int64(limit)
			r.connecting[p] = struct{}{}
			r.within(sweepEvery)
			return nil
		}
		e.unconnected(err)
		p.tried = append(p.tried, e)
	}
	return err
}

// connectTo begins a connection.
func (r *relay) connectTo(p *pair, addr netip.AddrPort) error {
	fd, err := connect(addr)
	if err != nil {
		return os.NewSyscallError("connect", err)
	}
	if err := r.fd.watch(fd, syscall.EPOLLIN|syscall.EPOLLOUT|syscall.EPOLLRDHUP|edge, p.slot, p.tag|endpointSide); err != nil {
		fd.close()
		return os.NewSyscallError("epoll_ctl", err)
	}
	p.half[endpointSide] = half{fd: fd}
	return nil
}

// connected is told of the first events of a connection to an endpoint.
func (r *relay) connected(p *pair, events uint32) {
	h := &p.half[endpointSide]
	if events&(syscall.EPOLLERR|syscall.EPOLLHUP) != 0 {
		code, err := syscall.GetsockoptInt(int(h.fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		if err != nil {
			r.unconnected(p, os.NewSyscallError("connect", err))
			return
		}
	}
	if !h.writable {
		return
	}
	delete(r.connecting, p)
	p.connectBy, p.last, p.tried = 0, r.now, nil
	p.endpoint.succeeded()
	p.rule.stats.streams.Add(1)
	if v := p.backend.conf.ProxyProtocol; v != 0 {
		p.half[clientSide].pending = proxyHeader(v, p.client, p.half[clientSide].fd.local())
	}
	r.move(p)
}

// unconnected tries another endpoint.
func (r *relay) unconnected(p *pair, err error) {
	h := &p.half[endpointSide]
	h.fd.close()
	h.fd = -1
	delete(r.connecting, p)
	p.connectBy = 0
	e := p.endpoint
	p.endpoint = nil
	e.inflight.Add(-1)
	e.unconnected(err)
	if p.tried = append(p.tried, e); len(p.tried) < connectTries {
		err = r.connect(p)
	}
	if err != nil {
		r.refuse(p, err)
	}
}

// movesMost is how often one direction of a pair is read before others have their turn.
const movesMost = 8

// move carries what there is to carry, both ways.
func (r *relay) move(p *pair) {
	if p.closed {
		return
	}
	for side := range p.half {
		more, err := r.carry(&p.half[side], &p.half[1-side], p)
		if err != nil {
			r.close(p)
			return
		}
		if more && !p.queued {
			p.queued = true
			r.again = append(r.again, p)
		}
	}
	if p.half[clientSide].passed && p.half[endpointSide].passed {
		r.close(p)
	}
}

// carry moves what has come from one side to the other. An end of one direction is passed on, and the other goes on
// (half-close). more says that it stopped for the sake of others.
func (r *relay) carry(from, to *half, p *pair) (more bool, err error) {
	for range movesMost {
		if len(from.pending) > 0 {
			if !to.writable {
				return false, nil
			}
			n, err := r.write(from, to, from.pending, p)
			if from.pending = from.pending[n:]; err != nil || len(from.pending) > 0 {
				return false, err
			}
			from.pending = nil
		}
		if from.ended && (from.pipe == nil || from.pipe.n == 0) {
			if !from.passed {
				from.passed = true
				_ = syscall.Shutdown(int(to.fd), syscall.SHUT_WR) // fails when that side has gone, as its events tell
			}
			return false, nil
		}
		if !to.writable {
			return false, nil
		}
		if from.pipe != nil {
			if err := r.splice(from, to, p); err != nil {
				return false, err
			}
			continue
		}
		if !from.readable {
			return false, nil
		}
		n, err := from.fd.read(r.buf)
		switch {
		case err == syscall.EAGAIN:
			from.readable, from.full = false, 0
			return false, nil
		case err != nil:
			return false, os.NewSyscallError("read", err)
		case n == 0:
			from.ended = true
			continue
		}
		if from.full++; n < len(r.buf) {
			from.full = 0
			from.readable = from.ending // there is no more, and more to come will be told of; but an end has been already
		}
		written, err := r.write(from, to, r.buf[:n], p)
		if err != nil {
			return false, err
		}
		if written < n {
			from.pending = bytes.Clone(r.buf[written:n])
		} else if from.full == bulk {
			from.full = 0
			from.pipe = r.takePipe()
		}
	}
	return from.readable && to.writable || from.pipe != nil && to.writable, nil
}

// write gives bytes to a side; what it does not take now it will tell of.
func (r *relay) write(from, to *half, b []byte, p *pair) (int, error) {
	n, err := to.fd.write(b)
	if err == syscall.EAGAIN {
		n, err = 0, nil
	}
	if err != nil {
		return 0, os.NewSyscallError("write", err)
	}
	if n < len(b) {
		to.writable = false
	}
	from.moved += int64(n)
	p.last = r.now
	return n, nil
}

// close ends a pair.
func (r *relay) close(p *pair) {
	if p.closed {
		return
	}
	p.closed = true
	for i := range p.half {
		h := &p.half[i]
		if h.fd >= 0 {
			h.fd.close()
		}
		r.givePipe(h)
		h.pending = nil
	}
	if p.endpoint != nil {
		p.endpoint.inflight.Add(-1)
		p.rule.stats.bytes.Add(uint64(p.half[endpointSide].moved))
	}
	delete(r.connecting, p)
	r.pairs[p.slot] = nil
	r.free = append(r.free, p.slot)
	r.load.Add(-1)
	r.srv.conns.Add(-1)
}

// kernelPipe holds bytes on their way from socket to socket, which no program sees.
type kernelPipe struct {
	r, w rawFD
	n    int // bytes
}

const (
	pipeSize  = 256 << 10
	sparePipe = 16 // kept for later

	setPipeSize = 1031 // F_SETPIPE_SZ
)

// takePipe gives a pipe; nil when there can be none, and bytes are copied as before.
func (r *relay) takePipe() *kernelPipe {
	if n := len(r.pipes); n > 0 {
		k := r.pipes[n-1]
		r.pipes = r.pipes[:n-1]
		return k
	}
	var fds [2]int
	if syscall.Pipe2(fds[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC) != nil {
		return nil
	}
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fds[1]), setPipeSize, pipeSize) // a smaller one will do
	return &kernelPipe{r: rawFD(fds[0]), w: rawFD(fds[1])}
}

// givePipe takes a half's pipe back.
func (r *relay) givePipe(h *half) {
	k := h.pipe
	h.pipe = nil
	switch {
	case k == nil:
	case k.n > 0 || len(r.pipes) >= sparePipe:
		k.close()
	default:
		r.pipes = append(r.pipes, k)
	}
}

func (k *kernelPipe) close() {
	k.r.close()
	k.w.close()
}

// splice moves what flows on and on, without a copy. The pipe goes when the flow pauses.
func (r *relay) splice(from, to *half, p *pair) error {
	k := from.pipe
	if k.n == 0 {
		n, err := from.fd.splice(k.w, pipeSize)
		switch {
		case err == syscall.EAGAIN:
			from.readable = false
			r.givePipe(from)
			return nil
		case err != nil:
			return os.NewSyscallError("splice", err)
		case n == 0:
			from.ended = true
			return nil
		}
		k.n = n
	}
	n, err := k.r.splice(to.fd, k.n)
	switch {
	case err == syscall.EAGAIN:
		to.writable = false
		return nil
	case err != nil:
		return os.NewSyscallError("splice", err)
	}
	k.n -= n
	from.moved += int64(n)
	p.last = r.now
	return nil
}
