// SPDX-License-Identifier: Apache-2.0

// Command weft-lab runs a real Kubernetes on one machine, for people and for CI; `weft lab` hands over to it. Each file
// beside this one holds the flags and wiring of some of its commands.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/lab/control"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

// exitCode ends the process with a status that a command chose, and without another word.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	err := newRoot().Execute()
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintln(os.Stderr, "weft lab: "+err.Error())
		os.Exit(1)
	}
}

// labName is the value of --name, which every command has.
var labName string

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:         "weft-lab",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "weft lab"},
		Short:       "A real Kubernetes on this machine, without Docker and without touching the host",
		Long: `weft lab runs an unmodified Kubernetes on one Linux machine: etcd, API server, controller manager, scheduler, and
for each node a kubelet and a container runtime that runs containers as processes. Every node has namespaces of its
own, and "outside" is a client and internet beyond the cluster on the same network. weft is installed from its Helm
chart. It runs as root or as an ordinary user. The host's network and files are not touched, and nothing is left when
the lab ends, however it ends.`,
		Example: `  weft lab up --detach            # three nodes with weft, in the background
  weft lab kubectl get pods -A    # look around
  weft lab exec -- curl http://172.30.0.200/    # be a client beyond the cluster
  weft lab down`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		// `weft lab --name N kubectl ...`: what is before kubectl is ours though what follows is not.
		TraverseChildren: true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd: true,
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return control.CheckName(labName) },
	}
	root.PersistentFlags().StringVar(&labName, "name", defaultName(), "`name` of the lab, where there are several; $WEFT_LAB sets it too")
	root.AddCommand(
		newUpCommand(), newDownCommand(), newListCommand(), newStatusCommand(),
		newKubeconfigCommand(), newKubectlCommand(), newExecCommand(), newForwardCommand(),
		newLoadCommand(), newImagesCommand(), newLogsCommand(), newNodeCommand(), newComponentCommand(),
		newSupervisorCommand(), newNodeInitCommand(), newCRICommand(),
	)
	refuseUnknown(root)
	return root
}

func defaultName() string {
	if name := os.Getenv("WEFT_LAB"); name != "" {
		return name
	}
	return "default"
}

// ask sends the lab a request and waits for its result, which it decodes into result (nil: don't).
func ask(op string, args, result any) error {
	call, err := control.Do(os.Getuid(), labName, op, args)
	if err != nil {
		return err
	}
	defer call.Close()
	return call.Result(result, func(step string) { fmt.Fprintln(os.Stderr, step) }, func(b []byte) { os.Stdout.Write(b) })
}
