// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// Whatever kinds of policy others have brought into the cluster are read, and nothing else of theirs.
func TestForeignKinds(t *testing.T) {
	list := metav1.Verbs{"get", "list"}
	c := fake.NewClientset()
	c.Resources = []*metav1.APIResourceList{
		{GroupVersion: "cilium.io/v2", APIResources: []metav1.APIResource{
			{Name: "ciliumclusterwidenetworkpolicies", Kind: "CiliumClusterwideNetworkPolicy", Verbs: list},
			{Name: "ciliumclusterwidenetworkpolicies/status", Kind: "CiliumClusterwideNetworkPolicy", Verbs: list},
			{Name: "ciliumendpoints", Kind: "CiliumEndpoint", Verbs: list},
		}},
		{GroupVersion: "policy.networking.k8s.io/v1alpha1", APIResources: []metav1.APIResource{
			{Name: "adminnetworkpolicies", Kind: "AdminNetworkPolicy", Verbs: list},
			{Name: "baselineadminnetworkpolicies", Kind: "BaselineAdminNetworkPolicy", Verbs: list},
			{Name: "clusternetworkpolicies", Kind: "ClusterNetworkPolicy", Verbs: list},
		}},
		{GroupVersion: "security.istio.io/v1", APIResources: []metav1.APIResource{{Name: "authorizationpolicies", Kind: "AuthorizationPolicy", Verbs: list}}},
		{GroupVersion: "networking.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "networkpolicies", Kind: "NetworkPolicy", Verbs: list}}},
		{GroupVersion: "crd.antrea.io/v1beta1", APIResources: []metav1.APIResource{{Name: "clusternetworkpolicies", Kind: "ClusterNetworkPolicy", Verbs: metav1.Verbs{"get"}}}},
	}
	got := map[string]bool{}
	for _, k := range foreignKinds(c.Discovery()) {
		got[fmt.Sprint(k)] = true
	}
	for _, want := range []string{"{cilium.io ciliumclusterwidenetworkpolicies [v2]}", "{policy.networking.k8s.io adminnetworkpolicies [v1alpha1]}",
		"{policy.networking.k8s.io baselineadminnetworkpolicies [v1alpha1]}", "{security.istio.io authorizationpolicies [v1]}"} {
		if !got[want] {
			t.Errorf("%s is not among %v", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("%v", got)
	}
}
