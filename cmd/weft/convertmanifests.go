// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/convert"
	"github.com/weft-net/weft/internal/kube"
)

// conversion is what `weft convert` prints: manifests on standard output, the report on standard error, or both as one
// JSON object.
type conversion struct {
	Objects []*unstructured.Unstructured `json:"objects"`
	Notes   []convert.Note               `json:"notes"`
}

func newConvertManifestsCommand() *cobra.Command {
	var files []string
	var output string
	var strict bool
	opt := convert.Options{}
	cmd := &cobra.Command{
		Use:   "manifests -f FILE|DIR",
		Short: "Turn older and informal Gateway API and Ingress manifests into what today's API servers accept",
		Long: `Reads manifests and writes them with today's versions and fields: Gateway API of v1alpha2 and v1beta1, Ingress
of v1beta1, and shapes that are found in guides but were never an API's, such as a GatewayClass with
spec.controller, a TLSRoute with sniHosts, or a BackendTLSPolicy with a mode. References that can only mean one
object of these manifests are completed.

What was changed is said on standard error, line by line; DECIDE marks what a person should look at. Objects that
need no change are written as they are.`,
		Example: `  weft convert manifests -f manifests/ > today.yaml
  weft convert manifests -f gateway.yaml -o json | jq '.notes[] | select(.decide)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := readForConversion(files)
			if err != nil {
				return err
			}
			out, notes := convert.Upgrade(opt, objects)
			return printConversion(cmd, output, strict, out, notes)
		},
	}
	fileFlag(cmd, &files)
	outputFlag(cmd, &output, "yaml", "json")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with status 1 if there is something to decide")
	cmd.Flags().StringVarP(&opt.Namespace, "namespace", "n", "default", "namespace of objects that name none")
	cmd.Flags().StringVar(&opt.Controller, "controller", "weft.dev/gateway", "controllerName of GatewayClasses from now on; empty to leave them")
	cmd.Flags().BoolVar(&opt.HTTPS, "https", false, "bind routes of HTTP listeners to the Gateway's HTTPS listeners too")
	return cmd
}

// fileFlag adds -f to a command that needs it.
func fileFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringSliceVarP(files, "filename", "f", nil, "manifest file or folder; - is standard input (may be repeated)")
	_ = cmd.MarkFlagRequired("filename") // it fails for an unknown flag only
}

func readForConversion(files []string) ([]convert.Object, error) {
	ms, err := kube.ReadRawManifests(files...)
	if err != nil {
		return nil, err
	}
	var out []convert.Object
	for _, m := range ms {
		if u, ok := m.Object.(*unstructured.Unstructured); ok {
			out = append(out, convert.Object{Source: fmt.Sprintf("%s:%d", m.File, m.Line), Unstructured: u})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no objects in %v", files)
	}
	return out, nil
}

func printConversion(cmd *cobra.Command, output string, strict bool, objects []convert.Object, notes []convert.Note) error {
	c := conversion{Notes: notes}
	for _, o := range objects {
		c.Objects = append(c.Objects, o.Unstructured)
	}
	var err error
	if output == "json" {
		err = writeJSON(cmd.OutOrStdout(), c)
	} else {
		err = writeManifests(cmd.OutOrStdout(), c.Objects)
	}
	if err != nil {
		return err
	}
	decide := 0
	for _, n := range notes {
		if output != "json" {
			fmt.Fprintln(cmd.ErrOrStderr(), n)
		}
		if n.Decide {
			decide++
		}
	}
	if strict && decide > 0 {
		return exitCode{1, fmt.Errorf("%d things to decide", decide)}
	}
	return nil
}

func writeManifests(w io.Writer, objects []*unstructured.Unstructured) error {
	for i, o := range objects {
		b, err := yaml.Marshal(o.Object)
		if err != nil {
			return err
		}
		if i > 0 {
			b = append([]byte("---\n"), b...)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}
