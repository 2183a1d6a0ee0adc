// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// randomCluster has every sort of Service that names are made of, and every sort of endpoint.
func randomCluster(seed uint64) *cluster {
	r := rand.New(rand.NewPCG(seed, 99))
	c := &cluster{version: 1000, watchers: make(map[chan []byte]string)}
	for i := range 4 {
		c.namespaces = append(c.namespaces, &corev1.Namespace{ObjectMeta: meta("", fmt.Sprintf("ns%d", i), i)})
	}
	// The first answers when a server is ready.
	first := &corev1.Service{ObjectMeta: meta("ns0", "first", 0), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "172.16.0.1", ClusterIPs: []string{"172.16.0.1"}}}
	first.Spec.Ports = []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}
	last := &corev1.Service{ObjectMeta: meta("ns0", "last", 999), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}}}
	c.services = append(c.services, first, last)
	ports := []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53}}
	for i := range 60 {
		ns := fmt.Sprintf("ns%d", r.IntN(3)) // ns3 stays empty
		name := fmt.Sprintf("s%d", i)
		s := &corev1.Service{ObjectMeta: meta(ns, name, i)}
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.Ports = slices.Clone(ports[:1+r.IntN(3)])
		if r.IntN(6) == 0 {
			s.Spec.Ports = []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 8080}}
		}
		v4, v6 := fmt.Sprintf("172.16.1.%d", i+1), fmt.Sprintf("fd00:10:96::%x", i+1)
		switch r.IntN(8) {
		case 0:
			s.Spec.Type, s.Spec.Ports = corev1.ServiceTypeExternalName, nil
			s.Spec.ExternalName = []string{"host-1.example", "first.ns0.svc.cluster.local", "missing.ns0.svc.cluster.local", "10.1.2.3"}[r.IntN(4)]
		case 1, 2, 3:
			s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
			if r.IntN(4) == 0 {
				s.Spec.Ports = nil
			}
		case 4:
			s.Spec.ClusterIPs = []string{v6}
		case 5:
			s.Spec.ClusterIPs = []string{v4, v6}
		default:
			s.Spec.ClusterIPs = []string{v4}
		}
		if len(s.Spec.ClusterIPs) > 0 {
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		}
		s.Spec.PublishNotReadyAddresses = r.IntN(5) == 0
		c.services = append(c.services, s)
		if s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		for k := range r.IntN(4) {
			c.slices = append(c.slices, randomSlice(r, s, k))
		}
	}
	for i := range 20 {
		p := &corev1.Pod{ObjectMeta: meta(fmt.Sprintf("ns%d", r.IntN(3)), fmt.Sprintf("p%d", i), i), Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		p.Status.PodIP = fmt.Sprintf("10.9.0.%d", i+1)
		if i%4 == 0 {
			p.Status.PodIP = fmt.Sprintf("2001:db8:9::%x", i+1)
		}
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		c.pods = append(c.pods, p)
	}
	return c
}

// settings are those that generated clusters are looked at with, one after the other.
var settings = []setting{{name: "pods insecure", pods: "insecure"}, {name: "pods verified", pods: "verified"},
	{name: "two namespaces", pods: "insecure", namespaces: []string{"ns0", "ns1"}}, {name: "pods disabled", pods: "disabled"}}

// stir changes the cluster: addresses of Services, their slices, Services that go and come. Last comes the Service by
// which one sees that a server knows all of it.
func (c *cluster) stir(seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.services[1:] {
		if s.Name == "last" || r.IntN(5) > 0 {
			continue
		}
		s := s.DeepCopy()
		switch {
		case s.Spec.Type == corev1.ServiceTypeExternalName:
			s.Spec.ExternalName = "host-2.example"
		case s.Spec.ClusterIP == corev1.ClusterIPNone:
			s.Spec.ClusterIP, s.Spec.ClusterIPs = fmt.Sprintf("172.16.2.%d", i+1), []string{fmt.Sprintf("172.16.2.%d", i+1)}
			if r.IntN(2) == 0 {
				// A Service whose ClusterIP changes is another one: it goes first.
				c.tell("services", "DELETED", c.services[1+i], corev1.SchemeGroupVersion)
			}
		default:
			s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		}
		c.services[1+i] = s
		c.tell("services", "MODIFIED", s, corev1.SchemeGroupVersion)
	}
	kept := c.slices[:0:0]
	for i, es := range c.slices {
		switch r.IntN(6) {
		case 0:
			c.tell("endpointslices", "DELETED", es, discoveryv1.SchemeGroupVersion)
			continue
		case 1:
			es = es.DeepCopy()
			for j := range es.Endpoints {
				if es.AddressType == discoveryv1.AddressTypeIPv4 {
					es.Endpoints[j].Addresses = []string{fmt.Sprintf("10.4.%d.%d", i%250, j+1)}
				}
			}
			c.tell("endpointslices", "MODIFIED", es, discoveryv1.SchemeGroupVersion)
		}
		kept = append(kept, es)
	}
	c.slices = kept
	first := c.services[0].DeepCopy()
	first.Spec.ClusterIP, first.Spec.ClusterIPs = stirred, []string{stirred}
	c.services[0] = first
	c.tell("services", "MODIFIED", first, corev1.SchemeGroupVersion)
	// Slices come by a watch of their own: theirs has a last one, too.
	ready := true
	last := &discoveryv1.EndpointSlice{ObjectMeta: meta("ns0", "last-1", 999), AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{stirred}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}}
	last.Labels = map[string]string{discoveryv1.LabelServiceName: "last"}
	c.slices = append(c.slices, last)
	c.tell("endpointslices", "ADDED", last, discoveryv1.SchemeGroupVersion)
}

