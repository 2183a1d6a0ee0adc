// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Endpoint is one end of a flow as the wire shows it.
type Endpoint struct {
	Pod  *model.Pod // nil: not a pod
	Addr netip.Addr // invalid: not known (manifests have no addresses), so no ipBlock matches
	Node string     // the node whose own address this is; "" if it is no node's

	// Names are those that it was looked up by and that still lead to it, as NormalName spells them.
	Names []string

	// Block, where valid, is what Addr is one example of: the endpoint's own address is not known, or does not matter.
	Block netip.Prefix
}

// String names the endpoint as a person would.
func (e Endpoint) String() string {
	switch {
	case e.Pod != nil:
		return "pod " + e.Pod.Name.String()
	case e.Node != "":
		return "node " + e.Node
	case len(e.Names) > 0 && e.Block.IsValid():
		return e.Names[0]
	case e.Block.IsValid() && e.Block.Bits() == 0:
		return "outside"
	case e.Block.IsValid():
		return e.Block.String()
	case len(e.Names) > 0 && e.Addr.IsValid():
		return fmt.Sprintf("%s (%s)", e.Names[0], e.Addr)
	case len(e.Names) > 0:
		return e.Names[0]
	case e.Addr.IsValid():
		return e.Addr.String()
	}
	return "outside"
}

// Flow is the first packet of a connection, as the policy sees it: after the Service's address was replaced by an
// endpoint's, before any masquerading of the source.
type Flow struct {
	Src, Dst Endpoint
	Protocol model.Protocol
	Port     uint16 // destination; 0 where the protocol has none, or all of its ports are asked for
}

// portString is "TCP 80".
func (f *Flow) portString() string {
	switch f.Protocol {
	case model.TCP, model.UDP, model.SCTP:
		if f.Port == 0 {
			return fmt.Sprintf("every %s port", f.Protocol)
		}
		return fmt.Sprintf("%s %d", f.Protocol, f.Port)
	case 1:
		return "ICMP"
	case 58:
		return "ICMPv6"
	}
	return f.Protocol.String()
}

// Result is what one policy has to say about a flow.
type Result uint8

// The results. A NetworkPolicy never denies: it isolates, and fails to admit.
const (
	NotApplicable Result = iota // does not select this pod, or not for this direction
	DoesNotAdmit                // isolates the pod, and none of its rules matches
	Admits                      // isolates the pod, and a rule matches
	Denies                      // a ClusterNetworkPolicy's Deny rule matches
	Passes                      // a ClusterNetworkPolicy's Pass rule matches: the tier ends
	Silent                      // a ClusterNetworkPolicy with this subject, none of whose rules matches
)

// String spells the result as the constant is named.
func (r Result) String() string {
	return [...]string{"NotApplicable", "DoesNotAdmit", "Admits", "Denies", "Passes", "Silent"}[r]
}

// PolicyRef names a policy of either kind; a ClusterNetworkPolicy has no namespace.
type PolicyRef struct {
	Kind string // "NetworkPolicy" or "ClusterNetworkPolicy"
	model.Name
}

// String is "NetworkPolicy default/web".
func (r PolicyRef) String() string { return r.Kind + " " + r.Name.String() }

func refOf(np *model.NetworkPolicy) PolicyRef { return PolicyRef{"NetworkPolicy", np.Name} }
func refOfCluster(p *model.ClusterNetworkPolicy) PolicyRef {
	return PolicyRef{"ClusterNetworkPolicy", p.Name}
}

// Finding is one policy's result and the sentence that says why.
type Finding struct {
	Policy PolicyRef
	Result Result
	Rule   string // the rule that matched: "ingress[0]"; "" if none did
	Why    string
}

// Side is the verdict at one end of the flow.
type Side struct {
	Direction Direction
	Pod       *model.Pod // whose policies were asked; nil if this end is no pod
	Allowed   bool
	Isolated  bool       // some NetworkPolicy selects the pod for this direction
	By        *PolicyRef // the policy that decided alone; nil if it took several, or none
	Findings  []Finding  // in the order in which they are tried, NotApplicable ones left out
	Why       string     // one sentence
}

// Verdict is both ends together.
type Verdict struct {
	Allowed bool
	Egress  Side // at the source
	Ingress Side // at the destination
}

