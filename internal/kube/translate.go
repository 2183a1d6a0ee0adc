// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/internal/model"
)

// annotationPrefixes are the annotations that some part of weft reads; all others stay behind, for they can be
// large (kubectl's last-applied-configuration holds the whole object).
var annotationPrefixes = []string{
	"weft.dev/",
	"external-dns.alpha.kubernetes.io/",
	"endpoints.kubernetes.io/last-change-trigger-time",
	"service.kubernetes.io/topology-mode",
	"kubernetes.io/config.mirror", // the kubelet's UID of a static pod
}

// intern gives the one shared copy of a string that recurs over many objects: labels, zones, node names.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

func internMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[intern(k)] = intern(v)
	}
	return out
}

func fromMeta(o *metav1.ObjectMeta) model.Meta {
	m := model.Meta{
		Name:       model.Name{Namespace: intern(o.Namespace), Name: o.Name},
		UID:        string(o.UID),
		Labels:     internMap(o.Labels),
		Generation: o.Generation,
		Deleting:   o.DeletionTimestamp != nil,
	}
	if !o.CreationTimestamp.IsZero() {
		m.Created = o.CreationTimestamp.Unix()
	}
	for k, v := range o.Annotations {
		if slices.ContainsFunc(annotationPrefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
			if m.Annotations == nil {
				m.Annotations = make(map[string]string)
			}
			m.Annotations[intern(k)] = v
		}
	}
	return m
}

// problems collects what could not be used of an object; the rest of the object still counts.
type problems []error

func (p *problems) add(field, value string, err error) {
	*p = append(*p, fmt.Errorf("%s: %q: %w; left out", field, value, err))
}

