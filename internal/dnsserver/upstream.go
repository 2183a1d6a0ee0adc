// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
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

	failures atomic.Int32 // questions in a row
	probing  atomic.Bool
	looping  atomic.Bool // it sends our questions back to us

	ctx    context.Context // ends with the configuration that it is of
	cancel context.CancelFunc

	m *upstreamMetrics
}

func newResolver(ctx context.Context, u Upstream, base *tls.Config, m *upstreamMetrics) *resolver {
	r := &resolver{Upstream: u, m: m}
	r.ctx, r.cancel = context.WithCancel(ctx)
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

// close ends the probing and gives up the idle connections. Questions under way are answered yet.
func (r *resolver) close() {
	r.cancel()
	r.udp.close()
	r.tcp.close()
}

// patience is how long one try may take before another one is begun beside it: several usual round trips.
func (r *resolver) patience() time.Duration {
	return min(max(4*time.Duration(r.slow.Load()), 400*time.Millisecond), 2*time.Second)
}

// exchange asks once and returns the answer, whole, which is the caller's. ask stays as it is. fresh has the question
// go over a connection of its own: those that lie idle may be why an earlier one got lost. Once ctx ends it returns.
func (r *resolver) exchange(ctx context.Context, ask []byte, fresh bool) ([]byte, error) {
	start := time.Now()
	answer, err := r.attempt(ctx, ask, fresh)
	if err == nil && withoutEDNS(answer) {
		// A server from before EDNS (RFC 6891 section 7).
		answer, err = r.attempt(ctx, plain(ask), fresh)
	}
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	r.failures.Store(0)
	r.learn(took)
	r.m.observe(took, answer[3]&15)
	return answer, nil
}

func (r *resolver) learn(took time.Duration) {
	old := r.slow.Load()
	r.slow.Store(old + (int64(took)-old)/8)
}

// fail notes a question that the resolver has not answered in that time.
func (r *resolver) fail(waited time.Duration) {
	r.failures.Add(1)
	if int64(waited) > r.slow.Load() {
		r.learn(waited) // it takes at least as long
	}
}

// withoutEDNS tells whether an answer is FORMERR, and that of a server that does not know OPT records.
func withoutEDNS(m []byte) bool {
	return m[3]&15 == rcodeFormErr && binary.BigEndian.Uint16(m[10:]) == 0
}

// plain is a question that appendAsk made, without its OPT record.
func plain(ask []byte) []byte {
	out := append([]byte(nil), ask[:len(ask)-optSize]...)
	out[11] = 0
	return out
}

func (r *resolver) attempt(ctx context.Context, ask []byte, fresh bool) ([]byte, error) {
	if r.Transport == PlainUDP {
		answer, err := r.overUDP(ctx, ask, fresh)
		if err != nil || answer[2]&(flagTC>>8) == 0 {
			return answer, err
		}
		if whole, err := r.overStream(ctx, ask, fresh); err == nil {
			return whole, nil
		}
		return answer, nil // cut short is better than nothing; it says so itself
	}
	return r.overStream(ctx, ask, fresh)
}

func (r *resolver) overUDP(ctx context.Context, ask []byte, fresh bool) ([]byte, error) {
	c := r.udp.take(fresh)
	if c == nil {
		nc, err := (&net.Dialer{}).DialContext(ctx, "udp", r.Addr.String())
		if err != nil {
			return nil, err
		}
		c = &keptConn{Conn: nc}
	} else {
		r.m.reused.Add(1)
	}
	answer, err := udpRoundTrip(ctx, c, ask)
	if c.uses++; err != nil || c.uses >= socketUses {
		_ = c.Close()
		return answer, err
	}
	r.udp.give(c)
	return answer, nil
}

// bind has the connection's reads and writes end with ctx, until release.
func (c *keptConn) bind(ctx context.Context) (release func(), err error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return func() { c.spoilt = !stop() }, nil
}

// udpAnswer is room for an answer over UDP. Servers that send more than they were allowed exist.
const udpAnswer = 4096

var udpBuffers = sync.Pool{New: func() any { b := make([]byte, udpAnswer); return &b }}

func udpRoundTrip(ctx context.Context, c *keptConn, ask []byte) ([]byte, error) {
	release, err := c.bind(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	pooled := udpBuffers.Get().(*[]byte)
	defer udpBuffers.Put(pooled)
	buf := *pooled
	id := uint16(rand.Uint32())
	sent := buf[:copy(buf, ask)]
	binary.BigEndian.PutUint16(sent, id)
	if _, err := c.Write(sent); err != nil {
		return nil, err
	}
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		// Whatever is not the answer to this question is an old one's, or forged.
		if isAnswer(ask, id, buf[:n]) {
			return append([]byte(nil), buf[:n]...), nil
		}
	}
}

func (r *resolver) overStream(ctx context.Context, ask []byte, fresh bool) ([]byte, error) {
	if c := r.tcp.take(fresh); c != nil {
		r.m.reused.Add(1)
		if answer, err := streamRoundTrip(ctx, c, ask); err == nil {
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
	answer, err := streamRoundTrip(ctx, c, ask)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	r.tcp.give(c)
	return answer, nil
}

func streamRoundTrip(ctx context.Context, c *keptConn, ask []byte) ([]byte, error) {
	release, err := c.bind(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	id := uint16(rand.Uint32())
	framed := make([]byte, 2, 2+len(ask))
	binary.BigEndian.PutUint16(framed, uint16(len(ask)))
	framed = append(framed, ask...)
	binary.BigEndian.PutUint16(framed[2:], id)
	if _, err := c.Write(framed); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	if !isAnswer(ask, id, answer) {
		return nil, fmt.Errorf("%w: not to the question asked", errMalformed)
	}
	return answer, nil
}

// isAnswer tells whether a message is an answer to a question: by ID, and by the question itself.
func isAnswer(ask []byte, id uint16, m []byte) bool {
	if len(m) < headerSize || binary.BigEndian.Uint16(m) != id || m[2]&0x80 == 0 || m[2]&0x78 != 0 {
		return false
	}
	if m[3]&15 == rcodeFormErr && len(m) == headerSize && string(m[4:headerSize]) == "\x00\x00\x00\x00\x00\x00\x00\x00" {
		return true // who can't read a question can't repeat it
	}
	var a, b dnszone.Question
	n := a.Read(ask[headerSize:])
	if binary.BigEndian.Uint16(m[4:]) != 1 || b.Read(m[headerSize:]) != n || headerSize+n+4 > len(m) {
		return false
	}
	return string(a.Wire()) == string(b.Wire()) &&
		string(ask[headerSize+n:headerSize+n+4]) == string(m[headerSize+n:headerSize+n+4])
}

// probe asks for the root's name servers until the resolver answers again, whatever it answers, or is closed.
func (r *resolver) probe() {
	if !r.probing.CompareAndSwap(false, true) {
		return
	}
	defer r.probing.Store(false)
	ask := appendAsk(nil, []byte{0}, typeNS, false, false)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for r.failures.Load() >= failuresDown {
		one, cancel := context.WithTimeout(r.ctx, 2*time.Second)
		if _, err := r.exchange(one, ask, true); err != nil && r.ctx.Err() == nil {
			r.m.probeFailures.Add(1)
		}
		cancel()
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keptConn is a connection between two questions.
type keptConn struct {
	net.Conn
	uses   int
	since  time.Time
	spoilt bool // its deadline may still change: nobody else's to use
}

// connPool keeps idle connections, the one used last on top.
type connPool struct {
	mu     sync.Mutex
	idle   []*keptConn
	closed bool
}

// take is an idle connection, or nil; with fresh always nil.
func (p *connPool) take(fresh bool) *keptConn {
	if fresh {
		return nil
	}
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
	if p.closed || c.spoilt || len(p.idle) >= keepConns {
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
