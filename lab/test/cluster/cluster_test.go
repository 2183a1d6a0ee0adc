// SPDX-License-Identifier: Apache-2.0

// Package cluster tests what a lab offers to those who use it: nodes that can be broken and mended, commands on its
// hosts, ways in from this machine, images, and a Kubernetes that behaves.
package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

var lab *labtest.Lab

func TestMain(m *testing.M) { labtest.Main(m, &lab, labtest.Name("cluster"), "--nodes", "3") }

// echo is a server on every node.
const echo = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 3
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo:1
        env:
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
`

type status struct {
	Ready  bool
	Server string
	Memory struct{ Total uint64 }
	Nodes  []struct {
		Name, State, Zone string
		Addresses         []string
		PodCIDRs          []string
		Services          []struct {
			Name     string
			Pid      int
			Restarts int
		}
	}
	Components []struct {
		Name     string
		Wanted   bool
		Pid      int
		Restarts int
	}
}

func statusOf(t testing.TB) status {
	t.Helper()
	out, err := lab.Run(t.Context(), "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var s status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := lab.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFreshLab is first, so that what it measures is a lab that nothing was done to.
func TestFreshLab(t *testing.T) {
	s := statusOf(t)
	if len(s.Nodes) != 3 || !s.Ready {
		t.Fatalf("status: %+v", s)
	}
	zones := map[string]bool{}
	for _, n := range s.Nodes {
		if n.State != "Ready" || len(n.Addresses) != 2 || len(n.PodCIDRs) != 2 {
			t.Errorf("node: %+v", n)
		}
		zones[n.Zone] = true
		for _, service := range n.Services {
			if service.Restarts != 0 || service.Pid == 0 {
				t.Errorf("%s on %s: %+v", service.Name, n.Name, service)
			}
		}
	}
	if len(zones) != 3 {
		t.Errorf("zones: %v", zones)
	}
	for _, c := range s.Components {
		if c.Restarts != 0 || c.Pid == 0 {
			t.Errorf("component: %+v", c)
		}
	}
	const limit = 1536 << 20
	if s.Memory.Total > limit {
		t.Errorf("3 nodes take %d MiB, want at most %d", s.Memory.Total>>20, limit>>20)
	}
	t.Logf("3 nodes with weft: %d MiB", s.Memory.Total>>20)
	for line := range strings.Lines(lab.Stderr()) {
		if strings.Contains(line, "is ready") {
			t.Log(strings.TrimSpace(line))
		}
	}
	for version := range strings.FieldsSeq(lab.Get(t, "", "nodes", "{.items[*].status.nodeInfo.kubeletVersion}")) {
		if !strings.HasPrefix(version, "v1.37.") {
			t.Errorf("a node runs Kubernetes %s, want v1.37: link weft-lab-kube with its version", version)
		}
	}
	if labels := lab.Get(t, "", "node/node2", "{.metadata.labels}"); !strings.Contains(labels, `"topology.kubernetes.io/zone":"zone-b"`) ||
		!strings.Contains(labels, `"topology.kubernetes.io/region":"lab"`) {
		t.Errorf("labels of node2: %s", labels)
	}
}

func TestExec(t *testing.T) {
	if out := run(t, "exec", "--", "sh", "-c", "hostname -I >/dev/null; cat /proc/net/fib_trie"); !strings.Contains(out, "203.0.113.1") {
		t.Error("outside doesn't have the internet's address")
	}
	if _, err := lab.Run(t.Context(), "exec", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("exit 7: %v", err)
	}
	if out, err := lab.RunWith(t.Context(), "through\n", "exec", "--in", "node1", "--", "cat"); err != nil || out != "through\n" {
		t.Errorf("stdin: %q, %v", out, err)
	}
	if out, err := lab.RunWith(t.Context(), "through\n", "exec", "--stdin=false", "--", "cat"); err != nil || out != "" {
		t.Errorf("no stdin: %q, %v", out, err)
	}
	for _, host := range []string{"outside", "control", "node3"} {
		out, err := lab.Exec(t.Context(), host, "kubectl", "get", "nodes", "-o", "name")
		if err != nil || strings.Count(out, "node/") != 3 {
			t.Errorf("kubectl on %s: %q, %v", host, out, err)
		}
	}
	if _, err := lab.Exec(t.Context(), "node9", "true"); err == nil || !strings.Contains(err.Error(), `no node "node9"`) {
		t.Errorf("a host that isn't: %v", err)
	}
	if _, err := lab.Exec(t.Context(), "outside", "no-such-program"); err == nil || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("a program that isn't: %v", err)
	}
}

// TestNodeHasItsOwnFiles shows that a node can't reach the host's.
func TestNodeHasItsOwnFiles(t *testing.T) {
	for _, path := range []string{"/usr/weft-lab-test", "/weft-lab-test"} {
		if out, err := lab.Exec(t.Context(), "node1", "touch", path); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("touch %s on a node: %s, %v", path, out, err)
		}
	}
	for _, path := range []string{"/etc/weft-lab-test", "/var/weft-lab-test", "/tmp/weft-lab-test", "/run/weft-lab-test", "/opt/weft-lab-test"} {
		if _, err := lab.Exec(t.Context(), "node1", "touch", path); err != nil {
			t.Errorf("touch %s on a node: %v", path, err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s of a node is on the host", path)
		}
		if _, err := lab.Exec(t.Context(), "node2", "stat", path); err == nil {
			t.Errorf("%s of node1 is on node2", path)
		}
	}
	if _, err := lab.Exec(t.Context(), "node1", "sh", "-c", "echo 1 > /proc/sys/vm/overcommit_memory"); err == nil {
		// What the node sees there is a file of its own.
		host, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("the host's vm.overcommit_memory stays %s", strings.TrimSpace(string(host)))
	}
	if _, err := lab.Exec(t.Context(), "node1", "sh", "-c", "echo 60 > /proc/sys/vm/swappiness"); err == nil {
		t.Error("a node can set the host's vm.swappiness")
	}
}

func TestPod(t *testing.T) {
	ns := lab.Namespace(t)
	started := time.Now()
	lab.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: tools}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: tools
    image: ghcr.io/weft-net/tools:1
    command: [sh, -c, "echo began; exec sleep 3600"]
`)
	lab.WaitFor(t, ns, "condition=Ready", "pod/tools")
	t.Logf("ready %v after apply", time.Since(started).Round(time.Millisecond))
	if out := lab.Kubectl(t, "logs", "-n", ns, "tools"); out != "began\n" {
		t.Errorf("logs: %q", out)
	}
	if out, err := lab.PodExec(t.Context(), ns, "tools", "sh", "-c", "cat /etc/resolv.conf"); err != nil || !strings.Contains(out, "nameserver 10.96.0.10") {
		t.Errorf("resolv.conf: %q, %v", out, err)
	}
	if _, err := lab.PodExec(t.Context(), ns, "tools", "sh", "-c", "exit 3"); err == nil || !strings.Contains(err.Error(), "exit code 3") {
		t.Errorf("exit 3: %v", err)
	}
	lab.Kubectl(t, "delete", "pod", "-n", ns, "tools", "--timeout=30s")
}

func TestImages(t *testing.T) {
	ns := lab.Namespace(t)
	bin, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	run(t, "load", "example.com/mine:*", "--binary", filepath.Join(bin, "echo"))
	if out := run(t, "images"); !strings.Contains(out, "example.com/mine:*") || !strings.Contains(out, "ghcr.io/weft-net/weft:*") {
		t.Errorf("images: %s", out)
	}
	lab.Kubectl(t, "run", "-n", ns, "mine", "--image=example.com/mine:v7")
	lab.WaitFor(t, ns, "condition=Ready", "pod/mine")

	lab.Kubectl(t, "run", "-n", ns, "missing", "--image=host.localhost:1/missing:v1")
	labtest.Eventually(t, 30*time.Second, func() error {
		said := lab.Get(t, ns, "pod/missing", "{.status.containerStatuses[0].state.waiting}")
		if !strings.Contains(said, "ImagePull") || !strings.Contains(said, "weft lab load") {
			return fmt.Errorf("a missing image: %s", said)
		}
		return nil
	})
}
