// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Cluster is a copy of everything that a policy's verdict depends on. The zero value is not usable; see NewCluster.
// It is not safe for concurrent use while Apply runs.
type Cluster struct {
	pods       map[model.Name]*model.Pod
	podsIn     map[string]map[string]*model.Pod // by namespace, then name
	claims     map[netip.Addr][]*model.Pod      // pods that list this address; who owns it is a question of order
	namespaces map[string]*model.Namespace
	nodes      map[string]*model.Node
	nodeAddrs  map[netip.Addr]string // a node's own addresses to its name

	policies map[string]map[string]*model.NetworkPolicy // by namespace, then name
	byName   map[string][]*model.NetworkPolicy          // those of each namespace, sorted
	cluster  map[string]*model.ClusterNetworkPolicy
	admin    []*model.ClusterNetworkPolicy // in the order they are tried
	baseline []*model.ClusterNetworkPolicy

	names resolutions
}

// NewCluster returns an empty Cluster.
func NewCluster() *Cluster {
	return &Cluster{
		pods:       map[model.Name]*model.Pod{},
		podsIn:     map[string]map[string]*model.Pod{},
		claims:     map[netip.Addr][]*model.Pod{},
		namespaces: map[string]*model.Namespace{},
		nodes:      map[string]*model.Node{},
		nodeAddrs:  map[netip.Addr]string{},
		policies:   map[string]map[string]*model.NetworkPolicy{},
		byName:     map[string][]*model.NetworkPolicy{},
		cluster:    map[string]*model.ClusterNetworkPolicy{},
		names:      newResolutions(),
	}
}

// Apply takes over what a Delta says.
func (c *Cluster) Apply(d *model.Delta) {
	for n, p := range d.Pods {
		c.setPod(n, p)
	}
	for n, ns := range d.Namespaces {
		put(c.namespaces, n, withOwnName(ns))
	}
	for n, node := range d.Nodes {
		c.setNode(n, node)
	}
	c.names.applyServices(d)
	c.applyPolicies(d.NetworkPolicies)
	if len(d.ClusterNetworkPolicies) > 0 {
		for n, p := range d.ClusterNetworkPolicies {
			put(c.cluster, n, p)
		}
		c.names.goBy(c.cluster)
		c.admin, c.baseline = nil, nil
		for _, p := range c.cluster {
			if p.Tier == model.AdminTier {
				c.admin = append(c.admin, p)
			} else {
				c.baseline = append(c.baseline, p)
			}
		}
		order := func(a, b *model.ClusterNetworkPolicy) int {
			return cmp.Or(cmp.Compare(a.Priority, b.Priority), strings.Compare(a.Name.Name, b.Name.Name))
		}
		slices.SortFunc(c.admin, order)
		slices.SortFunc(c.baseline, order)
	}
}

// setPod replaces (p is nil: removes) a pod and returns the addresses whose owner may have changed by that.
func (c *Cluster) setPod(n model.Name, p *model.Pod) []netip.Addr {
	var touched []netip.Addr
	old := c.pods[n]
	if old != nil {
		for _, a := range podAddrs(old) {
			left := slices.DeleteFunc(slices.Clone(c.claims[a]), func(q *model.Pod) bool { return q == old })
			if len(left) == 0 {
				delete(c.claims, a)
			} else {
				c.claims[a] = left
			}
			touched = append(touched, a)
		}
	}
	put(c.pods, n, p)
	put2(c.podsIn, n.Namespace, n.Name, p)
	if p != nil {
		for _, a := range podAddrs(p) {
			c.claims[a] = append(slices.Clip(c.claims[a]), p)
			if !slices.Contains(touched, a) {
				touched = append(touched, a)
			}
		}
	}
	return touched
}

func (c *Cluster) setNode(n string, node *model.Node) {
	if old := c.nodes[n]; old != nil {
		for _, a := range old.Addresses() {
			if c.nodeAddrs[a] == n {
				delete(c.nodeAddrs, a)
			}
		}
	}
	put(c.nodes, n, node)
	if node != nil {
		for _, a := range node.Addresses() {
			c.nodeAddrs[a] = n
		}
	}
}

// podAddrs are the addresses that are a pod's own: none once it finished, none on the host's network.
func podAddrs(p *model.Pod) []netip.Addr {
	if p.HostNetwork || p.Finished {
		return nil
	}
	return p.IPs
}

