// SPDX-License-Identifier: Apache-2.0

// Package fronts compiles the Gateways, routes and Ingresses of manifests, or of a cluster read as manifests, into the
// tables that the controller would make of them, for who explains them and finds their mistakes. It decides nothing
// itself. It imports gatewayapi, trafficpolicy, ingress, explain, offline, kube, model, route and the Kubernetes API types.
package fronts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
	"github.com/weft-net/weft/internal/route"
	"github.com/weft-net/weft/internal/trafficpolicy"
)

// Of compiles the Gateways, routes and Ingresses among a cluster's manifests, as the controller does. Unless whole is
// set (then they are all there is) classes and certificates that are not among them are taken to be elsewhere, and
// weft's. The error joins ManifestErrors of objects that can't be read; the fronts are of the others.
func Of(c *offline.Cluster, whole bool) ([]explain.Front, error) {
	r := &routing{c: c, whole: whole, policies: map[model.Name]*v1alpha1.TrafficPolicy{}, change: &gatewayapi.Change{
		GatewayClasses: map[string]*gwv1.GatewayClass{}, Gateways: map[model.Name]*gwv1.Gateway{},
		ListenerSets: map[model.Name]*gwv1.ListenerSet{}, HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{},
		GRPCRoutes: map[model.Name]*gwv1.GRPCRoute{}, TLSRoutes: map[model.Name]*gwv1.TLSRoute{},
		TCPRoutes: map[model.Name]*gwv1.TCPRoute{}, UDPRoutes: map[model.Name]*gwv1.UDPRoute{},
		BackendTLSPolicies: map[model.Name]*gwv1.BackendTLSPolicy{}, ReferenceGrants: map[model.Name]*gwv1.ReferenceGrant{},
		Secrets: map[model.Name]*model.Secret{}, ConfigMaps: map[model.Name]*model.ConfigMap{}, ClusterTrustBundles: map[string]*model.ClusterTrustBundle{},
		Parameters: map[model.Name]*gatewayapi.Parameters{},
		Services:   c.Delta.Services, EndpointSlices: c.Delta.EndpointSlices, Namespaces: c.Delta.Namespaces,
	}, ingresses: &ingress.Changes{
		Ingresses: map[model.Name]*model.Ingress{}, Classes: map[string]*model.IngressClass{},
		Services: c.Delta.Services, EndpointSlices: c.Delta.EndpointSlices,
	}}
	var errs []error
	for _, m := range c.Manifests {
		if err := r.take(m); err != nil {
			errs = append(errs, &kube.ManifestError{Manifest: m, Kind: m.Object.GetObjectKind().GroupVersionKind().Kind, Name: nameOf(m), Err: err})
		}
	}
	if !whole {
		r.assume()
	}
	r.ingresses.Secrets, r.ingresses.ConfigMaps = r.change.Secrets, r.change.ConfigMaps
	out := append(r.gateways(), r.ingressFront()...)
	for i := range out {
		if p := out[i].Pod; !whole && p.Node == "" {
			p.Node = offline.Node
		}
	}
	return out, errors.Join(errs...)
}

// routing is the objects that routes are made of.
type routing struct {
	c         *offline.Cluster
	whole     bool
	change    *gatewayapi.Change
	policies  map[model.Name]*v1alpha1.TrafficPolicy
	ingresses *ingress.Changes
}

