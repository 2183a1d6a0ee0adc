// SPDX-License-Identifier: Apache-2.0

// Package install installs a Helm chart into a cluster as `helm install` would, and waits until what it installed is
// ready. It renders with Helm's own library; it keeps no release, since a lab is never upgraded.
//
// It imports Helm's chart and engine packages and client-go; only weft-lab-kube imports it.
package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	ci "helm.sh/helm/v4/pkg/chart"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// Chart is what to install.
type Chart struct {
	Dir       string
	Release   string
	Namespace string
	Values    []string // files
	Sets      []string // key=value, over the files
}

const fieldManager = "weft-lab"

// Run installs the chart and waits until its workloads are ready, telling progress as it goes.
func Run(ctx context.Context, config *rest.Config, c Chart, progress func(string)) error {
	in, err := newInstaller(config, c.Namespace)
	if err != nil {
		return err
	}
	// Templates may look up what the cluster has.
	crds, objects, err := c.render(in.version, func(chart ci.Charter, values common.Values) (map[string]string, error) {
		return engine.New(config).RenderWithContext(ctx, chart, values)
	})
	if err != nil {
		return fmt.Errorf("chart %s: %w", c.Dir, err)
	}
	for _, object := range append(crds, objects...) {
		if err := in.apply(ctx, object); err != nil {
			return fmt.Errorf("apply %s: %w", describe(object), err)
		}
	}
	return in.waitReady(ctx, objects, progress)
}

// render gives the chart's CRDs and its other objects, in the order in which to create them, as the templates make them
// for a version of Kubernetes.
func (c Chart) render(version string, templates func(ci.Charter, common.Values) (map[string]string, error)) (crds, objects []*unstructured.Unstructured, err error) {
	chart, err := loader.LoadDir(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	values, err := c.values()
	if err != nil {
		return nil, nil, err
	}
	capabilities := common.DefaultCapabilities.Copy()
	kube, err := common.ParseKubeVersion(version)
	if err != nil {
		return nil, nil, err
	}
	capabilities.KubeVersion = *kube
	top, err := util.ToRenderValues(chart, values, common.ReleaseOptions{
		Name: c.Release, Namespace: c.Namespace, Revision: 1, IsInstall: true,
	}, capabilities)
	if err != nil {
		return nil, nil, err
	}
	files, err := templates(chart, top)
	if err != nil {
		return nil, nil, err
	}
	for name := range files {
		if len(name) > len(notes) && name[len(name)-len(notes):] == notes {
			delete(files, name)
		}
	}
	hooks, manifests, err := releaseutil.SortManifests(files, capabilities.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return nil, nil, err
	}
	if len(hooks) > 0 {
		return nil, nil, errors.New("it has hooks, which the lab doesn't run")
	}
	for _, crd := range chart.CRDObjects() {
		for _, text := range releaseutil.SplitManifests(string(crd.File.Data)) {
			if crds, err = appendObject(crds, text); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", crd.Name, err)
			}
		}
	}
	for _, m := range manifests {
		if objects, err = appendObject(objects, m.Content); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	return crds, objects, nil
}

// notes is the template that Helm shows to people.
const notes = "/NOTES.txt"

func appendObject(objects []*unstructured.Unstructured, text string) ([]*unstructured.Unstructured, error) {
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
		return nil, err
	}
	if len(object.Object) == 0 {
		return objects, nil
	}
	return append(objects, object), nil
}

// values merges the value files and the single values, as helm does.
func (c Chart) values() (map[string]any, error) {
	values := map[string]any{}
	for _, path := range c.Values {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		more, err := loader.LoadValues(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("values of %s: %w", path, err)
		}
		values = loader.MergeMaps(values, more)
	}
	for _, set := range c.Sets {
		if err := strvals.ParseInto(set, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w", set, err)
		}
	}
	return values, nil
}

// installer is a cluster to install into.
type installer struct {
	client    dynamic.Interface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	version   string
	namespace string
}

func newInstaller(config *rest.Config, namespace string) (*installer, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 200, 400
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	version, err := disco.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the API server's version: %w", err)
	}
	return &installer{
		client:    client,
		mapper:    restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco)),
		version:   version.Major + "." + version.Minor + ".0",
		namespace: namespace,
	}, nil
}

// resource is where the object's kind is served. A kind that a CRD has just defined takes a moment to appear.
func (in *installer) resource(ctx context.Context, o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	for {
		mapping, err := in.mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err == nil {
			if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
				return in.client.Resource(mapping.Resource), nil
			}
			if o.GetNamespace() == "" {
				o.SetNamespace(in.namespace)
			}
			return in.client.Resource(mapping.Resource).Namespace(o.GetNamespace()), nil
		}
		if !meta.IsNoMatchError(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
		in.mapper.Reset()
	}
}

func (in *installer) apply(ctx context.Context, o *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	resource, err := in.resource(ctx, o)
	if err != nil {
		return err
	}
	_, err = resource.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// waitReady waits for every workload among the objects.
func (in *installer) waitReady(ctx context.Context, objects []*unstructured.Unstructured, progress func(string)) error {
	for _, o := range objects {
		if kind := o.GetKind(); kind != "DaemonSet" && kind != "Deployment" && kind != "StatefulSet" {
			continue
		}
		resource, err := in.resource(ctx, o)
		if err != nil {
			return err
		}
		told := ""
		for {
			now, err := resource.Get(ctx, o.GetName(), metav1.GetOptions{})
			if err != nil {
				return fmt.Errorf("%s: %w", describe(o), err)
			}
			ready, want := readiness(now)
			if want > 0 && ready >= want {
				break
			}
			if state := fmt.Sprintf("waiting for %s: %d of %d ready", describe(o), ready, want); state != told {
				progress(state)
				told = state
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: %d of %d ready after the time limit; %s", describe(o), ready, want, in.whyNot(o))
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// readiness is how many of a workload's pods are ready, and how many there should be; 0 while its controller has not
// looked at it.
func readiness(o *unstructured.Unstructured) (ready, want int64) {
	field := func(path ...string) int64 {
		n, _, _ := unstructured.NestedInt64(o.Object, path...)
		return n
	}
	if field("status", "observedGeneration") < o.GetGeneration() {
		return 0, 0
	}
	if o.GetKind() == "DaemonSet" {
		return field("status", "numberReady"), field("status", "desiredNumberScheduled")
	}
	return field("status", "readyReplicas"), field("spec", "replicas")
}

// whyNot collects what the cluster says about a workload's pods that are not ready.
func (in *installer) whyNot(o *unstructured.Unstructured) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	labels, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	pods, err := in.client.Resource(podResource).Namespace(o.GetNamespace()).List(ctx, metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels}),
	})
	if err != nil {
		return err.Error()
	}
	said := ""
	for _, pod := range pods.Items {
		said += podTrouble(pod)
	}
	if said == "" {
		return "no pod of it says why"
	}
	return said
}

func describe(o *unstructured.Unstructured) string {
	return o.GetKind() + " " + o.GetName()
}
