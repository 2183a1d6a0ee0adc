// SPDX-License-Identifier: Apache-2.0

// Package guide holds the test of examples/guide: every manifest of the guide, as a person would save it, goes through
// `weft convert`, is accepted by the API server, and then does what the guide says. All share one lab.
package guide

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

var lab *labtest.Lab

func TestMain(m *testing.M) {
	labtest.Main(m, &lab, labtest.Name("guide"), "--nodes", "2",
		"--set", "gatewayAPI.crds=experimental", "--set", "ingress.enabled=true", "--set", "ingress.takeOver=true")
}

const (
	shop    = "shop"           // the guide's namespace of applications; manifests that name none go there too
	manager = "cluster-system" // and of Gateways
)

// manifests reads a folder or file of examples/guide and converts it with `weft convert manifests`, with more
// arguments.
func manifests(t *testing.T, path string, args ...string) string {
	t.Helper()
	root, err := filepath.Abs("../../../examples/guide")
	if err != nil {
		t.Fatal(err)
	}
	out, err := lab.Exec(t.Context(), "control", append([]string{weftBinary(t), "convert", "manifests", "-n", shop, "-f", filepath.Join(root, path)}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// namespaces makes those that are not there yet, each with a label of its own name, as the guide's selectors ask.
func namespaces(t *testing.T, names ...string) {
	t.Helper()
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %[1]s, labels: {name: %[1]s}}\n---\n", n)
	}
	lab.Apply(t, shop, b.String())
}

// app is an echo server of two replicas with labels and, as env, what it serves.
func app(name, labels, env, more string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 2
  selector: {matchLabels: {echo: %[1]s}}
  template:
    metadata: {labels: {echo: %[1]s, %[2]s}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {echo: %[1]s}}}
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
%[3]s
%[4]s---
`, name, labels, env, more)
}

// port is an entry of a container's env.
func port(protocol, number string) string {
	return fmt.Sprintf("        - {name: %s_PORT, value: %q}\n", protocol, number)
}

// service is a Service for an app.
func service(name, echo string, port, target int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  selector: {echo: %s}\n  ports: [{port: %d, targetPort: %d}]\n---\n", name, echo, port, target)
}

// ready waits for all Deployments of the guide's namespace.
func ready(t *testing.T) {
	t.Helper()
	lab.WaitFor(t, shop, "condition=Available", "deployment", "--all")
}

// outside runs curl as a client beyond the cluster and gives what it prints; -w and the like are the caller's.
func outside(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return lab.Exec(t.Context(), "outside", append([]string{"curl", "-sS", "--max-time", "5"}, args...)...)
}

// answered polls until a curl from outside succeeds and its output holds every text.
func answered(t *testing.T, texts []string, args ...string) string {
	t.Helper()
	var out string
	labtest.Eventually(t, 30*time.Second, func() (err error) {
		if out, err = outside(t, args...); err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return fmt.Errorf("curl %v: no %q in %s", args, text, out)
			}
		}
		return nil
	})
	return out
}

// secret makes a TLS Secret, signed by itself, for names.
func secret(t *testing.T, namespace, name string, hosts ...string) (certFile string) {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	certificate(t, cert, key, hosts...)
	lab.Kubectl(t, "create", "secret", "tls", name, "-n", namespace, "--cert", cert, "--key", key)
	return cert
}

// write makes a file.
func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
