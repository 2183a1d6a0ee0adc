// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// Whatever is changed, and whoever is killed, no request fails.
func TestNoRequestIsLost(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "busy", paths: []string{"/busy cart"}})
	c.until(t, "http://busy.test/busy", from("cart"))
	traffic := lab.Background(t, "exec", "--in", "outside", "--", lab.Echo("outside"), "get", "-for", "5m", "-c", "4", "-interval", "10ms", "-q", "http://"+c.g.address+"/busy")
	for i := range 5 {
		apply(t, spec{name: "busy", paths: []string{"/busy cart", fmt.Sprintf("/other-%d checkout", i)}, annotations: map[string]string{"proxy-body-size": fmt.Sprintf("%dm", i+1)}})
		c.until(t, fmt.Sprintf("http://busy.test/other-%d", i), from("checkout"))
	}
	lab.Kubectl(t, "scale", "-n", shop, "deployment/cart", "--replicas=4")
	lab.Rollout(t, shop, "deployment/cart")
	lab.Kubectl(t, "scale", "-n", shop, "deployment/cart", "--replicas=2")
	lab.Rollout(t, shop, "deployment/cart")
	// The controller dies: the gateway serves on, and hears of what changed meanwhile when there is one again.
	lab.Kubectl(t, "delete", "pod", "-n", "kube-system", "-l", "app.kubernetes.io/component=controller", "--grace-period=0", "--force")
	apply(t, spec{name: "busy", paths: []string{"/busy cart", "/while-away checkout"}})
	labtest.Eventually(t, 90*time.Second, func() error {
		a, err := c.do("GET", "http://busy.test/while-away", "")
		if err != nil {
			return err
		}
		return from("checkout")(a)
	})
	out, err := traffic.Stop()
	if err != nil || !strings.Contains(out, "failed 0") {
		t.Errorf("%v\n%.4000s", err, out)
	}
}
