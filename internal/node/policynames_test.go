// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// fakeResolver answers on a pod's port 53 for three names, each of which has a site of its own.
type fakeResolver struct {
	pod  *policytest.Pod
	ttl  atomic.Uint32
	fill atomic.Int32 // how many TXT records are added, to make answers long
}

// sites are where the names of tests lead.
var sites = map[string]string{
	"www.allowed.example.": "203.0.113.10 2001:db8:ffff::10",
	"deep.in.wild.example": "203.0.113.11 2001:db8:ffff::11",
	"other.example.":       "203.0.113.12 2001:db8:ffff::12",
}

// lies are what resolvers of tests say beside the truth.
var lies = map[string]string{"fake.wild.example.": sites["other.example."]}

func (r *fakeResolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	owner := q.Question[0].Name
	if name == "www.allowed.example." {
		owner = "alias.elsewhere.example."
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 300}, Target: owner})
	}
	if n, ok := strings.CutSuffix(name, ".many.example."); ok && q.Question[0].Qtype == dns.TypeA {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: owner, Class: dns.ClassINET, Ttl: r.ttl.Load(), Rrtype: dns.TypeA}, A: net.ParseIP("198.51.100." + n)})
	}
	known := maps.Clone(sites)
	maps.Copy(known, lies)
	for site, addrs := range known {
		if dns.Fqdn(site) != name {
			continue
		}
		for _, a := range policytest.Addrs(addrs) {
			head := dns.RR_Header{Name: owner, Class: dns.ClassINET, Ttl: r.ttl.Load(), Rrtype: dns.TypeA}
			if a.Is6() {
				head.Rrtype = dns.TypeAAAA
			}
			switch {
			case head.Rrtype != q.Question[0].Qtype:
			case a.Is6():
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
			default:
				m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
			}
		}
	}
	for range r.fill.Load() {
		m.Extra = append(m.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 250)}})
	}
	_ = w.WriteMsg(m)
}

func (r *policyRig) resolver(t *testing.T, addrs string) *fakeResolver {
	t.Helper()
	d := &fakeResolver{pod: r.node.Connect(t, policytest.Addrs(addrs)...)}
	d.ttl.Store(300)
	d.pod.Do(t, func() error {
		pc, err := net.ListenPacket("udp", "[::]:53")
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", "[::]:53")
		if err != nil {
			return err
		}
		for _, s := range []*dns.Server{{PacketConn: pc, Handler: d}, {Listener: l, Handler: d}} {
			go func() { _ = s.ActivateAndServe() }()
			t.Cleanup(func() { _ = s.Shutdown() })
		}
		return nil
	})
	return d
}

// ask has a pod look a name up and returns the addresses.
func ask(t *testing.T, p *policytest.Pod, network string, server netip.Addr, name string, qtype uint16) []netip.Addr {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	var out []netip.Addr
	policytest.Eventually(t, policytest.Deadline, "an answer to "+name, func() bool {
		var in *dns.Msg
		p.Do(t, func() error {
			c := dns.Client{Net: network, Timeout: time.Second}
			in, _, _ = c.Exchange(m, netip.AddrPortFrom(server, 53).String())
			return nil
		})
		if in == nil {
			return false
		}
		for _, rr := range in.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				a, _ := netip.AddrFromSlice(rr.A.To4())
				out = append(out, a)
			case *dns.AAAA:
				a, _ := netip.AddrFromSlice(rr.AAAA)
				out = append(out, a)
			}
		}
		return true
	})
	return out
}

// dnsService is the cluster's DNS with one server.
func dnsService(d *model.Delta, addrs string) *model.Delta {
	n := model.Name{Namespace: "kube-system", Name: "kube-dns"}
	d.Services = map[model.Name]*model.Service{n: {Meta: model.Meta{Name: n}}}
	d.EndpointSlices = map[model.Name]*model.EndpointSlice{n: {
		Meta: model.Meta{Name: n}, Service: "kube-dns", Endpoints: []model.Endpoint{{Addresses: policytest.Addrs(addrs), Ready: true}},
	}}
	return d
}

// onlyByName lets the pods with a role reach these names, pods with role dns, and nobody else.
func onlyByName(role string, names ...string) *model.ClusterNetworkPolicy {
	dnsPods := model.MatchLabels(map[string]string{"role": "dns"})
	return &model.ClusterNetworkPolicy{
		Meta: model.Meta{Name: model.Name{Name: "by-name"}}, Pods: model.MatchLabels(map[string]string{"role": role}),
		EgressTo: []model.ClusterPolicyRule{
			{Action: model.AcceptTraffic, Peers: []model.ClusterPolicyPeer{{Namespaces: &model.Selector{}, Pods: &dnsPods}}},
			{Action: model.AcceptTraffic, Peers: []model.ClusterPolicyPeer{{DomainNames: names}}},
			{Action: model.DenyTraffic, Peers: []model.ClusterPolicyPeer{{Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}}},
		},
	}
}

