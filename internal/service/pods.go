// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// pods knows which addresses are a pod's, to tell an endpoint that is gone from one that a Service has merely ceased to
// select. Pods with the address of their node don't count: there the node itself answers for those that are gone.
type pods struct {
	known map[model.Name]*model.Pod
	count map[netip.Addr]int
	left  map[netip.Addr]bool // no pod has them any more, since the last takeLeft
}

func newPods() pods {
	return pods{known: make(map[model.Name]*model.Pod), count: make(map[netip.Addr]int), left: make(map[netip.Addr]bool)}
}

// holds tells whether the pod's addresses are its own.
func holds(p *model.Pod) bool { return p != nil && !p.HostNetwork && !p.Finished && len(p.IPs) > 0 }

func (p *pods) update(changed map[model.Name]*model.Pod) {
	for name, now := range changed {
		old := p.known[name]
		if holds(now) {
			p.known[name] = now
			if old != nil && slices.Equal(old.IPs, now.IPs) {
				continue
			}
			for _, a := range now.IPs {
				p.count[a]++
				delete(p.left, a)
			}
		} else {
			delete(p.known, name)
		}
		if old == nil {
			continue
		}
		for _, a := range old.IPs {
			if p.count[a]--; p.count[a] == 0 {
				delete(p.count, a)
				p.left[a] = true
			}
		}
	}
}

// has tells whether a pod has the address.
func (p *pods) has(a netip.Addr) bool { return p.count[a] > 0 }
