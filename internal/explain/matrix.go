// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"html"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Group is pods that policies can't tell apart, or a part of the world outside that they can't.
type Group struct {
	Name string // "namespace/name", of several workloads with commas; "namespace/*"; "outside"; "10.0.0.0/8 except 10.1.0.0/16"
	Pods int    // how many; 0 for who is no pod
}

// Cell says what one group may open to another, over all ports of the protocols that policies tell apart: TCP, UDP, SCTP and
// ICMP. A range is written "TCP 80-90", all ports of a protocol "TCP".
type Cell struct {
	Ports []string `json:"ports,omitempty"` // what is let through; empty if all is
	Not   []string `json:"not,omitempty"`   // what is not; empty if nothing is let through
	All   bool     `json:"all"`

	// Elsewhere tells that it was not asked: neither group has pods of the namespaces that the matrix is about.
	Elsewhere bool `json:"-"`
}

func cellOf(r reach) Cell {
	switch {
	case r.all():
		return Cell{All: true}
	case r.empty():
		return Cell{}
	}
	return Cell{Ports: r.texts(), Not: r.complement().texts()}
}

// String is "all", "-", or the ports; "" if nobody asked.
func (c Cell) String() string {
	switch {
	case c.Elsewhere:
		return ""
	case c.All:
		return "all"
	case len(c.Ports) == 0:
		return "-"
	case len(c.Not) < len(c.Ports):
		return "all but " + strings.Join(c.Not, ", ")
	}
	return strings.Join(c.Ports, ", ")
}

// Matrix is who may talk to whom.
type Matrix struct {
	Groups []Group
	Cells  [][]Cell // by source, then destination
}

// Outside is the name of the group of everybody beyond the cluster whom no policy names.
const Outside = "outside"

// Matrix tells who may talk to whom: the pods of some namespaces (all, if none are given) among each other, and with the
// world outside and the pods of other namespaces, both in as many parts as are judged differently. The addresses of nodes
// are part of the outside; a node's own pods, which it always reaches, aside.
func (w *World) Matrix(namespaces ...string) *Matrix {
	// Ranges that policies elsewhere name may tell these pods apart too.
	pods, others := w.endsOf(namespaces, w.blocks(nil))
	parts := merge(w.inUse(outside(regions(w.blocks(namespaces), w), w)), func(e *end, f int) string { return rowKey(e, f, pods) })
	others = peersOf(pods, others)
	all := slices.Concat(pods, others, parts)
	m := &Matrix{}
	for i, from := range all {
		m.Groups = append(m.Groups, Group{Name: from.name, Pods: from.count})
		row := make([]Cell, len(all))
		for j, to := range all {
			switch {
			case from.pod == nil && to.pod == nil:
				row[j] = Cell{All: true}
			case i >= len(pods) && j >= len(pods):
				row[j] = Cell{Elsewhere: true}
			default:
				row[j] = cellOf(from.reach(to))
			}
		}
		m.Cells = append(m.Cells, row)
	}
	return m
}

// endsOf are the ends of these namespaces' pods (all, if none are given), and those of the others'.
func (w *World) endsOf(namespaces []string, cuts []netip.Prefix) (meant, others []*end) {
	for _, e := range w.ends(nil, cuts) {
		if len(namespaces) == 0 || slices.Contains(namespaces, e.pod.Namespace) {
			meant = append(meant, e)
		} else {
			others = append(others, e)
		}
	}
	return meant, others
}

// OtherNamespaces is the name of the group of all pods of other namespaces that are in no other group.
const OtherNamespaces = "other namespaces"

// peersOf puts pods of other namespaces together that can reach, and be reached by, the same of the pods in question, and
// names each group by its workloads, or by namespaces that are in it as a whole. One of many is named by not being in
// the others.
func peersOf(pods, others []*end) []*end {
	whole := map[string]int{} // how many workloads a namespace has
	for _, n := range workloads(others) {
		whole[namespaceOf(n)]++
	}
	byKey := map[string]*end{}
	var out []*end
	for _, e := range others {
		key := peerKey(e, pods)
		if with := byKey[key]; with != nil {
			with.names, with.count = unique(append(with.names, e.names...)), with.count+e.count
			continue
		}
		byKey[key], out = e, append(out, e)
	}
	var most *end
	for _, e := range out {
		e.names = byNamespace(e.names, whole)
		if most == nil || len(e.names) > len(most.names) {
			most = e
		}
	}
	for _, e := range out {
		e.name = some(e.names)
		if e == most && (len(out) == 1 || e.name != strings.Join(e.names, ", ")) {
			e.name = OtherNamespaces
		}
	}
	return out
}

