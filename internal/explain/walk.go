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

// way is one way that a packet may take to an endpoint.
type way struct {
	dst  policy.Endpoint
	port uint16
	as   string // what the endpoint is called; "" is its own name

	out     *policy.Endpoint // what the source's own policies see in the endpoint's place; nil: the endpoint
	outPort uint16           // and at which port
	seen    policy.Endpoint  // whom the endpoint's policies see in the source's place, after masquerading; none: the source
	tunnel  bool             // seen is a node's address in a tunnel, which packets only go through where the nodes share no link
	via     string           // by which node, to be put behind the source's name
	also    []*policy.Remedy // what ways that are not shown need, for the same is to be said of them
	sources []netip.Prefix   // of clients whose addresses are not known, only these get as far; nil: all

	at    netip.AddrPort // where the source sends; none: to the endpoint itself
	about string         // the object at that address
}

// walk goes to one endpoint. as is what the endpoint is called; "" is its own name.
func (q *question) walk(dst policy.Endpoint, port uint16, as string) {
	q.follow(way{dst: dst, port: port, as: as})
}

// follow takes a way, and the same through a tunnel where that may make a difference: what a node itself sends to pods of a
// node with which it shares no link comes from another of its addresses.
func (q *question) follow(w way) {
	n := q.from.Node
	if n == nil || w.seen.Addr.IsValid() || w.dst.Pod == nil || w.dst.Pod.Node == n.Name.Name || !w.dst.Addr.IsValid() {
		q.take(w)
		return
	}
	f := &policy.Flow{Dst: w.dst, Protocol: q.proto, Port: w.port}
	var marks []Mark
	for _, from := range q.w.nodeSources(n.Name.Name, family(w.dst.Addr)) {
		f.Src = from.end
		v := q.judge(policy.Ingress, f, nil)
		if slices.Contains(marks, v.mark) {
			q.fixes(v.fixes)
			continue
		}
		if marks = append(marks, v.mark); from.tunnel {
			w.seen, w.tunnel = from.end, true
		}
		q.take(w)
	}
}

// take goes one way, and says what decides on it.
func (q *question) take(w way) {
	f4 := model.IPv4
	if w.dst.Addr.IsValid() {
		f4 = model.FamilyOf(w.dst.Addr)
	}
	src, ok := q.source(f4)
	if !ok {
		return // it has no address of this family
	}
	name := w.as
	if name == "" {
		name = w.dst.String()
	}
	f := Flow{Source: src.String() + w.via, Destination: name, Allowed: true}
	if w.dst.Addr.IsValid() && w.as == "" {
		f.Address = w.dst.Addr.String()
		if w.port != 0 {
			f.Address = netip.AddrPortFrom(w.dst.Addr, w.port).String()
		}
	}
	out := &policy.Flow{Src: src, Dst: w.dst, Protocol: q.proto, Port: w.port}
	if w.out != nil {
		out.Dst, out.Port = *w.out, w.outPort
	}
	in := &policy.Flow{Src: src, Dst: w.dst, Protocol: q.proto, Port: w.port}
	if w.seen.Addr.IsValid() {
		in.Src = w.seen
	}
	egress, ingress := q.judge(policy.Egress, out, nil), q.judge(policy.Ingress, in, w.sources)
	if w.tunnel {
		f.Source += ", through a tunnel, if the nodes share no link"
		if ingress.mark == Blocked {
			ingress.mark, ingress.step.Mark = Warn, Warn
			ingress.step.Text = "it depends on whether the nodes share a link: through a tunnel " + ingress.step.Text
		}
	}
	if nobody := q.w.nobody(w.dst); nobody != "" { // whatever policies say of it
		f.Allowed, f.Steps = false, []Step{{Station: "route", Mark: Blocked, Text: nobody}}
		q.a.Flows = append(q.a.Flows, f)
		return
	}
	q.side(&f, &egress)
	f.Steps = append(f.Steps, q.route(src, w.dst, w.seen))
	q.side(&f, &ingress)
	q.fixes(w.also)
	f.Steps = append(f.Steps, q.server(w.dst, w.port)...)
	for _, s := range f.Steps {
		f.Allowed = f.Allowed && s.Mark != Blocked
	}
	f.Depends = f.Allowed && (egress.mark == Warn || ingress.mark == Warn)
	f.Allowed = f.Allowed && !f.Depends
	q.a.Flows = append(q.a.Flows, f)
	expected := Pass
	switch {
	case egress.mark == Blocked || ingress.mark == Blocked:
		expected = Vanish
	case f.Depends:
		expected = Either
	}
	ready := w.dst.Pod == nil || w.dst.Pod.Ready
	if w.at.IsValid() {
		q.expect(w.at, w.about, expected, w.dst.Pod == nil, ready)
	}
	if w.as == "" && w.port != 0 && (w.tunnel || !w.seen.Addr.IsValid()) && w.out == nil {
		q.expect(netip.AddrPortFrom(w.dst.Addr, w.port), name, expected, w.dst.Pod == nil, ready)
	}
}

