// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// What a name resolves to depends on the pod's dnsPolicy and dnsConfig, and on the server's configuration.
func TestAskAsAPod(t *testing.T) {
	cfg, err := dnsserver.ParseConfig([]byte(`
hosts: {registry.example: [192.0.2.10], here.shop.svc.cluster.local: [192.0.2.11]}
aliases: {api.example: web.shop.svc.cluster.local, far.example: api.example, www.example: registry.example, circle.example: circle.example}
stubDomains: [{zones: [corp.example], upstreams: [10.0.0.53]}]
searchPath: {enabled: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	z, err := dnszone.New(cfg.Zone())
	if err != nil {
		t.Fatal(err)
	}
	z.Update(webAt("10.96.0.1"))
	pod := func(policy string, host bool, c *model.PodDNSConfig) *model.Pod {
		return &model.Pod{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "p"}}, DNSPolicy: policy, HostNetwork: host, DNSConfig: c}
	}
	cluster := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	for _, c := range []struct {
		why, name string
		pod       *model.Pod
		want      string
	}{
		{"any pod", "web", nil, "web, as a pod of namespace shop asks it:\n  web.shop.svc.cluster.local.  5  A  10.96.0.1  (Service shop/web: spec.clusterIPs)\n"},
		{"the policy that is the default", "web", pod("", false, nil), "10.96.0.1"},
		{"host network", "web", pod("ClusterFirst", true, nil), "not asked of the cluster's DNS: hostNetwork without dnsPolicy: ClusterFirstWithHostNet"},
		{"host network, with the policy for it", "web", pod("ClusterFirstWithHostNet", true, nil), "10.96.0.1"},
		{"Default", "web", pod("Default", false, nil), "not asked of the cluster's DNS: dnsPolicy: Default"},
		{"None, others' server", "web", pod("None", false, &model.PodDNSConfig{Nameservers: []string{"192.0.2.53"}, Ndots: -1}), "not asked of the cluster's DNS: dnsPolicy: None: it asks 192.0.2.53"},
		{"None, the cluster's server, without search domains", "web", pod("None", false, &model.PodDNSConfig{Nameservers: []string{"10.96.0.10"}, Ndots: -1}), "web.  not a name of the cluster"},
		{"None, the cluster's server", "web", pod("None", false, &model.PodDNSConfig{Nameservers: []string{"10.96.0.10"}, Searches: []string{"shop.svc.cluster.local"}, Ndots: -1}), "10.96.0.1"},
		{"a search domain more", "web", pod("", false, &model.PodDNSConfig{Searches: []string{"corp.example"}, Ndots: -1}), "10.96.0.1"},
		{"a search domain more, of a stub domain", "git", pod("", false, &model.PodDNSConfig{Searches: []string{"corp.example"}, Ndots: -1}), "git.corp.example.  not a name of the cluster: its upstream resolvers answer\n  if git.shop.svc.cluster.local. was meant: no Service \"git\" in namespace \"shop\"\n  note: stubDomains: corp.example. asks 10.0.0.53\n"},
		{"ndots", "web.shop", pod("", false, &model.PodDNSConfig{Ndots: 1}), "  web.shop.  not a name of the cluster"},
		{"hosts", "registry.example", nil, "registry.example.  5  A  192.0.2.10  (hosts, in the configuration)\n"},
		{"searchPath", "registry.example", nil, "note: searchPath is enabled"},
		{"hosts in the cluster's domain", "here", nil, "here.shop.svc.cluster.local.  5  A  192.0.2.11  (hosts, in the configuration)\n"},
		{"hosts, backwards", "192.0.2.10", nil, "10.2.0.192.in-addr.arpa.  5  PTR  registry.example.  (hosts, in the configuration)\n"},
		{"an alias of a Service", "far.example", nil, "  far.example.  5  CNAME  api.example.  (aliases, in the configuration)\n  api.example.  5  CNAME  web.shop.svc.cluster.local.  (aliases, in the configuration)\n  web.shop.svc.cluster.local.  5  A  10.96.0.1  (Service shop/web: spec.clusterIPs)\n"},
		{"an alias of a host", "www.example", nil, "registry.example.  5  A  192.0.2.10"},
		{"a circle", "circle.example.", nil, "SERVFAIL: aliases lead in a circle"},
	} {
		a, err := Ask(z, cfg, c.name, []string{"A"}, ResolverOf(z, "shop", c.pod, nil, cluster))
		if err != nil {
			t.Fatal(c.why, err)
		}
		var b strings.Builder
		a.Write(&b)
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("%s: got\n%swant\n%s", c.why, b.String(), c.want)
		}
	}
}
