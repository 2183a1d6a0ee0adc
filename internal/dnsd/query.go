// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// Asked is what `weft dns query` finds out: the names that a pod's resolver goes through, and the answer of the one
// that it stops at.
type Asked struct {
	Name      string `json:"name"`                // as given
	Namespace string `json:"namespace,omitempty"` // whose search path was used
	Outside   bool   `json:"outside,omitempty"`   // asked as the world outside does
	Pod       string `json:"pod,omitempty"`
	// Tried are the names before the one that answers, each with the reason why it does not.
	Tried []dnszone.Explanation `json:"tried,omitempty"`
	// Answers are those of the name that the resolver stops at, one for each type; of the first name tried, if it
	// stops at none.
	Answers []dnszone.Explanation `json:"answers"`
	// Suffix is the search suffix that matched; "" is none.
	Suffix string `json:"suffix,omitempty"`
	Found  bool   `json:"found"`
	// Meant is, for a name that is left to others, the name of the cluster that it is most like: <service>,
	// <service>.<namespace> or <service>.<namespace>.svc, and why that does not exist.
	Meant *dnszone.Explanation `json:"meant,omitempty"`
}

// Ask looks a name up as a program in a pod of the namespace does. An IP address is looked up backwards.
func Ask(z *dnszone.Zone, name, namespace string, types []string, search []string) (*Asked, error) {
	out := &Asked{Name: name, Namespace: namespace}
	if a, err := netip.ParseAddr(name); err == nil {
		name, types = dnszone.ReverseName(a.Unmap().WithZone("")), []string{"PTR"}
	}
	names := z.SearchNames(name, namespace, search)
	for _, n := range names {
		var es []dnszone.Explanation
		for _, t := range types {
			typ, err := dnszone.ParseType(t)
			if err != nil {
				return nil, err
			}
			var q dnszone.Question
			if err := q.SetName(n); err != nil {
				return nil, err
			}
			q.Type = typ
			es = append(es, z.Explain(&q))
		}
		if es[0].Exists() {
			out.Answers = es
			out.Found = es[0].Elsewhere != n // a name that is elsewhere may exist or not
			for i := range es {
				out.Found = out.Found || len(es[i].Answer) > 0
			}
			if dots := strings.Count(name, "."); es[0].Elsewhere == n && dots < len(out.Tried) && dots < 3 {
				out.Meant = &out.Tried[dots]
			}
			if n != strings.TrimSuffix(name, ".")+"." {
				out.Suffix = strings.TrimSuffix(strings.TrimPrefix(n, name+"."), ".")
			}
			return out, nil
		}
		out.Tried = append(out.Tried, es[0])
	}
	out.Answers, out.Tried = out.Tried[:1:1], out.Tried[1:]
	return out, nil
}

// AskOutside looks a name up as the world outside does, in the zones that are for it.
func AskOutside(x *dnszone.External, name string, types []string) (*Asked, error) {
	out := &Asked{Name: name, Outside: true}
	for _, t := range types {
		typ, err := dnszone.ParseType(t)
		if err != nil {
			return nil, err
		}
		var q dnszone.Question
		if err := q.SetName(name); err != nil {
			return nil, err
		}
		q.Type = typ
		e := x.Explain(&q)
		out.Answers = append(out.Answers, e)
		if e.Rcode != "NOERROR" {
			break // whatever the type
		}
		out.Found = true
	}
	return out, nil
}

// Write puts it into words.
func (a *Asked) Write(w io.Writer) {
	from := "a pod of namespace " + a.Namespace
	if a.Outside {
		from = "the world outside"
	}
	if a.Pod != "" {
		from = "pod " + model.Name{Namespace: a.Namespace, Name: a.Pod}.String()
	}
	fmt.Fprintf(w, "%s, as %s asks it:\n", a.Name, from)
	for i := range a.Tried {
		e := &a.Tried[i]
		fmt.Fprintf(w, "  %s  %s\n", e.Name, e.Rcode)
	}
	for i := range a.Answers {
		e := &a.Answers[i]
		switch {
		case e.Elsewhere == e.Name:
			fmt.Fprintf(w, "  %s  not a name of the cluster: its upstream resolvers answer\n", e.Name)
			if m := a.Meant; m != nil {
				fmt.Fprintf(w, "  if %s was meant: %s\n", m.Name, strings.Join(append([]string{m.Reason}, m.Notes...), "; "))
			}
			return
		case len(e.Answer) == 0:
			fmt.Fprintf(w, "  %s  %s: %s\n", e.Name, withoutRecords(e), e.Reason)
		}
		for _, list := range [][]dnszone.Record{e.Answer, e.Additional} {
			for _, r := range list {
				fmt.Fprintf(w, "  %s  %d  %s  %s%s\n", r.Name, r.TTL, r.Type, r.Data, whence(&r))
			}
		}
		if len(e.Answer) > 0 && e.Reason != "" {
			fmt.Fprintf(w, "  %s: %s\n", withoutRecords(e), e.Reason)
		}
		if e.Elsewhere != "" {
			fmt.Fprintf(w, "  %s  not a name of the cluster: its upstream resolvers answer\n", e.Elsewhere)
		}
		if i == 0 {
			for _, n := range e.Notes {
				fmt.Fprintf(w, "  note: %s\n", n)
			}
		}
	}
	if a.Suffix != "" {
		fmt.Fprintf(w, "  search suffix: %s\n", a.Suffix)
	}
}

func withoutRecords(e *dnszone.Explanation) string {
	if e.Rcode == "NOERROR" {
		return "no " + e.Type + " record"
	}
	return e.Rcode
}

func whence(r *dnszone.Record) string {
	switch {
	case r.Object != "" && r.Why != "":
		return fmt.Sprintf("  (%s: %s)", r.Object, r.Why)
	case r.Object+r.Why != "":
		return fmt.Sprintf("  (%s)", r.Object+r.Why)
	}
	return ""
}
