// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Direction is the side of a pod that a policy guards.
type Direction uint8

// The two directions.
const (
	Ingress Direction = iota
	Egress
)

// String is "ingress" or "egress".
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// rule is what the rules of both kinds of policy come down to.
type rule struct {
	field  string // where it is written: "ingress[0]", and its name if it has one
	action model.PolicyAction
	peers  []term             // any of them; none: everyone
	ports  []model.PolicyPort // any of them; none: every protocol and port
	same   string             // peersKey's answer, once it was asked
}

// peersKey is equal for rules with the same peers. It puts them in order.
func (r *rule) peersKey() string {
	if r.same == "" && len(r.peers) > 0 {
		var keys []string
		r.peers, keys = distinct(r.peers)
		r.same = strings.Join(keys, "\n")
	}
	return r.same
}

// term is one peer in normal form. Its key is equal for equal terms.
type term struct {
	kind      termKind
	namespace string         // ofPods: only this namespace, else those that nsSel matches
	nsSel     model.Selector // ofPods
	sel       model.Selector // ofPods, ofNodes
	block     netip.Prefix   // ofBlock
	ranges    []Range        // ofBlock: block without its exceptions
	except    []netip.Prefix // ofBlock
	domains   []string       // ofDomains
	id        string         // key's answer, once it was asked
}

type termKind uint8

const (
	ofPods termKind = iota
	ofNodes
	ofBlock
	ofDomains
)

// key is a term's identity.
func (t *term) key() string {
	if t.id == "" {
		t.id = t.identity()
	}
	return t.id
}

func (t *term) identity() string {
	switch t.kind {
	case ofPods:
		if t.namespace != "" {
			return "pods " + t.namespace + "/" + selectorKey(t.sel)
		}
		return "pods {" + selectorKey(t.nsSel) + "}/" + selectorKey(t.sel)
	case ofNodes:
		return "nodes " + selectorKey(t.sel)
	case ofBlock:
		return fmt.Sprint("block ", t.ranges)
	}
	return "domains " + strings.Join(t.domains, ",")
}

// selectorKey is the same for selectors that differ only in the order of their requirements.
func selectorKey(s model.Selector) string {
	if len(s) < 2 {
		return s.String()
	}
	terms := make([]string, len(s))
	for i := range s {
		terms[i] = s[i : i+1].String()
	}
	slices.Sort(terms)
	return strings.Join(slices.Compact(terms), ",")
}

// String says for a person whom the term means.
func (t *term) String() string {
	switch t.kind {
	case ofPods:
		pods := "pods with " + t.sel.String()
		if len(t.sel) == 0 {
			pods = "every pod"
		}
		switch {
		case t.namespace != "":
			return pods + " in namespace " + t.namespace
		case len(t.nsSel) == 0:
			return pods + " in any namespace"
		}
		return pods + " in namespaces with " + t.nsSel.String()
	case ofNodes:
		if len(t.sel) == 0 {
			return "every node"
		}
		return "nodes with " + t.sel.String()
	case ofBlock:
		if len(t.except) == 0 {
			return t.block.String()
		}
		return fmt.Sprintf("%s except %s", t.block, joinAny(t.except))
	}
	return "the addresses of " + strings.Join(t.domains, ", ")
}

// matchesPod tells whether an ofPods term means a pod. Pods on the host's network are never meant: on the wire they
// are their node.
func (c *Cluster) matchesPod(t *term, p *model.Pod) bool {
	if p.HostNetwork || !t.sel.Matches(p.Labels) {
		return false
	}
	if t.namespace != "" {
		return t.namespace == p.Namespace
	}
	return len(t.nsSel) == 0 || t.nsSel.Matches(c.namespaceLabels(p.Namespace))
}

// matches tells whether a term means an endpoint.
func (c *Cluster) matches(t *term, e Endpoint) bool {
	switch t.kind {
	case ofPods:
		return e.Pod != nil && c.matchesPod(t, e.Pod)
	case ofNodes:
		n := c.nodes[e.Node]
		return e.Pod == nil && n != nil && t.sel.Matches(n.Labels)
	case ofBlock:
		return slices.ContainsFunc(t.ranges, func(r Range) bool { return r.Contains(e.Addr) })
	case ofDomains:
		return namesMatch(t.domains, e.Names)
	}
	return false
}

