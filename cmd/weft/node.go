// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/node"
	"github.com/weft-net/weft/internal/podnet"
)

// nodeFlags are what "weft node" can be told.
type nodeFlags struct {
	access  kube.Access
	log     logFlags
	name    string
	listen  string
	healthz string
	tracked conntrack.Limits
	cleanup bool
	podnet  podnet.Config
	install podnet.Install
	admits  bool

	resolvers    []string
	dnsNamespace string

	services   node.ServicesConfig
	clusterIPs []string
	nodePorts  nodePortFlags
	announceOn []string
	announced  string
}

// stuck is how long one update of one part may take before /livez fails and kubelet restarts the agent. The first
// update of a very large cluster takes seconds.
const stuck = 2 * time.Minute

func newNodeCommand() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "The agent of a node: wires pods, forwards Services, enforces policy",
		Long: `The agent of a node: wires pods (it serves the CNI plugin), forwards Services, enforces NetworkPolicy.

What it has put into the kernel stays there when it stops, so a restart or an upgrade costs no packet.
"weft node --cleanup" takes it all out again.`,
		GroupID: "cluster",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	fs := cmd.Flags()
	f.access.AddFlags(fs)
	f.log.add(fs)
	fs.StringVar(&f.name, "node-name", os.Getenv("NODE_NAME"), "this node's name in the API (default: $NODE_NAME, then the host's name)")
	fs.StringVar(&f.listen, "metrics-bind-address", ":9640", "`address` for /metrics, /livez, /healthz and /readyz")
	fs.StringVar(&f.healthz, "healthz-bind-address", ":10256", "`address` for /healthz and /livez as kube-proxy has them, which load balancers ask whether the node takes traffic (\"\": none)")
	f.tracked = conntrack.DefaultLimits
	fs.IntVar(&f.tracked.MaxPerCore, "conntrack-max-per-core", f.tracked.MaxPerCore, "connections to track for each CPU; what the host has is never lowered (0: leave it as it is)")
	fs.IntVar(&f.tracked.Min, "conntrack-min", f.tracked.Min, "connections to track at least, unless --conntrack-max-per-core is 0")
	fs.DurationVar(&f.tracked.TCPEstablished, "conntrack-tcp-timeout-established", f.tracked.TCPEstablished, "how long an idle TCP connection is tracked (0: leave it as it is)")
	fs.DurationVar(&f.tracked.TCPCloseWait, "conntrack-tcp-timeout-close-wait", f.tracked.TCPCloseWait, "how long a TCP connection is tracked that one side has closed (0: leave it as it is)")
	fs.BoolVar(&f.tracked.TCPBeLiberal, "conntrack-tcp-be-liberal", false, "take only TCP resets that are out of the window for invalid")
	fs.DurationVar(&f.tracked.UDP, "conntrack-udp-timeout", 0, "how long UDP that nobody has answered is tracked (0: leave it as it is)")
	fs.DurationVar(&f.tracked.UDPStream, "conntrack-udp-timeout-stream", 0, "how long idle UDP that went both ways is tracked (0: leave it as it is)")
	fs.BoolVar(&f.cleanup, "cleanup", false, "remove every trace of weft from this node, pods' links included, and leave")
	fs.StringVar(&f.podnet.Socket, "cni-socket", "", "`path` of the socket that the CNI plugin asks (default /run/weft/cni.sock)")
	fs.StringVar(&f.podnet.StateDir, "state-dir", "", "`directory`, on a tmpfs, for the records of this node's pods (default /run/weft/podnet)")
	fs.IntVar(&f.podnet.MTU, "mtu", 0, "MTU of pods' links in bytes (default: that of the node's own link)")
	fs.BoolVar(&f.podnet.AlwaysTunnel, "always-tunnel", false, "carry pods' packets between nodes in VXLAN even where nodes share a link")
	fs.StringVar(&f.install.ConfDir, "cni-conf-dir", "", "`directory` of the CNI configuration (default /etc/cni/net.d)")
	fs.StringVar(&f.install.BinDir, "cni-bin-dir", "", "`directory` of the CNI plugins (default /opt/cni/bin)")
	fs.StringSliceVar(&f.clusterIPs, "service-cluster-ip-range", nil, "`CIDRs` of cluster IPs; traffic to those that no Service has is dropped instead of routed away")
	f.nodePorts.add(fs)
	fs.StringSliceVar(&f.announceOn, "announce-links", nil, "`patterns` of the links on which LoadBalancer addresses are announced, such as eth0,bond* (default: all of the node's own)")
	fs.StringVar(&f.announced, "announce-state", "/run/weft/announced.json", "`file`, on a tmpfs, that keeps what this node announces, for a restart while the API server is away")
	fs.StringSliceVar(&f.resolvers, "policy-resolvers", nil, "`addresses` of DNS servers whose answers count for policies by domainNames, beside those of the cluster's DNS")
	fs.StringVar(&f.dnsNamespace, "dns-namespace", "kube-system", "`namespace` of the cluster's DNS Service, whose answers count for policies by domainNames (as do those of kube-system), and whose queries may go to this node's own server untracked")
	fs.BoolVar(&f.admits, "log-admitted", false, "report new connections that policies admit, not only those dropped")
	return cmd
}

