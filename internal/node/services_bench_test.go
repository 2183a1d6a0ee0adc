// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"

	"context"

	"github.com/weft-net/weft/internal/model"
)

// manyServices is n Services of 4 endpoints each.
func manyServices(n int) *model.Delta {
	d := &model.Delta{Complete: true, Services: make(map[model.Name]*model.Service, n), EndpointSlices: make(map[model.Name]*model.EndpointSlice, n)}
	for i := range n {
		name := model.Name{Namespace: fmt.Sprint("ns-", i%100), Name: fmt.Sprint("service-", i)}
		d.Services[name] = &model.Service{Meta: model.Meta{Name: name}, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96 | byte(i>>16), byte(i >> 8), byte(i)})},
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
		d.EndpointSlices[name] = manySlice(name, i, 0)
	}
	return d
}

func manySlice(name model.Name, i, gen int) *model.EndpointSlice {
	s := &model.EndpointSlice{Meta: model.Meta{Name: name}, Service: name.Name, Family: model.IPv4, Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for e := range 4 {
		n := i*64 + e
		if e == 0 {
			n += 7 * gen
		}
		s.Endpoints = append(s.Endpoints, model.Endpoint{Ready: true, Serving: true, OfPod: true, Node: "elsewhere",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 128 | byte(n>>16), byte(n >> 8), byte(n)})}})
	}
	return s
}

// BenchmarkServicesFull is the first update of an agent: all Services, into an empty kernel.
func BenchmarkServicesFull(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		d := manyServices(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ns := newSpace(b, "node")
			b.ReportAllocs()
			for b.Loop() {
				ns.in(func() {
					b.StopTimer()
					s, err := NewServices(ServicesConfig{Node: "n", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
					if err != nil {
						b.Error(err)
						return
					}
					defer s.Close()
					b.StartTimer()
					if err := s.Update(context.Background(), d); err != nil {
						b.Error(err)
					}
					b.StopTimer()
					if err := s.Cleanup(context.Background()); err != nil {
						b.Error(err)
					}
					b.StartTimer()
				})
			}
		})
	}
}

// BenchmarkServicesChange is one endpoint replaced among n Services, and the restart of an agent that finds all of
// them in the kernel.
func BenchmarkServicesChange(b *testing.B) {
	for _, n := range []int{10000, 50000} {
		d := manyServices(n)
		ns := newSpace(b, "node")
		open := func() (s *Services) {
			ns.in(func() {
				var err error
				if s, err = NewServices(ServicesConfig{Node: "n", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}); err != nil {
					b.Fatal(err)
				}
			})
			if err := s.Update(context.Background(), d); err != nil {
				b.Fatal(err)
			}
			return s
		}
		s := open()
		b.Run(fmt.Sprint("endpoint/", n), func(b *testing.B) {
			gen := 0
			for b.Loop() {
				gen++
				i := gen * 7919 % n
				name := model.Name{Namespace: fmt.Sprint("ns-", i%100), Name: fmt.Sprint("service-", i)}
				c := &model.Delta{EndpointSlices: map[model.Name]*model.EndpointSlice{name: manySlice(name, i, gen)}}
				if err := s.Update(context.Background(), c); err != nil {
					b.Fatal(err)
				}
			}
		})
		_ = s.Close()
		b.Run(fmt.Sprint("restart/", n), func(b *testing.B) {
			for b.Loop() {
				_ = open().Close()
			}
		})
	}
}