// take adds one object.
func (r *routing) take(m kube.Manifest) error {
	n := nameOf(m)
	switch o := m.Object.(type) {
	case *networkingv1.Ingress:
		return takeModel(r.ingresses.Ingresses, n, o, kube.FromIngress)
	case *networkingv1.IngressClass:
		return takeModel(r.ingresses.Classes, n.Name, o, kube.FromIngressClass)
	case *corev1.Secret:
		return takeModel(r.change.Secrets, n, o, kube.FromSecret)
	case *corev1.ConfigMap:
		return takeModel(r.change.ConfigMaps, n, o, kube.FromConfigMap)
	}
	if kube.IsClusterTrustBundle(m.Object) {
		b, err := kube.FromClusterTrustBundle(m.Object)
		r.change.ClusterTrustBundles[n.Name] = b
		return err
	}
	gvk := m.Object.GetObjectKind().GroupVersionKind()
	if gvk.Group == v1alpha1.GroupVersion.Group {
		switch gvk.Kind {
		case "GatewayConfig": // what it says of listeners does not matter here
			r.change.Parameters[n] = &gatewayapi.Parameters{}
		case "TrafficPolicy":
			r.policies[n] = &v1alpha1.TrafficPolicy{}
			return readTyped(r.policies[n], m.Object)
		}
	}
	if gvk.Group != gatewayapi.GroupName {
		return nil
	}
	u, ok := m.Object.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	o, err := kube.FromGatewayObject(u.DeepCopy())
	if err != nil || o == nil {
		return err
	}
	o.Value.(metav1.Object).SetNamespace(n.Namespace)
	r.change.SetObject(gvk.Kind, n, o)
	if r.whole {
		return nil // the API server has taken it: what the controller makes of it is told as its status
	}
	var bad []error
	for _, field := range slices.Sorted(maps.Keys(o.Unknown)) {
		if gatewayapi.ReadsLater(gvk.Kind, field) {
			continue
		}
		bad = append(bad, fmt.Errorf("%s: %v is not what the Gateway API has there", field, o.Unknown[field]))
	}
	return errors.Join(bad...)
}

func nameOf(m kube.Manifest) model.Name {
	acc, err := meta.Accessor(m.Object)
	if err != nil {
		return model.Name{}
	}
	return model.Name{Namespace: acc.GetNamespace(), Name: acc.GetName()}
}

func takeModel[K comparable, O metav1.Object, T any](to map[K]*T, k K, o O, from func(O) (*T, error)) error {
	v, err := from(o)
	if v != nil {
		to[k] = v
	}
	return err
}

// readTyped reads an object of any of its versions, which have the same fields, into one of its Go type.
func readTyped(v any, o runtime.Object) error {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return fmt.Errorf("%T is not read as it is written", o)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, v); err != nil {
		return err
	}
	return nil
}

// assume adds what manifests leave to the cluster: classes, and certificates.
func (r *routing) assume() {
	for _, g := range r.change.Gateways {
		class := string(g.Spec.GatewayClassName)
		if class != "" && r.change.GatewayClasses[class] == nil {
			r.change.GatewayClasses[class] = &gwv1.GatewayClass{
				ObjectMeta: metav1.ObjectMeta{Name: class}, Spec: gwv1.GatewayClassSpec{ControllerName: gatewayapi.ControllerName},
			}
		}
		for _, l := range g.Spec.Listeners {
			r.assumeCertificates(g.Namespace, l.TLS, l.Hostname)
		}
	}
	for _, s := range r.change.ListenerSets {
		for _, l := range s.Spec.Listeners {
			r.assumeCertificates(s.Namespace, l.TLS, l.Hostname)
		}
	}
	for _, i := range r.ingresses.Ingresses {
		if i.Class != "" && r.ingresses.Classes[i.Class] == nil {
			r.ingresses.Classes[i.Class] = &model.IngressClass{Meta: model.Meta{Name: model.Name{Name: i.Class}}, Controller: ingress.Controller}
		}
		for _, t := range i.TLS {
			if t.Secret == "" {
				continue
			}
			hosts := slices.Clone(t.Hosts)
			for _, rule := range i.Rules {
				hosts = append(hosts, rule.Host)
			}
			r.assumeSecret(model.Name{Namespace: i.Namespace, Name: t.Secret}, hosts...)
		}
	}
}

func (r *routing) assumeCertificates(namespace string, t *gwv1.ListenerTLSConfig, host *gwv1.Hostname) {
	if t == nil {
		return
	}
	var hosts []string
	if host != nil {
		hosts = append(hosts, string(*host))
	}
	for _, ref := range t.CertificateRefs {
		if ref.Kind == nil || *ref.Kind == "Secret" {
			n := model.Name{Namespace: namespace, Name: string(ref.Name)}
			if ref.Namespace != nil {
				n.Namespace = string(*ref.Namespace)
			}
			r.assumeSecret(n, hosts...)
		}
	}
}

