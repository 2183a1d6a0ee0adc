// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/model"
)

// lb is a LoadBalancer Service with an external-dns hostname.
func lb(name, hostname string, ips ...string) *model.Service {
	s := svc(name, addrs("10.96.0.1"))
	s.Type = model.LoadBalancer
	s.Annotations = map[string]string{annotationHostname: hostname}
	for _, ip := range ips {
		s.Ingress = append(s.Ingress, model.LoadBalancerIngress{IP: addrs(ip)[0]})
	}
	return s
}

func with(s *model.Service, annotations ...string) *model.Service {
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	for i := 0; i < len(annotations); i += 2 {
		s.Annotations[annotations[i]] = annotations[i+1]
	}
	return s
}

func externalFixture(t testing.TB) *External {
	z, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewExternal(z, ExternalOptions{Zones: []string{"example.com", "example.org"}, Service: nm("weft/dns")})
	if err != nil {
		t.Fatal(err)
	}
	np := with(svc("shop/np", addrs("10.96.0.2")), annotationHostname, "np.example.com")
	np.Type = model.NodePort
	local := with(svc("shop/local", addrs("10.96.0.3")), annotationHostname, "local.example.com")
	local.Type, local.ExternalLocal = model.NodePort, true
	six := with(svc("shop/six", addrs("fd00::6")), annotationHostname, "six.example.com")
	six.Type = model.NodePort
	hostnameOnly := lb("shop/cloud", "cloud.example.com")
	hostnameOnly.Ingress = []model.LoadBalancerIngress{{Hostname: "lb-1.cloud.example.net"}}
	own := svc("weft/dns", addrs("10.96.0.53"))
	own.Type = model.LoadBalancer
	own.Ingress = []model.LoadBalancerIngress{{IP: addrs("192.0.2.53")[0]}}
	second := lb("evil/web", "www.example.com", "203.0.113.66")
	second.Created = 200
	first := lb("shop/web", "www.example.com, example.org.,elsewhere.test", "192.0.2.1", "2001:db8::1")
	first.Created = 100
	d := delta(first, second,
		with(lb("shop/ttl", "ttl.example.com", "192.0.2.2"), annotationTTL, "60"),
		with(lb("shop/target", "target.example.com", "192.0.2.3"), annotationTarget, "198.51.100.9"),
		with(lb("shop/alias", "alias.example.com", "192.0.2.3"), annotationTarget, "www.example.com"),
		with(svc("shop/inner", addrs("10.96.0.9")), annotationInternal, "inner.example.com"),
		lb("shop/wild", "*.wild.example.com", "192.0.2.7"), lb("shop/deep", "a.b.wild.example.com", "192.0.2.8"),
		lb("shop/pending", "pending.example.com"),
		np, local, six, hostnameOnly, own,
		slice("shop/local-1", "local", nil, "10.1.0.1"))
	d.EndpointSlices[nm("shop/local-1")].Endpoints[0].Node = "node-2"
	d.Nodes = map[string]*model.Node{
		"node-1": {Meta: model.Meta{Name: model.Name{Name: "node-1"}}, Ready: true, InternalIPs: addrs("10.0.0.1", "fd00::1"), ExternalIPs: addrs("198.51.100.1", "2001:db8::1")},
		"node-2": {Meta: model.Meta{Name: model.Name{Name: "node-2"}}, Ready: true, InternalIPs: addrs("10.0.0.2", "fd00::2")},
		"node-3": {Meta: model.Meta{Name: model.Name{Name: "node-3"}}, InternalIPs: addrs("10.0.0.3"), ExternalIPs: addrs("198.51.100.3")},
	}
	externalUpdate(x, d)
	return x
}

// externalUpdate has the cluster's zone and the External take in a Delta.
func externalUpdate(x *External, d *model.Delta) {
	x.cluster.Update(d)
	x.Update(d)
}

func askExternal(t *testing.T, x *External, name, typ string) []string {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(dns.Fqdn(name), dns.StringToType[typ])
	wire, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q Question
	q.Read(wire[12:])
	q.Type = req.Question[0].Qtype
	msg, res := x.Append(wire, &q, 65535, 0)
	msg[3] = res.Rcode
	for i, n := range []uint16{res.Answer, res.Authority, res.Additional} {
		msg[6+2*i], msg[7+2*i] = byte(n>>8), byte(n)
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("%s %s: %v", name, typ, err)
	}
	return show(m, res)
}

