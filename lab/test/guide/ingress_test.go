// SPDX-License-Identifier: Apache-2.0

package guide

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// TestIngress is section 3, with ingress-nginx's class taken over, and then 4.8: the same Ingresses, converted, are
// served by a Gateway as they were.
func TestIngress(t *testing.T) {
	namespaces(t, shop, manager)
	certFile := secret(t, shop, "shop-tls-secret", "shop.example.com", "secure.example.com")
	lab.Apply(t, shop, pool+
		app("cart", "app: cart", port("HTTP", "8080"), "")+service("cart-service", "cart", 80, 8080)+
		app("checkout", "app: checkout", port("HTTP", "8080"), "")+service("checkout-service", "checkout", 80, 8080)+
		app("myapp", "app: myapp", port("HTTP", "8080"), "")+service("myapp-service", "myapp", 80, 8080))
	lab.Apply(t, shop, manifests(t, "ingress"))
	ready(t)
	var addr string
	labtest.Eventually(t, 60*time.Second, func() error {
		out, err := lab.Run(t.Context(), "kubectl", "get", "ingress", "-n", shop, "example-ingress", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if addr = strings.TrimSpace(out); err != nil || addr == "" {
			return fmt.Errorf("the Ingress shows no address: %w", err)
		}
		return nil
	})
	served(t, addr, certFile)
	t.Run("3.5 a host without TLS", func(t *testing.T) {
		answered(t, []string{" 404"}, "--resolve", "else.example.com:443:"+addr, "-k", "-w", " %{http_code}", "https://else.example.com/")
	})

	t.Run("4.8 converted", func(t *testing.T) {
		out, err := lab.Exec(t.Context(), "outside", weftBinary(t), "convert", "ingress", "--verify", "-n", shop, "--gateway", manager+"/from-ingress", "--gateway-class", "weft")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := lab.RunWith(t.Context(), out, "kubectl", "apply", "-f", "-"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		lab.WaitFor(t, manager, "condition=Programmed", "gateway/from-ingress")
		served(t, lab.Get(t, manager, "gateway/from-ingress", "{.status.addresses[0].value}"), certFile)
	})
}

// served sends the guide's requests to an address, which must do what the Ingresses say.
func served(t *testing.T, addr, certFile string) {
	t.Helper()
	to := func(host string, args ...string) []string {
		return append([]string{"--resolve", host + ":80:" + addr, "--resolve", host + ":443:" + addr, "--cacert", certFile}, args...)
	}
	// 3.3 and 3.8: by path, over TLS, with the path's prefix taken off.
	answered(t, []string{`"pod":"cart-`, `"path":"/items"`}, to("shop.example.com", "https://shop.example.com/cart/items")...)
	answered(t, []string{`"pod":"checkout-`, `"path":"/"`}, to("shop.example.com", "https://shop.example.com/checkout")...)
	answered(t, []string{`"pod":"cart-`}, to("shop.example.com", "-L", "http://shop.example.com/cart/items")...)
	answered(t, []string{" 404"}, to("shop.example.com", "-w", " %{http_code}", "https://shop.example.com/else")...)
	// 3.6.2
	answered(t, []string{`"pod":"myapp-`, `"path":"/foo"`}, to("example.com", "http://example.com/app/foo")...)
	// 3.9: plain text is redirected, and browsers told to stay.
	answered(t, []string{"308 https://secure.example.com/a"}, to("secure.example.com", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://secure.example.com/a")...)
	answered(t, []string{`"pod":"cart-`, "max-age=15724800"}, to("secure.example.com", "-i", "https://secure.example.com/a")...)
}
