// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// sockets gives a quick connection and its other end.
func sockets(t testing.TB) (*socket, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	o, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); o.Close() })
	return quick(c).(*socket), o.(*net.TCPConn)
}

// TestSocketLargeWrites: what the kernel does not take at once arrives whole and in order, also where the first piece is what
// it stops in.
func TestSocketLargeWrites(t *testing.T) {
	first := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	for _, sizes := range [][2]int{{0, 0}, {1, 0}, {0, 1}, {100, 5}, {0, len(first)}, {len(first), 0}, {len(first), len(first)}} {
		s, o := sockets(t)
		p, more := first[:sizes[0]], first[:sizes[1]]
		got := make(chan []byte)
		go func() {
			all, _ := io.ReadAll(o)
			got <- all
		}()
		n, err := s.writeBoth(p, more)
		if err != nil || n != len(p)+len(more) {
			t.Errorf("%v: %d, %v", sizes, n, err)
		}
		_ = s.CloseWrite()
		if all := <-got; !bytes.Equal(all, append(bytes.Clone(p), more...)) {
			t.Errorf("%v: %d bytes arrived, not those that were sent", sizes, len(all))
		}
	}
}

// TestSocketWaits: reads wait for what comes and writes for room, until the deadline; what was written until then is told.
func TestSocketWaits(t *testing.T) {
	s, o := sockets(t)
	go func() {
		time.Sleep(10 * time.Millisecond) // the read below waits, if this machine is not too slow
		_, _ = o.Write([]byte("late"))
	}()
	b := make([]byte, 10)
	if n, err := s.Read(b); err != nil || string(b[:n]) != "late" {
		t.Errorf("%q, %v", b[:n], err)
	}
	_ = s.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := s.Read(b); n != 0 || !timedOut(err) {
		t.Errorf("a read without data: %d, %v", n, err)
	}
	n, much := 0, make([]byte, 64<<20)
	for d := 20 * time.Millisecond; n == 0; d *= 2 { // until it comes to write before the deadline
		_ = s.SetDeadline(time.Now().Add(d))
		var err error
		if n, err = s.Write(much); !timedOut(err) {
			t.Fatalf("a write that nobody takes: %d, %v", n, err)
		}
	}
	_ = s.SetDeadline(time.Time{})
	go func() {
		_, _ = io.CopyN(io.Discard, o, int64(n))
		_, _ = o.Write([]byte("all"))
	}()
	if n, err := s.Read(b); err != nil || string(b[:n]) != "all" {
		t.Errorf("after the deadline: %q, %v", b[:n], err)
	}
}

// TestSocketEnds: ends and errors are those that package net tells, in its words.
func TestSocketEnds(t *testing.T) {
	b := make([]byte, 10)
	s, o := sockets(t)
	if n, err := s.Read(nil); n != 0 || err != nil {
		t.Errorf("a read of nothing: %d, %v", n, err)
	}
	o.Close()
	if n, err := s.Read(b); n != 0 || err != io.EOF {
		t.Errorf("the end: %d, %v", n, err)
	}
	s, o = sockets(t)
	_ = o.SetLinger(0)
	o.Close()
	_, err := s.Read(b)
	want := (&net.OpError{Op: "read", Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("read", syscall.ECONNRESET)}).Error()
	if !errors.Is(err, syscall.ECONNRESET) || err.Error() != want {
		t.Errorf("a reset: %v, want %s", err, want)
	}
	if _, err = s.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a write after a reset: %v", err)
	}
	s, _ = sockets(t)
	failed := make(chan error)
	go func() {
		_, err := s.Read(b)
		failed <- err
	}()
	s.Close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read of a connection that is closed meanwhile: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write to a closed connection: %v", err)
	}
}

// TestSocketNoGarbage: calls make none, as millions of them would show.
func TestSocketNoGarbage(t *testing.T) {
	s, o := sockets(t)
	b, half := make([]byte, 16), []byte("12345678")
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.writeBoth(half, half); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(o, b); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