// Evaluate decides about a flow and says why.
func (c *Cluster) Evaluate(f *Flow) Verdict {
	v := Verdict{Egress: c.side(Egress, f), Ingress: c.side(Ingress, f)}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v
}

// Allows is Evaluate without the reasons.
func (c *Cluster) Allows(f *Flow) bool {
	return c.sideAllows(Egress, f) && c.sideAllows(Ingress, f)
}

// ends gives the pod whose policies count in a direction, and its peer.
func ends(d Direction, f *Flow) (self, peer Endpoint) {
	if d == Ingress {
		return f.Dst, f.Src
	}
	return f.Src, f.Dst
}

// exempt tells why a direction's policies have no say; "" if they do.
func exempt(d Direction, self, peer Endpoint) string {
	switch {
	case self.Pod == nil:
		return fmt.Sprintf("%s is not a pod: policies don't apply to it", self)
	case self.Pod.HostNetwork:
		return fmt.Sprintf("%s is on its node's network: policies don't apply to it", self)
	case peer.Pod != nil && peer.Pod.Name == self.Pod.Name:
		return "a pod always reaches itself"
	case d == Ingress && peer.Node != "" && peer.Node == self.Pod.Node && (peer.Pod == nil || peer.Pod.HostNetwork):
		return fmt.Sprintf("node %s always reaches its own pods (kubelet's probes)", peer.Node)
	}
	return ""
}

func (c *Cluster) sideAllows(d Direction, f *Flow) bool {
	self, peer := ends(d, f)
	return exempt(d, self, peer) != "" || c.Guard(self.Pod, d).toward(peer).admits(f)
}

// peersMatch names the peer that matched; "" if none does.
func (c *Cluster) peersMatch(r *rule, peer Endpoint) string {
	if len(r.peers) == 0 {
		return "anyone"
	}
	for i := range r.peers {
		if c.matches(&r.peers[i], peer) {
			return r.peers[i].String()
		}
	}
	return ""
}

func (c *Cluster) side(d Direction, f *Flow) Side {
	self, peer := ends(d, f)
	s := Side{Direction: d, Pod: self.Pod}
	if s.Why = exempt(d, self, peer); s.Why != "" {
		s.Allowed = true
		return s
	}
	if c.tierSide(&s, c.admin, peer, f) {
		return s
	}
	for _, np := range c.selecting(self.Pod, d) {
		s.Isolated = true
		fd := c.finding(np, d, peer, f)
		if fd.Result == Admits && !s.Allowed {
			s.Allowed, s.By = true, &fd.Policy
			s.Why = fmt.Sprintf("%s admits it: %s", fd.Policy, fd.Why)
		}
		s.Findings = append(s.Findings, fd)
	}
	if s.Allowed {
		return s
	}
	if s.Isolated {
		isolating := s.isolating()
		s.Why = fmt.Sprintf("%s is isolated for %s by %s, and %s %s",
			self, d, joinAny(isolating), plural(len(isolating), "it has no rule", "none of them has a rule"), forFlow(d, peer, f))
		if len(isolating) == 1 {
			s.By = &isolating[0]
		}
		return s
	}
	if c.tierSide(&s, c.baseline, peer, f) {
		return s
	}
	s.Allowed = true
	s.Why = fmt.Sprintf("no policy isolates %s for %s", self, d)
	return s
}

func forFlow(d Direction, peer Endpoint, f *Flow) string {
	if d == Ingress {
		return fmt.Sprintf("for %s from %s", f.portString(), describe(peer))
	}
	return fmt.Sprintf("for %s to %s", f.portString(), describe(peer))
}

// isolating are the NetworkPolicies among the findings.
func (s *Side) isolating() []PolicyRef {
	var out []PolicyRef
	for _, fd := range s.Findings {
		if fd.Policy.Kind == "NetworkPolicy" {
			out = append(out, fd.Policy)
		}
	}
	return out
}

