// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// TestAgentMetrics: each running agent is asked through the API server; one that does not answer is named, and the
// others count.
func TestAgentMetrics(t *testing.T) {
	const pods = `{"kind":"PodList","apiVersion":"v1","items":[` +
		`{"metadata":{"name":"w1","namespace":"sys"},"spec":{"nodeName":"n1","containers":[{"name":"c","ports":[{"name":"x","containerPort":1},{"name":"metrics","containerPort":9640}]}]},"status":{"phase":"Running"}},` +
		`{"metadata":{"name":"w2","namespace":"sys"},"spec":{"nodeName":"n2","containers":[{"name":"c"}]},"status":{"phase":"Running"}},` +
		`{"metadata":{"name":"w3","namespace":"sys"},"spec":{"nodeName":"n3","containers":[{"name":"c"}]},"status":{"phase":"Pending"}}]}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/pods":
			if r.URL.Query().Get("labelSelector") != agentSelector {
				t.Errorf("selector %q", r.URL.Query().Get("labelSelector"))
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(pods))
		case "/api/v1/namespaces/sys/pods/http:w1:9640/proxy/metrics":
			_, _ = w.Write([]byte("weft_x 1\n"))
		default:
			http.Error(w, "no: "+r.URL.Path, http.StatusBadGateway)
		}
	}))
	defer s.Close()
	got, err := AgentMetrics(t.Context(), &rest.Config{Host: s.URL, QPS: -1})
	if !reflect.DeepEqual(got, map[string]string{"n1": "weft_x 1\n"}) {
		t.Errorf("%q", got)
	}
	if err == nil || !strings.Contains(err.Error(), "agent of node n2") || strings.Contains(err.Error(), "n3") {
		t.Errorf("error: %v", err)
	}
}
