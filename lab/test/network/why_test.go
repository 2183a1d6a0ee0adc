// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// answer is the part of `weft why -o json` that tests look at.
type answer struct {
	Allowed bool
	Probes  []struct{ Address, Protocol, About, Expected, Outcome, Agreement, Text string }
}

// weft why --probe: what the model says, and what packets from the pod's own network namespace meet with.
func TestWhyProbe(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("db", 2, "")+service("db", "db", httpPort)+service("none", "none", httpPort)+
		client("web", "node1", "app: web")+client("other", "node2", "app: other")+`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
`)
	lab.Rollout(t, ns, "deployment/db")
	lab.WaitFor(t, ns, "condition=Ready", "pod", "web", "other")
	for _, tc := range []struct {
		from, to string
		allowed  bool
		outcome  string // of every probe
		probes   int    // at least
	}{
		{"web", "db:80", true, "answered", 4},       // a Service and two endpoints, of which each family is asked for
		{"web", "deploy/db:81", true, "refused", 2}, // nobody listens
		{"other", "db:80", false, "silent", 4},
		{"web", "none:80", false, "refused", 1},
		{"node/node3", "db:80", false, "", 4}, // its own pods it reaches, others not
	} {
		var a answer
		labtest.Eventually(t, 30*time.Second, func() error { // until all nodes have heard of everything
			out, err := weft(t, "why", "-n", ns, tc.from, tc.to, "--probe", "--probe-patience", "1s", "-o", "json")
			a = answer{}
			if jerr := json.Unmarshal([]byte(out), &a); jerr != nil {
				t.Fatalf("%v: %v\n%s", jerr, err, out)
			}
			if err != nil && strings.Contains(err.Error(), "exit status 3") {
				return err
			}
			return nil
		})
		if a.Allowed != tc.allowed && tc.from != "node/node3" || len(a.Probes) < tc.probes {
			t.Errorf("%s to %s: allowed %v, want %v, %d probes: %+v", tc.from, tc.to, a.Allowed, tc.allowed, len(a.Probes), a.Probes)
		}
		for _, p := range a.Probes {
			if p.Agreement == "disagree" || tc.outcome != "" && (p.Outcome != tc.outcome || p.Agreement != "agree") {
				t.Errorf("%s to %s: %+v, want %s", tc.from, tc.to, p, tc.outcome)
			}
		}
	}
}
