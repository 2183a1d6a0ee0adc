// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/dnszone"
)

// Server answers queries. Its configuration and zone can be changed at any time; a query sees one or the other
// whole.
type Server struct {
	log     *slog.Logger
	start   time.Time
	jar     *cookieJar
	view    atomic.Pointer[view]
	flights flights
	stats   Stats
	queries queryLog
	tls     *tls.Config // what connections to upstreams start from; nil trusts the system's authorities
	loops   sync.Map    // token -> *resolver; see watchLoops
	turns   turns       // of what comes over TCP

	ctx        context.Context // ends the flights
	cancel     context.CancelFunc
	background sync.WaitGroup

	conns     connTable
	stopLoops context.CancelFunc // of the view's watchLoops
}

// view is a configuration at work.
type view struct {
	cfg    *Config
	zone   *dnszone.Zone
	outer  *dnszone.External // then there is no zone, and nothing is forwarded
	static *static
	routes []*forwarder // the longest zone first
	cache  *cache
	search *searchPath

	limiter    *limiter
	udpSize    int
	serveStale time.Duration
	lifetimes  lifetimes

	zoneCluster, zoneV4, zoneV6, zoneRoot int // indexes in stats
}

// New makes a server that drops all queries until Apply.
func New(log *slog.Logger) (*Server, error) {
	jar, err := newCookieJar()
	if err != nil {
		return nil, err
	}
	s := &Server{log: log, start: time.Now(), jar: jar}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.flights.byKey = make(map[flightKey]*flight)
	s.stats.server = "dns://:53"
	s.stats.slow = s.stats.newCounts()
	s.stats.cache = func() *cache {
		if v := s.view.Load(); v != nil && v.outer == nil {
			return v.cache
		}
		return nil
	}
	s.stats.flights = func() (int, int) {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		return len(s.flights.byKey), s.flights.waiting
	}
	return s, nil
}

// Stats is what the server counts; a prometheus.Collector.
func (s *Server) Stats() *Stats { return &s.stats }

// now is nanoseconds on the server's own clock, which never goes back.
func (s *Server) now() int64 { return int64(time.Since(s.start)) }

// Apply puts a configuration and its zone to work. On an error what was at work stays. What the cache holds stays,
// unless its bounds change, but for names that others are asked now. One goroutine calls Apply.
func (s *Server) Apply(cfg *Config, zone *dnszone.Zone) error {
	v, err := s.newView(cfg)
	if err != nil {
		return err
	}
	v.zone = zone
	v.zoneCluster = s.stats.zones.index(zone.Domain() + ".")
	v.zoneV4, v.zoneV6 = s.stats.zones.index("in-addr.arpa."), s.stats.zones.index("ip6.arpa.")
	v.limiter = newLimiter(cfg.Limits.QueriesPerSec, 32, 128)
	s.put(v)
	s.stats.reloads.Add(1)
	return nil
}

// ApplyExternal puts zones for the outside world to work: nothing is forwarded, and clients are taken to be
// anybody.
func (s *Server) ApplyExternal(cfg *Config, zones *dnszone.External) {
	v := &view{
		cfg: cfg, outer: zones, udpSize: cfg.Limits.UDPSize, cache: newCache(1, 1),
		limiter: newLimiter(cfg.External.QueriesPerSec, 24, 56),
	}
	v.zoneCluster = s.stats.zones.index("external.")
	v.zoneRoot = s.stats.zones.index(".")
	s.put(v)
}

func (s *Server) put(v *view) {
	s.flights.mu.Lock()
	s.flights.maxFlights, s.flights.maxWaiting = v.cfg.Limits.Upstream, v.cfg.Limits.Waiting
	s.flights.mu.Unlock()
	s.conns.limit(v.cfg.Limits.Connections, v.cfg.Limits.PerClient)
	old := s.view.Swap(v)
	s.setLog(v.cfg.LogQueries)
	if s.stopLoops != nil {
		s.stopLoops()
	}
	if len(v.routes) > 0 {
		ctx, stop := context.WithCancel(s.ctx)
		s.stopLoops = stop
		s.background.Add(1)
		go func() { defer s.background.Done(); s.watchLoops(ctx, v.routes) }()
	}
	if old != nil {
		for _, f := range old.routes {
			for _, r := range f.resolvers {
				r.close()
			}
		}
		if old.cache == v.cache {
			v.forget(old)
		}
	}
}

