// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/nstest"
)

// lan is one Ethernet segment: a bridge in a network namespace of its own, and hosts in theirs.
type lan struct {
	t      *testing.T
	bridge *host
	hosts  map[string]*host
}

// host is a network namespace with eth0 on the lan.
type host struct {
	ns   netns.NsHandle
	nl   *netlink.Handle
	mac  mac
	port netlink.Link // the bridge's end
}

// needNamespaces skips where they can't be had, and fails there in CI.
func needNamespaces(t *testing.T) {
	t.Helper()
	ns, err := newNamespace()
	nstest.Require(t, err)
	ns.Close()
}

// newNamespace makes a network namespace; the calling thread stays where it is.
func newNamespace() (netns.NsHandle, error) {
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return -1, err
	}
	defer old.Close()
	ns, err := netns.New()
	if err != nil {
		runtime.UnlockOSThread()
		return -1, err
	}
	if err := netns.Set(old); err != nil {
		return -1, err // the thread stays locked and so ends with its goroutine
	}
	runtime.UnlockOSThread()
	return ns, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t *testing.T) *host {
	ns, err := newNamespace()
	must(t, err)
	nl, err := netlink.NewHandleAt(ns)
	must(t, err)
	t.Cleanup(func() { nl.Close(); ns.Close() })
	lo, err := nl.LinkByName("lo")
	must(t, err)
	must(t, nl.LinkSetUp(lo))
	return &host{ns: ns, nl: nl}
}

func newLAN(t *testing.T) *lan {
	needNamespaces(t)
	l := &lan{t: t, bridge: newHost(t), hosts: map[string]*host{}}
	must(t, l.bridge.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	br, err := l.bridge.nl.LinkByName("br0")
	must(t, err)
	must(t, l.bridge.nl.LinkSetUp(br))
	return l
}

// add puts a host with 192.0.2.n/24 and 2001:db8::n/64 on the lan.
func (l *lan) add(name string, n int) *host {
	l.t.Helper()
	h := newHost(l.t)
	l.hosts[name] = h
	port := "p" + name
	must(l.t, l.bridge.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.ns)}))
	var err error
	h.port, err = l.bridge.nl.LinkByName(port)
	must(l.t, err)
	br, err := l.bridge.nl.LinkByName("br0")
	must(l.t, err)
	must(l.t, l.bridge.nl.LinkSetMaster(h.port, br))
	must(l.t, l.bridge.nl.LinkSetUp(h.port))
	eth, err := h.nl.LinkByName("eth0")
	must(l.t, err)
	for _, a := range []string{fmt.Sprintf("192.0.2.%d/24", n), fmt.Sprintf("2001:db8::%x/64", n)} {
		ip, ipnet, err := net.ParseCIDR(a)
		must(l.t, err)
		ipnet.IP = ip
		must(l.t, h.nl.AddrAdd(eth, &netlink.Addr{IPNet: ipnet, Flags: unix.IFA_F_NODAD}))
	}
	must(l.t, h.nl.LinkSetUp(eth))
	h.mac = mac(eth.Attrs().HardwareAddr)
	return h
}

// cut takes the host's cable out, or puts it back.
func (l *lan) cut(name string, cut bool) {
	h := l.hosts[name]
	if cut {
		must(l.t, l.bridge.nl.LinkSetDown(h.port))
	} else {
		must(l.t, l.bridge.nl.LinkSetUp(h.port))
	}
}

// split keeps the host apart from all others but its own carrier: the bridge's end leaves the bridge, or returns.
func (l *lan) split(name string, split bool) {
	h := l.hosts[name]
	if split {
		must(l.t, l.bridge.nl.LinkSetNoMaster(h.port))
		return
	}
	br, err := l.bridge.nl.LinkByName("br0")
	must(l.t, err)
	must(l.t, l.bridge.nl.LinkSetMaster(h.port, br))
}

// agent is an Announcer at work on a host.
type agent struct {
	*Announcer
	stop func()
}

var labKey = []byte("the uid of kube-system")

func (l *lan) agent(name string, opts Options) *agent {
	l.t.Helper()
	opts.Node, opts.NetNS = name, int(l.hosts[name].ns)
	opts.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	a, err := New(opts)
	must(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.Run(ctx); err != nil {
			l.t.Errorf("%s: %v", name, err)
		}
	}()
	x := &agent{a, sync.OnceFunc(func() { cancel(); <-done })}
	l.t.Cleanup(x.stop)
	return x
}

func wanted(addrs []netip.Addr, nodes ...string) map[netip.Addr][]addresses.Candidate {
	out := map[netip.Addr][]addresses.Candidate{}
	for _, a := range addrs {
		out[a] = same(nodes...)
	}
	return out
}

// probe asks for addresses from a host, over and over, as its own packets: who answers, and when.
type probe struct {
	mu      sync.Mutex
	answers map[netip.Addr][]answer
	stop    func()
}

type answer struct {
	at time.Time
	by mac
}

