// SPDX-License-Identifier: Apache-2.0

// Package exposure tests the ways in which the gateway of Ingresses can be reached (the guide's section 3.7), each in a
// lab of its own, installed so. It imports labtest.
package exposure

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

const app = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 1
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo:dev
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: echo}
spec:
  ingressClassName: weft
  defaultBackend: {service: {name: echo, port: {number: 80}}}
`

func TestExposure(t *testing.T) {
	if err := labtest.Possible(); err != nil {
		labtest.Require(t, err)
	}
	for _, c := range []struct {
		name  string
		ports [2]string // http, https; "": NodePorts
	}{{"HostPort", [2]string{"80", "443"}}, {"HostNetwork", [2]string{"80", "443"}}, {"NodePort", [2]string{"", ""}}} {
		t.Run(c.name, func(t *testing.T) {
			lab, err := labtest.Start(labtest.Name(strings.ToLower(c.name)), []string{
				"--nodes", "2", "--set", "controller.replicas=1", "--set", "ingress.enabled=true", "--set", "ingress.replicas=2", "--set", "ingress.expose=" + c.name,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(lab.Stop)
			ns := lab.Namespace(t)
			lab.Apply(t, ns, app)
			lab.Rollout(t, ns, "deployment/echo")
			kind := "daemonset"
			if c.name == "NodePort" {
				kind = "deployment"
			}
			lab.Rollout(t, "kube-system", kind+"/weft-ingress")
			// Ingresses show the nodes that the gateway's pods run on.
			var nodes []string
			labtest.Eventually(t, 90*time.Second, func() error {
				nodes = nil
				pods := lab.Kubectl(t, "get", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=ingress", "-o", "jsonpath={.items[*].spec.nodeName}")
				for _, n := range strings.Fields(pods) {
					nodes = append(nodes, strings.Fields(lab.Get(t, "", "node/"+n, `{.status.addresses[?(@.type=="InternalIP")].address}`))...)
				}
				slices.Sort(nodes)
				nodes = slices.Compact(nodes)
				got := strings.Fields(lab.Get(t, ns, "ingress/echo", "{.status.loadBalancer.ingress[*].ip}"))
				slices.Sort(got)
				if len(nodes) == 0 || !slices.Equal(got, nodes) {
					return fmt.Errorf("the Ingress shows %v, want the nodes' %v", got, nodes)
				}
				return nil
			})
			ports := c.ports
			if ports[0] == "" {
				p := strings.Fields(lab.Get(t, "kube-system", "service/weft-ingress", "{.spec.ports[*].nodePort}"))
				ports = [2]string{p[0], p[1]}
			}
			for _, node := range nodes {
				for i, scheme := range []string{"http", "https"} {
					url := scheme + "://" + net.JoinHostPort(node, ports[i]) + "/hello"
					labtest.Eventually(t, 90*time.Second, func() error {
						out, err := lab.Exec(t.Context(), "outside", lab.Echo("outside"), "get", "-body", "-timeout", "3s", url)
						if err == nil && !strings.Contains(out, `"path":"/hello"`) {
							err = fmt.Errorf("answered %s", out)
						}
						return err
					})
				}
			}
		})
	}
}
