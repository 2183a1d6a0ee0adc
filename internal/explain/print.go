// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"io"
	"strings"
)

var symbols = map[Mark]string{OK: "✓", Blocked: "✗", Warn: "!", Note: "·"}

// Print writes an answer for a person: the way, station by station, then the verdict in one line, then the smallest
// change that would allow it.
func Print(w io.Writer, a *Answer) {
	for i := range a.Steps {
		printStep(w, "", &a.Steps[i])
	}
	for _, g := range alike(a.Flows) {
		f := g[0]
		mark := OK
		switch {
		case f.Depends:
			mark = Warn
		case !f.Allowed:
			mark = Blocked
		}
		fmt.Fprintf(w, "%s %s → %s%s\n", symbols[mark], f.Source, f.to(), others(g[1:]))
		for j := range f.Steps {
			printStep(w, "    ", &f.Steps[j])
		}
	}
	if text := probesText(a); text != "" {
		fmt.Fprint(w, "\n", text)
	}
	fmt.Fprintf(w, "\n%s\n", a.Summary)
	if a.Remedy != "" {
		fmt.Fprintf(w, "To allow it: %s\n", strings.ReplaceAll(a.Remedy, "\n", "\n    "))
	}
}

func printStep(w io.Writer, indent string, s *Step) {
	text := s.Text
	if s.Object != "" && !strings.Contains(text, s.Object) {
		text = s.Object + " " + text
	}
	fmt.Fprintf(w, "%s%s %-8s %s\n", indent, symbols[s.Mark], s.Station, text)
	for _, d := range s.Details {
		fmt.Fprintf(w, "%s             %s\n", indent, strings.ReplaceAll(d, "\n", "\n"+indent+"             "))
	}
}

// to names a flow's destination, with its address.
func (f *Flow) to() string {
	if f.Address != "" && f.Address != f.Destination {
		return f.Destination + " (" + f.Address + ")"
	}
	return f.Destination
}

// alike puts flows together that differ in the endpoint's name, address and node only. What is said above, with the
// Service, is left out.
func alike(flows []Flow) [][]*Flow {
	var out [][]*Flow
	groups := map[string]int{}
	for i := range flows {
		f := &flows[i]
		if len(f.Steps) == 1 && f.Steps[0].Station == "service" {
			continue
		}
		key := f.likeness()
		g, ok := groups[key]
		if !ok {
			g = len(out)
			groups[key] = g
			out = append(out, nil)
		}
		out[g] = append(out[g], f)
	}
	return out
}

// likeness is equal for flows of which one stands for all.
func (f *Flow) likeness() string {
	b := &strings.Builder{}
	fmt.Fprintln(b, f.Source, f.Allowed, f.Depends)
	same := strings.NewReplacer(f.Destination, "it", strings.Replace(f.Destination, "pod ", "Pod ", 1), "it", f.Address, "there")
	if f.Address == "" {
		same = strings.NewReplacer(f.Destination, "it", strings.Replace(f.Destination, "pod ", "Pod ", 1), "it")
	}
	for i := range f.Steps {
		s := &f.Steps[i]
		fmt.Fprintln(b, s.Station, s.Mark)
		if s.Station == "route" && s.Mark == OK {
			continue // by which nodes it goes
		}
		fmt.Fprintln(b, same.Replace(s.Object), same.Replace(s.Text), same.Replace(strings.Join(s.Details, "\n")))
	}
	return b.String()
}

// maxNamed is how many of the flows that are alike are named.
const maxNamed = 3

// others names the flows that another one stands for.
func others(g []*Flow) string {
	if len(g) == 0 {
		return ""
	}
	var names []string
	for _, f := range g[:min(len(g), maxNamed)] {
		names = append(names, f.to())
	}
	more := ""
	if len(g) > maxNamed {
		more = ", …"
	}
	return fmt.Sprintf(" and %d more: %s%s", len(g), strings.Join(names, ", "), more)
}
