// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
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

// TestDelete tracks two UDP connections in a namespace, ends one, and finds the other left.
func TestDelete(t *testing.T) {
	nstest.Enter(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	table, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }()
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
