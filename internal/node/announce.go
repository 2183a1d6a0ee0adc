// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/announce"
	"github.com/weft-net/weft/internal/model"
)

// AnnounceConfig is what the Announce part runs with.
type AnnounceConfig struct {
	Node  string   // this node's name
	Links []string // patterns for the links to announce on; empty: all that suit (see package announce)

	// State is the file, on a tmpfs, that keeps what this node announces: an agent that restarts while the API server
	// is away goes on with that. "" keeps nothing.
	State string

	// Age is how old the picture is that the Deltas paint (kube.Watcher.Age); nil is always fresh.
	Age func() time.Duration

	// Forwards tells whether the node forwards Services' traffic; nil is always. While it does not, other nodes are to
	// announce. It must not wait.
	Forwards func() bool

	Registerer prometheus.Registerer
	Events     func(model.Event)
	Log        *slog.Logger

	netns int // for tests; 0 is the process's own
}

// systemNamespace is the namespace whose uid keys the words between nodes: every cluster has it, every cluster has
// another uid for it, and only those who may read the API know that.
const systemNamespace = "kube-system"

// Announce is the Part that has clients on the node's links send LoadBalancer addresses' packets to one node each.
type Announce struct {
	cfg       AnnounceConfig
	announcer *announce.Announcer

	mu      sync.Mutex // guards what Update writes and Run reads
	voters  *addresses.Electorate
	pending map[netip.Addr][]addresses.Candidate // not handed to the announcer yet
	nodes   map[string][]netip.Addr              // nor that
	key     []byte
	resumed map[netip.Addr]bool // announced on the ground of the State file, not yet confirmed by the API

	news chan struct{} // capacity 1
	told struct {
		sync.Mutex
		queue []notice
	}
}

// notice is something to tell the owners of an address's Services.
type notice struct {
	addr    netip.Addr
	warning bool
	reason  string // "": only what is announced has changed
	message string
}

// NewAnnounce prepares the part.
func NewAnnounce(cfg AnnounceConfig) (*Announce, error) {
	p := &Announce{cfg: cfg, voters: addresses.NewElectorate(), news: make(chan struct{}, 1),
		pending: make(map[netip.Addr][]addresses.Candidate), nodes: make(map[string][]netip.Addr)}
	var err error
	p.announcer, err = announce.New(announce.Options{
		Node: cfg.Node, Links: cfg.Links, NetNS: cfg.netns, Able: cfg.Forwards, Metrics: cfg.Registerer, Log: cfg.Log,
		Age: func() time.Duration {
			if cfg.Age == nil {
				return 0
			}
			return max(0, cfg.Age())
		},
		Moved: func(a netip.Addr, link string, here bool) {
			n := notice{addr: a}
			if here {
				n = notice{addr: a, reason: ReasonAnnounced, message: fmt.Sprintf("node %s announces %s on %s", cfg.Node, a, link)}
			}
			p.notify(n)
		},
		Taken: func(a netip.Addr, link, mac string) {
			p.notify(notice{a, true, "AddressConflict", fmt.Sprintf(
				"a host outside the cluster, with MAC address %s, uses %s on the link %s of node %s: give that host another address, or take this one out of its AddressPool",
				mac, a, link, cfg.Node)})
		},
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// ReasonAnnounced is the reason of the Event by which a node says that it announces an address from now on.
const ReasonAnnounced = "AddressAnnounced"

// Name implements Part.
func (*Announce) Name() string { return "announce" }

// Update implements Part. It reads Services, EndpointSlices, Nodes and Namespaces.
func (p *Announce) Update(_ context.Context, d *model.Delta) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := d.Namespaces[systemNamespace]; n != nil {
		p.key = []byte(n.UID)
	}
	for name, n := range d.Nodes {
		p.nodes[name] = nil
		if n != nil {
			p.nodes[name] = n.InternalIPs
		}
	}
	for _, a := range p.voters.Apply(d) {
		p.pending[a] = p.voters.Candidates(a)
	}
	if len(p.key) == 0 {
		if d.Complete {
			return fmt.Errorf("there is no namespace %s, or it can't be read: no LoadBalancer address is announced without its uid, "+
				"by which nodes know each other", systemNamespace)
		}
		return nil
	}
	for a := range p.resumed {
		if _, ok := p.pending[a]; !ok {
			p.pending[a] = p.voters.Candidates(a)
		}
	}
	p.resumed = nil
	p.announcer.Update(p.key, p.nodes, p.pending)
	clear(p.pending)
	clear(p.nodes)
	return nil
}

// Run implements Part.
func (p *Announce) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if p.cfg.State != "" {
		p.resume()
	}
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.news:
				p.tell()
			}
		}
	})
	return p.announcer.Run(ctx)
}

// notify queues a notice: the announcer must not wait.
func (p *Announce) notify(n notice) {
	p.told.Lock()
	p.told.queue = append(p.told.queue, n)
	p.told.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// tell writes what is queued as Events on the Services that have the addresses.
func (p *Announce) tell() {
	p.told.Lock()
	queue := p.told.queue
	p.told.queue = nil
	p.told.Unlock()
	if p.cfg.State != "" {
		if err := p.save(); err != nil {
			p.cfg.Log.Error("can't keep what this node announces; a restart while the API server is away would lose it", "err", err)
		}
	}
	for _, n := range queue {
		if n.reason == "" {
			continue
		}
		p.mu.Lock()
		services := p.voters.Services(n.addr)
		p.mu.Unlock()
		for _, s := range services {
			p.cfg.Events(model.Event{APIVersion: "v1", Kind: "Service", Name: s.Name, UID: s.UID,
				Warning: n.warning, Reason: n.reason, Message: n.message})
		}
	}
}

// Announced is what this node announces now.
func (p *Announce) Announced() []announce.Announced { return p.announcer.Announced() }

// announceState is what the State file holds.
type announceState struct {
	Key       []byte       `json:"key"`
	Addresses []netip.Addr `json:"addresses"`
}

// save writes the State file, at once or not at all.
func (p *Announce) save() error {
	p.mu.Lock()
	s := announceState{Key: p.key}
	p.mu.Unlock()
	for _, a := range p.announcer.Announced() {
		s.Addresses = append(s.Addresses, a.Addr)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.cfg.State), 0o755); err != nil {
		return err
	}
	next := p.cfg.State + ".next"
	if err := os.WriteFile(next, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(next, p.cfg.State)
}

// resume announces what the State file says, as far as no living node claims it, until the API says more.
func (p *Announce) resume() {
	raw, err := os.ReadFile(p.cfg.State)
	var s announceState
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.cfg.Log.Warn("can't read what this node announced before", "file", p.cfg.State, "err", err)
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.key) > 0 || len(s.Key) == 0 {
		return // the API was faster
	}
	p.resumed = make(map[netip.Addr]bool)
	announced := make(map[netip.Addr][]addresses.Candidate)
	for _, a := range s.Addresses {
		p.resumed[a] = true
		announced[a] = []addresses.Candidate{{Node: p.cfg.Node}}
	}
	p.announcer.Update(s.Key, nil, announced)
}

// Cleanup implements Cleaner.
func (p *Announce) Cleanup(context.Context) error {
	if p.cfg.State == "" {
		return nil
	}
	if err := os.Remove(p.cfg.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
