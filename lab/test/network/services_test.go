// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Every kind of frontend for every kind of client, both families, TCP and UDP.
func TestFrontendsAndClients(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 3, "")+client("c", "node1", "app: c")+service("web", "web", `
  type: NodePort
  externalIPs: [198.51.100.7]
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30180}
  - {name: raw, port: 9000, targetPort: 9000, protocol: UDP, nodePort: 30190}
  - {name: raw-tcp, port: 9000, targetPort: 9000, protocol: TCP, nodePort: 30190}`))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	var web string // any pod of the Service itself
	for _, pods := range podsOf(t, ns, "web") {
		web = pods[0]
	}
	within := []place{fromPod(ns, "c"), fromPod(ns, web), fromHost("node1"), fromHost("node3")}
	everyone := append([]place{fromHost("outside")}, within...)
	labtest.Eventually(t, 10*time.Second, func() error {
		if n := len(readyPods(t, ns, "web")); n != 6 { // three pods, two families
			return fmt.Errorf("%d endpoints", n)
		}
		return nil
	})
	try := func(places []place, ip string, http, raw int) {
		t.Helper()
		for _, p := range places {
			for _, url := range []string{"http://" + hostport(ip, http) + "/", "udp://" + hostport(ip, raw), "tcp://" + hostport(ip, raw)} {
				a := p.must(t, "-n", "8", "-q", url)
				if a.pods[""] > 0 {
					t.Errorf("from %s to %s: %v", p.name, url, a.pods)
				}
			}
		}
	}
	for _, ip := range clusterIPs(t, ns, "web") {
		try(within, ip, 80, 9000)
		// A port that the Service does not have is refused, not left to time out.
		start := time.Now()
		if a := fromPod(ns, "c").mustNot(t, "http://"+hostport(ip, 81)+"/"); !strings.Contains(a.text, "refused") || time.Since(start) > 10*time.Second {
			t.Errorf("port 81 of %s: %s", ip, a.text)
		}
	}
	for _, n := range nodes {
		for _, ip := range nodeIPs(t, n) {
			try(everyone, ip, 30180, 30190)
		}
	}
	for _, ip := range []string{"127.0.0.1", "::1"} {
		try([]place{fromHost("node2")}, ip, 30180, 30190)
	}
	try(within, "198.51.100.7", 80, 9000)
}

// A pod that reaches itself through its Service.
func TestHairpin(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("solo", 1, "")+service("solo", "solo", httpPort))
	lab.Rollout(t, ns, "deployment/solo")
	pod := strings.Fields(lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "app=solo", "-o", "jsonpath={.items[*].metadata.name}"))[0]
	for _, ip := range clusterIPs(t, ns, "solo") {
		labtest.Eventually(t, 10*time.Second, func() error {
			if a := fromPod(ns, pod).get(t, "-n", "5", "http://"+hostport(ip, 80)+"/"); a.answered != 5 {
				return fmt.Errorf("%s", a.text)
			}
			return nil
		})
	}
}

// externalTrafficPolicy Local keeps the client's address and sends nothing to other nodes; Cluster reaches all.
func TestExternalTrafficPolicy(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 1, "")+service("local", "web", "  type: NodePort\n  externalTrafficPolicy: Local\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	var home string
	for n := range podsOf(t, ns, "web") {
		home = n
	}
	var port int
	if _, err := fmt.Sscan(lab.Get(t, ns, "service/local", "{.spec.ports[0].nodePort}"), &port); err != nil {
		t.Fatal(err)
	}
	outside := []string{"172.30.0.2", "fd00:30::2"}
	for _, n := range nodes {
		for i, ip := range nodeIPs(t, n) {
			url := "http://" + hostport(ip, port) + "/"
			if n != home {
				fromHost("outside").mustNot(t, url)
				continue
			}
			labtest.Eventually(t, 10*time.Second, func() error {
				if a := fromHost("outside").get(t, url); a.answered != 1 || !slices.Equal(a.clients, outside[i:i+1]) {
					return fmt.Errorf("want the client %s: %s", outside[i], a.text)
				}
				return nil
			})
		}
	}
	lab.Kubectl(t, "patch", "service", "-n", ns, "local", "-p", `{"spec":{"externalTrafficPolicy":"Cluster"}}`)
	for _, n := range nodes {
		for _, ip := range nodeIPs(t, n) {
			labtest.Eventually(t, 10*time.Second, func() error {
				if a := fromHost("outside").get(t, "http://"+hostport(ip, port)+"/"); a.answered != 1 {
					return fmt.Errorf("%s", a.text)
				}
				return nil
			})
		}
	}
}

