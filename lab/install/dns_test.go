// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// rendered are the chart's objects with these values.
func rendered(t *testing.T, text string) map[string]*unstructured.Unstructured {
	t.Helper()
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("apiServer: https://172.30.0.3:6443\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, objects, err := Chart{Dir: "../../deploy/chart", Release: "weft", Namespace: "kube-system", Values: []string{values}}.render("1.37.0")
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