// stirred is the address of the first Service, and of the endpoint of the last, after stir.
const stirred = "172.16.0.2"

func randomSlice(r *rand.Rand, s *corev1.Service, k int) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{ObjectMeta: meta(s.Namespace, fmt.Sprintf("%s-%d", s.Name, k), k), AddressType: discoveryv1.AddressTypeIPv4}
	es.Labels = map[string]string{discoveryv1.LabelServiceName: s.Name}
	if k == 1 {
		es.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range s.Spec.Ports {
		name, proto, port := p.Name, p.Protocol, p.Port+8000
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port})
	}
	for range r.IntN(4) {
		// Slices share addresses now and then.
		a := fmt.Sprintf("10.%d.0.%d", 1+r.IntN(3), 1+r.IntN(60))
		if k == 1 {
			a = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:%x", r.IntN(3), 1+r.IntN(60))).String()
		}
		serving := r.IntN(4) > 0
		ready := serving || s.Spec.PublishNotReadyAddresses // as the API's controller has it
		ep := discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving}}
		if r.IntN(3) == 0 {
			host := fmt.Sprintf("%s-%d", s.Name, r.IntN(4))
			ep.Hostname = &host
		}
		es.Endpoints = append(es.Endpoints, ep)
	}
	return es
}

// questions are all that the cluster's objects could make one ask, and some more.
func questions(c *cluster) []dns.Question {
	seen := make(map[dns.Question]bool)
	var out []dns.Question
	add := func(name string, types ...uint16) {
		for _, t := range types {
			if q := (dns.Question{Name: dns.Fqdn(name), Qtype: t, Qclass: dns.ClassINET}); !seen[q] {
				seen[q] = true
				out = append(out, q)
			}
		}
	}
	all := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME, dns.TypeMX, dns.TypePTR}
	reverse := func(ip string) {
		if r, err := dns.ReverseAddr(ip); err == nil {
			add(r, dns.TypePTR, dns.TypeA)
		}
	}
	add("cluster.local", append(all, dns.TypeSOA, dns.TypeNS)...)
	for _, n := range []string{"svc", "pod", "dns-version", "x", "ns0.svc", "ns3.svc", "none.svc", "ns0.pod", "none.pod", "none.ns0.svc", "x.none.ns0.svc", "_http._tcp.none.ns0.svc",
		"10-1-2-3.ns0.pod", "10-1-2-3.none.pod", "2001-db8--1.ns0.pod", "1-2-3.ns0.pod", "x.10-1-2-3.ns0.pod", "a.b.c.first.ns0.svc"} {
		add(n+".cluster.local", all...)
	}
	for _, s := range c.services {
		base := s.Name + "." + s.Namespace + ".svc.cluster.local"
		add(base, all...)
		add(strings.ToUpper(base), dns.TypeA, dns.TypeAAAA)
		add("nobody."+base, dns.TypeA)
		add("_tcp."+base, dns.TypeA, dns.TypeSRV)
		for _, p := range []string{"_http._tcp", "_dns._udp", "_dns-tcp._tcp", "_http._udp", "_none._tcp", "http.tcp"} {
			add(p+"."+base, dns.TypeSRV, dns.TypeA)
		}
		for _, ip := range s.Spec.ClusterIPs {
			reverse(ip)
		}
	}
	for _, es := range c.slices {
		base := es.Labels[discoveryv1.LabelServiceName] + "." + es.Namespace + ".svc.cluster.local"
		for _, ep := range es.Endpoints {
			reverse(ep.Addresses[0])
			add(strings.NewReplacer(".", "-", ":", "-").Replace(ep.Addresses[0])+"."+base, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
			if ep.Hostname != nil {
				add(*ep.Hostname+"."+base, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
			}
		}
	}
	return out
}

// seen is an answer, made comparable: without TTLs, weights and order.
type seen struct {
	rcode  string
	answer []string
	extra  []string
	soa    bool
}

func (s seen) String() string {
	return fmt.Sprintf("%s %q +%q soa:%v", s.rcode, s.answer, s.extra, s.soa)
}

// without leaves out the records that another answer has, too.
func (s seen) without(o seen) seen {
	drop := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(r string) bool { return slices.Contains(b, r) })
	}
	s.answer, s.extra = drop(s.answer, o.answer), drop(s.extra, o.extra)
	return s
}

