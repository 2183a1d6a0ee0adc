// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/deploy"
)

func newChartCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "chart DIR",
		Short:   "Write the Helm chart that installs this version of weft into a new directory",
		Example: "  weft chart ./weft-chart && helm install weft ./weft-chart --namespace kube-system",
		GroupID: "person",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			chart, err := fs.Sub(deploy.Chart, "chart")
			if err != nil {
				return err
			}
			if err := os.CopyFS(args[0], chart); err != nil {
				return fmt.Errorf("write the chart: %w", err)
			}
			return nil
		},
	}
}
