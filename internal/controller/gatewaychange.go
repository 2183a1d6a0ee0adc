// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// bundleVersion and bundleChannel are the annotations of Gateway API's CRDs that tell their release and its channel.
const (
	bundleVersion = "gateway.networking.k8s.io/bundle-version"
	bundleChannel = "gateway.networking.k8s.io/channel"
)

// changeOf puts a Delta into the terms of packages gatewayapi and trafficpolicy.
func changeOf(d *model.Delta) (c *gatewayapi.Change, policies map[model.Name]*v1alpha1.TrafficPolicy) {
	c = &gatewayapi.Change{
		Services: d.Services, EndpointSlices: d.EndpointSlices, Namespaces: d.Namespaces,
		Secrets: d.Secrets, ConfigMaps: d.ConfigMaps, ClusterTrustBundles: d.ClusterTrustBundles,
	}
	for key, o := range d.Objects {
		name := model.Name{Namespace: key.Namespace, Name: key.Name}
		if c.SetObject(key.Kind, name, o) {
			continue
		}
		switch key.Kind {
		case "GatewayConfig":
			if c.Parameters == nil {
				c.Parameters = make(map[model.Name]*gatewayapi.Parameters)
			}
			c.Parameters[name] = nil
			if o != nil {
				c.Parameters[name] = parametersOf(o.Value.(*v1alpha1.GatewayConfig))
			}
		case "TrafficPolicy":
			if policies == nil {
				policies = make(map[model.Name]*v1alpha1.TrafficPolicy)
			}
			policies[name] = nil
			if o != nil {
				policies[name] = o.Value.(*v1alpha1.TrafficPolicy)
			}
		case kube.CRDKind:
			if c.CRDs == nil {
				c.CRDs = make(map[string]*gatewayapi.CRD)
			}
			resource := strings.TrimSuffix(key.Name, "."+gatewayapi.GroupName)
			c.CRDs[resource] = nil
			if o != nil {
				told := o.Value.(*metav1.PartialObjectMetadata).Annotations
				c.CRDs[resource] = &gatewayapi.CRD{Version: told[bundleVersion], Channel: told[bundleChannel]}
			}
		}
	}
	return c, policies
}

// parametersOf is what of a GatewayConfig concerns listeners.
func parametersOf(c *v1alpha1.GatewayConfig) *gatewayapi.Parameters {
	out := &gatewayapi.Parameters{ProxyProtocol: c.Spec.ProxyProtocol, Forwarded: c.Spec.Forwarded}
	for _, l := range []struct {
		field string
		texts []string
		to    *[]netip.Prefix
	}{{"proxyProtocolSources", c.Spec.ProxyProtocolSources, &out.ProxySources}, {"trustedProxies", c.Spec.TrustedProxies, &out.TrustedProxies}} {
		if l.texts != nil {
			*l.to = []netip.Prefix{}
		}
		for i, s := range l.texts {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				out.Invalid = fmt.Sprintf("GatewayConfig %s/%s: spec.%s[%d]: %q is not a CIDR such as 192.0.2.0/24", c.Namespace, c.Name, l.field, i, s)
				continue
			}
			*l.to = append(*l.to, p)
		}
	}
	return out
}

// parentsOf gives a route's status.parents; nil for what is not a route.
func parentsOf(o any) *[]gatewayv1.RouteParentStatus {
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		return &o.Status.Parents
	case *gatewayv1.GRPCRoute:
		return &o.Status.Parents
	case *gatewayv1.TLSRoute:
		return &o.Status.Parents
	case *gatewayv1.TCPRoute:
		return &o.Status.Parents
	case *gatewayv1.UDPRoute:
		return &o.Status.Parents
	}
	return nil
}