// finding is what one NetworkPolicy that isolates the pod says.
func (c *Cluster) finding(np *model.NetworkPolicy, d Direction, peer Endpoint, f *Flow) Finding {
	fd := Finding{Policy: refOf(np), Result: DoesNotAdmit}
	rules := rulesOfPolicy(np, d)
	if len(rules) == 0 {
		fd.Why = fmt.Sprintf("it has no %s rule, so it admits nothing", d)
		return fd
	}
	var whys []string
	for i := range rules {
		who, why := c.explainRule(&rules[i], d, peer, f)
		if who {
			fd.Result, fd.Rule = Admits, rules[i].field
			fd.Why = fmt.Sprintf("rule %s allows %s", rules[i].field, why)
			return fd
		}
		whys = append(whys, fmt.Sprintf("rule %s %s", rules[i].field, why))
	}
	fd.Why = strings.Join(whys, "; ")
	return fd
}

// explainRule tells whether a rule matches, and in words what it wants, or what is missing.
func (c *Cluster) explainRule(r *rule, d Direction, peer Endpoint, f *Flow) (bool, string) {
	side := "from"
	if d == Egress {
		side = "to"
	}
	who, port := c.peersMatch(r, peer), portMatches(r.ports, f)
	switch {
	case who != "" && port:
		return true, fmt.Sprintf("%s %s %s", portsText(r.ports), side, who)
	case who != "":
		return false, fmt.Sprintf("is only for %s, not %s%s", portsText(r.ports), f.portString(), namedHint(r.ports, f))
	}
	missing := fmt.Sprintf("is only for traffic %s %s; %s does not match", side, peersText(r.peers), describe(peer))
	if !port {
		missing += fmt.Sprintf(", and for %s, not %s", portsText(r.ports), f.portString())
	}
	return false, missing
}

// namedHint says what a named port came to, where that is why it did not match.
func namedHint(ports []model.PolicyPort, f *Flow) string {
	for _, p := range ports {
		if p.Name == "" {
			continue
		}
		if f.Dst.Pod == nil {
			return fmt.Sprintf(" (%s is not a pod, so it has no port %q)", f.Dst, p.Name)
		}
		for _, cp := range f.Dst.Pod.Ports {
			if names(p, cp) {
				return fmt.Sprintf(" (%q is %s %d on %s)", p.Name, cp.Protocol, cp.Port, f.Dst)
			}
		}
		return fmt.Sprintf(" (%s has no container port named %q)", f.Dst, p.Name)
	}
	return ""
}

// tierSide asks a tier of ClusterNetworkPolicies; true if it made the decision.
func (c *Cluster) tierSide(s *Side, tier []*model.ClusterNetworkPolicy, peer Endpoint, f *Flow) bool {
	for _, cnp := range c.subjectOf(tier, s.Pod, s.Direction) {
		fd := Finding{Policy: refOfCluster(cnp), Result: Silent, Why: "none of its rules matches"}
		for _, r := range rulesOfCluster(cnp, s.Direction) {
			ok, why := c.explainRule(&r, s.Direction, peer, f)
			if !ok {
				continue
			}
			fd.Rule = r.field
			fd.Why = fmt.Sprintf("rule %s: %s %s", r.field, r.action, why)
			fd.Result = map[model.PolicyAction]Result{
				model.AcceptTraffic: Admits, model.DenyTraffic: Denies, model.PassTraffic: Passes,
			}[r.action]
			break
		}
		s.Findings = append(s.Findings, fd)
		switch fd.Result {
		case Passes:
			return false
		case Admits, Denies:
			s.Allowed, s.By = fd.Result == Admits, &fd.Policy
			s.Why = fmt.Sprintf("%s (%s tier, priority %d), %s", fd.Policy, cnp.Tier, cnp.Priority, fd.Why)
			return true
		}
	}
	return false
}

// describe adds to an endpoint's name what selectors look at.
func describe(e Endpoint) string {
	if e.Pod == nil {
		return e.String()
	}
	if len(e.Pod.Labels) == 0 {
		return e.String() + " (no labels)"
	}
	return fmt.Sprintf("%s (%s)", e, labelText(e.Pod.Labels))
}

// labelText are the labels that a person would select by.
func labelText(labels map[string]string) string {
	if labels = LastingLabels(labels); len(labels) == 0 {
		return "no labels to select by"
	}
	return model.MatchLabels(labels).String()
}

func portsText(ports []model.PolicyPort) string {
	if len(ports) == 0 {
		return "any port"
	}
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = portText(p)
	}
	return strings.Join(out, ", ")
}

func peersText(peers []term) string {
	out := make([]string, len(peers))
	for i := range peers {
		out[i] = peers[i].String()
	}
	return strings.Join(out, " or ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
