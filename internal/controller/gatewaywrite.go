// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// partID names an object made for a Gateway, within the Gateway's namespace.
type partID struct{ kind, name string }

// asked is what a Gateway's parts are made of. Without accepted it is not known what it asks for, and all but the identity
// stays as it is.
type asked struct {
	accepted bool
	gw       *gatewayv1.Gateway
	infra    *gatewayapi.Infrastructure
	conf     v1alpha1.GatewayConfigSpec
}

// appliedPart is what was last written of a part, and what it then looked like.
type appliedPart struct{ desired, result string }

func (p *Gateways) write(ctx context.Context, it gatewayItem) error {
	switch it.Kind {
	case "":
		return p.writeParts(ctx, it.ObjectKey)
	case "GatewayClass":
		return p.writeClass(ctx, it.ObjectKey)
	}
	return p.writeStatus(ctx, it.ObjectKey)
}

// moot tells of a failure that the object is gone, or about to be. A part that is not there is one to make.
func (p *Gateways) moot(it gatewayItem, err error) bool {
	return apierrors.IsNotFound(err) && it.Kind != "" || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

func (p *Gateways) failed(it gatewayItem, failures int, err error) {
	kind := cmp.Or(it.Kind, "parts of Gateway")
	p.metrics.failed.WithLabelValues(kind).Inc()
	p.log.Error("can't write; trying again", "kind", kind, "namespace", it.Namespace, "name", it.Name, "failures", failures, "err", err)
}

// writeStatus brings an object's status to what is wanted, if it is not there.
func (p *Gateways) writeStatus(ctx context.Context, key model.ObjectKey) error {
	var o, wanted, old, merged any
	var m metav1.Object
	var data []byte
	for waited := false; ; waited = true {
		p.mu.Lock()
		writing := p.writing[key]
		o, wanted = p.objects[key], p.wanted[key]
		var addrs []gatewayapi.Address
		if g := p.gateways[model.Name{Namespace: key.Namespace, Name: key.Name}]; key.Kind == "Gateway" && g != nil && g.feedback != nil {
			addrs = g.feedback.Addresses
		}
		p.mu.Unlock()
		if o == nil || wanted == nil {
			return nil
		}
		m = o.(metav1.Object)
		if writing != "" && older(m.GetResourceVersion(), writing) {
			return nil // what was written last is still on its way here; it comes, and with it this item
		}
		old, merged = statusOf(o, wanted, metav1.Now())
		if data = mergePatch(m, old, merged); data == nil {
			return nil
		}
		if st, ok := merged.(*gatewayv1.GatewayStatus); ok && addrs != nil {
			data = withRoutability(data, st, addrs)
		}
		if waited || !p.wait(ctx) {
			break
		}
	}
	version, err := p.patch(ctx, o, key, data, "status")
	if err != nil {
		return err
	}
	p.metrics.written.WithLabelValues(key.Kind).Inc()
	p.mu.Lock()
	p.writing[key] = version
	p.mu.Unlock()
	for _, gw := range cutOff(wanted, merged) {
		p.recordFull(key, gw)
	}
	for _, c := range worsened(old, merged) {
		p.record(model.Event{APIVersion: o.(runtime.Object).GetObjectKind().GroupVersionKind().GroupVersion().String(), Kind: key.Kind,
			UID: string(m.GetUID()), Warning: true, Name: model.Name{Namespace: key.Namespace, Name: key.Name}, Reason: c.Reason, Message: c.Message})
	}
	// The object may have come while this was under way, and been taken for older.
	p.mu.Lock()
	if now, ok := p.objects[key].(metav1.Object); ok && now != m {
		p.queue.Add(gatewayItem{key})
	}
	p.mu.Unlock()
	return nil
}

// recordFull tells at a Gateway of a policy that can't say itself that it is not in force there.
func (p *Gateways) recordFull(policy model.ObjectKey, name model.Name) {
	p.mu.Lock()
	gw := p.gateway(name)
	p.mu.Unlock()
	if gw != nil {
		p.record(model.Event{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", UID: string(gw.UID), Warning: true, Name: name, Reason: "PolicyStatusFull",
			Message: fmt.Sprintf("%s %s/%s is not in force here, and requests to what it targets fail: its status has %d entries, and no room for this Gateway. "+
				"Have fewer Gateways refer to its Services, or targets in policies of their own", policy.Kind, policy.Namespace, policy.Name, gatewayapi.MaxAncestors)})
	}
}

// patch sends a merge patch and gives the object's new version.
func (p *Gateways) patch(ctx context.Context, o any, key model.ObjectKey, data []byte, subresource ...string) (string, error) {
	gvk := o.(runtime.Object).GetObjectKind().GroupVersionKind()
	resource := p.client.Resource(gvk.GroupVersion().WithResource(kube.GatewayResource(key.Kind)))
	u, err := resource.Namespace(key.Namespace).Patch(ctx, key.Name, types.MergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}, subresource...)
	if err != nil {
		return "", err
	}
	return u.GetResourceVersion(), nil
}

