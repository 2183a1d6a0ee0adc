// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxSessions bounds the UDP sessions of one port: each has a socket and a goroutine. Datagrams of more clients are
// dropped until sessions end.
const maxSessions = 16384

// udpSession is one client's datagrams on their way to one endpoint and back.
type udpSession struct {
	client   netip.AddrPort
	conn     *net.UDPConn // to the endpoint
	endpoint *endpoint
	rule     *rule
	last     atomic.Int64 // Unix nanoseconds
}

// serveUDP carries datagrams until the socket is closed. A session keeps its endpoint until it is quiet for the idle
// time, or the endpoint refuses datagrams.
func (p *port) serveUDP() {
	var mu sync.Mutex
	sessions := map[netip.AddrPort]*udpSession{}
	var back sync.WaitGroup
	defer func() {
		mu.Lock()
		for _, u := range sessions {
			u.conn.Close()
		}
		mu.Unlock()
		back.Wait()
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
		mu.Lock()
		u, count := sessions[client], len(sessions)
		if u != nil {
			u.last.Store(time.Now().UnixNano()) // with the lock held, so that it does not end just now
		}
		mu.Unlock()
		if u == nil {
			if count >= maxSessions {
				p.srv.stats.overLimit.Add(1)
				continue
			}
			if u = p.session(client); u == nil {
				p.srv.stats.streamsFailed.Add(1)
				continue
			}
			mu.Lock()
			sessions[client] = u
			mu.Unlock()
			back.Go(func() {
				for over := false; !over; {
					quiet := u.answers(p)
					mu.Lock()
					if over = !quiet || u.quiet(p.srv.conf.UDPIdle); over {
						delete(sessions, client)
					}
					mu.Unlock()
				}
				u.conn.Close()
				u.endpoint.inflight.Add(-1)
			})
		}
		_, _ = u.conn.Write(buf[:n]) // datagrams may be lost; a refusal ends the session in answers
	}
}

func (p *port) session(client netip.AddrPort) *udpSession {
	l := p.table.Load().only
	r, b, err := l.target("", client.Addr().Unmap())
	if err != nil {
		return nil
	}
	e := b.pick(time.Now().UnixNano(), nil)
	if e == nil {
		return nil
	}
	c, err := net.Dial("udp", e.address)
	if err != nil {
		return nil
	}
	e.inflight.Add(1)
	r.stats.streams.Add(1)
	u := &udpSession{client: client, conn: c.(*net.UDPConn), endpoint: e, rule: r}
	u.last.Store(time.Now().UnixNano())
	return u
}

func (u *udpSession) quiet(idle time.Duration) bool {
	return time.Since(time.Unix(0, u.last.Load())) >= idle
}

// answers carries the endpoint's datagrams back until it is quiet for the idle time, which the result tells, or the
// session has failed.
func (u *udpSession) answers(p *port) (quiet bool) {
	idle := p.srv.conf.UDPIdle
	for {
		_ = u.conn.SetReadDeadline(time.Unix(0, u.last.Load()).Add(idle))
		err := u.receive(func(b []byte) error {
			u.last.Store(time.Now().UnixNano())
			u.rule.stats.bytes.Add(uint64(len(b)))
			_, err := p.udp.WriteToUDPAddrPort(b, u.client)
			return err
		})
		switch {
		case err == nil:
		case timedOut(err) && !u.quiet(idle):
		case timedOut(err):
			return true
		default:
			return false
		}
	}
}

// receive waits for a datagram and has it taken. It holds a buffer only then, so that sessions that wait cost none. The
// error is that of the session: a datagram that take can't pass on is lost, unless the port is closed.
func (u *udpSession) receive(take func([]byte) error) error {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return err
	}
	var broke error
	err = raw.Read(func(fd uintptr) bool {
		buf := largeBuffers.Get().(*[]byte)
		defer largeBuffers.Put(buf)
		for {
			n, err := syscall.Read(int(fd), *buf)
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				return false
			case err != nil:
				broke = os.NewSyscallError("read", err)
			default:
				if err := take((*buf)[:n]); errors.Is(err, net.ErrClosed) {
					broke = err
				}
			}
			return true
		}
	})
	if err == nil {
		err = broke
	}
	return err
}
