// SPDX-License-Identifier: Apache-2.0

package install

import (
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestRenderUpstreamCRDs: the CRDs of others come when they are asked for, in the channel asked for, and outlive the
// release.
func TestRenderUpstreamCRDs(t *testing.T) {
	for values, want := range map[string]int{
		"": 0,
		"gatewayAPI.crds=none,networkPolicyAPI.crds=none":             0,
		"gatewayAPI.crds=standard":                                    10,
		"gatewayAPI.crds=experimental":                                13,
		"gatewayAPI.crds=standard,networkPolicyAPI.crds=standard":     11,
		"gatewayAPI.crds=standard,networkPolicyAPI.crds=experimental": 11,
	} {
		c := Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system"}
		if values != "" {
			c.Sets = strings.Split(values, ",")
		}
		_, objects, err := c.render("1.37.0", engine.Render)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, o := range objects {
			if o.GetKind() != "CustomResourceDefinition" {
				continue
			}
			n++
			if o.GetAnnotations()["helm.sh/resource-policy"] != "keep" {
				t.Errorf("%s: %s goes with the release", values, o.GetName())
			}
			channel := o.GetAnnotations()["gateway.networking.k8s.io/channel"]
			if channel != "" && !strings.Contains(values, "gatewayAPI.crds="+channel) {
				t.Errorf("%s: %s is of channel %s", values, o.GetName(), channel)
			}
		}
		if n != want {
			t.Errorf("%q: %d CRDs, want %d", values, n, want)
		}
	}
	c := Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Sets: []string{"gatewayAPI.crds=stable"}}
	if _, _, err := c.render("1.37.0", engine.Render); err == nil || !strings.Contains(err.Error(), "stable") {
		t.Errorf("an unknown channel: %v", err)
	}
}

// TestRenderGatewayAPI: the controller serves Gateway API unless it is told not to, and may do no more than it needs.
func TestRenderGatewayAPI(t *testing.T) {
	for _, on := range []bool{true, false} {
		c := Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Sets: []string{"image.tag=v9"}}
		if !on {
			c.Sets = append(c.Sets, "gatewayAPI.enabled=false")
		}
		_, objects, err := c.render("1.37.0", engine.Render)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			switch describe(o) {
			case "Deployment weft-controller":
				containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
				args, _, _ := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
				all := strings.Join(args, " ")
				if strings.Contains(all, "--gateway-api") != on {
					t.Errorf("enabled %v: %s", on, all)
				}
				if on && (!strings.Contains(all, "--gateway-image=ghcr.io/weft-net/weft:v9 ") || !strings.Contains(all, "--gateway-controller=weft-config.kube-system.svc:9643")) {
					t.Errorf("the gateways' pods would not be the controller's image, or not find it: %s", all)
				}
			case "ClusterRole weft-controller":
				rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
				for _, r := range rules {
					rule := r.(map[string]any)
					resources, _, _ := unstructured.NestedStringSlice(rule, "resources")
					verbs, _, _ := unstructured.NestedStringSlice(rule, "verbs")
					if strings.Contains(strings.Join(append(resources, verbs...), " "), "*") {
						t.Errorf("a rule for everything: %v", rule)
					}
					if !on && strings.Contains(strings.Join(resources, " "), "deployments") {
						t.Errorf("without gateways it may write Deployments: %v", rule)
					}
				}
			}
		}
	}
}
