// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

func TestBackendProtocols(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "to-https", host: "to-https.test", paths: []string{"/ cart:443"}, annotations: map[string]string{"backend-protocol": "HTTPS"}})
	apply(t, spec{name: "to-auto", host: "to-auto.test", paths: []string{"/ cart"}, annotations: map[string]string{"backend-protocol": "AUTO_HTTP"}})
	apply(t, spec{name: "to-fcgi", host: "to-fcgi.test", paths: []string{"/ cart"}, annotations: map[string]string{"backend-protocol": "FCGI"}})
	c.until(t, "http://to-https.test/", all(from("cart"), func(a *answer) error {
		if a.facts.TLS == nil {
			return fmt.Errorf("the backend was spoken to in plain text")
		}
		return nil
	}))
	c.until(t, "http://to-auto.test/", from("cart"))
	c.until(t, "http://to-fcgi.test/", status(503))
	event(t, "to-fcgi", "Denied", "FastCGI")
}

// A gRPC call through the gateway, over TLS as its clients do.
func TestGRPC(t *testing.T) {
	g := ready(t)
	tlsSecret(t, "grpc", certify(t, nil, "grpc.test", "grpc.test"))
	apply(t, spec{name: "grpc", host: "grpc.test", paths: []string{"/ cart"}, secret: "grpc", annotations: map[string]string{"backend-protocol": "GRPC"}})
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", g.https)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}
	defer tr.CloseIdleConnections()
	labtest.Eventually(t, 60*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://grpc.test/shop.Cart/Get", bytes.NewReader([]byte{0, 0, 0, 0, 2, 8, 1}))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.ProtoMajor != 2 || resp.Trailer.Get("Grpc-Status") != "0" || !bytes.Contains(text, []byte("/shop.Cart/Get")) {
			return fmt.Errorf("%s, trailers %v, %q", resp.Proto, resp.Trailer, text)
		}
		return nil
	})
}

func TestBackendTLS(t *testing.T) {
	c := outside(t)
	ca := certify(t, nil, "backends' CA")
	tlsSecret(t, "inner", certify(t, ca, "inner", "inner.test"))
	own := certify(t, ca, "the gateway")
	secret(t, "to-backend", "Opaque", map[string][]byte{"tls.crt": own.cert, "tls.key": own.key, "ca.crt": ca.cert})
	secret(t, "other-ca", "Opaque", map[string][]byte{"ca.crt": certify(t, nil, "other CA").cert})
	lab.Apply(t, shop, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: inner}
spec:
  selector: {matchLabels: {app: inner}}
  template:
    metadata: {labels: {app: inner}}
    spec:
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo:dev
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: HTTPS_CERT_DIR, value: /etc/inner}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: cert, mountPath: /etc/inner}]
      volumes: [{name: cert, secret: {secretName: inner}}]
---
apiVersion: v1
kind: Service
metadata: {name: inner}
spec: {selector: {app: inner}, ports: [{name: https, port: 443, targetPort: 8443}]}
`)
	lab.Rollout(t, shop, "deployment/inner")
	for name, a := range map[string]map[string]string{
		"unverified": {}, "verified": {"proxy-ssl-secret": "shop/to-backend", "proxy-ssl-verify": "on", "proxy-ssl-name": "inner.test", "proxy-ssl-server-name": "on"},
		"other-name": {"proxy-ssl-secret": "shop/to-backend", "proxy-ssl-verify": "on", "proxy-ssl-name": "another.test"},
		"other-ca":   {"proxy-ssl-secret": "shop/other-ca", "proxy-ssl-verify": "on", "proxy-ssl-name": "inner.test"},
		"closed":     {"proxy-ssl-secret": "shop/no-such", "proxy-ssl-verify": "on"},
	} {
		a["backend-protocol"] = "HTTPS"
		apply(t, spec{name: "inner-" + name, host: name + ".inner.test", paths: []string{"/ inner:443"}, annotations: a})
	}
	c.until(t, "http://unverified.inner.test/", from("inner"))
	c.until(t, "http://verified.inner.test/", all(from("inner"), func(a *answer) error {
		if a.facts.TLS == nil || a.facts.TLS.ServerName != "inner.test" {
			return fmt.Errorf("TLS as the backend saw it: %+v", a.facts.TLS)
		}
		return nil
	}))
	c.until(t, "http://other-name.inner.test/", status(502))
	c.until(t, "http://other-ca.inner.test/", status(502))
	c.until(t, "http://closed.inner.test/", status(503))
}

func TestTimeouts(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "read-timeout", host: "read.timeouts.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"proxy-read-timeout": "1", "proxy-send-timeout": "20", "proxy-connect-timeout": "10", "proxy-next-upstream": "off",
	}})
	c.until(t, "http://read.timeouts.test/", from("cart"))
	c.until(t, "http://read.timeouts.test/delay/4s", status(504))
	apply(t, spec{name: "long-timeout", host: "long.timeouts.test", paths: []string{"/ cart"}, annotations: map[string]string{"proxy-read-timeout": "30"}})
	c.until(t, "http://long.timeouts.test/delay/2s", from("cart"))
}

// An endpoint that can't be reached is no error as long as there is another.
func TestNextUpstream(t *testing.T) {
	c := outside(t)
	lab.Apply(t, shop, `
