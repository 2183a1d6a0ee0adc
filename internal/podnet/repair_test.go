// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// TestRepair breaks, one after the other, all that the agent has made, and sees it come back.
func TestRepair(t *testing.T) {
	a, b, outside := routedLinks(t)
	a.start()
	b.start()
	a.tell(a, b)
	b.tell(a, b)
	p, far := a.pod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80}), b.pod("far")
	works := func() error {
		for _, f := range both {
			for _, c := range []struct {
				from *space
				to   netip.Addr
				port uint16
				want netip.Addr
			}{
				{p.space, far.ip(f), 80, p.ip(f)}, {far.space, p.ip(f), 80, far.ip(f)}, {p.space, firstOf(world, f), 80, a.ip(f)},
				{a.space, p.ip(f), 80, a.ip(f)}, {outside, a.ip(f), 7000, firstOf(addrs("192.0.1.9", "2001:db8:1::9"), f)},
			} {
				if got, err := c.from.ask("tcp", c.to, c.port); err != nil || got != c.want {
					return fmt.Errorf("%s to %s port %d: the server saw %v, want %v (%v)", c.from.name, c.to, c.port, got, c.want, err)
				}
			}
		}
		return a.n.Check(p.req, p.ips, p.netNS)
	}
	eventually(t, "the pod works before anything is broken", works)
	link := func(name string, fn func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return fn(l)
		}
	}
	delRoutes := func(family int) func() error {
		return func() error {
			rs, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
			for _, r := range rs {
				err = errors.Join(err, netlink.RouteDel(&r))
			}
			return err
		}
	}
	delNeighbours := func(name string, families ...int) func() error {
		return link(name, func(l netlink.Link) error {
			for _, f := range families {
				ns, err := netlink.NeighList(l.Attrs().Index, f)
				if err != nil {
					return err
				}
				for _, n := range ns {
					if err := netlink.NeighDel(&n); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	underTable := func(fn func(*nftables.Conn, *nftables.Table)) func() error {
		return func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			fn(c, &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
			return c.Flush()
		}
	}
	for _, c := range []struct {
		name  string
		spoil func() error
	}{
		{"the pod's link is deleted", link(p.link, netlink.LinkDel)},
		{"the pod's link is set down", link(p.link, netlink.LinkSetDown)},
		{"IPv4 routes are deleted", delRoutes(unix.AF_INET)},
		{"IPv6 routes are deleted", delRoutes(unix.AF_INET6)},
		{"the pod's neighbour entries are deleted", delNeighbours(p.link, unix.AF_INET, unix.AF_INET6)},
		{"the tunnel is deleted", link("vxlan-weft4", netlink.LinkDel)},
		{"the tunnel is set down", link("vxlan-weft4", netlink.LinkSetDown)},
		{"the tunnel's neighbour entries are deleted", delNeighbours("vxlan-weft4", unix.AF_INET, unix.AF_INET6)},
		{"the tunnel's forwarding entries are deleted", delNeighbours("vxlan-weft4", unix.AF_BRIDGE)},
		{"the tunnel's addresses are deleted", link("vxlan-weft4", func(l netlink.Link) error {
			as, err := netlink.AddrList(l, unix.AF_UNSPEC)
			for _, a := range as {
				err = errors.Join(err, netlink.AddrDel(l, &a))
			}
			return err
		})},
		{"all tables are flushed", underTable(func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })},
		{"a chain is flushed", underTable(func(c *nftables.Conn, t *nftables.Table) {
			c.FlushChain(&nftables.Chain{Table: t, Name: "outbound"})
		})},
		{"a set is flushed", underTable(func(c *nftables.Conn, t *nftables.Table) {
			c.FlushSet(&nftables.Set{Table: t, Name: "cluster4"})
			c.FlushSet(&nftables.Set{Table: t, Name: "host-ports4"})
			c.FlushSet(&nftables.Set{Table: t, Name: "host-ports6"})
		})},
		{"the node's own link goes down and comes back", link("eth0", func(l netlink.Link) error {
			if err := errors.Join(netlink.LinkSetDown(l), netlink.LinkSetUp(l)); err != nil {
				return err
			}
			v6, err := netlink.ParseAddr("2001:db8:1::1/64") // IPv6 addresses go with a link that goes down
			if err != nil {
				return err
			}
			v6.Flags = unix.IFA_F_NODAD
			return errors.Join(netlink.AddrReplace(l, v6),
				netlink.RouteReplace(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: netip.MustParseAddr("192.0.1.9").AsSlice()}),
				netlink.RouteReplace(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("::/0")), Gw: netip.MustParseAddr("2001:db8:1::9").AsSlice()}))
		})},
	} {
		a.run(func() error {
			if err := c.spoil(); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			return nil
		})
		eventually(t, c.name, works)
	}
	if err := a.holds(1); err != nil {
		t.Error(err)
	}
}

