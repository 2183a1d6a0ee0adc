// SPDX-License-Identifier: Apache-2.0

// Package gateway tests Gateway API as a user sees it: manifests in, requests from outside the cluster, each of them
// counted. The CRDs are installed when weft runs already. It imports labtest and client-go.
package gateway

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

var lab *labtest.Lab

func TestMain(m *testing.M) {
	if os.Getenv(probeEnv) != "" || os.Getenv(conversationsEnv) != "" {
		os.Exit(m.Run())
	}
	labtest.Main(m, &lab, labtest.Name("gateway"), "--nodes", "2")
}

// gatewayAPI installs the CRDs and a pool of addresses, once, and waits for weft's class.
var gatewayAPI = func() func(t *testing.T) {
	var once sync.Once
	return func(t *testing.T) {
		t.Helper()
		once.Do(func() {
			crds, err := filepath.Abs("../../../deploy/chart/upstream/gateway-api/standard")
			if err != nil {
				t.Fatal(err)
			}
			lab.Kubectl(t, "apply", "--server-side", "-f", crds)
			lab.Apply(t, "", `
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: gateways}
spec: {addresses: ["172.30.0.100-172.30.0.150", "fd00:30::100-fd00:30::1ff"]}
`)
		})
		labtest.Eventually(t, 60*time.Second, func() error {
			_, err := lab.Run(t.Context(), "kubectl", "wait", "gatewayclass/weft", "--for=condition=Accepted", "--timeout=10s")
			return err
		})
	}
}()

// echo is a Deployment and Service that say their name in each answer's pod.
func echo(name string, replicas int) string {
	return labtest.EchoDeployment(name, replicas) + fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
---
`, name)
}

const httpGateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: weft
  listeners:
  - {name: http, port: 80, protocol: HTTP}
---
`

func httpRoute(name, path, backend string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s}
spec:
  parentRefs: [{name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: %s}}]
    backendRefs: [{name: %s, port: 80}]
---
`, name, path, backend)
}

// programmed waits for the Gateway and gives its addresses.
func programmed(t *testing.T, ns, name string) []string {
	t.Helper()
	lab.WaitFor(t, ns, "condition=Programmed", "gateway/"+name)
	addrs := strings.Fields(lab.Get(t, ns, "gateway/"+name, "{.status.addresses[*].value}"))
	if len(addrs) == 0 {
		t.Fatal("programmed without an address")
	}
	return addrs
}

func url(addr, path string) string { return "http://" + net.JoinHostPort(addr, "80") + path }

// get sends one request from outside the cluster.
func get(ctx context.Context, url string) (string, error) {
	return lab.Exec(ctx, "outside", lab.Echo("outside"), "get", "-body", "-timeout", "3s", url)
}

// answers waits until the URL is answered by a pod of a Deployment.
func answers(t *testing.T, url, by string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, func() error {
		out, err := get(t.Context(), url)
		if err != nil {
			return err
		}
		if !strings.Contains(out, `"pod":"`+by+"-") {
			return fmt.Errorf("%s is answered by %s, want %s", url, out, by)
		}
		return nil
	})
}

// load sends requests until the function returned is called, which fails the test unless each was answered well. On
// connections of their own they are few enough that no port of the client comes round again while the kernel remembers
// its last connection (TIME_WAIT).
func load(t *testing.T, url string, args ...string) (stop func()) {
	t.Helper()
	command := []string{"exec", "--in", "outside", "--", lab.Echo("outside"), "get", "-q", "-c", "4", "-for", "10m", "-timeout", "5s"}
	tr := lab.Background(t, append(append(command, args...), url)...)
	return func() {
		t.Helper()
		out, err := tr.Stop()
		if err != nil || !strings.Contains(out, "failed 0") {
			t.Errorf("%v: %s", err, out)
		}
		t.Log(strings.TrimSpace(out))
	}
}

