// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// layout is part of every name: a new way of building must not be mistaken for an old one in a kernel that holds it.
const layout = "1"

// built is what guards one direction of the pods that share it.
type built struct {
	chain  string // the entry chain
	chains []*Chain
	sets   []*Set // without members
	source Source
	denies map[string]Source // of the chains that deny for one ClusterNetworkPolicy each
}

// Source tells what a chain that drops stands for.
type Source struct {
	Direction Direction
	Namespace string      // of the pods that it guards; "" of pods that nothing is known of
	Isolating []PolicyRef // NetworkPolicies
	Cluster   []PolicyRef // ClusterNetworkPolicies, in the order they are tried
}

// builder collects the objects of one built.
type builder struct {
	c   *Cluster
	d   Direction
	pod *model.Pod // one of those to guard: for ingress its container ports say what names mean
	out *built

	chains map[string]string // peerChain's answers, by the peers' keys
}

// build compiles the policies that guard a pod's direction. The pod counts only for its namespace and for what its port
// names mean.
func (c *Cluster) build(d Direction, pod *model.Pod, admin []*model.ClusterNetworkPolicy, nps []*model.NetworkPolicy, baseline []*model.ClusterNetworkPolicy,
	rulesOf func(*model.NetworkPolicy, Direction) []rule) *built {
	b := &builder{c: c, d: d, pod: pod, out: &built{source: Source{Direction: d, Namespace: pod.Namespace}}, chains: map[string]string{}}
	var rules []Rule
	var refs []string
	for _, p := range admin {
		b.out.source.Cluster = append(b.out.source.Cluster, refOfCluster(p))
		refs = append(refs, "admin "+p.Name.Name)
	}
	if len(admin) > 0 {
		rules = append(rules, Rule{Op: Jump, Target: b.tier("admin", admin)})
	}
	if len(nps) > 0 {
		union := make([]*rule, 0, len(nps))
		isolating := make([]string, 0, len(nps))
		b.out.source.Isolating = make([]PolicyRef, 0, len(nps))
		for _, np := range nps {
			b.out.source.Isolating = append(b.out.source.Isolating, refOf(np))
			isolating = append(isolating, np.Name.String())
			list := rulesOf(np, d)
			for i := range list {
				union = append(union, &list[i])
			}
		}
		refs = append(refs, isolating...)
		rules = append(rules, b.union(union, strings.Join(isolating, "\n"))...)
		rules = append(rules, Rule{Op: Drop})
	} else {
		for _, p := range baseline {
			b.out.source.Cluster = append(b.out.source.Cluster, refOfCluster(p))
			refs = append(refs, "baseline "+p.Name.Name)
		}
		if len(baseline) > 0 {
			rules = append(rules, Rule{Op: Jump, Target: b.tier("baseline", baseline)})
		}
		rules = append(rules, Rule{Op: Admit})
	}
	b.out.chain = b.entryChain(rules, chainLabel(nps), refs)
	return b.out
}

// chainLabel lets a person find the policies in a chain's name: the first one's own name, and how many more there are.
func chainLabel(nps []*model.NetworkPolicy) string {
	switch len(nps) {
	case 0:
		return "cluster"
	case 1:
		return nps[0].Name.String()
	}
	return fmt.Sprintf("%s_%d_more", nps[0].Name, len(nps)-1)
}

func (b *builder) entryChain(rules []Rule, label string, refs []string) string {
	const room = 90 // a log prefix holds 127 bytes
	if len(label) > room {
		label = label[:room]
	}
	prefix := map[Direction]string{Ingress: "in", Egress: "out"}[b.d]
	n := name(prefix, layout, fmt.Sprint(rules), strings.Join(refs, "\n")) + "-" + label
	b.out.chains = append(b.out.chains, &Chain{Name: n, Direction: b.d, Rules: rules})
	return n
}

