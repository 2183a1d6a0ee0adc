// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/internal/convert"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

func newConvertIngressCommand() *cobra.Command {
	var f worldFlags
	var output, gateway, class, config string
	var classes []string
	var strict, verify bool
	cmd := &cobra.Command{
		Use:   "ingress",
		Short: "Turn Ingresses, with ingress-nginx's annotations, into Gateway API objects and weft's policies",
		Long: `Reads the Ingresses of a cluster, or of manifests, and writes what takes their place: a Gateway, ListenerSets that
leave every certificate in its namespace, HTTPRoutes, GRPCRoutes, TLSRoutes, BackendTLSPolicies, ReferenceGrants and
TrafficPolicies; and the Gateway's Namespace, where that is not there. Nothing is changed in the cluster.

The report, on standard error, has a line for every annotation: what it became; DECIDE marks what Gateway API can't
say, and a person must look at. Older and informal shapes of Ingresses are read as well.

--verify then replays requests through the routing tables of both: every host, the edges of every path, and all
headers, cookies and methods that rules look at, over HTTP and HTTPS. It reports those that would go elsewhere, be
changed otherwise, or have other policies. The exit status is 1 if there are any.`,
		Example: `  weft convert ingress > gateway.yaml
  weft convert ingress -f manifests/ --verify > gateway.yaml
  weft convert ingress --gateway infra/public --ingress-class nginx -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt := convert.IngressOptions{
				GatewayClass: class, Compile: ingress.Options{Controllers: []string{ingress.Controller, ingress.NginxController}},
				Sources: map[model.Name]string{},
			}
			ns, name, ok := strings.Cut(gateway, "/")
			if !ok || ns == "" || name == "" {
				return exitCode{exitTrouble, fmt.Errorf("--gateway %q: write it like infra/public: namespace and name", gateway)}
			}
			opt.Gateway = model.Name{Namespace: ns, Name: name}
			if config != "" {
				ns, name, ok := strings.Cut(config, "/")
				if !ok {
					return exitCode{exitTrouble, fmt.Errorf("--config-map %q: write it like ingress-nginx/ingress-nginx-controller", config)}
				}
				opt.Compile.Config = model.Name{Namespace: ns, Name: name}
			}
			in, namespaces, err := f.ingresses(cmd.Context(), opt.Gateway.Namespace, opt.Sources)
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			known := append(slices.Collect(maps.Keys(namespaces)), everyClusters...)
			for n := range in.Ingresses {
				known = append(known, n.Namespace)
			}
			opt.NewNamespace = !slices.Contains(known, opt.Gateway.Namespace)
			chooseClasses(in, classes, len(f.files) > 0)
			if len(in.Ingresses) == 0 {
				return exitCode{exitTrouble, fmt.Errorf("no Ingress to convert%s", ofClasses(classes))}
			}
			if err := convert.AssumeSecrets(in); err != nil {
				return exitCode{exitTrouble, err}
			}
			convert.AssumeServices(in)
			c := convert.FromIngresses(opt, in)
			if err := printConversion(cmd, output, strict, c.Objects, c.Notes); err != nil || !verify {
				return err
			}
			differences, requests, err := convert.Verify(c, opt, in)
			if err != nil {
				return exitCode{exitTrouble, fmt.Errorf("--verify: %w", err)}
			}
			for _, d := range differences {
				fmt.Fprintln(cmd.ErrOrStderr(), d)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d requests compared, %d differences\n", requests, len(differences))
			if len(differences) > 0 {
				return exitCode{code: exitNo}
			}
			return nil
		},
	}
	f.addCluster(cmd.Flags())
	cmd.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "manifest `file` or folder to read in place of a cluster, \"-\" for stdin (can be given several times)")
	outputFlag(cmd, &output, "yaml", "json")
	cmd.Flags().StringVar(&gateway, "gateway", "weft-system/ingress", "`NAMESPACE/NAME` of the Gateway to make")
	cmd.Flags().StringVar(&class, "gateway-class", "weft", "GatewayClass of the Gateway")
	cmd.Flags().StringSliceVar(&classes, "ingress-class", nil, "convert Ingresses of these `classes` only")
	cmd.Flags().StringVar(&config, "config-map", "", "`NAMESPACE/NAME` of ingress-nginx's ConfigMap, whose keys are the Ingresses' defaults")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with status 1 if there is something to decide")
	cmd.Flags().BoolVar(&verify, "verify", false, "replay requests through both, and report every difference")
	return cmd
}

func ofClasses(classes []string) string {
	if len(classes) == 0 {
		return ""
	}
	return " of class " + strings.Join(classes, ", ")
}

// everyClusters are the namespaces that every cluster has.
var everyClusters = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}

// ingresses reads what Ingresses are compiled from, where they were read, and which namespaces there are: of a cluster's,
// the Gateway's alone.
func (f *worldFlags) ingresses(ctx context.Context, gateway string, sources map[model.Name]string) (*ingress.Changes, map[string]*model.Namespace, error) {
	var ms []kube.Manifest
	if len(f.files) > 0 {
		objects, err := readForConversion(f.files)
		if err != nil {
			return nil, nil, err
		}
		upgraded, _ := convert.Upgrade(convert.Options{Namespace: f.ns()}, objects)
		for _, o := range upgraded {
			typed, err := kube.Typed(o.Unstructured)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %s %s: %w", o.Source, o.GetKind(), o.GetName(), err)
			}
			if o.GetKind() == "Ingress" {
				n := model.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
				if n.Namespace == "" {
					n.Namespace = f.ns()
				}
				sources[n] = o.Source
			}
			ms = append(ms, kube.Manifest{File: o.Source, Object: typed})
		}
	} else {
		var err error
		if ms, err = f.readIngresses(ctx, gateway); err != nil {
			return nil, nil, err
		}
	}
	d, err := kube.FromManifests(ms, f.ns())
	if err != nil {
		return nil, nil, err
	}
	return &ingress.Changes{
		Ingresses: d.Ingresses, Classes: d.IngressClasses, Services: d.Services, EndpointSlices: d.EndpointSlices, Secrets: d.Secrets, ConfigMaps: d.ConfigMaps,
	}, d.Namespaces, nil
}

// readIngresses lists what Ingresses are compiled from. Secrets that may not be read are assumed to be good.
func (f *worldFlags) readIngresses(ctx context.Context, gateway string) ([]kube.Manifest, error) {
	cfg, err := f.access.Config()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var out []kube.Manifest
	add := func(o runtime.Object) { out = append(out, kube.Manifest{Object: o}) }
	all, opts := f.namespace, metav1.ListOptions{}
	ingresses, err := client.NetworkingV1().Ingresses(all).List(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("list Ingresses: %w", err)
	}
	for i := range ingresses.Items {
		add(&ingresses.Items[i])
	}
	classes, err := client.NetworkingV1().IngressClasses().List(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("list IngressClasses: %w", err)
	}
	for i := range classes.Items {
		add(&classes.Items[i])
	}
	services, err := client.CoreV1().Services("").List(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("list Services: %w", err)
	}
	for i := range services.Items {
		add(&services.Items[i])
	}
	maps, err := client.CoreV1().ConfigMaps("").List(ctx, opts)
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("list ConfigMaps: %w", err)
	}
	for i := range maps.Items {
		add(&maps.Items[i])
	}
	secrets, err := client.CoreV1().Secrets("").List(ctx, opts)
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("list Secrets: %w", err)
	}
	for i := range secrets.Items {
		add(&secrets.Items[i])
	}
	namespace, err := client.CoreV1().Namespaces().Get(ctx, gateway, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case apierrors.IsForbidden(err): // taken to be there: whoever applies the outcome sees whether it is
		add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: gateway}})
	case err != nil:
		return nil, fmt.Errorf("read Namespace %s: %w", gateway, err)
	default:
		add(namespace)
	}
	return out, nil
}

// chooseClasses leaves the Ingresses of some classes. Manifests are mostly kept without the IngressClasses that they
// name: those are taken for ingress-nginx's.
func chooseClasses(in *ingress.Changes, only []string, assume bool) {
	classOf := func(o *model.Ingress) string {
		if o.Class != "" {
			return o.Class
		}
		return o.Annotations[kube.IngressClassAnnotation]
	}
	for name, o := range in.Ingresses {
		if len(only) > 0 && !slices.Contains(only, classOf(o)) {
			delete(in.Ingresses, name)
		}
	}
	if !assume {
		return
	}
	if in.Classes == nil {
		in.Classes = map[string]*model.IngressClass{}
	}
	for _, o := range slices.Collect(maps.Values(in.Ingresses)) {
		class := classOf(o)
		if in.Classes[class] == nil {
			// An Ingress without a class is the default class's, whatever that is.
			in.Classes[class] = &model.IngressClass{Meta: model.Meta{Name: model.Name{Name: class}}, Controller: ingress.NginxController, Default: class == ""}
		}
	}
}
