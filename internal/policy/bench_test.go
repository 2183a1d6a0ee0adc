// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// One of a thousand policies changes, all of which select the same hundred of a thousand pods.
func BenchmarkStackedEdit(b *testing.B) {
	k := NewCompiler("n1")
	d := delta(namespace("a", "team=1"))
	for i := range 1000 {
		d.Pods[model.Name{Namespace: "a", Name: fmt.Sprint("p", i)}] = pod(fmt.Sprint("a/p", i), fmt.Sprintf("app=%d", i%10), fmt.Sprintf("10.0.%d.%d", i/256, i%256))
	}
	pol := func(i int, port uint16) *model.NetworkPolicy {
		return &model.NetworkPolicy{Meta: model.Meta{Name: named(fmt.Sprint("a/np", i))}, PodSelector: *sel("app=0"), Ingress: true,
			IngressFrom: []model.PolicyRule{{Peers: []model.PolicyPeer{{PodSelector: sel(fmt.Sprintf("app=%d", i%10))}, {NamespaceSelector: sel("team=1"), PodSelector: sel(fmt.Sprintf("app=%d", (i+1)%10))}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, Port: port}, {Protocol: model.TCP, Port: port + 1}}}}}
	}
	for i := range 1000 {
		p := pol(i, uint16(5000+i))
		d.NetworkPolicies[p.Name] = p
	}
	k.Update(d)
	b.ResetTimer()
	for i := range b.N {
		p := pol(i%100, uint16(10000+i%1000))
		k.Update(&model.Delta{NetworkPolicies: map[model.Name]*model.NetworkPolicy{p.Name: p}})
	}
}

// A resolver's answer is learned and lapses, and one is heard again, with so many addresses known already, in a cluster
// with so many EndpointSlices and peers of policies: what it costs depends on none of them.
func BenchmarkLearn(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := NewCompiler("n1")
			d := delta(namespace("a", "team=1"), pod("a/web", "", "10.0.0.1"), byName(model.AcceptTraffic, "*.example.com"))
			d.EndpointSlices = map[model.Name]*model.EndpointSlice{}
			for i := range n {
				s := &model.EndpointSlice{Meta: model.Meta{Name: named(fmt.Sprint("b/s", i))}, Service: fmt.Sprint("s", i)}
				d.EndpointSlices[s.Name] = s
				np := &model.NetworkPolicy{Meta: model.Meta{Name: named(fmt.Sprint("a/np", i))}, Ingress: true,
					IngressFrom: []model.PolicyRule{{Peers: []model.PolicyPeer{{NamespaceSelector: sel(fmt.Sprintf("team=%d", i))}}}}}
				d.NetworkPolicies[np.Name] = np
			}
			k.Update(d)
			addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)}) }
			for i := range n {
				k.Learn(fmt.Sprintf("%d.example.com", i), addr(i))
			}
			for b.Loop() {
				k.Learn("new.example.com", addr(n))
				k.Learn("new.example.com", addr(n))
				k.Lapse("new.example.com", addr(n))
			}
		})
	}
}
