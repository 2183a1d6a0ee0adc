// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/policytable"
)

// serviceNames finds a Service by an address that clients ask it at, so that a flow event can name it.
type serviceNames struct {
	all    map[model.Name]*model.Service
	byAddr map[netip.Addr]model.Name
	byPort map[nodePort]model.Name
}

type nodePort struct {
	proto model.Protocol
	port  uint16
}

func newServiceNames() serviceNames {
	return serviceNames{map[model.Name]*model.Service{}, map[netip.Addr]model.Name{}, map[nodePort]model.Name{}}
}

func (n *serviceNames) update(d *model.Delta) {
	for name, s := range d.Services {
		if old := n.all[name]; old != nil {
			for _, a := range serviceAddrs(old) {
				forget(n.byAddr, a, name)
			}
			for _, p := range old.Ports {
				forget(n.byPort, nodePort{p.Protocol, p.NodePort}, name)
			}
			delete(n.all, name)
		}
		if s == nil {
			continue
		}
		n.all[name] = s
		for _, a := range serviceAddrs(s) {
			n.byAddr[a] = name
		}
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				n.byPort[nodePort{p.Protocol, p.NodePort}] = name
			}
		}
	}
}

func forget[K comparable](m map[K]model.Name, k K, name model.Name) {
	if m[k] == name {
		delete(m, k)
	}
}

// serviceAddrs are those that are the Service's own, not a node's.
func serviceAddrs(s *model.Service) []netip.Addr {
	var out []netip.Addr
	for _, a := range s.ClusterIPs {
		out = append(out, a.Unmap())
	}
	for _, a := range s.ExternalIPs {
		out = append(out, a.Unmap())
	}
	for _, i := range s.Ingress {
		if i.IP.IsValid() {
			out = append(out, i.IP.Unmap())
		}
	}
	return out
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
	name, ok := p.services.byAddr[asked]
	if !ok && p.compiler.EndpointOf(asked).Node != "" {
		name, ok = p.services.byPort[nodePort{k.Protocol, k.Asked.Port()}]
	}
	if !ok {
		return ""
	}
	return name.String()
}
