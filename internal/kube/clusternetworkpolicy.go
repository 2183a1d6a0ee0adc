// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/weft-net/weft/internal/model"
)

// clusterNetworkPolicyKind is the kind as sigs.k8s.io/network-policy-api installs it.
var clusterNetworkPolicyKind = schema.GroupVersionKind{Group: "policy.networking.k8s.io", Version: "v1alpha2", Kind: "ClusterNetworkPolicy"}

// FromClusterNetworkPolicy translates a ClusterNetworkPolicy. What can't be read fails closed, as the API asks of an
// implementation that meets a field it does not know: an Accept rule matches nothing, a Deny or Pass rule denies
// everything. Of a policy whose subject can't be read in full, what was read selects, which may be more than was meant,
// and it only denies. The error names it.
func FromClusterNetworkPolicy(p *v1alpha2.ClusterNetworkPolicy) (*model.ClusterNetworkPolicy, error) {
	var bad problems
	out := &model.ClusterNetworkPolicy{Meta: fromMeta(&p.ObjectMeta), Priority: int(p.Spec.Priority)}
	switch p.Spec.Tier {
	case v1alpha2.AdminTier:
		out.Tier = model.AdminTier
	case v1alpha2.BaselineTier:
		out.Tier = model.BaselineTier
	default:
		bad.add("spec.tier", string(p.Spec.Tier), errors.New("want Admin or Baseline"))
	}
	switch s := p.Spec.Subject; {
	case s.Namespaces != nil:
		out.Namespaces, _ = bad.requirements("spec.subject.namespaces", s.Namespaces)
	case s.Pods != nil:
		out.Namespaces, _ = bad.requirements("spec.subject.pods.namespaceSelector", &s.Pods.NamespaceSelector)
		out.Pods, _ = bad.requirements("spec.subject.pods.podSelector", &s.Pods.PodSelector)
	default:
		bad.add("spec.subject", "{}", errors.New("want namespaces or pods; until then it means every pod, for its Deny rules only"))
	}
	unclear := len(bad) > 0 // whom it is about: then it may only deny
	for i, r := range p.Spec.Ingress {
		field := fmt.Sprintf("spec.ingress[%d]", i)
		peers := make([]model.ClusterPolicyPeer, len(r.From))
		for j, f := range r.From {
			peers[j] = bad.clusterPeer(fmt.Sprintf("%s.from[%d]", field, j), &v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: f.Namespaces, Pods: f.Pods})
		}
		out.IngressFrom = append(out.IngressFrom, bad.clusterRule(field, r.Name, r.Action, peers, r.Protocols))
	}
	for i, r := range p.Spec.Egress {
		field := fmt.Sprintf("spec.egress[%d]", i)
		peers := make([]model.ClusterPolicyPeer, len(r.To))
		for j := range r.To {
			peers[j] = bad.clusterPeer(fmt.Sprintf("%s.to[%d]", field, j), &r.To[j])
		}
		out.EgressTo = append(out.EgressTo, bad.clusterRule(field, r.Name, r.Action, peers, r.Protocols))
	}
	if unclear {
		out.IngressFrom, out.EgressTo = onlyDeny(out.IngressFrom), onlyDeny(out.EgressTo)
	}
	return out, errors.Join(bad...)
}

// onlyDeny leaves Accept rules out and has Pass rules deny.
func onlyDeny(in []model.ClusterPolicyRule) []model.ClusterPolicyRule {
	out := slices.DeleteFunc(in, func(r model.ClusterPolicyRule) bool { return r.Action == model.AcceptTraffic })
	for i := range out {
		out[i].Action = model.DenyTraffic
	}
	return out
}

func (p *problems) clusterRule(field, name string, action v1alpha2.ClusterNetworkPolicyRuleAction, peers []model.ClusterPolicyPeer, protocols []v1alpha2.ClusterNetworkPolicyProtocol) model.ClusterPolicyRule {
	out := model.ClusterPolicyRule{Name: name, Peers: peers}
	switch action {
	case v1alpha2.ClusterNetworkPolicyRuleActionAccept:
		out.Action = model.AcceptTraffic
	case v1alpha2.ClusterNetworkPolicyRuleActionDeny:
		out.Action = model.DenyTraffic
	case v1alpha2.ClusterNetworkPolicyRuleActionPass:
		out.Action = model.PassTraffic
	default:
		p.add(field+".action", string(action), errors.New("want Accept, Deny or Pass; until then the rule denies"))
	}
	for i := range protocols {
		if port, ok := p.clusterPort(fmt.Sprintf("%s.protocols[%d]", field, i), &protocols[i]); ok {
			out.Ports = append(out.Ports, port)
		} else {
			out.Peers = []model.ClusterPolicyPeer{{}} // a peer of no known kind: the rule fails closed
		}
	}
	return out
}

