// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

type openapi = map[string]any

// TestCRDMatchesTypes holds the CustomResourceDefinition against the Go types: the same fields, of the same JSON
// types, all the way down.
func TestCRDMatchesTypes(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/chart/crds/weft.dev_addresspools.yaml")
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
	if crd.Metadata.Name != AddressPools.Resource+"."+GroupVersion.Group || crd.Spec.Group != GroupVersion.Group || crd.Spec.Scope != "Cluster" ||
		crd.Spec.Names.Plural != AddressPools.Resource || len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != GroupVersion.Version {
		t.Errorf("names: %+v", crd.Spec)
	}
	s := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	compare(t, "", s, reflect.TypeFor[AddressPool]())
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
	want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int64: "integer", reflect.Slice: "array",
		reflect.Map: "object", reflect.Struct: "object"}[typ.Kind()]
	if typ == reflect.TypeFor[metav1.Time]() {
		want = "string"
	}
	if s["type"] != want {
		t.Errorf("%s: type %v, want %s", path, s["type"], want)
	}
	switch {
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
	s := runtime.NewScheme()
	if err := AddToScheme(s); err != nil || !s.Recognizes(GroupVersion.WithKind("AddressPool")) {
		t.Errorf("scheme: %v", err)
	}
}
