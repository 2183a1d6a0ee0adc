// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// rules are the peers and ports of one rule.
func allowing(peers []model.PolicyPeer, ports ...model.PolicyPort) model.PolicyRule {
	return model.PolicyRule{Peers: peers, Ports: ports}
}

func fromPods(s string) []model.PolicyPeer { return []model.PolicyPeer{{PodSelector: sel(s)}} }
func fromSpaces(s string) []model.PolicyPeer {
	return []model.PolicyPeer{{NamespaceSelector: sel(s)}}
}
func fromBoth(ns, pods string) []model.PolicyPeer {
	return []model.PolicyPeer{{NamespaceSelector: sel(ns), PodSelector: sel(pods)}}
}
func fromBlock(s string, except ...string) []model.PolicyPeer {
	p := model.PolicyPeer{Block: netip.MustParsePrefix(s)}
	for _, e := range except {
		p.Except = append(p.Except, netip.MustParsePrefix(e))
	}
	return []model.PolicyPeer{p}
}
func tcp(port uint16) model.PolicyPort { return model.PolicyPort{Protocol: model.TCP, Port: port} }

func policyFor(name, pods string, ingress, egress []model.PolicyRule) *model.NetworkPolicy {
	return &model.NetworkPolicy{Meta: model.Meta{Name: named(name)}, PodSelector: *sel(pods),
		Ingress: ingress != nil, IngressFrom: ingress, Egress: egress != nil, EgressTo: egress}
}

// place is the cluster of the tables below.
func place(policies ...any) *Cluster {
	c := NewCluster()
	hostNet := pod("a/host", "app=host", "192.0.2.1")
	hostNet.HostNetwork = true
	c.Apply(delta(append([]any{
		namespace("a", "team=a"), namespace("b", "team=b"), tunnelled(node("n1", "192.0.2.1", "2001:db8::1"), "10.9.1.0/24", "fd09:1::/64"),
		tunnelled(node("n2", "192.0.2.2"), "10.9.2.0/24"), hostNet,
		pod("a/web", "app=web", "10.0.0.1", "fd00::1"), pod("a/db", "app=db", "10.0.0.2", "fd00::2"),
		pod("b/web", "app=web", "10.0.0.3", "fd00::3"), pod("b/db", "app=db", "10.0.0.4", "fd00::4"),
	}, policies...)...))
	return c
}

func node(name string, addrs ...string) *model.Node {
	n := &model.Node{Meta: model.Meta{Name: model.Name{Name: name}, Labels: map[string]string{"node": name}}}
	for _, a := range addrs {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(a))
	}
	return n
}

