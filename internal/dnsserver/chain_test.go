// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The configuration's own names hold wherever a chain leads to them, and in the cluster's domain where nothing of the
// cluster has the name.
func TestOwnNamesInChainsAndInTheClusterDomain(t *testing.T) {
	u, consul := newUpstream(t), newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := answerA(r, 300, "192.0.2.1")
		if strings.HasSuffix(strings.ToLower(r.Question[0].Name), ".corp.example.") {
			m.Answer, m.Rcode = nil, dns.RcodeNameError
			m.Ns = []dns.RR{mustRR("example. 60 IN SOA ns.example. h.example. 1 2 3 4 60")}
		}
		_ = w.WriteMsg(m)
	})
	consul.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 60, "10.8.8.8")) })
	h := start(t, u, `
forward: {upstreams: ["%U"]}
reverseZones: [192.0.2.0/24]
stubDomains:
- zones: [consul.cluster.local]
  upstreams: ["`+consul.addr+`"]
hosts:
  ext.example.com: [192.0.2.10, "2001:db8::10"]
  here.shop.svc.cluster.local: [192.0.2.11]
  cart.shop.svc.cluster.local: [192.0.2.66]
  host.corp: [192.0.2.12]
aliases:
  old.shop.svc.cluster.local: cart.shop.svc.cluster.local
  one.example: two.example
  two.example: ext.example.com
  far.example: out.shop.svc.cluster.local
  away.example: alias.example
  alias.example: www.example.com
  a.circle.example: b.circle.example
  b.circle.example: a.circle.example
  short.corp: old.shop.svc.cluster.local
searchPath: {enabled: true, domains: [corp.example]}
`)
	for range 2 {
		for _, c := range []struct {
			why, name string
			typ       uint16
			want      []string
		}{
			{"an ExternalName leads to a host", "out.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"ext.example.com. 5 IN A 192.0.2.10", "out.shop.svc.cluster.local. 5 IN CNAME ext.example.com."}},
			{"no such type there", "out.shop.svc.cluster.local", dns.TypeTXT, []string{"NOERROR", "out.shop.svc.cluster.local. 5 IN CNAME ext.example.com."}},
			{"alias to alias to host", "one.example", dns.TypeAAAA, []string{"NOERROR",
				"ext.example.com. 5 IN AAAA 2001:db8::10", "one.example. 5 IN CNAME two.example.", "two.example. 5 IN CNAME ext.example.com."}},
			{"alias to ExternalName to host", "far.example", dns.TypeA, []string{"NOERROR",
				"ext.example.com. 5 IN A 192.0.2.10", "far.example. 5 IN CNAME out.shop.svc.cluster.local.", "out.shop.svc.cluster.local. 5 IN CNAME ext.example.com."}},
			{"alias to alias to others' name", "away.example", dns.TypeA, []string{"NOERROR",
				"alias.example. 5 IN CNAME www.example.com.", "away.example. 5 IN CNAME alias.example.", "www.example.com. 300 IN A 192.0.2.1"}},
			{"an alias in the cluster's domain", "OLD.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"OLD.shop.svc.cluster.local. 5 IN CNAME cart.shop.svc.cluster.local.", "cart.shop.svc.cluster.local. 5 IN A 10.96.0.10"}},
			{"a host in the cluster's domain", "here.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR", "here.shop.svc.cluster.local. 5 IN A 192.0.2.11"}},
			{"what the cluster has is the cluster's", "cart.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR", "cart.shop.svc.cluster.local. 5 IN A 10.96.0.10"}},
			{"a stub domain in the cluster's domain", "web.service.consul.cluster.local", dns.TypeA, []string{"NOERROR", "web.service.consul.cluster.local. 60 IN A 10.8.8.8"}},
			{"its apex", "consul.cluster.local", dns.TypeA, []string{"NOERROR", "consul.cluster.local. 60 IN A 10.8.8.8"}},
			{"beside it", "consult.cluster.local", dns.TypeA, []string{"NXDOMAIN"}},
			{"a host's reverse name in the cluster's range", "11.2.0.192.in-addr.arpa", dns.TypePTR, []string{"NOERROR", "11.2.0.192.in-addr.arpa. 5 IN PTR here.shop.svc.cluster.local."}},
			{"beside that", "77.2.0.192.in-addr.arpa", dns.TypePTR, []string{"NXDOMAIN"}},
			{"a host by the search path", "host.corp.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"host.corp. 5 IN A 192.0.2.12", "host.corp.shop.svc.cluster.local. 5 IN CNAME host.corp."}},
			{"an alias by the search path", "short.corp.shop.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"cart.shop.svc.cluster.local. 5 IN A 10.96.0.10", "old.shop.svc.cluster.local. 5 IN CNAME cart.shop.svc.cluster.local.",
				"short.corp. 5 IN CNAME old.shop.svc.cluster.local.", "short.corp.shop.svc.cluster.local. 5 IN CNAME short.corp."}},
			{"the cluster's by the search path, whole", "cart.shop.svc.cluster.local.other.svc.cluster.local", dns.TypeA, []string{"NOERROR",
				"cart.shop.svc.cluster.local. 5 IN A 10.96.0.10", "cart.shop.svc.cluster.local.other.svc.cluster.local. 5 IN CNAME cart.shop.svc.cluster.local."}},
		} {
			for _, network := range []string{"udp", "tcp"} {
				m := h.ask(t, network, question(c.name, c.typ))
				if got := answers(m); !slices.Equal(got, c.want) {
					t.Errorf("%s: %s: got %q, want %q", c.why, c.name, got, c.want)
				}
			}
		}
	}
	if m := h.ask(t, "udp", question("a.circle.example", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("aliases in a circle: %v", answers(m))
	}
	if n := h.stats.panics.Load(); n > 0 {
		t.Errorf("%d panics", n)
	}
}

