// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
	"github.com/weft-net/weft/internal/policy"
)

func (c *checker) policies() {
	for i := range c.objects["NetworkPolicy"] {
		o := &c.objects["NetworkPolicy"][i]
		np := c.d.NetworkPolicies[o.name]
		raw, ok := o.Object.(*networkingv1.NetworkPolicy)
		if np == nil || !ok {
			continue
		}
		pods := c.selected(np.Namespace, np.PodSelector, true)
		switch {
		case len(pods) == 0 && (c.Whole || len(c.d.Pods) > 0):
			c.report("policy-selects-nothing", o, "make spec.podSelector match the pods' labels", "spec.podSelector %s matches no pod in namespace %s%s",
				np.PodSelector, np.Namespace, c.wherePods(np.Namespace, np.PodSelector))
		case slices.ContainsFunc(pods, func(p *model.Pod) bool { return p.HostNetwork }):
			c.report("policy-host-network", o, "guard those pods at the node, or take them off the host's network",
				"it selects pods on the host's network, such as %s", pods[slices.IndexFunc(pods, func(p *model.Pod) bool { return p.HostNetwork })].Name)
		}
		if !np.Ingress && len(raw.Spec.Ingress) > 0 {
			c.report("policy-rules-ignored", o, "add Ingress to spec.policyTypes", "spec.ingress has rules, but spec.policyTypes has no Ingress")
		}
		if !np.Egress && len(raw.Spec.Egress) > 0 {
			c.report("policy-rules-ignored", o, "add Egress to spec.policyTypes", "spec.egress has rules, but spec.policyTypes has no Egress")
		}
		for j := range np.IngressFrom {
			c.policyRule(o, np, policy.Ingress, j, &np.IngressFrom[j], pods)
		}
		for j := range np.EgressTo {
			c.policyRule(o, np, policy.Egress, j, &np.EgressTo[j], pods)
		}
		c.dns(o, np, pods)
		c.exposed(o, np, pods)
	}
}

// wherePods says in which other namespace a selector would match.
func (c *checker) wherePods(namespace string, sel model.Selector) string {
	if len(sel) == 0 {
		return ""
	}
	for _, ns := range c.world.Policy.Namespaces() {
		if ns != namespace && len(c.selected(ns, sel, true)) > 0 {
			return fmt.Sprintf(" (it would in namespace %s)", ns)
		}
	}
	return ""
}

func (c *checker) policyRule(o *object, np *model.NetworkPolicy, d policy.Direction, i int, r *model.PolicyRule, pods []*model.Pod) {
	side := "from"
	if d == policy.Egress {
		side = "to"
	}
	at := func(j int) string { return fmt.Sprintf("spec.%s[%d].%s[%d]", d, i, side, j) }
	everybody := len(r.Peers) == 0 || slices.ContainsFunc(r.Peers, func(p model.PolicyPeer) bool { return p.Block.IsValid() && p.Block.Bits() == 0 && len(p.Except) == 0 })
	if d == policy.Ingress && everybody && len(r.Ports) == 0 {
		c.report("policy-admits-everybody", o, "name peers or ports; if the pods are meant to be open, say so with an ignore comment", "spec.ingress[%d] has no peer that it is only for, and no port", i)
	}
	for j := range r.Peers {
		c.peer(o, np, d, at(j), &r.Peers[j])
		if j > 0 && andOr(&r.Peers[j-1], &r.Peers[j]) {
			c.report("policy-and-or", o, "put podSelector under the same list item as namespaceSelector (drop its \"-\"), if both must hold; if not, say so with an ignore comment",
				"%s selects namespaces and %s pods of namespace %s: either is let %s", at(j-1), at(j), np.Namespace, map[policy.Direction]string{policy.Ingress: "in", policy.Egress: "be reached"}[d])
		}
	}
	for j, p := range r.Ports {
		if p.Name == "" {
			continue
		}
		candidates := pods
		if d == policy.Egress {
			candidates = sortedValues(c.d.Pods)
		}
		if len(candidates) > 0 && !slices.ContainsFunc(candidates, func(pod *model.Pod) bool {
			return slices.ContainsFunc(pod.Ports, func(cp model.ContainerPort) bool { return cp.Name == p.Name && cp.Protocol == p.Protocol })
		}) {
			c.report("policy-port-name", o, "name a container port so, or give the number", "spec.%s[%d].ports[%d]: no pod that it is about has a %s port named %q", d, i, j, p.Protocol, p.Name)
		}
	}
}

