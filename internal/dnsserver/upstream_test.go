// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// isLoop tells whether a question is one by which the server looks for loops.
func isLoop(r *dns.Msg) bool { return strings.Contains(r.Question[0].Name, "weft-loop") }

// With all defaults, an upstream that needs longer than a try's patience is waited for: its first answer counts, however
// late, and it is not taken for dead.
func TestSlowUpstream(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		time.Sleep(1200 * time.Millisecond)
		_ = w.WriteMsg(answerA(r, 300, "192.0.2.1"))
	})
	for _, upstream := range []string{"%U", "tcp://%U"} {
		h := start(t, u, "forward: {upstreams: [\""+upstream+"\"]}")
		h.stopLoops()
		expect(t, h.ask(t, "udp", question("cold.example", dns.TypeA)), "NOERROR", "cold.example. 300 IN A 192.0.2.1")
		if r := h.view.Load().routes[0].resolvers[0]; !r.healthy() || r.failures.Load() != 0 {
			t.Errorf("%s: %d failures after an answer", upstream, r.failures.Load())
		}
	}
}

// A question that got lost is asked again, with the whole of forward.timeout to go.
func TestLostQuestions(t *testing.T) {
	u := newUpstream(t)
	var n atomic.Int64
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		if isLoop(r) || n.Add(1) > 2 {
			_ = w.WriteMsg(answerA(r, 300, "192.0.2.1"))
		}
	})
	h := start(t, u, "")
	expect(t, h.ask(t, "udp", question("lost.example", dns.TypeA)), "NOERROR", "lost.example. 300 IN A 192.0.2.1")
	if r := h.view.Load().routes[0].resolvers[0]; r.failures.Load() != 0 {
		t.Errorf("%d failures after an answer", r.failures.Load())
	}
}

// An upstream that could not tell is no reason to wait for another one that is dead until the time is up.
func TestPoorAnswerBesideADeadOne(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(r, dns.RcodeServerFailure))
	})
	h := start(t, u, fmt.Sprintf("forward: {upstreams: [\"%%U\", %q], policy: sequential, timeout: 8s}", dead.LocalAddr()))
	begin := time.Now()
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "SERVFAIL")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("SERVFAIL after %s", took)
	}
}

// What an upstream could not find out never takes the place of what is known.
func TestFailedRefreshKeepsTheOld(t *testing.T) {
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError} {
		u := newUpstream(t)
		u.set(func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg)
			_ = w.WriteMsg(m.SetRcode(r, rcode))
		})
		h := start(t, u, "")
		h.stopLoops()
		why := dns.RcodeToString[rcode]
		h.keep(t, answerA(question("old.example", dns.TypeA), 60, "192.0.2.9"), 10*time.Minute)
		if m := h.ask(t, "udp", question("old.example", dns.TypeA)); len(m.Answer) != 1 {
			t.Errorf("%s in the place of stale data: %v", why, answers(m))
		}
		h.keep(t, answerA(question("popular.example", dns.TypeA), 1000, "192.0.2.9"), 950*time.Second)
		for range 2 {
			h.ask(t, "udp", question("popular.example", dns.TypeA))
		}
		eventually(t, "the prefetch has been and gone", func() bool { return h.stats.prefetches.Load() == 1 && h.flights.idle() })
		if m := h.ask(t, "udp", question("popular.example", dns.TypeA)); len(m.Answer) != 1 {
			t.Errorf("%s to a prefetch in the place of an answer that still holds: %v", why, answers(m))
		}
	}
}

// Who joins a prefetch after the end of what there was gets that, stale, when the upstream takes too long.
func TestStaleWhilePrefetching(t *testing.T) {
	u := newUpstream(t)
	release := make(chan struct{})
	defer close(release)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) { <-release; _ = w.WriteMsg(answerA(r, 1000, "192.0.2.2")) })
	h := start(t, u, "")
	h.stopLoops()
	var e *entry
	for h.stats.prefetches.Load() == 0 { // once, unless the machine took half a second for two questions
		e = h.keep(t, answerA(question("popular.example", dns.TypeA), 10, "192.0.2.9"), 9500*time.Millisecond)
		for range 2 {
			h.ask(t, "udp", question("popular.example", dns.TypeA))
		}
	}
	eventually(t, "the answer is at its end", func() bool { return e.left(h.now()) <= 0 })
	expect(t, h.ask(t, "udp", question("popular.example", dns.TypeA)), "NOERROR", "popular.example. 30 IN A 192.0.2.9")
}

// An answer that the upstream cut short, and whose whole can't be had, is nothing to keep, nor to give over TCP
// (RFC 2181 section 9).
func TestTruncatedUpstream(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := answerA(r, 300, "192.0.2.1")
		if !isLoop(r) {
			asked.Add(1)
			m.Truncated = true
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	defer func() { _ = srv.Shutdown() }()
	h := start(t, nil, fmt.Sprintf("forward: {upstreams: [%q]}", pc.LocalAddr()))
	for i := range 2 {
		if m := h.ask(t, "udp", question("cut.example", dns.TypeA)); !m.Truncated {
			t.Errorf("over UDP: %v", m)
		}
		if n := asked.Load(); n <= int64(i) {
			t.Errorf("asked %d times: it was kept", n)
		}
	}
	if m := h.ask(t, "tcp", question("cut.example", dns.TypeA)); m.Truncated || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("over TCP: %v", m)
	}
}

