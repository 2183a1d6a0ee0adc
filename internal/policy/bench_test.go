// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
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
