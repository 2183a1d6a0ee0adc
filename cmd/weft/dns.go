// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/dnsd"
	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/kube"
)

func newDNSCommand() *cobra.Command {
	var (
		access    kube.Access
		o         dnsd.Options
		domain    string
		upstreams []string
		logs      logFlags
	)
	cmd := &cobra.Command{
		Use:     "dns",
		GroupID: "cluster",
		Short:   "Serve the cluster's DNS",
		Long: `Answers the names of the Kubernetes DNS specification from its own copy of the
cluster, and forwards and caches all others.

It needs no privilege but port 53. It is ready (/readyz on the metrics port) once it
knows the whole cluster, goes on answering while the API server is away, and takes
changes of its configuration file without losing a query.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Log, err = logs.setup(); err != nil {
				return err
			}
			cfg, err := access.Config()
			if err != nil {
				return err
			}
			o.Overrides = func(c *dnsserver.Config) {
				if domain != "" {
					c.ClusterDomain = domain
				}
				if len(upstreams) > 0 {
					c.Forward.Upstreams = upstreams
				}
			}
			return dnsd.Run(cmd.Context(), cfg, o)
		},
	}
	fs := cmd.Flags()
	access.AddFlags(fs)
	fs.StringSliceVar(&o.Listen, "listen", []string{":53"}, "`address:port` to answer on, over UDP and TCP; :port is all addresses")
	fs.StringSliceVar(&o.ListenNode, "listen-node", nil, "`address:port` for queries that the node brings here untracked, over UDP only; the Service's annotation weft.dev/untracked-dns-port names its port for this one")
	fs.StringSliceVar(&o.ListenExternal, "listen-external", nil, "`address:port` for the zones that the configuration has for the outside world")
	fs.StringVar(&o.Status, "metrics-bind-address", ":9153", "`address:port` of /metrics, /livez and /readyz; empty is none")
	fs.StringVar(&o.ConfigFile, "config", "", "configuration `file` (docs/dns.md); changes are taken at once")
	fs.StringVar(&domain, "cluster-domain", "", "the cluster's domain, over what the file has (default cluster.local)")
	fs.StringSliceVar(&upstreams, "upstream", nil, "`resolver` for all other names, over what the file has (default: those of /etc/resolv.conf)")
	fs.DurationVar(&o.Lameduck, "lameduck", 5*time.Second, "how long to go on answering after SIGTERM, no longer ready")
	logs.add(fs)
	cmd.AddCommand(newDNSQueryCommand())
	return cmd
}
