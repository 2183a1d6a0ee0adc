// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// TestReach sends real packets between everyone: pods on one node and on two, nodes, and the world, over a shared
// link and over routed ones.
func TestReach(t *testing.T) {
	for name, build := range map[string]func(testing.TB) (*node, *node, *space){"shared link": sharedLink, "routed links": routedLinks} {
		t.Run(name, func(t *testing.T) {
			a, b, _ := build(t)
			a.start()
			b.start()
			a.tell(a, b)
			b.tell(a, b)
			a1, a2, b1 := a.pod("a1"), a.pod("a2"), b.pod("b1")
			for _, f := range both {
				for _, proto := range []string{"tcp", "udp"} {
					for _, pair := range [][2]*pod{{a1, a2}, {a2, a1}, {a1, b1}, {b1, a1}} {
						from, to := pair[0], pair[1]
						from.sees(proto, to.ip(f), 80, from.ip(f))
					}
					a.sees(proto, a1.ip(f), 80, a.ip(f))    // a node to its pod: from its own address
					a1.sees(proto, a.ip(f), 8080, a1.ip(f)) // a pod to its node
					world := firstOf(world, f)
					a1.sees(proto, world, 80, a.ip(f)) // behind the node's address
					if name == "shared link" {
						a.sees(proto, b1.ip(f), 80, a.ip(f))
						a1.sees(proto, b.ip(f), 8080, a1.ip(f))
					} else {
						a.sees(proto, b1.ip(f), 80, model.TunnelAddr(a.obj.PodCIDRs[f/6]))
						a1.sees(proto, b.ip(f), 8080, a.ip(f))
					}
				}
			}
		})
	}
}

// TestPortKept: a pod that reaches the world behind its node's address keeps its port, as clients of Services do.
func TestPortKept(t *testing.T) {
	a, _, outside := sharedLink(t)
	a.start()
	a.tell(a)
	p := a.pod("p")
	var l net.Listener
	listen := func() (err error) { l, err = net.Listen("tcp", ":9100"); return err }
	if err := outside.do(listen); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(40000)
	for _, f := range both {
		for range 5 {
			port++
			dial := func() error {
				d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: int(port)}}
				c, err := d.Dial("tcp", netip.AddrPortFrom(firstOf(world, f), 9100).String())
				if err == nil {
					c.Close()
				}
				return err
			}
			if err := p.do(dial); err != nil {
				t.Fatal(err)
			}
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			seen := c.RemoteAddr().(*net.TCPAddr).AddrPort()
			if want := netip.AddrPortFrom(a.ip(f), port); netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()) != want {
				t.Errorf("the world saw %s, want %s", seen, want)
			}
			c.Close()
		}
	}
}

// TestMTU sends packets that fill a link exactly, and ones that don't fit, and a lot of TCP.
func TestMTU(t *testing.T) {
	for _, c := range []struct {
		name  string
		build func(testing.TB) (*node, *node, *space)
		fits  int // bytes of the largest packet between pods of two nodes
	}{{"shared link", sharedLink, 1500}, {"routed links", routedLinks, 1500 - vxlanOverhead4}} {
		t.Run(c.name, func(t *testing.T) {
			a, b, _ := c.build(t)
			a.start()
			b.start()
			a.tell(a, b)
			b.tell(a, b)
			a1, a2, b1 := a.pod("a1"), a.pod("a2"), b.pod("b1")
			for _, f := range both {
				// First: TCP knows what fits before path MTU discovery has told anybody.
				if mss := a1.mss(b1.ip(f), 80); mss != c.fits-map[model.Family]int{model.IPv4: 52, model.IPv6: 72}[f] {
					t.Errorf("%s: TCP segments carry %d bytes, in packets of at most %d", f, mss, c.fits)
				}
				for _, to := range []struct {
					ip   netip.Addr
					fits int
				}{{a2.ip(f), 1500}, {a.ip(f), 1500}, {b1.ip(f), c.fits}} {
					if err := a1.sendDF(to.ip, 80+8000*b2i(to.ip == a.ip(f)), to.fits); err != nil {
						t.Errorf("%d bytes to %s, not to be fragmented: %v", to.fits, to.ip, err)
					}
				}
				if c.fits < 1500 {
					// One byte more does not fit, and the pod is told so.
					eventually(t, "path MTU discovery", func() error {
						if err := a1.sendDF(b1.ip(f), 80, c.fits+1); !errors.Is(err, unix.EMSGSIZE) {
							return fmt.Errorf("%d bytes to %s: %v, want EMSGSIZE", c.fits+1, b1.ip(f), err)
						}
						return nil
					})
				}
				if err := transfer(a1.space, b1.space, b1.ip(f), 8<<20); err != nil {
					t.Errorf("%s: %v", f, err)
				}
			}
		})
	}
}

