// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"html"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Group is pods that policies can't tell apart, or everybody outside.
type Group struct {
	Name string // "namespace/name"; "outside"
	Pods int    // how many

	pod *model.Pod // one of them; nil for outside
}

// Cell says what one group may open to another.
type Cell struct {
	Ports []string `json:"ports,omitempty"` // "TCP 80"; of those that the destination declares or a policy names
	Not   []string `json:"not,omitempty"`   // of these, those that are not let through
	Rest  bool     `json:"rest"`            // every other port too
	All   bool     `json:"all"`             // every port and protocol, so far as was tried
}

// String is "all", "-", or the ports.
func (c Cell) String() string {
	switch {
	case c.All:
		return "all"
	case len(c.Ports) == 0 && !c.Rest:
		return "-"
	case c.Rest:
		return "all but " + strings.Join(c.Not, ", ")
	}
	return strings.Join(c.Ports, ", ")
}

// Matrix is who may talk to whom.
type Matrix struct {
	Groups []Group
	Cells  [][]Cell // by source, then destination
}

// Outside is the name of the group of everybody beyond the cluster.
const Outside = "outside"

// Matrix tells who may talk to whom among the pods of some namespaces (all, if none are given) and the outside.
func (w *World) Matrix(namespaces ...string) *Matrix {
	m := &Matrix{Groups: w.groups(namespaces)}
	for i := range m.Groups {
		row := make([]Cell, len(m.Groups))
		for j := range m.Groups {
			row[j] = w.cell(&m.Groups[i], &m.Groups[j])
		}
		m.Cells = append(m.Cells, row)
	}
	return m
}

// groups puts pods together that have the same namespace, labels and ports.
func (w *World) groups(namespaces []string) []Group {
	byKey := map[string]int{}
	var out []Group
	for _, n := range sortedNames(w.all.Pods) {
		p := w.all.Pods[n]
		if p.HostNetwork || p.Finished || len(namespaces) > 0 && !slices.Contains(namespaces, n.Namespace) {
			continue
		}
		labels := policy.LastingLabels(p.Labels)
		key := fmt.Sprint(n.Namespace, model.MatchLabels(labels), p.Ports)
		if i, ok := byKey[key]; ok {
			out[i].Pods++
			continue
		}
		byKey[key] = len(out)
		out = append(out, Group{Name: n.Namespace + "/" + groupName(p), Pods: 1, pod: p})
	}
	return append(out, Group{Name: Outside, Pods: 1})
}

// groupName is a pod's name without what its controller appended.
func groupName(p *model.Pod) string {
	name := p.Name.Name
	if h := p.Labels["pod-template-hash"]; h != "" {
		if i := strings.Index(name, "-"+h); i > 0 {
			return name[:i]
		}
	}
	if i := p.Labels["apps.kubernetes.io/pod-index"]; i != "" {
		return strings.TrimSuffix(name, "-"+i)
	}
	return name
}

// onlySix tells whether the group has IPv6 addresses alone.
func (g *Group) onlySix() bool {
	return g.pod != nil && len(g.pod.IPs) > 0 && !slices.ContainsFunc(g.pod.IPs, netip.Addr.Is4)
}

// end is the group as one end of a flow of a family.
func (g *Group) end(six bool) policy.Endpoint {
	if g.pod == nil {
		if six {
			return policy.Endpoint{Addr: outsiders[1]}
		}
		return policy.Endpoint{Addr: outsiders[0]}
	}
	for _, a := range g.pod.IPs {
		if a.Is6() == six {
			return policy.Endpoint{Pod: g.pod, Addr: a}
		}
	}
	return policy.Endpoint{Pod: g.pod}
}

func (w *World) cell(from, to *Group) Cell {
	if from.pod == nil && to.pod == nil {
		return Cell{All: true, Rest: true}
	}
	allows := func(p policy.PortRange) bool { return w.allowsGroups(from, to, p) }
	c := Cell{All: true, Rest: true}
	for _, p := range w.candidates(from, to) {
		if allows(p) {
			c.Ports = append(c.Ports, fmt.Sprintf("%s %d", p.Protocol, p.From))
		} else {
			c.Not, c.All = append(c.Not, fmt.Sprintf("%s %d", p.Protocol, p.From)), false
		}
	}
	for _, proto := range []model.Protocol{model.TCP, model.UDP} {
		c.Rest = c.Rest && allows(policy.PortRange{Protocol: proto, From: unlikely})
	}
	c.All = c.All && c.Rest
	return c
}

// unlikely is a port that stands for all that nobody names.
const unlikely = 64999