// owner tells whose an address is. Where several pods list it, because one is on its way out and its address was
// given on, the youngest has it.
func (c *Cluster) owner(a netip.Addr) *model.Pod {
	var best *model.Pod
	for _, p := range c.claims[a] {
		if best == nil || younger(p, best) {
			best = p
		}
	}
	return best
}

func younger(a, b *model.Pod) bool {
	if a.Created != b.Created {
		return a.Created > b.Created
	}
	if a.Deleting != b.Deleting {
		return b.Deleting
	}
	return a.Name.Compare(b.Name) > 0
}

// Pod finds a pod by name; nil if there is none.
func (c *Cluster) Pod(n model.Name) *model.Pod { return c.pods[n] }

// Pods lists all pods in no particular order.
func (c *Cluster) Pods() []*model.Pod { return values(c.pods) }

// Namespaces lists all namespaces' names, those included that only their pods or policies tell of, sorted.
func (c *Cluster) Namespaces() []string {
	seen := map[string]bool{}
	for n := range c.namespaces {
		seen[n] = true
	}
	for n := range c.podsIn {
		seen[n] = true
	}
	for n := range c.policies {
		seen[n] = true
	}
	return sortedKeys(seen)
}

// KnowsNamespace tells whether the API has told of a namespace, so that its labels are known.
func (c *Cluster) KnowsNamespace(name string) bool { return c.namespaces[name] != nil }

// Behind compares what the Cluster has with a namespace, its NetworkPolicies and all ClusterNetworkPolicies as somebody
// has read them, and names the kind and the object in which they differ; "" if they don't.
func (c *Cluster) Behind(namespace string, now *model.Delta) (kind, name string) {
	if ns := withOwnName(now.Namespaces[namespace]); ns != nil && (c.namespaces[namespace] == nil || !maps.Equal(ns.Labels, c.namespaces[namespace].Labels)) {
		return "Namespace", namespace
	}
	policies := map[string]*model.NetworkPolicy{}
	for n, p := range now.NetworkPolicies {
		policies[n.Name] = p
	}
	if n, ok := different(c.policies[namespace], policies); ok {
		return "NetworkPolicy", namespace + "/" + n
	}
	if n, ok := different(c.cluster, now.ClusterNetworkPolicies); ok {
		return "ClusterNetworkPolicy", n
	}
	return "", ""
}

// different names an object that two maps don't have alike.
func different[T any](a, b map[string]*T) (name string, ok bool) {
	for n, v := range b {
		if a[n] == nil || !reflect.DeepEqual(a[n], v) {
			return n, true
		}
	}
	for n := range a {
		if b[n] == nil {
			return n, true
		}
	}
	return "", false
}

// NetworkPolicies lists the policies of a namespace by name; of all namespaces if it is "".
func (c *Cluster) NetworkPolicies(namespace string) []*model.NetworkPolicy {
	var out []*model.NetworkPolicy
	for _, ns := range sortedKeys(c.policies) {
		if namespace == "" || ns == namespace {
			for _, n := range sortedKeys(c.policies[ns]) {
				out = append(out, c.policies[ns][n])
			}
		}
	}
	return out
}

// ClusterNetworkPolicies lists the cluster's policies in the order they are tried: the Admin tier, then Baseline.
func (c *Cluster) ClusterNetworkPolicies() []*model.ClusterNetworkPolicy {
	return slices.Concat(c.admin, c.baseline)
}

// Nodes lists the nodes by name.
func (c *Cluster) Nodes() []*model.Node {
	out := make([]*model.Node, 0, len(c.nodes))
	for _, n := range sortedKeys(c.nodes) {
		out = append(out, c.nodes[n])
	}
	return out
}

// EndpointOf tells what is behind an address.
func (c *Cluster) EndpointOf(a netip.Addr) Endpoint {
	a = a.Unmap()
	return Endpoint{Addr: a, Pod: c.owner(a), Node: c.nodeAddrs[a], Names: c.names.live[a]}
}

// ownName is the label that every namespace has (KEP-2161).
const ownName = "kubernetes.io/metadata.name"

