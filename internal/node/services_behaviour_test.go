// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nft/servicetable"
)

var families = []model.Family{model.IPv4, model.IPv6}

// expect asks once and wants that answer.
func expect(t *testing.T, from *space, network, addr, want string) {
	t.Helper()
	wait := patience
	if want == silent {
		wait = impatience
	}
	if got, _ := from.askFor(wait, network, addr); got != want {
		t.Errorf("%s to %s %s: %s, want %s", from.name, network, addr, got, want)
	}
}

// eventually asks until the answer is the one wanted.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(endurance)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", endurance, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNobodyServes(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = nil
	c.update(t, s.delta())
	for _, network := range []string{"tcp", "udp"} {
		for _, f := range families {
			// No endpoint anywhere: an answer at once, to everyone.
			for _, from := range []string{"pod", "node", "outside"} {
				for _, target := range []string{"cluster IP", "external IP", "LB IP", "node port"} {
					expect(t, c.client(from), network, targets[target][f], refused)
				}
			}
			expect(t, c.node[0], network, targets["loopback"][f], refused)
		}
		// A cluster IP has no such port; no Service has the cluster IP.
		for _, from := range []string{"pod", "node", "outside"} {
			expect(t, c.client(from), network, "10.96.0.80:81", refused)
			expect(t, c.client(from), network, "[fd00:96::80]:81", refused)
		}
		expect(t, c.pod["b1"], network, "10.96.1.1:80", silent)
		expect(t, c.pod["b1"], network, "[fd00:96::1:1]:80", silent)
	}

	// Endpoints elsewhere only: the Local policies are silent to those whom they bind.
	s.endpoints = []model.Endpoint{endpoint("c2")}
	s.service.ExternalLocal, s.service.InternalLocal = true, true
	c.update(t, s.delta())
	for _, f := range families {
		for _, target := range []string{"external IP", "LB IP", "node port"} {
			expect(t, c.outside, "tcp", targets[target][f], silent)
			expect(t, c.pod["b1"], "tcp", targets[target][f], "c2")
			expect(t, c.node[0], "tcp", targets[target][f], "c2")
		}
		expect(t, c.pod["b1"], "tcp", targets["cluster IP"][f], silent)
		expect(t, c.node[0], "tcp", targets["cluster IP"][f], silent)
	}

	// A terminating endpoint of this node steps in.
	local := endpoint("a1")
	local.Ready, local.Terminating = false, true
	s.endpoints = append(s.endpoints, local)
	c.update(t, s.delta())
	for _, f := range families {
		expect(t, c.outside, "tcp", targets["LB IP"][f], "a1")
		expect(t, c.pod["b1"], "tcp", targets["LB IP"][f], "c2")
		expect(t, c.pod["b1"], "tcp", targets["cluster IP"][f], "a1")
	}
}

func TestSourceRanges(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = s.endpoints[:1]
	s.service.LoadBalancer.SourceRanges = prefixes("192.168.1.100/32", "fd00:192::100/128", "10.244.1.3/32")
	c.update(t, s.delta())
	for _, local := range []bool{false, true} {
		s.service.ExternalLocal = local
		c.update(t, s.delta())
		for _, f := range families {
			expect(t, c.outside, "tcp", targets["LB IP"][f], "a1")
			expect(t, c.node[0], "tcp", targets["LB IP"][f], silent)
			// Only load balancer IPs are restricted.
			expect(t, c.node[0], "tcp", targets["external IP"][f], "a1")
			expect(t, c.node[0], "tcp", targets["node port"][f], "a1")
		}
		expect(t, c.pod["b1"], "tcp", targets["LB IP"][model.IPv4], "a1")
		expect(t, c.pod["b1"], "tcp", targets["LB IP"][model.IPv6], silent)
	}
	// A node that is admitted may use the load balancer IP as its source, as hosts do that have it as their own.
	s.service.LoadBalancer.SourceRanges = prefixes("192.168.1.1/32", "fd00:192::1/128")
	c.update(t, s.delta())
	c.node[0].addr(t, "lo", "203.0.113.1/32")
	expect(t, c.node[0], "tcp", targets["LB IP"][model.IPv4], "a1")
	expect(t, c.outside, "tcp", targets["LB IP"][model.IPv4], silent)
}