// verdict is what the policies at one end say.
type verdict struct {
	mark  Mark // OK, Blocked, or Warn: it depends on what the question does not tell
	step  *Step
	fixes []*policy.Remedy
}

// judge asks the policies at one end, for every address that the other end may have where its own is not known (only
// those among sources, if that is not nil), and for every port of the protocol where none is named.
func (q *question) judge(d policy.Direction, f *policy.Flow, sources []netip.Prefix) verdict {
	self, peer := f.Src, &f.Dst
	if d == policy.Ingress {
		self, peer = f.Dst, &f.Src
	}
	if self.Pod == nil {
		return verdict{mark: OK} // whoever is no pod has no policies
	}
	guard := q.w.Policy.Guard(self.Pod, d)
	var yes, no []judged
	for _, e := range q.examples(guard, *peer, sources) {
		*peer = e
		j := judged{peer: e, side: q.sideOf(d, f)}
		if f.Port == 0 {
			j.ports = only(guard.Admitted(f.Src, f.Dst), f.Protocol)
			j.some = len(j.ports) > 0 && !j.side.Allowed || j.side.Allowed && !whole(j.ports)
		}
		if j.side.Allowed && !j.some {
			yes = append(yes, j)
			continue
		}
		if r := q.w.Policy.Remedy(&j.side, f); r != nil {
			j.fix = r
		}
		no = append(no, j)
	}
	return q.verdict(d, yes, no)
}

// judged is a side's verdict about one example of the other end.
type judged struct {
	peer  policy.Endpoint
	side  policy.Side
	fix   *policy.Remedy
	ports []policy.PortRange // of no port named: those that are let through
	some  bool               // these are neither none nor all
}

// name is who the example stands for.
func (j *judged) name() string {
	if j.peer.Block.Bits() == 0 {
		return "all others"
	}
	return j.peer.Block.String()
}

func (q *question) sideOf(d policy.Direction, f *policy.Flow) policy.Side {
	v := q.w.Policy.Evaluate(f)
	if d == policy.Egress {
		return v.Egress
	}
	return v.Ingress
}

// only are the ports of one protocol.
func only(in []policy.PortRange, proto model.Protocol) []policy.PortRange {
	return slices.DeleteFunc(slices.Clone(in), func(p policy.PortRange) bool { return p.Protocol != proto })
}

func whole(in []policy.PortRange) bool { return len(in) == 1 && in[0].From == 1 && in[0].To == 65535 }

// examples stand for all addresses that an end may have and that a guard does not judge alike.
func (q *question) examples(g *policy.Guard, e policy.Endpoint, sources []netip.Prefix) []policy.Endpoint {
	if !e.Block.IsValid() {
		return []policy.Endpoint{e}
	}
	var out []policy.Endpoint
	for _, r := range regions(slices.Concat(g.Blocks(), sources), q.w) {
		if family(r.addr) != family(e.Addr) || sources != nil && !holds(sources, r.addr) {
			continue
		}
		x := e
		x.Addr, x.Block = r.addr, r.block
		out = append(out, x)
	}
	slices.SortStableFunc(out, func(a, b policy.Endpoint) int { return a.Block.Bits() - b.Block.Bits() })
	return out
}

