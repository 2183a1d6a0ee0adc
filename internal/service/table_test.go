// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
)

func ips(s ...string) []netip.Addr {
	out := make([]netip.Addr, len(s))
	for i := range s {
		out[i] = netip.MustParseAddr(s[i])
	}
	return out
}

func nets(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

func named(n string) model.Name { return model.Name{Namespace: "ns", Name: n} }

// full is a Service with a frontend of each kind in each family; mod changes it.
func full(mod func(*model.Service)) *model.Service {
	s := &model.Service{
		Meta: model.Meta{Name: named("web")}, Type: model.LoadBalancer, ClusterIPs: ips("10.96.0.1", "fd00:96::1"),
		ExternalIPs: ips("198.51.100.1", "fd00:198::1"),
		Ingress:     []model.LoadBalancerIngress{{IP: ips("203.0.113.1")[0]}, {IP: ips("fd00:203::1")[0]}, {Hostname: "lb.example.com"}},
		Ports:       []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80, NodePort: 30080}},
	}
	if mod != nil {
		mod(s)
	}
	return s
}

func slicesOf(name string, eps ...model.Endpoint) map[model.Name]*model.EndpointSlice {
	out := make(map[model.Name]*model.EndpointSlice)
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		n := named(fmt.Sprintf("%s-%s", name, f))
		s := &model.EndpointSlice{Meta: model.Meta{Name: n}, Service: name, Family: f, Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}}
		for i, ep := range eps {
			ep.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}
			if f == model.IPv6 {
				ep.Addresses = ips(fmt.Sprintf("fd00::%d", i+1))
			}
			s.Endpoints = append(s.Endpoints, ep)
		}
		out[n] = s
	}
	return out
}

var (
	localReady1  = model.Endpoint{Ready: true, Serving: true, Node: "n1"}
	remoteReady1 = model.Endpoint{Ready: true, Serving: true, Node: "n2"}
	unready1     = model.Endpoint{Node: "n1"}
)

func tableWith(d *model.Delta) (*Table, []model.Event) {
	t := NewTable("n1")
	ev := t.Update(&model.Delta{Nodes: map[string]*model.Node{"n1": {Meta: model.Meta{Name: model.Name{Name: "n1"}}, Zone: "east", InternalIPs: ips("192.168.1.1", "fd00:192::1")}}})
	return t, append(ev, t.Update(d)...)
}

// describe spells a table's rules, one a line, for comparison.
func describe(t *Table) string {
	var out []string
	t.All(func(f Frontend, r *Rule) {
		pool := func(p Pool) string {
			if p.Action != Forward {
				return p.Action.String()
			}
			var eps []string
			for _, ep := range p.Endpoints {
				eps = append(eps, ep.String())
			}
			return strings.Join(eps, " ")
		}
		s := fmt.Sprintf("%s %s: %s", r.Kind, f, pool(r.Main))
		if r.Inside != nil {
			s += " | inside " + pool(*r.Inside)
		}
		if r.Masquerade {
			s += " | masquerade"
		}
		if r.Restricted {
			s += fmt.Sprint(" | sources ", r.Sources)
		}
		if r.Affinity > 0 {
			s += fmt.Sprint(" | affinity ", r.Affinity)
		}
		out = append(out, s)
	})
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestTypesAndPolicies walks every type with every pair of policies, families, affinity and source ranges, and
// states for each what frontends there are and what they do.
func TestTypesAndPolicies(t *testing.T) {
	for _, typ := range []model.ServiceType{model.ClusterIP, model.NodePort, model.LoadBalancer, model.ExternalName} {
		for bits := range 1 << 6 {
			on := func(i int) bool { return bits>>i&1 == 1 }
			internalLocal, externalLocal, v4, v6, sticky, ranges := on(0), on(1), on(2), on(3), on(4), on(5)
			s := full(func(s *model.Service) {
				s.Type, s.InternalLocal, s.ExternalLocal = typ, internalLocal, externalLocal
				s.ClusterIPs = nil
				if v4 {
					s.ClusterIPs = append(s.ClusterIPs, ips("10.96.0.1")...)
				}
				if v6 {
					s.ClusterIPs = append(s.ClusterIPs, ips("fd00:96::1")...)
				}
				if sticky {
					s.AffinityTimeout = time.Hour
				}
				if ranges {
					s.LoadBalancer.SourceRanges = nets("10.0.0.0/8", "10.1.0.0/16", "fd00::/16")
				}
			})
			tab, _ := tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}, EndpointSlices: slicesOf("web", localReady1, remoteReady1, unready1)})
			var want []string
			for _, f := range []struct {
				on                   bool
				cluster, ext, lb, np string
				both, local, sources string
			}{
				{v4, "10.96.0.1:80/TCP", "198.51.100.1:80/TCP", "203.0.113.1:80/TCP", "*:30080/TCP (IPv4)", "10.0.0.1:8080 10.0.0.2:8080", "10.0.0.1:8080", "10.0.0.0/8"},
				{v6, "[fd00:96::1]:80/TCP", "[fd00:198::1]:80/TCP", "[fd00:203::1]:80/TCP", "*:30080/TCP (IPv6)", "[fd00::1]:8080 [fd00::2]:8080", "[fd00::1]:8080", "fd00::/16"},
			} {
				if !f.on || typ == model.ExternalName {
					continue
				}
				tail := ""
				if sticky {
					tail = " | affinity 1h0m0s"
				}
				internal := f.both
				if internalLocal {
					internal = f.local
				}
				external := f.both + " | masquerade"
				if externalLocal {
					external = f.local + " | inside " + f.both
				}
				want = append(want, fmt.Sprintf("clusterIP %s: %s%s", f.cluster, internal, tail), fmt.Sprintf("externalIP %s: %s%s", f.ext, external, tail))
				if typ != model.ClusterIP {
					want = append(want, fmt.Sprintf("nodePort %s: %s%s", f.np, external, tail))
				}
				if typ == model.LoadBalancer {
					src := ""
					if ranges {
						src = fmt.Sprintf(" | sources [%s]", f.sources)
					}
					want = append(want, fmt.Sprintf("loadBalancerIP %s: %s%s%s", f.lb, external, src, tail))
				}
			}
			slices.Sort(want)
			if got := describe(tab); got != strings.Join(want, "\n") {
				t.Fatalf("type %s, bits %06b:\n%s\nwant:\n%s", typ, bits, got, strings.Join(want, "\n"))
			}
		}
	}
}

