// SPDX-License-Identifier: Apache-2.0

package lint

import "slices"

// rules are all that is looked for, by ID.
var rules = map[string]Rule{}

// Rules lists what is looked for, by ID.
func Rules() []Rule {
	out := make([]Rule, 0, len(rules))
	for _, r := range rules {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Rule) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// unanswered is what becomes of clients where a route has no backend for them.
const unanswered = "requests to it are answered 500, those of a GRPCRoute UNAVAILABLE; connections of other routes are closed"

func init() {
	for _, r := range []Rule{
		{"service-no-endpoints", Error, "a Service that no pod serves", "connections to it are refused"},
		{"service-target-port", Error, "a targetPort by a name that a selected pod does not have", "that pod is not among the Service's endpoints for this port"},
		{"service-node-port", Info, "a Service of type NodePort", "it opens a port on every node, past whatever guards the cluster's edge"},
		{"service-node-port-taken", Error, "two Services with the same nodePort", "the API server refuses the second"},
		{"service-local-spread", Warning, "traffic policy Local with all endpoints on one node", "clients that reach another node get no answer"},
		{"service-affinity", Info, "sessionAffinity: ClientIP", "clients behind one address all land on one pod, which skews the load"},
		{"service-annotation-ignored", Info, "an annotation for a load balancer on a Service that has none", "nobody reads it"},
		{"service-exposed", Info, "a LoadBalancer Service that anybody may use, before pods that no policy guards", "whoever finds the address reaches the pods"},
		{"external-name-address", Error, "an ExternalName Service whose externalName is an address", "DNS has no alias to an address: the name resolves to nothing"},
		{"statefulset-headless", Warning, "a StatefulSet whose serviceName is not a headless Service", "its pods get no stable DNS names"},

		{"ingress-class", Warning, "an Ingress without ingressClassName", "which controller serves it depends on the cluster's default, or none does"},
		{"ingress-backend", Error, "an Ingress backend that does not exist", "requests to it are answered 503"},
		{"ingress-tls", Info, "an Ingress host without TLS", "requests and their cookies can be read on the way"},
		{"ingress-shadowed", Warning, "a host and path that an older or earlier rule has already", "the later rule is never reached"},
		{"ingress-redirect", Info, "an Ingress with TLS that does not send clients of plain HTTP there", "requests and their cookies can be read on the way"},
		{"ingress-hsts", Info, "an Ingress with TLS that switches Strict-Transport-Security off", "a browser may be led to plain HTTP, however often it was here over TLS"},
		{"ingress-rewrite", Warning, "a rewrite-target with a group that the path does not have", "the backend gets to see an empty piece in its place"},
		{"ingress-problem", Warning, "an Ingress that is not served as it is written", "an annotation or field has no effect, or the part that has it is closed"},
		{"tls-secret-missing", Error, "a TLS Secret that does not exist", "the host is served with a default certificate, or not at all"},
		{"tls-secret-invalid", Error, "a TLS Secret that can't be used", "the host is served with a default certificate, or not at all"},
		{"tls-secret-expired", Error, "a certificate that has expired or is about to", "clients refuse it"},
		{"tls-host-mismatch", Warning, "a certificate that is not for the host it serves", "clients refuse it"},

		{"manifest-unusable", Error, "a field whose value can't be used", "the API server refuses the object; of one that it has taken, the part is left out, and what it would allow is not allowed"},
		{"outdated-shape", Error, "a version or field that today's API does not have", "the API server refuses the object, or drops the field without a word"},
		{"gateway-class", Error, "a Gateway without a class, or with one that does not exist", "no controller provisions it"},
		{"gateway-tls-namespace", Error, "a Gateway that takes its certificate from another namespace without a ReferenceGrant", "the listener has no certificate"},
		{"gateway-open", Info, "a listener that takes routes from every namespace", "whoever may make a route in any namespace can take over a host"},
		{"gateway-problem", Error, "a Gateway, listener or route that the controller would not serve as it is written", "its status in a cluster would say so"},
		{"route-host-overlap", Warning, "a host that several gateways serve", "which of them a client reaches is up to DNS"},
		{"route-backend-tls", Warning, "a backend that speaks TLS, without a BackendTLSPolicy", "the gateway speaks plain HTTP to it, which it refuses"},
		{"route-parent", Error, "a route to a Gateway or listener that does not exist or does not admit it", "the route is not attached: nothing reaches it"},
		{"route-backend", Error, "a route's backend that does not exist", unanswered},
		{"route-reference", Error, "a route to a Service of another namespace without a ReferenceGrant", unanswered},
		{"route-hostname", Warning, "a route none of whose hostnames any listener serves", "the route is not attached: nothing reaches it"},
		{"route-weight", Warning, "a rule all of whose backends have weight 0", unanswered},
		{"route-shadowed", Warning, "a match that an earlier rule has already", "the later rule is never reached"},

		{"policy-selects-nothing", Warning, "a policy that selects no pod", "it protects nothing"},
		{"policy-peer-matches-nothing", Warning, "a peer that matches no pod", "the rule allows nothing by it"},
		{"policy-and-or", Warning, "namespaceSelector and podSelector as two peers, where one was probably meant", "two peers mean either of them; more is allowed than it looks like"},
		{"policy-port-name", Warning, "a port by a name that no pod has", "the rule allows nothing by it"},
		{"policy-rules-ignored", Warning, "rules of a direction that policyTypes leaves out", "the API server keeps them, and nothing applies them"},
		{"policy-dns-blocked", Warning, "pods that may talk to others but not to the cluster's DNS", "they can't resolve the names of those they may talk to"},
		{"policy-service-ip", Warning, "an ipBlock for a Service's address", "policies see the pod behind a Service, never the Service's address: the rule matches nothing"},
		{"policy-block-of-pods", Info, "an ipBlock for addresses of pods", "pods' addresses change and are reused by others"},
		{"policy-block-of-everything", Info, "an egress ipBlock of every address", "it also means every pod of the cluster"},
		{"policy-admits-everybody", Info, "an ingress rule that lets everybody in, at every port", "whatever other policies admit makes no difference: the pods are as open as without any"},
		{"policy-any-namespace", Info, "a peer that means the pods of every namespace", "whoever can start a pod anywhere is let in"},
		{"policy-host-network", Info, "a policy that selects pods on the host's network", "policies don't apply to them"},
		{"policy-local-only", Info, "a pod that a LoadBalancer or NodePort Service exposes, and whose policy admits pods only", "clients from outside are dropped"},
		{"policy-no-default-deny", Info, "a namespace with pods that no policy isolates", "every pod of the cluster reaches them"},
		{"cluster-policy-selects-nothing", Warning, "a ClusterNetworkPolicy that is about no pod", "it does nothing"},
		{"cluster-policy-shadowed", Warning, "a rule of a ClusterNetworkPolicy behind one that decides about all that it matches", "it is never reached"},
		{"cluster-policy-names-open", Warning, "an Accept rule by domainNames that no Deny rule follows", "what has another name is not kept out either"},
		{"policy-foreign", Warning, "a policy of a kind that weft does not enforce", "it has no effect"},
	} {
		rules[r.ID] = r
	}
}
