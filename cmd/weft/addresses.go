// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/kube"
)

// addLoadBalancerFlags registers the flags that say which Services are weft's, the same for all commands that ask.
func addLoadBalancerFlags(fs *pflag.FlagSet, opts *addresses.Options) {
	fs.StringVar(&opts.Class, "load-balancer-class", opts.Class, "spec.loadBalancerClass of the Services that weft serves")
	fs.BoolVar(&opts.Unclassed, "default-load-balancer", opts.Unclassed, "serve Services that have no spec.loadBalancerClass too")
}

func newAddressesCommand() *cobra.Command {
	var access kube.Access
	var output string
	opts := addresses.Options{Class: addresses.DefaultClass, Unclassed: true}
	cmd := &cobra.Command{
		Use:   "addresses",
		Short: "Show AddressPools, which LoadBalancer Service has which address, and which node announces it",
		Long: `Show AddressPools, which LoadBalancer Service has which address, and which node announces it.

What a Service lacks, and the cure, is worked out here from the API objects by the same code that the controller
runs. Who announces an address, the node agents are asked; a name in parentheses is the node that is to announce it,
shown where the agents could not be asked. An agent that does not answer is named on standard error, and the exit status
is 2 as the answer is not whole.`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			cfg, err := access.Config()
			if err != nil {
				return err
			}
			d, err := kube.Snapshot(ctx, cfg, kube.Services|kube.EndpointSlices|kube.Nodes|kube.Namespaces|kube.AddressPools)
			if err != nil {
				return err
			}
			agents, silent := kube.AgentMetrics(ctx, cfg)
			if silent != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "weft: not all node agents could be asked:", silent)
			}
			view := addresses.View(d, opts, announcedBy(agents))
			if err := printAddresses(cmd.OutOrStdout(), view, output); err != nil {
				return err
			}
			if silent != nil {
				return exitCode{code: exitTrouble}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	access.AddFlags(fs)
	fs.StringVarP(&output, "output", "o", "", "wide, json or yaml")
	addLoadBalancerFlags(fs, &opts)
	return cmd
}

// announcedLine and standInLine are the lines of an agent's metrics that name an address that it announces, or that another
// node has whose agent is away, by what it answers on that node's behalf.
var (
	announcedLine = regexp.MustCompile(`(?m)^weft_announced_address\{address="([^"]+)"`)
	standInLine   = regexp.MustCompile(`(?m)^weft_announce_stand_in\{address="([^"]+)",link="[^"]*",node="([^"]+)"`)
)

// announcedBy reads agents' metrics; with no agent, nothing is known. An address whose node can't be asked, as its agent is
// away, is that node's as long as another says so.
func announcedBy(agents map[string]string) map[string][]netip.Addr {
	if len(agents) == 0 {
		return nil
	}
	out := make(map[string][]netip.Addr)
	add := func(node, address string) {
		if a, err := netip.ParseAddr(address); err == nil && !slices.Contains(out[node], a) {
			out[node] = append(out[node], a)
		}
	}
	for node, text := range agents {
		for _, m := range announcedLine.FindAllStringSubmatch(text, -1) {
			add(node, m[1])
		}
		for _, m := range standInLine.FindAllStringSubmatch(text, -1) {
			add(m[2], m[1])
		}
	}
	return out
}

func printAddresses(w io.Writer, v addresses.Overview, output string) error {
	switch output {
	case "json", "yaml":
		raw, err := json.MarshalIndent(v, "", "  ")
		if err == nil && output == "yaml" {
			raw, err = yaml.JSONToYAML(raw)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, strings.TrimRight(string(raw), "\n"))
		return err
	case "", "wide":
	default:
		return fmt.Errorf("--output=%s: want wide, json or yaml", output)
	}
	wide := output == "wide"
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t")) }
	more := func(cells []string, extra ...string) []string {
		if wide {
			return append(cells, extra...)
		}
		return cells
	}
	row(more([]string{"POOL", "ACCEPTED", "AUTO", "IPV4 USED", "IPV4 FREE", "IPV6 USED", "IPV6 FREE"}, "ADDRESSES")...)
	for _, p := range v.Pools {
		row(more([]string{p.Name, yesNo(p.Accepted), yesNo(p.Auto), fmt.Sprint(p.IPv4.Used), fmt.Sprint(p.IPv4.Free),
			fmt.Sprint(p.IPv6.Used), fmt.Sprint(p.IPv6.Free)}, strings.Join(p.Addresses, ", "))...)
	}
	row()
	row(more([]string{"SERVICE", "ADDRESS", "POOL", "ANNOUNCED BY"}, "MAY ANNOUNCE")...)
	for _, s := range v.Services {
		name := s.Namespace + "/" + s.Name
		if len(s.Addresses) == 0 {
			row(name, "<pending>")
		}
		for _, a := range s.Addresses {
			row(more([]string{name, a.Address.String(), a.Pool, announcer(a)}, strings.Join(a.Candidates, ", "))...)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	sep := "\n"
	for _, p := range v.Pools {
		if p.Reason != addresses.PoolAccepted {
			fmt.Fprintf(w, "%sAddressPool %s: %s: %s\n", sep, p.Name, p.Reason, p.Message)
			sep = ""
		}
	}
	for _, s := range v.Services {
		if s.Reason != "" {
			fmt.Fprintf(w, "%sService %s/%s: %s: %s\n", sep, s.Namespace, s.Name, s.Reason, s.Message)
			sep = ""
		}
		for _, a := range s.Addresses {
			if a.Nobody != "" {
				fmt.Fprintf(w, "%sService %s/%s: %s is announced by no node: %s\n", sep, s.Namespace, s.Name, a.Address, a.Nobody)
				sep = ""
			}
		}
	}
	return nil
}

// announcer is who announces the address, or who should.
func announcer(a addresses.AddressView) string {
	switch {
	case len(a.Announcers) > 0:
		return strings.Join(a.Announcers, ", ")
	case a.Asked:
		return "none"
	case a.Owner != "":
		return "(" + a.Owner + ")"
	}
	return "no node may"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
