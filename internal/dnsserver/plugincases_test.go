// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// What clusters have relied on since their DNS was CoreDNS's kubernetes plugin: each situation that its own tests know, as
// a client sees it. Where weft differs on purpose, the row says so.

// fleet is a cluster with each kind of Service and endpoint once.
func fleet(complete bool) *model.Delta {
	addrs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	d := &model.Delta{Complete: complete, Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{},
		Namespaces: map[string]*model.Namespace{}, Pods: map[model.Name]*model.Pod{}}
	http := []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}
	add := func(ns, name string, change func(*model.Service)) {
		n := model.Name{Namespace: ns, Name: name}
		s := &model.Service{Meta: model.Meta{Name: n}, Ports: http}
		change(s)
		d.Services[n] = s
	}
	vip := func(ips ...string) func(*model.Service) {
		return func(s *model.Service) { s.ClusterIPs = addrs(ips...) }
	}
	headless := func(s *model.Service) { s.Headless = true }
	external := func(to string) func(*model.Service) {
		return func(s *model.Service) { s.Type, s.ExternalName = model.ExternalName, to }
	}
	slice := func(name, service string, ports bool, eps ...model.Endpoint) {
		n := model.Name{Namespace: "fleet", Name: name}
		es := &model.EndpointSlice{Meta: model.Meta{Name: n}, Service: service, Endpoints: eps}
		if ports {
			es.Ports = []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}}
		}
		d.EndpointSlices[n] = es
	}
	ep := func(host, ip string) model.Endpoint {
		return model.Endpoint{Ready: true, Hostname: host, Addresses: addrs(ip)}
	}
	add("fleet", "tug", vip("10.96.0.1"))
	add("fleet", "barge", vip("10.96.0.2")) // without endpoints
	add("fleet", "six", vip("fd00:96::1"))
	add("fleet", "both", vip("10.96.0.3", "fd00:96::3"))
	add("fleet", "crew", headless)
	add("fleet", "mute", func(s *model.Service) { headless(s); s.Ports = nil })
	add("fleet", "abroad", external("port.sea.example"))
	add("fleet", "inland", external("tug.fleet.svc.cluster.local."))
	add("hidden", "tug", vip("10.96.0.4"))
	slice("tug-1", "tug", true, ep("anna", "10.1.0.1"), ep("otto", "fd00:1::1"))
	slice("crew-1", "crew", true, ep("", "10.1.0.2"), ep("", "10.1.0.3"), ep("mate", "10.1.0.4"), ep("mate", "10.1.0.5"))
	slice("crew-2", "crew", true, ep("", "fd00:1::2"), ep("", "fd00:1::3"))
	slice("mute-1", "mute", false, ep("", "10.1.0.20"))
	d.Namespaces["empty"] = &model.Namespace{Meta: model.Meta{Name: model.Name{Name: "empty"}}}
	p := model.Name{Namespace: "fleet", Name: "sailor"}
	d.Pods[p] = &model.Pod{Meta: model.Meta{Name: p}, IPs: addrs("10.1.9.1")}
	return d
}

// row is a question and its answer: records as text without TTLs, sorted. "SOA" for a NODATA or NXDOMAIN.
type row struct {
	what, question, rcode string
	answer, extra         []string
}