// union compiles rules that each admit, in no order, to a number of kernel rules that does not grow with theirs. They
// are those of the policies with these names.
func (b *builder) union(rules []*rule, policies string) []Rule {
	var everyPort []term // peers of rules without ports
	type span struct {
		PortRange
		r *rule
	}
	spans := make([]span, 0, 2*len(rules))
	var named []namedPort
	for _, r := range rules {
		r.peersKey() // once, not in every place that peers are copied to
		if len(r.ports) == 0 {
			if len(r.peers) == 0 {
				return []Rule{{Op: Admit}}
			}
			everyPort = append(everyPort, r.peers...)
			continue
		}
		for _, p := range r.ports {
			if p.Name != "" && b.d == Egress {
				named = append(named, namedPort{p, r.peers})
				continue
			}
			for _, pr := range b.numeric(p) {
				spans = append(spans, span{pr, r})
			}
		}
	}
	var out []Rule
	if len(everyPort) > 0 {
		out = append(out, b.peerRules(everyPort, Rule{Op: Admit})...)
	}

	// Cut each protocol's ports at every bound, and give each piece the union of the peers of the spans over it. There
	// may be tens of thousands of spans, so it is numbers that are sorted: a first port, then which span.
	pieces := make([]PortRange, 0, len(spans))
	byProtocol := map[model.Protocol][]uint64{}
	for i, s := range spans {
		byProtocol[s.Protocol] = append(byProtocol[s.Protocol], uint64(s.From)<<32|uint64(i))
	}
	for _, proto := range slices.Sorted(mapKeys(byProtocol)) {
		list := byProtocol[proto]
		slices.Sort(list)
		of := func(x uint64) *span { return &spans[uint32(x)] }
		cuts := make([]uint32, 0, 2*len(list))
		for _, x := range list {
			cuts = append(cuts, uint32(of(x).From), uint32(of(x).To)+1)
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		next, open := 0, []uint64(nil)
		for i, at := range cuts[:len(cuts)-1] {
			open = slices.DeleteFunc(open, func(x uint64) bool { return uint32(of(x).To) < at })
			for next < len(list) && uint32(of(list[next]).From) <= at {
				open = append(open, list[next])
				next++
			}
			if len(open) == 0 {
				continue
			}
			piece := PortRange{Protocol: proto, From: uint16(at), To: uint16(cuts[i+1] - 1)}
			switch {
			case slices.ContainsFunc(open, func(x uint64) bool { return len(of(x).r.peers) == 0 }): // anyone
			case len(open) == 1:
				piece.Target = b.peerChain(of(open[0]).r.peers, of(open[0]).r.peersKey())
			default:
				var peers []term
				for _, x := range open {
					peers = append(peers, of(x).r.peers...)
				}
				peers, keys := distinct(peers)
				piece.Target = b.peerChain(peers, strings.Join(keys, "\n"))
			}
			if n := len(pieces); n > 0 && pieces[n-1].Protocol == proto && pieces[n-1].Target == piece.Target && pieces[n-1].To+1 == piece.From {
				pieces[n-1].To = piece.To
			} else {
				pieces = append(pieces, piece)
			}
		}
	}
	one, ranges := singles(pieces)
	if len(one) > 0 {
		out = append(out, Rule{Op: Lookup, Target: b.portMap(one, policies)})
	}
	if len(ranges) > 0 {
		out = append(out, Rule{Op: Lookup, Target: b.portSet(RangeMap, ranges)})
	}
	if len(named) > 0 {
		out = append(out, Rule{Named: b.namedSet(named), Op: Admit})
	}
	return out
}

// numeric turns a port of a rule into numbers. For ingress a name means what it does on the pod; it may be on
// several of its containers, or none.
func (b *builder) numeric(p model.PolicyPort) []PortRange {
	if p.Name == "" {
		return []PortRange{portRange(p)}
	}
	var out []PortRange
	for _, cp := range b.pod.Ports {
		if names(p, cp) {
			out = append(out, PortRange{Protocol: cp.Protocol, From: cp.Port, To: cp.Port})
		}
	}
	return out
}

// tier compiles ordered rules of ClusterNetworkPolicies to a chain that returns when none of them decides.
func (b *builder) tier(kind string, policies []*model.ClusterNetworkPolicy) string {
	var out []Rule
	for _, p := range policies {
		for _, r := range rulesOfCluster(p, b.d) {
			out = append(out, b.ordered(p, &r)...)
		}
	}
	n := name(kind, layout, b.d.String(), fmt.Sprint(out))
	b.out.chains = append(b.out.chains, &Chain{Name: n, Direction: b.d, Rules: out})
	return n
}

// ordered compiles one rule of a ClusterNetworkPolicy.
func (b *builder) ordered(p *model.ClusterNetworkPolicy, r *rule) []Rule {
	do := Rule{Op: Admit}
	switch r.action {
	case model.PassTraffic:
		do.Op = Return
	case model.DenyTraffic:
		// One for each namespace, so that drops are counted by it.
		deny := name("deny", layout, b.d.String(), p.Name.Name, r.field, b.pod.Namespace) + "-" + p.Name.Name
		if len(deny) > 110 {
			deny = deny[:110]
		}
		do.Op, do.Target = Goto, deny
	}
	out := b.applied(r, do)
	if do.Op == Goto && len(out) > 0 {
		if b.out.denies == nil {
			b.out.denies = map[string]Source{}
		}
		b.out.denies[do.Target] = Source{Direction: b.d, Namespace: b.pod.Namespace, Cluster: []PolicyRef{refOfCluster(p)}}
		b.out.chains = append(b.out.chains, &Chain{Name: do.Target, Direction: b.d, Rules: []Rule{{Op: Drop}}})
	}
	return out
}

// applied are the rules that do something to what one rule matches: none if its ports are named and nobody has such.
func (b *builder) applied(r *rule, do Rule) []Rule {
	if len(r.ports) == 0 {
		return b.peerRules(r.peers, do)
	}
	var out []Rule
	var numeric []PortRange
	var named []namedPort
	for _, pp := range r.ports {
		if pp.Name != "" && b.d == Egress {
			named = append(named, namedPort{pp, r.peers})
		} else {
			numeric = append(numeric, b.numeric(pp)...)
		}
	}
	if len(numeric) > 0 {
		with := do
		with.Ports = b.portSet(Ports, joinPorts(numeric))
		out = append(out, b.peerRules(r.peers, with)...)
	}
	if len(named) > 0 {
		with := do
		with.Named = b.namedSet(named)
		out = append(out, with)
	}
	return out
}

// peerChain is a chain that admits these peers, which are distinct and in order and have this key, and returns for others.
func (b *builder) peerChain(peers []term, same string) string {
	if n, ok := b.chains[same]; ok {
		return n
	}
	rules := b.peerRules(peers, Rule{Op: Admit})
	prefix := map[Direction]string{Ingress: "from", Egress: "to"}[b.d]
	n := name(prefix, layout, fmt.Sprint(rules))
	b.out.chains = append(b.out.chains, &Chain{Name: n, Direction: b.d, Rules: rules})
	b.chains[same] = n
	return n
}

// fewPeers is up to how many peers of a rule get a set each.
const fewPeers = 4

// peerRules applies a rule to each of these peers; to everyone if there are none.
func (b *builder) peerRules(peers []term, do Rule) []Rule {
	if len(peers) == 0 {
		return []Rule{do}
	}
	var ranges []Range
	var single []term
	for _, t := range peers {
		switch t.kind {
		case ofBlock:
			ranges = append(ranges, t.ranges...)
		case ofPods, ofNodes, ofDomains:
			single = append(single, t)
		}
	}
	var out []Rule
	// A set for each peer is shared with every rule that has the same one; a set for all of them is found at once.
	single, _ = distinct(single)
	sets := [][]term{single}
	if len(single) <= fewPeers {
		sets = slices.Collect(slices.Chunk(single, 1))
	}
	for _, terms := range sets {
		r := do
		r.Peer = b.addrSet(terms)
		out = append(out, r)
	}
	if len(ranges) > 0 {
		r := do
		r.Peer = b.netSet(mergeRanges(ranges))
		out = append(out, r)
	}
	return out
}

// addrSet is the set of the addresses that any of the terms, which are distinct and in order, means.
func (b *builder) addrSet(terms []term) string {
	keys := make([]string, len(terms))
	for i := range terms {
		keys[i] = terms[i].key()
	}
	s := &Set{Name: name("pods", layout, strings.Join(keys, "\n")), Kind: Addrs, Comment: comment(terms), scope: terms[0].namespace, terms: terms}
	for _, t := range terms {
		s.nodes = s.nodes || t.kind == ofNodes
		s.names = s.names || t.kind == ofDomains
		if t.kind != ofPods || t.namespace != s.scope {
			s.scope = ""
		}
	}
	c := b.c
	s.wants = func(e Endpoint) []Member {
		for i := range terms {
			if c.matches(&terms[i], e) {
				return []Member{{Addr: e.Addr}}
			}
		}
		return nil
	}
	b.out.sets = append(b.out.sets, s)
	return s.Name
}

// namedPort is a port's name on the destination pods that any of the peers means; on all pods if there are none.
type namedPort struct {
	port  model.PolicyPort
	peers []term
}

// namedSet is the set of address, protocol and port that the names mean on each pod.
func (b *builder) namedSet(ports []namedPort) string {
	var keys []string
	var all []term
	s := &Set{Kind: Named}
	for i, n := range ports {
		_, peers := distinct(n.peers)
		keys = append(keys, fmt.Sprintf("%d %s: %s", n.port.Protocol, n.port.Name, strings.Join(peers, " | ")))
		all = append(all, n.peers...)
		for _, t := range n.peers {
			if i == 0 && s.scope == "" {
				s.scope = t.namespace
			}
		}
	}
	for _, n := range ports {
		if len(n.peers) == 0 || slices.ContainsFunc(n.peers, func(t term) bool { return t.kind != ofPods || t.namespace != s.scope }) {
			s.scope = ""
		}
	}
	slices.Sort(keys)
	s.Name = name("named", layout, strings.Join(slices.Compact(keys), "\n"))
	terms, _ := distinct(all)
	s.Comment = comment(terms)
	c := b.c
	s.wants = func(e Endpoint) []Member {
		if e.Pod == nil || e.Pod.HostNetwork {
			return nil
		}
		var out []Member
		for i := range ports {
			n := &ports[i]
			if len(n.peers) > 0 && !slices.ContainsFunc(n.peers, func(t term) bool { return c.matches(&t, e) }) {
				continue
			}
			for _, cp := range e.Pod.Ports {
				if names(n.port, cp) {
					out = append(out, Member{e.Addr, cp.Protocol, cp.Port})
				}
			}
		}
		return out
	}
	b.out.sets = append(b.out.sets, s)
	return s.Name
}

func (b *builder) netSet(ranges []Range) string {
	s := &Set{Name: name("nets", layout, fmt.Sprint(ranges)), Kind: Nets, Ranges: ranges}
	b.out.sets = append(b.out.sets, s)
	return s.Name
}

// portMap is the map of the single ports of the policies with these names.
func (b *builder) portMap(ports []PortRange, policies string) string {
	var names strings.Builder
	writePorts(&names, b.d, b.pod)
	s := &Set{Name: name("portmap", layout, b.d.String(), policies, names.String()), Kind: PortMap, Direction: b.d, Ports: ports}
	b.out.sets = append(b.out.sets, s)
	return s.Name
}

func (b *builder) portSet(kind SetKind, ports []PortRange) string {
	prefix := map[SetKind]string{Ports: "ports", RangeMap: "rangemap"}[kind]
	s := &Set{Name: name(prefix, layout, b.d.String(), fmt.Sprint(ports)), Kind: kind, Direction: b.d, Ports: ports}
	b.out.sets = append(b.out.sets, s)
	return s.Name
}

// joinPorts sorts ranges and joins those of a protocol that overlap or touch.
func joinPorts(in []PortRange) []PortRange {
	slices.SortFunc(in, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	var out []PortRange
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].Protocol == r.Protocol && uint32(r.From) <= uint32(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// distinct sorts terms by key and leaves out repetitions.
func distinct(terms []term) ([]term, []string) {
	if len(terms) == 1 {
		return terms, []string{terms[0].key()}
	}
	byKey := map[string]term{}
	for _, t := range terms {
		byKey[t.key()] = t
	}
	keys := sortedKeys(byKey)
	out := make([]term, len(keys))
	for i, k := range keys {
		out[i] = byKey[k]
	}
	return out, keys
}

// comment is what fits of the terms' text into a set's comment, which holds 128 bytes.
func comment(terms []term) string {
	s := peersText(terms)
	if len(s) > 120 {
		return s[:117] + "..."
	}
	return s
}
