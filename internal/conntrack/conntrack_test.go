// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/google/nftables/expr"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nstest"
)

// enter puts the test into a namespace of its own, whose loopback is up, and opens its table.
func enter(t *testing.T) *Table {
	t.Helper()
	nstest.Enter(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	table, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

// TestDelete tracks two UDP connections in a namespace, ends one, and finds the other left.
func TestDelete(t *testing.T) {
	table := enter(t)
	track(t)
	for _, addr := range []string{"127.0.0.1:5001", "127.0.0.1:5002", "[::1]:5001"} {
		server, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
		client, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	flows, err := table.Flows(model.IPv4)
	if err != nil || len(flows) != 2 {
		t.Fatalf("%v, %v; want 2", flows, err)
	}
	first := netip.MustParseAddrPort("127.0.0.1:5001")
	var end []Flow
	for _, f := range flows {
		if f.Protocol != model.UDP || f.Answered || f.Dest != f.Peer || f.Source.Addr() != first.Addr() {
			t.Errorf("flow %+v", f)
		}
		if f.Dest == first {
			end = append(end, f)
		}
	}
	if n, err := table.Delete(end); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	if n, err := table.Delete(end); n != 0 || err != nil {
		t.Errorf("deleted %d again, %v", n, err)
	}
	if flows, err = table.Flows(model.IPv4); err != nil || len(flows) != 1 || flows[0].Dest.Port() != 5002 {
		t.Errorf("left: %v, %v", flows, err)
	}
	if flows, err = table.Flows(model.IPv6); err != nil || len(flows) != 1 {
		t.Errorf("IPv6: %v, %v", flows, err)
	}
}

// TestDeleteReplaced ends a connection in whose place there is another one by then, as when a client uses a port again: it
// has the protocol, addresses and ports of the one that was meant, but goes to another endpoint, and stays.
func TestDeleteReplaced(t *testing.T) {
	table := enter(t)
	for f, addr := range map[model.Family]netip.Addr{model.IPv4: netip.MustParseAddr("127.0.0.1"), model.IPv6: netip.IPv6Loopback()} {
		for port := 5001; port <= 5003; port++ {
			server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port))))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = server.Close() }()
		}
		client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 5001)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		open := func(endpoint uint16) []Flow {
			t.Helper()
			forward(t, f, 5001, netip.AddrPortFrom(addr, endpoint))
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			flows, err := table.Flows(f)
			if err != nil || len(flows) != 1 || flows[0].Dest.Port() != 5001 || flows[0].Peer.Port() != endpoint {
				t.Fatalf("%v, %v; want one to port %d", flows, err, endpoint)
			}
			return flows
		}
		old := open(5002)
		if n, err := table.Delete(old); n != 1 || err != nil {
			t.Fatalf("%s: deleted %d, %v", f, n, err)
		}
		now := open(5003)
		if n, err := table.Delete(old); n != 0 || err != nil {
			t.Errorf("%s: deleted %d that took the place of the one meant, %v", f, n, err)
		}
		if n, err := table.Delete(now); n != 1 || err != nil {
			t.Errorf("%s: deleted %d, %v", f, n, err)
		}
	}
}

// forward has what is sent to a port of this host go to an endpoint.
func forward(t *testing.T, f model.Family, port uint16, to netip.AddrPort) {
	t.Helper()
	c, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	family, af := nft.IPv4, uint32(unix.NFPROTO_IPV4)
	if f == model.IPv6 {
		family, af = nft.IPv6, unix.NFPROTO_IPV6
	}
	chain := nft.Chain{Table: nft.Table{Family: family, Name: "forward"}, Name: "output",
		Hook: &nft.Hook{Type: "nat", Num: unix.NF_INET_LOCAL_OUT, Priority: -100}}
	number := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	var b nft.Batch
	b.DiscardTable(chain.Table)
	b.AddTable(chain.Table, "")
	b.AddChain(chain)
	b.AddRule(chain, "",
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: number(port)},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: number(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: af, RegAddrMin: 1, RegProtoMin: 2})
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
}

// track has the namespace track connections, which it does once a rule asks about them.
func track(t *testing.T) {
	t.Helper()
	c, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	chain := nft.Chain{Table: nft.Table{Family: nft.Inet, Name: "track"}, Name: "output",
		Hook: &nft.Hook{Type: "filter", Num: unix.NF_INET_LOCAL_OUT}}
	var b nft.Batch
	b.AddTable(chain.Table, "")
	b.AddChain(chain)
	b.AddRule(chain, "", &expr.Ct{Key: expr.CtKeySTATE, Register: 1})
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
}