func (s seen) equal(o seen) bool { return s.String() == o.String() }

func exchange(port int, q dns.Question) (seen, error) {
	m := &dns.Msg{Question: []dns.Question{q}}
	m.Id, m.RecursionDesired = dns.Id(), true
	m.SetEdns0(4096, false)
	c := &dns.Client{Timeout: 5 * time.Second, UDPSize: 4096}
	r, _, err := c.Exchange(m, fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil && r.Truncated {
		c.Net = "tcp"
		r, _, err = c.Exchange(m, fmt.Sprintf("127.0.0.1:%d", port))
	}
	if err != nil {
		return seen{}, fmt.Errorf("%s: %w", q.String(), err)
	}
	out := seen{rcode: dns.RcodeToString[r.Rcode]}
	lines := func(rrs []dns.RR) (ls []string) {
		for _, rr := range rrs {
			switch rr := rr.(type) {
			case *dns.OPT:
				continue
			case *dns.SRV:
				rr.Priority, rr.Weight = 0, 0
			case *dns.SOA:
				rr.Serial, rr.Minttl = 0, 0
			}
			rr.Header().Ttl = 0
			rr.Header().Name = strings.ToLower(rr.Header().Name)
			ls = append(ls, strings.Join(strings.Fields(rr.String()), " "))
		}
		slices.Sort(ls)
		return slices.Compact(ls)
	}
	out.answer, out.extra = lines(r.Answer), lines(r.Extra)
	for _, rr := range r.Ns {
		out.soa = out.soa || rr.Header().Rrtype == dns.TypeSOA
	}
	return out, nil
}

// known explains a difference that is meant; "" is one that is not.
func known(c *cluster, q dns.Question, w, o seen) string {
	name := strings.ToLower(q.Name)
	labels := dns.SplitDomainName(name)
	var svc *corev1.Service
	if n := len(labels); n >= 5 && labels[n-3] == "svc" {
		for _, s := range c.services {
			if s.Name == labels[n-5] && s.Namespace == labels[n-4] {
				svc = s
			}
		}
	}
	below := len(labels) - 5
	unnamed := svc != nil && slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == "" })
	switch {
	case slices.Equal(w.answer, o.answer) && subset(w.extra, o.extra) && len(w.answer) > 5:
		return "addresses of SRV targets are left out where an answer over UDP has no room for them in 1232 octets; CoreDNS sends fragments"
	case svc != nil && svc.Spec.Type == corev1.ServiceTypeExternalName && below == 0:
		if svc.Spec.ExternalName == "missing.ns0.svc.cluster.local" && w.rcode == "NXDOMAIN" && len(w.answer) == 1 {
			return "a CNAME to what does not exist is answered as such (RFC 6604); CoreDNS hides it"
		}
		if len(w.answer) > 0 && q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA && q.Qtype != dns.TypeCNAME {
			return "a CNAME holds for every type (RFC 1034 section 3.6.2); CoreDNS gives it for A, AAAA and CNAME only"
		}
		if len(w.answer) > len(o.answer) && len(o.answer) == 0 {
			return "a CNAME whose target has no record of the type is shown; CoreDNS hides it"
		}
	case svc != nil && below == 2 && !strings.HasPrefix(labels[0], "_") && w.rcode == "NXDOMAIN":
		return "ports are asked for with underscores (RFC 2782); CoreDNS takes them without, too"
	case svc != nil && below == 2 && q.Qtype == dns.TypeA && len(w.answer) == 0 && w.rcode == "NOERROR":
		return "the name of a port has SRV records only (specification section 2.3.2); CoreDNS gives addresses, too"
	case svc != nil && below == 1 && strings.HasPrefix(labels[0], "_") && w.rcode == "NOERROR" && len(w.answer) == 0:
		return "_tcp.<service> exists where a port is below it (RFC 8020); CoreDNS says NXDOMAIN"
	case svc != nil && below == 1 && q.Qtype == dns.TypeSRV && len(w.answer) == 0 && w.rcode == "NOERROR":
		return "an endpoint's name has addresses only; CoreDNS gives SRV records, too"
	case svc != nil && below == 0 && q.Qtype == dns.TypeSRV && unnamed && len(w.answer) == 0:
		return "unnamed ports have no SRV record (specification section 2.3.2); CoreDNS gives them at the Service's name"
	case q.Qtype == dns.TypeNS || (q.Qtype == dns.TypeSOA && name == "cluster.local."):
		return "the name server is ns.dns.<domain>; CoreDNS names its own Service"
	case q.Qtype == dns.TypeA && strings.HasSuffix(name, ".arpa.") && w.rcode == "NOERROR" && o.rcode != "NOERROR":
		return "a reverse name that has a PTR record exists for other types, too; CoreDNS forwards the question"
	case w.rcode == "NOERROR" && len(w.answer) == 0 && o.rcode == "NXDOMAIN" && (q.Qtype == dns.TypeTXT || labels[0] == "dns-version"):
		return "a name that exists for one type exists for all (RFC 2308); CoreDNS says NXDOMAIN to TXT, and to all but TXT at dns-version"
	case strings.HasSuffix(name, ".pod.cluster.local.") && len(labels) == 4 && w.rcode == "NOERROR" && len(w.answer) == 0 && o.rcode == "NXDOMAIN":
		return "pod.<domain> has a name for each namespace, also where pods have none (pods: disabled); CoreDNS says NXDOMAIN"
	case strings.HasSuffix(name, ".pod.cluster.local.") && len(labels) > 5 && w.rcode == "NXDOMAIN":
		return "nothing is below a pod's name; CoreDNS answers as for the pod"
	case strings.HasSuffix(name, ".pod.cluster.local.") && q.Qtype == dns.TypeSRV && len(w.answer) == 0:
		return "a pod's name has an address only; CoreDNS gives an SRV record with port 0, too"
	}
	return ""
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// differ asks both servers everything about generated clusters and explains each difference; one that it can't is an
// error.
func differ(o options, clusters int, dir string) error {
	away, err := outsideServer(10, dir)
	if err != nil {
		return err
	}
	defer away.stop()
	if err := away.start(coreLoad, "host-0.example", "192.0.2.1", 10*time.Second); err != nil {
		return err
	}
	asked, count := 0, make(map[string]int)
	for seed := range uint64(clusters) {
		n, err := differOne(o, seed, dir, count)
		if err != nil {
			return err
		}
		asked += n
	}
	fmt.Printf("%d questions about %d clusters; the differences:\n", asked, clusters)
	var reasons []string
	for r := range count {
		reasons = append(reasons, r)
	}
	slices.Sort(reasons)
	for _, r := range reasons {
		fmt.Printf("%6d  %s\n", count[r], r)
	}
	return nil
}

