// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// What policies drop is told with names: the pods at both ends, the Service that was asked, the policy, and why.
func TestFlows(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("db", 1, "")+service("database", "db", httpPort)+client("web", "node1", "app: web")+`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-out}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: []}
`)
	lab.Rollout(t, ns, "deployment/db")
	lab.WaitFor(t, ns, "condition=Ready", "pod", "web")
	ip := clusterIPs(t, ns, "database")[0]
	type event struct {
		Verdict, Node, Direction, Service, Reason string
		Policies                                  []string
		Port                                      int
		Source, Destination                       struct{ Kind, Namespace, Name string }
	}
	flows := func(args ...string) (out []event) {
		text, err := weft(t, append([]string{"flows", "-n", ns, "-o", "json"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
			var e event
			if err := dec.Decode(&e); err != nil {
				t.Fatal(err)
			}
			out = append(out, e)
		}
		return out
	}
	labtest.Eventually(t, 30*time.Second, func() error {
		fromPod(ns, "web").mustNot(t, "http://"+hostport(ip, 80)+"/")
		got := flows("--service", "database", "--policy", "web-out", "--direction", "egress", "--pod", "web", "--port", "8080", "--protocol", "tcp", "--since", "10m")
		if len(got) == 0 {
			return fmt.Errorf("no flow with all its names among %+v", flows())
		}
		e := got[len(got)-1]
		if e.Verdict != "dropped" || e.Node != "node1" || e.Service != ns+"/database" || e.Source.Name != "web" || e.Destination.Kind != "Pod" ||
			!strings.HasPrefix(e.Destination.Name, "db-") || !strings.Contains(e.Reason, "it has no egress rule, so it admits nothing") {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	if got := flows("--port", "1"); len(got) != 0 {
		t.Errorf("a filter lets through %+v", got)
	}
	if text, err := weft(t, "flows", "-n", ns, "--service", "other"); err == nil || !strings.Contains(err.Error(), "there is no Service other") {
		t.Errorf("a Service that is not there: %q, %v", text, err)
	}
	labtest.Eventually(t, 30*time.Second, func() error {
		if out := lab.Kubectl(t, "get", "events", "-n", ns, "--field-selector", "reason=NetworkPolicyDrop,involvedObject.name=web"); !strings.Contains(out, "web-out") {
			return fmt.Errorf("no Event on the pod: %s", out)
		}
		return nil
	})
}