func tunnelled(n *model.Node, podCIDRs ...string) *model.Node {
	for _, c := range podCIDRs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

// A peer of nodes means them under whatever address they send from.
func TestNodesAsPeers(t *testing.T) {
	c := place(&model.ClusterNetworkPolicy{Meta: model.Meta{Name: model.Name{Name: "x"}}, EgressTo: []model.ClusterPolicyRule{
		{Action: model.DenyTraffic, Peers: []model.ClusterPolicyPeer{{Nodes: sel("node=n2")}}}}})
	for to, want := range map[string]bool{"192.0.2.2": false, "10.9.2.0": false, "192.0.2.1": true, "10.9.1.0": true, "10.9.2.1": true} {
		f := flow(c, "a/web", to, "tcp/80")
		if v := c.Evaluate(f); v.Allowed != want {
			t.Errorf("to %s (%s): %v, want %v: %s", to, f.Dst, v.Allowed, want, v.Egress.Why)
		}
	}
}

func flow(c *Cluster, from, to, port string) *Flow {
	at := func(s string) Endpoint {
		if a, err := netip.ParseAddr(s); err == nil {
			return c.EndpointOf(a)
		}
		return c.EndpointOf(c.Pod(named(s)).IPs[0])
	}
	f := &Flow{Src: at(from), Dst: at(to)}
	if port == "icmp" {
		f.Protocol = 1
		return f
	}
	proto, n, _ := strings.Cut(port, "/")
	f.Protocol, _ = model.ParseProtocol(proto)
	fmt.Sscan(n, &f.Port)
	return f
}

func TestEvaluate(t *testing.T) {
	none, all := []model.PolicyRule{}, []model.PolicyRule{{}}
	only := func(r ...model.PolicyRule) []model.PolicyRule { return r }
	for _, tc := range []struct {
		what     string
		policies []any
		flows    string // "from to port", "!" before those that are not allowed
	}{
		{"no policy", nil, "a/web a/db tcp/80; 8.8.8.8 a/db tcp/80; a/web 8.8.8.8 icmp"},
		{"an empty list of rules admits nothing", []any{policyFor("a/p", "app=db", none, nil)},
			"!a/web a/db tcp/80; !8.8.8.8 a/db icmp; a/db a/web tcp/80; a/db b/db tcp/80; b/web b/db tcp/80"},
		{"an empty rule admits all", []any{policyFor("a/p", "app=db", all, nil)}, "b/web a/db tcp/80; 8.8.8.8 a/db icmp"},
		{"the empty selector means every pod of the namespace", []any{policyFor("a/p", "", none, nil)}, "!b/web a/db tcp/1; !b/web a/web tcp/1; a/web b/web tcp/1"},
		{"egress alone leaves ingress open", []any{policyFor("a/p", "app=db", nil, none)}, "!a/db a/web tcp/80; !a/db 8.8.8.8 udp/53; a/web a/db tcp/80"},
		{"a pod selector alone means the policy's namespace", []any{policyFor("a/p", "app=db", only(allowing(fromPods("app=web"))), nil)},
			"a/web a/db tcp/80; !b/web a/db tcp/80"},
		{"a namespace selector alone means all its pods", []any{policyFor("a/p", "app=db", only(allowing(fromSpaces("team=b"))), nil)},
			"!a/web a/db tcp/80; b/web a/db tcp/80; b/db a/db tcp/80; !8.8.8.8 a/db tcp/80"},
		{"an empty namespace selector means all namespaces", []any{policyFor("a/p", "app=db", only(allowing(fromSpaces(""))), nil)},
			"a/web a/db tcp/80; b/web a/db tcp/80; !8.8.8.8 a/db tcp/80"},
		{"both selectors in one peer must hold", []any{policyFor("a/p", "app=db", only(allowing(fromBoth("team=b", "app=web"))), nil)},
			"b/web a/db tcp/80; !b/db a/db tcp/80; !a/web a/db tcp/80"},
		{"either of two peers is enough", []any{policyFor("a/p", "app=db", only(allowing(append(fromSpaces("team=b"), fromPods("app=web")...))), nil)},
			"b/web a/db tcp/80; b/db a/db tcp/80; a/web a/db tcp/80"},
		{"a block, without its exceptions", []any{policyFor("a/p", "app=db", only(allowing(fromBlock("8.0.0.0/8", "8.8.0.0/16"))), nil)},
			"8.1.1.1 a/db tcp/80; !8.8.8.8 a/db tcp/80; !9.1.1.1 a/db tcp/80; !a/web a/db tcp/80"},
		{"a block counts pods too", []any{policyFor("a/p", "app=db", only(allowing(fromBlock("10.0.0.0/24"))), nil)}, "a/web a/db tcp/80; b/web a/db tcp/80"},
		{"a block of one family says nothing of the other", []any{policyFor("a/p", "app=db", only(allowing(fromBlock("0.0.0.0/0"))), nil)},
			"a/web a/db tcp/80; !fd00::1 fd00::2 tcp/80"},
		{"ports", []any{policyFor("a/p", "app=db", only(allowing(nil, tcp(80), model.PolicyPort{Protocol: model.UDP})), nil)},
			"a/web a/db tcp/80; !a/web a/db tcp/81; a/web a/db udp/1; !a/web a/db sctp/80; !a/web a/db icmp"},
		{"a range of ports", []any{policyFor("a/p", "app=db", only(allowing(nil, model.PolicyPort{Protocol: model.TCP, Port: 80, EndPort: 90})), nil)},
			"!a/web a/db tcp/79; a/web a/db tcp/80; a/web a/db tcp/90; !a/web a/db tcp/91; !a/web a/db udp/80"},
		{"a port by name means what it does on the destination", []any{policyFor("a/p", "app=db", nil, only(allowing(nil, model.PolicyPort{Protocol: model.TCP, Name: "http"})))},
			"a/db b/web tcp/80; !a/db b/web tcp/81; !a/db 8.8.8.8 tcp/80; !a/db b/web udp/80"},
		{"policies add up", []any{policyFor("a/p", "app=db", none, nil), policyFor("a/q", "", only(allowing(fromPods("app=web"), tcp(80))), nil)},
			"a/web a/db tcp/80; !a/web a/db tcp/81; !b/web a/web tcp/80"},
		{"both ends must agree", []any{policyFor("a/p", "app=db", all, nil), policyFor("b/q", "app=web", nil, none)}, "!b/web a/db tcp/80; b/db a/db tcp/80"},
		{"a node reaches its own pods", []any{policyFor("a/p", "", none, none)}, "192.0.2.1 a/db tcp/80; 2001:db8::1 fd00::2 tcp/80; !192.0.2.2 a/db tcp/80; !a/db 192.0.2.1 tcp/80"},
		{"a node is its address on tunnels too", []any{policyFor("a/p", "", none, none)}, "10.9.1.0 a/db tcp/80; fd09:1:: fd00::2 tcp/80; !10.9.2.0 a/db tcp/80; !10.9.1.1 a/db tcp/80"},
		{"a pod reaches itself", []any{policyFor("a/p", "", none, none)}, "a/db a/db tcp/80"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			c := place(tc.policies...)
			for one := range strings.SplitSeq(tc.flows, "; ") {
				words := strings.Fields(strings.TrimPrefix(one, "!"))
				f := flow(c, words[0], words[1], words[2])
				if v := c.Evaluate(f); v.Allowed == strings.HasPrefix(one, "!") || c.Allows(f) != v.Allowed {
					t.Errorf("%s: allowed %v (egress: %s; ingress: %s)", one, v.Allowed, v.Egress.Why, v.Ingress.Why)
				}
			}
		})
	}
}