func workloads(ends []*end) []string {
	var out []string
	for _, e := range ends {
		out = append(out, e.names...)
	}
	return unique(out)
}

func namespaceOf(name string) string {
	ns, _, _ := strings.Cut(name, "/")
	return ns
}

// byNamespace writes "namespace/*" for all workloads of a namespace. whole is how many each has.
func byNamespace(names []string, whole map[string]int) []string {
	has := map[string]int{}
	for _, n := range names {
		has[namespaceOf(n)]++
	}
	var out []string
	for _, n := range names {
		if ns := namespaceOf(n); has[ns] > 1 && has[ns] == whole[ns] {
			n = ns + "/*"
		}
		out = append(out, n)
	}
	return unique(out)
}

// peerKey is equal for pods that can reach, and be reached by, the same of the pods in question.
func peerKey(e *end, pods []*end) string {
	var b strings.Builder
	for _, p := range pods {
		for _, way := range [][2]*end{{p, e}, {e, p}} {
			if way[0].egress.Open() && way[1].ingress.Open() {
				b.WriteString("open;")
			} else {
				fmt.Fprint(&b, way[0].reach(way[1]), ";")
			}
		}
	}
	return b.String()
}

// rowKey is equal for ends of the outside that can reach, and be reached by, the same pods in a family.
func rowKey(e *end, f int, pods []*end) string {
	one := &end{}
	one.addrs[f] = e.addrs[f]
	var b strings.Builder
	for _, p := range pods {
		if p.egress.Open() && p.ingress.Open() {
			continue
		}
		fmt.Fprint(&b, p.reach(one).ports[f], one.reach(p).ports[f])
	}
	return b.String()
}

// inUse leaves out the family that no pod has.
func (w *World) inUse(in []*end) []*end {
	used := w.families()
	for _, e := range in {
		for f := range families {
			if !used[f] {
				e.addrs[f] = policy.Endpoint{}
			}
		}
	}
	return in
}

// entities tells the name of the workload that a pod is of, without the namespace; of a pod by itself its own.
func (w *World) entities() func(*model.Pod) string {
	byPod := map[model.Name]string{}
	for wl, pods := range w.Workloads {
		for _, p := range pods {
			if have, ok := byPod[p]; !ok || wl.Name.Name < have {
				byPod[p] = wl.Name.Name
			}
		}
	}
	return func(p *model.Pod) string {
		if n, ok := byPod[p.Name]; ok {
			return n
		}
		return groupName(p)
	}
}

// groupName is a pod's name without what its controller appended, as far as its labels tell.
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
	if job := p.Labels["batch.kubernetes.io/job-name"]; job != "" {
		if cut := strings.TrimRight(job, "0123456789"); strings.HasSuffix(cut, "-") && len(job)-len(cut) >= 8 {
			return strings.TrimSuffix(cut, "-") // of a CronJob, which appends the minute
		}
		return job
	}
	if p.Labels["controller-revision-hash"] != "" { // of a DaemonSet: five characters behind a dash
		if i := strings.LastIndexByte(name, '-'); i > 0 && len(name)-i == 6 {
			return name[:i]
		}
	}
	return name
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
			if !m.Cells[i][j].Elsewhere {
				out = append(out, Connection{from.Name, to.Name, m.Cells[i][j]})
			}
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
			if i != j && !c.Elsewhere && c.String() != "-" && (m.Groups[i].Pods > 0 || m.Groups[j].Pods > 0) {
				fmt.Fprintf(out, "  n%d -> n%d [label=%q];\n", i, j, c.String())
			}
		}
	}
	fmt.Fprintln(out, "}")
}

// WriteSVG draws the matrix as a grid: green for all, yellow for some ports, red for nothing.
func (m *Matrix) WriteSVG(out io.Writer) {
	const cell, letter = 28, 7 // pixels
	head := 220
	for _, g := range m.Groups {
		head = max(head, letter*len([]rune(g.Name))+16)
	}
	size := head + cell*len(m.Groups) + 10
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", size, size)
	for i, g := range m.Groups {
		at := head + i*cell
		fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", head-8, at+18, html.EscapeString(g.Name))
		fmt.Fprintf(out, `<text transform="translate(%d %d) rotate(-60)">%s</text>`+"\n", at+18, head-8, html.EscapeString(g.Name))
		for j, to := range m.Groups {
			c := m.Cells[i][j]
			if c.Elsewhere {
				continue
			}
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
