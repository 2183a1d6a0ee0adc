// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/model"
)

// Constructors that keep the tables readable.

func nm(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// ports reads "http/TCP/80"; the name may be empty.
func ports(s ...string) (out []model.ServicePort) {
	for _, p := range s {
		f := strings.Split(p, "/")
		proto, _ := model.ParseProtocol(f[1])
		var n uint16
		fmt.Sscan(f[2], &n)
		out = append(out, model.ServicePort{Name: f[0], Protocol: proto, Port: n})
	}
	return out
}

func svc(name string, ips []netip.Addr, ps ...string) *model.Service {
	return &model.Service{Meta: model.Meta{Name: nm(name)}, ClusterIPs: ips, Ports: ports(ps...)}
}

func headlessSvc(name string, ps ...string) *model.Service {
	s := svc(name, nil, ps...)
	s.Headless = true
	return s
}

func publishing(s *model.Service) *model.Service {
	s.PublishNotReadyAddresses = true
	return s
}

func externalSvc(name, target string) *model.Service {
	return &model.Service{Meta: model.Meta{Name: nm(name)}, Type: model.ExternalName, ExternalName: target}
}

// ep reads "10.1.0.1", "10.1.0.1=web-0" (a hostname), and "!10.1.0.1" (not ready).
func ep(s string) model.Endpoint {
	s, notReady := strings.CutPrefix(s, "!")
	a, host, _ := strings.Cut(s, "=")
	return model.Endpoint{Addresses: addrs(a), Hostname: host, Ready: !notReady, Serving: !notReady, Pod: "pod-" + strings.NewReplacer(".", "-", ":", "-").Replace(a)}
}

func slice(name, of string, ps []string, eps ...string) *model.EndpointSlice {
	n := nm(name)
	out := &model.EndpointSlice{Meta: model.Meta{Name: n}, Service: of, Family: model.IPv4}
	for _, p := range ports(ps...) {
		out.Ports = append(out.Ports, model.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	for _, e := range eps {
		out.Endpoints = append(out.Endpoints, ep(e))
	}
	if len(out.Endpoints) > 0 && out.Endpoints[0].Addresses[0].Is6() {
		out.Family = model.IPv6
	}
	return out
}

func delta(objs ...any) *model.Delta {
	d := &model.Delta{Complete: true, Since: time.Unix(1700000000, 0),
		Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{},
		Namespaces: map[string]*model.Namespace{}, Pods: map[model.Name]*model.Pod{}}
	for _, o := range objs {
		switch o := o.(type) {
		case *model.Service:
			d.Services[o.Name] = o
		case *model.EndpointSlice:
			d.EndpointSlices[o.Name] = o
		case *model.Pod:
			d.Pods[o.Name] = o
		case string:
			d.Namespaces[o] = &model.Namespace{Meta: model.Meta{Name: model.Name{Name: o}}}
		}
	}
	return d
}

func newZone(t testing.TB, o Options, objs ...any) *Zone {
	t.Helper()
	z, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	z.Update(delta(objs...))
	return z
}

// ask has the zone answer and reads the answer with another's code.
func ask(t testing.TB, z *Zone, name, typ string, limit int, turn uint32) (*dns.Msg, Result) {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(dns.Fqdn(name), dns.StringToType[typ])
	wire, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q Question
	if q.Read(wire[12:]) == 0 {
		t.Fatalf("%s: not read", name)
	}
	q.Type = req.Question[0].Qtype
	msg, res := z.Append(wire, &q, limit, turn)
	if len(msg) > limit {
		t.Fatalf("%s %s: %d octets, more than %d", name, typ, len(msg), limit)
	}
	msg[2] |= 0x80
	msg[3] = res.Rcode
	if res.Truncated {
		msg[2] |= 2
	}
	for i, n := range []uint16{res.Answer, res.Authority, res.Additional} {
		msg[6+2*i], msg[7+2*i] = byte(n>>8), byte(n)
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("%s %s: not well-formed: %v\n% x", name, typ, err, msg)
	}
	return m, res
}

// show is a message as "RCODE", then the sections' records, sorted: the tables' want.
func show(m *dns.Msg, res Result) []string {
	switch res.Verdict {
	case NotMine:
		return []string{"NOTMINE"}
	case NotReady:
		return []string{"NOTREADY"}
	}
	out := []string{dns.RcodeToString[m.Rcode]}
	if res.Verdict == Continue {
		out[0] = "CONTINUE " + FormatName(res.Target)
	}
	add := func(prefix string, rrs []dns.RR) {
		var lines []string
		for _, rr := range rrs {
			lines = append(lines, prefix+strings.Join(strings.Fields(rr.String()), " "))
		}
		slices.Sort(lines)
		out = append(out, lines...)
	}
	add("", m.Answer)
	add("ns: ", m.Ns)
	add("+ ", m.Extra)
	return out
}

// The cluster that the specification's cases are asked of.
func specCluster() []any {
	return []any{
		"default", "empty",
		svc("default/kubernetes", addrs("10.3.0.1", "2001:db8::1"), "https/TCP/443", "dns/UDP/53", "/TCP/8080"),
		svc("default/v4only", addrs("10.3.0.2"), "http/TCP/80"),
		svc("default/noports", addrs("10.3.0.9")),
		slice("default/kubernetes-1", "kubernetes", []string{"https/TCP/6443"}, "192.168.0.1"),
		headlessSvc("default/headless", "https/TCP/443"),
		slice("default/headless-4", "headless", []string{"https/TCP/443", "/TCP/9"},
			"10.3.0.100=my-pet", "10.3.0.101=My-Pet-2", "10.3.0.102", "!10.3.0.103"),
		slice("default/headless-6", "headless", []string{"https/TCP/443", "/TCP/9"}, "2001:db8::1:0=my-pet", "2001:db8:1::"),
		publishing(headlessSvc("default/published", "http/TCP/80")),
		slice("default/published-1", "published", []string{"http/TCP/80"}, "!10.3.2.1=cold", "10.3.2.2=cold", "!10.3.2.3"),
		headlessSvc("default/ports", "a/TCP/1", "b/UDP/2"),
		slice("default/ports-1", "ports", []string{"a/TCP/1", "b/UDP/2", "/TCP/3"}, "10.3.3.1=x", "10.3.3.2"),
		headlessSvc("default/portless"),
		slice("default/portless-1", "portless", nil, "10.3.4.1=p"),
		headlessSvc("default/unready", "http/TCP/80"),
		slice("default/unready-1", "unready", []string{"http/TCP/80"}, "!10.3.1.1"),
		headlessSvc("default/noslice"),
		externalSvc("default/foo", "www.Example.com"),
		externalSvc("default/inside", "v4only.default.svc.cluster.local"),
		externalSvc("default/nowhere", "none.default.svc.cluster.local"),
		externalSvc("default/circle", "circle2.default.svc.cluster.local"),
		externalSvc("default/circle2", "circle.default.svc.cluster.local"),
		externalSvc("default/number", "10.0.0.1"),
	}
}

const soa = "ns: cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1700000000 7200 1800 86400 5"

func TestSpecification(t *testing.T) {
	z := newZone(t, Options{Self: addrs("192.0.2.53")}, specCluster()...)
	nodata, nxdomain := []string{"NOERROR", soa}, []string{"NXDOMAIN", soa}
	for _, c := range []struct {
		why, name, typ string
		want           []string
	}{
		{"2.2", "dns-version.cluster.local", "TXT", []string{"NOERROR", `dns-version.cluster.local. 5 IN TXT "1.1.0"`}},
		{"2.2 nothing else there", "dns-version.cluster.local", "A", nodata},
		{"2.3.1", "kubernetes.default.svc.cluster.local", "A", []string{"NOERROR", "kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1"}},
		{"2.3.1", "kubernetes.default.svc.cluster.local", "AAAA", []string{"NOERROR", "kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1"}},
		{"2.1 case", "KubernetES.deFault.SVC.cluSter.local", "A", []string{"NOERROR", "KubernetES.deFault.SVC.cluSter.local. 5 IN A 10.3.0.1"}},
		{"2.3.1 other family", "v4only.default.svc.cluster.local", "AAAA", nodata},
		{"2.3.1 other type", "v4only.default.svc.cluster.local", "MX", nodata},
		{"2.3.2", "_https._tcp.kubernetes.default.svc.cluster.local", "SRV", []string{"NOERROR",
			"_https._tcp.kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local.",
			"+ kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1",
			"+ kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1"}},
		{"2.3.2 not that type", "_https._tcp.kubernetes.default.svc.cluster.local", "A", nodata},
		{"2.3.2 not that protocol", "_https._udp.kubernetes.default.svc.cluster.local", "SRV", nxdomain},
		{"2.3.2 no such port", "_http._tcp.kubernetes.default.svc.cluster.local", "SRV", nxdomain},
		{"2.3.2 without underscores", "https.tcp.kubernetes.default.svc.cluster.local", "SRV", nxdomain},
		{"2.3.2 between", "_tcp.kubernetes.default.svc.cluster.local", "SRV", nodata},
		{"2.3.2 between, no port", "_sctp.kubernetes.default.svc.cluster.local", "SRV", nxdomain},
		{"2.3.2 all named ports at the Service", "kubernetes.default.svc.cluster.local", "SRV", []string{"NOERROR",
			"kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local.",
			"kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 53 kubernetes.default.svc.cluster.local.",
			"+ kubernetes.default.svc.cluster.local. 5 IN A 10.3.0.1",
			"+ kubernetes.default.svc.cluster.local. 5 IN AAAA 2001:db8::1"}},
		{"2.3.2 no ports", "noports.default.svc.cluster.local", "SRV", nodata},
		{"2.3.3", "1.0.3.10.in-addr.arpa", "PTR", []string{"NOERROR", "1.0.3.10.in-addr.arpa. 5 IN PTR kubernetes.default.svc.cluster.local."}},
		{"2.3.3", strings.TrimSuffix(ReverseName(addrs("2001:db8::1")[0]), "."), "PTR", []string{"NOERROR",
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 5 IN PTR kubernetes.default.svc.cluster.local."}},
		{"2.3.3 other type", "1.0.3.10.in-addr.arpa", "A", []string{"NOERROR", strings.Replace(soa, "cluster.local.", "in-addr.arpa.", 1)}},
		{"2.4.1", "headless.default.svc.cluster.local", "A", []string{"NOERROR",
			"headless.default.svc.cluster.local. 5 IN A 10.3.0.100",
			"headless.default.svc.cluster.local. 5 IN A 10.3.0.101",
			"headless.default.svc.cluster.local. 5 IN A 10.3.0.102"}},
		{"2.4.1", "headless.default.svc.cluster.local", "AAAA", []string{"NOERROR",
			"headless.default.svc.cluster.local. 5 IN AAAA 2001:db8:1::",
			"headless.default.svc.cluster.local. 5 IN AAAA 2001:db8::1:0"}},
		{"2.4.1 by hostname", "my-pet.headless.default.svc.cluster.local", "A", []string{"NOERROR", "my-pet.headless.default.svc.cluster.local. 5 IN A 10.3.0.100"}},
		{"2.4.1 by hostname", "my-pet.headless.default.svc.cluster.local", "AAAA", []string{"NOERROR", "my-pet.headless.default.svc.cluster.local. 5 IN AAAA 2001:db8::1:0"}},
		{"2.4.1 by hostname, case", "my-pet-2.headless.default.svc.cluster.local", "A", []string{"NOERROR", "my-pet-2.headless.default.svc.cluster.local. 5 IN A 10.3.0.101"}},
		{"2.4.1 by hostname, other family", "my-pet-2.headless.default.svc.cluster.local", "AAAA", nodata},
		{"2.4.1 generated", "10-3-0-102.headless.default.svc.cluster.local", "A", []string{"NOERROR", "10-3-0-102.headless.default.svc.cluster.local. 5 IN A 10.3.0.102"}},
		{"2.4.1 generated", "2001-db8-1--0.headless.default.svc.cluster.local", "AAAA", []string{"NOERROR", "2001-db8-1--0.headless.default.svc.cluster.local. 5 IN AAAA 2001:db8:1::"}},
		{"2.1 the hostname takes the generated name's place", "10-3-0-100.headless.default.svc.cluster.local", "A", nxdomain},
		{"2.4.1 not ready", "10-3-0-103.headless.default.svc.cluster.local", "A", nxdomain},
		{"2.1 publishNotReadyAddresses", "published.default.svc.cluster.local", "A", []string{"NOERROR",
			"published.default.svc.cluster.local. 5 IN A 10.3.2.1", "published.default.svc.cluster.local. 5 IN A 10.3.2.2",
			"published.default.svc.cluster.local. 5 IN A 10.3.2.3"}},
		{"2.4.1 several addresses of a hostname", "cold.published.default.svc.cluster.local", "A", []string{"NOERROR",
			"cold.published.default.svc.cluster.local. 5 IN A 10.3.2.1", "cold.published.default.svc.cluster.local. 5 IN A 10.3.2.2"}},
		{"2.1 publishNotReadyAddresses, generated", "10-3-2-3.published.default.svc.cluster.local", "A", []string{"NOERROR",
			"10-3-2-3.published.default.svc.cluster.local. 5 IN A 10.3.2.3"}},
		{"2.4.3 publishNotReadyAddresses", "3.2.3.10.in-addr.arpa", "PTR", []string{"NOERROR", "3.2.3.10.in-addr.arpa. 5 IN PTR 10-3-2-3.published.default.svc.cluster.local."}},
		{"2.4.2 one protocol's port", "_b._udp.ports.default.svc.cluster.local", "SRV", []string{"NOERROR",
			"_b._udp.ports.default.svc.cluster.local. 5 IN SRV 0 100 2 10-3-3-2.ports.default.svc.cluster.local.",
			"_b._udp.ports.default.svc.cluster.local. 5 IN SRV 0 100 2 x.ports.default.svc.cluster.local.",
			"+ 10-3-3-2.ports.default.svc.cluster.local. 5 IN A 10.3.3.2", "+ x.ports.default.svc.cluster.local. 5 IN A 10.3.3.1"}},
		{"2.4.2 N endpoints and M named ports: N x M records, none of the unnamed port", "ports.default.svc.cluster.local", "SRV", []string{"NOERROR",
			"ports.default.svc.cluster.local. 5 IN SRV 0 100 1 10-3-3-2.ports.default.svc.cluster.local.",
			"ports.default.svc.cluster.local. 5 IN SRV 0 100 1 x.ports.default.svc.cluster.local.",
			"ports.default.svc.cluster.local. 5 IN SRV 0 100 2 10-3-3-2.ports.default.svc.cluster.local.",
			"ports.default.svc.cluster.local. 5 IN SRV 0 100 2 x.ports.default.svc.cluster.local.",
			"+ 10-3-3-2.ports.default.svc.cluster.local. 5 IN A 10.3.3.2", "+ x.ports.default.svc.cluster.local. 5 IN A 10.3.3.1"}},
		{"2.4.1 no ports", "portless.default.svc.cluster.local", "A", []string{"NOERROR", "portless.default.svc.cluster.local. 5 IN A 10.3.4.1"}},
		{"2.4.1 no ports, by hostname", "p.portless.default.svc.cluster.local", "A", []string{"NOERROR", "p.portless.default.svc.cluster.local. 5 IN A 10.3.4.1"}},
		{"2.4.2 no ports", "portless.default.svc.cluster.local", "SRV", nodata},
		{"2.4.2 no ports, between", "_tcp.portless.default.svc.cluster.local", "SRV", nxdomain},
		{"2.4.2 no such protocol", "_b._tcp.ports.default.svc.cluster.local", "SRV", nxdomain},
		{"2.4.3 IPv6", strings.TrimSuffix(ReverseName(addrs("2001:db8::1:0")[0]), "."), "PTR", []string{"NOERROR",
			"0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 5 IN PTR my-pet.headless.default.svc.cluster.local."}},
		{"2.4.1 none ready", "unready.default.svc.cluster.local", "A", nxdomain},
		{"2.4.1 none ready", "_http._tcp.unready.default.svc.cluster.local", "SRV", nxdomain},
		{"2.4.1 none at all", "noslice.default.svc.cluster.local", "AAAA", nxdomain},
		{"2.4.2", "_https._tcp.headless.default.svc.cluster.local", "SRV", []string{"NOERROR",
			"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 10-3-0-102.headless.default.svc.cluster.local.",
			"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 2001-db8-1--0.headless.default.svc.cluster.local.",
			"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 my-pet-2.headless.default.svc.cluster.local.",
			"_https._tcp.headless.default.svc.cluster.local. 5 IN SRV 0 100 443 my-pet.headless.default.svc.cluster.local.",
			"+ 10-3-0-102.headless.default.svc.cluster.local. 5 IN A 10.3.0.102",
			"+ 2001-db8-1--0.headless.default.svc.cluster.local. 5 IN AAAA 2001:db8:1::",
			"+ my-pet-2.headless.default.svc.cluster.local. 5 IN A 10.3.0.101",
			"+ my-pet.headless.default.svc.cluster.local. 5 IN A 10.3.0.100",
			"+ my-pet.headless.default.svc.cluster.local. 5 IN AAAA 2001:db8::1:0"}},
		{"2.4.3", "100.0.3.10.in-addr.arpa", "PTR", []string{"NOERROR", "100.0.3.10.in-addr.arpa. 5 IN PTR my-pet.headless.default.svc.cluster.local."}},
		{"2.4.3 generated", "102.0.3.10.in-addr.arpa", "PTR", []string{"NOERROR", "102.0.3.10.in-addr.arpa. 5 IN PTR 10-3-0-102.headless.default.svc.cluster.local."}},
		{"2.4.3 not ready", "103.0.3.10.in-addr.arpa", "PTR", []string{"NOTMINE"}},
		{"2.5", "foo.default.svc.cluster.local", "A", []string{"CONTINUE www.Example.com.", "foo.default.svc.cluster.local. 5 IN CNAME www.Example.com."}},
		{"2.5", "foo.default.svc.cluster.local", "CNAME", []string{"NOERROR", "foo.default.svc.cluster.local. 5 IN CNAME www.Example.com."}},
		{"2.5 inside", "inside.default.svc.cluster.local", "A", []string{"NOERROR",
			"inside.default.svc.cluster.local. 5 IN CNAME v4only.default.svc.cluster.local.", "v4only.default.svc.cluster.local. 5 IN A 10.3.0.2"}},
		{"2.5 inside, SRV", "inside.default.svc.cluster.local", "SRV", []string{"NOERROR",
			"inside.default.svc.cluster.local. 5 IN CNAME v4only.default.svc.cluster.local.",
			"v4only.default.svc.cluster.local. 5 IN SRV 0 100 80 v4only.default.svc.cluster.local.",
			"+ v4only.default.svc.cluster.local. 5 IN A 10.3.0.2"}},
		{"2.3 SOA is the apex's", "v4only.default.svc.cluster.local", "SOA", nodata},
		{"NS is the apex's", "svc.cluster.local", "NS", nodata},
		{"NS of nothing", "none.svc.cluster.local", "NS", nxdomain},
		{"a ClusterIP Service without ports", "noports.default.svc.cluster.local", "A", []string{"NOERROR", "noports.default.svc.cluster.local. 5 IN A 10.3.0.9"}},
		{"a reverse name in the domain", "1.0.3.10.cluster.local", "PTR", nxdomain},
		{"a name of the domain in a reverse tree", "kubernetes.default.svc.3.10.in-addr.arpa", "A", []string{"NOTMINE"}},
		{"2.5 RFC 6604", "nowhere.default.svc.cluster.local", "A", []string{"NXDOMAIN",
			"nowhere.default.svc.cluster.local. 5 IN CNAME none.default.svc.cluster.local.", soa}},
		{"2.5 AAAA", "foo.default.svc.cluster.local", "AAAA", []string{"CONTINUE www.Example.com.", "foo.default.svc.cluster.local. 5 IN CNAME www.Example.com."}},
		{"2.5 below", "x.foo.default.svc.cluster.local", "A", nxdomain},
		{"2.5 an address is no name", "number.default.svc.cluster.local", "A", nxdomain},

		{"apex", "cluster.local", "SOA", []string{"NOERROR", soa[4:]}},
		{"apex", "cluster.local", "NS", []string{"NOERROR", "cluster.local. 5 IN NS ns.dns.cluster.local.", "+ ns.dns.cluster.local. 5 IN A 192.0.2.53"}},
		{"apex", "cluster.local", "A", nodata},
		{"name server", "ns.dns.cluster.local", "A", []string{"NOERROR", "ns.dns.cluster.local. 5 IN A 192.0.2.53"}},
		{"name server", "ns.dns.cluster.local", "AAAA", nodata},
		{"empty non-terminal", "dns.cluster.local", "A", nodata},
		{"empty non-terminal", "svc.cluster.local", "A", nodata},
		{"empty non-terminal", "pod.cluster.local", "NS", nodata},
		{"empty non-terminal", "default.svc.cluster.local", "A", nodata},
		{"a namespace without Services", "empty.svc.cluster.local", "A", nodata},
		{"no such namespace", "none.svc.cluster.local", "A", nxdomain},
		{"no such Service", "none.default.svc.cluster.local", "A", nxdomain},
		{"no such tree", "x.cluster.local", "A", nxdomain},
		{"too long", "a._b._c.kubernetes.default.svc.cluster.local", "A", nxdomain},
		{"endpoint of a ClusterIP Service", "192-168-0-1.kubernetes.default.svc.cluster.local", "A", []string{"NOERROR", "192-168-0-1.kubernetes.default.svc.cluster.local. 5 IN A 192.168.0.1"}},
		{"endpoint of a ClusterIP Service", "1.0.168.192.in-addr.arpa", "PTR", []string{"NOERROR", "1.0.168.192.in-addr.arpa. 5 IN PTR 192-168-0-1.kubernetes.default.svc.cluster.local."}},
		{"pod", "10-1-2-3.default.pod.cluster.local", "A", []string{"NOERROR", "10-1-2-3.default.pod.cluster.local. 5 IN A 10.1.2.3"}},
		{"pod", "2001-db8--1.default.pod.cluster.local", "AAAA", []string{"NOERROR", "2001-db8--1.default.pod.cluster.local. 5 IN AAAA 2001:db8::1"}},
		{"pod, other family", "10-1-2-3.default.pod.cluster.local", "AAAA", nodata},
		{"pod in no namespace", "10-1-2-3.none.pod.cluster.local", "A", nxdomain},
		{"no address", "10-1-2.default.pod.cluster.local", "A", nxdomain},
		{"no address", "010-1-2-3.default.pod.cluster.local", "A", nxdomain},
		{"pods of a namespace", "default.pod.cluster.local", "A", nodata},
		{"elsewhere", "example.com", "A", []string{"NOTMINE"}},
		{"elsewhere", "notcluster.local", "A", []string{"NOTMINE"}},
		{"elsewhere", "local", "A", []string{"NOTMINE"}},
		{"elsewhere", "1.2.3.4.in-addr.arpa", "PTR", []string{"NOTMINE"}},
		{"elsewhere", "3.10.in-addr.arpa", "PTR", []string{"NOTMINE"}},
	} {
		m, res := ask(t, z, c.name, c.typ, 65535, 0)
		if diff := cmp.Diff(c.want, show(m, res)); diff != "" {
			t.Errorf("%s: %s %s (-want +got):\n%s", c.why, c.name, c.typ, diff)
		}
	}
	if m, _ := ask(t, z, "circle.default.svc.cluster.local", "A", 65535, 0); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("ExternalNames in a circle: %s, want SERVFAIL", dns.RcodeToString[m.Rcode])
	}
}