func differOne(o options, seed uint64, dir string, count map[string]int) (int, error) {
	c := randomCluster(seed)
	api, err := c.serve()
	if err != nil {
		return 0, err
	}
	set := settings[seed%uint64(len(settings))]
	w, err := weftServer(o.weft, api, dir, set)
	if err != nil {
		return 0, err
	}
	defer w.stop()
	k, err := coreDNSServer(o.coredns, api, dir, set)
	if err != nil {
		return 0, err
	}
	defer k.stop()
	for _, s := range []*server{w, k} {
		if err := s.start(coreServer, fqdn(c.services[0]), "172.16.0.1", time.Minute); err != nil {
			return 0, err
		}
	}
	asked, unexplained := 0, 0
	for _, when := range []string{"at first", "after changes"} {
		if when != "at first" {
			c.stir(seed)
			for _, port := range []int{portWeft, portCoreDNS} {
				if err := knows(port); err != nil {
					return 0, err
				}
			}
		}
		for _, q := range questions(c) {
			a, err := exchange(portWeft, q)
			if err != nil {
				return 0, err
			}
			b, err := exchange(portCoreDNS, q)
			if err != nil {
				return 0, err
			}
			asked++
			if a.equal(b) {
				continue
			}
			why := known(c, q, a, b)
			if why == "" {
				unexplained++
				if unexplained <= 30 {
					fmt.Fprintf(os.Stderr, "cluster %d (%s, %s): %s %s\n  weft    %s\n  CoreDNS %s\n", seed, set.name, when, q.Name, dns.TypeToString[q.Qtype], a.without(b), b.without(a))
				}
				continue
			}
			count[why]++
		}
	}
	if unexplained > 0 {
		return 0, fmt.Errorf("%d differences that nothing explains", unexplained)
	}
	return asked, nil
}

// knows waits until a server has seen the end of stir.
func knows(port int) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		seen := 0
		for _, name := range []string{"first", "last"} {
			s, err := exchange(port, dns.Question{Name: name + ".ns0.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
			if err == nil && len(s.answer) == 1 && strings.HasSuffix(s.answer[0], stirred) {
				seen++
			}
		}
		if seen == 2 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("port %d: the changes were not seen within 30 s", port)
		}
	}
}
