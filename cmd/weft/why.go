// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/model"
)

// Exit statuses of the commands that judge.
const (
	exitNo      = 1 // blocked; findings; differences
	exitTrouble = 2 // the question could not be answered
)

func newWhyCommand() *cobra.Command {
	var f worldFlags
	var protocol, output string
	cmd := &cobra.Command{
		Use:   "why FROM TO[:PORT]",
		Short: "Where a connection goes, and why it is allowed or blocked",
		Long: `Where a connection goes, and why it is allowed or blocked: name, Service, endpoints, policies at both
ends, route. It asks the same code that forwards and enforces.

FROM is a pod, a workload (deploy/NAME, sts/NAME, ds/NAME), node/NAME, an address, or "outside".
TO is one of these, a Service, or a DNS name. Names are NAME, NAMESPACE/NAME, KIND/NAME or KIND/NAMESPACE/NAME.

The exit status is 0 if it is allowed, 1 if it is blocked (or only some endpoints can be reached), 2 if the question
can't be answered.`,
		Example: `  weft why deploy/web db:5432
  weft why shop/web-6f7d cart.shop.svc.cluster.local:80
  weft why outside svc/shop/frontend
  weft why -f manifests/ deploy/web svc/db:5432`,
		GroupID: "person",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := f.why(cmd, args[0], args[1], protocol)
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			if output == "json" {
				if err := writeJSON(cmd.OutOrStdout(), a); err != nil {
					return exitCode{exitTrouble, err}
				}
			} else {
				explain.Print(cmd.OutOrStdout(), a)
			}
			if !a.Allowed {
				return exitCode{code: exitNo}
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&protocol, "protocol", "tcp", "tcp, udp or sctp")
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

func (f *worldFlags) why(cmd *cobra.Command, from, to, protocol string) (*explain.Answer, error) {
	proto, err := model.ParseProtocol(protocol)
	if err != nil {
		return nil, err
	}
	w, err := f.load(cmd.Context())
	if err != nil {
		return nil, err
	}
	src, err := w.ParseTarget(from, f.ns(), false)
	if err != nil {
		return nil, err
	}
	ns := f.ns()
	if len(src.Pods) > 0 {
		ns = src.Pods[0].Namespace // a name alone means what it does where the source is
	}
	dst, err := w.ParseTarget(to, ns, true)
	if err != nil {
		return nil, err
	}
	return w.Why(src, dst, proto)
}
