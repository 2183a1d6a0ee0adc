// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/model"
)

// OwnedBy is the label, with the value ManagedBy, of all that the controller makes for Gateways; only that is followed
// by GatewayParts.
const (
	OwnedBy   = "app.kubernetes.io/managed-by"
	ManagedBy = "weft-controller"
)

// GatewayGroup is the API group of Gateway API.
const GatewayGroup = gatewayv1.GroupName

// objectKind is a kind of custom resource whose objects are taken as they are.
type objectKind struct {
	kind, resource string
	group          string
	versions       []string // that may be served, the preferred one first; all have one Go type
	new            func() metav1.Object
	older          func(version string, content map[string]any) // brings an older version's fields to the Go type's; nil: they are the same
}

// gatewayKinds are the kinds of Gateway API, in all versions in which releases 1.0 to 1.7 served them. Versions differ in
// name only unless older says otherwise.
var gatewayKinds = []objectKind{
	{"GatewayClass", "gatewayclasses", GatewayGroup, []string{"v1", "v1beta1"}, func() metav1.Object { return &gatewayv1.GatewayClass{} }, nil},
	{"Gateway", "gateways", GatewayGroup, []string{"v1", "v1beta1"}, func() metav1.Object { return &gatewayv1.Gateway{} }, nil},
	{"ListenerSet", "listenersets", GatewayGroup, []string{"v1"}, func() metav1.Object { return &gatewayv1.ListenerSet{} }, nil},
	{"HTTPRoute", "httproutes", GatewayGroup, []string{"v1", "v1beta1"}, func() metav1.Object { return &gatewayv1.HTTPRoute{} }, nil},
	{"GRPCRoute", "grpcroutes", GatewayGroup, []string{"v1", "v1alpha2"}, func() metav1.Object { return &gatewayv1.GRPCRoute{} }, nil},
	{"TLSRoute", "tlsroutes", GatewayGroup, []string{"v1", "v1alpha3", "v1alpha2"}, func() metav1.Object { return &gatewayv1.TLSRoute{} }, nil},
	{"TCPRoute", "tcproutes", GatewayGroup, []string{"v1", "v1alpha2"}, func() metav1.Object { return &gatewayv1.TCPRoute{} }, nil},
	{"UDPRoute", "udproutes", GatewayGroup, []string{"v1", "v1alpha2"}, func() metav1.Object { return &gatewayv1.UDPRoute{} }, nil},
	{"BackendTLSPolicy", "backendtlspolicies", GatewayGroup, []string{"v1", "v1alpha3", "v1alpha2"}, func() metav1.Object { return &gatewayv1.BackendTLSPolicy{} }, olderBackendTLSPolicy},
	{"ReferenceGrant", "referencegrants", GatewayGroup, []string{"v1", "v1beta1"}, func() metav1.Object { return &gatewayv1.ReferenceGrant{} }, nil},
}

var trafficPolicyKind = objectKind{"TrafficPolicy", v1alpha1.TrafficPolicies.Resource, v1alpha1.GroupVersion.Group,
	[]string{v1alpha1.GroupVersion.Version}, func() metav1.Object { return &v1alpha1.TrafficPolicy{} }, nil}

// CRDKind is the kind under which Objects has the CustomResourceDefinitions of Gateway API: what release of it is installed,
// as *metav1.PartialObjectMetadata.
const CRDKind = "CustomResourceDefinition"

var crdKind = objectKind{CRDKind, "customresourcedefinitions", "apiextensions.k8s.io", []string{"v1"},
	func() metav1.Object { return &metav1.PartialObjectMetadata{} }, nil}

// GatewayResource is the resource of a kind of Gateway API, or of TrafficPolicy: "httproutes" of "HTTPRoute".
func GatewayResource(kind string) string {
	for _, k := range append(gatewayKinds[:len(gatewayKinds):len(gatewayKinds)], trafficPolicyKind) {
		if k.kind == kind {
			return k.resource
		}
	}
	return ""
}

var gatewayConfigKind = objectKind{"GatewayConfig", v1alpha1.GatewayConfigs.Resource, v1alpha1.GroupVersion.Group,
	[]string{v1alpha1.GroupVersion.Version}, func() metav1.Object { return &v1alpha1.GatewayConfig{} }, nil}

