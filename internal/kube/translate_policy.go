// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-net/weft/internal/model"
)

// FromNetworkPolicy translates a NetworkPolicy, policyTypes' default filled in: Ingress always, Egress when there
// are egress rules. What can't be read is named by the error and only tightens: such an allow is left out, such a
// selector of pods to isolate selects more, and such a policy type stands for both.
func FromNetworkPolicy(p *networkingv1.NetworkPolicy) (*model.NetworkPolicy, error) {
	var bad problems
	out := &model.NetworkPolicy{Meta: fromMeta(&p.ObjectMeta)}
	out.PodSelector, _ = bad.requirements("spec.podSelector", &p.Spec.PodSelector)
	if len(p.Spec.PolicyTypes) == 0 {
		out.Ingress, out.Egress = true, len(p.Spec.Egress) > 0
	}
	for i, t := range p.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			out.Ingress = true
		case networkingv1.PolicyTypeEgress:
			out.Egress = true
		default:
			bad.add(fmt.Sprintf("spec.policyTypes[%d]", i), string(t), errors.New("want Ingress or Egress"))
			out.Ingress, out.Egress = true, true
		}
	}
	for i, r := range p.Spec.Ingress {
		if rule, ok := bad.policyRule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports); ok {
			out.IngressFrom = append(out.IngressFrom, rule)
		}
	}
	for i, r := range p.Spec.Egress {
		if rule, ok := bad.policyRule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports); ok {
			out.EgressTo = append(out.EgressTo, rule)
		}
	}
	return out, errors.Join(bad...)
}

// policyRule translates one rule. It is dropped (ok is false) when every peer or every port of it was left out:
// with an empty list it would allow all.
func (p *problems) policyRule(field, side string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (model.PolicyRule, bool) {
	var out model.PolicyRule
	for i := range peers {
		if peer, ok := p.policyPeer(fmt.Sprintf("%s.%s[%d]", field, side, i), &peers[i]); ok {
			out.Peers = append(out.Peers, peer)
		}
	}
	for i := range ports {
		if port, ok := p.policyPort(fmt.Sprintf("%s.ports[%d]", field, i), &ports[i]); ok {
			out.Ports = append(out.Ports, port)
		}
	}
	ok := (len(peers) == 0 || len(out.Peers) > 0) && (len(ports) == 0 || len(out.Ports) > 0)
	return out, ok
}

func (p *problems) policyPeer(field string, in *networkingv1.NetworkPolicyPeer) (model.PolicyPeer, bool) {
	out, readable := model.PolicyPeer{}, true
	for _, part := range []struct {
		name string
		from *metav1.LabelSelector
		to   **model.Selector
	}{{"podSelector", in.PodSelector, &out.PodSelector}, {"namespaceSelector", in.NamespaceSelector, &out.NamespaceSelector}} {
		if part.from != nil {
			s, ok := p.requirements(field+"."+part.name, part.from)
			*part.to, readable = &s, readable && ok
		}
	}
	if !readable {
		return out, false
	}
	if in.IPBlock == nil {
		if out.PodSelector == nil && out.NamespaceSelector == nil {
			p.add(field, "{}", errors.New("a peer needs podSelector, namespaceSelector or ipBlock"))
			return out, false
		}
		return out, true
	}
	if out.Block = p.prefix(field+".ipBlock.cidr", in.IPBlock.CIDR); !out.Block.IsValid() {
		return out, false
	}
	for i, e := range in.IPBlock.Except {
		x := p.prefix(fmt.Sprintf("%s.ipBlock.except[%d]", field, i), e)
		if !x.IsValid() {
			return out, false // an exception that can't be read must not be allowed
		}
		out.Except = append(out.Except, x)
	}
	return out, true
}

func (p *problems) policyPort(field string, in *networkingv1.NetworkPolicyPort) (model.PolicyPort, bool) {
	proto, ok := p.protocol(field+".protocol", in.Protocol)
	out := model.PolicyPort{Protocol: proto}
	if !ok || in.Port == nil {
		return out, ok
	}
	if in.Port.Type == intstr.String {
		out.Name = in.Port.StrVal
		return out, true
	}
	n, end := in.Port.IntVal, deref(in.EndPort)
	if n < 1 || n > 65535 || (end != 0 && (end < n || end > 65535)) {
		p.add(field, strconv.Itoa(int(n)), errors.New("want a port from 1 to 65535 and an endPort not below it"))
		return out, false
	}
	out.Port, out.EndPort = uint16(n), uint16(end)
	return out, true
}