// A Gateway gets pods and an address, a route gets its requests to pods, over both families.
func TestFromGatewayToPods(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo("one", 2)+echo("two", 1)+httpGateway+httpRoute("one", "/", "one")+httpRoute("two", "/two", "two"))
	lab.Rollout(t, ns, "deploy/one")
	lab.Rollout(t, ns, "deploy/two")
	addrs := programmed(t, ns, "web")
	if len(addrs) != 2 {
		t.Errorf("addresses %v, want one of each family", addrs)
	}
	for _, a := range addrs {
		answers(t, url(a, "/"), "one")
		answers(t, url(a, "/two/x"), "two")
	}
	out, err := lab.Exec(t.Context(), "outside", lab.Echo("outside"), "get", "-n", "40", url(addrs[0], "/"))
	if err != nil || strings.Count(out, "one-") < 2 {
		t.Errorf("%v: %s", err, out)
	}
	// What was made for it, and how: restricted, spread, protected.
	lab.Rollout(t, ns, "deploy/web-weft")
	for path, want := range map[string]string{
		"{.spec.template.spec.automountServiceAccountToken}":                               "false",
		"{.spec.template.spec.securityContext.runAsNonRoot}":                               "true",
		"{.spec.template.spec.containers[0].securityContext.capabilities.drop}":            `["ALL"]`,
		"{.spec.template.spec.containers[0].securityContext.readOnlyRootFilesystem}":       "true",
		"{.spec.strategy.rollingUpdate.maxUnavailable}":                                    "0",
		"{.status.readyReplicas}":                                                          "2",
		`{.metadata.ownerReferences[0].kind}`:                                              "Gateway",
		`{.spec.template.metadata.labels.gateway\.networking\.k8s\.io/gateway-name}`:       "web",
		`{.spec.template.spec.containers[0].resources.requests.memory}`:                    "64Mi",
		`{.spec.template.spec.topologySpreadConstraints[0].topologyKey}`:                   "kubernetes.io/hostname",
		`{.spec.template.spec.volumes[?(@.name=="tables")].emptyDir.medium}`:               "Memory",
		`{.spec.template.spec.securityContext.seccompProfile.type}`:                        "RuntimeDefault",
		`{.spec.template.spec.containers[0].securityContext.allowPrivilegeEscalation}`:     "false",
		`{.spec.template.metadata.labels.gateway\.networking\.k8s\.io/gateway-class-name}`: "weft",
	} {
		if got := lab.Get(t, ns, "deploy/web-weft", path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	nodes := strings.Fields(lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "gateway.networking.k8s.io/gateway-name=web", "-o", "jsonpath={.items[*].spec.nodeName}"))
	if len(nodes) != 2 || nodes[0] == nodes[1] {
		t.Errorf("the pods are on %v, want two nodes", nodes)
	}
	if got := lab.Get(t, ns, "pdb/web-weft", "{.spec.maxUnavailable}"); got != "1" {
		t.Errorf("the PodDisruptionBudget allows %s", got)
	}
}

// No request fails when routes and backends change, when a gateway's pods are replaced, when a node is drained, or when
// the controller dies; what changes afterwards is served by the next one.
func TestNoRequestFails(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo("one", 2)+echo("two", 2)+httpGateway+httpRoute("r", "/", "one"))
	for _, d := range []string{"one", "two"} {
		lab.Rollout(t, ns, "deploy/"+d)
	}
	addr := programmed(t, ns, "web")[0]
	answers(t, url(addr, "/"), "one")
	lab.Rollout(t, ns, "deploy/web-weft")

	kept, anew := load(t, url(addr, "/"), "-keep", "-interval", "3ms"), load(t, url(addr, "/"), "-interval", "25ms")
	t.Run("routes", func(t *testing.T) {
		for range 5 {
			lab.Apply(t, ns, httpRoute("r", "/", "two"))
			answers(t, url(addr, "/"), "two")
			lab.Apply(t, ns, httpRoute("r", "/", "one"))
			answers(t, url(addr, "/"), "one")
		}
	})
	t.Run("other listeners", func(t *testing.T) {
		lab.Kubectl(t, "patch", "gateway/web", "-n", ns, "--type=json", "-p", `[{"op":"add","path":"/spec/listeners/-","value":{"name":"more","port":8080,"protocol":"HTTP"}}]`)
		labtest.Eventually(t, 30*time.Second, func() error {
			_, err := get(t.Context(), "http://"+net.JoinHostPort(addr, "8080")+"/")
			return err
		})
		lab.Kubectl(t, "patch", "gateway/web", "-n", ns, "--type=json", "-p", `[{"op":"remove","path":"/spec/listeners/1"}]`)
	})
	t.Run("backends", func(t *testing.T) {
		lab.Kubectl(t, "scale", "deploy/one", "-n", ns, "--replicas=4")
		lab.Rollout(t, ns, "deploy/one")
		lab.Kubectl(t, "scale", "deploy/one", "-n", ns, "--replicas=2")
		labtest.Eventually(t, 60*time.Second, func() error {
			if got := lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "app=one", "-o", "name"); strings.Count(got, "\n") != 2 {
				return fmt.Errorf("pods: %s", got)
			}
			return nil
		})
	})
	t.Run("gateway pods", func(t *testing.T) {
		lab.Kubectl(t, "rollout", "restart", "deploy/web-weft", "-n", ns)
		lab.Rollout(t, ns, "deploy/web-weft")
		labtest.Eventually(t, 90*time.Second, func() error { // the old ones drain
			if got := lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "gateway.networking.k8s.io/gateway-name=web", "-o", "name"); strings.Count(got, "\n") != 2 {
				return fmt.Errorf("pods: %s", got)
			}
			return nil
		})
	})
	t.Run("node drained", func(t *testing.T) {
		lab.Kubectl(t, "drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
		lab.Rollout(t, ns, "deploy/web-weft")
		lab.Kubectl(t, "uncordon", "node2")
		lab.Rollout(t, "kube-system", "deploy/weft-controller")
	})
	t.Run("controller", func(t *testing.T) {
		lab.Kubectl(t, "delete", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=controller", "--force", "--grace-period=0")
		// Nobody leads until the lease has run out: the pods serve on, and one that is new starts from what it kept.
		lab.Rollout(t, "kube-system", "deploy/weft-controller")
		lab.Apply(t, ns, httpRoute("r", "/", "two"))
		answersWithin(t, 60*time.Second, url(addr, "/"), "two")
		if got := lab.Get(t, ns, "gateway/web", `{.status.conditions[?(@.type=="Programmed")].status}`); got != "True" {
			t.Errorf("with the next controller the Gateway is programmed: %s", got)
		}
	})
	kept()
	anew()
}

func answersWithin(t *testing.T, limit time.Duration, url, by string) {
	t.Helper()
	labtest.Eventually(t, limit, func() error {
		out, err := get(t.Context(), url)
		if err == nil && !strings.Contains(out, `"pod":"`+by+"-") {
			err = fmt.Errorf("%s is answered by %s, want %s", url, out, by)
		}
		return err
	})
}

// A gateway whose container restarts while no controller is there serves what it kept.
func TestRestartWithoutController(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo("one", 1)+httpGateway+httpRoute("r", "/", "one"))
	lab.Rollout(t, ns, "deploy/one")
	addr := programmed(t, ns, "web")[0]
	answers(t, url(addr, "/"), "one")
	lab.Rollout(t, ns, "deploy/web-weft")
	lab.Kubectl(t, "scale", "deploy/weft-controller", "-n", "kube-system", "--replicas=0")
	defer func() {
		lab.Kubectl(t, "scale", "deploy/weft-controller", "-n", "kube-system", "--replicas=2")
		lab.Rollout(t, "kube-system", "deploy/weft-controller")
	}()
	labtest.Eventually(t, 60*time.Second, func() error {
		if got := lab.Kubectl(t, "get", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=controller", "-o", "name"); got != "" {
			return fmt.Errorf("still there: %s", got)
		}
		return nil
	})
	for _, pod := range strings.Fields(lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "gateway.networking.k8s.io/gateway-name=web", "-o", "jsonpath={.items[*].metadata.name}")) {
		node := lab.Get(t, ns, "pod/"+pod, "{.spec.nodeName}")
		if _, err := lab.Exec(t.Context(), node, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/weft gateway ' && tr '\0' '\n' <$p/environ | grep -qx POD_NAME=`+pod+` && kill -9 ${p#/proc/}; done; true`); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, 60*time.Second, func() error {
			if got := lab.Get(t, ns, "pod/"+pod, "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}"); got == "0 true" || !strings.HasSuffix(got, " true") {
				return fmt.Errorf("%s: restarts and readiness %s", pod, got)
			}
			return nil
		})
	}
	answers(t, url(addr, "/"), "one")
}

