// SPDX-License-Identifier: Apache-2.0

package fabric

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
	"github.com/weft-net/weft/lab/namespace"
	"github.com/weft-net/weft/lab/topology"
)

// host makes a host on the plan's segment.
func host(t *testing.T, f *Fabric, port string, segment int, addrs []netip.Prefix) *namespace.Net {
	t.Helper()
	ns, err := namespace.NewNet()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := f.Attach(Host{Net: ns, Port: port, Segment: segment, Addrs: addrs}); err != nil {
		t.Fatal(err)
	}
	return ns
}

// answer makes the namespace answer datagrams to port 7 of its addresses, from the very address.
func answer(t *testing.T, ns *namespace.Net, addrs []netip.Prefix) {
	t.Helper()
	err := ns.Do(func() error {
		for _, a := range addrs {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.Addr(), 7)))
			if err != nil {
				return err
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				buf := make([]byte, 100)
				for {
					n, from, err := conn.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					conn.WriteToUDPAddrPort(buf[:n], from)
				}
			}()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// reaches sends datagrams until one is answered or the limit has passed.
func reaches(t *testing.T, from *namespace.Net, to netip.Addr, limit time.Duration) bool {
	t.Helper()
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		conn.Write([]byte("?")) // an error is that of an earlier datagram
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := conn.Read(make([]byte, 100))
		if err == nil {
			return true
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	return false
}

func TestFabric(t *testing.T) {
	if os.Getuid() != 0 {
		labtest.Require(t, errors.New("network namespaces need root"))
	}
	plan := topology.Plan{Families: topology.Families{IPv4: true, IPv6: true}, Segments: 2}
	f, err := New(plan)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Net.Close()
	// The router's address as hosts know it must not follow whatever is plugged in: for as long as they believe the old
	// one, nothing of theirs gets through it.
	router := func() string {
		l, err := f.nl.LinkByName("br0")
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().HardwareAddr.String()
	}
	before := router()
	outside := host(t, f, "outside", 0, plan.Outside())
	if err := f.AddInternet(outside); err != nil {
		t.Fatal(err)
	}
	one := host(t, f, "node1", plan.Segment(1), plan.Node(1))
	two := host(t, f, "node2", plan.Segment(2), plan.Node(2))
	three := host(t, f, "node3", plan.Segment(3), plan.Node(3))
	answer(t, outside, append(plan.Outside(), plan.Internet()...))
	answer(t, one, plan.Node(1))
	answer(t, two, plan.Node(2))
	answer(t, three, plan.Node(3))
	for _, c := range []struct {
		what string
		from *namespace.Net
		to   []netip.Prefix
	}{
		{"node1 to node3, on its segment", one, plan.Node(3)},
		{"node1 to node2, through the router", one, plan.Node(2)},
		{"node2 to the internet", two, plan.Internet()},
		{"outside to node2", outside, plan.Node(2)},
	} {
		for _, to := range c.to {
			if !reaches(t, c.from, to.Addr(), 3*time.Second) {
				t.Errorf("%s (%s): no answer", c.what, to.Addr())
			}
		}
	}
	if err := f.Cut("node3"); err != nil {
		t.Fatal(err)
	}
	if reaches(t, one, plan.Node(3)[0].Addr(), 300*time.Millisecond) {
		t.Error("node3 answers through a cut")
	}
	if err := f.Join("node3", plan.Segment(3)); err != nil {
		t.Fatal(err)
	}
	for _, to := range plan.Node(3) {
		if !reaches(t, one, to.Addr(), 5*time.Second) {
			t.Errorf("node3 (%s) doesn't answer after the cut", to.Addr())
		}
	}
	if err := f.Detach("node3"); err != nil {
		t.Fatal(err)
	}
	if err := f.Detach("node3"); err != nil {
		t.Errorf("detach twice: %v", err)
	}
	if now := router(); now != before {
		t.Errorf("the router's address was %s, and is %s", before, now)
	}
	if reaches(t, one, plan.Node(3)[0].Addr(), 300*time.Millisecond) {
		t.Error("node3 answers without a link")
	}
}