// namespaceLabels are a namespace's labels; of one that nothing is known of, that which the API server always sets.
func (c *Cluster) namespaceLabels(name string) map[string]string {
	if ns := c.namespaces[name]; ns != nil {
		return ns.Labels
	}
	return map[string]string{ownName: name}
}

// withOwnName fills that label in, which manifests need not have.
func withOwnName(ns *model.Namespace) *model.Namespace {
	if ns == nil || ns.Labels[ownName] != "" {
		return ns
	}
	with := *ns
	with.Labels = maps.Clone(ns.Labels)
	if with.Labels == nil {
		with.Labels = map[string]string{}
	}
	with.Labels[ownName] = ns.Name.Name
	return &with
}

// applyPolicies takes over NetworkPolicies. Those of a namespace are sorted anew only when there are others than before.
func (c *Cluster) applyPolicies(d map[model.Name]*model.NetworkPolicy) {
	others := map[string]bool{}
	for n, p := range d {
		old := c.policies[n.Namespace][n.Name]
		put2(c.policies, n.Namespace, n.Name, p)
		if at, ok := c.policyAt(n); ok && old != nil && p != nil {
			c.byName[n.Namespace][at] = p
		} else if old != nil || p != nil {
			others[n.Namespace] = true
		}
	}
	for ns := range others {
		list := slices.SortedFunc(maps.Values(c.policies[ns]), func(a, b *model.NetworkPolicy) int { return strings.Compare(a.Name.Name, b.Name.Name) })
		if c.byName[ns] = list; len(list) == 0 {
			delete(c.byName, ns)
		}
	}
}

// policyAt is where a policy is in its namespace's list.
func (c *Cluster) policyAt(n model.Name) (int, bool) {
	return slices.BinarySearchFunc(c.byName[n.Namespace], n.Name, func(p *model.NetworkPolicy, name string) int { return strings.Compare(p.Name.Name, name) })
}

// selecting lists the NetworkPolicies that isolate a pod for a direction, by name.
func (c *Cluster) selecting(p *model.Pod, d Direction) []*model.NetworkPolicy {
	var out []*model.NetworkPolicy
	for _, np := range c.byName[p.Namespace] {
		if isolatesFor(np, d) && np.PodSelector.Matches(p.Labels) {
			out = append(out, np)
		}
	}
	return out
}

// subjectOf lists, in order, those of a tier's policies that have a pod as subject and rules for a direction.
func (c *Cluster) subjectOf(tier []*model.ClusterNetworkPolicy, p *model.Pod, d Direction) []*model.ClusterNetworkPolicy {
	var out []*model.ClusterNetworkPolicy
	for _, cnp := range tier {
		if len(clusterRulesOf(cnp, d)) > 0 && c.isSubject(cnp, p) {
			out = append(out, cnp)
		}
	}
	return out
}

func (c *Cluster) isSubject(cnp *model.ClusterNetworkPolicy, p *model.Pod) bool {
	return !p.HostNetwork && cnp.Pods.Matches(p.Labels) && cnp.Namespaces.Matches(c.namespaceLabels(p.Namespace))
}

func isolatesFor(np *model.NetworkPolicy, d Direction) bool {
	if d == Ingress {
		return np.Ingress
	}
	return np.Egress
}

func rulesOf(np *model.NetworkPolicy, d Direction) []model.PolicyRule {
	if d == Ingress {
		return np.IngressFrom
	}
	return np.EgressTo
}

func clusterRulesOf(p *model.ClusterNetworkPolicy, d Direction) []model.ClusterPolicyRule {
	if d == Ingress {
		return p.IngressFrom
	}
	return p.EgressTo
}

// put writes v, or deletes the key if v is nil.
func put[K comparable, T any](m map[K]*T, k K, v *T) {
	if v == nil {
		delete(m, k)
	} else {
		m[k] = v
	}
}

// put2 is put in a map of maps that holds no empty map.
func put2[T any](m map[string]map[string]*T, outer, inner string, v *T) {
	in := m[outer]
	if v == nil {
		delete(in, inner)
		if len(in) == 0 {
			delete(m, outer)
		}
		return
	}
	if in == nil {
		in = map[string]*T{}
		m[outer] = in
	}
	in[inner] = v
}

func values[K comparable, T any](m map[K]T) []T {
	out := make([]T, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func sortedKeys[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