func (f *nodeFlags) run(ctx context.Context) error {
	log, err := f.log.setup()
	if err != nil {
		return err
	}
	if f.name == "" {
		if f.name, err = os.Hostname(); err != nil {
			return fmt.Errorf("--node-name is not set, and the host has no name: %w", err)
		}
	}
	if f.cleanup {
		return f.clean(ctx, log)
	}
	cfg, err := f.access.Config()
	if err != nil {
		return err
	}
	record, err := kube.NewRecorder(ctx, cfg, "weft-node", f.name)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	watcher, err := kube.NewWatcher(cfg, kube.Options{Kinds: kube.ForNode, Lean: true, Registerer: reg, Log: log})
	if err != nil {
		return err
	}
	policies, err := kube.NewPolicyReader(cfg)
	if err != nil {
		return err
	}
	agent, services, err := f.assemble(log, reg, record, watcher.Age, policies.Read, watcher.Renew)
	if err != nil {
		return err
	}
	if err := f.tracked.Apply(); err != nil {
		log.Warn("not all limits of connection tracking could be set; what the host has stays", "err", err)
	}
	collect(gcFirst)
	agent.WhenSettled(func() {
		collect(gcLater)
		debug.FreeOSMemory()
		if err := releaseProgram(); err != nil {
			log.Debug("the program's own pages stay in memory", "err", err)
		}
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { watcher.Run(ctx); return nil })
	g.Go(func() error { return agent.Run(ctx, watcher) })
	g.Go(func() error {
		return health.Serve(ctx, f.listen, health.Handler(reg, func() error { return agent.Live(stuck) }, agent.Ready))
	})
	if f.healthz != "" {
		g.Go(func() error { serveProxyHealth(ctx, log, f.healthz, services.ProxyHealth()); return nil })
	}
	log.Info("weft node started", "node", f.name, "version", version)
	return g.Wait()
}

// serveProxyHealth answers on addr until ctx is done. Where the port can't be had, as while kube-proxy still runs, the
// node's work goes on, and it is tried again.
func serveProxyHealth(ctx context.Context, log *slog.Logger, addr string, h http.Handler) {
	const pause = 5 * time.Second
	for said := false; ctx.Err() == nil; said = true {
		err := health.Serve(ctx, addr, h)
		if err == nil {
			return
		}
		if !said {
			log.Error("can't serve --healthz-bind-address; trying again and again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// How much garbage may come to what lives, in percent, before it is collected. The first picture leaves much, for the
// API's objects are many times what is kept of them: it sets the peak. A change leaves little.
const gcFirst, gcLater = 20, 30

// collect sets that, unless the operator did.
func collect(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// assemble makes the agent's parts. A pod's policy must be in force before its link comes up, so the pod network
// asks the policy part, which in turn asks it for the pods that are there already.
func (f *nodeFlags) assemble(log *slog.Logger, reg prometheus.Registerer, record func(model.Event), age func() time.Duration,
	policies func(context.Context, string) (*model.Delta, error), renew func(kind string)) (*node.Agent, *node.Services, error) {
	var pods *node.PodNetwork
	var resolvers []netip.Addr
	for _, s := range f.resolvers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, nil, fmt.Errorf("--policy-resolvers: %q is not an address", s)
		}
		resolvers = append(resolvers, a)
	}
	pol, err := node.NewPolicy(node.PolicyConfig{
		Node: f.name, Resolvers: resolvers, DNSNamespace: f.dnsNamespace, Local: func() []model.LocalPod { return pods.Pods() }, LogAdmitted: f.admits,
		Confirm: policies, Behind: renew,
		Registerer: reg, Events: record, Log: log.With("part", "policy"),
	})
	if err != nil {
		return nil, nil, err
	}
	f.podnet.NodeName, f.podnet.Registerer, f.podnet.Log = f.name, reg, log.With("part", "podnet")
	f.podnet.Protect, f.podnet.Unprotect = pol.Protect, pol.Unprotect
	if pods, err = node.NewPodNetwork(f.podnet, f.install); err != nil {
		return nil, nil, err
	}
	f.services.Node, f.services.Registerer, f.services.Events, f.services.Log = f.name, reg, record, log.With("part", "services")
	f.services.Loopback = !f.nodePorts.noLoopback
	if f.services.ClusterIPs, err = prefixes("service-cluster-ip-range", f.clusterIPs); err != nil {
		return nil, nil, err
	}
	if f.services.PrimaryNodePorts = f.nodePorts.primary(); !f.services.PrimaryNodePorts {
		if f.services.NodePorts, err = prefixes("nodeport-addresses", f.nodePorts.addresses); err != nil {
			return nil, nil, err
		}
	}
	services, err := node.NewServices(f.services)
	if err != nil {
		return nil, nil, err
	}
	announce, err := node.NewAnnounce(node.AnnounceConfig{
		Node: f.name, Links: f.announceOn, State: f.announced, Age: age, Forwards: services.Forwards, Registerer: reg, Events: record, Log: log.With("part", "announce"),
	})
	if err != nil {
		return nil, nil, err
	}
	dns, err := node.NewDNSPath(f.name, f.dnsNamespace, reg, log.With("part", "dns"))
	if err != nil {
		return nil, nil, err
	}
	agent, err := node.NewAgent(log, reg, pods, pol, services, announce, dns)
	return agent, services, err
}

// prefixes reads a flag's CIDRs.
func prefixes(flag string, in []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--%s: %q is not a CIDR such as 10.96.0.0/12", flag, s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// clean removes every trace. It needs no API server.
func (f *nodeFlags) clean(ctx context.Context, log *slog.Logger) error {
	agent, _, err := f.assemble(log, prometheus.NewRegistry(), func(model.Event) {}, nil, nil, nil)
	if err != nil {
		return err
	}
	if err := agent.Cleanup(ctx); err != nil {
		return errors.Join(errors.New("not all of weft could be removed"), err)
	}
	fmt.Println("weft has left this node: no pod on it has a network now")
	return nil
}
