// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
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
search path matched, which object each record comes from; or why there is none.

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
	fs.StringVar(&configFile, "config", "", "configuration `file` of weft dns, for names that depend on it")
	fs.StringVar(&domain, "cluster-domain", "", "the cluster's domain (default cluster.local)")
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

func runDNSQuery(cmd *cobra.Command, f *worldFlags, name, from, output, configFile, domain string, types, search, outside []string) error {
	var data []byte
	if configFile != "" {
		var err error
		if data, err = os.ReadFile(configFile); err != nil {
			return err
		}
	}
	cfg, err := dnsserver.ParseConfig(data)
	if err != nil {
		return err
	}
	if domain != "" {
		cfg.ClusterDomain = domain
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
	pod := ""
	if from != "" {
		n := model.Name{Namespace: ns, Name: from}
		if space, rest, ok := strings.Cut(from, "/"); ok {
			n = model.Name{Namespace: space, Name: rest}
		}
		if d.Pods[n] == nil {
			return fmt.Errorf("--from: there is no pod %s", n)
		}
		ns, pod = n.Namespace, n.Name
	}
	zone, err := dnszone.New(cfg.Zone())
	if err != nil {
		return err
	}
	zone.Update(d)
	var asked *dnsd.Asked
	if len(outside) > 0 {
		asked, err = askOutside(zone, cfg, d, name, types, outside)
	} else if asked, err = dnsd.Ask(zone, name, ns, types, search); err == nil {
		asked.Pod = pod
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
	if !asked.Found && (asked.Answers[0].Elsewhere == "" || !strings.Contains(strings.TrimSuffix(name, "."), ".")) {
		return exitCode{code: 1}
	}
	return nil
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
