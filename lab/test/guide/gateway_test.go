// SPDX-License-Identifier: Apache-2.0

package guide

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// TestGateway is section 4: the end-to-end example and each of the advanced features, with requests from beyond the
// cluster.
func TestGateway(t *testing.T) {
	namespaces(t, shop, manager)
	certFile := secret(t, manager, "shop-tls-secret", "shop.example.com", "*.example.com")
	backendCert := secret(t, shop, "backend-tls", "backend-service.shop.svc")
	secret(t, shop, "backend-cert-secret", "the-gateway")
	lab.Kubectl(t, "create", "secret", "generic", "backend-ca-secret", "-n", shop, "--from-file=ca.crt="+backendCert)
	mounted := `        - {name: HTTPS_CERT_DIR, value: /tls}
        volumeMounts: [{name: tls, mountPath: /tls}]
      volumes: [{name: tls, secret: {secretName: backend-tls}}]
`
	lab.Apply(t, shop, pool+
		app("cart", "app: cart", port("HTTP", "8080"), "")+app("checkout", "app: checkout", port("HTTP", "8080"), "")+
		app("stable", "app: stable", port("HTTP", "8080"), "")+service("stable-service", "stable", 80, 8080)+
		app("canary", "app: canary", port("HTTP", "8080"), "")+service("canary-service", "canary", 80, 8080)+
		app("discount", "app: discount", port("HTTP", "8080"), "")+service("discount-service", "discount", 80, 8080)+
		app("passed", "app: passed", port("HTTPS", "8443"), "")+service("backend-tls-service", "passed", 443, 8443)+
		app("shopping-grpc", "app: shopping-grpc", port("HTTP", "50051"), "")+service("shopping-grpc-svc", "shopping-grpc", 50051, 50051)+
		app("checkout-grpc", "app: checkout-grpc", port("HTTP", "50052"), "")+service("checkout-grpc-svc", "checkout-grpc", 50052, 50052)+
		app("secure", "app: secure", port("HTTPS", "8443"), mounted)+service("backend-service", "secure", 443, 8443))
	if _, err := lab.RunWith(t.Context(), manifests(t, "gateway", "--https"), "kubectl", "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	ready(t)
	lab.WaitFor(t, manager, "condition=Accepted", "gatewayclass/example-nginx-gatewayclass")
	lab.WaitFor(t, manager, "condition=Programmed", "gateway/shop-gateway", "gateway/example-gateway")
	addr := lab.Get(t, manager, "gateway/shop-gateway", "{.status.addresses[0].value}")
	other := lab.Get(t, manager, "gateway/example-gateway", "{.status.addresses[0].value}")
	if addr == "" || other == "" || addr == other {
		t.Fatalf("addresses %q and %q", addr, other)
	}
	to := func(host, port string) []string { return []string{"--resolve", host + ":" + port + ":" + addr} }
	pod := func(name string) string { return `"pod":"` + name + "-" }

	t.Run("4.5.5 HTTP", func(t *testing.T) {
		answered(t, []string{pod("cart"), `"path":"/cart/items"`}, append(to("shop.example.com", "80"), "http://shop.example.com/cart/items")...)
		answered(t, []string{pod("checkout")}, append(to("shop.example.com", "80"), "http://shop.example.com/checkout")...)
		answered(t, []string{"404"}, append(to("shop.example.com", "80"), "-o", "/dev/null", "-w", "%{http_code}", "http://shop.example.com/else")...)
	})
	t.Run("4.5.5 HTTPS", func(t *testing.T) {
		answered(t, []string{pod("cart")}, append(to("shop.example.com", "443"), "--cacert", certFile, "https://shop.example.com/cart")...)
	})
	t.Run("4.7 status", func(t *testing.T) {
		for _, condition := range []string{"Accepted", "ResolvedRefs"} {
			got := lab.Get(t, shop, "httproute/shop-route", `{.status.parents[*].conditions[?(@.type=="`+condition+`")].status}`)
			if strings.Trim(got, "True ") != "" || got == "" {
				t.Errorf("%s: %q", condition, got)
			}
		}
	})
	split := func(t *testing.T, url, address string, least map[string]int) {
		t.Helper()
		host := strings.Split(strings.TrimPrefix(url, "http://"), "/")[0]
		answered(t, []string{`"pod":`}, "--resolve", host+":80:"+address, url)
		args := []string{"--resolve", host + ":80:" + address}
		for range 300 {
			args = append(args, url)
		}
		out, err := lab.Exec(t.Context(), "outside", append([]string{"curl", "-sS", "--max-time", "60"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range least {
			if got := strings.Count(out, pod(name)); got < n {
				t.Errorf("%s answered %d of 300, want at least %d", name, got, n)
			}
		}
	}
	// The bounds are missed by chance less than once in a million.
	t.Run("4.3.3 weights", func(t *testing.T) {
		split(t, "http://shop.example.com/cart", other, map[string]int{"cart": 200, "discount": 25})
	})
	t.Run("4.6.1 weights", func(t *testing.T) {
		split(t, "http://split.example.com/", addr, map[string]int{"stable": 235, "canary": 5})
	})
	t.Run("4.6.2 matches", func(t *testing.T) {
		match := func(host, want string, args ...string) {
			t.Helper()
			args[len(args)-1] = "http://" + host + args[len(args)-1]
			answered(t, []string{want}, append(append(to(host, "80"), "-w", " %{http_code}"), args...)...)
		}
		match("headers.example.com", pod("checkout"), "-H", "x-user-type: premium", "/")
		match("headers.example.com", " 404", "/")
		match("query.example.com", pod("canary"), "/?version=beta")
		match("query.example.com", " 404", "/?version=alpha")
		match("methods.example.com", pod("cart"), "/")
		match("methods.example.com", pod("stable"), "-X", "POST", "/write/it")
		match("methods.example.com", " 404", "-X", "POST", "/")
	})
	t.Run("4.6.3 passthrough", func(t *testing.T) {
		// The server sees the client's own handshake, and the client the server's own certificate.
		answered(t, []string{pod("passed"), `"serverName":"api.shop.example.com"`}, append(to("api.shop.example.com", "443"), "-k", "https://api.shop.example.com/")...)
		if out, err := outside(t, append(to("api.shop.example.com", "443"), "--cacert", certFile, "https://api.shop.example.com/")...); err == nil {
			t.Errorf("the Gateway's own certificate was shown: %s", out)
		}
	})
	t.Run("4.6.4 gRPC", func(t *testing.T) {
		empty := filepath.Join(t.TempDir(), "message")
		write(t, empty, "\x00\x00\x00\x00\x00")
		for method, name := range map[string]string{"GetCart": "shopping-grpc", "Checkout": "checkout-grpc"} {
			answered(t, []string{name + "-"}, append(to("grpc.shop.example.com", "80"), "--http2-prior-knowledge", "-H", "content-type: application/grpc",
				"-H", "te: trailers", "--data-binary", "@"+empty, "--output", "-", "http://grpc.shop.example.com/shop.Shop/"+method)...)
		}
	})
	t.Run("4.6.5 TLS to the backend", func(t *testing.T) {
		answered(t, []string{pod("secure"), `"serverName":"backend-service.shop.svc"`, `"clientCert":"CN=the-gateway"`}, append(to("backend.example.com", "80"), "http://backend.example.com/")...)
	})
	t.Run("4.7 deletion", func(t *testing.T) {
		lab.Kubectl(t, "delete", "gateway", "-n", manager, "example-gateway")
		labtest.Eventually(t, 60*time.Second, func() error {
			left, err := lab.Run(t.Context(), "kubectl", "get", "deployments,services,serviceaccounts", "-n", manager, "-o", "name")
			if err != nil || strings.Contains(left, "example-gateway") {
				return fmt.Errorf("left of it: %s, %w", left, err)
			}
			return nil
		})
		answered(t, []string{pod("cart")}, append(to("shop.example.com", "80"), "http://shop.example.com/cart")...)
	})
}
