// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/probe"
)

// newProbeCommand is the half of "weft why --probe" that runs on the source's node, in its agent's container.
func newProbeCommand() *cobra.Command {
	var from, dir string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:    "probe PROTOCOL/ADDRESS:PORT...",
		Short:  "Send packets from a pod's network namespace on this node, and say what came back",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var targets []probe.Target
			for _, a := range args {
				proto, at, _ := strings.Cut(a, "/")
				addr, err := netip.ParseAddrPort(at)
				if err != nil {
					return fmt.Errorf("%q: want PROTOCOL/ADDRESS:PORT: %w", a, err)
				}
				targets = append(targets, probe.Target{Protocol: proto, Addr: addr})
			}
			var ns *os.File
			if from != "" {
				addr, err := netip.ParseAddr(from)
				if err != nil {
					return fmt.Errorf("--from: %w", err)
				}
				if ns, err = probe.Find(dir, addr); err != nil {
					return err
				}
				defer ns.Close()
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(probe.Send(cmd.Context(), ns, patience, targets...))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&from, "from", "", "the pod's `address` (default: the node itself)")
	fs.StringVar(&dir, "netns", probe.NamespaceDir, "`folder` of the pods' network namespaces")
	fs.DurationVar(&patience, "patience", 3*time.Second, "how long to wait for an answer")
	return cmd
}

// probe asks the kernel of the source's node what an answer expects of it.
func (f *worldFlags) probe(ctx context.Context, a *explain.Answer, patience time.Duration) error {
	pod, node := a.Source()
	switch {
	case node == "":
		return fmt.Errorf("--probe sends from a pod or a node of the cluster, and %s is neither", a.From)
	case len(a.Probes) == 0:
		return nil
	}
	args := []string{"weft", "probe", "--patience", patience.String()}
	if pod != nil && !pod.HostNetwork {
		if len(pod.IPs) == 0 {
			return fmt.Errorf("--probe: pod %s has no address yet", pod.Name)
		}
		args = append(args, "--from", pod.IPs[0].String())
	}
	for _, p := range a.Probes {
		args = append(args, p.Protocol+"/"+p.Address.String())
	}
	cfg, err := f.access.Config()
	if err != nil {
		return err
	}
	pods, err := agentPods(ctx, cfg, node)
	if err != nil {
		return err
	}
	var results []probe.Result
	err = execAgent(ctx, cfg, &pods[0], agentPatience, args, func(r io.Reader) error { return json.NewDecoder(r).Decode(&results) })
	if err != nil {
		return fmt.Errorf("probe from node %s (it takes the right to exec into pod %s): %w", node, model.Name{Namespace: pods[0].Namespace, Name: pods[0].Name}, err)
	}
	for i := range a.Probes {
		if i < len(results) {
			a.Probes[i].Conclude(string(results[i].Outcome), results[i].Text)
		}
	}
	return nil
}
