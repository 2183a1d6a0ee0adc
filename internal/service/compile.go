// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// compiled is a Service turned into frontends, before anyone else's claims are considered.
type compiled struct {
	meta    *model.Meta // of the Service that it was made from
	entries []entry
	events  []model.Event
	health  Health
	noLocal noLocal
}

type entry struct {
	frontend Frontend
	rule     *Rule
}

// noLocal counts frontends that drop traffic for want of a local endpoint, by family: internal ones, external ones.
type noLocal struct{ v4, v6 [2]int }

func (n *noLocal) of(f model.Family) *[2]int {
	if f == model.IPv6 {
		return &n.v6
	}
	return &n.v4
}

func (n *noLocal) add(o noLocal, times int) {
	for i := range n.v4 {
		n.v4[i] += times * o.v4[i]
		n.v6[i] += times * o.v6[i]
	}
}

// Health is what a Service's health check node port answers.
type Health struct {
	UID   string // the Service's
	Port  uint16 // 0: the Service has none
	Local int    // ready endpoints on this node
}

// proxied tells whether any node forwards for the Service, and if not, why.
func proxied(s *model.Service) (bool, string) {
	switch {
	case s.Type == model.ExternalName:
		return false, "type ExternalName is a DNS alias; nothing forwards for it"
	case s.Headless:
		return false, "headless (clusterIP: None): its DNS name resolves to the endpoints themselves"
	case len(s.ClusterIPs) == 0:
		return false, "no cluster IP is allocated yet"
	case s.OtherProxy():
		return false, fmt.Sprintf("label %s=%s leaves it to another proxy", model.ProxyNameLabel, s.Labels[model.ProxyNameLabel])
	}
	return true, ""
}

// compile decides for one Service. eps are its EndpointSlices, scratch is memory to use and to use again.
func compile(s *model.Service, eps []*model.EndpointSlice, n *Node, scratch []candidate) (compiled, []candidate) {
	out := compiled{meta: &s.Meta}
	if ok, _ := proxied(s); !ok {
		return out, scratch
	}
	if s.Type == model.LoadBalancer && s.ExternalLocal && s.HealthCheckNodePort != 0 {
		out.health = Health{UID: s.UID, Port: s.HealthCheckNodePort, Local: localReady(eps, n)}
	}
	perPort := 1 + len(s.ExternalIPs) + len(s.Ingress)
	if s.Type != model.ClusterIP {
		perPort++
	}
	for _, sl := range eps {
		if bad := unusable(sl); bad != "" {
			out.events = append(out.events, model.Event{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice", Name: sl.Name, UID: sl.UID,
				Warning: true, Reason: "UnusableEndpoint", Message: bad})
		}
	}
	out.entries = make([]entry, 0, len(s.ClusterIPs)*len(s.Ports)*perPort)
	for _, ip := range s.ClusterIPs {
		scratch = out.family(s, eps, n, ip.Unmap(), scratch)
	}
	if cap(scratch) > keptCandidates {
		return out, nil
	}
	clear(scratch[:cap(scratch)]) // it is not to keep endpoints alive
	return out, scratch[:0]
}

// keptCandidates is how many candidates there is room for in what is used again.
const keptCandidates = 128

// unusable says which endpoints of a slice are left out for their address; "" if none are.
func unusable(sl *model.EndpointSlice) string {
	if sl.FQDN {
		return "addressType FQDN names no addresses to forward to; its endpoints get no traffic: " +
			"use addressType IPv4 or IPv6"
	}
	for i := range sl.Endpoints {
		for _, a := range sl.Endpoints[i].Addresses[:min(1, len(sl.Endpoints[i].Addresses))] {
			if !usable(a, sl.Family) {
				return fmt.Sprintf("endpoints[%d].addresses: %s is no unicast %s address that can be forwarded to; the endpoint gets no "+
					"traffic: use one that is neither unspecified, loopback, multicast nor link-local", i, a, sl.Family)
			}
		}
	}
	return ""
}

// usable tells whether traffic can be forwarded to an address of an endpoint.
func usable(a netip.Addr, f model.Family) bool {
	return model.FamilyOf(a) == f && !neverForwarded(a)
}

