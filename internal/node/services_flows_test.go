// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nft/servicetable"
)

// connect opens a TCP connection that the server of that name answers.
func (s *space) connect(t *testing.T, addr, want string) net.Conn {
	t.Helper()
	for range 60 {
		var conn net.Conn
		var err error
		s.in(func() { conn, err = net.DialTimeout("tcp", addr, patience) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if server, _ := exchange(conn, patience); server == want {
			return conn
		}
	}
	t.Fatalf("%s: %s never answered", addr, want)
	return nil
}

// still wants the connection to go on.
func still(t *testing.T, conn net.Conn, when, want string) {
	t.Helper()
	for range 8 {
		if got, _ := exchange(conn, patience); got != want {
			t.Errorf("%s: %s, want %s still", when, got, want)
			return
		}
	}
}

// ends wants the connection to be reset.
func ends(t *testing.T, conn net.Conn, when string) {
	t.Helper()
	eventually(t, when+": its connections are reset", func() bool {
		got, _ := exchange(conn, impatience)
		return got == refused
	})
}

// swept waits until what has changed so far was looked at.
func (c *cluster) swept(t *testing.T) {
	t.Helper()
	eventually(t, "connections were looked at", func() bool {
		c.agent.mu.Lock()
		defer c.agent.mu.Unlock()
		return !c.agent.lost.any() && !c.agent.table.AnyLeft() && len(c.agent.sweep) == 0
	})
}

// TestTrackedTCP: established connections stay through everything but the end of their pod, and then end fast.
func TestTrackedTCP(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	for _, f := range families {
		t.Run(f.String(), func(t *testing.T) {
			s := newShop()
			update := func(alive ...string) {
				d := s.delta()
				d.Pods = pods(alive...)
				c.update(t, d)
			}
			update("a1", "b1", "c2")
			to := targets["cluster IP"][f]
			a1, c2 := c.pod["b1"].connect(t, to, "a1"), c.pod["b1"].connect(t, to, "c2")
			s.endpoints[1].Ready, s.endpoints[1].Serving, s.endpoints[1].Terminating = false, false, true
			update("a1", "b1", "c2")
			still(t, a1, "the other terminates", "a1")
			still(t, c2, "it terminates", "c2")

			// Nothing selects c2's pod any more, but it lives.
			s.endpoints = s.endpoints[:1]
			update("a1", "b1", "c2")
			c.swept(t)
			still(t, c2, "its label was taken off", "c2")
			// Its pod goes later.
			update("a1", "b1")
			ends(t, c2, "c2's pod is gone, after the Service let go of it")
			still(t, a1, "the other is gone", "a1")

			// The other order: first the pod, then its endpoint.
			s.endpoints = []model.Endpoint{endpoint("a1"), endpoint("c2")}
			update("a1", "b1", "c2")
			c2 = c.pod["b1"].connect(t, to, "c2")
			update("a1", "b1")
			s.endpoints = s.endpoints[:1]
			update("a1", "b1")
			ends(t, c2, "c2's pod and then its endpoint are gone")
			still(t, a1, "the other is gone again", "a1")

			// Blue to green: all endpoints are others, and the old ones live.
			s.endpoints = []model.Endpoint{endpoint("b1")}
			update("a1", "b1", "c2")
			c.swept(t)
			still(t, a1, "the Service went over to others", "a1")
			if got, _ := c.outside.ask("tcp", targets["node port"][f]); got != "b1" {
				t.Errorf("a new connection went to %s, want b1", got)
			}
		})
	}
}

// TestTrackedTCPByHand: whether an endpoint that somebody wrote down lives, nobody knows; its connections are left alone.
func TestTrackedTCPByHand(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	for i := range s.endpoints {
		s.endpoints[i].OfPod = false
	}
	c.update(t, s.delta())
	conn := c.pod["b1"].connect(t, targets["cluster IP"][model.IPv4], "c2")
	s.endpoints = s.endpoints[:1]
	c.update(t, s.delta())
	c.swept(t)
	still(t, conn, "it was taken off the list", "c2")
}

// TestTrackedTCPServiceGone: with its pod gone too, a connection of the node itself ends, as do those of pods.
func TestTrackedTCPServiceGone(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	for _, f := range families {
		s := newShop()
		s.endpoints = s.endpoints[:1]
		d := s.delta()
		d.Pods = pods("a1", "b1", "c2")
		c.update(t, d)
		own, pod := c.node[0].connect(t, targets["cluster IP"][f], "a1"), c.pod["b1"].connect(t, targets["cluster IP"][f], "a1")
		gone := s.delta()
		gone.Services[s.service.Name] = nil
		for n := range gone.EndpointSlices {
			gone.EndpointSlices[n] = nil
		}
		c.update(t, gone)
		c.swept(t)
		still(t, own, "the Service is gone, its pod is not", "a1")
		still(t, pod, "the Service is gone, its pod is not", "a1")
		c.update(t, &model.Delta{Pods: pods("b1", "c2")})
		ends(t, own, f.String()+", from the node: the pod is gone too")
		ends(t, pod, f.String()+", from a pod: the pod is gone too")
	}
}

// endurance is how long a client insists: where what it sent first was lost, TCP repeats it after 1, 3, 7 and 15 s.
const endurance = 30 * time.Second

// insist opens one connection and asks there until it is answered, which is true, or somebody refuses it: without the
// tables packets come to who doesn't know what to do with them.
func (c *cluster) insist(network, addr string, since time.Time) bool {
	var k net.Conn
	var err error
	c.pod["b1"].in(func() { k, err = net.DialTimeout(network, addr, endurance) })
	if err != nil {
		return false
	}
	defer k.Close()
	for time.Since(since) < endurance {
		switch got, _ := exchange(k, impatience/10); {
		case got == "a1" || got == "c2":
			return true
		case got == refused && network == "tcp":
			return false
		}
	}
	return false
}

// TestRepairSweeps: what is sent while somebody has deleted the tables goes elsewhere, and would go on doing so when they
// are back: the kernel remembers where a connection goes.
func TestRepairSweeps(t *testing.T) {
	c := newCluster(t)
	c.start(t, shared)
	s := newShop()
	c.update(t, s.delta())
	var conn *nft.Conn
	c.node[0].in(func() { conn, _ = nft.Dial() })
	defer func() { _ = conn.Close() }()

	var answered, late atomic.Int64
	var stop atomic.Bool
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for n := 0; !stop.Load(); n++ {
				f, network := families[n%2], []string{"udp", "tcp"}[i%2]
				since := time.Now()
				for !c.insist(network, targets["cluster IP"][f], since) {
					if took := time.Since(since); took >= endurance {
						t.Errorf("%s %s: no answer within %s", network, f, took)
						return
					}
				}
				answered.Add(1)
				if time.Since(since) > impatience/10 {
					late.Add(1)
				}
			}
		})
	}
	goOn := func() {
		t.Helper()
		until := answered.Load() + 50
		for start := time.Now(); answered.Load() < until; time.Sleep(time.Millisecond) {
			if time.Since(start) > endurance {
				t.Fatal("clients don't go on")
			}
		}
	}
	for range 5 {
		goOn()
		var b nft.Batch
		for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
			b.DeleteTable(nft.Table{Family: f, Name: servicetable.TableName})
		}
		if err := conn.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	goOn()
	stop.Store(true)
	clients.Wait()
	t.Logf("%d answers, %d of them late", answered.Load(), late.Load())
}

// brokenFlows fails to delete so many times.
type brokenFlows struct {
	flowTable
	left atomic.Int32
}

func (b *brokenFlows) Delete(f []conntrack.Flow) (int, error) {
	if b.left.Add(-1) >= 0 {
		return 0, errors.New("injected")
	}
	return b.flowTable.Delete(f)
}

// TestSweepFails: what could not be ended is ended later, also of Services that are gone.
func TestSweepFails(t *testing.T) {
	c := newCluster(t)
	var broken *brokenFlows
	c.tamper = func(s *Services) {
		broken = &brokenFlows{flowTable: s.flows}
		s.flows = broken
	}
	c.start(t)
	s := newShop()
	s.endpoints = s.endpoints[:1]
	c.update(t, s.delta())
	c.swept(t)
	k := c.pod["b1"].talk(t, targets["cluster IP"][model.IPv4])
	k.comesTo(t, "at first", "a1")
	broken.left.Store(2)
	gone := s.delta()
	gone.Services[s.service.Name] = nil
	c.update(t, gone)
	eventually(t, fmt.Sprint("the Service is gone, and the kernel refused at first; failures left ", broken.left.Load()),
		func() bool { return k.ask() != "a1" })
}
