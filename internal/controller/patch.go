// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// patch is a strategic merge patch of a Service or of its status. It names the Service's uid, so that it can't hit
// one that was created anew under the name.
type patch struct {
	subresource []string
	data        []byte
}

// patches are what brings a Service as the API shows it to what was decided, in the order to send them. The
// finalizer and annotation come before an address and go after it: whoever sees the address can rely on them.
func patches(s *model.Service, d addresses.Decision, opts addresses.Options) []patch {
	marked := s.Annotations[addresses.AllocatedAnnotation]
	var out []patch
	if !d.Ours {
		if marked == "" {
			return nil // nothing on it is weft's
		}
		// A Service that went to another class may have that controller's status and finalizer by now.
		foreign := s.Type == model.LoadBalancer && s.LoadBalancer.Class != "" && s.LoadBalancer.Class != opts.Class
		if s.Type == model.LoadBalancer && !foreign && !s.Deleting && len(s.Ingress) > 0 {
			out = append(out, statusPatch(s, nil))
		}
		return append(out, metaPatch(s, "", !foreign))
	}
	if len(d.Addresses) == 0 {
		if len(s.Ingress) > 0 {
			out = append(out, statusPatch(s, nil))
		}
		if marked != "" {
			out = append(out, metaPatch(s, "", true))
		}
		return out
	}
	var pools []string
	for _, a := range d.Addresses {
		if !slices.Contains(pools, a.Pool) {
			pools = append(pools, a.Pool)
		}
	}
	if mark := strings.Join(pools, ","); mark != marked || !s.CleanupFinalizer {
		out = append(out, metaPatch(s, mark, true))
	}
	shown := slices.EqualFunc(s.Ingress, d.Addresses, func(in model.LoadBalancerIngress, a addresses.Assigned) bool {
		return in.IP == a.Addr && in.Hostname == "" && !in.Proxy
	})
	if !shown {
		out = append(out, statusPatch(s, d.Addresses))
	}
	return out
}

// fieldManager is whom the API server notes as the writer.
const fieldManager = "weft-controller"

// send sends patches of a Service until one fails.
func send(ctx context.Context, client kubernetes.Interface, name model.Name, patches []patch) error {
	for _, p := range patches {
		_, err := client.CoreV1().Services(name.Namespace).Patch(ctx, name.Name, types.StrategicMergePatchType, p.data,
			metav1.PatchOptions{FieldManager: fieldManager}, p.subresource...)
		if err != nil {
			return err
		}
	}
	return nil
}

// metaPatch sets the annotation and the finalizer, or takes them away when mark is "". The finalizer is left as it
// is unless it is ours to change.
func metaPatch(s *model.Service, mark string, finalizer bool) patch {
	annotation := map[string]any{addresses.AllocatedAnnotation: nil}
	meta := map[string]any{"uid": s.UID, "annotations": annotation}
	if mark != "" {
		annotation[addresses.AllocatedAnnotation] = mark
		meta["finalizers"] = []string{kube.LoadBalancerCleanup}
	} else if finalizer && s.CleanupFinalizer {
		meta["$deleteFromPrimitiveList/finalizers"] = []string{kube.LoadBalancerCleanup}
	}
	return patch{data: encode(map[string]any{"metadata": meta})}
}

// statusPatch sets status.loadBalancer.ingress. ipMode is VIP (KEP-1860): packets come to the node with the address
// as their destination, so nodes may short-cut to the Service.
func statusPatch(s *model.Service, addrs []addresses.Assigned) patch {
	var ingress []corev1.LoadBalancerIngress
	mode := corev1.LoadBalancerIPModeVIP
	for _, a := range addrs {
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: a.Addr.String(), IPMode: &mode})
	}
	return patch{[]string{"status"}, encode(map[string]any{
		"metadata": map[string]any{"uid": s.UID},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": ingress}},
	})}
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps, slices and strings: can't be
	}
	return data
}
