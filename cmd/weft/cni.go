// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/podnet/plugin"
)

// newCNICommand is the CNI plugin for a runtime's configuration that names weft itself; the agent installs the
// smaller weft-cni where it has one.
func newCNICommand() *cobra.Command {
	return &cobra.Command{
		Use:     "cni",
		Short:   "The CNI plugin: container runtimes run it, with their request in the environment and on standard input",
		GroupID: "cluster",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if code := plugin.Main(); code != 0 {
				return exitCode{code: code} // the plugin has printed its error, as the spec wants it
			}
			return nil
		},
	}
}
