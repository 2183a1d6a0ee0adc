// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nstest"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// space is a network namespace of a test: a node, a pod, a switch, the world.
type space struct {
	*netNS
	t    testing.TB
	name string
	path string
}

func newSpace(t testing.TB, name string) *space {
	t.Helper()
	type made struct {
		f   *os.File
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ch <- made{f, err}
	}()
	m := <-ch
	nstest.Require(t, m.err)
	s := &space{netNS: &netNS{m.f}, t: t, name: name, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.f.Fd())}
	t.Cleanup(func() { s.close() })
	s.sysctl("ipv6/conf/default/accept_dad", "0") // links made here are ready at once
	s.run(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return s
}

// run runs fn inside and fails the test on error.
func (s *space) run(fn func() error) {
	s.t.Helper()
	if err := s.do(fn); err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
}

func (s *space) sysctl(key, value string) {
	s.t.Helper()
	s.run(func() error { return setSysctl(sysctl{key, value}) })
}

// bridge makes a switch with these addresses.
func (s *space) bridge(name string, addrs ...string) {
	s.t.Helper()
	s.run(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			return err
		}
		return configure(name, addrs...)
	})
}

// plug connects s's link to a bridge of sw.
func (s *space) plug(link string, sw *space, bridge string, addrs ...string) {
	s.t.Helper()
	port := s.name + "-" + link
	s.run(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: port, PeerNamespace: netlink.NsFd(sw.fd())}); err != nil {
			return err
		}
		return configure(link, addrs...)
	})
	sw.run(func() error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(l, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	s.awaitUp(link)
	sw.awaitUp(port)
	sw.awaitUp(bridge)
}

// awaitUp returns when a link can send, which is a moment after both its ends were set up.
func (s *space) awaitUp(link string) {
	s.t.Helper()
	eventually(s.t, s.name+": carrier of "+link, func() (err error) {
		s.run(func() error {
			l, lerr := netlink.LinkByName(link)
			if lerr == nil && l.Attrs().OperState != netlink.OperUp {
				err = fmt.Errorf("its state is %s", l.Attrs().OperState)
			}
			return lerr
		})
		return err
	})
}

func configure(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// via adds routes, each "DST GATEWAY".
func (s *space) via(routes ...string) {
	s.t.Helper()
	s.run(func() error {
		for _, r := range routes {
			dst, gw, _ := strings.Cut(r, " ")
			if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: netip.MustParseAddr(gw).AsSlice()}); err != nil {
				return fmt.Errorf("%s: %w", r, err)
			}
		}
		return nil
	})
}

// echo serves TCP and UDP on a port and answers with the client's address as the server sees it.
func (s *space) echo(port uint16) {
	s.t.Helper()
	s.run(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					from := addrOf(c.RemoteAddr())
					buf := make([]byte, 1)
					for {
						if _, err := c.Read(buf); err != nil {
							return
						}
						if _, err := fmt.Fprintln(c, from); err != nil {
							return
						}
					}
				}()
			}
		}()
		// A socket for each address as well: an answer from a wildcard socket may come from another one.
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		hosts := []string{""}
		for _, a := range addrs {
			if ip := a.(*net.IPNet).IP; ip.IsGlobalUnicast() {
				hosts = append(hosts, ip.String())
			}
		}
		for _, h := range hosts {
			if err := s.echoUDP(net.JoinHostPort(h, fmt.Sprint(port))); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *space) echoUDP(address string) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return err
	}
	s.t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(addrOf(from).String()), from)
		}
	}()
	return nil
}

func addrOf(a net.Addr) netip.Addr {
	ap, _ := netip.ParseAddrPort(a.String())
	return ap.Addr().Unmap()
}

// patience is how long is waited for what must come, on a machine that may have much else to do.
const patience = 20 * time.Second

// gapless is how long a request may take that nothing may hold up but how busy the machine is: what a longer gap in
// forwarding swallows is not made up for by then, as TCP tries again after 1, 3 and 7 seconds.
const gapless = 5 * time.Second

// ask dials and returns what address the server saw. It does not wait long: it is for what is asked again, or may not
// answer.
func (s *space) ask(network string, to netip.Addr, port uint16) (seen netip.Addr, err error) {
	return s.askFor(2*time.Second, network, to, port)
}

func (s *space) askFor(wait time.Duration, network string, to netip.Addr, port uint16) (seen netip.Addr, err error) {
	err = s.do(func() error {
		d := net.Dialer{Timeout: wait}
		c, err := d.Dial(network, netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		if _, err := c.Write([]byte{'?'}); err != nil {
			return err
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		seen, err = netip.ParseAddr(strings.TrimSpace(string(buf[:n])))
		return err
	})
	return seen, err
}

// sees asks and compares.
func (s *space) sees(network string, to netip.Addr, port uint16, want netip.Addr) {
	s.t.Helper()
	got, err := s.askFor(patience, network, to, port)
	if err != nil {
		s.t.Errorf("%s: %s to %s port %d: %v", s.name, network, to, port, err)
	} else if got != want {
		s.t.Errorf("%s: %s to %s port %d: the server saw %s, want %s", s.name, network, to, port, got, want)
	}
}

// node is a space with an agent.
type node struct {
	*space
	n    *Network
	cfg  Config
	obj  *model.Node
	stop func()

	plugin string // the binary to run as the CNI plugin; "": none, in this process
}

// newNode makes a node's space and Node object; start starts its agent.
func newNode(t testing.TB, name string, ips, cidrs []string) *node {
	dir := t.TempDir()
	nd := &node{space: newSpace(t, name), obj: &model.Node{Meta: model.Meta{Name: model.Name{Name: name}}}}
	for _, ip := range ips {
		nd.obj.InternalIPs = append(nd.obj.InternalIPs, netip.MustParsePrefix(ip).Addr())
	}
	for _, c := range cidrs {
		nd.obj.PodCIDRs = append(nd.obj.PodCIDRs, netip.MustParsePrefix(c))
	}
	nd.cfg = Config{
		NodeName: name, NetNS: nd.path, StateDir: filepath.Join(dir, "podnet"), Socket: filepath.Join(dir, "cni.sock"),
		Registerer: prometheus.NewRegistry(), Log: testLog(t),
	}
	return nd
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (nd *node) start() {
	nd.t.Helper()
	n, err := Open(nd.cfg)
	if err != nil {
		nd.t.Fatal(err)
	}
	nd.n = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- n.Run(ctx) }()
	go func() { done <- n.Serve(ctx) }()
	stopped := false
	nd.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-done, <-done, n.Close()); err != nil {
			nd.t.Errorf("%s: %v", nd.name, err)
		}
	}
	nd.t.Cleanup(nd.stop)
}

