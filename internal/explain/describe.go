// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// PolicyDescription is what a policy means now.
type PolicyDescription struct {
	Policy    string            `json:"policy"`
	Tier      string            `json:"tier,omitempty"` // of a ClusterNetworkPolicy, with its priority
	Selects   string            `json:"selects"`
	Pods      []string          `json:"pods"`
	Ingress   bool              `json:"ingress"` // it isolates them for, or has rules of, this direction
	Egress    bool              `json:"egress"`
	IngressIs []RuleDescription `json:"ingressRules,omitempty"`
	EgressIs  []RuleDescription `json:"egressRules,omitempty"`
}

// RuleDescription is one rule in words.
type RuleDescription = policy.RuleText

// Describe tells what a NetworkPolicy, or a ClusterNetworkPolicy if there is none of the name, means; nil if there is
// neither.
func (w *World) Describe(namespace, name string) *PolicyDescription {
	for _, np := range w.Policy.NetworkPolicies(namespace) {
		if np.Name.Name != name {
			continue
		}
		d := &PolicyDescription{
			Policy: "NetworkPolicy " + np.Name.String(), Ingress: np.Ingress, Egress: np.Egress,
			Selects:   fmt.Sprintf("pods with %s in namespace %s", np.PodSelector, np.Namespace),
			IngressIs: w.Policy.RuleTexts(np, policy.Ingress), EgressIs: w.Policy.RuleTexts(np, policy.Egress),
		}
		for _, n := range sortedNames(w.all.Pods) {
			if p := w.all.Pods[n]; n.Namespace == np.Namespace && np.PodSelector.Matches(p.Labels) {
				d.Pods = append(d.Pods, n.String())
			}
		}
		return d
	}
	for _, p := range w.Policy.ClusterNetworkPolicies() {
		if p.Name.Name != name {
			continue
		}
		d := &PolicyDescription{
			Policy: "ClusterNetworkPolicy " + name, Tier: fmt.Sprintf("%s, priority %d", p.Tier, p.Priority),
			Selects: fmt.Sprintf("pods with %s in namespaces with %s", p.Pods, p.Namespaces),
			Ingress: len(p.IngressFrom) > 0, Egress: len(p.EgressTo) > 0,
			IngressIs: w.Policy.ClusterRuleTexts(p, policy.Ingress), EgressIs: w.Policy.ClusterRuleTexts(p, policy.Egress),
		}
		for _, n := range sortedNames(w.all.Pods) {
			if w.Policy.Subject(p, w.all.Pods[n]) {
				d.Pods = append(d.Pods, n.String())
			}
		}
		return d
	}
	return nil
}

// PrintPolicy writes a description for a person.
func PrintPolicy(out io.Writer, d *PolicyDescription) {
	fmt.Fprintln(out, d.Policy)
	if d.Tier != "" {
		fmt.Fprintf(out, "  tier:    %s\n", d.Tier)
	}
	fmt.Fprintf(out, "  selects: %s: %s\n", d.Selects, listed(d.Pods, "no pod"))
	for _, side := range []struct {
		name  string
		on    bool
		rules []RuleDescription
	}{{"ingress", d.Ingress, d.IngressIs}, {"egress", d.Egress, d.EgressIs}} {
		switch {
		case !side.on:
			fmt.Fprintf(out, "  %s: has no say\n", side.name)
		case len(side.rules) == 0:
			fmt.Fprintf(out, "  %s: isolates them, and admits nothing\n", side.name)
		case d.Tier == "":
			fmt.Fprintf(out, "  %s: isolates them, and admits\n", side.name)
		default:
			fmt.Fprintf(out, "  %s:\n", side.name)
		}
		for _, r := range side.rules {
			fmt.Fprintf(out, "    %s: %s\n", r.Field, r.Text)
			for _, p := range r.Peers {
				fmt.Fprintf(out, "      %s: %s\n", p.Text, listed(p.Pods, "matches no pod"))
			}
		}
	}
}