// forget takes out of the cache what others would be asked now than were before.
func (v *view) forget(old *view) {
	where := func(v *view) map[string]string {
		m := make(map[string]string)
		for _, f := range v.routes {
			if _, shadowed := m[f.apex]; !shadowed {
				m[f.apex] = f.sources
			}
		}
		return m
	}
	if maps.Equal(where(old), where(v)) {
		return
	}
	v.cache.forget(func(key string) bool {
		q := keyQuestion(key)
		return old.route(&q).sources != v.route(&q).sources
	})
}

func (s *Server) newView(cfg *Config) (*view, error) {
	v := &view{
		cfg: cfg, udpSize: cfg.Limits.UDPSize,
		serveStale: time.Duration(*cfg.Cache.ServeStale),
		lifetimes: lifetimes{
			max: time.Duration(cfg.Cache.MaxTTL), maxNegative: time.Duration(cfg.Cache.NegativeTTL), servFail: time.Duration(*cfg.Cache.ServFailTTL),
		},
		zoneRoot: s.stats.zones.index("."),
	}
	if cfg.Cache.Entries < 0 {
		v.lifetimes = lifetimes{}
	}
	var err error
	if v.static, err = newStatic(cfg, uint32(time.Duration(*cfg.TTL)/time.Second)); err != nil {
		return nil, err
	}
	for i := range cfg.StubDomains {
		d := &cfg.StubDomains[i]
		for _, z := range d.Zones {
			if err := v.addRoute(s, z, &d.Forward); err != nil {
				return nil, fmt.Errorf("stubDomains[%d]: %w", i, err)
			}
		}
	}
	if err := v.addRoute(s, ".", &cfg.Forward); err != nil {
		return nil, err
	}
	sortRoutes(v.routes)
	if cfg.SearchPath.Enabled {
		if v.search, err = newSearchPath(cfg); err != nil {
			return nil, err
		}
	}
	old := s.view.Load()
	if old != nil && old.cfg.Cache.Entries == cfg.Cache.Entries && old.cfg.Cache.MaxBytes == cfg.Cache.MaxBytes {
		v.cache = old.cache
	} else {
		v.cache = newCache(max(cfg.Cache.Entries, 1), cfg.Cache.MaxBytes)
	}
	return v, nil
}

func (v *view) addRoute(s *Server, zone string, f *Forward) error {
	out, err := newForwarder(zone, f)
	if err != nil {
		return err
	}
	us, err := f.upstreams()
	if err != nil {
		return err
	}
	out.panicked, out.index = s.panicked, s.stats.zones.index(out.zone)
	for _, u := range us {
		out.resolvers = append(out.resolvers, newResolver(s.ctx, u, s.tls, s.stats.upstreams.of(u)))
		out.sources += u.String() + "#" + u.ServerName + " "
	}
	if len(us) == 0 {
		s.log.Warn("no upstream to forward to: such names get SERVFAIL; set forward.upstreams", "zone", out.zone)
	}
	v.routes = append(v.routes, out)
	return nil
}

func (v *view) route(q *dnszone.Question) *forwarder { return routeOf(v.routes, q) }

// worker is one goroutine's scratch and counts.
type worker struct {
	s     *Server
	m     query
	key   [maxKey]byte
	turn  uint32 // of the query at hand
	turns *turns
	stats *counts
}

func (s *Server) newWorker() *worker {
	return &worker{s: s, turns: &turns{}, stats: s.stats.newCounts()}
}

// newTCPWorker makes a worker for a connection. Connections share their counts, for there may be thousands, and their
// turns, for many have but one question.
func (s *Server) newTCPWorker() *worker { return &worker{s: s, turns: &s.turns, stats: s.stats.slow} }

// turns count how often each name was asked for, by type, so that whatever a client asks besides, or in which order, has
// no say in which of several records comes first. Questions that share a count by chance are few.
type turns [1024]atomic.Uint32

