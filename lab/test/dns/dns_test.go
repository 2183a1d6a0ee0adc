// SPDX-License-Identifier: Apache-2.0

// Package dns holds the tests of the cluster's DNS as pods' resolvers and the world outside use it: names in, answers
// out, every query counted. They share one lab of two nodes.
package dns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

var lab *labtest.Lab

func TestMain(m *testing.M) {
	values, err := filepath.Abs("testdata/values.yaml")
	if err != nil {
		panic(err)
	}
	labtest.Main(m, &lab, labtest.Name("dns"), "--nodes", "2", "--values", values)
}

// pod is a pod of that image on a node.
func pod(name, node, image, labels string) string {
	command := ""
	if strings.HasSuffix(image, "/tools") {
		command = "\n    command: [sleep, \"3600\"]"
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {%s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: %s%s
    env: [{name: DRAIN, value: 0s}]
---
`, name, labels, node, image, command)
}

const (
	echo  = "ghcr.io/weft-net/echo"
	tools = "ghcr.io/weft-net/tools" // the machine's own programs
)

// values reads a list by its JSONPath.
func values(t testing.TB, ns, object, jsonpath string) []string {
	t.Helper()
	return strings.Fields(lab.Get(t, ns, object, jsonpath))
}

// resolver is how a pod's programs look a name up: it returns the addresses, sorted, or nothing.
type resolver struct {
	name string
	ask  func(t *testing.T, ns, name string) []string
}

// in runs a command in a pod. What it says on failure is a name that does not exist, as often as not.
func in(t *testing.T, ns, pod string, command ...string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out, _ := lab.PodExec(ctx, ns, pod, command...)
	return out
}

var resolvers = []resolver{
	{"glibc", func(t *testing.T, ns, name string) (out []string) {
		for _, family := range []string{"ahostsv4", "ahostsv6"} {
			for line := range strings.Lines(in(t, ns, "libc", "getent", family, name)) {
				if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "::ffff:") {
					out = append(out, f[0])
				}
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}},
	{"musl", func(t *testing.T, ns, name string) []string {
		out := strings.Fields(in(t, ns, "c1", "/echo", "resolve", name))
		slices.Sort(out)
		return out
	}},
	{"Go", func(t *testing.T, ns, name string) []string {
		out := strings.Fields(in(t, ns, "c1", "/echo", "resolve", "-style", "go", name))
		slices.Sort(out)
		return out
	}},
}

// What programs of all kinds find, with the resolv.conf that the kubelet gives them.
func TestResolvers(t *testing.T) {
	ns := lab.Namespace(t)
	manifests := pod("c1", "node1", echo, "app: c") + pod("libc", "node2", tools, "app: c") + `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: c}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: four}
spec: {ipFamilies: [IPv4], selector: {app: c}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, publishNotReadyAddresses: true, selector: {app: c}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.` + ns + `.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: abroad}
spec: {type: ExternalName, externalName: internet.example}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: many-1, labels: {kubernetes.io/service-name: many}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
`
	var many []string
	for i := range 150 { // more than one datagram holds
		many = append(many, fmt.Sprintf("198.18.0.%d", i+1))
		manifests += fmt.Sprintf("- {addresses: [%s]}\n", many[i])
	}
	slices.Sort(many)
	lab.Apply(t, ns, manifests)
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1", "pod/libc")
	sorted := func(ips []string) []string { slices.Sort(ips); return ips }
	web := sorted(values(t, ns, "service/web", "{.spec.clusterIPs[*]}"))
	peers := sorted(append(values(t, ns, "pod/c1", "{.status.podIPs[*].ip}"), values(t, ns, "pod/libc", "{.status.podIPs[*].ip}")...))
	internet := []string{"2001:db8:ffff::1", "203.0.113.1"}
	full := "." + ns + ".svc.cluster.local"
	for name, want := range map[string][]string{
		"web": web, "web." + ns: web, "web." + ns + ".svc": web, "web" + full: web, "web" + full + ".": web, "WEB": web,
		"four": values(t, ns, "service/four", "{.spec.clusterIP}"), "peers": peers, "alias": web, "many": many,
		"kubernetes.default": values(t, "default", "service/kubernetes", "{.spec.clusterIPs[*]}"),
		"internet.example":   internet, "internet.example.": internet, "abroad": internet,
		"no-such-name": nil, "web.no-such-namespace": nil, "no-such-name" + full: nil, "no-such-name.example.": nil,
	} {
		for _, r := range resolvers {
			labtest.Eventually(t, 20*time.Second, func() error {
				if got := r.ask(t, ns, name); !slices.Equal(got, want) {
					return fmt.Errorf("%s: %s is %v, want %v", r.name, name, got, want)
				}
				return nil
			})
		}
	}
}

var counted = regexp.MustCompile(`sent (\d+), answered (\d+), failed (\d+), asked again (\d+)`)

// counts reads the summary of `echo resolve`.
func counts(t *testing.T, text string) (sent, failed, again int) {
	t.Helper()
	m := counted.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no summary: %s", text)
	}
	n := func(i int) int { v, _ := strconv.Atoi(m[i]); return v }
	return n(1), n(3), n(4)
}

// dnsAddrs are the addresses of the cluster's DNS Service.
func dnsAddrs(t *testing.T) []string {
	t.Helper()
	return values(t, "kube-system", "service/weft-dns", "{.spec.clusterIPs[*]}")
}

// serverOn is the DNS server of a node: its pod, and that pod's addresses.
func serverOn(t *testing.T, node string) (name string, ips []string) {
	t.Helper()
	out := lab.Kubectl(t, "get", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=dns", "--field-selector", "spec.nodeName="+node,
		"-o", "jsonpath={range .items[*]}{.metadata.name}{range .status.podIPs[*]} {.ip}{end}{end}")
	f := strings.Fields(out)
	if len(f) < 3 {
		t.Fatalf("the DNS server of %s: %q", node, out)
	}
	return f[0], f[1:]
}

// tracked are the lines of a node's connection table about UDP from a client to port 53, or the port for untracked
// queries, of one of the addresses.
func tracked(t *testing.T, node string, clients, servers []string) (out []string) {
	t.Helper()
	text, err := lab.Exec(t.Context(), node, "cat", "/proc/net/nf_conntrack")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		first := map[string]string{} // of the flow's first packet
		for _, kv := range f {
			if k, v, ok := strings.Cut(kv, "="); ok && first[k] == "" {
				first[k] = v
			}
		}
		is := func(a string, of []string) bool { return slices.Contains(of, plain(a)) }
		asks := is(first["src"], clients) && is(first["dst"], servers) && (first["dport"] == "53" || first["dport"] == "1053")
		answers := is(first["src"], servers) && is(first["dst"], clients)
		if slices.Contains(f, "udp") && (asks || answers) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// plain writes an address the usual way: the kernel writes IPv6 addresses in full.
func plain(a string) string {
	groups := strings.Split(a, ":")
	if len(groups) != 8 {
		return a
	}
	for i, g := range groups {
		if groups[i] = strings.TrimLeft(g, "0"); groups[i] == "" {
			groups[i] = "0"
		}
	}
	long, start := 0, 0
	for i := range groups {
		n := 0
		for i+n < len(groups) && groups[i+n] == "0" {
			n++
		}
		if n > long {
			long, start = n, i
		}
	}
	if long < 2 {
		return strings.Join(groups, ":")
	}
	return strings.Join(groups[:start], ":") + "::" + strings.Join(groups[start+long:], ":")
}

// A pod's queries to the DNS Service have no connection on its node, whatever policies there are; those to a server
// itself have.
func TestQueriesAreNotTracked(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, pod("c1", "node1", echo, "app: c")+pod("c2", "node2", echo, "app: c")+pod("mute", "node1", echo, "app: mute"))
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1", "pod/c2", "pod/mute")
	vips := dnsAddrs(t)
	_, own := serverOn(t, "node1")
	c1 := values(t, ns, "pod/c1", "{.status.podIPs[*].ip}")
	ask := func(pod string, args ...string) (sent, failed, again int) {
		t.Helper()
		return counts(t, in(t, ns, pod, append([]string{"/echo", "resolve", "-attempts", "1", "-timeout", "20s"}, args...)...))
	}
	name := "kubernetes.default.svc.cluster.local."
	untracked := func(what string, servers []string) {
		t.Helper()
		for _, vip := range vips {
			if sent, failed, again := ask("c1", "-server", vip, "-n", "200", "-c", "4", name); sent != 200 || failed+again > 0 {
				t.Errorf("%s: %s: sent %d, failed %d, asked again %d", what, vip, sent, failed, again)
			}
		}
		if lines := tracked(t, "node1", c1, servers); len(lines) > 0 {
			t.Errorf("%s: queries are tracked:\n%s", what, strings.Join(lines, "\n"))
		}
	}
	untracked("no policy", slices.Concat(vips, own))
	if text := in(t, ns, "c1", "/echo", "resolve", "-server", own[0], name); text == "" {
		t.Error("the server itself does not answer")
	}
	if len(tracked(t, "node1", c1, own)) == 0 {
		t.Error("a query to the server itself is not tracked: this test would not see the others either")
	}

	// The pod may speak to DNS and to nobody else, and nobody may speak to it.
	lab.Apply(t, ns, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns-only}
spec:
  podSelector: {matchLabels: {app: c}}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]
    ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: mute}
spec: {podSelector: {matchLabels: {app: mute}}, policyTypes: [Egress]}
`)
	c2 := values(t, ns, "pod/c2", "{.status.podIP}")[0]
	labtest.Eventually(t, 20*time.Second, func() error {
		if out := in(t, ns, "c1", "/echo", "get", "-timeout", "500ms", "-q", "http://"+c2+":8080/"); !strings.Contains(out, "failed 1") {
			return fmt.Errorf("the policy is not in force: %s", out)
		}
		return nil
	})
	untracked("under a policy that admits DNS", vips)
	// A pod that may speak to nobody gets no answer from DNS either.
	for _, vip := range vips {
		if sent, failed, _ := ask("mute", "-timeout", "1s", "-server", vip, "-n", "1", name); sent != 1 || failed != 1 {
			t.Errorf("a pod that may ask nobody is answered by %s: sent %d, failed %d", vip, sent, failed)
		}
	}
}

