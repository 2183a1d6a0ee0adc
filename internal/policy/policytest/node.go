// SPDX-License-Identifier: Apache-2.0

// Package policytest makes a node with pods out of network namespaces, for tests that send real packets through the
// kernel's policy table. It imports model and nstest; only tests import it.
package policytest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nstest"
)

// Deadline bounds every wait for what must happen.
const Deadline = 20 * time.Second

// Namespace is a network namespace with threads of its own.
type Namespace struct {
	FD   int
	jobs chan func()
}

// NewNamespace makes a namespace with its loopback up. The test is skipped where the kernel won't allow it, and
// fails there when CI is set.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	n := &Namespace{jobs: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ready <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		n.FD = fd
		ready <- err
		for f := range n.jobs {
			f()
		}
	}()
	nstest.Require(t, <-ready)
	t.Cleanup(func() {
		close(n.jobs)
		_ = unix.Close(n.FD)
	})
	n.Do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// Do runs f on the namespace's thread.
func (n *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	n.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// inNamespace runs f on a thread of its own that is in a namespace.
func inNamespace(fd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// set writes a sysctl of the namespace that Do runs in.
func set(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0o644)
}

// Node is a namespace that forwards between its pods and the world.
type Node struct {
	*Namespace
	links int
}

// A node's own addresses.
var (
	NodeAddr4 = netip.MustParseAddr("192.0.2.1")
	NodeAddr6 = netip.MustParseAddr("2001:db8::1")
)

// NewNode makes a node without pods.
func NewNode(t testing.TB) *Node {
	t.Helper()
	n := &Node{Namespace: NewNamespace(t)}
	n.Do(t, func() error {
		return errors.Join(set("ipv4/ip_forward", "1"), set("ipv6/conf/all/forwarding", "1"))
	})
	n.AddAddr(t, NodeAddr4, NodeAddr6)
	return n
}

// Pod is a namespace behind a node.
type Pod struct {
	*Namespace
	Link  string // the node's end
	node  *Node
	Addrs []netip.Addr
}

// Connect makes a namespace with these addresses, routed by the node through a link of its own: a pod, or the world
// outside.
func (n *Node) Connect(t testing.TB, addrs ...netip.Addr) *Pod {
	t.Helper()
	return n.Attach(t, NewNamespace(t), addrs...)
}

// Gateway6 is an address of the node's on each pod's link that pods have to discover.
var Gateway6 = netip.MustParseAddr("fe80::2")

// Attach is Connect for a namespace that is there already.
func (n *Node) Attach(t testing.TB, ns *Namespace, addrs ...netip.Addr) *Pod {
	t.Helper()
	n.links++
	p := &Pod{Namespace: ns, Link: fmt.Sprintf("pod%d", n.links), node: n, Addrs: addrs}
	var mac net.HardwareAddr
	n.Do(t, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Link}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.FD)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link: %w", err)
		}
		l, err := netlink.LinkByName(p.Link)
		if err != nil {
			return err
		}
		mac = l.Attrs().HardwareAddr
		_ = set("ipv6/conf/"+p.Link+"/addr_gen_mode", "1") // no other link-local address
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		gateway := &netlink.Addr{IPNet: &net.IPNet{IP: Gateway6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD, Scope: unix.RT_SCOPE_LINK}
		if err := netlink.AddrAdd(l, gateway); err != nil {
			return fmt.Errorf("add %s: %w", Gateway6, err)
		}
		for _, a := range addrs {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: host(a), Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("route to %s: %w", a, err)
			}
		}
		return nil
	})
	var peer net.HardwareAddr
	p.Do(t, func() error {
		_ = set("ipv6/conf/eth0/accept_dad", "0")
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		peer = l.Attrs().HardwareAddr
		for _, a := range addrs {
			addr := &netlink.Addr{IPNet: host(a)}
			if a.Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, a := range addrs {
			gw := netip.MustParseAddr("169.254.1.1")
			if a.Is6() {
				gw = netip.MustParseAddr("fe80::1")
			}
			neigh := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: gw.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
			if err := netlink.NeighSet(neigh); err != nil {
				return fmt.Errorf("neighbour %s: %w", gw, err)
			}
			r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
			if err := netlink.RouteAdd(r); err != nil {
				return fmt.Errorf("default route by %s: %w", gw, err)
			}
		}
		return nil
	})
	n.Do(t, func() error {
		l, err := netlink.LinkByName(p.Link)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			neigh := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice(), HardwareAddr: peer, State: netlink.NUD_PERMANENT}
			if err := netlink.NeighSet(neigh); err != nil {
				return fmt.Errorf("neighbour %s: %w", a, err)
			}
		}
		return nil
	})
	return p
}