// older compares resource versions, which are numbers that grow.
func older(a, b string) bool {
	x, errA := strconv.ParseUint(a, 10, 64)
	y, errB := strconv.ParseUint(b, 10, 64)
	return errA == nil && errB == nil && x < y
}

// writeClass makes weft's own GatewayClass where there is none, keeps the finalizer of classes in use, and writes their
// status.
func (p *Gateways) writeClass(ctx context.Context, key model.ObjectKey) error {
	p.mu.Lock()
	o, _ := p.objects[key].(*gatewayv1.GatewayClass)
	used, ours := p.inUse[key.Name]
	p.mu.Unlock()
	if o == nil {
		if key.Name == "" || key.Name != p.opts.Class {
			return nil
		}
		class := &gatewayv1.GatewayClass{
			TypeMeta: metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass"},
			ObjectMeta: metav1.ObjectMeta{Name: key.Name, Labels: map[string]string{
				"app.kubernetes.io/name": "weft", kube.OwnedBy: kube.ManagedBy}},
			Spec: gatewayv1.GatewayClassSpec{ControllerName: gatewayapi.ControllerName,
				Description: new("Gateways of weft: each has pods and a Service of its own.")},
		}
		resource := p.client.Resource(schema.GroupVersionResource{Group: kube.GatewayGroup, Version: "v1", Resource: kube.GatewayResource("GatewayClass")})
		_, err := resource.Create(ctx, asUnstructured(class), metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return err // not found: Gateway API is not installed; when it is, its CRD comes and with it this item
	}
	has := slices.Contains(o.Finalizers, gatewayv1.GatewayClassFinalizerGatewaysExist)
	if ours && has != used && !(used && o.DeletionTimestamp != nil) {
		finalizers := slices.DeleteFunc(slices.Clone(o.Finalizers), func(f string) bool { return f == gatewayv1.GatewayClassFinalizerGatewaysExist })
		if used {
			finalizers = append(finalizers, gatewayv1.GatewayClassFinalizerGatewaysExist)
		}
		version, err := p.patch(ctx, o, key, encode(map[string]any{"metadata": map[string]any{
			"uid": o.UID, "resourceVersion": o.ResourceVersion, "finalizers": finalizers,
		}}))
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.writing[key] = version
		p.mu.Unlock()
		return nil // the object comes again, and with it this item
	}
	return p.writeStatus(ctx, key)
}

// writeParts brings what is made for a Gateway to what it asks for, and removes what it does not (any more).
func (p *Gateways) writeParts(ctx context.Context, key model.ObjectKey) error {
	name := model.Name{Namespace: key.Namespace, Name: key.Name}
	p.mu.Lock()
	gw, _ := p.objects[model.ObjectKey{Kind: "Gateway", Namespace: name.Namespace, Name: name.Name}].(*gatewayv1.Gateway)
	state := p.gateways[name]
	there := make(map[partID]any, len(p.parts[name]))
	for id, o := range p.parts[name] {
		there[id] = o
	}
	var ask *asked
	if gw != nil && state != nil {
		ask = p.asks(gw, state)
	}
	p.mu.Unlock()
	if gw == nil {
		return nil // the parts go with their owner
	}
	if state != nil && ask == nil {
		return nil // ending: what there is stays as it is
	}
	var wanted []*unstructured.Unstructured
	if ask != nil {
		if ask.accepted {
			has, _ := there[partID{"Deployment", partName(ask.gw)}].(*appsv1.Deployment)
			wanted = partsOf(ask.gw, ask.infra, ask.conf, p.opts.Pods, has)
		}
		secret, err := p.identity(ask, there)
		if err != nil {
			return err
		}
		switch {
		case secret != nil:
			wanted = append(wanted, secret)
		case ask.accepted:
			return nil // the authority comes, and with it this item
		}
	}
	keep := map[partID]bool{}
	var failed []error // of one part, which holds up no other
	var refused *gatewayapi.Problem
	for _, k := range partKinds {
		for _, o := range wanted {
			if o.GetKind() != k.kind {
				continue
			}
			id := partID{k.kind, o.GetName()}
			keep[id] = true
			if err := p.applyPart(ctx, ask.gw, state, id, k.resource, o, there[id]); err != nil {
				failed = append(failed, err)
				if refused == nil {
					refused = refusal(id, err, state.failures >= lasting)
				}
			}
		}
	}
	if state != nil {
		if state.failures++; len(failed) == 0 {
			state.failures = 0
		}
		p.refuse(gw, state, refused)
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	if ask != nil && !ask.accepted {
		return nil // which parts it needs is not known
	}
	for _, k := range partKinds {
		for id, o := range there {
			if id.kind != k.kind || keep[id] {
				continue
			}
			m := o.(metav1.Object)
			if owner := metav1.GetControllerOf(m); owner == nil || owner.UID != gw.UID {
				continue // of an earlier Gateway of that name: it goes by itself
			}
			err := p.client.Resource(k.resource).Namespace(name.Namespace).Delete(ctx, id.name, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: new(m.GetUID())}, PropagationPolicy: new(metav1.DeletePropagationBackground)})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return err
			}
		}
	}
	return nil
}

