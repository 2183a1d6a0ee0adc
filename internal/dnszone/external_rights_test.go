// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/model"
)

// newExternal makes zones, and a cluster's zone beside them.
func newExternal(t testing.TB, o ExternalOptions) *External {
	t.Helper()
	z, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewExternal(z, o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// The name server's name is that of the Service which leads to it, whoever else wants it, and however early; and a zone's
// apex never becomes an alias, which would take its SOA and NS records away.
func TestExternalNamesOfTheZoneItself(t *testing.T) {
	soa := "example.com. 60 IN SOA ns.example.com. hostmaster.example.com. 1700000000 7200 1800 86400 60"
	evil := lb("evil/web", "ns.example.com,example.com", "203.0.113.66")
	evil.Created = 1
	wild := lb("evil/wild", "*.example.com", "203.0.113.67")
	wild.Created = 1
	apex := lb("evil/apex", "example.com")
	apex.Ingress = []model.LoadBalancerIngress{{Hostname: "lb.example.net"}}
	apex.Created = 1
	own := func(ips ...string) *model.Service {
		s := svc("weft/dns", addrs("10.96.0.53"))
		s.Type, s.Created = model.LoadBalancer, 900
		for _, ip := range ips {
			s.Ingress = append(s.Ingress, model.LoadBalancerIngress{IP: addrs(ip)[0]})
		}
		return s
	}
	x := newExternal(t, ExternalOptions{Zones: []string{"example.com"}, Service: nm("weft/dns")})
	externalUpdate(x, delta(evil, wild, own()))
	check := func(why, name, typ string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, askExternal(t, x, name, typ)); diff != "" {
			t.Errorf("%s: %s %s (-want +got):\n%s", why, name, typ, diff)
		}
	}
	check("before the Service has an address, nobody's", "ns.example.com", "A", "NOERROR", "ns: "+soa)
	check("a wildcard is for other names", "www.example.com", "A", "NOERROR", "www.example.com. 300 IN A 203.0.113.67")
	check("an address at the apex is fine", "example.com", "A", "NOERROR", "example.com. 300 IN A 203.0.113.66")
	externalUpdate(x, delta(own("192.0.2.53")))
	check("the Service's", "ns.example.com", "A", "NOERROR", "ns.example.com. 300 IN A 192.0.2.53")
	x.Declare(Declaration{Object: "Ingress evil/ns", Namespace: "evil", Created: 1, Hostnames: []string{"NS.example.com"}, Addrs: addrs("203.0.113.68")})
	check("nor an Ingress's", "ns.example.com", "A", "NOERROR", "ns.example.com. 300 IN A 192.0.2.53")
	q := Question{Type: typeA}
	if err := q.SetName("ns.example.com"); err != nil {
		t.Fatal(err)
	}
	if e := x.Explain(&q); len(e.Notes) != 2 || !strings.Contains(strings.Join(e.Notes, "; "), "Ingress evil/ns") {
		t.Errorf("who wants it in vain: %q", e.Notes)
	}

	x = newExternal(t, ExternalOptions{Zones: []string{"example.com"}, Service: nm("weft/dns")})
	externalUpdate(x, delta(apex, own("192.0.2.53")))
	check("no alias at the apex", "example.com", "SOA", "NOERROR", soa)
	check("no alias at the apex", "example.com", "NS", "NOERROR", "example.com. 300 IN NS ns.example.com.")
	check("no alias at the apex", "example.com", "A", "NOERROR", "ns: "+soa)
	check("no alias at the apex", "example.com", "CNAME", "NOERROR", "ns: "+soa)
	if err := q.SetName("example.com"); err != nil {
		t.Fatal(err)
	}
	if e := x.Explain(&q); !strings.Contains(e.Reason, "apex") || !strings.Contains(e.Reason, "Service evil/apex") {
		t.Errorf("why not: %q", e.Reason)
	}

	// Name servers of names of their own, within a zone: they are the operator's namespace's to declare.
	x = newExternal(t, ExternalOptions{Zones: []string{"example.com"}, NameServers: []string{"dns1.example.com", "dns2.example.net"}, Service: nm("weft/dns")})
	dns1 := lb("weft/dns1", "dns1.example.com", "192.0.2.54")
	dns1.Created = 950
	early := lb("evil/dns1", "dns1.example.com,dns2.example.com", "203.0.113.69")
	externalUpdate(x, delta(early, dns1))
	check("the operator's", "dns1.example.com", "A", "NOERROR", "dns1.example.com. 300 IN A 192.0.2.54")
	check("another name", "dns2.example.com", "A", "NOERROR", "dns2.example.com. 300 IN A 203.0.113.69")
}

// One Service may have names for both sides.
func TestExternalInternalToo(t *testing.T) {
	x := newExternal(t, ExternalOptions{Zones: []string{"example.com"}})
	both := with(lb("shop/web", "www.example.com", "192.0.2.1"), annotationInternal, "inner.example.com, shared.example.com")
	both.ExternalIPs = addrs("192.0.2.9")
	both.ClusterIPs = addrs("10.96.0.1", "fd00::1")
	headless := with(headlessSvc("shop/db"), annotationInternal, "db.example.com")
	externalUpdate(x, delta(both, headless, slice("shop/db-1", "db", nil, "10.1.0.7")))
	for name, want := range map[string][]string{
		"www.example.com":    {"NOERROR", "www.example.com. 300 IN A 192.0.2.1", "www.example.com. 300 IN A 192.0.2.9"},
		"inner.example.com":  {"NOERROR", "inner.example.com. 300 IN A 10.96.0.1"},
		"shared.example.com": {"NOERROR", "shared.example.com. 300 IN A 10.96.0.1"},
		"db.example.com":     {"NOERROR", "db.example.com. 300 IN A 10.1.0.7"},
	} {
		if diff := cmp.Diff(want, askExternal(t, x, name, "A")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	externalUpdate(x, delta(with(lb("shop/web", "www.example.com", "192.0.2.1"))))
	if got := askExternal(t, x, "inner.example.com", "A"); got[0] != "NXDOMAIN" {
		t.Errorf("a name outlived its annotation: %v", got)
	}
	var gone model.Delta
	gone.Services = map[model.Name]*model.Service{nm("shop/web"): nil, nm("shop/db"): nil}
	externalUpdate(x, &gone)
	for _, name := range []string{"www.example.com", "db.example.com"} {
		if got := askExternal(t, x, name, "A"); got[0] != "NXDOMAIN" {
			t.Errorf("%s outlived its Service: %v", name, got)
		}
	}
}
