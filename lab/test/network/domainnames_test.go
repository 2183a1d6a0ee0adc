// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// installClusterPolicies installs ClusterNetworkPolicy with all its fields.
func installClusterPolicies(t *testing.T) {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	crd, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.RunWith(t.Context(), string(crd), "kubectl", "apply", "--server-side", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	lab.Established(t, "clusternetworkpolicies.policy.networking.k8s.io")
}

// weft runs a command of weft's as a person beyond the cluster does.
func weft(t *testing.T, args ...string) (string, error) {
	t.Helper()
	dir, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	return lab.Exec(t.Context(), "outside", append([]string{filepath.Join(dir, "weft")}, args...)...)
}

// A namespace that may leave the cluster by name only: from every node, over both families, by weft's own DNS.
func TestEgressByName(t *testing.T) {
	installClusterPolicies(t)
	ns := lab.Namespace(t)
	manifests := ""
	for _, n := range nodes {
		manifests += client("from-"+n, n, "app: client")
	}
	lab.Apply(t, ns, manifests)
	lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	const byAddress4, byAddress6 = "http://203.0.113.1/", "http://[2001:db8:ffff::1]/"
	for _, n := range nodes {
		fromPod(ns, "from-"+n).must(t, byAddress4)
	}
	lab.Apply(t, "", strings.ReplaceAll(`
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: NS}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: NS}}}
  egress:
  - {name: dns, action: Accept, to: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], protocols: [{udp: {destinationPort: {number: 53}}}, {tcp: {destinationPort: {number: 53}}}]}
  - {name: by-name, action: Accept, to: [{domainNames: ["*.internet.example"]}]}
  - {name: rest, action: Deny, to: [{networks: ["0.0.0.0/0", "::/0"]}]}
`, "NS", ns))
	t.Cleanup(func() {
		if _, err := lab.Run(context.Background(), "kubectl", "delete", "clusternetworkpolicy", ns); err != nil {
			t.Error(err)
		}
	})
	for _, n := range nodes {
		from := fromPod(ns, "from-"+n)
		labtest.Eventually(t, 10*time.Second, func() error {
			if a := from.get(t, "-timeout", "500ms", byAddress4); a.answered > 0 {
				return errors.New("it still leaves by address")
			}
			return nil
		})
		from.mustNot(t, byAddress6)
		from.mustNot(t, "http://internet.example/") // the wildcard wants a label more
		from.mustNot(t, byAddress4)
		from.must(t, "-n", "20", "http://www.internet.example/")
		from.must(t, byAddress4) // the address is the name's
	}
	out, err := weft(t, "why", "-n", ns, "from-"+nodes[0], "www.internet.example:80")
	if err != nil || !strings.Contains(out, "ALLOWED") {
		t.Errorf("weft why: %v\n%s", err, out)
	}
}