func TestExternal(t *testing.T) {
	x := externalFixture(t)
	soa := "ns: example.com. 60 IN SOA ns.example.com. hostmaster.example.com. 1700000000 7200 1800 86400 60"
	for _, c := range []struct {
		why, name, typ string
		want           []string
	}{
		{"LoadBalancer", "www.example.com", "A", []string{"NOERROR", "www.example.com. 300 IN A 192.0.2.1"}},
		{"LoadBalancer", "WWW.example.com", "AAAA", []string{"NOERROR", "WWW.example.com. 300 IN AAAA 2001:db8::1"}},
		{"a list of names; the zone itself", "example.org", "A", []string{"NOERROR", "example.org. 300 IN A 192.0.2.1"}},
		{"not in a zone", "elsewhere.test", "A", []string{"NOTMINE"}},
		{"ttl", "ttl.example.com", "A", []string{"NOERROR", "ttl.example.com. 60 IN A 192.0.2.2"}},
		{"no such type", "ttl.example.com", "AAAA", []string{"NOERROR", soa}},
		{"target", "target.example.com", "A", []string{"NOERROR", "target.example.com. 300 IN A 198.51.100.9"}},
		{"target that is a name", "alias.example.com", "A", []string{"NOERROR", "alias.example.com. 300 IN CNAME www.example.com.", "www.example.com. 300 IN A 192.0.2.1"}},
		{"a load balancer's name", "cloud.example.com", "A", []string{"NOERROR", "cloud.example.com. 300 IN CNAME lb-1.cloud.example.net."}},
		{"internal-hostname", "inner.example.com", "A", []string{"NOERROR", "inner.example.com. 300 IN A 10.96.0.9"}},
		{"NodePort: ready nodes' outer addresses", "np.example.com", "A", []string{"NOERROR", "np.example.com. 300 IN A 198.51.100.1"}},
		{"NodePort of IPv4 alone", "np.example.com", "AAAA", []string{"NOERROR", soa}},
		{"NodePort of IPv6 alone", "six.example.com", "A", []string{"NOERROR", soa}},
		{"NodePort of IPv6 alone", "six.example.com", "AAAA", []string{"NOERROR", "six.example.com. 300 IN AAAA 2001:db8::1"}},
		{"NodePort, Local: nodes with an endpoint", "local.example.com", "A", []string{"NOERROR", "local.example.com. 300 IN A 10.0.0.2"}},
		{"no address yet", "pending.example.com", "A", []string{"NXDOMAIN", soa}},
		{"wildcard", "x.wild.example.com", "A", []string{"NOERROR", "x.wild.example.com. 300 IN A 192.0.2.7"}},
		{"wildcard, deeper", "x.y.wild.example.com", "A", []string{"NOERROR", "x.y.wild.example.com. 300 IN A 192.0.2.7"}},
		{"RFC 4592: b.wild exists, so the wildcard does not match below it", "x.b.wild.example.com", "A", []string{"NXDOMAIN", soa}},
		{"empty non-terminal", "b.wild.example.com", "A", []string{"NOERROR", soa}},
		{"empty non-terminal", "wild.example.com", "A", []string{"NOERROR", soa}},
		{"missing", "none.example.com", "A", []string{"NXDOMAIN", soa}},
		{"apex", "example.com", "SOA", []string{"NOERROR", soa[4:]}},
		{"apex", "example.com", "NS", []string{"NOERROR", "example.com. 300 IN NS ns.example.com."}},
		{"apex", "example.com", "A", []string{"NOERROR", soa}},
		{"the name server", "ns.example.com", "A", []string{"NOERROR", "ns.example.com. 300 IN A 192.0.2.53"}},
	} {
		if diff := cmp.Diff(c.want, askExternal(t, x, c.name, c.typ)); diff != "" {
			t.Errorf("%s: %s %s (-want +got):\n%s", c.why, c.name, c.typ, diff)
		}
	}
	var q Question
	_ = q.SetName("www.example.com")
	from, inVain, err := x.Sources(&q)
	if err != nil || !slices.Equal(from, []string{"Service shop/web"}) || !slices.Equal(inVain, []string{"Service evil/web"}) {
		t.Errorf("sources: %v, %v, %v", from, inVain, err)
	}
	// Other objects than Services declare names, too.
	x.Declare(Declaration{Object: "Ingress shop/front", Namespace: "shop", Hostnames: []string{"front.example.com", "front.test"}, Addrs: addrs("192.0.2.80"), TTL: time.Minute})
	if got := askExternal(t, x, "front.example.com", "A"); !slices.Contains(got, "front.example.com. 60 IN A 192.0.2.80") {
		t.Errorf("an Ingress's name: %q", got)
	}
	x.Withdraw("Ingress shop/front")
	if got := askExternal(t, x, "front.example.com", "A"); got[0] != "NXDOMAIN" {
		t.Errorf("an Ingress's name, withdrawn: %q", got)
	}
	// All goes when its objects go, and the other Service comes into its own.
	externalUpdate(x, &model.Delta{Since: time.Unix(1700000000, 0), Services: map[model.Name]*model.Service{nm("shop/web"): nil, nm("shop/deep"): nil}})
	if got := askExternal(t, x, "www.example.com", "A"); !slices.Contains(got, "www.example.com. 300 IN A 203.0.113.66") {
		t.Errorf("after the first owner left: %q", got)
	}
	if got := askExternal(t, x, "x.b.wild.example.com", "A"); !strings.Contains(got[1], "192.0.2.7") {
		t.Errorf("after b.wild left: %q", got)
	}
}

