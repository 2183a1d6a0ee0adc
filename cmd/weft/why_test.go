// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const twoTiers = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, image: x, ports: [{containerPort: 5432}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
`

// runWeft runs weft with arguments and returns what it printed and its exit status.
func runWeft(t *testing.T, args ...string) (string, int) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	var code exitCode
	switch {
	case err == nil:
		return out.String(), 0
	case errors.As(err, &code):
		return out.String() + code.Error(), code.code
	}
	return out.String() + err.Error(), 1
}

func TestExitStatusesOfFileCommands(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := file("before.yaml", twoTiers)
	after := file("after.yaml", strings.Replace(twoTiers, "5432}]}]\n", "5433}]}]\n", 2))
	routes := file("routes.yaml", twoTiers+`
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP, hostname: "*.example.com"}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], hostnames: [shop.example.com], rules: [{matches: [{method: POST}], backendRefs: [{name: web, port: 80}]}]}
`)
	placeless := file("placeless.yaml", strings.ReplaceAll(strings.ReplaceAll(twoTiers, ", namespace: shop", ""), "port: 5432", "port: sql")+`
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP, hostname: edge.example.com}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {ingressClassName: weft, rules: [{host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
`)
	unreadable := file("unreadable.yaml", twoTiers+"---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\nspec: {hostnames: 5}\n")
	named := file("named.yaml", twoTiers+"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}\n")
	broken := file("broken.yaml", strings.Replace(twoTiers, "{podSelector: {matchLabels: {app: web}}}]", "{ipBlock: {cidr: 10.0.0.0/33}}]", 1))
	wide := file("wide.yaml", twoTiers+"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: six, namespace: shop}\nspec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: \"2001:db8::/32\"}}]}]}\n")
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"why -n shop -f " + routes + " outside http://shop.example.com/a/../b -X POST", 0, "path /a/../b is read as /b"},
		{"why -n shop -f " + routes + " outside http://shop.example.com/.. -X POST", 1, "the answer is 400: path leaves the root"},
		{"why -n shop -f " + routes + " outside http://203.0.113.8/ -X POST -H Host:shop.example.com", 1, ""},
		{"why -n shop -f " + named + " web api.example.com:443", 1, "DEPENDS: web to api.example.com:443"},
		{"why -n shop -f " + named + " web api.example.com:443 --resolve API.example.com=198.51.100.7", 0, "api.example.com (198.51.100.7)"},
		{"why -n shop -f " + named + " web api.example.com:443 --resolve api.example.com=192.0.2.7", 1, "ipBlock: {cidr: 192.0.2.7/32}"},
		{"why -n shop -f " + named + " web api.example.com:443 --resolve api.example.com", 2, "want NAME=ADDRESS"},
		{"why -n shop -f " + placeless + " --cluster-domain k8s.example web web.shop.svc.k8s.example:80", 0, "web.shop.svc.k8s.example is 10.96"},
		{"why -n shop -f " + placeless + " web wbe:80", 1, "did you mean svc/web?"},
		{"lint -n shop -f " + placeless, 1, "NetworkPolicy shop/db: warning: spec.ingress[0].ports[0]: no pod that it is about has a TCP port named \"sql\""},
		{"lint -n shop --fail-on error -f " + placeless, 0, ""}, // Service shop/web is there
		{"why -n shop -f " + placeless + " outside http://edge.example.com/", 0, "HTTPRoute shop/web"},
		{"why -n shop -f " + placeless + " outside http://a.example.com/", 0, "Ingress shop/web"},
		{"lint -f " + broken, 1, "spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\""},
		{"lint -o sarif -f " + broken, 1, "manifest-unusable"},
		{"why -n shop -f " + broken + " web pod/db:5432", 2, "spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\""},
		{"matrix -f " + broken, 2, "10.0.0.0/33"},
		{"lint -f " + unreadable, 1, "HTTPRoute shop/web: error: "},
		{"why -n shop -f " + unreadable + " outside http://shop.example.com/", 2, "HTTPRoute shop/web: "},
		{"diff -f " + before + " -f " + broken, 2, "10.0.0.0/33"},
		{"diff -f " + before + " -f " + wide, 1, "+ 2001:db8::/32 → shop/db: all"},
		{"diff -f " + wide + " -f " + before, 1, "- 2001:db8::/32 → shop/db: all"},
		{"why -n shop -f " + before + " web pod/db:5432", 0, "ALLOWED: web to pod/db:5432, TCP 5432"},
		{"why -n shop -f " + before + " web pod/db:80", 1, "add the port to rule ingress[0] of NetworkPolicy shop/db"},
		{"why -n shop -f " + before + " nobody pod/db:80", 2, "there is no pod, workload or Service shop/nobody"},
		{"why -n shop -f " + dir + "/gone web db", 2, "no such file"},
		{"why -n shop -f " + before + " web pod/db:53 --protocol icmp", 2, "want TCP, UDP or SCTP"},
		{"why -n shop -f " + before + " web pod/db:5432 --probe", 2, "there is none behind -f"},
		{"why -n shop -f " + routes + " outside http://shop.example.com/ -X POST", 0, "HTTPRoute shop/web rules[0].matches[0] wins"},
		{"why -n shop -f " + routes + " outside http://shop.example.com/ -H x", 2, "want \"Name: value\""},
		{"why -n shop -f " + routes + " outside http://other.example.com/", 1, "the answer is 404"},
		{"why -n shop -f " + routes + " outside ftp://shop.example.com/", 2, "neither http nor https"},
		{"why -n shop -f " + routes + " http://shop.example.com/ web", 2, "is a URL: connections come from"},
		{"probe TCP/nowhere", 1, "want PROTOCOL/ADDRESS:PORT"},
		{"flows --verdict lost", 1, "want dropped or admitted"},
		{"flows --direction up", 1, "want ingress or egress"},
		{"flows --address x", 1, "want an address or a CIDR"},
		{"matrix -f " + before, 0, "TCP 5432"},
		{"diff -f " + before + " -f " + before, 0, "no connection is opened or closed"},
		{"diff -f " + before + " -f " + after, 1, "+ shop/web → shop/db: TCP 5433"},
		{"diff", 2, "give -f twice"},
		{"lint -f " + before, 0, ""},
		{"lint -f " + after + " --fail-on nothing", 2, "want info, warning or error"},
		{"lint --list", 0, "policy-dns-blocked"},
		{"policy -n shop -f " + before + " db", 0, "pods with app=web in namespace shop: shop/web"},
		{"policy -n shop -f " + before + " gone", 1, "there is no NetworkPolicy shop/gone"},
		{"pod -n shop -f " + before + " db", 0, "isolated: NetworkPolicy shop/db"},
	} {
		out, code := runWeft(t, strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(out, tc.says) {
			t.Errorf("weft %s: exit %d, want %d with %q:\n%s", tc.args, code, tc.code, tc.says, out)
		}
	}
	out, _ := runWeft(t, "why", "-n", "shop", "-f", before, "web", "pod/db:80", "-o", "json")
	var answer struct {
		Allowed bool
		Flows   []struct {
			Steps []struct{ Station, Mark, Object string }
		}
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Allowed || len(answer.Flows) != 1 {
		t.Errorf("json: %v: %s", err, out)
	}
}