func clusterPolicy(name string, tier model.PolicyTier, priority int, rules ...model.ClusterPolicyRule) *model.ClusterNetworkPolicy {
	return &model.ClusterNetworkPolicy{Meta: model.Meta{Name: model.Name{Name: name}}, Tier: tier, Priority: priority, Namespaces: *sel("team=a"), IngressFrom: rules}
}

func TestTiers(t *testing.T) {
	act := func(a model.PolicyAction, ns string, ports ...model.PolicyPort) model.ClusterPolicyRule {
		return model.ClusterPolicyRule{Action: a, Ports: ports, Peers: []model.ClusterPolicyPeer{{Namespaces: sel(ns), Pods: &model.Selector{}}}}
	}
	deny := policyFor("a/deny", "", []model.PolicyRule{}, nil)
	open := policyFor("a/open", "", []model.PolicyRule{{}}, nil)
	half := act(model.AcceptTraffic, "team=b")
	half.Peers = append(half.Peers, model.ClusterPolicyPeer{})
	unknown := model.ClusterPolicyRule{Action: model.PassTraffic, Peers: []model.ClusterPolicyPeer{{}}}
	for _, tc := range []struct {
		what     string
		policies []any
		allowed  bool
		by       string // part of the reason
	}{
		{"Admin Accept beats an isolating policy", []any{deny, clusterPolicy("x", model.AdminTier, 1, act(model.AcceptTraffic, "team=b"))}, true, "ClusterNetworkPolicy x (Admin tier, priority 1)"},
		{"Admin Deny beats an open one", []any{open, clusterPolicy("x", model.AdminTier, 1, act(model.DenyTraffic, "team=b"))}, false, "ClusterNetworkPolicy x"},
		{"the lower priority is tried first", []any{clusterPolicy("x", model.AdminTier, 2, act(model.DenyTraffic, "")), clusterPolicy("y", model.AdminTier, 1, act(model.AcceptTraffic, "team=b"))}, true, "ClusterNetworkPolicy y"},
		{"rules are tried in order", []any{clusterPolicy("x", model.AdminTier, 1, act(model.DenyTraffic, "team=b", tcp(81)), act(model.AcceptTraffic, ""))}, true, "ingress[1]"},
		{"Pass ends the tier", []any{deny, clusterPolicy("x", model.AdminTier, 1, act(model.PassTraffic, "team=b"), act(model.AcceptTraffic, ""))}, false, "isolated for ingress by NetworkPolicy a/deny"},
		{"Baseline has no say over an isolated pod", []any{deny, clusterPolicy("x", model.BaselineTier, 1, act(model.AcceptTraffic, ""))}, false, "NetworkPolicy a/deny"},
		{"Baseline decides for others", []any{clusterPolicy("x", model.BaselineTier, 1, act(model.DenyTraffic, ""))}, false, "(Baseline tier"},
		{"what nobody decides is open", []any{clusterPolicy("x", model.BaselineTier, 1, act(model.DenyTraffic, "team=z"))}, true, "no policy isolates"},
		{"an Accept with a peer of a newer API beside others accepts nothing", []any{deny, clusterPolicy("x", model.AdminTier, 1, half)}, false, "NetworkPolicy a/deny"},
		{"a peer of a newer API fails closed", []any{clusterPolicy("x", model.AdminTier, 1, unknown)}, false, "Deny any port from anyone"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			c := place(tc.policies...)
			v := c.Evaluate(flow(c, "b/web", "a/db", "tcp/80"))
			if v.Allowed != tc.allowed || !strings.Contains(v.Ingress.Why, tc.by) {
				t.Errorf("allowed %v: %s; want %v by %q", v.Allowed, v.Ingress.Why, tc.allowed, tc.by)
			}
		})
	}
}

