// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/dnszone"
)

// Transport is how an upstream is spoken to.
type Transport uint8

// The transports.
const (
	PlainUDP Transport = iota // and TCP where an answer is too long
	PlainTCP
	OverTLS // RFC 7858
)

// Upstream is a resolver that questions are forwarded to.
type Upstream struct {
	Addr      netip.AddrPort
	Transport Transport
	// ServerName is what an OverTLS upstream's certificate must be for.
	ServerName string
}

// String is the upstream as the configuration has it.
func (u Upstream) String() string {
	switch u.Transport {
	case PlainTCP:
		return "tcp://" + u.Addr.String()
	case OverTLS:
		return "tls://" + u.Addr.String()
	}
	return u.Addr.String()
}

// How connections to upstreams are kept.
const (
	keepConns    = 32              // idle connections of one upstream and kind
	keepFor      = 8 * time.Second // below what servers allow (RFC 7766 section 6.2.3 advises seconds)
	socketUses   = 64              // questions before a UDP socket is given up, and with it its port
	upstreamSize = 1232            // of answers over UDP that need no fragments
	probeEvery   = 500 * time.Millisecond
	failuresDown = 2 // in a row
)

// resolver is one upstream at work.
type resolver struct {
	Upstream
	tls  *tls.Config
	udp  connPool
	tcp  connPool
	slow atomic.Int64 // smoothed round trip, nanoseconds

	failures atomic.Int32 // in a row
	probing  atomic.Bool
	looping  atomic.Bool // it sends our questions back to us

	m *upstreamMetrics
}

func newResolver(u Upstream, base *tls.Config, m *upstreamMetrics) *resolver {
	r := &resolver{Upstream: u, m: m}
	r.slow.Store(int64(100 * time.Millisecond))
	if u.Transport == OverTLS {
		r.tls = &tls.Config{}
		if base != nil {
			r.tls = base.Clone()
		}
		r.tls.ServerName = u.ServerName
		if u.ServerName == "" {
			r.tls.ServerName = u.Addr.Addr().String()
		}
		r.tls.MinVersion = tls.VersionTLS12
		r.tls.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	}
	return r
}

func (r *resolver) healthy() bool { return r.failures.Load() < failuresDown && !r.looping.Load() }

// close gives up the idle connections.
func (r *resolver) close() {
	r.udp.close()
	r.tcp.close()
}

// patience is how long one attempt may take before another resolver is tried: several usual round trips.
func (r *resolver) patience() time.Duration {
	return min(max(4*time.Duration(r.slow.Load()), 400*time.Millisecond), 2*time.Second)
}

// exchange asks once and returns the answer, whole. ask is a message whose ID is this function's to write.
func (r *resolver) exchange(ctx context.Context, ask []byte, buf []byte) ([]byte, error) {
	start := time.Now()
	answer, err := r.attempt(ctx, ask, buf)
	took := time.Since(start)
	switch {
	case err == nil:
		r.failures.Store(0)
		old := r.slow.Load()
		r.slow.Store(old + (int64(took)-old)/8)
		r.m.observe(took, answer[3]&15)
	case errors.Is(ctx.Err(), context.Canceled):
		// The server is shutting down: not this resolver's fault.
	default:
		r.failures.Add(1)
	}
	return answer, err
}

func (r *resolver) attempt(ctx context.Context, ask, buf []byte) ([]byte, error) {
	if r.Transport == PlainUDP {
		answer, err := r.overUDP(ctx, ask, buf)
		if err != nil || answer[2]&(flagTC>>8) == 0 {
			return answer, err
		}
		if whole, err := r.overStream(ctx, ask, buf); err == nil {
			return whole, nil
		}
		return answer, nil // cut short is better than nothing; it says so itself
	}
	return r.overStream(ctx, ask, buf)
}

