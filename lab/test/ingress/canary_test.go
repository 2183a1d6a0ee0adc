// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// canary makes a main Ingress of cart and a canary of checkout.
func canary(t *testing.T, name string, annotations map[string]string) string {
	t.Helper()
	host := name + ".canary.test"
	apply(t, spec{name: name, host: host, paths: []string{"/ cart"}})
	annotations["canary"] = "true"
	apply(t, spec{name: name + "-canary", host: host, paths: []string{"/ checkout"}, annotations: annotations})
	return "http://" + host + "/"
}

func TestCanaryByHeader(t *testing.T) {
	c := outside(t)
	url := canary(t, "by-header", map[string]string{"canary-by-header": "CanaryByHeader"})
	c.until(t, url, from("checkout"), "CanaryByHeader: always")
	c.until(t, url, from("cart"), "CanaryByHeader: never")
	c.until(t, url, from("cart"), "CanaryByHeader: badheadervalue")
	c.until(t, url, from("cart"))
	url = canary(t, "by-value", map[string]string{"canary-by-header": "CanaryByHeader", "canary-by-header-value": "DoCanary"})
	c.until(t, url, from("checkout"), "CanaryByHeader: DoCanary")
	c.until(t, url, from("cart"), "CanaryByHeader: always")
	url = canary(t, "by-pattern", map[string]string{"canary-by-header": "CanaryByHeader", "canary-by-header-pattern": "^Do[A-Z][a-z]+y$"})
	c.until(t, url, from("checkout"), "CanaryByHeader: DoCanary")
	c.until(t, url, from("cart"), "CanaryByHeader: DontCanary!")
}

func TestCanaryByCookie(t *testing.T) {
	c := outside(t)
	url := canary(t, "by-cookie", map[string]string{"canary-by-cookie": "Canary-By-Cookie", "canary-by-header": "X-Canary"})
	c.until(t, url, from("checkout"), "Cookie: a=b; Canary-By-Cookie=always")
	c.until(t, url, from("cart"), "Cookie: Canary-By-Cookie=never")
	c.until(t, url, from("cart"), "Cookie: Canary-By-Cookie=other")
	c.until(t, url, from("cart"), "Cookie: Canary-By-Cookie=always", "X-Canary: never") // the header goes first
	c.until(t, url, from("checkout"), "Cookie: Canary-By-Cookie=never", "X-Canary: always")
}

func TestCanaryByWeight(t *testing.T) {
	c := outside(t)
	c.until(t, canary(t, "none", map[string]string{"canary-weight": "0"}), from("cart"))
	c.until(t, canary(t, "whole", map[string]string{"canary-weight": "100"}), from("checkout"))
	c.until(t, canary(t, "total", map[string]string{"canary-weight": "1000", "canary-weight-total": "1000"}), from("checkout"))
	url := canary(t, "half", map[string]string{"canary-weight": "50"})
	seen := map[string]int{}
	c.until(t, url, func(a *answer) error {
		seen[a.by()]++
		if seen["cart"] == 0 || seen["checkout"] == 0 {
			return fmt.Errorf("so far %v", seen)
		}
		return nil
	})
	apply(t, spec{name: "alone", host: "alone.canary.test", paths: []string{"/ cart"}, annotations: map[string]string{"canary": "true", "canary-weight": "100"}})
	event(t, "alone", "CanaryWithoutMain", "alone.canary.test")
	if a := c.get(t, "http://alone.canary.test/"); a.status != 404 {
		t.Errorf("a canary without a main Ingress is served: %d", a.status)
	}
}