// Where a policy admits names, the node holds answers until their addresses are in force. A resolver that asks for both
// families from one socket gets both answers, though they come as one packet.
func TestAnswersThatAreHeld(t *testing.T) {
	ns := lab.Namespace(t)
	crd, err := os.ReadFile("../../../deploy/chart/upstream/network-policy-api/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.RunWith(t.Context(), string(crd), "kubectl", "apply", "--server-side", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	lab.Established(t, "clusternetworkpolicies.policy.networking.k8s.io")
	lab.Apply(t, ns, pod("c1", "node1", echo, "app: c")+strings.ReplaceAll(`
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: NS}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: NS}}}
  egress:
  - {name: dns, action: Accept, to: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], protocols: [{udp: {destinationPort: {number: 53}}}, {tcp: {destinationPort: {number: 53}}}]}
  - {name: by-name, action: Accept, to: [{domainNames: ["*.internet.example"]}]}
  - {name: rest, action: Deny, to: [{networks: ["0.0.0.0/0", "::/0"]}]}
`, "NS", ns))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := lab.Run(ctx, "kubectl", "delete", "clusternetworkpolicy", ns); err != nil {
			t.Error(err)
		}
	})
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1")
	get := func(url string) bool {
		return strings.Contains(in(t, ns, "c1", "/echo", "get", "-timeout", "500ms", "-q", url), "failed 0")
	}
	labtest.Eventually(t, 60*time.Second, func() error {
		if get("http://203.0.113.1/") {
			return fmt.Errorf("the policy is not in force")
		}
		return nil
	})
	for _, vip := range dnsAddrs(t) {
		out := in(t, ns, "c1", "/echo", "resolve", "-attempts", "1", "-timeout", "20s", "-server", vip, "-n", "50", "-c", "2", "www.internet.example.")
		if sent, failed, _ := counts(t, out); sent != 50 || failed > 0 || !strings.Contains(out, "203.0.113.1\n") || !strings.Contains(out, "2001:db8:ffff::1\n") {
			t.Errorf("%s: %s", vip, out)
		}
	}
	for _, url := range []string{"http://203.0.113.1/", "http://[2001:db8:ffff::1]/"} {
		labtest.Eventually(t, 20*time.Second, func() error {
			if !get(url) {
				return fmt.Errorf("%s, the address of a name that was looked up, is out of reach", url)
			}
			return nil
		})
	}
}

