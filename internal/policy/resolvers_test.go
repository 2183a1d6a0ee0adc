// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
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

// Resolvers come and go with the DNS Service and its EndpointSlices, in whatever order the API tells of them.
func TestResolversFollowTheirService(t *testing.T) {
	k := NewCompiler("n1")
	dns, other := model.Name{Namespace: "kube-system", Name: "coredns"}, model.Name{Namespace: "a", Name: "web"}
	service := func(labels map[string]string) *model.Delta {
		return &model.Delta{Services: map[model.Name]*model.Service{dns: {Meta: model.Meta{Name: dns, Labels: labels}}}}
	}
	slice := func(of model.Name, addrs string) *model.Delta {
		s := &model.EndpointSlice{Meta: model.Meta{Name: of}, Service: of.Name}
		s.Endpoints = []model.Endpoint{{Addresses: policytest.Addrs(addrs)}}
		return &model.Delta{EndpointSlices: map[model.Name]*model.EndpointSlice{of: s}}
	}
	k.Update(delta(pod("a/web", "", "10.0.0.1"), byName(model.AcceptTraffic, "www.example.com")))
	for _, step := range []struct {
		what string
		d    *model.Delta
		want string
	}{
		{"a slice before its Service", slice(dns, "10.0.0.53"), ""},
		{"the Service", service(map[string]string{"k8s-app": "kube-dns"}), "10.0.0.53"},
		{"another Service's slice", slice(other, "10.0.0.1"), "10.0.0.53"},
		{"other servers", slice(dns, "10.0.0.54 fd00::54"), "10.0.0.54 fd00::54"},
		{"no slice", &model.Delta{EndpointSlices: map[model.Name]*model.EndpointSlice{dns: nil}}, ""},
		{"the slice again", slice(dns, "10.0.0.53"), "10.0.0.53"},
		{"another label", service(nil), ""},
		{"the label again", service(map[string]string{"k8s-app": "kube-dns"}), "10.0.0.53"},
		{"no Service", &model.Delta{Services: map[model.Name]*model.Service{dns: nil}}, ""},
	} {
		k.Update(step.d)
		want := map[Member]struct{}{}
		for _, a := range policytest.Addrs(step.want) {
			want[Member{Addr: a}] = struct{}{}
		}
		if got := k.Program().Sets[Resolvers].Members; !maps.Equal(got, want) {
			t.Errorf("after %s: %v, want %v", step.what, got, want)
		}
	}
}
