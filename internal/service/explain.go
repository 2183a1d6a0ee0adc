// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Explanation is what one node does with a Service, and why.
type Explanation struct {
	Service   model.Name
	Node      string
	NotServed string // why no node forwards for the Service; "" if they do
	Frontends []FrontendReport

	// Closed are node ports that the node has on none of its addresses, each a sentence with the reason: see LimitNodePorts.
	Closed []string

	// Absent are addresses that one might look for among the frontends and that are none, each a sentence with the reason.
	Absent []string
}

// FrontendReport is one frontend of a Service.
type FrontendReport struct {
	Frontend   Frontend
	Kind       Kind
	Port       string // the Service port's name
	TargetPort string // as the Service has it
	Rule       *Rule
	LostTo     model.Name // the Service that has the frontend instead; none if this one has it
	Text       string     // what happens to traffic, a sentence
	Endpoints  []EndpointReport
}

// EndpointReport is one endpoint and what it gets.
type EndpointReport struct {
	Addr  netip.AddrPort
	Pod   string
	Node  string
	Zone  string
	State string // "ready", "not ready", "terminating", "terminating, still serving"

	Used bool   // gets this frontend's new connections from this node
	Why  string // why not; "" if it does

	// For frontends with externalTrafficPolicy Local: the same for pods of the node and the node itself.
	UsedInside bool
	WhyInside  string
}

// Explain says what the node does with a Service, by the decisions that are in force. ok is false if there is no such
// Service.
func (t *Table) Explain(name model.Name) (e Explanation, ok bool) {
	st := t.services[name]
	if st == nil || st.service == nil {
		return e, false
	}
	e = Explanation{Service: name, Node: t.node.Name}
	if served, why := proxied(st.service); !served {
		e.NotServed = why
		return e, true
	}
	for _, en := range st.entries {
		e.Frontends = append(e.Frontends, t.explain(st, en))
	}
	e.Absent = absent(st.service)
	slices.SortStableFunc(e.Frontends, func(a, b FrontendReport) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Frontend.Compare(b.Frontend))
	})
	return e, true
}

// absent says which addresses of a Service are not its frontends, and why.
func absent(s *model.Service) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	has := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.ClusterIPs, func(c netip.Addr) bool { return model.FamilyOf(c) == model.FamilyOf(a) })
	}
	other := func(what string, a netip.Addr) {
		if a.IsValid() && !has(a) {
			say("%s %s: the Service has no cluster IP of family %s; ipFamilyPolicy says which families it has", what, a, model.FamilyOf(a))
		}
	}
	if s.Type == model.LoadBalancer {
		if len(s.Ingress) == 0 {
			say("a load balancer IP: none is assigned yet; its events, and weft addresses, say why")
		}
		for _, in := range s.Ingress {
			switch {
			case in.IP.IsValid() && in.Proxy:
				say("load balancer IP %s: its ipMode is Proxy, so its traffic goes through the load balancer even from within the cluster", in.IP)
			case in.IP.IsValid():
				other("load balancer IP", in.IP)
			case in.Hostname != "":
				say("load balancer %s: it has a host name only; what it sends to node ports is forwarded", in.Hostname)
			}
		}
		if s.LoadBalancer.NoNodePorts && !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.NodePort != 0 }) {
			say("node ports: allocateLoadBalancerNodePorts is false")
		}
	}
	for _, a := range s.ExternalIPs {
		other("external IP", a)
	}
	return out
}