func (t *turns) next(q *dnszone.Question) uint32 {
	name := q.Wire()
	h := uint64(q.Type)
	if len(name) >= 16 {
		// The end of the first label, then what is behind it: numbered names differ in the one, namespaces in the other.
		end := min(int(name[0])+1, len(name)-8)
		h ^= binary.LittleEndian.Uint64(name[max(end-8, 0):])
		h = h*0x9e3779b97f4a7c15 ^ binary.LittleEndian.Uint64(name[end:])
	} else {
		for _, c := range name {
			h = h*0x100000001b3 ^ uint64(c)
		}
	}
	return t[h*0x9e3779b97f4a7c15>>54].Add(1)
}

// packet is a query as a transport received it.
type packet struct {
	data   []byte
	client clientAddr
	udp    bool
	now    int64 // when it came, on the server's clock
	// to makes the responder for an answer that comes later. It is only called when there will be one.
	to func() responder
}

// serve answers a query into out, which has room, or takes care that it is answered later and returns nil. It also
// returns nil for what gets no answer.
func (w *worker) serve(p *packet, out []byte) (answer []byte) {
	v := w.s.view.Load()
	if v == nil {
		return nil
	}
	m := &w.m
	f, rcode := m.parse(p.data)
	if f == drop {
		w.s.stats.badPackets.Add(1)
		return nil
	}
	defer w.rescue()
	if p.udp && v.limiter != nil && !w.s.jar.valid(m.cookie[:m.cookieLen], p.client.bytes(), uint32(time.Now().Unix())) {
		switch v.limiter.allow(p.client, p.now) {
		case hush:
			w.s.stats.rateLimited.Add(1)
			return nil
		case retry:
			w.s.stats.rateLimited.Add(1)
			return w.finish(v, p, m.start(out, p.data), &outcome{flags: flagTC, ede: edeNone}, zoneDropped, pluginNone)
		}
	}
	if f == reject {
		if rcode == rcodeFormErr {
			w.s.stats.badPackets.Add(1)
		}
		return w.finish(v, p, m.start(out, p.data), &outcome{rcode: rcode, ede: edeNone}, zoneDropped, pluginNone)
	}
	if m.q.Type == typeANY {
		return w.any(v, p, out)
	}
	limit := maxMessage
	if p.udp {
		limit = min(m.size, v.udpSize)
	}
	limit -= m.reserve()
	w.turn = w.turns.next(&m.q)
	msg := m.start(out, p.data)
	var res dnszone.Result
	if v.outer != nil {
		msg, res = v.outer.Append(msg, &m.q, limit, w.turn)
	} else {
		msg, res = v.zone.Append(msg, &m.q, limit, w.turn)
	}
	return w.conclude(v, p, msg, limit, &res)
}

// conclude does what the zone's verdict says.
func (w *worker) conclude(v *view, p *packet, msg []byte, limit int, res *dnszone.Result) []byte {
	m := &w.m
	switch res.Verdict {
	case dnszone.Answered:
		if v.search != nil && res.Rcode == rcodeNXDomain && res.Answer == 0 {
			if done, answer := w.complete(v, p, msg, limit, res); done {
				return answer
			}
		}
		zone := w.zoneOf(v)
		w.stats.asked(zone, m, p.client, p.udp, len(p.data))
		o := outcome{rcode: res.Rcode, flags: flagAA, answer: res.Answer, authority: res.Authority, additional: res.Additional, ede: edeNone}
		if res.Truncated {
			o.flags |= flagTC
		}
		return w.finish(v, p, msg, &o, zone, pluginKubernetes)
	case dnszone.NotReady:
		w.stats.asked(v.zoneCluster, m, p.client, p.udp, len(p.data))
		return w.finish(v, p, m.start(msg[:0], p.data), &outcome{rcode: rcodeServFail, ede: edeNotReady}, v.zoneCluster, pluginKubernetes)
	case dnszone.Continue:
		w.stats.asked(v.zoneCluster, m, p.client, p.udp, len(p.data))
		var q dnszone.Question
		q.Read(res.Target)
		q.Type = m.q.Type
		return w.follow(v, p, msg, limit, &q, res.Answer, v.zoneCluster)
	}
	if v.outer != nil {
		w.stats.asked(v.zoneRoot, m, p.client, p.udp, len(p.data))
		return w.finish(v, p, msg, &outcome{rcode: rcodeRefused, ede: edeProhibited}, v.zoneRoot, pluginNone)
	}
	if v.static.find(&m.q) != nil {
		w.stats.asked(v.zoneRoot, m, p.client, p.udp, len(p.data))
		q, o := m.q, outcome{ede: edeNone}
		msg, known := v.lead(msg, headerSize, &q, &o, limit, w.turn)
		if known {
			return w.finish(v, p, msg, &o, v.zoneRoot, pluginHosts)
		}
		return w.follow(v, p, msg, limit, &q, o.answer, v.zoneRoot)
	}
	return w.forward(v, p, msg, limit)
}

