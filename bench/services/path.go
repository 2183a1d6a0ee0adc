// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// pathResult compares connections through a Service with connections to the pod itself, in alternating rounds.
type pathResult struct {
	Contender string `json:"contender"`
	Services  int    `json:"services"`
	Direct    path   `json:"direct"`
	Service   path   `json:"service"`

	// Medians of what each short round through the Service gave, over what the one beside it gave without: what else
	// the machine does meanwhile, which both feel, does not count.
	Connections float64 `json:"connectionsOfDirect"`
	Bulk        float64 `json:"bulkOfDirect"`

	Error string `json:"error,omitempty"`
}

type path struct {
	PerSecond float64 `json:"connectionsPerSecond"`
	First     latency `json:"connect"` // from the first packet to the answer to it
	Bulk      float64 `json:"bulkGbitPerSecond"`
}

// The node is the process's own namespace; a client and a server pod hang off it.
const (
	clientAddr = "10.128.255.2"
	serverAddr = "10.128.255.3"
	gateway    = "169.254.1.1"
)

type pod struct{ ns netns.NsHandle }

func (p pod) in(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(p.ns); err != nil {
			panic(err)
		}
		f()
	}()
	<-done
}

func newPod(name, addr string) (pod, error) {
	var p pod
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			p.ns, err = netns.Get()
		}
	}()
	if <-done; err != nil {
		return p, err
	}
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns)}
	if err := netlink.LinkAdd(v); err != nil {
		return p, err
	}
	inside, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return p, err
	}
	defer inside.Close()
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return p, err
	}
	outside, err := netlink.LinkByName(name)
	if err != nil {
		return p, err
	}
	ip := func(s string) *net.IPNet { return &net.IPNet{IP: net.ParseIP(s).To4(), Mask: net.CIDRMask(32, 32)} }
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	in, out := eth0.Attrs().Index, outside.Attrs().Index
	return p, errors.Join(
		netlink.LinkSetUp(outside), inside.LinkSetUp(eth0),
		inside.AddrAdd(eth0, &netlink.Addr{IPNet: ip(addr)}), netlink.AddrAdd(outside, &netlink.Addr{IPNet: ip(gateway)}),
		inside.RouteAdd(&netlink.Route{LinkIndex: in, Dst: ip(gateway), Scope: netlink.SCOPE_LINK}),
		inside.RouteAdd(&netlink.Route{LinkIndex: in, Dst: all, Gw: net.ParseIP(gateway)}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: out, Dst: ip(addr), Scope: netlink.SCOPE_LINK}),
	)
}

func measurePath(name string, services int) pathResult {
	out := pathResult{Contender: name, Services: services}
	if err := out.measure(); err != nil {
		out.Error = err.Error()
	}
	return out
}

const (
	rounds    = 40
	roundTime = 200 * time.Millisecond
	bulkTime  = 200 * time.Millisecond
)

func (r *pathResult) measure() error {
	for k, v := range map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0",
		// Ended connections must not fill the table while new ones are counted.
		"net/netfilter/nf_conntrack_tcp_timeout_close": "1", "net/netfilter/nf_conntrack_tcp_timeout_time_wait": "1"} {
		if err := os.WriteFile("/proc/sys/"+k, []byte(v), 0o644); err != nil && !strings.Contains(k, "netfilter") {
			return err
		}
	}
	client, err := newPod("client", clientAddr)
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	server, err := newPod("server", serverAddr)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if err := serve(server); err != nil {
		return err
	}
	c, err := newContender(r.Contender)
	if err != nil {
		return err
	}
	// The one that is used comes last, so that whoever searches in order has to go all the way.
	_, _, err = c.load(func(each func(*corev1.Service, []*discoveryv1.EndpointSlice) error) error {
		if err := generate(r.Services-1, 4)(each); err != nil {
			return err
		}
		last := makeSlices(r.Services-1, 1, 0)
		last[0].Endpoints[0].Addresses = []string{serverAddr}
		return each(makeService(r.Services-1), last)
	})
	if err != nil {
		return err
	}
	vip := net.JoinHostPort(serviceIP(r.Services-1).String(), "80")
	direct := net.JoinHostPort(serverAddr, "8080")
	addrs := [2]string{direct, vip}
	var connects [2][]time.Duration
	var rates, bulk [2][]float64 // of each round
	for round := range rounds {
		for i := range addrs {
			i = (i + round) % 2 // neither is always the first
			d, took, err := connect(client, addrs[i])
			if err != nil {
				return err
			}
			connects[i], rates[i] = append(connects[i], d...), append(rates[i], float64(len(d))/took.Seconds())
		}
	}
	for round := range rounds {
		for i := range addrs {
			i = (i + round) % 2
			g, err := stream(client, addrs[i])
			if err != nil {
				return err
			}
			bulk[i] = append(bulk[i], g)
		}
	}
	r.Connections, r.Bulk = ratio(rates), ratio(bulk)
	for i, p := range []*path{&r.Direct, &r.Service} {
		p.First, p.PerSecond, p.Bulk = *percentiles(connects[i]), median(rates[i]), median(bulk[i])
	}
	return nil
}

// ratio is the median of what the rounds through the Service gave over those without.
func ratio(rounds [2][]float64) float64 {
	out := make([]float64, len(rounds[0]))
	for i := range out {
		out[i] = rounds[1][i] / rounds[0][i]
	}
	return median(out)
}

func median[T cmp.Ordered](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// serve accepts connections: it closes one that says nothing, and reads one that sends.
func serve(p pod) error {
	var l net.Listener
	var err error
	p.in(func() { l, err = net.Listen("tcp4", ":8080") })
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
	}()
	return nil
}

// connect opens connections one after the other for a round.
func connect(p pod, addr string) (each []time.Duration, took time.Duration, err error) {
	p.in(func() {
		start := time.Now()
		for time.Since(start) < roundTime {
			t := time.Now()
			var c net.Conn
			if c, err = net.DialTimeout("tcp4", addr, 5*time.Second); err != nil {
				return
			}
			each = append(each, time.Since(t))
			_ = c.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports are few
			_ = c.Close()
		}
		took = time.Since(start)
	})
	return each, took, err
}

// stream sends as much as it can over one connection and returns Gbit/s.
func stream(p pod, addr string) (gbit float64, err error) {
	var c net.Conn
	p.in(func() { c, err = net.DialTimeout("tcp4", addr, 5*time.Second) })
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 1<<20)
	sent, start := 0, time.Now()
	for time.Since(start) < bulkTime {
		n, err := c.Write(buf)
		if err != nil {
			return 0, err
		}
		sent += n
	}
	return float64(sent) * 8 / 1e9 / time.Since(start).Seconds(), nil
}
