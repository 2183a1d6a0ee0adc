// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// walk goes to one endpoint. as is what the endpoint is called; "" is its own name.
func (q *question) walk(dst policy.Endpoint, port uint16, as string) { q.walkAs(dst, port, as, "") }

// walkAs is walk where the source's address may be replaced on the way: masqueraded says by what.
func (q *question) walkAs(dst policy.Endpoint, port uint16, as, masqueraded string) {
	family := model.IPv4
	if dst.Addr.IsValid() {
		family = model.FamilyOf(dst.Addr)
	}
	src, ok := q.source(family)
	if !ok {
		return // it has no address of this family
	}
	name := as
	if name == "" {
		name = dst.String()
	}
	f := Flow{Source: src.String(), Destination: name, Allowed: true}
	if q.from.Outside {
		f.Source = "outside"
	}
	if dst.Addr.IsValid() && as == "" {
		f.Address = dst.Addr.String()
		if port != 0 {
			f.Address = netip.AddrPortFrom(dst.Addr, port).String()
		}
	}
	pf := &policy.Flow{Src: src, Dst: dst, Protocol: q.proto, Port: port}
	v := q.w.Policy.Evaluate(pf)
	q.side(&f, &v.Egress, pf)
	f.Steps = append(f.Steps, q.route(src, dst, masqueraded))
	q.side(&f, &v.Ingress, pf)
	f.Steps = append(f.Steps, q.server(dst, port)...)
	for _, s := range f.Steps {
		f.Allowed = f.Allowed && s.Mark != Blocked
	}
	q.a.Flows = append(q.a.Flows, f)
	if as == "" && port != 0 {
		expected := Pass
		if !v.Allowed {
			expected = Vanish
		}
		q.expect(netip.AddrPortFrom(dst.Addr, port), name, expected, dst.Pod == nil, dst.Pod == nil || dst.Pod.Ready)
	}
}

// expectBehind expects of a Service's address what the policies say of one of its endpoints.
func (q *question) expectBehind(at netip.AddrPort, about string, e netip.AddrPort) {
	src, ok := q.source(model.FamilyOf(e.Addr()))
	if !ok {
		return
	}
	dst := q.w.Policy.EndpointOf(e.Addr())
	expected := Pass
	if !q.w.Policy.Allows(&policy.Flow{Src: src, Dst: dst, Protocol: q.proto, Port: e.Port()}) {
		expected = Vanish
	}
	q.expect(at, about, expected, dst.Pod == nil, dst.Pod == nil || dst.Pod.Ready)
}

// side adds what the policies at one end say.
func (q *question) side(f *Flow, s *policy.Side, pf *policy.Flow) {
	if s.Pod == nil {
		return // whoever is no pod has no policies
	}
	step := Step{Station: s.Direction.String(), Mark: OK, Object: deciders(s), Text: s.Why}
	for _, fd := range s.Findings {
		if len(s.Findings) > 1 && fd.Result != policy.Silent || !s.Allowed {
			step.Details = append(step.Details, fmt.Sprintf("%s: %s: %s", fd.Policy, fd.Result, fd.Why))
		}
	}
	if !s.Allowed {
		step.Mark = Blocked
		if r := q.w.Policy.Remedy(s, pf); r != nil && f.remedy == nil {
			f.remedy = r
		}
	}
	f.Steps = append(f.Steps, step)
}

// deciders names the policies that a side's verdict comes from.
func deciders(s *policy.Side) string {
	if s.By != nil {
		return s.By.String()
	}
	var out []string
	for _, fd := range s.Findings {
		if fd.Result == policy.DoesNotAdmit {
			out = append(out, fd.Policy.String())
		}
	}
	return strings.Join(out, ", ")
}

func blockedSide(v *policy.Verdict) *policy.Side {
	if !v.Egress.Allowed {
		return &v.Egress
	}
	return &v.Ingress
}

// route says how the packet gets there, and what source address the server sees.
func (q *question) route(src, dst policy.Endpoint, masqueraded string) Step {
	s := Step{Station: "route", Mark: OK}
	from, to := nodeOf(src), nodeOf(dst)
	switch {
	case dst.Pod == nil && dst.Node == "":
		s.Text = "to outside the cluster"
		if from != "" {
			s.Text = fmt.Sprintf("out by node %s", from)
		}
	case src.Pod == nil && src.Node == "":
		s.Text = "in by whichever node the packet reaches"
		if to != "" {
			s.Text += fmt.Sprintf(", on to node %s", to)
		}
	case from != "" && from == to:
		s.Text = fmt.Sprintf("stays on node %s", from)
	default:
		s.Text = fmt.Sprintf("from node %s to node %s", orUnknown(from), orUnknown(to))
	}
	switch {
	case masqueraded != "":
		s.Text += "; the server sees the address of " + masqueraded
	case src.Pod != nil && !q.w.inCluster(dst):
		s.Text += fmt.Sprintf("; the server sees node %s's address (masquerade)", orUnknown(from))
	case src.Addr.IsValid() && !q.from.Outside:
		s.Text += fmt.Sprintf("; the server sees %s", src.Addr)
	case q.from.Outside:
		s.Text += "; the server sees the client's own address"
	}
	if dst.Pod != nil && !dst.Pod.HostNetwork && len(dst.Pod.IPs) == 0 {
		s.Mark, s.Text = Blocked, fmt.Sprintf("pod %s has no address yet", dst.Pod.Name)
	}
	return s
}

