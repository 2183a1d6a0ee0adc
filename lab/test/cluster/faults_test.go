// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// nodeReady waits until the API says that of the node: True, False or Unknown.
func nodeReady(t *testing.T, node string, want ...string) {
	t.Helper()
	labtest.Eventually(t, 60*time.Second, func() error {
		got := lab.Get(t, "", "node/"+node, `{.status.conditions[?(@.type=="Ready")].status}`)
		for _, w := range want {
			if got == w {
				return nil
			}
		}
		return fmt.Errorf("Ready of %s is %s, want one of %v", node, got, want)
	})
}

// reachable tells whether `outside` reaches the node's kubelet.
func reachable(t *testing.T, address string) bool {
	t.Helper()
	_, err := lab.Exec(t.Context(), "outside", "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+address+"/10250")
	return err == nil
}

func TestPowerCut(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo)
	lab.Rollout(t, ns, "ds/echo")
	card := func() string {
		out, err := lab.Exec(t.Context(), "node3", "cat", "/sys/class/net/eth0/address")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := card()
	run(t, "node", "kill", "node3")
	if reachable(t, "172.30.0.13") {
		t.Error("node3 answers without power")
	}
	if out, err := lab.Exec(t.Context(), "node3", "true"); err == nil || !strings.Contains(err.Error(), "no power") {
		t.Errorf("exec on a node without power: %s, %v", out, err)
	}
	nodeReady(t, "node3", "Unknown")
	run(t, "node", "start", "node3")
	nodeReady(t, "node3", "True")
	if after := card(); after != before {
		t.Errorf("the power cut changed the node's network card: %s, then %s", before, after)
	}
	// The node's own pod is back, on the disk that the power cut left.
	lab.Rollout(t, ns, "ds/echo")
	labtest.Eventually(t, 60*time.Second, func() error {
		restarts := lab.Get(t, ns, "pods", `{.items[?(@.spec.nodeName=="node3")].status.containerStatuses[0].restartCount}`)
		ready := lab.Get(t, ns, "pods", `{.items[?(@.spec.nodeName=="node3")].status.containerStatuses[0].ready}`)
		if restarts == "0" || ready != "true" {
			return fmt.Errorf("the pod on node3 has %s restarts and readiness %s", restarts, ready)
		}
		return nil
	})
}

func TestShutdown(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo)
	lab.Rollout(t, ns, "ds/echo")
	run(t, "node", "stop", "node2")
	if out, err := lab.Exec(t.Context(), "node2", "sh", "-c", "ps -e -o comm= | grep -c -e echo -e kubelet -e weft-shim"); err == nil {
		t.Errorf("a node that was shut down still runs %s", out)
	}
	for _, n := range statusOf(t).Nodes {
		if n.Name == "node2" && n.State != "Stopped" {
			t.Errorf("node2 is %s", n.State)
		}
	}
	run(t, "node", "start", "node2")
	nodeReady(t, "node2", "True")
	lab.Rollout(t, ns, "ds/echo")
}

func TestPartition(t *testing.T) {
	run(t, "node", "partition", "node2")
	if reachable(t, "172.30.0.12") {
		t.Error("node2 is reached through a partition")
	}
	nodeReady(t, "node2", "Unknown")
	run(t, "node", "heal", "node2")
	nodeReady(t, "node2", "True")
	if !reachable(t, "172.30.0.12") {
		t.Error("node2 isn't reached after the partition")
	}
}

func TestAddAndRemove(t *testing.T) {
	run(t, "node", "add", "extra")
	nodeReady(t, "extra", "True")
	if _, err := lab.Run(t.Context(), "node", "add", "extra"); err == nil {
		t.Error("a second node of the same name was added")
	}
	run(t, "node", "remove", "extra")
	if out := lab.Kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(out, "extra") {
		t.Errorf("nodes after removal: %s", out)
	}
}

// TestControlPlaneAway shows that what runs goes on without the API server.
func TestControlPlaneAway(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo)
	lab.Rollout(t, ns, "ds/echo")
	service := lab.Get(t, ns, "svc/echo", "{.spec.clusterIP}")
	url := "http://" + service + "/healthz"
	get := func() error {
		_, err := lab.Exec(t.Context(), "node1", lab.Echo("node1"), "get", "-n", "20", url)
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	run(t, "component", "stop", "apiserver")
	if out, err := lab.Run(t.Context(), "kubectl", "get", "nodes", "--request-timeout=2s"); err == nil {
		t.Errorf("kubectl works without an API server: %s", out)
	}
	if err := get(); err != nil {
		t.Errorf("without an API server: %v", err)
	}
	run(t, "component", "start", "apiserver")
	labtest.Eventually(t, 60*time.Second, func() error {
		_, err := lab.Run(t.Context(), "kubectl", "get", "--raw", "/readyz", "--request-timeout=2s")
		return err
	})
	nodeReady(t, "node1", "True")
}

// TestKilledParts kills what a node is made of: every part comes back, and no pod notices.
func TestKilledParts(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo)
	lab.Rollout(t, ns, "ds/echo")
	pods := lab.Get(t, ns, "pods", "{.items[*].metadata.uid}")
	for _, part := range []string{"cri", "kubelet"} {
		run(t, "component", "kill", part, "--node", "node1")
	}
	for _, part := range []string{"etcd", "scheduler", "controller-manager", "apiserver"} {
		run(t, "component", "kill", part)
	}
	labtest.Eventually(t, 60*time.Second, func() error {
		for _, c := range statusOf(t).Components {
			if c.Pid == 0 {
				return fmt.Errorf("%s is not back", c.Name)
			}
		}
		_, err := lab.Run(t.Context(), "kubectl", "get", "--raw", "/readyz", "--request-timeout=2s")
		return err
	})
	// A new pod on that node shows that its kubelet and its CRI server work again.
	lab.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: after}
spec:
  nodeName: node1
  containers: [{name: echo, image: ghcr.io/weft-net/echo:1}]
`)
	lab.WaitFor(t, ns, "condition=Ready", "pod/after")
	if now := lab.Get(t, ns, "pods", "{.items[?(@.metadata.labels.app=='echo')].metadata.uid}"); now != pods {
		t.Errorf("pods before: %s, after: %s", pods, now)
	}
	if restarts := lab.Get(t, ns, "pods", "{.items[*].status.containerStatuses[0].restartCount}"); strings.Trim(restarts, "0 ") != "" {
		t.Errorf("restarts: %s", restarts)
	}
}