// Servers that are rolled while pods ask: every query over the change is answered, and none had
// to be asked twice.
func TestRollingRestartLosesNoQuery(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, pod("c1", "node1", echo, "app: c")+pod("c2", "node2", echo, "app: c"))
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1", "pod/c2")
	before, _ := serverOn(t, "node1")
	running := make([]*labtest.Traffic, 0, 2)
	for _, p := range []string{"c1", "c2"} {
		running = append(running, lab.Background(t, "kubectl", "exec", "-n", ns, p, "--",
			"/echo", "resolve", "-attempts", "1", "-timeout", "20s", "-for", "300s", "-c", "2", "-interval", "5ms", "kubernetes.default"))
	}
	lab.Kubectl(t, "rollout", "restart", "daemonset/weft-dns", "-n", "kube-system")
	lab.Rollout(t, "kube-system", "daemonset/weft-dns")
	if after, _ := serverOn(t, "node1"); after == before {
		t.Errorf("the server of node1 is still %s", after)
	}
	for i, tr := range running {
		if _, err := lab.PodExec(t.Context(), ns, fmt.Sprintf("c%d", i+1), "/echo", "stop"); err != nil {
			t.Errorf("stop the client: %v", err)
		}
		out, err := tr.Wait()
		sent, failed, again := counts(t, out)
		if err != nil || sent < 500 || failed+again > 0 {
			t.Errorf("from node%d: %v: %s", i+1, err, out)
		}
		t.Logf("from node%d: %d lookups, each answered at the first go", i+1, sent)
	}
}

