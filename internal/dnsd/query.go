// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/dnsserver"
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
	// NotAsked says why that pod does not ask the cluster's DNS; "" if it does.
	NotAsked string `json:"notAsked,omitempty"`
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

// Resolver is how a pod asks: what the kubelet writes into its resolv.conf.
type Resolver struct {
	Namespace string
	Pod       string   // "": any of the namespace
	Search    []string // search domains, in order
	Ndots     int
	// Elsewhere says why the cluster's DNS is not asked, and who is; "" if it is.
	Elsewhere string
}

// ResolverOf reads a pod's dnsPolicy and dnsConfig; a nil pod stands for any of the namespace. domain is the cluster's,
// node the search domains of the nodes, and dns the addresses of the cluster's DNS as far as they are known.
func ResolverOf(z *dnszone.Zone, namespace string, pod *model.Pod, node []string, dns []netip.Addr) Resolver {
	r := Resolver{Namespace: namespace, Ndots: dnszone.DefaultNdots}
	clusterFirst := append(z.SearchDomains(namespace), node...)
	if pod == nil {
		r.Search = clusterFirst
		return r
	}
	r.Pod = pod.Meta.Name.Name
	policy := cmp.Or(pod.DNSPolicy, "ClusterFirst")
	switch {
	case policy == "None":
		r.Ndots = 1
		r.Elsewhere = "dnsPolicy: None, and dnsConfig has no nameserver of the cluster's DNS"
	case policy == "Default":
		r.Search, r.Ndots = node, 1
		r.Elsewhere = "dnsPolicy: Default: it asks the resolvers of its node"
	case policy == "ClusterFirst" && pod.HostNetwork:
		r.Search, r.Ndots = node, 1
		r.Elsewhere = "hostNetwork without dnsPolicy: ClusterFirstWithHostNet: it asks the resolvers of its node"
	default:
		r.Search = clusterFirst
	}
	c := pod.DNSConfig
	if c == nil {
		return r
	}
	for _, s := range c.Searches {
		if !slices.Contains(r.Search, s) {
			r.Search = append(slices.Clone(r.Search), s)
		}
	}
	if c.Ndots >= 0 {
		r.Ndots = c.Ndots
	}
	for _, s := range c.Nameservers {
		// Resolvers ask one after the other: the first that is there answers.
		if a, err := netip.ParseAddr(s); err == nil && policy == "None" && slices.Contains(dns, a) {
			r.Elsewhere = ""
		}
	}
	if policy == "None" && r.Elsewhere != "" && len(c.Nameservers) > 0 {
		r.Elsewhere = "dnsPolicy: None: it asks " + strings.Join(c.Nameservers, ", ")
	}
	return r
}

// Ask looks a name up as a program in a pod does: in the cluster's names, and in the configuration's own (nil: the
// defaults). An IP address is looked up backwards.
func Ask(z *dnszone.Zone, cfg *dnsserver.Config, name string, types []string, r Resolver) (*Asked, error) {
	out := &Asked{Name: name, Namespace: r.Namespace, Pod: r.Pod, NotAsked: r.Elsewhere}
	own, err := cfg.Own()
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(name); err == nil {
		name, types = dnszone.ReverseName(a.Unmap().WithZone("")), []string{"PTR"}
	}
	names := dnszone.SearchList(name, r.Search, r.Ndots)
	if r.Elsewhere != "" {
		out.Answers = []dnszone.Explanation{{Name: names[0], Type: types[0], Elsewhere: names[0]}}
		return out, nil
	}
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
			e := z.Explain(&q)
			lead(z, own, &e, typ)
			es = append(es, e)
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
			if cfg.SearchPath.Enabled && len(out.Tried) > 0 && strings.Contains(name, ".") {
				es[0].Notes = append(es[0].Notes, "searchPath is enabled: the first of these questions has a CNAME to this name for an answer")
			}
			return out, nil
		}
		out.Tried = append(out.Tried, es[0])
	}
	out.Answers, out.Tried = out.Tried[:1:1], out.Tried[1:]
	return out, nil
}

// maxLeads is how many aliases of the configuration are followed; the server follows as many.
const maxLeads = 8

// lead goes on where the cluster's names end: with the configuration's own, or with who is asked.
func lead(z *dnszone.Zone, own *dnsserver.Own, e *dnszone.Explanation, typ uint16) {
	for range maxLeads {
		var q dnszone.Question
		if e.Elsewhere == "" || q.SetName(e.Elsewhere) != nil {
			return
		}
		q.Type = typ
		n := own.Find(&q)
		if n == nil {
			zone, upstreams := own.Route(&q)
			if zone != "." {
				e.Notes = append(e.Notes, fmt.Sprintf("stubDomains: %s asks %s", zone, strings.Join(upstreams, ", ")))
			}
			return
		}
		record := func(typ, data, why string) {
			e.Answer = append(e.Answer, dnszone.Record{Name: e.Elsewhere, Type: typ, TTL: n.TTL, Data: data, Why: why})
		}
		if n.Alias == "" {
			before := len(e.Answer)
			for _, a := range n.Addrs {
				if t := map[bool]string{true: "A", false: "AAAA"}[a.Is4()]; t == e.Type {
					record(t, a.String(), "hosts, in the configuration")
				}
			}
			for _, name := range n.Names {
				if e.Type == "PTR" {
					record("PTR", name, "hosts, in the configuration")
				}
			}
			if len(e.Answer) == before {
				e.Reason = "hosts, in the configuration, has nothing of that type"
			}
			e.Rcode, e.Elsewhere = "NOERROR", ""
			return
		}
		record("CNAME", n.Alias, "aliases, in the configuration")
		if e.Type == "CNAME" || q.SetName(n.Alias) != nil {
			e.Rcode, e.Elsewhere = "NOERROR", ""
			return
		}
		next := z.Explain(&q)
		if e.Elsewhere, e.Rcode, e.Reason = next.Elsewhere, next.Rcode, next.Reason; next.Elsewhere == n.Alias {
			continue
		}
		e.Answer, e.Notes = append(e.Answer, next.Answer...), append(e.Notes, next.Notes...)
	}
	e.Rcode, e.Elsewhere, e.Reason = "SERVFAIL", "", fmt.Sprintf("aliases lead in a circle, or over more than %d steps", maxLeads)
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
	if a.NotAsked != "" {
		fmt.Fprintf(w, "  not asked of the cluster's DNS: %s\n", a.NotAsked)
		return
	}
	for i := range a.Tried {
		e := &a.Tried[i]
		fmt.Fprintf(w, "  %s  %s\n", e.Name, e.Rcode)
	}
	notes := func(e *dnszone.Explanation) {
		for _, n := range e.Notes {
			fmt.Fprintf(w, "  note: %s\n", n)
		}
	}
	for i := range a.Answers {
		e := &a.Answers[i]
		switch {
		case e.Elsewhere == e.Name:
			fmt.Fprintf(w, "  %s  not a name of the cluster: its upstream resolvers answer\n", e.Name)
			if m := a.Meant; m != nil {
				fmt.Fprintf(w, "  if %s was meant: %s\n", m.Name, strings.Join(append([]string{m.Reason}, m.Notes...), "; "))
			}
			notes(e)
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
			notes(e)
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
