// SPDX-License-Identifier: Apache-2.0

// Package offline makes of manifest files what a cluster would make of them, as far as the network goes: workloads
// become pods, Services get cluster IPs and endpoints. So questions about policies and Services can be answered in a
// code review, without a cluster. It imports kube, policy, model and the Kubernetes API types.
package offline

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// Options are what manifests don't say.
type Options struct {
	Namespace    string         // of objects that name none; "default"
	PodCIDRs     []netip.Prefix // pods without an address get one of each; 10.244.0.0/16 and, where policies name IPv6 ranges, fd00:10:244::/56
	ServiceCIDRs []netip.Prefix // Services without a cluster IP get one of each; 10.96.0.0/16
}

// Node is the name of the node that all pods of manifests are assumed to be on, unless they name one.
const Node = "node"

// nodeAddr is that node's address (RFC 5737: an address of no real host).
var nodeAddr = netip.MustParseAddr("192.0.2.10")

// Cluster is what became of manifests.
type Cluster struct {
	Delta     *model.Delta
	Manifests []kube.Manifest
	Workloads Workloads

	// Assumed are the addresses that were made up.
	Assumed map[netip.Addr]bool

	// PodCIDRs are the ranges that they are from.
	PodCIDRs []netip.Prefix
}

// Workloads tells which pods belong to a workload, by its kind in lower case and its name.
type Workloads map[Workload][]model.Name

// Workload is one object that makes pods.
type Workload struct {
	Kind string // "deployment", "statefulset", "daemonset", "replicaset", "job", "cronjob"
	model.Name
}

// Load reads files and folders; "-" is standard input. The error joins what could not be used, each with file and
// line; if the Cluster is not nil it holds the rest.
func Load(o Options, paths ...string) (*Cluster, error) {
	ms, err := kube.ReadManifests(paths...)
	if err != nil {
		return nil, err
	}
	return FromManifests(o, ms)
}

// FromManifests is Load for manifests that are read already.
func FromManifests(o Options, ms []kube.Manifest) (*Cluster, error) {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	ms = kube.Placed(ms, o.Namespace)
	d, err := kube.FromManifests(ms, o.Namespace)
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
		if namesIPv6(d) {
			o.PodCIDRs = append(o.PodCIDRs, netip.MustParsePrefix("fd00:10:244::/56"))
		}
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	}
	c := &Cluster{Delta: d, Manifests: ms, Workloads: Workloads{}, Assumed: map[netip.Addr]bool{}, PodCIDRs: o.PodCIDRs}
	d.Pods, d.Services, d.EndpointSlices = orNew(d.Pods), orNew(d.Services), orNew(d.EndpointSlices)
	d.Nodes, d.Namespaces = orNew(d.Nodes), orNew(d.Namespaces)
	errs := []error{err}
	for _, m := range ms {
		errs = append(errs, c.expand(m))
	}
	c.namespaces()
	c.address(o)
	c.serve()
	return c, errors.Join(errs...)
}

// namesIPv6 tells whether a policy has a range of IPv6 addresses.
func namesIPv6(d *model.Delta) bool {
	six := func(p netip.Prefix) bool { return p.IsValid() && p.Addr().Is6() && !p.Addr().Is4In6() }
	for _, np := range d.NetworkPolicies {
		for _, r := range slices.Concat(np.IngressFrom, np.EgressTo) {
			if slices.ContainsFunc(r.Peers, func(p model.PolicyPeer) bool { return six(p.Block) }) {
				return true
			}
		}
	}
	for _, p := range d.ClusterNetworkPolicies {
		for _, r := range slices.Concat(p.IngressFrom, p.EgressTo) {
			if slices.ContainsFunc(r.Peers, func(p model.ClusterPolicyPeer) bool { return slices.ContainsFunc(p.Networks, six) }) {
				return true
			}
		}
	}
	return false
}

func orNew[K comparable, T any](m map[K]*T) map[K]*T {
	if m == nil {
		return map[K]*T{}
	}
	return m
}

