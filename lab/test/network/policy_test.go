// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strings"
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
	labtest.Eventually(t, 30*time.Second, func() error {
		if a := fromPod(ns, "db").get(t, "-timeout", "300ms", "http://"+hostport(podIPs(t, ns, "app")[0], 8080)+"/"); a.answered != 1 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
}

// A policy's pods are guarded from their first packet on, over both families: someone who never stops trying never gets
// in, and they, who try from their start on, never get out.
func TestNoWindow(t *testing.T) {
	ns := lab.Namespace(t)
	const policy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]}
---
`
	families := map[string]string{"-4": "http://203.0.113.1/", "-6": "http://[2001:db8:ffff::1]/"}
	out := ""
	for family, url := range families {
		out += fmt.Sprintf(`      - name: out%s
        image: ghcr.io/weft-net/echo
        command: [/echo, get, -for, 600s, -interval, 20ms, -timeout, 100ms, %q]
`, family, url)
	}
	lab.Apply(t, ns, policy+deployment("closed", 3, out)+client("c", "node1", "app: c")+service("closed", "closed", "  publishNotReadyAddresses: true\n"+httpPort))
	lab.Rollout(t, ns, "deployment/closed")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	// The client asks for the pods' names, so that it finds each new one at once.
	in := map[string]*labtest.Traffic{}
	for family := range families {
		in[family] = lab.Background(t, "kubectl", "exec", "-n", ns, "c", "--", "/echo", "get", family, "-for", "120s", "-c", "4", "-timeout", "100ms", "-q",
			"http://closed."+ns+"/")
	}
	// got is how often the pods that are there now have tried to get out, and were answered.
	got := func() (tried, answered map[string]int) {
		tried, answered = map[string]int{}, map[string]int{}
		for line := range strings.Lines(lab.Kubectl(t, "logs", "-n", ns, "-l", "app=closed", "--all-containers", "--prefix", "--tail=-1")) {
			for family := range families {
				if from, said, _ := strings.Cut(line, " "); strings.HasSuffix(from, "/out"+family+"]") {
					tried[family]++
					if strings.Contains(said, "pod=") {
						answered[family]++
					}
				}
			}
		}
		return tried, answered
	}
	for i := range 8 {
		lab.Kubectl(t, "delete", "pods", "-n", ns, "-l", "app=closed", "--grace-period=0", "--force")
		killAgent(t, nodes[i%len(nodes)])
		lab.Rollout(t, ns, "deployment/closed")
		labtest.Eventually(t, 30*time.Second, func() error {
			tried, answered := got()
			for family := range families {
				if answered[family] > 0 {
					t.Errorf("guarded pods got out with %s: %d of %d", family, answered[family], tried[family])
				}
				if tried[family] == 0 {
					return fmt.Errorf("no guarded pod has tried to get out with %s", family)
				}
			}
			return nil
		})
	}
	if _, err := lab.PodExec(t.Context(), ns, "c", "/echo", "stop"); err != nil {
		t.Error(err)
	}
	for family, tr := range in {
		text, _ := tr.Wait()
		if a := parse(text); a.sent < 50 || a.answered > 0 {
			t.Errorf("a guarded pod answered with %s: %d of %d", family, a.answered, a.sent)
		}
	}
	// It was the policy that kept them apart.
	lab.Kubectl(t, "delete", "networkpolicy/closed", "-n", ns)
	for family := range families {
		labtest.Eventually(t, 30*time.Second, func() error {
			if a := fromPod(ns, "c").get(t, family, "http://closed."+ns+"/"); a.answered != 1 {
				return fmt.Errorf("no way in: %s", a.text)
			}
			if tried, answered := got(); answered[family] == 0 {
				return fmt.Errorf("no way out with %s: 0 of %d", family, tried[family])
			}
			return nil
		})
	}
}
