// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
)

// CleanupGateways takes weft's finalizer off its GatewayClasses, without which nobody could delete them once no
// controller runs, and what weft said of them and their Gateways: conditions and addresses that nobody keeps true any more.
// What Gateways were given goes with them. It returns of how many classes and Gateways it let go; the error joins those
// that it could not. Where Gateway API is not installed there is nothing to do. No controller may run meanwhile.
func CleanupGateways(ctx context.Context, api *rest.Config) (classes, gateways int, err error) {
	client, err := dynamic.NewForConfig(api)
	if err != nil {
		return 0, 0, fmt.Errorf("API client: %w", err)
	}
	resource := func(kind string) dynamic.NamespaceableResourceInterface {
		return client.Resource(schema.GroupVersionResource{Group: kube.GatewayGroup, Version: "v1", Resource: kube.GatewayResource(kind)})
	}
	list, err := resource("GatewayClass").List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("list GatewayClasses: %w", err)
	}
	ours := map[string]bool{}
	var bad []error
	for i := range list.Items {
		c := &list.Items[i]
		if name, _, _ := unstructured.NestedString(c.Object, "spec", "controllerName"); name != gatewayapi.ControllerName {
			continue
		}
		ours[c.GetName()] = true
		free, err := freeClass(ctx, resource("GatewayClass"), c)
		switch {
		case err != nil:
			bad = append(bad, fmt.Errorf("GatewayClass %s: %w", c.GetName(), err))
		case free:
			classes++
		}
	}
	list, err = resource("Gateway").List(ctx, metav1.ListOptions{})
	if err != nil {
		return classes, 0, errors.Join(append(bad, fmt.Errorf("list Gateways: %w", err))...)
	}
	for i := range list.Items {
		g := &list.Items[i]
		if class, _, _ := unstructured.NestedString(g.Object, "spec", "gatewayClassName"); !ours[class] {
			continue
		}
		taken, err := takeBack(ctx, resource("Gateway").Namespace(g.GetNamespace()), g, &gatewayv1.GatewayStatus{})
		switch {
		case err != nil:
			bad = append(bad, fmt.Errorf("clean up Gateway %s/%s: %w", g.GetNamespace(), g.GetName(), err))
		case taken:
			gateways++
		}
	}
	return classes, gateways, errors.Join(bad...)
}

// freeClass takes off a GatewayClass what is weft's, and tells whether there was any.
func freeClass(ctx context.Context, client dynamic.ResourceInterface, c *unstructured.Unstructured) (bool, error) {
	const ours = gatewayv1.GatewayClassFinalizerGatewaysExist
	finalizers := c.GetFinalizers()
	had := slices.Contains(finalizers, ours)
	if had {
		kept := slices.DeleteFunc(finalizers, func(f string) bool { return f == ours })
		var err error
		c, err = client.Patch(ctx, c.GetName(), types.MergePatchType, encode(map[string]any{"metadata": map[string]any{
			"uid": c.GetUID(), "resourceVersion": c.GetResourceVersion(), "finalizers": kept,
		}}), metav1.PatchOptions{FieldManager: fieldManager})
		if err != nil {
			return false, err
		}
		if c.GetDeletionTimestamp() != nil && len(kept) == 0 {
			return true, nil // and gone
		}
	}
	taken, err := takeBack(ctx, client, c, &gatewayv1.GatewayClassStatus{})
	return had || taken, err
}

// takeBack has an object's status say no more than nothing does, an empty status, but for what others say there. It tells
// whether it said more. u is changed.
func takeBack(ctx context.Context, client dynamic.ResourceInterface, u *unstructured.Unstructured, nothing any) (bool, error) {
	o, err := kube.FromGatewayObject(u)
	if err != nil {
		return false, err
	}
	old, merged := statusOf(o.Value, nothing, metav1.Now())
	data := mergePatch(o.Value.(metav1.Object), old, merged)
	if data == nil {
		return false, nil
	}
	_, err = client.Patch(ctx, u.GetName(), types.MergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	return err == nil, err
}