// neverForwarded tells of addresses that mean something else to each host.
func neverForwarded(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

// localReady counts the ready endpoints on the node. One with an address in each family is in two slices and counts
// once: what counts is the family that has more.
func localReady(eps []*model.EndpointSlice, n *Node) int {
	seen := make(map[netip.Addr]bool)
	byFamily := make(map[model.Family]int)
	for _, s := range eps {
		for _, ep := range s.Endpoints {
			if ep.Ready && n.Name != "" && ep.Node == n.Name && len(ep.Addresses) > 0 && !seen[ep.Addresses[0]] {
				seen[ep.Addresses[0]] = true
				byFamily[s.Family]++
			}
		}
	}
	return max(byFamily[model.IPv4], byFamily[model.IPv6])
}

// family adds the frontends of one IP family, which exists for the Service if it has a cluster IP in it.
func (out *compiled) family(s *model.Service, eps []*model.EndpointSlice, n *Node, clusterIP netip.Addr, cands []candidate) []candidate {
	f := model.FamilyOf(clusterIP)
	sources, restricted := sourceRanges(s, f, n)
	everywhere := unspecified(f)
	for i := range s.Ports {
		p := &s.Ports[i]
		cands = candidates(cands[:0], eps, f, p.Name, p.Protocol)
		c := choose(cands, n)
		base := Rule{
			Service: s.Name, Port: p.Name, Affinity: s.AffinityTimeout,
		}
		if s.InternalLocal || s.ExternalLocal || len(c.cluster.Endpoints) != len(cands) || !plain(cands, n) {
			base.Backends = backends(cands, n)
		}
		if n := max(len(c.cluster.Endpoints), len(c.local.Endpoints)); n > MaxAffinity && base.Affinity > 0 {
			base.Affinity = 0
			out.warn("AffinityIgnored", fmt.Sprintf("sessionAffinity works up to %d endpoints, and port %d has %d: its clients are spread "+
				"over all of them; have fewer endpoints, or no affinity", MaxAffinity, p.Port, n))
		}
		if base.Affinity > 0 {
			base.ClusterIP = netip.AddrPortFrom(clusterIP, p.Port)
		}
		internal := base
		internal.Kind, internal.Main = ClusterIP, c.cluster
		if s.InternalLocal {
			internal.Main = c.local
		}
		out.add(clusterIP, p.Protocol, p.Port, internal, 0)

		if s.Type == model.ClusterIP && len(s.ExternalIPs) == 0 {
			continue
		}
		external := base
		external.Main, external.Masquerade = c.cluster, true
		if s.ExternalLocal {
			external.Main, external.Masquerade = c.local, false
			if c.cluster.Action == Forward {
				external.Inside = &c.cluster
			}
		}
		if p.NodePort != 0 && s.Type != model.ClusterIP {
			external.Kind = NodePort
			out.add(everywhere, p.Protocol, p.NodePort, external, 1)
		}
		for _, in := range s.Ingress {
			if s.Type == model.LoadBalancer && in.IP.IsValid() && !in.Proxy && model.FamilyOf(in.IP) == f {
				lb := external
				lb.Kind, lb.Restricted, lb.Sources = LoadBalancerIP, restricted, sources
				out.add(in.IP.Unmap(), p.Protocol, p.Port, lb, 1)
			}
		}
		for _, ip := range s.ExternalIPs {
			if model.FamilyOf(ip) == f {
				external.Kind = ExternalIP
				out.add(ip.Unmap(), p.Protocol, p.Port, external, 1)
			}
		}
	}
	return cands
}

// add adds a frontend, unless the Service has it already: the kinds that restrict more come first.
func (out *compiled) add(ip netip.Addr, proto model.Protocol, port uint16, r Rule, policy int) {
	f := Frontend{ip, proto, port}
	for i := range out.entries {
		if out.entries[i].frontend == f {
			return
		}
	}
	if r.Kind != NodePort && neverForwarded(ip) {
		out.warn("UnusableAddress", fmt.Sprintf("%s %s is not an address that can be forwarded; it is ignored: "+
			"use one that is neither unspecified, loopback, multicast nor link-local", r.Kind, ip))
		return
	}
	if r.Main.Action == Drop {
		out.noLocal.of(f.Family())[policy]++
	}
	out.entries = append(out.entries, entry{f, &r})
}

// warn has the Service's owner told, once of each thing.
func (out *compiled) warn(reason, message string) {
	e := model.Event{APIVersion: "v1", Kind: "Service", Name: out.meta.Name, UID: out.meta.UID, Warning: true, Reason: reason, Message: message}
	if !slices.Contains(out.events, e) {
		out.events = append(out.events, e)
	}
}

// sourceRanges are the sources that may use the load balancer IPs of a family, if they are restricted. The list is for
// both families: where it has ranges of the other one only, or none that can be read, nobody may. Where the node is
// among the sources, so are the load balancer IPs themselves: a host that has one as its own address uses it as the
// source.
func sourceRanges(s *model.Service, f model.Family, n *Node) (out []netip.Prefix, restricted bool) {
	if len(s.LoadBalancer.SourceRanges) == 0 {
		return nil, false
	}
	node := false
	for _, p := range s.LoadBalancer.SourceRanges {
		if !p.IsValid() || model.FamilyOf(p.Addr()) != f {
			continue
		}
		if p.Bits() == 0 {
			return nil, false
		}
		out = append(out, p.Masked())
		for _, a := range n.Addresses {
			node = node || p.Contains(a)
		}
	}
	if node {
		for _, in := range s.Ingress {
			if in.IP.IsValid() && !in.Proxy && model.FamilyOf(in.IP) == f {
				out = append(out, netip.PrefixFrom(in.IP.Unmap(), in.IP.Unmap().BitLen()))
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	// The kernel's sets take no overlapping ranges: a range within another adds nothing.
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept, true
}

// plain tells whether all are pods and serve, and none is on this node.
func plain(cands []candidate, n *Node) bool {
	return !slices.ContainsFunc(cands, func(c candidate) bool { return !c.ep.OfPod || !c.ep.Serving || c.local(n) })
}

func backends(cands []candidate, n *Node) []Backend {
	out := make([]Backend, len(cands))
	for i, c := range cands {
		out[i] = Backend{AddrPort: c.addr, Local: c.local(n), Serving: c.ep.Serving, Pod: c.ep.OfPod}
	}
	return out
}