func TestNodePortAddresses(t *testing.T) {
	for _, x := range []struct {
		name    string
		ranges  []netip.Prefix
		primary bool
		v6      bool // whether node ports are on the node's IPv6 address
		lo, lo6 bool // on 127.0.0.1 and ::1
	}{
		{"a range of one family", prefixes("192.168.1.0/24"), false, true, false, true},
		{"and loopback", prefixes("192.168.1.0/24", "127.0.0.0/8"), false, true, true, true},
		{"both families, one loopback", prefixes("192.168.1.0/24", "fd00:192::/64", "::1/128"), false, true, false, true},
		{"the other's loopback only", prefixes("192.168.1.0/24", "::1/128"), false, false, false, true},
		{"primary", nil, true, true, false, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCluster(t)
			c.start(t, func(cfg *ServicesConfig) { cfg.NodePorts, cfg.PrimaryNodePorts = x.ranges, x.primary })
			c.node[0].addr(t, "eth0", "172.16.0.1/32")
			c.outside.route(t, "172.16.0.1/32", "192.168.1.1", "eth0")
			s := newShop()
			s.endpoints = s.endpoints[:1]
			c.update(t, s.delta())
			has := func(b bool) string {
				if b {
					return "a1"
				}
				return refused // the node's own "nothing listens"
			}
			expect(t, c.outside, "tcp", "192.168.1.1:30080", "a1")
			expect(t, c.outside, "tcp", "172.16.0.1:30080", refused)
			expect(t, c.outside, "tcp", targets["node port"][model.IPv6], has(x.v6))
			for network := range map[string]bool{"tcp": true, "udp": true} {
				expect(t, c.node[0], network, "127.0.0.1:30080", has(x.lo))
				expect(t, c.node[0], network, "[::1]:30080", has(x.lo6))
			}
			// Where loopback has no node ports, the node's own processes are reached there.
			c.node[0].serve(t, "own", 30080)
			if !x.lo {
				expect(t, c.node[0], "tcp", "127.0.0.1:30080", "own")
			}
			expect(t, c.outside, "tcp", "192.168.1.1:30080", "a1")
		})
	}
}

// TestAffinity: a client stays, over restarts of the agent and changes of other endpoints, and moves when its own
// endpoint goes.
func TestAffinity(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = append(s.endpoints, endpoint("b1"))
	s.service.AffinityTimeout = time.Hour
	for _, local := range []bool{false, true} {
		s.service.ExternalLocal = local
		c.update(t, s.delta())
		for _, f := range families {
			for _, target := range []string{"cluster IP", "node port", "LB IP"} {
				addr := targets[target][f]
				first, _ := c.outside.ask("tcp", addr)
				stays := func(when string) {
					t.Helper()
					for range 12 {
						if got, _ := c.outside.ask("tcp", addr); got != first {
							t.Fatalf("%s %s: %s: %s answered, before it was %s", target, f, when, got, first)
						}
					}
				}
				stays("at once")
				c.kill()
				c.start(t)
				c.update(t, s.delta())
				stays("after a restart")

				// Another endpoint goes and comes back.
				all := slices.Clone(s.endpoints)
				other := slices.IndexFunc(all, func(e model.Endpoint) bool { return e.Pod != first })
				s.endpoints = slices.Delete(slices.Clone(all), other, other+1)
				c.update(t, s.delta())
				stays("without another endpoint")
				s.endpoints = all
				c.update(t, s.delta())
				stays("with the other endpoint again")

				// Its own goes: it moves at once, and stays there when the old one comes back.
				own := slices.IndexFunc(all, func(e model.Endpoint) bool { return e.Pod == first })
				s.endpoints = slices.Delete(slices.Clone(all), own, own+1)
				c.update(t, s.delta())
				gone := first
				if first, _ = c.outside.ask("tcp", addr); first == gone || !slices.Contains([]string{"a1", "b1", "c2"}, first) {
					t.Fatalf("%s %s: %s answered after %s had gone", target, f, first, gone)
				}
				stays("after moving")
				s.endpoints = all
				c.update(t, s.delta())
				stays("with the old endpoint back")
			}
		}
	}
}