func TestReasonsAndRemedies(t *testing.T) {
	for _, tc := range []struct {
		what           string
		policy         *model.NetworkPolicy
		from, to, port string
		why, remedy    string
	}{
		{"the wrong port", policyFor("a/p", "app=db", []model.PolicyRule{allowing(fromPods("app=web"), tcp(5432))}, nil), "a/web", "a/db", "tcp/80",
			"rule ingress[0] is only for TCP 5432, not TCP 80", "spec.ingress[0].ports: - {protocol: TCP, port: 80}"},
		{"the wrong peer", policyFor("a/p", "app=db", []model.PolicyRule{allowing(fromPods("app=web"), tcp(80))}, nil), "b/web", "a/db", "tcp/80",
			"rule ingress[0] is only for traffic from pods with app=web in namespace a; pod b/web (app=web) does not match",
			"spec.ingress[0].from: - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}\n  podSelector: {matchLabels: {app: \"web\"}}"},
		{"neither", policyFor("a/p", "app=db", []model.PolicyRule{allowing(fromPods("app=web"), tcp(5432))}, nil), "8.8.8.8", "a/db", "tcp/80",
			"8.8.8.8 does not match, and for TCP 5432, not TCP 80",
			"spec.ingress: - from:\n  - ipBlock: {cidr: 8.8.8.8/32}\n  ports:\n  - {protocol: TCP, port: 80}"},
		{"no rules", policyFor("a/p", "app=db", nil, []model.PolicyRule{}), "a/db", "a/web", "tcp/80",
			"it has no egress rule, so it admits nothing", "spec.egress: - to:\n  - podSelector: {matchLabels: {app: \"web\"}}\n  ports:\n  - {protocol: TCP, port: 80}"},
		{"a name that the destination has not got", policyFor("a/p", "app=db", nil, []model.PolicyRule{allowing(nil, model.PolicyPort{Protocol: model.TCP, Name: "grpc"})}), "a/db", "a/web", "tcp/80",
			`pod a/web has no container port named "grpc"`, "spec.egress[0].ports: - {protocol: TCP, port: 80}"},
		{"a name that is another number there", policyFor("a/p", "app=db", nil, []model.PolicyRule{allowing(nil, model.PolicyPort{Protocol: model.TCP, Name: "http"})}), "a/db", "a/web", "tcp/81",
			`"http" is TCP 80 on pod a/web`, "spec.egress[0].ports: - {protocol: TCP, port: 81}"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			c := place(tc.policy)
			f := flow(c, tc.from, tc.to, tc.port)
			v := c.Evaluate(f)
			side := &v.Ingress
			if !v.Egress.Allowed {
				side = &v.Egress
			}
			if side.Allowed || !strings.Contains(side.Findings[0].Why, tc.why) {
				t.Errorf("why: %+v, want %q", side.Findings, tc.why)
			}
			r := c.Remedy(side, f)
			if r == nil || r.Field+": "+r.YAML != tc.remedy {
				t.Errorf("remedy %+v, want %q", r, tc.remedy)
			}
		})
	}
}
