// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/offline"
)

// base is what the cases below stand on: a guarded pod with its Service, and a Gateway.
const base = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, image: x, ports: [{containerPort: 80, name: http}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http, name: http}, {port: 443, targetPort: http, name: https}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
`

func httpRoute(name, host, path, more string) string {
	return `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ` + name + `, namespace: shop}
spec:
  hostnames: [` + host + `]
  parentRefs: [{name: gw}]
  rules: [{matches: [{path: {value: ` + path + `}}], backendRefs: [{name: web, port: 80}]` + more + `}]
---
`
}

func ingressOf(name, host, annotations, path, tls string) string {
	return `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: ` + name + `, namespace: shop, annotations: {` + annotations + `}}
spec:
  ingressClassName: nginx
` + tls + `
  rules: [{host: ` + host + `, http: {paths: [{path: "` + path + `", pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}}]}}]
---
`
}

func clusterPolicy(egress string) string {
	return `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: p}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [` + egress + `]}
---
`
}

const everything = `{action: Deny, to: [{networks: ["0.0.0.0/0"]}]}`

// ruleCases are, for a rule, what breaks it and what comes close and doesn't.
var ruleCases = []struct {
	rule, bad, good string
}{
	{"service-annotation-ignored",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, annotations: {metallb.io/address-pool: x}}\nspec: {selector: {app: web}, ports: [{port: 1}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, annotations: {metallb.io/address-pool: x}}\nspec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 1}]}\n"},
	{"service-annotation-unknown",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, annotations: {weft.dev/adress-pool: x}}\nspec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 1}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, annotations: {weft.dev/address-pool: x, weft.dev/proxy-protocol: v2}}\nspec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 1}]}\n"},
	{"service-exposed",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 1}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.0/24], selector: {app: web}, ports: [{port: 1}]}\n"},
	{"external-name-address",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {type: ExternalName, externalName: 192.0.2.1}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {type: ExternalName, externalName: db.example.com}\n"},
	{"service-local-spread", // in a cluster of two nodes
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n---\n" + spreadPods("n1", "n1") + localService,
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n---\n" + spreadPods("n1", "n2") + localService},
	{"ingress-redirect",
		ingressOf("a", "a.example.com", `nginx.ingress.kubernetes.io/ssl-redirect: "false"`, "/", "  tls: [{hosts: [a.example.com], secretName: s}]"),
		ingressOf("a", "a.example.com", "", "/", "  tls: [{hosts: [a.example.com], secretName: s}]")},
	{"ingress-hsts",
		ingressOf("a", "a.example.com", `nginx.ingress.kubernetes.io/hsts: "false"`, "/", "  tls: [{hosts: [a.example.com], secretName: s}]"),
		ingressOf("a", "a.example.com", `nginx.ingress.kubernetes.io/hsts: "false"`, "/", "")},
	{"policy-admits-everybody",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{}]}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}\n"},
	{"policy-admits-everybody",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}]}\n"},
	{"ingress-rewrite",
		ingressOf("a", "a.example.com", "nginx.ingress.kubernetes.io/rewrite-target: /$2", "/app", ""),
		ingressOf("a", "a.example.com", "nginx.ingress.kubernetes.io/rewrite-target: /$2", "/app(/|$)(.*)", "")},
	{"ingress-problem",
		ingressOf("a", "a.example.com", "nginx.ingress.kubernetes.io/proxy-body-size: huge", "/", ""),
		ingressOf("a", "a.example.com", "nginx.ingress.kubernetes.io/proxy-body-size: 8m", "/", "")},
	{"gateway-open",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Same}}}]}\n"},
	{"gateway-tls-namespace",
		"apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: third}\nspec: {from: [], to: []}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: s, namespace: certs}]}}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: certs}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: \"\", kind: Secret}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: s, namespace: certs}]}}]}\n"},
	{"gateway-problem", // two listeners that can't both be
		"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: one, port: 80, protocol: HTTP}, {name: two, port: 80, protocol: HTTP}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: one, port: 80, protocol: HTTP}, {name: two, port: 80, protocol: HTTP, hostname: a.example.com}]}\n"},
	{"route-host-overlap",
		httpRoute("r", "a.example.com", "/", "") + ingressOf("i", "a.example.com", "", "/", ""),
		httpRoute("r", "a.example.com", "/", "") + ingressOf("i", "b.example.com", "", "/", "")},
	{"route-shadowed", // by another route
		httpRoute("r1", "a.example.com", "/a", "") + httpRoute("r2", "a.example.com", "/a", ""),
		httpRoute("r1", "a.example.com", "/a", "") + httpRoute("r2", "a.example.com", "/b", "") + httpRoute("r3", "b.example.com", "/a", "")},
	{"route-backend-tls",
		strings.ReplaceAll(httpRoute("r", "a.example.com", "/", ""), "port: 80", "port: 443"),
		strings.ReplaceAll(httpRoute("r", "a.example.com", "/", ""), "port: 80", "port: 443") +
			"apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: t, namespace: shop}\nspec: {targetRefs: [{group: \"\", kind: Service, name: web}], validation: {hostname: web, wellKnownCACertificates: System}}\n"},
	{"route-reference",
		"apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: third}\nspec: {from: [], to: []}\n---\n" +
			strings.ReplaceAll(httpRoute("r", "a.example.com", "/", ""), "{name: web, port: 80}", "{name: web, namespace: other, port: 80}") + otherService,
		"apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: \"\", kind: Service}]}\n---\n" +
			strings.ReplaceAll(httpRoute("r", "a.example.com", "/", ""), "{name: web, port: 80}", "{name: web, namespace: other, port: 80}") + otherService},
	{"policy-block-of-everything",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}]}\n"},
	{"policy-block-of-pods", // the pod's own address is told
		strings.Replace(base, "spec: {containers", "status: {podIP: 10.1.2.3, podIPs: [{ip: 10.1.2.3}]}\nspec: {containers", 1) +
			"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.1.2.0/24}}]}]}\n",
		strings.Replace(base, "spec: {containers", "status: {podIP: 10.1.2.3, podIPs: [{ip: 10.1.2.3}]}\nspec: {containers", 1) +
			"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}\n"},
	{"policy-no-default-deny",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n"},
	{"policy-no-default-deny", // no Namespace object is needed to tell
		"",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n"},
	{"policy-no-default-deny", // a cluster's baseline is a default too
		"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {a: b}}}]}]}\n",
		"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}\n"},
	{"policy-dns-blocked", // where the DNS is is not told: a block may hold it
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}]}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}\n"},
	{"policy-dns-blocked", // the pods behind the cluster's DNS, at their own port
		weftDNS + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}\n",
		weftDNS + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 1053, protocol: UDP}]}]}\n"},
	{"policy-dns-blocked", // weft's own labels, in a namespace that is not described
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app.kubernetes.io/name: weft}}}]}]}\n"},
	{"policy-foreign",
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\nspec: {}\n",
		"apiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata: {name: a, namespace: shop}\n"},
	{"policy-foreign",
		"apiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {}\n---\n" + clusterPolicy(everything),
		clusterPolicy(everything)},
	{"policy-foreign",
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {}\n",
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {}\n"},
	{"route-host-overlap", // a route's any host is the listener's
		strings.Replace(httpRoute("r", "a.example.com", "/", ""), "  hostnames: [a.example.com]\n", "", 1) + hostGateway + ingressOf("i", "a.example.com", "", "/", ""),
		strings.Replace(httpRoute("r", "a.example.com", "/", ""), "  hostnames: [a.example.com]\n", "", 1) + hostGateway + ingressOf("i", "b.example.com", "", "/", "")},
	{"policy-local-only", // clients of a block are clients
		exposed + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}\n",
		exposed + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}\n"},
	{"cluster-policy-selects-nothing",
		strings.Replace(clusterPolicy(everything), "namespaces: {}", "namespaces: {matchLabels: {no: such}}", 1),
		clusterPolicy(everything)},
	{"cluster-policy-shadowed",
		clusterPolicy(everything + `, {action: Deny, to: [{networks: ["0.0.0.0/0"]}], protocols: [{tcp: {destinationPort: {number: 80}}}]}`),
		clusterPolicy(`{action: Accept, to: [{networks: ["0.0.0.0/0"]}], protocols: [{tcp: {destinationPort: {number: 80}}}]}, ` + everything)},
	{"cluster-policy-names-open",
		clusterPolicy(`{action: Accept, to: [{domainNames: [example.com]}]}`),
		clusterPolicy(`{action: Accept, to: [{domainNames: [example.com]}]}, ` + everything)},
}

const weftDNS = "apiVersion: v1\nkind: Pod\nmetadata: {name: dns, namespace: kube-system, labels: {app: dns}}\nspec: {containers: [{name: c, image: x}]}\n---\n" +
	"apiVersion: v1\nkind: Service\nmetadata: {name: weft-dns, namespace: kube-system, labels: {app.kubernetes.io/name: weft, app.kubernetes.io/component: dns}}\nspec: {selector: {app: dns}, ports: [{port: 53, targetPort: 1053, protocol: UDP}]}\n---\n"

const hostGateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw2, namespace: shop}\nspec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP, hostname: a.example.com}]}\n---\n" +
	"apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: any, namespace: shop}\nspec: {parentRefs: [{name: gw2}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n---\n"

const exposed = "apiVersion: v1\nkind: Service\nmetadata: {name: exposed, namespace: shop}\nspec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}\n---\n"

const otherService = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: other}\nspec: {ports: [{port: 80}]}\n"

const localService = "apiVersion: v1\nkind: Service\nmetadata: {name: local, namespace: shop}\nspec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: spread}, ports: [{port: 80}]}\n"

func spreadPods(on ...string) string {
	out := ""
	for i, n := range on {
		out += "apiVersion: v1\nkind: Pod\nmetadata: {name: s" + string(rune('0'+i)) + ", namespace: shop, labels: {app: spread}}\nspec: {nodeName: " + n + ", containers: [{name: c, image: x}]}\n---\n"
	}
	return out
}

func TestRules(t *testing.T) {
	for _, tc := range ruleCases {
		whole := tc.rule == "service-local-spread"
		with := func(s string) string {
			if strings.HasPrefix(s, base[:20]) {
				return s
			}
			return base + s
		}
		if got := ids(run(t, whole, with(tc.bad))); !slices.Contains(got, tc.rule) {
			t.Errorf("%s is not found, but %v", tc.rule, got)
		}
		for _, f := range run(t, whole, with(tc.good)) {
			if f.Rule == tc.rule {
				t.Errorf("%s is found where all is well: %+v", tc.rule, f)
			}
		}
	}
}

// What a manifest has that can't be used is a finding for each field, at its object.
func TestUnusable(t *testing.T) {
	const text = "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}], ports: [{port: 99999}]}]}\n"
	ms, err := kube.ParseManifests("in.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c, bad := offline.FromManifests(offline.Options{}, ms)
	findings, err := Run(Input{Cluster: c, Unusable: bad, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range findings {
		if f.Rule == "manifest-unusable" && f.Object == "NetworkPolicy shop/p" && f.Line == 1 && f.Severity == Error {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%+v", findings)
	}
}

// No rule is without a test: in the golden file, in TestRules, or in one of its own.
func TestEveryRuleHasATest(t *testing.T) {
	tested := map[string]bool{"tls-secret-missing": true, "tls-secret-invalid": true, "tls-secret-expired": true, "tls-host-mismatch": true, // TestAbsence, TestCertificates
		"manifest-unusable": true} // TestUnusable
	golden, err := os.ReadFile("testdata/bad.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\[([a-z-]+)\]\n`).FindAllStringSubmatch(string(golden), -1) {
		tested[m[1]] = true
	}
	for _, tc := range ruleCases {
		tested[tc.rule] = true
	}
	for _, r := range Rules() {
		if !tested[r.ID] {
			t.Errorf("rule %s has no test", r.ID)
		}
	}
}
