// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/route"
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
	Station string   `json:"station"` // "name", "dns", "service", "hostPort", "egress", "route", "ingress", "server"
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
	Depends     bool   `json:"depends,omitempty"` // on an address or a port that the question does not tell
	Steps       []Step `json:"steps"`
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
	Remedy   string `json:"remedy,omitempty"` // the smallest changes that together would allow it, in words
	Remedies []Fix  `json:"remedies,omitempty"`

	// Probes are questions to the kernel that whoever can send packets may ask; see Probe.Conclude.
	Probes []Probe `json:"probes,omitempty"`

	pod    *model.Pod
	node   string
	needed []*policy.Remedy // of all that blocks
}

// Fix is one change to one policy.
type Fix struct {
	Policy string `json:"policy"`         // "NetworkPolicy shop/db"
	Field  string `json:"field"`          // "spec.ingress[0].from"
	Action string `json:"action"`         // a sentence
	YAML   string `json:"yaml,omitempty"` // what to add there
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
	if p := w.Policy.EndpointOf(from.Addr).Pod; from.Addr.IsValid() && p != nil {
		asPod := *from
		asPod.Pods = []*model.Pod{p}
		from, q.from = &asPod, &asPod
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
	dead     bool         // a common step ended the way
	names    []string     // beyond the cluster, that the source looks the destination up by
	addrs    []netip.Addr // that the destination's name has; nil: it is none of the cluster, or has all of the destination's
	nowhere  bool         // it can't learn the destination's address
	at       string       // the node whose own address the destination is, where a port of the node's leads on
	answered string       // how a gateway, or the source itself, answers
	refused  bool         // a gateway answers with an error, whatever the network lets through
	onward   int          // the first of the flows that are a gateway's; those before lead to it

	kind route.RouteKind // of the route that a gateway takes; "" before it is known
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
	if q.from.Addr.IsValid() {
		return q.w.Policy.EndpointOf(q.from.Addr).Node
	}
	return ""
}

// beyond tells whether the source is outside the cluster: anybody there, or an address of nobody in it.
func (q *question) beyond() bool {
	return q.from.Outside || q.from.Addr.IsValid() && !q.w.inCluster(q.w.Policy.EndpointOf(q.from.Addr))
}

// source is the source's end of a family.
func (q *question) source(f model.Family) (policy.Endpoint, bool) {
	var ends []policy.Endpoint
	switch p := q.sourcePod(); {
	case p != nil:
		ends = q.w.podEndpoints(p)
	case q.from.Outside:
		ends = anybody()
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

// anybody are ends outside whose addresses are not known, by any of the names.
func anybody(names ...string) []policy.Endpoint {
	out := make([]policy.Endpoint, families)
	for f := range out {
		out[f] = policy.Endpoint{Addr: outsiders[f], Block: roots[f], Names: names}
	}
	return out
}

// destinations finds what is behind the destination and walks to each.
func (q *question) destinations() error {
	t := q.to
	if t.Request != nil && t.DNSName == "" {
		return q.request(t.Request)
	}
	if t.DNSName != "" && t.Service != nil && q.sourcePod() == nil {
		t.DNSName = "" // only pods look names of the cluster up; the Service itself is meant
	}
	if t.DNSName != "" {
		if err := q.name(); err != nil || q.dead {
			return err
		}
	} else if p := q.sourcePod(); t.Service != nil && p != nil && !p.HostNetwork {
		q.resolver(p, Warn)
	}
	if t.Service == nil && t.Addr.IsValid() {
		t.Service = q.w.serviceAt(t.Addr)
	}
	switch {
	case t.Service != nil:
		return q.service(t.Service)
	case t.Outside:
		q.outside(Outside)
		return nil
	case t.DNSName != "" && !t.Addr.IsValid() && len(t.Pods) == 0:
		q.outside(q.names[len(q.names)-1], q.names...)
		return nil
	}
	if q.port == 0 && t.PortName != "" {
		return fmt.Errorf("%q: a port by name needs a Service; write the number", t.Text)
	}
	if t.Addr.IsLoopback() || t.Addr.IsUnspecified() {
		return q.loopback()
	}
	if n := q.addressed(); n != nil && q.port != 0 {
		if s := q.w.nodePort(q.proto, q.port); s != nil {
			q.at = n.Name.Name
			return q.service(s)
		}
		if p, port := q.w.hostPort(n, q.proto, q.port); p != nil {
			q.at = n.Name.Name
			q.hostPort(p, port)
			return nil
		}
	}
	ends := q.w.endpoints(t)
	if q.addrs != nil {
		ends = slices.DeleteFunc(ends, func(e policy.Endpoint) bool { return !slices.Contains(q.addrs, e.Addr) })
	}
	for i, e := range ends {
		if e.Pod != nil && len(t.Pods) > 3 && i >= 2*3 {
			q.note("server", fmt.Sprintf("only the first 3 of %d pods are shown", len(t.Pods)))
			break
		}
		q.walk(e, q.port, "")
	}
	return nil
}

// loopback is the source itself, but for the node ports that a node has there too.
func (q *question) loopback() error {
	self := "the client"
	switch p := q.sourcePod(); {
	case p != nil && !p.HostNetwork:
		self = "pod " + p.Name.String()
	case q.node() != "":
		self = "node " + q.node()
		if s := q.w.nodePort(q.proto, q.port); s != nil && q.port != 0 {
			q.at = q.node()
			return q.service(s)
		}
	}
	q.answered = fmt.Sprintf("%s is %s itself: no network is between", q.to.Addr, self)
	q.add(Step{Station: "route", Mark: OK, Text: q.answered})
	return nil
}

// outside walks to somebody beyond the cluster: to the addresses that are known of the names, if any.
func (q *question) outside(as string, names ...string) {
	ends := anybody(names...)
	for _, n := range names {
		if addrs := q.w.Known[n]; len(addrs) > 0 {
			ends, as = nil, ""
			for _, a := range addrs {
				e := q.w.Policy.EndpointOf(a)
				e.Names = unique(slices.Concat(names, e.Names))
				ends = append(ends, e)
			}
		}
	}
	for _, e := range ends {
		q.walk(e, q.port, as)
	}
}

// addressed is the node whose own address the destination is; nil if it is no node's.
func (q *question) addressed() *model.Node {
	if q.to.Node != nil {
		return q.to.Node
	}
	if q.to.Addr.IsValid() {
		return q.w.all.Nodes[q.w.Policy.EndpointOf(q.to.Addr).Node]
	}
	return nil
}

// nodePort finds the Service that has a port of every node; nil if none has it.
func (w *World) nodePort(proto model.Protocol, port uint16) *model.Service {
	for _, n := range sortedNames(w.all.Services) {
		s := w.all.Services[n]
		if slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Protocol == proto && p.NodePort == port }) {
			return s
		}
	}
	return nil
}

// hostPort finds the pod that a port of a node leads to, and the pod's port; nil if there is none.
func (w *World) hostPort(n *model.Node, proto model.Protocol, port uint16) (*model.Pod, uint16) {
	for _, name := range sortedNames(w.all.Pods) {
		p := w.all.Pods[name]
		if p.Node != n.Name.Name || p.HostNetwork || p.Finished {
			continue
		}
		for _, cp := range p.Ports {
			if cp.HostPort == port && cp.Protocol == proto {
				return p, cp.Port
			}
		}
	}
	return nil, 0
}

// hostPort goes by a port of a node to the pod that it leads to.
func (q *question) hostPort(p *model.Pod, port uint16) {
	q.add(Step{Station: "hostPort", Mark: OK, Object: "Pod " + p.Name.String(),
		Text: fmt.Sprintf("hostPort %s %d of node %s leads to pod %s, port %d", q.proto, q.port, q.at, p.Name, port)})
	for _, e := range q.w.podEndpoints(p) {
		w := way{dst: e, port: port}
		if a := q.addressOf(e); a.IsValid() {
			w.out, w.outPort = q.elsewhere(a), q.port
			w.at, w.about = netip.AddrPortFrom(a, q.port), "hostPort of pod "+p.Name.String()
		}
		q.take(w)
	}
}

// addressOf is the address of the node that the destination is at, in the family of an end.
func (q *question) addressOf(e policy.Endpoint) netip.Addr {
	if q.to.Addr.IsValid() {
		return q.to.Addr
	}
	if n := q.w.all.Nodes[q.at]; n != nil {
		for _, a := range n.InternalIPs {
			if !e.Addr.IsValid() || model.FamilyOf(a) == model.FamilyOf(e.Addr) {
				return a
			}
		}
	}
	return netip.Addr{}
}

// elsewhere is what the source's own policies see of a destination that is resolved at another node only; nil if the
// source is on that node, which resolves it before they are asked.
func (q *question) elsewhere(a netip.Addr) *policy.Endpoint {
	if q.at == "" || q.node() == q.at {
		return nil
	}
	e := q.w.Policy.EndpointOf(a)
	return &e
}
