// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// --server replaces the URL and nothing else: the credentials and the CA stay those of where they came from.
func TestServerOverride(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	err := os.WriteFile(file, []byte(`{apiVersion: v1, kind: Config, current-context: a,
contexts: [{name: a, context: {cluster: a, user: a, namespace: shop}}], users: [{name: a, user: {token: t0ken}}],
clusters: [{name: a, cluster: {server: "https://old:6443", certificate-authority-data: Y2E=}}]}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	a := Access{Kubeconfig: file, Server: "https://192.0.2.1:6443"}
	cfg, err := a.Config()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != "https://192.0.2.1:6443" || cfg.BearerToken != "t0ken" || string(cfg.CAData) != "ca" {
		t.Errorf("config: host %s, token %s, CA %s", cfg.Host, cfg.BearerToken, cfg.CAData)
	}
	if ns := a.Namespace(); ns != "shop" {
		t.Errorf("namespace %q", ns)
	}
}

func TestNoCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, a := range []Access{{}, {Server: "https://192.0.2.1:6443"}} {
		if _, err := a.Config(); err == nil || !strings.Contains(err.Error(), "set KUBECONFIG or --kubeconfig") {
			t.Errorf("%+v: %v", a, err)
		}
	}
}