// TestNamespaceGone drops a pod's namespace without a DEL, as when a runtime loses track: its addresses are freed.
func TestNamespaceGone(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.start()
	a.tell(a)
	p := a.newPod("p")
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	if err := a.holds(1); err != nil {
		t.Fatal(err)
	}
	p.close()
	eventually(t, "the addresses are free", func() error { return a.holds(0) })
}

// TestForeign sees that what is not weft's stays as it is, even where it has weft's destinations.
func TestForeign(t *testing.T) {
	a, b, _ := sharedLink(t)
	theirs := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.244.2.0/24")), Gw: netip.MustParseAddr("192.0.2.9").AsSlice(), Priority: 50}
	a.run(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tab := c.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Table: tab, Name: "chain"})
		if err := c.Flush(); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "weft-their-own"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return netlink.RouteAdd(theirs)
	})
	a.start()
	a.tell(a, b)
	p := a.pod("p")
	if err := a.n.Del(p.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	a.tell(a)
	if err := a.n.Update(t.Context(), &model.Delta{Nodes: map[string]*model.Node{"n2": nil}}); err != nil {
		t.Fatal(err)
	}
	a.stop()
	n, err := Open(Config{NodeName: a.name, NetNS: a.path, StateDir: a.cfg.StateDir, Socket: a.cfg.Socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Erase(), n.Close()); err != nil {
		t.Fatal(err)
	}
	a.run(func() error {
		if _, err := netlink.LinkByName("weft-their-own"); err != nil {
			return err
		}
		rs, err := netlink.RouteListFiltered(unix.AF_INET, theirs, netlink.RT_FILTER_DST)
		if err != nil || len(rs) != 1 || rs[0].Priority != 50 {
			return fmt.Errorf("routes %v, %w", rs, err)
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tabs, err := c.ListTables()
		if err != nil || len(tabs) != 1 {
			return fmt.Errorf("tables %v, %w", tabs, err)
		}
		return nil
	})
}

// TestOlderTable starts on a node whose table has another layout, as of an older weft.
func TestOlderTable(t *testing.T) {
	a, b, outside := sharedLink(t)
	a.run(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tab := c.AddTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Table: tab, Name: "outbound"})
		if err := c.AddSet(&nftables.Set{Table: tab, Name: "cluster4", KeyType: nftables.TypeInetService}, nil); err != nil {
			return err
		}
		return c.Flush()
	})
	a.start()
	a.tell(a, b)
	p := a.pod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80})
	for _, f := range both {
		p.sees("tcp", firstOf(world, f), 80, a.ip(f))
		outside.sees("tcp", a.ip(f), 7000, firstOf(addrs("192.0.2.9", "2001:db8::9"), f))
	}
}

