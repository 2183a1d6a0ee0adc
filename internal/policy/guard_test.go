// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// What a Guard admits is what Evaluate says of every single port, and its ranges are as few as can be.
func TestAdmittedAgreesWithEvaluate(t *testing.T) {
	for seed := range uint64(30) {
		w, c := policytest.NewWorld(seed, 12), NewCluster()
		for range 25 {
			c.Apply(w.Change(true))
			f := &Flow{Src: c.EndpointOf(w.Addr()), Dst: c.EndpointOf(w.Addr())}
			if f.Src.Addr.BitLen() != f.Dst.Addr.BitLen() {
				continue
			}
			for _, d := range []Direction{Egress, Ingress} {
				self, _ := ends(d, f)
				if self.Pod == nil {
					continue
				}
				got := c.Guard(self.Pod, d).Admitted(f.Src, f.Dst)
				for i := 1; i < len(got); i++ {
					if a, b := got[i-1], got[i]; a.Protocol > b.Protocol || a.Protocol == b.Protocol && b.From <= a.To+1 {
						t.Fatalf("seed %d: not sorted, or not merged: %v", seed, got)
					}
				}
				for _, f.Protocol = range protocols {
					for _, f.Port = range []uint16{1, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 65535} {
						v := c.Evaluate(f)
						want := v.Ingress.Allowed
						if d == Egress {
							want = v.Egress.Allowed
						}
						if is := slices.ContainsFunc(got, func(r PortRange) bool {
							return r.Protocol == f.Protocol && r.From <= f.Port && f.Port <= r.To
						}); is != want {
							t.Fatalf("seed %d: %s to %s, %s, %s: %v in %v, want %v", seed, f.Src, f.Dst, d, f.portString(), is, got, want)
						}
					}
				}
			}
		}
	}
}

func TestGuard(t *testing.T) {
	c := place(
		policyFor("a/db", "app=db", []model.PolicyRule{
			allowing(fromBlock("10.0.0.0/8", "10.1.0.0/16"), model.PolicyPort{Protocol: model.TCP, Port: 1, EndPort: 65535}),
			allowing(fromBlock("192.0.2.0/24"), tcp(80), tcp(81)),
			allowing(fromPods("app=web")),
		}, nil))
	web, db := c.Pod(named("a/web")), c.Pod(named("a/db"))
	if !c.Guard(web, Ingress).Open() || !c.Guard(db, Egress).Open() {
		t.Error("nothing isolates these")
	}
	g := c.Guard(db, Ingress)
	if got := fmt.Sprint(g.Blocks()); got != "[10.0.0.0/8 10.1.0.0/16 192.0.2.0/24]" {
		t.Errorf("blocks %s", got)
	}
	for from, want := range map[string]string{
		"10.9.9.9": "[{TCP 1 65535 }]", "10.1.9.9": "[]", "192.0.2.9": "[{TCP 80 81 }]", "203.0.113.1": "[]", "10.0.0.1": fmt.Sprint(EveryPort()),
	} {
		if got := fmt.Sprint(g.Admitted(c.EndpointOf(netip.MustParseAddr(from)), c.EndpointOf(db.IPs[0]))); got != want {
			t.Errorf("from %s: %s, want %s", from, got, want)
		}
	}
}

// A remedy for every port of a protocol, or for all that an address is an example of, says just that.
func TestRemedyOfMany(t *testing.T) {
	c := place(policyFor("a/db", "app=db", []model.PolicyRule{}, nil))
	db := Endpoint{Pod: c.Pod(named("a/db")), Addr: netip.MustParseAddr("10.0.0.2")}
	f := &Flow{Src: Endpoint{Addr: netip.MustParseAddr("203.0.113.77"), Block: netip.MustParsePrefix("0.0.0.0/0")}, Dst: db, Protocol: model.TCP}
	v := c.Evaluate(f)
	const why = "pod a/db is isolated for ingress by NetworkPolicy a/db, and it has no rule for every TCP port from outside"
	if v.Ingress.Why != why {
		t.Errorf("%q", v.Ingress.Why)
	}
	if r := c.Remedy(&v.Ingress, f); r == nil || r.YAML != "- from:\n  - ipBlock: {cidr: 0.0.0.0/0}\n  ports:\n  - {protocol: TCP}" {
		t.Errorf("%+v", r)
	}
	f.Src.Names, f.Src.Block = []string{"example.com"}, netip.MustParsePrefix("10.0.0.0/8")
	if r := c.Remedy(&v.Ingress, f); r == nil || r.YAML != "- from:\n  - ipBlock: {cidr: <the address of example.com>}\n  ports:\n  - {protocol: TCP}" {
		t.Errorf("%+v", r)
	}
}
