// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

func nodeObject(name string, ips []netip.Addr, cidrs []netip.Prefix) *model.Node {
	return &model.Node{Meta: model.Meta{Name: model.Name{Name: name}}, InternalIPs: ips, PodCIDRs: cidrs}
}

// onLinks is a lookup for a node that has links 1, 2, ... on these prefixes.
func onLinks(links ...string) func(netip.Addr) underlay {
	return func(a netip.Addr) underlay {
		for i, p := range prefixes(links...) {
			if p.Contains(a) {
				return underlay{onLink: true, link: i + 1}
			}
		}
		return underlay{}
	}
}

func routeString(r nodeRoute) string {
	switch {
	case r.unreachable:
		return fmt.Sprintf("%s unreachable", r.dst)
	case r.tunnel != 0:
		return fmt.Sprintf("%s via %s tunnel %s src %s", r.dst, r.via, r.tunnel, r.src)
	}
	return fmt.Sprintf("%s via %s link %d src %s", r.dst, r.via, r.link, r.src)
}

func TestPlanNode(t *testing.T) {
	self := nodeObject("self", addrs("192.0.2.1", "2001:db8::1"), prefixes("10.244.1.0/24", "fd00:1::/64"))
	for _, c := range []struct {
		name    string
		self    *model.Node
		remote  *model.Node
		links   []string
		routes  []string
		tunnel  string
		cluster []netip.Prefix
		err     string
	}{{
		name:    "a shared link in both families",
		remote:  nodeObject("b", addrs("192.0.2.2", "2001:db8::2"), prefixes("10.244.2.0/24", "fd00:2::/64")),
		links:   []string{"192.0.2.0/24", "2001:db8::/64"},
		routes:  []string{"10.244.2.0/24 via 192.0.2.2 link 1 src 192.0.2.1", "fd00:2::/64 via 2001:db8::2 link 2 src 2001:db8::1"},
		cluster: prefixes("192.0.2.2/32", "2001:db8::2/128", "10.244.2.0/24", "fd00:2::/64"),
	}, {
		name:    "no shared link: both families through the IPv4 tunnel, its addresses are not the pods' own",
		remote:  nodeObject("b", addrs("198.51.100.2", "2001:db8:1::2"), prefixes("10.244.2.0/24", "fd00:2::/64")),
		links:   []string{"192.0.2.0/24", "2001:db8::/64"},
		routes:  []string{"10.244.2.0/24 via 198.51.100.2 tunnel IPv4 src 10.244.1.0", "fd00:2::/64 via fe80::85a:c6ff:fe33:6402 tunnel IPv4 src fd00:1::"},
		tunnel:  "198.51.100.2 0a:5a:c6:33:64:02",
		cluster: prefixes("10.244.2.0/24", "fd00:2::/64"),
	}, {
		name:    "one family on a shared link",
		remote:  nodeObject("b", addrs("198.51.100.2", "2001:db8::2"), prefixes("10.244.2.0/24", "fd00:2::/64")),
		links:   []string{"192.0.2.0/24", "2001:db8::/64"},
		routes:  []string{"10.244.2.0/24 via 198.51.100.2 tunnel IPv4 src 10.244.1.0", "fd00:2::/64 via 2001:db8::2 link 2 src 2001:db8::1"},
		tunnel:  "198.51.100.2 0a:5a:c6:33:64:02",
		cluster: prefixes("2001:db8::2/128", "10.244.2.0/24", "fd00:2::/64"),
	}, {
		name:    "IPv6 pods on nodes that know each other by IPv4 alone",
		remote:  nodeObject("b", addrs("192.0.2.2"), prefixes("10.244.2.0/24", "fd00:2::/64")),
		links:   []string{"192.0.2.0/24"},
		routes:  []string{"10.244.2.0/24 via 192.0.2.2 link 1 src 192.0.2.1", "fd00:2::/64 via fe80::85a:c0ff:fe00:202 tunnel IPv4 src fd00:1::"},
		tunnel:  "192.0.2.2 0a:5a:c0:00:02:02",
		cluster: prefixes("192.0.2.2/32", "10.244.2.0/24", "fd00:2::/64"),
	}, {
		name:    "a node of IPv6 alone takes IPv4 pods through an IPv6 tunnel",
		remote:  nodeObject("b", addrs("2001:db8:1::2"), prefixes("10.244.2.0/24")),
		routes:  []string{"10.244.2.0/24 via fe80::c05:9cff:fe93:9a7f tunnel IPv6 src 10.244.1.0"},
		tunnel:  "2001:db8:1::2 0e:05:9c:93:9a:7f",
		cluster: prefixes("10.244.2.0/24"),
	}, {
		name:    "several podCIDRs of one family",
		remote:  nodeObject("b", addrs("192.0.2.2"), prefixes("10.244.2.0/24", "10.250.0.0/16")),
		links:   []string{"192.0.2.0/24"},
		routes:  []string{"10.244.2.0/24 via 192.0.2.2 link 1 src 192.0.2.1", "10.250.0.0/16 via 192.0.2.2 link 1 src 192.0.2.1"},
		cluster: prefixes("192.0.2.2/32", "10.244.2.0/24", "10.250.0.0/16"),
	}, {
		name:    "of several addresses, the one on a shared link",
		remote:  nodeObject("b", addrs("198.51.100.2", "192.0.2.2"), prefixes("10.244.2.0/24")),
		links:   []string{"192.0.2.0/24"},
		routes:  []string{"10.244.2.0/24 via 192.0.2.2 link 1 src 192.0.2.1"},
		cluster: prefixes("192.0.2.2/32", "10.244.2.0/24"),
	}, {
		name:    "an IPv4-mapped address is IPv4",
		remote:  nodeObject("b", addrs("::ffff:192.0.2.2"), prefixes("10.244.2.0/24")),
		links:   []string{"192.0.2.0/24"},
		routes:  []string{"10.244.2.0/24 via 192.0.2.2 link 1 src 192.0.2.1"},
		cluster: prefixes("192.0.2.2/32", "10.244.2.0/24"),
	}, {
		name:    "a node without podCIDRs yet",
		remote:  nodeObject("b", addrs("192.0.2.2"), nil),
		links:   []string{"192.0.2.0/24"},
		cluster: prefixes("192.0.2.2/32"),
	}, {
		name:    "no common family",
		self:    nodeObject("self", addrs("192.0.2.1"), prefixes("10.244.1.0/24")),
		remote:  nodeObject("b", addrs("2001:db8::2"), prefixes("10.244.2.0/24")),
		cluster: prefixes("10.244.2.0/24"),
		err:     "node b: no way to its pods 10.244.2.0/24: none of its InternalIPs [2001:db8::2]",
	}, {
		name:    "a node without addresses",
		remote:  nodeObject("b", nil, prefixes("10.244.2.0/24")),
		cluster: prefixes("10.244.2.0/24"),
		err:     "node b: no way to its pods",
	}} {
		t.Run(c.name, func(t *testing.T) {
			if c.self == nil {
				c.self = self
			}
			p, err := planNode(c.self, c.remote, onLinks(c.links...))
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.HasPrefix(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			var routes []string
			for _, r := range p.routes {
				routes = append(routes, routeString(r))
			}
			if !slices.Equal(routes, c.routes) {
				t.Errorf("routes\n%s\nwant\n%s", strings.Join(routes, "\n"), strings.Join(c.routes, "\n"))
			}
			tunnel := ""
			if p.tunnel != nil {
				tunnel = fmt.Sprint(p.tunnel.remote, " ", p.tunnel.mac)
			}
			if tunnel != c.tunnel {
				t.Errorf("tunnel %q, want %q", tunnel, c.tunnel)
			}
			if !slices.Equal(p.cluster, c.cluster) {
				t.Errorf("cluster %v, want %v", p.cluster, c.cluster)
			}
		})
	}
}

// TestTopologyClaims replaces a node by another with the same podCIDR, in both orders of the news.
func TestTopologyClaims(t *testing.T) {
	dst := netip.MustParsePrefix("10.244.2.0/24")
	topo := newTopology(nil)
	topo.self = nodeObject("self", addrs("192.0.2.1"), prefixes("10.244.1.0/24"))
	lookup := onLinks("192.0.2.0/24")
	old := nodeObject("old", addrs("192.0.2.2"), []netip.Prefix{dst})
	young := nodeObject("a-young", addrs("192.0.2.3"), []netip.Prefix{dst})
	young.Created = 1
	via := func(want string) {
		t.Helper()
		r, ok := topo.route(dst)
		if got := r.via.String(); ok != (want != "") || ok && got != want {
			t.Errorf("route via %s (%v), want %q", got, ok, want)
		}
	}
	via("")
	topo.set("old", old, lookup)
	via("192.0.2.2")
	touched, changed := topo.set("a-young", young, lookup)
	if !slices.Equal(touched, []netip.Prefix{dst}) || !changed {
		t.Errorf("touched %v, %v", touched, changed)
	}
	via("192.0.2.3")
	topo.set("old", nil, lookup)
	via("192.0.2.3")
	if !slices.ContainsFunc(topo.clusterRanges(), func(r addrRange) bool { return r.last == lastAddr(dst) }) {
		t.Errorf("the podCIDR left the cluster with its first node: %v", topo.clusterRanges())
	}
	topo.set("old", old, lookup)
	via("192.0.2.3")
	topo.set("a-young", nil, lookup)
	via("192.0.2.2")
	topo.set("old", nil, lookup)
	via("")
	if len(topo.claims)+len(topo.cluster)+len(topo.plans)+len(topo.nodes) != 0 {
		t.Errorf("something is left: %+v", topo)
	}
	if r, ok := topo.route(topo.self.PodCIDRs[0]); !ok || !r.unreachable {
		t.Errorf("own podCIDR: %+v, %v", r, ok)
	}
}

func TestTunnelMAC(t *testing.T) {
	seen := make(map[string]netip.Addr)
	for _, a := range addrs("192.0.2.1", "192.0.2.2", "10.0.0.1", "2001:db8::1", "2001:db8::2", "fd00::c000:201") {
		m := tunnelMAC(a)
		if m[0]&3 != 2 {
			t.Errorf("%s: %s is not a locally administered unicast address", a, m)
		}
		if o, dup := seen[m.String()]; dup {
			t.Errorf("%s and %s share %s", a, o, m)
		}
		seen[m.String()] = a
	}
}
