// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// forward has the node replace a Service's addresses by a pod's, and the sources of what goes there by its own, as it
// does with a Service that leads back to its client.
func (r *rig) forward(service, pod []netip.Addr) {
	r.t.Helper()
	r.node.Do(r.t, func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		table := nft.Table{Family: nft.Inet, Name: "services"}
		pre := nft.Chain{Table: table, Name: "pre", Hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_PRE_ROUTING, Priority: -100}}
		post := nft.Chain{Table: table, Name: "post", Hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_POST_ROUTING, Priority: 100}}
		var b nft.Batch
		b.AddTable(table, "")
		b.AddChain(pre)
		b.AddChain(post)
		for i := range families {
			h := &families[i]
			b.AddRule(pre, "", append(h.is(), h.load(h.dest, reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: service[i].AsSlice()},
				&expr.Immediate{Register: reg, Data: pod[i].AsSlice()},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(h.nfproto), RegAddrMin: reg})...)
			b.AddRule(post, "", append(h.is(), h.load(h.dest, reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: pod[i].AsSlice()}, &expr.Masq{})...)
		}
		return c.Commit(&b)
	})
}

// A pod that nothing may reach, and that may reach nothing, reaches itself through a Service; nobody else does, and it
// reaches nobody else.
func TestGuardedPodsHairpin(t *testing.T) {
	r := newRig(t)
	r.update(namespace("a", ""))
	web, db := r.pod("a/web", "role=web", "10.0.0.1 fd00::1"), r.pod("a/db", "role=db", "10.0.0.2 fd00::2")
	services := policytest.Addrs("10.96.0.2 fd96::2")
	r.forward(services, db.Addrs)
	for _, a := range services {
		if !web.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, true) {
			t.Fatalf("the Service %s does not work", a)
		}
	}
	r.update(&model.NetworkPolicy{Meta: model.Meta{Name: named("a/shut")}, PodSelector: *sel("role=db"), Ingress: true, Egress: true})
	for _, a := range services {
		for _, proto := range []model.Protocol{model.TCP, model.UDP} {
			to := netip.AddrPortFrom(a, 80)
			if !db.Reaches(t, netip.Addr{}, to, proto, true) {
				t.Errorf("a guarded pod does not reach itself through %s, %s", a, proto)
			}
			if web.Reaches(t, netip.Addr{}, to, proto, false) {
				t.Errorf("another pod reaches a guarded one through %s, %s", a, proto)
			}
		}
	}
	r.reach("a/db", "a/web", model.TCP, 80, false)
	// A table that is taken over knows it too.
	if err := r.table.Sync(r.k.Program()); err != nil {
		t.Fatal(err)
	}
	for _, a := range services {
		if !db.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, true) {
			t.Errorf("after a Sync a guarded pod does not reach itself through %s", a)
		}
	}
}

// What an admitted packet brings about (nobody listens there) is told to its sender, whatever guards the two.
func TestErrorsOfAdmittedPacketsPass(t *testing.T) {
	r := newRig(t)
	r.update(namespace("a", ""))
	web, db := r.pod("a/web", "role=web", "10.0.0.1 fd00::1"), r.pod("a/db", "role=db", "10.0.0.2 fd00::2")
	r.update(
		&model.NetworkPolicy{Meta: model.Meta{Name: named("a/web")}, PodSelector: *sel("role=web"), Ingress: true, Egress: true,
			EgressTo: []model.PolicyRule{{Ports: []model.PolicyPort{{Protocol: model.UDP, Port: 99}}}}},
		&model.NetworkPolicy{Meta: model.Meta{Name: named("a/db")}, PodSelector: *sel("role=db"), Ingress: true, Egress: true,
			IngressFrom: []model.PolicyRule{{}}})
	told := func(to netip.AddrPort, patience time.Duration) (refused bool) {
		web.Do(t, func() error {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				return err
			}
			defer c.Close()
			for end := time.Now().Add(patience); !refused && time.Now().Before(end); {
				_, err := c.Write([]byte("x")) // what is told of one packet comes with the next
				if err == nil {
					_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					_, err = c.Read(make([]byte, 1))
				}
				refused = errors.Is(err, unix.ECONNREFUSED)
			}
			return nil
		})
		return refused
	}
	for _, a := range db.Addrs {
		if !told(netip.AddrPortFrom(a, 99), policytest.Deadline) {
			t.Errorf("that nobody listens on %s is not told to a guarded pod that may send there", a)
		}
		if told(netip.AddrPortFrom(a, 98), 100*time.Millisecond) {
			t.Errorf("a packet to %s that is not allowed is answered", a)
		}
	}
}
