// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-net/weft/internal/model"
)

var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// translate reads a manifest as the commands do.
func translate(t *testing.T, manifest string) (*model.Delta, error) {
	t.Helper()
	ms, err := ParseManifests("in.yaml", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return FromManifests(ms, "default")
}

func TestServiceFromManifest(t *testing.T) {
	d, err := translate(t, `
apiVersion: v1
kind: Service
metadata:
  name: web
  labels: {app: web}
  annotations:
    external-dns.alpha.kubernetes.io/hostname: www.example.com
    kubectl.kubernetes.io/last-applied-configuration: "{}"
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.7, "fd00::7"]
  ipFamilies: [IPv4, IPv6]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080, appProtocol: kubernetes.io/h2c}
  - {name: dns, port: 53, protocol: UDP}
  sessionAffinity: ClientIP
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 31000
  trafficDistribution: PreferClose
  loadBalancerSourceRanges: [192.0.2.0/24, bogus]
  allocateLoadBalancerNodePorts: false
status:
  loadBalancer:
    ingress: [{ip: 203.0.113.5, ipMode: Proxy}, {hostname: lb.example.com}]
`)
	if err == nil || !strings.Contains(err.Error(), `in.yaml:2: Service default/web: spec.loadBalancerSourceRanges[1]: "bogus": not a CIDR`) {
		t.Errorf("error: %v", err)
	}
	n := model.Name{Namespace: "default", Name: "web"}
	want := &model.Service{
		Meta: model.Meta{
			Name: n, Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{"external-dns.alpha.kubernetes.io/hostname": "www.example.com"},
		},
		Type:       model.LoadBalancer,
		Selector:   map[string]string{"app": "web"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd00::7")},
		Families:   []model.Family{model.IPv4, model.IPv6},
		Ports: []model.ServicePort{
			{Name: "http", Protocol: model.TCP, Port: 80, TargetPort: "http", NodePort: 30080, AppProtocol: "kubernetes.io/h2c"},
			{Name: "dns", Protocol: model.UDP, Port: 53, TargetPort: "53"},
		},
		AffinityTimeout: 3 * time.Hour, ExternalLocal: true, InternalLocal: true, HealthCheckNodePort: 31000,
		Distribution: model.PreferSameZone,
		LoadBalancer: model.LoadBalancerSpec{
			SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), {}}, NoNodePorts: true,
		},
		Ingress: []model.LoadBalancerIngress{{IP: netip.MustParseAddr("203.0.113.5"), Proxy: true}, {Hostname: "lb.example.com"}},
	}
	if diff := cmp.Diff(want, d.Services[n], equal); diff != "" {
		t.Errorf("Service (-want +got):\n%s", diff)
	}
}

// The meanings of nil conditions are the API's (discovery/v1 EndpointConditions).
func TestEndpointConditions(t *testing.T) {
	d, err := translate(t, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.1]}
- {addresses: [10.1.0.2], conditions: {ready: true, serving: true, terminating: false}}
- {addresses: [10.1.0.3], conditions: {ready: false}}
- {addresses: [10.1.0.4], conditions: {ready: false, serving: true, terminating: true}, nodeName: n1, zone: a,
   hostname: web-3, targetRef: {kind: Pod, name: web-3}, hints: {forZones: [{name: a}], forNodes: [{name: n1}]}}