// asks gives what a Gateway's parts are made of; nil while it ends. While it is not accepted that is what it asked for when
// it was accepted last, in this term: its pods serve on, so what is lost is to come back. The caller holds the lock.
func (p *Gateways) asks(gw *gatewayv1.Gateway, state *gatewayState) *asked {
	infra := state.infra
	switch {
	case infra == nil || gw.DeletionTimestamp != nil:
		return nil
	case infra.Accepted:
		state.asked = &asked{true, gw, infra, mergedConfig(p.config(infra.ClassParameters), p.config(infra.Parameters))}
	case state.asked == nil || state.asked.gw.UID != gw.UID:
		return &asked{gw: gw, infra: infra}
	}
	return state.asked
}

// applyPart brings one part to what is desired, if it is not there. has is the part as the API shows it; nil is none.
func (p *Gateways) applyPart(ctx context.Context, gw *gatewayv1.Gateway, state *gatewayState, id partID, resource schema.GroupVersionResource, o *unstructured.Unstructured, has any) error {
	desired := fingerprint(o)
	p.mu.Lock()
	last := state.applied[id]
	p.mu.Unlock()
	if has != nil && last.desired == desired && last.result == fingerprint(has) {
		return nil
	}
	if has == nil {
		if err := p.free(ctx, id.kind, resource, gw); err != nil {
			return err
		}
	}
	result, err := p.client.Resource(resource).Namespace(gw.Namespace).Apply(ctx, id.name, o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", id.kind, gw.Namespace, id.name, err)
	}
	p.metrics.written.WithLabelValues(id.kind).Inc()
	p.mu.Lock()
	state.applied[id] = appliedPart{desired, fingerprint(typed(id.kind, result))}
	p.mu.Unlock()
	return nil
}