// TestFrontends states rules for what does not come up there.
func TestFrontends(t *testing.T) {
	for _, c := range []struct {
		name string
		mod  func(*model.Service)
		eps  []model.Endpoint
		want string
	}{
		{"headless", func(s *model.Service) { s.Headless, s.ClusterIPs = true, nil }, nil, ""},
		{"another proxy's", func(s *model.Service) { s.Labels = map[string]string{model.ProxyNameLabel: "other"} }, nil, ""},
		{"no port for a node", func(s *model.Service) {
			s.ExternalIPs, s.Ingress, s.ClusterIPs, s.Ports[0].NodePort = nil, nil, s.ClusterIPs[:1], 0
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject"},
		{"ipMode Proxy", func(s *model.Service) {
			s.ExternalIPs, s.ClusterIPs, s.Ports[0].NodePort = nil, s.ClusterIPs[:1], 0
			s.Ingress[0].Proxy = true
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject"},
		{"Local, none here", func(s *model.Service) {
			s.ExternalIPs, s.Ingress, s.ClusterIPs, s.ExternalLocal, s.InternalLocal = nil, nil, s.ClusterIPs[:1], true, true
		}, []model.Endpoint{remoteReady1}, "clusterIP 10.96.0.1:80/TCP: drop\nnodePort *:30080/TCP (IPv4): drop | inside 10.0.0.1:8080"},
		{"Local, none anywhere", func(s *model.Service) {
			s.ExternalIPs, s.Ingress, s.ClusterIPs, s.ExternalLocal = nil, nil, s.ClusterIPs[:1], true
		}, []model.Endpoint{unready1}, "clusterIP 10.96.0.1:80/TCP: reject\nnodePort *:30080/TCP (IPv4): reject"},
		{"one address twice", func(s *model.Service) {
			s.ClusterIPs, s.Ports[0].NodePort = s.ClusterIPs[:1], 0
			s.ExternalIPs = ips("203.0.113.1", "10.96.0.1")
			s.LoadBalancer.SourceRanges = nets("10.0.0.0/8")
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject\nloadBalancerIP 203.0.113.1:80/TCP: reject | masquerade | sources [10.0.0.0/8]"},
		{"a range of all", func(s *model.Service) {
			s.ExternalIPs, s.ClusterIPs, s.Ports[0].NodePort = nil, s.ClusterIPs[:1], 0
			s.LoadBalancer.SourceRanges = nets("10.0.0.0/8", "0.0.0.0/0")
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject\nloadBalancerIP 203.0.113.1:80/TCP: reject | masquerade"},
		{"a range with the node", func(s *model.Service) {
			s.ExternalIPs, s.ClusterIPs, s.Ports[0].NodePort = nil, s.ClusterIPs[:1], 0
			s.LoadBalancer.SourceRanges = nets("192.168.0.0/16")
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject\nloadBalancerIP 203.0.113.1:80/TCP: reject | masquerade | sources [192.168.0.0/16 203.0.113.1/32]"},
		{"ranges of the other family only, and one that can't be read", func(s *model.Service) {
			s.ExternalIPs, s.ClusterIPs, s.Ports[0].NodePort = nil, s.ClusterIPs[:1], 0
			s.LoadBalancer.SourceRanges = append(nets("fd00::/8"), netip.Prefix{})
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject\nloadBalancerIP 203.0.113.1:80/TCP: reject | masquerade | sources []"},
		{"no range that can be read", func(s *model.Service) {
			s.ExternalIPs, s.Ports[0].NodePort = nil, 0
			s.LoadBalancer.SourceRanges = make([]netip.Prefix, 1)
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject\nclusterIP [fd00:96::1]:80/TCP: reject\n" +
			"loadBalancerIP 203.0.113.1:80/TCP: reject | masquerade | sources []\nloadBalancerIP [fd00:203::1]:80/TCP: reject | masquerade | sources []"},
		{"another proxy's, whose name is empty", func(s *model.Service) { s.Labels = map[string]string{model.ProxyNameLabel: ""} }, nil, ""},
		{"unusable addresses", func(s *model.Service) {
			s.ClusterIPs, s.Ports[0].NodePort, s.Ingress = s.ClusterIPs[:1], 0, nil
			s.ExternalIPs = ips("0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1")
		}, nil, "clusterIP 10.96.0.1:80/TCP: reject"},
		{"several ports", func(s *model.Service) {
			s.Type, s.ClusterIPs, s.ExternalIPs, s.Ingress = model.ClusterIP, s.ClusterIPs[:1], nil, nil
			s.Ports = []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80}, {Name: "dns", Protocol: model.UDP, Port: 80}, {Name: "x", Protocol: model.SCTP, Port: 80}}
		}, []model.Endpoint{localReady1}, "clusterIP 10.96.0.1:80/SCTP: reject\nclusterIP 10.96.0.1:80/TCP: 10.0.0.1:8080\nclusterIP 10.96.0.1:80/UDP: reject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := full(c.mod)
			tab, events := tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}, EndpointSlices: slicesOf("web", c.eps...)})
			if got := describe(tab); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
			if n := map[string]int{"unusable addresses": 4}[c.name]; len(events) != n {
				t.Errorf("%d events, want %d: %+v", len(events), n, events)
			}
		})
	}
}

// TestConflicts: of several Services that claim an address, the same one wins whatever the order in which they come,
// and when it goes the next one follows.
// TestAffinityIsThePorts: all frontends of a Service port, and no other, say which cluster IP stands for it.
func TestAffinityIsThePorts(t *testing.T) {
	svc := full(func(s *model.Service) { s.AffinityTimeout = time.Hour })
	tab, _ := tableWith(&model.Delta{Services: map[model.Name]*model.Service{svc.Name: svc}, EndpointSlices: slicesOf(svc.Name.Name, localReady1)})
	count := make(map[netip.AddrPort]int)
	tab.All(func(fe Frontend, r *Rule) {
		count[r.ClusterIP]++
		port := svc.Ports[slices.IndexFunc(svc.Ports, func(p model.ServicePort) bool { return p.Name == r.Port })].Port
		if r.ClusterIP.Port() != port || !slices.Contains(svc.ClusterIPs, r.ClusterIP.Addr()) || model.FamilyOf(r.ClusterIP.Addr()) != fe.Family() {
			t.Errorf("%s of port %q: cluster IP %s", fe, r.Port, r.ClusterIP)
		}
	})
	if len(count) != len(svc.ClusterIPs)*len(svc.Ports) || tab.Len() <= len(count) {
		t.Errorf("%d frontends of %v", tab.Len(), count)
	}
}

func TestConflicts(t *testing.T) {
	claim := func(name string, created int64, cluster string) *model.Service {
		return &model.Service{Meta: model.Meta{Name: named(name), Created: created}, ClusterIPs: ips(cluster), ExternalIPs: ips("198.51.100.1"),
			Ports: []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80}}}
	}
	all := []*model.Service{
		claim("young", 30, "10.96.0.3"), claim("old", 10, "10.96.0.1"), claim("twin", 10, "10.96.0.4"),
		claim("owner", 99, "198.51.100.1"), // has it as its cluster IP
	}
	want := []string{"owner", "old", "twin", "young"}
	fe := Frontend{ips("198.51.100.1")[0], model.TCP, 80}
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		tab, told := NewTable("n1"), map[string]bool{}
		note := func(ev []model.Event) {
			for _, e := range ev {
				if e.Reason != "FrontendConflict" || !e.Warning {
					t.Errorf("event %+v", e)
				}
				told[e.Name.Name] = true
			}
		}
		for _, s := range all {
			note(tab.Update(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}}))
		}
		for i, name := range want {
			if got := tab.Rule(fe).Service.Name; got != name {
				t.Fatalf("%s has it, want %s", got, name)
			}
			if i > 0 && !told[name] {
				t.Errorf("%s was not told that it lost", name)
			}
			tab.Done()
			note(tab.Update(&model.Delta{Services: map[model.Name]*model.Service{named(name): nil}}))
			for _, c := range tab.Pending() {
				if c.Frontend == fe && (c.Old.Service.Name != name || (i < 3) != (c.New != nil)) {
					t.Errorf("change %+v", c)
				}
			}
		}
		if tab.Len() != 0 || len(tab.losers) != 0 || len(tab.services) != 0 {
			t.Errorf("left over: %d frontends, %d claims, %d services", tab.Len(), len(tab.losers), len(tab.services))
		}
	}
	// Two that exchange addresses in one Delta are not in each other's way, whichever is taken in first.
	for range 20 {
		tab := NewTable("n1")
		a, b := claim("a", 1, "10.96.0.1"), claim("b", 2, "10.96.0.2")
		b.ExternalIPs = ips("198.51.100.2")
		tab.Update(&model.Delta{Services: map[model.Name]*model.Service{a.Name: a, b.Name: b}})
		tab.Done()
		a, b = claim("a", 1, "10.96.0.1"), claim("b", 2, "10.96.0.2")
		a.ExternalIPs = ips("198.51.100.2")
		if ev := tab.Update(&model.Delta{Services: map[model.Name]*model.Service{a.Name: a, b.Name: b}}); len(ev) > 0 {
			t.Fatalf("events of an exchange: %+v", ev)
		}
		other := Frontend{ips("198.51.100.2")[0], model.TCP, 80}
		if tab.Rule(fe).Service != b.Name || tab.Rule(other).Service != a.Name {
			t.Fatalf("after an exchange %s has %s, %s has %s", tab.Rule(fe).Service, fe, tab.Rule(other).Service, other)
		}
		for _, c := range tab.Pending() {
			if c.Old == nil || c.New == nil || c.Old.Service == c.New.Service {
				t.Fatalf("change %+v", c)
			}
		}
	}
	// A claim that becomes worse gives way: a cluster IP that is recreated as an external one.
	tab := NewTable("n1")
	first := claim("first", 1, "10.96.0.9")
	second := claim("second", 2, "198.51.100.1")
	for _, s := range []*model.Service{first, second} {
		tab.Update(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}})
	}
	second = claim("second", 2, "10.96.0.8")
	tab.Update(&model.Delta{Services: map[model.Name]*model.Service{second.Name: second}})
	if got := tab.Rule(fe).Service.Name; got != "first" {
		t.Errorf("%s has it, want first", got)
	}
}

