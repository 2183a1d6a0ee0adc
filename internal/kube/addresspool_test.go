// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/model"
)

func TestFromAddressPool(t *testing.T) {
	no := false
	got, err := FromAddressPool(&v1alpha1.AddressPool{
		ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Generation: 3},
		Spec: v1alpha1.AddressPoolSpec{
			Addresses:         []string{"192.0.2.0/30", "ten", "2001:db8::1-2001:db8::2"},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}},
			ServiceSelector:   &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "x", Operator: "Odd"}}},
			AutoAssign:        &no, AvoidBuggyIPs: true,
		},
	})
	if err == nil || !strings.Contains(err.Error(), "spec.serviceSelector.matchExpressions[0].operator") {
		t.Errorf("error: %v", err)
	}
	r4, _ := model.ParseAddressRange("192.0.2.0/30")
	r6, _ := model.ParseAddressRange("2001:db8::1-2001:db8::2")
	if !reflect.DeepEqual(got.Ranges, []model.AddressRange{r4, r6}) || !got.ManualOnly || !got.AvoidBuggyIPs || got.Generation != 3 {
		t.Errorf("%+v", got)
	}
	if len(got.Invalid) != 1 || !strings.HasPrefix(got.Invalid[0], `spec.addresses[1]: "ten" is not an IP address`) {
		t.Errorf("invalid: %q", got.Invalid)
	}
	if !got.NamespaceSelector.Matches(map[string]string{"team": "red"}) || got.ServiceSelector.Matches(map[string]string{"x": "1"}) {
		t.Error("a selector that can't be read must admit nothing, and the other what it says")
	}
	if got, err := FromAddressPool(&v1alpha1.AddressPool{}); err != nil || got.ManualOnly || got.NamespaceSelector != nil {
		t.Errorf("defaults: %+v, %v", got, err)
	}
}

// TestAddressPoolFromManifest: a pool in a file becomes the value that one in the API does; it has no namespace.
func TestAddressPoolFromManifest(t *testing.T) {
	ms, err := ParseManifests("pool.yaml", []byte("apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec: {addresses: [192.0.2.1]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := FromManifests(ms, "default")
	if err != nil || d.AddressPools["p"] == nil || d.AddressPools["p"].Ranges[0].String() != "192.0.2.1" || d.AddressPools["p"].Namespace != "" {
		t.Errorf("%+v, %v", d.AddressPools["p"], err)
	}
}
