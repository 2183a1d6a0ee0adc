// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/addresses"
)

// Options are what an Announcer runs with.
type Options struct {
	// Node is this node's name, as the API has it.
	Node string

	// Links are patterns (path.Match) for the names of the links to announce on; empty: see usable.
	Links []string

	// NetNS is an open network namespace to work in; 0 is the process's own.
	NetNS int

	// Age is how old this node's picture of the API is; nil is always fresh.
	Age func() time.Duration

	// Able tells whether this node forwards what comes to an address; nil is always. While it does not, others are to
	// announce. While no Announcer runs, the node is taken to go on as before. It is asked often, and must not wait.
	Able func() bool

	// Moved is told of every address that this node begins or ceases to announce on a link; nil tells nobody. It
	// must not call the Announcer.
	Moved func(a netip.Addr, link string, here bool)

	// Taken is told of a host that is no node of the cluster and uses an address that this node announces; once for
	// each such host. nil tells nobody. It must not call the Announcer.
	Taken func(a netip.Addr, link, mac string)

	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Announcer announces this node's share of the addresses on every link that suits. Its methods may be called from any
// goroutine.
type Announcer struct {
	opts        Options
	incarnation uint64
	nl          *netlink.Handle
	metrics     *metrics
	wake        chan struct{} // capacity 1: something is due earlier than the keeper thinks

	mu     sync.Mutex
	key    []byte
	nodes  map[string][]netip.Addr // each node's own addresses
	wanted map[netip.Addr][]addresses.Candidate
	links  map[int]*link
	ticks  map[string]uint64 // of links that were closed, by name: peers take no hello for new whose tick they have heard
	retry  time.Time         // when to open links again that could not be opened; zero: none
	closed bool
}

// link is a link that is announced on.
type link struct {
	linkInfo
	seg             *segment
	arp, ndp, hello *packetSocket
	groups          *groups
	tick            uint64
	nextHello       time.Time
	foreign         map[netip.Addr]*foreignHost
}

// foreignHost is a host outside the cluster that uses an address of ours.
type foreignHost struct {
	mac      mac
	defended time.Time
}

// defendEvery is how often at most an address is defended against a host that is no node: RFC 5227, section 2.4 (c).
const defendEvery = 10 * time.Second

// New prepares an Announcer. It announces nothing before Run and Update.
func New(opts Options) (*Announcer, error) {
	a := &Announcer{
		opts:        opts,
		incarnation: uint64(time.Now().UnixNano()),
		wake:        make(chan struct{}, 1),
		nodes:       make(map[string][]netip.Addr),
		wanted:      make(map[netip.Addr][]addresses.Candidate),
		links:       make(map[int]*link),
		ticks:       make(map[string]uint64),
	}
	if a.opts.Log == nil {
		a.opts.Log = slog.Default()
	}
	var err error
	if opts.NetNS == 0 {
		a.nl, err = netlink.NewHandle()
	} else {
		a.nl, err = netlink.NewHandleAt(netns.NsHandle(opts.NetNS))
	}
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	a.metrics = newMetrics(a)
	if opts.Metrics != nil {
		if err := opts.Metrics.Register(a.metrics); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Update says what has changed: the addresses that nodes have themselves (none: the node is gone), and who may announce
// each address; with no candidates, nobody. key is the same on all nodes of the cluster and unknown to others.
func (a *Announcer) Update(key []byte, nodes map[string][]netip.Addr, changed map[netip.Addr][]addresses.Candidate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.key = key
	now := time.Now()
	for name, ips := range nodes {
		if name == a.opts.Node && !slices.Equal(a.nodes[name], ips) {
			a.retry = now
		}
		if len(ips) == 0 {
			delete(a.nodes, name)
		} else {
			a.nodes[name] = ips
		}
	}
	for x, candidates := range changed {
		if len(candidates) == 0 {
			delete(a.wanted, x)
		} else {
			a.wanted[x] = candidates
		}
	}
	for _, l := range a.links {
		var o outcome
		for x := range changed {
			o.add(l.seg.want(now, x, a.on(l, x)))
		}
		a.apply(now, l, o)
	}
	a.poke()
}

// on is who may announce the address, if it belongs on the link. The caller holds the lock.
func (a *Announcer) on(l *link, x netip.Addr) []addresses.Candidate {
	all := make([][]netip.Prefix, 0, len(a.links))
	for _, other := range a.links {
		all = append(all, other.subnets)
	}
	if !belongs(x, l.subnets, all) {
		return nil
	}
	return a.wanted[x]
}

func (a *Announcer) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run announces until ctx is done. What it announced, others take over once they miss its hellos: to stop for less
// than that costs nobody anything.
func (a *Announcer) Run(ctx context.Context) error {
	defer a.nl.Close()
	defer a.close()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		a.watchLinks(ctx)
	}()
	defer func() { <-watching }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		now := time.Now()
		due = a.keep(now, now.Sub(due))
		timer.Reset(time.Until(due))
	}
}

// catchUp is for what was received and not yet handled while this process did not run.
const catchUp = 50 * time.Millisecond

// keep does what time asks for and tells when it is to be called again. late is by how much this call missed its
// time: whoever overslept hears what was sent meanwhile before it takes anyone for dead.
func (a *Announcer) keep(now time.Time, late time.Duration) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if !a.retry.IsZero() && !now.Before(a.retry) {
		a.retry = time.Time{}
		if err := a.rescan(); err != nil {
			a.opts.Log.Error("can't read the node's links", "err", err)
			a.retry = now.Add(retryLinks)
		}
	}
	sooner(a.retry)
	for _, l := range a.links {
		if late > catchUp {
			l.seg.spare(now, catchUp)
		}
		if a.opts.Age != nil {
			l.seg.age = a.opts.Age()
		}
		a.apply(now, l, l.seg.enable(now, a.opts.Able == nil || a.opts.Able()))
		a.apply(now, l, l.seg.pass(now))
		for _, name := range l.seg.probes(now) {
			a.probe(l, name)
		}
		if len(l.seg.wanted) > 0 {
			if !now.Before(l.nextHello) {
				a.greet(now, l)
			}
			sooner(l.nextHello)
		}
		sooner(l.seg.next(now))
	}
	return next
}

