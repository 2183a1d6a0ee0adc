// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/weft-net/weft/internal/corefile"
)

func newConvertCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "convert",
		GroupID: "person",
		Short:   "Turn other programs' configuration, and manifests of yesterday, into today's",
	}
	cmd.AddCommand(newConvertCorefileCommand(), newConvertIngressCommand(), newConvertManifestsCommand())
	return cmd
}

func newConvertCorefileCommand() *cobra.Command {
	var output string
	var strict bool
	cmd := &cobra.Command{
		Use:   "corefile FILE",
		Short: "Turn CoreDNS's Corefile into the configuration of weft dns",
		Long: `Reads a Corefile, or the ConfigMap that it is in ("-" is standard input), and writes the configuration
of "weft dns". What has no place in it is said on standard error, line by line: a flag to use instead,
what is so in any case, or that it can't be carried over.`,
		Example: `  kubectl -n kube-system get configmap coredns -o yaml | weft convert corefile -`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var data []byte
			var err error
			if args[0] == "-" {
				data, err = io.ReadAll(cmd.InOrStdin())
			} else {
				data, err = os.ReadFile(args[0])
			}
			if err != nil {
				return err
			}
			cfg, notes, err := corefile.Convert(fromConfigMap(data))
			if err != nil {
				return err
			}
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), map[string]any{"config": cfg, "notes": notes})
			} else {
				enc := yaml.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent(2)
				err = enc.Encode(cfg)
			}
			if err != nil {
				return err
			}
			lost := 0
			for _, n := range notes {
				if output != "json" {
					fmt.Fprintln(cmd.ErrOrStderr(), n)
				}
				if n.Lost {
					lost++
				}
			}
			if strict && lost > 0 {
				return exitCode{1, fmt.Errorf("%d lines can't be carried over", lost)}
			}
			return nil
		},
	}
	outputFlag(cmd, &output, "yaml", "json")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with status 1 if a line can't be carried over")
	return cmd
}

// fromConfigMap takes the Corefile out of a ConfigMap, if it is in one.
func fromConfigMap(data []byte) string {
	var cm struct {
		Kind string            `yaml:"kind"`
		Data map[string]string `yaml:"data"`
	}
	if yaml.Unmarshal(data, &cm) == nil && cm.Kind == "ConfigMap" && cm.Data["Corefile"] != "" {
		return cm.Data["Corefile"]
	}
	return string(data)
}
