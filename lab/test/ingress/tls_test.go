// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// The guide's walk-through (section 3.8): two Services, a Secret, an Ingress with TLS, and what curl then shows.
func TestGuideWalkThrough(t *testing.T) {
	g := ready(t)
	ca := certify(t, nil, "test CA")
	tlsSecret(t, "shop-tls-secret", certify(t, ca, "shop.example.com", "shop.example.com"))
	lab.Apply(t, shop, `
apiVersion: v1
kind: Service
metadata: {name: cart-service}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: checkout-service}
spec: {selector: {app: checkout}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: example-ingress
  annotations:
    nginx.ingress.kubernetes.io/rewrite-target: /
spec:
  ingressClassName: nginx
  tls:
    - hosts:
        - shop.example.com
      secretName: shop-tls-secret
  rules:
    - host: shop.example.com
      http:
        paths:
          - path: /cart
            pathType: Prefix
            backend: {service: {name: cart-service, port: {number: 80}}}
          - path: /checkout
            pathType: Prefix
            backend: {service: {name: checkout-service, port: {number: 80}}}
`)
	t.Cleanup(func() {
		_, _ = lab.Run(context.Background(), "kubectl", "delete", "ingress", "-n", shop, "example-ingress", "--wait=false")
	})
	c := &client{g: g, roots: ca.pool()}
	c.until(t, "https://shop.example.com/cart/items", all(from("cart"), at("/items"), saw("X-Forwarded-Proto", "https"),
		header("Strict-Transport-Security", "max-age=31536000; includeSubDomains")))
	c.until(t, "https://shop.example.com/checkout", from("checkout"))
	c.until(t, "http://shop.example.com/cart/items", redirect(308, "https://shop.example.com/cart/items"))
	c.until(t, "https://shop.example.com/elsewhere", status(404))
	labtest.Eventually(t, 60*time.Second, func() error {
		if out := lab.Kubectl(t, "get", "ingress", "-n", shop, "example-ingress"); !strings.Contains(out, g.address) {
			return fmt.Errorf("kubectl get ingress does not show the address: %s", out)
		}
		return nil
	})
	renewed := certify(t, ca, "shop.example.com", "shop.example.com", "renewed.test")
	tlsSecret(t, "shop-tls-secret", renewed)
	c.until(t, "https://shop.example.com/cart", func(a *answer) error {
		if got := a.tls.PeerCertificates[0]; got.SerialNumber.Cmp(renewed.leaf.SerialNumber) != 0 {
			return errors.New("the certificate is the old one")
		}
		return nil
	})
}

func TestCertificates(t *testing.T) {
	c := outside(t)
	wild, one := certify(t, nil, "wild", "*.certs.test"), certify(t, nil, "one", "one.certs.test")
	tlsSecret(t, "wild", wild)
	tlsSecret(t, "one", one)
	apply(t, spec{name: "cert-one", host: "one.certs.test", paths: []string{"/ cart"}, secret: "one"})
	apply(t, spec{name: "cert-wild", host: "*.certs.test", paths: []string{"/ checkout"}, secret: "wild"})
	apply(t, spec{name: "cert-none", host: "none.uncerts.test", paths: []string{"/ cart"}})
	apply(t, spec{name: "cert-missing", host: "missing.certs.test", paths: []string{"/ cart"}, secret: "no-such-secret"})
	shows := func(name string) func(*answer) error {
		return func(a *answer) error {
			if got := a.tls.PeerCertificates[0].Subject.CommonName; got != name {
				return fmt.Errorf("the certificate is that of %q, want %q", got, name)
			}
			return nil
		}
	}
	c.until(t, "https://one.certs.test/", all(from("cart"), shows("one")))
	c.until(t, "https://two.certs.test/", all(from("checkout"), shows("wild")))
	c.until(t, "https://none.uncerts.test/", all(from("cart"), shows("weft default certificate")))
	c.until(t, "http://none.uncerts.test/", from("cart")) // no certificate, no redirect
	c.until(t, "https://missing.certs.test/", all(from("cart"), shows("weft default certificate")))
	event(t, "cert-missing", "CertificateProblem", "no-such-secret")
	tlsSecret(t, "no-such-secret", certify(t, nil, "late", "missing.certs.test"))
	c.until(t, "https://missing.certs.test/", shows("late"))
	lab.Kubectl(t, "delete", "secret", "-n", shop, "no-such-secret")
	c.until(t, "https://missing.certs.test/", shows("weft default certificate"))
}