// apply carries out what a segment decided, and announces what is due. The caller holds the lock.
func (a *Announcer) apply(now time.Time, l *link, o outcome) {
	for _, x := range o.stoodIn {
		a.listen(l, x)
		a.opts.Log.Info("a node's agent is away: answering that its address is there, on which it goes on forwarding", "address", x, "node", l.seg.standIns[x], "link", l.name)
	}
	for _, x := range o.claimed {
		a.listen(l, x)
		a.metrics.moves.WithLabelValues("claimed").Inc()
		a.opts.Log.Info("announcing", "address", x, "link", l.name)
	}
	for _, x := range o.stoodDown {
		l.unlisten(x)
		a.opts.Log.Info("no longer answering for another node", "address", x, "link", l.name)
	}
	for _, x := range o.released {
		l.unlisten(x)
		delete(l.foreign, x)
		a.metrics.moves.WithLabelValues("released").Inc()
		a.opts.Log.Info("no longer announcing", "address", x, "link", l.name)
	}
	if o.hello && a.key != nil {
		a.greet(now, l)
	}
	for _, x := range l.seg.due(now) {
		a.announce(l, x)
	}
	if a.opts.Moved != nil {
		for _, x := range o.claimed {
			a.opts.Moved(x, l.name, true)
		}
		for _, x := range o.released {
			a.opts.Moved(x, l.name, false)
		}
	}
}

// listen lets questions for the address reach this node.
func (a *Announcer) listen(l *link, x netip.Addr) {
	if !x.Is6() {
		return // they are broadcast
	}
	if err := l.groups.join(solicitedNode(x)); err != nil {
		a.opts.Log.Error("solicitations for the address may not reach this node: is IPv6 enabled on the link?", "address", x, "link", l.name, "err", err)
	}
}

func (l *link) unlisten(x netip.Addr) {
	if x.Is6() {
		l.groups.leave(solicitedNode(x))
	}
}

// probe asks a silent peer's kernel, and nobody else, for an address of the node's own.
func (a *Announcer) probe(l *link, name string) {
	to := l.seg.peers[name].mac
	switch own, its := pair(l.subnets, a.nodes[a.opts.Node], a.nodes[name]); {
	case its.Is4():
		a.send(l, l.arp, arpProbe(its, own, to, l.mac))
	case its.Is6():
		a.send(l, l.ndp, ndpProbe(its, own, to, l.mac))
	}
}

// announce tells all hosts on the link where the address is.
func (a *Announcer) announce(l *link, x netip.Addr) {
	if x.Is6() {
		a.send(l, l.ndp, ndpAnnouncement(x, l.mac))
		return
	}
	for _, f := range arpAnnouncements(x, l.mac) {
		a.send(l, l.arp, f)
	}
}