`)
	if err != nil {
		t.Fatal(err)
	}
	s := d.EndpointSlices[model.Name{Namespace: "shop", Name: "web-1"}]
	type cond struct{ ready, serving, terminating bool }
	for i, want := range []cond{{true, true, false}, {true, true, false}, {false, false, false}, {false, true, true}} {
		e := s.Endpoints[i]
		if got := (cond{e.Ready, e.Serving, e.Terminating}); got != want {
			t.Errorf("endpoint %d: %+v, want %+v", i, got, want)
		}
	}
	want := model.Endpoint{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.4")}, Serving: true, Terminating: true,
		Hostname: "web-3", Node: "n1", Zone: "a", OfPod: true, Pod: "web-3", HintZones: []string{"a"}, HintNodes: []string{"n1"}}
	if diff := cmp.Diff(want, s.Endpoints[3], equal); diff != "" {
		t.Errorf("endpoint (-want +got):\n%s", diff)
	}
	if s.Service != "web" || s.Ports[0].Protocol != model.TCP {
		t.Errorf("slice: %+v", s)
	}
}

func TestNetworkPolicyDefaults(t *testing.T) {
	policy := func(spec string) *model.NetworkPolicy {
		t.Helper()
		d, err := translate(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: "+spec+"}")
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		return d.NetworkPolicies[model.Name{Namespace: "default", Name: "p"}]
	}
	for _, c := range []struct {
		spec                string
		ingress, egress     bool
		ingressTo, egressTo int
	}{
		{"{podSelector: {}}", true, false, 0, 0},
		{"{podSelector: {}, egress: [{}]}", true, true, 0, 1},
		{"{podSelector: {}, policyTypes: [Egress]}", false, true, 0, 0},
		{"{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []}", true, true, 0, 0},
		{"{podSelector: {}, ingress: [{from: []}]}", true, false, 1, 0},
	} {
		p := policy(c.spec)
		if p.Ingress != c.ingress || p.Egress != c.egress || len(p.IngressFrom) != c.ingressTo || len(p.EgressTo) != c.egressTo {
			t.Errorf("%s: %+v", c.spec, p)
		}
	}
	p := policy(`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: In, values: [w, v]}]}}],
		ports: [{protocol: UDP, port: dns}, {port: 80, endPort: 90}, {}]}]}`)
	want := []model.PolicyRule{{
		Peers: []model.PolicyPeer{{NamespaceSelector: &model.Selector{}, PodSelector: &model.Selector{{Key: "a", Op: model.In, Values: []string{"v", "w"}}}}},
		Ports: []model.PolicyPort{{Protocol: model.UDP, Name: "dns"}, {Protocol: model.TCP, Port: 80, EndPort: 90}, {Protocol: model.TCP}},
	}}
	if diff := cmp.Diff(want, p.IngressFrom, equal); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// What can't be read of a policy may only make it tighter: a rule never loses its last peer or port and so becomes
// one that allows all.
func TestUnreadablePolicyFailsClosed(t *testing.T) {
	for _, rule := range []string{
		"{from: [{ipBlock: {cidr: nonsense}}]}",
		"{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [nonsense]}}]}",
		"{from: [{}]}",
		"{from: [{podSelector: {matchExpressions: [{key: a, operator: Near}]}}]}",
		"{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: NotIn}]}}]}",
		"{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]}",
		"{ports: [{port: 80, endPort: 79}]}",
		"{ports: [{protocol: ICMP}]}",
	} {
		d, err := translate(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}, ingress: ["+rule+"]}}")
		if err == nil {
			t.Errorf("%s: no error", rule)
		}
		if p := d.NetworkPolicies[model.Name{Namespace: "default", Name: "p"}]; !p.Ingress || len(p.IngressFrom) != 0 {
			t.Errorf("%s: still allows %+v", rule, p.IngressFrom)
		}
	}
	for _, c := range []struct{ spec, why string }{
		{"{podSelector: {matchExpressions: [{key: a, operator: Near}]}}", "spec.podSelector.matchExpressions[0].operator"},
		{"{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "spec.podSelector.matchExpressions[0].values"},
		{"{podSelector: {}, policyTypes: [Sideways]}", "spec.policyTypes[0]"},
	} {
		d, err := translate(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: "+c.spec+"}")
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: says %v, want something of %s", c.spec, err, c.why)
		}
		if p := d.NetworkPolicies[model.Name{Namespace: "default", Name: "p"}]; !p.Ingress || !p.PodSelector.Matches(nil) {
			t.Errorf("%s: isolates nobody: %+v", c.spec, p)
		}
	}
}

func TestPodAndNode(t *testing.T) {
	d, err := translate(t, `
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: a}
spec:
  nodeName: n1
  initContainers:
  - {name: once, ports: [{name: gone, containerPort: 1}]}
  - {name: side, restartPolicy: Always, ports: [{name: side, containerPort: 2}]}
  containers: [{name: c, ports: [{name: dns, containerPort: 53, protocol: UDP, hostPort: 5353}]}]
