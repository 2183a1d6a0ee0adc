// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Policies at NodePorts and LoadBalancer addresses (guide 5.7.8): a guarded pod judges the client's own address where
// that arrives, and its node's where another node has masqueraded it.
func TestPoliciesBehindNodePortsAndLoadBalancers(t *testing.T) {
	ns := lab.Namespace(t)
	policy := func(blocks ...string) string {
		return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{ipBlock: {cidr: "%s"}}], ports: [{port: 8080}]}]
---
`, strings.Join(blocks, `"}}, {ipBlock: {cidr: "`))
	}
	lab.Apply(t, ns, loadBalancerPool(t, "guarded", "172.30.0.240-172.30.0.241", "fd00:30::240-fd00:30::241")+deployment("web", 1, "")+
		policy("192.0.2.1/32")+service("web", "web", "  type: LoadBalancer\n  externalTrafficPolicy: Local\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	var home, away string
	for home = range podsOf(t, ns, "web") {
	}
	for _, n := range nodes {
		if n != home {
			away = n
		}
	}
	var port int
	if _, err := fmt.Sscan(lab.Get(t, ns, "service/web", "{.spec.ports[0].nodePort}"), &port); err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, ip := range lbAddrs(t, ns, "web", 2) {
		urls = append(urls, "http://"+hostport(ip, 80)+"/")
	}
	for _, ip := range nodeIPs(t, home) {
		urls = append(urls, "http://"+hostport(ip, port)+"/")
	}
	// The first answer, from a pod that everybody may reach, says that the way is there; then only policies differ.
	passes := func(url string, want bool) {
		t.Helper()
		labtest.Eventually(t, 20*time.Second, func() error {
			if a := fromHost("outside").get(t, "-timeout", "500ms", url); (a.answered == 1) != want {
				return fmt.Errorf("%s: want it to pass: %v: %s", url, want, a.text)
			}
			return nil
		})
	}
	lab.Apply(t, ns, policy("172.30.0.2/32", "fd00:30::2/128"))
	for _, url := range urls {
		passes(url, true)
	}
	lab.Apply(t, ns, policy("192.0.2.1/32"))
	for _, url := range urls {
		passes(url, false)
	}

	// By another node the client comes as that node.
	lab.Kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"externalTrafficPolicy":"Cluster"}}`)
	masqueraded := nodeIPs(t, away)
	lab.Apply(t, ns, policy(masqueraded[0]+"/32", masqueraded[1]+"/128"))
	for _, ip := range masqueraded {
		passes("http://"+hostport(ip, port)+"/", true)
	}
	lab.Apply(t, ns, policy("172.30.0.2/32", "fd00:30::2/128"))
	for _, ip := range masqueraded {
		passes("http://"+hostport(ip, port)+"/", false)
	}
	for _, ip := range nodeIPs(t, home) {
		passes("http://"+hostport(ip, port)+"/", true) // judged before its own node masquerades it
	}
}

// While the API server is away, and an agent dies and starts meanwhile, what is closed stays closed, and what is open
// open.
func TestPoliciesWithoutAPIServer(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, client("shut", "node2", "role: shut")+client("open", "node2", "role: open")+`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut}
spec: {podSelector: {matchLabels: {role: shut}}, policyTypes: [Ingress, Egress]}
`)
	lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	shut, open := podIPs(t, ns, "shut"), podIPs(t, ns, "open")
	check := func(when string) {
		t.Helper()
		for i := range shut {
			if a := fromHost("node1").get(t, "-timeout", "400ms", "http://"+hostport(shut[i], 8080)+"/"); a.answered > 0 {
				t.Errorf("%s, a guarded pod answers: %s", when, a.text)
			}
			if a := fromHost("node1").get(t, "http://"+hostport(open[i], 8080)+"/"); a.answered != 1 {
				t.Errorf("%s, an open pod does not answer: %s", when, a.text)
			}
			if a := fromHost("node2").get(t, "http://"+hostport(shut[i], 8080)+"/"); a.answered != 1 {
				t.Errorf("%s, a guarded pod does not answer its own node: %s", when, a.text)
			}
		}
	}
	check("at first")
	component := func(ctx context.Context, do string) {
		t.Helper()
		if _, err := lab.Run(ctx, "component", do, "apiserver"); err != nil {
			t.Error(err)
		}
	}
	component(t.Context(), "stop")
	started := false
	start := func(ctx context.Context) {
		if !started {
			started = true
			component(ctx, "start")
		}
	}
	t.Cleanup(func() { start(context.Background()) })
	check("without an API server")
	killAgent(t, "node2")
	check("without an API server and an agent")
	start(t.Context())
	labtest.Eventually(t, 60*time.Second, func() error {
		_, err := lab.Run(t.Context(), "kubectl", "rollout", "status", "-n", "kube-system", "daemonset/weft-node", "--timeout=5s")
		return err
	})
	check("afterwards")
}
