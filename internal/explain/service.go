// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/service"
)

// backends are the pods behind a Service.
func (w *World) backends(s *model.Service) []*model.Pod {
	var out []*model.Pod
	for _, n := range sortedNames(w.all.EndpointSlices) {
		sl := w.all.EndpointSlices[n]
		if sl.Namespace != s.Namespace || sl.Service != s.Name.Name {
			continue
		}
		for _, e := range sl.Endpoints {
			if p := w.all.Pods[model.Name{Namespace: s.Namespace, Name: e.Pod}]; p != nil && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// service goes through a Service to its endpoints.
func (q *question) service(s *model.Service) error {
	port, err := q.servicePort(s)
	if err != nil {
		return err
	}
	object := "Service " + s.Name.String()
	if s.Type == model.ExternalName {
		q.add(Step{Station: "service", Mark: OK, Object: object, Text: fmt.Sprintf("is an alias of %s, outside the cluster: nothing forwards for it", s.ExternalName)})
		q.outside(s.ExternalName, unique(append(q.names, policy.NormalName(s.ExternalName)))...)
		return nil
	}
	if port == nil {
		q.add(Step{Station: "service", Mark: Blocked, Object: object,
			Text: fmt.Sprintf("has no port %d/%s: connections to it are refused", q.port, q.proto), Details: []string{"it has " + portList(s)}})
		return nil
	}
	q.a.Port = port.Port
	if q.at != "" {
		q.a.Port = port.NodePort
	}
	if s.Headless {
		return q.headless(s, port)
	}
	if q.beyond() && q.at == "" && !q.to.Addr.IsValid() && s.Type == model.LoadBalancer && len(s.Ingress) == 0 {
		by := ""
		if port.NodePort != 0 {
			by = ": clients get there by node ports"
		}
		q.add(Step{Station: "service", Mark: Note, Object: object, Text: "has no address of a load balancer yet" + by})
	}
	found := false
	var seen []netip.AddrPort
	for _, f := range q.frontends(s, port) {
		in, dry := q.entries(s, f)
		if len(in) == 0 {
			continue
		}
		found = true
		step := q.frontStep(object, s, port, f, in[0], dry)
		if step.Mark == Blocked {
			q.ends(&step, f, in[0], object)
			continue
		}
		q.add(step)
		for _, e := range endpointsOf(in) {
			ways := q.waysTo(e, f, in)
			if slices.Contains(seen, e) {
				continue
			}
			if seen = append(seen, e); len(seen) > maxShown {
				continue
			}
			for _, w := range ways {
				w.about = object
				q.follow(w)
			}
		}
	}
	if len(seen) > maxShown {
		q.note("service", fmt.Sprintf("only %d of %d endpoints are shown", maxShown, len(seen)))
	}
	if !found {
		why := "has no address that anybody outside the cluster could use (its type is " + s.Type.String() + ")"
		if e, ok := q.w.table(q.node()).Explain(s.Name); ok && e.NotServed != "" {
			why = "is not served: " + e.NotServed
		} else if !q.beyond() {
			why = "has its address taken by another Service"
		}
		q.add(Step{Station: "service", Mark: Blocked, Object: object, Text: why})
	}
	return nil
}

// headless goes to the endpoints themselves, at those of their addresses that the name has, and the port that the client
// names.
func (q *question) headless(s *model.Service, port *model.ServicePort) error {
	q.note("service", "is headless: the name leads to the endpoints themselves, at the port that the client names")
	r, _ := q.w.resolve(s.Name.Name+"."+s.Namespace+".svc."+q.w.zone.Domain()+".", "")
	if len(r.addrs) == 0 {
		q.add(Step{Station: "service", Mark: Blocked, Object: "Service " + s.Name.String(), Text: "has no endpoint: its name leads nowhere", Details: q.w.NoEndpoints(s, port)})
	}
	pods := q.w.backends(s)
	for _, p := range pods {
		if !p.Ready && !slices.ContainsFunc(p.IPs, func(a netip.Addr) bool { return slices.Contains(r.addrs, a) }) {
			q.note("service", fmt.Sprintf("pod %s is not ready: the name does not lead to it", p.Name))
		}
	}
	for i, a := range r.addrs {
		if i == maxShown {
			q.note("service", fmt.Sprintf("only %d of %d endpoints are shown", maxShown, len(r.addrs)))
			break
		}
		q.walk(q.w.endpointAt(a, pods), cmp.Or(q.port, port.Port), "")
	}
	return nil
}

// endpointAt is the end at an address that is one of some pods', on the host's network too, or whoever else's.
func (w *World) endpointAt(a netip.Addr, pods []*model.Pod) policy.Endpoint {
	for _, p := range pods {
		if slices.Contains(p.IPs, a) {
			e, _ := endOf(w.podEndpoints(p), a)
			return e
		}
	}
	return w.Policy.EndpointOf(a)
}

// frontStep says what becomes of connections to a frontend where they enter.
func (q *question) frontStep(object string, s *model.Service, port *model.ServicePort, f service.Frontend, in entered, dry []string) Step {
	step := Step{Station: "service", Object: object, Mark: OK, Details: q.left(s, port, in.node, f)}
	rule := in.rule
	if src, ok := q.source(f.Family()); rule.Restricted && ok && !src.Block.IsValid() && !holds(rule.Sources, src.Addr) {
		step.Mark = Blocked
		step.Text = fmt.Sprintf("%s %s is not for %s: spec.loadBalancerSourceRanges admits %s only, and others are dropped", rule.Kind, f, src.Addr, cmp.Or(joinAny(rule.Sources), "nobody"))
		return step
	}
	switch in.pool.Action {
	case service.Reject:
		step.Mark, step.Text = Blocked, fmt.Sprintf("%s %s has no endpoint: connections to it are refused", rule.Kind, f)
	case service.Drop:
		step.Mark, step.Text = Blocked, fmt.Sprintf("%s %s has no endpoint on node %s, and its traffic policy is Local: connections to it are dropped", rule.Kind, f, orUnknown(in.node))
	default:
		step.Text = fmt.Sprintf("%s %s: one of %s", rule.Kind, f, count(len(in.pool.Endpoints), "endpoint"))
		if rule.Affinity > 0 {
			step.Text += fmt.Sprintf(", the same one for %s (sessionAffinity)", rule.Affinity)
		}
	}
	if len(dry) > 0 && in.pool.Action == service.Forward {
		step.Details = append(step.Details, fmt.Sprintf("by way of node %s; without an endpoint of its own (externalTrafficPolicy: Local) it is dropped by %s", in.node, strings.Join(dry, ", ")))
	}
	if q.from.Outside && rule.Restricted && step.Mark == OK {
		step.Details = append(step.Details, onlySources+cmp.Or(joinAny(rule.Sources), "nobody"))
		if len(rule.Sources) == 0 {
			step.Mark, step.Text = Blocked, step.Text+", and nobody is admitted to it"
		}
	}
	return step
}

func holds(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ends adds a frontend that leads nowhere.
func (q *question) ends(step *Step, f service.Frontend, in entered, object string) {
	expected := Vanish
	if in.pool.Action == service.Reject {
		expected = Refuse
	}
	q.expect(netip.AddrPortFrom(f.Addr, f.Port), object, expected, false, false)
	q.a.Steps = append(q.a.Steps, *step)
	q.a.Flows = append(q.a.Flows, Flow{Source: q.from.Text, Destination: f.String(), Steps: []Step{*step}})
}

// entered is a frontend as one node forwards it.
type entered struct {
	node string
	rule *service.Rule
	pool service.Pool // for the source
}

// entries are the nodes by which the source's packets to a frontend may enter, with what each makes of it: the node
// that is addressed, the source's own, or from outside any. Those that drop them are dry, and among the entries only
// if all do.
func (q *question) entries(s *model.Service, f service.Frontend) (in []entered, dry []string) {
	nodes := []string{q.node()}
	switch {
	case q.at != "":
		nodes = []string{q.at}
	case q.node() == "":
		nodes = nil
		for _, n := range q.w.Policy.Nodes() {
			nodes = append(nodes, n.Name.Name)
		}
	}
	var dropping []entered
	var alone *model.Delta // what others claim is the same on every node: the first one tells
	for i, n := range nodes {
		var r *service.Rule
		if i == 0 || q.w.tables[n] != nil {
			r = q.w.table(n).Rule(f)
		} else {
			if alone == nil {
				alone = q.w.alone(s)
			}
			t := service.NewTable(n)
			t.Update(alone)
			r = t.Rule(f)
		}
		if r == nil || r.Service != s.Name {
			if i == 0 { // another Service has it
				return nil, nil
			}
			continue
		}
		e := entered{n, r, r.Main}
		if r.Inside != nil && q.node() == n {
			e.pool = *r.Inside
		}
		switch e.pool.Action {
		case service.Forward:
			in = append(in, e)
		case service.Drop:
			dry, dropping = append(dry, n), append(dropping, e)
		default:
			dropping = append(dropping, e)
		}
	}
	if len(in) == 0 {
		return dropping, dry
	}
	return in, dry
}

// alone is all that there is of one Service.
func (w *World) alone(s *model.Service) *model.Delta {
	out := &model.Delta{Complete: true, Nodes: w.all.Nodes, Services: map[model.Name]*model.Service{s.Name: s}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for n, sl := range w.all.EndpointSlices {
		if sl.Namespace == s.Namespace && sl.Service == s.Name.Name {
			out.EndpointSlices[n] = sl
		}
	}
	return out
}

// endpointsOf are those that any of the nodes sends to.
func endpointsOf(in []entered) []netip.AddrPort {
	var out []netip.AddrPort
	have := map[netip.AddrPort]bool{}
	for _, e := range in {
		for _, a := range e.pool.Endpoints {
			if !have[a] {
				have[a] = true
				out = append(out, a)
			}
		}
	}
	return out
}

// waysTo are the ways by a frontend to one of its endpoints that differ in what policies see: an endpoint on the node
// that packets enter by sees the client, one elsewhere that node, if it masquerades.
func (q *question) waysTo(e netip.AddrPort, f service.Frontend, in []entered) []way {
	dst := q.w.Policy.EndpointOf(e.Addr())
	rule := in[0].rule
	plain := way{dst: dst, port: e.Port()}
	if a := q.addressOf(dst); q.at != "" && a.IsValid() {
		plain.out, plain.outPort = q.elsewhere(a), f.Port
		plain.at = netip.AddrPortFrom(a, f.Port)
	} else {
		plain.at = netip.AddrPortFrom(f.Addr, f.Port)
	}
	if q.from.Outside && rule.Restricted {
		plain.sources = rule.Sources
	}
	masquerades := rule.Masquerade
	if !rule.Kind.External() { // pods reach cluster IPs as they are; whoever else does has to come back this way
		masquerades = q.beyond()
	}
	if !masquerades || dst.Pod == nil {
		return []way{plain}
	}
	var out []way
	shown := map[string]bool{}
	for _, x := range in {
		if !slices.Contains(x.pool.Endpoints, e) {
			continue
		}
		if x.node == nodeOf(dst) {
			if !shown["own"] {
				w := plain
				if len(in) > 1 {
					w.via = fmt.Sprintf(" by way of node %s, which it is on", x.node)
				}
				shown["own"], out = true, append(out, w)
			}
			continue
		}
		for _, from := range q.w.nodeSources(x.node, family(dst.Addr)) {
			w := plain
			w.seen, w.tunnel = from.end, from.tunnel
			v := q.judge(policy.Ingress, &policy.Flow{Src: w.seen, Dst: dst, Protocol: q.proto, Port: w.port}, nil)
			if shown[string(v.mark)] {
				last := &out[len(out)-1]
				last.also = append(last.also, v.fixes...)
				continue
			}
			w.via = fmt.Sprintf(" by way of node %s", x.node)
			shown[string(v.mark)], out = true, append(out, w)
		}
	}
	if len(out) == 0 {
		return []way{plain}
	}
	return out
}

// nodeSource is an end that a node's own packets to pods of other nodes may come from.
type nodeSource struct {
	end    policy.Endpoint
	tunnel bool // only where the nodes share no link, which is not known
}

// nodeSources are those of a family.
func (w *World) nodeSources(node string, f int) []nodeSource {
	n := w.all.Nodes[node]
	if n == nil {
		return nil
	}
	var out []nodeSource
	if i := slices.IndexFunc(n.InternalIPs, func(a netip.Addr) bool { return family(a) == f }); i >= 0 {
		out = append(out, nodeSource{end: policy.Endpoint{Addr: n.InternalIPs[i], Node: node}})
	}
	for _, c := range n.PodCIDRs {
		if a := model.TunnelAddr(c); a.IsValid() && family(a) == f {
			out = append(out, nodeSource{policy.Endpoint{Addr: a, Node: node}, true})
		}
	}
	return out
}

// maxShown is how many endpoints are walked to.
const maxShown = 6

// servicePort finds the Service's port that is asked for; nil if it has none such.
func (q *question) servicePort(s *model.Service) (*model.ServicePort, error) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol != q.proto {
			continue
		}
		if q.at == "" && (p.Port == q.port && q.port != 0 || p.Name == q.to.PortName && q.to.PortName != "") ||
			(q.at != "" || q.beyond()) && p.NodePort == q.port && q.port != 0 {
			return p, nil
		}
	}
	if q.port == 0 && q.to.PortName == "" {
		if len(s.Ports) == 1 {
			q.proto, q.port = s.Ports[0].Protocol, s.Ports[0].Port
			q.a.Protocol = q.proto.String()
			return &s.Ports[0], nil
		}
		if s.Type != model.ExternalName {
			return nil, fmt.Errorf("%s has %s: say which, as %s:PORT", q.to.Text, portList(s), q.to.Text)
		}
	}
	if q.to.PortName != "" {
		return nil, fmt.Errorf("%s: there is no %s port named %q; Service %s has %s", q.to.Text, q.proto, q.to.PortName, s.Name, portList(s))
	}
	return nil, nil
}

// frontends are the addresses of a Service that the source can use.
func (q *question) frontends(s *model.Service, p *model.ServicePort) []service.Frontend {
	at := func(addrs ...netip.Addr) (out []service.Frontend) {
		for _, a := range addrs {
			if a.IsValid() {
				out = append(out, service.Frontend{Addr: a.Unmap(), Protocol: p.Protocol, Port: p.Port})
			}
		}
		return out
	}
	nodePorts := func() (out []service.Frontend) {
		for f, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			if p.NodePort != 0 && (q.at == "" || q.to.Node != nil || family(q.to.Addr) == f) {
				out = append(out, service.Frontend{Addr: a, Protocol: p.Protocol, Port: p.NodePort})
			}
		}
		return out
	}
	switch {
	case q.at != "":
		return nodePorts()
	case q.to.Addr.IsValid():
		return at(q.to.Addr)
	case !q.beyond():
		return at(s.ClusterIPs...)
	case q.port == p.NodePort && q.port != p.Port && q.port != 0:
		return nodePorts()
	}
	out := at(s.ExternalIPs...)
	for _, in := range s.Ingress {
		out = append(out, at(in.IP)...)
	}
	return append(out, nodePorts()...)
}

// left says why endpoints of the Service don't serve the frontend, and why there may be none.
func (q *question) left(s *model.Service, port *model.ServicePort, node string, f service.Frontend) []string {
	e, _ := q.w.table(node).Explain(s.Name)
	var out []string
	for _, r := range e.Frontends {
		if r.Frontend != f {
			continue
		}
		if len(r.Endpoints) == 0 {
			return q.w.NoEndpoints(s, port)
		}
		for _, ep := range r.Endpoints {
			why := ep.Why
			if r.Rule.Inside != nil && q.node() == node {
				why = ep.WhyInside
			}
			if why != "" {
				out = append(out, fmt.Sprintf("%s (pod %s) does not serve: %s", ep.Addr, cmp.Or(ep.Pod, "unknown"), why))
			}
		}
	}
	return out
}

// NoEndpoints says why a Service port has no endpoint at all.
func (w *World) NoEndpoints(s *model.Service, port *model.ServicePort) []string {
	if len(s.Selector) == 0 {
		return []string{"it has no selector, and nobody has written EndpointSlices for it"}
	}
	sel := model.MatchLabels(s.Selector)
	var matching, others []*model.Pod
	for _, n := range sortedNames(w.all.Pods) {
		p := w.all.Pods[n]
		switch {
		case !sel.Matches(p.Labels):
		case p.Namespace == s.Namespace:
			matching = append(matching, p)
		default:
			others = append(others, p)
		}
	}
	if len(matching) == 0 {
		out := []string{fmt.Sprintf("no pod in namespace %s matches its selector %s", s.Namespace, sel)}
		for _, p := range others[:min(2, len(others))] {
			out = append(out, fmt.Sprintf("pod %s does, but it is in another namespace", p.Name))
		}
		if near := w.nearMiss(s, sel); near != "" {
			out = append(out, near)
		}
		return out
	}
	var out []string
	for _, p := range matching[:min(3, len(matching))] {
		switch {
		case p.Finished:
			out = append(out, fmt.Sprintf("pod %s has finished", p.Name))
		case len(p.IPs) == 0:
			out = append(out, fmt.Sprintf("pod %s has no address yet", p.Name))
		case !p.Ready:
			out = append(out, fmt.Sprintf("pod %s is not ready", p.Name))
		default:
			out = append(out, fmt.Sprintf("pod %s has no container port named %q for targetPort", p.Name, port.TargetPort))
		}
	}
	return out
}

// nearMiss finds a pod of the Service's namespace that lacks only one label of the selector.
func (w *World) nearMiss(s *model.Service, sel model.Selector) string {
	if len(sel) < 2 {
		return ""
	}
	for _, n := range sortedNames(w.all.Pods) {
		p := w.all.Pods[n]
		if p.Namespace != s.Namespace {
			continue
		}
		var missing []string
		for i := range sel {
			if !sel[i].Matches(p.Labels) {
				missing = append(missing, sel[i:i+1].String())
			}
		}
		if len(missing) == 1 {
			return fmt.Sprintf("pod %s lacks only %s (it has %s)", p.Name, missing[0], model.MatchLabels(p.Labels))
		}
	}
	return ""
}

func portList(s *model.Service) string {
	if len(s.Ports) == 0 {
		return "no ports"
	}
	var out []string
	for _, p := range s.Ports {
		one := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.Name != "" {
			one += " (" + p.Name + ")"
		}
		out = append(out, one)
	}
	return plural(len(out), "port ", "ports ") + strings.Join(out, ", ")
}
