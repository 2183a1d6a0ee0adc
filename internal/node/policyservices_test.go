// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/policytable"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/policy/policytest"
)

func TestServiceAsked(t *testing.T) {
	p := &Policy{cfg: PolicyConfig{Node: "n1"}, compiler: policy.NewCompiler("n1"), services: serviceNames{}}
	name := model.Name{Namespace: "a", Name: "db"}
	svc := &model.Service{
		Meta: model.Meta{Name: name}, ClusterIPs: policytest.Addrs("10.96.0.1 fd96::1"),
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}}, Ingress: []model.LoadBalancerIngress{{IP: netip.MustParseAddr("192.0.2.100")}},
	}
	d := &model.Delta{
		Nodes:    map[string]*model.Node{"n1": {Meta: model.Meta{Name: model.Name{Name: "n1"}}, InternalIPs: policytest.Addrs("192.0.2.1")}},
		Services: map[model.Name]*model.Service{name: svc},
		Pods:     map[model.Name]*model.Pod{{Namespace: "a", Name: "web"}: podOf("web", nil, "10.0.0.1")},
	}
	slice := func(name, service, addr string, port uint16) {
		n := model.Name{Namespace: "a", Name: name}
		if d.EndpointSlices == nil {
			d.EndpointSlices = map[model.Name]*model.EndpointSlice{}
		}
		d.EndpointSlices[n] = &model.EndpointSlice{
			Meta: model.Meta{Name: n}, Service: service, Ports: []model.EndpointPort{{Protocol: model.TCP, Port: port}},
			Endpoints: []model.Endpoint{{Addresses: policytest.Addrs(addr)}},
		}
	}
	slice("db-1", "db", "10.0.0.2", 8080)
	slice("two-1", "db", "10.0.0.3", 8080)
	slice("two-2", "other", "10.0.0.3", 8080)
	p.compiler.Update(d)
	p.services.update(d)
	packet := func(asked string) policytable.Packet {
		return policytable.Packet{Dst: netip.MustParseAddr("10.0.0.2"), DstPort: 8080, Protocol: model.TCP, Asked: netip.MustParseAddrPort(asked)}
	}
	for asked, want := range map[string]string{
		"10.96.0.1:80": "a/db", "[fd96::1]:80": "a/db", "192.0.2.100:80": "a/db", "192.0.2.1:30080": "a/db",
		"192.0.2.1:30081": "", "192.0.2.9:30080": "",
	} {
		if got := p.serviceAsked(packet(asked)); got != want {
			t.Errorf("%s: %q, want %q", asked, got, want)
		}
	}
	// Where the kernel does not say, or only the client's node knows, the one Service that leads there is meant.
	for _, tc := range []struct{ src, dst, asked, want string }{
		{"10.0.0.9", "10.0.0.2:8080", "", "a/db"},
		{"10.0.0.9", "10.0.0.2:8080", "10.0.0.2:8080", "a/db"},
		{"10.0.0.1", "10.0.0.2:8080", "", "a/db"},
		{"10.0.0.1", "10.0.0.2:8080", "10.0.0.2:8080", ""}, // this node would know
		{"10.0.0.9", "10.0.0.2:8081", "", ""},
		{"10.0.0.9", "10.0.0.3:8080", "", ""}, // two lead there
	} {
		dst := netip.MustParseAddrPort(tc.dst)
		k := policytable.Packet{Src: netip.MustParseAddr(tc.src), Dst: dst.Addr(), DstPort: dst.Port(), Protocol: model.TCP}
		if tc.asked != "" {
			k.Asked = netip.MustParseAddrPort(tc.asked)
		}
		if got := p.serviceAsked(k); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
	moved := *svc
	moved.ClusterIPs, moved.Ports = policytest.Addrs("10.96.0.2"), nil
	p.services.update(&model.Delta{Services: map[model.Name]*model.Service{name: &moved}})
	if got := p.serviceAsked(packet("10.96.0.1:80")) + p.serviceAsked(packet("192.0.2.1:30080")); got != "" {
		t.Errorf("an address that it no longer has is still %s's", got)
	}
	p.services.update(&model.Delta{Services: map[model.Name]*model.Service{name: nil}})
	if len(p.services) > 0 {
		t.Errorf("of a Service that is gone is left: %+v", p.services)
	}
}

// A scan from a thousand addresses is a few Events, and the next ones come when some time has passed.
func TestEventsOnPodsAreBounded(t *testing.T) {
	p := &Policy{told: map[string]*told{}}
	now := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	count := func(pod string, at time.Time) (n int) {
		for i := range 1000 {
			if p.tell(pod, fmt.Sprint("chain ", i), at) {
				n++
			}
		}
		return n
	}
	if n := count("one", now); n != tellings {
		t.Errorf("%d Events at once, want %d", n, tellings)
	}
	if n := count("one", now.Add(tellAgain/2)); n != 0 {
		t.Errorf("%d Events more a moment later", n)
	}
	if n := count("other", now); n != tellings {
		t.Errorf("%d Events of another pod, want %d", n, tellings)
	}
	if n := count("one", now.Add(tellAgain)); n != tellings {
		t.Errorf("%d Events after a while, want %d", n, tellings)
	}
	if len(p.told) != 1 {
		t.Errorf("%d pods are remembered", len(p.told))
	}
}
