// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// clean deletes when a test is over, and so is its context.
func clean(t *testing.T, what ...string) {
	if _, err := lab.Run(context.Background(), append([]string{"kubectl", "delete"}, what...)...); err != nil {
		t.Log(err)
	}
}

// The policies of the guide's 5.4 and 5.7, each alone in a cluster, with real connections in both families.
func TestGuidePolicies(t *testing.T) {
	a := lab.Namespace(t)
	b := a + "-other"
	lab.Kubectl(t, "create", "namespace", b)
	t.Cleanup(func() { clean(t, "namespace", b, "--wait=false") })
	lab.Apply(t, a, client("front", "node1", `allow: "true", role: front`)+client("plain", "node2", "role: plain")+client("db", "node3", "role: db"))
	lab.Apply(t, b, client("metrics", "node1", "app: metrics")+client("plain", "node2", "role: plain"))
	lab.Kubectl(t, "label", "namespace", a, "name="+a)
	lab.Kubectl(t, "label", "namespace", b, "environment=staging")
	for _, ns := range []string{a, b} {
		lab.WaitFor(t, ns, "condition=Ready", "pod", "--all")
	}
	place := map[string]string{"front": a, "plain": a, "db": a, "metrics": b, "other": b}
	pod := func(name string) (ns, pod string) { return place[name], strings.Replace(name, "other", "plain", 1) }
	reaches := func(from, to string, port int) (all, none bool, text string) {
		fromNs, fromName := pod(from)
		toNs, toName := pod(to)
		all, none = true, true
		for _, ip := range podIPs(t, toNs, toName) {
			got := fromPod(fromNs, fromName).get(t, "-timeout", "400ms", "http://"+hostport(ip, port)+"/")
			all, none, text = all && got.answered == 1, none && got.answered == 0, got.text
		}
		return all, none, text
	}
	metricsIPs := podIPs(t, b, "metrics")

	for _, tc := range []struct {
		name, policy  string
		open, blocked string // "from>to"
	}{
		{"5.4.1 deny all ingress except specific pods", `
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {allow: "true"}}}]}]`,
			"front>db front>plain db>metrics", "plain>db metrics>db other>front"},
		{"5.4.1 and all egress", `
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {allow: "true"}}}]}]
  egress: []`,
			"other>metrics", "front>db plain>db front>metrics"},
		{"5.4.2 ingress only from the same namespace", `
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {name: ` + a + `}}}]}]`,
			"front>db plain>db metrics>front db>metrics", "metrics>db other>db"},
		{"5.4.3 egress to one address and port", `
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: ` + metricsIPs[0] + `/32}}, {ipBlock: {cidr: "` + metricsIPs[1] + `/128"}}], ports: [{protocol: TCP, port: 8080}]}]`,
			"front>metrics db>metrics metrics>db", "front>other front>db"},
		{"5.7.1 deny all", `
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: []
  egress: []`,
			"other>metrics", "front>db metrics>db db>metrics plain>front"},
		{"5.7.3 namespace isolation", `
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {name: ` + a + `}}}]}]`,
			"front>db plain>front front>metrics", "metrics>front other>plain"},
		{"5.7.5 pod and namespace together", `
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {environment: staging}}, podSelector: {matchLabels: {app: metrics}}}]}]`,
			"metrics>db metrics>front", "other>db front>db"},
		{"5.7.6 a block with an exception", `
spec:
  podSelector: {matchLabels: {role: front}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [` + metricsIPs[0] + `/32]}}, {ipBlock: {cidr: "::/0", except: ["` + metricsIPs[1] + `/128"]}}], ports: [{protocol: TCP, port: 8080}]}]`,
			"front>other front>db plain>metrics", "front>metrics"},
		{"5.7.7 several policies add up", `
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: front}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: second}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {environment: staging}}}], ports: [{port: 8080}]}]`,
			"front>db metrics>db other>front", "plain>db db>front plain>front"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lab.Apply(t, a, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: first}"+tc.policy)
			t.Cleanup(func() { clean(t, "networkpolicy", "-n", a, "--all") })
			for want, pairs := range map[bool]string{false: tc.blocked, true: tc.open} {
				for pair := range strings.FieldsSeq(pairs) {
					from, to, _ := strings.Cut(pair, ">")
					labtest.Eventually(t, 10*time.Second, func() error {
						all, none, text := reaches(from, to, 8080)
						if want && !all || !want && !none {
							return fmt.Errorf("%s: want it to pass: %v; %s", pair, want, text)
						}
						return nil
					})
				}
			}
			toNs, toName := pod("db")
			for _, ip := range podIPs(t, toNs, toName) {
				fromHost("node3").must(t, "http://"+hostport(ip, 8080)+"/") // its own node, whatever the policies
			}
		})
	}
}
