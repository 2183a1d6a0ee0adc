// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/policy"
)

// region is a range of addresses without the ranges inside it that policies name too: what policies judge alike.
type region struct {
	block  netip.Prefix
	except []netip.Prefix
	addr   netip.Addr // an example
}

// root tells whether the region is what no policy names.
func (r *region) root() bool { return r.block.Bits() == 0 }

// String is "10.0.0.0/8 except 10.1.0.0/16".
func (r *region) String() string {
	if len(r.except) == 0 {
		return r.block.String()
	}
	return fmt.Sprintf("%s except %s", r.block, some(texts(r.except)))
}

func texts[T fmt.Stringer](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return out
}

// family is the index of an address's family.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}

// roots are all addresses of each family.
var roots = [families]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// never are addresses that no connection comes from.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/16"), netip.MustParsePrefix("ff00::/8"),
}

// outsiders are who stands for what no policy names, if nobody names them (RFC 5737, RFC 3849).
var outsiders = [families]netip.Addr{netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("2001:db8:ffff::77")}

// regions cut the addresses of the world outside the clusters by ranges that policies name. What pods and nodes have
// is in none; a region of which nothing is left is not there. The first is a family's root, if any.
func regions(cuts []netip.Prefix, worlds ...*World) []region {
	all := slices.Clone(roots[:])
	for _, c := range cuts {
		all = append(all, plain(c))
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()), a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	all = slices.Compact(all)
	out := make([]region, len(all))
	var open []int // the ranges around the one that is looked at, outermost first
	for i, p := range all {
		out[i].block = p
		for len(open) > 0 && !all[open[len(open)-1]].Contains(p.Addr()) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 {
			around := &out[open[len(open)-1]]
			around.except = append(around.except, p)
		}
		open = append(open, i)
	}
	kept := out[:0]
	for _, r := range out {
		if r.choose(worlds) {
			kept = append(kept, r)
		}
	}
	return kept
}

// plain is a range as addresses are compared: an IPv4-mapped one as IPv4.
func plain(p netip.Prefix) netip.Prefix {
	p = p.Masked()
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p
}

// choose finds an example: an address of nobody in the clusters, and not of the ranges that pods get theirs from if
// there is another. ok is false if pods and nodes have all there are.
func (r *region) choose(worlds []*World) (ok bool) {
	f := family(r.block.Addr())
	owned := func(a netip.Addr) bool {
		return slices.ContainsFunc(worlds, func(w *World) bool { return w.owned(a) })
	}
	free := policy.Left(r.block, r.except...)
	holds := func(a netip.Addr) bool {
		return slices.ContainsFunc(free, func(x policy.Range) bool { return x.Contains(a) })
	}
	if a := outsiders[f]; r.root() && holds(a) && !owned(a) && !inAny(a, worlds) {
		r.addr = a
		return true
	}
	cut := slices.Clone(r.except)
	tries := 1
	for _, w := range worlds {
		for _, p := range w.podCIDRs {
			if p.Overlaps(r.block) {
				cut = append(cut, p)
			}
		}
		tries += len(w.all.Pods) + 2*len(w.all.Nodes)
	}
	for _, p := range never {
		if p.Overlaps(r.block) {
			cut = append(cut, p)
		}
	}
	for _, among := range [][]policy.Range{policy.Left(r.block, cut...), free} {
		for _, x := range among {
			for a, n := x.From, 0; n < tries && a.IsValid() && x.Contains(a); a, n = a.Next(), n+1 {
				if !owned(a) {
					r.addr = a
					return true
				}
			}
		}
	}
	return false
}

