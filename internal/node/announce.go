// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
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

	// Age is how old the picture is that the Deltas paint (kube.Watcher.Age); nil is always fresh.
	Age func() time.Duration

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
	key     []byte
	ips     []netip.Addr

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
	reason  string
	message string
}

// NewAnnounce prepares the part.
func NewAnnounce(cfg AnnounceConfig) (*Announce, error) {
	p := &Announce{cfg: cfg, voters: addresses.NewElectorate(), news: make(chan struct{}, 1),
		pending: make(map[netip.Addr][]addresses.Candidate)}
	var err error
	p.announcer, err = announce.New(announce.Options{
		Node: cfg.Node, Links: cfg.Links, NetNS: cfg.netns, Metrics: cfg.Registerer, Log: cfg.Log,
		Age: func() time.Duration {
			if cfg.Age == nil {
				return 0
			}
			return max(0, cfg.Age())
		},
		Moved: func(a netip.Addr, link string, here bool) {
			if here {
				p.notify(notice{addr: a, reason: ReasonAnnounced, message: fmt.Sprintf("node %s announces %s on %s", cfg.Node, a, link)})
			}
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
	if n, ok := d.Nodes[p.cfg.Node]; ok {
		p.ips = nil
		if n != nil {
			p.ips = n.InternalIPs
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
	p.announcer.Update(p.key, p.ips, p.pending)
	clear(p.pending)
	return nil
}

// Run implements Part.
func (p *Announce) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
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
	for _, n := range queue {
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
