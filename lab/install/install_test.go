// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestRenderWeft renders the chart that every lab installs.
func TestRenderWeft(t *testing.T) {
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("controller: {replicas: 1}\napiServer: overridden\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Chart{
		Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Values: []string{values},
		Sets: []string{"apiServer=https://172.30.0.3:6443", "dns.service.clusterIPs={10.96.0.10,fd00:10:96::a}"},
	}
	crds, objects, err := c.render("1.37.0", engine.Render)
	if err != nil {
		t.Fatal(err)
	}
	if len(crds) == 0 {
		t.Error("no CRD")
	}
	for _, crd := range crds {
		if crd.GetKind() != "CustomResourceDefinition" {
			t.Errorf("%s among the CRDs", describe(crd))
		}
	}
	found := map[string]*unstructured.Unstructured{}
	for _, o := range objects {
		found[describe(o)] = o
	}
	for _, want := range []string{"DaemonSet weft-node", "DaemonSet weft-dns", "Deployment weft-controller", "Service weft-dns"} {
		if found[want] == nil {
			t.Errorf("no %s among %d objects", want, len(objects))
		}
	}
	// A Service must exist before what it is injected into, and an account before the pods that run as it.
	order := map[string]int{}
	for i, o := range objects {
		if _, seen := order[o.GetKind()]; !seen {
			order[o.GetKind()] = i
		}
	}
	if order["ServiceAccount"] > order["DaemonSet"] || order["Service"] > order["DaemonSet"] {
		t.Errorf("order of kinds: %v", order)
	}
	if replicas, _, _ := unstructured.NestedFieldNoCopy(found["Deployment weft-controller"].Object, "spec", "replicas"); replicas != float64(1) && replicas != int64(1) {
		t.Errorf("replicas of the value file: %v", replicas)
	}
	text, err := found["DaemonSet weft-node"].MarshalJSON()
	if err != nil || !strings.Contains(string(text), "https://172.30.0.3:6443") || strings.Contains(string(text), "overridden") {
		t.Errorf("the single value does not win over the file's: %s, %v", text, err)
	}
}

func TestRenderSaysWhatIsWrong(t *testing.T) {
	if _, _, err := (Chart{Dir: t.TempDir()}).render("1.37.0", engine.Render); err == nil {
		t.Error("an empty directory is a chart")
	}
	_, _, err := (Chart{Dir: "../../deploy/chart", Sets: []string{"novalue"}}).render("1.37.0", engine.Render)
	if err == nil || !strings.Contains(err.Error(), "--set novalue") {
		t.Errorf("a broken --set: %v", err)
	}
}

// TestMistypedValues: a value that the chart does not have, or can't use, is refused and named.
func TestMistypedValues(t *testing.T) {
	for _, set := range []string{
		"apiserver=https://h:6443", "ingres.enabled=true", "node.metricPort=1", "dns.external.zone={a.example}", "dns.service.clusterIPs=10.96.0.10",
		"controller.replicas=two", "image.pullPolicy=always", "ingress.service.externalTrafficPolicy=local", "ingress.accessLog=on", "node.metricsPort=70000",
	} {
		_, _, err := (Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Sets: []string{"apiServer=https://h:6443", set}}).render("1.37.0", engine.Render)
		name, _, _ := strings.Cut(set, "=")
		if last := name[strings.LastIndexByte(name, '.')+1:]; err == nil || !strings.Contains(err.Error(), last) && !strings.Contains(err.Error(), strings.SplitN(name, ".", 2)[0]) {
			t.Errorf("--set %s: %v", set, err)
		}
	}
	for _, set := range []string{
		"image.tag=1.2", "node.args={--log-admitted}", "dns.kubeDNSLabel=true", "ingress.config.proxy-body-size=8m", "ingress.service.nodePorts.http=30080",
		"node.resources.limits.memory=1Gi", "dns.external.service.annotations.a=b", "node.tolerations[0].operator=Exists", "ingress.classes[0].name=x",
	} {
		_, _, err := (Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Sets: []string{"apiServer=https://h:6443", "ingress.enabled=true", set}}).render("1.37.0", engine.Render)
		if err != nil {
			t.Errorf("--set %s: %v", set, err)
		}
	}
}

func TestReadiness(t *testing.T) {
	object := func(kind string, generation, observed, ready, want int64) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"kind":     kind,
			"metadata": map[string]any{"generation": generation},
			"spec":     map[string]any{"replicas": want},
			"status": map[string]any{
				"observedGeneration": observed, "readyReplicas": ready,
				"numberReady": ready, "desiredNumberScheduled": want,
			},
		}}
	}
	for _, kind := range []string{"DaemonSet", "Deployment"} {
		if ready, want := readiness(object(kind, 1, 1, 2, 3)); ready != 2 || want != 3 {
			t.Errorf("%s: %d of %d", kind, ready, want)
		}
		if ready, want := readiness(object(kind, 2, 1, 3, 3)); ready != 0 || want != 0 {
			t.Errorf("%s that its controller has not seen: %d of %d", kind, ready, want)
		}
	}
}

func TestPodTrouble(t *testing.T) {
	pod := unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": "p"},
		"spec":     map[string]any{"nodeName": "node1"},
		"status": map[string]any{
			"conditions": []any{map[string]any{"type": "Ready", "status": "False", "message": "containers with unready status"}},
			"containerStatuses": []any{map[string]any{
				"name": "c", "state": map[string]any{"waiting": map[string]any{"reason": "ImagePullBackOff", "message": "load it"}},
			}},
		},
	}}
	if got := podTrouble(pod); !strings.Contains(got, "pod p on node1") || !strings.Contains(got, "ImagePullBackOff: load it") {
		t.Errorf("got %q", got)
	}
	unstructured.SetNestedSlice(pod.Object, []any{map[string]any{"type": "Ready", "status": "True"}}, "status", "conditions")
	if got := podTrouble(pod); got != "" {
		t.Errorf("a ready pod: %q", got)
	}
}