func inAny(a netip.Addr, worlds []*World) bool {
	return slices.ContainsFunc(worlds, func(w *World) bool {
		return slices.ContainsFunc(w.podCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// owned tells whether an address is a pod's or a node's.
func (w *World) owned(a netip.Addr) bool {
	e := w.Policy.EndpointOf(a)
	return e.Pod != nil || e.Node != ""
}

// blocks are the ranges of addresses that the policies of some namespaces name, and those of the cluster; of all
// namespaces if none are given.
func (w *World) blocks(namespaces []string) []netip.Prefix {
	var out []netip.Prefix
	for _, np := range w.Policy.NetworkPolicies("") {
		if len(namespaces) > 0 && !slices.Contains(namespaces, np.Namespace) {
			continue
		}
		for _, r := range slices.Concat(np.IngressFrom, np.EgressTo) {
			for _, p := range r.Peers {
				if p.Block.IsValid() {
					out = append(append(out, p.Block), p.Except...)
				}
			}
		}
	}
	for _, cnp := range w.Policy.ClusterNetworkPolicies() {
		for _, r := range slices.Concat(cnp.IngressFrom, cnp.EgressTo) {
			for _, p := range r.Peers {
				out = append(out, p.Networks...)
			}
		}
	}
	for i := range out {
		out[i] = plain(out[i])
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// inBlocks tells in which of the ranges some addresses are: equal for addresses that policies judge alike.
func inBlocks(addrs []netip.Addr, cuts []netip.Prefix) string {
	var b strings.Builder
	for _, a := range addrs {
		for i, c := range cuts {
			if c.Contains(a.Unmap()) {
				fmt.Fprint(&b, i, " ")
			}
		}
		b.WriteByte(';')
	}
	return b.String()
}

// outside are the ends beyond the pods: the world outside as policies cut it, and the nodes, which are part of it where
// policies don't tell them apart. A root comes first.
func outside(regions []region, worlds ...*World) []*end {
	first := &end{name: Outside, names: []string{Outside}, root: true}
	var rest []*end
	for _, r := range regions {
		e := policy.Endpoint{Addr: r.addr, Block: r.block}
		if r.root() {
			first.addrs[family(r.addr)] = e
			continue
		}
		o := &end{name: r.String(), names: []string{r.String()}}
		o.addrs[family(r.addr)] = e
		rest = append(rest, o)
	}
	for _, domain := range domains(worlds) {
		o := &end{name: domain, names: []string{domain}}
		for f, e := range first.addrs {
			if e.Addr.IsValid() {
				e.Names = []string{policy.NormalName(strings.Replace(domain, "*", "any", 1))}
				o.addrs[f] = e
			}
		}
		rest = append(rest, o)
	}
	for _, n := range worlds[0].Policy.Nodes() {
		o := &end{name: "node " + n.Name.Name, names: []string{"node " + n.Name.Name}}
		for _, a := range n.InternalIPs {
			if f := family(a); !o.addrs[f].Addr.IsValid() {
				o.addrs[f] = policy.Endpoint{Addr: a, Node: n.Name.Name}
			}
		}
		if !slices.ContainsFunc(worlds, func(w *World) bool { return w.all.Nodes[n.Name.Name] == nil }) {
			rest = append(rest, o)
		}
	}
	out := rest
	if first.addrs[0].Addr.IsValid() || first.addrs[1].Addr.IsValid() {
		out = append([]*end{first}, rest...)
	}
	return out
}

// domains are the names of the outside that policies go by.
func domains(worlds []*World) []string {
	var out []string
	for _, w := range worlds {
		for _, cnp := range w.Policy.ClusterNetworkPolicies() {
			for _, r := range cnp.EgressTo {
				for _, p := range r.Peers {
					out = append(out, p.DomainNames...)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// merge puts ends of the outside together of which the same is to be said: key says it for one family. What can't be
// told from the root is part of it.
func merge(in []*end, key func(e *end, family int) string) []*end {
	var out []*end
	var root [families]string
	byKey := map[string]*end{}
	for _, e := range in {
		all, asRoot := "", true
		for f := range families {
			if !e.addrs[f].Addr.IsValid() {
				continue
			}
			k := key(e, f)
			if e.root {
				root[f] = "root" + k
			}
			asRoot = asRoot && "root"+k == root[f]
			all += fmt.Sprint(f, k)
		}
		switch with := byKey[all]; {
		case asRoot && !e.root || all == "":
		case with == nil:
			byKey[all], out = e, append(out, e)
		default:
			with.names = unique(append(with.names, e.names...))
		}
	}
	for _, e := range out {
		e.name = some(e.names)
	}
	return out
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// families tells which families the world's pods have; IPv4, if none has an address.
func (w *World) families() [families]bool {
	var out [families]bool
	for _, p := range w.all.Pods {
		for _, a := range p.IPs {
			out[family(a)] = true
		}
	}
	if !out[0] && !out[1] {
		out[0] = true
	}
	return out
}