func TestPolicyByName(t *testing.T) {
	r := newPolicyRig(t)
	resolver := r.resolver(t, "10.0.0.53 fd00::53")
	client := r.node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...)
	for _, addrs := range sites {
		r.node.Connect(t, policytest.Addrs(addrs)...).Listen(t, model.TCP, 80)
	}

	clientPod := podOf("client", role("client"), "10.0.0.1 fd00::1")
	d := dnsService(deltaOf(clientPod, podOf("dns", role("dns"), "10.0.0.53 fd00::53")), "10.0.0.53 fd00::53")
	d.ClusterNetworkPolicies = map[string]*model.ClusterNetworkPolicy{"by-name": onlyByName("client", "www.allowed.example", "*.Wild.example.")}
	r.update(d)
	reach := func(site string, want bool) {
		t.Helper()
		for _, a := range policytest.Addrs(sites[site]) {
			if got := client.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, want); got != want {
				t.Errorf("%s at %s: reached %v, want %v", site, a, got, want)
			}
		}
	}
	lookUp := func(network, site string) {
		t.Helper()
		for i, server := range resolver.pod.Addrs {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
				got := ask(t, client, network, server, site, qtype)
				want := policytest.Addrs(sites[site])[map[uint16]int{dns.TypeA: 0, dns.TypeAAAA: 1}[qtype]]
				if !slices.Contains(got, want) {
					t.Fatalf("%s by server %d: %v, want %s", site, i, got, want)
				}
			}
		}
	}
	// Until the part listens, answers pass without being learned.
	policytest.Eventually(t, policytest.Deadline, "names are learned", func() bool {
		lookUp("udp", "www.allowed.example.")
		r.part.mu.Lock()
		defer r.part.mu.Unlock()
		return r.part.expiry.len() > 0
	})

	for site := range sites {
		if site != "www.allowed.example." {
			reach(site, false) // nobody has asked yet
		}
	}
	// The very first packet after the answer gets through: no second try is needed.
	lookUp("udp", "www.allowed.example.")
	reach("www.allowed.example.", true)
	resolver.fill.Store(40) // more than a packet holds
	lookUp("tcp", "deep.in.wild.example")
	reach("deep.in.wild.example", true)
	resolver.fill.Store(0)
	lookUp("udp", "other.example.")
	reach("other.example.", false)

	// What the pod is told by a server that nobody trusts opens nothing.
	liar := r.resolver(t, "10.0.0.66 fd00::66")
	d = deltaOf(podOf("liar", role("dns"), "10.0.0.66 fd00::66"))
	r.update(d)
	ask(t, client, "udp", liar.pod.Addrs[0], "fake.wild.example.", dns.TypeA)
	reach("other.example.", false)

	// The next agent knows what this one knew.
	pods := []model.LocalPod{localPod(clientPod, client.Addrs)}
	r.start(pods...)
	d = dnsService(deltaOf(clientPod, podOf("dns", role("dns"), "10.0.0.53 fd00::53")), "10.0.0.53 fd00::53")
	d.ClusterNetworkPolicies = map[string]*model.ClusterNetworkPolicy{"by-name": onlyByName("client", "www.allowed.example", "*.wild.example")}
	r.update(d)
	reach("www.allowed.example.", true)

	// An answer that is too old opens nothing new, and ends nothing.
	open := client.Dial(t, netip.MustParseAddrPort("203.0.113.10:80"))
	if err := r.part.lapse(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	reach("www.allowed.example.", false)
	r.update(deltaOf(podOf("another", role("x"), "10.0.0.9 fd00::9"))) // a change that has flows looked at
	if !policytest.Echoes(t, open, true) {
		t.Error("a connection that was open when its name's answer lapsed has ended")
	}

	// Without an agent names resolve on; they open nothing.
	r.kill()
	ask(t, client, "udp", resolver.pod.Addrs[0], "www.allowed.example.", dns.TypeA)
	reach("www.allowed.example.", false)
}

