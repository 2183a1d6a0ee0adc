// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/kube"
)

// Cleanup takes back everything that weft wrote on Services: addresses, conditions, annotations, and the finalizer, without which
// nobody could delete them once no controller runs. It returns how many Services it freed; the error joins those that
// it could not. No controller may run meanwhile.
func Cleanup(ctx context.Context, api *rest.Config, opts addresses.Options) (int, error) {
	d, err := kube.Snapshot(ctx, api, kube.Services)
	if err != nil {
		return 0, err
	}
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return 0, fmt.Errorf("API client: %w", err)
	}
	freed := 0
	var bad []error
	for name, s := range d.Services {
		due := patches(s, addresses.Decision{}, opts, time.Now())
		if err := send(ctx, client, name, due); err != nil {
			bad = append(bad, fmt.Errorf("service %s: %w", name, err))
		} else if len(due) > 0 {
			freed++
		}
	}
	return freed, errors.Join(bad...)
}

// CleanupIngresses takes weft's addresses off all Ingresses: those that are there since weft wrote them, as the API server
// has noted, whichever class and options they were served for. It returns off how many; the error joins those that it
// could not. No controller may run meanwhile.
func CleanupIngresses(ctx context.Context, api *rest.Config) (int, error) {
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return 0, fmt.Errorf("API client: %w", err)
	}
	list, err := client.NetworkingV1().Ingresses("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("list Ingresses: %w", err)
	}
	freed := 0
	var bad []error
	for i := range list.Items {
		in := &list.Items[i]
		if len(in.Status.LoadBalancer.Ingress) == 0 || !addressesAreOurs(in) {
			continue
		}
		_, err := client.NetworkingV1().Ingresses(in.Namespace).Patch(ctx, in.Name, types.MergePatchType, encode(map[string]any{
			"metadata": map[string]any{"uid": in.UID, "resourceVersion": in.ResourceVersion},
			"status":   map[string]any{"loadBalancer": map[string]any{"ingress": []any{}}},
		}), metav1.PatchOptions{FieldManager: fieldManager}, "status")
		if err != nil {
			bad = append(bad, fmt.Errorf("ingress %s/%s: %w", in.Namespace, in.Name, err))
			continue
		}
		freed++
	}
	return freed, errors.Join(bad...)
}

// addressesAreOurs tells whether it was weft that wrote the addresses that an Ingress shows.
func addressesAreOurs(in *networkingv1.Ingress) bool {
	for _, m := range in.ManagedFields {
		var fields struct {
			Status struct {
				LoadBalancer struct {
					Ingress json.RawMessage `json:"f:ingress"`
				} `json:"f:loadBalancer"`
			} `json:"f:status"`
		}
		if m.Manager == fieldManager && m.Subresource == "status" && m.FieldsV1 != nil &&
			json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) == nil && fields.Status.LoadBalancer.Ingress != nil {
			return true
		}
	}
	return false
}