// TestAffinityOfPort: with session affinity a client's endpoint is that of the Service port, whichever of its addresses
// the client uses, as with kube-proxy; only where that endpoint is left out does it get another.
func TestAffinityOfPort(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = append(s.endpoints, endpoint("b1"))
	s.service.AffinityTimeout = time.Hour
	c.update(t, s.delta())
	same := func(when string, f model.Family, network string) string {
		t.Helper()
		first, _ := c.outside.ask(network, targets["cluster IP"][f])
		for range 4 {
			for _, target := range []string{"LB IP", "node port", "external IP", "cluster IP"} {
				if got, _ := c.outside.ask(network, targets[target][f]); got != first {
					t.Errorf("%s: %s %s: %s answered by the %s, before it was %s by the cluster IP", when, network, f, got, target, first)
				}
			}
		}
		return first
	}
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			first := same("at first", f, network)
			c.kill()
			c.start(t)
			c.update(t, s.delta())
			if got := same("after a restart", f, network); got != first {
				t.Errorf("%s %s: %s answered after a restart, %s before", network, f, got, first)
			}
			// Its endpoint goes: all addresses agree about the next one, and stay with it when the old one is back.
			all := slices.Clone(s.endpoints)
			s.endpoints = slices.DeleteFunc(slices.Clone(all), func(e model.Endpoint) bool { return e.Pod == first })
			c.update(t, s.delta())
			c.swept(t) // once it is back, datagrams from a port that was used a moment ago would go where the last ones went
			next := same("after it had gone", f, network)
			if next == first {
				t.Errorf("%s %s: %s answered after it had gone", network, f, first)
			}
			s.endpoints = all
			c.update(t, s.delta())
			if got := same("when it is back", f, network); got != next {
				t.Errorf("%s %s: %s answered when %s was back, before it was %s", network, f, got, first, next)
			}
		}
	}

	// Under Local the external addresses leave out the endpoint that is elsewhere, and those clients move that use them.
	s.service.ExternalLocal = true
	for _, f := range families {
		s.endpoints = []model.Endpoint{endpoint("c2")}
		c.update(t, s.delta())
		expect(t, c.outside, "tcp", targets["cluster IP"][f], "c2")
		s.endpoints = []model.Endpoint{endpoint("a1"), endpoint("c2")}
		c.update(t, s.delta())
		expect(t, c.outside, "tcp", targets["cluster IP"][f], "c2")
		expect(t, c.outside, "tcp", targets["LB IP"][f], "a1")
		expect(t, c.outside, "tcp", targets["node port"][f], "a1")
		expect(t, c.outside, "tcp", targets["cluster IP"][f], "a1")
	}
}