func (w *worker) zoneOf(v *view) int {
	if v.outer != nil || v.zone == nil || w.m.q.Under(v.zone.Apex()) {
		return v.zoneCluster
	}
	if w.m.q.Labels() > 6 {
		return v.zoneV6
	}
	return v.zoneV4
}

// forward answers from the cache, or has the question go upstream.
func (w *worker) forward(v *view, p *packet, msg []byte, limit int) []byte {
	m := &w.m
	fw := v.route(&m.q)
	w.stats.asked(fw.index, m, p.client, p.udp, len(p.data))
	if w.s.ownLoop(&m.q) {
		return w.finish(v, p, msg, &outcome{rcode: rcodeRefused, ede: edeNone}, fw.index, pluginForward)
	}
	key := appendKey(w.key[:0], &m.q, m.do, m.flags&flagCD != 0)
	e := v.cache.get(key)
	if e != nil && w.serves(v, e, key, fw, &m.q, p) {
		stale := e.left(p.now) <= 0
		w.countHit(e, stale)
		msg, o := e.append(msg, m.qlen, limit, p.now, w.turn, stale)
		if !m.do && m.flags&flagAD == 0 {
			o.flags &^= flagAD
		}
		return w.finish(v, p, msg, &o, fw.index, pluginCache)
	}
	w.s.stats.misses.Add(1)
	return w.await(v, p, key, e, fw, &m.q, limit, fw.index, nil)
}

func (w *worker) countHit(e *entry, stale bool) {
	switch {
	case stale:
		w.s.stats.servedStale.Add(1)
		fallthrough
	case e.rcode == rcodeOK && e.answers > 0:
		w.s.stats.hits.Add(1)
	default:
		w.s.stats.negativeHits.Add(1)
	}
}

// serves tells whether an entry answers a query here and now: while it is fresh, and for a while after a refresh
// has failed. It has an entry that is asked for often asked anew before it ends.
func (w *worker) serves(v *view, e *entry, key []byte, fw *forwarder, q *dnszone.Question, p *packet) bool {
	left := e.left(p.now)
	if left <= 0 {
		return e.refreshed.Load() > p.now && w.s.holds(v, e)
	}
	if *v.cfg.Cache.Prefetch && left < e.life/10 && e.hits.Add(1) >= 2 && e.refreshed.CompareAndSwap(0, p.now) {
		w.s.stats.prefetches.Add(1)
		w.s.launch(v, key, nil, &asking{name: q.Wire(), typ: q.Type, do: w.m.do, cd: w.m.flags&flagCD != 0, fw: fw, old: e, anew: true})
	}
	return true
}

// follow looks the end of a chain of aliases up: msg holds the aliases, q what they lead to.
func (w *worker) follow(v *view, p *packet, msg []byte, limit int, q *dnszone.Question, aliases uint16, zone int) []byte {
	m := &w.m
	if v.static != nil {
		o := outcome{answer: aliases, ede: edeNone}
		led, known := v.lead(msg, len(msg)-len(q.Wire()), q, &o, limit, w.turn)
		if known {
			return w.finish(v, p, led, &o, zone, pluginHosts)
		}
		msg, aliases = led, o.answer
	}
	fw := v.route(q)
	key := appendKey(w.key[:0], q, m.do, m.flags&flagCD != 0)
	prefix := sealPrefix(append([]byte(nil), msg...), aliases)
	e := v.cache.get(key)
	if e != nil && w.serves(v, e, key, fw, q, p) {
		w.countHit(e, false) // deliver counts what is stale
		wt := w.waiter(p, limit, zone)
		wt.prefix = prefix
		w.s.deliver(v, wt, e, e.left(p.now) <= 0)
		return nil
	}
	w.s.stats.misses.Add(1)
	return w.await(v, p, key, e, fw, q, limit, zone, prefix)
}

