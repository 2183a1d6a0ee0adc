// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// cluster is what a cyclonus test case works on: three namespaces of three pods, and what the case's actions make of
// them. It feeds all three: the compiler and kernel, the evaluator, and cyclonus' simulator.
type cluster struct {
	*rig
	rng        *policytest.Range
	namespaces map[string]map[string]string
	labels     map[string]map[string]string // by pod
	policies   map[string]*networkingv1.NetworkPolicy
	numbers    map[string]int // a pod's number in its addresses, for good
}

var servedPorts = []uint16{80, 81}

func (c *cluster) addrs(pod string) []netip.Addr {
	n, ok := c.numbers[pod]
	if !ok {
		n = len(c.numbers) + 1
		c.numbers[pod] = n
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 242, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00:10:244::%x", n))}
}

func (c *cluster) podObject(name string) *model.Pod {
	p := &model.Pod{Meta: model.Meta{Name: named(name), UID: name, Labels: c.labels[name]}, Node: "n1", IPs: c.addrs(name)}
	for _, port := range servedPorts {
		for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			p.Ports = append(p.Ports, model.ContainerPort{Name: portName(port, proto), Protocol: proto, Port: port})
		}
	}
	return p
}

func portName(port uint16, p model.Protocol) string {
	return fmt.Sprintf("serve-%d-%s", port, strings.ToLower(p.String()))
}

// reset brings the cluster to the state that each case starts from.
func (c *cluster) reset() {
	d := delta()
	for name := range c.labels {
		d.Pods[named(name)] = nil
	}
	for name := range c.namespaces {
		d.Namespaces[name] = nil
	}
	for name := range c.policies {
		d.NetworkPolicies[named(name)] = nil
	}
	c.namespaces, c.labels, c.policies = map[string]map[string]string{}, map[string]map[string]string{}, map[string]*networkingv1.NetworkPolicy{}
	for _, ns := range []string{"x", "y", "z"} {
		c.namespaces[ns] = map[string]string{"ns": ns, "kubernetes.io/metadata.name": ns}
		d.Namespaces[ns] = &model.Namespace{Meta: model.Meta{Name: model.Name{Name: ns}, Labels: c.namespaces[ns]}}
		for _, pod := range []string{"a", "b", "c"} {
			name := ns + "/" + pod
			c.labels[name] = map[string]string{"pod": pod}
			d.Pods[named(name)] = c.podObject(name)
		}
	}
	c.send(d)
}

