// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// kinds of endpoints: every mixture of conditions, place and hints that the API can express.
var conditions = []struct {
	name                        string
	ready, serving, terminating bool
}{
	{"ready", true, true, false},
	{"published while terminating", true, true, true}, // publishNotReadyAddresses
	{"unready", false, false, false},
	{"draining", false, true, true},
	{"dead", false, false, true},
	{"serving, unready", false, true, false},
}

var here = Node{Name: "n1", Zone: "east"}

// oracle is KEP-1669, KEP-2086 and the hints' rules written down as the KEPs do, one sentence after the other, over
// endpoints as a whole. It shares no code with choose.
func oracle(eps []model.Endpoint, local bool) (used []string, action Action) {
	select_ := func(ok func(model.Endpoint) bool) (out []model.Endpoint) {
		for _, e := range eps {
			if ok(e) {
				out = append(out, e)
			}
		}
		return out
	}
	names := func(eps []model.Endpoint) (out []string) {
		for _, e := range eps {
			out = append(out, e.Addresses[0].String())
		}
		slices.Sort(out)
		return out
	}
	isLocal := func(e model.Endpoint) bool { return e.Node == "n1" }
	ready := select_(func(e model.Endpoint) bool { return e.Ready })
	draining := select_(func(e model.Endpoint) bool { return !e.Ready && e.Serving && e.Terminating })
	if len(ready) == 0 && len(draining) == 0 {
		return nil, Reject
	}
	if local {
		if here := names(select_(func(e model.Endpoint) bool { return e.Ready && isLocal(e) })); here != nil {
			return here, Forward
		}
		if here := names(select_(func(e model.Endpoint) bool { return !e.Ready && e.Serving && e.Terminating && isLocal(e) })); here != nil {
			return here, Forward
		}
		return nil, Drop
	}
	if len(ready) == 0 {
		return names(draining), Forward
	}
	hinted := func(hints func(model.Endpoint) []string, me string) []string {
		var mine []model.Endpoint
		for _, e := range ready {
			if len(hints(e)) == 0 {
				return nil
			}
			if slices.Contains(hints(e), me) {
				mine = append(mine, e)
			}
		}
		return names(mine)
	}
	if n := hinted(func(e model.Endpoint) []string { return e.HintNodes }, "n1"); n != nil {
		return n, Forward
	}
	if n := hinted(func(e model.Endpoint) []string { return e.HintZones }, "east"); n != nil {
		return n, Forward
	}
	return names(ready), Forward
}

// everyEndpoint is every kind of endpoint.
func everyEndpoint() []model.Endpoint {
	var out []model.Endpoint
	for _, c := range conditions {
		for _, node := range []string{"n1", "n2", ""} {
			for _, zones := range [][]string{nil, {"east"}, {"west"}} {
				for _, nodes := range [][]string{nil, {"n1"}, {"n2"}} {
					out = append(out, model.Endpoint{Ready: c.ready, Serving: c.serving, Terminating: c.terminating,
						Node: node, Zone: "z", HintZones: zones, HintNodes: nodes})
				}
			}
		}
	}
	return out
}

// TestChooseEveryPair walks every pair of endpoints of any kinds, and each alone, under either policy.
func TestChooseEveryPair(t *testing.T) {
	all := everyEndpoint()
	check := func(eps ...model.Endpoint) {
		cands := make([]candidate, len(eps))
		for i := range eps {
			eps[i].Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}
			cands[i] = candidate{netip.AddrPortFrom(eps[i].Addresses[0], 80), &eps[i]}
		}
		c := choose(cands, &here)
		for _, local := range []bool{false, true} {
			pool := c.cluster
			if local {
				pool = c.local
			}
			var got []string
			for _, ep := range pool.Endpoints {
				got = append(got, ep.Addr().String())
			}
			want, action := oracle(eps, local)
			if pool.Action != action || !slices.Equal(got, want) {
				t.Errorf("local %v: %v of %+v, want %v %v", local, pool, eps, action, want)
			}
			for i := range cands {
				why := c.reason(cands[i], &here, local)
				if used := slices.Contains(pool.Endpoints, cands[i].addr); used != (why == "") {
					t.Errorf("local %v: %s is used: %v, but the reason against it is %q, among %+v", local, cands[i].addr, used, why, eps)
				}
			}
		}
	}
	check()
	for _, a := range all {
		check(a)
		for _, b := range all {
			check(a, b)
			if t.Failed() {
				return
			}
		}
	}
}

// TestChooseTriples walks three endpoints of the kinds that matter to one another.
func TestChooseTriples(t *testing.T) {
	var some []model.Endpoint
	for _, e := range everyEndpoint() {
		if (e.HintNodes == nil || e.HintZones != nil) && e.Node != "" && (e.Ready || e.HintZones == nil) {
			some = append(some, e)
		}
	}
	for _, a := range some {
		for _, b := range some {
			for _, c := range some {
				eps := []model.Endpoint{a, b, c}
				var cands []candidate
				for i := range eps {
					eps[i].Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}
					cands = append(cands, candidate{netip.AddrPortFrom(eps[i].Addresses[0], 80), &eps[i]})
				}
				got := choose(cands, &here)
				for _, local := range []bool{false, true} {
					pool := got.cluster
					if local {
						pool = got.local
					}
					want, action := oracle(eps, local)
					if pool.Action != action || fmt.Sprint(want) != fmt.Sprint(hosts(pool)) {
						t.Fatalf("local %v: %v of %+v, want %v %v", local, pool, eps, action, want)
					}
				}
			}
		}
	}
}

func hosts(p Pool) (out []string) {
	for _, ep := range p.Endpoints {
		out = append(out, ep.Addr().String())
	}
	return out
}

// TestCandidates: which endpoints belong to a Service port at all.
func TestCandidates(t *testing.T) {
	ep := func(a string, ready bool) model.Endpoint {
		return model.Endpoint{Addresses: []netip.Addr{netip.MustParseAddr(a), netip.MustParseAddr("9.9.9.9")}, Ready: ready, Serving: ready}
	}
	slice := func(f model.Family, ports []model.EndpointPort, eps ...model.Endpoint) *model.EndpointSlice {
		return &model.EndpointSlice{Family: f, Ports: ports, Endpoints: eps}
	}
	web := []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}
	fqdn := slice(model.IPv4, web, ep("1.1.1.9", true))
	fqdn.FQDN = true
	eps := []*model.EndpointSlice{
		slice(model.IPv4, web, ep("1.1.1.2", true), ep("1.1.1.1", false)),
		slice(model.IPv4, web, ep("1.1.1.1", true)), // the same endpoint, moving from the slice above
		slice(model.IPv6, web, ep("fd00::1", true)),
		slice(model.IPv4, []model.EndpointPort{{Name: "web", Protocol: model.UDP, Port: 1}}, ep("1.1.1.3", true)),
		slice(model.IPv4, []model.EndpointPort{{Name: "other", Protocol: model.TCP, Port: 1}}, ep("1.1.1.4", true)),
		slice(model.IPv4, []model.EndpointPort{{Name: "web", Protocol: model.TCP}}, ep("1.1.1.5", true)), // all ports
		slice(model.IPv4, []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 9090}}, ep("1.1.1.6", true)),
		slice(model.IPv4, web, model.Endpoint{Ready: true}),
		fqdn,
	}
	var got []string
	for _, c := range candidates(nil, eps, model.IPv4, "web", model.TCP) {
		got = append(got, fmt.Sprint(c.addr, " ", c.ep.Ready))
	}
	if want := []string{"1.1.1.1:8080 true", "1.1.1.2:8080 true", "1.1.1.6:9090 true"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
