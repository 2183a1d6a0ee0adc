// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/internal/flowlog"
)

// namespaceIsThere refuses a namespace that -n names and the cluster does not have, for commands that would say of it that
// there is nothing in it. Of manifests, and where namespaces may not be read, any may be.
func (f *worldFlags) namespaceIsThere(ctx context.Context) error {
	if f.namespace == "" || len(f.files) > 0 {
		return nil
	}
	cfg, err := f.access.Config()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	switch _, err = client.CoreV1().Namespaces().Get(ctx, f.namespace, metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
		return exitCode{exitTrouble, fmt.Errorf("namespace %q not found: -n names one of the cluster's (kubectl get namespaces)", f.namespace)}
	case apierrors.IsForbidden(err):
		return nil
	case err != nil:
		return fmt.Errorf("read namespace %s: %w", f.namespace, err)
	}
	return nil
}

// nothingFound says, in kubectl's words, that a table is empty; namespace "" is all.
func nothingFound(w io.Writer, namespace string) {
	if namespace == "" {
		fmt.Fprintln(w, "No resources found")
		return
	}
	fmt.Fprintf(w, "No resources found in %s namespace.\n", namespace)
}

// flowObjects are the flags of "weft flows" that name objects, and in which resources these may be.
var flowObjects = []struct {
	flag, kinds string
	named       func(*flowlog.Filter) (namespace, name string) // "" is any namespace
	resources   []schema.GroupVersionResource
}{
	{"pod", "Pod", func(f *flowlog.Filter) (string, string) { return f.Namespace, f.Pod },
		[]schema.GroupVersionResource{{Version: "v1", Resource: "pods"}}},
	{"service", "Service", func(f *flowlog.Filter) (string, string) { return cutNamespace(f.Service) },
		[]schema.GroupVersionResource{{Version: "v1", Resource: "services"}}},
	{"policy", "NetworkPolicy or ClusterNetworkPolicy", func(f *flowlog.Filter) (string, string) { return cutNamespace(f.Policy) },
		[]schema.GroupVersionResource{
			{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
			{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"},
		}},
}

// cutNamespace takes NAMESPACE/NAME, or NAME, apart.
func cutNamespace(s string) (namespace, name string) {
	if ns, n, ok := strings.Cut(s, "/"); ok {
		return ns, n
	}
	return "", s
}

// notThere names what a filter asks for and the cluster does not have. Flows of an object that is gone are remembered, so
// this alone is no mistake. What can't be read is taken to be there.
func notThere(ctx context.Context, client dynamic.Interface, filter *flowlog.Filter) []string {
	var out []string
	for _, o := range flowObjects {
		namespace, name := o.named(filter)
		if name == "" {
			continue
		}
		found := false
		for _, r := range o.resources {
			list, err := client.Resource(r).Namespace(namespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
			found = found || err == nil && len(list.Items) > 0 || err != nil && !apierrors.IsNotFound(err)
		}
		if !found {
			out = append(out, fmt.Sprintf("--%s: there is no %s %s", o.flag, o.kinds, strings.TrimPrefix(namespace+"/"+name, "/")))
		}
	}
	return out
}
