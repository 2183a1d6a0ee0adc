// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// TestSpread has real connections drawn over pools of all shapes: as many endpoints as fill a row of the kernel's
// table, fewer and more, with one port and with several. Each must get its share, and nobody else any.
func TestSpread(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	const most = 9
	// Many endpoints, all of them addresses of one pod; each answers with its own address and port.
	endpointOf := func(f model.Family, i int) netip.Addr {
		if f == model.IPv6 {
			return netip.MustParseAddr(fmt.Sprintf("fd00:244:1::1:%d", i+1))
		}
		return netip.AddrFrom4([4]byte{10, 244, 1, byte(101 + i)})
	}
	for i := range most {
		for _, f := range families {
			a := endpointOf(f, i)
			prefix := netip.PrefixFrom(a, a.BitLen()).String()
			c.pod["a1"].addr(t, "eth0", prefix)
			c.node[0].route(t, prefix, "", "wefta1")
		}
	}
	for _, port := range []int{9001, 9002} {
		c.pod["a1"].in(func() {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						// The client closes first: of a connection that ended otherwise, the kernel would give the
						// endpoint to the next one from the same port.
						defer conn.Close()
						for in := bufio.NewScanner(conn); in.Scan(); {
							_, _ = fmt.Fprintf(conn, "%s -\n", conn.LocalAddr())
						}
					}()
				}
			}()
		})
	}
	name := model.Name{Namespace: "shop", Name: "many"}
	for _, n := range []int{most, 8, 5, 4, 3, 2, 1, 6} {
		for _, ports := range []int{1, 2} {
			d := &model.Delta{Services: map[model.Name]*model.Service{name: {Meta: model.Meta{Name: name}, ClusterIPs: addrs("10.96.0.90", "fd00:96::90"),
				Ports: []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80}}}}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
			want := make(map[model.Family]map[string]bool)
			for _, f := range families {
				want[f] = make(map[string]bool)
				for p := range 2 { // a named port that is not the same in all pods: the EndpointSlices differ in it
					sn := model.Name{Namespace: "shop", Name: fmt.Sprintf("many-%s-%d", f, p)}
					slice := &model.EndpointSlice{Meta: model.Meta{Name: sn}, Service: name.Name, Family: f,
						Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: uint16(9001 + p)}}}
					for i := range n {
						if i%ports == p {
							slice.Endpoints = append(slice.Endpoints, model.Endpoint{Ready: true, Serving: true, Node: "node1", Addresses: []netip.Addr{endpointOf(f, i)}})
							want[f][netip.AddrPortFrom(endpointOf(f, i), uint16(9001+p)).String()] = true
						}
					}
					d.EndpointSlices[sn] = slice
				}
			}
			c.update(t, d)
			for f, addr := range map[model.Family]string{model.IPv4: "10.96.0.90:80", model.IPv6: "[fd00:96::90]:80"} {
				// The chance that one of them gets less than a quarter of its share by bad luck is below one in ten million.
				const share = 60
				got := make(map[string]int)
				for range share * n {
					server, _ := c.pod["b1"].ask("tcp", addr)
					got[server]++
				}
				for server, k := range got {
					if !want[f][server] {
						t.Errorf("%d endpoints, %d ports, %s: %d connections ended at %s", n, ports, f, k, server)
					}
				}
				for server := range want[f] {
					if got[server] < share/4 {
						t.Errorf("%d endpoints, %d ports, %s: %s got %d of %d connections", n, ports, f, server, got[server], share*n)
					}
				}
			}
		}
	}
	if t.Failed() {
		t.Log(c.log)
	}
}
