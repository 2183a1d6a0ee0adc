// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// routes lists the node's routes to other nodes' pods, sorted by nothing, as "DST via GATEWAY dev LINK".
func (nd *node) routes() map[string]string {
	nd.t.Helper()
	m := make(map[string]string)
	nd.run(func() error {
		for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
			rs, err := netlink.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			for _, r := range rs {
				d, _ := prefixOf(r.Dst)
				if r.Type == unix.RTN_UNREACHABLE {
					m[d.String()] = "unreachable"
					continue
				}
				l, err := netlink.LinkByIndex(r.LinkIndex)
				if isNoLink(err) {
					continue // the agent has just removed it
				}
				if err != nil {
					return err
				}
				if r.Gw != nil {
					m[d.String()] = fmt.Sprintf("%s %s", r.Gw, l.Attrs().Name)
				} else if r.Via != nil {
					m[d.String()] = fmt.Sprintf("%s %s", r.Via, l.Attrs().Name)
				}
			}
		}
		return nil
	})
	return m
}

func (nd *node) hasRoutes(want map[string]string) {
	nd.t.Helper()
	if got := nd.routes(); fmt.Sprint(got) != fmt.Sprint(want) {
		nd.t.Errorf("routes\n%v\nwant\n%v", got, want)
	}
}

// TestNodesComeAndGo follows the routes of one node while others come, move, and vanish.
func TestNodesComeAndGo(t *testing.T) {
	a, b, _ := sharedLink(t)
	own := map[string]string{"10.244.1.0/24": "unreachable", "fd00:10:244:1::/64": "unreachable"}
	with := func(more ...string) map[string]string {
		m := make(map[string]string)
		for k, v := range own {
			m[k] = v
		}
		for _, kv := range more {
			k, v, _ := strings.Cut(kv, " ")
			m[k] = v
		}
		return m
	}
	update := func(complete bool, nodes map[string]*model.Node) {
		t.Helper()
		if err := a.n.Update(t.Context(), &model.Delta{Complete: complete, Nodes: nodes}); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	// What an agent of before has left of a node that is gone since.
	a.run(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.244.77.0/24")), Gw: netip.MustParseAddr("192.0.2.77").AsSlice(), Protocol: routeProtocol, Priority: routeMetric})
	})
	update(false, map[string]*model.Node{"n1": a.obj})
	a.hasRoutes(map[string]string{"10.244.77.0/24": "192.0.2.77 eth0"}) // absence means nothing yet
	if err := a.n.Status(); err == nil {
		t.Error("ready before the first full picture")
	}
	update(true, nil)
	a.hasRoutes(with())
	if err := a.n.Status(); err != nil {
		t.Error(err)
	}
	near := with("10.244.2.0/24 192.0.2.2 eth0", "fd00:10:244:2::/64 2001:db8::2 eth0")
	update(false, map[string]*model.Node{"n2": b.obj})
	a.hasRoutes(near)

	// It moves off the shared link.
	away := *b.obj
	away.InternalIPs = addrs("198.51.100.2", "2001:db8:77::2")
	update(false, map[string]*model.Node{"n2": &away})
	far := with("10.244.2.0/24 198.51.100.2 vxlan-weft4", "fd00:10:244:2::/64 fe80::85a:c6ff:fe33:6402 vxlan-weft4")
	a.hasRoutes(far)
	// Another one beside it, of IPv6 alone.
	v6 := nodeObject("n3", addrs("2001:db8:78::3"), prefixes("10.244.3.0/24"))
	update(false, map[string]*model.Node{"n3": v6})
	far["10.244.3.0/24"] = "Family: 10, Address: " + tunnelNextHop(&tunnelPeer{family: model.IPv6, mac: tunnelMAC(v6.InternalIPs[0])}, model.IPv4).String() + " vxlan-weft6"
	a.hasRoutes(far)
	// An agent that starts now finds all this in place and changes nothing.
	before := a.routes()
	a.stop()
	a.start()
	update(true, map[string]*model.Node{"n1": a.obj, "n2": &away, "n3": v6})
	a.hasRoutes(before)

	update(false, map[string]*model.Node{"n3": nil})
	delete(far, "10.244.3.0/24")
	a.hasRoutes(far)
	// And back; its tunnel goes.
	moved := *b.obj
	moved.PodCIDRs = prefixes("10.250.0.0/24", "fd00:10:250::/64")
	update(false, map[string]*model.Node{"n2": &moved})
	a.hasRoutes(with("10.250.0.0/24 192.0.2.2 eth0", "fd00:10:250::/64 2001:db8::2 eth0"))
	a.run(func() error {
		for _, name := range []string{"vxlan-weft4", "vxlan-weft6"} {
			if _, err := netlink.LinkByName(name); !isNoLink(err) {
				t.Errorf("tunnel %s is left (%v)", name, err)
			}
		}
		return nil
	})
	update(false, map[string]*model.Node{"n2": nil})
	a.hasRoutes(with())
}

