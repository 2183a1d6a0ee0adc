// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// GatewayConfigs is the resource of GatewayConfig objects.
var GatewayConfigs = GroupVersion.WithResource("gatewayconfigs")

// GatewayConfig says how the pods and the Service of Gateways are made. A Gateway names one in
// spec.infrastructure.parametersRef, a GatewayClass in spec.parametersRef for all its Gateways; what both set the
// Gateway's says.
type GatewayConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec GatewayConfigSpec `json:"spec"`
}

// GatewayConfigSpec holds what may be set; what is absent is as weft has it.
type GatewayConfigSpec struct {
	// Replicas is how many pods serve a Gateway. Absent: 2.
	Replicas *int64 `json:"replicas,omitempty"`

	// Resources of a pod's container. Absent: requests of 50m CPU and 64Mi memory.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	// NodeSelector of the pods, over that for Linux nodes.
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Tolerations of the pods.
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// PriorityClassName of the pods.
	PriorityClassName string `json:"priorityClassName,omitempty"`

	// Service is how the Gateway is reached.
	Service *GatewayService `json:"service,omitempty"`

	// AccessLog is what each request leaves on the pods' standard output. Absent: nothing.
	AccessLog *GatewayAccessLog `json:"accessLog,omitempty"`

	// ProxyProtocol requires a PROXY protocol header, of version 1 or 2, at the start of each TCP connection: for a load
	// balancer in front that sends it. Absent: none is expected.
	ProxyProtocol *bool `json:"proxyProtocol,omitempty"`

	// ProxyProtocolSources are the CIDRs of those whose PROXY header is believed: of others it is read, and does not
	// count. Absent: all.
	ProxyProtocolSources []string `json:"proxyProtocolSources,omitempty"`

	// TrustedProxies are the CIDRs of proxies in front that may tell clients' addresses in X-Forwarded-For.
	TrustedProxies []string `json:"trustedProxies,omitempty"`

	// Forwarded tells backends in the header Forwarded (RFC 7239) what X-Forwarded-For, -Host and -Proto tell, too. Absent:
	// only where a trusted proxy did.
	Forwarded *bool `json:"forwarded,omitempty"`

	// DrainSeconds is how long requests under way may take when a pod ends. Absent: 30.
	DrainSeconds *int64 `json:"drainSeconds,omitempty"`

	// TunnelIdleSeconds is for how long nothing may move in a connection that is carried as it is (TCP, TLS, upgrades such
	// as WebSocket) or in a call of gRPC, until it is ended. Absent: 3600.
	TunnelIdleSeconds *int64 `json:"tunnelIdleSeconds,omitempty"`

	// Args are further arguments of "weft gateway".
	Args []string `json:"args,omitempty"`
}

// GatewayService is the Service of a Gateway.
type GatewayService struct {
	// Type is LoadBalancer, NodePort or ClusterIP. Absent: LoadBalancer.
	Type string `json:"type,omitempty"`

	// ExternalTrafficPolicy is Cluster or Local; Local keeps the clients' addresses. Absent: Cluster.
	ExternalTrafficPolicy string `json:"externalTrafficPolicy,omitempty"`

	// LoadBalancerClass names another implementation of LoadBalancer Services than weft's.
	LoadBalancerClass string `json:"loadBalancerClass,omitempty"`

	// LoadBalancerSourceRanges are the CIDRs that may connect. Absent: all.
	LoadBalancerSourceRanges []string `json:"loadBalancerSourceRanges,omitempty"`
}

// GatewayAccessLog says what of requests is logged.
type GatewayAccessLog struct {
	// Format is json or combined.
	Format string `json:"format"`

	// Percent of the requests that are logged. Absent: 100.
	Percent *int64 `json:"percent,omitempty"`
}

// GatewayConfigList is a list of GatewayConfigs.
type GatewayConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []GatewayConfig `json:"items"`
}

// DeepCopy returns a copy that shares nothing with c.
func (c *GatewayConfig) DeepCopy() *GatewayConfig {
	if c == nil {
		return nil
	}
	out := &GatewayConfig{TypeMeta: c.TypeMeta, Spec: *c.Spec.DeepCopy()}
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// DeepCopyObject implements runtime.Object.
func (c *GatewayConfig) DeepCopyObject() runtime.Object {
	if c == nil {
		return nil
	}
	return c.DeepCopy()
}

// DeepCopy returns a copy that shares nothing with s.
func (s *GatewayConfigSpec) DeepCopy() *GatewayConfigSpec {
	if s == nil {
		return nil
	}
	out := *s
	out.Replicas, out.DrainSeconds, out.TunnelIdleSeconds = clone(s.Replicas), clone(s.DrainSeconds), clone(s.TunnelIdleSeconds)
	out.Resources = s.Resources.DeepCopy()
	out.NodeSelector = maps.Clone(s.NodeSelector)
	if s.Tolerations != nil {
		out.Tolerations = make([]corev1.Toleration, len(s.Tolerations))
		for i := range s.Tolerations {
			s.Tolerations[i].DeepCopyInto(&out.Tolerations[i])
		}
	}
	if out.Service = clone(s.Service); out.Service != nil {
		out.Service.LoadBalancerSourceRanges = slices.Clone(s.Service.LoadBalancerSourceRanges)
	}
	if out.AccessLog = clone(s.AccessLog); out.AccessLog != nil {
		out.AccessLog.Percent = clone(s.AccessLog.Percent)
	}
	out.ProxyProtocol, out.Forwarded = clone(s.ProxyProtocol), clone(s.Forwarded)
	out.ProxyProtocolSources = slices.Clone(s.ProxyProtocolSources)
	out.TrustedProxies, out.Args = slices.Clone(s.TrustedProxies), slices.Clone(s.Args)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *GatewayConfigList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	out := &GatewayConfigList{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopy())
	}
	return out
}
