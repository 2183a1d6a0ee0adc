// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// changes reads manifests as changes: every object is new.
func changes(t testing.TB, file string, text []byte) *ingress.Changes {
	t.Helper()
	ms, err := kube.ParseManifests(file, text)
	if err != nil {
		t.Fatal(err)
	}
	c := &ingress.Changes{
		Ingresses: map[model.Name]*model.Ingress{}, Classes: map[string]*model.IngressClass{}, Services: map[model.Name]*model.Service{},
		EndpointSlices: map[model.Name]*model.EndpointSlice{}, Secrets: map[model.Name]*model.Secret{}, ConfigMaps: map[model.Name]*model.ConfigMap{},
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range ms {
		switch o := m.Object.(type) {
		case *networkingv1.Ingress:
			v, err := kube.FromIngress(o)
			must(err)
			c.Ingresses[v.Name] = v
		case *networkingv1.IngressClass:
			v, err := kube.FromIngressClass(o)
			must(err)
			c.Classes[v.Name.Name] = v
		case *corev1.Service:
			v, err := kube.FromService(o)
			must(err)
			c.Services[v.Name] = v
		case *discoveryv1.EndpointSlice:
			v, err := kube.FromEndpointSlice(o)
			must(err)
			c.EndpointSlices[v.Name] = v
		case *corev1.Secret:
			v := &model.Secret{Meta: model.Meta{Name: model.Name{Namespace: o.Namespace, Name: o.Name}}, Type: string(o.Type), Data: map[string][]byte{}}
			for k, d := range o.Data {
				v.Data[k] = d
			}
			for k, d := range o.StringData {
				v.Data[k] = []byte(d)
			}
			c.Secrets[v.Name] = v
		case *corev1.ConfigMap:
			n := model.Name{Namespace: o.Namespace, Name: o.Name}
			c.ConfigMaps[n] = &model.ConfigMap{Meta: model.Meta{Name: n}, Data: o.Data}
		default:
			t.Fatalf("%s:%d: a %T has no place here", m.File, m.Line, m.Object)
		}
	}
	return c
}

// base is what most tests start from: a class, and Services with an endpoint each.
const base = `
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: weft}
spec: {controller: weft.dev/ingress}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: other}
spec: {controller: example.com/other}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.2.5]}]
---
apiVersion: v1
kind: Service
metadata: {name: checkout, namespace: shop}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: checkout-1, namespace: shop, labels: {kubernetes.io/service-name: checkout}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.6]}]
---
apiVersion: v1
kind: Service
metadata: {name: errors, namespace: shop}
spec: {clusterIP: 10.96.0.12, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: errors-1, namespace: shop, labels: {kubernetes.io/service-name: errors}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.244.1.7]}]
---
`

// both controllers' classes are served in most tests.
var both = ingress.Options{Controllers: []string{ingress.Controller, ingress.NginxController}}
