// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/dnspath"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nft/dnstable"
)

const (
	dns4, dns6   = "10.96.0.10", "fd00:96::a"
	untracked    = 1053
	dnsNamespace = "kube-system"
)

// dnsCluster is a cluster whose DNS Service has a server in pod a1 of the first node and one in c2 of the second.
type dnsCluster struct {
	*cluster
	path     *DNSPath
	metrics  *prometheus.Registry
	stopPath func()
}

func newDNSCluster(t *testing.T) *dnsCluster {
	t.Helper()
	c := &dnsCluster{cluster: newCluster(t)}
	// As strict about sources as a node can be.
	c.node[0].sysctl(t, "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.wefta1.rp_filter=1", "net.ipv4.conf.weftb1.rp_filter=1")
	for _, p := range []string{"a1", "c2"} {
		c.pod[p].serve(t, p+"/53", 53)
		c.pod[p].serve(t, p+"/untracked", untracked)
	}
	c.start(t)
	var err error
	c.metrics = prometheus.NewRegistry()
	c.node[0].in(func() {
		c.path, err = NewDNSPath("node1", dnsNamespace, c.metrics, slog.New(slog.NewTextHandler(c.log, nil)))
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	path := c.path
	go func() {
		defer close(done)
		if err := path.Run(ctx); err != nil {
			t.Errorf("dns: %v", err)
		}
	}()
	c.stopPath = func() { stop(); <-done }
	t.Cleanup(func() { c.stopPath(); _ = path.Close() })
	return c
}

// dns has the Service with these endpoints: "a1" is ready, "a1!" is not.
func (c *dnsCluster) dns(t *testing.T, pods ...string) {
	t.Helper()
	name := func(n string) model.Name { return model.Name{Namespace: dnsNamespace, Name: n} }
	d := &model.Delta{Complete: true,
		Services: map[model.Name]*model.Service{name("dns"): {
			Meta:         model.Meta{Name: name("dns"), Annotations: map[string]string{dnspath.Annotation: "dns-node"}},
			ClusterIPs:   addrs(dns4, dns6),
			Families:     []model.Family{model.IPv4, model.IPv6},
			Distribution: model.PreferSameNode,
			Ports: []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53},
				{Name: "dns-node", Protocol: model.UDP, Port: untracked}},
		}},
		EndpointSlices: map[model.Name]*model.EndpointSlice{},
		Nodes:          map[string]*model.Node{"node1": theNode()},
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		s := &model.EndpointSlice{Meta: model.Meta{Name: name("dns-" + f.String())}, Service: "dns", Family: f,
			Ports: []model.EndpointPort{{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53},
				{Name: "dns-node", Protocol: model.UDP, Port: untracked}}}
		for _, p := range pods {
			p, unready := strings.CutSuffix(p, "!")
			node, host := map[string]int{"a1": 0, "b1": 0, "c2": 1}[p], map[string]int{"a1": 2, "b1": 3, "c2": 2}[p]
			v4, v6 := podAddrs(node, host)
			a := v4
			if f == model.IPv6 {
				a = v6
			}
			s.Endpoints = append(s.Endpoints, model.Endpoint{Addresses: addrs(a), Node: fmt.Sprintf("node%d", node+1), Ready: !unready, Serving: true,
				Terminating: unready, HintNodes: []string{fmt.Sprintf("node%d", node+1)}})
		}
		d.EndpointSlices[s.Meta.Name] = s
	}
	c.update(t, d)
	c.node[0].in(func() {
		if err := c.path.Update(context.Background(), d); err != nil {
			t.Fatal(err)
		}
	})
}

// flows are the connections that the first node tracks to or from port 53 and the untracked one, over UDP.
func (c *dnsCluster) flows(t *testing.T) (out []string) {
	t.Helper()
	c.node[0].in(func() {
		ct, err := conntrack.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		defer ct.Close()
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			flows, err := ct.Flows(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, fl := range flows {
				for _, p := range []uint16{fl.Source.Port(), fl.Dest.Port(), fl.Peer.Port()} {
					if fl.Protocol == model.UDP && (p == 53 || p == untracked) {
						out = append(out, fmt.Sprintf("%s %s %s", fl.Source, fl.Dest, fl.Peer))
						break
					}
				}
			}
		}
	})
	return out
}

