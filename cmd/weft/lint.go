// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/lint"
	"github.com/weft-net/weft/internal/model"
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

The exit status is 0 without findings of at least --fail-on, 1 with some, 2 if the question can't be answered.

` + rightsNeeded + ` What else may
not be read is left out, and named.`,
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
				if len(shown) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "No findings")
				}
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
	if err := f.namespaceIsThere(ctx); err != nil {
		return nil, err
	}
	in := lint.Input{Now: time.Now()}
	var err error
	if len(f.files) > 0 {
		in.Cluster, err = f.manifests(f.files...)
		if bad := (unusable{}); errors.As(err, &bad) {
			in.Unusable, err = bad.error, nil
		}
		in.Text = func(file string) []byte {
			b, _ := os.ReadFile(file) // stdin has no text to read again
			return b
		}
	} else {
		in.Whole = true
		if in.Cluster, _, err = f.readCluster(ctx); err == nil {
			_, in.Unusable = kube.FromManifests(in.Cluster.Manifests, "")
		}
	}
	if err != nil {
		return nil, err
	}
	if len(f.files) > 0 && len(in.Cluster.Manifests) == 0 {
		return nil, fmt.Errorf("no object in %s: -f names manifests, or folders with some (*.yaml, *.yml, *.json)", strings.Join(f.files, ", "))
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

// lintedKind is a kind that is read from a cluster, in the first of its versions that is served.
type lintedKind struct {
	group, resource string
	versions        []string
}

// linted are the kinds that are read from a cluster besides what the model holds.
var linted = []lintedKind{
	{"", "services", []string{"v1"}}, {"", "namespaces", []string{"v1"}}, {"", "secrets", []string{"v1"}}, {"", "configmaps", []string{"v1"}},
	{"apps", "statefulsets", []string{"v1"}},
	{"networking.k8s.io", "ingresses", []string{"v1"}}, {"networking.k8s.io", "ingressclasses", []string{"v1"}},
	{"networking.k8s.io", "networkpolicies", []string{"v1"}},
	{"policy.networking.k8s.io", "clusternetworkpolicies", []string{"v1alpha2"}},
	{gatewayapi.GroupName, "gatewayclasses", []string{"v1", "v1beta1"}}, {gatewayapi.GroupName, "gateways", []string{"v1", "v1beta1"}},
	{gatewayapi.GroupName, "listenersets", []string{"v1"}},
	{gatewayapi.GroupName, "httproutes", []string{"v1", "v1beta1"}}, {gatewayapi.GroupName, "grpcroutes", []string{"v1", "v1alpha2"}},
	{gatewayapi.GroupName, "tlsroutes", []string{"v1", "v1alpha3", "v1alpha2"}}, {gatewayapi.GroupName, "tcproutes", []string{"v1", "v1alpha2"}},
	{gatewayapi.GroupName, "udproutes", []string{"v1", "v1alpha2"}}, {gatewayapi.GroupName, "referencegrants", []string{"v1", "v1beta1"}},
	{gatewayapi.GroupName, "backendtlspolicies", []string{"v1", "v1alpha3"}},
	{"weft.dev", "gatewayconfigs", []string{"v1alpha1"}}, {"weft.dev", "trafficpolicies", []string{"v1alpha1"}},
}

// foreignKinds are the kinds of policy that others enforce, of those that the cluster has.
func foreignKinds(c discovery.DiscoveryInterface) []lintedKind {
	// The error is of groups that do not answer, such as those of a server that is gone: the others are there.
	lists, _ := discovery.ServerPreferredResources(c)
	var out []lintedKind
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			if _, ok := lint.ForeignPolicy(gv.Group, r.Kind); ok && !strings.Contains(r.Name, "/") && slices.Contains(r.Verbs, "list") {
				out = append(out, lintedKind{gv.Group, r.Name, []string{gv.Version}})
			}
		}
	}
	return out
}

// readCluster reads a cluster the way manifests are read, so that lint sees both alike.
func (f *worldFlags) readCluster(ctx context.Context) (*offline.Cluster, map[explain.Workload][]model.Name, error) {
	d, workloads, err := f.snapshot(ctx)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := f.access.Config()
	if err != nil {
		return nil, nil, err
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	known, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	out := &offline.Cluster{Delta: d, Workloads: offline.Workloads{}, Assumed: map[netip.Addr]bool{}}
	for _, r := range slices.Concat(linted, foreignKinds(known)) {
		list, err := listAny(ctx, client, r)
		switch {
		case apierrors.IsForbidden(err):
			fmt.Fprintf(os.Stderr, "weft: %s are left out: %v\n", r.resource, err)
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("list %s: %w", r.resource, err)
		}
		for i := range list {
			out.Manifests = append(out.Manifests, kube.Manifest{Object: typed(&list[i])})
		}
	}
	return out, workloads, nil
}

// listAny lists a kind in the first of its versions that is served; there are none where none is.
func listAny(ctx context.Context, client dynamic.Interface, k lintedKind) ([]unstructured.Unstructured, error) {
	for _, v := range k.versions {
		list, err := client.Resource(schema.GroupVersionResource{Group: k.group, Version: v, Resource: k.resource}).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	}
	return nil, nil
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