// TestLinkBecomesShared gives two nodes a common link after the fact: the kernel's news alone moves the route.
func TestLinkBecomesShared(t *testing.T) {
	a, b, _ := sharedLink(t)
	b.obj.InternalIPs = addrs("198.51.100.2")
	b.obj.PodCIDRs = b.obj.PodCIDRs[:1]
	a.start()
	a.tell(a, b)
	if got := a.routes()["10.244.2.0/24"]; got != "198.51.100.2 vxlan-weft4" {
		t.Fatalf("route %q", got)
	}
	a.run(func() error { return configure("eth0", "198.51.100.1/24") })
	eventually(t, "direct route", func() error {
		if got := a.routes()["10.244.2.0/24"]; got != "198.51.100.2 eth0" {
			return fmt.Errorf("route %q", got)
		}
		return nil
	})
}

// TestAlwaysTunnel sends pods' packets through the tunnel over a link that is shared.
func TestAlwaysTunnel(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.cfg.AlwaysTunnel, b.cfg.AlwaysTunnel = true, true
	a.start()
	b.start()
	a.tell(a, b)
	b.tell(a, b)
	p, q := a.pod("p"), b.pod("q")
	for _, f := range both {
		p.sees("tcp", q.ip(f), 80, p.ip(f))
		p.sees("tcp", b.ip(f), 8080, a.ip(f)) // under an address that such a network lets through
		a.sees("tcp", q.ip(f), 80, model.TunnelAddr(a.obj.PodCIDRs[f/6]))
	}
	for dst, via := range a.routes() {
		if via != "unreachable" && !strings.HasSuffix(via, "vxlan-weft4") {
			t.Errorf("%s via %s", dst, via)
		}
	}
}

