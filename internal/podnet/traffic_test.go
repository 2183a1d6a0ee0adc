// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"testing"
)

// TestReach sends real packets between everyone: pods on one node and on two, nodes, and the world, over a shared
// link and over routed ones.
func TestReach(t *testing.T) {
	for name, build := range map[string]func(testing.TB) (*node, *node, *space){"shared link": sharedLink, "routed links": routedLinks} {
		t.Run(name, func(t *testing.T) {
			a, b, _ := build(t)
			a.start()
			b.start()
			a.tell(a, b)
			b.tell(a, b)
			a1, a2, b1 := a.pod("a1"), a.pod("a2"), b.pod("b1")
			for _, f := range both {
				for _, proto := range []string{"tcp", "udp"} {
					for _, pair := range [][2]*pod{{a1, a2}, {a2, a1}, {a1, b1}, {b1, a1}} {
						from, to := pair[0], pair[1]
						from.sees(proto, to.ip(f), 80, from.ip(f))
					}
					a.sees(proto, a1.ip(f), 80, a.ip(f))    // a node to its pod: from its own address
					a1.sees(proto, a.ip(f), 8080, a1.ip(f)) // a pod to its node
					world := firstOf(world, f)
					a1.sees(proto, world, 80, a.ip(f)) // behind the node's address
					if name == "shared link" {
						a.sees(proto, b1.ip(f), 80, a.ip(f))
						a1.sees(proto, b.ip(f), 8080, a1.ip(f))
					} else {
						a.sees(proto, b1.ip(f), 80, tunnelAddr(a.obj.PodCIDRs[f/6]))
						a1.sees(proto, b.ip(f), 8080, a.ip(f))
					}
				}
			}
		})
	}
}
