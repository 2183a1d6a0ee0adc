// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"strings"
	"testing"
)

func explain(t *testing.T, z *Zone, name, typ string) Explanation {
	t.Helper()
	var q Question
	if err := q.SetName(name); err != nil {
		t.Fatal(err)
	}
	var err error
	if q.Type, err = ParseType(typ); err != nil {
		t.Fatal(err)
	}
	return z.Explain(&q)
}

func TestExplainRecords(t *testing.T) {
	z := newZone(t, Options{}, specCluster()...)
	for _, c := range []struct{ name, typ, data, object, why string }{
		{"kubernetes.default.svc.cluster.local", "A", "10.3.0.1", "Service default/kubernetes", "spec.clusterIPs"},
		{"my-pet.headless.default.svc.cluster.local", "A", "10.3.0.100", "EndpointSlice default/headless-4, Pod default/pod-10-3-0-100", "a ready endpoint"},
		{"headless.default.svc.cluster.local", "AAAA", "2001:db8:1::", "EndpointSlice default/headless-6, Pod default/pod-2001-db8-1--", "a ready endpoint"},
		{"_https._tcp.kubernetes.default.svc.cluster.local", "SRV", "0 100 443 kubernetes.default.svc.cluster.local.", "Service default/kubernetes", "its named ports"},
		{"foo.default.svc.cluster.local", "A", "www.Example.com.", "Service default/foo", "spec.externalName"},
		{"1.0.3.10.in-addr.arpa", "PTR", "kubernetes.default.svc.cluster.local.", "Service default/kubernetes", "spec.clusterIPs"},
		{"100.0.3.10.in-addr.arpa", "PTR", "my-pet.headless.default.svc.cluster.local.", "EndpointSlice default/headless-4, Pod default/pod-10-3-0-100", "a ready endpoint"},
		{"10-1-2-3.default.pod.cluster.local", "A", "10.1.2.3", "", "the address in the name itself: pod names are not verified (pods: insecure)"},
		{"dns-version.cluster.local", "TXT", `"1.1.0"`, "", "the zone itself"},
	} {
		e := explain(t, z, c.name, c.typ)
		found := false
		for _, r := range e.Answer {
			found = found || r.Data == c.data && r.Object == c.object && r.Why == c.why
		}
		if !found {
			t.Errorf("%s %s: no record %q of %q (%s) in %+v", c.name, c.typ, c.data, c.object, c.why, e)
		}
	}
}