// TestIncremental feeds random Deltas to one Table and compares it, after each, with a new Table that gets the whole
// state at once; and the changes it reports with the difference between before and after.
func TestIncremental(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 3))
	services := map[model.Name]*model.Service{}
	eps := map[model.Name]*model.EndpointSlice{}
	node := &model.Node{Meta: model.Meta{Name: model.Name{Name: "n1"}}, Zone: "east", InternalIPs: ips("192.168.1.1")}
	tab := NewTable("n1")
	tab.Update(&model.Delta{Nodes: map[string]*model.Node{"n1": node}})
	held := map[Frontend]*Rule{}
	kinds := everyEndpoint()
	for step := range 3000 {
		d := &model.Delta{Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{}, Nodes: map[string]*model.Node{}}
		for range 1 + r.IntN(3) {
			n := r.IntN(6)
			name := named(fmt.Sprintf("s%d", n))
			switch r.IntN(8) {
			case 0:
				d.Services[name] = nil
				delete(services, name)
			case 1, 2, 3:
				s := full(func(s *model.Service) {
					s.Name, s.Created = name, int64(n%3)
					s.ClusterIPs = ips(fmt.Sprintf("10.96.0.%d", n+1), fmt.Sprintf("fd00:96::%d", n+1))[:1+r.IntN(2)]
					s.Ports[0].NodePort = uint16(30000 + n)
					s.Type = model.ServiceType(r.IntN(4))
					s.ExternalLocal, s.InternalLocal = r.IntN(2) == 0, r.IntN(2) == 0
					s.ExternalIPs = ips("198.51.100.1", "10.96.0.1", "fd00:198::1")[r.IntN(3):]
					s.HealthCheckNodePort = uint16(32000 + n)
				})
				services[name], d.Services[name] = s, s
			case 4:
				en := named(fmt.Sprintf("e%d", r.IntN(8)))
				d.EndpointSlices[en] = nil
				delete(eps, en)
			case 5, 6:
				en := named(fmt.Sprintf("e%d", r.IntN(8)))
				sl := &model.EndpointSlice{Meta: model.Meta{Name: en}, Service: name.Name, Family: model.IPv4, Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}}
				for range r.IntN(4) {
					ep := kinds[r.IntN(len(kinds))]
					ep.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(9))})}
					sl.Endpoints = append(sl.Endpoints, ep)
				}
				eps[en], d.EndpointSlices[en] = sl, sl
			case 7:
				nn := *node
				nn.Zone = []string{"east", "west"}[r.IntN(2)]
				node, d.Nodes["n1"] = &nn, &nn
			}
		}
		tab.Update(d)
		for _, c := range tab.Pending() {
			if was := held[c.Frontend]; (was == nil) != (c.Old == nil) || was != nil && !was.Equal(c.Old) {
				t.Fatalf("step %d: %s: the change starts from %+v, the last one ended at %+v", step, c.Frontend, c.Old, held[c.Frontend])
			}
			if c.New == nil {
				delete(held, c.Frontend)
			} else {
				held[c.Frontend] = c.New
			}
		}
		tab.Done()
		whole := NewTable("n1")
		whole.Update(&model.Delta{Services: services, EndpointSlices: eps, Nodes: map[string]*model.Node{"n1": node}})
		if got, want := describe(tab), describe(whole); got != want {
			t.Fatalf("step %d:\n%s\nfrom scratch:\n%s", step, got, want)
		}
		if len(held) != tab.Len() {
			t.Fatalf("step %d: the changes add up to %d frontends, there are %d", step, len(held), tab.Len())
		}
		tab.All(func(f Frontend, r *Rule) {
			if held[f] == nil || !held[f].Equal(r) {
				t.Fatalf("step %d: %s: the changes add up to %+v, the rule is %+v", step, f, held[f], r)
			}
		})
		if tab.noLocal != whole.noLocal || !maps.Equal(tab.Health(), whole.Health()) {
			t.Fatalf("step %d: no local %v, from scratch %v; health %v, from scratch %v", step, tab.noLocal, whole.noLocal, tab.Health(), whole.Health())
		}
	}
}