func (t *Table) explain(st *known, en entry) FrontendReport {
	r := FrontendReport{Frontend: en.frontend, Kind: en.rule.Kind, Port: en.rule.Port, Rule: en.rule}
	i := slices.IndexFunc(st.service.Ports, func(p model.ServicePort) bool {
		return p.Name == en.rule.Port && p.Protocol == en.frontend.Protocol
	})
	r.TargetPort = st.service.Ports[i].TargetPort
	if owner := t.owners[en.frontend]; owner != st {
		r.LostTo = owner.meta.Name
	}
	local := st.service.InternalLocal
	if en.rule.Kind.External() {
		local = st.service.ExternalLocal
	}
	cands := candidates(nil, st.slices, en.frontend.Family(), en.rule.Port, en.frontend.Protocol)
	c := choose(cands, &t.node)
	for _, cand := range cands {
		ep := EndpointReport{Addr: cand.addr, Pod: cand.ep.Pod, Node: cand.ep.Node, Zone: cand.ep.Zone, State: stateText(cand.ep)}
		ep.Why = c.reason(cand, &t.node, local)
		ep.Used = ep.Why == ""
		if en.rule.Inside != nil {
			ep.WhyInside = c.reason(cand, &t.node, false)
			ep.UsedInside = ep.WhyInside == ""
		}
		r.Endpoints = append(r.Endpoints, ep)
	}
	r.Text = r.text(local)
	return r
}

func stateText(ep *model.Endpoint) string {
	switch {
	case ep.Ready:
		return "ready"
	case ep.Terminating && ep.Serving:
		return "terminating, still serving"
	case ep.Terminating:
		return "terminating"
	}
	return "not ready"
}

// reason says why choose left a candidate out for one of the policies; "" if it did not.
func (c choice) reason(cand candidate, n *Node, local bool) string {
	pool := c.cluster
	if local {
		pool = c.local
	}
	if slices.Contains(pool.Endpoints, cand.addr) {
		return ""
	}
	if local && !cand.local(n) {
		if cand.ep.Node == "" {
			return "on no node that is known, and the traffic policy is Local"
		}
		return fmt.Sprintf("on node %s, and the traffic policy is Local", cand.ep.Node)
	}
	switch {
	case cand.ep.Ready && c.topology == sameNode:
		return fmt.Sprintf("meant for node %s; this node has its own endpoints (hints)", strings.Join(cand.ep.HintNodes, ", "))
	case cand.ep.Ready:
		return fmt.Sprintf("meant for zone %s; this node's zone, %s, has its own endpoints (hints)", strings.Join(cand.ep.HintZones, ", "), n.Zone)
	case cand.fallback():
		return "terminating; others are ready"
	}
	return stateText(cand.ep)
}

// text says what happens to traffic that is for the frontend.
func (r *FrontendReport) text(local bool) string {
	if r.LostTo.Name != "" {
		return fmt.Sprintf("served by Service %s, which has the better claim to it", r.LostTo)
	}
	var b strings.Builder
	switch r.Rule.Main.Action {
	case Forward:
		fmt.Fprintf(&b, "forwarded to %s", plural(len(r.Rule.Main.Endpoints), "endpoint"))
		if local {
			b.WriteString(" of this node")
		}
	case Reject:
		b.WriteString("refused: no endpoint is ready anywhere")
		if len(r.Endpoints) == 0 {
			b.Reset()
			b.WriteString("refused: there are no endpoints")
		}
	case Drop:
		b.WriteString("dropped: the traffic policy is Local and no endpoint on this node is ready")
	}
	if r.Rule.Inside != nil {
		fmt.Fprintf(&b, "; from the node itself and its pods, to %s anywhere", plural(len(r.Rule.Inside.Endpoints), "endpoint"))
	}
	if r.Rule.Masquerade && r.Rule.Main.Action == Forward {
		b.WriteString("; endpoints see this node's address, not the client's")
	}
	if r.Rule.Restricted && len(r.Rule.Sources) == 0 {
		b.WriteString("; from nobody, for loadBalancerSourceRanges has no range of this IP family that can be read")
	} else if r.Rule.Restricted {
		var s []string
		for _, p := range r.Rule.Sources {
			s = append(s, p.String())
		}
		fmt.Fprintf(&b, "; only from %s", strings.Join(s, ", "))
	}
	if r.Rule.Affinity > 0 {
		fmt.Fprintf(&b, "; clients stay at their endpoint for %s", r.Rule.Affinity)
	}
	return b.String()
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
