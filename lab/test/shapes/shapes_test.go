// SPDX-License-Identifier: Apache-2.0

// Package shapes tests that weft carries traffic in labs of every shape: each IP family alone, nodes on networks of
// their own, and as an ordinary user.
package shapes

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-net/weft/lab/labtest"
)

// servers is an echo server on every node, a Service for them, and a client.
const servers = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo:1
        env:
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: echo, image: ghcr.io/weft-net/echo:1}]
`

func TestShapes(t *testing.T) {
	labtest.Require(t, labtest.Possible())
	shapes := []struct {
		name     string
		args     []string
		families int
		ordinary bool
	}{
		{"IPv4 only", []string{"--ip-family", "ipv4"}, 1, false},
		{"IPv6 only, on two networks", []string{"--ip-family", "ipv6", "--subnets", "2"}, 1, false},
		{"both, on two networks", []string{"--subnets", "2"}, 2, false},
		{"both, as an ordinary user", nil, 2, true},
	}
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			var options []labtest.Option
			if shape.ordinary {
				options = labtest.OrdinaryUser(t) // where we are one already, that is nothing more
			}
			l, err := labtest.Start(labtest.Name("shape"), append([]string{"--nodes", "2"}, shape.args...), options...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.Stop)
			carriesTraffic(t, l, shape.families)
		})
	}
}

func carriesTraffic(t *testing.T, l *labtest.Lab, families int) {
	l.Apply(t, "default", servers)
	l.Rollout(t, "default", "ds/echo")
	l.WaitFor(t, "default", "condition=Ready", "pod/client")
	pods := strings.Fields(l.Get(t, "default", "pods", `{.items[?(@.metadata.labels.app=="echo")].status.podIPs[*].ip}`))
	services := strings.Fields(l.Get(t, "default", "svc/echo", "{.spec.clusterIPs[*]}"))
	if len(pods) != 2*families || len(services) != families {
		t.Fatalf("addresses of 2 pods: %v, of the Service: %v; want %d for each", pods, services, families)
	}
	get := func(host, port string, count int) {
		t.Helper()
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		url := fmt.Sprintf("http://%s:%s/", host, port)
		out, err := l.PodExec(t.Context(), "default", "client", "/echo", "get", "-n", fmt.Sprint(count), url)
		if err != nil {
			t.Errorf("from the client on node1 to %s: %v", url, err)
		}
		// Of the Service, every pod answers some of that many requests.
		if count > 1 && (!strings.Contains(out, "node=node1") || !strings.Contains(out, "node=node2")) {
			t.Errorf("not every node's pod answered at %s:\n%s", url, out)
		}
	}
	for _, pod := range pods {
		get(pod, "8080", 1)
	}
	for _, service := range append(services, "echo", "echo.default.svc.cluster.local") {
		get(service, "80", 40)
	}
	// Beyond the cluster nobody knows the pods' addresses, so their requests must come back to their node.
	get("internet.example", "80", 1)
}
