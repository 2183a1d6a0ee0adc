// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// PrimaryNodePorts are a node's primary addresses as ranges for node ports: the first InternalIP of each family. A family
// of which the node has none, or none that is known yet (n may be nil), has its loopback address: not to have any would
// mean all.
func PrimaryNodePorts(n *model.Node) []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
	if n == nil {
		return out
	}
	for i, f := range []model.Family{model.IPv4, model.IPv6} {
		if j := slices.IndexFunc(n.InternalIPs, func(a netip.Addr) bool { return model.FamilyOf(a) == f }); j >= 0 {
			out[i] = netip.PrefixFrom(n.InternalIPs[j], n.InternalIPs[j].BitLen())
		}
	}
	return out
}

// LimitNodePorts has the explanation say where a node's node ports are if its agent works with that Scope. Those that are
// on none of the addresses that the node's status has, nor on loopback, are no frontends; Closed says so.
func (e *Explanation) LimitNodePorts(scope Scope, n *model.Node) {
	var addresses []netip.Addr
	if n != nil {
		addresses = nodeOf(n).Addresses
	}
	if scope.LoopbackNodePorts {
		addresses = append(slices.Clone(addresses), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	}
	var open []FrontendReport
	for _, r := range e.Frontends {
		var ranges []string
		has := false
		for _, p := range scope.NodePorts {
			if r.Kind == NodePort && model.FamilyOf(p.Addr()) == r.Frontend.Family() {
				ranges = append(ranges, p.String())
				has = has || slices.ContainsFunc(addresses, p.Contains)
			}
		}
		switch where := strings.Join(ranges, ", "); {
		case len(ranges) > 0 && !has:
			e.Closed = append(e.Closed, fmt.Sprintf("%s %s: none of the node's addresses is in %s, where its agent has node ports (--nodeport-addresses)",
				r.Kind, r.Frontend, where))
			continue
		case len(ranges) > 0 && r.LostTo.Name == "":
			r.Text += "; on the node's addresses in " + where + " only"
		}
		open = append(open, r)
	}
	e.Frontends = open
}
