// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// perSlice is how many endpoints the EndpointSlice controller puts into one slice.
const perSlice = 100

func ptr[T any](v T) *T { return &v }

// serviceIP is the cluster IP of the n-th Service, from 10.96.0.0/12.
func serviceIP(n int) netip.Addr {
	n += 10
	return netip.AddrFrom4([4]byte{10, 96 + byte(n>>16), byte(n >> 8), byte(n)})
}

// endpointIP is the address of an endpoint, from 10.128.0.0/9; gen tells those that came later apart.
func endpointIP(service, endpoint, gen int) netip.Addr {
	n := service*64 + endpoint + gen*7
	return netip.AddrFrom4([4]byte{10, 128 | byte(n>>16), byte(n >> 8), byte(n)})
}

// objects hands out Services, each with its EndpointSlices.
type objects func(each func(*corev1.Service, []*discoveryv1.EndpointSlice) error) error

// generate makes up Services with so many endpoints each.
func generate(services, endpoints int) objects {
	return func(each func(*corev1.Service, []*discoveryv1.EndpointSlice) error) error {
		for n := range services {
			if err := each(makeService(n), makeSlices(n, endpoints, 0)); err != nil {
				return err
			}
		}
		return nil
	}
}

func makeService(n int) *corev1.Service {
	ip := serviceIP(n).String()
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", n%100), Name: fmt.Sprintf("service-%d", n),
			UID: types.UID(fmt.Sprint(n)), CreationTimestamp: metav1.Unix(1_700_000_000, 0)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			IPFamilyPolicy: ptr(corev1.IPFamilyPolicySingleStack), Selector: map[string]string{"app": fmt.Sprint(n)},
			SessionAffinity: corev1.ServiceAffinityNone, InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyCluster),
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
}

// makeSlices are the EndpointSlices of the n-th Service with so many endpoints; the first endpoint is of another
// generation than the others, which is how one endpoint changes.
func makeSlices(n, endpoints, gen int) []*discoveryv1.EndpointSlice {
	s := makeService(n)
	var out []*discoveryv1.EndpointSlice
	for i := 0; i < endpoints; i++ {
		if i%perSlice == 0 {
			out = append(out, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name, i/perSlice),
					Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
				AddressType: discoveryv1.AddressTypeIPv4,
				Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(8080))}},
			})
		}
		g := 0
		if i == 0 {
			g = gen
		}
		last := out[len(out)-1]
		last.Endpoints = append(last.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{endpointIP(n, i, g).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
			NodeName:   ptr(fmt.Sprintf("node-%d", i%50)), Zone: ptr("zone-a"),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name, i)},
		})
	}
	return out
}