func TestExplainReasons(t *testing.T) {
	waiting := svc("default/waiting", addrs("10.3.0.50"), "/TCP/80")
	waiting.Selector = map[string]string{"app": "w", "tier": "x"}
	z := newZone(t, Options{}, append(specCluster(), waiting, svc("prod/cart", addrs("10.3.0.60")), svc("test/cart", addrs("10.3.0.61")),
		svc("prod/default", addrs("10.3.0.62")))...)
	for _, c := range []struct{ name, typ, want string }{
		{"cart.default", "A", `no Service "cart" in namespace "default"; Service "cart" exists, but in namespace prod, test: ask for cart.prod`},
		{"kubernets.default", "A", `no Service "kubernets" in namespace "default" (did you mean "kubernetes"?)`},
		{"cart.prd", "A", `namespace "prd" does not exist (did you mean "prod"?); Service "cart" exists, but in namespace prod, test: ask for cart.prod`},
		{"prod.cart", "A", `namespace "cart" does not exist; the other way round it exists: cart.prod.svc.cluster.local`},
		{"unready.default", "A", `Service default/unready is headless and has no address to give: none of its 1 endpoints is ready (pod-10-3-1-1)`},
		{"noslice.default", "A", `Service default/noslice is headless and has no address to give: it has no selector, and no EndpointSlice with an endpoint was made for it`},
		{"v4only.default", "AAAA", `Service default/v4only has addresses of IPv4 only, none of IPv6: see its spec.ipFamilies`},
		{"_http._tcp.kubernetes.default", "SRV", `Service default/kubernetes has no _http._tcp: it has _dns._udp, _https._tcp`},
		{"_http._tcp.waiting.default", "SRV", `Service default/waiting has no named port: a port without a name has no SRV record`},
		{"10-3-0-103.headless.default", "A", `endpoint "10-3-0-103" of Service default/headless is not ready`},
		{"10-3-0-100.headless.default", "A", `the endpoint at 10.3.0.100 of Service default/headless has a hostname and goes by "my-pet"`},
		{"nobody.headless.default", "A", `Service default/headless has no endpoint "nobody": it has 10-3-0-102, 2001-db8-1--0, my-pet, my-pet-2`},
		{"number.default", "A", `Service default/number: spec.externalName "10.0.0.1" is no name that a CNAME can point to: use a Service without selector for an address`},
		{"x.foo.default", "A", `Service default/foo is an ExternalName: there is nothing below it`},
		{"nowhere.default", "A", `no Service "none" in namespace "default"`},
		{"circle.default", "A", `ExternalNames lead in a circle, or over more than 8 steps`},
		{"waiting.default", "A", `the name resolves, but connections to it are refused: its selector (app=w,tier=x) matches no pod that has an address`},
	} {
		e := explain(t, z, c.name+".svc.cluster.local", c.typ)
		got := strings.Join(append([]string{e.Reason}, e.Notes...), "; ")
		if got = strings.TrimPrefix(got, "; "); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, c.typ, got, c.want)
		}
	}
	for name, want := range map[string]string{
		"kubernetes.cluster.local":         "did the name miss its namespace",
		"10-1-2.default.pod.cluster.local": "no address with dashes",
		"a.none.pod.cluster.local":         `namespace "none" does not exist`,
		"default.svc.cluster.local":        "names below it",
	} {
		if e := explain(t, z, name, "A"); !strings.Contains(e.Reason, want) {
			t.Errorf("%s: %q does not say %q", name, e.Reason, want)
		}
	}
	if e := explain(t, z, "example.com", "A"); e.Elsewhere != "example.com." || e.Rcode != "" {
		t.Errorf("a name elsewhere: %+v", e)
	}
	if e := explain(t, z, "foo.default.svc.cluster.local", "A"); e.Elsewhere != "www.Example.com." {
		t.Errorf("a name that leads elsewhere: %+v", e)
	}
}

func TestSearchNames(t *testing.T) {
	z := newZone(t, Options{}, svc("a/x", addrs("10.0.0.1")))
	for name, want := range map[string]string{
		"cart":        "cart.shop.svc.cluster.local. cart.svc.cluster.local. cart.cluster.local. cart.corp.example. cart.",
		"cart.other.": "cart.other.",
		"a.b.c.d.e.f": "a.b.c.d.e.f. a.b.c.d.e.f.shop.svc.cluster.local. a.b.c.d.e.f.svc.cluster.local. a.b.c.d.e.f.cluster.local. a.b.c.d.e.f.corp.example.",
	} {
		if got := strings.Join(SearchList(name, append(z.SearchDomains("shop"), "corp.example"), DefaultNdots), " "); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Names that only a reading of the whole cluster could tell apart must not be explained wrongly.
func TestExplainAgreesWithAnswer(t *testing.T) {
	z := newZone(t, Options{}, specCluster()...)
	for _, name := range []string{"kubernetes.default.svc.cluster.local", "none.default.svc.cluster.local", "headless.default.svc.cluster.local", "inside.default.svc.cluster.local"} {
		for _, typ := range []string{"A", "AAAA", "SRV", "TXT"} {
			m, _ := ask(t, z, name, typ, 65535, 0)
			e := explain(t, z, name, typ)
			if len(e.Answer) != len(m.Answer) || (e.Rcode == "NXDOMAIN") != (m.Rcode == 3) {
				t.Errorf("%s %s: %d records explained, %d answered", name, typ, len(e.Answer), len(m.Answer))
			}
			if (len(m.Answer) == 0) != (e.Reason != "") && !hasType(e.Answer, "CNAME") {
				t.Errorf("%s %s: reason %q for %d records", name, typ, e.Reason, len(m.Answer))
			}
		}
	}
}
