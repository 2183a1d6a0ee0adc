// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// socket is a TCP connection that is read and written by system calls of which the scheduler is not told. They never wait,
// and telling costs more than bookkeeping: on a core that idles between requests each first call would wake the runtime's
// watchdog thread, which then looks for calls that wait up to 20,000 times a second, on the same core.
//
// One goroutine may read while another one writes, as those of a wire and of TLS do; not more. What else there is to a
// net.TCPConn is the connection's own.
type socket struct {
	*net.TCPConn
	raw syscall.RawConn

	in, out       transfer
	receive, send func(fd uintptr) bool // made once: a closure for each call would be garbage

	question []byte                // not written yet, see ask
	inquire  func(fd uintptr) bool // made with the first question
}

// transfer is what a call has in hand.
type transfer struct {
	p, more []byte // to read into; to write, one after the other
	n       int    // bytes done
	err     error
	vector  [2]syscall.Iovec
}

// quick gives a TCP connection such calls. Others stay as they are.
func quick(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c
	}
	s := &socket{TCPConn: t, raw: raw}
	s.receive, s.send = s.in.receive, s.out.send
	return s
}

// SyscallConn implements syscall.Conn.
func (s *socket) SyscallConn() (syscall.RawConn, error) { return s.raw, nil }

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.in.p = p
	return s.received(s.raw.Read(s.receive))
}

// ask writes p if there is nothing to read, and reads what comes then. asked is false when there was something, even an end,
// or p could not be written, of which err tells. That takes no more system calls than writing and reading do: a read before
// there is an answer finds nothing in any case, and this one is made before the question.
func (s *socket) ask(p, answer []byte) (n int, asked bool, err error) {
	if s.inquire == nil {
		s.inquire = s.inquireOnce
	}
	s.in.p, s.question = answer, p
	err = s.raw.Read(s.inquire)
	if s.question != nil { // p was not written
		s.question = nil
		_, failed := s.in.end()
		switch {
		case err != nil:
			err = s.fault("read", err)
		case failed != nil:
			err = failed
		}
		return 0, false, err
	}
	n, err = s.received(err)
	return n, true, err
}

// inquireOnce is false once the question has been written, until there is an answer.
func (s *socket) inquireOnce(fd uintptr) bool {
	if s.question == nil {
		return s.in.receive(fd)
	}
	if _, err := rawFD(fd).read(s.in.p); err != syscall.EAGAIN {
		return true
	}
	if _, s.in.err = s.Write(s.question); s.in.err != nil {
		return true
	}
	s.question = nil
	return false
}

// received is what has become of a read.
func (s *socket) received(err error) (int, error) {
	n, failed := s.in.end()
	switch {
	case err != nil:
		return n, s.fault("read", err)
	case failed != nil:
		return 0, s.fault("read", os.NewSyscallError("read", failed))
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (s *socket) Write(p []byte) (int, error) { return s.writeBoth(p, nil) }

// writeBoth writes two pieces, with one system call if the kernel takes all.
func (s *socket) writeBoth(p, more []byte) (int, error) {
	s.out.p, s.out.more = p, more
	err := s.raw.Write(s.send)
	n, failed := s.out.end()
	switch {
	case err != nil:
		return n, s.fault("write", err)
	case failed != nil:
		return n, s.fault("write", os.NewSyscallError("write", failed))
	}
	return n, nil
}

// fault is the error that package net has for it.
func (s *socket) fault(op string, err error) error {
	var o *net.OpError
	if errors.As(err, &o) {
		err = o.Err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// end forgets what was in hand, which is its owner's again.
func (t *transfer) end() (n int, err error) {
	n, err = t.n, t.err
	*t = transfer{}
	return n, err
}

// receive is false when there is nothing to read yet.
func (t *transfer) receive(fd uintptr) bool {
	n, err := rawFD(fd).read(t.p)
	if err == syscall.EAGAIN {
		return false
	}
	if t.err = err; err == nil {
		t.n = n
	}
	return true
}

// send is false when the kernel takes no more yet.
func (t *transfer) send(fd uintptr) bool {
	for len(t.p) > 0 || len(t.more) > 0 {
		n, err := t.sendSome(rawFD(fd))
		if err == syscall.EAGAIN {
			return false
		}
		if t.err = err; err != nil {
			return true
		}
		t.n += n
		first := min(n, len(t.p))
		t.p, t.more = t.p[first:], t.more[n-first:]
	}
	return true
}

func (t *transfer) sendSome(fd rawFD) (int, error) {
	if len(t.more) == 0 {
		return fd.write(t.p)
	}
	for i, p := range [...][]byte{t.p, t.more} {
		t.vector[i] = syscall.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
	}
	return rawCall(syscall.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&t.vector)), uintptr(len(t.vector)), 0)
}
