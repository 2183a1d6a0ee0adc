// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"

	"github.com/weft-net/weft/internal/flowlog"
)

// emptyCluster is an API server that has nothing, and a kubeconfig for it.
func emptyCluster(t *testing.T) (kubeconfig string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	}))
	t.Cleanup(s.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`, s.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

func TestNamespaceThatIsNotThere(t *testing.T) {
	kubeconfig := emptyCluster(t)
	for _, command := range []string{"lint", "matrix", "status services"} {
		out := run(t, append(strings.Fields(command), "--kubeconfig", kubeconfig, "-n", "shoop")...)
		if !strings.Contains(out, `error: namespace "shoop" not found`) {
			t.Errorf("weft %s: %s", command, out)
		}
	}
}

func TestNothingToSay(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.yaml")
	if err := os.WriteFile(good, []byte("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	for line, want := range map[string]string{
		"lint -f " + empty:                           "error: no object in " + empty + ": -f names manifests",
		"lint -f " + good:                            "No findings\n",
		"lint -o json -f " + good:                    "[]\n",
		"status services -f " + good:                 "No resources found in default namespace.\n",
		"status services -A -f " + good:              "No resources found\n",
		"status services -A -o json -f " + good:      "[]\n",
		"flows --protocol tpc":                       "error: --protocol=tpc: want tcp, udp, sctp, icmp, icmpv6",
		"flows --local --socket /nowhere -A --pod x": "error: no agent answers on /nowhere",
	} {
		if got := run(t, strings.Fields(line)...); !strings.HasPrefix(got, want) {
			t.Errorf("weft %s: %q, want %q", line, got, want)
		}
	}
}

// TestFlowsOfWhatIsNotThere: a name that no object has is told, for whoever mistyped it would take silence for an answer.
func TestFlowsOfWhatIsNotThere(t *testing.T) {
	object := func(apiVersion, kind, namespace, name string) runtime.Object {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion(apiVersion)
		o.SetKind(kind)
		o.SetNamespace(namespace)
		o.SetName(name)
		return o
	}
	lists := map[schema.GroupVersionResource]string{}
	for _, o := range flowObjects {
		for _, r := range o.resources {
			lists[r] = "List"
		}
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists,
		object("v1", "Pod", "shop", "web"), object("networking.k8s.io/v1", "NetworkPolicy", "shop", "db"))
	for _, c := range []struct {
		filter flowlog.Filter
		want   []string
	}{
		{flowlog.Filter{Namespace: "shop"}, nil},
		{flowlog.Filter{Namespace: "shop", Pod: "web", Policy: "shop/db"}, nil},
		{flowlog.Filter{Namespace: "infra", Pod: "web"}, []string{"--pod: there is no Pod infra/web"}},
		{flowlog.Filter{Namespace: "shop", Service: "db", Policy: "infra/db"},
			[]string{"--service: there is no Service db", "--policy: there is no NetworkPolicy or ClusterNetworkPolicy infra/db"}},
	} {
		if got := notThere(t.Context(), client, &c.filter); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.filter, got, c.want)
		}
	}
}
