// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/policytable"
)

// serviceNames finds a Service by an address that clients ask it at, so that a flow event can name it. Events are few
// and Services many: it looks through all of them rather than keep an index.
type serviceNames map[model.Name]*model.Service

func (n serviceNames) update(d *model.Delta) {
	for name, s := range d.Services {
		if s == nil {
			delete(n, name)
		} else {
			n[name] = s
		}
	}
}

// at names the Service that has an address of its own, or that a port of a node's leads to; ok is false for none.
func (n serviceNames) at(asked netip.AddrPort, proto model.Protocol, node bool) (name model.Name, ok bool) {
	for _, s := range n {
		if slices.Contains(s.ClusterIPs, asked.Addr()) || slices.Contains(s.ExternalIPs, asked.Addr()) ||
			slices.ContainsFunc(s.Ingress, func(i model.LoadBalancerIngress) bool { return i.IP == asked.Addr() }) ||
			node && slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Protocol == proto && p.NodePort == asked.Port() }) {
			return s.Name, true
		}
	}
	return model.Name{}, false
}

// serviceAsked names the Service whose address was replaced by the packet's destination; "" if none was. Not every
// kernel tells, and only the client's node knows: else it is the one Service that leads to the destination, if there is
// but one. Callers hold mu.
func (p *Policy) serviceAsked(k policytable.Packet) string {
	asked := k.Asked.Addr()
	if !asked.IsValid() || k.Asked == netip.AddrPortFrom(k.Dst, k.DstPort) {
		if src := p.compiler.EndpointOf(k.Src); asked.IsValid() && src.Pod != nil && src.Pod.Node == p.cfg.Node {
			return "" // a pod of this node that asked the destination itself
		}
		if all := p.compiler.ServicesOf(k.Dst, k.Protocol, k.DstPort); len(all) == 1 {
			return all[0].String()
		}
		return ""
	}
	name, ok := p.services.at(k.Asked, k.Protocol, p.compiler.EndpointOf(asked).Node != "")
	if !ok {
		return ""
	}
	return name.String()
}