// Disconnect removes a pod's link.
func (p *Pod) Disconnect(t testing.TB) {
	t.Helper()
	p.node.Do(t, func() error {
		l, err := netlink.LinkByName(p.Link)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// AddAddr gives the node an address of its own.
func (n *Node) AddAddr(t testing.TB, addrs ...netip.Addr) {
	t.Helper()
	n.Do(t, func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: host(a)}); err != nil {
				return err
			}
		}
		return nil
	})
}

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// Listen opens a port on every address of the namespace and echoes on it what connections send, or, for UDP,
// answers every datagram with itself.
func (n *Namespace) Listen(t testing.TB, proto model.Protocol, port uint16) {
	t.Helper()
	addr := fmt.Sprintf("[::]:%d", port)
	n.Do(t, func() error {
		switch proto {
		case model.UDP:
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go echoPackets(c)
		case model.TCP:
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
			go echoStreams(l)
		default:
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, int(proto))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = unix.Close(fd) })
			if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}); err != nil {
				return err
			}
			return unix.Listen(fd, 100)
		}
		return nil
	})
}

func echoPackets(c net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 2048)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// quiet is how long a packet that was let through could at most take on this machine to be answered. It only bounds
// how sure a test is that nothing came; what must come is awaited until Deadline.
const quiet = 60 * time.Millisecond

// Reaches sends from a source address (invalid: any) and tells whether an answer came. want only tunes patience.
func (n *Namespace) Reaches(t testing.TB, src netip.Addr, dst netip.AddrPort, proto model.Protocol, want bool) bool {
	t.Helper()
	patience := quiet
	if want {
		patience = Deadline
	}
	var got bool
	n.Do(t, func() error {
		var err error
		got, err = probe(src, dst, proto, patience)
		return err
	})
	return got
}

func probe(src netip.Addr, dst netip.AddrPort, proto model.Protocol, patience time.Duration) (bool, error) {
	kind := unix.SOCK_STREAM
	if proto == model.UDP {
		kind = unix.SOCK_DGRAM
	}
	family := unix.AF_INET
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
	if err != nil {
		return false, fmt.Errorf("socket for %s: %w", proto, err)
	}
	defer unix.Close(fd)
	if src.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
			return false, fmt.Errorf("bind to %s: %w", src, err)
		}
	}
	if err := unix.Connect(fd, sockaddr(dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return false, fmt.Errorf("connect to %s: %w", dst, err)
	}
	events := int16(unix.POLLOUT)
	if proto == model.UDP {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			return false, fmt.Errorf("send to %s: %w", dst, err)
		}
		events = unix.POLLIN
	}
	until := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		// A negative time would be for ever.
		n, err := unix.Poll(fds, min(max(int(time.Until(until).Milliseconds()), 0), 20)+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, err
		case n == 0 && time.Now().After(until):
			return false, nil
		case n == 0 && proto == model.UDP: // a new link may have lost the first one; TCP sends again by itself
			_, _ = unix.Write(fd, []byte("x"))
			continue
		case n == 0:
			continue
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return false, err
		}
		if code != 0 {
			return false, fmt.Errorf("%s %s: %w", proto, dst, unix.Errno(code)) // refused: the test lacks a listener
		}
		return true, nil
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	out := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if l, err := net.InterfaceByName(a.Addr().Zone()); err == nil {
		out.ZoneId = uint32(l.Index)
	}
	return out
}

// Dial opens a TCP connection from the namespace.
func (n *Namespace) Dial(t testing.TB, dst netip.AddrPort) net.Conn {
	t.Helper()
	var c net.Conn
	n.Do(t, func() (err error) {
		c, err = net.DialTimeout("tcp", dst.String(), Deadline)
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Echoes tells whether an open connection still carries a byte there and back. want only tunes patience.
func Echoes(t testing.TB, c net.Conn, want bool) bool {
	t.Helper()
	patience := 5 * quiet
	if want {
		patience = Deadline
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	buf := make([]byte, 1)
	_, err := c.Read(buf)
	return err == nil
}

// Eventually waits until a condition holds.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", within, what)
}

// Addrs reads addresses, separated by spaces.
func Addrs(s string) []netip.Addr {
	var out []netip.Addr
	for _, a := range strings.Fields(s) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
