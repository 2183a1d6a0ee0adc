// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
	"github.com/weft-net/weft/internal/policy"
)

func (c *checker) services() {
	nodePorts := map[string]string{}
	for i := range c.objects["Service"] {
		o := &c.objects["Service"][i]
		s := c.d.Services[o.name]
		if s == nil {
			continue
		}
		pods := c.selected(s.Namespace, model.MatchLabels(s.Selector), len(s.Selector) > 0)
		c.serviceEndpoints(o, s, pods)
		if s.Type == model.NodePort {
			c.report("service-node-port", o, "use type LoadBalancer, an Ingress or a Gateway for clients outside, ClusterIP for those inside",
				"type NodePort opens %s on every node", portsOf(s))
		}
		if _, err := netip.ParseAddr(s.ExternalName); s.Type == model.ExternalName && err == nil {
			c.report("external-name-address", o, "make a Service without a selector, and an EndpointSlice with the address", "externalName is %s", s.ExternalName)
		}
		c.serviceAnnotations(o, s)
		c.serviceExposed(o, s, pods)
		if s.AffinityTimeout > 0 {
			c.report("service-affinity", o, "keep sessions in a store or a cookie, and leave sessionAffinity out", "sessionAffinity: ClientIP, for %s", s.AffinityTimeout)
		}
		for _, p := range s.Ports {
			if p.NodePort == 0 {
				continue
			}
			key := fmt.Sprint(p.NodePort, p.Protocol)
			if other, ok := nodePorts[key]; ok {
				c.report("service-node-port-taken", o, "leave nodePort out, and one is chosen", "nodePort %d/%s is that of Service %s too", p.NodePort, p.Protocol, other)
			}
			nodePorts[key] = o.name.String()
		}
		if s.ExternalLocal && s.Type != model.ClusterIP && c.Whole && len(c.d.Nodes) > 1 {
			on := map[string]bool{}
			for _, p := range pods {
				on[p.Node] = true
			}
			if len(on) == 1 && len(pods) > 1 {
				c.report("service-local-spread", o, "spread the pods with topologySpreadConstraints, or use externalTrafficPolicy: Cluster",
					"externalTrafficPolicy: Local, and all %d pods are on node %s", len(pods), pods[0].Node)
			}
		}
	}
}

// balancerAnnotations begin the annotations that programs which make load balancers read.
var balancerAnnotations = []string{"service.beta.kubernetes.io/", "cloud.google.com/load-balancer", "networking.gke.io/load-balancer", "metallb.universe.tf/", "metallb.io/", "weft.dev/address-pool"}

func (c *checker) serviceAnnotations(o *object, s *model.Service) {
	acc, err := meta.Accessor(o.Object)
	if err != nil || s.Type == model.LoadBalancer {
		return
	}
	for _, a := range slices.Sorted(maps.Keys(acc.GetAnnotations())) {
		if slices.ContainsFunc(balancerAnnotations, func(p string) bool { return strings.HasPrefix(a, p) }) {
			c.report("service-annotation-ignored", o, "set type: LoadBalancer, or remove the annotation", "annotation %s is for type LoadBalancer, and this is %s", a, s.Type)
		}
	}
}

func (c *checker) serviceExposed(o *object, s *model.Service, pods []*model.Pod) {
	if s.Type != model.LoadBalancer || len(s.LoadBalancer.SourceRanges) > 0 || len(pods) == 0 {
		return
	}
	if src := c.world.Policy.Applying(pods[0], policy.Ingress); len(src.Isolating)+len(src.Cluster) == 0 {
		c.report("service-exposed", o, "name the clients in spec.loadBalancerSourceRanges, or isolate the pods with a NetworkPolicy; keep what only pods use as type ClusterIP",
			"every client may use it, and no policy guards pod %s", pods[0].Name)
	}
}

func portsOf(s *model.Service) string {
	var out []string
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			out = append(out, strconv.Itoa(int(p.NodePort)))
		} else {
			out = append(out, "a port for "+strconv.Itoa(int(p.Port)))
		}
	}
	return strings.Join(out, ", ")
}

func (c *checker) serviceEndpoints(o *object, s *model.Service, pods []*model.Pod) {
	if s.Type == model.ExternalName || len(s.Selector) == 0 {
		return
	}
	named := false
	for i := range s.Ports {
		sp := &s.Ports[i]
		for _, p := range pods {
			if !p.HostNetwork && offline.TargetPort(sp, p) == 0 {
				named = true
				c.report("service-target-port", o, fmt.Sprintf("name a container port of pod %s %q, or give targetPort as a number", p.Name, sp.TargetPort),
					"port %d has targetPort %q, and pod %s has %s", sp.Port, sp.TargetPort, p.Name, portNames(p))
				break
			}
		}
	}
	served := slices.ContainsFunc(pods, func(p *model.Pod) bool { return p.Ready && !p.Finished })
	if served || named || !c.Whole && len(c.d.Pods) == 0 || len(s.Ports) == 0 {
		return
	}
	why := c.world.NoEndpoints(s, &s.Ports[0])
	c.report("service-no-endpoints", o, "make spec.selector match the pods' labels (kubectl get pods --show-labels), or make the pods ready",
		"nothing serves it: %s", strings.Join(why, "; "))
}

func portNames(p *model.Pod) string {
	var out []string
	for _, cp := range p.Ports {
		if cp.Name != "" {
			out = append(out, strconv.Quote(cp.Name))
		}
	}
	if len(out) == 0 {
		return "no named port"
	}
	return "only " + strings.Join(out, ", ")
}

// selected are the pods of a namespace that a selector matches; none if there is no selector.
func (c *checker) selected(namespace string, sel model.Selector, some bool) []*model.Pod {
	var out []*model.Pod
	for n, p := range c.d.Pods {
		if some && n.Namespace == namespace && !p.Finished && sel.Matches(p.Labels) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *model.Pod) int { return a.Name.Compare(b.Name) })
	return out
}

func (c *checker) statefulSets() {
	for i := range c.objects["StatefulSet"] {
		o := &c.objects["StatefulSet"][i]
		sts, ok := o.Object.(*appsv1.StatefulSet)
		if !ok {
			continue
		}
		n := model.Name{Namespace: o.name.Namespace, Name: sts.Spec.ServiceName}
		s := c.d.Services[n]
		switch cure := "make a Service with clusterIP: None and name it in spec.serviceName"; {
		case n.Name == "":
			c.report("statefulset-headless", o, cure, "spec.serviceName is not set")
		case s == nil && (c.Whole || len(c.d.Services) > 0):
			c.report("statefulset-headless", o, cure, "spec.serviceName is %q, and there is no such Service", n.Name)
		case s != nil && !s.Headless:
			c.report("statefulset-headless", o, cure, "Service %s is not headless", n)
		}
	}
}
