// SPDX-License-Identifier: Apache-2.0

package model

import (
	"reflect"
	"testing"
)

// Every kind that a Delta can hold must survive a merge, the ones added later too.
func TestMergeCoversEveryKind(t *testing.T) {
	fill := func(d *Delta, key string) {
		v := reflect.ValueOf(d).Elem()
		for i := range v.NumField() {
			f := v.Field(i)
			if f.Kind() != reflect.Map {
				continue
			}
			if f.IsNil() {
				f.Set(reflect.MakeMap(f.Type()))
			}
			k := reflect.New(f.Type().Key()).Elem()
			if k.Kind() == reflect.String {
				k.SetString(key)
			} else {
				k.FieldByName("Name").SetString(key)
			}
			f.SetMapIndex(k, reflect.New(f.Type().Elem().Elem()))
		}
	}
	var early, late Delta
	fill(&early, "a")
	fill(&late, "b")
	early.Merge(&late)
	v := reflect.ValueOf(early)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Map && f.Len() != 2 {
			t.Errorf("Merge lost %s: holds %d objects, want 2", v.Type().Field(i).Name, f.Len())
		}
	}
	if len(late.Services) != 1 {
		t.Error("Merge wrote into its argument")
	}
}

// The later value wins, a deletion (nil) included.
func TestMergeKeepsTheNewest(t *testing.T) {
	n := Name{Namespace: "ns", Name: "x"}
	d := Delta{Services: map[Name]*Service{n: {Type: NodePort}}}
	d.Merge(&Delta{Complete: true, Services: map[Name]*Service{n: nil}})
	if v, ok := d.Services[n]; !ok || v != nil {
		t.Errorf("deletion lost: %v, %v", v, ok)
	}
	if !d.Complete {
		t.Error("Complete lost")
	}
}
