// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/nstest"
)

// inNamespace runs f on a thread in a network namespace of its own, in which the loopback has a small MTU.
func inNamespace(t *testing.T, mtu int, f func() error) {
	t.Helper()
	var failed error
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := netns.New()
			if err != nil {
				return err
			}
			defer ns.Close()
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMTU(lo, mtu); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			failed = f()
			return nil
		}()
	}()
	nstest.Require(t, <-done)
	if failed != nil {
		t.Fatal(failed)
	}
}

// Answers that are too long for the path to leave together still arrive, each by itself.
func TestAnswersLongerThanTheMTU(t *testing.T) {
	var l *Listener
	var client net.Conn
	s, err := New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	inNamespace(t, 700, func() (err error) {
		if l, err = s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"), 1); err == nil {
			client, err = net.Dial("udp", l.Addr().String())
		}
		return err
	})
	defer client.Close()
	cfg := parse(t, "forward: {upstreams: [\"127.0.0.1:1\"]}")
	zone, err := dnszone.New(cfg.Zone())
	if err != nil {
		t.Fatal(err)
	}
	zone.Update(testDelta())
	if err := s.Apply(cfg, zone); err != nil {
		t.Fatal(err)
	}
	const questions = 20
	for i := range questions {
		m := question("big.shop.svc.cluster.local", dns.TypeA)
		m.Id = uint16(i)
		m.SetEdns0(1200, false)
		pkt, _ := m.Pack()
		if _, err := client.Write(pkt); err != nil {
			t.Fatal(err)
		}
	}
	// All are there before the server reads: they come out as one burst.
	done := make(chan error)
	go func() { done <- l.Serve() }()
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	for range questions {
		buf := make([]byte, 4096)
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(buf[:n]); err != nil || len(m.Answer) < 60 || n < 1000 {
			t.Fatalf("%d octets, %d records, %v", n, len(m.Answer), err)
		}
	}
	l.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	l.Close()
}
