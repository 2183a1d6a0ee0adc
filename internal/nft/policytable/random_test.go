// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// Random policies of both kinds, changing under the kernel: real packets go where Evaluate says.
func TestRandomPoliciesInTheKernel(t *testing.T) {
	seeds, steps := uint64(12), 12
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := policytest.NewWorld(seed, 8)
			r := newRig(t)
			rng := policytest.NewRange(t, r.node, 79, 81)
			for i := range 9 { // one more than there are pods: somebody outside
				rng.Pod(fmt.Sprint(i), func() []netip.Addr {
					return []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))}
				})
			}
			shots := rng.Shots([]string{"0", "1", "2", "3", "4", "5", "6", "7", "8"})
			for step := range steps {
				for range 3 {
					d := w.Change(true)
					for _, p := range d.Pods {
						if p != nil {
							p.Node = "n1" // the only one whose kernel there is
						}
					}
					if err := r.table.Apply(r.k.Update(d)); err != nil {
						t.Fatal(err)
					}
					if err := r.table.Apply(r.k.Learn(w.Name(), w.Addr())); err != nil {
						t.Fatal(err)
					}
				}
				want := make([]bool, len(shots))
				for i, s := range shots {
					src := s.Dst.Addr()
					for _, a := range rng.Pod(s.From, nil).Addrs {
						if a.Is6() == s.Dst.Addr().Is6() {
							src = a
						}
					}
					want[i] = r.k.Allows(&policy.Flow{Src: r.k.EndpointOf(src), Dst: r.k.EndpointOf(s.Dst.Addr()), Protocol: s.Protocol, Port: s.Dst.Port()})
				}
				if got := rng.Fire(t, shots, want); !slices.Equal(got, want) {
					t.Fatalf("step %d: the kernel does not do what Evaluate says:%s", step, policytest.Table(shots, got, want))
				}
			}
		})
	}
}