func (r *routing) assumeSecret(n model.Name, hosts ...string) {
	if r.change.Secrets[n] != nil {
		return
	}
	chain, key, err := assumedCertificate(hosts...)
	if err != nil {
		return // then the listener has none, and says so
	}
	r.change.Secrets[n] = &model.Secret{Meta: model.Meta{Name: n}, Type: string(corev1.SecretTypeTLS),
		Data: map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key}}
}

// assumedCertificate stands for a certificate of hosts that is not among the manifests.
func assumedCertificate(hosts ...string) (chain, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "assumed"}, DNSNames: slices.DeleteFunc(hosts, func(h string) bool { return h == "" }), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		return nil, nil, err
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb}), nil
}

// gateways compiles Gateways and their routes.
func (r *routing) gateways() []explain.Front {
	if len(r.change.Gateways) == 0 {
		return nil
	}
	trafficpolicy.New().Apply(r.change, r.policies)
	s := gatewayapi.New(gatewayapi.Options{})
	out := s.Apply(r.change)
	var fronts []explain.Front
	for _, n := range slices.SortedFunc(maps.Keys(r.change.Gateways), model.Name.Compare) {
		tables := s.Tables(n)
		if tables == nil {
			continue // of another controller's class
		}
		labels := map[string]string{gwv1.GatewayNameLabelKey: n.Name}
		f := explain.Front{Object: "Gateway " + n.String(), Tables: tables, Service: r.serviceWith(n.Namespace, labels)}
		f.Pod = explain.FrontPod(r.c.Delta, f.Service, n, labels)
		f.Problems = append(r.gatewayProblems(n, out), r.routeProblems(n, out)...)
		fronts = append(fronts, f)
	}
	return fronts
}

// serviceWith finds a Service by labels; nil if there is none.
func (r *routing) serviceWith(namespace string, labels map[string]string) *model.Service {
	sel := model.MatchLabels(labels)
	for _, n := range slices.SortedFunc(maps.Keys(r.c.Delta.Services), model.Name.Compare) {
		if s := r.c.Delta.Services[n]; (namespace == "" || n.Namespace == namespace) && sel.Matches(s.Labels) {
			return s
		}
	}
	return nil
}

// gatewayProblems are a Gateway's conditions that say that it, or a listener, is not as it should be.
func (r *routing) gatewayProblems(n model.Name, out *gatewayapi.Output) []explain.RouteProblem {
	var list []explain.RouteProblem
	st := out.GatewayStatuses[n]
	if st == nil {
		return nil
	}
	object := "Gateway " + n.String()
	for _, text := range bad(st.Conditions, "Accepted", "ResolvedRefs") {
		list = append(list, explain.RouteProblem{Object: object, Text: text})
	}
	for _, l := range st.Listeners {
		for _, text := range bad(l.Conditions, "Accepted", "ResolvedRefs") {
			list = append(list, explain.RouteProblem{Object: object, Hosts: r.listenerHost(n, l.Name), Text: fmt.Sprintf("listener %s: %s", l.Name, text)})
		}
		for _, c := range l.Conditions {
			if c.Type == string(gwv1.ListenerConditionConflicted) && c.Status == metav1.ConditionTrue {
				list = append(list, explain.RouteProblem{Object: object, Hosts: r.listenerHost(n, l.Name), Text: fmt.Sprintf("listener %s: %s: %s", l.Name, c.Reason, c.Message)})
			}
		}
	}
	return list
}

func (r *routing) listenerHost(n model.Name, name gwv1.SectionName) []string {
	for _, l := range r.change.Gateways[n].Spec.Listeners {
		if l.Name == name && l.Hostname != nil {
			return []string{string(*l.Hostname)}
		}
	}
	return nil
}

