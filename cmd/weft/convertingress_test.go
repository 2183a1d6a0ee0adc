// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const oneIngress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec:
  ingressClassName: nginx
  rules: [{host: www.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
`

// TestConvertIngressNamespace: what is written can be applied to a cluster that has what was read, and nothing else.
func TestConvertIngressNamespace(t *testing.T) {
	for _, c := range []struct {
		gateway, more string
		made          bool
	}{
		{"weft-system/ingress", "", true},
		{"kube-system/ingress", "", false},
		{"shop/ingress", "", false},
		{"infra/public", "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: infra}\n", false},
	} {
		file := filepath.Join(t.TempDir(), "shop.yaml")
		if err := os.WriteFile(file, []byte(oneIngress+c.more), 0o600); err != nil {
			t.Fatal(err)
		}
		ns, _, _ := strings.Cut(c.gateway, "/")
		out := run(t, "convert", "ingress", "-f", file, "--gateway", c.gateway)
		if made := strings.HasPrefix(out, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: "+ns+"\n---\n"); made != c.made {
			t.Errorf("--gateway %s: the Namespace is made: %v, want %v:\n%s", c.gateway, made, c.made, out)
		}
	}
}
