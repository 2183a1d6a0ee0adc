// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Names as applications use them, through kubelet's resolv.conf, with Go's resolver (echo) and the C library's.
func TestNames(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 2, "")+client("c", "node1", "app: c")+service("web", "web", httpPort)+`
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.`+ns+`.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: libc}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: sh, image: ghcr.io/weft-net/tools, command: [sleep, "3600"]}]
`)
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c", "pod/libc")
	for _, url := range []string{
		"http://web/", "http://web." + ns + "/", "http://web." + ns + ".svc/", "http://web." + ns + ".svc.cluster.local/",
		"http://web." + ns + ".svc.cluster.local./", "http://alias/", "http://peers:8080/",
	} {
		for _, family := range []string{"-4", "-6"} {
			labtest.Eventually(t, 10*time.Second, func() error {
				if a := fromPod(ns, "c").get(t, family, url); a.answered != 1 {
					return fmt.Errorf("%s %s: %s", family, url, a.text)
				}
				return nil
			})
		}
	}
	getent := func(args ...string) string {
		out, _ := lab.PodExec(t.Context(), ns, "libc", append([]string{"getent"}, args...)...)
		return out
	}
	ips := clusterIPs(t, ns, "web")
	if out := getent("ahosts", "web"); !strings.Contains(out, ips[0]) || !strings.Contains(out, ips[1]) {
		t.Errorf("getent ahosts web: %q, want %v", out, ips)
	}
	if out := getent("hosts", ips[0]); !strings.Contains(out, "web."+ns+".svc.cluster.local") {
		t.Errorf("getent hosts %s: %q", ips[0], out)
	}
	if out := getent("ahosts", "no-such-name"); out != "" {
		t.Errorf("getent ahosts no-such-name: %q", out)
	}
	a := fromPod(ns, "c").mustNot(t, "http://no-such-name/")
	if !strings.Contains(a.text, "no such host") {
		t.Errorf("a name that does not exist: %s", a.text)
	}
}

// DNS servers that are rolled while pods ask lose no query.
func TestDNSRollingRestart(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 2, "")+client("c", "node2", "app: c")+service("web", "web", httpPort))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	stop := hammer(t, ns, "c", "http://web/")
	lab.Kubectl(t, "rollout", "restart", "daemonset/weft-dns", "-n", "kube-system")
	lab.Rollout(t, "kube-system", "daemonset/weft-dns")
	stop()
}
