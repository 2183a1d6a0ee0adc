// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/dnsd"
	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/hostnames"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

func newDNSQueryCommand() *cobra.Command {
	var (
		f                                worldFlags
		from, output, configFile, domain string
		types, search, outside           []string
	)
	cmd := &cobra.Command{
		Use:   "query NAME",
		Short: "What a name resolves to in a pod, and why",
		Long: `Answers a name as the cluster's DNS does for a pod, from what the API server says: which name of the
search path matched, which object each record comes from; or why there is none. The pod's dnsPolicy and
dnsConfig count, and the configuration that weft dns has in the cluster (hosts, aliases, stubDomains).

An IP address is looked up backwards. Nothing is sent to a DNS server. The exit status is 0 if the name
exists in the cluster or is for others to answer, 1 if it does not exist, 2 if it can't be told.`,
		Example: `  weft dns query cart --from shop/web-7d9f
  weft dns query cart.shop --type A,SRV
  weft dns query 10.96.0.1
  weft dns query www.example.com --outside example.com
  weft dns query cart -n shop -f manifests/`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := runDNSQuery(cmd, &f, args[0], from, output, configFile, domain, types, search, outside); err != nil {
				if _, ok := err.(exitCode); ok {
					return err
				}
				return exitCode{2, err}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.StringVar(&from, "from", "", "`pod` whose search path is used, as NAME or NAMESPACE/NAME (default: any of the namespace)")
	fs.StringSliceVar(&types, "type", []string{"A", "AAAA"}, "record `types`")
	fs.StringSliceVar(&search, "search", nil, "search `domains` of the nodes, behind the cluster's own")
	fs.StringSliceVar(&outside, "outside", nil, "ask as the world outside does, of these `zones` for it")
	fs.StringVar(&configFile, "config", "", "configuration `file` of weft dns (default: the one that the cluster's has)")
	fs.StringVar(&domain, "cluster-domain", "", "the cluster's domain (default cluster.local)")
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

// dnsConfig is the configuration of weft dns: that file, or what the cluster runs, or the defaults.
func dnsConfig(cmd *cobra.Command, f *worldFlags, file, domain string) (*dnsserver.Config, error) {
	var data []byte
	switch {
	case file != "":
		var err error
		if data, err = os.ReadFile(file); err != nil {
			return nil, err
		}
	case len(f.files) == 0:
		access, err := f.access.Config()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), snapshotPatience)
		defer cancel()
		text, runs, found, err := kube.RunningDNS(ctx, access)
		switch {
		case err != nil:
			fmt.Fprintf(cmd.ErrOrStderr(), "note: %v; without the configuration, which --config can name, its defaults are taken\n", err)
		case !found:
			fmt.Fprintln(cmd.ErrOrStderr(), "note: weft dns is not installed here: this is how it would answer by default")
		}
		data, domain = []byte(text), cmp.Or(domain, runs)
	}
	cfg, err := dnsserver.ParseConfig(data)
	if err != nil {
		return nil, err
	}
	cfg.ClusterDomain = cmp.Or(domain, cfg.ClusterDomain)
	return cfg, nil
}

func runDNSQuery(cmd *cobra.Command, f *worldFlags, name, from, output, configFile, domain string, types, search, outside []string) error {
	cfg, err := dnsConfig(cmd, f, configFile, domain)
	if err != nil {
		return err
	}
	kinds := kube.Services | kube.EndpointSlices | kube.Namespaces | kube.Pods
	if len(outside) > 0 {
		kinds |= kube.Nodes | kube.Ingresses | kube.GatewayNames
	}
	d, err := dnsSnapshot(cmd.Context(), f, kinds)
	if err != nil {
		return err
	}
	ns := f.ns()
	var pod *model.Pod
	if from != "" {
		n := model.Name{Namespace: ns, Name: from}
		if space, rest, ok := strings.Cut(from, "/"); ok {
			n = model.Name{Namespace: space, Name: rest}
		}
		if pod = d.Pods[n]; pod == nil {
			return fmt.Errorf("--from: there is no pod %s", n)
		}
		ns = n.Namespace
	}
	zone, err := dnszone.New(cfg.Zone())
	if err != nil {
		return err
	}
	zone.Update(d)
	var asked *dnsd.Asked
	if len(outside) > 0 {
		asked, err = askOutside(zone, cfg, d, name, types, outside)
	} else {
		asked, err = dnsd.Ask(zone, cfg, name, types, dnsd.ResolverOf(zone, ns, pod, search, dnsAddresses(d)))
	}
	if err != nil {
		return err
	}
	if output == "json" {
		if err := writeJSON(cmd.OutOrStdout(), asked); err != nil {
			return err
		}
	} else {
		asked.Write(cmd.OutOrStdout())
	}
	if asked.Outside && !asked.Found {
		return exitCode{code: 1}
	}
	// A name of one label is nobody else's either.
	if !asked.Found && asked.NotAsked == "" && (asked.Answers[0].Elsewhere == "" || !strings.Contains(strings.TrimSuffix(name, "."), ".")) {
		return exitCode{code: 1}
	}
	return nil
}

// dnsAddresses are those of the Services that are the cluster's DNS: weft's, and the one of the usual name and label.
func dnsAddresses(d *model.Delta) (out []netip.Addr) {
	for name, s := range d.Services {
		weft := s.Labels["app.kubernetes.io/name"] == "weft" && s.Labels["app.kubernetes.io/component"] == "dns"
		if weft || (name.Namespace == "kube-system" && (name.Name == "kube-dns" || s.Labels["k8s-app"] == "kube-dns")) {
			out = append(out, s.ClusterIPs...)
		}
	}
	return out
}

// askOutside makes the zones for the outside world, and asks them.
func askOutside(zone *dnszone.Zone, cfg *dnsserver.Config, d *model.Delta, name string, types, zones []string) (*dnsd.Asked, error) {
	cfg.External.Zones = zones
	x, err := dnszone.NewExternal(zone, cfg.ExternalZones())
	if err != nil {
		return nil, err
	}
	x.Update(d)
	declared, _ := hostnames.NewTable().Update(d)
	for _, n := range declared {
		x.Declare(n)
	}
	return dnsd.AskOutside(x, name, types)
}

// dnsSnapshot is what names are made of, from the files or the cluster.
func dnsSnapshot(ctx context.Context, f *worldFlags, kinds kube.Kinds) (*model.Delta, error) {
	if len(f.files) > 0 {
		c, err := f.manifests(f.files...)
		if err != nil {
			return nil, err
		}
		return c.Delta, nil
	}
	cfg, err := f.access.Config()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	return kube.Snapshot(ctx, cfg, kinds)
}