// TestOneServiceOneChange: work is proportional to what changed.
func TestOneServiceOneChange(t *testing.T) {
	d := &model.Delta{Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for i := range 1000 {
		name := fmt.Sprintf("s%d", i)
		s := full(func(s *model.Service) {
			s.Name, s.Type, s.ExternalIPs = named(name), model.ClusterIP, nil
			s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		})
		d.Services[s.Name] = s
		maps.Copy(d.EndpointSlices, slicesOf(name, localReady1))
	}
	tab, _ := tableWith(d)
	tab.Done()
	tab.Update(&model.Delta{EndpointSlices: slicesOf("s7", localReady1, remoteReady1)})
	if n := len(tab.Pending()); n != 1 {
		t.Errorf("%d frontends changed, want 1", n)
	}
	tab.Done()
	tab.Update(&model.Delta{EndpointSlices: slicesOf("s7", localReady1, remoteReady1)})
	if n := len(tab.Pending()); n != 0 {
		t.Errorf("%d frontends changed by an update that says nothing new", n)
	}
}

// TestFlows: which tracked connections a change ends.
func TestFlows(t *testing.T) {
	vip, tcp := Frontend{ips("10.96.0.1")[0], model.UDP, 53}, Frontend{ips("10.96.0.1")[0], model.TCP, 80}
	np := Frontend{ips("0.0.0.0")[0], model.UDP, 30053}
	a, b, c := netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("10.0.0.2:53"), netip.MustParseAddrPort("10.0.0.3:53")
	gone, other := netip.MustParseAddrPort("10.0.9.9:53"), netip.MustParseAddrPort("172.16.0.1:53")
	pod := func(x netip.Addr) bool { return x != gone.Addr() && x != other.Addr() }
	rule := func(eps ...Backend) *Rule { return &Rule{Backends: eps} }
	serving := func(p netip.AddrPort) Backend { return Backend{AddrPort: p, Serving: true, Pod: p != other} }
	kind := func(k Kind, r *Rule) *Rule { r.Kind = k; return r }
	silent := func(r *Rule) *Rule { r.Main.Action = Drop; return r }
	at := func(dest string, peer netip.AddrPort, p model.Protocol) Flow {
		return Flow{Protocol: p, Dest: netip.MustParseAddrPort(dest), Peer: peer, Answered: true}
	}
	raw := func(dest string, p model.Protocol, answered bool) Flow {
		return Flow{Protocol: p, Dest: netip.MustParseAddrPort(dest), Peer: netip.MustParseAddrPort(dest), Answered: answered}
	}
	node := ips("192.168.1.1")
	for i, x := range []struct {
		c     Change
		f     Flow
		loses bool
	}{
		{Change{vip, rule(serving(a)), rule(serving(a))}, at("10.96.0.1:53", a, model.UDP), false},
		{Change{vip, rule(serving(a)), rule(serving(b))}, at("10.96.0.1:53", a, model.UDP), true},
		{Change{vip, rule(serving(a)), rule(Backend{AddrPort: a})}, at("10.96.0.1:53", a, model.UDP), true},
		{Change{vip, rule(serving(a)), rule(serving(b))}, at("10.96.0.1:54", a, model.UDP), false},
		{Change{vip, rule(serving(a)), rule(serving(b))}, at("10.96.0.2:53", a, model.UDP), false},
		{Change{vip, rule(serving(a)), rule(serving(b))}, at("10.96.0.1:53", a, model.TCP), false},
		{Change{vip, nil, rule(serving(a))}, raw("10.96.0.1:53", model.UDP, true), true},
		{Change{vip, nil, rule()}, raw("10.96.0.1:53", model.UDP, false), true},
		{Change{vip, rule(serving(a)), nil}, at("10.96.0.1:53", a, model.UDP), true},
		{Change{vip, rule(serving(a)), nil}, raw("10.96.0.1:53", model.UDP, false), false},

		// TCP: as long as its pod is there, a connection stays, whatever the Service selects now (as kube-proxy has it).
		{Change{tcp, rule(serving(a)), rule(Backend{AddrPort: a})}, at("10.96.0.1:80", a, model.TCP), false},
		{Change{tcp, rule(serving(a)), rule(serving(b))}, at("10.96.0.1:80", a, model.TCP), false},
		{Change{tcp, rule(serving(a)), rule()}, at("10.96.0.1:80", a, model.TCP), false},
		{Change{tcp, rule(serving(a)), nil}, at("10.96.0.1:80", a, model.TCP), false},
		// Its pod is no more: the client hears of it.
		{Change{tcp, rule(serving(gone)), rule(serving(b))}, at("10.96.0.1:80", gone, model.TCP), true},
		{Change{tcp, rule(serving(gone)), rule()}, at("10.96.0.1:80", gone, model.TCP), true},
		{Change{tcp, rule(serving(gone)), nil}, at("10.96.0.1:80", gone, model.TCP), true},
		{Change{tcp, &Rule{Main: Pool{Endpoints: []netip.AddrPort{gone}}}, rule(serving(b))}, at("10.96.0.1:80", gone, model.TCP), true},
		// Still an endpoint: a new connection could be sent there again.
		{Change{tcp, rule(serving(gone), serving(a)), rule(serving(gone))}, at("10.96.0.1:80", gone, model.TCP), false},
		// Nobody would answer in its place.
		{Change{tcp, rule(serving(gone)), silent(rule(serving(b)))}, at("10.96.0.1:80", gone, model.TCP), false},
		{Change{tcp, kind(LoadBalancerIP, rule(serving(gone))), nil}, at("10.96.0.1:80", gone, model.TCP), false},
		// An endpoint that is no pod may live on.
		{Change{tcp, rule(serving(other)), rule(serving(b))}, at("10.96.0.1:80", other, model.TCP), false},
		// What nobody answered began before there was the frontend; what somebody answered is another's.
		{Change{tcp, nil, rule(serving(a))}, raw("10.96.0.1:80", model.TCP, false), true},
		{Change{tcp, nil, rule(serving(a))}, raw("10.96.0.1:80", model.TCP, true), false},

		// Node ports: any address may be the node's, so the endpoint tells.
		{Change{np, rule(serving(a)), rule(serving(b))}, at("192.168.1.1:30053", a, model.UDP), true},
		{Change{np, rule(serving(a)), rule(serving(b))}, at("192.168.1.1:30053", b, model.UDP), false},
		{Change{np, rule(serving(a)), rule(serving(b))}, at("192.168.9.9:30053", c, model.UDP), false},
		{Change{np, nil, rule(serving(b))}, raw("192.168.1.1:30053", model.UDP, true), true},
		{Change{np, nil, rule(serving(b))}, raw("192.168.9.9:30053", model.UDP, true), false},
		{Change{Frontend{ips("::")[0], model.UDP, 30053}, nil, rule(serving(b))}, raw("192.168.1.1:30053", model.UDP, true), false},
		{Change{np, rule(serving(a)), nil}, at("192.168.1.1:30053", a, model.UDP), true},
	} {
		if got := x.c.Loses(x.f, node, pod); got != x.loses {
			t.Errorf("%d: %v, want %v", i, got, x.loses)
		}
		if x.loses && !x.c.MayLose(pod) {
			t.Errorf("%d: a connection is lost, but MayLose says none can be", i)
		}
	}
	if c := (Change{tcp, rule(serving(a), serving(other)), rule()}); c.MayLose(pod) {
		t.Error("an endpoint whose pod lives, and one that is none, went: no connection can be lost")
	}
}

// TestLeft: connections to a pod that goes after its Service has let go of it.
func TestLeft(t *testing.T) {
	s := full(nil)
	eps := slicesOf("web", model.Endpoint{Ready: true, Serving: true, OfPod: true, Node: "n2"})
	aPod := func(name string, mod func(*model.Pod), addrs ...string) *model.Pod {
		p := &model.Pod{Meta: model.Meta{Name: named(name)}, IPs: ips(addrs...)}
		if mod != nil {
			mod(p)
		}
		return p
	}
	tab, _ := tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}, EndpointSlices: eps,
		Pods: map[model.Name]*model.Pod{named("a"): aPod("a", nil, "10.0.0.1", "fd00::1"), named("b"): aPod("b", nil, "10.0.0.9"),
			named("host"): aPod("host", func(p *model.Pod) { p.HostNetwork = true }, "192.168.1.1")}})
	change := func(pods map[model.Name]*model.Pod) map[netip.Addr]bool {
		tab.Update(&model.Delta{Pods: pods})
		if tab.AnyLeft() != (len(tab.pods.left) > 0) {
			t.Error("AnyLeft does not say what Left has")
		}
		return tab.Left()
	}
	inRange := func(a netip.Addr) bool { return a.Is4() && netip.MustParsePrefix("10.96.0.0/12").Contains(a) }
	flow := func(dest, peer string) Flow {
		return Flow{Protocol: model.TCP, Dest: netip.MustParseAddrPort(dest), Peer: netip.MustParseAddrPort(peer), Answered: true}
	}
	// Another pod has taken the address before the old one's end is heard of: nothing is left.
	if left := change(map[model.Name]*model.Pod{named("c"): aPod("c", nil, "10.0.0.9")}); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	if left := change(map[model.Name]*model.Pod{named("b"): nil}); len(left) > 0 {
		t.Errorf("left %v, which another pod has", left)
	}
	if left := change(map[model.Name]*model.Pod{named("host"): nil}); len(left) > 0 {
		t.Errorf("left %v, a node's address", left)
	}
	left := change(map[model.Name]*model.Pod{named("c"): aPod("c", func(p *model.Pod) { p.Finished = true }, "10.0.0.9"), named("a"): nil})
	if len(left) != 3 || len(tab.Left()) > 0 {
		t.Fatalf("left %v, want both addresses of a and c's", left)
	}
	udp := flow("10.96.0.1:80", "10.0.0.9:8080")
	udp.Protocol = model.UDP
	for i, x := range []struct {
		f    Flow
		want bool
	}{
		{flow("10.96.0.1:80", "10.0.0.9:8080"), true}, // let go of before
		{flow("192.168.1.1:30080", "10.0.0.9:8080"), true},
		{flow("10.96.0.1:80", "10.0.0.1:8080"), false}, // an endpoint still: its change is to come
		{flow("10.96.0.1:80", "10.0.0.8:8080"), false}, // left by nobody
		{flow("10.96.7.7:80", "10.0.0.9:8080"), true},  // the Service is gone too; its cluster IP answers
		{flow("203.0.113.7:80", "10.0.0.9:8080"), false},
		{flow("10.0.0.9:8080", "10.0.0.9:8080"), false}, // straight to the pod: no business of Services
		{udp, false}, // was ended when the Service let go
	} {
		if got := tab.Leaves(x.f, left, inRange); got != x.want {
			t.Errorf("%d: %v, want %v", i, got, x.want)
		}
	}
	// The address is in use again when connections are looked at.
	change(map[model.Name]*model.Pod{named("d"): aPod("d", nil, "10.0.0.9")})
	if tab.Leaves(flow("10.96.0.1:80", "10.0.0.9:8080"), left, inRange) {
		t.Error("a new pod's connection is taken for the old one's")
	}
}

