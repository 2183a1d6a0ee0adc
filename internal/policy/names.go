// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Rules that go by domain name (ClusterNetworkPolicy's domainNames) mean the addresses that those names were seen to
// resolve to. Nothing is known of a name until Learn tells of it, so such a rule admits nothing before its pod has
// asked; what Lapse takes back admits no new connection, and ends none.

// The sets of a Program that has rules by name, and only of such a one. An adapter has to hold what a resolver answers
// to an asking pod until Learn's Change is in force.
const (
	Asking    = "asking"    // the addresses of this node's pods whose egress rules go by name
	Resolvers = "resolvers" // the addresses whose answers count
)

// maxLapsed bounds how many lapsed answers are remembered for connections that may still be open.
const maxLapsed = 16384

// answer is one address that one name resolved to.
type answer struct {
	name string
	addr netip.Addr
}

// resolutions is what is known of names: the state of a Cluster that rules by name depend on.
type resolutions struct {
	live   map[netip.Addr][]string
	lapsed map[netip.Addr][]string
	oldest []answer // lapsed ones, in order

	// The names that rules go by: as they are, and for patterns what follows the asterisk, as ".example.com".
	exact, under map[string]bool

	slices   map[model.Name]*model.EndpointSlice
	services map[model.Name]bool // those that are the cluster's DNS
	homes    map[string]bool     // the namespaces that those are in
	moved    bool                // resolvers may answer otherwise than it did
}

func newResolutions() resolutions {
	return resolutions{
		live: map[netip.Addr][]string{}, lapsed: map[netip.Addr][]string{}, exact: map[string]bool{}, under: map[string]bool{}, moved: true,
		slices: map[model.Name]*model.EndpointSlice{}, services: map[model.Name]bool{},
		homes: map[string]bool{"kube-system": true},
	}
}

// NormalName is a domain name as policies compare it: in lower case, without a final dot.
func NormalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// namesMatch tells whether one of the patterns, as "example.com" or "*.example.com" (one or more labels more), means
// one of the names.
func namesMatch(patterns, names []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = NormalName(p)
		suffix, wild := strings.CutPrefix(p, "*")
		return slices.ContainsFunc(names, func(n string) bool {
			if wild {
				return len(n) > len(suffix) && strings.HasSuffix(n, suffix)
			}
			return n == p
		})
	})
}

// NamesMatter tells whether any rule goes by a name like this one, so that Learn should be told what it resolves to.
func (c *Cluster) NamesMatter(name string) bool {
	name = NormalName(name)
	if c.names.exact[name] {
		return true
	}
	for i := range name { // a pattern stands for one label or more, never for none
		if i > 0 && name[i] == '.' && c.names.under[name[i:]] {
			return true
		}
	}
	return false
}

// goBy takes over the names that the policies' rules go by.
func (n *resolutions) goBy(policies map[string]*model.ClusterNetworkPolicy) {
	clear(n.exact)
	clear(n.under)
	for _, p := range policies {
		for _, r := range p.EgressTo {
			for _, peer := range r.Peers {
				for _, d := range peer.DomainNames {
					if suffix, wild := strings.CutPrefix(NormalName(d), "*"); wild {
						n.under[suffix] = true
					} else {
						n.exact[suffix] = true
					}
				}
			}
		}
	}
}

// learn notes that a name resolves to an address, and tells whether that is news.
func (n *resolutions) learn(name string, a netip.Addr) bool {
	if slices.Contains(n.live[a], name) {
		return false
	}
	n.live[a] = append(slices.Clip(n.live[a]), name)
	remove(n.lapsed, answer{name, a})
	return true
}

// lapse notes that it no longer does.
func (n *resolutions) lapse(name string, a netip.Addr) bool {
	if !slices.Contains(n.live[a], name) {
		return false
	}
	remove(n.live, answer{name, a})
	n.lapsed[a] = append(slices.Clip(n.lapsed[a]), name)
	if n.oldest = append(n.oldest, answer{name, a}); len(n.oldest) > maxLapsed {
		remove(n.lapsed, n.oldest[0])
		n.oldest = n.oldest[1:]
	}
	return true
}

func remove(from map[netip.Addr][]string, a answer) {
	left := slices.DeleteFunc(slices.Clone(from[a.addr]), func(n string) bool { return n == a.name })
	if len(left) == 0 {
		delete(from, a.addr)
	} else {
		from[a.addr] = left
	}
}

// OpenEndpointOf is EndpointOf for the far end of a connection that is open already: names by which it was reached
// count even when their answers have lapsed.
func (c *Cluster) OpenEndpointOf(a netip.Addr) Endpoint {
	e := c.EndpointOf(a)
	e.Names = slices.Concat(e.Names, c.names.lapsed[e.Addr])
	return e
}

// isClusterDNS tells whether a Service is the one that pods resolve names with. Labels do not make it one: anybody may
// have them who may make a Service.
func (r *resolutions) isClusterDNS(n model.Name, s *model.Service) bool {
	return s != nil && r.homes[n.Namespace] && (n.Name == "kube-dns" || s.Labels["k8s-app"] == "kube-dns" ||
		s.Labels["app.kubernetes.io/name"] == "weft" && s.Labels["app.kubernetes.io/component"] == "dns")
}

