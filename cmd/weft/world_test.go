// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// Who may not read the cluster, or can't reach it, is told so at once, in a few lines.
func TestClustersThatCannotBeRead(t *testing.T) {
	answer := func(code int, reason metav1.StatusReason, text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			parts := strings.Split(r.URL.Path, "/")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Code: int32(code), Reason: reason, Message: strings.ReplaceAll(text, "RESOURCE", parts[len(parts)-1])})
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(twoTiers), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, server string
		says         []string
	}{
		{"forbidden", answer(http.StatusForbidden, metav1.StatusReasonForbidden, `RESOURCE is forbidden: User "ann" cannot watch resource "RESOURCE" at the cluster scope`),
			[]string{`is forbidden: User "ann" cannot watch resource`, "all namespaces", "the ClusterRoles view and weft-node"}},
		{"unauthorized", answer(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized"), []string{"does not accept these credentials", "Unauthorized", "kubeconfig"}},
		{"away", gone.URL, []string{"the API server at " + gone.URL + " can't be reached", "connection refused"}},
	} {
		for _, args := range [][]string{{"why", "a", "b"}, {"why", "a", "http://b/"}, {"lint"}, {"matrix"}, {"policy", "a"}, {"pod", "a"}, {"diff", "-f", file}} {
			start := time.Now()
			var out string
			var code int
			noise := stderr(t, func() { out, code = runWeft(t, append(args, "--kubeconfig", kubeconfig(t, tc.server))...) })
			ok := code != 0 && noise == "" && time.Since(start) < snapshotPatience/3 && strings.Count(out, "\n") < 3
			for _, s := range tc.says {
				ok = ok && strings.Contains(out, s)
			}
			if !ok {
				t.Errorf("%s: %v: %d after %s, want %q:\n%s\nstderr: %s", tc.name, args, code, time.Since(start), tc.says, out, noise)
			}
		}
	}
}

func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: %q}}]\n", server)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// stderr is what is written to standard error meanwhile.
func stderr(t *testing.T, do func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	was := os.Stderr
	os.Stderr = w
	said := make(chan string)
	go func() { b, _ := io.ReadAll(r); said <- string(b) }()
	do()
	os.Stderr = was
	_ = w.Close()
	return <-said
}