// Of a client that sends a single packet to each address as soon as it is told of it, none is lost.
func TestPolicyByNameFirstPacket(t *testing.T) {
	r := newPolicyRig(t)
	resolver := r.resolver(t, "10.0.0.53 fd00::53")
	client := r.node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...)
	site := r.node.Connect(t, policytest.Addrs("203.0.113.1 2001:db8:ffff::1")...)
	_, many, _ := net.ParseCIDR("198.51.100.0/24")
	r.node.Do(t, func() error {
		l, err := netlink.LinkByName(site.Link)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: many, Gw: net.ParseIP("203.0.113.1"), Flags: int(netlink.FLAG_ONLINK)})
	})
	site.Do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: many})
	})
	sink := site.Sink(t, 90)
	d := dnsService(deltaOf(podOf("client", role("client"), "10.0.0.1 fd00::1"), podOf("dns", role("dns"), "10.0.0.53 fd00::53")), "10.0.0.53 fd00::53")
	d.ClusterNetworkPolicies = map[string]*model.ClusterNetworkPolicy{"by-name": onlyByName("client", "*.many.example")}
	r.update(d)
	policytest.Eventually(t, policytest.Deadline, "names are learned", func() bool {
		ask(t, client, "udp", resolver.pod.Addrs[0], "0.many.example.", dns.TypeA)
		r.part.mu.Lock()
		defer r.part.mu.Unlock()
		return r.part.expiry.len() > 0
	})
	for i := 1; i <= 200; i++ {
		for _, a := range ask(t, client, "udp", resolver.pod.Addrs[i%2], fmt.Sprintf("%d.many.example.", i), dns.TypeA) {
			client.Do(t, func() error {
				c, err := net.Dial("udp", netip.AddrPortFrom(a, 90).String())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("hello"))
				return err
			})
		}
	}
	policytest.Eventually(t, policytest.Deadline, "200 first packets", func() bool { return sink.Count("hello") == 200 })
}

// Beyond the limit an address stays closed: nothing would ever take it back.
func TestPolicyByNameStopsAtTheLimit(t *testing.T) {
	r := newPolicyRig(t)
	d := deltaOf(podOf("client", role("client"), "10.0.0.1 fd00::1"))
	d.ClusterNetworkPolicies = map[string]*model.ClusterNetworkPolicy{"by-name": onlyByName("client", "*.example.com")}
	r.update(d)
	now := time.Now()
	r.part.mu.Lock()
	for i := range maxNames - 1 {
		r.part.expiry.extend(resolution{fmt.Sprintf("%d.example.com", i), netip.MustParseAddr("192.0.2.1")}, now.Add(time.Hour))
	}
	r.part.mu.Unlock()
	q := new(dns.Msg)
	q.SetQuestion("www.example.com.", dns.TypeA)
	m := new(dns.Msg)
	m.SetRcode(q, dns.RcodeSuccess)
	for _, a := range []string{"198.51.100.1", "198.51.100.2"} {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "www.example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(a)})
	}
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // asked again, it is no different
		if err := r.part.learn(wire, now); err == nil || !strings.Contains(err.Error(), "domainNames") {
			t.Errorf("beyond the limit learn says %v", err)
		}
		for a, want := range map[string]int{"198.51.100.1": 1, "198.51.100.2": 0} {
			if names := r.part.compiler.EndpointOf(netip.MustParseAddr(a)).Names; len(names) != want {
				t.Errorf("%s is open by %v, want %d names", a, names, want)
			}
		}
	}
}

func TestResolutions(t *testing.T) {
	head := func(name string, typ uint16, ttl uint32) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
	}
	pack := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	q := new(dns.Msg)
	q.SetQuestion("WWW.Example.com.", dns.TypeA)
	reply := func(rcode int, rrs ...dns.RR) []byte {
		m := new(dns.Msg)
		m.SetRcode(q, rcode)
		m.Answer = rrs
		return pack(m)
	}
	a := func(name, addr string, ttl uint32) dns.RR {
		return &dns.A{Hdr: head(name, dns.TypeA, ttl), A: net.ParseIP(addr)}
	}
	alias := func(name, to string, ttl uint32) dns.RR {
		return &dns.CNAME{Hdr: head(name, dns.TypeCNAME, ttl), Target: to}
	}
	for _, tc := range []struct {
		what  string
		wire  []byte
		names string
		addrs string
		ttl   time.Duration
	}{
		{"an address", reply(0, a("www.example.com.", "192.0.2.1", 60)), "www.example.com", "192.0.2.1", time.Minute},
		{"a chain, out of order, with the smallest TTL", reply(0, a("c.example.", "192.0.2.1", 60), alias("b.example.", "C.example.", 5), alias("www.example.com.", "b.example.", 100)),
			"www.example.com b.example c.example", "192.0.2.1", 5 * time.Second},
		{"an address of another name", reply(0, a("www.example.com.", "192.0.2.1", 60), a("evil.example.", "192.0.2.2", 1)), "www.example.com", "192.0.2.1", time.Minute},
		{"a loop", reply(0, alias("www.example.com.", "b.example.", 5), alias("b.example.", "www.example.com.", 5)), "www.example.com b.example", "", 5 * time.Second},
		{"a failure", reply(dns.RcodeNameError, a("www.example.com.", "192.0.2.1", 60)), "", "", 0},
		{"a question", pack(q), "", "", 0},
		{"noise", []byte{1, 2, 3}, "", "", 0},
		{"nothing", nil, "", "", 0},
	} {
		names, addrs, ttl := resolutions(tc.wire)
		if strings.Join(names, " ") != tc.names || !slices.Equal(addrs, policytest.Addrs(tc.addrs)) || ttl != tc.ttl {
			t.Errorf("%s: %v %v %s, want %s %s %s", tc.what, names, addrs, ttl, tc.names, tc.addrs, tc.ttl)
		}
	}
}
