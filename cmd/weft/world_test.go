// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestClusterDomain(t *testing.T) {
	weft := appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/component": "dns"}},
		Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Args: []string{"dns", "--cluster-domain=k8s.example"}}}}}}}
	core := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"},
		Data: map[string]string{"Corefile": ".:53 {\n    kubernetes cluster.example in-addr.arpa {\n    }\n}\n"}}
	if got := clusterDomain(t.Context(), fake.NewClientset(core), []appsv1.DaemonSet{{}, weft}); got != "k8s.example" {
		t.Errorf("weft's: %q", got)
	}
	if got := clusterDomain(t.Context(), fake.NewClientset(core), nil); got != "cluster.example" {
		t.Errorf("CoreDNS's: %q", got)
	}
	if got := clusterDomain(t.Context(), fake.NewClientset(), nil); got != "" {
		t.Errorf("nobody's: %q", got)
	}
}
