// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"reflect"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fill sets everything that can be set.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		if q, ok := v.Interface().(*resource.Quantity); ok {
			*q = resource.MustParse("5Mi")
			return
		}
		fill(v.Elem(), depth)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), depth+1)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[metav1.Time]() {
			v.Set(reflect.ValueOf(metav1.Now()))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), depth)
			}
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(7)
	}
}

func TestDeepCopyOfTrafficPolicies(t *testing.T) {
	list := &TrafficPolicyList{Items: make([]TrafficPolicy, 2)}
	for i := range list.Items {
		list.Items[i].Labels = map[string]string{"a": "b"}
		fill(reflect.ValueOf(&list.Items[i].Spec).Elem(), 0)
		fill(reflect.ValueOf(&list.Items[i].Status).Elem(), 0)
	}
	c := list.DeepCopyObject().(*TrafficPolicyList)
	if !reflect.DeepEqual(c, list) {
		t.Fatalf("copy %+v of %+v", c, list)
	}
	sharing(t, "TrafficPolicyList", reflect.ValueOf(c.Items[0].Spec), reflect.ValueOf(list.Items[0].Spec))
	sharing(t, "TrafficPolicyList", reflect.ValueOf(c.Items[0].Status.Ancestors), reflect.ValueOf(list.Items[0].Status.Ancestors))
	if (*TrafficPolicy)(nil).DeepCopyObject() != nil || (*TrafficPolicyList)(nil).DeepCopyObject() != nil {
		t.Error("a copy of nothing is something")
	}
}