// candidates are the ports that the destination declares and those that policies of either end name.
func (w *World) candidates(from, to *Group) []policy.PortRange {
	seen := map[policy.PortRange]bool{}
	if to.pod != nil {
		for _, cp := range to.pod.Ports {
			seen[policy.PortRange{Protocol: cp.Protocol, From: cp.Port}] = true
		}
	}
	add := func(rules []model.PolicyRule) {
		for _, r := range rules {
			for _, p := range r.Ports {
				if p.Port != 0 {
					seen[policy.PortRange{Protocol: p.Protocol, From: p.Port}] = true
				}
			}
		}
	}
	for _, g := range []*Group{from, to} {
		if g.pod == nil {
			continue
		}
		for _, np := range w.Policy.NetworkPolicies(g.pod.Namespace) {
			if !np.PodSelector.Matches(g.pod.Labels) {
				continue
			}
			if g == to {
				add(np.IngressFrom)
			}
			if g == from {
				add(np.EgressTo)
			}
		}
		for _, cnp := range w.Policy.ClusterNetworkPolicies() {
			if !w.Policy.Subject(cnp, g.pod) {
				continue
			}
			for _, r := range slices.Concat(cnp.IngressFrom, cnp.EgressTo) {
				add([]model.PolicyRule{{Ports: r.Ports}})
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b policy.PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
	})
}

// WriteTable writes the matrix for a person; sources are rows.
func (m *Matrix) WriteTable(out io.Writer) {
	width := make([]int, len(m.Groups)+1)
	cells := make([][]string, len(m.Groups)+1)
	cells[0] = append(cells[0], "FROM \\ TO")
	for _, g := range m.Groups {
		cells[0] = append(cells[0], g.Name)
	}
	for i, g := range m.Groups {
		cells[i+1] = append(cells[i+1], g.Name)
		for _, c := range m.Cells[i] {
			cells[i+1] = append(cells[i+1], c.String())
		}
	}
	for _, row := range cells {
		for j, c := range row {
			width[j] = max(width[j], len([]rune(c)))
		}
	}
	for _, row := range cells {
		var line strings.Builder
		for j, c := range row {
			fmt.Fprintf(&line, "%-*s  ", width[j], c)
		}
		fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
	}
}

// Connection is one entry of the matrix as JSON has it.
type Connection struct {
	From string `json:"from"`
	To   string `json:"to"`
	Cell
}

// Connections are the entries, those that allow nothing included.
func (m *Matrix) Connections() []Connection {
	var out []Connection
	for i, from := range m.Groups {
		for j, to := range m.Groups {
			out = append(out, Connection{from.Name, to.Name, m.Cells[i][j]})
		}
	}
	return out
}

// WriteDOT writes the matrix as a Graphviz graph, one arrow for each allowed connection.
func (m *Matrix) WriteDOT(out io.Writer) {
	fmt.Fprintln(out, "digraph policies {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];")
	for i, g := range m.Groups {
		fmt.Fprintf(out, "  n%d [label=%q];\n", i, g.Name)
	}
	for i := range m.Groups {
		for j := range m.Groups {
			c := m.Cells[i][j]
			if i != j && c.String() != "-" && (m.Groups[i].Name != Outside || m.Groups[j].Name != Outside) {
				fmt.Fprintf(out, "  n%d -> n%d [label=%q];\n", i, j, c.String())
			}
		}
	}
	fmt.Fprintln(out, "}")
}

// WriteSVG draws the matrix as a grid: green for all, yellow for some ports, red for nothing.
func (m *Matrix) WriteSVG(out io.Writer) {
	const cell, head = 28, 220
	size := head + cell*len(m.Groups) + 10
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", size, size)
	for i, g := range m.Groups {
		at := head + i*cell
		fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", head-8, at+18, html.EscapeString(g.Name))
		fmt.Fprintf(out, `<text transform="translate(%d %d) rotate(-60)">%s</text>`+"\n", at+18, head-8, html.EscapeString(g.Name))
		for j, to := range m.Groups {
			c := m.Cells[i][j]
			fill := "#e5c34b"
			switch c.String() {
			case "all":
				fill = "#5fae6b"
			case "-":
				fill = "#cf5b56"
			}
			fmt.Fprintf(out, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>%s</title></rect>`+"\n",
				head+j*cell, at, cell-2, cell-2, fill, html.EscapeString(fmt.Sprintf("%s to %s: %s", g.Name, to.Name, c)))
		}
	}
	fmt.Fprintln(out, "</svg>")
}

// Difference is a connection that a change opens or closes.
type Difference struct {
	From   string   `json:"from"`
	To     string   `json:"to"`
	Opened []string `json:"opened,omitempty"` // ports; "other ports"
	Closed []string `json:"closed,omitempty"`
}

// otherPorts stands for all that nobody names.
const otherPorts = "other ports"

// Diff tells which connections between pods that are there before and after a change are opened or closed by it.
// Groups that only one side has are left out.
func Diff(before, after *World, namespaces ...string) []Difference {
	old, now := before.groups(namespaces), after.groups(namespaces)
	was := map[string]*Group{}
	for i := range old {
		was[old[i].Name] = &old[i]
	}
	var out []Difference
	for i := range now {
		for j := range now {
			from, to := &now[i], &now[j]
			ports := map[policy.PortRange]bool{}
			for _, p := range after.candidates(from, to) {
				ports[p] = true
			}
			from0, to0 := was[from.Name], was[to.Name]
			if from0 == nil || to0 == nil {
				continue
			}
			for _, p := range before.candidates(from0, to0) {
				ports[p] = true
			}
			d := Difference{From: from.Name, To: to.Name}
			ports[policy.PortRange{Protocol: model.TCP, From: unlikely}] = true
			ports[policy.PortRange{Protocol: model.UDP, From: unlikely}] = true
			for _, p := range slices.SortedFunc(maps.Keys(ports), func(a, b policy.PortRange) int {
				return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
			}) {
				label := fmt.Sprintf("%s %d", p.Protocol, p.From)
				if p.From == unlikely {
					label = fmt.Sprintf("%s %s", p.Protocol, otherPorts)
				}
				switch a, b := before.allowsGroups(from0, to0, p), after.allowsGroups(from, to, p); {
				case !a && b:
					d.Opened = append(d.Opened, label)
				case a && !b:
					d.Closed = append(d.Closed, label)
				}
			}
			if len(d.Opened)+len(d.Closed) > 0 {
				out = append(out, d)
			}
		}
	}
	return out
}

func (w *World) allowsGroups(from, to *Group, p policy.PortRange) bool {
	six := from.onlySix() || to.onlySix()
	src, dst := from.end(six), to.end(six)
	if from == to && from.pod != nil {
		other := *from.pod
		other.Name.Name += "-other"
		src.Pod = &other
	}
	return w.Policy.Allows(&policy.Flow{Src: src, Dst: dst, Protocol: p.Protocol, Port: p.From})
}
