// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Overlay is what a cluster would be once the manifests were applied to it: what they describe is changed or added, and
// all else stays. The pods of a workload that is there keep their names, nodes and addresses. base is not changed. The
// error is as FromManifests has it.
func Overlay(base *Cluster, o Options, ms []kube.Manifest) (*Cluster, error) {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	ms = kube.Placed(ms, o.Namespace)
	d, err := kube.FromManifests(ms, o.Namespace)
	errs := []error{err}
	all := *base.Delta
	c := &Cluster{
		Delta: &all, Manifests: slices.Concat(base.Manifests, ms), Workloads: maps.Clone(base.Workloads),
		Assumed: map[netip.Addr]bool{}, PodCIDRs: o.PodCIDRs,
	}
	if c.Workloads == nil {
		c.Workloads = Workloads{}
	}
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	}
	all.Pods, all.Services, all.Namespaces = orNew(maps.Clone(all.Pods)), orNew(maps.Clone(all.Services)), orNew(maps.Clone(all.Namespaces))
	all.EndpointSlices = with(all.EndpointSlices, d.EndpointSlices)
	all.Nodes = with(all.Nodes, d.Nodes)
	all.NetworkPolicies = with(all.NetworkPolicies, d.NetworkPolicies)
	all.ClusterNetworkPolicies = with(all.ClusterNetworkPolicies, d.ClusterNetworkPolicies)
	for n, ns := range d.Namespaces {
		next := *ns
		if was := all.Namespaces[n]; was != nil {
			next.Labels = with(was.Labels, ns.Labels)
		}
		all.Namespaces[n] = &next
	}
	for n, s := range d.Services {
		next := *s
		if was := all.Services[n]; was != nil {
			if len(next.ClusterIPs) == 0 {
				next.ClusterIPs = was.ClusterIPs
			}
			next.Ingress = was.Ingress
		}
		all.Services[n] = &next
	}
	for n, p := range d.Pods {
		all.Pods[n] = inPlaceOf(all.Pods[n], p)
	}
	for _, m := range ms {
		errs = append(errs, c.overlay(m))
	}
	c.namespaces()
	c.address(o)
	c.serve()
	return c, errors.Join(errs...)
}

// with is one map with what another has besides, or instead.
func with[K comparable, T any](base, over map[K]T) map[K]T {
	out := make(map[K]T, len(base)+len(over))
	maps.Copy(out, base)
	maps.Copy(out, over)
	return out
}

// overlay gives the pods of a workload what its manifest says, or adds one if there are none.
func (c *Cluster) overlay(m kube.Manifest) error {
	kind, template := templateOf(m.Object)
	if template == nil {
		return nil
	}
	acc, err := meta.Accessor(m.Object)
	if err != nil {
		return fmt.Errorf("%s:%d: %w", m.File, m.Line, err)
	}
	w := Workload{kind, model.Name{Namespace: acc.GetNamespace(), Name: acc.GetName()}}
	pods := c.Workloads[w]
	if !slices.ContainsFunc(pods, func(n model.Name) bool { return c.Delta.Pods[n] != nil }) {
		return c.expand(m)
	}
	next, err := podOf(m, template)
	if next == nil {
		return err
	}
	for _, n := range pods {
		if was := c.Delta.Pods[n]; was != nil {
			p := inPlaceOf(was, next)
			p.Name = n
			c.Delta.Pods[n] = p
		}
	}
	return err
}

// inPlaceOf is a pod as a manifest has it, with what the cluster gave the pod that it takes the place of, if any.
func inPlaceOf(was, next *model.Pod) *model.Pod {
	p := *next
	if was == nil {
		return &p
	}
	p.UID, p.Created, p.Node, p.HostIPs, p.Ready, p.Finished = was.UID, was.Created, was.Node, was.HostIPs, was.Ready, was.Finished
	if len(p.IPs) == 0 && p.HostNetwork == was.HostNetwork {
		p.IPs = was.IPs
	}
	lasting := policy.LastingLabels(was.Labels)
	p.Labels = maps.Clone(p.Labels)
	for k, v := range was.Labels { // what a controller adds
		if _, ok := lasting[k]; !ok {
			if p.Labels == nil {
				p.Labels = map[string]string{}
			}
			p.Labels[k] = v
		}
	}
	return &p
}