func listed(names []string, none string) string {
	switch n := len(names); {
	case n == 0:
		return none
	case n > 8:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:8], ", "), n-8)
	}
	return strings.Join(names, ", ")
}

// PodDescription is what concerns a pod.
type PodDescription struct {
	Pod       string   `json:"pod"`
	Node      string   `json:"node,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Ports     []string `json:"ports,omitempty"`
	Ingress   Guard    `json:"ingress"`
	Egress    Guard    `json:"egress"`
	Services  []string `json:"services,omitempty"`
}

// Guard is who has a say about one direction.
type Guard struct {
	Isolated bool     `json:"isolated"` // by a NetworkPolicy
	State    string   `json:"state"`    // "open": nobody has a say; "isolated"; "ruled": by ClusterNetworkPolicies only; "closed": whoever they are, they let nothing through
	Policies []string `json:"policies,omitempty"`
}

// state is what a guard comes to.
func (w *World) state(p *model.Pod, d policy.Direction, isolated bool) string {
	g := w.Policy.Guard(p, d)
	switch {
	case g.Open() || p.HostNetwork:
		return "open"
	case !w.lets(g, p, d):
		return "closed"
	case isolated:
		return "isolated"
	}
	return "ruled"
}

// lets tells whether a guard of a pod lets anything through, whoever is at the other end.
func (w *World) lets(g *policy.Guard, p *model.Pod, d policy.Direction) bool {
	with := *p
	with.Node = "" // its own node reaches it always
	self := &end{pod: &with}
	if d == policy.Egress {
		self.egress = g
	} else {
		self.ingress = g
	}
	cuts := g.Blocks()
	peers := append(w.ends(nil, cuts), outside(regions(cuts, w), w)...)
	return slices.ContainsFunc(peers, func(e *end) bool {
		if e.pod != nil {
			e.egress, e.ingress = nil, nil // what it lets through itself is another matter
			if e.pod.Name == p.Name && e.count == 1 {
				return false
			}
			other := *e.pod
			other.Name.Name += " "
			e.pod = &other
		}
		if d == policy.Egress {
			return !self.reach(e).empty()
		}
		return !e.reach(self).empty()
	})
}

// DescribePod tells which policies apply to a pod and which Services lead to it.
func (w *World) DescribePod(p *model.Pod) *PodDescription {
	d := &PodDescription{Pod: p.Name.String(), Node: p.Node}
	for _, a := range p.IPs {
		d.Addresses = append(d.Addresses, a.String())
	}
	for _, cp := range p.Ports {
		s := fmt.Sprintf("%d/%s", cp.Port, cp.Protocol)
		if cp.Name != "" {
			s += " (" + cp.Name + ")"
		}
		d.Ports = append(d.Ports, s)
	}
	for dir, to := range map[policy.Direction]*Guard{policy.Ingress: &d.Ingress, policy.Egress: &d.Egress} {
		src := w.Policy.Applying(p, dir)
		to.Isolated = len(src.Isolating) > 0
		to.State = w.state(p, dir, to.Isolated)
		for _, r := range slices.Concat(src.Cluster, src.Isolating) {
			to.Policies = append(to.Policies, r.String())
		}
	}
	for _, n := range sortedNames(w.all.Services) {
		s := w.all.Services[n]
		if slices.Contains(w.backends(s), p) {
			d.Services = append(d.Services, n.String())
		}
	}
	return d
}

// PrintPod writes a description for a person.
func PrintPod(out io.Writer, d *PodDescription) {
	fmt.Fprintf(out, "Pod %s\n  node:      %s\n  addresses: %s\n  ports:     %s\n", d.Pod, orUnknown(d.Node), listed(d.Addresses, "none yet"), listed(d.Ports, "none declared"))
	for _, g := range []struct {
		name string
		Guard
	}{{"ingress", d.Ingress}, {"egress", d.Egress}} {
		fmt.Fprintf(out, "  %-10s %s: %s\n", g.name+":", g.State, listed(g.Policies, "no policy applies"))
	}
	fmt.Fprintf(out, "  services:  %s\n", listed(d.Services, "none leads to it"))
}
