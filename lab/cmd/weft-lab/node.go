// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/lab/cri"
	"github.com/weft-net/weft/lab/node"
	"github.com/weft-net/weft/lab/supervisor"
)

func newNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Add a node, or break and mend one",
		Example: `  weft lab node add
  weft lab node kill node2         # a power cut ...
  weft lab node start node2        # ... and power again
  weft lab node partition node3    # its link swallows every packet ...
  weft lab node heal node3         # ... and no longer`,
	}
	for _, action := range []struct{ use, short string }{
		{"add [NAME]", "Add a node and wait until it is ready"},
		{"remove NAME", "Remove a node: its power, its disk and its Node object"},
		{"stop NAME", "Shut a node down: its kubelet, then its pods with their grace; its links stay"},
		{"start NAME", "Start a node that was stopped or killed"},
		{"kill NAME", "Cut a node's power: everything on it ends at once; its disk stays"},
		{"partition NAME", "Cut a node off the network, silently"},
		{"heal NAME", "End a partition"},
	} {
		sub := &cobra.Command{Use: action.use, Short: action.short, Args: cobra.ExactArgs(1)}
		name := sub.Name()
		if name == "add" {
			sub.Args = cobra.MaximumNArgs(1)
		}
		sub.RunE = func(_ *cobra.Command, args []string) error {
			request := supervisor.NodeArgs{Action: name}
			if len(args) > 0 {
				request.Name = args[0]
			}
			return ask(supervisor.OpNode, request, nil)
		}
		cmd.AddCommand(sub)
	}
	return cmd
}

func newComponentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "component",
		Short: "Stop, start or kill a part of Kubernetes",
		Long: `Stop, start or kill a part of Kubernetes: etcd, apiserver, controller-manager or scheduler; or, with --node,
a node's kubelet or cri. What is killed restarts at once; what is stopped stays so until it is started.`,
		Example: `  weft lab component stop apiserver
  weft lab component start apiserver
  weft lab component kill kubelet --node node1`,
	}
	var onNode string
	cmd.PersistentFlags().StringVar(&onNode, "node", "", "`node` whose kubelet or cri is meant")
	for _, action := range []struct{ name, short string }{
		{"stop", "Stop a component"}, {"start", "Start a component that was stopped"}, {"kill", "Kill a component; it restarts"},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: action.name + " NAME", Short: action.short, Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				return ask(supervisor.OpComponent, supervisor.ComponentArgs{Action: action.name, Name: args[0], Node: onNode}, nil)
			},
		})
	}
	return cmd
}

func newNodeInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "node-init NAME",
		Short:  "A node's init: the supervisor starts it",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(*cobra.Command, []string) error { return node.Main() },
	}
}

func newCRICommand() *cobra.Command {
	var cfg cri.Config
	cmd := &cobra.Command{
		Use:    "cri",
		Short:  "A node's container runtime: the node's init starts it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return cri.Run(ctx, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Node, "node", "", "the node's name")
	f.StringVar(&cfg.Socket, "socket", "", "unix socket to serve on")
	f.StringVar(&cfg.Root, "root", "", "state directory")
	f.StringVar(&cfg.ImageDir, "images", "", "the lab's image store")
	f.StringVar(&cfg.Shim, "shim", "", "the weft-shim program")
	return cmd
}