// expand adds one pod for a workload, whatever its number of replicas: they are alike.
func (c *Cluster) expand(m kube.Manifest) error {
	kind, template := templateOf(m.Object)
	if template == nil {
		return nil
	}
	pod, err := podOf(m, template)
	if pod == nil {
		return err
	}
	w := Workload{kind, pod.Name}
	if kind == "statefulset" {
		pod.Name.Name += "-0"
		pod.Labels = maps.Clone(pod.Labels)
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		pod.Labels["apps.kubernetes.io/pod-index"], pod.Labels["statefulset.kubernetes.io/pod-name"] = "0", pod.Name.Name
	}
	if _, taken := c.Delta.Pods[pod.Name]; taken {
		pod.Name.Name += "-" + kind
	}
	c.Delta.Pods[pod.Name] = pod
	c.Workloads[w] = append(slices.Clip(c.Workloads[w]), pod.Name)
	return err
}

// podOf is a pod of a workload, under the workload's own name.
func podOf(m kube.Manifest, template *corev1.PodTemplateSpec) (*model.Pod, error) {
	acc, err := meta.Accessor(m.Object)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", m.File, m.Line, err)
	}
	pod, err := kube.FromPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: acc.GetNamespace(), Name: acc.GetName(), Labels: template.Labels, Annotations: template.Annotations},
		Spec:       template.Spec,
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	})
	if err != nil {
		err = &kube.ManifestError{Manifest: m, Kind: m.Object.GetObjectKind().GroupVersionKind().Kind, Name: model.Name{Namespace: acc.GetNamespace(), Name: acc.GetName()}, Err: err}
	}
	return pod, err
}

// templateOf is a workload's pod template, with the workload's kind in lower case; nil for other objects.
func templateOf(o runtime.Object) (string, *corev1.PodTemplateSpec) {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return "deployment", &o.Spec.Template
	case *appsv1.StatefulSet:
		return "statefulset", &o.Spec.Template
	case *appsv1.DaemonSet:
		return "daemonset", &o.Spec.Template
	case *appsv1.ReplicaSet:
		return "replicaset", &o.Spec.Template
	case *corev1.ReplicationController:
		return "replicationcontroller", o.Spec.Template
	case *batchv1.Job:
		return "job", &o.Spec.Template
	case *batchv1.CronJob:
		return "cronjob", &o.Spec.JobTemplate.Spec.Template
	}
	return "", nil
}

// namespaces adds those that objects are in but no manifest describes. What labels such a namespace has in the
// cluster is not known; it has the one that every namespace has.
func (c *Cluster) namespaces() {
	add := func(n string) {
		if n != "" && c.Delta.Namespaces[n] == nil {
			c.Delta.Namespaces[n] = &model.Namespace{Meta: model.Meta{Name: model.Name{Name: n}, Labels: map[string]string{"kubernetes.io/metadata.name": n}}}
		}
	}
	for n := range c.Delta.Pods {
		add(n.Namespace)
	}
	for n := range c.Delta.Services {
		add(n.Namespace)
	}
	for n := range c.Delta.NetworkPolicies {
		add(n.Namespace)
	}
}