// TestAffinityEnds: a client is forgotten its timeout after its last new connection.
func TestAffinityEnds(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.service.AffinityTimeout = time.Second
	c.update(t, s.delta())
	var conn *nft.Conn
	var err error
	c.node[0].in(func() { conn, err = nft.Dial() })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	affinity := &nft.Set{Table: nft.Table{Family: nft.IPv4, Name: servicetable.TableName}, Name: "affinity"}
	remembered := func() (n int) {
		if err := conn.Elements(affinity, func(nft.Elem) { n++ }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 2 {
		since := time.Now()
		c.pod["b1"].ask("udp", targets["cluster IP"][model.IPv4])
		if n := remembered(); n != 1 && time.Since(since) < time.Second {
			t.Fatalf("%d clients are remembered, want 1", n)
		}
		eventually(t, "the client is forgotten", func() bool { return remembered() == 0 })
		if took := time.Since(since); took < time.Second/2 {
			t.Errorf("forgotten after %s", took)
		}
	}
}

// TestLeftAlone: what an agent put into the kernel stays when it dies, and the next one takes it over without a
// moment of not forwarding; somebody who deletes it is put right.
func TestLeftAlone(t *testing.T) {
	c := newCluster(t)
	c.start(t, shared)
	s := newShop()
	c.update(t, s.delta())
	var asked, failed atomic.Int64
	var first atomic.Value
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, from := range []*space{c.pod["b1"], c.outside, c.node[0]} {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				target := []string{"cluster IP", "node port", "LB IP"}[(n+i)%3]
				got, _ := from.ask("tcp", targets[target][families[n%2]])
				asked.Add(1)
				if got != "a1" && got != "c2" {
					failed.Add(1)
					first.CompareAndSwap(nil, fmt.Sprintf("%s to %s: %s", from.name, target, got))
				}
			}
		})
	}
	wait := func(more int64) {
		until := asked.Load() + more
		eventually(t, "clients go on", func() bool { return asked.Load() >= until })
	}
	wait(50)
	for range 5 {
		c.kill()
		wait(30)
		c.start(t, shared)
		c.update(t, s.delta())
		wait(30)
		s.service.AffinityTimeout = time.Hour - s.service.AffinityTimeout // two layouts of one Service, in turn
		c.update(t, s.delta())
		wait(30)
	}
	close(stop)
	wg.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed; the first: %v", failed.Load(), asked.Load(), first.Load())
	}

	var conn *nft.Conn
	c.node[0].in(func() { conn, _ = nft.Dial() })
	defer func() { _ = conn.Close() }()
	for name, harm := range map[string]func(*nft.Batch){
		"deletes the table": func(b *nft.Batch) { b.DeleteTable(nft.Table{Family: nft.IPv4, Name: servicetable.TableName}) },
		"empties a chain": func(b *nft.Batch) {
			b.FlushChain(nft.Chain{Table: nft.Table{Family: nft.IPv4, Name: servicetable.TableName}, Name: "services"})
		},
	} {
		var b nft.Batch
		harm(&b)
		if err := conn.Commit(&b); err != nil {
			t.Fatal(err)
		}
		since := time.Now()
		eventually(t, "forwarding again", func() bool {
			got, _ := c.pod["b1"].askFor(impatience, "tcp", targets["cluster IP"][model.IPv4])
			return got == "a1" || got == "c2"
		})
		// Milliseconds, on a machine with nothing else to do.
		if took := time.Since(since); took > 10*time.Second {
			t.Errorf("somebody %s: repaired after %s", name, took)
		}
	}
	if err := c.agent.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if names, err := conn.Tables(nft.IPv4); err != nil || slices.Contains(names, servicetable.TableName) {
		t.Errorf("after Cleanup there are tables %q, %v", names, err)
	}
}

// shared leaves the tables for everybody to change, as before Linux 6.9.
func shared(cfg *ServicesConfig) { cfg.Shared = true }

// talker is a client that keeps one UDP socket, so that the kernel tracks one connection of it.
type talker struct{ net.Conn }