func (p *problems) addr(field, s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		p.add(field, s, errors.New("not an IP address"))
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

func (p *problems) addrs(field string, in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		if a := p.addr(field, s); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

func (p *problems) prefix(field, s string) netip.Prefix {
	pre, err := netip.ParsePrefix(strings.TrimSpace(s))
	if err != nil {
		p.add(field, s, errors.New("not a CIDR"))
		return netip.Prefix{}
	}
	// An IPv4-mapped range is the IPv4 range that it maps, as with addresses.
	if a := pre.Addr(); a.Is4In6() && pre.Bits() >= 96 {
		pre = netip.PrefixFrom(a.Unmap(), pre.Bits()-96)
	}
	return pre.Masked()
}

func (p *problems) protocol(field string, proto *corev1.Protocol) (model.Protocol, bool) {
	if proto == nil {
		return model.TCP, true
	}
	out, err := model.ParseProtocol(string(*proto))
	if err != nil {
		p.add(field, string(*proto), err)
		return 0, false
	}
	return out, true
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// FromService translates a Service. The error names the fields that could not be used and were left out; the value
// is usable all the same. Fields that the API server defaults are defaulted, so a manifest reads as it would run.
func FromService(s *corev1.Service) (*model.Service, error) {
	var bad problems
	out := &model.Service{
		Meta:                     fromMeta(&s.ObjectMeta),
		Selector:                 internMap(s.Spec.Selector),
		Headless:                 s.Spec.ClusterIP == corev1.ClusterIPNone,
		ExternalIPs:              bad.addrs("spec.externalIPs", s.Spec.ExternalIPs),
		InternalLocal:            deref(s.Spec.InternalTrafficPolicy) == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal:            s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		HealthCheckNodePort:      uint16(s.Spec.HealthCheckNodePort),
		PublishNotReadyAddresses: s.Spec.PublishNotReadyAddresses,
		RequireDualStack:         deref(s.Spec.IPFamilyPolicy) == corev1.IPFamilyPolicyRequireDualStack,
		CleanupFinalizer:         slices.Contains(s.Finalizers, LoadBalancerCleanup),
	}
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		out.Type = model.NodePort
	case corev1.ServiceTypeLoadBalancer:
		out.Type = model.LoadBalancer
	case corev1.ServiceTypeExternalName:
		out.Type = model.ExternalName
		out.ExternalName = strings.TrimSuffix(s.Spec.ExternalName, ".")
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	if !out.Headless && out.Type != model.ExternalName {
		out.ClusterIPs = bad.addrs("spec.clusterIPs", ips)
	}
	for _, f := range s.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			out.Families = append(out.Families, model.IPv6)
		} else {
			out.Families = append(out.Families, model.IPv4)
		}
	}
	out.Ports = servicePorts(s.Spec.Ports, &bad)
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.AffinityTimeout = 10800 * time.Second // the API's default
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			out.AffinityTimeout = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	switch deref(s.Spec.TrafficDistribution) {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		out.Distribution = model.PreferSameZone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		out.Distribution = model.PreferSameNode
	}
	for i := range s.Status.Conditions {
		if c := &s.Status.Conditions[i]; c.Type == model.ConditionAddressAssigned {
			out.AddressCondition = &model.Condition{Status: c.Status == metav1.ConditionTrue, Reason: intern(c.Reason), Message: c.Message}
		}
	}
	if out.Type == model.LoadBalancer {
		loadBalancer(s, out, &bad)
	}
	return out, errors.Join(bad...)
}

func servicePorts(in []corev1.ServicePort, bad *problems) []model.ServicePort {
	var out []model.ServicePort
	for i := range in {
		sp := &in[i]
		proto, ok := bad.protocol(fmt.Sprintf("spec.ports[%d].protocol", i), &sp.Protocol)
		if !ok {
			continue
		}
		target := sp.TargetPort.String()
		if target == "" || target == "0" {
			target = fmt.Sprint(sp.Port)
		}
		out = append(out, model.ServicePort{
			Name: intern(sp.Name), Protocol: proto, Port: uint16(sp.Port), NodePort: uint16(sp.NodePort),
			TargetPort: intern(target), AppProtocol: intern(deref(sp.AppProtocol)),
		})
	}
	return out
}

// loadBalancer takes over what only a Service of type LoadBalancer has.
func loadBalancer(s *corev1.Service, out *model.Service, bad *problems) {
	lb := &out.LoadBalancer
	lb.Class = deref(s.Spec.LoadBalancerClass)
	if s.Spec.LoadBalancerIP != "" {
		if lb.RequestedIP = bad.addr("spec.loadBalancerIP", s.Spec.LoadBalancerIP); !lb.RequestedIP.IsValid() {
			lb.UnreadableIP = s.Spec.LoadBalancerIP
		}
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		// One that can't be read stays, as an invalid one: without it the list could be empty, which admits all.
		lb.SourceRanges = append(lb.SourceRanges, bad.prefix(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), r))
	}
	lb.NoNodePorts = s.Spec.AllocateLoadBalancerNodePorts != nil && !*s.Spec.AllocateLoadBalancerNodePorts
	for i, in := range s.Status.LoadBalancer.Ingress {
		x := model.LoadBalancerIngress{Hostname: in.Hostname, Proxy: deref(in.IPMode) == corev1.LoadBalancerIPModeProxy}
		if in.IP != "" {
			x.IP = bad.addr(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), in.IP)
		}
		out.Ingress = append(out.Ingress, x)
	}
}

// LoadBalancerCleanup is the finalizer that keeps a Service until the controller of its load balancer has let go
// (KEP-980).
const LoadBalancerCleanup = "service.kubernetes.io/load-balancer-cleanup"

