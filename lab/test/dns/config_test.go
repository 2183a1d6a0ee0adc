// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Names that the operator wrote down, as pods' resolvers find them, also under the cluster's domain and by the search
// path; a change of them, during which no query is lost, and a stub domain that comes with it.
func TestOwnNames(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, pod("c1", "node1", echo, "app: c")+pod("libc", "node2", tools, "app: c")+`
apiVersion: v1
kind: Service
metadata:
  name: partner
  annotations:
    external-dns.alpha.kubernetes.io/hostname: partner.apps.test
    external-dns.alpha.kubernetes.io/target: 203.0.113.7,2001:db8:113::7
spec: {type: LoadBalancer, loadBalancerClass: example.com/nobody, selector: {app: none}, ports: [{port: 80}]}
`)
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1", "pod/libc")
	api := values(t, "default", "service/kubernetes", "{.spec.clusterIPs[*]}")
	expect := func(partner []string, registry ...string) {
		t.Helper()
		for name, want := range map[string][]string{
			"partner.apps.test": partner, "none.apps.test": nil,
			"registry.corp.test": registry, "registry.corp.test.": registry, "mirror.test": registry,
			"old.default": api, "old.default.svc.cluster.local.": api, "older.default": nil,
		} {
			for _, r := range resolvers {
				labtest.Eventually(t, 60*time.Second, func() error {
					if got := r.ask(t, ns, name); !slices.Equal(got, want) {
						return fmt.Errorf("%s: %s is %v, want %v", r.name, name, got, want)
					}
					return nil
				})
			}
		}
	}
	expect(nil, "198.51.100.10", "2001:db8:10::10")

	before := lab.Get(t, "kube-system", "configmap/weft-dns", `{.data.dns\.yaml}`)
	configure := func(text string) {
		t.Helper()
		patch, err := json.Marshal(map[string]any{"data": map[string]string{"dns.yaml": text}})
		if err != nil {
			t.Fatal(err)
		}
		lab.Kubectl(t, "patch", "configmap", "weft-dns", "-n", "kube-system", "--type=merge", "-p", string(patch))
		// The kubelet brings a ConfigMap when it looks at the pod again: at once when the pod changes.
		lab.Kubectl(t, "annotate", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=dns", "--overwrite", fmt.Sprintf("weft.dev/test=%d", time.Now().UnixNano()))
	}
	if !strings.Contains(before, "198.51.100.10") {
		t.Fatalf("the configuration: %s", before)
	}
	asking := lab.Background(t, "kubectl", "exec", "-n", ns, "c1", "--",
		"/echo", "resolve", "-attempts", "1", "-timeout", "20s", "-for", "300s", "-c", "2", "-interval", "10ms", "kubernetes.default")
	// What the names for the outside world are served by is the stub domain's server here.
	servers := values(t, "kube-system", "service/weft-dns-external", "{.spec.clusterIPs[*]}")
	stub := fmt.Sprintf("\nstubDomains: [{zones: [apps.test], upstreams: [%q]}]\n", servers[0])
	configure(strings.ReplaceAll(before, "198.51.100.10", "198.51.100.11") + stub)
	expect([]string{"2001:db8:113::7", "203.0.113.7"}, "198.51.100.11", "2001:db8:10::10")
	if _, err := lab.PodExec(t.Context(), ns, "c1", "/echo", "stop"); err != nil {
		t.Errorf("stop the client: %v", err)
	}
	out, err := asking.Wait()
	if sent, failed, again := counts(t, out); err != nil || sent == 0 || failed+again > 0 {
		t.Errorf("while the configuration changed: %v: %s", err, out)
	}
	configure(before)
}
