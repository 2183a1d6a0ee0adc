// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Every pod reaches every pod on any node with its own source address; node reaches pod; pod reaches node and
// outside, which sees the node's address. Both families.
func TestEverybodyReachesEverybody(t *testing.T) {
	ns := lab.Namespace(t)
	var manifests strings.Builder
	for _, n := range nodes {
		manifests.WriteString(client("a-"+n, n, "app: a"))
		manifests.WriteString(client("b-"+n, n, "app: b"))
	}
	lab.Apply(t, ns, manifests.String())
	lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	world := lab.Background(t, "exec", "--in", "outside", "--", "env", "HTTP_PORT=18099", "HTTPS_PORT=", "TCP_PORT=", "UDP_PORT=", "DRAIN=0s", lab.Echo("outside"), "serve")
	defer world.Stop()
	labtest.Eventually(t, 10*time.Second, func() error {
		if a := fromHost("outside").get(t, "http://203.0.113.1:18099/"); a.answered != 1 {
			return fmt.Errorf("the world does not answer itself: %s", a.text)
		}
		return nil
	})

	for _, from := range nodes {
		source := podIPs(t, ns, "a-"+from)
		for _, to := range nodes {
			for i, ip := range podIPs(t, ns, "b-"+to) {
				a := fromPod(ns, "a-"+from).must(t, "http://"+hostport(ip, 8080)+"/")
				if len(a.clients) != 1 || a.clients[0] != source[i] {
					t.Errorf("pod on %s to pod on %s at %s: the server saw %v, want %s", from, to, ip, a.clients, source[i])
				}
				fromHost(from).must(t, "http://"+hostport(ip, 8080)+"/")
			}
			// Kubelet is what listens on every node: that it answers at all (401) is enough.
			for _, ip := range nodeIPs(t, to) {
				fromPod(ns, "a-"+from).must(t, "-fail=false", "https://"+hostport(ip, 10250)+"/pods")
			}
		}
		for i, ip := range []string{"203.0.113.1", "2001:db8:ffff::1"} {
			a := fromPod(ns, "a-"+from).must(t, "http://"+hostport(ip, 18099)+"/")
			if want := nodeIPs(t, from)[i]; len(a.clients) != 1 || a.clients[0] != want {
				t.Errorf("pod on %s to the world: it saw %v, want the node's %s", from, a.clients, want)
			}
		}
	}
}

// A pod runs within a second of being scheduled, image pull aside (the lab has it).
func TestPodStartsWithinASecond(t *testing.T) {
	ns := lab.Namespace(t)
	var slowest time.Duration
	for i := range 5 {
		name := fmt.Sprintf("p%d", i)
		lab.Apply(t, ns, client(name, nodes[i%len(nodes)], "app: p"))
		lab.WaitFor(t, ns, "condition=Ready", "pod/"+name)
		at := func(path string) time.Time {
			s := lab.Get(t, ns, "pod/"+name, path)
			when, err := time.Parse(time.RFC3339, s)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			return when
		}
		// The API gives whole seconds, so up to one more may lie between them.
		took := at("{.status.containerStatuses[0].state.running.startedAt}").Sub(at(`{.metadata.creationTimestamp}`))
		slowest = max(slowest, took)
	}
	if slowest > 2*time.Second {
		t.Errorf("the slowest of five pods took %v from creation to running", slowest)
	}
}

func TestHostPort(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, client("c", "node1", "app: c")+`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: node2
  containers:
  - name: echo
    image: ghcr.io/weft-net/echo
    env: [{name: POD_NAME, value: web}]
    ports:
    - {containerPort: 8080, hostPort: 18080}
    - {containerPort: 9000, hostPort: 19000, protocol: UDP}
`)
	lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	for _, ip := range nodeIPs(t, "node2") {
		for _, p := range []place{fromHost("outside"), fromHost("node1"), fromHost("node2"), fromPod(ns, "c"), fromPod(ns, "web")} {
			for _, url := range []string{"http://" + hostport(ip, 18080) + "/", "udp://" + hostport(ip, 19000)} {
				if a := p.must(t, url); a.pods["web"] != 1 {
					t.Errorf("from %s to %s: answered by %v", p.name, url, a.pods)
				}
			}
		}
	}
	fromHost("outside").mustNot(t, "http://"+hostport(nodeIPs(t, "node1")[0], 18080)+"/")
	lab.Kubectl(t, "delete", "pod", "-n", ns, "web", "--grace-period=0", "--force")
	labtest.Eventually(t, 10*time.Second, func() error {
		if a := fromHost("outside").get(t, "-timeout", "300ms", "http://"+hostport(nodeIPs(t, "node2")[0], 18080)+"/"); a.answered > 0 {
			return fmt.Errorf("the host port of a pod that is gone still answers")
		}
		return nil
	})
}

// Agents that are killed again and again while pods come and go leak no link: in the end a node has one link for each
// of its pods that is not on the host's network.
func TestKilledAgentsLeakNothing(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("churn", 6, ""))
	lab.Rollout(t, ns, "deployment/churn")
	for i := range 6 {
		lab.Kubectl(t, "delete", "pods", "-n", ns, "-l", "app=churn", "--wait=false", "--grace-period=1")
		time.Sleep(time.Duration(i*130) * time.Millisecond) // at another moment of the wiring every time
		killAgent(t, nodes[i%len(nodes)])
	}
	labtest.Eventually(t, 90*time.Second, func() error {
		out := lab.Kubectl(t, "get", "deployment/churn", "-n", ns, "-o", "jsonpath={.status.readyReplicas}/{.status.replicas}")
		if out != "6/6" {
			return fmt.Errorf("churn is %s", out)
		}
		for _, n := range nodes {
			pods := wired(t, n)
			links, err := lab.Exec(t.Context(), n, "sh", "-c", "ls -d /sys/class/net/weft[0-9a-f]* | grep -vc vxlan")
			if err != nil {
				return err
			}
			if strings.TrimSpace(links) != fmt.Sprint(pods) {
				return fmt.Errorf("%s has %s links for %d pods", n, strings.TrimSpace(links), pods)
			}
		}
		return nil
	})
}

// wired counts a node's pods that have a network of their own.
func wired(t *testing.T, node string) int {
	t.Helper()
	var list struct {
		Items []struct{ Spec struct{ HostNetwork bool } }
	}
	out := lab.Kubectl(t, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range list.Items {
		if !p.Spec.HostNetwork {
			n++
		}
	}
	return n
}
