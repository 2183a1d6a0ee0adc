// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// Tiny constructors, so that a case reads like a line of a truth table.

type svcOption func(*model.Service)

// svc is LoadBalancer Service default/name with port 80/TCP; age counts up with every call.
func svc(name string, opts ...svcOption) *model.Service {
	s := &model.Service{
		Meta:     model.Meta{Name: model.Name{Namespace: "default", Name: name}, UID: "uid-" + name, Created: 100},
		Type:     model.LoadBalancer,
		Families: []model.Family{model.IPv4},
		Ports:    []model.ServicePort{{Protocol: model.TCP, Port: 80}},
		Selector: map[string]string{"app": name},
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

func note(key, value string) svcOption {
	return func(s *model.Service) {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[key] = value
	}
}
func wants(v string) svcOption     { return note(RequestAnnotation, v) }
func fromPool(v string) svcOption  { return note(PoolAnnotation, v) }
func shares(key string) svcOption  { return note(ShareAnnotation, key) }
func created(t int64) svcOption    { return func(s *model.Service) { s.Created = t } }
func class(c string) svcOption     { return func(s *model.Service) { s.LoadBalancer.Class = c } }
func local(s *model.Service)       { s.ExternalLocal = true }
func clusterIP(s *model.Service)   { s.Type = model.ClusterIP }
func deleting(s *model.Service)    { s.Deleting = true }
func requireDual(s *model.Service) { preferDual(s); s.RequireDualStack = true }
func preferDual(s *model.Service)  { s.Families = []model.Family{model.IPv4, model.IPv6} }
func v6(s *model.Service)          { s.Families = []model.Family{model.IPv6} }
func inNS(ns string) svcOption     { return func(s *model.Service) { s.Namespace = ns } }
func selects(app string) svcOption {
	return func(s *model.Service) { s.Selector = map[string]string{"app": app} }
}
func labels(k, v string) svcOption {
	return func(s *model.Service) { s.Labels = map[string]string{k: v} }
}
func legacyIP(ip string) svcOption {
	return func(s *model.Service) { s.LoadBalancer.RequestedIP = netip.MustParseAddr(ip) }
}
func ports(pp ...uint16) svcOption {
	return func(s *model.Service) {
		s.Ports = nil
		for _, p := range pp {
			s.Ports = append(s.Ports, model.ServicePort{Protocol: model.TCP, Port: p})
		}
	}
}
func status(ips ...string) svcOption {
	return func(s *model.Service) {
		for _, ip := range ips {
			s.Ingress = append(s.Ingress, model.LoadBalancerIngress{IP: netip.MustParseAddr(ip)})
		}
	}
}

type poolOption func(*model.AddressPool)

func apool(name, addrs string, opts ...poolOption) *model.AddressPool {
	p := &model.AddressPool{Meta: model.Meta{Name: model.Name{Name: name}, UID: "uid-" + name, Created: 10, Generation: 1}}
	for _, s := range strings.Fields(addrs) {
		r, err := model.ParseAddressRange(s)
		if err != nil {
			p.Invalid = append(p.Invalid, err.Error())
			continue
		}
		p.Ranges = append(p.Ranges, r)
	}
	for _, o := range opts {
		o(p)
	}
	return p
}
func manual(p *model.AddressPool)     { p.ManualOnly = true }
func avoidBuggy(p *model.AddressPool) { p.AvoidBuggyIPs = true }
func made(t int64) poolOption         { return func(p *model.AddressPool) { p.Created = t } }
func forNS(k, v string) poolOption {
	return func(p *model.AddressPool) {
		s := model.MatchLabels(map[string]string{k: v})
		p.NamespaceSelector = &s
	}
}
func forSvc(k, v string) poolOption {
	return func(p *model.AddressPool) {
		s := model.MatchLabels(map[string]string{k: v})
		p.ServiceSelector = &s
	}
}

func delta(objs ...any) *model.Delta {
	d := &model.Delta{Complete: true, Services: map[model.Name]*model.Service{}, AddressPools: map[string]*model.AddressPool{},
		Nodes: map[string]*model.Node{}, Namespaces: map[string]*model.Namespace{}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for _, o := range objs {
		switch o := o.(type) {
		case *model.Service:
			d.Services[o.Name] = o
		case *model.AddressPool:
			d.AddressPools[o.Name.Name] = o
		case *model.Node:
			d.Nodes[o.Name.Name] = o
		case *model.Namespace:
			d.Namespaces[o.Name.Name] = o
		case *model.EndpointSlice:
			d.EndpointSlices[o.Name] = o
		case gone:
			d.Services[model.Name{Namespace: "default", Name: string(o)}] = nil
		case poolGone:
			d.AddressPools[string(o)] = nil
		default:
			panic(fmt.Sprintf("delta of %T", o))
		}
	}
	return d
}

type gone string     // a Service that is deleted
type poolGone string // a pool that is deleted

var ours = Options{Class: DefaultClass, Unclassed: true}

// got spells every Service's addresses, "a=192.0.2.1+2001:db8::1 b=", pools left out.
func got(a *Allocator) string {
	var out []string
	for name, d := range a.Decisions() {
		var s []string
		for _, x := range d.Addresses {
			s = append(s, x.Addr.String())
		}
		out = append(out, name.Name+"="+strings.Join(s, "+"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestAssign: Deltas in, every Service's addresses and the last Delta's events out.
func TestAssign(t *testing.T) {
	small := apool("p", "192.0.2.1-192.0.2.2")
	dual := apool("p", "192.0.2.1-192.0.2.9 2001:db8::1-2001:db8::9")
	for _, c := range []struct {
		name   string
		deltas []*model.Delta
		want   string
		events []string // a part of each Event's reason and message, in order; nil does not look
	}{
		{"lowest free, oldest first", []*model.Delta{delta(small, svc("a", created(2)), svc("b", created(1)))}, "a=192.0.2.2 b=192.0.2.1", nil},
		{"same age: by name", []*model.Delta{delta(small, svc("b"), svc("a"))}, "a=192.0.2.1 b=192.0.2.2", []string{
			`AddressAssigned assigned 192.0.2.1 of AddressPool "p"`, "AddressAssigned assigned 192.0.2.2"}},
		{"what the status says stays, whoever is older", []*model.Delta{
			delta(small, svc("a", created(1)), svc("b", created(2), status("192.0.2.1")))}, "a=192.0.2.2 b=192.0.2.1", nil},
		{"two with one address in status: the older keeps it", []*model.Delta{
			delta(small, svc("a", created(2), status("192.0.2.1")), svc("b", created(1), status("192.0.2.1")))}, "a=192.0.2.2 b=192.0.2.1",
			[]string{"AddressReleased 192.0.2.1 is taken from the Service: Service default/b has 192.0.2.1", "AddressAssigned assigned 192.0.2.2"}},
		{"full", []*model.Delta{delta(small, svc("a"), svc("b"), svc("c"))}, "a=192.0.2.1 b=192.0.2.2 c=",
			[]string{"AddressAssigned", "AddressAssigned", "AddressPoolExhausted no free IPv4 address in AddressPool p"}},
		{"one goes, one that waits comes", []*model.Delta{delta(small, svc("a"), svc("b"), svc("c")), delta(gone("a"))}, "b=192.0.2.2 c=192.0.2.1",
			[]string{"AddressAssigned"}},
		{"deleting counts as gone", []*model.Delta{delta(small, svc("a"), svc("b"), svc("c")), delta(svc("a", deleting))}, "b=192.0.2.2 c=192.0.2.1", nil},
		{"another type counts as gone", []*model.Delta{delta(small, svc("a"), svc("b"), svc("c")), delta(svc("a", clusterIP))}, "b=192.0.2.2 c=192.0.2.1", nil},
		{"no pool", []*model.Delta{delta(svc("a"))}, "a=", []string{"NoAddressPool there is no AddressPool"}},
		{"the pool comes later", []*model.Delta{delta(svc("a")), delta(small)}, "a=192.0.2.1", nil},
		{"the pool goes", []*model.Delta{delta(small, svc("a")), delta(poolGone("p"))}, "a=", []string{
			"AddressReleased 192.0.2.1 is taken from the Service: no AddressPool has 192.0.2.1", "NoAddressPool"}},
		{"the pool shrinks", []*model.Delta{delta(small, svc("a"), svc("b")), delta(apool("p", "192.0.2.2-192.0.2.3"))}, "a=192.0.2.3 b=192.0.2.2", nil},
		{"nothing changes: nothing is said", []*model.Delta{delta(small, svc("a")), delta(svc("a", status("192.0.2.1")))}, "a=192.0.2.1", []string{}},
		{"created again", []*model.Delta{delta(small, svc("a")), delta(svc("a", func(s *model.Service) { s.UID = "new" }))}, "a=192.0.2.1", nil},

		{"another class is not ours, its address not free", []*model.Delta{
			delta(small, svc("a", class("x.example/lb"), status("192.0.2.1")), svc("b"))}, "b=192.0.2.2", nil},
		{"another controller's address, no class: left alone", []*model.Delta{delta(small, svc("a", status("198.51.100.1")), svc("b"))}, "a= b=192.0.2.1",
			[]string{"AddressAssigned"}},
		{"another controller's address, but it asks weft", []*model.Delta{delta(small, svc("a", status("198.51.100.1"), fromPool("p")))}, "a=192.0.2.1", nil},
		{"another controller's address, and a pool for it comes: taken over", []*model.Delta{
			delta(small, svc("a", status("198.51.100.1"))), delta(apool("q", "198.51.100.0/24"))}, "a=198.51.100.1", nil},
		{"our class, another's address", []*model.Delta{delta(small, svc("a", class(DefaultClass), status("198.51.100.1")))}, "a=192.0.2.1",
			[]string{"AddressReleased 198.51.100.1 is taken from the Service: no AddressPool has", "AddressAssigned"}},
		{"our class", []*model.Delta{delta(small, svc("a", class(DefaultClass)))}, "a=192.0.2.1", nil},
		{"a node's address is not given away", []*model.Delta{delta(small, svc("a"),
			&model.Node{Meta: model.Meta{Name: model.Name{Name: "n"}}, InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})}, "a=192.0.2.2", nil},
		{"an externalIP is not given away", []*model.Delta{delta(small, svc("a"),
			svc("e", clusterIP, func(s *model.Service) { s.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }))}, "a=192.0.2.2", nil},

		{"asked for", []*model.Delta{delta(small, svc("a", wants("192.0.2.2")))}, "a=192.0.2.2", nil},
		{"asked for the old way", []*model.Delta{delta(small, svc("a", legacyIP("192.0.2.2")))}, "a=192.0.2.2", nil},
		{"asked for the old way, unreadably", []*model.Delta{delta(small, svc("a", func(s *model.Service) { s.LoadBalancer.UnreadableIP = "192.0.2.x" }))}, "a=",
			[]string{"InvalidAddressRequest spec.loadBalancerIP"}},
		{"another proxy's", []*model.Delta{delta(small, svc("a", labels(model.ProxyNameLabel, "")))}, "", nil},
		{"asked for both ways alike", []*model.Delta{delta(small, svc("a", legacyIP("192.0.2.2"), wants("192.0.2.2")))}, "a=192.0.2.2", nil},
		{"asked for both ways differently", []*model.Delta{delta(small, svc("a", legacyIP("192.0.2.1"), wants("192.0.2.2")))}, "a=",
			[]string{"InvalidAddressRequest annotation weft.dev/load-balancer-ips: says other than spec.loadBalancerIP"}},
		{"asked for, taken", []*model.Delta{delta(small, svc("a"), svc("b", wants("192.0.2.1"), created(200)))}, "a=192.0.2.1 b=",
			[]string{"AddressAssigned", "AddressUnavailable Service default/a has 192.0.2.1: to share it"}},
		{"asked for, taken, then freed", []*model.Delta{delta(small, svc("a"), svc("b", wants("192.0.2.1"), created(200))), delta(gone("a"))}, "b=192.0.2.1", nil},
		{"asked for, in no pool", []*model.Delta{delta(small, svc("a", wants("198.51.100.1")))}, "a=", []string{"AddressUnavailable no AddressPool has 198.51.100.1"}},
		{"asked for garbage", []*model.Delta{delta(small, svc("a", wants("ten")))}, "a=", []string{`InvalidAddressRequest annotation weft.dev/load-balancer-ips: "ten"`}},
		{"asked for two of a family", []*model.Delta{delta(small, svc("a", wants("192.0.2.1,192.0.2.2")))}, "a=", []string{"InvalidAddressRequest"}},
		{"asked for a family that it does not have", []*model.Delta{delta(dual, svc("a", wants("2001:db8::1")))}, "a=", []string{"InvalidAddressRequest"}},
		{"asks for another: moves", []*model.Delta{delta(small, svc("a")), delta(svc("a", wants("192.0.2.2")))}, "a=192.0.2.2", nil},
		{"asks for a taken one: keeps its own", []*model.Delta{delta(small, svc("a"), svc("b")), delta(svc("a", wants("192.0.2.2")))}, "a=192.0.2.1 b=192.0.2.2",
			[]string{"AddressUnavailable Service default/b has 192.0.2.2: to share it, give both Services the same weft.dev/share-key annotation (the Service keeps 192.0.2.1)"}},

		{"manual pools are for those who name them", []*model.Delta{delta(apool("p", "192.0.2.1", manual), svc("a"), svc("b", fromPool("p")))}, "a= b=192.0.2.1",
			[]string{`NoAddressPool AddressPool p has autoAssign: false`, "AddressAssigned"}},
		{"manual pools are for those who name an address", []*model.Delta{delta(apool("p", "192.0.2.1", manual), svc("a", wants("192.0.2.1")))}, "a=192.0.2.1", nil},
		{"a pool made manual keeps whom it serves", []*model.Delta{delta(small, svc("a")), delta(apool("p", "192.0.2.1-192.0.2.2", manual))}, "a=192.0.2.1", []string{}},
		{"names a pool", []*model.Delta{delta(small, apool("q", "198.51.100.1"), svc("a", fromPool("q")))}, "a=198.51.100.1", nil},
		{"names a pool that is not there", []*model.Delta{delta(small, svc("a", fromPool("x")))}, "a=", []string{`NoAddressPool annotation weft.dev/address-pool: there is no AddressPool "x"`}},
		{"names another pool: moves", []*model.Delta{delta(small, apool("q", "198.51.100.1"), svc("a")), delta(svc("a", fromPool("q")))}, "a=198.51.100.1", nil},
		{"names a full pool: keeps its own", []*model.Delta{delta(small, apool("q", "198.51.100.1"), svc("a"), svc("b", fromPool("q"))), delta(svc("a", fromPool("q")))},
			"a=192.0.2.1 b=198.51.100.1", []string{"AddressPoolExhausted"}},
		{"names a pool and another's address", []*model.Delta{delta(small, apool("q", "198.51.100.1"), svc("a", fromPool("q"), wants("192.0.2.1")))}, "a=",
			[]string{"InvalidAddressRequest annotation weft.dev/address-pool"}},
		{"pools in order of name", []*model.Delta{delta(apool("q", "198.51.100.1"), small, svc("a"), svc("b"), svc("c"))}, "a=192.0.2.1 b=192.0.2.2 c=198.51.100.1", nil},
		{"a pool made for it first", []*model.Delta{delta(small, apool("q", "198.51.100.1", forSvc("tier", "web")), svc("a", labels("tier", "web")), svc("b"))},
			"a=198.51.100.1 b=192.0.2.1", nil},
		{"of its namespace", []*model.Delta{delta(apool("p", "192.0.2.1", forNS("team", "red")), svc("a", inNS("red")), svc("b", inNS("blue")),
			&model.Namespace{Meta: model.Meta{Name: model.Name{Name: "red"}, Labels: map[string]string{"team": "red"}}})}, "a=192.0.2.1 b=",
			[]string{"NoAddressPool no AddressPool admits this Service", "AddressAssigned"}},
		{"its namespace is relabelled", []*model.Delta{delta(apool("p", "192.0.2.1", forNS("team", "red")), svc("a")),
			delta(&model.Namespace{Meta: model.Meta{Name: model.Name{Name: "default"}, Labels: map[string]string{"team": "red"}}})}, "a=192.0.2.1", nil},
		{"no longer admitted", []*model.Delta{delta(small, svc("a")), delta(apool("p", "192.0.2.1-192.0.2.2", forSvc("tier", "web")))}, "a=",
			[]string{"AddressReleased 192.0.2.1 is taken from the Service: AddressPool \"p\" has 192.0.2.1, but its", "NoAddressPool"}},

		{"dual-stack", []*model.Delta{delta(dual, svc("a", preferDual))}, "a=192.0.2.1+2001:db8::1", nil},
		{"IPv6 first", []*model.Delta{delta(dual, svc("a", func(s *model.Service) { s.Families = []model.Family{model.IPv6, model.IPv4} }))}, "a=2001:db8::1+192.0.2.1", nil},
		{"IPv6 only", []*model.Delta{delta(dual, svc("a", v6))}, "a=2001:db8::1", nil},
		{"prefers dual, pool has one family", []*model.Delta{delta(small, svc("a", preferDual))}, "a=192.0.2.1", []string{"AddressAssigned"}},
		{"prefers dual, the other comes later", []*model.Delta{delta(small, svc("a", preferDual)), delta(apool("q", "2001:db8::1"))}, "a=192.0.2.1+2001:db8::1", nil},
		{"prefers dual, one is used up", []*model.Delta{delta(apool("p", "192.0.2.1 2001:db8::1-2001:db8::2"), svc("a", preferDual), svc("b", preferDual))},
			"a=192.0.2.1+2001:db8::1 b=2001:db8::2", []string{"AddressAssigned", "AddressAssigned", "AddressAssigned", "AddressPoolExhausted no free IPv4"}},
		{"requires dual, pool has one family", []*model.Delta{delta(small, svc("a", requireDual), svc("b"))}, "a= b=192.0.2.1",
			[]string{"NoAddressPool AddressPool p has no IPv6 addresses", "AddressAssigned"}},
		{"comes to require dual: keeps what it has", []*model.Delta{delta(small, svc("a")), delta(svc("a", requireDual))}, "a=192.0.2.1", nil},
		{"dual-stack from one pool rather than two", []*model.Delta{delta(apool("a", "198.51.100.1"), apool("b", "192.0.2.1 2001:db8::1"), svc("s", preferDual))},
			"s=192.0.2.1+2001:db8::1", nil},
		{"dual-stack from two pools", []*model.Delta{delta(apool("a", "198.51.100.1"), apool("b", "2001:db8::1"), svc("s", requireDual))}, "s=198.51.100.1+2001:db8::1", nil},
		{"one address asked for, the other assigned", []*model.Delta{delta(dual, svc("a", preferDual, wants("192.0.2.7")))}, "a=192.0.2.7+2001:db8::1", nil},
		{"both asked for", []*model.Delta{delta(dual, svc("a", preferDual, wants("2001:db8::5, 192.0.2.7")))}, "a=192.0.2.7+2001:db8::5", nil},
		{"loses a family", []*model.Delta{delta(dual, svc("a", preferDual)), delta(svc("a"))}, "a=192.0.2.1", nil},

		{"shared", []*model.Delta{delta(small, svc("a", shares("k")), svc("b", shares("k"), ports(443)))}, "a=192.0.2.1 b=192.0.2.1", nil},
		{"shared: other key", []*model.Delta{delta(small, svc("a", shares("k")), svc("b", shares("j"), ports(443)))}, "a=192.0.2.1 b=192.0.2.2", nil},
		{"shared: same port", []*model.Delta{delta(small, svc("a", shares("k")), svc("b", shares("k")))}, "a=192.0.2.1 b=192.0.2.2", nil},
		{"shared: same port of another protocol", []*model.Delta{delta(small, svc("a", shares("k")),
			svc("b", shares("k"), func(s *model.Service) { s.Ports[0].Protocol = model.UDP }))}, "a=192.0.2.1 b=192.0.2.1", nil},
		{"shared: Local with Cluster", []*model.Delta{delta(small, svc("a", shares("k")), svc("b", shares("k"), ports(443), local))}, "a=192.0.2.1 b=192.0.2.2", nil},
		{"shared: Local, other selector", []*model.Delta{delta(small, svc("a", shares("k"), local), svc("b", shares("k"), ports(443), local))}, "a=192.0.2.1 b=192.0.2.2", nil},
		{"shared: Local, same selector", []*model.Delta{delta(small, svc("a", shares("k"), local, selects("x")), svc("b", shares("k"), ports(443), local, selects("x")))},
			"a=192.0.2.1 b=192.0.2.1", nil},
		{"shared by address asked for", []*model.Delta{delta(small, svc("a", shares("k"), wants("192.0.2.2")), svc("b", shares("k"), ports(443), wants("192.0.2.2")))},
			"a=192.0.2.2 b=192.0.2.2", nil},
		{"shared in status", []*model.Delta{delta(small, svc("a", shares("k"), status("192.0.2.2")), svc("b", shares("k"), ports(443), status("192.0.2.2")))},
			"a=192.0.2.2 b=192.0.2.2", nil},
		{"who takes a sharer's port has to go", []*model.Delta{delta(small, svc("a", shares("k")), svc("b", shares("k"), ports(443))), delta(svc("a", shares("k"), ports(443)))},
			"a=192.0.2.2 b=192.0.2.1", nil},
		{"who changes the key has to go", []*model.Delta{delta(small, svc("a", shares("k")), svc("b", shares("k"), ports(443))), delta(svc("b", ports(443)))},
			"a=192.0.2.1 b=192.0.2.2", nil},
		{"alone on it: may change the key", []*model.Delta{delta(small, svc("a", shares("k"))), delta(svc("a", shares("j")), svc("b", shares("j"), ports(443)))},
			"a=192.0.2.1 b=192.0.2.1", nil},
		{"the holder takes up a key: who waits comes in", []*model.Delta{
			delta(small, svc("a"), svc("b", shares("k"), ports(443), wants("192.0.2.1"), created(200))), delta(svc("a", shares("k")))}, "a=192.0.2.1 b=192.0.2.1", nil},

		{"buggy addresses left out", []*model.Delta{delta(apool("p", "192.0.1.254-192.0.2.1", avoidBuggy), svc("a"), svc("b"), svc("c"))},
			"a=192.0.1.254 b=192.0.2.1 c=", nil},
		{"overlap: the younger pool is refused", []*model.Delta{delta(apool("a", "192.0.2.1-192.0.2.5", made(2)), apool("b", "192.0.2.5-192.0.2.9", made(1)), svc("s"))},
			"s=192.0.2.5", []string{"AddressAssigned", `Conflict 192.0.2.1-192.0.2.5 overlaps 192.0.2.5-192.0.2.9 of the older AddressPool "b"`}},
		{"overlap: whom a refused pool serves stays", []*model.Delta{
			delta(apool("a", "192.0.2.1-192.0.2.5", made(2)), svc("s")), delta(apool("b", "192.0.2.5-192.0.2.9", made(1)))}, "s=192.0.2.1", nil},
		{"overlap: names the refused pool", []*model.Delta{delta(apool("a", "192.0.2.1-192.0.2.5", made(2)), apool("b", "192.0.2.5", made(1)), svc("s", fromPool("a")))}, "s=",
			[]string{`NoAddressPool annotation weft.dev/address-pool: AddressPool "a" is refused`, "Conflict"}},
		{"overlap is cured", []*model.Delta{delta(apool("a", "192.0.2.1-192.0.2.5", made(2)), apool("b", "192.0.2.5", made(1)), svc("s", fromPool("a"))),
			delta(apool("a", "192.0.2.1-192.0.2.4", made(2)))}, "s=192.0.2.1", nil},
		{"a bad entry does not stop the others", []*model.Delta{delta(apool("p", "nonsense 192.0.2.1"), svc("a"))}, "a=192.0.2.1",
			[]string{"AddressAssigned", "InvalidAddresses left out: "}},
		{"only bad entries", []*model.Delta{delta(apool("p", "nonsense"), svc("a"))}, "a=", []string{"NoAddressPool", "NoAddresses"}},
		{"ranges of a pool that overlap count once", []*model.Delta{delta(apool("p", "192.0.2.1-192.0.2.2 192.0.2.2"), svc("a"), svc("b"), svc("c"))},
			"a=192.0.2.1 b=192.0.2.2 c=", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := New(ours)
			var last *Result
			for _, d := range c.deltas {
				last = a.Apply(d)
				check(t, a)
			}
			if g := got(a); g != c.want {
				t.Errorf("addresses: %s\nwant:      %s", g, c.want)
			}
			if c.events == nil {
				return
			}
			var events []string
			for _, e := range last.Events {
				events = append(events, e.Reason+" "+e.Message)
			}
			if !slices.EqualFunc(events, c.events, strings.Contains) {
				t.Errorf("events:\n  %s\nwant parts of:\n  %s", strings.Join(events, "\n  "), strings.Join(c.events, "\n  "))
			}
		})
	}
}

// TestUnclassedNotOurs: where another controller is the cluster's default, only Services of our class are ours.
func TestUnclassedNotOurs(t *testing.T) {
	a := New(Options{Class: DefaultClass})
	a.Apply(delta(apool("p", "192.0.2.1-192.0.2.2"), svc("a"), svc("b", class(DefaultClass))))
	if g, want := got(a), "b=192.0.2.1"; g != want {
		t.Errorf("got %s, want %s", g, want)
	}
}

// TestTakenBack: what weft wrote on a Service is to be taken back when it is no load balancer of weft's any more.
func TestTakenBack(t *testing.T) {
	mark := note(AllocatedAnnotation, "p")
	for _, c := range []struct {
		name   string
		before *model.Service
		after  *model.Service
		want   bool
	}{
		{"type changed", svc("a"), svc("a", clusterIP, mark), true},
		{"type changed while the controller was away", nil, svc("a", clusterIP, mark), true},
		{"deleting", svc("a"), svc("a", deleting, mark), true},
		{"never ours", nil, svc("a", class("other")), false},
		{"never ours, deleting", nil, svc("a", class("other"), deleting), false},
	} {
		a := New(ours)
		a.Apply(delta(apool("p", "192.0.2.1")))
		if c.before != nil {
			a.Apply(delta(c.before))
		}
		d, ok := a.Apply(delta(c.after)).Services[c.after.Name]
		if ok != c.want || d.Ours {
			t.Errorf("%s: decision %v (%+v), want %v", c.name, ok, d, c.want)
		}
	}
}

func TestPoolStatus(t *testing.T) {
	a := New(ours)
	r := a.Apply(delta(apool("p", "192.0.2.0/24 2001:db8::/64", avoidBuggy), svc("a", preferDual), svc("b"), svc("c", shares("k")), svc("d", shares("k"), ports(1)),
		&model.Node{Meta: model.Meta{Name: model.Name{Name: "n"}}, InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.77")}}))
	s := r.Pools["p"]
	if want := (Usage{Total: 254, Used: 3, Free: 250}); s.IPv4 != want {
		t.Errorf("IPv4: %+v, want %+v", s.IPv4, want)
	}
	if s.IPv6.Used != 1 || s.IPv6.Free != s.IPv6.Total-1 || !s.Accepted || s.Reason != PoolAccepted {
		t.Errorf("status: %+v", s)
	}
	if r = a.Apply(delta(gone("b"))); r.Pools["p"].IPv4.Used != 2 {
		t.Errorf("after one left: %+v", r.Pools["p"])
	}
	if r = a.Apply(delta(svc("x", clusterIP))); len(r.Pools) != 0 {
		t.Errorf("nothing changed, yet statuses: %+v", r.Pools)
	}
}

// TestClusterRanges: a pool with addresses that pods or cluster IPs have is refused, whichever comes first, and accepted
// when they are gone; what Services have of it they keep.
func TestClusterRanges(t *testing.T) {
	a := New(Options{Class: DefaultClass, Unclassed: true})
	pods := func(cidrs ...string) *model.Delta {
		n := &model.Node{Meta: model.Meta{Name: model.Name{Name: "n1"}}}
		for _, c := range cidrs {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
		}
		return delta(n)
	}
	cidr := func(name string, cidrs ...string) *model.Delta {
		c := &model.ServiceCIDR{Meta: model.Meta{Name: model.Name{Name: name}}}
		for _, s := range cidrs {
			c.CIDRs = append(c.CIDRs, netip.MustParsePrefix(s))
		}
		d := delta()
		d.ServiceCIDRs = map[string]*model.ServiceCIDR{name: c}
		if len(cidrs) == 0 {
			d.ServiceCIDRs[name] = nil
		}
		return d
	}
	step := func(when string, d *model.Delta, accepted bool, says string) {
		t.Helper()
		a.Apply(d)
		s := a.Pools()["p"]
		if s.Accepted != accepted || !strings.Contains(s.Message, says) {
			t.Errorf("%s: accepted %v, %s %q; want %v, %q", when, s.Accepted, s.Reason, s.Message, accepted, says)
		}
	}
	step("at first", delta(apool("p", "10.96.0.10-10.96.0.20 fd00:5::/120"), svc("a")), true, "")
	step("pods elsewhere", pods("10.244.0.0/24", "fd00:244::/64"), true, "")
	step("cluster IPs there", cidr("kubernetes", "10.96.0.0/12"), false, "10.96.0.10-10.96.0.20 overlaps 10.96.0.0-10.111.255.255, which is for cluster IPs, by ServiceCIDR kubernetes")
	if held := a.services[svc("a").Name].held.v4; held != netip.MustParseAddr("10.96.0.10") {
		t.Errorf("the Service has %s, want what it had", held)
	}
	step("they are gone", cidr("kubernetes"), true, "")
	step("pods there, in the other family", pods("fd00:5::/64"), false, "which is for the pods of Node n1")
	step("another pool changes nothing", delta(apool("q", "192.0.2.0/24")), false, "which is for the pods of Node n1")
	step("elsewhere again", pods("10.244.0.0/24"), true, "")
}