// verdict puts together what was judged of one end.
func (q *question) verdict(d policy.Direction, yes, no []judged) verdict {
	if len(yes)+len(no) == 0 {
		return verdict{mark: OK}
	}
	all := slices.Concat(yes, no)
	first := all[0]
	if len(no) > 0 {
		first = no[0]
	}
	v := verdict{mark: OK, step: &Step{Station: d.String(), Mark: OK, Object: deciders(&first.side), Text: first.side.Why}}
	for _, j := range no {
		if j.fix != nil {
			v.fixes = append(v.fixes, j.fix)
		}
	}
	some := slices.ContainsFunc(no, func(j judged) bool { return j.some })
	switch {
	case len(no) == 0:
	case len(yes) > 0 || some:
		v.mark = Warn
		by := ""
		if v.step.Object != "" {
			by = " (" + v.step.Object + ")"
		}
		v.step.Text = fmt.Sprintf("it depends on the address%s: %s", by, dependence(yes, no))
		if len(all) == 1 {
			v.step.Text = fmt.Sprintf("it depends on the port%s: %s, and nothing else", by, letThrough(no[0].ports))
		}
		v.step.Mark = Warn
		for _, j := range all {
			v.step.Details = append(v.step.Details, j.name()+": "+j.side.Why)
		}
		if len(all) > 1 {
			return v
		}
		v.step.Details = nil
	default:
		v.mark, v.step.Mark = Blocked, Blocked
	}
	for _, fd := range first.side.Findings {
		if len(first.side.Findings) > 1 && fd.Result != policy.Silent || v.mark != OK {
			v.step.Details = append(v.step.Details, fmt.Sprintf("%s: %s: %s", fd.Policy, fd.Result, fd.Why))
		}
	}
	return v
}

func letThrough(ports []policy.PortRange) string {
	return strings.Join(portTexts(ports, ""), ", ") + plural(len(ports), " is", " are") + " let through"
}

// dependence says for which addresses it is allowed and for which not, "all others" last.
func dependence(yes, no []judged) string {
	var out, last []string
	add := func(in []judged, what string) {
		var names []string
		others := false
		for _, j := range in {
			if j.peer.Block.Bits() == 0 {
				others = true
			} else {
				names = append(names, j.name())
			}
		}
		if len(names) > 0 {
			out = append(out, some(names)+plural(len(names), " is", " are")+what)
		}
		if others {
			last = append(last, "all others are"+what)
		}
	}
	add(yes, " allowed")
	var none []judged
	for _, j := range no {
		if j.some {
			out = append(out, fmt.Sprintf("for %s %s", j.name(), letThrough(j.ports)))
		} else {
			none = append(none, j)
		}
	}
	add(none, " not")
	return strings.Join(append(out, last...), ", ")
}

// side adds what the policies at one end say.
func (q *question) side(f *Flow, v *verdict) {
	if v.step == nil {
		return
	}
	q.fixes(v.fixes)
	f.Steps = append(f.Steps, *v.step)
}

// fixes notes changes that are needed.
func (q *question) fixes(in []*policy.Remedy) {
	for _, r := range in {
		q.fix(r)
	}
}

// fix notes a change that is needed.
func (q *question) fix(r *policy.Remedy) { q.a.needed = append(q.a.needed, r) }

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

// route says how the packet gets there, and what source address the server sees: that of seen, if it is masqueraded.
func (q *question) route(src, dst, seen policy.Endpoint) Step {
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
	case seen.Addr.IsValid():
		s.Text += fmt.Sprintf("; the server sees node %s's address, %s", seen.Node, seen.Addr)
		if seen.Node != from {
			s.Text += " (externalTrafficPolicy: Cluster masquerades)"
		}
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
	case port != 0 && len(p.Ports) > 0 && !gateways(p) && !slices.ContainsFunc(p.Ports, func(cp model.ContainerPort) bool {
		return cp.Port == port && cp.Protocol == q.proto
	}):
		return []Step{{Station: "server", Mark: Note, Object: object,
			Text: fmt.Sprintf("declares no container port %s %d; it may listen all the same", q.proto, port)}}
	}
	return []Step{{Station: "server", Mark: OK, Object: object, Text: "is ready"}}
}

// gateways tells whether a pod is one of weft's gateways, whose ports follow their listeners and are not declared.
func gateways(p *model.Pod) bool {
	return p.Labels["app.kubernetes.io/name"] == "weft" && slices.Contains([]string{"gateway", "ingress"}, p.Labels["app.kubernetes.io/component"])
}

