// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// pingEvery is how long the server is silent at most; a pod takes a server that is silent for patience, and a server
// a pod, for dead.
const (
	pingEvery = 3 * time.Second
	patience  = 10 * time.Second
)

// Server holds the tables of every gateway and brings them to the gateways' pods. Its methods may be called from any
// goroutine.
type Server struct {
	log *slog.Logger

	mu       sync.Mutex
	epoch    string
	base     uint64
	gateways map[string]*served
	conns    map[*conn]struct{}
	watchers map[int]func(gateway string)
	nextID   int
	greeting map[string]int // connections that have not said who they are yet, by their host
}

// maxGreeting is how many such connections one host may have: anybody in the cluster can open them.
const maxGreeting = 8

// served is one gateway. Its tables are nil until something is published: pods that are there earlier serve on what
// they have.
type served struct {
	tables *tables
	conns  map[*conn]struct{}
}

// State is how far a gateway's pods are.
type State struct {
	// Published is the newest revision; 0 is none.
	Published uint64
	// Connected is how many pods are connected and have said what they serve.
	Connected int
	// Revision is the lowest that the connected pods have confirmed; 0 with none connected.
	Revision uint64
	// Errors are what pods could not serve of what they confirmed, each once, sorted.
	Errors []string
	// Unserved are the listeners, by key, that some pod does not serve, with the pod and the reason.
	Unserved map[string]string
	// Pods are the names of those that are connected.
	Pods map[string]bool
}

// NewServer makes a server that holds nothing. log is told of pods that come and go; nil is slog.Default().
func NewServer(log *slog.Logger) *Server {
	if log == nil {
		log = slog.Default()
	}
	s := &Server{log: log, watchers: make(map[int]func(string)), greeting: make(map[string]int)}
	s.Reset()
	return s
}

// Reset forgets everything that was published and cuts all pods off: a new term of leadership begins. Subscribers
// stay.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = rand.Text()
	// Revisions grow from one controller to the next, as long as their clocks are not years apart.
	s.base = max(uint64(time.Now().UnixMicro()), s.base)
	s.gateways = make(map[string]*served)
	for c := range s.conns {
		c.net.Close()
	}
	s.conns = make(map[*conn]struct{})
}

func (s *Server) gateway(name string) *served {
	g := s.gateways[name]
	if g == nil {
		g = &served{conns: make(map[*conn]struct{})}
		s.gateways[name] = g
	}
	return g
}

// Publish merges an update into a gateway's tables, brings it to the gateway's pods, and returns the revision that
// holds it; that of u is not looked at. An update that changes nothing has the revision of what is there already. The
// first update of a term is the whole picture, whether it says so or not. u is not kept.
func (s *Server) Publish(gateway string, u *route.Update) uint64 {
	s.mu.Lock()
	g := s.gateway(gateway)
	first := g.tables == nil
	if first {
		g.tables = newTables(s.base)
	}
	changed := g.tables.merge(u)
	if first && !changed {
		g.tables.revision++ // nothing at all is a configuration too
		g.tables.since = g.tables.revision
		changed = true
	}
	if changed {
		s.base = max(s.base, g.tables.revision) // of a gateway that is removed and comes again
		for c := range g.conns {
			c.wake()
		}
	}
	revision := g.tables.revision
	s.mu.Unlock()
	return revision
}

// Remove forgets a gateway. Pods of it that are left serve on what they have.
func (s *Server) Remove(gateway string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gateways[gateway]
	if g == nil {
		return
	}
	if len(g.conns) == 0 {
		delete(s.gateways, gateway)
		return
	}
	g.tables = nil
	s.base++ // should it come again, no pod's revision is one of its new tables
}

// Served tells how far a gateway's pods are.
func (s *Server) Served(gateway string) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out State
	g := s.gateways[gateway]
	if g == nil {
		return out
	}
	if g.tables != nil {
		out.Published = g.tables.revision
	}
	for c := range g.conns {
		if out.Connected == 0 || c.confirmed < out.Revision {
			out.Revision = c.confirmed
		}
		out.Connected++
		out.Errors = append(out.Errors, c.errors...)
		if out.Pods == nil {
			out.Pods = make(map[string]bool)
		}
		out.Pods[c.name] = true
		for l, why := range c.unserved {
			if out.Unserved == nil {
				out.Unserved = make(map[string]string)
			}
			if text := fmt.Sprintf("pod %s: %s", c.name, why); out.Unserved[l] == "" || text < out.Unserved[l] {
				out.Unserved[l] = text // one of them, always the same
			}
		}
	}
	slices.Sort(out.Errors)
	out.Errors = slices.Compact(out.Errors)
	return out
}

// Subscribe has f called whenever what Served says of a gateway may have changed. f must not block; it may call the
// server's methods. The function returned ends it.
func (s *Server) Subscribe(f func(gateway string)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextID
	s.nextID++
	s.watchers[id] = f
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, id)
	}
}

// tell calls the subscribers. The caller does not hold the lock.
func (s *Server) tell(gateway string) {
	s.mu.Lock()
	all := make([]func(string), 0, len(s.watchers))
	for _, f := range s.watchers {
		all = append(all, f)
	}
	s.mu.Unlock()
	for _, f := range all {
		f(gateway)
	}
}

