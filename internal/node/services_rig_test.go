// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nstest"
)

// space is a throw-away network namespace.
type space struct {
	name string
	ns   netns.NsHandle
	nl   *netlink.Handle
}

// in runs f on a thread of its own inside the namespace; the thread is thrown away, so nothing can leak out of it.
func (s *space) in(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			panic(err)
		}
		f()
	}()
	<-done
}

func (s *space) sysctl(t testing.TB, values ...string) {
	t.Helper()
	s.in(func() {
		for _, kv := range values {
			k, v, _ := strings.Cut(kv, "=")
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(k, ".", "/"), []byte(v), 0o644); err != nil {
				t.Errorf("%s: sysctl %s: %v", s.name, k, err)
			}
		}
	})
}

func newSpace(t testing.TB, name string) *space {
	t.Helper()
	s := &space{name: name}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			s.ns, err = netns.Get()
		}
	}()
	<-done
	nstest.Require(t, err)
	if s.nl, err = netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.nl.Close(); s.ns.Close() })
	s.sysctl(t, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0",
		"net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
		"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
	s.up(t, "lo")
	return s
}

func (s *space) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := s.nl.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: link %s: %v", s.name, name, err)
	}
	return l
}

func (s *space) up(t testing.TB, name string) {
	t.Helper()
	if err := s.nl.LinkSetUp(s.link(t, name)); err != nil {
		t.Fatal(err)
	}
}

func (s *space) addr(t testing.TB, link, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := s.nl.AddrAdd(s.link(t, link), a); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatalf("%s: %s on %s: %v", s.name, prefix, link, err)
	}
}

// route adds a route: through a gateway, which is taken to be on the link, or straight to the link.
func (s *space) route(t testing.TB, dst, via, link string) {
	t.Helper()
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{Dst: n, LinkIndex: s.link(t, link).Attrs().Index}
	if via != "" {
		r.Gw = net.ParseIP(via)
		r.SetFlag(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := s.nl.RouteReplace(r); err != nil {
		t.Fatalf("%s: route %s via %s dev %s: %v", s.name, dst, via, link, err)
	}
}

// join makes a veth pair between two namespaces.
func join(t testing.TB, a *space, aName string, b *space, bName string) {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.nl.LinkAdd(v); err != nil {
		t.Fatalf("veth %s/%s - %s/%s: %v", a.name, aName, b.name, bName, err)
	}
	a.up(t, aName)
	b.up(t, bName)
}

// cluster is two nodes, with two pods on the first and one on the second, and a client beyond.
type cluster struct {
	fabric, outside *space
	node            [2]*space
	pod             map[string]*space
	agent           *Services
	log             *testLog
	stop            context.CancelFunc
	done            chan struct{}
	events          []model.Event
	tamper          func(*Services) // may be nil; before the agent runs
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{fabric: newSpace(t, "fabric"), outside: newSpace(t, "outside"), pod: map[string]*space{}, log: &testLog{}}
	if err := c.fabric.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Fatal(err)
	}
	c.fabric.up(t, "br0")
	attach := func(s *space, host string) {
		join(t, c.fabric, "to-"+s.name, s, "eth0")
		if err := c.fabric.nl.LinkSetMaster(c.fabric.link(t, "to-"+s.name), c.fabric.link(t, "br0")); err != nil {
			t.Fatal(err)
		}
		s.addr(t, "eth0", "192.168.1."+host+"/24")
		s.addr(t, "eth0", "fd00:192::"+host+"/64")
	}
	attach(c.outside, "100")
	for i := range c.node {
		c.node[i] = newSpace(t, fmt.Sprintf("node%d", i+1))
		attach(c.node[i], fmt.Sprint(i+1))
		c.node[i].route(t, "0.0.0.0/0", "192.168.1.100", "eth0")
		c.node[i].route(t, "::/0", "fd00:192::100", "eth0")
	}
	for i, other := range []int{1, 0} {
		c.node[i].route(t, fmt.Sprintf("10.244.%d.0/24", other+1), fmt.Sprintf("192.168.1.%d", other+1), "eth0")
		c.node[i].route(t, fmt.Sprintf("fd00:244:%d::/64", other+1), fmt.Sprintf("fd00:192::%d", other+1), "eth0")
	}
	// The world, and the other node, reach load balancer and external IPs, and even cluster IPs, through the first node.
	for _, from := range []*space{c.outside, c.node[1]} {
		for _, r := range []string{"203.0.113.0/24", "198.51.100.0/24", "10.96.0.0/12"} {
			from.route(t, r, "192.168.1.1", "eth0")
		}
		for _, r := range []string{"fd00:203::/64", "fd00:198::/64", "fd00:96::/112"} {
			from.route(t, r, "fd00:192::1", "eth0")
		}
	}
	c.addPod(t, "a1", 0, 2)
	c.addPod(t, "b1", 0, 3)
	c.addPod(t, "c2", 1, 2)
	return c
}

func (c *cluster) addPod(t testing.TB, name string, node, host int) {
	t.Helper()
	p, n := newSpace(t, name), c.node[node]
	join(t, n, "weft"+name, p, "eth0")
	v4, v6 := podAddrs(node, host)
	p.addr(t, "eth0", v4+"/32")
	p.addr(t, "eth0", v6+"/128")
	n.addr(t, "weft"+name, "169.254.1.1/32")
	n.addr(t, "weft"+name, "fe80::1/64")
	p.route(t, "169.254.1.1/32", "", "eth0")
	p.route(t, "0.0.0.0/0", "169.254.1.1", "eth0")
	p.route(t, "::/0", "fe80::1", "eth0")
	n.route(t, v4+"/32", "", "weft"+name)
	n.route(t, v6+"/128", "", "weft"+name)
	c.pod[name] = p
	p.serve(t, name, 8080)
}

func podAddrs(node, host int) (v4, v6 string) {
	return fmt.Sprintf("10.244.%d.%d", node+1, host), fmt.Sprintf("fd00:244:%d::%d", node+1, host)
}

// serve answers TCP and UDP in both families with the server's name and the client's address.
func (s *space) serve(t testing.TB, name string, port int) {
	t.Helper()
	s.in(func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					in := bufio.NewScanner(conn)
					for in.Scan() {
						from := host(conn.RemoteAddr())
						if in.Text() == "port" {
							_, from, _ = net.SplitHostPort(conn.RemoteAddr().String())
						}
						fmt.Fprintf(conn, "%s %s\n", name, from)
					}
				}()
			}
		}()
		go func() {
			buf := make([]byte, 512)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s\n", name, host(from)), from)
			}
		}()
	})
}