// TestFlowsOfAll: the same when what changed is not known.
func TestFlowsOfAll(t *testing.T) {
	s := full(func(s *model.Service) { s.Ports[0].Protocol = model.UDP })
	eps := slicesOf("web", localReady1)
	for _, e := range eps {
		e.Ports[0].Protocol = model.UDP
	}
	tab, _ := tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}, EndpointSlices: eps})
	gone := Frontend{ips("10.96.9.9")[0], model.UDP, 80}
	ep, other := netip.MustParseAddrPort("10.0.0.1:8080"), netip.MustParseAddrPort("10.0.0.9:8080")
	for i, x := range []struct {
		dest  string
		peer  netip.AddrPort
		loses bool
	}{
		{"10.96.0.1:80", ep, false}, {"10.96.0.1:80", other, true}, {"10.96.0.1:81", other, false},
		{"192.168.1.1:30080", ep, false}, {"192.168.1.1:30080", other, true}, {"192.168.1.9:30080", other, false},
		{"127.0.0.1:30080", other, true}, {"10.96.9.9:80", other, true}, {"8.8.8.8:53", other, false},
	} {
		f := Flow{Protocol: model.UDP, Dest: netip.MustParseAddrPort(x.dest), Peer: x.peer}
		if got := tab.Loses(f, map[Frontend]bool{gone: true}); got != x.loses {
			t.Errorf("%d: %+v: %v, want %v", i, f, got, x.loses)
		}
	}
	// A SYN that was sent while there were no tables went elsewhere, and its repetitions would.
	tab, _ = tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: full(nil)}, EndpointSlices: slicesOf("web", localReady1)})
	for _, dest := range []string{"10.96.0.1:80", "192.168.1.1:30080", "203.0.113.1:80"} {
		to := netip.MustParseAddrPort(dest)
		for _, answered := range []bool{false, true} {
			if got := tab.Loses(Flow{Protocol: model.TCP, Dest: to, Peer: to, Answered: answered}, nil); got == answered {
				t.Errorf("%s, answered %v: lost %v", dest, answered, got)
			}
		}
		if tab.Loses(Flow{Protocol: model.TCP, Dest: to, Peer: other}, nil) {
			t.Errorf("%s: a TCP connection to what may be a pod is lost", dest)
		}
	}
}