// Serve takes pods' connections from l until ctx is done, and then closes l and all of them. conf has the server's
// certificate and the CAs of the pods' (Authority.ServerConfig).
func (s *Server) Serve(ctx context.Context, l net.Listener, conf *tls.Config) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		raw, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("configuration stream: %w", err)
			}
			// Out of file descriptors, say: what ends gives some back.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		running.Go(func() {
			defer raw.Close()
			defer context.AfterFunc(ctx, func() { raw.Close() })()
			s.serve(ctx, tls.Server(raw, conf))
		})
	}
}

// conn is a pod's connection.
type conn struct {
	net  net.Conn
	name string // the pod's, for logs
	due  chan struct{}

	// Guarded by the server's lock.
	confirmed uint64
	errors    []string
	unserved  map[string]string
}

func (c *conn) wake() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// serve talks to one pod until the connection ends.
func (s *Server) serve(ctx context.Context, raw *tls.Conn) {
	gateway, expires, h, err := s.greet(ctx, raw)
	if err != nil { // anybody can cause that as often as they like
		s.log.Debug("a connection that is no gateway's", "remote", raw.RemoteAddr(), "reason", err)
		return
	}
	c := &conn{net: raw, name: h.Pod, due: make(chan struct{}, 1), unserved: h.Unserved}
	c.wake()
	s.mu.Lock()
	g, epoch := s.gateway(gateway), s.epoch
	at := uint64(0) // what the pod has of this epoch
	if h.Epoch == epoch && (g.tables == nil || h.Revision != g.tables.revision || h.Digest == g.tables.digest) {
		at = h.Revision
	}
	c.confirmed = at
	g.conns[c], s.conns[c] = struct{}{}, struct{}{}
	s.mu.Unlock()
	s.log.Info("a gateway's pod is here", "gateway", gateway, "pod", c.name, "revision", h.Revision)
	s.tell(gateway)
	defer func() {
		s.mu.Lock()
		delete(g.conns, c)
		delete(s.conns, c)
		if len(g.conns) == 0 && g.tables == nil && s.gateways[gateway] == g {
			delete(s.gateways, gateway)
		}
		s.mu.Unlock()
		s.tell(gateway)
	}()
	// A certificate that has run out ends what it opened.
	expired := time.AfterFunc(time.Until(expires), func() { raw.Close() })
	defer expired.Stop()
	if err := s.feed(ctx, gateway, g, c, epoch, at, h); err != nil && ctx.Err() == nil {
		s.log.Info("a gateway's pod left", "gateway", gateway, "pod", c.name, "reason", err)
	}
}

// greet finds out who a connection is from, until when that is certain, and what is served there.
func (s *Server) greet(ctx context.Context, raw *tls.Conn) (gateway string, expires time.Time, h hello, err error) {
	host, _, err := net.SplitHostPort(raw.RemoteAddr().String())
	if err != nil {
		return "", expires, h, err
	}
	s.mu.Lock()
	full := s.greeting[host] >= maxGreeting
	if !full {
		s.greeting[host]++
	}
	s.mu.Unlock()
	if full {
		return "", expires, h, errors.New("too many connections that have not said who they are")
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.greeting[host]--; s.greeting[host] == 0 {
			delete(s.greeting, host)
		}
	}()
	_ = raw.SetDeadline(time.Now().Add(patience))
	if err := raw.HandshakeContext(ctx); err != nil {
		return "", expires, h, fmt.Errorf("TLS: %w", err)
	}
	peer := raw.ConnectionState().PeerCertificates
	if len(peer) == 0 {
		return "", expires, h, errors.New("no client certificate")
	}
	if gateway, err = identity(peer[0]); err != nil {
		return "", expires, h, err
	}
	if err := readFrame(raw, &h, maxAnswer); err != nil {
		return "", expires, h, fmt.Errorf("hello: %w", err)
	}
	if h.Version != version {
		return "", expires, h, fmt.Errorf("the pod speaks version %d of the protocol, this controller %d: let the gateway roll out", h.Version, version)
	}
	return gateway, peer[0].NotAfter, h, nil
}

// feed sends what is due and waits until it is confirmed, over and over.
func (s *Server) feed(ctx context.Context, gateway string, g *served, c *conn, epoch string, at uint64, h hello) error {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		u := &update{}
		select {
		case <-ctx.Done():
			return nil
		case <-c.due:
			s.mu.Lock()
			t := g.tables
			if t == nil || t.revision == at || s.gateways[gateway] != g {
				s.mu.Unlock()
				continue
			}
			if at == 0 && h.Epoch != "" && h.Epoch != epoch && h.Digest == t.digest {
				u = &update{Epoch: epoch, Revision: t.revision, Digest: t.digest} // it has all of it, from another controller
			} else {
				u = t.updateFrom(epoch, at)
			}
			s.mu.Unlock()
		case <-ping.C:
		}
		_ = c.net.SetDeadline(time.Now().Add(patience))
		if err := writeFrame(c.net, u, maxUpdate); err != nil {
			return err
		}
		// What a pod has to bind, compile and write down may take long where it is much.
		_ = c.net.SetDeadline(time.Now().Add(3 * patience))
		var a ack
		if err := readFrame(c.net, &a, maxAnswer); err != nil {
			return err
		}
		if u.Epoch == "" {
			continue
		}
		if a.Revision != u.Revision {
			return fmt.Errorf("revision %d was sent, and %d confirmed", u.Revision, a.Revision)
		}
		at = a.Revision
		s.mu.Lock()
		c.confirmed, c.errors, c.unserved = a.Revision, a.Errors, a.Unserved
		if g.tables != nil && g.tables.revision > at {
			c.wake()
		}
		s.mu.Unlock()
		s.tell(gateway)
	}
}
