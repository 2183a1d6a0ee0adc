// SPDX-License-Identifier: Apache-2.0

package install

import (
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestRenderIngress renders every way of exposing the gateway of Ingresses.
func TestRenderIngress(t *testing.T) {
	render := func(t *testing.T, sets ...string) map[string]*unstructured.Unstructured {
		t.Helper()
		_, objects, err := Chart{
			Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system",
			Sets: append([]string{"apiServer=https://172.30.0.3:6443", "ingress.enabled=true"}, sets...),
		}.render("1.37.0", engine.Render)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]*unstructured.Unstructured{}
		for _, o := range objects {
			found[describe(o)] = o
		}
		return found
	}
	text := func(t *testing.T, o *unstructured.Unstructured) string {
		t.Helper()
		if o == nil {
			t.Fatal("missing")
		}
		b, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for expose, want := range map[string][]string{
		"LoadBalancer": {"Deployment weft-ingress", `"type":"LoadBalancer"`},
		"NodePort":     {"Deployment weft-ingress", `"type":"NodePort"`},
		"HostPort":     {"DaemonSet weft-ingress", `"type":"ClusterIP"`, `"hostPort":443`},
		"HostNetwork":  {"DaemonSet weft-ingress", `"type":"ClusterIP"`, `"hostNetwork":true`, "NET_BIND_SERVICE"},
	} {
		t.Run(expose, func(t *testing.T) {
			found := render(t, "ingress.expose="+expose, "ingress.config.use-forwarded-headers=true")
			pods := text(t, found[want[0]])
			if service := text(t, found["Service weft-ingress"]); !strings.Contains(service, want[1]) {
				t.Errorf("the Service is not %s: %s", want[1], service)
			}
			for _, w := range want[2:] {
				if !strings.Contains(pods, w) {
					t.Errorf("no %s in the pods: %s", w, pods)
				}
			}
			if config := text(t, found["ConfigMap weft-ingress"]); !strings.Contains(config, `"use-forwarded-headers":"true"`) {
				t.Errorf("the ConfigMap: %s", config)
			}
			controller := text(t, found["Deployment weft-controller"])
			for _, w := range []string{`"--ingress"`, "--config-client=ingress=weft-ingress-config", "--ingress-service=kube-system/weft-ingress"} {
				if !strings.Contains(controller, w) {
					t.Errorf("no %s among the controller's arguments: %s", w, controller)
				}
			}
			if found["IngressClass weft"] == nil || found["IngressClass nginx"] != nil {
				t.Error("want the class weft, and nginx only when it is taken over")
			}
		})
	}
	found := render(t, "ingress.takeOver=true")
	if found["IngressClass nginx"] == nil || !strings.Contains(text(t, found["Deployment weft-controller"]), "k8s.io/ingress-nginx") {
		t.Error("ingress-nginx's class is not taken over")
	}
	_, _, err := Chart{Dir: "../../deploy/chart", Sets: []string{"apiServer=x", "ingress.enabled=true", "ingress.expose=Hostport"}}.render("1.37.0", engine.Render)
	if err == nil || !strings.Contains(err.Error(), "is not one of") {
		t.Errorf("an unknown exposure: %v", err)
	}
	_, objects, err := Chart{Dir: "../../deploy/chart", Sets: []string{"apiServer=x"}}.render("1.37.0", engine.Render)
	if err != nil || slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return strings.Contains(o.GetName(), "ingress") }) {
		t.Errorf("Ingress is there without having been asked for: %v", err)
	}
}
