// SPDX-License-Identifier: Apache-2.0

// Package network holds the tests of weft as a user sees it: objects in with kubectl, packets out, every request
// counted. They share one lab of three nodes.
package network

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

var lab *labtest.Lab

func TestMain(m *testing.M) { labtest.Main(m, &lab, labtest.Name("network"), "--nodes", "3") }

var nodes = []string{"node1", "node2", "node3"}

// deployment is an echo server of so many replicas, spread over the nodes; more is put into the container.
func deployment(name string, replicas int, more string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %[1]s}}}
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
%[3]s---
`, name, replicas, more)
}

// client is a pod to send from, on a node of choice.
func client(name, node, labels string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {%s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: ghcr.io/weft-net/echo
    env:
    - {name: DRAIN, value: 0s}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
---
`, name, labels, node)
}

// service is a dual-stack Service of the deployment of that app; more is put into its spec.
func service(name, app, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: %s}
%s
---
`, name, app, more)
}

const httpPort = "  ports: [{name: http, port: 80, targetPort: http}]"

// answers is a summary of `echo get`.
type answers struct {
	sent, answered, failed int
	pods                   map[string]int
	clients                []string // addresses that the server saw
	text                   string
}

var (
	sums   = regexp.MustCompile(`sent (\d+), answered (\d+), failed (\d+)`)
	counts = regexp.MustCompile(`(\d+) answered by (\S+)`)
	seen   = regexp.MustCompile(`client=\[?([0-9a-f.:]+?)\]?:\d+ `)
)

func parse(text string) answers {
	a := answers{text: text, pods: map[string]int{}}
	if m := sums.FindStringSubmatch(text); m != nil {
		a.sent, _ = strconv.Atoi(m[1])
		a.answered, _ = strconv.Atoi(m[2])
		a.failed, _ = strconv.Atoi(m[3])
	}
	for _, m := range counts.FindAllStringSubmatch(text, -1) {
		a.pods[m[2]], _ = strconv.Atoi(m[1])
	}
	for _, m := range seen.FindAllStringSubmatch(text, -1) {
		a.clients = append(a.clients, m[1])
	}
	return a
}

// place is where a request is sent from.
type place struct {
	name string
	run  func(ctx context.Context, args ...string) (string, error) // runs `echo get`
}

func fromPod(namespace, pod string) place {
	return place{"pod " + pod, func(ctx context.Context, args ...string) (string, error) {
		return lab.PodExec(ctx, namespace, pod, append([]string{"/echo", "get"}, args...)...)
	}}
}

// fromHost sends from a host of the lab.
func fromHost(host string) place {
	return place{host, func(ctx context.Context, args ...string) (string, error) {
		return lab.Exec(ctx, host, append([]string{lab.Echo(host), "get"}, args...)...)
	}}
}

// get sends and returns what came of it; failures are the caller's to judge.
func (p place) get(t testing.TB, args ...string) answers {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out, err := p.run(ctx, append([]string{"-timeout", "2s"}, args...)...)
	if err != nil && !sums.MatchString(out) {
		t.Fatalf("from %s: %v", p.name, err)
	}
	return parse(out)
}

// must sends, and wants every request answered.
func (p place) must(t testing.TB, args ...string) answers {
	t.Helper()
	a := p.get(t, args...)
	if a.sent == 0 || a.failed > 0 {
		t.Errorf("from %s: echo get %s:\n%s", p.name, strings.Join(args, " "), a.text)
	}
	return a
}

// mustNot sends, and wants every request refused or left unanswered.
func (p place) mustNot(t testing.TB, args ...string) answers {
	t.Helper()
	a := p.get(t, append([]string{"-timeout", "700ms"}, args...)...)
	if a.sent == 0 || a.answered > 0 {
		t.Errorf("from %s: echo get %s was answered:\n%s", p.name, strings.Join(args, " "), a.text)
	}
	return a
}

// addresses are an object's addresses: IPv4 first as the lab is set up.
func addresses(t testing.TB, namespace, object, jsonpath string) []string {
	t.Helper()
	return strings.Fields(lab.Get(t, namespace, object, jsonpath))
}

func podIPs(t testing.TB, namespace, pod string) []string {
	t.Helper()
	return addresses(t, namespace, "pod/"+pod, "{.status.podIPs[*].ip}")
}

func clusterIPs(t testing.TB, namespace, service string) []string {
	t.Helper()
	return addresses(t, namespace, "service/"+service, "{.spec.clusterIPs[*]}")
}

func nodeIPs(t testing.TB, node string) []string {
	t.Helper()
	return addresses(t, "default", "node/"+node, `{.status.addresses[?(@.type=="InternalIP")].address}`)
}

// hostport joins for a URL.
func hostport(ip string, port int) string {
	if strings.Contains(ip, ":") {
		return fmt.Sprintf("[%s]:%d", ip, port)
	}
	return fmt.Sprintf("%s:%d", ip, port)
}

// readyPods are the pods that an app's Service sends to now.
func readyPods(t testing.TB, namespace, service string) []string {
	t.Helper()
	return addresses(t, namespace, "endpointslices",
		fmt.Sprintf(`{.items[?(@.metadata.labels.kubernetes\.io/service-name==%q)].endpoints[?(@.conditions.ready==true)].targetRef.name}`, service))
}

// podsOf lists an app's pods by node.
func podsOf(t testing.TB, namespace, app string) map[string][]string {
	t.Helper()
	out := lab.Kubectl(t, "get", "pods", "-n", namespace, "-l", "app="+app, "-o", "json")
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	by := map[string][]string{}
	for _, p := range list.Items {
		by[p.Spec.NodeName] = append(by[p.Spec.NodeName], p.Metadata.Name)
	}
	return by
}

// killAgent ends the node's agent with SIGKILL; kubelet starts it again.
func killAgent(t testing.TB, node string) {
	t.Helper()
	const script = `n=0; for p in /proc/[0-9]*; do
		if tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/weft node '; then kill -9 ${p#/proc/} && n=$((n+1)); fi
	done; echo killed $n`
	out, err := lab.Exec(t.Context(), node, "sh", "-c", script)
	if err != nil || !strings.Contains(out, "killed 1") {
		t.Errorf("kill the agent on %s: %v: %s", node, err, out)
	}
}

// hammer sends from a pod beside the test; the returned function stops it and wants that nothing failed.
func hammer(t *testing.T, namespace, pod, url string, more ...string) func() {
	t.Helper()
	args := append([]string{"kubectl", "exec", "-n", namespace, pod, "--", "/echo", "get", "-for", "120s", "-c", "4", "-interval", "5ms", "-timeout", "3s", "-q"}, more...)
	tr := lab.Background(t, append(args, url)...)
	return func() {
		t.Helper()
		// kubectl does not pass SIGINT on: the client in the pod is told itself.
		if _, err := lab.PodExec(t.Context(), namespace, pod, "/echo", "stop"); err != nil {
			t.Errorf("stop the client: %v", err)
		}
		out, err := tr.Wait()
		a := parse(out)
		if a.sent < 100 || a.failed > 0 || err != nil {
			t.Errorf("under load: %v\n%s", err, out)
			return
		}
		t.Logf("%d requests, none failed", a.sent)
	}
}
