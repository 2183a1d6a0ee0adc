// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// pair holds something of each family; netip.Addr{} where there is none.
type pair struct{ v4, v6 netip.Addr }

func (p *pair) of(f model.Family) *netip.Addr {
	if f == model.IPv4 {
		return &p.v4
	}
	return &p.v6
}

func (p pair) all() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{p.v4, p.v6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// port is what two Services on one address must not both have.
type port struct {
	protocol model.Protocol
	number   uint16
}

func (p port) String() string { return fmt.Sprintf("%d/%s", p.number, p.protocol) }

// request is what a Service asks for, read from its spec and annotations.
type request struct {
	families []model.Family // wanted, the Service's first family first
	require  bool           // all of them, or none
	addrs    pair           // asked for by address
	pool     string         // asked for by name; "" is any
	share    string         // "" shares with nobody
	backend  string         // Services that share an address must agree on it
	ports    []port
}

func (r *request) equal(o *request) bool {
	return slices.Equal(r.families, o.families) && r.require == o.require && r.addrs == o.addrs && r.pool == o.pool &&
		r.share == o.share && r.backend == o.backend && slices.Equal(r.ports, o.ports)
}

// requestOf reads a Service. With a Problem, addresses that it asks for by number are not in the request.
func requestOf(s *model.Service) (request, Problem) {
	r := request{
		families: s.Families,
		require:  s.RequireDualStack,
		pool:     strings.TrimSpace(s.Annotations[PoolAnnotation]),
		share:    strings.TrimSpace(s.Annotations[ShareAnnotation]),
	}
	for _, a := range s.ClusterIPs { // a manifest, or a Service from before dual-stack, has no spec.ipFamilies
		if f := model.FamilyOf(a); len(s.Families) == 0 && !slices.Contains(r.families, f) {
			r.families = append(r.families, f)
		}
	}
	if len(r.families) == 0 {
		r.families = []model.Family{model.IPv4}
	}
	if s.ExternalLocal {
		// An announcing node forwards to its own endpoints only, so Services that share it must have the same ones.
		r.backend = "Local " + model.MatchLabels(s.Selector).String()
	}
	for _, p := range s.Ports {
		r.ports = append(r.ports, port{p.Protocol, p.Port})
	}
	addrs, problem := requestedAddrs(s, r.families)
	r.addrs = addrs
	return r, problem
}

// requestedAddrs reads the addresses that a Service asks for by number.
func requestedAddrs(s *model.Service, families []model.Family) (pair, Problem) {
	field := "annotation " + RequestAnnotation
	bad := func(format string, args ...any) (pair, Problem) {
		return pair{}, Problem{ReasonBadRequest, field + ": " + fmt.Sprintf(format, args...)}
	}
	var out pair
	for item := range strings.SplitSeq(s.Annotations[RequestAnnotation], ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		a, err := netip.ParseAddr(item)
		if err != nil || a.Zone() != "" {
			return bad("%q is not an IP address: write an address, or one of each family with a comma between", item)
		}
		a = a.Unmap()
		slot := out.of(model.FamilyOf(a))
		if slot.IsValid() {
			return bad("asks for %s and %s: a Service gets one address of each family", *slot, a)
		}
		*slot = a
	}
	if text := s.LoadBalancer.UnreadableIP; text != "" {
		field = "spec.loadBalancerIP"
		return bad("%q is not an IP address: write one of an AddressPool, or leave it out", text)
	}
	if ip := s.LoadBalancer.RequestedIP; ip.IsValid() {
		switch {
		case out == pair{}:
			field = "spec.loadBalancerIP"
			*out.of(model.FamilyOf(ip)) = ip
		case *out.of(model.FamilyOf(ip)) != ip:
			return bad("says other than spec.loadBalancerIP %s: remove one of them", ip)
		}
	}
	for _, a := range out.all() {
		if !slices.Contains(families, model.FamilyOf(a)) {
			return bad("asks for %s, but the Service's spec.ipFamilies has no %s: ask for an address of its families, or change ipFamilyPolicy",
				a, model.FamilyOf(a))
		}
	}
	return out, Problem{}
}
