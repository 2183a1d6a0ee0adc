// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/fronts"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

// worldFlags say what a question is about: a cluster, or manifest files.
type worldFlags struct {
	access    kube.Access
	namespace string
	files     []string
	podCIDRs  []string
	domain    string // the cluster's; "" is what the cluster says, or cluster.local
}

func (f *worldFlags) add(fs *pflag.FlagSet) {
	f.addCluster(fs)
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "manifest `file` or folder to ask about instead of a cluster, \"-\" for stdin (can be given several times)")
	fs.StringArrayVar(&f.podCIDRs, "pod-cidr", nil, "`range` that pods of manifests are assumed to have their addresses from (default 10.244.0.0/16; one a family)")
}

func (f *worldFlags) addCluster(fs *pflag.FlagSet) {
	f.access.AddFlags(fs)
	fs.StringVarP(&f.namespace, "namespace", "n", "", "`namespace` of names that say none (default: the kubeconfig context's, or \"default\")")
}

// ns is the namespace of names that say none.
func (f *worldFlags) ns() string {
	switch {
	case f.namespace != "":
		return f.namespace
	case len(f.files) > 0:
		return "default"
	}
	return f.access.Namespace()
}

// snapshotPatience is how long the first full picture of a cluster may take.
const snapshotPatience = 30 * time.Second

// rightsNeeded says what who asks about a cluster must be allowed; the second ClusterRole is the Helm chart's.
const rightsNeeded = `A cluster's pods, Services, EndpointSlices, nodes, namespaces, ServiceCIDRs, policies and workloads are read, those of
all namespaces: the ClusterRoles view and weft-node together allow it, each given by a ClusterRoleBinding.`

// load reads the files, or the cluster.
func (f *worldFlags) load(ctx context.Context) (*explain.World, error) {
	if len(f.files) > 0 {
		return f.loadFiles(f.files...)
	}
	d, workloads, err := f.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	w, err := explain.NewWorld(d, explain.Options{ClusterDomain: f.domain})
	if err != nil {
		return nil, err
	}
	w.Workloads = workloads
	return w, nil
}

// options are what manifests are read with.
func (f *worldFlags) options() (offline.Options, error) {
	o := offline.Options{Namespace: f.ns()}
	for _, s := range f.podCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return o, fmt.Errorf("--pod-cidr: %w", err)
		}
		o.PodCIDRs = append(o.PodCIDRs, p)
	}
	return o, nil
}

// manifests reads files into what a cluster would make of them. The error is unusable where objects, or parts of
// them, are.
func (f *worldFlags) manifests(files ...string) (*offline.Cluster, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	c, err := offline.Load(o, files...)
	if c != nil && err != nil {
		return c, unusable{err}
	}
	return c, err
}

// unusable is an error about what stands in manifests: an answer that goes by the rest of them would be about something
// else than what the person wrote.
type unusable struct{ error }

func (u unusable) Unwrap() error { return u.error }

func (u unusable) Error() string {
	return "the manifests can't be used as they are written:\n" + u.error.Error()
}

// loadRoutes is load with Gateways, Ingresses and their routes.
func (f *worldFlags) loadRoutes(ctx context.Context) (*explain.World, error) {
	var c *offline.Cluster
	var workloads map[explain.Workload][]model.Name
	var err error
	if len(f.files) > 0 {
		c, err = f.manifests(f.files...)
	} else {
		c, workloads, err = f.readCluster(ctx)
	}
	if err != nil {
		return nil, err
	}
	w, err := f.worldOf(c)
	if err != nil {
		return nil, err
	}
	maps.Copy(w.Workloads, workloads)
	w.Fronts, err = fronts.Of(c, len(f.files) == 0)
	switch {
	case err != nil && len(f.files) > 0:
		return nil, unusable{err}
	case err != nil:
		fmt.Fprintln(os.Stderr, "weft: left out:", err)
	}
	for i := range w.Fronts {
		w.Fronts[i].Read = reader(w.Fronts[i].Tables)
	}
	return w, nil
}

// reader tells how the proxy reads paths with these tables.
func reader(u *route.Update) func(listener string, r *explain.Request) (string, int, string) {
	whole := *u
	whole.Complete = true
	trial, _ := proxy.NewTrial(&whole) // what can't be compiled is told elsewhere, as the objects' problems
	return func(listener string, r *explain.Request) (string, int, string) {
		d := trial.Decide(proxy.Trying{Listener: listener, Method: r.Method, Authority: r.Authority(), Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Fields: r.Headers})
		return d.Path, d.Status, d.Reason
	}
}

func (f *worldFlags) loadFiles(files ...string) (*explain.World, error) {
	c, err := f.manifests(files...)
	if err != nil {
		return nil, err
	}
	return f.worldOf(c)
}

