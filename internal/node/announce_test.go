// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/model"
)

// TestAnnounce: from Deltas to an announced address, an Event about it, and back.
func TestAnnounce(t *testing.T) {
	s := newSpace(t, "announce")
	if err := s.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"far", "eth0"} {
		l, err := s.nl.LinkByName(name)
		if err == nil {
			err = s.nl.LinkSetUp(l)
		}
		if err == nil && name == "eth0" {
			var a *netlink.Addr
			if a, err = netlink.ParseAddr("192.0.2.201/24"); err == nil {
				err = s.nl.AddrAdd(l, a)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	events := make(chan model.Event, 10)
	p, err := NewAnnounce(AnnounceConfig{Node: "n1", Registerer: prometheus.NewRegistry(), Events: func(e model.Event) { events <- e },
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), netns: int(s.ns)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	addr := netip.MustParseAddr("192.0.2.1")
	name := model.Name{Namespace: "shop", Name: "web"}
	service := &model.Service{
		Meta: model.Meta{Name: name, UID: "u", Annotations: map[string]string{addresses.AllocatedAnnotation: "p"}},
		Type: model.LoadBalancer, ExternalLocal: true, Ingress: []model.LoadBalancerIngress{{IP: addr}},
	}
	slice := func(node string) *model.EndpointSlice {
		return &model.EndpointSlice{Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "web-1"}}, Service: "web", Family: model.IPv4,
			Endpoints: []model.Endpoint{{Ready: true, Serving: true, Node: node}}}
	}
	only := func(s *model.EndpointSlice) map[model.Name]*model.EndpointSlice {
		return map[model.Name]*model.EndpointSlice{s.Name: s}
	}
	err = p.Update(ctx, &model.Delta{Complete: true,
		Services:       map[model.Name]*model.Service{name: service},
		EndpointSlices: only(slice("n1")),
		Nodes:          map[string]*model.Node{"n1": {Meta: model.Meta{Name: model.Name{Name: "n1"}}}, "n2": {Meta: model.Meta{Name: model.Name{Name: "n2"}}}},
	})
	if err == nil || !strings.Contains(err.Error(), "kube-system") {
		t.Errorf("without the namespace kube-system: %v", err)
	}
	update := func(d *model.Delta) {
		t.Helper()
		if err := p.Update(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	update(&model.Delta{Complete: true, Namespaces: map[string]*model.Namespace{"kube-system": {Meta: model.Meta{Name: model.Name{Name: "kube-system"}, UID: "uid"}}}})
	select {
	case e := <-events:
		if e.Kind != "Service" || e.Name != name || e.UID != "u" || e.Warning || e.Reason != ReasonAnnounced || e.Message != "node n1 announces 192.0.2.1 on eth0" {
			t.Errorf("event %+v", e)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no event in 20 s")
	}
	if got := p.Announced(); len(got) != 1 || got[0].Addr != addr || got[0].Link != "eth0" {
		t.Errorf("announced: %v", got)
	}
	// A host outside the cluster uses the address: it is told on the Service.
	claim(t, s, "far", addr)
	select {
	case e := <-events:
		if e.Kind != "Service" || e.Name != name || e.UID != "u" || !e.Warning || e.Reason != "AddressConflict" || !strings.Contains(e.Message, addr.String()) || !strings.Contains(e.Message, stranger.String()) {
			t.Errorf("event %+v", e)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no event about the conflict in 20 s")
	}
	// Local: the node no longer has an endpoint. By the time Update returns it answers no more.
	update(&model.Delta{EndpointSlices: only(slice("n2"))})
	if got := p.Announced(); len(got) != 0 {
		t.Errorf("announced though the endpoints are elsewhere: %v", got)
	}
	update(&model.Delta{EndpointSlices: only(slice("n1"))})
	if got := p.Announced(); len(got) != 1 {
		t.Errorf("announced after the endpoint came back: %v", got)
	}
	update(&model.Delta{Services: map[model.Name]*model.Service{name: nil}})
	if got := p.Announced(); len(got) != 0 {
		t.Errorf("announced though the Service is gone: %v", got)
	}
}

// stranger is the link address of a host outside the cluster.
var stranger = net.HardwareAddr{2, 0, 0, 0, 0, 99}

// claim has the stranger say by ARP (RFC 5227, section 2.3) that an address is its own.
func claim(t *testing.T, s *space, link string, a netip.Addr) {
	t.Helper()
	broadcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	frame := slices.Concat(broadcast, stranger, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, stranger, a.AsSlice(), make([]byte, 6), a.AsSlice())
	index := s.link(t, link).Attrs().Index
	s.in(func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
			t.Error(err)
		}
	})
}

// TestAnnounceWithoutAPI: an agent that restarts while the API server is away announces what it did before; what the
// API then no longer has, it lets go of.
func TestAnnounceWithoutAPI(t *testing.T) {
	s := newSpace(t, "resume")
	if err := s.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	s.up(t, "far")
	s.addr(t, "eth0", "192.0.2.201/24")
	s.up(t, "eth0")
	state := filepath.Join(t.TempDir(), "run", "announced")
	start := func() (*Announce, func()) {
		p, err := NewAnnounce(AnnounceConfig{Node: "n1", State: state, Registerer: prometheus.NewRegistry(), Events: func(model.Event) {},
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)), netns: int(s.ns)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		return p, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	announces := func(p *Announce, want int) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for len(p.Announced()) != want {
			if time.Now().After(deadline) {
				t.Fatalf("announced: %v, want %d", p.Announced(), want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	names := []model.Name{{Namespace: "shop", Name: "a"}, {Namespace: "shop", Name: "b"}}
	d := &model.Delta{Complete: true,
		Services:   map[model.Name]*model.Service{},
		Nodes:      map[string]*model.Node{"n1": {Meta: model.Meta{Name: model.Name{Name: "n1"}}}},
		Namespaces: map[string]*model.Namespace{"kube-system": {Meta: model.Meta{Name: model.Name{Name: "kube-system"}, UID: "uid"}}},
	}
	for i, n := range names {
		d.Services[n] = &model.Service{Meta: model.Meta{Name: n, Annotations: map[string]string{addresses.AllocatedAnnotation: "p"}}, Type: model.LoadBalancer,
			Ingress: []model.LoadBalancerIngress{{IP: netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})}}}
	}
	p, stop := start()
	if err := p.Update(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	announces(p, 2)
	deadline := time.Now().Add(20 * time.Second)
	for raw := []byte(nil); !strings.Contains(string(raw), "192.0.2.1") || !strings.Contains(string(raw), "192.0.2.2"); raw, _ = os.ReadFile(state) {
		if time.Now().After(deadline) {
			t.Fatalf("state: %s", raw)
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()

	p, stop = start()
	announces(p, 2)
	delete(d.Services, names[1])
	if err := p.Update(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	if got := p.Announced(); len(got) != 1 || got[0].Addr != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("announced: %v, want what the API still has", got)
	}
	stop()
	if err := p.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("the state is still there after Cleanup")
	}
}
