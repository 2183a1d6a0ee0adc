// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/internal/model"
)

// Kinds is a set of kinds to watch.
type Kinds uint

// The kinds that a Watcher can follow, each the Delta's map of the same name.
const (
	Services Kinds = 1 << iota
	EndpointSlices
	Pods
	Nodes
	Namespaces
	NetworkPolicies
	AddressPools
	ClusterNetworkPolicies
	ServiceCIDRs
	Secrets
	ConfigMaps
	ClusterTrustBundles

	// Those whose objects come as they are, in the Delta's Objects.
	GatewayAPI     // GatewayClass, Gateway, ListenerSet, the routes, BackendTLSPolicy, ReferenceGrant
	GatewayConfigs // GatewayConfig and TrafficPolicy, of weft.dev
	GatewayParts   // what the controller made for Gateways: see OwnedBy
)

// Ingress's kinds, each the Delta's map of the same name.
const (
	Ingresses Kinds = 1 << (iota + 24)
	IngressClasses
)

// GatewayNames is the part of GatewayAPI that declares names for the world outside, for who needs no more: Gateway,
// ListenerSet, HTTPRoute, GRPCRoute and TLSRoute. It is not for use beside GatewayAPI.
const GatewayNames Kinds = 1 << 23

// What each process follows.
const (
	ForNode = Services | EndpointSlices | Pods | Nodes | Namespaces | NetworkPolicies | ClusterNetworkPolicies | ServiceCIDRs
)

