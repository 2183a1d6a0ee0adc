// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

type openapi = map[string]any

// TestCRDMatchesTypes holds the CustomResourceDefinition against the Go types: the same fields, of the same JSON
// types, all the way down.
func TestCRDMatchesTypes(t *testing.T) {
	for _, k := range []struct {
		resource schema.GroupVersionResource
		kind     string
		scope    string
		typ      reflect.Type
	}{
		{AddressPools, "AddressPool", "Cluster", reflect.TypeFor[AddressPool]()},
		{GatewayConfigs, "GatewayConfig", "Namespaced", reflect.TypeFor[GatewayConfig]()},
		{TrafficPolicies, "TrafficPolicy", "Namespaced", reflect.TypeFor[TrafficPolicy]()},
	} {
		t.Run(k.kind, func(t *testing.T) {
			raw, err := os.ReadFile("../../deploy/chart/crds/weft.dev_" + k.resource.Resource + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			var crd struct {
				Metadata metav1.ObjectMeta
				Spec     struct {
					Group, Scope string
					Names        struct{ Kind, Plural string }
					Versions     []struct {
						Name   string
						Schema struct{ OpenAPIV3Schema openapi }
					}
				}
			}
			if err := yaml.UnmarshalStrict(raw, &struct{ Kind, APIVersion, Metadata, Spec any }{}); err != nil {
				t.Fatal(err) // a key twice, say
			}
			if err := yaml.Unmarshal(raw, &crd); err != nil {
				t.Fatal(err)
			}
			if crd.Metadata.Name != k.resource.Resource+"."+GroupVersion.Group || crd.Spec.Group != GroupVersion.Group || crd.Spec.Scope != k.scope ||
				crd.Spec.Names.Plural != k.resource.Resource || crd.Spec.Names.Kind != k.kind ||
				len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != GroupVersion.Version {
				t.Errorf("names: %+v", crd.Spec)
			}
			compare(t, "", crd.Spec.Versions[0].Schema.OpenAPIV3Schema, k.typ)
		})
	}
}

func compare(t *testing.T, path string, s openapi, typ reflect.Type) {
	t.Helper()
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if path != "" && s["description"] == nil && !strings.Contains(path, "onditions[]") && !strings.Contains(path, "elector.") &&
		!slices.Contains([]string{".apiVersion", ".kind", ".metadata"}, path) && !strings.HasSuffix(path, "[]") {
		t.Errorf("%s has no description", path)
	}
	if typ == reflect.TypeFor[resource.Quantity]() {
		if s["x-kubernetes-int-or-string"] != true {
			t.Errorf("%s: a quantity is a number or a string", path)
		}
		return
	}
	want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int64: "integer", reflect.Slice: "array",
		reflect.Map: "object", reflect.Struct: "object"}[typ.Kind()]
	if typ == reflect.TypeFor[metav1.Time]() {
		want = "string"
	}
	if s["type"] != want {
		t.Errorf("%s: type %v, want %s", path, s["type"], want)
	}
	switch {
	case typ.Kind() == reflect.Map:
		values, _ := s["additionalProperties"].(openapi)
		compare(t, path+"[]", values, typ.Elem())
	case typ == reflect.TypeFor[corev1.ResourceRequirements]():
		properties, _ := s["properties"].(openapi) // claims, of dynamic resource allocation, are not for gateways
		compare(t, path+".requests", properties["requests"].(openapi), reflect.TypeFor[corev1.ResourceList]())
		compare(t, path+".limits", properties["limits"].(openapi), reflect.TypeFor[corev1.ResourceList]())
	case typ.Kind() == reflect.Slice:
		items, _ := s["items"].(openapi)
		compare(t, path+"[]", items, typ.Elem())
	case want == "object" && typ.Kind() == reflect.Struct && typ != reflect.TypeFor[metav1.ObjectMeta]():
		properties, _ := s["properties"].(openapi)
		fields := jsonFields(typ)
		if got, want := slices.Sorted(maps.Keys(properties)), slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
			t.Errorf("%s: fields %v, want %v", path, got, want)
			return
		}
		for name, f := range fields {
			compare(t, path+"."+name, properties[name].(openapi), f)
		}
	}
}

