// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const shopManifests = `
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: east}}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {topology.kubernetes.io/zone: west}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80]
  ipFamilies: [IPv4]
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.2], nodeName: n1, conditions: {ready: true}}
- {addresses: [10.244.1.3], nodeName: n1, conditions: {ready: false}}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
`

func run(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		out.WriteString("error: " + err.Error())
	}
	return out.String()
}

func TestServiceCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shop.yaml")
	if err := os.WriteFile(file, []byte(shopManifests), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"service", "web", "-n", "shop", "-f", file}, []string{
			"From node n1:", "From node n2:",
			"clusterIP 10.96.0.80:80/TCP (http): forwarded to 1 endpoint\n",
			"nodePort *:30080/TCP (IPv4) (http): forwarded to 1 endpoint of this node; from the node itself and its pods, to 1 endpoint anywhere",
			"nodePort *:30080/TCP (IPv4) (http): dropped: the traffic policy is Local and no endpoint on this node is ready",
			"10.244.1.3:8080  -  n1  not used: not ready",
			"10.244.1.2:8080  -  n1  only from this node and its pods: on node n1, and the traffic policy is Local",
		}},
		{[]string{"service", "shop/web", "--node", "n1", "-o", "yaml", "-f", file}, []string{"address: 10.244.1.2:8080", "used: true", "why: not ready"}},
		{[]string{"service", "alias", "-n", "shop", "-f", file}, []string{"ExternalName is a DNS alias"}},
		{[]string{"service", "nobody", "-n", "shop", "-f", file}, []string{"error: there is no Service shop/nobody"}},
		{[]string{"service", "web", "--node", "n9", "-f", file}, []string{`error: there is no node "n9": the nodes are`}},
		{[]string{"status", "services", "-A", "-f", file}, []string{"1/2", "dropped: the traffic policy is Local", "(on n2)", "ExternalName is a DNS alias"}},
	} {
		got := run(t, c.args...)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("weft %s:\n%s\nlacks %q", strings.Join(c.args, " "), got, want)
			}
		}
	}
}

const idleManifests = `
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Service
metadata: {name: byhand, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {selector: {app: wbe, tier: front}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: misnamed, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: htpp}, {name: admin, port: 81, targetPort: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
spec: {nodeName: n1, containers: [{name: web, image: web, ports: [{name: http, containerPort: 8080}]}]}
`

// TestServiceSaysWhy: a Service that refuses, or lacks something, says what and why.
func TestServiceSaysWhy(t *testing.T) {
	dir := t.TempDir()
	file, alone := filepath.Join(dir, "shop.yaml"), filepath.Join(dir, "alone.yaml")
	_, services, _ := strings.Cut(idleManifests, "---\n")
	services = services[:strings.LastIndex(services, "---\n")]
	for f, text := range map[string]string{file: idleManifests, alone: services} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ line, want string }{
		{"service byhand", "refused: there are no endpoints\n\nWhy port 80/TCP has no endpoint:\n  it has no selector, and nobody has written EndpointSlices for it\n"},
		{"service nobody", "  no pod in namespace shop matches its selector app=wbe,tier=front\n  pod shop/web lacks only app=wbe"},
		{"service misnamed", `pod shop/web has no container port named "htpp" for targetPort`},
		{"service misnamed -o yaml", "noEndpoints:\n- port: 80/TCP\n  why:\n"},
		{"service svc/shop/front", "Service shop/front"},
		{"service services/front", "Service shop/front"},
		{"service a/b/c", `error: "a/b/c": want NAME, NAMESPACE/NAME, svc/NAME or svc/NAMESPACE/NAME`},
		{"policy netpol/db", "error: there is no NetworkPolicy shop/db and no"},
		{"status services", "direct     ClusterIP      0           1/1               headless"},
		{"status services", "forwarded; the load balancer's address is pending (weft addresses says why)"},
	} {
		if got := run(t, append(strings.Fields(c.line), "-n", "shop", "-f", file)...); !strings.Contains(got, c.want) {
			t.Errorf("weft %s:\n%s\nlacks %q", c.line, got, c.want)
		}
	}
	if got := run(t, "service", "misnamed", "-n", "shop", "-f", file); strings.Contains(got, "Why port 81") {
		t.Errorf("a port that is served is explained:\n%s", got)
	}
	if got := run(t, "service", "front", "-n", "shop", "-f", alone); !strings.Contains(got, "there are no nodes in the manifests") {
		t.Errorf("without nodes: %s", got)
	}
}

const nodePortManifests = `
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.1.1}, {type: InternalIP, address: 192.168.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.168.2.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80]
  ipFamilies: [IPv4]
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: TCP}]
`

// TestNodePortsWhereTheyAre: a node port that is on some of the nodes' addresses is shown there, and nowhere else.
func TestNodePortsWhereTheyAre(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shop.yaml")
	if err := os.WriteFile(file, []byte(nodePortManifests), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(more ...string) string {
		return run(t, append([]string{"service", "web", "-n", "shop", "-f", file}, more...)...)
	}
	if out := ask(); !strings.Contains(out, "From every node (2)") || !strings.Contains(out, "nodePort *:30080/TCP (IPv4)") || strings.Contains(out, "addresses") {
		t.Errorf("without limits:\n%s", out)
	}
	out := ask("--nodeport-addresses", "192.168.1.0/24,fd00::/64")
	n1, n2, ok := strings.Cut(out, "From node n2:")
	if !ok || !strings.Contains(n1, "nodePort *:30080/TCP (IPv4) (http): ") || !strings.Contains(n1, "; on the node's addresses in 192.168.1.0/24 only") {
		t.Errorf("n1:\n%s", n1)
	}
	if strings.Contains(n2, "\n  nodePort") || !strings.Contains(n2, "not open: nodePort *:30080/TCP (IPv4): none of the node's addresses is in 192.168.1.0/24") {
		t.Errorf("n2:\n%s", n2)
	}
	if out := ask("--nodeport-addresses", "primary", "--node", "n1"); !strings.Contains(out, "in 192.168.1.1/32 only") {
		t.Errorf("primary:\n%s", out)
	}
	if out := ask("--nodeport-addresses", "nonsense"); !strings.Contains(out, "error: --nodeport-addresses") {
		t.Errorf("nonsense:\n%s", out)
	}
}

// TestAgentsFlags: what an agent was started with is read from its pod, whatever else it was started with.
func TestAgentsFlags(t *testing.T) {
	for _, x := range []struct {
		args []string
		want nodePortFlags
	}{
		{[]string{"node", "--node-name=$(NODE_NAME)", "--metrics-bind-address=:9640"}, nodePortFlags{}},
		{[]string{"node", "--nodeport-addresses=10.0.0.0/8,fd00::/8", "--log-admitted", "--no-loopback-nodeports"},
			nodePortFlags{[]string{"10.0.0.0/8", "fd00::/8"}, true}},
		{[]string{"node", "--dns-namespace", "kube-system", "--nodeport-addresses", "primary"}, nodePortFlags{addresses: []string{"primary"}}},
	} {
		got, err := nodePortsOf(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Args: x.args}}}})
		if err != nil || !reflect.DeepEqual(got, &x.want) {
			t.Errorf("%q: %+v, %v, want %+v", x.args, got, err, x.want)
		}
	}
}