// rulesOfPolicy are a NetworkPolicy's rules of one direction.
func rulesOfPolicy(np *model.NetworkPolicy, d Direction) []rule {
	in := rulesOf(np, d)
	out := make([]rule, 0, len(in))
	for i, r := range in {
		n := rule{field: fmt.Sprintf("%s[%d]", d, i), action: model.AcceptTraffic, ports: r.Ports}
		for j := range r.Peers {
			n.peers = append(n.peers, termOf(np.Namespace, &r.Peers[j]))
		}
		out = append(out, n)
	}
	return out
}

func termOf(namespace string, p *model.PolicyPeer) term {
	if p.Block.IsValid() {
		return term{kind: ofBlock, block: p.Block, except: p.Except, ranges: blockRanges(p.Block, p.Except)}
	}
	t := term{kind: ofPods}
	if p.PodSelector != nil {
		t.sel = *p.PodSelector
	}
	if p.NamespaceSelector != nil {
		t.nsSel = *p.NamespaceSelector
	} else {
		t.namespace = namespace
	}
	return t
}

// rulesOfCluster are a ClusterNetworkPolicy's rules of one direction. A rule with a peer of a kind that this program
// does not know fails closed, as the API asks: an Accept matches nothing, a Deny or Pass denies everything.
func rulesOfCluster(cnp *model.ClusterNetworkPolicy, d Direction) []rule {
	in := clusterRulesOf(cnp, d)
	out := make([]rule, 0, len(in))
	for i, r := range in {
		n := rule{field: fmt.Sprintf("%s[%d]", d, i), action: r.Action, ports: r.Ports}
		if r.Name != "" {
			n.field += fmt.Sprintf(" %q", r.Name)
		}
		unknown := len(r.Peers) == 0
		for j := range r.Peers {
			terms := clusterTerms(&r.Peers[j])
			// By name there are Accept rules only.
			unknown = unknown || len(terms) == 0 || terms[0].kind == ofDomains && r.Action != model.AcceptTraffic
			n.peers = append(n.peers, terms...)
		}
		switch {
		case unknown && r.Action == model.AcceptTraffic:
			continue
		case unknown:
			n.action, n.peers, n.ports = model.DenyTraffic, nil, nil
		}
		out = append(out, n)
	}
	return out
}

func clusterTerms(p *model.ClusterPolicyPeer) []term {
	switch {
	case p.Namespaces != nil && p.Pods != nil:
		return []term{{kind: ofPods, nsSel: *p.Namespaces, sel: *p.Pods}}
	case p.Namespaces != nil:
		return []term{{kind: ofPods, nsSel: *p.Namespaces}}
	case p.Nodes != nil:
		return []term{{kind: ofNodes, sel: *p.Nodes}}
	case len(p.DomainNames) > 0:
		return []term{{kind: ofDomains, domains: p.DomainNames}}
	}
	var out []term
	for _, n := range p.Networks {
		out = append(out, term{kind: ofBlock, block: n, ranges: []Range{rangeOf(n)}})
	}
	return out
}

// portMatches tells whether a flow's protocol and port are among those of a rule. A name is looked up among the
// destination pod's container ports.
func portMatches(ports []model.PolicyPort, f *Flow) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(p model.PolicyPort) bool {
		if p.Name == "" {
			r := portRange(p)
			return r.Protocol == f.Protocol && r.From <= f.Port && f.Port <= r.To
		}
		return f.Dst.Pod != nil && !f.Dst.Pod.HostNetwork && slices.ContainsFunc(f.Dst.Pod.Ports, func(cp model.ContainerPort) bool {
			return names(p, cp) && cp.Protocol == f.Protocol && cp.Port == f.Port
		})
	})
}

// names tells whether a PolicyPort's name means this container port. Protocol 0 stands for any.
func names(p model.PolicyPort, cp model.ContainerPort) bool {
	return cp.Name == p.Name && cp.Name != "" && (p.Protocol == 0 || p.Protocol == cp.Protocol)
}

func portText(p model.PolicyPort) string {
	switch {
	case p.Name != "" && p.Protocol == 0:
		return fmt.Sprintf("port %q", p.Name)
	case p.Name != "":
		return fmt.Sprintf("%s port %q", p.Protocol, p.Name)
	case p.Port == 0:
		return "any " + p.Protocol.String()
	case p.EndPort > p.Port:
		return fmt.Sprintf("%s %d-%d", p.Protocol, p.Port, p.EndPort)
	}
	return fmt.Sprintf("%s %d", p.Protocol, p.Port)
}

func joinAny[T fmt.Stringer](in []T) string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return strings.Join(out, ", ")
}