// metric is the value of one of the part's metrics.
func (c *dnsCluster) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := c.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func (c *dnsCluster) want(t *testing.T, from *space, network, addr, server string) (client string) {
	t.Helper()
	got, client := from.ask(network, addr)
	if got != server {
		t.Fatalf("%s, %s to %s: answered by %q, want %q\n%s", from.name, network, addr, got, server, c.ruleset())
	}
	return client
}

// ruleset is for a failure's message.
func (c *dnsCluster) ruleset() (out string) {
	c.node[0].in(func() {
		b, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if out = string(b); err != nil {
			out = ""
		}
	})
	return out
}

func TestDNSWithoutConntrack(t *testing.T) {
	c := newDNSCluster(t)
	c.dns(t, "a1", "c2")
	if f := c.flows(t); len(f) != 0 {
		t.Fatalf("before any query: %v", f)
	}
	a4, a6 := podAddrs(0, 2)
	b4, b6 := podAddrs(0, 3)
	for _, offload := range []bool{true, false} {
		if !offload { // checksums that are worked out before the packet leaves, and looked at where it arrives
			for _, p := range []string{"a1", "b1"} {
				c.pod[p].noChecksumOffload(t, "eth0")
			}
			c.node[0].noChecksumOffload(t, "wefta1")
			c.node[0].noChecksumOffload(t, "weftb1")
		}
		for range 3 {
			if client := c.want(t, c.pod["b1"], "udp", dns4+":53", "a1/untracked"); client != b4 {
				t.Errorf("the server saw %s, want %s", client, b4)
			}
			if client := c.want(t, c.pod["b1"], "udp", "["+dns6+"]:53", "a1/untracked"); client != b6 {
				t.Errorf("the server saw %s, want %s", client, b6)
			}
			c.want(t, c.node[0], "udp", dns4+":53", "a1/untracked")
			c.want(t, c.node[0], "udp", "["+dns6+"]:53", "a1/untracked")
		}
	}
	if f := c.flows(t); len(f) != 0 {
		t.Errorf("queries to the DNS Service are tracked: %v", f)
	}
	// Whoever asks the server itself gets the answer from itself.
	c.want(t, c.pod["b1"], "udp", a4+":53", "a1/53")
	c.want(t, c.pod["b1"], "udp", "["+a6+"]:53", "a1/53")
	c.want(t, c.node[0], "udp", a4+":53", "a1/53")
	if f := c.flows(t); len(f) == 0 {
		t.Error("queries to the server itself are not tracked: this test would not see the others either")
	}
	// The server asks the Service as ever: itself, or another.
	if s, _ := c.pod["a1"].ask("udp", dns4+":53"); s != "a1/53" && s != "c2/53" {
		t.Errorf("the server asks the Service: %q", s)
	}
	c.want(t, c.pod["b1"], "tcp", dns4+":53", "a1/53")
}

// noChecksumOffload is `ethtool -K LINK tx off`.
func (s *space) noChecksumOffload(t *testing.T, link string) {
	t.Helper()
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	s.in(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		value := [2]uint32{setTxChecksum, 0}
		var pin runtime.Pinner
		pin.Pin(&value)
		defer pin.Unpin()
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(req.name[:], link)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			t.Fatalf("%s: turn off checksum offload of %s: %v", s.name, link, errno)
		}
	})
}

