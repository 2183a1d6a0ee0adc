// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestCustomErrors(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "custom-errors", host: "custom-errors.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"custom-http-errors": "404,503", "default-backend": "errors",
	}})
	c.until(t, "http://custom-errors.test/", from("cart"))
	c.until(t, "http://custom-errors.test/status/404?a=b", func(a *answer) error {
		if a.by() != "errors" || a.facts.Method != http.MethodGet {
			return fmt.Errorf("answered by %q to %s", a.by(), a.facts.Method)
		}
		for name, want := range map[string]string{
			"X-Code": "404", "X-Namespace": shop, "X-Ingress-Name": "custom-errors", "X-Service-Name": "cart", "X-Service-Port": "80",
			"X-Format": "text/html", "X-Original-Uri": "/status/404?a=b",
		} {
			if got := a.saw(name); got != want {
				return fmt.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		return nil
	}, "Accept: text/html")
	c.until(t, "http://custom-errors.test/status/500", func(a *answer) error {
		if a.status != 500 || a.by() != "cart" {
			return fmt.Errorf("an error that is not listed: %d by %q", a.status, a.by())
		}
		return nil
	})
	apply(t, spec{name: "no-intercept", host: "no-intercept.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"custom-http-errors": "404", "default-backend": "errors", "disable-proxy-intercept-errors": "true",
	}})
	c.until(t, "http://no-intercept.test/status/404", func(a *answer) error {
		if a.status != 404 || a.by() != "cart" {
			return fmt.Errorf("%d by %q", a.status, a.by())
		}
		return nil
	})
}

func TestDefaultBackendAnnotation(t *testing.T) {
	c := outside(t)
	lab.Apply(t, shop, backend("coming", 0))
	apply(t, spec{name: "coming", host: "coming.test", paths: []string{"/ coming"}, annotations: map[string]string{"default-backend": "errors"}})
	c.until(t, "http://coming.test/alma/armud", all(from("errors"), at("/alma/armud"), saw("X-Code", "503"), saw("X-Ingress-Name", "coming"), saw("X-Service-Name", "coming"), saw("X-Namespace", shop)))
	lab.Kubectl(t, "scale", "-n", shop, "deployment/coming", "--replicas=1")
	c.until(t, "http://coming.test/", from("coming"))
	lab.Kubectl(t, "scale", "-n", shop, "deployment/coming", "--replicas=0")
	c.until(t, "http://coming.test/", from("errors"))
}

func TestCustomHeaders(t *testing.T) {
	c := outside(t)
	lab.Apply(t, shop, `
apiVersion: v1
kind: ConfigMap
metadata: {name: custom-headers}
data: {X-Custom: 'yes, "quoted"', X-Other: "$1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: not-allowed}
data: {X-Not-Allowed: a}
`)
	apply(t, spec{name: "custom-headers", host: "custom-headers.test", paths: []string{"/ cart"}, annotations: map[string]string{"custom-headers": "shop/custom-headers"}})
	c.until(t, "http://custom-headers.test/?header=X-Custom:own", all(from("cart"), header("X-Custom", `yes, "quoted"`), header("X-Other", "$1")))
	apply(t, spec{name: "not-allowed", host: "not-allowed.test", paths: []string{"/ cart"}, annotations: map[string]string{"custom-headers": "shop/not-allowed"}})
	c.until(t, "http://not-allowed.test/", status(503))
	event(t, "not-allowed", "Denied", "global-allowed-response-headers")
	apply(t, spec{name: "no-headers", host: "no-headers.test", paths: []string{"/ cart"}, annotations: map[string]string{"custom-headers": "shop/no-such-map"}})
	c.until(t, "http://no-headers.test/", status(503))
}

func TestCookiesAndLocations(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "cookies", host: "cookies.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"proxy-cookie-domain": "inner.test outer.test", "proxy-cookie-path": "/one/ /", "proxy-redirect-from": "http://inner.test/", "proxy-redirect-to": "http://outer.test/new/",
	}})
	c.until(t, "http://cookies.test/?header=Set-Cookie:a%3Db%3B%20Domain%3Dinner.test%3B%20Path%3D/one/two", all(from("cart"), func(a *answer) error {
		k := cookie(a, "a")
		if k == nil || k.Domain != "outer.test" || k.Path != "/two" {
			return fmt.Errorf("cookie %v", a.header["Set-Cookie"])
		}
		return nil
	}))
	c.until(t, "http://cookies.test/status/302?header=Location:http://inner.test/a", redirect(302, "http://outer.test/new/a"))
	c.until(t, "http://cookies.test/status/302?header=Location:http://elsewhere.test/a", redirect(302, "http://elsewhere.test/a"))
}

func TestMirror(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "mirror", host: "mirror.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"mirror-target": "http://checkout.shop.svc.cluster.local$request_uri", "mirror-host": "copy.test",
	}})
	c.until(t, "http://mirror.test/a?b=c", from("cart"))
	apply(t, spec{name: "mirror-elsewhere", host: "mirror-elsewhere.test", paths: []string{"/ cart"}, annotations: map[string]string{"mirror-target": "http://checkout.shop.svc/fixed/path"}})
	c.until(t, "http://mirror-elsewhere.test/", from("cart"))
	event(t, "mirror-elsewhere", "InvalidAnnotation", "end the URL with $request_uri")
}

func TestRequestHeaders(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "request-headers", host: "request-headers.test", paths: []string{"/ cart"}})
	c.until(t, "http://request-headers.test/", all(from("cart"), saw("X-Real-Ip", "172.30.0.2"), saw("X-Forwarded-For", "172.30.0.2"), saw("X-Forwarded-Proto", "http"),
		saw("X-Scheme", "http"), saw("X-Forwarded-Port", "80"), saw("Proxy", ""), func(a *answer) error {
			if len(a.saw("X-Request-Id")) != 32 {
				return fmt.Errorf("X-Request-ID %q", a.saw("X-Request-Id"))
			}
			return nil
		}), "X-Forwarded-For: 10.1.2.3", "X-Real-IP: 10.1.2.3", "X-Forwarded-Proto: https", "Proxy: http://evil.test")
	if a := c.get(t, "http://request-headers.test/"); strings.Contains(a.header.Get("Server"), "weft") {
		t.Errorf("Server: %s", a.header.Get("Server"))
	}
}