// errNameTaken is of a part whose name is somebody else's.
var errNameTaken = errors.New("is there and not this Gateway's: delete or rename it, or name the Gateway otherwise")

// lasting is how often in a row a Gateway's parts can't be written before an API server that is not able to is told of:
// some 3 seconds.
const lasting = 6

// refusal is what keeps a Gateway from being programmed when a part was refused: by a quota, a webhook, validation, or
// for its name. nil is a failure that trying again may end, such as an API server that is busy and has not been for long.
func refusal(id partID, err error, long bool) *gatewayapi.Problem {
	var status apierrors.APIStatus
	reason := gatewayv1.GatewayReasonInvalid
	switch {
	case errors.Is(err, errNameTaken):
		return &gatewayapi.Problem{Reason: reason, Message: err.Error()}
	case !errors.As(err, &status), apierrors.IsConflict(err), apierrors.IsNotFound(err), apierrors.IsTooManyRequests(err), apierrors.IsUnauthorized(err),
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsForbidden(err):
		reason = gatewayv1.GatewayReasonNoResources
	case apierrors.IsInternalError(err), long && status.Status().Code >= 500: // as when a webhook does not answer
		reason = gatewayv1.GatewayReasonPending
	case status.Status().Code >= 500:
		return nil
	}
	return &gatewayapi.Problem{Reason: reason, Message: fmt.Sprintf("The API server refuses the Gateway's %s: %s. What pods there are serve on as they were; "+
		"correct what it names, in the GatewayConfig or the namespace.", id.kind, strings.TrimRight(status.Status().Message, "."))}
}

// refuse notes, and tells once, what keeps a Gateway's parts from being as they should; nil is nothing.
func (p *Gateways) refuse(gw *gatewayv1.Gateway, state *gatewayState, why *gatewayapi.Problem) {
	name := model.Name{Namespace: gw.Namespace, Name: gw.Name}
	p.mu.Lock()
	news := !reflect.DeepEqual(state.refused, why)
	state.refused = why
	p.told[gatewayKey(name)] = p.told[gatewayKey(name)] || news
	p.mu.Unlock()
	if !news {
		return
	}
	p.news()
	if why != nil {
		p.record(model.Event{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", UID: string(gw.UID), Warning: true,
			Name: name, Reason: "PartRefused", Message: fmt.Sprintf("%.1000s", why.Message)})
	}
}

// free makes sure that no object of somebody else has the name of a part, which is then not touched.
func (p *Gateways) free(ctx context.Context, kind string, resource schema.GroupVersionResource, gw *gatewayv1.Gateway) error {
	o, err := p.client.Resource(resource).Namespace(gw.Namespace).Get(ctx, partName(gw), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if owner := metav1.GetControllerOf(o); owner != nil && owner.UID == gw.UID {
		return nil
	}
	return fmt.Errorf("%s %s/%s %w", kind, gw.Namespace, partName(gw), errNameTaken)
}

// typed makes the answer of the API server comparable with what the watch shows.
func typed(kind string, u *unstructured.Unstructured) any {
	o := kube.NewPart(kind)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
		return u
	}
	o.SetManagedFields(nil)
	return o
}

// identity is the Secret with the client certificate of a Gateway's pods; nil as long as there is no authority, and for
// one that has none and is not accepted.
func (p *Gateways) identity(ask *asked, there map[partID]any) (*unstructured.Unstructured, error) {
	gw := ask.gw
	var data map[string][]byte
	s, ok := there[partID{"Secret", partName(gw)}].(*corev1.Secret)
	if !ask.accepted && (!ok || !metav1.IsControlledBy(s, gw)) {
		return nil, nil
	}
	if ok {
		data = s.Data
	}
	data, _, ok, err := p.opts.Identities.Client(gatewayKey(model.Name{Namespace: gw.Namespace, Name: gw.Name}), data, time.Now())
	if !ok || err != nil {
		return nil, err
	}
	return secretOf(gw, ask.infra, data), nil
}