// What a headless Service's name, or a NodePort Service's of local endpoints, leads to follows the endpoints.
func TestExternalFollowsEndpoints(t *testing.T) {
	x := externalFixture(t)
	expect := func(what, name string, want ...string) {
		t.Helper()
		got := askExternal(t, x, name, "A")[1:]
		for i := range got {
			got[i] = got[i][strings.LastIndexByte(got[i], ' ')+1:]
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s is at %q, want %q", what, name, got, want)
		}
	}
	expect("one node has an endpoint", "local.example.com", "10.0.0.2")
	moved := slice("shop/local-1", "local", nil, "10.1.0.1")
	moved.Endpoints[0].Node = "node-1"
	externalUpdate(x, delta(moved))
	expect("the endpoint is on another node", "local.example.com", "198.51.100.1")

	// The slices were there before their Service asked for a name.
	hl := svc("shop/hl", nil)
	hl.Headless = true
	externalUpdate(x, delta(hl, slice("shop/hl-1", "hl", nil, "10.1.0.7")))
	expect("without the annotation", "hl.example.com", "60")
	named := with(svc("shop/hl", nil), annotationHostname, "hl.example.com")
	named.Headless = true
	externalUpdate(x, delta(named))
	expect("with it", "hl.example.com", "10.1.0.7")
	externalUpdate(x, delta(slice("shop/hl-2", "hl", nil, "10.1.0.8")))
	expect("a slice more", "hl.example.com", "10.1.0.7", "10.1.0.8")
	externalUpdate(x, delta(slice("shop/hl-1", "other", nil, "10.1.0.7")))
	expect("a slice that is another's now", "hl.example.com", "10.1.0.8")
	externalUpdate(x, &model.Delta{EndpointSlices: map[model.Name]*model.EndpointSlice{nm("shop/hl-2"): nil}})
	expect("none", "hl.example.com", "60")
}

// Without zones nothing is kept.
func TestExternalWithoutZones(t *testing.T) {
	z, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewExternal(z, ExternalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	externalUpdate(x, delta(lb("shop/web", "www.example.com", "192.0.2.1")))
	if len(x.services)+len(x.sources) != 0 {
		t.Errorf("kept: %v %v", x.services, x.sources)
	}
}

// The outside view says what each record comes from, and why there is none.
func TestExternalExplain(t *testing.T) {
	x := externalFixture(t)
	x.Declare(Declaration{Object: "Ingress shop/front", Namespace: "shop", Hostnames: []string{"front.example.com"}, Addrs: addrs("192.0.2.80")})
	explain := func(name, typ string) string {
		var q Question
		if err := q.SetName(name); err != nil {
			t.Fatal(err)
		}
		q.Type, _ = ParseType(typ)
		e := x.Explain(&q)
		out := e.Rcode
		for _, r := range e.Answer {
			out += "; " + r.Type + " " + r.Data + " (" + r.Object + ")"
		}
		for _, n := range append(e.Notes, e.Reason) {
			if n != "" {
				out += "; " + n
			}
		}
		return out
	}
	for _, c := range [][3]string{
		{"front.example.com", "A", "NOERROR; A 192.0.2.80 (Ingress shop/front)"},
		{"front.example.com", "AAAA", "NOERROR; Ingress shop/front has no address of that family"},
		{"www.example.com", "A", "NOERROR; A 192.0.2.1 (Service shop/web); Service evil/web declares it, too; Service shop/web had it first"},
		{"alias.example.com", "A", "NOERROR; CNAME www.example.com. (Service shop/alias); A 192.0.2.1 (Service shop/web)"},
		{"nope.example.com", "A", "NXDOMAIN; no object of the cluster declares it, or none that does has an address yet"},
		{"pending.example.com", "A", "NXDOMAIN; no object of the cluster declares it, or none that does has an address yet"},
		{"b.wild.example.com", "A", "NOERROR; there are names below it only"},
		{"example.net", "A", "REFUSED; it is in none of the zones example.com, example.org (external.zones of the configuration)"},
	} {
		if got := explain(c[0], c[1]); got != c[2] {
			t.Errorf("%s %s:\n got %s\nwant %s", c[0], c[1], got, c[2])
		}
	}
}