// routeProblems are what routes say of their attachment to a Gateway.
func (r *routing) routeProblems(gateway model.Name, out *gatewayapi.Output) []explain.RouteProblem {
	var list []explain.RouteProblem
	for id, parents := range out.RouteStatuses {
		for _, p := range parents {
			ns := id.Namespace
			if p.ParentRef.Namespace != nil {
				ns = string(*p.ParentRef.Namespace)
			}
			if (model.Name{Namespace: ns, Name: string(p.ParentRef.Name)}) != gateway {
				continue
			}
			for _, text := range bad(p.Conditions, "Accepted", "ResolvedRefs") {
				list = append(list, explain.RouteProblem{Object: string(id.Kind) + " " + id.Name.String(), Hosts: r.hostsOf(id), Text: text})
			}
		}
	}
	slices.SortFunc(list, func(a, b explain.RouteProblem) int {
		return strings.Compare(a.Object+" "+a.Text, b.Object+" "+b.Text)
	})
	return list
}

func (r *routing) hostsOf(id gatewayapi.RouteID) []string {
	var names []gwv1.Hostname
	switch id.Kind {
	case "HTTPRoute":
		names = r.change.HTTPRoutes[id.Name].Spec.Hostnames
	case "GRPCRoute":
		names = r.change.GRPCRoutes[id.Name].Spec.Hostnames
	case "TLSRoute":
		names = r.change.TLSRoutes[id.Name].Spec.Hostnames
	}
	var out []string
	for _, h := range names {
		out = append(out, string(h))
	}
	return out
}

// bad are the conditions of some types that are false, in words.
func bad(conditions []metav1.Condition, types ...string) []string {
	var out []string
	for _, c := range conditions {
		if c.Status == metav1.ConditionFalse && slices.Contains(types, c.Type) {
			out = append(out, fmt.Sprintf("%s: %s", c.Reason, c.Message))
		}
	}
	return out
}

// ingressFront compiles Ingresses.
func (r *routing) ingressFront() []explain.Front {
	if len(r.ingresses.Ingresses) == 0 {
		return nil
	}
	chain, key, err := assumedCertificate()
	if err != nil {
		return nil
	}
	opts := ingress.Options{
		Controllers: []string{ingress.Controller, ingress.NginxController}, WithoutClass: !r.whole, Fallback: &route.Certificate{Key: "assumed", Chain: string(chain), PrivateKey: string(key)},
	}
	s := ingress.New(opts)
	s.Apply(r.ingresses)
	labels := map[string]string{"app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "ingress"}
	f := explain.Front{Object: "the gateway of Ingresses", Owner: "Ingress", Tables: s.Complete(), Service: r.serviceWith("", labels)}
	f.Pod = explain.FrontPod(r.c.Delta, f.Service, model.Name{Namespace: "kube-system", Name: "weft-ingress"}, labels)
	if r.whole && f.Service == nil { // the chart makes both or neither
		f.Absent = "weft has none in this cluster: the Helm chart's ingress.enabled brings it"
	}
	for _, n := range slices.SortedFunc(maps.Keys(r.ingresses.Ingresses), model.Name.Compare) {
		var hosts []string
		for _, rule := range r.ingresses.Ingresses[n].Rules {
			hosts = append(hosts, rule.Host)
		}
		if text := r.foreignClass(r.ingresses.Ingresses[n], opts.Controllers); text != "" {
			f.Problems = append(f.Problems, explain.RouteProblem{Object: "Ingress " + n.String(), Hosts: hosts, Text: text})
		}
		for _, p := range s.Problems(n) {
			f.Problems = append(f.Problems, explain.RouteProblem{Object: "Ingress " + n.String(), Hosts: hosts, Text: p.Message()})
		}
	}
	return []explain.Front{f}
}

// foreignClass says why an Ingress is not weft's; "" if it is, or if that depends on the cluster's default class.
func (r *routing) foreignClass(i *model.Ingress, ours []string) string {
	if i.Class == "" {
		return ""
	}
	switch c := r.ingresses.Classes[i.Class]; {
	case c == nil:
		return fmt.Sprintf("spec.ingressClassName: there is no IngressClass %s", i.Class)
	case !slices.Contains(ours, c.Controller):
		return fmt.Sprintf("spec.ingressClassName: IngressClass %s is of controller %s", i.Class, c.Controller)
	}
	return ""
}