// What somebody changed or deleted of a Gateway's parts is put right, and with the Gateway everything goes.
func TestPartsAreKeptAndTornDown(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, `
apiVersion: weft.dev/v1alpha1
kind: GatewayConfig
metadata: {name: small}
spec: {replicas: 1, drainSeconds: 1, resources: {requests: {cpu: 10m, memory: 32Mi}}, accessLog: {format: json}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: weft
  addresses: [{value: 172.30.0.149}]
  infrastructure:
    labels: {team: shop}
    annotations: {example.com/note: hello}
    parametersRef: {group: weft.dev, kind: GatewayConfig, name: small}
  listeners:
  - {name: http, port: 80, protocol: HTTP}
`)
	addrs := programmed(t, ns, "web")
	if addrs[0] != "172.30.0.149" {
		t.Errorf("addresses %v, want the one asked for", addrs)
	}
	for object, path := range map[string]string{
		"deploy/web-weft": "{.metadata.labels.team}{.metadata.annotations.example\\.com/note}{.spec.template.metadata.labels.team}{.spec.replicas}{.spec.template.spec.containers[0].resources.requests.memory}",
	} {
		if got, want := lab.Get(t, ns, object, path), "shophelloshop132Mi"; got != want {
			t.Errorf("%s: %s, want %s", object, got, want)
		}
	}
	lab.Kubectl(t, "delete", "service/web-weft", "-n", ns)
	lab.Kubectl(t, "scale", "deploy/web-weft", "-n", ns, "--replicas=3")
	lab.Kubectl(t, "label", "serviceaccount/web-weft", "-n", ns, "team=other", "--overwrite")
	labtest.Eventually(t, 30*time.Second, func() error {
		out, err := lab.Run(t.Context(), "kubectl", "get", "-n", ns, "service/web-weft", "deploy/web-weft", "serviceaccount/web-weft", "-o", "jsonpath={range .items[*]}{.spec.replicas}{.spec.type}{.metadata.labels.team} {end}")
		if err != nil || strings.TrimSpace(out) != "LoadBalancershop 1shop shop" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if got := programmed(t, ns, "web"); got[0] != "172.30.0.149" {
		t.Errorf("addresses %v", got)
	}
	lab.Kubectl(t, "delete", "gateway/web", "-n", ns)
	labtest.Eventually(t, 60*time.Second, func() error {
		out := lab.Kubectl(t, "get", "-n", ns, "deploy,service,serviceaccount,secret,pdb,pods", "-l", "gateway.networking.k8s.io/gateway-name=web", "-o", "name")
		if out != "" {
			return fmt.Errorf("left: %s", out)
		}
		return nil
	})
}
