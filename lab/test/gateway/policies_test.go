// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

func trafficPolicy(name, target, spec string) string {
	return fmt.Sprintf(`
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: %s}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, %s}]
%s
---
`, name, target, spec)
}

// refused waits until the URL is answered with a status, which is one of failure.
func refused(t *testing.T, url string, status int) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, func() error {
		if out, err := get(t.Context(), url); err == nil || !strings.Contains(out+err.Error(), fmt.Sprint(status)) {
			return fmt.Errorf("%s: %v %s, want %d", url, err, out, status)
		}
		return nil
	})
}

// condition waits for a condition's status and reason at a policy's first target.
func condition(t *testing.T, ns, policy, kind, want string) {
	t.Helper()
	path := fmt.Sprintf(`{.status.ancestors[0].conditions[?(@.type==%q)].status} {.status.ancestors[0].conditions[?(@.type==%q)].reason}`, kind, kind)
	labtest.Eventually(t, 30*time.Second, func() error {
		if got := lab.Get(t, ns, "trafficpolicy/"+policy, path); got != want {
			return fmt.Errorf("%s of %s is %q, want %q", kind, policy, got, want)
		}
		return nil
	})
}

// TrafficPolicies apply to routes and Gateways, fail closed, follow their Secrets, say what became of them, and let go.
func TestTrafficPolicies(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo("one", 1)+httpGateway+httpRoute("r", "/", "one"))
	lab.Rollout(t, ns, "deploy/one")
	addr := programmed(t, ns, "web")[0]
	answers(t, url(addr, "/"), "one")
	known := strings.Replace(url(addr, "/"), "http://", "http://ann:secret@", 1)

	lab.Apply(t, ns, trafficPolicy("users", "kind: HTTPRoute, name: r", "  basicAuth: {secretRef: {name: users}}"))
	condition(t, ns, "users", "ResolvedRefs", "False RefNotFound")
	refused(t, known, 503)
	// The password is "secret".
	lab.Apply(t, ns, `
apiVersion: v1
kind: Secret
metadata: {name: users}
stringData: {auth: "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="}
`)
	condition(t, ns, "users", "ResolvedRefs", "True ResolvedRefs")
	condition(t, ns, "users", "Accepted", "True Accepted")
	refused(t, url(addr, "/"), 401)
	answers(t, known, "one")

	// A Gateway's policy is the default of its routes; the route's comes first in what both say.
	lab.Apply(t, ns, trafficPolicy("closed", "kind: Gateway, name: web", "  sources: {deny: [0.0.0.0/0, \"::/0\"]}"))
	condition(t, ns, "closed", "Accepted", "True Accepted")
	refused(t, known, 403)
	lab.Apply(t, ns, trafficPolicy("users", "kind: HTTPRoute, name: r", "  basicAuth: {secretRef: {name: users}}\n  sources: {}"))
	answers(t, known, "one")
	refused(t, url(addr, "/"), 401)

	// What can't be is refused by the API server, or by the status.
	if out, err := lab.RunWith(t.Context(), trafficPolicy("bad", "kind: Gateway, name: web", "  satisfy: Some"), "kubectl", "apply", "-n", ns, "-f", "-"); err == nil {
		t.Errorf("accepted: %s", out)
	}
	lab.Apply(t, ns, trafficPolicy("lost", "kind: HTTPRoute, name: none", "  accessLog: true"))
	condition(t, ns, "lost", "Accepted", "False TargetNotFound")

	// The pod tells which policies are in force.
	pod := strings.Fields(lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "gateway.networking.k8s.io/gateway-name=web", "-o", "jsonpath={.items[*].metadata.name}"))[0]
	out, err := lab.PodExec(t.Context(), ns, pod, "weft", "gateway", "routes", url(addr, "/"))
	if err != nil || !strings.Contains(out, "TrafficPolicy/"+ns+"/users") || strings.Contains(out, "5en6G6") {
		t.Errorf("%v: %s", err, out)
	}

	lab.Kubectl(t, "delete", "trafficpolicy", "--all", "-n", ns)
	answers(t, url(addr, "/"), "one")
}

// CA certificates come from a ClusterTrustBundle as soon, and as long, as it is there.
func TestTrustBundle(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, httpGateway+httpRoute("r", "/", "secure")+fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: secure}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: secure}
spec:
  targetRefs: [{group: "", kind: Service, name: secure}]
  validation: {hostname: secure.test, caCertificateRefs: [{group: certificates.k8s.io, kind: ClusterTrustBundle, name: %s}]}
`, ns))
	resolved := func(want string) {
		t.Helper()
		labtest.Eventually(t, 30*time.Second, func() error {
			got := lab.Get(t, ns, "backendtlspolicy/secure", `{.status.ancestors[0].conditions[?(@.type=="ResolvedRefs")].reason}`)
			if got != want {
				return fmt.Errorf("ResolvedRefs is %q, want %q", got, want)
			}
			return nil
		})
	}
	resolved("InvalidCACertificateRef")
	cert, _ := certificate(t, 1)
	lab.Apply(t, "", fmt.Sprintf(`
apiVersion: certificates.k8s.io/v1
kind: ClusterTrustBundle
metadata: {name: %s}
spec:
  trustBundle: |
    %s
`, ns, strings.ReplaceAll(strings.TrimSpace(string(cert)), "\n", "\n    ")))
	resolved("ResolvedRefs")
	lab.Kubectl(t, "delete", "clustertrustbundle", ns)
	resolved("InvalidCACertificateRef")
}
