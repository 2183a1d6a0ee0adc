// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// read makes a World of manifests.
func read(t *testing.T, manifests ...string) *World {
	t.Helper()
	ms, err := kube.ParseManifests("in.yaml", []byte(strings.Join(manifests, "\n---\n")))
	if err != nil {
		t.Fatal(err)
	}
	c, err := offline.FromManifests(offline.Options{Namespace: "shop"}, ms)
	if err != nil {
		t.Fatal(err)
	}
	return worldOf(t, c)
}

func deployment(name, labels string) string {
	return fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: %s, namespace: shop}\nspec: {selector: {matchLabels: {app: x}}, template: {metadata: {labels: {%s}}, spec: {containers: [{name: c, image: x}]}}}", name, labels)
}

func networkPolicy(name, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: shop}\nspec: {%s}", name, spec)
}

var webAndDB = deployment("web", "app: web") + "\n---\n" + deployment("db", "app: db")

func egressOf(rule string) string {
	return networkPolicy("web", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: ["+rule+"]")
}

func ingressOf(rule string) string {
	return networkPolicy("db", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: ["+rule+"]")
}

// What a change opens and closes is told for every address and port, not for a sample.
func TestDiffSeesEveryAddressAndPort(t *testing.T) {
	for _, tc := range []struct{ name, before, after, want string }{
		{"a block is widened", egressOf("{to: [{ipBlock: {cidr: 10.1.1.100/32}}]}"), egressOf("{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}"),
			// 10.244.0.0/16, of which pods are, is in it.
			"+ shop/web → shop/db, shop/web, 10.0.0.0/8 except 10.1.1.100/32: all"},
		{"a block is let in", ingressOf(""), ingressOf("{from: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 443}]}"),
			"+ 198.51.100.0/24 → shop/db: TCP 443"},
		{"an exception is made", ingressOf("{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}"), ingressOf("{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [198.51.100.0/24]}}]}"),
			"- 198.51.100.0/24 → shop/db: all"},
		{"a block is split", egressOf("{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}"), egressOf("{to: [{ipBlock: {cidr: 192.0.2.0/25}}, {ipBlock: {cidr: 192.0.2.128/25}}]}"), ""},
		{"all of the world but what was named", egressOf("{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}"), egressOf("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}"),
			"+ shop/web → shop/db, shop/web, outside except 198.51.100.0/24: all"},
		{"a range ends earlier", ingressOf("{ports: [{port: 30000, endPort: 32000}]}"), ingressOf("{ports: [{port: 30000, endPort: 31000}]}"),
			"- shop/db, shop/web, outside → shop/db: TCP 31001-32000"},
		{"all ports of a protocol", ingressOf("{ports: [{port: 80}]}"), ingressOf("{ports: [{protocol: TCP}]}"),
			"+ shop/db, shop/web, outside → shop/db: TCP 1-79, TCP 81-65535"},
		{"another protocol", ingressOf("{ports: [{port: 53}]}"), ingressOf("{ports: [{port: 53, protocol: SCTP}]}"),
			"+ shop/db, shop/web, outside → shop/db: SCTP 53\n- shop/db, shop/web, outside → shop/db: TCP 53"},
	} {
		var got []string
		for _, d := range Diff(read(t, webAndDB, tc.before), read(t, webAndDB, tc.after)).Differences {
			got = append(got, d.String())
		}
		if text := strings.Join(got, "\n"); text != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tc.name, text, tc.want)
		}
	}
}

