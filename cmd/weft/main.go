// SPDX-License-Identifier: Apache-2.0

// Command weft is all of Kubernetes networking in one program. Each subcommand is a file beside this one that
// holds flags and wiring only.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/weft-net/weft/internal/podnet/plugin"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

// exitCode is an error that chooses the process's exit status. Its message may be empty when the command has
// already said all there is to say.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e exitCode) Unwrap() error { return e.err }

func main() {
	if plugin.Invoked(os.Args[0]) {
		os.Exit(plugin.Main()) // a container runtime waits: no command tree for it
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// Commands say themselves what fails. What runs on has client-go's messages in its log: logFlags.setup.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(os.Stderr, "weft: "+msg)
	}
	os.Exit(exitStatus(err))
}

// exitStatus is what the process ends with. An error that chooses none is trouble: 1 is an answer.
func exitStatus(err error) int {
	if code := (exitCode{}); errors.As(err, &code) {
		return code.code
	}
	return exitTrouble
}

// newRoot builds the command tree: what runs in a cluster, then what a person runs.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "weft",
		Short:         "All of Kubernetes networking in one program",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: "cluster", Title: "In a cluster:"},
		&cobra.Group{ID: "person", Title: "For a person or CI:"},
	)
	root.AddCommand(newNodeCommand())
	root.AddCommand(newDNSCommand())
	root.AddCommand(newConvertCommand())
	root.AddCommand(newCNICommand())
	root.AddCommand(newLabCommand())
	root.AddCommand(newChartCommand())
	root.AddCommand(newControllerCommand())
	root.AddCommand(newAddressesCommand())
	root.AddCommand(newGatewayCommand())
	root.AddCommand(newServiceCommand())
	root.AddCommand(newStatusCommand())
	root.AddCommand(newWhyCommand())
	root.AddCommand(newProbeCommand())
	root.AddCommand(newFlowsCommand())
	root.AddCommand(newMatrixCommand())
	root.AddCommand(newDiffCommand())
	root.AddCommand(newLintCommand())
	root.AddCommand(newPolicyCommand())
	root.AddCommand(newPodCommand())
	refuseBadLines(root)
	return root
}
