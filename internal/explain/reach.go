// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// end is one side of many connections that policies can't tell apart: pods alike, or a part of the world outside.
type end struct {
	name  string
	names []string   // of what was put together
	pod   *model.Pod // one of them; nil for outside
	count int        // of pods
	class string     // equal for pods that policies can't tell apart

	addrs [2]policy.Endpoint // outside: an example of each family, IPv4 first; the zero Endpoint: has none
	root  bool               // outside: what no policy names

	egress, ingress *policy.Guard // of pods
}

// families is how many there are; a reach and an end have one entry for each, IPv4 first.
const families = 2

// endpoint is the end on the wire of a family; ok is false if it has no address of that family. A pod without an address
// is taken to get one of IPv4.
func (e *end) endpoint(family int) (p policy.Endpoint, ok bool) {
	if e.pod == nil {
		return e.addrs[family], e.addrs[family].Addr.IsValid()
	}
	for _, a := range e.pod.IPs {
		if a.Is6() == (family == 1) {
			return policy.Endpoint{Pod: e.pod, Addr: a}, true
		}
	}
	return policy.Endpoint{Pod: e.pod}, len(e.pod.IPs) == 0 && family == 0
}

// reach is which ports one end may open at another: for each family that both have.
type reach struct {
	ports [families][]policy.PortRange
	has   [families]bool
}

// reach judges, by the guards at both ends, one example of each class of ports there is.
func (e *end) reach(to *end) reach {
	var out reach
	for f := range families {
		src, ok1 := e.endpoint(f)
		dst, ok2 := to.endpoint(f)
		if !ok1 || !ok2 {
			continue
		}
		if e == to && e.pod != nil { // another pod of its kind, not itself
			other := *e.pod
			other.Name.Name += " "
			src.Pod = &other
		}
		out.has[f] = true
		var parts [][]policy.PortRange
		if e.egress != nil && !e.egress.Open() {
			parts = append(parts, e.egress.Admitted(src, dst))
		}
		if to.ingress != nil && !to.ingress.Open() {
			parts = append(parts, to.ingress.Admitted(src, dst))
		}
		switch len(parts) {
		case 0:
			out.ports[f] = everyPort
		case 1:
			out.ports[f] = parts[0]
		default:
			out.ports[f] = both(parts[0], parts[1])
		}
	}
	return out
}

var everyPort = policy.EveryPort()

func comparePorts(a, b policy.PortRange) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
}

// both are the ports that are in each of two sets.
func both(a, b []policy.PortRange) []policy.PortRange {
	var out []policy.PortRange
	for _, x := range a {
		for _, y := range b {
			if from, to := max(x.From, y.From), min(x.To, y.To); x.Protocol == y.Protocol && from <= to {
				out = append(out, policy.PortRange{Protocol: x.Protocol, From: from, To: to})
			}
		}
	}
	slices.SortFunc(out, comparePorts)
	return out
}

// without are the ports of a set that another has not.
func without(a, b []policy.PortRange) []policy.PortRange {
	var out []policy.PortRange
	for _, x := range a {
		left := []policy.PortRange{x}
		for _, y := range b {
			var next []policy.PortRange
			for _, l := range left {
				if y.Protocol != l.Protocol || y.To < l.From || l.To < y.From {
					next = append(next, l)
					continue
				}
				if l.From < y.From {
					next = append(next, policy.PortRange{Protocol: l.Protocol, From: l.From, To: y.From - 1})
				}
				if y.To < l.To {
					next = append(next, policy.PortRange{Protocol: l.Protocol, From: y.To + 1, To: l.To})
				}
			}
			left = next
		}
		out = append(out, left...)
	}
	slices.SortFunc(out, comparePorts)
	return out
}

// either are the ports that are in one of two sets or in both.
func either(a, b []policy.PortRange) []policy.PortRange {
	return without(everyPort, both(without(everyPort, a), without(everyPort, b)))
}

// union is what at least one of two allows.
func (r reach) union(o reach) reach {
	for f := range families {
		r.ports[f], r.has[f] = either(r.ports[f], o.ports[f]), r.has[f] || o.has[f]
	}
	return r
}

// minus is what r allows and o does not; of a family that o has not, all.
func (r reach) minus(o reach) reach {
	for f := range families {
		r.ports[f] = without(r.ports[f], o.ports[f])
	}
	return r
}

// complement is what r does not allow of what it could.
func (r reach) complement() reach {
	for f := range families {
		if r.has[f] {
			r.ports[f] = without(everyPort, r.ports[f])
		}
	}
	return r
}

func (r reach) empty() bool { return len(r.ports[0])+len(r.ports[1]) == 0 }

// all tells whether everything is allowed that could be.
func (r reach) all() bool { return (r.has[0] || r.has[1]) && r.complement().empty() }

// texts are the ports in words. Where they differ by family, they say for which.
func (r reach) texts() []string {
	if r.has[0] != r.has[1] {
		f := 0
		if r.has[1] {
			f = 1
		}
		return portTexts(r.ports[f], "")
	}
	out := portTexts(both(r.ports[0], r.ports[1]), "")
	out = append(out, portTexts(without(r.ports[0], r.ports[1]), " (IPv4)")...)
	return append(out, portTexts(without(r.ports[1], r.ports[0]), " (IPv6)")...)
}

func portTexts(in []policy.PortRange, suffix string) []string {
	out := make([]string, 0, len(in))
	for _, r := range in {
		name := r.Protocol.String()
		switch {
		case r.Protocol == policy.ICMP:
			name = "ICMP"
		case r.From == r.To:
			name = fmt.Sprintf("%s %d", name, r.From)
		case r.From > 1 || r.To < 65535:
			name = fmt.Sprintf("%s %d-%d", name, r.From, r.To)
		}
		out = append(out, name+suffix)
	}
	return out
}

// ends puts pods together that policies can't tell apart. cuts are the ranges of addresses that policies name.
func (w *World) ends(namespaces []string, cuts []netip.Prefix) []*end {
	byClass := map[string]*end{}
	var out []*end
	entity := w.entities()
	for _, n := range sortedNames(w.all.Pods) {
		p := w.all.Pods[n]
		if p.HostNetwork || p.Finished || len(namespaces) > 0 && !slices.Contains(namespaces, n.Namespace) {
			continue
		}
		class := classOf(p, cuts)
		name := n.Namespace + "/" + entity(p)
		e := byClass[class]
		if e == nil {
			with := *p
			with.Node = "" // its own node reaches it always; this is about the others
			e = &end{class: class, pod: &with, egress: w.Policy.Guard(p, policy.Egress), ingress: w.Policy.Guard(p, policy.Ingress)}
			byClass[class], out = e, append(out, e)
		}
		e.count++
		if !slices.Contains(e.names, name) {
			e.names = append(e.names, name)
		}
	}
	for _, e := range out {
		e.name = some(e.names)
	}
	return out
}

// classOf is equal for pods that policies can't tell apart. cuts are the ranges of addresses that policies name.
func classOf(p *model.Pod, cuts []netip.Prefix) string {
	return fmt.Sprint(p.Namespace, " ", model.MatchLabels(policy.LastingLabels(p.Labels)), p.Ports, inBlocks(p.IPs, cuts))
}

// some names a few of many.
func some(names []string) string {
	const most = 3
	text := ""
	for i, n := range names {
		switch {
		case i == most && len(names) > most+1:
			return fmt.Sprintf("%s and %d more", text, len(names)-most)
		case i > 0:
			text += ", "
		}
		text += n
	}
	return text
}
