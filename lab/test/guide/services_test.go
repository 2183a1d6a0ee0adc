// SPDX-License-Identifier: Apache-2.0

package guide

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

const pool = `
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: guide}
spec: {addresses: ["172.30.0.200-172.30.0.220"]}
---
`

// client is a pod to ask from.
const client = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: echo, image: ghcr.io/weft-net/echo, env: [{name: DRAIN, value: 0s}]}
---
`

// TestServices is section 2: every type of Service, as the guide says where it can be reached and by which name.
func TestServices(t *testing.T) {
	namespaces(t, shop)
	lab.Apply(t, shop, pool+client+
		app("web", "app: web, tier: frontend", port("HTTP", "8080"), "")+
		app("frontend", "app: frontend", port("HTTP", "8080"), "")+
		app("backend", "app: backend", port("HTTP", "5000"), "")+
		app("api", "app: api", port("HTTP", "5000"), "")+
		app("redis", "app: redis", port("TCP", "6379"), "")+
		kafka)
	lab.Apply(t, shop, manifests(t, "services"))
	ready(t)
	lab.WaitFor(t, shop, "condition=Ready", "pod/client")
	lab.Rollout(t, shop, "statefulset/kafka")

	ask := func(args ...string) (string, error) {
		return lab.PodExec(t.Context(), shop, "client", append([]string{"/echo", "get", "-timeout", "2s"}, args...)...)
	}
	for name, tc := range map[string]struct{ url, pod string }{
		"2.2 select":          {"http://frontend-svc/", "web-"},
		"2.3.1 ClusterIP":     {"http://backend.shop.svc.cluster.local:5000/", "backend-"},
		"2.3.2 its ClusterIP": {"http://frontend-nodeport/", "frontend-"},
		"2.3.5 headless":      {"http://kafka-0.kafka.shop.svc.cluster.local:9092/", "kafka-0"},
		"2.3.5 all of them":   {"http://kafka:9092/", "kafka-"},
		"2.7.1 ClusterIP":     {"http://api-backend.shop.svc.cluster.local:5000/", "api-"},
	} {
		t.Run(name, func(t *testing.T) {
			labtest.Eventually(t, 20*time.Second, func() error {
				out, err := ask("-n", "4", tc.url)
				if err != nil || !strings.Contains(out, tc.pod) {
					return fmt.Errorf("%s: %w\n%s", tc.url, err, out)
				}
				return nil
			})
		})
	}
	t.Run("2.3.4 and 2.7.4 ExternalName", func(t *testing.T) {
		for service, target := range map[string]string{"external-db": "db.example.net", "legacy-db": "db.legacy.example.net"} {
			out := weft(t, "dns", "query", "-n", shop, service+"."+shop+".svc.cluster.local", "--type", "CNAME")
			if !strings.Contains(out, target) {
				t.Errorf("%s: %s", service, out)
			}
		}
	})
	t.Run("2.3.2 NodePort", func(t *testing.T) {
		for _, node := range []string{"node1", "node2"} {
			answered(t, []string{`"frontend-`}, "http://"+nodeIP(t, node)+":30080/")
		}
	})
	t.Run("2.3.3 LoadBalancer", func(t *testing.T) {
		answered(t, []string{`"frontend-`}, "http://"+loadBalancerIP(t, "frontend-lb")+"/")
	})
	t.Run("2.7.3 LoadBalancer", func(t *testing.T) {
		url := "tcp://" + loadBalancerIP(t, "redis-lb") + ":6379"
		labtest.Eventually(t, 20*time.Second, func() error {
			out, err := lab.Exec(t.Context(), "outside", lab.Echo("outside"), "get", "-timeout", "2s", url)
			if err != nil || !strings.Contains(out, "redis-") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	})
	t.Run("2.6.1 affinity", func(t *testing.T) {
		out, err := ask("-n", "20", "-q", "http://sticky/")
		if err != nil || strings.Count(out, "answered by") != 1 {
			t.Errorf("not one pod: %v\n%s", err, out)
		}
	})
	t.Run("2.7.2 NodePort, local", func(t *testing.T) {
		for _, node := range []string{"node1", "node2"} {
			labtest.Eventually(t, 20*time.Second, func() error {
				out, err := lab.Exec(t.Context(), "outside", lab.Echo("outside"), "get", "-timeout", "2s", "-n", "8", "-body", "http://"+nodeIP(t, node)+":31000/")
				switch {
				case err != nil:
					return fmt.Errorf("%w: %s", err, out)
				case strings.Count(out, `"node":"`+node+`"`) != 8:
					return fmt.Errorf("not all of %s: %s", node, out)
				case !strings.Contains(out, `"client":"`+outsideIP(t)+":"):
					return fmt.Errorf("the client is not seen: %s", out)
				}
				return nil
			})
		}
	})
}

const kafka = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: kafka}
spec:
  serviceName: kafka
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: kafka}}
  template:
    metadata: {labels: {app: kafka}}
    spec:
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo
        env: [{name: HTTP_PORT, value: "9092"}, {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
---
`

// weft runs it as a person beyond the cluster would.
func weft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab.Exec(t.Context(), "outside", append([]string{weftBinary(t)}, args...)...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

func weftBinary(t *testing.T) string {
	t.Helper()
	bin, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, "weft")
}

// nodeIP is the node's IPv4 address.
func nodeIP(t *testing.T, node string) string {
	t.Helper()
	return strings.Fields(lab.Get(t, "default", "node/"+node, `{.status.addresses[?(@.type=="InternalIP")].address}`))[0]
}

// outsideIP is the client's own address on the nodes' network.
func outsideIP(t *testing.T) string {
	t.Helper()
	out, err := lab.Exec(t.Context(), "outside", "sh", "-c", "ip -o -4 route get "+nodeIP(t, "node1")+" | sed 's/.* src //; s/ .*//'")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func loadBalancerIP(t *testing.T, name string) string {
	t.Helper()
	var ip string
	labtest.Eventually(t, 20*time.Second, func() error {
		out, err := lab.Run(context.Background(), "kubectl", "get", "-n", shop, "service/"+name, "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if ip = strings.TrimSpace(out); err != nil || ip == "" {
			return fmt.Errorf("%s has no address: %w", name, err)
		}
		return nil
	})
	return ip
}
