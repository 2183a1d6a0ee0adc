// SPDX-License-Identifier: Apache-2.0

package fronts

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
)

func load(t *testing.T, whole bool) *explain.World {
	t.Helper()
	return loadFile(t, "testdata/shop.yaml", whole)
}

func loadFile(t *testing.T, file string, whole bool) *explain.World {
	t.Helper()
	c, err := offline.Load(offline.Options{}, file)
	if err != nil {
		t.Fatal(err)
	}
	w, err := explain.NewWorld(c.Delta, explain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if w.Fronts, err = Of(c, whole); err != nil {
		t.Fatal(err)
	}
	return w
}

func why(t *testing.T, w *explain.World, from, url string, headers map[string]string) *explain.Answer {
	t.Helper()
	f, err := w.ParseTarget(from, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	to, err := w.ParseTarget(url, "shop", true)
	if err != nil {
		t.Fatal(err)
	}
	to.Request.Headers = headers
	a, err := w.Why(f, to, model.TCP)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Which Gateway or Ingress, listener, route, rule and backend a request gets, and what keeps it from an answer.
func TestWhyURL(t *testing.T) {
	w := load(t, false)
	for _, tc := range []struct {
		name, from, url string
		headers         map[string]string
		allowed         bool
	}{
		{"split", "outside", "http://shop.example.com/cart/1?x=1", nil, false}, // one of two backends is closed
		{"header", "outside", "http://shop.example.com/cart", map[string]string{"canary": "1"}, false},
		{"tls", "outside", "https://shop.example.com/db", nil, true},
		{"redirect", "db", "http://shop.example.com/old", nil, true},
		{"no-endpoint", "outside", "http://shop.example.com/empty", nil, false},
		{"no-service", "outside", "http://shop.example.com/gone", nil, false},
		{"no-rule", "outside", "http://shop.example.com/nowhere", nil, false},
		{"not-attached", "outside", "http://other.example.com/", nil, false},
		{"no-listener", "outside", "https://other.example.com/", nil, false},
		{"ingress", "outside", "http://old.example.org/a", nil, true},
		{"ingress-redirect", "outside", "http://tls.example.org/a/", nil, true},
		{"ingress-no-rule", "outside", "http://few.example.org/b", nil, false},
		{"ingress-no-service", "outside", "http://few.example.org/gone", nil, false},
		{"grpc-no-service", "outside", "http://grpc.example.com/", nil, false},
		{"ingress-forbidden", "198.51.100.1", "http://old.example.org/a", nil, false},
		{"cluster-name", "db", "http://cart.shop/", nil, true},
		{"listener-filter", "outside", "http://guarded.example.net/", nil, false}, // of one backend nobody can be asked
		{"listener-filter-broken", "outside", "http://broken.example.net/", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := why(t, w, tc.from, tc.url, tc.headers)
			if a.Allowed != tc.allowed {
				t.Errorf("allowed %v, want %v", a.Allowed, tc.allowed)
			}
			var b bytes.Buffer
			fmt.Fprintf(&b, "$ weft why %s %s\n", tc.from, tc.url)
			explain.Print(&b, a)
			goldentest.Compare(t, filepath.Join("testdata", tc.name+".txt"), b.String())
		})
	}
}

// In a cluster, a class that is not there serves nothing.
func TestNothingIsAssumedOfAWholeCluster(t *testing.T) {
	w := load(t, true)
	for _, url := range []string{"http://shop.example.com/cart", "http://old.example.org/a"} {
		a := why(t, w, "outside", url, nil)
		if a.Allowed || a.Partly || !strings.Contains(a.Summary, "no Gateway and no Ingress has HTTP on port 80") {
			t.Errorf("%s: %s", url, a.Summary)
		}
		if said := fmt.Sprint(a.Steps); strings.Contains(url, "old") && !strings.Contains(said, "there is no IngressClass nginx") {
			t.Errorf("%s: %s", url, said)
		}
	}
}

// Without ingress.enabled of the Helm chart there is no gateway that Ingresses of weft's class could be served by.
func TestNoGatewayOfIngresses(t *testing.T) {
	base, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	class := "\n---\napiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: nginx}\nspec: {controller: k8s.io/ingress-nginx}\n"
	service := "---\napiVersion: v1\nkind: Service\nmetadata: {name: weft-ingress, namespace: weft, labels: {app.kubernetes.io/name: weft, app.kubernetes.io/component: ingress}}\nspec: {type: LoadBalancer, clusterIP: 10.96.9.8, clusterIPs: [10.96.9.8], ports: [{port: 80}]}\n"
	for add, says := range map[string]string{
		class:           "the gateway of Ingresses would take it, but weft has none in this cluster: the Helm chart's ingress.enabled brings it",
		class + service: "no rule matches GET /b for few.example.org: the answer is 404",
	} {
		file := filepath.Join(t.TempDir(), "all.yaml")
		if err := os.WriteFile(file, []byte(string(base)+add), 0o600); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		explain.Print(&b, why(t, loadFile(t, file, true), "outside", "http://few.example.org/b", nil))
		if !strings.Contains(b.String(), says) || strings.Contains(b.String(), "takes it") != (add != class) {
			t.Errorf("want %q:\n%s", says, &b)
		}
	}
}

// A gateway's Service leads to it: by its address, by its name, and by a node's port. What the gateway refuses is
// blocked, though packets get there.
func TestTheWayToTheGateway(t *testing.T) {
	base, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "all.yaml")
	err = os.WriteFile(file, append(base, []byte(`
---
apiVersion: v1
kind: Pod
metadata: {name: edge-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: edge}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge-weft, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: edge}}
spec: {type: LoadBalancer, clusterIP: 10.96.9.9, clusterIPs: [10.96.9.9], selector: {gateway.networking.k8s.io/gateway-name: edge}, ports: [{name: http, port: 80, targetPort: 61080, nodePort: 30123}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.80}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: closed, namespace: shop}
spec:
  hostnames: [shop.example.com]
  parentRefs: [{name: edge}]
  rules: [{matches: [{path: {value: /closed}}], backendRefs: [{name: cart-new, port: 80}]}]
`)...), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w := loadFile(t, file, false)
	host := map[string]string{"host": "shop.example.com"}
	for _, tc := range []struct {
		from, url string
		allowed   bool
		flows     string
	}{
		{"outside", "http://shop.example.com:30123/db", true, "pod shop/edge-1 > pod shop/db"},
		{"db", "http://10.96.9.9/cart", false, "pod shop/edge-1 > pod shop/cart"},
		{"db", "http://edge-weft.shop/db", true, "pod shop/edge-1 > pod shop/db"},
		{"db", "http://shop.example.com/nowhere", false, "pod shop/edge-1"},
		{"db", "http://shop.example.com/gone", false, "pod shop/edge-1"},
		{"db", "http://shop.example.com/empty", false, "pod shop/edge-1"},
		{"db", "http://shop.example.com/closed", false, "pod shop/edge-1 > pod shop/cart-new"},
	} {
		a := why(t, w, tc.from, tc.url, host)
		var got []string
		for _, f := range a.Flows {
			got = append(got, f.Destination)
		}
		if a.Allowed != tc.allowed || !strings.HasPrefix(strings.Join(got, " > "), tc.flows) {
			t.Errorf("%s to %s: allowed %v, want %v; by %v, want %s", tc.from, tc.url, a.Allowed, tc.allowed, got, tc.flows)
		}
		if said := fmt.Sprint(a.Steps); strings.Contains(tc.url, "//shop.example.com") != strings.Contains(said, "if DNS leads shop.example.com to 192.0.2.80") {
			t.Errorf("%s: of DNS it says %s", tc.url, said)
		}
		// What no backend answers is not partly allowed, though packets get to the gateway.
		if !tc.allowed && tc.url != "http://10.96.9.9/cart" && (a.Partly || !strings.HasPrefix(a.Summary, "BLOCKED")) {
			t.Errorf("%s", a.Summary)
		}
	}
}

// Connections that a gateway hands on as they are: by the name in their TLS handshake, or by the port alone.
func TestWhyLayer4(t *testing.T) {
	file := filepath.Join(t.TempDir(), "l4.yaml")
	err := os.WriteFile(file, []byte(`
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: weft
  listeners:
  - {name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}
  - {name: tcp, port: 5432, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: db, namespace: shop}
spec: {hostnames: [db.example.com], parentRefs: [{name: edge, sectionName: tls}], rules: [{backendRefs: [{name: db, port: 443}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: gone, namespace: shop}
spec: {hostnames: [gone.example.com], parentRefs: [{name: edge, sectionName: tls}], rules: [{backendRefs: [{name: gone, port: 443}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: empty, namespace: shop}
spec: {hostnames: [empty.example.com], parentRefs: [{name: edge, sectionName: tls}], rules: [{backendRefs: [{name: empty, port: 443}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: db, namespace: shop}
spec: {parentRefs: [{name: edge, sectionName: tcp}], rules: [{backendRefs: [{name: db, port: 443}]}]}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w := loadFile(t, file, false)
	for _, tc := range []struct {
		url     string
		allowed bool
		says    string
	}{
		{"https://db.example.com/", true, "TLSRoute shop/db gets all connections"},
		{"https://other.example.com/", false, "no TLSRoute of listener shop/edge/tls has other.example.com: the connection is closed"},
		{"https://gone.example.com/", false, "can't be followed, the connection is closed: backendRef: there is no Service gone"},
		{"https://empty.example.com/", false, "Service shop/empty has no endpoint: the connection is closed"},
		{"http://anything.example.com:5432/", true, "TCPRoute shop/db gets all connections"},
		{"http://db.example.com/", false, "has HTTP on port 80"},
	} {
		a := why(t, w, "outside", tc.url, nil)
		var b bytes.Buffer
		explain.Print(&b, a)
		if a.Allowed != tc.allowed || !strings.Contains(b.String(), tc.says) {
			t.Errorf("%s: allowed %v, want %v with %q:\n%s", tc.url, a.Allowed, tc.allowed, tc.says, &b)
		}
	}
}