// A workload is the same one before and after, whatever its labels are then and whichever it was like.
func TestDiffFollowsWorkloads(t *testing.T) {
	deny := networkPolicy("green", "podSelector: {matchLabels: {color: green}}, policyTypes: [Ingress]")
	before := read(t, deployment("web-blue", "app: web"), deployment("web-green", "app: web"))
	after := read(t, deployment("web-blue", "app: web"), deployment("web-green", "app: web, color: green"), deployment("extra", "app: extra"), deny)
	c := Diff(before, after)
	if got := fmt.Sprint(c.Differences); got != "[- shop/web-blue, shop/web-green, outside → shop/web-green: all]" {
		t.Error(got)
	}
	if fmt.Sprint(c.Added, c.Removed) != "[shop/extra] []" {
		t.Error(c.Added, c.Removed)
	}

	// A DaemonSet's pods have random names in a cluster, and the manifest's in files.
	daemon := "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: agent, namespace: shop}\nspec: {selector: {matchLabels: {app: agent}}, template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: c, image: x}]}}}"
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: agent-x7k2p, namespace: shop, labels: {app: agent, controller-revision-hash: abc, pod-template-generation: \"1\"}}\nspec: {containers: [{name: c, image: x}]}"
	c = Diff(read(t, pod), read(t, daemon, networkPolicy("none", "podSelector: {}, policyTypes: [Egress]")))
	if len(c.Added)+len(c.Removed) != 0 || len(c.Differences) == 0 {
		t.Errorf("%+v", c)
	}
}

// A namespace's connections are those with others too.
func TestDiffOfNamespaces(t *testing.T) {
	ops := "apiVersion: v1\nkind: Pod\nmetadata: {name: probe, namespace: ops, labels: {app: probe}}\nspec: {containers: [{name: c, image: x}]}"
	c := Diff(read(t, webAndDB, ops, ingressOf("")), read(t, webAndDB, ops, ingressOf("{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: probe}}}]}")), "shop")
	if got := fmt.Sprint(c.Differences); got != "[+ ops/probe → shop/db: all]" {
		t.Error(got)
	}
	if c := Diff(read(t, webAndDB, ingressOf("")), read(t, webAndDB, ops, ingressOf("{}")), "ops"); len(c.Differences) != 0 || fmt.Sprint(c.Added) != "[ops/probe]" {
		t.Errorf("%+v", c)
	}
}

// The matrix of a namespace has the pods of others too, in as few rows as are judged differently by either side's
// policies; what is between those of other namespaces nobody asked.
func TestMatrixOfANamespace(t *testing.T) {
	pod := func(namespace, name string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {app: %[1]s}}\nspec: {containers: [{name: c, image: x}]}", name, namespace)
	}
	all := []string{webAndDB,
		ingressOf("{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], ports: [{port: 9090}]}"),
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut, namespace: dev}\nspec: {podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress]}",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: dev}\n" +
			"spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: {matchLabels: {app: web}}}]}]}",
		pod("monitoring", "grafana"), pod("monitoring", "prometheus")}
	for _, n := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		all = append(all, pod("dev", n), pod("stage", n))
	}
	m := read(t, all...).Matrix("shop")
	var b bytes.Buffer
	m.WriteTable(&b)
	golden(t, "matrix-namespace.txt", b.String())
	for _, c := range m.Connections() {
		if c.From == OtherNamespaces && c.To == "monitoring/*" || c.From == "dev/a" && c.To == Outside {
			t.Errorf("%s to %s: nobody asked", c.From, c.To)
		}
	}
	b.Reset()
	m.WriteDOT(&b)
	if strings.Contains(b.String(), `label=""`) {
		t.Error("an arrow that says nothing:\n" + b.String())
	}
	pods := 0
	for _, g := range m.Groups {
		pods += g.Pods
	}
	if pods != 18 {
		t.Errorf("%d pods are in the matrix, want 18", pods)
	}
	// All alike: one row, which says of whom it is not.
	if m := read(t, webAndDB, pod("dev", "a"), pod("stage", "b")).Matrix("shop"); len(m.Groups) != 4 || m.Groups[2].Name != OtherNamespaces || m.Groups[2].Pods != 2 {
		t.Errorf("%+v", m.Groups)
	}
}

