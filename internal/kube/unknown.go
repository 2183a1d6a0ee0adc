// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// takeUnknown takes out of an object's spec and status what its Go type does not have or can't hold, so that the rest
// can be decoded whatever release of the API wrote it. It gives what it took of the spec, by path; nil is nothing. A
// list's element is replaced by null, so that the others keep their places. content is changed.
func takeUnknown(content map[string]any, o metav1.Object) map[string]any {
	t := reflect.TypeOf(o).Elem()
	spec, status := map[string]any{}, map[string]any{}
	for key, out := range map[string]map[string]any{"spec": spec, "status": status} {
		f, known := fieldsOf(t)[key]
		if v, there := content[key]; known && there && !fit(v, f, key, out) {
			out[key] = v
			delete(content, key)
		}
	}
	if len(spec) == 0 {
		return nil
	}
	return spec
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// fit tells whether a value can be decoded into a type once what is unknown within it has been taken out.
func fit(v any, t reflect.Type, path string, unknown map[string]any) bool {
	if v == nil {
		return true
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		raw, err := json.Marshal(v)
		return err == nil && json.Unmarshal(raw, reflect.New(t).Interface()) == nil
	}
	switch t.Kind() {
	case reflect.Interface:
		return true
	case reflect.Pointer:
		return fit(v, t.Elem(), path, unknown)
	case reflect.Struct:
		in, ok := v.(map[string]any)
		for key, value := range in {
			f, known := fieldsOf(t)[key]
			if !known || !fit(value, f, path+"."+key, unknown) {
				unknown[path+"."+key] = value
				delete(in, key)
			}
		}
		return ok
	case reflect.Map:
		in, ok := v.(map[string]any)
		for key, value := range in {
			if at := path + "." + key; !fit(value, t.Elem(), at, unknown) {
				unknown[at] = value
				delete(in, key)
			}
		}
		return ok
	case reflect.Slice:
		if _, text := v.(string); text {
			return t.Elem().Kind() == reflect.Uint8
		}
		in, ok := v.([]any)
		for i, value := range in {
			if at := fmt.Sprintf("%s[%d]", path, i); !fit(value, t.Elem(), at, unknown) {
				unknown[at], in[i] = value, nil
			}
		}
		return ok
	case reflect.String:
		_, ok := v.(string)
		return ok
	case reflect.Bool:
		_, ok := v.(bool)
		return ok
	}
	return fitNumber(v, t)
}

func fitNumber(v any, t reflect.Type) bool {
	var n int64
	switch v := v.(type) {
	case int64:
		n = v
	case float64:
		if t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64 {
			return true
		}
		if v != math.Trunc(v) || math.Abs(v) > 1<<53 {
			return false
		}
		n = int64(v)
	default:
		return false
	}
	zero := reflect.New(t).Elem()
	switch {
	case zero.CanInt():
		return !zero.OverflowInt(n)
	case zero.CanUint():
		return n >= 0 && !zero.OverflowUint(uint64(n))
	}
	return zero.CanFloat()
}

var knownFields sync.Map // of a struct's type: its fields' types by their names in JSON

// fieldsOf gives a struct's fields by their names in JSON, those of inlined structs included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if known, ok := knownFields.Load(t); ok {
		return known.(map[string]reflect.Type)
	}
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name != "":
			out[name] = f.Type
		case f.Anonymous && f.Type.Kind() == reflect.Struct:
			for k, v := range fieldsOf(f.Type) {
				out[k] = v
			}
		default:
			out[f.Name] = f.Type
		}
	}
	knownFields.Store(t, out)
	return out
}