// TestOneBadNode has a node in the cluster that no route can lead to: the others are served, and so are pods.
func TestOneBadNode(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	bad := nodeObject("bad", addrs("192.0.2.255"), prefixes("10.244.9.0/24")) // the link's broadcast address
	none := nodeObject("none", nil, prefixes("10.244.10.0/24"))
	err := a.n.Update(t.Context(), &model.Delta{Complete: true, Nodes: map[string]*model.Node{"n1": a.obj, "n2": b.obj, "bad": bad, "none": none}})
	if err == nil || !strings.Contains(err.Error(), "10.244.9.0/24") {
		t.Errorf("error %v, want one about the bad node's route", err)
	}
	if err := a.n.Status(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if via := a.routes()["10.244.2.0/24"]; via != "192.0.2.2 eth0" {
		t.Errorf("route to the good node: %q", via)
	}
	a.pod("p")
}

// TestNodeSysctls sees that becoming a router does not cost a node the default route that it is told of.
func TestNodeSysctls(t *testing.T) {
	s := newSpace(t, "s")
	s.run(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "listens"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		attrs.Name = "ignores"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return errors.Join(setSysctl(sysctl{"ipv6/conf/ignores/accept_ra", "0"}), forwardPackets(), forwardPackets())
	})
	for key, want := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv6/conf/listens/accept_ra": "2", "ipv6/conf/ignores/accept_ra": "0",
	} {
		s.run(func() error {
			out, err := os.ReadFile("/proc/sys/net/" + key)
			if err == nil && string(out) != want+"\n" {
				t.Errorf("%s is %s, want %s", key, out, want)
			}
			return err
		})
	}
}

// TestRepairBackoff has one link's repair fail while news of another keep coming: they are acted on at once, and
// neither they nor news of the link itself hurry what waits.
func TestRepairBackoff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := &Network{log: slog.New(slog.DiscardHandler)}
	p := newPending()
	type try struct {
		link string
		at   time.Time
	}
	tries := make(chan try, 1000)
	done := make(chan error, 1)
	go func() {
		done <- n.act(ctx, p, func(_ context.Context, w news) (failed news, err error) {
			for _, l := range w.links {
				tries <- try{l, time.Now()}
				if l == "bad" {
					failed.links = append(failed.links, l)
					err = errors.New("not now")
				}
			}
			return failed, err
		})
	}()
	p.add(news{links: []string{"bad"}})
	var bad []time.Time
	for len(bad) < 4 {
		select {
		case x := <-tries:
			switch {
			case x.link == "bad":
				bad = append(bad, x.at)
			case len(bad) == 0:
				t.Error("the first news waited")
			}
			p.add(news{links: []string{"good", "bad"}})
		case <-time.After(patience):
			t.Fatalf("%d tries", len(bad))
		}
	}
	for i, least := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		if d := bad[i+1].Sub(bad[i]); d < least {
			t.Errorf("try %d came %v after the one before, sooner than %v", i+2, d, least)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestRepairRetries has a repair fail for a while: it is tried again, and holds up no other.
func TestRepairRetries(t *testing.T) {
	a, b, _ := sharedLink(t)
	var tries atomic.Int32
	var closed atomic.Bool
	a.cfg.Protect = func(_ context.Context, p model.LocalPod) error {
		if closed.Load() && p.Name.Name == "p" {
			tries.Add(1)
			return errors.New("not now")
		}
		return nil
	}
	a.start()
	a.tell(a, b)
	p, q := a.pod("p"), a.pod("q")
	down := func(p *pod) {
		a.run(func() error {
			l, err := netlink.LinkByName(p.link)
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(l)
		})
	}
	closed.Store(true)
	down(p)
	eventually(t, "a second try", func() error {
		if n := tries.Load(); n < 2 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
	down(q)
	eventually(t, "the other pod's repair", func() error { return a.n.Check(q.req, q.ips, q.netNS) })
	if err := a.n.Check(p.req, p.ips, p.netNS); err == nil {
		t.Error("a pod without protection is open")
	}
	closed.Store(false)
	eventually(t, "the pod's repair", func() error { return a.n.Check(p.req, p.ips, p.netNS) })
}
