// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

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
// finalizer and annotation come before an address and go after it: whoever sees the address can rely on them. now is the
// time of a condition that changes.
func patches(s *model.Service, d addresses.Decision, opts addresses.Options, now time.Time) []patch {
	marked := s.Annotations[addresses.AllocatedAnnotation]
	status := statusPatch{service: s, condition: conditionOf(d), now: now}
	var out []patch
	if !d.Ours {
		// A Service that went to another class may have that controller's status and finalizer by now.
		foreign := s.Type == model.LoadBalancer && s.LoadBalancer.Class != "" && s.LoadBalancer.Class != opts.Class
		status.ingress = marked != "" && s.Type == model.LoadBalancer && !foreign && !s.Deleting && len(s.Ingress) > 0
		out = status.appendTo(out)
		if marked == "" {
			return out // nothing else on it is weft's
		}
		return append(out, metaPatch(s, "", !foreign))
	}
	if len(d.Addresses) == 0 {
		status.ingress = len(s.Ingress) > 0
		out = status.appendTo(out)
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
	status.addresses = d.Addresses
	status.ingress = !slices.EqualFunc(s.Ingress, d.Addresses, func(in model.LoadBalancerIngress, a addresses.Assigned) bool {
		return in.IP == a.Addr && in.Hostname == "" && !in.Proxy
	})
	return status.appendTo(out)
}

// conditionOf says of a Service whether it has the addresses that it asks for; nil is nothing to say.
func conditionOf(d addresses.Decision) *model.Condition {
	var has []string
	for _, a := range d.Addresses {
		has = append(has, fmt.Sprintf("%s of AddressPool %q", a.Addr, a.Pool))
	}
	switch {
	case !d.Ours:
		return nil
	case d.Problem != addresses.Problem{} && len(has) > 0:
		return &model.Condition{Reason: d.Problem.Reason, Message: fmt.Sprintf("%s (the Service keeps %s)", d.Problem.Message, strings.Join(has, ", "))}
	case d.Problem != addresses.Problem{}:
		return &model.Condition{Reason: d.Problem.Reason, Message: d.Problem.Message}
	case len(has) == 0:
		return nil
	}
	return &model.Condition{Status: true, Reason: addresses.ReasonAssigned, Message: strings.Join(has, ", ")}
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

// statusPatch is what is to become of a Service's status.
type statusPatch struct {
	service   *model.Service
	ingress   bool // status.loadBalancer.ingress is to become these:
	addresses []addresses.Assigned
	condition *model.Condition // nil: none
	now       time.Time
}

// appendTo appends the patch if there is something to change. Conditions of others are not touched. A Service that is
// being deleted keeps its condition, which goes with it.
//
// ipMode is VIP (KEP-1860): packets come to the node with the address as their destination, so nodes may short-cut to the
// Service.
func (p *statusPatch) appendTo(out []patch) []patch {
	status := make(map[string]any)
	if p.ingress {
		var ingress []corev1.LoadBalancerIngress
		mode := corev1.LoadBalancerIPModeVIP
		for _, a := range p.addresses {
			ingress = append(ingress, corev1.LoadBalancerIngress{IP: a.Addr.String(), IPMode: &mode})
		}
		status["loadBalancer"] = map[string]any{"ingress": ingress}
	}
	switch is, was := p.condition, p.service.AddressCondition; {
	case p.service.Deleting, is == nil && was == nil, is != nil && was != nil && *is == *was:
	case is == nil:
		status["conditions"] = []any{map[string]any{"$patch": "delete", "type": model.ConditionAddressAssigned}}
	default:
		c := map[string]any{"type": model.ConditionAddressAssigned, "status": metav1.ConditionFalse, "reason": is.Reason, "message": is.Message}
		if is.Status {
			c["status"] = metav1.ConditionTrue
		}
		if was == nil || was.Status != is.Status { // else the API keeps what it has
			c["lastTransitionTime"] = p.now.UTC().Format(time.RFC3339)
		}
		status["conditions"] = []any{c}
	}
	if len(status) == 0 {
		return out
	}
	return append(out, patch{[]string{"status"}, encode(map[string]any{"metadata": map[string]any{"uid": p.service.UID}, "status": status})})
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps, slices and strings: can't be
	}
	return data
}