func (r *row) check(t *testing.T, h *harness, network string) {
	t.Helper()
	name, typ, _ := strings.Cut(r.question, " ")
	m := h.ask(t, network, question(name, dns.StringToType[typ]))
	lines := func(rrs []dns.RR) (out []string) {
		for _, rr := range rrs {
			switch rr := rr.(type) {
			case *dns.SRV:
				rr.Weight = 0
			case *dns.SOA:
				rr.Serial = 0
			}
			f := strings.Fields(rr.String())
			out = append(out, strings.Join(append(f[:1], f[3:]...), " "))
		}
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff([]any{r.rcode, r.answer, r.extra}, []any{dns.RcodeToString[m.Rcode], lines(m.Answer), lines(m.Extra)}); diff != "" {
		t.Errorf("%s: %s over %s (-want +got):\n%s", r.what, r.question, network, diff)
	}
	for i, rr := range m.Answer {
		for _, before := range m.Answer[:i] {
			if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(before.Header().Name, c.Target) {
				t.Errorf("%s: %s: an alias comes after what it leads to: %v", r.what, r.question, m.Answer)
			}
		}
	}
	if empty := r.rcode == "NXDOMAIN" || (r.rcode == "NOERROR" && len(r.answer) == 0); empty != (len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA) {
		t.Errorf("%s: %s: authority %v", r.what, r.question, m.Ns)
	}
}

func TestKubernetesPluginCases(t *testing.T) {
	abroad := newUpstream(t)
	abroad.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := answerA(r, 5, "203.0.113.1")
		if r.Question[0].Qtype != dns.TypeA {
			m.Answer = nil
		}
		_ = w.WriteMsg(m)
	})
	in := func(records ...string) []string { slices.Sort(records); return records }
	const soa = "cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 0 7200 1800 86400 5"
	for _, group := range []struct {
		name, config string
		incomplete   bool
		rows         []row
	}{
		{name: "default", config: "namespaces: [fleet]", rows: []row{
			{"Service", "tug.fleet.svc.cluster.local A", "NOERROR", in("tug.fleet.svc.cluster.local. A 10.96.0.1"), nil},
			{"Service without endpoints", "barge.fleet.svc.cluster.local A", "NOERROR", in("barge.fleet.svc.cluster.local. A 10.96.0.2"), nil},
			{"ports at the Service's name", "tug.fleet.svc.cluster.local SRV", "NOERROR", in("tug.fleet.svc.cluster.local. SRV 0 0 80 tug.fleet.svc.cluster.local."), in("tug.fleet.svc.cluster.local. A 10.96.0.1")},
			{"ports without endpoints", "barge.fleet.svc.cluster.local SRV", "NOERROR", in("barge.fleet.svc.cluster.local. SRV 0 0 80 barge.fleet.svc.cluster.local."), in("barge.fleet.svc.cluster.local. A 10.96.0.2")},
			{"ports, IPv6", "six.fleet.svc.cluster.local SRV", "NOERROR", in("six.fleet.svc.cluster.local. SRV 0 0 80 six.fleet.svc.cluster.local."), in("six.fleet.svc.cluster.local. AAAA fd00:96::1")},
			{"ports, two families", "both.fleet.svc.cluster.local SRV", "NOERROR", in("both.fleet.svc.cluster.local. SRV 0 0 80 both.fleet.svc.cluster.local."),
				in("both.fleet.svc.cluster.local. A 10.96.0.3", "both.fleet.svc.cluster.local. AAAA fd00:96::3")},
			{"a named port", "_http._tcp.tug.fleet.svc.cluster.local SRV", "NOERROR", in("_http._tcp.tug.fleet.svc.cluster.local. SRV 0 0 80 tug.fleet.svc.cluster.local."), in("tug.fleet.svc.cluster.local. A 10.96.0.1")},
			{"a named port without endpoints", "_http._tcp.barge.fleet.svc.cluster.local SRV", "NOERROR", in("_http._tcp.barge.fleet.svc.cluster.local. SRV 0 0 80 barge.fleet.svc.cluster.local."), in("barge.fleet.svc.cluster.local. A 10.96.0.2")},
			{"a named port, IPv6", "_http._tcp.six.fleet.svc.cluster.local SRV", "NOERROR", in("_http._tcp.six.fleet.svc.cluster.local. SRV 0 0 80 six.fleet.svc.cluster.local."), in("six.fleet.svc.cluster.local. AAAA fd00:96::1")},
			{"headless", "crew.fleet.svc.cluster.local A", "NOERROR", in("crew.fleet.svc.cluster.local. A 10.1.0.2", "crew.fleet.svc.cluster.local. A 10.1.0.3", "crew.fleet.svc.cluster.local. A 10.1.0.4", "crew.fleet.svc.cluster.local. A 10.1.0.5"), nil},
			{"headless, IPv6", "crew.fleet.svc.cluster.local AAAA", "NOERROR", in("crew.fleet.svc.cluster.local. AAAA fd00:1::2", "crew.fleet.svc.cluster.local. AAAA fd00:1::3"), nil},
			{"headless without ports", "mute.fleet.svc.cluster.local A", "NOERROR", in("mute.fleet.svc.cluster.local. A 10.1.0.20"), nil},
			{"its endpoint", "10-1-0-20.mute.fleet.svc.cluster.local A", "NOERROR", in("10-1-0-20.mute.fleet.svc.cluster.local. A 10.1.0.20"), nil},
			{"an endpoint by address", "10-1-0-2.crew.fleet.svc.cluster.local A", "NOERROR", in("10-1-0-2.crew.fleet.svc.cluster.local. A 10.1.0.2"), nil},
			{"another", "10-1-0-3.crew.fleet.svc.cluster.local A", "NOERROR", in("10-1-0-3.crew.fleet.svc.cluster.local. A 10.1.0.3"), nil},
			{"an endpoint by address, IPv6", "fd00-1--2.crew.fleet.svc.cluster.local AAAA", "NOERROR", in("fd00-1--2.crew.fleet.svc.cluster.local. AAAA fd00:1::2"), nil},
			{"another, IPv6", "fd00-1--3.crew.fleet.svc.cluster.local AAAA", "NOERROR", in("fd00-1--3.crew.fleet.svc.cluster.local. AAAA fd00:1::3"), nil},
			{"two endpoints of one hostname", "mate.crew.fleet.svc.cluster.local A", "NOERROR", in("mate.crew.fleet.svc.cluster.local. A 10.1.0.4", "mate.crew.fleet.svc.cluster.local. A 10.1.0.5"), nil},
			{"a named port, headless", "_http._tcp.crew.fleet.svc.cluster.local SRV", "NOERROR",
				in("_http._tcp.crew.fleet.svc.cluster.local. SRV 0 0 80 10-1-0-2.crew.fleet.svc.cluster.local.", "_http._tcp.crew.fleet.svc.cluster.local. SRV 0 0 80 10-1-0-3.crew.fleet.svc.cluster.local.",
					"_http._tcp.crew.fleet.svc.cluster.local. SRV 0 0 80 fd00-1--2.crew.fleet.svc.cluster.local.", "_http._tcp.crew.fleet.svc.cluster.local. SRV 0 0 80 fd00-1--3.crew.fleet.svc.cluster.local.",
					"_http._tcp.crew.fleet.svc.cluster.local. SRV 0 0 80 mate.crew.fleet.svc.cluster.local."),
				in("10-1-0-2.crew.fleet.svc.cluster.local. A 10.1.0.2", "10-1-0-3.crew.fleet.svc.cluster.local. A 10.1.0.3", "fd00-1--2.crew.fleet.svc.cluster.local. AAAA fd00:1::2",
					"fd00-1--3.crew.fleet.svc.cluster.local. AAAA fd00:1::3", "mate.crew.fleet.svc.cluster.local. A 10.1.0.4", "mate.crew.fleet.svc.cluster.local. A 10.1.0.5")},
			{"an alias as such", "abroad.fleet.svc.cluster.local CNAME", "NOERROR", in("abroad.fleet.svc.cluster.local. CNAME port.sea.example."), nil},
			{"an alias to a name elsewhere", "abroad.fleet.svc.cluster.local A", "NOERROR", in("abroad.fleet.svc.cluster.local. CNAME port.sea.example.", "port.sea.example. A 203.0.113.1"), nil},
			{"an alias to a Service", "inland.fleet.svc.cluster.local A", "NOERROR", in("inland.fleet.svc.cluster.local. CNAME tug.fleet.svc.cluster.local.", "tug.fleet.svc.cluster.local. A 10.96.0.1"), nil},
			{"below an alias", "deck.abroad.fleet.svc.cluster.local CNAME", "NXDOMAIN", nil, nil},
			{"no such family", "tug.fleet.svc.cluster.local AAAA", "NOERROR", nil, nil},
			{"no such Service, IPv6", "raft.fleet.svc.cluster.local AAAA", "NXDOMAIN", nil, nil},
			{"no such Service", "raft.fleet.svc.cluster.local A", "NXDOMAIN", nil, nil},
			{"no such namespace", "tug.none.svc.cluster.local A", "NXDOMAIN", nil, nil},
			{"no such endpoint", "cook.crew.fleet.svc.cluster.local A", "NXDOMAIN", nil, nil},
			{"no such endpoint of no such Service", "cook.raft.fleet.svc.cluster.local A", "NXDOMAIN", nil, nil},
			{"the schema's version", "dns-version.cluster.local TXT", "NOERROR", in(`dns-version.cluster.local. TXT "1.1.0"`), nil},
			{"IPv6 Service", "six.fleet.svc.cluster.local AAAA", "NOERROR", in("six.fleet.svc.cluster.local. AAAA fd00:96::1"), nil},
			{"two families", "both.fleet.svc.cluster.local A", "NOERROR", in("both.fleet.svc.cluster.local. A 10.96.0.3"), nil},
			{"two families", "both.fleet.svc.cluster.local AAAA", "NOERROR", in("both.fleet.svc.cluster.local. AAAA fd00:96::3"), nil},
			{"a level between", "svc.cluster.local A", "NOERROR", nil, nil},
			{"a level between", "pod.cluster.local A", "NOERROR", nil, nil},
			{"a namespace", "fleet.svc.cluster.local A", "NOERROR", nil, nil},
			{"NS at a level between", "svc.cluster.local NS", "NOERROR", nil, nil},
			{"NS at a namespace", "fleet.svc.cluster.local NS", "NOERROR", nil, nil},
			{"NS at no name", "gone.cluster.local NS", "NXDOMAIN", nil, nil},
			{"NS at no namespace", "gone.svc.cluster.local NS", "NXDOMAIN", nil, nil},
			{"SOA at a Service", "tug.fleet.svc.cluster.local SOA", "NOERROR", nil, nil},
			{"a namespace that is not shown", "tug.hidden.svc.cluster.local A", "NXDOMAIN", nil, nil},
		}},
		{name: "apex", rows: []row{
			{"SOA", "cluster.local SOA", "NOERROR", in(soa), nil},
			{"SOA, in the question's case", "Cluster.local SOA", "NOERROR", in(strings.Replace(soa, "cluster.local.", "Cluster.local.", 1)), nil},
			{"no such type", "cluster.local HINFO", "NOERROR", nil, nil},
			{"NS", "cluster.local NS", "NOERROR", in("cluster.local. NS ns.dns.cluster.local."), in("ns.dns.cluster.local. A 192.0.2.53")},
		}},
		{name: "all namespaces", rows: []row{
			{"one that there is", "tug.fleet.svc.cluster.local A", "NOERROR", in("tug.fleet.svc.cluster.local. A 10.96.0.1"), nil},
			{"another", "tug.hidden.svc.cluster.local A", "NOERROR", in("tug.hidden.svc.cluster.local. A 10.96.0.4"), nil},
			{"one that there is not", "tug.none.svc.cluster.local A", "NXDOMAIN", nil, nil},
		}},
		{name: "not synced", incomplete: true, rows: []row{
			{"what is missing may come yet", "raft.fleet.svc.cluster.local A", "SERVFAIL", nil, nil},
		}},
		{name: "the question's case", rows: []row{
			{"no such name", "raft.fleet.svc.ClUsTeR.lOcAl A", "NXDOMAIN", nil, nil},
			{"Service", "TuG.FlEeT.SvC.cLuStEr.LoCaL A", "NOERROR", in("TuG.FlEeT.SvC.cLuStEr.LoCaL. A 10.96.0.1"), nil},
			{"a port; the target is in the cluster's own case (the plugin mixes both)", "_HtTp._TcP.tUg.FlEeT.SvC.cLuStEr.LoCaL SRV", "NOERROR",
				in("_HtTp._TcP.tUg.FlEeT.SvC.cLuStEr.LoCaL. SRV 0 0 80 tug.fleet.svc.cluster.local."), in("tUg.FlEeT.SvC.cLuStEr.LoCaL. A 10.96.0.1")},
		}},
		{name: "empty Services ignored", config: "ignoreEmptyServices: true", rows: []row{
			{"without endpoints", "barge.fleet.svc.cluster.local A", "NXDOMAIN", nil, nil},
			{"with", "tug.fleet.svc.cluster.local A", "NOERROR", in("tug.fleet.svc.cluster.local. A 10.96.0.1"), nil},
			{"an alias has none, and stays", "abroad.fleet.svc.cluster.local CNAME", "NOERROR", in("abroad.fleet.svc.cluster.local. CNAME port.sea.example."), nil},
		}},
		{name: "pods insecure", config: "pods: insecure", rows: []row{
			{"a pod", "10-1-9-1.fleet.pod.cluster.local A", "NOERROR", in("10-1-9-1.fleet.pod.cluster.local. A 10.1.9.1"), nil},
			{"no pod", "192-0-2-2.fleet.pod.cluster.local A", "NOERROR", in("192-0-2-2.fleet.pod.cluster.local. A 192.0.2.2"), nil},
			{"no address", "boat.fleet.pod.cluster.local A", "NXDOMAIN", nil, nil},
			{"no address", "boat.fleet.pod.cluster.local AAAA", "NXDOMAIN", nil, nil},
			{"no address", "boat.fleet.pod.cluster.local HINFO", "NXDOMAIN", nil, nil},
			{"no namespace", "boat.none.pod.cluster.local A", "NXDOMAIN", nil, nil},
			{"the namespace: pods' names are below it, so it exists (RFC 8020; the plugin says NXDOMAIN here, but not with verified pods)", "fleet.pod.cluster.local A", "NOERROR", nil, nil},
		}},
		{name: "pods verified", config: "pods: verified", rows: []row{
			{"a pod", "10-1-9-1.fleet.pod.cluster.local A", "NOERROR", in("10-1-9-1.fleet.pod.cluster.local. A 10.1.9.1"), nil},
			{"the namespace", "fleet.pod.cluster.local A", "NOERROR", nil, nil},
			{"a namespace without anything", "empty.svc.cluster.local A", "NOERROR", nil, nil},
			{"no namespace", "none.pod.cluster.local A", "NXDOMAIN", nil, nil},
			{"no pod", "192-0-2-2.fleet.pod.cluster.local A", "NXDOMAIN", nil, nil},
		}},
		{name: "pods disabled", config: "pods: disabled", rows: []row{
			{"a pod", "10-1-9-1.fleet.pod.cluster.local A", "NXDOMAIN", nil, nil},
			{"no pod", "192-0-2-2.fleet.pod.cluster.local A", "NXDOMAIN", nil, nil},
		}},
		{name: "reverse", config: "reverseZones: [10.1.0.0/16, 10.96.0.0/16, 'fd00:1::/64']", rows: []row{
			{"a Service", "1.0.96.10.in-addr.arpa PTR", "NOERROR", in("1.0.96.10.in-addr.arpa. PTR tug.fleet.svc.cluster.local."), nil},
			{"an endpoint with a hostname", "1.0.1.10.in-addr.arpa PTR", "NOERROR", in("1.0.1.10.in-addr.arpa. PTR anna.tug.fleet.svc.cluster.local."), nil},
			{"the same, IPv6", strings.TrimSuffix(dnszone.ReverseName(netip.MustParseAddr("fd00:1::1")), ".") + " PTR", "NOERROR",
				in(dnszone.ReverseName(netip.MustParseAddr("fd00:1::1")) + " PTR otto.tug.fleet.svc.cluster.local."), nil},
			{"an endpoint without", "2.0.1.10.in-addr.arpa PTR", "NOERROR", in("2.0.1.10.in-addr.arpa. PTR 10-1-0-2.crew.fleet.svc.cluster.local."), nil},
			{"nobody's", "101.0.1.10.in-addr.arpa PTR", "NXDOMAIN", nil, nil},
			{"PTR of no name in the domain", "example.org.cluster.local PTR", "NXDOMAIN", nil, nil},
		}},
		{name: "search path", config: "searchPath: {enabled: true, domains: []}", rows: []row{
			{"the name itself", "port.sea.example.fleet.svc.cluster.local A", "NOERROR", in("port.sea.example.fleet.svc.cluster.local. CNAME port.sea.example.", "port.sea.example. A 203.0.113.1"), nil},
			{"a Service of another namespace", "tug.hidden.fleet.svc.cluster.local A", "NOERROR", in("tug.hidden.fleet.svc.cluster.local. CNAME tug.hidden.svc.cluster.local.", "tug.hidden.svc.cluster.local. A 10.96.0.4"), nil},
			{"from no namespace", "port.sea.example.none.svc.cluster.local A", "NXDOMAIN", nil, nil},
		}},
		{name: "transfers", rows: []row{
			{"nobody may have the whole zone", "cluster.local AXFR", "REFUSED", nil, nil},
			{"nor what changed of it", "cluster.local IXFR", "REFUSED", nil, nil},
		}},
	} {
		t.Run(group.name, func(t *testing.T) {
			cfg := parse(t, "forward: {upstreams: [\""+abroad.addr+"\"]}\n"+group.config)
			s, err := New(slog.New(slog.NewTextHandler(io.Discard, nil)))
			if err != nil {
				t.Fatal(err)
			}
			o := cfg.Zone()
			o.Self = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
			z, err := dnszone.New(o)
			if err != nil {
				t.Fatal(err)
			}
			z.Update(fleet(!group.incomplete))
			if err := s.Apply(cfg, z); err != nil {
				t.Fatal(err)
			}
			l, err := s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"), 1)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- l.Serve() }()
			h := &harness{Server: s, addr: l.Addr().String(), zone: z}
			for _, r := range group.rows {
				for _, network := range []string{"udp", "tcp"} {
					r.check(t, h, network)
				}
			}
			l.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			s.Close()
			l.Close()
		})
	}
}
