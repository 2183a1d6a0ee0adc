// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/route"
)

func (s *Server) serveTCP(c net.Conn, pe *peer, l *listener) { s.serveStream(c, pe, l, "") }

// serveStream connects a client with an endpoint of the route that the listener has for the server name ("" for TCP).
func (s *Server) serveStream(c net.Conn, pe *peer, l *listener, name string) {
	defer c.Close()
	up, r, err := s.connect(pe, l, name)
	if err != nil {
		s.stats.streamsFailed.Add(1)
		s.conf.Log.Debug("stream refused", "listener", l.conf.Key, "serverName", name, "client", pe.remote, "error", err)
		return
	}
	defer up.conn.Close()
	defer up.endpoint.inflight.Add(-1)
	r.stats.streams.Add(1)
	dst := c
	if p, ok := c.(*transport); ok { // write what was read ahead, then copy socket to socket
		_ = up.conn.SetWriteDeadline(time.Now().Add(stuck))
		if _, err := up.conn.Write(p.ahead); err != nil {
			return
		}
		p.ahead = nil
		dst = p.Conn
	}
	forget := s.tunnels.add(closer{c, up.conn})
	defer forget()
	r.stats.bytes.Add(uint64(tunnel(dst, up.conn, s.conf.TunnelIdle)))
}

type streamUpstream struct {
	conn     net.Conn
	endpoint *endpoint
}

var (
	errSource      = errors.New("a policy keeps the source out")
	errNoRoute     = errors.New("no route is attached")
	errNoBackend   = errors.New("the route has no usable backend")
	errGuarded     = errors.New("the route asks more of its clients than a question can show")
	errNoEndpoints = errors.New("the backend has no endpoints")
)

// admit gives the rule for a connection or session of a client. Of policies, sources count.
func (l *listener) admit(name string, client netip.Addr) (*rule, error) {
	e := l.route(name, &route.Request{Path: "/"})
	if e == nil {
		return nil, errNoRoute
	}
	r := e.Target.(*rule)
	plan := r.planFor(l)
	if plan.invalid != "" {
		return nil, errors.New(plan.invalid)
	}
	if g := plan.guards; g != nil && g.sources != nil && !allowed(g.sources, client) {
		return nil, errSource
	}
	if r.invalid != "" {
		return nil, errNoBackend
	}
	return r, nil
}

// target is admit, with a backend that the rule's weights choose.
func (l *listener) target(name string, client netip.Addr) (*rule, *backend, error) {
	r, err := l.admit(name, client)
	if err != nil {
		return nil, nil, err
	}
	if w := r.choose(); w != nil {
		if b := w.usable(); b != nil {
			return r, b, nil
		}
	}
	return nil, nil, errNoBackend
}

// usable gives the backend, if connections may be made to it.
func (w *weighted) usable() *backend {
	if w.cell == nil {
		return nil
	}
	b := w.cell.Load()
	if b == nil || b.err != nil || b.conf.Invalid != "" {
		return nil
	}
	return b
}

// keeps gives the endpoint of an address, if the rule still uses it.
func (r *rule) keeps(address string) *endpoint {
	before := uint64(0)
	for i := range r.backends {
		w := &r.backends[i]
		weight := w.upto - before
		before = w.upto
		b := w.usable()
		if weight == 0 || b == nil {
			continue
		}
		if list := b.endpoints.Load(); list != nil {
			for _, e := range list.active {
				if e.address == address {
					return e
				}
			}
		}
	}
	return nil
}

// connect finds an endpoint that takes the connection. Its inflight is counted up.
func (s *Server) connect(pe *peer, l *listener, name string) (streamUpstream, *rule, error) {
	r, b, err := l.target(name, pe.remote.Addr())
	if err != nil {
		return streamUpstream{}, nil, err
	}
	var tried []*endpoint
	for range connectTries {
		e := b.pick(time.Now().UnixNano(), tried)
		if e == nil {
			return streamUpstream{}, nil, errNoEndpoints
		}
		e.inflight.Add(1)
		var c net.Conn
		if c, err = e.dial(context.Background(), b.dialLimits(len(tried)+1), pe, nil); err == nil {
			e.succeeded()
			return streamUpstream{c, e}, r, nil
		}
		e.inflight.Add(-1)
		e.unconnected(err)
		tried = append(tried, e)
	}
	return streamUpstream{}, nil, err
}