func (c *cluster) send(d *model.Delta) {
	c.t.Helper()
	if err := c.table.Apply(c.k.Update(d)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) act(a *generator.Action) {
	c.t.Helper()
	d := delta()
	setPolicy := func(p *networkingv1.NetworkPolicy) {
		m, err := kube.FromNetworkPolicy(p)
		if err != nil {
			c.t.Fatal(err)
		}
		c.policies[m.Name.String()] = p
		d.NetworkPolicies[m.Name] = m
	}
	setNamespace := func(ns string, l map[string]string) {
		c.namespaces[ns] = maps.Clone(l)
		c.namespaces[ns]["kubernetes.io/metadata.name"] = ns
		d.Namespaces[ns] = &model.Namespace{Meta: model.Meta{Name: model.Name{Name: ns}, Labels: c.namespaces[ns]}}
	}
	setPod := func(ns, pod string, l map[string]string) {
		name := ns + "/" + pod
		c.labels[name] = l
		d.Pods[named(name)] = c.podObject(name)
	}
	switch {
	case a.CreatePolicy != nil:
		setPolicy(a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		setPolicy(a.UpdatePolicy.Policy)
	case a.DeletePolicy != nil:
		n := model.Name{Namespace: a.DeletePolicy.Namespace, Name: a.DeletePolicy.Name}
		delete(c.policies, n.String())
		d.NetworkPolicies[n] = nil
	case a.CreateNamespace != nil:
		setNamespace(a.CreateNamespace.Namespace, a.CreateNamespace.Labels)
	case a.SetNamespaceLabels != nil:
		setNamespace(a.SetNamespaceLabels.Namespace, a.SetNamespaceLabels.Labels)
	case a.DeleteNamespace != nil:
		ns := a.DeleteNamespace.Namespace
		delete(c.namespaces, ns)
		d.Namespaces[ns] = nil
		for name := range c.labels {
			if strings.HasPrefix(name, ns+"/") {
				delete(c.labels, name)
				d.Pods[named(name)] = nil
			}
		}
	case a.CreatePod != nil:
		setPod(a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels)
	case a.SetPodLabels != nil:
		setPod(a.SetPodLabels.Namespace, a.SetPodLabels.Pod, a.SetPodLabels.Labels)
	case a.DeletePod != nil:
		name := a.DeletePod.Namespace + "/" + a.DeletePod.Pod
		delete(c.labels, name)
		d.Pods[named(name)] = nil
	case a.ReadNetworkPolicies != nil: // reads what is there
	default:
		c.t.Fatalf("an action of a new kind: %+v", a)
	}
	c.send(d)
}

// oracle is what cyclonus' simulator says.
func (c *cluster) oracle(m *matcher.Policy, s policytest.Shot) bool {
	peer := func(pod string, addr netip.Addr) *matcher.TrafficPeer {
		ns, _, _ := strings.Cut(pod, "/")
		return &matcher.TrafficPeer{IP: addr.String(), Internal: &matcher.InternalPeer{
			Namespace: ns, NamespaceLabels: c.namespaces[ns], PodLabels: c.labels[pod],
		}}
	}
	return m.IsTrafficAllowed(&matcher.Traffic{
		Source: peer(s.From, c.sourceOf(s)), Destination: peer(s.To, s.Dst.Addr()),
		ResolvedPort: int(s.Dst.Port()), ResolvedPortName: portName(s.Dst.Port(), s.Protocol),
		Protocol: corev1.Protocol(s.Protocol.String()),
	}).IsAllowed()
}

func (c *cluster) sourceOf(s policytest.Shot) netip.Addr {
	for _, a := range c.addrs(s.From) {
		if a.Is6() == s.Dst.Addr().Is6() {
			return a
		}
	}
	panic("no source of this family")
}

// check compares, for every pod with every other one, kernel, evaluator and oracle.
func (c *cluster) check() {
	c.t.Helper()
	pods := slices.Sorted(maps.Keys(c.labels))
	for _, p := range pods {
		c.rng.Pod(p, func() []netip.Addr { return c.addrs(p) })
	}
	shots := c.rng.Shots(pods)
	want := make([]bool, len(shots))
	m := matcher.BuildNetworkPolicies(false, slices.Collect(maps.Values(c.policies)))
	for i, s := range shots {
		want[i] = c.oracle(m, s)
		v := c.k.Evaluate(&policy.Flow{
			Src: c.k.EndpointOf(c.sourceOf(s)), Dst: c.k.EndpointOf(s.Dst.Addr()), Protocol: s.Protocol, Port: s.Dst.Port(),
		})
		if v.Allowed != want[i] {
			c.t.Errorf("%s to %s, %s %s: the evaluator says %v (%s; %s), cyclonus %v", s.From, s.To, s.Protocol, s.Dst, v.Allowed, v.Egress.Why, v.Ingress.Why, want[i])
		}
	}
	if got := c.rng.Fire(c.t, shots, want); !slices.Equal(got, want) {
		c.t.Errorf("the kernel does not do what cyclonus says:%s", policytest.Table(shots, got, want))
	}
}

// Every test case that cyclonus generates, three ways: real packets, the evaluator, and cyclonus' own simulator.
func TestCyclonus(t *testing.T) {
	r := newRig(t)
	c := &cluster{rig: r, rng: policytest.NewRange(t, r.node, servedPorts...), numbers: map[string]int{}}
	for _, target := range []int{0, 1} { // the address of pod z/c that the cases' ipBlocks are built around
		c.reset()
		gen := generator.NewTestCaseGenerator(false, c.addrs("z/c")[target].String(), []string{"x", "y", "z"}, nil, nil)
		for i, tc := range gen.GenerateTestCases() {
			if testing.Short() && i%15 != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%d/%s", i, tc.Description), func(t *testing.T) {
				c.t = t
				c.reset()
				for _, step := range tc.Steps {
					for _, a := range step.Actions {
						c.act(a)
					}
					c.check()
				}
			})
		}
	}
}