func TestDNSFallsBackToTheServiceAndReturns(t *testing.T) {
	c := newDNSCluster(t)
	c.dns(t, "a1", "c2")
	// One client, one socket, one question after the other: none may be lost, whoever answers.
	var asked, lost atomic.Int64
	var by [3]atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go c.pod["b1"].in(func() {
		defer close(done)
		conn, err := net.Dial("udp", dns4+":53")
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			asked.Add(1)
			if _, err := io.WriteString(conn, "who\n"); err != nil {
				lost.Add(1)
				t.Errorf("question %d: %v", asked.Load(), err)
				continue
			}
			line, err := in.ReadString('\n')
			if err != nil {
				lost.Add(1)
				t.Errorf("question %d: %v", asked.Load(), err)
				continue
			}
			switch server, _, _ := strings.Cut(line, " "); server {
			case "a1/untracked":
				by[0].Add(1)
			case "c2/53":
				by[1].Add(1)
			default:
				by[2].Add(1)
			}
		}
	})
	more := func(what string, n *atomic.Int64) {
		t.Helper()
		from := n.Load()
		for deadline := time.Now().Add(patience); n.Load() < from+10; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: never came true; %s", what, c.ruleset())
			}
		}
	}
	for range 5 {
		more("the node's own server answers", &by[0])
		c.dns(t, "a1!", "c2")
		more("another node's does while it is not ready", &by[1])
		c.dns(t, "c2")
		more("and when it is gone", &by[1])
		c.dns(t, "a1", "c2")
	}
	more("at the end", &by[0])
	if n := c.metric(t, "weft_dns_path_frontends"); n != 2 {
		t.Errorf("weft_dns_path_frontends is %v, want one of each family", n)
	}
	c.dns(t, "a1!", "c2")
	if n := c.metric(t, "weft_dns_path_frontends"); n != 0 {
		t.Errorf("weft_dns_path_frontends is %v while the server is not ready", n)
	}
	close(stop)
	<-done
	t.Logf("%d questions: %d answered by the node's own server, %d by another's, %d otherwise, %d lost", asked.Load(), by[0].Load(), by[1].Load(), by[2].Load(), lost.Load())
}

func TestDNSAnswersOfAServerThatLeaves(t *testing.T) {
	c := newDNSCluster(t)
	c.dns(t, "a1", "c2")
	// A query is under way when the server is no longer ready: its answer must still come back as the Service's.
	var client net.Conn
	c.pod["b1"].in(func() {
		var err error
		if client, err = net.Dial("udp", dns4+":53"); err != nil {
			t.Fatal(err)
		}
	})
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(client, "who\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || !strings.HasPrefix(line, "a1/untracked") {
		t.Fatalf("%q, %v", line, err)
	}
	c.dns(t, "a1!", "c2")
	// The answer, late: sent from the untracked port by hand.
	from := netip.MustParseAddrPort(client.LocalAddr().String())
	c.pod["a1"].in(func() { c.late(t, from, 0) })
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "late\n" {
		t.Fatalf("the answer of a server that is no longer ready: %q, %v\n%s", line, err, c.ruleset())
	}
	// An answer that the node held back comes from the node itself, in the server's name.
	c.node[0].in(func() { c.late(t, from, dnstable.AnswerMark) })
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "late\n" {
		t.Fatalf("an answer that was held back: %q, %v\n%s", line, err, c.ruleset())
	}
	if f := c.flows(t); len(f) != 0 {
		t.Errorf("answers are tracked: %v", f)
	}
}

// late sends an answer of a1 from the untracked port, which another socket has too, in the calling thread's namespace.
func (c *dnsCluster) late(t *testing.T, to netip.AddrPort, mark int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		t.Fatal(err)
	}
	a4, _ := podAddrs(0, 2)
	body := "late\n"
	p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0} // length and checksum are the kernel's to fill in
	p = append(append(p, netip.MustParseAddr(a4).AsSlice()...), to.Addr().AsSlice()...)
	p = append(p, untracked>>8, untracked&0xff, byte(to.Port()>>8), byte(to.Port()), 0, byte(8+len(body)), 0, 0) // no checksum
	if err := unix.Sendto(fd, append(p, body...), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
}

func TestDNSAnswersCannotBeForged(t *testing.T) {
	c := newDNSCluster(t)
	c.dns(t, "a1", "c2")
	// Pod b1 takes on a1's address and sends from its untracked port: nobody may take that for the server's answer.
	a4, _ := podAddrs(0, 2)
	c.node[0].sysctl(t, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.weftb1.rp_filter=0")
	c.pod["b1"].addr(t, "eth0", a4+"/32")
	outside, err := func() (pc net.PacketConn, err error) {
		c.outside.in(func() { pc, err = net.ListenPacket("udp", "192.168.1.100:0") })
		return pc, err
	}()
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	c.outside.route(t, "10.244.1.0/24", "192.168.1.1", "eth0")
	send := func(pod string) {
		c.pod[pod].in(func() {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(a4), Port: untracked}}
			conn, err := d.Dial("udp", outside.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "forged\n"); err != nil {
				t.Fatal(err)
			}
		})
	}
	send("b1")
	buf := make([]byte, 64)
	_ = outside.SetReadDeadline(time.Now().Add(patience))
	_, from, err := outside.ReadFrom(buf)
	if err != nil {
		t.Fatalf("the packet did not arrive: %v", err)
	}
	if host(from) == dns4 {
		t.Error("a packet from another pod's link was taken for the server's answer")
	}
}

