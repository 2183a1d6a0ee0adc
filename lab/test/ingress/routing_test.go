// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

func TestPathsAndHosts(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "paths", host: "paths.test", paths: []string{
		"/a cart", "/a/b checkout", "Exact /exact cart", "Exact /a/b/c cart", "ImplementationSpecific /impl cart", "ImplementationSpecific /dir/ checkout",
	}})
	apply(t, spec{name: "wild", host: "*.paths.test", paths: []string{"/ checkout"}})
	for path, want := range map[string]func(*answer) error{
		"/a": from("cart"), "/a/": from("cart"), "/a/x?y=z": from("cart"), "/ab": status(404), "/a/b": from("checkout"), "/a/b/x": from("checkout"), "/a/bc": from("cart"),
		"/a/b/c": from("cart"), "/exact": from("cart"), "/exact/": status(404), "/exact/x": status(404), "/": status(404), "/A": status(404),
		"/implementation": from("cart"), "/dir/x": from("checkout"), "/dir": redirect(301, "http://paths.test/dir/"),
	} {
		c.until(t, "http://paths.test"+path, want)
	}
	c.until(t, "http://one.paths.test/x", from("checkout"))
	c.until(t, "http://ONE.paths.TEST:80/x", from("checkout"))
	c.until(t, "http://two.one.paths.test/x", status(404)) // a wildcard is for one label
	c.until(t, "http://unknown.test/", status(404))
}

func TestDefaultBackends(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "fallback", host: "fallback.test", paths: []string{"/a cart"}, fallback: "errors"})
	c.until(t, "http://fallback.test/a", from("cart"))
	c.until(t, "http://fallback.test/elsewhere", from("errors"))
	apply(t, spec{name: "catch-all", fallback: "checkout"})
	c.until(t, "http://nobody-has-this.test/x", from("checkout"))
	c.until(t, "https://nobody-has-this.test/x", from("checkout"))
	c.until(t, "http://fallback.test/elsewhere", from("errors"))
}

func TestClassesAndConflicts(t *testing.T) {
	c := outside(t)
	lab.Apply(t, "", "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: foreign}\nspec: {controller: example.com/other}\n")
	apply(t, spec{name: "weft-class", class: "weft", host: "weft-class.test", paths: []string{"/ cart"}})
	apply(t, spec{name: "foreign", class: "foreign", host: "foreign.test", paths: []string{"/ cart"}})
	lab.Apply(t, shop, `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: legacy, annotations: {kubernetes.io/ingress.class: nginx}}
spec: {rules: [{host: legacy.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: cart, port: {name: http}}}}]}}]}
`)
	c.until(t, "http://weft-class.test/", from("cart"))
	c.until(t, "http://legacy.test/", from("cart"))
	if a := c.get(t, "http://foreign.test/"); a.status != 404 {
		t.Errorf("another controller's Ingress is served: %d", a.status)
	}
	if out := lab.Get(t, shop, "ingress/foreign", "{.status.loadBalancer}"); strings.Contains(out, "ip") {
		t.Errorf("another controller's Ingress has our address: %s", out)
	}
	labtest.Eventually(t, 60*time.Second, func() error {
		got := lab.Get(t, shop, "ingress/weft-class", "{.status.loadBalancer.ingress[*].ip}")
		if !strings.Contains(got, c.g.address) || !strings.Contains(got, "fd00:30::") {
			return fmt.Errorf("status %q", got)
		}
		return nil
	})
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // creation times have whole seconds
	apply(t, spec{name: "younger", host: "weft-class.test", paths: []string{"/ checkout", "/other checkout"}})
	c.until(t, "http://weft-class.test/other", from("checkout"))
	c.until(t, "http://weft-class.test/", from("cart"))
	event(t, "younger", "PathConflict", "shop/weft-class")
	lab.Kubectl(t, "delete", "ingress", "-n", shop, "weft-class")
	c.until(t, "http://weft-class.test/", from("checkout"))
}

func TestBackendsThatAreNotThere(t *testing.T) {
	c := outside(t)
	lab.Apply(t, shop, `
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
`)
	apply(t, spec{name: "missing", host: "missing.test", paths: []string{"/none no-such-service", "/nobody nobody", "/port cart:81"}})
	for _, path := range []string{"/none", "/nobody", "/port"} {
		c.until(t, "http://missing.test"+path, status(503))
	}
	event(t, "missing", "BackendNotFound", "no-such-service")
	lab.Apply(t, shop, `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: resource}
spec:
  ingressClassName: nginx
  rules: [{host: resource.test, http: {paths: [{path: /, pathType: Prefix, backend: {resource: {kind: Bucket, name: static}}}]}}]
`)
	c.until(t, "http://resource.test/", status(503))
	event(t, "resource", "ResourceBackend", "Bucket/static")
}

func TestRewriteTarget(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "rewrite", host: "rewrite.test", paths: []string{"ImplementationSpecific /something(/|$)(.*) cart"},
		annotations: map[string]string{"rewrite-target": "/$2", "x-forwarded-prefix": "/something"}})
	c.until(t, "http://rewrite.test/something", at("/"))
	c.until(t, "http://rewrite.test/something/new?a=b", all(at("/new"), saw("X-Forwarded-Prefix", "/something"), func(a *answer) error {
		if a.facts.Query != "a=b" {
			return fmt.Errorf("query %q", a.facts.Query)
		}
		return nil
	}))
	c.until(t, "http://rewrite.test/SOMETHING/x", at("/x")) // without case, as in ingress-nginx
	c.until(t, "http://rewrite.test/elsewhere", status(404))

	apply(t, spec{name: "strip", host: "strip.test", paths: []string{"/app cart", "/applet checkout"}, annotations: map[string]string{"rewrite-target": "/"}})
	c.until(t, "http://strip.test/app/foo", all(from("cart"), at("/foo")))
	c.until(t, "http://strip.test/app", all(from("cart"), at("/")))
	c.until(t, "http://strip.test/applet/x", all(from("checkout"), at("/x")))
	c.until(t, "http://strip.test/apple", status(404))
}

