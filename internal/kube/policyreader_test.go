// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/model"
)

func TestPolicyReader(t *testing.T) {
	answers := map[string]string{
		"/api/v1/namespaces": `{"kind":"NamespaceList","apiVersion":"v1","items":[{"metadata":{"name":"shop","labels":{"team":"a"}}}]}`,
		"/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies": `{"kind":"NetworkPolicyList","apiVersion":"networking.k8s.io/v1","items":[
			{"metadata":{"name":"deny","namespace":"shop"},"spec":{"podSelector":{}}}]}`,
		"/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies": `{"kind":"ClusterNetworkPolicyList","apiVersion":"policy.networking.k8s.io/v1alpha2","items":[
			{"kind":"ClusterNetworkPolicy","apiVersion":"policy.networking.k8s.io/v1alpha2","metadata":{"name":"guard"},"spec":{"tier":"Admin","priority":1,"subject":{"namespaces":{}}}}]}`,
	}
	asked := make(chan string, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		text, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(text))
	}))
	defer s.Close()
	r, err := NewPolicyReader(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.Read(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if d.Namespaces["shop"].Labels["team"] != "a" || d.NetworkPolicies[model.Name{Namespace: "shop", Name: "deny"}] == nil || d.ClusterNetworkPolicies["guard"] == nil {
		t.Errorf("read %+v", d)
	}
	for range 3 {
		if url := <-asked; strings.Contains(url, "resourceVersion") || strings.Contains(url, "/namespaces?") && !strings.Contains(url, "metadata.name%3Dshop") {
			t.Errorf("asked for %s, want the newest, of one namespace", url)
		}
	}

	// Without the CRD there are no ClusterNetworkPolicies; without the rest there is no answer.
	delete(answers, "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies")
	if d, err := r.Read(t.Context(), "shop"); err != nil || len(d.ClusterNetworkPolicies) != 0 || len(d.NetworkPolicies) != 1 {
		t.Errorf("without the CRD: %+v, %v", d, err)
	}
	delete(answers, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies")
	if _, err := r.Read(t.Context(), "shop"); err == nil {
		t.Error("without an answer there is no error")
	}
}