// andOr tells whether two peers look like one that was torn apart.
func andOr(a, b *model.PolicyPeer) bool {
	return a.NamespaceSelector != nil && a.PodSelector == nil && len(*a.NamespaceSelector) > 0 &&
		b.PodSelector != nil && b.NamespaceSelector == nil && len(*b.PodSelector) > 0
}

func (c *checker) peer(o *object, np *model.NetworkPolicy, d policy.Direction, field string, p *model.PolicyPeer) {
	if p.Block.IsValid() {
		c.block(o, d, field, p)
		return
	}
	if d == policy.Ingress && p.NamespaceSelector != nil && len(*p.NamespaceSelector) == 0 && (p.PodSelector == nil || len(*p.PodSelector) == 0) {
		c.report("policy-any-namespace", o, "select namespaces by label, for example kubernetes.io/metadata.name", "%s means every pod of every namespace", field)
		return
	}
	matched, spaces := false, 0
	for _, ns := range c.world.Policy.Namespaces() {
		if p.NamespaceSelector == nil && ns != np.Namespace || p.NamespaceSelector != nil && !p.NamespaceSelector.Matches(c.labelsOf(ns)) {
			continue
		}
		spaces++
		var sel model.Selector
		if p.PodSelector != nil {
			sel = *p.PodSelector
		}
		matched = matched || len(c.selected(ns, sel, true)) > 0
	}
	if matched || !c.Whole && len(c.d.Pods) == 0 {
		return
	}
	switch {
	case p.NamespaceSelector != nil && spaces == 0:
		cure := "label the namespace so, or select by kubernetes.io/metadata.name, which every namespace has"
		c.report("policy-peer-matches-nothing", o, cure, "%s: no namespace has %s", field, *p.NamespaceSelector)
	case p.PodSelector != nil:
		hint := ""
		if p.NamespaceSelector == nil {
			hint = c.wherePods(np.Namespace, *p.PodSelector)
		}
		c.report("policy-peer-matches-nothing", o, "make the selector match the pods' labels; for pods of another namespace add a namespaceSelector to the same peer",
			"%s: no pod with %s there%s", field, *p.PodSelector, hint)
	}
}

func (c *checker) labelsOf(ns string) map[string]string {
	const self = "kubernetes.io/metadata.name"
	out := map[string]string{self: ns}
	if n := c.d.Namespaces[ns]; n != nil {
		for k, v := range n.Labels {
			out[k] = v
		}
	}
	return out
}

func (c *checker) block(o *object, d policy.Direction, field string, p *model.PolicyPeer) {
	if d == policy.Egress && p.Block.Bits() == 0 && len(p.Except) == 0 {
		c.report("policy-block-of-everything", o, "except the pods' and Services' ranges, if only what is outside the cluster is meant", "%s: %s", field, p.Block)
	}
	inside := func(a netip.Addr) bool {
		return p.Block.Contains(a) && !slices.ContainsFunc(p.Except, func(e netip.Prefix) bool { return e.Contains(a) })
	}
	narrow := p.Block.Bits() >= p.Block.Addr().BitLen()-16
	for _, s := range sortedValues(c.d.Services) {
		for _, a := range s.ClusterIPs {
			if d == policy.Egress && inside(a) && narrow && !c.Cluster.Assumed[a] {
				c.report("policy-service-ip", o, "select the Service's pods instead, at their targetPort", "%s: %s holds the address of Service %s (%s)", field, p.Block, s.Name, a)
				return
			}
		}
	}
	for _, pod := range sortedValues(c.d.Pods) {
		for _, a := range pod.IPs {
			if inside(a) && narrow && !pod.HostNetwork && !c.Cluster.Assumed[a] {
				c.report("policy-block-of-pods", o, "select pods by label", "%s: %s holds the address of pod %s (%s)", field, p.Block, pod.Name, a)
				return
			}
		}
	}
}