// A server that is killed is missed until its endpoint is gone, and not longer: who asks again, as all resolvers do, gets
// an answer, from another node's server and then from its own again.
func TestKilledServer(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, pod("c1", "node1", echo, "app: c"))
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1")
	asking := lab.Background(t, "kubectl", "exec", "-n", ns, "c1", "--",
		"/echo", "resolve", "-attempts", "60", "-timeout", "60s", "-for", "300s", "-c", "2", "-interval", "20ms", "kubernetes.default")
	server, _ := serverOn(t, "node1")
	restarts := func() string {
		return lab.Get(t, "kube-system", "pod/"+server, "{.status.containerStatuses[0].restartCount}")
	}
	before := restarts()
	const script = `for p in /proc/[0-9]*; do
		if tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/weft dns '; then kill -9 ${p#/proc/} && echo killed; fi
	done`
	if out, err := lab.Exec(t.Context(), "node1", "sh", "-c", script); err != nil || strings.Count(out, "killed") != 1 {
		t.Fatalf("kill the server: %v: %s", err, out)
	}
	labtest.Eventually(t, 60*time.Second, func() error {
		if restarts() == before {
			return fmt.Errorf("the server was not started again")
		}
		return nil
	})
	lab.WaitFor(t, "kube-system", "condition=Ready", "pod/"+server)
	if _, err := lab.PodExec(t.Context(), ns, "c1", "/echo", "stop"); err != nil {
		t.Errorf("stop the client: %v", err)
	}
	out, err := asking.Wait()
	sent, failed, again := counts(t, out)
	if err != nil || sent < 20 || failed > 0 {
		t.Errorf("while a server was killed: %v: %s", err, out)
	}
	t.Logf("%d lookups, %d questions asked again", sent, again)
}

