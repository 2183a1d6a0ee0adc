// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/explain"
)

func newPolicyCommand() *cobra.Command {
	var f worldFlags
	var output string
	cmd := &cobra.Command{
		Use:     "policy NAME",
		Short:   "What a policy applies to, and what each of its rules means now",
		Long:    "What a NetworkPolicy (or, if there is none of the name, a ClusterNetworkPolicy) applies to, and whom each of its\nrules means now.\n\n" + rightsNeeded,
		Example: "  weft policy -n shop db-only-from-web\n  weft policy -f manifests/ shop/db-only-from-web\n  weft policy -n shop netpol/db-only-from-web",
		GroupID: "person",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := readName(args[0], f.ns(), "netpol", "networkpolicy", "networkpolicies")
			if err != nil {
				return err
			}
			w, err := f.load(cmd.Context())
			if err != nil {
				return err
			}
			p := w.Describe(name.Namespace, name.Name)
			if p == nil {
				return fmt.Errorf("there is no NetworkPolicy %s and no ClusterNetworkPolicy %s", name, name.Name)
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			explain.PrintPolicy(cmd.OutOrStdout(), p)
			return nil
		},
	}
	f.add(cmd.Flags())
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

func newPodCommand() *cobra.Command {
	var f worldFlags
	var output string
	cmd := &cobra.Command{
		Use:     "pod NAME",
		Short:   "Which policies apply to a pod, and which Services lead to it",
		Long:    "Which policies apply to a pod, and which Services lead to it.\n\n" + rightsNeeded,
		Example: "  weft pod -n shop web-6f7d\n  weft pod -f manifests/ deploy/web",
		GroupID: "person",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := f.load(cmd.Context())
			if err != nil {
				return err
			}
			t, err := w.ParseTarget(args[0], f.ns(), false)
			if err != nil {
				return err
			}
			if len(t.Pods) == 0 {
				return fmt.Errorf("%s is not a pod", args[0])
			}
			p := w.DescribePod(t.Pods[0])
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			explain.PrintPod(cmd.OutOrStdout(), p)
			return nil
		},
	}
	f.add(cmd.Flags())
	outputFlag(cmd, &output, "text", "json")
	return cmd
}