// dns looks for pods that are let out to somewhere, but not to the resolver.
func (c *checker) dns(o *object, np *model.NetworkPolicy, pods []*model.Pod) {
	if !np.Egress || len(np.EgressTo) == 0 || len(pods) == 0 {
		return
	}
	for _, p := range pods {
		if why := c.unresolving(p); why != "" {
			c.report("policy-dns-blocked", o,
				"add to spec.egress: {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}",
				"pod %s may talk to others but not to the cluster's DNS (UDP 53): %s", p.Name, why)
			return
		}
	}
}

// unresolving says why a pod can't ask the cluster's DNS; "" if it can.
func (c *checker) unresolving(p *model.Pod) string {
	src := policy.Endpoint{Pod: p, Addr: first(p.IPs)}
	if s := c.world.ClusterDNS(); s != nil {
		backends := c.selected(s.Namespace, model.MatchLabels(s.Selector), len(s.Selector) > 0)
		for _, sp := range s.Ports {
			for _, b := range backends {
				if sp.Protocol != model.UDP || sp.Port != 53 {
					continue
				}
				f := &policy.Flow{Src: src, Dst: policy.Endpoint{Pod: b, Addr: first(b.IPs)}, Protocol: model.UDP, Port: offline.TargetPort(&sp, b)}
				if v := c.world.Policy.Evaluate(f); !v.Egress.Allowed {
					return v.Egress.Why
				}
			}
		}
		if len(backends) > 0 {
			return ""
		}
	}
	// Its pods are not known: they have the labels that the cluster's DNS has, wherever it is, and any address.
	resolver := policy.Endpoint{Pod: &model.Pod{
		Meta: model.Meta{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, Labels: map[string]string{
			"k8s-app": "kube-dns", "app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "dns",
		}},
	}}
	f := &policy.Flow{Src: src, Dst: resolver, Protocol: model.UDP, Port: 53}
	v := c.world.Policy.Evaluate(f)
	if v.Egress.Allowed {
		return ""
	}
	for _, b := range c.world.Policy.Guard(p, policy.Egress).Blocks() {
		service := b.IsSingleIP() && slices.ContainsFunc(sortedValues(c.d.Services), func(s *model.Service) bool { return slices.Contains(s.ClusterIPs, b.Addr()) })
		if f.Dst.Addr = b.Addr(); !service && c.world.Policy.Allows(f) {
			return ""
		}
	}
	return v.Egress.Why
}

// exposed looks for pods that a Service offers to the outside while their policies admit pods only.
func (c *checker) exposed(o *object, np *model.NetworkPolicy, pods []*model.Pod) {
	if !np.Ingress || len(np.IngressFrom) == 0 || len(pods) == 0 {
		return
	}
	for _, s := range sortedValues(c.d.Services) {
		if s.Namespace != np.Namespace || s.Type != model.LoadBalancer && s.Type != model.NodePort || len(s.Selector) == 0 ||
			!model.MatchLabels(s.Selector).Matches(pods[0].Labels) || len(s.Ports) == 0 {
			continue
		}
		if !c.admitsOutside(pods[0], s.Ports[0].Protocol, offline.TargetPort(&s.Ports[0], pods[0])) {
			c.report("policy-local-only", o, "admit the clients with an ipBlock (and, without externalTrafficPolicy: Local, the nodes' addresses, which masquerade)",
				"Service %s (%s) offers pod %s to the outside, and no policy admits clients from there", s.Name, s.Type, pods[0].Name)
			return
		}
	}
}