func b2i(b bool) uint16 {
	if b {
		return 1
	}
	return 0
}

// mss connects and asks the kernel how much goes into a segment, timestamps taken off.
func (s *space) mss(to netip.Addr, port uint16) (mss int) {
	s.t.Helper()
	s.run(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, port).String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		rc, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		return errors.Join(rc.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }), err)
	})
	return mss
}

// transfer sends bytes over TCP and counts them.
func transfer(from, to *space, ip netip.Addr, bytes int64) error {
	got := make(chan error, 1)
	err := to.do(func() error {
		l, err := net.Listen("tcp", ":9000")
		if err != nil {
			return err
		}
		go func() {
			c, err := l.Accept()
			if err = errors.Join(err, l.Close()); err != nil {
				got <- err
				return
			}
			defer c.Close()
			n, err := io.Copy(io.Discard, c)
			if err == nil && n != bytes {
				err = fmt.Errorf("%d bytes came of %d", n, bytes)
			}
			got <- err
		}()
		return nil
	})
	if err != nil {
		return err
	}
	err = from.do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(ip, 9000).String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		buf := make([]byte, 1<<16)
		for sent := int64(0); sent < bytes; sent += int64(len(buf)) {
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, <-got)
}

// TestHostPorts walks clients x ways to a host port.
func TestHostPorts(t *testing.T) {
	a, b, outside := sharedLink(t)
	a.start()
	b.start()
	a.tell(a, b)
	b.tell(a, b)
	outside.via("10.244.1.0/24 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1")
	second := map[model.Family]netip.Addr{model.IPv4: netip.MustParseAddr("192.0.2.101"), model.IPv6: netip.MustParseAddr("2001:db8::101")}
	a.run(func() error { return configure("eth0", "192.0.2.101/24", "2001:db8::101/64") })
	server := a.pod("server",
		plugin.PortMapping{HostPort: 7000, ContainerPort: 80},
		plugin.PortMapping{HostPort: 7000, ContainerPort: 80, Protocol: "UDP"},
		plugin.PortMapping{HostPort: 7001, ContainerPort: 80, HostIP: "192.0.2.101"},
		plugin.PortMapping{HostPort: 7001, ContainerPort: 80, HostIP: "2001:db8::101"},
		plugin.PortMapping{HostPort: 7002, ContainerPort: 80, HostIP: "0.0.0.0"},
		plugin.PortMapping{HostPort: 7003, ContainerPort: 80, HostIP: "127.0.0.1"},
		plugin.PortMapping{ContainerPort: 80},
	)
	near, far := a.pod("near"), b.pod("far")
	for _, f := range both {
		for _, proto := range []string{"tcp", "udp"} {
			for _, to := range []netip.Addr{a.ip(f), second[f]} {
				outside.sees(proto, to, 7000, firstOf(addrs("192.0.2.9", "2001:db8::9"), f))
				b.sees(proto, to, 7000, b.ip(f))
				if to == a.ip(f) {
					far.sees(proto, to, 7000, far.ip(f))
				} else {
					far.sees(proto, to, 7000, b.ip(f)) // not an InternalIP: beyond the cluster, for all that its node knows
				}
				near.sees(proto, to, 7000, near.ip(f))
				for _, s := range []*space{a.space, server.space} { // the pod to itself comes from the node
					if seen, err := s.askFor(patience, proto, to, 7000); err != nil || seen != second[f] && seen != a.ip(f) {
						t.Errorf("%s to %s: %v, %v", s.name, to, seen, err)
					}
				}
			}
		}
		outside.sees("tcp", second[f], 7001, firstOf(addrs("192.0.2.9", "2001:db8::9"), f))
		if _, err := outside.ask("tcp", a.ip(f), 7001); err == nil {
			t.Errorf("%s answers on a port that is %s's", a.ip(f), second[f])
		}
	}
	for _, proto := range []string{"tcp", "udp"} {
		a.sees(proto, netip.MustParseAddr("127.0.0.1"), 7000, a.ip(model.IPv4))
	}
	outside.sees("tcp", a.ip(model.IPv4), 7002, netip.MustParseAddr("192.0.2.9"))
	if _, err := outside.ask("tcp", a.ip(model.IPv6), 7002); err == nil {
		t.Error("a host port of 0.0.0.0 answers on IPv6")
	}
	a.sees("tcp", netip.MustParseAddr("127.0.0.1"), 7003, a.ip(model.IPv4))
	if _, err := outside.ask("tcp", a.ip(model.IPv4), 7003); err == nil {
		t.Error("a host port of 127.0.0.1 answers from outside")
	}

	// The same port again is refused, and the refusal leaves nothing behind.
	var perr *plugin.Error
	before := len(a.n.Pods())
	other := a.newPod("other", plugin.PortMapping{HostPort: 7000, ContainerPort: 80, HostIP: "192.0.2.1"})
	if err := other.add(); !errors.As(err, &perr) || perr.Code != plugin.CodeHostPortTaken {
		t.Errorf("a taken host port: %v", err)
	}
	if n := len(a.n.Pods()); n != before {
		t.Errorf("%d pods after a refused ADD, were %d", n, before)
	}
	// A UDP client that never pauses follows the port to its next pod.
	stop := outside.keepAsking("udp", a.ip(model.IPv4), 7000)
	if err := a.n.Del(server.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	a.pod("next", plugin.PortMapping{HostPort: 7000, ContainerPort: 80, Protocol: "UDP"})
	eventually(t, "a busy UDP client reaches the next pod", func() error { return stop(false) })
	if err := stop(true); err != nil {
		t.Log(err)
	}
	if _, err := outside.ask("tcp", a.ip(model.IPv4), 7000); err == nil {
		t.Error("a host port answers after its pod is gone")
	}
}

// keepAsking sends datagrams from one socket all the time. The function it returns is nil once an answer came since
// the last call, or stops it.
func (s *space) keepAsking(network string, to netip.Addr, port uint16) func(stop bool) error {
	var c net.Conn
	s.run(func() (err error) {
		c, err = net.Dial(network, netip.AddrPortFrom(to, port).String())
		return err
	})
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				_, _ = c.Write([]byte{'?'})
			}
		}
	}()
	return func(stop bool) error {
		if stop {
			close(done)
			return c.Close()
		}
		buf := make([]byte, 100)
		if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		_, err := c.Read(buf)
		return err
	}
}