func (r *resolver) overUDP(ctx context.Context, ask, buf []byte) ([]byte, error) {
	c := r.udp.take()
	if c == nil {
		nc, err := (&net.Dialer{}).DialContext(ctx, "udp", r.Addr.String())
		if err != nil {
			return nil, err
		}
		c = &keptConn{Conn: nc}
	} else {
		r.m.reused.Add(1)
	}
	answer, err := udpRoundTrip(ctx, c, ask, buf)
	if c.uses++; err != nil || c.uses >= socketUses {
		_ = c.Close()
		return answer, err
	}
	r.udp.give(c)
	return answer, nil
}

func udpRoundTrip(ctx context.Context, c net.Conn, ask, buf []byte) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(ask, uint16(rand.Uint32()))
	if _, err := c.Write(ask); err != nil {
		return nil, err
	}
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		// Whatever is not the answer to this question is an old one's, or forged.
		if isAnswer(ask, buf[:n]) {
			return buf[:n], nil
		}
	}
}

func (r *resolver) overStream(ctx context.Context, ask, buf []byte) ([]byte, error) {
	if c := r.tcp.take(); c != nil {
		r.m.reused.Add(1)
		if answer, err := streamRoundTrip(ctx, c, ask, buf); err == nil {
			r.tcp.give(c)
			return answer, nil
		}
		_ = c.Close() // the server may have closed it while it lay idle: once more with a new one
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.Addr.String())
	if err != nil {
		return nil, err
	}
	if r.tls != nil {
		tc := tls.Client(nc, r.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
		nc = tc
	}
	c := &keptConn{Conn: nc}
	answer, err := streamRoundTrip(ctx, c, ask, buf)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	r.tcp.give(c)
	return answer, nil
}

func streamRoundTrip(ctx context.Context, c net.Conn, ask, buf []byte) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(ask, uint16(rand.Uint32()))
	framed := make([]byte, 2, 2+len(ask))
	binary.BigEndian.PutUint16(framed, uint16(len(ask)))
	if _, err := c.Write(append(framed, ask...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > len(buf) {
		return nil, errMalformed
	}
	if _, err := io.ReadFull(c, buf[:n]); err != nil {
		return nil, err
	}
	if !isAnswer(ask, buf[:n]) {
		return nil, fmt.Errorf("%w: not to the question asked", errMalformed)
	}
	return buf[:n], nil
}

// isAnswer tells whether a message is an answer to a question: by ID, and by the question itself.
func isAnswer(ask, m []byte) bool {
	if len(m) < headerSize || m[0] != ask[0] || m[1] != ask[1] || m[2]&0x80 == 0 || m[2]&0x78 != 0 {
		return false
	}
	var a, b dnszone.Question
	n := a.Read(ask[headerSize:])
	if binary.BigEndian.Uint16(m[4:]) != 1 || b.Read(m[headerSize:]) != n || headerSize+n+4 > len(m) {
		return false
	}
	return string(a.Wire()) == string(b.Wire()) &&
		string(ask[headerSize+n:headerSize+n+4]) == string(m[headerSize+n:headerSize+n+4])
}

// probe asks for the root's name servers until the resolver answers again, whatever it answers.
func (r *resolver) probe(ctx context.Context) {
	if !r.probing.CompareAndSwap(false, true) {
		return
	}
	defer r.probing.Store(false)
	ask := []byte{0, 0, flagRD >> 8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, classIN}
	buf := make([]byte, maxMessage)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for r.failures.Load() >= failuresDown {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		if _, err := r.exchange(one, ask, buf); err != nil {
			r.m.probeFailures.Add(1)
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keptConn is a connection between two questions.
type keptConn struct {
	net.Conn
	uses  int
	since time.Time
}

// connPool keeps idle connections, the one used last on top.
type connPool struct {
	mu     sync.Mutex
	idle   []*keptConn
	closed bool
}

func (p *connPool) take() *keptConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1]
	if time.Since(c.since) > keepFor {
		// This was the last one used: the others are older still.
		for _, c := range p.idle {
			_ = c.Close()
		}
		p.idle = nil
		return nil
	}
	p.idle = p.idle[:n-1]
	return c
}

func (p *connPool) give(c *keptConn) {
	c.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= keepConns {
		_ = c.Close()
		return
	}
	p.idle = append(p.idle, c)
}

func (p *connPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.Close()
	}
	p.idle = nil
}
