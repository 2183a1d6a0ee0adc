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

// Mark says how a step went.
type Mark string

// The marks.
const (
	OK      Mark = "ok"
	Blocked Mark = "blocked"
	Warn    Mark = "warning"
	Note    Mark = "note"
)

// Step is one station of a packet's way.
type Step struct {
	Station string   `json:"station"` // "name", "dns", "service", "egress", "route", "ingress", "server"
	Mark    Mark     `json:"mark"`
	Object  string   `json:"object,omitempty"` // the object that decides
	Text    string   `json:"text"`
	Details []string `json:"details,omitempty"`
}

// Flow is the way to one endpoint.
type Flow struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Address     string `json:"address,omitempty"` // of the destination, with its port
	Allowed     bool   `json:"allowed"`
	Steps       []Step `json:"steps"`

	remedy *policy.Remedy
}

// Answer is the whole way of a connection.
type Answer struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
	Steps    []Step `json:"steps"` // what all flows have in common
	Flows    []Flow `json:"flows"`
	Allowed  bool   `json:"allowed"` // by every way there is
	Partly   bool   `json:"partly,omitempty"`
	Summary  string `json:"summary"`
	Remedy   string `json:"remedy,omitempty"` // the smallest change that would allow it

	// Probes are questions to the kernel that whoever can send packets may ask; see Probe.Conclude.
	Probes []Probe `json:"probes,omitempty"`

	pod  *model.Pod
	node string
}

// Why walks a connection.
func (w *World) Why(from, to *Target, proto model.Protocol) (*Answer, error) {
	a := &Answer{From: from.Text, To: to.Text, Protocol: proto.String(), Port: to.Port}
	q := &question{w: w, a: a, from: from, to: to, proto: proto, port: to.Port}
	if from.Service != nil {
		return nil, fmt.Errorf("%q is a Service: connections come from pods, nodes or outside", from.Text)
	}
	if from.DNSName != "" {
		return nil, fmt.Errorf("%q: a source is a pod, a workload, a node, an address or \"outside\"", from.Text)
	}
	if len(from.Pods) > 1 {
		q.note("source", fmt.Sprintf("%s has %d pods; this is about %s", from.Text, len(from.Pods), from.Pods[0].Name))
	}
	a.pod, a.node = q.sourcePod(), q.node()
	if err := q.destinations(); err != nil {
		return nil, err
	}
	q.conclude()
	return a, nil
}

// question is a Why under way.
type question struct {
	w        *World
	a        *Answer
	from, to *Target
	proto    model.Protocol
	port     uint16
	dead     bool     // a common step ended the way
	names    []string // beyond the cluster, that the source looks the destination up by
	answered string   // how a gateway answers by itself
	refused  bool     // a gateway answers with an error, whatever the network lets through
}

func (q *question) add(s Step) {
	q.a.Steps = append(q.a.Steps, s)
	q.dead = q.dead || s.Mark == Blocked
}

// refuse ends the way at a gateway.
func (q *question) refuse(s Step) {
	s.Mark, q.refused = Blocked, true
	q.add(s)
}

func (q *question) note(station, text string) { q.add(Step{Station: station, Mark: Note, Text: text}) }

// sourcePod is the pod that asks; nil for others.
func (q *question) sourcePod() *model.Pod {
	if len(q.from.Pods) > 0 {
		return q.from.Pods[0]
	}
	return nil
}

// node is the node that the source's packets enter the network by; "" from outside.
func (q *question) node() string {
	if p := q.sourcePod(); p != nil {
		return p.Node
	}
	if q.from.Node != nil {
		return q.from.Node.Name.Name
	}
	return ""
}

// sources are the source's ends of a family.
func (q *question) source(f model.Family) (policy.Endpoint, bool) {
	var ends []policy.Endpoint
	switch p := q.sourcePod(); {
	case p != nil:
		ends = q.w.podEndpoints(p)
	case q.from.Outside:
		for _, a := range outsiders {
			ends = append(ends, policy.Endpoint{Addr: a})
		}
	default:
		ends = q.w.endpoints(q.from)
	}
	for _, e := range ends {
		if !e.Addr.IsValid() || model.FamilyOf(e.Addr) == f {
			return e, true
		}
	}
	return policy.Endpoint{}, false
}

// destinations finds what is behind the destination and walks to each.
func (q *question) destinations() error {
	t := q.to
	if t.Request != nil && t.DNSName == "" {
		return q.request(t.Request)
	}
	if t.DNSName != "" {
		if err := q.name(); err != nil {
			return err
		}
	}
	if t.Service == nil && t.Addr.IsValid() {
		if s := q.w.serviceAt(t.Addr); s != nil {
			t.Service = s
		}
	}
	if q.dead {
		return nil
	}
	switch {
	case t.Service != nil:
		return q.service(t.Service)
	case t.Outside || t.DNSName != "" && !t.Addr.IsValid() && len(t.Pods) == 0:
		for _, a := range outsiders {
			q.walk(policy.Endpoint{Addr: a, Names: q.names}, q.port, "outside")
		}
		return nil
	}
	if q.port == 0 && t.PortName != "" {
		return fmt.Errorf("%q: a port by name needs a Service; write the number", t.Text)
	}
	for i, e := range q.w.endpoints(t) {
		if e.Pod != nil && i > 0 && len(t.Pods) > 3 && i >= 2*3 {
			q.note("server", fmt.Sprintf("only the first 3 of %d pods are shown", len(t.Pods)))
			break
		}
		q.walk(e, q.port, "")
	}
	return nil
}

