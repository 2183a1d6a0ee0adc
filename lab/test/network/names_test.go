// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// libc is a pod with the machine's own programs, whose resolver is the C library's.
const libc = `
apiVersion: v1
kind: Pod
metadata: {name: libc}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: sh, image: ghcr.io/weft-net/tools, command: [sleep, "3600"]}]
---
`

// getent looks a name up in the libc pod; "" is not found.
func getent(t testing.TB, ns string, args ...string) string {
	t.Helper()
	out, _ := lab.PodExec(t.Context(), ns, "libc", append([]string{"getent"}, args...)...)
	return strings.TrimSpace(out)
}

// Pods of a StatefulSet have names of their own, while they are ready; and all have one by their address.
func TestStatefulSetNames(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, libc+`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
`)
	lab.Rollout(t, ns, "statefulset/db")
	lab.WaitFor(t, ns, "condition=Ready", "pod/libc")
	for i := range 2 {
		pod := fmt.Sprintf("db-%d", i)
		for _, ip := range podIPs(t, ns, pod) {
			labtest.Eventually(t, 10*time.Second, func() error {
				if out := getent(t, ns, "ahosts", pod+".db"); !strings.Contains(out, ip) {
					return fmt.Errorf("%s.db is %q, want %s", pod, out, ip)
				}
				return nil
			})
			if out, want := getent(t, ns, "hosts", ip), pod+".db."+ns+".svc.cluster.local"; !strings.Contains(out, want) {
				t.Errorf("%s is %q, want %s", ip, out, want)
			}
		}
	}
	lab.Kubectl(t, "scale", "statefulset/db", "--replicas=1", "-n", ns)
	labtest.Eventually(t, 20*time.Second, func() error {
		if out := getent(t, ns, "ahosts", "db-1.db"); out != "" {
			return fmt.Errorf("db-1.db is still %q", out)
		}
		return nil
	})
	if out := getent(t, ns, "ahosts", "db"); !strings.Contains(out, podIPs(t, ns, "db-0")[0]) {
		t.Errorf("db is %q", out)
	}
}

// Names are answered on while the API server is away, and changes are there soon after it is back.
func TestNamesWithoutAPIServer(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 2, "")+client("c", "node1", "app: c")+service("web", "web", httpPort))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	// kubectl exec goes through the API server, so the one that asks is a pod by itself.
	lab.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec:
  restartPolicy: Never
  containers:
  - name: echo
    image: ghcr.io/weft-net/echo
    command: [/echo, get, -for, 20s, -c, "2", -interval, 20ms, -timeout, 3s, -q, "http://web.`+ns+`/"]
`)
	phase := func(want string) func() error {
		return func() error {
			if got := lab.Get(t, ns, "pod/asks", "{.status.phase}"); got != want {
				return fmt.Errorf("the asking pod is %s", got)
			}
			return nil
		}
	}
	labtest.Eventually(t, 20*time.Second, phase("Running"))
	run := func(args ...string) {
		t.Helper()
		if out, err := lab.Run(t.Context(), args...); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run("component", "stop", "apiserver")
	time.Sleep(5 * time.Second) // of requests by name, with nobody to tell what changed
	run("component", "start", "apiserver")
	labtest.Eventually(t, time.Minute, func() error {
		_, err := lab.Run(t.Context(), "kubectl", "get", "--raw", "/readyz", "--request-timeout=2s")
		return err
	})
	labtest.Eventually(t, time.Minute, phase("Succeeded"))
	if out := lab.Kubectl(t, "logs", "asks", "-n", ns); parse(out).failed > 0 || parse(out).sent < 100 {
		t.Errorf("while the API server was away: %s", out)
	}
	lab.Apply(t, ns, service("late", "web", httpPort))
	labtest.Eventually(t, 20*time.Second, func() error {
		if a := fromPod(ns, "c").get(t, "http://late/"); a.answered != 1 {
			return fmt.Errorf("a Service made afterwards: %s", a.text)
		}
		return nil
	})
}

// weft dns query says the same as the server, and why.
func TestDNSQuery(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, libc+service("web", "nobody", httpPort))
	lab.WaitFor(t, ns, "condition=Ready", "pod/libc")
	dir, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	query := func(args ...string) (out struct {
		Found   bool
		Suffix  string
		Answers []struct {
			Rcode, Reason string
			Notes         []string
			Answer        []struct{ Data, Object string }
		}
		Meant struct {
			Reason string
			Notes  []string
		}
	}) {
		t.Helper()
		text, _ := lab.Exec(t.Context(), "outside", append([]string{filepath.Join(dir, "weft"), "dns", "query", "-o", "json", "-n", ns}, args...)...)
		if err := json.Unmarshal([]byte(text[max(strings.Index(text, "{"), 0):]), &out); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return out
	}
	q := query("web", "--from", "libc")
	ip := clusterIPs(t, ns, "web")[0]
	if !q.Found || q.Suffix != ns+".svc.cluster.local" || len(q.Answers[0].Answer) != 1 || q.Answers[0].Answer[0].Data != ip || q.Answers[0].Answer[0].Object != "Service "+ns+"/web" {
		t.Errorf("web: %+v", q)
	}
	// The servers hear of a new Service in their own time.
	labtest.Eventually(t, 20*time.Second, func() error {
		if got := getent(t, ns, "ahosts", "web"); !strings.Contains(got, ip) {
			return fmt.Errorf("the server says %q, want %s", got, ip)
		}
		return nil
	})
	if len(q.Answers[0].Notes) != 1 || !strings.Contains(q.Answers[0].Notes[0], "selector (app=nobody) matches no pod") {
		t.Errorf("no word about the missing endpoints: %q", q.Answers[0].Notes)
	}
	q = query("wbe", "--from", "libc")
	if q.Found || !strings.Contains(q.Meant.Reason, `did you mean "web"?`) {
		t.Errorf("wbe: %+v", q)
	}
	q = query("kubernetes", "--from", "libc")
	if q.Found || len(q.Meant.Notes) != 1 || !strings.Contains(q.Meant.Notes[0], "in namespace default") {
		t.Errorf("kubernetes: %+v", q)
	}
}
