// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// Config is how a Server behaves, whatever its tables. Zero values get the defaults named.
type Config struct {
	IdleTimeout    time.Duration // a kept client connection without a request: 75 s
	HeadTimeout    time.Duration // from a head's first byte, or the connection's start, to its end: 10 s
	BodyTimeout    time.Duration // for each part of a request's body: 60 s
	SendTimeout    time.Duration // for each part of a response, as far as the client takes any: 60 s
	TunnelIdle     time.Duration // an upgraded or TCP connection on which nothing moves: 1 h
	UDPIdle        time.Duration // a UDP session on which nothing moves: 60 s
	MaxConnections int64         // of clients, at a time: 65536. More are closed at once.
	MaxStreams     uint32        // HTTP/2 requests of one connection at a time: 250

	AccessLog AccessLog
	Log       *slog.Logger

	// Tracer is told of requests that belong to a sampled trace, and of TraceShare (0 to 1) of those that belong to none;
	// nil: requests' trace context is passed on as it is.
	Tracer     Tracer
	TraceShare float64

	NewFirewall NewFirewall // nil: policies that ask for one refuse requests

	// TicketSecrets gives what TLS session tickets are sealed with, the same in all replicas; it is asked again every few
	// seconds. nil, or none whose time has come: the server's own, which it keeps to itself.
	TicketSecrets func() []TicketSecret

	// Resolver's Dial connects to the servers of DNS that know UDP endpoints that are names; nil: to the system's.
	Resolver *net.Resolver
}

// Server is a gateway's data plane. Apply tells it what to serve; it serves at once.
type Server struct {
	conf     Config
	tables   *tables
	changes  atomic.Uint64     // to the tables: what was decided before the last one may have to be decided again
	unbound  map[portKey]error // sockets that could not be bound; guarded by the tables' lock
	draining atomic.Bool
	conns    atomic.Int64
	active   atomic.Int64 // requests and streams
	mirrors  atomic.Int64
	idlers   registry // connections to clients
	held     holding
	tunnels  registry // upgraded connections, TCP and TLS passthrough
	relays   []*relay // for plain TCP, made with the first port of it; guarded by the tables' lock until there are some
	stats    serverStats
	tickets  ticketSecrets
	stop     chan struct{}
	stopOnce sync.Once
	running  sync.WaitGroup
}

// New makes a server with nothing to serve. Close ends it.
func New(conf Config) *Server {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&conf.IdleTimeout, 75*time.Second)
	def(&conf.HeadTimeout, 10*time.Second)
	def(&conf.BodyTimeout, 60*time.Second)
	def(&conf.SendTimeout, stuck)
	def(&conf.TunnelIdle, time.Hour)
	def(&conf.UDPIdle, time.Minute)
	if conf.MaxConnections <= 0 {
		conf.MaxConnections = 65536
	}
	if conf.MaxStreams == 0 {
		conf.MaxStreams = 250
	}
	if conf.Log == nil {
		conf.Log = slog.Default()
	}
	s := &Server{conf: conf, tables: newTables(), stop: make(chan struct{})}
	s.tables.newFirewall = conf.NewFirewall
	s.rotateTickets(time.Now())
	s.running.Go(s.sweep)
	return s
}

// Apply takes an update. It returns when the update is served: sockets are bound, tables in place. The error tells
// what of it can't be served; the rest is. It holds a route.ListenerError for each listener that is not served, also of
// those that an earlier update brought.
func (s *Server) Apply(u *route.Update) error {
	s.tables.mu.Lock()
	defer s.tables.mu.Unlock()
	portsChanged, err := s.tables.apply(u, time.Now())
	if portsChanged || len(s.unbound) > 0 { // what could not be bound is tried again with each update
		s.unbound = s.bind()
	}
	s.changes.Add(1)
	return errors.Join(err, s.unserved())
}