func (s *space) talk(t *testing.T, addr string) talker {
	t.Helper()
	var c net.Conn
	var err error
	s.in(func() { c, err = net.Dial("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return talker{c}
}

func (k talker) ask() string {
	server, _ := exchange(k, impatience)
	return server
}

// comesTo asks until the answer is the one wanted: tracked connections are looked at beside Update, milliseconds
// later.
func (k talker) comesTo(t *testing.T, what, want string) {
	t.Helper()
	eventually(t, what+": "+want, func() bool { return k.ask() == want })
}

func TestTrackedUDP(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	for _, f := range families {
		s := newShop()
		s.endpoints = []model.Endpoint{endpoint("a1")}
		for _, target := range []string{"cluster IP", "node port", "LB IP"} {
			name := fmt.Sprintf("%s %s: ", target, f)
			from := c.outside
			if target == "cluster IP" {
				from = c.pod["b1"]
			}
			c.update(t, &model.Delta{Services: map[model.Name]*model.Service{s.service.Name: nil}})
			k := from.talk(t, targets[target][f])
			if got := k.ask(); got != silent && got != refused {
				t.Errorf("%s%s answered before there was a Service", name, got)
			}
			c.update(t, s.delta())
			k.comesTo(t, name+"a flow older than the Service", "a1")

			// A second endpoint takes nothing away; when the first stops serving, the flow goes on at the second.
			s.endpoints = []model.Endpoint{endpoint("a1"), endpoint("c2")}
			c.update(t, s.delta())
			for range 8 {
				if got, _ := exchange(k, patience); got != "a1" {
					t.Errorf("%san old flow changed to %s though its endpoint serves", name, got)
				}
			}
			s.endpoints[0].Ready, s.endpoints[0].Terminating = false, true
			c.update(t, s.delta())
			for range 8 {
				if got, _ := exchange(k, patience); got != "a1" {
					t.Errorf("%sterminating but serving: %s, want a1 still", name, got)
				}
			}
			s.endpoints[0].Serving = false
			c.update(t, s.delta())
			k.comesTo(t, name+"its endpoint no longer serves", "c2")
			s.endpoints = nil
			c.update(t, s.delta())
			k.comesTo(t, name+"no endpoint left", refused)
			s.endpoints = []model.Endpoint{endpoint("a1")}
			c.update(t, s.delta())
			k.comesTo(t, name+"an endpoint again", "a1")

			// The Service goes, endpoints and all (kubernetes#141371).
			gone := s.delta()
			gone.Services[s.service.Name] = nil
			for n := range gone.EndpointSlices {
				gone.EndpointSlices[n] = nil
			}
			c.update(t, gone)
			eventually(t, name+"the Service is gone", func() bool { return k.ask() != "a1" })
		}
	}
}

// TestTrackedWhileAway: what changed while no agent ran is found when one starts.
func TestTrackedWhileAway(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = s.endpoints[:1]
	c.update(t, s.delta())
	to := targets["cluster IP"][model.IPv4]
	k := c.pod["b1"].talk(t, to)
	k.comesTo(t, "at first", "a1")
	c.kill()
	s.endpoints = []model.Endpoint{endpoint("c2")}
	c.start(t)
	c.update(t, s.delta())
	k.comesTo(t, "after a restart", "c2")
	c.kill()
	c.start(t)
	c.update(t, &model.Delta{})
	eventually(t, "the Service went while no agent ran", func() bool { return k.ask() != "c2" })
}

func TestHealthChecks(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.service.ExternalLocal, s.service.HealthCheckNodePort = true, 31234
	c.update(t, s.delta())
	get := func() (code int, weight, body string) {
		var resp *http.Response
		var err error
		c.outside.in(func() {
			// The client would dial from another thread, and so from another namespace.
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp", "192.168.1.1:31234", time.Second); err != nil {
				return
			}
			client := http.Client{Timeout: time.Second, Transport: &http.Transport{
				DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
			resp, err = client.Get("http://192.168.1.1:31234/")
		})
		if err != nil {
			return 0, "", err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), string(b)
	}
	code, weight, body := get()
	want := "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}"
	if code != 200 || weight != "1" || body != want {
		t.Errorf("with a local endpoint: %d, weight %s, %s", code, weight, body)
	}
	s.endpoints = s.endpoints[1:]
	c.update(t, s.delta())
	if code, weight, body = get(); code != 503 || weight != "0" {
		t.Errorf("without a local endpoint: %d, weight %s, %s", code, weight, body)
	}
	// Another Service can't have the port; it hears of it, and the first keeps it.
	other := newShop()
	other.service.Name.Name, other.service.ClusterIPs = "other", addrs("10.96.0.81")
	other.service.ExternalIPs, other.service.Ingress = nil, nil
	other.service.ExternalLocal, other.service.HealthCheckNodePort = true, 31234
	other.service.Ports = other.service.Ports[:1]
	other.service.Ports[0].NodePort = 30081
	other.service.UID = "uid-other"
	c.update(t, other.delta())
	for range 5 { // it is tried again and again, and not said again
		c.update(t, s.delta())
	}
	if len(c.events) != 1 || c.events[0].UID != "uid-other" || c.events[0].Reason != "FailedToStartServiceHealthcheck" || c.events[0].Name.Name != "other" {
		t.Errorf("events: %+v", c.events)
	}
	s.service.ExternalLocal, s.service.HealthCheckNodePort = false, 0
	c.update(t, s.delta())
	if code, _, body = get(); code != 0 && !strings.Contains(body, "other") {
		t.Errorf("after the policy changed: %d %s", code, body)
	}
}

// TestTypeChanges: a Service goes through all types and back, and has what each should have and nothing else.
func TestTypeChanges(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = s.endpoints[:1]
	full := *s.service
	for _, typ := range []model.ServiceType{model.LoadBalancer, model.ClusterIP, model.NodePort, model.ExternalName, model.LoadBalancer, model.ExternalName, model.ClusterIP} {
		now := full
		now.Type = typ
		switch typ {
		case model.ClusterIP:
			now.Ports = []model.ServicePort{{Name: "tcp", Protocol: model.TCP, Port: 80}}
		case model.ExternalName:
			now.ClusterIPs, now.ExternalIPs = nil, nil
		}
		s.service = &now
		c.update(t, s.delta())
		has := func(b bool, other string) string {
			if b {
				return "a1"
			}
			return other
		}
		for _, f := range families {
			expect(t, c.pod["b1"], "tcp", targets["cluster IP"][f], has(typ != model.ExternalName, silent))
			expect(t, c.outside, "tcp", targets["node port"][f], has(typ == model.NodePort || typ == model.LoadBalancer, refused))
			wait := impatience
			if typ == model.LoadBalancer {
				wait = patience
			}
			if got, _ := c.pod["b1"].askFor(wait, "tcp", targets["LB IP"][f]); (got == "a1") != (typ == model.LoadBalancer) {
				t.Errorf("type %s: LB IP: %s", typ, got)
			}
		}
	}
}

// TestRanges: a node that learns its pods' ranges later masquerades from then on as it should.
func TestRanges(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = s.endpoints[1:]
	c.update(t, s.delta())
	n := theNode()
	n.PodCIDRs = []netip.Prefix{}
	c.update(t, &model.Delta{Nodes: map[string]*model.Node{"node1": n}})
	if _, saw := c.outside.askFor(impatience, "tcp", targets["cluster IP"][model.IPv4]); saw == "192.168.1.1" {
		t.Errorf("no ranges of pods are known, yet outside was masqueraded to %s", saw)
	}
	c.update(t, &model.Delta{Nodes: map[string]*model.Node{"node1": theNode()}})
	if _, saw := c.outside.ask("tcp", targets["cluster IP"][model.IPv4]); saw != "192.168.1.1" {
		t.Errorf("outside to a cluster IP: the server saw %s, want the node", saw)
	}
	if _, saw := c.pod["b1"].ask("tcp", targets["cluster IP"][model.IPv4]); saw != "10.244.1.3" {
		t.Errorf("pod to a cluster IP: the server saw %s, want the pod", saw)
	}
}

// TestPortKept: a client whose address is replaced by the node's keeps its port. A client knows which of its ports the
// server may remember still, in TIME_WAIT, and starts there with a sequence number that the server takes for new; with ports
// drawn anew for each connection, one of a busy client's in thirty met another's memory, and waited for its SYN to be sent again.
func TestPortKept(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.endpoints = s.endpoints[1:]
	c.update(t, s.delta())
	ask := func(addr string, port int) (client, saw string) {
		c.outside.in(func() {
			d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: port}}
			conn, err := d.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			in := bufio.NewReader(conn)
			for question, answer := range map[string]*string{"who\n": &client, "port\n": &saw} {
				if _, err := io.WriteString(conn, question); err != nil {
					t.Fatal(err)
				}
				line, err := in.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				*answer = strings.Fields(line)[1]
			}
		})
		return client, saw
	}
	port := 40000
	for _, f := range families {
		addr := targets["cluster IP"][f]
		node := map[model.Family]string{model.IPv4: "192.168.1.1", model.IPv6: "fd00:192::1"}[f]
		for range 5 {
			port++
			if client, saw := ask(addr, port); client != node || saw != strconv.Itoa(port) {
				t.Errorf("%s from port %d: the server saw port %s of %s, want the same of the node, %s", addr, port, saw, client, node)
			}
		}
	}
}
