// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

func TestSend(t *testing.T) {
	node := policytest.NewNode(t)
	client := node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...)
	server := node.Connect(t, policytest.Addrs("10.0.0.2 fd00::2")...)
	mute := node.Connect(t, policytest.Addrs("10.0.0.3 fd00::3")...)
	server.Listen(t, model.TCP, 80)
	server.Listen(t, model.UDP, 53)
	// A port that hears and says nothing.
	mute.Do(t, func() error {
		c, err := net.ListenPacket("udp", "[::]:53")
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	})
	ns, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", client.FD))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, a := range []struct{ server, mute, nowhere string }{{"10.0.0.2", "10.0.0.3", "10.9.9.9"}, {"fd00::2", "fd00::3", "fd09::9"}} {
		at := func(proto, addr string, port uint16) Target {
			return Target{proto, netip.AddrPortFrom(netip.MustParseAddr(addr), port)}
		}
		targets := []Target{
			at("TCP", a.server, 80), at("TCP", a.server, 81), at("UDP", a.server, 53), at("UDP", a.server, 54),
			at("UDP", a.mute, 53), at("TCP", a.nowhere, 80), at("SCTP", a.server, 80),
		}
		want := []Outcome{Answered, Refused, Answered, Refused, Silent, Unreachable, Failed}
		for i, r := range Send(t.Context(), ns, 5*time.Second, targets...) {
			if r.Outcome != want[i] || r.Target != targets[i] {
				t.Errorf("%s %s: %s (%s), want %s", targets[i].Protocol, targets[i].Addr, r.Outcome, r.Text, want[i])
			}
			if r.Outcome == Answered && r.Source != client.Addrs[map[bool]int{true: 1}[r.Addr.Addr().Is6()]] {
				t.Errorf("sent from %s, not from the pod", r.Source)
			}
		}
	}
}

func TestFind(t *testing.T) {
	node := policytest.NewNode(t)
	dir := t.TempDir()
	for i, addrs := range []string{"10.0.0.1 fd00::1", "10.0.0.2 fd00::2"} {
		p := node.Connect(t, policytest.Addrs(addrs)...)
		file := filepath.Join(dir, fmt.Sprint("cni-", i))
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", p.FD), file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "no-namespace"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, a := range []string{"10.0.0.1", "fd00::2"} {
		f, err := Find(dir, netip.MustParseAddr(a))
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(dir, fmt.Sprint("cni-", i)); f.Name() != want {
			t.Errorf("%s is in %s, want %s", a, f.Name(), want)
		}
		_ = f.Close()
	}
	if f, err := Find(dir, netip.MustParseAddr("10.0.0.3")); err == nil {
		t.Errorf("10.0.0.3 is in %s", f.Name())
	}
}
