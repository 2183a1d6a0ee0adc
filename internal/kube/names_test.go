// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/internal/model"
)

// What names are made of is all there; what they are not made of is not.
func TestForNames(t *testing.T) {
	text := func(s string) *string { return &s }
	meta := func() metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u-1", Labels: map[string]string{"app": "web", discoveryv1.LabelServiceName: "web"},
			CreationTimestamp: metav1.Unix(100, 0), Annotations: map[string]string{"external-dns.alpha.kubernetes.io/hostname": "www.example.com"}}
	}
	svc := func() *corev1.Service {
		return &corev1.Service{ObjectMeta: meta(), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	}
	slice := func(triggered time.Time) *discoveryv1.EndpointSlice {
		m := meta()
		m.Annotations[triggerTime] = triggered.Format(time.RFC3339Nano)
		return &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.1.0.1"}, Hostname: text("web-0"), NodeName: text("node-1"), Zone: text("z"),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "web-0"}, Hints: &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: "node-1"}}},
		}}}
	}
	pod := func() *corev1.Pod {
		return &corev1.Pod{ObjectMeta: meta(), Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}}}}
	}
	gotService, err := namesService(svc())
	wantService, _ := FromService(svc())
	wantService.UID, wantService.Labels, wantService.Selector = "", nil, someSelector
	if diff := cmp.Diff(wantService, gotService, equal); err != nil || diff != "" {
		t.Errorf("Service: %v (-want +got):\n%s", err, diff)
	}
	for _, age := range []time.Duration{time.Second, time.Hour} {
		at := time.Now().Add(-age)
		got, err := namesEndpointSlice(slice(at))
		want, _ := FromEndpointSlice(slice(at))
		want.UID = ""
		want.Endpoints[0].Zone, want.Endpoints[0].HintNodes = "", nil
		if age > triggerKept {
			delete(want.Annotations, triggerTime)
		}
		if diff := cmp.Diff(want, got, equal); err != nil || diff != "" || got.Service != "web" {
			t.Errorf("EndpointSlice, %s old: %v (-want +got):\n%s", age, err, diff)
		}
	}
	got, err := namesPod(pod())
	if err != nil || got.UID != "" || got.Labels != nil || len(got.IPs) != 1 || got.Name != (model.Name{Namespace: "shop", Name: "web"}) {
		t.Errorf("Pod: %+v, %v", got, err)
	}
}
