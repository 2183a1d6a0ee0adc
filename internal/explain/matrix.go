// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"html"
	"io"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Group is pods that policies can't tell apart, or a part of the world outside that they can't.
type Group struct {
	Name string // "namespace/name", of several workloads with commas; "outside"; "10.0.0.0/8 except 10.1.0.0/16"
	Pods int    // how many; 0 for who is no pod
}

// Cell says what one group may open to another, over all ports of the protocols that policies tell apart: TCP, UDP, SCTP and
// ICMP. A range is written "TCP 80-90", all ports of a protocol "TCP".
type Cell struct {
	Ports []string `json:"ports,omitempty"` // what is let through; empty if all is
	Not   []string `json:"not,omitempty"`   // what is not; empty if nothing is let through
	All   bool     `json:"all"`
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

// String is "all", "-", or the ports.
func (c Cell) String() string {
	switch {
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

// Matrix tells who may talk to whom among the pods of some namespaces (all, if none are given), and the world outside, in as many
// parts as policies judge differently. The addresses of nodes are part of that; a node's own pods, which it always reaches, aside.
func (w *World) Matrix(namespaces ...string) *Matrix {
	cuts := w.blocks(namespaces)
	pods := w.ends(namespaces, cuts)
	parts := merge(w.inUse(outside(regions(cuts, w), w)), func(e *end, f int) string { return rowKey(e, f, pods) })
	m := &Matrix{}
	all := slices.Concat(pods, parts)
	for _, from := range all {
		m.Groups = append(m.Groups, Group{Name: from.name, Pods: from.count})
		row := make([]Cell, len(all))
		for j, to := range all {
			if row[j] = (Cell{All: true}); from.pod != nil || to.pod != nil {
				row[j] = cellOf(from.reach(to))
			}
		}
		m.Cells = append(m.Cells, row)
	}
	return m
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
			if i != j && c.String() != "-" && (m.Groups[i].Pods > 0 || m.Groups[j].Pods > 0) {
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
