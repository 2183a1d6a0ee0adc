// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Remedy is the smallest change to one policy that would let a flow pass at one side.
type Remedy struct {
	Policy PolicyRef
	Field  string // where: "spec.ingress[0].ports"
	Action string // a sentence
	YAML   string // what to add there; "" if nothing is to be added

	// Block is the peer that YAML adds, on a line of its own, if that is a range of addresses.
	Block netip.Prefix
}

// Remedy proposes the smallest change for a side that does not allow the flow; nil for one that does. A rule that
// lacks only the port, or only the peer, is widened before a new rule is proposed.
func (c *Cluster) Remedy(s *Side, f *Flow) *Remedy {
	if s.Allowed || s.Pod == nil {
		return nil
	}
	if n := len(s.Findings); n > 0 && s.Findings[n-1].Result == Denies {
		fd := s.Findings[n-1]
		return &Remedy{Policy: fd.Policy, Field: "spec." + fd.Rule,
			Action: fmt.Sprintf("before rule %s of %s, add a rule with action Accept for this traffic; NetworkPolicies can't override it", fd.Rule, fd.Policy)}
	}
	_, peer := ends(s.Direction, f)
	var last *model.NetworkPolicy
	for _, ref := range s.isolating() {
		np := c.policies[ref.Namespace][ref.Name.Name]
		if np == nil {
			continue
		}
		last = np
		for i, r := range rulesOfPolicy(np, s.Direction) {
			who, port := c.peersMatch(&r, peer) != "", portMatches(r.ports, f)
			switch {
			case who && !port:
				return &Remedy{Policy: ref, Field: fmt.Sprintf("spec.%s[%d].ports", s.Direction, i),
					Action: fmt.Sprintf("add the port to rule %s of %s", r.field, ref), YAML: "- " + portYAML(f)}
			case port && !who:
				return &Remedy{Policy: ref, Field: fmt.Sprintf("spec.%s[%d].%s", s.Direction, i, sideField(s.Direction)),
					Action: fmt.Sprintf("add the peer to rule %s of %s", r.field, ref), YAML: "- " + peerYAML(s.Pod, peer, "  "), Block: blockOf(peer)}
			}
		}
	}
	if last == nil {
		return nil
	}
	rule := fmt.Sprintf("- %s:\n  - %s", sideField(s.Direction), peerYAML(s.Pod, peer, "    "))
	if f.Protocol == model.TCP || f.Protocol == model.UDP || f.Protocol == model.SCTP {
		rule += "\n  ports:\n  - " + portYAML(f)
	}
	return &Remedy{Policy: refOf(last), Field: "spec." + s.Direction.String(),
		Action: fmt.Sprintf("add a rule to %s", refOf(last)), YAML: rule, Block: blockOf(peer)}
}

func sideField(d Direction) string {
	if d == Ingress {
		return "from"
	}
	return "to"
}

func portYAML(f *Flow) string {
	if f.Port == 0 {
		return fmt.Sprintf("{protocol: %s}", f.Protocol)
	}
	return fmt.Sprintf("{protocol: %s, port: %d}", f.Protocol, f.Port)
}

// peerYAML is a NetworkPolicyPeer that means this endpoint.
func peerYAML(self *model.Pod, peer Endpoint, indent string) string {
	switch {
	case peer.Pod != nil && !peer.Pod.HostNetwork:
		sel := fmt.Sprintf("podSelector: {matchLabels: {%s}}", labelsYAML(peer.Pod.Labels))
		if len(peer.Pod.Labels) == 0 {
			sel = "podSelector: {}"
		}
		if peer.Pod.Namespace != self.Namespace {
			return fmt.Sprintf("namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}\n%s%s", peer.Pod.Namespace, indent, sel)
		}
		return sel
	case peer.Block.IsValid() && len(peer.Names) > 0:
		return fmt.Sprintf("ipBlock: {cidr: <the address of %s>}", peer.Names[0])
	case blockOf(peer).IsValid():
		return fmt.Sprintf("ipBlock: {cidr: %s}", blockOf(peer))
	case peer.Pod != nil:
		return fmt.Sprintf("ipBlock: {cidr: <an address of node %s>}", peer.Pod.Node)
	}
	return "ipBlock: {cidr: 0.0.0.0/0}"
}

// blockOf is the range of addresses by which a NetworkPolicyPeer means this endpoint; none where another way does.
func blockOf(peer Endpoint) netip.Prefix {
	switch {
	case peer.Pod != nil && !peer.Pod.HostNetwork, peer.Block.IsValid() && len(peer.Names) > 0:
		return netip.Prefix{}
	case peer.Block.IsValid():
		return peer.Block
	case peer.Addr.IsValid():
		return netip.PrefixFrom(peer.Addr, peer.Addr.BitLen())
	}
	return netip.Prefix{}
}

// fleeting are labels that say which version, copy or place of a workload a pod is, not which workload.
var fleeting = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation", "controller-uid", "job-name",
	"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index",
	"batch.kubernetes.io/controller-uid", "topology.kubernetes.io/zone", "topology.kubernetes.io/region", "kubernetes.io/hostname",
}

// LastingLabels are those of a pod's labels that a person would select by: all pods of a workload have them.
func LastingLabels(labels map[string]string) map[string]string {
	out := make(map[string]string, len(labels))
	for k, v := range labels {
		if !slices.Contains(fleeting, k) {
			out[k] = v
		}
	}
	return out
}

func labelsYAML(labels map[string]string) string {
	labels = LastingLabels(labels)
	var out []string
	for _, k := range sortedKeys(labels) {
		out = append(out, fmt.Sprintf("%s: %q", k, labels[k]))
	}
	return strings.Join(out, ", ")
}