func host(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().String()
}

// Answers that are no server's.
const (
	refused = "refused"
	silent  = "silent"
)

// How long a client waits for an answer: where one is expected, so long that a busy machine is no failure; where
// silence is, long enough for an answer on a machine that is not.
const (
	patience   = 10 * time.Second
	impatience = 300 * time.Millisecond
)

// ask sends one request and returns the server's name and the address it saw; or why there was none.
func (s *space) ask(network, addr string) (server, client string) {
	return s.askFor(patience, network, addr)
}

func (s *space) askFor(patience time.Duration, network, addr string) (server, client string) {
	s.in(func() {
		c, err := net.DialTimeout(network, addr, patience)
		if err != nil {
			server = failure(err)
			return
		}
		defer c.Close()
		server, client = exchange(c, patience)
	})
	return server, client
}

func exchange(c net.Conn, patience time.Duration) (server, client string) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "who\n"); err != nil {
		return failure(err), ""
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return failure(err), ""
	}
	server, client, _ = strings.Cut(strings.TrimSpace(line), " ")
	return server, client
}

func failure(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		return refused
	case errors.Is(err, syscall.EPERM): // what a host's own UDP socket gets from a reject on its way out
		return refused
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return silent
	}
	return err.Error()
}

// start runs the services part on the first node.
func (c *cluster) start(t testing.TB, more ...func(*ServicesConfig)) {
	t.Helper()
	cfg := ServicesConfig{Node: "node1", ClusterIPs: prefixes("10.96.0.0/12", "fd00:96::/112"), Loopback: true,
		Events: func(e model.Event) { c.events = append(c.events, e) }, Log: slog.New(slog.NewTextHandler(c.log, nil))}
	for _, f := range more {
		f(&cfg)
	}
	var err error
	c.node[0].in(func() { c.agent, err = NewServices(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	if c.tamper != nil {
		c.tamper(c.agent)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop, c.done = cancel, make(chan struct{})
	agent, done := c.agent, c.done
	go func() {
		defer close(done)
		if err := agent.Run(ctx); err != nil {
			t.Errorf("services: %v", err)
		}
	}()
	t.Cleanup(c.kill)
}

// kill stops the agent as kill -9 would: nothing is taken back.
func (c *cluster) kill() {
	if c.agent == nil {
		return
	}
	c.stop()
	<-c.done
	_ = c.agent.Close()
	c.agent = nil
}

func (c *cluster) update(t testing.TB, d *model.Delta) {
	t.Helper()
	d.Complete = true
	if d.Nodes == nil {
		d.Nodes = map[string]*model.Node{"node1": theNode()}
	}
	var err error
	agent := c.agent
	c.node[0].in(func() { err = agent.Update(context.Background(), d) })
	if err != nil {
		t.Fatal(err)
	}
}

func theNode() *model.Node {
	return &model.Node{Meta: model.Meta{Name: model.Name{Name: "node1"}}, Zone: "east", InternalIPs: addrs("192.168.1.1", "fd00:192::1"),
		PodCIDRs: prefixes("10.244.1.0/24", "fd00:244:1::/64")}
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

func addrs(s ...string) []netip.Addr {
	out := make([]netip.Addr, len(s))
	for i := range s {
		out[i] = netip.MustParseAddr(s[i])
	}
	return out
}

// testLog keeps what was logged.
type testLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