// address gives addresses to pods and Services that have none, in the order of their names.
func (c *Cluster) address(o Options) {
	taken := map[netip.Addr]bool{}
	for _, p := range c.Delta.Pods {
		for _, a := range p.IPs {
			taken[a] = true
		}
	}
	for _, s := range c.Delta.Services {
		for _, a := range s.ClusterIPs {
			taken[a] = true
		}
	}
	next := func(p netip.Prefix) netip.Addr {
		for a := p.Addr().Next(); p.Contains(a); a = a.Next() {
			if !taken[a] {
				taken[a], c.Assumed[a] = true, true
				return a
			}
		}
		return netip.Addr{}
	}
	for _, n := range sorted(c.Delta.Pods) {
		p := *c.Delta.Pods[n]
		if p.Node == "" {
			p.Node = Node
		}
		switch {
		case p.HostNetwork:
			p.IPs = []netip.Addr{nodeAddr}
		case len(p.IPs) == 0:
			for _, cidr := range o.PodCIDRs {
				if a := next(cidr.Masked()); a.IsValid() {
					p.IPs = append(p.IPs, a)
				}
			}
			p.Ready = true // a manifest describes what is meant to be
		}
		c.Delta.Pods[n] = &p
		if c.Delta.Nodes[p.Node] == nil {
			c.Delta.Nodes[p.Node] = &model.Node{Meta: model.Meta{Name: model.Name{Name: p.Node}}, InternalIPs: []netip.Addr{nodeAddr}, PodCIDRs: o.PodCIDRs, Ready: true}
		}
	}
	for _, n := range sorted(c.Delta.Services) {
		s := *c.Delta.Services[n]
		if s.Headless || s.Type == model.ExternalName || len(s.ClusterIPs) > 0 {
			continue
		}
		for _, cidr := range o.ServiceCIDRs {
			if len(s.Families) > 0 && !slices.Contains(s.Families, model.FamilyOf(cidr.Addr())) {
				continue
			}
			if a := next(cidr.Masked()); a.IsValid() {
				s.ClusterIPs = append(s.ClusterIPs, a)
			}
		}
		c.Delta.Services[n] = &s
	}
}

// serve makes the EndpointSlices that the endpoint controller would make of Services with a selector.
func (c *Cluster) serve() {
	given := map[model.Name]bool{}
	for _, s := range c.Delta.EndpointSlices {
		given[model.Name{Namespace: s.Namespace, Name: s.Service}] = true
	}
	for _, n := range sorted(c.Delta.Services) {
		s := c.Delta.Services[n]
		if len(s.Selector) == 0 || given[n] || s.Type == model.ExternalName {
			continue
		}
		sel := model.MatchLabels(s.Selector)
		for _, pn := range sorted(c.Delta.Pods) {
			p := c.Delta.Pods[pn]
			if p.Namespace != n.Namespace || !sel.Matches(p.Labels) || p.Finished {
				continue
			}
			for _, a := range p.IPs {
				slice := c.sliceOf(s, p, a)
				c.Delta.EndpointSlices[slice.Name] = slice
			}
		}
	}
}

// sliceOf is a slice of one endpoint: what a named target port means differs between pods.
func (c *Cluster) sliceOf(s *model.Service, p *model.Pod, a netip.Addr) *model.EndpointSlice {
	f := model.FamilyOf(a)
	out := &model.EndpointSlice{
		Meta:    model.Meta{Name: model.Name{Namespace: s.Namespace, Name: fmt.Sprintf("%s-%s-%s", s.Name.Name, p.Name.Name, strings.ToLower(f.String()))}},
		Service: s.Name.Name, Family: f,
		Endpoints: []model.Endpoint{{Addresses: []netip.Addr{a}, Ready: p.Ready, Serving: p.Ready, Node: p.Node, Pod: p.Name.Name, Hostname: p.Hostname}},
	}
	for _, sp := range s.Ports {
		if port := TargetPort(&sp, p); port != 0 {
			out.Ports = append(out.Ports, model.EndpointPort{Name: sp.Name, Protocol: sp.Protocol, Port: port})
		}
	}
	return out
}

// TargetPort is what a Service port's targetPort means on a pod; 0 if the pod has no port of that name.
func TargetPort(sp *model.ServicePort, p *model.Pod) uint16 {
	if sp.TargetPort == "" || sp.TargetPort == "0" {
		return sp.Port
	}
	var n uint16
	if _, err := fmt.Sscanf(sp.TargetPort, "%d", &n); err == nil {
		return n
	}
	for _, cp := range p.Ports {
		if cp.Name == sp.TargetPort && cp.Protocol == sp.Protocol {
			return cp.Port
		}
	}
	return 0
}

func sorted[T any](m map[model.Name]*T) []model.Name {
	out := make([]model.Name, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	slices.SortFunc(out, model.Name.Compare)
	return out
}
