// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxPipelined = 128             // questions of one connection that wait for an upstream
	writeWithin  = 5 * time.Second // for a client to take its answers
	flushAt      = 32 << 10        // octets of answers that are sent without waiting for more
)

// tcpListener is the listening socket and its connections.
type tcpListener struct {
	net.Listener
	mu       sync.Mutex
	open     map[*tcpConn]bool
	stopping bool
}

func listenTCP(ctx context.Context, addr netip.AddrPort) (*tcpListener, error) {
	network := "tcp6"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(ctx, network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %s (TCP): %w", addr, err)
	}
	return &tcpListener{Listener: l, open: make(map[*tcpConn]bool)}, nil
}

// connTable bounds connections, in all and of one client.
type connTable struct {
	mu             sync.Mutex
	of             map[netip.Addr]int
	n              int
	max, perClient int
}

func (t *connTable) limit(all, perClient int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.max, t.perClient = all, perClient
}

func (t *connTable) enter(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n >= t.max || t.of[a] >= t.perClient {
		return false
	}
	if t.of == nil {
		t.of = make(map[netip.Addr]int)
	}
	t.n++
	t.of[a]++
	return true
}

func (t *connTable) leave(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	if t.of[a]--; t.of[a] == 0 {
		delete(t.of, a)
	}
}

// serveTCP accepts connections until the listener is stopped, then waits for them to end.
func (s *Server) serveTCP(l *tcpListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if ne := net.Error(nil); errors.As(err, &ne) && !errors.Is(err, syscall.EINVAL) {
				// Out of descriptors, or the client is gone already. Others may do better in a moment.
				time.Sleep(5 * time.Millisecond)
				continue
			}
			return err
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !s.conns.enter(from) {
			s.stats.refusedConnections.Add(1)
			_ = c.Close()
			continue
		}
		tc := &tcpConn{s: s, l: l, c: c, client: clientAddr{from.WithZone("")}, room: make(chan struct{}, maxPipelined)}
		if !l.add(tc) {
			s.conns.leave(from)
			_ = c.Close()
			continue
		}
		s.stats.connections.Add(1)
		wg.Go(func() {
			defer s.conns.leave(from)
			defer s.stats.connections.Add(-1)
			defer l.remove(tc)
			tc.serve()
		})
	}
}

func (l *tcpListener) add(c *tcpConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping {
		return false
	}
	l.open[c] = true
	return true
}

func (l *tcpListener) remove(c *tcpConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
}

// stop takes no more connections and no more questions on those that there are.
func (l *tcpListener) stop() {
	_ = l.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping = true
	for c := range l.open {
		_ = c.c.SetReadDeadline(time.Unix(1, 0))
	}
}

func (l *tcpListener) close() {
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		_ = c.c.Close()
	}
}

// tcpConn is a connection. Questions may come without waiting for answers, which go back in the order in which they
// are had (RFC 7766 section 6.2.1.1).
type tcpConn struct {
	s      *Server
	l      *tcpListener
	c      net.Conn
	client clientAddr

	mu      sync.Mutex // of writing
	waiting sync.WaitGroup
	room    chan struct{} // one place for each question that waits for an upstream
}

// answersPool holds buffers for answers that are about to be sent: a connection has one while it has something to say.
var answersPool = sync.Pool{New: func() any { b := make([]byte, 0, flushAt+2+maxMessage+512); return &b }}

func (t *tcpConn) serve() {
	defer func() {
		t.waiting.Wait()
		_ = t.c.Close()
	}()
	w := t.s.newTCPWorker()
	p := packet{client: t.client, to: t.later}
	in := make([]byte, 2+maxAsk)
	have := 0
	for {
		v := t.s.view.Load()
		if v == nil {
			return
		}
		if err := t.idle(time.Duration(v.cfg.Limits.IdleConnection)); err != nil {
			return
		}
		n, err := t.c.Read(in[have:])
		if n == 0 && err != nil {
			if !errors.Is(err, io.EOF) && have > 0 {
				t.s.stats.badPackets.Add(1)
			}
			return
		}
		have += n
		p.now = t.s.now()
		used, ok := t.burst(w, &p, in[:have])
		if !ok {
			return
		}
		have = copy(in, in[used:have])
	}
}

// burst answers the whole questions in what was read, and returns how much that was.
func (t *tcpConn) burst(w *worker, p *packet, in []byte) (used int, ok bool) {
	out := answersPool.Get().(*[]byte)
	defer func() {
		*out = (*out)[:0]
		answersPool.Put(out)
	}()
	for len(in)-used >= 2 {
		size := int(binary.BigEndian.Uint16(in[used:]))
		if size > maxAsk {
			t.s.stats.badPackets.Add(1)
			return 0, false // no query is as long
		}
		if len(in)-used < 2+size {
			break
		}
		p.data = in[used+2 : used+2+size]
		used += 2 + size
		if !t.one(w, p, out) {
			return 0, false
		}
	}
	return used, t.flush(out)
}

// idle sets how long the client may take for its next question; unless the listener was stopped meanwhile.
func (t *tcpConn) idle(d time.Duration) error {
	if err := t.c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	if t.l.stopping {
		return net.ErrClosed
	}
	return nil
}

// one answers one question at the end of out.
func (t *tcpConn) one(w *worker, p *packet, out *[]byte) bool {
	if len(*out) > flushAt && !t.flush(out) {
		return false
	}
	at := len(*out)
	// The answer's offsets count from its own start. There is room for the longest.
	answer := w.serve(p, (*out)[at+2:at+2])
	if answer != nil {
		*out = (*out)[:at+2+len(answer)]
		binary.BigEndian.PutUint16((*out)[at:], uint16(len(answer)))
	}
	return true
}

func (t *tcpConn) flush(out *[]byte) bool {
	if len(*out) == 0 {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.c.SetWriteDeadline(time.Now().Add(writeWithin))
	_, err := t.c.Write(*out)
	*out = (*out)[:0]
	return err == nil
}

// later makes place for one more question that waits; with none left the connection reads no further.
func (t *tcpConn) later() responder {
	t.room <- struct{}{}
	t.waiting.Add(1)
	return tcpResponder{t}
}

type tcpResponder struct{ t *tcpConn }

func (r tcpResponder) respond(msg []byte) {
	defer r.t.waiting.Done()
	defer func() { <-r.t.room }()
	framed := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(framed, uint16(len(msg)))
	framed = append(framed, msg...)
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	_ = r.t.c.SetWriteDeadline(time.Now().Add(writeWithin))
	if _, err := r.t.c.Write(framed); err != nil {
		_ = r.t.c.Close()
	}
}