func TestExplain(t *testing.T) {
	hinted := remoteReady1
	hinted.HintZones, hinted.Zone, hinted.Pod = []string{"west"}, "west", "far"
	mine := localReady1
	mine.HintZones, mine.Zone, mine.Pod = []string{"east"}, "east", "near"
	draining := model.Endpoint{Serving: true, Terminating: true, Node: "n1", Pod: "leaving"}
	s := full(func(s *model.Service) {
		s.ExternalLocal, s.ExternalIPs, s.Ingress, s.ClusterIPs = true, nil, nil, s.ClusterIPs[:1]
	})
	tab, _ := tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}, EndpointSlices: slicesOf("web", mine, hinted, draining, unready1)})
	e, ok := tab.Explain(s.Name)
	if !ok || len(e.Frontends) != 2 {
		t.Fatalf("%v %+v", ok, e)
	}
	for i, want := range []struct {
		text string
		why  []string
	}{
		{"forwarded to 1 endpoint", []string{"", "meant for zone west; this node's zone, east, has its own endpoints (hints)", "terminating; others are ready", "not ready"}},
		{"forwarded to 1 endpoint of this node; from the node itself and its pods, to 1 endpoint anywhere",
			[]string{"", "on node n2, and the traffic policy is Local", "terminating; others are ready", "not ready"}},
	} {
		f := e.Frontends[i]
		if f.Text != want.text {
			t.Errorf("%s: %q, want %q", f.Frontend, f.Text, want.text)
		}
		for j, ep := range f.Endpoints {
			if ep.Why != want.why[j] || ep.Used != (want.why[j] == "") {
				t.Errorf("%s: %s: used %v, %q, want %q", f.Frontend, ep.Addr, ep.Used, ep.Why, want.why[j])
			}
		}
	}
	if _, ok := tab.Explain(named("nobody")); ok {
		t.Error("a Service that does not exist was explained")
	}
	name := &model.Service{Meta: model.Meta{Name: named("alias")}, Type: model.ExternalName}
	tab.Update(&model.Delta{Services: map[model.Name]*model.Service{name.Name: name}})
	if e, _ := tab.Explain(name.Name); !strings.Contains(e.NotServed, "ExternalName") {
		t.Errorf("%+v", e)
	}
}