apiVersion: v1
kind: Service
metadata: {name: half}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
`)
	ip := lab.Get(t, shop, "pods", "{.items[?(@.metadata.labels.app==\"checkout\")].status.podIP}")
	lab.Apply(t, shop, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: half, labels: {kubernetes.io/service-name: half}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [%q]}, {addresses: ["10.244.0.254"]}]
`, ip))
	apply(t, spec{name: "half", host: "half.test", paths: []string{"/ half"}, annotations: map[string]string{"load-balance": "round_robin", "proxy-connect-timeout": "3"}})
	c.until(t, "http://half.test/", from("checkout"))
	for range 6 {
		if a := c.get(t, "http://half.test/"); a.status != 200 {
			t.Fatalf("status %d with one of two endpoints", a.status)
		}
	}
	apply(t, spec{name: "tries", host: "tries.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"proxy-next-upstream": "error timeout http_503", "proxy-next-upstream-tries": "2", "proxy-next-upstream-timeout": "10",
	}})
	c.until(t, "http://tries.test/status/503", status(503))
}

func TestConfigMap(t *testing.T) {
	c := outside(t)
	lab.Apply(t, shop, `
apiVersion: v1
kind: ConfigMap
metadata: {name: tuned}
data:
  ssl-redirect: "false"
  hsts-max-age: "5"
  hide-headers: X-Internal
  add-headers: shop/added
  proxy-set-headers: shop/told
  proxy-body-size: 2k
  http-redirect-code: "301"
  limit-req-status-code: "429"
  block-user-agents: "badbot, ~*crawler"
  block-cidrs: 18.0.0.0/8
  custom-http-errors: "418"
  default-backend-service: shop/errors
  no-such-key: "true"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: added}
data: {X-Added: everywhere}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: told}
data: {X-Told: "$request_method $host", X-Fixed: "1"}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: tuned}
spec:
  controller: weft.dev/ingress
  parameters: {kind: ConfigMap, name: tuned, namespace: shop, scope: Namespace}
`)
	tlsSecret(t, "tuned", certify(t, nil, "tuned", "tuned.test"))
	apply(t, spec{name: "tuned", class: "tuned", host: "tuned.test", paths: []string{"/ cart"}, secret: "tuned"})
	apply(t, spec{name: "tuned-force", class: "tuned", host: "force.tuned.test", paths: []string{"/ cart"}, annotations: map[string]string{"force-ssl-redirect": "true"}})
	apply(t, spec{name: "tuned-rate", class: "tuned", host: "rate.tuned.test", paths: []string{"/ cart"}, annotations: map[string]string{"limit-rpm": "1", "limit-burst-multiplier": "1"}})
	c.until(t, "http://tuned.test/?header=X-Internal:secret", all(from("cart"), header("X-Internal", ""), header("X-Added", "everywhere"), saw("X-Told", "GET tuned.test"), saw("X-Fixed", "1")))
	c.until(t, "https://tuned.test/", header("Strict-Transport-Security", "max-age=5; includeSubDomains"))
	c.until(t, "http://tuned.test/", status(403), "User-Agent: BadBot")
	c.until(t, "http://tuned.test/", status(403), "User-Agent: some Crawler 1.0")
	c.until(t, "http://tuned.test/status/418", from("errors"))
	c.until(t, "http://force.tuned.test/", redirect(301, "https://force.tuned.test"))
	c.until(t, "http://rate.tuned.test/", from("cart"))
	c.until(t, "http://rate.tuned.test/", status(429))
	if a, err := c.do(http.MethodPost, "http://tuned.test/", string(make([]byte, 2049))); err != nil || a.status != 413 {
		t.Errorf("a body above proxy-body-size: %+v, %v", a, err)
	}
	event(t, "tuned", "UnknownConfiguration", "no-such-key")
}

func TestForwardedHeaders(t *testing.T) {
	c := outside(t)
	// Those of the gateway as a whole come from the controller's own ConfigMap.
	lab.Kubectl(t, "patch", "configmap", "-n", "kube-system", "weft-ingress", "-p", `{"data":{"use-forwarded-headers":"true","proxy-real-ip-cidr":"172.30.0.0/24"}}`)
	t.Cleanup(func() {
		_, _ = lab.Run(context.Background(), "kubectl", "patch", "configmap", "-n", "kube-system", "weft-ingress", "-p", `{"data":{"use-forwarded-headers":null,"proxy-real-ip-cidr":null}}`)
	})
	apply(t, spec{name: "behind", host: "behind.test", paths: []string{"/ cart"}, annotations: map[string]string{"force-ssl-redirect": "true", "whitelist-source-range": "203.0.113.7"}})
	c.until(t, "http://behind.test/", redirect(308, "https://behind.test"))
	c.until(t, "http://behind.test/", all(from("cart"), saw("X-Real-Ip", "203.0.113.7"), saw("X-Scheme", "https")), "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7")
	c.until(t, "http://behind.test/", status(403), "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.8")
}