// NewPart makes an empty object of a kind that GatewayParts follows; nil for another.
func NewPart(kind string) metav1.Object {
	switch kind {
	case "Deployment":
		return &appsv1.Deployment{}
	case "Service":
		return &corev1.Service{}
	case "ServiceAccount":
		return &corev1.ServiceAccount{}
	case "Secret":
		return &corev1.Secret{}
	case "PodDisruptionBudget":
		return &policyv1.PodDisruptionBudget{}
	}
	return nil
}

// objectFeeds makes the feeds whose objects come as they are. Kinds of custom resources that the API server does not
// serve (yet) have no objects; they are looked for again every few seconds.
func objectFeeds(w *Watcher, c kubernetes.Interface, dyn dynamic.Interface, silence time.Duration) map[Kinds][]runner {
	all, mine := metav1.NamespaceAll, OwnedBy+"="+ManagedBy
	out := map[Kinds][]runner{
		GatewayConfigs: {gatewayConfigKind.feed(w, dyn, silence, ""), trafficPolicyKind.feed(w, dyn, silence, "")},
		GatewayParts: {
			typedFeed(w, "apps/v1", "Deployment", &appsv1.Deployment{}, selecting(listerOf(c.AppsV1().Deployments(all)), "", mine), silence),
			typedFeed(w, "v1", "Service", &corev1.Service{}, selecting(listerOf(c.CoreV1().Services(all)), "", mine), silence),
			typedFeed(w, "v1", "ServiceAccount", &corev1.ServiceAccount{}, selecting(listerOf(c.CoreV1().ServiceAccounts(all)), "", mine), silence),
			typedFeed(w, "v1", "Secret", &corev1.Secret{}, selecting(listerOf(c.CoreV1().Secrets(all)), "", mine), silence),
			typedFeed(w, "policy/v1", "PodDisruptionBudget", &policyv1.PodDisruptionBudget{}, selecting(listerOf(c.PolicyV1().PodDisruptionBudgets(all)), "", mine), silence),
		},
	}
	for _, k := range gatewayKinds {
		out[GatewayAPI] = append(out[GatewayAPI], k.feed(w, dyn, silence, ""), crdKind.feed(w, dyn, silence, "metadata.name="+k.resource+"."+GatewayGroup))
		switch k.kind {
		case "Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute":
			out[GatewayNames] = append(out[GatewayNames], k.feed(w, dyn, silence, ""))
		}
	}
	return out
}

// asIs makes an API object a model's.
func asIs(o metav1.Object) (*model.Object, error) {
	o.SetManagedFields(nil)
	return &model.Object{Value: o}, nil
}

func putObject(kind string) func(*model.Delta, model.Name, *model.Object) {
	return func(d *model.Delta, n model.Name, v *model.Object) {
		note(d, &d.Objects, model.ObjectKey{Kind: kind, Namespace: n.Namespace, Name: n.Name}, v)
	}
}

// typedFeed follows a kind that every API server has.
func typedFeed[O interface {
	runtime.Object
	metav1.Object
}](w *Watcher, apiVersion, kind string, example O, lw lister, silence time.Duration) runner {
	return &feed[O, model.Object]{
		w: w, apiVersion: apiVersion, kindName: kind, example: example, silence: silence, lw: lw,
		from: func(o O) (*model.Object, error) { return asIs(o) },
		put:  putObject(kind),
	}
}

// feed follows a kind of custom resource, in whichever version the API server serves. fields may narrow it down.
func (k objectKind) feed(w *Watcher, dyn dynamic.Interface, silence time.Duration, fields string) runner {
	return &feed[*unstructured.Unstructured, model.Object]{
		w: w, apiVersion: k.group + "/" + k.versions[0], kindName: k.kind, silence: silence, optional: true,
		example: &unstructured.Unstructured{}, // without a version: whichever comes
		lw:      selecting(k.lister(dyn), fields, ""),
		from:    k.from,
		put:     putObject(k.kind),
	}
}

// from translates an object. What its Go type does not have or can't hold is told apart (model.Object.Unknown). u is
// changed.
func (k objectKind) from(u *unstructured.Unstructured) (*model.Object, error) {
	o := k.new()
	if k.older != nil {
		k.older(u.GroupVersionKind().Version, u.Object)
	}
	unknown := takeUnknown(u.Object, o)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
		return nil, fmt.Errorf("%s %s: %w", u.GetAPIVersion(), k.kind, err)
	}
	ours := k.kind == "ListenerSet" && slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == ManagedBy && f.Subresource == "status"
	})
	out, err := asIs(o)
	out.Unknown = unknown
	if ours { // its status has nothing that tells whose it is
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: ManagedBy, Subresource: "status"}})
	}
	return out, err
}