// worldOf is a World of manifests.
func (f *worldFlags) worldOf(c *offline.Cluster) (*explain.World, error) {
	w, err := explain.NewWorld(c.Delta, explain.Options{ClusterDomain: f.domain})
	if err != nil {
		return nil, err
	}
	for k, pods := range c.Workloads {
		w.Workloads[explain.Workload(k)] = pods
	}
	return w, nil
}

// snapshot reads everything from the cluster once.
func (f *worldFlags) snapshot(ctx context.Context) (*model.Delta, map[explain.Workload][]model.Name, error) {
	cfg, err := f.access.Config()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	d, err := kube.Snapshot(ctx, cfg, kube.ForNode)
	if err != nil {
		return nil, nil, unread(cfg.Host, err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	workloads, daemons, err := workloadsOf(ctx, client, d)
	if err != nil {
		return nil, nil, unread(cfg.Host, err)
	}
	if f.domain == "" {
		f.domain = clusterDomain(ctx, client, daemons)
	}
	return d, workloads, nil
}

// unread says why a cluster can't be read, and what helps.
func unread(host string, err error) error {
	var request *url.Error
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w\n%s", err, rightsNeeded)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server at %s does not accept these credentials, those of the kubeconfig's context: %w", host, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the API server at %s did not tell everything within %s: %w", host, snapshotPatience, err)
	case errors.As(err, &request): // without the request's parameters
		return fmt.Errorf("the API server at %s can't be reached: %w", host, request.Err)
	}
	return fmt.Errorf("the API server at %s: %w", host, err)
}

// clusterDomain is the domain that the cluster's DNS serves, as weft's arguments or CoreDNS's configuration have it; "" if
// neither tells.
func clusterDomain(ctx context.Context, c kubernetes.Interface, daemons []appsv1.DaemonSet) string {
	for i := range daemons {
		if daemons[i].Labels["app.kubernetes.io/component"] != "dns" {
			continue
		}
		for _, container := range daemons[i].Spec.Template.Spec.Containers {
			for _, arg := range container.Args {
				if v, ok := strings.CutPrefix(arg, "--cluster-domain="); ok {
					return v
				}
			}
		}
	}
	m, err := c.CoreV1().ConfigMaps("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
	if err != nil {
		return ""
	}
	for line := range strings.Lines(m.Data["Corefile"]) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "kubernetes" {
			return strings.TrimSuffix(words[1], ".")
		}
	}
	return ""
}

// workloadsOf finds the pods of each workload by its selector, and lists the DaemonSets besides.
func workloadsOf(ctx context.Context, c kubernetes.Interface, d *model.Delta) (map[explain.Workload][]model.Name, []appsv1.DaemonSet, error) {
	out := map[explain.Workload][]model.Name{}
	add := func(kind string, m *metav1.ObjectMeta, s *metav1.LabelSelector) {
		sel, err := metav1.LabelSelectorAsMap(s)
		if err != nil || len(sel) == 0 {
			return
		}
		w := explain.Workload{Kind: kind, Name: model.Name{Namespace: m.Namespace, Name: m.Name}}
		match := model.MatchLabels(sel)
		for n, p := range d.Pods {
			if n.Namespace == m.Namespace && !p.Finished && match.Matches(p.Labels) {
				out[w] = append(out[w], n)
			}
		}
	}
	deployments, err1 := c.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	sets, err2 := c.AppsV1().StatefulSets("").List(ctx, metav1.ListOptions{})
	daemons, err3 := c.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	for _, err := range []error{err1, err2, err3} {
		if err != nil { // of one cause, most likely
			return nil, nil, fmt.Errorf("list workloads: %w", err)
		}
	}
	for i := range deployments.Items {
		add("deployment", &deployments.Items[i].ObjectMeta, deployments.Items[i].Spec.Selector)
	}
	for i := range sets.Items {
		add("statefulset", &sets.Items[i].ObjectMeta, sets.Items[i].Spec.Selector)
	}
	for i := range daemons.Items {
		add("daemonset", &daemons.Items[i].ObjectMeta, daemons.Items[i].Spec.Selector)
	}
	return out, daemons.Items, nil
}

// writeJSON writes a value as people and programs can read it.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// outputFlag registers -o with its values, the first of which is the default.
func outputFlag(cmd *cobra.Command, to *string, values ...string) {
	usage := "output: "
	for i, v := range values {
		if i > 0 {
			usage += ", "
		}
		usage += v
	}
	cmd.Flags().StringVarP(to, "output", "o", values[0], usage)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		for _, v := range values {
			if *to == v {
				return nil
			}
		}
		return exitCode{exitTrouble, fmt.Errorf("--output=%s: want one of %v", *to, values)}
	}
}