// FromEndpointSlice translates an EndpointSlice, conditions' nil meanings resolved (see model.Endpoint). The error
// names what was left out.
func FromEndpointSlice(s *discoveryv1.EndpointSlice) (*model.EndpointSlice, error) {
	var bad problems
	out := &model.EndpointSlice{
		Meta:    fromMeta(&s.ObjectMeta),
		Service: intern(s.Labels[discoveryv1.LabelServiceName]),
		FQDN:    s.AddressType == discoveryv1.AddressTypeFQDN,
		Family:  model.IPv4,
	}
	_, out.Headless = s.Labels[corev1.IsHeadlessService]
	out.Labels = nil // weft reads no other
	if s.AddressType == discoveryv1.AddressTypeIPv6 {
		out.Family = model.IPv6
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		proto, ok := bad.protocol(fmt.Sprintf("ports[%d].protocol", i), p.Protocol)
		if !ok {
			continue
		}
		out.Ports = append(out.Ports, model.EndpointPort{
			Name: intern(deref(p.Name)), Protocol: proto, Port: uint16(deref(p.Port)), AppProtocol: intern(deref(p.AppProtocol)),
		})
	}
	if out.FQDN {
		return out, errors.Join(bad...)
	}
	out.Endpoints = make([]model.Endpoint, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		ep := model.Endpoint{
			Addresses:   bad.addrs(fmt.Sprintf("endpoints[%d].addresses", i), e.Addresses),
			Ready:       ready,
			Serving:     ready,
			Terminating: deref(e.Conditions.Terminating),
			Hostname:    deref(e.Hostname),
			Node:        intern(deref(e.NodeName)),
			Zone:        intern(deref(e.Zone)),
		}
		if e.Conditions.Serving != nil {
			ep.Serving = *e.Conditions.Serving
		}
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
			ep.OfPod, ep.Pod = true, e.TargetRef.Name
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				ep.HintZones = append(ep.HintZones, intern(z.Name))
			}
			for _, n := range e.Hints.ForNodes {
				ep.HintNodes = append(ep.HintNodes, intern(n.Name))
			}
		}
		if len(ep.Addresses) > 0 {
			out.Endpoints = append(out.Endpoints, ep)
		}
	}
	return out, errors.Join(bad...)
}

// FromPod translates a Pod. The error names what was left out.
func FromPod(p *corev1.Pod) (*model.Pod, error) {
	var bad problems
	out := &model.Pod{
		Meta:           fromMeta(&p.ObjectMeta),
		Node:           intern(p.Spec.NodeName),
		HostNetwork:    p.Spec.HostNetwork,
		ServiceAccount: intern(p.Spec.ServiceAccountName),
		Hostname:       p.Spec.Hostname,
		Subdomain:      p.Spec.Subdomain,
		Finished:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		DNSPolicy:      intern(string(p.Spec.DNSPolicy)),
		DNSConfig:      fromPodDNSConfig(p.Spec.DNSConfig),
	}
	for _, ip := range p.Status.PodIPs {
		if a := bad.addr("status.podIPs", ip.IP); a.IsValid() {
			out.IPs = append(out.IPs, a)
		}
	}
	if len(out.IPs) == 0 && p.Status.PodIP != "" {
		if a := bad.addr("status.podIP", p.Status.PodIP); a.IsValid() {
			out.IPs = []netip.Addr{a}
		}
	}
	for _, ip := range p.Status.HostIPs {
		if a := bad.addr("status.hostIPs", ip.IP); a.IsValid() {
			out.HostIPs = append(out.HostIPs, a)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	ports := func(c *corev1.Container) {
		for i := range c.Ports {
			cp := &c.Ports[i]
			if proto, ok := bad.protocol("spec.containers.ports.protocol", &cp.Protocol); ok {
				out.Ports = append(out.Ports, model.ContainerPort{
					Name: intern(cp.Name), Protocol: proto, Port: uint16(cp.ContainerPort), HostPort: uint16(cp.HostPort),
				})
			}
		}
	}
	for i := range p.Spec.InitContainers {
		// Only a sidecar keeps running beside the pod's containers (KEP-753).
		if deref(p.Spec.InitContainers[i].RestartPolicy) == corev1.ContainerRestartPolicyAlways {
			ports(&p.Spec.InitContainers[i])
		}
	}
	for i := range p.Spec.Containers {
		ports(&p.Spec.Containers[i])
	}
	return out, errors.Join(bad...)
}

// toBeDeletedTaint is what the cluster autoscaler puts on a node that it is about to delete.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// FromNode translates a Node. The error names what was left out.
func FromNode(n *corev1.Node) (*model.Node, error) {
	var bad problems
	out := &model.Node{
		Meta:   fromMeta(&n.ObjectMeta),
		Zone:   intern(n.Labels[corev1.LabelTopologyZone]),
		Region: intern(n.Labels[corev1.LabelTopologyRegion]),
	}
	_, out.ExcludedFromLB = n.Labels[corev1.LabelNodeExcludeBalancers]
	out.ToBeDeleted = slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == toBeDeletedTaint })
	for _, a := range n.Status.Addresses {
		switch a.Type {
		case corev1.NodeInternalIP:
			if ip := bad.addr("status.addresses", a.Address); ip.IsValid() {
				out.InternalIPs = append(out.InternalIPs, ip)
			}
		case corev1.NodeExternalIP:
			if ip := bad.addr("status.addresses", a.Address); ip.IsValid() {
				out.ExternalIPs = append(out.ExternalIPs, ip)
			}
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, c := range cidrs {
		if p := bad.prefix("spec.podCIDRs", c); p.IsValid() {
			out.PodCIDRs = append(out.PodCIDRs, p)
		}
	}
	out.Unreachable = true
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Ready, out.Unreachable = c.Status == corev1.ConditionTrue, c.Status == corev1.ConditionUnknown
		}
	}
	return out, errors.Join(bad...)
}