// name resolves the destination's name from the source's point of view.
func (q *question) name() error {
	ns := ""
	if p := q.sourcePod(); p != nil {
		ns = p.Namespace
		if !p.HostNetwork {
			q.resolver(p)
		}
	}
	r, ok := q.w.resolve(q.to.DNSName, ns)
	if !ok {
		q.add(Step{Station: "name", Mark: Blocked, Text: fmt.Sprintf("%s does not exist: there is no such Service", q.to.DNSName), Details: trail(r.trail)})
		return nil
	}
	s := q.w.serviceOf(r.name)
	step := Step{Station: "name", Mark: OK, Details: trail(r.trail)}
	if s != nil {
		step.Object = "Service " + s.Name.String()
	}
	if r.outside != "" {
		q.names = []string{policy.NormalName(r.name)}
		if r.outside != r.name {
			q.names = append(q.names, policy.NormalName(r.outside))
		}
	}
	switch {
	case r.outside == r.name:
		step.Mark, step.Text = Note, fmt.Sprintf("%s is no name of the cluster: its address is whatever the outside's DNS says", r.name)
	case r.outside != "":
		step.Text = fmt.Sprintf("%s is an alias (ExternalName) of %s, outside the cluster", r.name, r.outside)
	default:
		step.Text = fmt.Sprintf("%s is %s", r.name, joinAddrs(r.addrs))
		if s == nil || s.Headless {
			q.to.Pods = q.podsAt(r.addrs)
			if s != nil {
				step.Text += " (headless: the endpoints themselves)"
			}
			if len(q.to.Pods) == 0 {
				q.to.Addr = r.addrs[0]
			}
		} else {
			q.to.Service = s
		}
	}
	q.add(step)
	return nil
}

func (q *question) podsAt(addrs []netip.Addr) []*model.Pod {
	var out []*model.Pod
	for _, a := range addrs {
		if p := q.w.Policy.EndpointOf(a).Pod; p != nil && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func trail(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, n+" does not exist")
	}
	return out
}

// resolver checks that the source may ask the cluster's DNS at all.
func (q *question) resolver(p *model.Pod) {
	dns := q.w.ClusterDNS()
	if dns == nil {
		return
	}
	pods := q.w.backends(dns)
	if len(pods) == 0 {
		return
	}
	for _, proto := range []model.Protocol{model.UDP, model.TCP} {
		f := &policy.Flow{Src: q.w.podEndpoints(p)[0], Dst: q.w.podEndpoints(pods[0])[0], Protocol: proto, Port: 53}
		if v := q.w.Policy.Evaluate(f); !v.Allowed {
			mark := Blocked
			if proto == model.TCP {
				mark = Warn
			}
			side := blockedSide(&v)
			s := Step{Station: "dns", Mark: mark, Object: deciders(side), Text: fmt.Sprintf("it can't ask the cluster's DNS (%s, %s 53): %s", dns.Name, proto, side.Why)}
			if r := q.w.Policy.Remedy(side, f); r != nil {
				s.Details = append(s.Details, remedyText(r))
			}
			q.add(s)
			return
		}
	}
}