// A server from before EDNS says FORMERR: it is asked without (RFC 6891 section 7).
func TestUpstreamWithoutEDNS(t *testing.T) {
	for _, bare := range []bool{false, true} {
		u := newUpstream(t)
		u.set(func(w dns.ResponseWriter, r *dns.Msg) {
			m := answerA(r, 300, "192.0.2.1")
			if r.IsEdns0() != nil {
				m = new(dns.Msg).SetRcode(r, dns.RcodeFormatError)
				if bare {
					m.Question = nil
				}
			}
			_ = w.WriteMsg(m)
		})
		h := start(t, u, "")
		expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 192.0.2.1")
	}
}

// Whether an upstream sends questions back here is asked until it has answered once, and never of one that has.
func TestLoopIsAskedUntilAnswered(t *testing.T) {
	u := newUpstream(t)
	var silent atomic.Bool
	var asked atomic.Int64
	silent.Store(true)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		if isLoop(r) {
			asked.Add(1)
		}
		if !silent.Load() {
			_ = w.WriteMsg(answerA(r, 300, "192.0.2.1"))
		}
	})
	h := start(t, u, "")
	h.stopLoops()
	w := loopWatch{s: h.Server, fs: h.view.Load().routes}
	w.round(t.Context(), 20*time.Millisecond)
	before := asked.Load()
	silent.Store(false)
	w.round(t.Context(), 5*time.Second)
	after := asked.Load()
	if after <= before {
		t.Error("an upstream that did not answer is not asked again")
	}
	w.round(t.Context(), 5*time.Second)
	if asked.Load() != after {
		t.Error("an upstream that has answered is asked again")
	}
}

// Nobody goes on asking an upstream that a new configuration does not have.
func TestProbesEndWithTheirUpstream(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	u := newUpstream(t)
	h := start(t, u, fmt.Sprintf("forward: {upstreams: [%q, \"%%U\"], policy: sequential}", dead.LocalAddr()))
	r := h.view.Load().routes[0].resolvers[0]
	eventually(t, "the dead one is probed", func() bool {
		h.ask(t, "udp", question(fmt.Sprintf("x%d.example", time.Now().UnixNano()), dns.TypeA))
		return r.probing.Load()
	})
	if err := h.Apply(parse(t, fmt.Sprintf("forward: {upstreams: [%q]}", u.addr)), h.zone); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the probe ends", func() bool { return !r.probing.Load() })
}

// What another configuration would have asked others for is forgotten; the rest stays.
func TestReloadForgetsWhatHasAnotherRoute(t *testing.T) {
	u, next := newUpstream(t), newUpstream(t)
	next.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 300, "10.9.9.9")) })
	h := start(t, u, "")
	for _, name := range []string{"a.corp.example", "a.example"} {
		expect(t, h.ask(t, "udp", question(name, dns.TypeA)), "NOERROR", name+". 300 IN A 192.0.2.1")
	}
	cfg := parse(t, fmt.Sprintf("{forward: {upstreams: [%q]}, stubDomains: [{zones: [corp.example], upstreams: [%q]}]}", u.addr, next.addr))
	if err := h.Apply(cfg, h.zone); err != nil {
		t.Fatal(err)
	}
	before := u.asked.Load()
	expect(t, h.ask(t, "udp", question("a.corp.example", dns.TypeA)), "NOERROR", "a.corp.example. 300 IN A 10.9.9.9")
	h.ask(t, "udp", question("a.example", dns.TypeA))
	if u.asked.Load() != before {
		t.Error("what still has the same upstream was forgotten, too")
	}
	if err := h.Apply(parse(t, fmt.Sprintf("forward: {upstreams: [%q]}", next.addr)), h.zone); err != nil {
		t.Fatal(err)
	}
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 10.9.9.9")
}

// An answer that was under way to the upstream of before is not kept for the one of now.
func TestReloadForgetsWhatIsUnderWay(t *testing.T) {
	u, next := newUpstream(t), newUpstream(t)
	release := make(chan struct{})
	u.set(func(w dns.ResponseWriter, r *dns.Msg) { <-release; _ = w.WriteMsg(answerA(r, 300, "192.0.2.1")) })
	next.set(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, 300, "10.9.9.9")) })
	h := start(t, u, "")
	done := make(chan struct{})
	go func() {
		defer close(done)
		expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 192.0.2.1")
	}()
	eventually(t, "the upstream is asked", func() bool { return u.asked.Load() == 1 })
	if err := h.Apply(parse(t, fmt.Sprintf("forward: {upstreams: [%q]}", next.addr)), h.zone); err != nil {
		t.Fatal(err)
	}
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 10.9.9.9")
	close(release)
	<-done
	expect(t, h.ask(t, "udp", question("a.example", dns.TypeA)), "NOERROR", "a.example. 300 IN A 10.9.9.9")
}

// While the upstream is away, the end of a chain is served stale at once, too, and is prefetched.
func TestChainsHoldAndPrefetch(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(r, dns.RcodeServerFailure))
	})
	h := start(t, u, "")
	h.stopLoops()
	h.keep(t, answerA(question("ext.example.com", dns.TypeA), 60, "192.0.2.9"), 10*time.Minute)
	for range 3 {
		expect(t, h.ask(t, "udp", question("out.shop.svc.cluster.local", dns.TypeA)), "NOERROR",
			"ext.example.com. 30 IN A 192.0.2.9", "out.shop.svc.cluster.local. 5 IN CNAME ext.example.com.")
	}
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the upstream that fails was asked %d times", n)
	}
	h.keep(t, answerA(question("ext.example.com", dns.TypeA), 1000, "192.0.2.9"), 950*time.Second)
	for range 2 {
		h.ask(t, "udp", question("out.shop.svc.cluster.local", dns.TypeA))
	}
	eventually(t, "it is prefetched", func() bool { return h.stats.prefetches.Load() == 1 })
}