func nodeOf(e policy.Endpoint) string {
	if e.Pod != nil {
		return e.Pod.Node
	}
	return e.Node
}

func orUnknown(s string) string {
	if s == "" {
		return "(not scheduled)"
	}
	return s
}

// server says what is known of whoever should answer.
func (q *question) server(dst policy.Endpoint, port uint16) []Step {
	p := dst.Pod
	if p == nil {
		return nil
	}
	object := "Pod " + p.Name.String()
	switch {
	case p.Finished:
		return []Step{{Station: "server", Mark: Blocked, Object: object, Text: "has finished: nobody listens"}}
	case !p.Ready:
		return []Step{{Station: "server", Mark: Warn, Object: object, Text: "is not ready: it may not listen yet"}}
	case port != 0 && len(p.Ports) > 0 && !slices.ContainsFunc(p.Ports, func(cp model.ContainerPort) bool {
		return cp.Port == port && cp.Protocol == q.proto
	}):
		return []Step{{Station: "server", Mark: Note, Object: object,
			Text: fmt.Sprintf("declares no container port %s %d; it may listen all the same", q.proto, port)}}
	}
	return []Step{{Station: "server", Mark: OK, Object: object, Text: "is ready"}}
}

// conclude says it in one line.
func (q *question) conclude() {
	a := q.a
	passed := 0
	var blocked *Flow
	for i := range a.Flows {
		if a.Flows[i].Allowed {
			passed++
		} else if blocked == nil {
			blocked = &a.Flows[i]
		}
	}
	what := a.Protocol
	if a.Port != 0 {
		what = fmt.Sprintf("%s %d", a.Protocol, a.Port)
	}
	head := fmt.Sprintf("%s to %s, %s", a.From, a.To, what)
	dead := slices.IndexFunc(a.Steps, func(s Step) bool { return s.Mark == Blocked })
	switch {
	case dead >= 0 && (passed == 0 || q.refused):
		a.Summary = fmt.Sprintf("BLOCKED: %s: %s", head, sentence(&a.Steps[dead]))
		if d := a.Steps[dead].Details; len(d) > 0 && a.Steps[dead].Station == "dns" {
			a.Remedy = d[len(d)-1]
		}
	case q.answered != "" && passed == len(a.Flows):
		a.Allowed, a.Summary = true, fmt.Sprintf("ALLOWED: %s: %s", head, q.answered)
	case len(a.Flows) == 0:
		a.Summary = fmt.Sprintf("BLOCKED: %s: the two have no IP family in common, or the destination has no address", head)
	case dead >= 0:
		a.Summary, a.Partly = fmt.Sprintf("PARTLY allowed: %s: %s", head, sentence(&a.Steps[dead])), true
	case passed == len(a.Flows):
		a.Allowed, a.Summary = true, fmt.Sprintf("ALLOWED: %s", head)
	default:
		a.Partly = passed > 0
		a.Summary = fmt.Sprintf("BLOCKED: %s: %s", head, blockedBy(blocked))
		if a.Partly {
			a.Summary = fmt.Sprintf("PARTLY allowed: %s: %d of %d ways pass; not that to %s: %s", head, passed, len(a.Flows), blocked.Destination, blockedBy(blocked))
		}
		if blocked.remedy != nil {
			a.Remedy = remedyText(blocked.remedy)
		}
	}
}

func blockedBy(f *Flow) string {
	for i := range f.Steps {
		if f.Steps[i].Mark == Blocked {
			return sentence(&f.Steps[i])
		}
	}
	return ""
}

func sentence(s *Step) string {
	if s.Object != "" && slices.Contains([]string{"service", "server", "gateway", "match", "backend", "filter"}, s.Station) {
		return s.Object + " " + s.Text
	}
	return s.Text
}

func remedyText(r *policy.Remedy) string {
	if r.YAML == "" {
		return r.Action
	}
	return fmt.Sprintf("%s, at %s:\n%s", r.Action, r.Field, r.YAML)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func joinAddrs(addrs []netip.Addr) string { return joinAny(addrs) }

func joinAny[T fmt.Stringer](in []T) string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return strings.Join(out, ", ")
}
