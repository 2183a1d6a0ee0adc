// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

func read(t *testing.T, text string) *model.Object {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	o, err := FromGatewayObject(u)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// What a later release of the API has, or has of another type, is told apart, and the rest can be used.
func TestUnknownFields(t *testing.T) {
	o := read(t, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"a","namespace":"b","later":1},
		"spec":{"gatewayClassName":"weft","addresses":[{"value":"10.0.0.1","routability":"Cluster"}],"listeners":[
			{"name":"open","port":80,"protocol":"HTTP"},
			{"name":"guarded","port":81,"protocol":"HTTP","filters":{"requests":[{"type":"ExternalAuth"}]}},
			"nonsense",
			{"name":"far","port":4294967297,"protocol":"HTTP","hostname":7}]},
		"status":{"addresses":[{"value":"10.0.0.1","routability":"Cluster"}],"conditions":7}}`)
	want := map[string]any{
		"spec.addresses[0].routability": "Cluster",
		"spec.listeners[1].filters":     map[string]any{"requests": []any{map[string]any{"type": "ExternalAuth"}}},
		"spec.listeners[2]":             "nonsense",
		"spec.listeners[3].port":        int64(4294967297),
		"spec.listeners[3].hostname":    int64(7),
	}
	if d := cmp.Diff(want, o.Unknown); d != "" {
		t.Errorf("unknown (-want +got):\n%s", d)
	}
	gw := o.Value.(*gatewayv1.Gateway)
	if l := gw.Spec.Listeners; len(l) != 4 || l[1].Name != "guarded" || l[1].Port != 81 || l[3].Name != "far" || gw.Status.Addresses[0].Value != "10.0.0.1" {
		t.Errorf("the rest is %+v", gw)
	}
	o = read(t, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"a"},"spec":{"hostnames":["a.example"],
		"parentRefs":[{"name":"x"}],"rules":[{"timeouts":{"request":"1s"},"filters":[{"type":"ExternalAuth","externalAuth":{"protocol":"HTTP",
		"backendRef":{"name":"auth","port":80},"forwardBody":{"maxSize":70000}}}]}]}}`)
	if d := cmp.Diff(map[string]any{"spec.rules[0].filters[0].externalAuth.forwardBody.maxSize": int64(70000)}, o.Unknown); d != "" {
		t.Errorf("unknown (-want +got):\n%s", d)
	}
	if o.Value.(*gatewayv1.HTTPRoute).Spec.Hostnames[0] != "a.example" {
		t.Errorf("the rest is %+v", o.Value)
	}
}

// The kinds are followed in whichever version the API server has, from release 1.0 on.
func TestOlderVersions(t *testing.T) {
	served := map[string]string{
		"v1beta1/gatewayclasses": `{"kind":"GatewayClass","metadata":{"name":"c"},"spec":{"controllerName":"weft.dev/gateway"},
			"status":{"supportedFeatures":["Gateway","HTTPRoute"],"conditions":[{"type":"Accepted"}]}}`,
		"v1beta1/gateways":        `{"kind":"Gateway","metadata":{"name":"g","namespace":"n"},"spec":{"gatewayClassName":"c"}}`,
		"v1beta1/httproutes":      `{"kind":"HTTPRoute","metadata":{"name":"h","namespace":"n"},"spec":{"hostnames":["a.example"]}}`,
		"v1alpha2/grpcroutes":     `{"kind":"GRPCRoute","metadata":{"name":"r","namespace":"n"},"spec":{}}`,
		"v1alpha2/tlsroutes":      `{"kind":"TLSRoute","metadata":{"name":"l","namespace":"n"},"spec":{}}`,
		"v1alpha2/tcproutes":      `{"kind":"TCPRoute","metadata":{"name":"t","namespace":"n"},"spec":{}}`,
		"v1alpha2/udproutes":      `{"kind":"UDPRoute","metadata":{"name":"u","namespace":"n"},"spec":{}}`,
		"v1beta1/referencegrants": `{"kind":"ReferenceGrant","metadata":{"name":"p","namespace":"n"},"spec":{"from":[],"to":[]}}`,
		"v1alpha2/backendtlspolicies": `{"kind":"BackendTLSPolicy","metadata":{"name":"b","namespace":"n"},"spec":{"targetRef":{"group":"","kind":"Service",
			"name":"s","namespace":"n","sectionName":"https"},"tls":{"hostname":"b.example","caCertRefs":[{"group":"","kind":"ConfigMap","name":"ca"}]}}}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/apis/gateway.networking.k8s.io/")
		version, _, _ := strings.Cut(path, "/")
		text, ok := served[path]
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`))
			return
		}
		var item map[string]any
		if err := json.Unmarshal([]byte(text), &item); err != nil {
			t.Error(err)
		}
		item["apiVersion"] = "gateway.networking.k8s.io/" + version
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": item["kind"].(string) + "List", "apiVersion": item["apiVersion"],
			"metadata": map[string]any{"resourceVersion": "1"}, "items": []any{item}})
	}))
	t.Cleanup(server.Close)
	d, err := Snapshot(t.Context(), &rest.Config{Host: server.URL, QPS: -1}, GatewayAPI)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Objects) != len(served) {
		t.Errorf("%d objects of %d: %v", len(d.Objects), len(served), d.Objects)
	}
	for key, o := range d.Objects {
		if o.Unknown != nil {
			t.Errorf("%v: unknown %v", key, o.Unknown)
		}
	}
	if c, ok := d.Objects[model.ObjectKey{Kind: "GatewayClass", Name: "c"}]; !ok || c.Value.(*gatewayv1.GatewayClass).Status.Conditions[0].Type != "Accepted" {
		t.Errorf("the GatewayClass is %+v", c)
	}
	b := d.Objects[model.ObjectKey{Kind: "BackendTLSPolicy", Namespace: "n", Name: "b"}].Value.(*gatewayv1.BackendTLSPolicy)
	if s := b.Spec; len(s.TargetRefs) != 1 || s.TargetRefs[0].Name != "s" || *s.TargetRefs[0].SectionName != "https" ||
		s.Validation.Hostname != "b.example" || len(s.Validation.CACertificateRefs) != 1 || s.Validation.CACertificateRefs[0].Name != "ca" {
		t.Errorf("the BackendTLSPolicy is %+v", s)
	}
}

// A ListenerSet's status does not tell who wrote it: managedFields do, and no more is kept of them than that.
func TestWhoseListenerSet(t *testing.T) {
	const head, tail = `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"ListenerSet","metadata":{"name":"a","managedFields":[{"manager":"kubectl"},{"manager":"`,
		`","subresource":"status","fieldsV1":{"f:status":{}}}]},"spec":{"parentRef":{"name":"g"},"listeners":[]}}`
	for manager, want := range map[string]int{"weft-controller": 1, "other": 0} {
		if got := read(t, head+manager+tail).Value.(*gatewayv1.ListenerSet).ManagedFields; len(got) != want || want == 1 && got[0].FieldsV1 != nil {
			t.Errorf("%s: %+v", manager, got)
		}
	}
}