// FromNamespace translates a Namespace. The kubernetes.io/metadata.name label, which the API server always sets, is
// added where a manifest lacks it.
func FromNamespace(n *corev1.Namespace) (*model.Namespace, error) {
	out := &model.Namespace{Meta: fromMeta(&n.ObjectMeta)}
	if out.Labels == nil {
		out.Labels = make(map[string]string, 1)
	}
	out.Labels[corev1.LabelMetadataName] = n.Name
	return out, nil
}

// FromServiceCIDR translates a ServiceCIDR. The error names what was left out.
func FromServiceCIDR(c *networkingv1.ServiceCIDR) (*model.ServiceCIDR, error) {
	var bad problems
	out := &model.ServiceCIDR{Meta: fromMeta(&c.ObjectMeta)}
	for _, s := range c.Spec.CIDRs {
		if p := bad.prefix("spec.cidrs", s); p.IsValid() {
			out.CIDRs = append(out.CIDRs, p)
		}
	}
	return out, errors.Join(bad...)
}

// selector translates a LabelSelector; nil stays nil. One that can't be read in full matches nothing and is reported.
func (p *problems) selector(field string, s *metav1.LabelSelector) *model.Selector {
	if s == nil {
		return nil
	}
	out, ok := p.requirements(field, s)
	if !ok {
		out = append(out, model.Requirement{Op: model.In})
	}
	return &out
}

// requirements translates a LabelSelector. What can't be read of it is left out, so that it matches more than was meant,
// and reported; ok is false then. A custom resource's schema asks nothing of operators and values: they have to be
// looked at here, as the API server does for its own kinds.
func (p *problems) requirements(field string, s *metav1.LabelSelector) (out model.Selector, ok bool) {
	out, ok = model.MatchLabels(s.MatchLabels), true
	for i, e := range s.MatchExpressions {
		field := fmt.Sprintf("%s.matchExpressions[%d]", field, i)
		r := model.Requirement{Key: e.Key, Values: slices.Clone(e.Values)}
		slices.Sort(r.Values)
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			r.Op = model.In
		case metav1.LabelSelectorOpNotIn:
			r.Op = model.NotIn
		case metav1.LabelSelectorOpExists:
			r.Op = model.Exists
		case metav1.LabelSelectorOpDoesNotExist:
			r.Op = model.DoesNotExist
		default:
			p.add(field+".operator", string(e.Operator), errors.New("want In, NotIn, Exists or DoesNotExist"))
			ok = false
			continue
		}
		if wants := r.Op == model.In || r.Op == model.NotIn; wants != (len(r.Values) > 0) {
			p.add(field+".values", strings.Join(r.Values, ","), errors.New("want values for In and NotIn, none for Exists and DoesNotExist"))
			ok = false
			continue
		}
		out = append(out, r)
	}
	return out, ok
}