// unserved tells of the listeners that are not served.
func (s *Server) unserved() error {
	var errs []error
	for key, l := range s.tables.listeners {
		err := l.fault
		for _, k := range l.sockets() {
			err = errors.Join(err, s.unbound[k])
		}
		if err != nil {
			errs = append(errs, &route.ListenerError{Listener: key, Err: err})
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// Revision is that of the last update applied.
func (s *Server) Revision() uint64 {
	s.tables.mu.Lock()
	defer s.tables.mu.Unlock()
	return s.tables.revision
}

// bind opens and closes sockets so that they are those of the tables. It gives those that could not be opened.
func (s *Server) bind() map[portKey]error {
	want := s.tables.portTables()
	failed := map[portKey]error{}
	for k, p := range s.tables.ports {
		if want[k] == nil {
			p.close()
			delete(s.tables.ports, k)
		}
	}
	for k, t := range want {
		p := s.tables.ports[k]
		if p == nil {
			var err error
			if p, err = s.open(k, t); err != nil {
				failed[k] = fmt.Errorf("listen on %s %s: %w", k.network(), k, err)
				continue
			}
			s.tables.ports[k] = p
		}
		p.table.Store(t)
	}
	return failed
}

// port is one bound socket.
type port struct {
	srv   *Server
	key   portKey
	table atomic.Pointer[portTable]
	l     net.Listener
	udp   *net.UDPConn
	relay *relay // takes the connections; nil: a goroutine does
	// sessions are the clients of UDP.
	sessions udpSessions
}

func (s *Server) open(k portKey, t *portTable) (*port, error) {
	p := &port{srv: s, key: k}
	p.table.Store(t)
	host := ""
	if k.addr.IsValid() {
		host = k.addr.String()
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(k.port)))
	if k.udp {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return nil, err
		}
		p.udp = c.(*net.UDPConn)
		p.sessions.port, p.sessions.all, p.sessions.names = p, map[netip.AddrPort]*udpSession{}, map[string]*udpName{}
		p.sessions.most = maxSessions
		s.running.Go(p.sessions.serve)
		return p, nil
	}
	// What accepted sockets inherit needs no system calls for each of them.
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error { return keepAlive(c) }}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	p.l = l
	if t.protocol != route.TCP {
		s.running.Go(p.accept)
		return p, nil
	}
	if err := s.relayPort(p); err != nil {
		return nil, err
	}
	return p, nil
}

// relayPort leaves the connections of a port to a relay.
func (s *Server) relayPort(p *port) error {
	defer p.l.Close() // the relay has a descriptor of its own
	raw, err := p.l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	if broke := raw.Control(func(l uintptr) { fd, err = syscall.Dup(int(l)) }); broke != nil || err != nil {
		return errors.Join(broke, err)
	}
	syscall.CloseOnExec(fd)
	if s.relays == nil {
		var relays []*relay
		for range runtime.GOMAXPROCS(0) {
			r, err := newRelay(s)
			if err != nil {
				for _, r := range relays {
					r.ep.Close()
				}
				syscall.Close(fd)
				return err
			}
			relays = append(relays, r)
		}
		s.relays = relays
		for _, r := range relays {
			s.running.Go(r.run)
		}
	}
	r := s.relays[int(p.key.port)%len(s.relays)]
	if err := r.listen(p, rawFD(fd)); err != nil {
		return err
	}
	p.relay = r
	return nil
}

// keepAlive has the kernel ask for a sign of life when nothing has come for a while.
func keepAlive(c syscall.RawConn) error {
	var err error
	failed := c.Control(func(fd uintptr) {
		err = errors.Join(rawFD(fd).keepAlive(), rawFD(fd).set(syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1))
	})
	return errors.Join(failed, err)
}

// quiesce takes no more connections.
func (p *port) quiesce() {
	if p.l != nil {
		p.l.Close()
	}
	if p.relay != nil {
		p.relay.unlisten(p)
	}
}

func (p *port) close() {
	p.quiesce()
	if p.udp != nil {
		p.udp.Close()
	}
}

// accept takes connections until the socket is closed.
func (p *port) accept() {
	s := p.srv
	for wait := time.Millisecond; ; {
		c, err := p.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors: connections that end will give some back
			s.stats.acceptErrors.Add(1)
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-s.stop:
				return
			}
			wait = min(2*wait, time.Second)
			continue
		}
		wait = time.Millisecond
		if s.conns.Add(1) > s.conf.MaxConnections {
			s.conns.Add(-1)
			s.stats.overLimit.Add(1)
			c.Close()
			continue
		}
		go func() {
			defer s.conns.Add(-1)
			p.serve(c)
		}()
	}
}

