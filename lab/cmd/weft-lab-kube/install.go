// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/lab/install"
	"k8s.io/client-go/tools/clientcmd"
)

// newInstallCommand installs a chart; the lab's supervisor runs it. Lines that begin with "progress: " are for whoever
// waits.
func newInstallCommand() *cobra.Command {
	var kubeconfig string
	var limit time.Duration
	chart := install.Chart{}
	cmd := &cobra.Command{
		Use:           "install",
		Short:         "Install a Helm chart and wait until it is ready",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			return install.Run(ctx, config, chart, func(step string) { fmt.Println("progress: " + step) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "the cluster")
	f.StringVar(&chart.Dir, "chart", "", "directory of the chart")
	f.StringVar(&chart.Release, "release", "weft", "name of the release")
	f.StringVar(&chart.Namespace, "namespace", "kube-system", "namespace of the release")
	f.StringArrayVar(&chart.Values, "values", nil, "file with values")
	f.StringArrayVar(&chart.Sets, "set", nil, "value, as key=value")
	f.DurationVar(&limit, "timeout", 2*time.Minute, "how long to wait")
	return cmd
}
