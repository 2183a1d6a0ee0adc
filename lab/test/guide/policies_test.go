// SPDX-License-Identifier: Apache-2.0

package guide

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// peer is a pod to connect from and to, which serves all the ports that the guide's policies name.
func peer(name, labels string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {%s}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: ghcr.io/weft-net/echo
    env: [{name: DRAIN, value: 0s}, {name: TCP_PORT, value: "5432"}]
---
`, name, labels)
}

// TestPolicies is section 5: each policy alone, with real connections; where the guide's addresses are not of this
// world, `weft why` answers, from the code that enforces.
func TestPolicies(t *testing.T) {
	namespaces(t, shop, "team-a", "team-b", "logging", "prod", "secure-ns", "my-namespace", "production")
	lab.Kubectl(t, "label", "namespace", "production", "environment=production")
	lab.Kubectl(t, "label", "namespace", "team-b", "environment=staging")
	where := map[string][]string{
		"team-a":       {peer("allowed", `allow: "true"`), peer("plain", "role: plain")},
		"team-b":       {peer("db", "role: db"), peer("plain", "role: plain"), peer("metrics", "app: metrics")},
		"logging":      {peer("plain", "role: plain")},
		"prod":         {peer("web", "tier: web"), peer("app", "tier: app"), peer("db", "tier: db")},
		"secure-ns":    {peer("a", "role: plain"), peer("b", "role: plain")},
		"my-namespace": {peer("db", "role: db"), peer("frontend", "role: frontend"), peer("plain", "role: plain")},
		"production":   {peer("plain", "role: plain")},
	}
	for ns, pods := range where {
		lab.Apply(t, ns, strings.Join(pods, ""))
	}
	for ns := range where {
		lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	}
	ip := func(pod string) string {
		ns, name, _ := strings.Cut(pod, "/")
		return lab.Get(t, ns, "pod/"+name, "{.status.podIP}")
	}
	connects := func(from, to, port string) error {
		ns, name, _ := strings.Cut(from, "/")
		scheme := "http://"
		if port == "5432" {
			scheme = "tcp://"
		}
		_, err := lab.PodExec(t.Context(), ns, name, "/echo", "get", "-timeout", "700ms", scheme+ip(to)+":"+port)
		return err
	}
	for _, tc := range []struct {
		file          string
		open, blocked string // "from>to:port"
		why           string // the same of `weft why`, with addresses
	}{
		{"5.3-overview", "my-namespace/frontend>my-namespace/db:5432 production/plain>my-namespace/db:5432",
			"my-namespace/plain>my-namespace/db:5432 my-namespace/frontend>my-namespace/db:8080 my-namespace/db>my-namespace/plain:8080",
			"my-namespace/db>10.0.1.1:1234 !my-namespace/db>10.0.5.1:1234 !my-namespace/db>10.0.1.1:80"},
		{"5.4.1-deny-all-ingress", "team-a/allowed>team-a/plain:8080 team-a/plain>team-b/plain:8080", "team-a/plain>team-a/allowed:8080 team-b/plain>team-a/plain:8080", ""},
		{"5.4.1-and-egress", "", "team-a/allowed>team-a/plain:8080 team-a/plain>team-b/plain:8080", ""},
		{"5.4.2-same-namespace", "team-b/plain>team-b/db:8080 team-a/plain>team-b/plain:8080", "team-a/plain>team-b/db:8080", ""},
		{"5.4.3-egress", "team-a/plain>logging/plain:8080", "logging/plain>team-a/plain:8080", "logging/plain>10.1.1.100:514 !logging/plain>10.1.1.101:514"},
		{"5.4.4-three-tiers", "prod/web>prod/app:8080 prod/app>prod/db:5432", "prod/web>prod/db:5432 prod/app>prod/db:8080 prod/db>prod/app:8080", ""},
		{"5.7.1-deny-all", "", "secure-ns/a>secure-ns/b:8080 secure-ns/a>team-a/plain:8080 team-a/plain>secure-ns/a:8080", ""},
		{"5.7.3-namespace-isolation", "team-a/plain>team-a/allowed:8080", "team-b/plain>team-a/allowed:8080", ""},
		{"5.7.5-pod-and-namespace", "team-b/metrics>team-a/plain:8080", "team-b/plain>team-a/plain:8080 team-a/allowed>team-a/plain:8080", ""},
		{"5.7.6-block-with-exception", "team-b/plain>team-a/plain:8080", "team-a/plain>team-b/plain:8080",
			"team-a/plain>198.51.100.1:443 !team-a/plain>198.51.100.129:443 !team-a/plain>198.51.100.1:80"},
	} {
		t.Run(tc.file, func(t *testing.T) {
			policy := manifests(t, "policies/"+tc.file+".yaml")
			if _, err := lab.RunWith(t.Context(), policy, "kubectl", "apply", "-f", "-"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if _, err := lab.RunWith(t.Context(), policy, "kubectl", "delete", "-f", "-"); err != nil {
					t.Error(err)
				}
			}()
			for _, c := range strings.Fields(tc.open) {
				from, to, port := connection(c)
				labtest.Eventually(t, 20*time.Second, func() error { return connects(from, to, port) })
			}
			for _, c := range strings.Fields(tc.blocked) {
				from, to, port := connection(c)
				labtest.Eventually(t, 20*time.Second, func() error {
					if connects(from, to, port) == nil {
						return fmt.Errorf("%s is open", c)
					}
					return nil
				})
			}
			for _, c := range strings.Fields(tc.why) {
				c, blocked := strings.CutPrefix(c, "!")
				from, to, _ := strings.Cut(c, ">")
				ns, pod, _ := strings.Cut(from, "/")
				out, err := lab.Exec(t.Context(), "outside", weftBinary(t), "why", "-n", ns, "pod/"+pod, to)
				if blocked != (err != nil) {
					t.Errorf("weft why %s, blocked should be %v: %v\n%s", c, blocked, err, out)
				}
			}
		})
	}
}

func connection(s string) (from, to, port string) {
	from, rest, _ := strings.Cut(s, ">")
	i := strings.LastIndex(rest, ":")
	return from, rest[:i], rest[i+1:]
}