// applyServices takes over what tells where the cluster's DNS is.
func (n *resolutions) applyServices(d *model.Delta) {
	for name, s := range d.Services {
		is := n.isClusterDNS(name, s)
		n.moved = n.moved || is != n.services[name]
		if is {
			n.services[name] = true
		} else {
			delete(n.services, name)
		}
	}
	for name, s := range d.EndpointSlices {
		n.moved = n.moved || n.ofClusterDNS(n.slices[name]) || n.ofClusterDNS(s)
		put(n.slices, name, s)
	}
}

// ofClusterDNS tells whether an EndpointSlice, which may be nil, is of such a Service.
func (n *resolutions) ofClusterDNS(s *model.EndpointSlice) bool {
	return s != nil && n.services[model.Name{Namespace: s.Namespace, Name: s.Service}]
}

// ServicesOf lists the Services that lead to a port of an address, by name.
func (c *Cluster) ServicesOf(a netip.Addr, proto model.Protocol, port uint16) []model.Name {
	var out []model.Name
	for _, s := range c.names.slices {
		n := model.Name{Namespace: s.Namespace, Name: s.Service}
		if s.Service == "" || slices.Contains(out, n) ||
			!slices.ContainsFunc(s.Ports, func(p model.EndpointPort) bool { return p.Protocol == proto && p.Port == port }) {
			continue
		}
		if slices.ContainsFunc(s.Endpoints, func(e model.Endpoint) bool { return slices.Contains(e.Addresses, a) }) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, model.Name.Compare)
	return out
}

// resolvers are the addresses of those who serve the cluster's DNS.
func (n *resolutions) resolvers() map[Member]struct{} {
	out := map[Member]struct{}{}
	for _, s := range n.slices {
		if !n.ofClusterDNS(s) {
			continue
		}
		for _, e := range s.Endpoints {
			for _, a := range e.Addresses {
				out[Member{Addr: a.Unmap()}] = struct{}{}
			}
		}
	}
	return out
}

// Learn tells that a name resolves to these addresses.
func (k *Compiler) Learn(name string, addrs ...netip.Addr) *Change {
	return k.renamed(name, addrs, k.names.learn)
}

// Lapse tells that a name's answer is too old to count.
func (k *Compiler) Lapse(name string, addrs ...netip.Addr) *Change {
	return k.renamed(name, addrs, k.names.lapse)
}

// renamed changes what is known of a name. All that depends on it is the sets of rules that go by name, and who is in
// them: names only let through, and what lapses ends no connection, so nothing is tightened.
func (k *Compiler) renamed(name string, addrs []netip.Addr, do func(string, netip.Addr) bool) *Change {
	name = NormalName(name)
	for _, a := range addrs {
		if a = a.Unmap(); do(name, a) {
			e := k.EndpointOf(a)
			for _, s := range k.named {
				k.recheckMember(s, e)
			}
		}
	}
	return k.handOut()
}

// TrustDNSOf adds a namespace to kube-system, in which the cluster's DNS Service may be. It is to be called before the
// first Delta comes.
func (k *Compiler) TrustDNSOf(namespace string) { k.names.homes[namespace] = true }

// Trust adds addresses whose answers count beside those of the cluster's DNS.
func (k *Compiler) Trust(addrs ...netip.Addr) {
	k.names.moved = true
	for _, a := range addrs {
		k.trusted[Member{Addr: a.Unmap()}] = struct{}{}
	}
}

// noteAsking brings the sets Asking and Resolvers to what they should be.
func (k *Compiler) noteAsking() {
	if len(k.cluster) == 0 && k.program.Sets[Asking] == nil {
		return
	}
	asking := map[Member]struct{}{}
	for _, g := range k.local {
		if g.egress != nil && g.egress.byName() {
			for _, a := range g.addrs {
				asking[Member{Addr: a}] = struct{}{}
			}
		}
	}
	if len(asking) == 0 {
		for _, n := range []string{Asking, Resolvers} {
			if k.program.Sets[n] != nil {
				delete(k.program.Sets, n)
				delete(k.change.Members, n)
				k.change.Gone[n] = Addrs
			}
		}
		return
	}
	k.fillSet(Asking, "pods whose policies go by name", asking)
	if !k.names.moved && k.program.Sets[Resolvers] != nil {
		return
	}
	k.names.moved = false
	resolvers := k.names.resolvers()
	for m := range k.trusted {
		resolvers[m] = struct{}{}
	}
	k.fillSet(Resolvers, "whose answers count", resolvers)
}

func (k *Compiler) fillSet(name, comment string, want map[Member]struct{}) {
	s := k.program.Sets[name]
	if s == nil {
		s = &Set{Name: name, Kind: Addrs, Comment: comment, Members: want}
		k.program.Sets[name], k.change.Sets[name] = s, s
		delete(k.change.Gone, name)
		return
	}
	for m := range s.Members {
		if _, ok := want[m]; !ok {
			delete(s.Members, m)
			k.note(s, m, false)
		}
	}
	for m := range want {
		if _, ok := s.Members[m]; !ok {
			s.Members[m] = struct{}{}
			k.note(s, m, true)
		}
	}
}

// byName tells whether rules that go by name are among those that guard.
func (b *built) byName() bool {
	return slices.ContainsFunc(b.sets, func(s *Set) bool { return s.names })
}