status: {phase: Running, podIPs: [{ip: 10.1.0.1}, {ip: "fd01::1"}], conditions: [{type: Ready, status: "True"}]}
---
# a comment before the document
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a, node.kubernetes.io/exclude-from-external-load-balancers: ""}}
spec: {podCIDRs: [10.1.0.0/24, "fd01::/80"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.11}, {type: Hostname, address: n1}, {type: ExternalIP, address: "2001:db8::1"}]}
`)
	if err != nil {
		t.Fatal(err)
	}
	p := d.Pods[model.Name{Namespace: "a", Name: "p"}]
	wantPorts := []model.ContainerPort{{Name: "side", Protocol: model.TCP, Port: 2}, {Name: "dns", Protocol: model.UDP, Port: 53, HostPort: 5353}}
	if diff := cmp.Diff(wantPorts, p.Ports); diff != "" || len(p.IPs) != 2 || !p.Ready || p.Finished {
		t.Errorf("pod %+v (ports -want +got):\n%s", p, diff)
	}
	n := d.Nodes["n1"]
	if n.Zone != "a" || !n.ExcludedFromLB || len(n.PodCIDRs) != 2 || len(n.InternalIPs) != 1 || len(n.ExternalIPs) != 1 || n.Ready || !n.Unreachable {
		t.Errorf("node: %+v", n)
	}
}

// TestUnreachableNode: a node that says itself that it is not Ready is heard of.
func TestUnreachableNode(t *testing.T) {
	for status, want := range map[corev1.ConditionStatus]bool{corev1.ConditionTrue: false, corev1.ConditionFalse: false, corev1.ConditionUnknown: true} {
		n, err := FromNode(&corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeReady, Status: status}}}})
		if err != nil || n.Unreachable != want || n.Ready != (status == corev1.ConditionTrue) {
			t.Errorf("Ready is %s: ready %v, unreachable %v, %v", status, n.Ready, n.Unreachable, err)
		}
	}
}

func TestManifestErrorsNameFileAndLine(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a: b\n---\n\n# note\n: bad: yaml: [\n", "in.yaml:5: not YAML"},
		{"kind: Service\n", "in.yaml:1: not a Kubernetes object"},
		{"apiVersion: v1\nkind: Service\nspec: {ports: 7}\n", "in.yaml:1: not a Kubernetes object"},
	} {
		in := c.in
		if strings.HasPrefix(in, "a: b") {
			in = strings.Replace(in, "a: b", "apiVersion: v1\nkind: Namespace", 1)
			c.want = "in.yaml:6: not YAML"
		}
		if _, err := ParseManifests("in.yaml", []byte(in)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", in, err, c.want)
		}
	}
}

// Lists are taken apart, kinds that client-go does not know are kept, folders are read.
func TestReadManifests(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("list.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: weft.dev/v1alpha1, kind: AddressPool, metadata: {name: pool}}\n")
	write("one.json", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"}}`)
	write("README.md", "not: [a manifest")
	ms, err := ReadManifests(dir)
	if err != nil || len(ms) != 3 {
		t.Fatalf("%d objects, %v", len(ms), err)
	}
	d, err := FromManifests(ms, "team")
	if err != nil || d.Services[model.Name{Namespace: "team", Name: "s"}] == nil || d.Namespaces["a"].Labels["kubernetes.io/metadata.name"] != "a" {
		t.Errorf("%+v, %v", d, err)
	}
}

// A lean watcher leaves out what only people ask for, and changes no object of the API.
func TestLean(t *testing.T) {
	in := &corev1.Service{Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "x"}, ClusterIP: "10.96.0.1",
		Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
		Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: "x.example/y"},
			{Type: model.ConditionAddressAssigned, Status: metav1.ConditionTrue, Reason: "R", Message: "m"}}}}
	if s, err := FromService(in); err != nil || s.AddressCondition == nil || *s.AddressCondition != (model.Condition{Status: true, Reason: "R", Message: "m"}) {
		t.Errorf("condition %+v, %v", s.AddressCondition, err)
	}
	s, err := leanService(in)
	if err != nil || len(s.Selector) != 0 || s.AddressCondition != nil || s.Ports[0].TargetPort != "" || s.Ports[0].Port != 80 || len(s.ClusterIPs) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if len(in.Spec.Selector) != 1 || len(in.Status.Conditions) != 2 {
		t.Error("the API's object was changed")
	}
	e, err := leanEndpointSlice(&discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{
		{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"}}}})
	if err != nil || len(e.Endpoints) != 1 || e.Endpoints[0].Pod != "" {
		t.Errorf("%+v, %v", e, err)
	}
}

func FuzzParseManifests(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Service\n---\nkind: List\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"kind":"x"}]}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if ms, err := ParseManifests("f", data); err == nil {
			_, _ = FromManifests(ms, "default")
		}
	})
}

// TestFromSecret puts stringData over data, as the API server does, and leaves the object as it is.
func TestFromSecret(t *testing.T) {
	in := &corev1.Secret{Data: map[string][]byte{"a": []byte("old"), "b": []byte("kept")}, StringData: map[string]string{"a": "new"}}
	out, err := FromSecret(in)
	if err != nil || string(out.Data["a"]) != "new" || string(out.Data["b"]) != "kept" || string(in.Data["a"]) != "old" {
		t.Errorf("%v, %v; the object has %s", out.Data, err, in.Data["a"])
	}
}