// What policies let out by name is told by name.
func TestMatrixByName(t *testing.T) {
	w := load(t, "testdata/names.yaml")
	var b bytes.Buffer
	w.Matrix("shop").WriteTable(&b)
	if !strings.Contains(b.String(), "*.partner.example") {
		t.Error(b.String())
	}
	for _, c := range w.Matrix("shop").Connections() {
		if want := map[string]string{"*.partner.example": "TCP 443", "outside": "-"}[c.To]; want != "" && c.From == "shop/web" && c.String() != want {
			t.Errorf("%s: %s, want %s", c.To, c, want)
		}
	}
}

func TestMatrixIsExact(t *testing.T) {
	for _, tc := range []struct{ name, policy, want string }{
		{"from a block", ingressOf("{from: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 5432}]}"), "198.51.100.0/24 to db: TCP 5432; outside to db: -; web to db: -"},
		{"a range", ingressOf("{ports: [{port: 30000, endPort: 32000}]}"), "web to db: TCP 30000-32000; outside to db: TCP 30000-32000"},
		{"every port of TCP by range", ingressOf("{ports: [{port: 1, endPort: 65535}]}"), "web to db: TCP"},
		{"every port of TCP", ingressOf("{ports: [{protocol: TCP}]}"), "web to db: TCP"},
		{"all protocols", ingressOf("{}"), "web to db: all; outside to db: all"},
		{"blocks of which the same is true", egressOf("{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}}]}"),
			"web to outside: all; web to 10.0.0.0/8, 192.168.0.0/16: -; web to db: -"},
	} {
		w := read(t, webAndDB, tc.policy)
		got := map[string]string{}
		for _, c := range w.Matrix().Connections() {
			got[strings.ReplaceAll(c.From+" to "+c.To, "shop/", "")] = c.String()
		}
		for _, want := range strings.Split(tc.want, "; ") {
			if k, v, _ := strings.Cut(want, ": "); got[k] != v {
				t.Errorf("%s: %s: got %q of %v", tc.name, want, got[k], got)
			}
		}
	}
}

// Whatever the policies are: what is said of two ends is true of every port, and of every address of a part of the outside.
func TestReachAgreesWithPolicies(t *testing.T) {
	for seed := range uint64(25) {
		r := policytest.NewWorld(seed, 10)
		d := &model.Delta{Pods: map[model.Name]*model.Pod{}, Nodes: map[string]*model.Node{}, Namespaces: map[string]*model.Namespace{},
			NetworkPolicies: map[model.Name]*model.NetworkPolicy{}, ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{}}
		for range 10 {
			p, np, cnp, ns := r.Pod(), r.Policy(), r.ClusterPolicy(), r.Namespace()
			d.Pods[p.Name], d.NetworkPolicies[np.Name], d.ClusterNetworkPolicies[cnp.Name.Name], d.Namespaces[ns.Name.Name] = p, np, cnp, ns
		}
		w, err := NewWorld(d, Options{})
		if err != nil {
			t.Fatal(err)
		}
		cuts := w.blocks(nil)
		parts := regions(cuts, w)
		ends := w.ends(nil, cuts)
		endOf := func(a netip.Addr) *end {
			if e := w.Policy.EndpointOf(a); e.Pod != nil {
				for _, x := range ends {
					if x.pod.Namespace == e.Pod.Namespace && x.class == classOf(e.Pod, cuts) {
						return x
					}
				}
				return nil // shares its address with another
			}
			for _, p := range parts {
				if slices.ContainsFunc(policy.Left(p.block, p.except...), func(x policy.Range) bool { return x.Contains(a) }) {
					o := &end{}
					o.addrs[family(a)] = policy.Endpoint{Addr: p.addr, Block: p.block}
					return o
				}
			}
			return nil
		}
		for range 400 {
			src, dst := r.Addr(), r.Addr()
			from, to := endOf(src), endOf(dst)
			if src.BitLen() != dst.BitLen() || src == dst || from == nil || to == nil {
				continue
			}
			a, b := w.Policy.EndpointOf(src), w.Policy.EndpointOf(dst)
			if a.Node != "" || b.Node != "" || a.Pod != nil && b.Pod != nil && a.Pod.Name == b.Pod.Name {
				continue
			}
			got := from.reach(to)
			port := uint16(76 + r.IntN(12))
			proto := r.Protocol()
			in := slices.ContainsFunc(got.ports[family(src)], func(p policy.PortRange) bool { return p.Protocol == proto && p.From <= port && port <= p.To })
			if want := w.Policy.Allows(&policy.Flow{Src: a, Dst: b, Protocol: proto, Port: port}); in != want {
				t.Fatalf("seed %d: %s to %s, %s %d: %v, want %v: %v", seed, a, b, proto, port, in, want, got)
			}
		}
	}
}

