// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/hostnames"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// Options are the flags of `weft dns`.
type Options struct {
	Listen         []string // addresses and ports; ":53" is both families
	ListenNode     []string // the same, over UDP only: for what comes untracked from the node's own pods (package dnspath)
	ListenExternal []string // of the zones for the outside world
	Status         string   // address and port of /metrics, /livez, /readyz, /queries

	ConfigFile string // may be ""
	// Overrides are set over what the file has, each time that it is read.
	Overrides func(*dnsserver.Config)

	// Lameduck is how long the server still answers after it was told to end, while it is no longer ready: the time
	// that it takes the cluster to stop sending queries here.
	Lameduck time.Duration

	Log *slog.Logger
}

// drainWithin bounds how long questions to upstreams may hold up the end: their clients' patience.
const drainWithin = 5 * time.Second

// maxReaders bounds the threads for one address: each answers some hundred thousand queries a second.
const maxReaders = 8

// source hands out what changed in the cluster: a kube.Watcher.
type source interface {
	Run(ctx context.Context)
	Next(ctx context.Context) (*model.Delta, error)
	Age() time.Duration
}

// daemon is the running process.
type daemon struct {
	o      Options
	log    *slog.Logger
	open   func(kube.Kinds, prometheus.Registerer) (source, error)
	server *dnsserver.Server
	outer  *dnsserver.Server // for the outside world; without zones it refuses everything

	config *dnsserver.Config
	zone   *dnszone.Zone
	zones  *dnszone.External
	names  *hostnames.Table // of Ingresses and routes, for zones
	kinds  kube.Kinds
	source atomic.Pointer[opened]
	reg    *prometheus.Registry

	readers   int                                                  // of each address and port
	listening func(dns []*dnsserver.Listener, status net.Listener) // is told once all is open; may be nil
	ready     atomic.Bool
	draining  atomic.Bool
	lag       *prometheus.HistogramVec
	updated   prometheus.Histogram
}

// opened is a source at work, and its metrics.
type opened struct {
	source
	reg  *prometheus.Registry
	stop context.CancelFunc
}

// change is what a source hands out.
type change struct {
	delta *model.Delta
	from  *opened
}

// Run serves until ctx is done and all is drained.
func Run(ctx context.Context, cfg *rest.Config, o Options) error {
	d, err := newDaemon(o, func(kinds kube.Kinds, reg prometheus.Registerer) (source, error) {
		return kube.NewWatcher(cfg, kube.Options{Kinds: kinds, ForNames: true, Registerer: reg, Log: o.Log})
	})
	if err != nil {
		return err
	}
	return d.run(ctx)
}

func newDaemon(o Options, open func(kube.Kinds, prometheus.Registerer) (source, error)) (*daemon, error) {
	d := &daemon{o: o, log: o.Log, open: open, names: hostnames.NewTable(), reg: prometheus.NewRegistry()}
	var err error
	if d.server, err = dnsserver.New(o.Log); err != nil {
		return nil, err
	}
	if d.outer, err = dnsserver.New(o.Log); err != nil {
		return nil, err
	}
	d.outer.Stats().SetServer("dns://" + strings.Join(o.ListenExternal, ","))
	d.register()
	collect(gcFirst)
	// The server's readers wait in the kernel. With one processor more than there are cores the runtime sees one
	// idle, and does not take a reader's away from it each time that it waits, to give it back a moment later.
	cores := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(cores + 1)
	d.readers = min(cores, maxReaders)
	return d, nil
}

