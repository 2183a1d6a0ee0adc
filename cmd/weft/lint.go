// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/lint"
	"github.com/weft-net/weft/internal/offline"
)

func newLintCommand() *cobra.Command {
	var f worldFlags
	var output, failOn, least string
	var list bool
	cmd := &cobra.Command{
		Use:   "lint",
		Short: "Mistakes and bad habits in Services, routes and policies",
		Long: `Mistakes and bad habits in Services, Ingresses, Gateway API objects and policies: selectors that match nothing,
Services without endpoints, routes that nothing reaches, policies that do not do what they look like, certificates
about to expire.

A finding is excused by the annotation weft.dev/lint-ignore: RULE[,RULE...] on the object, or in a file by the comment
"# weft-lint: ignore RULE[,RULE...]" in its document.

The exit status is 0 without findings of at least --fail-on, 1 with some, 2 if the question can't be answered.`,
		Example: `  weft lint -f manifests/
  weft lint -f manifests/ -o sarif > weft.sarif
  weft lint -n shop`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list {
				for _, r := range lint.Rules() {
					fmt.Fprintf(cmd.OutOrStdout(), "%-30s %-8s %s\n", r.ID, r.Severity, r.Summary)
				}
				return nil
			}
			fail, err := lint.ParseSeverity(failOn)
			if err != nil {
				return exitCode{exitTrouble, fmt.Errorf("--fail-on: %w", err)}
			}
			show, err := lint.ParseSeverity(least)
			if err != nil {
				return exitCode{exitTrouble, fmt.Errorf("--severity: %w", err)}
			}
			findings, err := f.lint(cmd.Context())
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			bad := false
			shown := findings[:0]
			for _, x := range findings {
				bad = bad || x.Severity >= fail
				if x.Severity >= show {
					shown = append(shown, x)
				}
			}
			switch output {
			case "json":
				err = lint.WriteJSON(cmd.OutOrStdout(), shown)
			case "sarif":
				err = lint.WriteSARIF(cmd.OutOrStdout(), shown, version)
			default:
				lint.WriteText(cmd.OutOrStdout(), shown)
			}
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			if bad {
				return exitCode{code: exitNo}
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	outputFlag(cmd, &output, "text", "json", "sarif")
	cmd.Flags().StringVar(&failOn, "fail-on", "warning", "least severity that makes the exit status 1: info, warning or error")
	cmd.Flags().StringVar(&least, "severity", "info", "least severity to show")
	cmd.Flags().BoolVar(&list, "list", false, "list what is looked for, and leave")
	return cmd
}

func (f *worldFlags) lint(ctx context.Context) ([]lint.Finding, error) {
	in := lint.Input{Now: time.Now()}
	var err error
	if len(f.files) > 0 {
		in.Cluster, err = f.manifests(f.files...)
		in.Text = func(file string) []byte {
			b, _ := os.ReadFile(file) // stdin has no text to read again
			return b
		}
	} else {
		in.Whole = true
		in.Cluster, err = f.readCluster(ctx)
	}
	if err != nil {
		return nil, err
	}
	findings, err := lint.Run(in)
	if err != nil || len(f.files) > 0 || f.namespace == "" {
		return findings, err
	}
	var out []lint.Finding
	for _, x := range findings {
		if kind, name, ok := cutSpace(x.Object); ok && (kind == "Namespace" && name == f.namespace || len(name) > len(f.namespace) && name[:len(f.namespace)+1] == f.namespace+"/") {
			out = append(out, x)
		}
	}
	return out, nil
}

func cutSpace(s string) (kind, name string, ok bool) {
	for i := range s {
		if s[i] == ' ' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// linted are the kinds that lint reads from a cluster besides what the model holds.
var linted = []schema.GroupVersionResource{
	{Group: "", Version: "v1", Resource: "services"}, {Group: "", Version: "v1", Resource: "namespaces"}, {Group: "", Version: "v1", Resource: "secrets"},
	{Group: "apps", Version: "v1", Resource: "statefulsets"},
	{Group: "networking.k8s.io", Version: "v1", Resource: "ingresses"}, {Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
	{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"},
	{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}, {Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"},
	{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}, {Group: "gateway.networking.k8s.io", Version: "v1", Resource: "grpcroutes"},
	{Group: "gateway.networking.k8s.io", Version: "v1alpha2", Resource: "tlsroutes"}, {Group: "gateway.networking.k8s.io", Version: "v1alpha2", Resource: "tcproutes"},
	{Group: "gateway.networking.k8s.io", Version: "v1alpha2", Resource: "udproutes"}, {Group: "gateway.networking.k8s.io", Version: "v1beta1", Resource: "referencegrants"},
	{Group: "cilium.io", Version: "v2", Resource: "ciliumnetworkpolicies"}, {Group: "crd.projectcalico.org", Version: "v1", Resource: "networkpolicies"},
}

// readCluster reads a cluster the way manifests are read, so that lint sees both alike.
func (f *worldFlags) readCluster(ctx context.Context) (*offline.Cluster, error) {
	d, _, err := f.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := f.access.Config()
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	out := &offline.Cluster{Delta: d, Workloads: offline.Workloads{}, Assumed: map[netip.Addr]bool{}}
	for _, r := range linted {
		list, err := client.Resource(r).List(ctx, metav1.ListOptions{})
		switch {
		case apierrors.IsNotFound(err) || meta.IsNoMatchError(err): // its CRD is not installed
			continue
		case apierrors.IsForbidden(err):
			fmt.Fprintf(os.Stderr, "weft: %s are left out: %v\n", r.Resource, err)
			continue
		case err != nil:
			return nil, fmt.Errorf("list %s: %w", r.Resource, err)
		}
		for i := range list.Items {
			out.Manifests = append(out.Manifests, kube.Manifest{Object: typed(&list.Items[i])})
		}
	}
	return out, nil
}

// typed turns an object into its Go type where client-go has one.
func typed(u *unstructured.Unstructured) runtime.Object {
	o, err := scheme.Scheme.New(u.GroupVersionKind())
	if err != nil {
		return u
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
		return u
	}
	o.GetObjectKind().SetGroupVersionKind(u.GroupVersionKind())
	return o
}
