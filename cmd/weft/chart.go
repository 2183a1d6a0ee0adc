// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
			if err == nil {
				err = writeNew(args[0], chart)
			}
			if err != nil {
				return exitCode{exitTrouble, fmt.Errorf("write the chart: %w", err)}
			}
			return nil
		},
	}
}

// writeNew writes files into a directory that is new, or empty. Where it fails it leaves nothing behind.
func writeNew(dir string, files fs.FS) error {
	old, err := os.ReadDir(dir)
	switch {
	case err == nil && len(old) > 0:
		return fmt.Errorf("directory %s is not empty (it has %s): name one that is new or empty", dir, old[0].Name())
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	made := "" // the first directory on the way that is new
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = at
	}
	if err = os.CopyFS(dir, files); err == nil {
		return nil
	}
	if made != "" {
		return errors.Join(err, os.RemoveAll(made))
	}
	written, _ := os.ReadDir(dir)
	for _, e := range written {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