// TestAbsent: what one looks for in vain among the frontends.
func TestAbsent(t *testing.T) {
	for i, x := range []struct {
		mod  func(*model.Service)
		want []string
	}{
		{func(s *model.Service) { s.Ingress = s.Ingress[:2] }, nil},
		{func(s *model.Service) { s.Ingress = nil }, []string{"none is assigned yet"}},
		{func(s *model.Service) { s.Ingress = s.Ingress[:1]; s.Ingress[0].Proxy = true }, []string{"203.0.113.1: its ipMode is Proxy"}},
		{nil, []string{"lb.example.com: it has a host name only"}},
		{func(s *model.Service) { s.ClusterIPs, s.Ingress = s.ClusterIPs[:1], s.Ingress[:2] },
			[]string{"load balancer IP fd00:203::1: the Service has no cluster IP of family IPv6", "external IP fd00:198::1"}},
		{func(s *model.Service) {
			s.Ingress, s.Ports[0].NodePort, s.LoadBalancer.NoNodePorts = s.Ingress[:2], 0, true
		}, []string{"node ports: allocate"}},
		{func(s *model.Service) { s.Type, s.Ingress = model.NodePort, nil }, nil},
	} {
		s := full(x.mod)
		tab, _ := tableWith(&model.Delta{Services: map[model.Name]*model.Service{s.Name: s}})
		e, _ := tab.Explain(s.Name)
		if len(e.Absent) != len(x.want) {
			t.Errorf("%d: %q, want %q", i, e.Absent, x.want)
			continue
		}
		for j, w := range x.want {
			if !strings.Contains(e.Absent[j], w) {
				t.Errorf("%d: %q, want %q", i, e.Absent[j], w)
			}
		}
	}
}
