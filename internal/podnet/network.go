// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// Defaults of Config.
const (
	DefaultStateDir  = "/run/weft/podnet"
	DefaultVXLANID   = 7769 // any number that no other overlay on the node uses
	DefaultVXLANPort = 4789 // IANA's for VXLAN: firewalls and network cards know it
)

// Config says how the pod network of one node is to be. The zero value of a field is its default.
type Config struct {
	NodeName string // required

	// StateDir holds the records of the pods, on a tmpfs. Default DefaultStateDir.
	StateDir string

	// Socket is where the CNI plugin finds the agent. Default plugin.DefaultSocket.
	Socket string

	// NetNS is the path of the node's network namespace. Default: that of the calling thread.
	NetNS string

	// MTU of the pods' links, in bytes. Default: that of the link that holds the node's InternalIP.
	MTU int

	VXLANID   uint32
	VXLANPort uint16

	// AlwaysTunnel sends packets for other nodes' pods through VXLAN even over a shared link: for networks that look
	// like one but drop what is not from or to a node's own address, as some clouds' do.
	AlwaysTunnel bool

	// NoMasquerade are ranges beyond the cluster that pods reach under their own address.
	NoMasquerade []netip.Prefix

	// Protect puts a pod's policy in force. It is called when the pod's addresses are known and the node's end of
	// its link exists, but is still down, and again when a lost link is made anew. Where it fails, ADD fails.
	Protect func(context.Context, model.LocalPod) error

	// Unprotect is told that a pod's link is gone.
	Unprotect func(model.LocalPod)

	Registerer prometheus.Registerer // nil keeps no metrics
	Log        *slog.Logger          // nil is slog.Default()
}

// Network is the pod network of one node. All methods are safe for concurrent use, but Update, which one goroutine
// calls.
type Network struct {
	cfg     Config
	log     *slog.Logger
	nl      *netlink.Handle
	ns      *netNS
	store   *store
	table   *table
	metrics *metrics
	now     func() time.Time

	attaching keyedMutex // by link name: one request for an attachment at a time

	mu      sync.Mutex
	pods    map[string]*attachment // by link name
	pool    *pool
	sources map[model.Family]netip.Addr // the node's own address of each family, where it is really here
	mtu     int
	notice  error // why ADD can't be served; nil when it can

	news      *pending      // what Run has to look at
	lost      *pending      // pods' links, of those
	ready     chan struct{} // closed when ADD can be served for the first time
	readyOnce sync.Once

	routing  sync.Mutex // guards what follows, and the kernel's routes between nodes
	topo     *topology
	router   *router
	complete bool              // a complete Delta has come
	synced   bool              // the kernel holds what topo says, as far as we know
	reported map[string]string // topo.errs as logged last
}

// attachment is a pod that has, or is getting, its link.
type attachment struct {
	rec   *record
	index int  // of the node's end of the link
	going bool // being taken down: what is missing is not to be repaired
}

// Open takes over the pod network of this node. It waits while another agent still holds it. Nothing of the kernel
// changes before Update has had a complete Delta.
func Open(cfg Config) (*Network, error) {
	if cfg.NodeName == "" {
		return nil, errors.New("pod network: the node's name is not set")
	}
	if cfg.StateDir == "" {
		cfg.StateDir = DefaultStateDir
	}
	if cfg.Socket == "" {
		cfg.Socket = plugin.DefaultSocket
	}
	if cfg.VXLANID == 0 {
		cfg.VXLANID = DefaultVXLANID
	}
	if cfg.VXLANPort == 0 {
		cfg.VXLANPort = DefaultVXLANPort
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	n := &Network{
		cfg: cfg, log: cfg.Log, now: time.Now,
		pods: make(map[string]*attachment), pool: newPool(), sources: make(map[model.Family]netip.Addr),
		notice: fmt.Errorf("node %s: its Node object has not been seen yet", cfg.NodeName),
		news:   newPending(), lost: newPending(), ready: make(chan struct{}), topo: newTopology(cfg.NoMasquerade), reported: make(map[string]string),
	}
	if err := n.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("pod network: %w", err), n.Close())
	}
	return n, nil
}

func (n *Network) open() (err error) {
	if n.ns, err = openNetNS(n.cfg.NetNS); err != nil {
		return fmt.Errorf("the node's network namespace: %w", err)
	}
	if err := n.ns.do(func() error {
		n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
		return err
	}); err != nil {
		return err
	}
	n.table = newTable(n.ns)
	n.router = newRouter(n.nl, n.ns, n.cfg)
	if n.store, err = openStore(n.cfg.StateDir); err != nil {
		return err
	}
	if err := os.MkdirAll(plugin.PendingDir(n.cfg.Socket), 0o700); err != nil {
		return err
	}
	if n.metrics, err = newMetrics(n, n.cfg.Registerer); err != nil {
		return err
	}
	return n.remember()
}