// feedsFor makes one feed a chosen kind: the table of what weft watches.
func feedsFor(w *Watcher, c kubernetes.Interface, dyn dynamic.Interface, kinds Kinds, silence time.Duration, lean bool) []runner {
	fromService, fromSlice, fromPod := FromService, FromEndpointSlice, FromPod
	switch {
	case w.forNames:
		fromService, fromSlice, fromPod = namesService, namesEndpointSlice, namesPod
	case lean:
		fromService, fromSlice = leanService, leanEndpointSlice
	}
	var out []runner
	add := func(k Kinds, r runner) {
		if kinds&k != 0 {
			out = append(out, r)
		}
	}
	all := metav1.NamespaceAll
	add(Services, &feed[*corev1.Service, model.Service]{
		w: w, apiVersion: "v1", kindName: "Service", example: &corev1.Service{}, silence: silence,
		lw: listerOf(c.CoreV1().Services(all)), from: fromService,
		put: func(d *model.Delta, n model.Name, v *model.Service) { note(d, &d.Services, n, v) },
	})
	add(EndpointSlices, &feed[*discoveryv1.EndpointSlice, model.EndpointSlice]{
		w: w, apiVersion: "discovery.k8s.io/v1", kindName: "EndpointSlice", example: &discoveryv1.EndpointSlice{}, silence: silence,
		lw: listerOf(c.DiscoveryV1().EndpointSlices(all)), from: fromSlice,
		put: func(d *model.Delta, n model.Name, v *model.EndpointSlice) { note(d, &d.EndpointSlices, n, v) },
	})
	add(Pods, &feed[*corev1.Pod, model.Pod]{
		w: w, apiVersion: "v1", kindName: "Pod", example: &corev1.Pod{}, silence: silence,
		lw: listerOf(c.CoreV1().Pods(all)), from: fromPod,
		put: func(d *model.Delta, n model.Name, v *model.Pod) { note(d, &d.Pods, n, v) },
	})
	add(Nodes, &feed[*corev1.Node, model.Node]{
		w: w, apiVersion: "v1", kindName: "Node", example: &corev1.Node{}, silence: silence,
		lw: listerOf(c.CoreV1().Nodes()), from: FromNode,
		put: func(d *model.Delta, n model.Name, v *model.Node) { note(d, &d.Nodes, n.Name, v) },
	})
	add(Namespaces, &feed[*corev1.Namespace, model.Namespace]{
		w: w, apiVersion: "v1", kindName: "Namespace", example: &corev1.Namespace{}, silence: silence,
		lw: listerOf(c.CoreV1().Namespaces()), from: FromNamespace,
		put: func(d *model.Delta, n model.Name, v *model.Namespace) { note(d, &d.Namespaces, n.Name, v) },
	})
	add(NetworkPolicies, &feed[*networkingv1.NetworkPolicy, model.NetworkPolicy]{
		w: w, apiVersion: "networking.k8s.io/v1", kindName: "NetworkPolicy", example: &networkingv1.NetworkPolicy{}, silence: silence,
		lw: listerOf(c.NetworkingV1().NetworkPolicies(all)), from: FromNetworkPolicy,
		put: func(d *model.Delta, n model.Name, v *model.NetworkPolicy) { note(d, &d.NetworkPolicies, n, v) },
	})
	add(ServiceCIDRs, &feed[*networkingv1.ServiceCIDR, model.ServiceCIDR]{
		w: w, apiVersion: "networking.k8s.io/v1", kindName: "ServiceCIDR", example: &networkingv1.ServiceCIDR{}, silence: silence,
		lw: listerOf(c.NetworkingV1().ServiceCIDRs()), from: FromServiceCIDR, optional: true, // older than Kubernetes 1.33
		put: func(d *model.Delta, n model.Name, v *model.ServiceCIDR) { note(d, &d.ServiceCIDRs, n.Name, v) },
	})
	add(Ingresses, &feed[*networkingv1.Ingress, model.Ingress]{
		w: w, apiVersion: "networking.k8s.io/v1", kindName: "Ingress", example: &networkingv1.Ingress{}, silence: silence,
		lw: listerOf(c.NetworkingV1().Ingresses(all)), from: FromIngress,
		put: func(d *model.Delta, n model.Name, v *model.Ingress) { note(d, &d.Ingresses, n, v) },
	})
	add(IngressClasses, &feed[*networkingv1.IngressClass, model.IngressClass]{
		w: w, apiVersion: "networking.k8s.io/v1", kindName: "IngressClass", example: &networkingv1.IngressClass{}, silence: silence,
		lw: listerOf(c.NetworkingV1().IngressClasses()), from: FromIngressClass,
		put: func(d *model.Delta, n model.Name, v *model.IngressClass) { note(d, &d.IngressClasses, n.Name, v) },
	})
	add(Secrets, &feed[*corev1.Secret, model.Secret]{
		w: w, apiVersion: "v1", kindName: "Secret", example: &corev1.Secret{}, silence: silence,
		lw: selecting(listerOf(c.CoreV1().Secrets(all)), usefulSecrets, ""), from: FromSecret,
		put: func(d *model.Delta, n model.Name, v *model.Secret) { note(d, &d.Secrets, n, v) },
	})
	add(ConfigMaps, &feed[*corev1.ConfigMap, model.ConfigMap]{
		w: w, apiVersion: "v1", kindName: "ConfigMap", example: &corev1.ConfigMap{}, silence: silence,
		lw: listerOf(c.CoreV1().ConfigMaps(all)), from: FromConfigMap,
		put: func(d *model.Delta, n model.Name, v *model.ConfigMap) { note(d, &d.ConfigMaps, n, v) },
	})
	for kind, feeds := range objectFeeds(w, c, dyn, silence) {
		for _, f := range feeds {
			add(kind, f)
		}
	}
	add(AddressPools, addressPoolFeed(w, dyn, silence))
	add(ClusterTrustBundles, clusterTrustBundleFeed(w, dyn, silence))
	add(ClusterNetworkPolicies, clusterNetworkPolicyFeed(w, dyn, silence))
	return out
}

// leanService is FromService for Options.Lean.
func leanService(in *corev1.Service) (*model.Service, error) {
	slim := *in
	slim.Spec.Selector = nil
	slim.Status.Conditions = nil
	s, err := FromService(&slim)
	for i := range s.Ports {
		s.Ports[i].TargetPort = ""
	}
	return s, err
}

// leanEndpointSlice is FromEndpointSlice for Options.Lean.
func leanEndpointSlice(in *discoveryv1.EndpointSlice) (*model.EndpointSlice, error) {
	s, err := FromEndpointSlice(in)
	for i := range s.Endpoints {
		s.Endpoints[i].Pod = ""
	}
	return s, err
}

// set writes into a map that may not be there yet.
func set[K comparable, T any](m *map[K]*T, k K, v *T) {
	if *m == nil {
		*m = make(map[K]*T)
	}
	(*m)[k] = v
}

// note writes into one of a Delta's maps. nil is an object that is gone: a Delta that is the whole has no word of it.
func note[K comparable, T any](d *model.Delta, m *map[K]*T, k K, v *T) {
	if v == nil && d.Whole {
		delete(*m, k)
		return
	}
	set(m, k, v)
}

// listerOf takes the list and watch of a typed client.
func listerOf[L runtime.Object](c interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}) lister {
	return lister{
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch: c.Watch,
	}
}