// conclude says it in one line.
func (q *question) conclude() {
	a := q.a
	passed, depends := 0, 0
	var blocked, unsure *Flow
	for i := range a.Flows {
		switch f := &a.Flows[i]; {
		case f.Allowed:
			passed++
		case f.Depends:
			if depends++; unsure == nil {
				unsure = f
			}
		case blocked == nil:
			blocked = f
		}
	}
	stopped := closed(a.Flows[:q.onward])
	if stopped == nil {
		stopped = closed(a.Flows[q.onward:])
	}
	what := a.Protocol
	if a.Port != 0 {
		what = fmt.Sprintf("%s %d", a.Protocol, a.Port)
	}
	head := fmt.Sprintf("%s to %s, %s", a.From, a.To, what)
	dead := slices.IndexFunc(a.Steps, func(s Step) bool { return s.Mark == Blocked })
	restricted := slices.IndexFunc(a.Steps, func(s Step) bool {
		return slices.ContainsFunc(s.Details, func(d string) bool { return strings.HasPrefix(d, onlySources) })
	})
	switch {
	case dead >= 0 && (passed+depends == 0 || q.refused || q.nowhere):
		a.Summary = fmt.Sprintf("BLOCKED: %s: %s", head, sentence(&a.Steps[dead]))
	case q.answered != "" && passed == len(a.Flows):
		a.Allowed, a.Summary = true, fmt.Sprintf("ALLOWED: %s: %s", head, q.answered)
	case len(a.Flows) == 0:
		a.Summary = fmt.Sprintf("BLOCKED: %s: the two have no IP family in common, or the destination has no address", head)
	case stopped != nil:
		a.Summary = fmt.Sprintf("BLOCKED: %s: %s", head, blockedBy(stopped, Blocked))
	case dead >= 0:
		a.Summary, a.Partly = fmt.Sprintf("PARTLY allowed: %s: %s", head, sentence(&a.Steps[dead])), true
	case blocked != nil:
		a.Partly = true
		a.Summary = fmt.Sprintf("PARTLY allowed: %s: %d of %d ways pass; not that to %s: %s", head, passed, len(a.Flows), blocked.Destination, blockedBy(blocked, Blocked))
	case unsure != nil:
		a.Partly, a.Summary = true, fmt.Sprintf("DEPENDS: %s: %s", head, blockedBy(unsure, Warn))
	case restricted >= 0:
		a.Partly, a.Summary = true, fmt.Sprintf("DEPENDS: %s: %s", head, a.Steps[restricted].Details[len(a.Steps[restricted].Details)-1])
	default:
		a.Allowed, a.Summary = true, fmt.Sprintf("ALLOWED: %s", head)
	}
	if a.Allowed {
		return
	}
	a.Remedies = fixesOf(a.needed)
	for i, x := range a.Remedies {
		if i == maxFixes && len(a.Remedies) > maxFixes+1 {
			a.Remedy += fmt.Sprintf("\nand %d more, which -o json has", len(a.Remedies)-maxFixes)
			break
		}
		number := ""
		if len(a.Remedies) > 1 {
			number = fmt.Sprintf("%d. ", i+1)
		}
		if a.Remedy != "" {
			a.Remedy += "\n"
		}
		a.Remedy += number + x.text()
	}
}

// closed is the first of flows of which none gets through; nil if one may, or there are none.
func closed(flows []Flow) *Flow {
	if len(flows) == 0 || slices.ContainsFunc(flows, func(f Flow) bool { return f.Allowed || f.Depends }) {
		return nil
	}
	return &flows[0]
}

// maxFixes is how many changes are told in words.
const maxFixes = 6

// onlySources begins the detail of a step that says whom spec.loadBalancerSourceRanges admits.
const onlySources = "only clients of spec.loadBalancerSourceRanges are admitted: "

// text is the change in words, with what to add.
func (x *Fix) text() string {
	if x.YAML == "" {
		return x.Action
	}
	return fmt.Sprintf("%s, at %s:\n%s", x.Action, x.Field, x.YAML)
}

func fixText(r *policy.Remedy) string {
	return (&Fix{r.Policy.String(), r.Field, r.Action, r.YAML}).text()
}

// blockedBy is the first step of a mark.
func blockedBy(f *Flow, m Mark) string {
	for i := range f.Steps {
		if f.Steps[i].Mark == m {
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