func TestSSLRedirect(t *testing.T) {
	c := outside(t)
	tlsSecret(t, "redirects", certify(t, nil, "redirects", "*.ssl.test"))
	apply(t, spec{name: "ssl-default", host: "default.ssl.test", paths: []string{"/ cart", "/.well-known/acme-challenge/token checkout"}, secret: "redirects"})
	apply(t, spec{name: "ssl-off", host: "off.ssl.test", paths: []string{"/ cart"}, secret: "redirects", annotations: map[string]string{"ssl-redirect": "false"}})
	apply(t, spec{name: "ssl-slash", host: "slash.ssl.test", paths: []string{"/ cart"}, secret: "redirects", annotations: map[string]string{"preserve-trailing-slash": "true"}})
	apply(t, spec{name: "ssl-force", host: "forced.ssl.test", paths: []string{"/ cart"}, annotations: map[string]string{"force-ssl-redirect": "true"}})
	c.until(t, "http://default.ssl.test/", redirect(308, "https://default.ssl.test"))
	c.until(t, "http://default.ssl.test/a/?b=c", redirect(308, "https://default.ssl.test/a/?b=c"))
	c.until(t, "http://default.ssl.test/a/", redirect(308, "https://default.ssl.test/a"))
	c.until(t, "http://default.ssl.test/.well-known/acme-challenge/token", from("checkout"))
	c.until(t, "http://slash.ssl.test/a/", redirect(308, "https://slash.ssl.test/a/"))
	c.until(t, "http://off.ssl.test/", from("cart"))
	c.until(t, "http://forced.ssl.test/", redirect(308, "https://forced.ssl.test"))
	c.until(t, "https://forced.ssl.test/", from("cart"))
}

func TestHSTS(t *testing.T) {
	c := outside(t)
	tlsSecret(t, "hsts", certify(t, nil, "hsts", "*.hsts.test"))
	apply(t, spec{name: "hsts-own", host: "own.hsts.test", paths: []string{"/ cart"}, secret: "hsts", annotations: map[string]string{
		"hsts": "true", "hsts-max-age": "15724800", "hsts-include-subdomains": "false", "hsts-preload": "true", "ssl-redirect": "false",
	}})
	apply(t, spec{name: "hsts-off", host: "off.hsts.test", paths: []string{"/ cart"}, secret: "hsts", annotations: map[string]string{"hsts": "false"}})
	c.until(t, "https://own.hsts.test/", all(from("cart"), header("Strict-Transport-Security", "max-age=15724800; preload")))
	c.until(t, "http://own.hsts.test/", all(from("cart"), header("Strict-Transport-Security", "")))
	c.until(t, "https://off.hsts.test/", all(from("cart"), header("Strict-Transport-Security", "")))
}

func TestPassthroughAndCiphers(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "passthrough", host: "passthrough.test", paths: []string{"/ cart:443"}, annotations: map[string]string{"ssl-passthrough": "true"}})
	c.until(t, "https://passthrough.test/", func(a *answer) error {
		if a.facts.TLS == nil || a.facts.TLS.ServerName != "passthrough.test" {
			return fmt.Errorf("TLS did not reach the backend: %+v", a.facts.TLS)
		}
		return nil
	})
	tlsSecret(t, "ciphers", certify(t, nil, "ciphers.test", "ciphers.test"))
	apply(t, spec{name: "ciphers", host: "ciphers.test", paths: []string{"/ cart"}, secret: "ciphers", annotations: map[string]string{"ssl-ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384:AES256-SHA"}})
	c.until(t, "https://ciphers.test/", from("cart"))
	labtest.Eventually(t, 60*time.Second, func() error {
		conn, err := tls.Dial("tcp", c.g.https, &tls.Config{ServerName: "ciphers.test", InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().CipherSuite; got != tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 {
			return fmt.Errorf("cipher suite %s", tls.CipherSuiteName(got))
		}
		return nil
	})
}
