// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
)

// What a GatewayConfig says of tunnels becomes an argument of the pods, and nothing of it where it says nothing.
func TestTunnelIdleOfAGateway(t *testing.T) {
	gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "weft"}}
	for _, c := range []struct {
		class, gateway *int64
		want           string
	}{{nil, nil, ""}, {new(int64(90)), nil, `"--tunnel-idle=90s"`}, {new(int64(90)), new(int64(7200)), `"--tunnel-idle=7200s"`}} {
		conf := mergedConfig(&v1alpha1.GatewayConfig{Spec: v1alpha1.GatewayConfigSpec{TunnelIdleSeconds: c.class}},
			&v1alpha1.GatewayConfig{Spec: v1alpha1.GatewayConfigSpec{TunnelIdleSeconds: c.gateway}})
		for _, o := range partsOf(gw, &gatewayapi.Infrastructure{Accepted: true}, conf, PodOptions{}, nil) {
			if text := string(encode(o.Object)); o.GetKind() == "Deployment" && (!strings.Contains(text, c.want) || c.want == "" && strings.Contains(text, "tunnel-idle")) {
				t.Errorf("want %q in %s", c.want, text)
			}
		}
	}
}

// What is made for a Gateway has its name as a label, whole as long as it fits. A Deployment that is there with the selector
// of an earlier release keeps it, with pods and Service to match.
func TestNameLabelOfAGateway(t *testing.T) {
	const dotted = "web.example.com"
	fits, long := strings.Repeat("a.", 31)+"a", strings.Repeat("a.", 31)+"ab"
	for _, c := range []struct {
		name, has       string // the Gateway's, and in the selector of the Deployment that is there; "" is none
		label, selector string
	}{
		{"web", "", "web", "web"},
		{"web", "web", "web", "web"},
		{dotted, "", dotted, dotted},
		{dotted, dotted, dotted, dotted},
		{dotted, shortName(dotted), dotted, shortName(dotted)},
		{fits, "", fits, fits},
		{long, "", shortName(long), shortName(long)},
	} {
		gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: c.name, UID: "uid"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "of.weft"}}
		in := &gatewayapi.Infrastructure{Accepted: true, Ports: []gatewayapi.Port{{Port: 80, BindPort: 61080, Name: "tcp-80"}}}
		var has *appsv1.Deployment
		if c.has != "" {
			has = &appsv1.Deployment{ObjectMeta: partMeta(gw, in), Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{gatewayv1.GatewayNameLabelKey: c.has}}}}
		}
		at := func(o *unstructured.Unstructured, path ...string) string {
			labels, _, _ := unstructured.NestedStringMap(o.Object, path...)
			return labels[gatewayv1.GatewayNameLabelKey]
		}
		for _, o := range partsOf(gw, in, v1alpha1.GatewayConfigSpec{}, PodOptions{}, has) {
			if got := at(o, "metadata", "labels"); got != c.label || o.GetLabels()[gatewayv1.GatewayClassNameLabelKey] != "of.weft" {
				t.Errorf("%s: %s has the labels %v", c.name, o.GetKind(), o.GetLabels())
			}
			var got []string
			switch o.GetKind() {
			case "Deployment":
				got = []string{at(o, "spec", "selector", "matchLabels"), at(o, "spec", "template", "metadata", "labels")}
			case "Service":
				got = []string{at(o, "spec", "selector")}
			case "PodDisruptionBudget":
				got = []string{at(o, "spec", "selector", "matchLabels")}
			}
			for _, g := range got {
				if g != c.selector {
					t.Errorf("%s, where the Deployment has %q: the pods of the %s are %s, want %s", c.name, c.has, o.GetKind(), g, c.selector)
				}
			}
		}
	}
}

// A Gateway that asks for nothing but ClusterIPs has no load balancer; one that asks for both has both; its status tells
// them apart.
func TestClusterAddressesOfAGateway(t *testing.T) {
	ports := []gatewayapi.Port{{Port: 80, BindPort: 61080, Name: "tcp-80"}}
	only := &gatewayapi.Infrastructure{Ports: ports, Cluster: true, ClusterOnly: true}
	value := &gatewayapi.Infrastructure{Ports: ports, Cluster: true, ClusterOnly: true, ClusterAddresses: []string{"10.96.0.9"}}
	both := &gatewayapi.Infrastructure{Ports: ports, Cluster: true, Addresses: []string{"192.0.2.1"}}
	for _, c := range []struct {
		name string
		in   *gatewayapi.Infrastructure
		conf v1alpha1.GatewayService
		want corev1.ServiceSpec // what was asked of the API server
		has  []string           // the ClusterIPs that it gave
		told string
	}{
		{"any", only, v1alpha1.GatewayService{}, corev1.ServiceSpec{Type: "ClusterIP"}, []string{"10.96.0.7", "fd00::7"}, "[10.96.0.7 cluster fd00::7 cluster]"},
		{"a given one", value, v1alpha1.GatewayService{}, corev1.ServiceSpec{Type: "ClusterIP", ClusterIP: "10.96.0.9"}, []string{"10.96.0.9", "fd00::7"}, "[10.96.0.9 cluster]"},
		{"another than the given one", value, v1alpha1.GatewayService{}, corev1.ServiceSpec{Type: "ClusterIP", ClusterIP: "10.96.0.9"}, []string{"10.96.0.7"},
			"[] AddressNotUsable"},
		{"both", both, v1alpha1.GatewayService{}, corev1.ServiceSpec{Type: "LoadBalancer"}, []string{"10.96.0.7"}, "[192.0.2.1 10.96.0.7 cluster]"},
		{"of a Service that has no other", &gatewayapi.Infrastructure{Ports: ports, Cluster: true}, v1alpha1.GatewayService{Type: "ClusterIP"}, corev1.ServiceSpec{Type: "ClusterIP"}, []string{"10.96.0.7"},
			"[10.96.0.7 cluster]"},
	} {
		svc := serviceOf(metav1.ObjectMeta{}, nil, c.in, &c.conf)
		if svc.Spec.Type != c.want.Type || svc.Spec.ClusterIP != c.want.ClusterIP {
			t.Errorf("%s: a Service of type %s, %s", c.name, svc.Spec.Type, svc.Spec.ClusterIP)
		}
		svc.Spec.ClusterIPs = c.has
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		}
		addrs, problem := addressesOf(svc, c.in, nil)
		var told []string
		for _, a := range addrs {
			told = append(told, strings.TrimSpace(a.IP.String()+map[bool]string{true: " cluster"}[a.Cluster]))
		}
		got := fmt.Sprint(told)
		if problem != nil {
			got += " " + string(problem.Reason)
		}
		if got != c.told {
			t.Errorf("%s: %s, want %s", c.name, got, c.told)
		}
	}
	st := &gatewayv1.GatewayStatus{Addresses: []gatewayv1.GatewayStatusAddress{{Value: "192.0.2.1"}, {Value: "10.96.0.7"}}}
	addrs := []gatewayapi.Address{{IP: netip.MustParseAddr("192.0.2.1")}, {IP: netip.MustParseAddr("10.96.0.7"), Cluster: true}}
	if got := string(withRoutability([]byte(`{"metadata":{"uid":"u"},"status":{"listeners":[]}}`), st, addrs)); got !=
		`{"metadata":{"uid":"u"},"status":{"addresses":[{"value":"192.0.2.1"},{"routability":"Cluster","value":"10.96.0.7"}],"listeners":[]}}` {
		t.Errorf("the status: %s", got)
	}
}
