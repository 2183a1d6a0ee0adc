// SPDX-License-Identifier: Apache-2.0

package node

import (
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// TestHealthCheckRetries: a port that another process has is tried again until it is free, and the owner hears of it
// once.
func TestHealthCheckRetries(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	port := netip.MustParseAddrPort(other.Addr().String()).Port()
	var told atomic.Int32
	h := newHealthChecks(ServicesConfig{Node: "n", Log: slog.New(slog.DiscardHandler),
		Events: func(e model.Event) {
			told.Add(1)
			if e.UID != "u" || e.Reason != "FailedToStartServiceHealthcheck" {
				t.Errorf("event %+v", e)
			}
		}}, prefixes("127.0.0.0/8"), func() bool { return true })
	defer h.close()
	want := map[model.Name]service.Health{{Namespace: "shop", Name: "web"}: {UID: "u", Port: port, Local: 1}}
	for range 20 {
		h.set(want)
	}
	other.Close()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", other.Addr().String()); err == nil {
			c.Close()
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("the port is free and nobody serves")
		}
	}
	if n := told.Load(); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// TestHealthCheckAddresses: with --nodeport-addresses a check is on the addresses that the node has, also on those that
// it gets later, and no longer on those that it loses.
func TestHealthCheckAddresses(t *testing.T) {
	c := newCluster(t)
	c.start(t, func(cfg *ServicesConfig) { cfg.NodePorts = prefixes("192.168.1.0/24", "172.16.0.0/16") })
	s := newShop()
	s.service.ExternalLocal, s.service.HealthCheckNodePort = true, 31234
	c.update(t, s.delta())
	c.outside.route(t, "172.16.0.1/32", "192.168.1.1", "eth0")
	answers := func(addr string, want bool) {
		t.Helper()
		var err error
		c.outside.in(func() {
			var k net.Conn
			if k, err = net.DialTimeout("tcp", addr, patience); err == nil {
				k.Close()
			}
		})
		if (err == nil) != want {
			t.Errorf("%s: %v, want an answer: %v", addr, err, want)
		}
	}
	answers("192.168.1.1:31234", true)
	c.node[0].addr(t, "eth0", "172.16.0.1/32")
	answers("172.16.0.1:31234", false)
	c.update(t, &model.Delta{}) // the node says that it has other addresses
	answers("172.16.0.1:31234", true)
	answers("192.168.1.1:31234", true)
}