// FromGatewayObject translates an object of Gateway API in whichever of its versions, as the API server's are; nil
// without an error is an object of a kind or group that is none. u is changed.
func FromGatewayObject(u *unstructured.Unstructured) (*model.Object, error) {
	for _, k := range gatewayKinds {
		if gvk := u.GroupVersionKind(); gvk.Kind == k.kind && gvk.Group == k.group {
			return k.from(u)
		}
	}
	return nil, nil
}

// olderBackendTLSPolicy brings a policy of version v1alpha2, which release 1.0 served, to the fields of all later ones.
func olderBackendTLSPolicy(version string, content map[string]any) {
	spec, _ := content["spec"].(map[string]any)
	if version != "v1alpha2" || spec == nil {
		return
	}
	if ref, ok := spec["targetRef"].(map[string]any); ok {
		meta, _ := content["metadata"].(map[string]any)
		if ns := ref["namespace"]; ns == "" || ns == meta["namespace"] {
			delete(ref, "namespace")
		}
		spec["targetRefs"] = []any{ref}
		delete(spec, "targetRef")
	}
	if tls, ok := spec["tls"].(map[string]any); ok {
		for was, is := range map[string]string{"caCertRefs": "caCertificateRefs", "wellKnownCACerts": "wellKnownCACertificates"} {
			if v, there := tls[was]; there {
				tls[is] = v
				delete(tls, was)
			}
		}
		spec["validation"] = tls
		delete(spec, "tls")
	}
}

// lister tries the version that was served last, and where it is not there (any more) the next.
func (k objectKind) lister(dyn dynamic.Interface) lister {
	var last atomic.Int32
	try := func(do func(dynamic.ResourceInterface) error) error {
		var err error
		for range k.versions {
			i := last.Load()
			err = do(dyn.Resource(schema.GroupVersionResource{Group: k.group, Version: k.versions[i], Resource: k.resource}))
			if !apierrors.IsNotFound(err) {
				return err
			}
			last.Store((i + 1) % int32(len(k.versions)))
		}
		return err
	}
	return lister{
		list: func(ctx context.Context, o metav1.ListOptions) (out runtime.Object, err error) {
			err = try(func(r dynamic.ResourceInterface) error {
				l, err := r.List(ctx, o)
				if err == nil {
					out = l
				}
				return err
			})
			return out, err
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (out watch.Interface, err error) {
			err = try(func(r dynamic.ResourceInterface) error {
				out, err = r.Watch(ctx, o)
				return err
			})
			return out, err
		},
	}
}

// selecting narrows a lister down.
func selecting(l lister, fields, labels string) lister {
	narrow := func(o metav1.ListOptions) metav1.ListOptions {
		o.FieldSelector, o.LabelSelector = fields, labels
		return o
	}
	return lister{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return l.list(ctx, narrow(o)) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return l.watch(ctx, narrow(o))
		},
	}
}

// usefulSecrets leaves out what no route can refer to, and what is much: Helm's releases and ServiceAccounts' tokens.
const usefulSecrets = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,type!=bootstrap.kubernetes.io/token"

// FromSecret translates a Secret. Its stringData, which manifests have, lies over its data, as the API server has it.
func FromSecret(s *corev1.Secret) (*model.Secret, error) {
	out := &model.Secret{Meta: fromMeta(&s.ObjectMeta), Type: intern(string(s.Type)), Data: s.Data}
	if len(s.StringData) > 0 {
		out.Data = make(map[string][]byte, len(s.Data)+len(s.StringData))
		maps.Copy(out.Data, s.Data)
		for k, v := range s.StringData {
			out.Data[k] = []byte(v)
		}
	}
	return out, nil
}

// FromConfigMap translates a ConfigMap.
func FromConfigMap(c *corev1.ConfigMap) (*model.ConfigMap, error) {
	return &model.ConfigMap{Meta: fromMeta(&c.ObjectMeta), Data: c.Data}, nil
}