// tell updates a node's agent with the Node objects, all there are.
func (nd *node) tell(nodes ...*node) {
	nd.t.Helper()
	d := &model.Delta{Complete: true, Nodes: make(map[string]*model.Node)}
	for _, o := range nodes {
		d.Nodes[o.name] = o.obj
	}
	if err := nd.n.Update(context.Background(), d); err != nil {
		nd.t.Fatalf("%s: %v", nd.name, err)
	}
}

func (nd *node) ip(f model.Family) netip.Addr { return firstOf(nd.obj.InternalIPs, f) }

// pod is a pod's space.
type pod struct {
	*space
	node *node
	req  Request
	ips  []netip.Addr
	link string
}

func (p *pod) ip(f model.Family) netip.Addr { return firstOf(p.ips, f) }

// newPod makes a pod's space; add wires it.
func (nd *node) newPod(name string, ports ...plugin.PortMapping) *pod {
	s := newSpace(nd.t, name)
	return &pod{space: s, node: nd, req: Request{
		ContainerID: name + "-sandbox", IfName: "eth0", NetNS: s.path, HostPorts: ports,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + name + ";K8S_POD_UID=uid-" + name,
	}}
}

func (p *pod) add() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := p.node.n.Add(ctx, p.req, p.netNS)
	p.ips, p.link = a.Pod.IPs, a.Pod.Link
	return err
}

// pod wires a pod that echoes on port 80.
func (nd *node) pod(name string, ports ...plugin.PortMapping) *pod {
	nd.t.Helper()
	p := nd.newPod(name, ports...)
	if err := p.add(); err != nil {
		nd.t.Fatalf("%s: %v", name, err)
	}
	p.echo(80)
	return p
}

// eventually polls until ok, and fails with what it last said.
func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// world are addresses beyond the cluster, which outside has.
var world = []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:ffff::9")}

var both = []model.Family{model.IPv4, model.IPv6}

// sharedLink is two nodes and an outside world on one switch.
func sharedLink(t testing.TB) (a, b *node, outside *space) {
	sw := newSpace(t, "switch")
	sw.bridge("br0")
	outside = newSpace(t, "outside")
	outside.plug("eth0", sw, "br0", "192.0.2.9/24", "2001:db8::9/64")
	outside.run(func() error { return configure("lo", "203.0.113.9/32", "2001:db8:ffff::9/128") })
	outside.echo(80)
	mk := func(i int) *node {
		ips := []string{fmt.Sprintf("192.0.2.%d/24", i), fmt.Sprintf("2001:db8::%d/64", i)}
		nd := newNode(t, fmt.Sprintf("n%d", i), ips, []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)})
		nd.plug("eth0", sw, "br0", ips...)
		nd.via("0.0.0.0/0 192.0.2.9", "::/0 2001:db8::9")
		nd.echo(8080)
		return nd
	}
	return mk(1), mk(2), outside
}

// routedLinks is two nodes, each on a link of its own, with a router that is also the outside world between them.
func routedLinks(t testing.TB) (a, b *node, outside *space) {
	outside = newSpace(t, "router")
	outside.run(func() error { return configure("lo", "203.0.113.9/32", "2001:db8:ffff::9/128") })
	outside.echo(80)
	outside.sysctl("ipv4/ip_forward", "1")
	outside.sysctl("ipv6/conf/all/forwarding", "1")
	mk := func(i int) *node {
		br := fmt.Sprintf("br%d", i)
		outside.bridge(br, fmt.Sprintf("192.0.%d.9/24", i), fmt.Sprintf("2001:db8:%d::9/64", i))
		ips := []string{fmt.Sprintf("192.0.%d.1/24", i), fmt.Sprintf("2001:db8:%d::1/64", i)}
		nd := newNode(t, fmt.Sprintf("n%d", i), ips, []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)})
		nd.plug("eth0", outside, br, ips...)
		nd.via(fmt.Sprintf("0.0.0.0/0 192.0.%d.9", i), fmt.Sprintf("::/0 2001:db8:%d::9", i))
		nd.echo(8080)
		return nd
	}
	return mk(1), mk(2), outside
}

// sendDF sends a UDP datagram so that the IP packet has exactly size bytes and must not be fragmented.
func (s *space) sendDF(to netip.Addr, port uint16, size int) error {
	return s.do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		rc, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		header := 28
		var serr error
		if err := rc.Control(func(fd uintptr) {
			if to.Is6() {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			} else {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}
		}); err != nil || serr != nil {
			return errors.Join(err, serr)
		}
		if to.Is6() {
			header = 48
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write(make([]byte, size-header)); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 100))
		return err
	})
}
