// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"reflect"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

func (c *checker) clusterPolicies() {
	for i := range c.objects["ClusterNetworkPolicy"] {
		o := &c.objects["ClusterNetworkPolicy"][i]
		p := c.d.ClusterNetworkPolicies[o.name.Name]
		if p == nil || o.Object.GetObjectKind().GroupVersionKind().Group != policyGroup { // other groups have the kind too
			continue
		}
		subject := slices.ContainsFunc(sortedValues(c.d.Pods), func(pod *model.Pod) bool { return c.world.Policy.Subject(p, pod) })
		if !subject && (c.Whole || len(c.d.Pods) > 0) {
			c.report("cluster-policy-selects-nothing", o, "make spec.subject match namespaces, and pods, by their labels", "spec.subject matches no pod")
		}
		c.clusterRules(o, "spec.ingress", p.IngressFrom)
		c.clusterRules(o, "spec.egress", p.EgressTo)
	}
}

// clusterRules looks at rules, which are tried in order.
func (c *checker) clusterRules(o *object, field string, rules []model.ClusterPolicyRule) {
	for i := range rules {
		for j := range rules[:i] {
			if withinPeers(rules[i].Peers, rules[j].Peers) && withinPorts(rules[i].Ports, rules[j].Ports) {
				c.report("cluster-policy-shadowed", o, "put the narrower rule before the wider one, or remove it",
					"%s[%d] is never reached: %s[%d] (%s) decides about all that it matches", field, i, field, j, rules[j].Action)
				break
			}
		}
		named := slices.ContainsFunc(rules[i].Peers, func(p model.ClusterPolicyPeer) bool { return len(p.DomainNames) > 0 })
		denies := slices.ContainsFunc(rules[i+1:], func(r model.ClusterPolicyRule) bool {
			return r.Action == model.DenyTraffic && slices.ContainsFunc(r.Peers, func(p model.ClusterPolicyPeer) bool { return len(p.Networks) > 0 })
		})
		if named && rules[i].Action == model.AcceptTraffic && !denies {
			c.report("cluster-policy-names-open", o, `end the rules with {action: Deny, to: [{networks: ["0.0.0.0/0", "::/0"]}]}`,
				"%s[%d] accepts by domainNames, and no rule behind it denies other addresses", field, i)
		}
	}
}

// withinPeers tells whether each of some peers is among others.
func withinPeers(inner, outer []model.ClusterPolicyPeer) bool {
	for _, a := range inner {
		if !slices.ContainsFunc(outer, func(b model.ClusterPolicyPeer) bool { return reflect.DeepEqual(a, b) || everyPod(b) && a.Pods != nil }) {
			return false
		}
	}
	return len(inner) > 0
}

func everyPod(p model.ClusterPolicyPeer) bool {
	return p.Namespaces != nil && len(*p.Namespaces) == 0 && p.Pods != nil && len(*p.Pods) == 0
}

// withinPorts tells whether each of some ports is among others; none are all.
func withinPorts(inner, outer []model.PolicyPort) bool {
	if len(outer) == 0 {
		return true
	}
	for _, a := range inner {
		if !slices.Contains(outer, a) {
			return false
		}
	}
	return len(inner) > 0
}
