// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"fmt"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// DNSSEC's bits go up and come down: DO and CD as the client set them, AD as the upstream did, for whoever wants to know
// (RFC 4035 section 3.2, RFC 6840 section 5.7). Each combination has its own place in the cache.
func TestDNSSECBits(t *testing.T) {
	u := newUpstream(t)
	var mu sync.Mutex
	got := make(map[string][]string)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		if !isLoop(r) {
			mu.Lock()
			name := r.Question[0].Name
			got[name] = append(got[name], fmt.Sprintf("do=%v cd=%v", r.IsEdns0() != nil && r.IsEdns0().Do(), r.CheckingDisabled))
			mu.Unlock()
		}
		m := answerA(r, 300, "192.0.2.1")
		m.AuthenticatedData = !r.CheckingDisabled
		if r.IsEdns0() != nil && r.IsEdns0().Do() {
			m.Answer = append(m.Answer, mustRR(r.Question[0].Name+" 300 IN RRSIG A 8 2 300 20300101000000 20200101000000 1 example. c2ln"))
		}
		_ = w.WriteMsg(m)
	})
	h := start(t, u, "")
	for _, network := range []string{"udp", "tcp"} {
		for i, c := range []struct{ do, cd, ad bool }{{false, false, false}, {true, false, false}, {false, true, false}, {true, true, false}, {false, false, true}} {
			name := fmt.Sprintf("%s%d.example.", network, i)
			for _, from := range []string{"upstream", "the cache"} {
				q := question(name, dns.TypeA)
				q.CheckingDisabled, q.AuthenticatedData = c.cd, c.ad
				if c.do {
					q.SetEdns0(1232, true)
				}
				m := h.ask(t, network, q)
				if m.CheckingDisabled != c.cd {
					t.Errorf("%+v from %s: CD is %v in the answer", c, from, m.CheckingDisabled)
				}
				if want := !c.cd && (c.do || c.ad); m.AuthenticatedData != want {
					t.Errorf("%+v from %s: AD is %v, want %v", c, from, m.AuthenticatedData, want)
				}
				if c.do != (m.IsEdns0() != nil && m.IsEdns0().Do()) || (len(m.Answer) == 2) != c.do {
					t.Errorf("%+v from %s: %v", c, from, m)
				}
			}
			mu.Lock()
			if want := fmt.Sprintf("[do=%v cd=%v]", c.do, c.cd); fmt.Sprint(got[name]) != want {
				t.Errorf("%+v: the upstream was asked %v, want %s", c, got[name], want)
			}
			mu.Unlock()
		}
	}
	// One name, each combination: none is taken for another's answer.
	for _, do := range []bool{false, true} {
		for _, cd := range []bool{false, true} {
			q := question("one.example", dns.TypeA)
			q.SetEdns0(1232, do)
			q.CheckingDisabled = cd
			h.ask(t, "udp", q)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got["one.example."]) != 4 {
		t.Errorf("asked %v", got["one.example."])
	}
}