// remember reads the records and finds the links that have none.
func (n *Network) remember() error {
	st := n.store.loadRanges()
	n.pool.cursor, n.pool.freed = st.Cursor, st.Freed
	n.pool.start = randomStart
	recs, errs := n.store.load()
	for _, err := range errs {
		n.log.Warn("podnet: a record is unusable and dropped", "err", err)
	}
	// Wired before unfinished, old before new: where two records claim one address, the pod that has it keeps it.
	slices.SortFunc(recs, func(a, b *record) int {
		if a.Wired != b.Wired {
			if a.Wired {
				return -1
			}
			return 1
		}
		return a.Created.Compare(b.Created)
	})
	for _, r := range recs {
		if other := n.pool.take(r.Link, r.IPs); other != "" {
			n.log.Warn("podnet: two records claim one address, dropping one", "pod", r.who(), "ips", r.IPs, "other", other)
			if err := errors.Join(n.deleteLink(r.Link), n.store.remove(r.Link)); err != nil {
				return err
			}
			continue
		}
		n.pods[r.Link] = &attachment{rec: r}
		if r.Wired {
			n.table.expect(portElements(r))
		}
	}
	links, err := n.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var orphans map[int][]netip.Addr
	for _, l := range links {
		name, index := l.Attrs().Name, l.Attrs().Index
		if !podLink(name) || l.Type() != "veth" {
			continue
		}
		if a := n.pods[name]; a != nil {
			a.index = index
			continue
		}
		if orphans == nil {
			if orphans, err = n.podRoutes(); err != nil {
				return err
			}
		}
		if err := n.adopt(l, orphans[index]); err != nil {
			return err
		}
	}
	return nil
}

// adopt makes a record of what the kernel knows of a pod whose record was lost. A link without routes was never
// opened and goes.
func (n *Network) adopt(l netlink.Link, ips []netip.Addr) error {
	r := &record{Link: l.Attrs().Name, IPs: ips, MTU: l.Attrs().MTU, Created: n.now(), Wired: true}
	if ns, name, ok := strings.Cut(l.Attrs().Alias, "/"); ok {
		r.Namespace, r.Name = ns, name
	}
	if len(ips) == 0 || n.pool.take(r.Link, ips) != "" {
		return n.deleteLink(r.Link)
	}
	n.log.Warn("podnet: no record of a pod's link, going by what the kernel knows", "pod", r.who(), "link", r.Link, "ips", ips)
	n.pods[r.Link] = &attachment{rec: r, index: l.Attrs().Index}
	return n.store.put(r)
}

// podRoutes lists the addresses that weft's routes lead to each link, IPv4 first.
func (n *Network) podRoutes() (map[int][]netip.Addr, error) {
	m := make(map[int][]netip.Addr)
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		rs, err := n.nl.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range rs {
			if p, ok := prefixOf(r.Dst); ok && p.IsSingleIP() && r.Gw == nil && r.Via == nil {
				m[r.LinkIndex] = append(m[r.LinkIndex], p.Addr())
			}
		}
	}
	return m, nil
}

// Close lets go of the node; all that is wired stays.
func (n *Network) Close() error {
	var errs []error
	if n.metrics != nil {
		n.metrics.unregister()
	}
	if n.nl != nil {
		n.nl.Close()
	}
	if n.store != nil {
		errs = append(errs, n.store.close())
	}
	if n.ns != nil {
		errs = append(errs, n.ns.close())
	}
	return errors.Join(errs...)
}

// Pods lists the pods that are wired on this node, in no order.
func (n *Network) Pods() []model.LocalPod {
	n.mu.Lock()
	defer n.mu.Unlock()
	ps := make([]model.LocalPod, 0, len(n.pods))
	for _, a := range n.pods {
		if a.rec.Wired && !a.going {
			ps = append(ps, a.rec.localPod(a.index))
		}
	}
	return ps
}

// Status is nil when ADD can be served, else it says why not.
func (n *Network) Status() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.notice
}

// source is the node's own address of a's family, invalid where it has none.
func (n *Network) source(a netip.Addr) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sources[model.FamilyOf(a)]
}

// keyedMutex is a mutex for each key. A key that nobody holds or waits for takes no memory.
type keyedMutex struct {
	mu sync.Mutex
	m  map[string]*countedMutex
}

type countedMutex struct {
	sync.Mutex
	users int
}

func (k *keyedMutex) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.m == nil {
		k.m = make(map[string]*countedMutex)
	}
	c := k.m[key]
	if c == nil {
		c = new(countedMutex)
		k.m[key] = c
	}
	c.users++
	k.mu.Unlock()
	c.Lock()
	return func() {
		c.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if c.users--; c.users == 0 {
			delete(k.m, key)
		}
	}
}

// Erase removes every trace of the pod network from the node: pods lose theirs. Nothing else may use n meanwhile or
// after, but Close.
func (n *Network) Erase() error {
	var errs []error
	links, err := n.nl.LinkList()
	errs = append(errs, err)
	for _, l := range links {
		if name := l.Attrs().Name; podLink(name) && l.Type() == "veth" || strings.HasPrefix(name, tunnelPrefix) && l.Type() == "vxlan" {
			errs = append(errs, n.deleteLink(name))
		}
	}
	errs = append(errs, n.router.eraseRoutes(), n.table.erase())
	errs = append(errs, os.RemoveAll(n.cfg.StateDir), os.RemoveAll(plugin.PendingDir(n.cfg.Socket)), os.RemoveAll(n.cfg.Socket))
	return errors.Join(errs...)
}
