// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/offline"
)

func run(t *testing.T, whole bool, manifests string) []Finding {
	t.Helper()
	ms, err := kube.ParseManifests("in.yaml", []byte(manifests))
	if err != nil {
		t.Fatal(err)
	}
	c, err := offline.FromManifests(offline.Options{}, ms)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Run(Input{Cluster: c, Whole: whole, Now: now, Text: func(string) []byte { return []byte(manifests) }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestBadManifests(t *testing.T) {
	c, err := offline.Load(offline.Options{}, "testdata/bad.yaml")
	if err != nil {
		t.Fatal(err)
	}
	findings, err := Run(Input{Cluster: c, Now: now, Text: func(f string) []byte { b, _ := os.ReadFile(f); return b }})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	WriteText(&b, findings)
	goldentest.Compare(t, "testdata/bad.txt", b.String())
	for _, f := range findings {
		if strings.Contains(f.Object, "excused") {
			t.Errorf("excused, but reported: %+v", f)
		}
	}
}

const good = `
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: x, ports: [{containerPort: 80, name: http}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]
  egress:
  - {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  gatewayClassName: weft
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: shop}}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  hostnames: [a.example.com]
  parentRefs: [{name: gw, sectionName: http}]
  rules:
  - {matches: [{path: {value: /a}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /b}}], backendRefs: [{name: web, port: 80, weight: 3}]}
`

func TestGoodManifestsAreLeftAlone(t *testing.T) {
	for _, whole := range []bool{false, true} {
		if f := run(t, whole, good); len(f) > 0 {
			t.Errorf("whole %v: %+v", whole, f)
		}
	}
}

// What files don't hold may be elsewhere; what a cluster doesn't hold does not exist.
func TestAbsence(t *testing.T) {
	const ingress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, namespace: shop}
spec:
  ingressClassName: weft
  tls: [{hosts: [a.example.com], secretName: cert}]
  rules: [{host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
`
	if f := run(t, false, ingress); len(f) > 0 {
		t.Errorf("in files: %+v", f)
	}
	got := ids(run(t, true, ingress))
	if want := []string{"ingress-backend", "ingress-class", "tls-secret-missing"}; !slices.Equal(got, want) {
		t.Errorf("in a cluster: %v, want %v", got, want)
	}
}

func ids(f []Finding) []string {
	var out []string
	for _, x := range f {
		out = append(out, x.Rule)
	}
	slices.Sort(out)
	return out
}

func certificate(t *testing.T, host string, until time.Time) (cert, key string) {
	t.Helper()
	return certtest.PEM(t, certtest.New(t, x509.Certificate{Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: until}, nil))
}

func TestCertificates(t *testing.T) {
	for _, tc := range []struct {
		what, host string
		until      time.Time
		broken     bool
		want       []string
	}{
		{"a good one", "a.example.com", now.AddDate(1, 0, 0), false, nil},
		{"expired", "a.example.com", now.AddDate(0, 0, -1), false, []string{"tls-secret-expired"}},
		{"soon", "a.example.com", now.AddDate(0, 0, 3), false, []string{"tls-secret-expired"}},
		{"another host's", "b.example.com", now.AddDate(1, 0, 0), false, []string{"tls-host-mismatch"}},
		{"a wildcard", "*.example.com", now.AddDate(1, 0, 0), false, nil},
		{"no certificate", "a.example.com", now.AddDate(1, 0, 0), true, []string{"tls-secret-invalid"}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			cert, key := certificate(t, tc.host, tc.until)
			if tc.broken {
				cert = "nonsense"
			}
			secret, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
				"metadata": map[string]string{"name": "cert", "namespace": "shop"}, "stringData": map[string]string{"tls.crt": cert, "tls.key": key}})
			if err != nil {
				t.Fatal(err)
			}
			f := run(t, false, fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, namespace: shop}
spec: {ingressClassName: weft, tls: [{hosts: [a.example.com], secretName: cert}]}
---
%s
`, secret))
			if got := ids(f); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", f, tc.want)
			}
		})
	}
}