func TestUseRegex(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "regex", host: "regex.test", paths: []string{"ImplementationSpecific /foo.+ cart"},
		annotations: map[string]string{"use-regex": "true", "rewrite-target": "/new/backend"}})
	c.until(t, "http://regex.test/foo/bar", all(from("cart"), at("/new/backend")))
	c.until(t, "http://regex.test/foo", status(404))
	// The longest expression counts, not the longest match: ingress-nginx documents it so.
	apply(t, spec{name: "longest-1", host: "longest.test", paths: []string{"ImplementationSpecific /foo/bar/bar cart"}})
	apply(t, spec{name: "longest-2", host: "longest.test", paths: []string{"ImplementationSpecific /foo/bar/[a-z]{3} checkout"},
		annotations: map[string]string{"use-regex": "true", "rewrite-target": "/test"}})
	c.until(t, "http://longest.test/foo/bar/bar", all(from("checkout"), at("/test")))
	c.until(t, "http://longest.test/foo/bar/barbar", from("checkout"))
	apply(t, spec{name: "lookahead", host: "lookahead.test", paths: []string{"ImplementationSpecific /a/(?!b).* cart", "/ checkout"}, annotations: map[string]string{"use-regex": "true"}})
	c.until(t, "http://lookahead.test/x", from("checkout"))
	c.until(t, "http://lookahead.test/a/c", status(503))
	event(t, "lookahead", "InvalidPath", "RE2")
}

func TestAppRootAndUpstreamVhost(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "app-root", host: "app-root.test", paths: []string{"/ cart"}, annotations: map[string]string{"app-root": "/foo", "upstream-vhost": "inner.test"}})
	c.until(t, "http://app-root.test/", redirect(302, "http://app-root.test/foo"))
	c.until(t, "http://app-root.test/foo", all(at("/foo"), func(a *answer) error {
		if a.facts.Host != "inner.test" || a.saw("X-Forwarded-Host") != "app-root.test" {
			return fmt.Errorf("the backend saw the host %q, forwarded %q", a.facts.Host, a.saw("X-Forwarded-Host"))
		}
		return nil
	}))
}

func TestServerAlias(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "alias", host: "alias.test", paths: []string{"/ cart"}, annotations: map[string]string{"server-alias": "other-name.test, *.names.test, taken.test"}})
	apply(t, spec{name: "taken", host: "taken.test", paths: []string{"/ checkout"}})
	c.until(t, "http://other-name.test/", from("cart"))
	c.until(t, "http://any.names.test/", from("cart"))
	c.until(t, "http://taken.test/", from("checkout"))
	event(t, "alias", "AliasConflict", "taken.test")
	lab.Kubectl(t, "delete", "ingress", "-n", shop, "taken")
	c.until(t, "http://taken.test/", from("cart"))
}

func TestRedirects(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "permanent", host: "permanent.test", paths: []string{"/ cart"}, annotations: map[string]string{"permanent-redirect": "https://example.com$request_uri"}})
	apply(t, spec{name: "permanent-code", host: "permanent-code.test", paths: []string{"/ cart"}, annotations: map[string]string{"permanent-redirect": "http://www.example.com", "permanent-redirect-code": "308"}})
	apply(t, spec{name: "temporal", host: "temporal.test", paths: []string{"/ cart"}, annotations: map[string]string{"temporal-redirect": "http://www.example.com", "temporal-redirect-code": "307"}})
	c.until(t, "http://permanent.test/a?b=c", redirect(301, "https://example.com/a?b=c"))
	c.until(t, "http://permanent-code.test/a", redirect(308, "http://www.example.com"))
	c.until(t, "http://temporal.test/", redirect(307, "http://www.example.com"))
}

func TestFromToWWW(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "to-bare", host: "bare.test", paths: []string{"/ cart"}, annotations: map[string]string{"from-to-www-redirect": "true"}})
	apply(t, spec{name: "to-www", host: "www.prefixed.test", paths: []string{"/ cart"}, annotations: map[string]string{"from-to-www-redirect": "true"}})
	c.until(t, "http://www.bare.test/foo?a=b", redirect(308, "http://bare.test/foo?a=b"))
	c.until(t, "https://www.bare.test/foo", redirect(308, "https://bare.test/foo"))
	c.until(t, "http://prefixed.test/", redirect(308, "http://www.prefixed.test"))
	c.until(t, "http://bare.test/", from("cart"))
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "mistakes", host: "mistakes.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"rewrite-targt": "/", "proxy-body-size": "8m", "enable-cors": "yes please", "configuration-snippet": "more_set_headers \"X-A: b\";",
	}})
	c.until(t, "http://mistakes.test/", from("cart"))
	event(t, "mistakes", "UnknownAnnotation", "did you mean nginx.ingress.kubernetes.io/rewrite-target?")
	event(t, "mistakes", "InvalidAnnotation", `"yes please": it should be "true" or "false"`)
	event(t, "mistakes", "AnnotationRefused", "custom-headers")
	apply(t, spec{name: "guarded", host: "guarded.test", paths: []string{"/ cart"}, annotations: map[string]string{"configuration-snippet": "deny all;"}})
	c.until(t, "http://guarded.test/", status(503))
	event(t, "guarded", "Denied", "whitelist-source-range")
}