// TestSpoof has a pod send under an address that is not its own, and to the node's loopback.
func TestSpoof(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	a.tell(a, b)
	victim := a.pod("victim")
	// With a host port, the link lets the node's loopback address through for answers.
	liar := a.pod("liar", plugin.PortMapping{HostPort: 7000, ContainerPort: 80})
	received := make(chan string, 100)
	victim.run(func() error {
		u, err := net.ListenUDP("udp", &net.UDPAddr{Port: 5353})
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := u.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				received <- from.Addr().Unmap().String()
			}
		}()
		return nil
	})
	liar.run(func() error { return configure("eth0", "10.244.1.250/32", "fd00:10:244:1::bad/128", "198.51.100.1/32") })
	send := func(from, to string) {
		t.Helper()
		liar.run(func() error {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("udp", net.JoinHostPort(to, "5353"))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
	}
	v4, v6 := victim.ip(model.IPv4).String(), victim.ip(model.IPv6).String()
	send("10.244.1.250", v4)
	send("198.51.100.1", v4)
	send("fd00:10:244:1::bad", v6)
	// The honest ones come last: when they are there, the others would be.
	send(liar.ip(model.IPv4).String(), v4)
	send(liar.ip(model.IPv6).String(), v6)
	for range 2 {
		select {
		case from := <-received:
			if from != liar.ip(model.IPv4).String() && from != liar.ip(model.IPv6).String() {
				t.Errorf("a packet from %s came through", from)
			}
		case <-time.After(patience):
			t.Fatal("the pod's own packets don't come")
		}
	}
	liar.run(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Its own loopback address would take the packet.
		if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("127.0.0.1/8"))}); err != nil {
			return err
		}
		return errors.Join(setSysctl(sysctl{"ipv4/conf/all/route_localnet", "1"}),
			netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_MAIN, Dst: ipNet(netip.MustParsePrefix("127.0.0.0/8")), Gw: gateway4.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
	})
	came := make(chan string, 10)
	node := a.ip(model.IPv4).String()
	for _, host := range []string{"127.0.0.1", node} {
		a.run(func() error {
			pc, err := net.ListenPacket("udp4", net.JoinHostPort(host, "5353"))
			if err != nil {
				return err
			}
			t.Cleanup(func() { pc.Close() })
			go func() {
				if _, _, err := pc.ReadFrom(make([]byte, 100)); err == nil {
					came <- host
				}
			}()
			return nil
		})
	}
	send(liar.ip(model.IPv4).String(), "127.0.0.1")
	send(liar.ip(model.IPv4).String(), node) // last: when it is there, the other would be
	select {
	case host := <-came:
		if host != node {
			t.Errorf("a pod reaches the node's %s", host)
		}
	case <-time.After(patience):
		t.Error("a pod's packet to its node does not come")
	}
}

