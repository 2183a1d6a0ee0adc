// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Where the endpoints are counts: internalTrafficPolicy, trafficDistribution and health-check node ports, on every node,
// while pods come and go.
func TestPlaces(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 3, "")+client("c1", "node1", "app: c")+client("c2", "node2", "app: c")+client("c3", "node3", "app: c")+
		service("inside", "web", "  internalTrafficPolicy: Local\n"+httpPort)+
		service("near", "web", "  trafficDistribution: PreferSameNode\n"+httpPort)+
		service("checked", "web", "  type: LoadBalancer\n  loadBalancerClass: example.com/nobody\n  externalTrafficPolicy: Local\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod", "-l", "app=c")
	check := lab.Get(t, ns, "service/checked", "{.spec.healthCheckNodePort}")
	// expect holds of each node what it must with so many pods of its own.
	expect := func() {
		t.Helper()
		labtest.Eventually(t, 30*time.Second, func() error {
			home := podsOf(t, ns, "web")
			for i, node := range nodes {
				from, own := fromPod(ns, fmt.Sprint("c", i+1)), home[node]
				foreign := func(a answers) bool {
					for p := range a.pods {
						if !strings.Contains(" "+strings.Join(own, " ")+" ", " "+p+" ") {
							return true
						}
					}
					return false
				}
				for _, ip := range clusterIPs(t, ns, "inside") {
					a := from.get(t, "-n", "10", "-timeout", "700ms", "-q", "http://"+hostport(ip, 80)+"/")
					if foreign(a) || (a.answered == 0) != (len(own) == 0) || a.answered > 0 && a.failed > 0 {
						return fmt.Errorf("internalTrafficPolicy Local on %s, with %v: %s", node, own, a.text)
					}
				}
				for _, ip := range clusterIPs(t, ns, "near") {
					a := from.get(t, "-n", "10", "-q", "http://"+hostport(ip, 80)+"/")
					if a.failed > 0 || len(own) > 0 && foreign(a) {
						return fmt.Errorf("trafficDistribution PreferSameNode on %s, with %v: %s", node, own, a.text)
					}
				}
				for _, ip := range nodeIPs(t, node) {
					a := fromHost("outside").get(t, "-fail=false", "-body", "http://"+ipPort(ip, check)+"/healthz")
					status := map[bool]string{true: "200 ", false: "503 "}[len(own) > 0]
					if !strings.HasPrefix(a.text, status) || !strings.Contains(strings.ReplaceAll(a.text, " ", ""), fmt.Sprintf(`"localEndpoints":%d`, len(own))) {
						return fmt.Errorf("health check of %s, with %v: %s", node, own, a.text)
					}
				}
			}
			return nil
		})
	}
	expect()
	// All pods on one node, then none on it.
	lab.Kubectl(t, "patch", "deployment", "-n", ns, "web", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node2"}}}}}`)
	lab.Rollout(t, ns, "deployment/web")
	expect()
	lab.Kubectl(t, "patch", "deployment", "-n", ns, "web", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node3"}}}}}`)
	lab.Rollout(t, ns, "deployment/web")
	expect()
}

// ipPort is hostport for a port that is text.
func ipPort(ip, port string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]:" + port
	}
	return ip + ":" + port
}

// A pod that is not ready gets traffic only of Services that publish it all the same.
func TestNotReadyPods(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, strings.Replace(deployment("web", 1, ""), "path: /readyz", "path: /status/500", 1)+client("c", "node1", "app: c")+
		service("ready", "web", httpPort)+service("all", "web", "  publishNotReadyAddresses: true\n"+httpPort))
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	for i := range 2 {
		labtest.Eventually(t, 60*time.Second, func() error {
			if a := fromPod(ns, "c").get(t, "-n", "5", "-q", "http://"+hostport(clusterIPs(t, ns, "all")[i], 80)+"/"); a.answered != 5 {
				return fmt.Errorf("%s", a.text)
			}
			return nil
		})
		if a := fromPod(ns, "c").mustNot(t, "http://"+hostport(clusterIPs(t, ns, "ready")[i], 80)+"/"); !strings.Contains(a.text, "refused") {
			t.Errorf("a Service without ready endpoints does not refuse: %s", a.text)
		}
	}
}

// Somebody wants to empty the tables of a node, map by map and then as a whole: the kernel lets nobody but the agent. And
// whoever flushes all that a node has leaves Services working.
func TestTablesHaveAnOwner(t *testing.T) {
	nft, err := exec.LookPath("nft")
	labtest.Require(t, err)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 2, "")+client("c", "node1", "app: c")+service("web", "web", httpPort))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	ips := clusterIPs(t, ns, "web")
	works := func() error {
		for _, ip := range ips {
			if a := fromPod(ns, "c").get(t, "-n", "3", "-q", "http://"+hostport(ip, 80)+"/"); a.failed > 0 {
				return fmt.Errorf("%s", a.text)
			}
		}
		return nil
	}
	labtest.Eventually(t, 10*time.Second, works)
	for _, harm := range []string{"flush map %s weft-services-2 services", "flush chain %s weft-services-2 services", "delete table %s weft-services-2"} {
		for _, family := range []string{"ip", "ip6"} {
			out, err := lab.Exec(t.Context(), "node1", append([]string{nft}, strings.Fields(fmt.Sprintf(harm, family))...)...)
			if err == nil || !strings.Contains(err.Error(), "Operation not permitted") {
				t.Fatalf("%s: %v: %s; want it refused", harm, err, out)
			}
		}
	}
	if err := works(); err != nil {
		t.Error(err)
	}
	if out, err := lab.Exec(t.Context(), "node1", nft, "flush", "ruleset"); err != nil {
		t.Fatalf("flush ruleset: %v: %s", err, out)
	}
	if err := works(); err != nil {
		t.Errorf("right after a flush of everything: %v", err)
	}
}