// waiter makes what answers the query at hand later.
func (w *worker) waiter(p *packet, limit, zone int) *waiter {
	return &waiter{
		m: w.m, asked: append([]byte(nil), p.data[:headerSize+w.m.qlen]...), limit: limit, size: w.s.view.Load().udpSize,
		client: p.client, to: p.to(), turn: w.turn, began: w.s.start.Add(time.Duration(p.now)), udp: p.udp, zone: zone,
	}
}

// await has the query wait for a flight, or fails it when there are too many.
func (w *worker) await(v *view, p *packet, key []byte, old *entry, fw *forwarder, q *dnszone.Question, limit, zone int, prefix []byte) []byte {
	wt := w.waiter(p, limit, zone)
	wt.prefix = prefix
	m := &w.m
	if w.s.launch(v, key, wt, &asking{name: q.Wire(), typ: q.Type, do: m.do, cd: m.flags&flagCD != 0, fw: fw, old: old}) {
		return nil
	}
	w.s.stats.overloads.Add(1)
	w.s.fail(wt, edeNoReachable)
	return nil
}

// launch joins a question's flight and starts it if it is not under way. a.name is copied.
func (s *Server) launch(v *view, key []byte, wt *waiter, a *asking) bool {
	f, start, ok := s.flights.join(flightKey{string(key), a.fw}, wt)
	if !ok {
		return false
	}
	if start {
		a.name = append([]byte(nil), a.name...)
		s.background.Add(1)
		go s.fly(v, f, a)
	}
	return true
}

// any answers ANY with the one record that RFC 8482 section 4.2 proposes.
func (w *worker) any(v *view, p *packet, out []byte) []byte {
	msg := w.m.start(out, p.data)
	if v.outer != nil && !v.outer.Mine(&w.m.q) {
		w.stats.asked(v.zoneRoot, &w.m, p.client, p.udp, len(p.data))
		return w.finish(v, p, msg, &outcome{rcode: rcodeRefused, ede: edeProhibited}, v.zoneRoot, pluginNone)
	}
	msg = append(msg, 0xc0, headerSize, 0, typeHINFO, 0, classIN, 0, 0, 0x0e, 0x10, 0, 9, 7, 'R', 'F', 'C', '8', '4', '8', '2', 0)
	zone := v.zoneRoot
	if v.zone != nil && w.m.q.Under(v.zone.Apex()) {
		zone = v.zoneCluster
	}
	w.stats.asked(zone, &w.m, p.client, p.udp, len(p.data))
	return w.finish(v, p, msg, &outcome{answer: 1, ede: edeNotSupported}, zone, pluginNone)
}

// finish completes an answer that is given at once.
func (w *worker) finish(v *view, p *packet, msg []byte, o *outcome, zone int, from plugin) []byte {
	msg = w.m.finish(msg, o, w.s.jar, p.client.bytes(), v.udpSize)
	took := time.Duration(w.s.now() - p.now)
	w.stats.answered(zone, o.rcode, from, len(msg), p.udp, took)
	if w.s.queries.listening.Load() {
		w.s.logQuery(&w.m, p.client, p.udp, o, len(msg), took)
	}
	return msg
}

// rescue keeps the server alive through a bug that one query hits.
func (w *worker) rescue() {
	if r := recover(); r != nil {
		w.s.panicked(r)
	}
}

// panicked notes what a deferred function has recovered from.
func (s *Server) panicked(r any) {
	s.stats.panics.Add(1)
	s.log.Error("panic while answering a query", "panic", r, "stack", string(debug.Stack()))
}

// Close ends what is under way and waits for it.
func (s *Server) Close() {
	s.cancel()
	s.background.Wait()
	s.setLog(false)
}

// Drain waits until no question is under way, at most until ctx is done. Call it when no new ones come.
func (s *Server) Drain(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.flights.idle() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
