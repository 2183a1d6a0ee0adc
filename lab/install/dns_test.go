// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ci "helm.sh/helm/v4/pkg/chart"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"sigs.k8s.io/yaml"
)

// rendered are the chart's objects with these values.
func rendered(t *testing.T, text string) map[string]*unstructured.Unstructured {
	t.Helper()
	return renderedFor(t, "1.37.0", text)
}

// renderedFor are those for a version of Kubernetes.
func renderedFor(t *testing.T, version, text string) map[string]*unstructured.Unstructured {
	t.Helper()
	return renderedWith(t, version, text, engine.Render)
}

func renderedWith(t *testing.T, version, text string, templates func(ci.Charter, common.Values) (map[string]string, error)) map[string]*unstructured.Unstructured {
	t.Helper()
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("apiServer: https://172.30.0.3:6443\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, objects, err := Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Values: []string{values}}.render(version, templates)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	out := map[string]*unstructured.Unstructured{}
	for _, o := range objects {
		out[describe(o)] = o
	}
	return out
}

func jsonOf(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	if o == nil {
		return ""
	}
	b, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRenderDNSForVersions renders for each version that the chart says it is for: 1.34 is the first that takes
// PreferSameNode (KEP-3015).
func TestRenderDNSForVersions(t *testing.T) {
	for version, want := range map[string]string{
		"1.32.0": "PreferClose", "1.33.9": "PreferClose", "1.34.0": "PreferSameNode", "1.34.0-beta.1": "PreferSameNode", "1.37.0": "PreferSameNode",
	} {
		got, _, _ := unstructured.NestedString(renderedFor(t, version, "")["Service weft-dns"].Object, "spec", "trafficDistribution")
		if got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
	}
}

// TestRenderKubeDNSLabel renders the label by which NetworkPolicies know the cluster's DNS. The Service selects the pods
// by weft's own, so that it never takes another's.
func TestRenderKubeDNSLabel(t *testing.T) {
	for values, want := range map[string]string{"": "kube-dns", "dns: {kubeDNSLabel: true}\n": "kube-dns", "dns: {kubeDNSLabel: false}\n": ""} {
		objects := rendered(t, values)
		pods, _, _ := unstructured.NestedStringMap(objects["DaemonSet weft-dns"].Object, "spec", "template", "metadata", "labels")
		if pods["k8s-app"] != want || pods["app.kubernetes.io/component"] != "dns" {
			t.Errorf("%q: the pods' labels: %v", values, pods)
		}
		for _, path := range [][]string{{"Service weft-dns", "spec", "selector"}, {"DaemonSet weft-dns", "spec", "selector", "matchLabels"}} {
			selector, _, _ := unstructured.NestedStringMap(objects[path[0]].Object, path[1:]...)
			if _, has := selector["k8s-app"]; has || selector["app.kubernetes.io/name"] != "weft" {
				t.Errorf("%q: %s selects %v", values, path[0], selector)
			}
		}
	}
}

// services are the cluster that templates look Services up in.
type services struct{ dynamic.Interface }

func (s services) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	if apiVersion != "v1" || kind != "Service" {
		return nil, false, fmt.Errorf("a lookup of %s %s", apiVersion, kind)
	}
	return s.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}), true, nil
}