// serve finds out what a connection is and hands it on.
func (p *port) serve(c net.Conn) {
	s, t := p.srv, p.table.Load()
	pe := &peer{port: p, remote: addrPort(c.RemoteAddr()), local: addrPort(c.LocalAddr()), scheme: "http"}
	c = quick(c)
	if t.proxy {
		_ = c.SetReadDeadline(time.Now().Add(s.conf.HeadTimeout))
		var err error
		remote, local := pe.remote, pe.local
		if c, err = readProxyHeader(c, pe); err != nil {
			s.refused(0)
			c.Close()
			return
		}
		if len(t.proxyFrom) > 0 && !within(t.proxyFrom, remote.Addr()) {
			pe.remote, pe.local = remote, local
		}
		_ = c.SetReadDeadline(time.Time{})
	}
	switch t.protocol {
	case route.TCP:
		pe.describe(t.only)
		s.serveTCP(c, pe, t.only)
	case route.HTTPS, route.TLS:
		s.serveTLS(c, pe, t)
	default:
		pe.describe(t.any())
		s.serveH1(c, pe)
	}
}

// any gives some listener of the port: what it tells is the same for all of the port.
func (p *portTable) any() (l *listener) {
	p.byHost.Each(func(o *listener) { l = o })
	return l
}

// describe fills in what requests tell of the connection.
func (pe *peer) describe(l *listener) {
	pe.addr = []byte(pe.remote.Addr().String())
	port := pe.local.Port()
	if l != nil {
		if port = l.conf.PublicPort; port == 0 {
			port = l.conf.Port
		}
		for _, trusted := range l.conf.TrustedProxies {
			pe.forwarded = pe.forwarded || trusted.Contains(pe.remote.Addr())
		}
	}
	pe.portText = strconv.AppendUint(nil, uint64(port), 10)
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

// Drain stops taking connections, ends idle ones, and waits for requests and streams under way until ctx is done;
// what is left then is cut off, and the error tells how much it was. Tunnels are asked to end only then.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	s.tables.mu.Lock()
	for _, p := range s.tables.ports {
		p.quiesce()
	}
	s.tables.mu.Unlock()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s.idlers.interrupt()
		if s.active.Load() == 0 && s.conns.Load() == 0 {
			break
		}
		select {
		case <-ctx.Done():
			n := s.active.Load()
			s.Close()
			if n > 0 {
				return fmt.Errorf("%d requests were cut off", n)
			}
			return nil
		case <-tick.C:
		}
	}
	s.Close()
	return nil
}

// Close ends everything at once.
func (s *Server) Close() {
	s.stopOnce.Do(func() { close(s.stop) })
	s.draining.Store(true)
	s.tables.mu.Lock()
	for k, p := range s.tables.ports {
		p.close()
		delete(s.tables.ports, k)
	}
	for _, c := range s.tables.backends {
		if b := c.Swap(nil); b != nil {
			b.close()
		}
	}
	relays := s.relays
	s.tables.mu.Unlock()
	for _, r := range relays {
		r.stop()
	}
	s.idlers.interrupt()
	s.tunnels.interrupt()
	s.running.Wait()
}

// dropGone ends the requests of clients of HTTP/1.1 that have hung up. Those of HTTP/2 are always listened to.
func (s *Server) dropGone() {
	s.idlers.each(func(i interrupter) {
		if h, ok := i.(*h1conn); ok {
			h.look()
		}
	})
}

// sweep closes idle connections to endpoints that have got too old, and looks after what else takes time to show.
func (s *Server) sweep() {
	t := time.NewTicker(keepIdle / 4)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case now := <-t.C:
			s.rotateTickets(now)
			s.dropGone()
			s.tables.mu.Lock()
			if s.tables.expireStaples(now) && !s.draining.Load() {
				s.unbound = s.bind()
			}
			for _, c := range s.tables.backends {
				if b := c.Load(); b != nil {
					for _, e := range b.endpoints.Load().all {
						e.sweep(now)
					}
				}
			}
			for _, c := range s.tables.policies {
				if p := c.Load(); p != nil {
					for _, l := range p.limits {
						l.buckets.sweep(now.UnixNano())
					}
				}
			}
			s.tables.mu.Unlock()
		}
	}
}

// registry holds what must be told when the server ends.
type registry struct {
	mu  sync.Mutex
	all map[interrupter]struct{}
}

type interrupter interface{ interrupt() }

// add returns what takes it out again.
func (r *registry) add(i interrupter) (forget func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[interrupter]struct{}{}
	}
	r.all[i] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, i)
	}
}

func (r *registry) interrupt() { r.each(interrupter.interrupt) }

func (r *registry) each(f func(interrupter)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.all {
		f(i)
	}
}
