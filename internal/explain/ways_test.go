// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
)

// asked is an answer with what Print makes of it.
func asked(t *testing.T, w *World, from, to string) (*Answer, string) {
	t.Helper()
	src, err := w.ParseTarget(from, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := w.ParseTarget(to, "shop", true)
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.Why(src, dst, model.TCP)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	Print(&b, a)
	return a, b.String()
}

const twoNodes = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.1.1.0/24, podCIDRs: [10.1.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.1.2.0/24, podCIDRs: [10.1.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 8080, hostPort: 8000}]}]}
status: {podIPs: [{ip: 10.1.1.2}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.1.2.2}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.21, clusterIPs: [10.96.0.21], ipFamilies: [IPv4], loadBalancerSourceRanges: [198.51.100.0/24], selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.22, clusterIPs: [10.96.0.22], ipFamilies: [IPv4], selector: {app: web}, ports: [{port: 5432, targetPort: 8080}]}
`

const clusterDNS = `
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {app: dns}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 1053, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.1.1.9}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: weft-dns, namespace: kube-system, labels: {app.kubernetes.io/name: weft, app.kubernetes.io/component: dns}}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], selector: {app: dns}, ports: [{name: dns, port: 53, targetPort: 1053, protocol: UDP}]}
`

const serviceCIDR = `
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, "fd00:96::/108"]}
`

const strayEndpoint = `
apiVersion: v1
kind: Service
metadata: {name: stray, namespace: shop}
spec: {clusterIP: 10.96.0.23, clusterIPs: [10.96.0.23], ipFamilies: [IPv4], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: stray, namespace: shop, labels: {kubernetes.io/service-name: stray}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.252], conditions: {ready: true}}]
ports: [{port: 80}]
`

// headless is a Service of IPv4 with a pod that has an IPv6 address too, and one that is not ready.
const headless = `
apiVersion: v1
kind: Pod
metadata: {name: kafka-0, namespace: shop, labels: {app: kafka}}
spec: {nodeName: n1, hostname: kafka-0, subdomain: kafka, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.1.1.20}, {ip: "fd00::20"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: kafka-1, namespace: shop, labels: {app: kafka}}
spec: {nodeName: n1, hostname: kafka-1, subdomain: kafka, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.1.1.21}, {ip: "fd00::21"}], conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client6, namespace: shop, labels: {app: client}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.1.2.3}, {ip: "fd00::3"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: kafka, namespace: shop}
spec: {clusterIP: None, clusterIPs: [None], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, selector: {app: kafka}, ports: [{port: 9092}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kafka-4, namespace: shop, labels: {kubernetes.io/service-name: kafka, service.kubernetes.io/headless: ""}}
addressType: IPv4
endpoints:
- {addresses: [10.1.1.20], hostname: kafka-0, nodeName: n1, targetRef: {kind: Pod, namespace: shop, name: kafka-0}, conditions: {ready: true}}
- {addresses: [10.1.1.21], hostname: kafka-1, nodeName: n1, targetRef: {kind: Pod, namespace: shop, name: kafka-1}, conditions: {ready: false}}
ports: [{port: 9092}]
`

var fourOnly = networkPolicy("four", "podSelector: {matchLabels: {app: kafka}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")

const hostNetworked = `
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, labels: {app: host}}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 192.168.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: host, namespace: shop}
spec: {clusterIP: None, selector: {app: host}, ports: [{port: 80}]}
`

const pendingLB = `
apiVersion: v1
kind: Service
metadata: {name: lb, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.24, clusterIPs: [10.96.0.24], ipFamilies: [IPv4], selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
`

const gatewayPod61080 = `
apiVersion: v1
kind: Pod
metadata: {name: edge, namespace: shop, labels: {app.kubernetes.io/name: weft, app.kubernetes.io/component: gateway}}
spec: {nodeName: n1, containers: [{name: gateway, image: x, ports: [{name: metrics, containerPort: 9642}]}]}
status: {podIPs: [{ip: 10.1.1.30}], conditions: [{type: Ready, status: "True"}]}
`

func guarded(direction, rules string) string {
	app := map[string]string{"Ingress": "web", "Egress": "client"}[direction]
	return networkPolicy(strings.ToLower(direction)+"-of-"+app, fmt.Sprintf("podSelector: {matchLabels: {app: %s}}, policyTypes: [%s], %s: [%s]", app, direction, strings.ToLower(direction), rules))
}

func TestWays(t *testing.T) {
	toWeb := "{to: [{podSelector: {matchLabels: {app: web}}}]}"
	for _, tc := range []struct {
		name, manifests, from, to string
		summary                   string   // how it begins
		says                      []string // somewhere
	}{
		{"a misspelt Service", "", "client", "dbb:5432", "BLOCKED", []string{"dbb does not exist", "did you mean svc/db?"}},
		{"a Service elsewhere", "apiVersion: v1\nkind: Service\nmetadata: {name: cache, namespace: other}\nspec: {selector: {app: x}, ports: [{port: 80}]}",
			"client", "cache:80", "BLOCKED", []string{"did you mean cache.other?"}},
		{"a name of no Service of a namespace", "", "client", "dbb.shop:5432", "ALLOWED", []string{"! name", "namespace shop has no Service dbb; did you mean svc/shop/db?"}},
		{"a Service by its name", clusterDNS, "client", "db:5432", "ALLOWED", []string{"✓ name     Service shop/db db.shop.svc.cluster.local is 10.96.0.22"}},
		{"a name that it can't look up", clusterDNS + "---\n" + guarded("Egress", toWeb), "client", "db:5432", "BLOCKED",
			[]string{"it can't ask the cluster's DNS (kube-system/weft-dns, UDP 1053)", "podSelector: {matchLabels: {app: \"dns\"}}"}},
		{"DNS at its pods' port", clusterDNS + "---\n" + guarded("Egress", toWeb+", {ports: [{port: 1053, protocol: UDP}]}"), "client", "db:5432", "ALLOWED", nil},
		{"a Service as an object", clusterDNS + "---\n" + guarded("Egress", toWeb), "client", "svc/db:5432", "ALLOWED", []string{"! dns", "whoever uses the Service's name does not get there"}},

		{"a node port", "", "outside", "node/n1:30080", "ALLOWED", []string{"Service shop/front nodePort *:30080/TCP (IPv4): one of 1 endpoint", "pod shop/web (10.1.1.2:8080)", "the client's own address"}},
		{"a node port by address", "", "outside", "192.168.0.2:30080", "ALLOWED", []string{"the server sees node n2's address, 192.168.0.2 (externalTrafficPolicy: Cluster masquerades)"}},
		{"a node port that the pod is guarded from", guarded("Ingress", ""), "outside", "node/n2:30080", "BLOCKED", []string{"ipBlock: {cidr: 192.168.0.2/32}"}},
		{"a pod's own node sees it as its own", guarded("Ingress", ""), "outside", "node/n1:30080", "BLOCKED", []string{"ipBlock: {cidr: 0.0.0.0/0}"}},
		{"a node port from a pod", guarded("Egress", toWeb), "client", "node/n1:30080", "BLOCKED", []string{"for TCP 30080 to node n1"}},
		{"a node port of the pod's own node", guarded("Egress", toWeb), "client", "node/n2:30080", "ALLOWED", []string{"the server sees node n2's address"}},
		{"a host port", "", "outside", "node/n1:8000", "ALLOWED", []string{"hostPort TCP 8000 of node n1 leads to pod shop/web, port 8080"}},
		{"a host port that policies guard", guarded("Ingress", ""), "client", "192.168.0.1:8000", "BLOCKED", []string{"hostPort", "for TCP 8080 from pod shop/client"}},
		{"a node's own port", "", "outside", "node/n1:22", "ALLOWED", nil},

		// Clients enter by a node without the endpoint too, and are masqueraded there.
		{"a block of clients is not enough", guarded("Ingress", "{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}"), "198.51.100.7", "svc/front", "PARTLY",
			[]string{"by way of node n1, which it is on", "by way of node n2", "ipBlock: {cidr: 192.168.0.2/32}"}},
		{"nodes without clients are not enough", guarded("Ingress", "{from: [{ipBlock: {cidr: 192.168.0.0/24}}]}"), "198.51.100.7", "svc/front", "PARTLY", []string{"ipBlock: {cidr: 198.51.100.7/32}"}},
		{"both", guarded("Ingress", "{from: [{ipBlock: {cidr: 192.168.0.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 10.1.2.0/32}}]}"), "198.51.100.7", "203.0.113.9:80", "ALLOWED", nil},
		{"but for the tunnel", guarded("Ingress", "{from: [{ipBlock: {cidr: 192.168.0.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}]}"), "198.51.100.7", "203.0.113.9:80", "DEPENDS",
			[]string{"it depends on whether the nodes share a link", "ipBlock: {cidr: 10.1.2.0/32}"}},
		{"a node through a tunnel", guarded("Ingress", "{from: [{ipBlock: {cidr: 10.1.2.0/32}}]}"), "node/n2", "pod/web:8080", "PARTLY", []string{"through a tunnel, if the nodes share no link"}},
		{"a client whom the Service is not for", "", "192.0.2.9", "203.0.113.9:80", "BLOCKED", []string{"spec.loadBalancerSourceRanges admits 198.51.100.0/24 only"}},
		{"a client of its ranges", "", "198.51.100.9", "203.0.113.9:80", "ALLOWED", nil},
		{"a Service from an address outside", "", "192.0.2.9", "svc/front", "PARTLY", []string{"loadBalancerIP 203.0.113.9:80/TCP is not for 192.0.2.9", "nodePort"}},
		{"a cluster Service from outside", "", "192.0.2.9", "svc/db", "BLOCKED", []string{"has no address that anybody outside the cluster could use"}},
		{"anybody", "", "outside", "203.0.113.9:80", "DEPENDS", []string{"only clients of spec.loadBalancerSourceRanges are admitted: 198.51.100.0/24"}},

		{"a load balancer's Service without an address", pendingLB, "outside", "svc/lb", "ALLOWED",
			[]string{"· service  Service shop/lb has no address of a load balancer yet: clients get there by node ports", "nodePort *:30081/TCP (IPv4)"}},
		{"the same within", pendingLB, "client", "svc/lb", "ALLOWED", []string{"clusterIP 10.96.0.24:80/TCP"}},
		{"a gateway's own port", gatewayPod61080, "client", "pod/edge:61080", "ALLOWED", []string{"Pod shop/edge is ready"}},
		{"some of the outside", guarded("Egress", "{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}"), "client", "outside:443", "DEPENDS",
			[]string{"198.51.100.0/24 is allowed, all others are not", "ipBlock: {cidr: 0.0.0.0/0}"}},
		{"a name outside", guarded("Egress", "{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}"), "client", "api.example.com:443", "DEPENDS", []string{"ipBlock: {cidr: <the address of api.example.com>}"}},
		{"all of the outside", guarded("Egress", "{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}"), "client", "api.example.com:443", "ALLOWED", nil},
		{"none of the outside", guarded("Egress", toWeb), "client", "outside:443", "BLOCKED", []string{"ipBlock: {cidr: 0.0.0.0/0}"}},
		{"a name whose address is known", guarded("Egress", "{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}"), "client", "known.example.com:443", "ALLOWED", []string{"198.51.100.20, as was told"}},
		{"and is not let out to", guarded("Egress", "{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}"), "client", "known.example.com:443", "BLOCKED", []string{"ipBlock: {cidr: 198.51.100.20/32}"}},

		{"a cluster IP of no Service", serviceCIDR, "client", "10.96.99.99:80", "BLOCKED", []string{"no Service has cluster IP 10.96.99.99 (of ServiceCIDR kubernetes): what is sent to it is dropped"}},
		{"nor is it let out to", serviceCIDR + "---\n" + guarded("Egress", ""), "client", "10.96.99.99:80", "BLOCKED", []string{"BLOCKED: client to 10.96.99.99:80, TCP 80: no Service has"}},
		{"a cluster IP of no Service, IPv6", serviceCIDR, "outside", "[fd00:96::99]:80", "BLOCKED", []string{"no Service has cluster IP fd00:96::99"}},
		{"where cluster IPs are is not known", "", "client", "10.96.99.99:80", "ALLOWED", []string{"out by node n2"}},
		{"a cluster IP of a Service", serviceCIDR, "client", "10.96.0.22:5432", "ALLOWED", nil},
		{"an address of no pod", "", "client", "10.1.1.250:80", "BLOCKED", []string{"no pod has 10.1.1.250, an address of node n1's podCIDR 10.1.1.0/24: nobody is there"}},
		{"an address of no pod, from outside", "", "outside", "10.1.1.250:80", "BLOCKED", []string{"no pod has 10.1.1.250"}},
		{"a name that leads to no pod", "", "client", "stale.example.com:80", "BLOCKED", []string{"no pod has 10.1.1.251"}},
		{"a node's address in a tunnel", "", "client", "10.1.1.0:80", "ALLOWED", nil},
		{"an endpoint that is no pod", strayEndpoint, "client", "stray:80", "BLOCKED", []string{"no pod has 10.1.1.252"}},
		{"a pod's loopback", guarded("Egress", ""), "client", "127.0.0.1:80", "ALLOWED", []string{"127.0.0.1 is pod shop/client itself: no network is between"}},
		{"a node's loopback", "", "node/n1", "[::1]:80", "ALLOWED", []string{"::1 is node n1 itself"}},
		{"a node port on loopback", "", "node/n2", "127.0.0.1:30080", "ALLOWED", []string{"nodePort *:30080/TCP (IPv4)"}},
		{"a client's loopback", "", "outside", "127.0.0.1:30080", "ALLOWED", []string{"127.0.0.1 is the client itself"}},

		{"a headless Service of one family", headless + "---\n" + fourOnly, "client6", "kafka:9092", "ALLOWED", []string{"kafka.shop.svc.cluster.local is 10.1.1.20 (headless", "pod shop/kafka-0 (10.1.1.20:9092)"}},
		{"a headless Service as an object", headless + "---\n" + fourOnly, "client6", "svc/kafka:9092", "ALLOWED", []string{"pod shop/kafka-0 (10.1.1.20:9092)"}},
		{"an endpoint of a headless Service", headless + "---\n" + fourOnly, "client6", "kafka-0.kafka:9092", "ALLOWED", []string{"pod shop/kafka-0 (10.1.1.20:9092)"}},
		{"the same pod by itself", headless + "---\n" + fourOnly, "client6", "pod/kafka-0:9092", "PARTLY", []string{"[fd00::20]:9092"}},
		{"a headless Service with an endpoint that is not ready", headless, "client6", "svc/kafka:9092", "ALLOWED", []string{"pod shop/kafka-1 is not ready: the name does not lead to it"}},
		{"a headless Service of a pod on the host's network", hostNetworked, "client", "host:80", "ALLOWED", []string{"from node n2 to node n1"}},
		{"a headless Service without endpoints", "apiVersion: v1\nkind: Service\nmetadata: {name: none, namespace: shop}\nspec: {clusterIP: None, ports: [{port: 80}]}",
			"client", "none:80", "BLOCKED", []string{"none does not resolve: Service shop/none is headless and has no address to give: it has no selector"}},
		{"an endpoint that a headless Service does not have", headless, "client", "kafka-7.kafka:9092", "BLOCKED", []string{"kafka-7.kafka does not resolve: "}},
		{"a headless Service without endpoints, by its namespace", "apiVersion: v1\nkind: Service\nmetadata: {name: none, namespace: shop}\nspec: {clusterIP: None, ports: [{port: 80}]}",
			"client", "none.shop:80", "BLOCKED", []string{"none.shop does not resolve"}},
		{"a name outside that ends as a Service is called", "apiVersion: v1\nkind: Service\nmetadata: {name: com, namespace: shop}\nspec: {clusterIP: 10.96.0.30, clusterIPs: [10.96.0.30], ports: [{port: 80}]}",
			"client", "example.com:80", "ALLOWED", nil},
		{"a headless Service of endpoints that are no pods", strings.Replace(strings.Replace(strayEndpoint, "clusterIP: 10.96.0.23, clusterIPs: [10.96.0.23]", "clusterIP: None", 1), "10.1.1.252", "198.51.100.9", 1),
			"client", "stray:80", "ALLOWED", []string{"→ 198.51.100.9 (198.51.100.9:80)"}},

		{"a pod by its address", guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: client}}}]}"), "10.1.2.2", "svc/db:5432", "ALLOWED", []string{"pod shop/client → pod shop/web", "from node n2 to node n1"}},
		{"a node by its address", guarded("Ingress", ""), "192.168.0.1", "pod/web:8080", "ALLOWED", []string{"stays on node n1"}},
		{"every port", guarded("Ingress", "{}"), "client", "pod/web", "ALLOWED", nil},
		{"no port", guarded("Ingress", ""), "client", "pod/web", "BLOCKED", []string{"no rule for every TCP port from pod shop/client", "{protocol: TCP}"}},
		{"some ports", guarded("Ingress", "{ports: [{port: 80}, {port: 8000, endPort: 8100}]}"), "client", "pod/web", "DEPENDS", []string{"TCP 80, TCP 8000-8100 are let through, and nothing else"}},
	} {
		w := read(t, twoNodes, tc.manifests)
		w.Known = map[string][]netip.Addr{"known.example.com": {netip.MustParseAddr("198.51.100.20")}, "stale.example.com": {netip.MustParseAddr("10.1.1.251")}}
		w.KnownBy = ", as was told"
		a, text := asked(t, w, tc.from, tc.to)
		ok := strings.HasPrefix(a.Summary, tc.summary) && a.Allowed == (tc.summary == "ALLOWED")
		for _, s := range tc.says {
			ok = ok && strings.Contains(text, s)
		}
		if !ok || strings.Contains(text, "203.0.113.77") || strings.Contains(text, "TCP 0") {
			t.Errorf("%s: want %s with %q:\n%s", tc.name, tc.summary, tc.says, text)
		}
	}
}

// What an answer proposes makes the connection allowed, at once and wherever it was blocked.
func TestRemediesAreEnough(t *testing.T) {
	closed := networkPolicy("closed", "podSelector: {}, policyTypes: [Ingress, Egress]")
	for _, tc := range []struct{ name, manifests, from, to string }{
		{"both ends", closed, "client", "pod/web:8080"},
		{"both ends, by a Service", closed, "client", "svc/db:5432"},
		{"both ends and DNS", closed + "\n---\n" + clusterDNS, "client", "db:5432"},
		{"DNS is guarded too", closed + "\n---\n" + clusterDNS + "---\n" + strings.ReplaceAll(closed, "namespace: shop", "namespace: kube-system"), "client", "db:5432"},
		{"a port is lacking", guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}"), "client", "pod/web:8080"},
		{"a peer is lacking", guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 8080}]}"), "client", "pod/web:8080"},
		{"every port", closed, "client", "pod/web"},
		{"the world", closed, "client", "outside:443"},
		{"part of the world", guarded("Egress", "{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.0.2.0/24]}}]}"), "client", "outside:443"},
		{"from the world", closed, "outside", "node/n2:30080"},
		{"from an address", closed, "198.51.100.7", "svc/front"},
		{"from an address, to a rule", guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 8080}]}"), "198.51.100.7", "svc/front"},
		{"from a node", closed, "node/n2", "pod/web:8080"},
		{"a node port from a pod", closed, "client", "node/n1:30080"},
		{"a host port from a pod", closed, "client", "node/n1:8000"},
	} {
		ms, err := kube.ParseManifests("in.yaml", []byte(twoNodes+"---\n"+tc.manifests))
		if err != nil {
			t.Fatal(err)
		}
		before := worldOfManifests(t, ms)
		a, _ := asked(t, before, tc.from, tc.to)
		if a.Allowed || len(a.Remedies) == 0 {
			t.Errorf("%s: %s, %v", tc.name, a.Summary, a.Remedies)
			continue
		}
		for _, f := range a.Remedies {
			ms = applied(t, ms, f)
		}
		if after, text := asked(t, worldOfManifests(t, ms), tc.from, tc.to); !after.Allowed {
			t.Errorf("%s: %v is not enough:\n%s", tc.name, a.Remedy, text)
		}
	}
}

// Peers of one rule are one change, and a block that another has in it is none.
func TestRemediesAreFew(t *testing.T) {
	closed := networkPolicy("closed", "podSelector: {}, policyTypes: [Ingress, Egress]")
	open := strings.Replace(twoNodes, ", loadBalancerSourceRanges: [198.51.100.0/24]", "", 1)
	lacksPeer := guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 8080}]}")
	for _, tc := range []struct{ name, manifests, from, to, want string }{
		{"the world, and nodes that are in it", closed, "outside", "svc/front",
			"add a rule to NetworkPolicy shop/closed, at spec.ingress:\n- from:\n  - ipBlock: {cidr: 0.0.0.0/0}\n  ports:\n  - {protocol: TCP, port: 8080}"},
		{"a client and nodes", closed, "198.51.100.7", "svc/front",
			"add a rule to NetworkPolicy shop/closed, at spec.ingress:\n- from:\n  - ipBlock: {cidr: 198.51.100.7/32}\n  - ipBlock: {cidr: 192.168.0.2/32}\n  - ipBlock: {cidr: 10.1.2.0/32}\n  ports:\n  - {protocol: TCP, port: 8080}"},
		{"peers for a rule that has the port", lacksPeer, "198.51.100.7", "svc/front",
			"add the peers to rule ingress[0] of NetworkPolicy shop/ingress-of-web, at spec.ingress[0].from:\n- ipBlock: {cidr: 198.51.100.7/32}\n- ipBlock: {cidr: 192.168.0.2/32}\n- ipBlock: {cidr: 10.1.2.0/32}"},
	} {
		a, _ := asked(t, read(t, open, tc.manifests), tc.from, tc.to)
		if a.Remedy != tc.want || len(a.Remedies) != 1 {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, a.Remedy, tc.want)
		}
	}
}

func worldOfManifests(t *testing.T, ms []kube.Manifest) *World {
	t.Helper()
	c, err := offline.FromManifests(offline.Options{Namespace: "shop"}, ms)
	if err != nil {
		t.Fatal(err)
	}
	return worldOf(t, c)
}

// applied adds what a Fix proposes where it says.
func applied(t *testing.T, ms []kube.Manifest, f Fix) []kube.Manifest {
	t.Helper()
	out := slices.Clone(ms)
	for i, m := range out {
		text, err := yaml.Marshal(m.Object)
		if err != nil {
			t.Fatal(err)
		}
		u := map[string]any{}
		if err := yaml.Unmarshal(text, &u); err != nil {
			t.Fatal(err)
		}
		o := unstructured.Unstructured{Object: u}
		if o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName() != f.Policy {
			continue
		}
		var add []any
		if err := yaml.Unmarshal([]byte(f.YAML), &add); err != nil {
			t.Fatalf("%s: %v", f.YAML, err)
		}
		u = extended(t, u, strings.Split(f.Field, "."), add).(map[string]any)
		if text, err = yaml.Marshal(u); err != nil {
			t.Fatal(err)
		}
		changed, err := kube.ParseManifests("in.yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = changed[0]
		return out
	}
	t.Fatalf("there is no %s", f.Policy)
	return nil
}

// extended is a value with a list in it, at a path such as spec, ingress[0], from, made longer.
func extended(t *testing.T, in any, path []string, add []any) any {
	t.Helper()
	if len(path) == 0 {
		list, _ := in.([]any)
		return append(slices.Clone(list), add...)
	}
	key, index, isItem := strings.Cut(strings.TrimSuffix(path[0], "]"), "[")
	m, _ := in.(map[string]any)
	if !isItem {
		m[key] = extended(t, m[key], path[1:], add)
		return m
	}
	i, err := strconv.Atoi(index)
	if err != nil {
		t.Fatal(err)
	}
	list := m[key].([]any)
	list[i] = extended(t, list[i], path[1:], add)
	return m
}

func TestNear(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{{"db", "dbb", true}, {"cart", "kart", true}, {"cart", "card", true}, {"web", "cart", false}, {"a", "b", false}, {"frontend", "front", true}, {"payment", "paymnet", true}} {
		if got := near(tc.a, tc.b); got != tc.want {
			t.Errorf("%s and %s: %v", tc.a, tc.b, got)
		}
	}
}

// What a node's packets through a tunnel meet with is not known before they are sent: no probe disagrees.
func TestProbesThroughTunnels(t *testing.T) {
	w := read(t, twoNodes, guarded("Ingress", "{from: [{ipBlock: {cidr: 192.168.0.0/24}}]}"))
	for _, to := range []string{"pod/web:8080", "svc/db:5432"} {
		a, text := asked(t, w, "node/n2", to)
		if a.Allowed || len(a.Probes) == 0 {
			t.Errorf("%s: %+v\n%s", to, a.Probes, text)
		}
		for _, p := range a.Probes {
			if p.Expected != Either {
				t.Errorf("%s: %+v", to, p)
			}
		}
	}
}

// A cluster's domain need not be cluster.local.
func TestClusterDomain(t *testing.T) {
	w := read(t, twoNodes)
	w, err := NewWorld(w.all, Options{ClusterDomain: "k8s.example."})
	if err != nil {
		t.Fatal(err)
	}
	if a, text := asked(t, w, "client", "db.shop.svc.k8s.example:5432"); !a.Allowed || !strings.Contains(text, "10.96.0.22") {
		t.Error(text)
	}
	if _, text := asked(t, w, "client", "db.shop.svc.cluster.local:5432"); strings.Contains(text, "10.96.0.22") {
		t.Error(text)
	}
}

// What policies make of a pod is told as it is.
func TestPodStates(t *testing.T) {
	cnp := func(rules string) string {
		return "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [" + rules + "]}"
	}
	const all = "from: [{namespaces: {}}]"
	for _, tc := range []struct{ name, manifests, want string }{
		{"nothing", "", "open"},
		{"isolated, with a rule", guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: client}}}]}"), "isolated"},
		{"isolated, for an address", guarded("Ingress", "{from: [{ipBlock: {cidr: 198.51.100.7/32}}]}"), "isolated"},
		{"isolated, with no rule", guarded("Ingress", ""), "closed"},
		{"a rule that means nobody", guarded("Ingress", "{from: [{podSelector: {matchLabels: {app: nobody}}}]}"), "closed"},
		{"one port denied", cnp("{action: Deny, " + all + ", protocols: [{tcp: {destinationPort: {number: 22}}}]}"), "ruled"},
		{"the pods denied, the world not", cnp("{action: Deny, " + all + "}"), "ruled"},
		{"the pods denied, and isolated", cnp("{action: Deny, "+all+"}") + "\n---\n" + guarded("Ingress", "{from: [{podSelector: {}}]}"), "closed"},
	} {
		w := read(t, twoNodes, tc.manifests)
		d := w.DescribePod(w.all.Pods[model.Name{Namespace: "shop", Name: "web"}])
		if d.Ingress.State != tc.want || d.Egress.State != "open" {
			t.Errorf("%s: %s and %s, want %s", tc.name, d.Ingress.State, d.Egress.State, tc.want)
		}
	}
}