// clusterPeer translates one peer; of one that can't be read nothing is set.
func (p *problems) clusterPeer(field string, in *v1alpha2.ClusterNetworkPolicyEgressPeer) model.ClusterPolicyPeer {
	var out model.ClusterPolicyPeer
	switch {
	case in.Namespaces != nil:
		namespaces, ok := p.requirements(field+".namespaces", in.Namespaces)
		if ok {
			out.Namespaces, out.Pods = &namespaces, &model.Selector{}
		}
	case in.Pods != nil:
		namespaces, ok := p.requirements(field+".pods.namespaceSelector", &in.Pods.NamespaceSelector)
		pods, ok2 := p.requirements(field+".pods.podSelector", &in.Pods.PodSelector)
		if ok && ok2 {
			out.Namespaces, out.Pods = &namespaces, &pods
		}
	case in.Nodes != nil:
		nodes, ok := p.requirements(field+".nodes", in.Nodes)
		if ok {
			out.Nodes = &nodes
		}
	case len(in.Networks) > 0:
		for i, n := range in.Networks {
			prefix := p.prefix(fmt.Sprintf("%s.networks[%d]", field, i), string(n))
			if !prefix.IsValid() {
				return model.ClusterPolicyPeer{}
			}
			out.Networks = append(out.Networks, prefix)
		}
	case len(in.DomainNames) > 0:
		for _, n := range in.DomainNames {
			out.DomainNames = append(out.DomainNames, string(n))
		}
	default:
		p.add(field, "{}", errors.New("no kind of peer that weft knows"))
	}
	return out
}

func (p *problems) clusterPort(field string, in *v1alpha2.ClusterNetworkPolicyProtocol) (model.PolicyPort, bool) {
	var out model.PolicyPort
	var port *v1alpha2.Port
	switch {
	case in.TCP != nil:
		out.Protocol, port = model.TCP, in.TCP.DestinationPort
	case in.UDP != nil:
		out.Protocol, port = model.UDP, in.UDP.DestinationPort
	case in.SCTP != nil:
		out.Protocol, port = model.SCTP, in.SCTP.DestinationPort
	case in.DestinationNamedPort != "":
		return model.PolicyPort{Name: in.DestinationNamedPort}, true
	default:
		p.add(field, "{}", errors.New("no protocol that weft knows"))
		return out, false
	}
	if port == nil { // the CRD wants something: it is something of a newer API
		p.add(field, "{}", errors.New("no destinationPort, and nothing else that weft knows"))
		return out, false
	}
	first, last := port.Number, port.Number
	if port.Range != nil {
		first, last = port.Range.Start, port.Range.End
	}
	if first < 1 || last < first || last > 65535 {
		p.add(field, fmt.Sprintf("%d-%d", first, last), errors.New("want ports from 1 to 65535"))
		return out, false
	}
	out.Port = uint16(first)
	if last > first {
		out.EndPort = uint16(last)
	}
	return out, true
}

// clusterNetworkPolicyFeed follows ClusterNetworkPolicies. Where the CRD is not installed there are none.
func clusterNetworkPolicyFeed(w *Watcher, c dynamic.Interface, silence time.Duration) runner {
	example := &unstructured.Unstructured{}
	example.SetGroupVersionKind(clusterNetworkPolicyKind)
	resource := clusterNetworkPolicyKind.GroupVersion().WithResource("clusternetworkpolicies")
	return &feed[*unstructured.Unstructured, model.ClusterNetworkPolicy]{
		w: w, apiVersion: resource.GroupVersion().String(), kindName: clusterNetworkPolicyKind.Kind, example: example, silence: silence,
		lw: listerOf(c.Resource(resource)), optional: true,
		from: clusterNetworkPolicyFrom,
		put: func(d *model.Delta, n model.Name, v *model.ClusterNetworkPolicy) {
			note(d, &d.ClusterNetworkPolicies, n.Name, v)
		},
	}
}

func clusterNetworkPolicyFrom(u *unstructured.Unstructured) (*model.ClusterNetworkPolicy, error) {
	var p v1alpha2.ClusterNetworkPolicy
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p); err != nil {
		return nil, err
	}
	return FromClusterNetworkPolicy(&p)
}