// TestRenderKubeDNSLabelBesideOthers renders the label with "auto" into clusters that have a Service kube-dns: CoreDNS's
// must not get weft's pods behind it unasked.
func TestRenderKubeDNSLabelBesideOthers(t *testing.T) {
	service := func(namespace string, labels, selector map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Service",
			"metadata": map[string]any{"name": "kube-dns", "namespace": namespace, "labels": labels},
			"spec":     map[string]any{"selector": selector}}}
	}
	coredns := map[string]any{"k8s-app": "kube-dns"}
	for name, c := range map[string]struct {
		there  *unstructured.Unstructured
		values string
		want   string
	}{
		"CoreDNS's":                             {service("kube-system", coredns, coredns), "", ""},
		"CoreDNS's, and it is to be taken over": {service("kube-system", coredns, coredns), "dns: {kubeDNSLabel: true}\n", "kube-dns"},
		"weft's own":                            {service("kube-system", map[string]any{"app.kubernetes.io/name": "weft"}, coredns), "", "kube-dns"},
		"one that selects others":               {service("kube-system", map[string]any{}, map[string]any{"app": "dns"}), "", "kube-dns"},
		"one in another namespace":              {service("default", coredns, coredns), "", "kube-dns"},
	} {
		cluster := services{fake.NewSimpleDynamicClient(runtime.NewScheme(), c.there)}
		objects := renderedWith(t, "1.37.0", c.values, func(chart ci.Charter, values common.Values) (map[string]string, error) {
			return engine.RenderWithClientProvider(chart, values, cluster)
		})
		labels, _, _ := unstructured.NestedStringMap(objects["DaemonSet weft-dns"].Object, "spec", "template", "metadata", "labels")
		if labels["k8s-app"] != c.want {
			t.Errorf("%s: the pods' labels: %v, want k8s-app %q", name, labels, c.want)
		}
	}
}

// TestRenderDNS renders what the DNS values change.
func TestRenderDNS(t *testing.T) {
	plain := rendered(t, "")
	for object, wants := range map[string][]string{
		"Service weft-dns":   {`"weft.dev/untracked-dns-port":"dns-node"`, `"name":"dns-node","port":1053,"protocol":"UDP","targetPort":"dns-node"`},
		"DaemonSet weft-dns": {`"--listen-node=:1053"`, `"containerPort":1053,"name":"dns-node","protocol":"UDP"`},
	} {
		for _, want := range wants {
			if text := jsonOf(t, plain[object]); !strings.Contains(text, want) {
				t.Errorf("%s has no %s: %s", object, want, text)
			}
		}
	}
	if plain["Service weft-dns-external"] != nil || strings.Contains(jsonOf(t, plain["DaemonSet weft-dns"]), "external") ||
		strings.Contains(jsonOf(t, plain["ClusterRole weft-dns"]), "gateway") {
		t.Error("zones for the outside world are served though nobody asked for any")
	}

	tracked := rendered(t, "dns: {untrackedPort: 0}\n")
	for _, object := range []string{"Service weft-dns", "DaemonSet weft-dns"} {
		if text := jsonOf(t, tracked[object]); strings.Contains(text, "dns-node") || strings.Contains(text, "listen-node") {
			t.Errorf("without the port, %s has it: %s", object, text)
		}
	}

	outside := rendered(t, "dns:\n  config: {ttl: 9s, external: {ttl: 1m}}\n  external: {zones: [example.com], nameServers: [ns1.example.net], service: {annotations: {a: b}}}\n")
	for object, wants := range map[string][]string{
		"Service weft-dns-external": {`"type":"LoadBalancer"`, `"externalTrafficPolicy":"Local"`, `"targetPort":"external"`, `"a":"b"`},
		"DaemonSet weft-dns":        {`"--listen-external=:5353"`, `"containerPort":5353,"name":"external"`, `"containerPort":5353,"name":"external-tcp"`},
		"ClusterRole weft-dns":      {`"ingresses"`, `"gateway.networking.k8s.io"`},
	} {
		for _, want := range wants {
			if text := jsonOf(t, outside[object]); !strings.Contains(text, want) {
				t.Errorf("%s has no %s: %s", object, want, text)
			}
		}
	}
	text, _, _ := unstructured.NestedString(outside["ConfigMap weft-dns"].Object, "data", "dns.yaml")
	var config struct {
		TTL      string
		External struct {
			TTL, Service       string
			Zones, NameServers []string
		}
	}
	if err := yaml.UnmarshalStrict([]byte(text), &config); err != nil || config.TTL != "9s" || config.External.TTL != "1m" ||
		config.External.Service != "kube-system/weft-dns-external" || len(config.External.Zones) != 1 || len(config.External.NameServers) != 1 {
		t.Errorf("the configuration: %v\n%s", err, text)
	}
}
