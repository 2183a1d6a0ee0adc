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
// controller runs. What Gateways were given goes with them. It returns how many classes it freed; the error joins those
// that it could not. Where Gateway API is not installed there is nothing to do.
func CleanupGateways(ctx context.Context, api *rest.Config) (int, error) {
	client, err := dynamic.NewForConfig(api)
	if err != nil {
		return 0, fmt.Errorf("API client: %w", err)
	}
	classes := client.Resource(schema.GroupVersionResource{Group: kube.GatewayGroup, Version: "v1", Resource: kube.GatewayResource("GatewayClass")})
	list, err := classes.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("list GatewayClasses: %w", err)
	}
	freed := 0
	var bad []error
	for i := range list.Items {
		c := &list.Items[i]
		name, _, _ := unstructured.NestedString(c.Object, "spec", "controllerName")
		finalizers := c.GetFinalizers()
		if name != gatewayapi.ControllerName || !slices.Contains(finalizers, gatewayv1.GatewayClassFinalizerGatewaysExist) {
			continue
		}
		kept := slices.DeleteFunc(finalizers, func(f string) bool { return f == gatewayv1.GatewayClassFinalizerGatewaysExist })
		_, err := classes.Patch(ctx, c.GetName(), types.MergePatchType, encode(map[string]any{"metadata": map[string]any{
			"uid": c.GetUID(), "resourceVersion": c.GetResourceVersion(), "finalizers": kept,
		}}), metav1.PatchOptions{FieldManager: fieldManager})
		if err != nil {
			bad = append(bad, fmt.Errorf("GatewayClass %s: %w", c.GetName(), err))
			continue
		}
		freed++
	}
	return freed, errors.Join(bad...)
}