// TestNoSource has a pod send its node a datagram that has no source address: only what finds duplicate addresses may.
func TestNoSource(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	a.tell(a, b)
	liar := a.pod("liar")
	node := a.ip(model.IPv6)
	came := make(chan netip.Addr, 10)
	a.run(func() error {
		u, err := net.ListenUDP("udp6", &net.UDPAddr{IP: node.AsSlice(), Port: 5353})
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			for {
				_, from, err := u.ReadFromUDPAddrPort(make([]byte, 100))
				if err != nil {
					return
				}
				came <- from.Addr()
			}
		}()
		return nil
	})
	send := func(src netip.Addr) {
		t.Helper()
		from, to := src.As16(), node.As16()
		udp := []byte{0x14, 0xe9, 0x14, 0xe9, 0, 9, 0, 0, 'x'}
		sum := uint32(len(udp) + unix.IPPROTO_UDP)
		for _, part := range [][]byte{from[:], to[:], udp} {
			for i, b := range part {
				sum += uint32(b) << (8 * (1 - i%2))
			}
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
		packet := append([]byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}, from[:]...)
		packet = append(append(packet, to[:]...), udp...)
		liar.run(func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{Addr: to})
		})
	}
	send(netip.IPv6Unspecified())
	send(liar.ip(model.IPv6)) // last: when it is there, the other would be
	select {
	case from := <-came:
		if from != liar.ip(model.IPv6) {
			t.Errorf("a datagram from %s came through", from)
		}
	case <-time.After(patience):
		t.Error("the pod's own datagram does not come")
	}
}
