// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// bigCluster is n Services, every tenth headless, with about 2.5 endpoints each.
func bigCluster(n int) *model.Delta {
	d := &model.Delta{Complete: true, Since: time.Unix(1700000000, 0),
		Services: make(map[model.Name]*model.Service, n), EndpointSlices: make(map[model.Name]*model.EndpointSlice, n)}
	addr := uint32(10<<24 | 1<<16)
	next := func() netip.Addr {
		addr++
		return netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)})
	}
	ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	for i := range n {
		name := model.Name{Namespace: fmt.Sprintf("ns-%d", i%500), Name: fmt.Sprintf("service-%d", i)}
		s := &model.Service{Meta: model.Meta{Name: name}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
		if i%10 == 0 {
			s.Headless = true
		} else {
			s.ClusterIPs = []netip.Addr{next()}
		}
		d.Services[name] = s
		es := &model.EndpointSlice{Meta: model.Meta{Name: model.Name{Namespace: name.Namespace, Name: name.Name + "-x7k2p"}}, Service: name.Name, Ports: ports}
		for range 2 + i%2 {
			es.Endpoints = append(es.Endpoints, model.Endpoint{Addresses: []netip.Addr{next()}, Ready: true})
		}
		d.EndpointSlices[es.Name] = es
	}
	return d
}

func BenchmarkAppend(b *testing.B) {
	z, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	z.Update(bigCluster(10000))
	for _, name := range []string{"service-1.ns-1.svc.cluster.local", "service-10.ns-10.svc.cluster.local", "none.ns-1.svc.cluster.local", "_http._tcp.service-1.ns-1.svc.cluster.local",
		"_http._tcp.service-10.ns-10.svc.cluster.local", "1.0.1.10.in-addr.arpa", "example.com"} {
		b.Run(name, func(b *testing.B) {
			var q Question
			wire, _ := PackName(name)
			head := append(make([]byte, 12, 512), wire...)
			head = append(head, 0, 1, 0, 1)
			types := map[bool]uint16{true: typeSRV, false: typeA}
			buf := make([]byte, 0, 4096)
			b.ReportAllocs()
			for i := range b.N {
				q.Read(wire)
				q.Type = types[name[0] == '_']
				if name[0] == '1' {
					q.Type = typePTR
				}
				z.Append(append(buf, head...), &q, 4096, uint32(i))
			}
		})
	}
}

// One change among 100,000 Services and 250,000 endpoints.
func BenchmarkUpdate(b *testing.B) {
	z, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	d := bigCluster(100000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	z.Update(d)
	took := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	name := model.Name{Namespace: "ns-1", Name: "service-1-x7k2p"}
	es := *d.EndpointSlices[name]
	one := &model.Delta{EndpointSlices: map[model.Name]*model.EndpointSlice{name: &es}}
	b.ResetTimer()
	for i := range b.N {
		es := es
		es.Endpoints = []model.Endpoint{{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 250, byte(i >> 8), byte(i)})}, Ready: true}}
		one.EndpointSlices[name] = &es
		z.Update(one)
	}
	b.ReportMetric(took.Seconds(), "s/snapshot")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB/index")
}
