// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/offline"
)

func newMatrixCommand() *cobra.Command {
	var f worldFlags
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Who can talk to whom, by policy",
		Long: `Who can talk to whom, by policy. Pods that no policy can tell apart are one row and one column. "outside" is everybody
beyond the cluster whom no policy names; ranges of addresses that policies judge otherwise are rows and columns of their
own, and so are nodes. A cell is "all", "-" for nothing, or the ports that are let through, of all there are.

With one namespace, pods of others are rows and columns too, together where the same is true of them: "other namespaces"
are those that have no row of their own. What they may open to each other, and to the outside, is left empty: ask with -A.

` + rightsNeeded,
		Example: `  weft matrix -n shop
  weft matrix -f manifests/ -o dot | dot -Tsvg > who.svg`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				if err := f.namespaceIsThere(cmd.Context()); err != nil {
					return err
				}
			}
			w, err := f.load(cmd.Context())
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			var namespaces []string
			if !all && (f.namespace != "" || len(f.files) == 0) {
				namespaces = []string{f.ns()}
			}
			m := w.Matrix(namespaces...)
			out := cmd.OutOrStdout()
			switch output {
			case "json":
				return writeJSON(out, m.Connections())
			case "dot":
				m.WriteDOT(out)
			case "svg":
				m.WriteSVG(out)
			default:
				m.WriteTable(out)
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "all namespaces (with -f, the default)")
	outputFlag(cmd, &output, "table", "json", "dot", "svg")
	return cmd
}

func newDiffCommand() *cobra.Command {
	var f worldFlags
	var output string
	cmd := &cobra.Command{
		Use:   "diff -f BEFORE -f AFTER",
		Short: "Which connections a change of manifests opens or closes",
		Long: `Which connections a change of manifests opens or closes, among the workloads that are there before and after it and
the world outside, over all addresses and ports. With one -f the cluster is what is before, and what it would be once the
file was applied to it is what is after.

The exit status is 0 if none, 1 if some, 2 if the question can't be answered.

` + rightsNeeded,
		Example: `  weft diff -f main/manifests -f branch/manifests
  weft diff -f policy.yaml`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := f.diff(cmd)
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			if output == "json" {
				if err := writeJSON(cmd.OutOrStdout(), changes); err != nil {
					return exitCode{exitTrouble, err}
				}
			} else {
				printChanges(cmd, changes)
			}
			if len(changes.Differences) > 0 {
				return exitCode{code: exitNo}
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

func (f *worldFlags) diff(cmd *cobra.Command) (*explain.Changes, error) {
	var before, after *offline.Cluster
	var err error
	switch len(f.files) {
	case 2:
		before, after, err = f.bothManifests(f.files[0], f.files[1])
	case 1:
		before, after, err = f.applied(cmd.Context(), f.files[0])
	default:
		return nil, fmt.Errorf("give -f twice: before and after (once: the cluster is before, and what it is once the file is applied to it after)")
	}
	if err != nil {
		return nil, err
	}
	old, err := f.worldOf(before)
	if err != nil {
		return nil, err
	}
	now, err := f.worldOf(after)
	if err != nil {
		return nil, err
	}
	var namespaces []string
	if f.namespace != "" {
		namespaces = []string{f.namespace}
	}
	return explain.Diff(old, now, namespaces...), nil
}

// bothManifests reads what is before and what is after, with addresses of the same families.
func (f *worldFlags) bothManifests(before, after string) (old, now *offline.Cluster, err error) {
	if old, err = f.manifests(before); err != nil {
		return nil, nil, err
	}
	if now, err = f.manifests(after); err != nil {
		return nil, nil, err
	}
	with := *f
	switch {
	case len(old.PodCIDRs) > len(now.PodCIDRs):
		with.podCIDRs = textsOf(old.PodCIDRs)
		now, err = with.manifests(after)
	case len(old.PodCIDRs) < len(now.PodCIDRs):
		with.podCIDRs = textsOf(now.PodCIDRs)
		old, err = with.manifests(before)
	}
	return old, now, err
}

func textsOf(in []netip.Prefix) []string {
	out := make([]string, len(in))
	for i, p := range in {
		out[i] = p.String()
	}
	return out
}

// applied reads the cluster, and makes what it would be once a file was applied to it.
func (f *worldFlags) applied(ctx context.Context, file string) (before, after *offline.Cluster, err error) {
	cluster := *f
	cluster.files = nil
	d, workloads, err := cluster.snapshot(ctx)
	if err != nil {
		return nil, nil, err
	}
	f.domain = cluster.domain
	before = &offline.Cluster{Delta: d, Workloads: offline.Workloads{}}
	for w, pods := range workloads {
		before.Workloads[offline.Workload(w)] = pods
	}
	o, err := f.options()
	if err != nil {
		return nil, nil, err
	}
	o.Namespace = cluster.ns()
	ms, err := kube.ReadManifests(file)
	if err != nil {
		return nil, nil, err
	}
	if after, err = offline.Overlay(before, o, ms); err != nil {
		return nil, nil, unusable{err}
	}
	return before, after, nil
}

func printChanges(cmd *cobra.Command, c *explain.Changes) {
	out := cmd.OutOrStdout()
	if len(c.Differences) == 0 {
		fmt.Fprintln(out, "no connection is opened or closed")
	}
	for _, d := range c.Differences {
		fmt.Fprintln(out, d)
	}
	for _, x := range []struct {
		when  string
		names []string
	}{{"after", c.Added}, {"before", c.Removed}} {
		if len(x.names) > 0 {
			fmt.Fprintf(out, "left out, for it is there only %s the change: %s\n", x.when, strings.Join(x.names, ", "))
		}
	}
}
