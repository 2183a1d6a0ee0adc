// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// The three tiers of the guide's 5.4.4, with real connections: web may call app, app may call db, nobody else may.
func TestThreeTiers(t *testing.T) {
	ns := lab.Namespace(t)
	tiers := []string{"web", "app", "db"}
	manifests := ""
	for i, tier := range tiers {
		manifests += client(tier, nodes[i], "tier: "+tier)
	}
	for from, to := range map[string]string{"web": "app", "app": "db"} {
		manifests += fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %[2]s}
spec:
  podSelector: {matchLabels: {tier: %[2]s}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {tier: %[1]s}}}], ports: [{protocol: TCP, port: 8080}]}]
---
`, from, to)
	}
	lab.Apply(t, ns, manifests)
	lab.WaitFor(t, ns, "condition=Ready", "pod", "--all") // the nodes' probes are never blocked
	allowed := map[[2]string]bool{{"web", "app"}: true, {"app", "db"}: true, {"app", "web"}: true, {"db", "web"}: true}
	for _, from := range tiers {
		for _, to := range tiers {
			if from == to {
				continue
			}
			for _, ip := range podIPs(t, ns, to) {
				if url := "http://" + hostport(ip, 8080) + "/"; allowed[[2]string{from, to}] {
					fromPod(ns, from).must(t, url)
				} else {
					fromPod(ns, from).mustNot(t, url)
				}
			}
		}
	}
	// Another port of an allowed pair, and a node that is not the pod's own.
	fromPod(ns, "web").mustNot(t, "tcp://"+hostport(podIPs(t, ns, "app")[0], 9000))
	fromHost("node1").mustNot(t, "http://"+hostport(podIPs(t, ns, "app")[0], 8080)+"/")
	fromHost("node2").must(t, "http://"+hostport(podIPs(t, ns, "app")[0], 8080)+"/")
	// Labels that change live.
	lab.Kubectl(t, "label", "pod/db", "-n", ns, "--overwrite", "tier=web")
	labtest.Eventually(t, 5*time.Second, func() error {
		if a := fromPod(ns, "db").get(t, "-timeout", "300ms", "http://"+hostport(podIPs(t, ns, "app")[0], 8080)+"/"); a.answered != 1 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
}

// A policy's pods are guarded from their first packet on: someone who never stops trying never gets in.
func TestNoWindow(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress]}
---
`+deployment("closed", 3, "")+client("c", "node1", "app: c")+service("closed", "closed", "  publishNotReadyAddresses: true\n"+httpPort))
	lab.Rollout(t, ns, "deployment/closed")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	// The client asks for the pods' names, so that it finds each new one at once.
	tr := lab.Background(t, "kubectl", "exec", "-n", ns, "c", "--", "/echo", "get", "-for", "120s", "-c", "8", "-timeout", "100ms", "-q",
		"http://closed."+ns+"/")
	for i := range 8 {
		lab.Kubectl(t, "delete", "pods", "-n", ns, "-l", "app=closed", "--grace-period=0", "--force")
		killAgent(t, nodes[i%len(nodes)])
		lab.Rollout(t, ns, "deployment/closed")
	}
	if _, err := lab.PodExec(t.Context(), ns, "c", "/echo", "stop"); err != nil {
		t.Error(err)
	}
	out, _ := tr.Wait()
	if a := parse(out); a.sent < 50 || a.answered > 0 {
		t.Errorf("a guarded pod answered: %d of %d", a.answered, a.sent)
	}
}
