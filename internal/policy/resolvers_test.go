// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// Who may make a Service, with whatever labels, does not thereby answer for the policies of the cluster.
func TestResolversAreOfTheDNSNamespaces(t *testing.T) {
	kube, weft := map[string]string{"k8s-app": "kube-dns"}, map[string]string{"app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "dns"}
	n := newResolutions()
	n.homes["weft-system"] = true
	d := &model.Delta{Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for i, s := range []struct {
		ns, name string
		labels   map[string]string
	}{
		{"kube-system", "kube-dns", nil}, {"kube-system", "coredns", kube}, {"weft-system", "dns", weft}, {"weft-system", "other", nil},
		{"tenant", "kube-dns", kube}, {"tenant", "dns", weft},
	} {
		name := model.Name{Namespace: s.ns, Name: s.name}
		d.Services[name] = &model.Service{Meta: model.Meta{Name: name, Labels: s.labels}}
		d.EndpointSlices[name] = &model.EndpointSlice{Meta: model.Meta{Name: name}, Service: s.name,
			Endpoints: []model.Endpoint{{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}}}
	}
	n.applyServices(d)
	var got []string
	for m := range n.resolvers() {
		got = append(got, m.Addr.String())
	}
	slices.Sort(got)
	if want := []string{"10.0.0.0", "10.0.0.1", "10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("trusted are %v, want %v", got, want)
	}
}