func cookie(a *answer, name string) *http.Cookie {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func TestCookieAffinity(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "affinity", host: "affinity.test", paths: []string{"/a cart"}, annotations: map[string]string{"affinity": "cookie"}})
	apply(t, spec{name: "affinity-all", host: "affinity-all.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"affinity": "cookie", "affinity-mode": "persistent", "session-cookie-name": "SERVERID", "session-cookie-max-age": "172800", "session-cookie-expires": "172800",
		"session-cookie-domain": "affinity-all.test", "session-cookie-samesite": "Lax", "session-cookie-secure": "true", "session-cookie-path": "/deep",
		"session-cookie-change-on-failure": "true",
	}})
	var sticky *http.Cookie
	pod := ""
	c.until(t, "http://affinity.test/a/b", func(a *answer) error {
		if sticky = cookie(a, "INGRESSCOOKIE"); sticky == nil || sticky.Path != "/a" || !sticky.HttpOnly || sticky.MaxAge != 0 {
			return fmt.Errorf("cookie %v", sticky)
		}
		pod = a.facts.Pod
		return nil
	})
	for range 20 {
		a := c.get(t, "http://affinity.test/a/c", "Cookie: INGRESSCOOKIE="+sticky.Value)
		if a.facts.Pod != pod || cookie(a, "INGRESSCOOKIE") != nil {
			t.Fatalf("answered by %s, want %s; cookie %v", a.facts.Pod, pod, cookie(a, "INGRESSCOOKIE"))
		}
	}
	c.until(t, "http://affinity-all.test/", func(a *answer) error {
		k := cookie(a, "SERVERID")
		if k == nil || k.Path != "/deep" || k.Domain != "affinity-all.test" || k.MaxAge != 172800 || k.SameSite != http.SameSiteLaxMode || !k.Secure {
			return fmt.Errorf("cookie %v", k)
		}
		return nil
	})
	// A cookie of a pod that is gone gets another.
	lab.Kubectl(t, "delete", "pod", "-n", shop, pod, "--wait=true")
	labtest.Eventually(t, 90*time.Second, func() error {
		a, err := c.do("GET", "http://affinity.test/a", "", "Cookie: INGRESSCOOKIE="+sticky.Value)
		if err != nil {
			return err
		}
		if a.status != 200 || a.facts.Pod == pod || cookie(a, "INGRESSCOOKIE") == nil {
			return fmt.Errorf("status %d of %s, cookie %v", a.status, a.facts.Pod, cookie(a, "INGRESSCOOKIE"))
		}
		return nil
	})
	lab.Rollout(t, shop, "deployment/cart")
}

func TestHashing(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "hash", host: "hash.test", paths: []string{"/ cart"}, annotations: map[string]string{"upstream-hash-by": "$request_uri"}})
	apply(t, spec{name: "hash-subset", host: "hash-subset.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"upstream-hash-by": "$http_x_key", "upstream-hash-by-subset": "true", "upstream-hash-by-subset-size": "2"}})
	apply(t, spec{name: "ip-hash", host: "ip-hash.test", paths: []string{"/ cart"}, annotations: map[string]string{"load-balance": "ip_hash"}})
	pods := map[string]bool{}
	for i := range 16 {
		url := fmt.Sprintf("http://hash.test/%d", i)
		c.until(t, url, from("cart"))
		first := c.get(t, url).facts.Pod
		pods[first] = true
		for range 3 {
			if got := c.get(t, url).facts.Pod; got != first {
				t.Fatalf("%s went to %s and to %s", url, first, got)
			}
		}
	}
	if len(pods) != 2 {
		t.Errorf("16 keys all went to %v", pods)
	}
	c.until(t, "http://ip-hash.test/", from("cart"))
	first := c.get(t, "http://ip-hash.test/").facts.Pod
	for range 10 {
		if got := c.get(t, "http://ip-hash.test/").facts.Pod; got != first {
			t.Fatalf("one address went to %s and to %s", first, got)
		}
	}
	c.until(t, "http://hash-subset.test/", from("cart"), "X-Key: a")
}

func TestServiceUpstream(t *testing.T) {
	c := outside(t)
	lab.Apply(t, shop, `
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
`)
	// The Service has endpoints that the gateway must not use: it goes to the cluster IP, and gets what the nodes make of it.
	apply(t, spec{name: "service-upstream", host: "service-upstream.test", paths: []string{"/ cart"}, annotations: map[string]string{"service-upstream": "true"}})
	apply(t, spec{name: "no-endpoints", host: "no-endpoints.test", paths: []string{"/ by-hand"}, annotations: map[string]string{"service-upstream": "true"}})
	c.until(t, "http://service-upstream.test/", from("cart"))
	c.until(t, "http://no-endpoints.test/", status(502)) // the node rejects the connection: without the annotation it would be 503
}