// TestMixedFamilies connects pods where pods and nodes differ in families.
func TestMixedFamilies(t *testing.T) {
	for _, c := range []struct {
		name        string
		nodes, pods []model.Family
	}{
		{"IPv4 alone", both[:1], both[:1]},
		{"IPv6 alone", both[1:], both[1:]},
		{"IPv4 pods over IPv6 nodes", both[1:], both[:1]},
		{"IPv6 pods over IPv4 nodes", both[:1], both[1:]},
		{"dual pods over IPv6 nodes", both[1:], both},
	} {
		for name, build := range map[string]func(testing.TB) (*node, *node, *space){"shared link": sharedLink, "routed links": routedLinks} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				a, b, _ := build(t)
				for _, nd := range []*node{a, b} {
					var ips []netip.Addr
					for _, f := range c.nodes {
						ips = append(ips, nd.ip(f))
					}
					var cidrs []netip.Prefix
					for _, f := range c.pods {
						cidrs = append(cidrs, nd.obj.PodCIDRs[f/6])
					}
					nd.obj.InternalIPs, nd.obj.PodCIDRs = ips, cidrs
				}
				a.start()
				b.start()
				a.tell(a, b)
				b.tell(a, b)
				p, q, r := a.pod("p"), b.pod("q"), a.pod("r")
				if len(p.ips) != len(c.pods) {
					t.Fatalf("the pod has %v", p.ips)
				}
				for _, f := range c.pods {
					p.sees("tcp", q.ip(f), 80, p.ip(f))
					q.sees("udp", p.ip(f), 80, q.ip(f))
					p.sees("tcp", r.ip(f), 80, p.ip(f))
					if err := transfer(p.space, q.space, q.ip(f), 1<<20); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// TestOwnNodeChanges gives the node other podCIDRs and another address: pods of before keep theirs and work, and
// what the node sends to them comes from its new address.
func TestOwnNodeChanges(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	empty := *a.obj
	empty.PodCIDRs = nil
	if err := a.n.Update(t.Context(), &model.Delta{Complete: true, Nodes: map[string]*model.Node{"n1": &empty}}); err != nil {
		t.Fatal(err)
	}
	if err := a.n.Status(); err == nil || !strings.Contains(err.Error(), "spec.podCIDRs is empty") {
		t.Errorf("status without podCIDRs: %v", err)
	}
	a.tell(a, b)
	p := a.pod("p")
	moved := *a.obj
	moved.PodCIDRs = prefixes("10.251.0.0/24", "fd00:10:251::/64")
	moved.InternalIPs = addrs("192.0.2.61", "2001:db8::61")
	a.run(func() error { return configure("eth0", "192.0.2.61/24", "2001:db8::61/64") })
	if err := a.n.Update(t.Context(), &model.Delta{Nodes: map[string]*model.Node{"n1": &moved}}); err != nil {
		t.Fatal(err)
	}
	q := a.pod("q")
	for _, f := range both {
		if !moved.PodCIDRs[f/6].Contains(q.ip(f)) {
			t.Errorf("a new pod has %s, not of %s", q.ip(f), moved.PodCIDRs[f/6])
		}
		p.sees("tcp", q.ip(f), 80, p.ip(f))
		q.sees("tcp", p.ip(f), 80, q.ip(f))
		eventually(t, "the node's new address", func() error {
			if got, err := a.ask("tcp", p.ip(f), 80); err != nil || got != firstOf(moved.InternalIPs, f) {
				return fmt.Errorf("the pod sees the node as %v (%v)", got, err)
			}
			return nil
		})
	}
	// The Node object is deleted and comes back.
	if err := errors.Join(a.n.Update(t.Context(), &model.Delta{Nodes: map[string]*model.Node{"n1": nil}}), a.n.Status()); err == nil {
		t.Error("ready without a Node object")
	}
	a.obj = &moved
	a.tell(a)
	if err := a.n.Status(); err != nil {
		t.Error(err)
	}
}

// TestUnreachable sees that a connection to an address that no pod has is refused, not left to time out. On one
// machine the kernel may drop the refusal while connect still holds the socket, and then hears it a second later,
// when it sends again.
func TestUnreachable(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	b.start()
	a.tell(a, b)
	b.tell(a, b)
	p, far := a.pod("p"), b.pod("far")
	gone := b.pod("gone")
	if err := b.n.Del(gone.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	for _, f := range both {
		for _, from := range []*pod{p, far} {
			began := time.Now()
			_, err := from.askFor(patience, "tcp", gone.ip(f), 80)
			if took := time.Since(began); took > patience/2 || !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%s to %s, which no pod has: %v after %v, want a refusal", from.name, gone.ip(f), err, took)
			}
		}
	}
}

// TestGoneEndsTCP: who has a TCP connection to a pod that is no more, and that could not say goodbye, learns so at once.
func TestGoneEndsTCP(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	b.start()
	a.tell(a, b)
	b.tell(a, b)
	p, far, stays, gone := b.pod("p"), a.pod("far"), b.pod("stays"), b.pod("gone")
	type connection struct {
		net.Conn
		from *pod
		to   netip.Addr
		ends bool
	}
	exchange := func(c connection) error {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 100))
		return err
	}
	var all []connection
	for _, f := range both {
		for _, from := range []*pod{p, far} {
			for _, to := range []*pod{gone, stays} {
				c := connection{from: from, to: to.ip(f), ends: to == gone}
				from.run(func() (err error) {
					c.Conn, err = net.Dial("tcp", netip.AddrPortFrom(c.to, 80).String())
					return err
				})
				defer func() { _ = c.Close() }()
				if err := exchange(c); err != nil {
					t.Fatalf("%s to %s: %v", from.name, c.to, err)
				}
				all = append(all, c)
			}
		}
	}
	if err := b.n.Del(gone.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if err := exchange(c); errors.Is(err, unix.ECONNRESET) != c.ends || !c.ends && err != nil {
			t.Errorf("%s to %s, after a pod went: %v; want a reset: %v", c.from.name, c.to, err, c.ends)
		}
	}
}

// TestManyNodes measures the work of one more node among many.
func TestManyNodes(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.start()
	const many = 1000
	nodes := map[string]*model.Node{"n1": a.obj}
	mk := func(i int) *model.Node {
		return nodeObject(fmt.Sprint("m", i), []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
			[]netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", i+1))})
	}
	for i := range many {
		nodes[fmt.Sprint("m", i)] = mk(i)
	}
	began := time.Now()
	if err := a.n.Update(t.Context(), &model.Delta{Complete: true, Nodes: nodes}); err != nil {
		t.Fatal(err)
	}
	first := time.Since(began)
	if n := len(a.routes()); n != 2*many+2 {
		t.Errorf("%d routes, want %d", n, 2*many+2)
	}
	began = time.Now()
	if err := a.n.Update(t.Context(), &model.Delta{Nodes: map[string]*model.Node{"more": mk(many)}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d nodes at first: %v; one more: %v", many, first, time.Since(began))
	a.stop()
	a.cfg.Registerer = nil
	a.start()
	nodes["more"] = mk(many)
	began = time.Now()
	if err := a.n.Update(t.Context(), &model.Delta{Complete: true, Nodes: nodes}); err != nil {
		t.Fatal(err)
	}
	t.Logf("a restarted agent takes over in %v", time.Since(began))
}