// Affinity survives an agent's death and other endpoints' changes, and moves when its endpoint goes.
func TestSessionAffinity(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 3, "")+client("c", "node1", "app: c")+service("web", "web", "  sessionAffinity: ClientIP\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	url := "http://" + hostport(clusterIPs(t, ns, "web")[0], 80) + "/"
	labtest.Eventually(t, 10*time.Second, func() error {
		if len(readyPods(t, ns, "web")) != 6 {
			return fmt.Errorf("endpoints: %v", readyPods(t, ns, "web"))
		}
		return nil
	})
	only := func(n int) string {
		t.Helper()
		a := fromPod(ns, "c").must(t, "-n", fmt.Sprint(n), "-q", url)
		if len(a.pods) != 1 {
			t.Errorf("answered by %v, want one pod", a.pods)
		}
		for p := range a.pods {
			return p
		}
		return ""
	}
	first := only(20)
	killAgent(t, "node1")
	if got := only(20); got != first {
		t.Errorf("after the agent's death %s answers, not %s", got, first)
	}
	lab.Kubectl(t, "scale", "deployment/web", "-n", ns, "--replicas=5")
	lab.Rollout(t, ns, "deployment/web")
	if got := only(20); got != first {
		t.Errorf("after others came %s answers, not %s", got, first)
	}
	lab.Kubectl(t, "delete", "pod", "-n", ns, first)
	labtest.Eventually(t, 20*time.Second, func() error {
		if a := fromPod(ns, "c").get(t, "-n", "10", "-q", url); a.failed > 0 || len(a.pods) != 1 || a.pods[first] > 0 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
}

// drain has a pod go on serving for longer than an agent may be away: what an agent can't hear of, it can't follow.
const drain = "        lifecycle: {preStop: {sleep: {seconds: 8}}}\n"

// Clients that never stop, of TCP and UDP, through a rolling update, scaling, agents killed at odd moments and a rollout
// of theirs: no request fails. (With an API server that is away: TestAPIServerOutage.)
//
// Each request of UDP is from a port that has not been used for longer than the kernel remembers it. One from a port that
// was goes where the one before it went, to a pod that drains as well, and is lost between that pod's end and the API's
// word of it: docs/services.md.
func TestZeroLoss(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 3, drain)+client("c", "node1", "app: c")+client("d", "node3", "app: c")+client("e", "node2", "app: c")+service("web", "web", `
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: raw, port: 9000, targetPort: 9000, protocol: UDP}`))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod", "-l", "app=c")
	stop4 := hammer(t, ns, "c", "http://web."+ns+"/")
	stop6 := hammer(t, ns, "d", "http://"+hostport(clusterIPs(t, ns, "web")[1], 80)+"/")
	stopUDP := hammer(t, ns, "e", "udp://"+hostport(clusterIPs(t, ns, "web")[0], 9000), "-from-port", "20000", "-c", "1", "-interval", "10ms")

	lab.Kubectl(t, "rollout", "restart", "deployment/web", "-n", ns)
	lab.Rollout(t, ns, "deployment/web")
	lab.Kubectl(t, "scale", "deployment/web", "-n", ns, "--replicas=6")
	lab.Rollout(t, ns, "deployment/web")
	for _, n := range nodes {
		oddMoment()
		killAgent(t, n)
	}
	lab.Kubectl(t, "scale", "deployment/web", "-n", ns, "--replicas=2")
	lab.Kubectl(t, "rollout", "restart", "daemonset/weft-node", "-n", "kube-system")
	lab.Rollout(t, "kube-system", "daemonset/weft-node")
	stop4()
	stop6()
	stopUDP()
}

// oddMoment lets up to half a second pass: what happens then is to meet the agents at whatever they are at.
func oddMoment() { time.Sleep(rand.N(500 * time.Millisecond)) }

// The API server is away, every agent dies meanwhile: what was forwarded still is, with no request that fails, and what
// changed arrives afterwards.
func TestAPIServerOutage(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 2, "")+service("web", "web", `
  type: NodePort
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: raw, port: 9000, targetPort: 9000, protocol: UDP}`))
	lab.Rollout(t, ns, "deployment/web")
	var number int
	if _, err := fmt.Sscan(lab.Get(t, ns, "service/web", "{.spec.ports[0].nodePort}"), &number); err != nil {
		t.Fatal(err)
	}
	url := "http://" + hostport(nodeIPs(t, "node2")[0], number) + "/"
	labtest.Eventually(t, 10*time.Second, func() error {
		if a := fromHost("outside").get(t, url); a.answered != 1 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
	// kubectl won't do: its clients would go with the API server.
	var stops []func() (string, error)
	for host, urls := range map[string][]string{
		"outside": {url, "http://" + hostport(nodeIPs(t, "node2")[1], number) + "/"},
		"node1":   {"http://" + hostport(clusterIPs(t, ns, "web")[0], 80) + "/", "udp://" + hostport(clusterIPs(t, ns, "web")[1], 9000)},
	} {
		for _, u := range urls {
			stops = append(stops, lab.Background(t, "exec", "--in", host, "--", lab.Echo(host), "get", "-for", "90s", "-c", "2", "-interval", "5ms", "-timeout", "3s", "-q", u).Stop)
		}
	}
	if _, err := lab.Run(t.Context(), "component", "stop", "apiserver"); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		oddMoment()
		killAgent(t, n)
	}
	fromHost("outside").must(t, "-n", "200", "-interval", "20ms", "-q", url)
	for _, stop := range stops {
		out, err := stop()
		if a := parse(out); a.sent < 100 || a.failed > 0 || err != nil {
			t.Errorf("while the API server was away: %v\n%s", err, out)
		}
	}
	if _, err := lab.Run(t.Context(), "component", "start", "apiserver"); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 60*time.Second, func() error {
		_, err := lab.Run(t.Context(), "kubectl", "scale", "deployment/web", "-n", ns, "--replicas=4")
		return err
	})
	lab.Rollout(t, ns, "deployment/web")
	labtest.Eventually(t, 30*time.Second, func() error {
		if a := fromHost("outside").get(t, "-n", "40", "-q", url); a.failed > 0 || len(a.pods) != 4 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
}