// namespaces looks for pods that whoever is in the cluster reaches, by namespace.
func (c *checker) namespaces() {
	open := map[string][]string{}
	for _, p := range sortedValues(c.d.Pods) {
		if !strings.HasPrefix(p.Namespace, "kube-") && !p.HostNetwork && !p.Finished && c.openToAll(p) {
			open[p.Namespace] = append(open[p.Namespace], p.Name.Name)
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(open)) {
		if o := c.placeOf(ns); o != nil {
			c.report("policy-no-default-deny", o, "add a NetworkPolicy with podSelector: {} and policyTypes: [Ingress], then allow what is needed",
				"no policy isolates %s for ingress", some(open[ns]))
		}
	}
}

// admitsOutside tells whether a pod's policies let somebody in who is outside the cluster.
func (c *checker) admitsOutside(p *model.Pod, proto model.Protocol, port uint16) bool {
	f := &policy.Flow{Dst: policy.Endpoint{Pod: p, Addr: first(p.IPs)}, Protocol: proto, Port: port}
	if f.Src = (policy.Endpoint{}); c.world.Policy.Allows(f) { // whom no block names
		return true
	}
	for _, b := range c.world.Policy.Guard(p, policy.Ingress).Blocks() {
		f.Src = policy.Endpoint{Addr: b.Addr(), Block: b}
		if e := c.world.Policy.EndpointOf(b.Addr()); e.Pod == nil && e.Node == "" && c.world.Policy.Allows(f) {
			return true
		}
	}
	return false
}

// openToAll tells whether any pod of the cluster reaches one, because no policy says otherwise: neither a NetworkPolicy
// nor a ClusterNetworkPolicy that denies strangers.
func (c *checker) openToAll(p *model.Pod) bool {
	if len(c.world.Policy.Applying(p, policy.Ingress).Isolating) > 0 {
		return false
	}
	stranger := &model.Pod{Meta: model.Meta{Name: model.Name{Namespace: "weft-lint-stranger", Name: "stranger"}}}
	return c.world.Policy.Allows(&policy.Flow{
		Src: policy.Endpoint{Pod: stranger}, Dst: policy.Endpoint{Pod: p, Addr: first(p.IPs)}, Protocol: model.TCP, Port: strangerPort,
	})
}

// strangerPort is one that nobody names.
const strangerPort = 64999

// placeOf is the object that something about a namespace is reported of: itself, or else what makes pods in it.
func (c *checker) placeOf(ns string) *object {
	if o := c.find("Namespace", model.Name{Name: ns}); o != nil {
		return o
	}
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"} {
		for i := range c.objects[kind] {
			if o := &c.objects[kind][i]; o.name.Namespace == ns {
				return o
			}
		}
	}
	return nil
}

func some(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more pods", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

// foreign are kinds of policy that other programs enforce, by API group.
var foreign = map[string]string{
	"cilium.io": "Cilium", "crd.projectcalico.org": "Calico", "projectcalico.org": "Calico", "crd.antrea.io": "Antrea",
	"security.istio.io": "Istio", "policy.linkerd.io": "Linkerd",
}

// policyGroup is the group of ClusterNetworkPolicy, and of those that it replaced.
const policyGroup = "policy.networking.k8s.io"

// ForeignPolicy tells whether a kind is one of policies that weft does not enforce, and by whom they are: "" if by
// nobody any more.
func ForeignPolicy(group, kind string) (who string, ok bool) {
	if group == policyGroup && strings.HasSuffix(kind, "AdminNetworkPolicy") {
		return "", true
	}
	who = foreign[group]
	return who, who != "" && strings.Contains(kind, "Policy")
}

func (c *checker) foreignPolicies() {
	for kind, list := range c.objects {
		for i := range list {
			o := &list[i]
			gvk := o.Object.GetObjectKind().GroupVersionKind()
			switch who, ok := ForeignPolicy(gvk.Group, kind); {
			case ok && who == "":
				c.report("policy-foreign", o, "use ClusterNetworkPolicy (v1alpha2), which replaced it", "%s (%s) is no longer part of the API", kind, gvk.Version)
			case ok:
				c.report("policy-foreign", o, "say it with NetworkPolicy or ClusterNetworkPolicy, or run "+who+" beside weft", "%s is enforced by %s only", kind, who)
			}
		}
	}
}

func first(addrs []netip.Addr) netip.Addr {
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	return addrs[0]
}

// sortedValues are a map's values in the order of their names, so that the same finding is made each time.
func sortedValues[T any](m map[model.Name]T) []T {
	names := slices.SortedFunc(maps.Keys(m), model.Name.Compare)
	out := make([]T, len(names))
	for i, n := range names {
		out[i] = m[n]
	}
	return out
}