// newProbe sends a request for each address every 20 ms and notes all answers and announcements.
func (l *lan) newProbe(name string, addrs []netip.Addr) *probe {
	l.t.Helper()
	h := l.hosts[name]
	eth, err := h.nl.LinkByName("eth0")
	must(l.t, err)
	index := eth.Attrs().Index
	arp, err := openPacket(int(h.ns), index, unix.ETH_P_ARP, nil)
	must(l.t, err)
	nd, err := openPacket(int(h.ns), index, unix.ETH_P_IPV6, ndpFilter)
	must(l.t, err)
	p := &probe{answers: map[netip.Addr][]answer{}}
	heard := func(a netip.Addr, by mac) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.answers[a] = append(p.answers[a], answer{time.Now(), by})
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = arp.receive(func(f []byte) {
			if q, ok := parseARP(f); ok && slices.Contains(addrs, q.sender) {
				heard(q.sender, q.senderMAC)
			}
		})
	})
	wg.Go(func() {
		_ = nd.receive(func(f []byte) {
			if n, ok := parseNeighbor(f); ok && n.advertisement && slices.Contains(addrs, n.target) {
				heard(n.target, n.linkAddr)
			}
		})
	})
	done := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for _, a := range addrs {
				if a.Is4() {
					_ = arp.send(arpPacket{from: h.mac, op: arpRequest, senderMAC: h.mac, sender: netip.MustParseAddr("192.0.2.100"), target: a}.frame(broadcast))
				} else {
					_ = nd.send(solicitation(a, netip.MustParseAddr("2001:db8::64"), h.mac))
				}
			}
		}
	})
	p.stop = sync.OnceFunc(func() { close(done); arp.close(); nd.close(); wg.Wait() })
	l.t.Cleanup(p.stop)
	return p
}

// since gives the answers from a time on.
func (p *probe) since(a netip.Addr, t time.Time) []answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []answer
	for _, x := range p.answers[a] {
		if x.at.After(t) {
			out = append(out, x)
		}
	}
	return out
}

// by are the distinct hosts among answers.
func by(answers []answer) []mac {
	var out []mac
	for _, x := range answers {
		if !slices.Contains(out, x.by) {
			out = append(out, x.by)
		}
	}
	return out
}

// onlyAt fails unless the probe was told of each address, and always that it is at its owner.
func (l *lan) onlyAt(p *probe, owners map[netip.Addr]string) {
	l.t.Helper()
	for a, owner := range owners {
		if who := by(p.since(a, time.Time{})); len(who) != 1 || who[0] != l.hosts[owner].mac {
			l.t.Errorf("%s, of %s, was said to be at %v", a, owner, who)
		}
	}
}

// neighbor is what the host's kernel has resolved the address to; ok is false if to nothing.
func (h *host) neighbor(t *testing.T, a netip.Addr) (mac, bool) {
	t.Helper()
	eth, err := h.nl.LinkByName("eth0")
	must(t, err)
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	ns, err := h.nl.NeighList(eth.Attrs().Index, family)
	must(t, err)
	for _, n := range ns {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a && len(n.HardwareAddr) == 6 && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
			return mac(n.HardwareAddr), true
		}
	}
	return mac{}, false
}

// dial sends the address a UDP packet from the host's kernel, which resolves it for that.
func (h *host) dial(t *testing.T, a netip.Addr) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(h.ns); err != nil {
			done <- err
			return
		}
		c, err := net.Dial("udp", netip.AddrPortFrom(a, 9).String())
		if err == nil {
			_, _ = c.Write([]byte("x"))
			c.Close()
		}
		done <- err
	}()
	must(t, <-done)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("in 20 s, not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// threeNodes is a lan with nodes a, b, c, an agent on each, a client, and addresses of both families that everybody
// may announce.
func threeNodes(t *testing.T, n int) (*lan, map[string]*agent, []netip.Addr) {
	l := newLAN(t)
	agents := map[string]*agent{}
	for i, name := range abc {
		l.add(name, 201+i)
		agents[name] = l.agent(name, Options{})
	}
	l.add("client", 100)
	addrs := someAddrs(n)
	for _, a := range agents {
		a.Update(labKey, labNodes(), wanted(addrs, abc...))
	}
	eventually(t, "each address has one announcer", func() bool { return len(announcers(agents, addrs)) == len(addrs) })
	return l, agents, addrs
}

// labNodes are the addresses of threeNodes' nodes.
func labNodes() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for i, name := range abc {
		out[name] = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 201+i)), netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", 201+i))}
	}
	return out
}

// announcers tells who announces each address; those with none or several are left out.
func announcers(agents map[string]*agent, addrs []netip.Addr) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	several := map[netip.Addr]bool{}
	for name, a := range agents {
		for _, x := range a.Announced() {
			several[x.Addr] = out[x.Addr] != ""
			out[x.Addr] = name
		}
	}
	for a := range out {
		if several[a] || !slices.Contains(addrs, a) {
			delete(out, a)
		}
	}
	return out
}

// peersHeard is the agent's metric of how many others it hears.
func peersHeard(t *testing.T, a *agent) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	must(t, reg.Register(a.metrics))
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == "weft_announce_peers" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("there is no weft_announce_peers")
	return 0
}
