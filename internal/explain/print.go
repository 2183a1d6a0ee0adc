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
	for i := range a.Flows {
		f := &a.Flows[i]
		if len(f.Steps) == 1 && f.Steps[0].Station == "service" {
			continue // said above
		}
		mark := OK
		if !f.Allowed {
			mark = Blocked
		}
		to := f.Destination
		if f.Address != "" && f.Address != f.Destination {
			to += " (" + f.Address + ")"
		}
		fmt.Fprintf(w, "%s %s → %s\n", symbols[mark], f.Source, to)
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