// greet sends this node's hello.
func (a *Announcer) greet(now time.Time, l *link) {
	l.nextHello = now.Add(helloEvery)
	if a.key == nil {
		return
	}
	l.tick++
	h := hello{node: a.opts.Node, settled: l.seg.settled, unable: !l.seg.able, incarnation: a.incarnation, tick: l.tick,
		age: l.seg.age, ifindex: uint32(l.index), claims: sorted(l.seg.mine), wishes: l.seg.wishes()}
	for _, h := range append(l.seg.absences(now), h) {
		for _, part := range h.split() {
			a.send(l, l.hello, part.frame(l.mac, a.key))
		}
	}
}

func (a *Announcer) send(l *link, s *packetSocket, frame []byte) {
	if err := s.send(frame); err != nil {
		a.metrics.sendFailures.Inc()
		a.opts.Log.Debug("can't send", "link", l.name, "err", err)
	}
}

// hearHello takes a frame from the link's hello socket.
func (a *Announcer) hearHello(l *link, frame []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.key == nil || a.links[l.index] != l {
		return
	}
	h, from, ok := parseHello(frame, a.key)
	if !ok {
		return
	}
	now := time.Now()
	if h.node == a.opts.Node {
		if !h.absent && h.incarnation == a.incarnation && h.ifindex < uint32(l.index) {
			a.apply(now, l, l.seg.shadow(now))
		}
		return
	}
	a.apply(now, l, l.seg.hear(now, &h, from))
}

// hearARP takes a frame from the link's ARP socket.
func (a *Announcer) hearARP(l *link, frame []byte) {
	p, ok := parseARP(frame)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.links[l.index] != l || a.own(p.senderMAC) {
		return
	}
	if p.op == arpReply && p.targetMAC == l.mac && p.from == p.senderMAC {
		l.seg.answer(time.Now(), p.from)
	}
	if l.seg.mine[p.sender] != nil {
		a.taken(l, p.sender, p.senderMAC)
		return // an announcement may look like a request; it is no question
	}
	if at, ok := l.seg.at(p.target, l.mac); ok && p.op == arpRequest {
		a.send(l, l.arp, arpAnswer(p, at, l.mac))
		a.metrics.answers.WithLabelValues("arp").Inc()
	}
}

// hearNDP takes a frame from the link's Neighbor Discovery socket.
func (a *Announcer) hearNDP(l *link, frame []byte) {
	n, ok := parseNeighbor(frame)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.links[l.index] != l || a.own(n.from) {
		return
	}
	if n.advertisement {
		if n.solicited && n.from == n.linkAddr {
			l.seg.answer(time.Now(), n.from)
		}
		if l.seg.mine[n.target] != nil {
			a.taken(l, n.target, n.linkAddr)
		}
		return
	}
	if at, ok := l.seg.at(n.target, l.mac); ok {
		a.send(l, l.ndp, ndpAnswer(n, at, l.mac))
		a.metrics.answers.WithLabelValues("ndp").Inc()
	}
}

// own tells whether the Ethernet address is of one of this node's links.
func (a *Announcer) own(m mac) bool {
	for _, l := range a.links {
		if l.mac == m {
			return true
		}
	}
	return false
}

// taken handles a host that says an address of ours is its own. With other nodes, hellos settle that. Any other host
// is in the wrong, or the pool is: the address is defended, but no more often than the RFC allows.
func (a *Announcer) taken(l *link, x netip.Addr, by mac) {
	for _, p := range l.seg.peers {
		if p.mac == by {
			return
		}
	}
	f := l.foreign[x]
	if f == nil || f.mac != by {
		f = &foreignHost{mac: by}
		l.foreign[x] = f
		a.metrics.conflicts.Inc()
		a.opts.Log.Warn("a host outside the cluster uses a LoadBalancer address", "address", x, "link", l.name, "mac", by)
		if a.opts.Taken != nil {
			a.opts.Taken(x, l.name, by.String())
		}
	}
	if now := time.Now(); now.Sub(f.defended) >= defendEvery {
		f.defended = now
		a.announce(l, x)
	}
}

// Announced is an address that this node announces.
type Announced struct {
	Addr netip.Addr
	Link string
}

// Announced lists what this node announces, in order.
func (a *Announcer) Announced() []Announced {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Announced
	for _, l := range a.links {
		for x := range l.seg.mine {
			out = append(out, Announced{x, l.name})
		}
	}
	slices.SortFunc(out, func(p, q Announced) int {
		if c := p.Addr.Compare(q.Addr); c != 0 {
			return c
		}
		return slices.Compare([]string{p.Link}, []string{q.Link})
	})
	return out
}