func jsonFields(typ reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if strings.Contains(options, "inline") {
			maps.Copy(out, jsonFields(f.Type))
			continue
		}
		out[name] = f.Type
	}
	return out
}

// TestDeepCopy: a copy is equal, and shares no memory that could be written to.
func TestDeepCopy(t *testing.T) {
	no := false
	list := &AddressPoolList{Items: []AddressPool{{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}},
		Spec: AddressPoolSpec{Addresses: []string{"192.0.2.1"}, AutoAssign: &no,
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}, ServiceSelector: &metav1.LabelSelector{}},
		Status: AddressPoolStatus{IPv4: &AddressPoolUsage{Total: 1}, IPv6: &AddressPoolUsage{}, Conditions: []metav1.Condition{{Type: "x"}}},
	}}}
	c := list.DeepCopyObject().(*AddressPoolList)
	if !reflect.DeepEqual(c, list) {
		t.Fatalf("copy %+v of %+v", c, list)
	}
	p := &c.Items[0]
	p.Labels["a"], p.Spec.Addresses[0], *p.Spec.AutoAssign = "x", "x", true
	p.Spec.NamespaceSelector.MatchLabels["a"], p.Status.IPv4.Total, p.Status.Conditions[0].Type = "x", 7, "y"
	o := &list.Items[0]
	if o.Labels["a"] != "b" || o.Spec.Addresses[0] != "192.0.2.1" || *o.Spec.AutoAssign || o.Spec.NamespaceSelector.MatchLabels["a"] != "b" ||
		o.Status.IPv4.Total != 1 || o.Status.Conditions[0].Type != "x" {
		t.Errorf("writing to the copy changed the original: %+v", o)
	}
	var none *AddressPool
	if none.DeepCopyObject() != nil || (*AddressPoolList)(nil).DeepCopyObject() != nil {
		t.Error("a copy of nothing is something")
	}
	five := int64(5)
	configs := &GatewayConfigList{Items: []GatewayConfig{{Spec: GatewayConfigSpec{
		Replicas: &five, DrainSeconds: &five, TunnelIdleSeconds: &five, NodeSelector: map[string]string{"a": "b"}, Args: []string{"x"}, TrustedProxies: []string{"x"},
		Resources:   &corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("1")}},
		Tolerations: []corev1.Toleration{{Key: "k", TolerationSeconds: &five}}, ProxyProtocol: &no,
		Service:   &GatewayService{LoadBalancerSourceRanges: []string{"x"}},
		AccessLog: &GatewayAccessLog{Percent: &five},
	}}}}
	cc := configs.DeepCopyObject().(*GatewayConfigList)
	if !reflect.DeepEqual(cc, configs) {
		t.Fatalf("copy %+v of %+v", cc, configs)
	}
	sharing(t, "GatewayConfigList", reflect.ValueOf(cc), reflect.ValueOf(configs))
	s := runtime.NewScheme()
	if err := AddToScheme(s); err != nil || !s.Recognizes(GroupVersion.WithKind("AddressPool")) {
		t.Errorf("scheme: %v", err)
	}
}

// sharing finds memory that two values have in common.
func sharing(t *testing.T, path string, a, b reflect.Value) {
	t.Helper()
	switch a.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if a.IsNil() {
			return
		}
		if a.Pointer() == b.Pointer() {
			t.Errorf("%s is shared", path)
		}
	}
	switch a.Kind() {
	case reflect.Pointer:
		sharing(t, path, a.Elem(), b.Elem())
	case reflect.Slice:
		for i := range a.Len() {
			sharing(t, path+"[]", a.Index(i), b.Index(i))
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if a.Type().Field(i).IsExported() {
				sharing(t, path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		}
	}
}
