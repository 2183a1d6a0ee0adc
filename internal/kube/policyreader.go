// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/model"
)

// PolicyReader reads the policies of one namespace from the API server itself, for whoever must know whether a Watcher
// has them all: each kind is a watch of its own, and one may lag behind another.
type PolicyReader struct {
	typed kubernetes.Interface
	dyn   dynamic.Interface
}

// NewPolicyReader prepares a reader. Its requests are not throttled here: there are a few for pods that start.
func NewPolicyReader(cfg *rest.Config) (*PolicyReader, error) {
	fast := rest.CopyConfig(cfg)
	fast.QPS = -1
	core := rest.CopyConfig(fast)
	core.ContentType = "application/vnd.kubernetes.protobuf"
	core.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	typed, err := kubernetes.NewForConfig(core)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(fast)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	return &PolicyReader{typed, dyn}, nil
}

// Read returns the namespace, its NetworkPolicies, and all ClusterNetworkPolicies, as they are at some moment after the
// call, translated as a Watcher does. It takes the right to list the three kinds. What of an object can't be read is
// for the Watcher to report.
func (r *PolicyReader) Read(ctx context.Context, namespace string) (*model.Delta, error) {
	d := &model.Delta{Namespaces: map[string]*model.Namespace{}, NetworkPolicies: map[model.Name]*model.NetworkPolicy{}, ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{}}
	g, ctx := errgroup.WithContext(ctx)
	// Without a resourceVersion a list is of the newest state (Kubernetes API concepts, "Resource versions").
	g.Go(func() error {
		list, err := r.typed.CoreV1().Namespaces().List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + namespace})
		if err != nil {
			return fmt.Errorf("read namespace %s: %w", namespace, err)
		}
		for i := range list.Items {
			d.Namespaces[namespace], _ = FromNamespace(&list.Items[i])
		}
		return nil
	})
	g.Go(func() error {
		list, err := r.typed.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("read the NetworkPolicies of namespace %s: %w", namespace, err)
		}
		for i := range list.Items {
			p, _ := FromNetworkPolicy(&list.Items[i])
			d.NetworkPolicies[p.Name] = p
		}
		return nil
	})
	g.Go(func() error {
		resource := clusterNetworkPolicyKind.GroupVersion().WithResource("clusternetworkpolicies")
		list, err := r.dyn.Resource(resource).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			return nil // the CRD is not installed
		}
		if err != nil {
			return fmt.Errorf("read the ClusterNetworkPolicies: %w", err)
		}
		for i := range list.Items {
			if p, _ := clusterNetworkPolicyFrom(&list.Items[i]); p != nil {
				d.ClusterNetworkPolicies[p.Name.Name] = p
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return d, nil
}