// Whoever asks in a pattern of his own (A and AAAA in turn, two names in turn, a connection for each question) sees each
// address come first about as often.
func TestRotation(t *testing.T) {
	h := start(t, newUpstream(t), "")
	h.keep(t, answerA(question("two.example", dns.TypeA), 1000, "192.0.2.1", "192.0.2.2"), 0)
	one, err := net.Dial("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	udp := &dns.Conn{Conn: one}
	for _, c := range []struct {
		pattern string
		ask     func(*dns.Msg) *dns.Msg
		others  []*dns.Msg // asked between
	}{
		{"A and AAAA from one socket", nil, []*dns.Msg{question("%", dns.TypeAAAA)}},
		{"A, AAAA and HTTPS from one socket", nil, []*dns.Msg{question("%", dns.TypeAAAA), question("%", dns.TypeHTTPS)}},
		{"two names in turn", nil, []*dns.Msg{question("big.shop.svc.cluster.local", dns.TypeA)}},
		{"a TCP connection each", func(m *dns.Msg) *dns.Msg { return h.ask(t, "tcp", m) }, nil},
		{"a TCP connection each, with AAAA", func(m *dns.Msg) *dns.Msg { return h.ask(t, "tcp", m) }, []*dns.Msg{question("%", dns.TypeAAAA)}},
	} {
		ask := c.ask
		if ask == nil {
			ask = func(m *dns.Msg) *dns.Msg {
				_ = udp.SetDeadline(time.Now().Add(10 * time.Second))
				if err := udp.WriteMsg(m); err != nil {
					t.Fatal(err)
				}
				r, err := udp.ReadMsg()
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
		}
		for _, name := range []string{"two.shop.svc.cluster.local.", "two.example."} {
			first := make(map[string]int)
			for range 20 {
				m := ask(question(name, dns.TypeA))
				if len(m.Answer) != 2 {
					t.Fatalf("%s: %v", name, answers(m))
				}
				first[m.Answer[0].(*dns.A).A.String()]++
				for _, o := range c.others {
					q := o.Copy()
					if q.Question[0].Name == "%." {
						q.Question[0].Name = name
					}
					ask(q)
				}
			}
			if len(first) != 2 {
				t.Errorf("%s: %s: only %v comes first", c.pattern, name, first)
			}
			for a, n := range first {
				if n != 10 {
					t.Errorf("%s: %s: %s comes first %d times of 20", c.pattern, name, a, n)
				}
			}
		}
	}
}

// A "no" from the cache says how long it still holds, which is its SOA's minimum from when it came (RFC 2308 section 5).
func TestNegativeCountsDown(t *testing.T) {
	h := start(t, newUpstream(t), "")
	m := new(dns.Msg)
	m.SetRcode(question("none.example", dns.TypeA), dns.RcodeNameError)
	m.Ns = []dns.RR{mustRR("example. 3600 IN SOA ns.example. h.example. 1 2 3 4 300")}
	h.keep(t, m, 100*time.Second)
	r := h.ask(t, "udp", question("none.example", dns.TypeA))
	if ttl := r.Ns[0].Header().Ttl; ttl < 198 || ttl > 200 {
		t.Errorf("TTL %d after 100 of 300 seconds", ttl)
	}
}

// The end of a chain fits with its OPT record into what the client takes.
func TestChainsFit(t *testing.T) {
	u := newUpstream(t)
	var addrs []string
	for i := range 60 {
		addrs = append(addrs, fmt.Sprintf("192.0.2.%d", i))
	}
	u.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 300, addrs...)) })
	h := start(t, u, "")
	q := question("out.shop.svc.cluster.local", dns.TypeA)
	q.SetEdns0(512, true)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
	for _, edns := range []bool{true, false} {
		if !edns {
			q.Extra = nil
		}
		pkt, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		got := h.raw(t, pkt, true)
		m := new(dns.Msg)
		if err := m.Unpack(got); err != nil || len(got) > 512 || !m.Truncated || len(m.Answer) < 20 {
			t.Errorf("EDNS %v: %d octets, %d records, TC %v, %v", edns, len(got), len(m.Answer), m.Truncated, err)
		}
	}
}
