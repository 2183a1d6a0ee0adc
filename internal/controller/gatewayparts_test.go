// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
)

// What a GatewayConfig says of tunnels becomes an argument of the pods, and nothing of it where it says nothing.
func TestTunnelIdleOfAGateway(t *testing.T) {
	gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "weft"}}
	for _, c := range []struct {
		class, gateway *int64
		want           string
	}{{nil, nil, ""}, {new(int64(90)), nil, `"--tunnel-idle=90s"`}, {new(int64(90)), new(int64(7200)), `"--tunnel-idle=7200s"`}} {
		conf := mergedConfig(&v1alpha1.GatewayConfig{Spec: v1alpha1.GatewayConfigSpec{TunnelIdleSeconds: c.class}},
			&v1alpha1.GatewayConfig{Spec: v1alpha1.GatewayConfigSpec{TunnelIdleSeconds: c.gateway}})
		for _, o := range partsOf(gw, &gatewayapi.Infrastructure{Accepted: true}, conf, PodOptions{}) {
			if text := string(encode(o.Object)); o.GetKind() == "Deployment" && (!strings.Contains(text, c.want) || c.want == "" && strings.Contains(text, "tunnel-idle")) {
				t.Errorf("want %q in %s", c.want, text)
			}
		}
	}
}