// Names for the outside world, asked by the outside world at the addresses of their own Service.
func TestOutsideNames(t *testing.T) {
	ns := lab.Namespace(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := lab.Run(ctx, "kubectl", "delete", "addresspool/dns", "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	lab.Apply(t, ns, pod("c1", "node1", echo, "app: c")+`
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: dns}
spec: {addresses: ["172.30.0.200-172.30.0.209", "fd00:30::200-fd00:30::209"]}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations: {external-dns.alpha.kubernetes.io/hostname: www.apps.test}
spec: {type: LoadBalancer, ipFamilyPolicy: PreferDualStack, selector: {app: c}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front}
spec:
  ingressClassName: nobody
  rules: [{host: front.apps.test}, {host: "*.wild.apps.test"}]
`)
	lab.WaitFor(t, ns, "condition=Ready", "pod/c1")
	lab.Kubectl(t, "patch", "ingress/front", "-n", ns, "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.80"}]}}}`)
	lbs := func(ns, service string) (ips []string) {
		t.Helper()
		labtest.Eventually(t, 30*time.Second, func() error {
			if ips = values(t, ns, "service/"+service, "{.status.loadBalancer.ingress[*].ip}"); len(ips) != 2 {
				return fmt.Errorf("%s has the addresses %v, want one of each family", service, ips)
			}
			return nil
		})
		slices.Sort(ips)
		return ips
	}
	server, web := lbs("kube-system", "weft-dns-external"), lbs(ns, "web")
	ask := func(server, name string) []string {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, _ := lab.Exec(ctx, "outside", lab.Echo("outside"), "resolve", "-server", server, name)
		got := strings.Fields(out)
		slices.Sort(got)
		return got
	}
	for _, at := range server {
		for name, want := range map[string][]string{
			"www.apps.test.": web, "front.apps.test.": {"192.0.2.80"}, "anything.wild.apps.test.": {"192.0.2.80"}, "ns.apps.test.": server,
			"no-such-name.apps.test.": nil, "kubernetes.default.svc.cluster.local.": nil, "internet.example.": nil,
		} {
			labtest.Eventually(t, 30*time.Second, func() error {
				if got := ask(at, name); !slices.Equal(got, want) {
					return fmt.Errorf("%s says that %s is %v, want %v", at, name, got, want)
				}
				return nil
			})
		}
	}
	routeNames(t, ns, func(name string) []string { return ask(server[0], name) })
	lab.Kubectl(t, "delete", "ingress/front", "-n", ns)
	labtest.Eventually(t, 30*time.Second, func() error {
		if got := ask(server[0], "front.apps.test."); len(got) > 0 {
			return fmt.Errorf("front.apps.test is still at %v", got)
		}
		return nil
	})
}

// routeNames has names declared by a route, of a kind that the API server has not served until now.
func routeNames(t *testing.T, ns string, ask func(name string) []string) {
	t.Helper()
	for _, kind := range []string{"gatewayclasses", "gateways", "httproutes"} {
		crd, err := os.ReadFile("../../../deploy/chart/upstream/gateway-api/standard/gateway.networking.k8s.io_" + kind + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lab.RunWith(t.Context(), string(crd), "kubectl", "apply", "--server-side", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		lab.Established(t, kind+".gateway.networking.k8s.io")
	}
	lab.Apply(t, ns, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: nobody
  listeners: [{name: http, protocol: HTTP, port: 80, hostname: "*.routes.apps.test"}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec:
  parentRefs: [{name: gw}]
  hostnames: [cart.routes.apps.test, elsewhere.apps.test]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`)
	status := func(object, text string) {
		t.Helper()
		lab.Kubectl(t, "patch", object, "-n", ns, "--subresource=status", "--type=merge", "-p", `{"status":`+text+`}`)
	}
	status("gateway/gw", `{"addresses":[{"type":"IPAddress","value":"192.0.2.90"}]}`)
	accepted := func(is string) string {
		return `{"parents":[{"parentRef":{"name":"gw"},"controllerName":"example.com/nobody","conditions":[{"type":"Accepted","status":"` + is +
			`","reason":"Test","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}]}`
	}
	status("httproute/cart", accepted("True"))
	is := func(name string, want ...string) {
		t.Helper()
		labtest.Eventually(t, 60*time.Second, func() error {
			if got := ask(name); !slices.Equal(got, want) {
				return fmt.Errorf("%s is %v, want %v", name, got, want)
			}
			return nil
		})
	}
	is("cart.routes.apps.test.", "192.0.2.90")
	is("elsewhere.apps.test.")
	status("httproute/cart", accepted("False"))
	is("cart.routes.apps.test.")
}