func TestDNSPathSurvives(t *testing.T) {
	c := newDNSCluster(t)
	c.dns(t, "a1", "c2")
	c.want(t, c.pod["b1"], "udp", dns4+":53", "a1/untracked")
	// Somebody flushes the ruleset: it is back before long.
	c.node[0].in(func() {
		conn, err := nft.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var b nft.Batch
		b.DeleteTable(nft.Table{Family: nft.IPv4, Name: dnstable.TableName})
		if err := conn.Commit(&b); err != nil {
			t.Fatal(err)
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if server, _ := c.pod["b1"].ask("udp", dns4+":53"); server == "a1/untracked" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the tables were not repaired:\n%s", c.ruleset())
		}
	}
	if n := c.metric(t, "weft_dns_path_repairs_total"); n < 1 {
		t.Errorf("weft_dns_path_repairs_total is %v", n)
	}
}

func TestDNSPathLeavesNoTrace(t *testing.T) {
	c := newDNSCluster(t)
	c.dns(t, "a1", "c2")
	tables := func() (out []string) {
		c.node[0].in(func() {
			conn, err := nft.Dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
				names, err := conn.Tables(f)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range names {
					if n == dnstable.TableName {
						out = append(out, f.String())
					}
				}
			}
		})
		return out
	}
	if got := tables(); len(got) != 2 {
		t.Fatalf("tables at work: %v", got)
	}
	c.stopPath()
	for range 2 { // with tables, and without
		var err error
		c.node[0].in(func() { err = c.path.Cleanup(context.Background()) })
		if err != nil {
			t.Fatal(err)
		}
		if got := tables(); len(got) != 0 {
			t.Errorf("tables left behind: %v", got)
		}
	}
	c.want(t, c.pod["b1"], "udp", dns4+":53", "a1/53")
}

// stubKernel refuses as often as it is told to.
type stubKernel struct {
	dnsKernel
	refuse          []error
	applied, forgot int
}

func (k *stubKernel) Forget() { k.forgot++ }
func (k *stubKernel) Apply(dnspath.Paths) error {
	k.applied++
	if len(k.refuse) == 0 {
		return nil
	}
	err := k.refuse[0]
	k.refuse = k.refuse[1:]
	return err
}

func TestDNSPathOnKernelsThatRefuse(t *testing.T) {
	missing := fmt.Errorf("DNS tables: %w", unix.ENOENT)
	busy := fmt.Errorf("DNS tables: %w", unix.EBUSY)
	for _, c := range []struct {
		why                   string
		refuse                []error
		fails, off            bool
		applied, forgot, then int // then: what a second Update adds
	}{
		{"all is well", nil, false, false, 1, 0, 0},
		{"somebody deleted the tables", []error{missing}, false, false, 2, 1, 0},
		{"it can't be done on this kernel", []error{missing, missing}, false, true, 2, 1, 0},
		{"not now", []error{busy}, true, false, 1, 0, 1},
	} {
		k := &stubKernel{refuse: c.refuse}
		d := &DNSPath{log: slog.New(slog.DiscardHandler), table: dnspath.NewTable("node1", dnsNamespace), kernel: k, failed: true}
		err := d.Update(t.Context(), &model.Delta{Complete: true})
		if (err != nil) != c.fails || d.off != c.off || k.applied != c.applied || k.forgot != c.forgot {
			t.Errorf("%s: %v, off %v, applied %d times, forgot %d", c.why, err, d.off, k.applied, k.forgot)
		}
		if err := d.Update(t.Context(), &model.Delta{}); err != nil || k.applied != c.applied+c.then {
			t.Errorf("%s, then: %v, applied %d times", c.why, err, k.applied)
		}
	}
}
