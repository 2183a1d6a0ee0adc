// SPDX-License-Identifier: Apache-2.0

package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// weft diff -f FILE: what would become of the cluster's connections once the file was applied, with nothing applied.
func TestDiffOfCluster(t *testing.T) {
	ns := lab.Namespace(t)
	policy := `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]
`
	lab.Apply(t, ns, client("web", nodes[0], "app: web")+client("db", nodes[1], "app: db")+policy)
	lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	file := filepath.Join(t.TempDir(), "change.yaml")
	diff := func(policy string) string {
		if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := weft(t, "diff", "-n", ns, "-f", file)
		if changed := err != nil; changed != strings.Contains(out, "→") {
			t.Errorf("%v: %s", err, out)
		}
		return out
	}
	if out := diff(policy); !strings.Contains(out, "no connection is opened or closed") || strings.Contains(out, "left out") {
		t.Errorf("of what is there already: %s", out)
	}
	out := diff(strings.Replace(policy, "ports: [{port: 80}]}]", "ports: [{port: 80, endPort: 90}]}, {from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]", 1))
	for _, want := range []string{"+ " + ns + "/web → " + ns + "/db: TCP 81-90\n", "+ 198.51.100.0/24 → " + ns + "/db: all\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}