func TestRegions(t *testing.T) {
	w := read(t, webAndDB)
	var cuts []netip.Prefix
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/17", "10.244.0.0/16", "0.0.0.0/0", "::ffff:192.0.2.0/120", "10.244.0.1/32"} {
		cuts = append(cuts, netip.MustParsePrefix(s))
	}
	var got []string
	for _, r := range regions(cuts, w) {
		got = append(got, r.String())
		if w.owned(r.addr) || !slices.ContainsFunc(policy.Left(r.block, r.except...), func(x policy.Range) bool { return x.Contains(r.addr) }) {
			t.Errorf("%s is no example of %s", r.addr, &r)
		}
	}
	// 10.1.0.0/16 is covered by its halves, and a pod has 10.244.0.1.
	want := "0.0.0.0/0 except 10.0.0.0/8, 192.0.2.0/24 | 10.0.0.0/8 except 10.1.0.0/16, 10.244.0.0/16 | 10.1.0.0/17 | 10.1.128.0/17 | 10.244.0.0/16 except 10.244.0.1/32 | 192.0.2.0/24 | ::/0"
	if strings.Join(got, " | ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " | "), want)
	}
}

// A family of which something else is true is told by itself.
func TestReachOfTwoFamilies(t *testing.T) {
	pod := func(name, six string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop, labels: {app: %[1]s}}\nspec: {containers: [{name: c, image: x}]}\nstatus: {podIPs: [{ip: 10.244.0.%[2]s}, {ip: \"fd00::%[2]s\"}]}", name, six)
	}
	w := read(t, pod("web", "1"), pod("db", "2"), ingressOf(`{from: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: "::/0"}}], ports: [{port: 80}, {port: 81}]}`))
	var b bytes.Buffer
	w.Matrix().WriteTable(&b)
	if want := "shop/web   TCP 80, TCP 81 (IPv6)"; !strings.Contains(b.String(), want) {
		t.Errorf("%q is not in\n%s", want, &b)
	}
}

// Large worlds stay quick: 300 workloads, each with a policy of its own, and blocks of addresses.
func TestMatrixOfManyWorkloads(t *testing.T) {
	var all []string
	for i := range 300 {
		all = append(all, deployment(fmt.Sprintf("w%d", i), fmt.Sprintf("app: w%d, tier: t%d", i, i%7)),
			networkPolicy(fmt.Sprintf("p%d", i), fmt.Sprintf("podSelector: {matchLabels: {app: w%d}}, policyTypes: [Ingress, Egress], "+
				"ingress: [{from: [{podSelector: {matchLabels: {tier: t%d}}}], ports: [{port: 80}, {port: %d, endPort: %d}]}, {from: [{ipBlock: {cidr: 198.51.%d.0/24}}]}], egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]",
				i, i%5, 1000+i, 2000+i, i%50)))
	}
	w := read(t, all...)
	start := time.Now()
	m := w.Matrix()
	t.Logf("a matrix of %d groups takes %s", len(m.Groups), time.Since(start))
	if len(m.Groups) < 301 {
		t.Errorf("%d groups", len(m.Groups))
	}
	start = time.Now()
	c := Diff(w, read(t, append(all, networkPolicy("all", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 443}]}]"))...))
	t.Logf("its difference takes %s", time.Since(start))
	if len(c.Differences) == 0 {
		t.Error("no difference")
	}
}
