// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

func TestClusterNetworkPolicy(t *testing.T) {
	ms, err := ParseManifests("policy.yaml", []byte(`
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: db}}}}
  ingress:
  - {name: monitor, action: Accept, from: [{namespaces: {matchLabels: {team: ops}}}], protocols: [{tcp: {destinationPort: {range: {start: 9000, end: 9100}}}}, {destinationNamedPort: metrics}]}
  - {action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {}}}]}
  egress:
  - {action: Deny, to: [{networks: ["10.0.0.0/8", "fd00::/8"]}, {nodes: {}}]}
  - {action: Accept, to: [{domainNames: ["*.example.com"]}], protocols: [{udp: {destinationPort: {number: 53}}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: newer}
spec:
  tier: Baseline
  priority: 1
  subject: {somethingNew: {}}
  ingress:
  - {action: Accept, from: [{namespaces: {}}]}
  - {action: Deny, from: [{somethingNew: {}}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	d, err := FromManifests(ms, "default")
	if err == nil || !strings.Contains(err.Error(), "policy.yaml:16: ClusterNetworkPolicy newer: spec.subject") {
		t.Errorf("of a field it does not know it says: %v", err)
	}
	labels := func(k, v string) *model.Selector {
		s := model.MatchLabels(map[string]string{k: v})
		return &s
	}
	got := d.ClusterNetworkPolicies["guard"]
	want := &model.ClusterNetworkPolicy{
		Meta: got.Meta, Tier: model.AdminTier, Priority: 7, Namespaces: *labels("team", "a"), Pods: *labels("app", "db"),
		IngressFrom: []model.ClusterPolicyRule{
			{Name: "monitor", Action: model.AcceptTraffic, Peers: []model.ClusterPolicyPeer{{Namespaces: labels("team", "ops"), Pods: &model.Selector{}}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, Port: 9000, EndPort: 9100}, {Name: "metrics"}}},
			{Action: model.PassTraffic, Peers: []model.ClusterPolicyPeer{{Namespaces: &model.Selector{}, Pods: &model.Selector{}}}},
		},
		EgressTo: []model.ClusterPolicyRule{
			{Action: model.DenyTraffic, Peers: []model.ClusterPolicyPeer{
				{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}, {Nodes: &model.Selector{}}}},
			{Action: model.AcceptTraffic, Peers: []model.ClusterPolicyPeer{{DomainNames: []string{"*.example.com"}}},
				Ports: []model.PolicyPort{{Protocol: model.UDP, Port: 53}}},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	newer := d.ClusterNetworkPolicies["newer"]
	if len(newer.IngressFrom) != 1 || newer.IngressFrom[0].Action != model.DenyTraffic {
		t.Errorf("a policy whose subject is unknown may only deny: %+v", newer)
	}
}

// An unreadable part of a subject may only widen whom a Deny is about, one of a peer or a port makes its rule fail closed.
func TestUnreadableClusterNetworkPolicyFailsClosed(t *testing.T) {
	const near = "{matchExpressions: [{key: a, operator: in, values: [b]}]}"
	read := func(subject, rules string) *model.ClusterNetworkPolicy {
		t.Helper()
		ms, err := ParseManifests("policy.yaml", []byte("{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: p}, "+
			"spec: {tier: Admin, priority: 1, subject: "+subject+", egress: "+rules+"}}"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := FromManifests(ms, "default")
		if err == nil {
			t.Errorf("subject %s, rules %s: no error", subject, rules)
		}
		return d.ClusterNetworkPolicies["p"]
	}
	for _, subject := range []string{
		"{namespaces: " + near + "}",
		"{pods: {namespaceSelector: " + near + ", podSelector: {}}}",
		"{pods: {namespaceSelector: {}, podSelector: " + near + "}}",
	} {
		p := read(subject, "[{action: Accept, to: [{namespaces: {}}]}, {action: Pass, to: [{namespaces: {}}]}, {action: Deny, to: [{nodes: {}}]}]")
		if !p.Namespaces.Matches(nil) || !p.Pods.Matches(nil) {
			t.Errorf("subject %s: is about %v %v", subject, p.Namespaces, p.Pods)
		}
		if len(p.EgressTo) != 2 || p.EgressTo[0].Action != model.DenyTraffic || p.EgressTo[1].Action != model.DenyTraffic {
			t.Errorf("subject %s: does %+v", subject, p.EgressTo)
		}
	}
	for _, rule := range []string{
		"to: [{namespaces: " + near + "}]",
		"to: [{namespaces: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]",
		"to: [{pods: {namespaceSelector: {}, podSelector: " + near + "}}]",
		"to: [{nodes: " + near + "}]",
		"to: [{networks: [nonsense]}]",
		"to: [{namespaces: {}}], protocols: [{tcp: {sourcePort: 1}}]",
		"to: [{namespaces: {}}], protocols: [{quic: {}}]",
	} {
		p := read("{namespaces: {}}", "[{action: Deny, "+rule+"}]")
		if peers := p.EgressTo[0].Peers; len(peers) != 1 || !reflect.DeepEqual(peers[0], model.ClusterPolicyPeer{}) {
			t.Errorf("%s: the peer is read as %+v", rule, peers)
		}
	}
}