// run has one goroutine that changes zones and configuration; the server's own goroutines only read them.
func (d *daemon) run(ctx context.Context) error {
	data, err := d.readConfig()
	if err != nil {
		return err
	}
	cfg, err := d.parse(data)
	if err != nil {
		return err
	}
	listeners, err := d.listen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	var status net.Listener
	if d.o.Status != "" {
		if status, err = health.Listen(d.o.Status); err != nil {
			return err
		}
		defer status.Close()
	}
	if d.listening != nil {
		d.listening(listeners, status)
	}

	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	changes := make(chan change)
	configs := make(chan []byte)
	if err := d.begin(work, cfg, changes); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(work)
	for _, l := range listeners {
		g.Go(l.Serve)
	}
	if status != nil {
		g.Go(func() error { return d.serveStatus(gctx, status) })
	}
	g.Go(func() error { d.follow(gctx, changes, configs); return nil })
	if d.o.ConfigFile != "" {
		g.Go(func() error {
			w := fileWatch{path: d.o.ConfigFile, log: d.log, open: openEvents, every: lookEvery}
			w.run(gctx, data, func(data []byte) {
				select {
				case configs <- data:
				case <-gctx.Done():
				}
			})
			return nil
		})
	}
	g.Go(func() error {
		select {
		case <-gctx.Done():
		case <-ctx.Done():
			d.drain(listeners)
		}
		for _, l := range listeners {
			l.Stop()
		}
		stop()
		return nil
	})
	err = g.Wait()
	d.server.Close()
	d.outer.Close()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// drain lets the cluster notice that this server is going, then finishes what is under way.
func (d *daemon) drain(listeners []*dnsserver.Listener) {
	d.draining.Store(true)
	d.log.Info("ending: answering until the cluster has noticed", "lameduck", d.o.Lameduck)
	time.Sleep(d.o.Lameduck)
	for _, l := range listeners {
		l.Stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainWithin)
	defer cancel()
	d.server.Drain(ctx)
}

func (d *daemon) readConfig() ([]byte, error) {
	if d.o.ConfigFile == "" {
		return nil, nil
	}
	data, err := os.ReadFile(d.o.ConfigFile)
	if err != nil {
		return nil, fmt.Errorf("DNS configuration: %w", err)
	}
	return data, nil
}

func (d *daemon) parse(data []byte) (*dnsserver.Config, error) {
	cfg, err := dnsserver.ParseConfig(data)
	if err != nil {
		return nil, err
	}
	if d.o.Overrides != nil {
		d.o.Overrides(cfg)
	}
	return cfg, nil
}

// kindsFor is what has to be watched for a configuration.
func (d *daemon) kindsFor(cfg *dnsserver.Config) kube.Kinds {
	kinds := kube.Services | kube.EndpointSlices | kube.Namespaces
	if cfg.Zone().Pods == dnszone.PodsVerified {
		kinds |= kube.Pods
	}
	if len(cfg.External.Zones) > 0 {
		kinds |= kube.Nodes | kube.Ingresses | kube.GatewayNames
	}
	return kinds
}

// begin puts the first configuration to work.
func (d *daemon) begin(ctx context.Context, cfg *dnsserver.Config, changes chan change) error {
	zone, err := dnszone.New(d.zoneOptions(cfg))
	if err != nil {
		return err
	}
	if err := d.server.Apply(cfg, zone); err != nil {
		return err
	}
	d.zone, d.config = zone, cfg
	if err := d.applyExternal(cfg); err != nil {
		return err
	}
	return d.openSource(ctx, d.kindsFor(cfg), changes)
}

func (d *daemon) zoneOptions(cfg *dnsserver.Config) dnszone.Options {
	o := cfg.Zone()
	o.Self = ownAddresses()
	return o
}

// openSource starts to watch, in place of what was watched before.
func (d *daemon) openSource(ctx context.Context, kinds kube.Kinds, changes chan change) error {
	reg := prometheus.NewRegistry()
	src, err := d.open(kinds, reg)
	if err != nil {
		return err
	}
	sctx, stop := context.WithCancel(ctx)
	now := &opened{source: src, reg: reg, stop: stop}
	if old := d.source.Swap(now); old != nil {
		old.stop()
	}
	d.kinds = kinds
	go src.Run(sctx)
	go func() {
		for {
			delta, err := src.Next(sctx)
			if err != nil {
				return
			}
			select {
			case changes <- change{delta, now}:
			case <-sctx.Done():
				return
			}
		}
	}()
	return nil
}

// follow takes in what changes, one after the other.
func (d *daemon) follow(ctx context.Context, changes chan change, configs <-chan []byte) {
	fresh := false // the next Delta is the whole state, for a new zone
	for {
		select {
		case c := <-changes:
			if c.from != d.source.Load() {
				continue // it was on its way when its source was replaced, by one that begins with the whole state
			}
			start, delta := time.Now(), c.delta
			if fresh {
				fresh = false
				if !d.renew(delta) {
					continue
				}
			} else {
				d.zone.Update(delta)
				d.updateExternal(delta)
			}
			d.updated.Observe(time.Since(start).Seconds())
			d.observeLag(delta)
			if !d.ready.Load() {
				collect(gcLater)
				debug.FreeOSMemory() // before queries are sent here: changes wait meanwhile
				d.ready.Store(true)
				d.log.Info("first picture of the cluster complete", "services", d.zone.Services(), "addresses", d.zone.Addresses(),
					"took", time.Since(start))
			}
		case data := <-configs:
			cfg, err := d.parse(data)
			if err == nil && d.kindsFor(cfg) != d.kinds {
				d.config = cfg
				if err = d.openSource(ctx, d.kindsFor(cfg), changes); err == nil {
					fresh = true
					continue
				}
			}
			if err == nil && fresh {
				d.config = cfg // for the whole state that is to come
				continue
			}
			if err == nil {
				err = d.reconfigure(cfg)
			}
			if err != nil {
				d.server.Stats().ReloadFailed()
				d.log.Error("the new configuration can't be used; the old one stays", "err", err)
				continue
			}
			d.log.Info("configuration taken")
		case <-ctx.Done():
			return
		}
	}
}

// How much garbage may come to what lives, in percent, before it is collected. The first picture leaves much, for the
// API's objects are many times what is kept of them: it sets the peak. A change leaves next to none.
const gcFirst, gcLater = 30, 50

// collect sets that, unless the operator did.
func collect(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// renew builds zones from a whole state for the configuration at hand.
func (d *daemon) renew(delta *model.Delta) bool {
	zone, err := dnszone.New(d.zoneOptions(d.config))
	if err == nil {
		zone.Update(delta)
		err = d.server.Apply(d.config, zone)
	}
	if err == nil {
		d.zone, d.names = zone, hostnames.NewTable()
		if err = d.applyExternal(d.config); err == nil {
			d.updateExternal(delta)
		}
	}
	if err != nil {
		d.log.Error("the new configuration can't be used", "err", err)
		return false
	}
	d.log.Info("configuration taken")
	return true
}

// reconfigure puts another configuration to work on what is known of the cluster.
func (d *daemon) reconfigure(cfg *dnsserver.Config) error {
	zone, err := d.zone.Rebuild(d.zoneOptions(cfg))
	if err != nil {
		return err
	}
	if err := d.server.Apply(cfg, zone); err != nil {
		return err
	}
	d.zone, d.config = zone, cfg
	return d.applyExternal(cfg)
}

// applyExternal makes the zones for the outside world.
func (d *daemon) applyExternal(cfg *dnsserver.Config) error {
	x, err := dnszone.NewExternal(d.zone, cfg.ExternalZones())
	if err != nil {
		return err
	}
	for _, n := range d.names.All() {
		x.Declare(n)
	}
	if d.zone.Complete() {
		known := d.zone.Snapshot()
		if d.zones != nil {
			known.Nodes = d.zones.Nodes()
		}
		x.Update(known)
	}
	d.zones = x
	d.outer.ApplyExternal(cfg, x)
	return nil
}

// updateExternal takes what changed to the zones for the outside world.
func (d *daemon) updateExternal(delta *model.Delta) {
	now, gone := d.names.Update(delta)
	for _, o := range gone {
		d.zones.Withdraw(o)
	}
	for _, n := range now {
		d.zones.Declare(n)
	}
	d.zones.Update(delta)
}

// opener opens sockets on an address and port.
type opener func(netip.AddrPort) (*dnsserver.Listener, error)

// listen opens all sockets before anything is served, so that a port that is taken is an error at the start.
func (d *daemon) listen(ctx context.Context) (out []*dnsserver.Listener, err error) {
	all := func(s *dnsserver.Server) opener {
		return func(ap netip.AddrPort) (*dnsserver.Listener, error) { return s.Listen(ctx, ap, d.readers) }
	}
	add := func(open opener, addrs []string) error {
		for _, a := range addrs {
			aps, err := parseListen(a)
			if err != nil {
				return err
			}
			for i, ap := range aps {
				l, err := open(ap)
				if err != nil {
					if i > 0 && len(aps) > 1 {
						d.log.Warn("not listening on IPv6", "err", err) // a machine without
						continue
					}
					return err
				}
				out = append(out, l)
			}
		}
		return nil
	}
	err = errors.Join(
		add(all(d.server), d.o.Listen),
		add(func(ap netip.AddrPort) (*dnsserver.Listener, error) { return d.server.ListenUDP(ap, d.readers) }, d.o.ListenNode),
		add(all(d.outer), d.o.ListenExternal),
	)
	if err != nil {
		for _, l := range out {
			l.Close()
		}
		return nil, err
	}
	return out, nil
}

// parseListen reads an address and port; ":53" is all addresses of both families.
func parseListen(s string) ([]netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		s4, err := netip.ParseAddrPort("0.0.0.0:" + port)
		if err != nil {
			return nil, fmt.Errorf("listen address %q: want address:port, or :port", s)
		}
		return []netip.AddrPort{s4, netip.AddrPortFrom(netip.IPv6Unspecified(), s4.Port())}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: want address:port, or :port", s)
	}
	return []netip.AddrPort{ap}, nil
}

// ownAddresses are this machine's addresses, but for those that nobody else can reach.
func ownAddresses() (out []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		out = append(out, p.Addr().Unmap())
	}
	return out
}
