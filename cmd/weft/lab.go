// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// labProgram is the program that `weft lab` hands over to. It holds Kubernetes' libraries, which weft does without.
const labProgram = "weft-lab"

func newLabCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "lab",
		Short:   "A real Kubernetes on this machine, to try weft and to test manifests",
		GroupID: "person",
		// Everything after "lab", --help included, is weft-lab's.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			program, err := findLab()
			if err != nil {
				return err
			}
			err = syscall.Exec(program, append([]string{labProgram}, args...), os.Environ())
			return fmt.Errorf("run %s: %w", program, err)
		},
	}
}

// findLab looks beside this program first, so that the two are of one build, then where the shell looks.
func findLab() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), labProgram)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	inPath, err := exec.LookPath(labProgram)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH: `make build` makes both", labProgram, self)
	}
	return inPath, err
}