// ClusterDNS is the Service that pods' resolv.conf leads to; nil if it is not known. Anybody may put its label on a
// Service: one of kube-system comes before all others.
func (w *World) ClusterDNS() *model.Service {
	var found *model.Service
	for _, n := range sortedNames(w.all.Services) {
		s, home := w.all.Services[n], n.Namespace == "kube-system"
		if s.Labels["k8s-app"] != "kube-dns" && !(home && n.Name == "kube-dns") {
			continue
		}
		if home {
			return s
		}
		if found == nil {
			found = s
		}
	}
	return found
}

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
		names := append(q.names, policy.NormalName(s.ExternalName))
		for _, a := range outsiders {
			q.walk(policy.Endpoint{Addr: a, Names: names}, q.port, s.ExternalName)
		}
		return nil
	}
	if port == nil {
		q.add(Step{Station: "service", Mark: Blocked, Object: object,
			Text: fmt.Sprintf("has no port %d/%s: connections to it are refused", q.port, q.proto), Details: []string{"it has " + portList(s)}})
		return nil
	}
	q.a.Port = port.Port
	if s.Headless {
		q.note("service", "is headless: the name leads to the endpoints themselves, at the port that the client names")
		for _, p := range q.w.backends(s) {
			for _, e := range q.w.podEndpoints(p) {
				q.walk(e, cmp.Or(q.port, port.Port), "")
			}
		}
		return nil
	}
	found := false
	var seen []netip.AddrPort
	for _, f := range q.frontends(s, port) {
		node, rule, pool, dry := q.entry(s, f)
		if rule == nil {
			continue
		}
		found = true
		step := Step{Station: "service", Object: object, Mark: OK, Details: q.left(s, port, node, f)}
		switch pool.Action {
		case service.Reject:
			step.Mark, step.Text = Blocked, fmt.Sprintf("%s %s has no endpoint: connections to it are refused", rule.Kind, f)
		case service.Drop:
			step.Mark, step.Text = Blocked, fmt.Sprintf("%s %s has no endpoint on node %s, and its traffic policy is Local: connections to it are dropped", rule.Kind, f, orUnknown(node))
		default:
			step.Text = fmt.Sprintf("%s %s: one of %s", rule.Kind, f, count(len(pool.Endpoints), "endpoint"))
			if rule.Affinity > 0 {
				step.Text += fmt.Sprintf(", the same one for %s (sessionAffinity)", rule.Affinity)
			}
		}
		if len(dry) > 0 && pool.Action == service.Forward {
			step.Details = append(step.Details, fmt.Sprintf("by way of node %s; without an endpoint of its own (externalTrafficPolicy: Local) it is dropped by %s", node, strings.Join(dry, ", ")))
		}
		if q.from.Outside && rule.Restricted {
			step.Details = append(step.Details, "only clients of loadBalancerSourceRanges are admitted: "+joinAny(rule.Sources))
		}
		at := netip.AddrPortFrom(f.Addr, f.Port)
		if step.Mark == Blocked {
			expected := Refuse
			if pool.Action == service.Drop {
				expected = Vanish
			}
			q.expect(at, object, expected, false, false)
			q.a.Steps = append(q.a.Steps, step)
			q.a.Flows = append(q.a.Flows, Flow{Source: q.from.Text, Destination: f.String(), Steps: []Step{step}})
			continue
		}
		q.add(step)
		for _, e := range pool.Endpoints {
			q.expectBehind(at, object, e)
			if slices.Contains(seen, e) {
				continue
			}
			if seen = append(seen, e); len(seen) > maxShown {
				continue
			}
			masquerade := ""
			if q.from.Outside && rule.Masquerade {
				masquerade = "the node that the packet enters by, unless the endpoint is on it (externalTrafficPolicy: Cluster masquerades)"
			}
			q.walkAs(q.w.Policy.EndpointOf(e.Addr()), e.Port(), "", masquerade)
		}
	}
	if len(seen) > maxShown {
		q.note("service", fmt.Sprintf("only %d of %d endpoints are shown", maxShown, len(seen)))
	}
	if !found {
		why := "has no address that anybody outside the cluster could use (its type is " + s.Type.String() + ")"
		if e, ok := q.w.table(q.node()).Explain(s.Name); ok && e.NotServed != "" {
			why = "is not served: " + e.NotServed
		} else if !q.from.Outside {
			why = "has its address taken by another Service"
		}
		q.add(Step{Station: "service", Mark: Blocked, Object: object, Text: why})
	}
	return nil
}

// entry finds what a frontend of the Service comes to where the packet enters: at the source's node or, from outside,
// at a node that forwards it, with those that don't.
func (q *question) entry(s *model.Service, f service.Frontend) (node string, rule *service.Rule, pool service.Pool, dry []string) {
	nodes := []string{q.node()}
	if q.node() == "" {
		nodes = nil
		for _, n := range q.w.Policy.Nodes() {
			nodes = append(nodes, n.Name.Name)
		}
	}
	for _, n := range nodes {
		r := q.w.table(n).Rule(f)
		if r == nil || r.Service != s.Name {
			continue
		}
		p := r.Main
		if r.Inside != nil && q.node() != "" {
			p = *r.Inside
		}
		if p.Action == service.Drop {
			dry = append(dry, n)
		}
		if rule == nil || pool.Action != service.Forward && p.Action == service.Forward {
			node, rule, pool = n, r, p
		}
	}
	return node, rule, pool, dry
}

// maxShown is how many endpoints are walked to.
const maxShown = 6

// servicePort finds the Service's port that is asked for; nil if it has none such.
func (q *question) servicePort(s *model.Service) (*model.ServicePort, error) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol == q.proto && (p.Port == q.port && q.port != 0 || p.Name == q.to.PortName && q.to.PortName != "" ||
			q.from.Outside && p.NodePort == q.port && q.port != 0) {
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
	if q.to.Addr.IsValid() {
		return at(q.to.Addr)
	}
	if !q.from.Outside {
		return at(s.ClusterIPs...)
	}
	out := at(s.ExternalIPs...)
	for _, in := range s.Ingress {
		out = append(out, at(in.IP)...)
	}
	if p.NodePort != 0 {
		for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			out = append(out, service.Frontend{Addr: a, Protocol: p.Protocol, Port: p.NodePort})
		}
	}
	return out
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
			if r.Rule.Inside != nil && q.node() != "" {
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
