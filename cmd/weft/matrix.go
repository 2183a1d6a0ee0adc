// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/explain"
)

func newMatrixCommand() *cobra.Command {
	var f worldFlags
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Who can talk to whom, by policy",
		Long: `Who can talk to whom, by policy. Pods with the same namespace, labels and ports are one row and one column;
"outside" is everybody beyond the cluster. A cell is "all", "-" for nothing, or the ports that are let through, of
those that the destination declares or a policy names.`,
		Example: `  weft matrix -n shop
  weft matrix -f manifests/ -o dot | dot -Tsvg > who.svg`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
		Long: `Which connections a change of manifests opens or closes, among the pods that are there before and after. With one
-f the cluster is what is before.

The exit status is 0 if none, 1 if some, 2 if the question can't be answered.`,
		Example: "  weft diff -f main/manifests -f branch/manifests",
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
	var before, after *explain.World
	var err error
	switch len(f.files) {
	case 2:
		if before, err = f.loadFiles(f.files[0]); err != nil {
			return nil, err
		}
	case 1:
		cluster := *f
		cluster.files = nil
		if before, err = cluster.load(cmd.Context()); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("give -f twice: before and after (once: the cluster is before)")
	}
	if after, err = f.loadFiles(f.files[len(f.files)-1]); err != nil {
		return nil, err
	}
	var namespaces []string
	if f.namespace != "" {
		namespaces = []string{f.namespace}
	}
	return explain.Diff(before, after, namespaces...), nil
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
