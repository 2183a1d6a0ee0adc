// SPDX-License-Identifier: Apache-2.0

package hostnames

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

func ptr[T any](v T) *T { return &v }

func meta(name string, annotations ...string) metav1.ObjectMeta {
	ns, n, _ := strings.Cut(name, "/")
	m := metav1.ObjectMeta{Namespace: ns, Name: n, CreationTimestamp: metav1.NewTime(time.Unix(100, 0)), Annotations: map[string]string{}}
	for i := 0; i < len(annotations); i += 2 {
		m.Annotations["external-dns.alpha.kubernetes.io/"+annotations[i]] = annotations[i+1]
	}
	return m
}

// gateway has listeners "name protocol port hostname [from]".
func gateway(name string, addresses []string, listeners ...string) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{ObjectMeta: meta(name)}
	for _, l := range listeners {
		f := strings.Fields(l)
		out := gatewayv1.Listener{Name: gatewayv1.SectionName(f[0]), Protocol: gatewayv1.ProtocolType(f[1])}
		_, _ = fmt.Sscan(f[2], &out.Port)
		if f[3] != "-" {
			out.Hostname = ptr(gatewayv1.Hostname(f[3]))
		}
		if len(f) > 4 {
			out.AllowedRoutes = &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: ptr(gatewayv1.FromNamespaces(f[4]))}}
			if f[4] == "Selector" {
				k, v, ok := strings.Cut(f[5], "=")
				out.AllowedRoutes.Namespaces.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}
				if !ok { // no selector: NotIn without values
					out.AllowedRoutes.Namespaces.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: k, Operator: metav1.LabelSelectorOpNotIn}}}
				}
			}
		}
		g.Spec.Listeners = append(g.Spec.Listeners, out)
	}
	for _, a := range addresses {
		typ := gatewayv1.IPAddressType
		if _, err := netip.ParseAddr(a); err != nil {
			typ = gatewayv1.HostnameAddressType
		}
		g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{Type: &typ, Value: a})
	}
	return g
}

// parents are "[Kind:]namespace/name[#section][@port]", accepted; "!" before it, rejected.
func parents(ps ...string) (out []gatewayv1.RouteParentStatus) {
	for _, p := range ps {
		p, rejected := strings.CutPrefix(p, "!")
		s := gatewayv1.RouteParentStatus{Conditions: []metav1.Condition{{Type: "ResolvedRefs", Status: "False"}, {Type: "Accepted", Status: "True"}}}
		if rejected {
			s.Conditions[1].Status = "False"
		}
		if kind, rest, ok := strings.Cut(p, ":"); ok {
			s.ParentRef.Kind, p = ptr(gatewayv1.Kind(kind)), rest
		}
		p, port, ok := strings.Cut(p, "@")
		if ok {
			var n gatewayv1.PortNumber
			_, _ = fmt.Sscan(port, &n)
			s.ParentRef.Port = &n
		}
		p, section, ok := strings.Cut(p, "#")
		if ok {
			s.ParentRef.SectionName = ptr(gatewayv1.SectionName(section))
		}
		ns, name, _ := strings.Cut(p, "/")
		s.ParentRef.Namespace, s.ParentRef.Name = ptr(gatewayv1.Namespace(ns)), gatewayv1.ObjectName(name)
		out = append(out, s)
	}
	return out
}

func hosts(names []string) (out []gatewayv1.Hostname) {
	for _, n := range names {
		out = append(out, gatewayv1.Hostname(n))
	}
	return out
}

func httpRoute(name string, ps []gatewayv1.RouteParentStatus, names ...string) *gatewayv1.HTTPRoute {
	r := &gatewayv1.HTTPRoute{ObjectMeta: meta(name), Spec: gatewayv1.HTTPRouteSpec{Hostnames: hosts(names)}}
	r.Status.Parents = ps
	return r
}

func delta(objects ...any) *model.Delta {
	d := &model.Delta{Complete: true, Objects: map[model.ObjectKey]*model.Object{}, Ingresses: map[model.Name]*model.Ingress{}, Namespaces: map[string]*model.Namespace{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *model.Ingress:
			d.Ingresses[o.Meta.Name] = o
		case *model.Namespace:
			d.Namespaces[o.Meta.Name.Name] = o
		case metav1.Object:
			kind := strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1.")
			d.Objects[model.ObjectKey{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}] = &model.Object{Value: o}
		}
	}
	return d
}

// show is "object: names > addresses or alias [ttl]", one a line.
func show(ds []dnszone.Declaration) (out []string) {
	for _, d := range ds {
		to := d.Alias
		for _, a := range d.Addrs {
			to = strings.TrimSpace(to + " " + a.String())
		}
		line := fmt.Sprintf("%s: %s > %s", d.Object, strings.Join(d.Hostnames, " "), to)
		if d.TTL > 0 {
			line += fmt.Sprintf(" %s", d.TTL)
		}
		out = append(out, line)
	}
	return out
}

func ingress(name string, annotations ...string) *model.Ingress {
	m := meta(name, annotations...)
	return &model.Ingress{
		Meta:   model.Meta{Name: model.Name{Namespace: m.Namespace, Name: m.Name}, Annotations: m.Annotations},
		Rules:  []model.IngressRule{{Host: "web.example.com"}, {Host: ""}, {Host: "*.apps.example.com"}},
		TLS:    []model.IngressTLS{{Hosts: []string{"web.example.com", "tls.example.com"}}},
		Status: []model.IngressAddress{{IP: "192.0.2.1"}, {IP: "2001:db8::1"}},
	}
}

func TestDeclarations(t *testing.T) {
	ip := []string{"192.0.2.80", "2001:db8::80"}
	at := func(names string) string {
		return "HTTPRoute shop/r at Gateway infra/gw: " + names + " > 192.0.2.80 2001:db8::80"
	}
	all := gateway("infra/gw", ip, "any HTTP 80 - All")
	for _, c := range []struct {
		why     string
		objects []any
		want    []string
	}{
		{"an Ingress: its rules' hosts and those of TLS", []any{ingress("shop/front")},
			[]string{"Ingress shop/front: *.apps.example.com tls.example.com web.example.com > 192.0.2.1 2001:db8::1"}},
		{"annotations", []any{ingress("shop/front", "hostname", "more.example.com, web.example.com", "target", "lb.example.net", "ttl", "60")},
			[]string{"Ingress shop/front: *.apps.example.com more.example.com tls.example.com web.example.com > lb.example.net 1m0s"}},
		{"an Ingress at a load balancer with a name", []any{func() any {
			i := ingress("shop/front")
			i.Rules, i.TLS, i.Status = i.Rules[:1], nil, []model.IngressAddress{{Hostname: "lb-1.example.net"}}
			return i
		}()}, []string{"Ingress shop/front: web.example.com > lb-1.example.net"}},
		{"a route", []any{all, httpRoute("shop/r", parents("infra/gw"), "web.example.com", "Www.example.com")}, []string{at("web.example.com www.example.com")}},
		{"a route that was not accepted", []any{all, httpRoute("shop/r", parents("!infra/gw"), "web.example.com")}, nil},
		{"a Gateway that is not there", []any{httpRoute("shop/r", parents("infra/gw"), "web.example.com")}, nil},
		{"a listener's hostname where the route has none", []any{gateway("infra/gw", ip, "a HTTP 80 a.example.com All", "b HTTPS 443 *.b.example.com All"), httpRoute("shop/r", parents("infra/gw"))},
			[]string{at("*.b.example.com a.example.com")}},
		{"neither has one", []any{all, httpRoute("shop/r", parents("infra/gw"))}, nil},
		{"only what both serve", []any{gateway("infra/gw", ip, "a HTTP 80 *.a.example.com All"),
			httpRoute("shop/r", parents("infra/gw"), "x.a.example.com", "*.example.com", "*.y.a.example.com", "x.b.example.com", "a.example.com")},
			[]string{at("*.a.example.com *.y.a.example.com x.a.example.com")}},
		{"one listener by name", []any{gateway("infra/gw", ip, "a HTTP 80 *.a.example.com All", "b HTTP 80 *.b.example.com All"), httpRoute("shop/r", parents("infra/gw#b"), "x.a.example.com", "x.b.example.com")},
			[]string{at("x.b.example.com")}},
		{"one listener by port", []any{gateway("infra/gw", ip, "a HTTP 80 *.a.example.com All", "b HTTP 81 *.b.example.com All"), httpRoute("shop/r", parents("infra/gw@80"), "x.a.example.com", "x.b.example.com")},
			[]string{at("x.a.example.com")}},
		{"listeners of another protocol", []any{gateway("infra/gw", ip, "a TLS 443 - All", "b TCP 80 - All"), httpRoute("shop/r", parents("infra/gw"), "x.example.com")}, nil},
		{"a listener for its own namespace", []any{gateway("infra/gw", ip, "a HTTP 80 -"), httpRoute("shop/r", parents("infra/gw"), "x.example.com")}, nil},
		{"a listener that does not let the route in cannot lend its names", []any{
			gateway("infra/gw", ip, "dev HTTP 80 *.dev.example.com All", "prod HTTP 80 *.prod.example.com Same"),
			httpRoute("shop/r", parents("infra/gw"), "x.dev.example.com", "x.prod.example.com")}, []string{at("x.dev.example.com")}},
		{"a namespace chosen by its labels", []any{gateway("infra/gw", ip, "a HTTP 80 - Selector team=shop"), httpRoute("shop/r", parents("infra/gw"), "x.example.com"),
			&model.Namespace{Meta: model.Meta{Name: model.Name{Name: "shop"}, Labels: map[string]string{"team": "shop"}}}}, []string{at("x.example.com")}},
		{"a namespace not chosen", []any{gateway("infra/gw", ip, "a HTTP 80 - Selector team=shop"), httpRoute("shop/r", parents("infra/gw"), "x.example.com"),
			&model.Namespace{Meta: model.Meta{Name: model.Name{Name: "shop"}, Labels: map[string]string{"team": "web"}}}}, nil},
		{"a selector that can't be read", []any{gateway("infra/gw", ip, "a HTTP 80 - Selector team"), httpRoute("shop/r", parents("infra/gw"), "x.example.com"),
			&model.Namespace{Meta: model.Meta{Name: model.Name{Name: "shop"}}}}, nil},
		{"two Gateways", []any{all, gateway("infra/gw2", []string{"gw2.example.net"}, "a HTTP 80 - All"), httpRoute("shop/r", parents("infra/gw", "infra/gw2"), "x.example.com")},
			[]string{at("x.example.com"), "HTTPRoute shop/r at Gateway infra/gw2: x.example.com > gw2.example.net"}},
		{"a GRPCRoute and a TLSRoute", []any{gateway("infra/gw", ip, "a HTTPS 443 - All", "b TLS 8443 - All"),
			&gatewayv1.GRPCRoute{ObjectMeta: meta("shop/g"), Spec: gatewayv1.GRPCRouteSpec{Hostnames: hosts([]string{"g.example.com"})}, Status: gatewayv1.GRPCRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: parents("infra/gw")}}},
			&gatewayv1.TLSRoute{ObjectMeta: meta("shop/t"), Spec: gatewayv1.TLSRouteSpec{Hostnames: hosts([]string{"t.example.com"})}, Status: gatewayv1.TLSRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: parents("infra/gw")}}}},
			[]string{"GRPCRoute shop/g at Gateway infra/gw: g.example.com > 192.0.2.80 2001:db8::80", "TLSRoute shop/t at Gateway infra/gw: t.example.com > 192.0.2.80 2001:db8::80"}},
		{"listeners of a ListenerSet, at its Gateway's addresses", []any{gateway("infra/gw", ip, "a HTTP 80 none.example.com All"),
			&gatewayv1.ListenerSet{ObjectMeta: meta("shop/set"), Spec: gatewayv1.ListenerSetSpec{ParentRef: gatewayv1.ParentGatewayReference{Namespace: ptr(gatewayv1.Namespace("infra")), Name: "gw"},
				Listeners: []gatewayv1.ListenerEntry{{Name: "s", Port: 80, Protocol: "HTTP", Hostname: ptr(gatewayv1.Hostname("*.set.example.com"))}}}},
			httpRoute("shop/r", parents("ListenerSet:shop/set"), "x.set.example.com", "none.example.com")}, []string{at("x.set.example.com")}},
		{"annotations of a route and its Gateway", []any{func() any {
			g := gateway("infra/gw", ip, "a HTTP 80 - All")
			g.Annotations = meta("a/b", "hostname", "gw.example.com", "target", "198.51.100.7", "ttl", "30").Annotations
			return g
		}(), func() any {
			r := httpRoute("shop/r", parents("infra/gw"), "x.example.com")
			r.Annotations = meta("a/b", "hostname", "y.example.com", "ttl", "2m").Annotations
			return r
		}()}, []string{"Gateway infra/gw: gw.example.com > 198.51.100.7 30s", "HTTPRoute shop/r at Gateway infra/gw: x.example.com y.example.com > 198.51.100.7 2m0s"}},
	} {
		tab := NewTable()
		now, gone := tab.Update(delta(c.objects...))
		if diff := cmp.Diff(c.want, show(now)); diff != "" || len(gone) > 0 {
			t.Errorf("%s (-want +got):\n%s%v", c.why, diff, gone)
		}
		if diff := cmp.Diff(show(now), show(tab.All())); diff != "" {
			t.Errorf("%s: all that is declared (-now +all):\n%s", c.why, diff)
		}
		// In whatever order they come, the outcome is the same.
		tab = NewTable()
		for _, o := range slices.Backward(c.objects) {
			tab.Update(delta(o))
		}
		if diff := cmp.Diff(c.want, show(tab.All())); diff != "" {
			t.Errorf("%s, one object after the other (-want +got):\n%s", c.why, diff)
		}
	}
}

func TestChanges(t *testing.T) {
	tab := NewTable()
	step := func(what string, d *model.Delta, now, gone []string) {
		t.Helper()
		n, g := tab.Update(d)
		if diff := cmp.Diff(now, show(n)); diff != "" {
			t.Errorf("%s: declared (-want +got):\n%s", what, diff)
		}
		if diff := cmp.Diff(gone, g); diff != "" {
			t.Errorf("%s: withdrawn (-want +got):\n%s", what, diff)
		}
	}
	name := "HTTPRoute shop/r at Gateway infra/gw"
	step("a route and its Gateway", delta(gateway("infra/gw", []string{"192.0.2.1"}, "a HTTP 80 - All"), httpRoute("shop/r", parents("infra/gw"), "x.example.com")),
		[]string{name + ": x.example.com > 192.0.2.1"}, nil)
	step("another route", delta(httpRoute("shop/other", nil, "y.example.com")), nil, nil)
	step("the Gateway gets another address", delta(gateway("infra/gw", []string{"192.0.2.2"}, "a HTTP 80 - All")), []string{name + ": x.example.com > 192.0.2.2"}, nil)
	step("its listener takes no others' routes any more", delta(gateway("infra/gw", []string{"192.0.2.2"}, "a HTTP 80 - Selector team=shop")), nil, []string{name})
	step("but by label", delta(&model.Namespace{Meta: model.Meta{Name: model.Name{Name: "shop"}, Labels: map[string]string{"team": "shop"}}}), []string{name + ": x.example.com > 192.0.2.2"}, nil)
	step("the route is no longer accepted", delta(httpRoute("shop/r", parents("!infra/gw"), "x.example.com")), nil, []string{name})
	step("it is again", delta(httpRoute("shop/r", parents("infra/gw"), "x.example.com")), []string{name + ": x.example.com > 192.0.2.2"}, nil)
	d := delta()
	d.Objects[model.ObjectKey{Kind: "Gateway", Namespace: "infra", Name: "gw"}] = nil
	step("the Gateway is gone", d, nil, []string{name})
	d = delta(ingress("shop/front"))
	d.Objects[model.ObjectKey{Kind: "HTTPRoute", Namespace: "shop", Name: "r"}] = nil
	step("the route is, too; an Ingress comes", d, []string{"Ingress shop/front: *.apps.example.com tls.example.com web.example.com > 192.0.2.1 2001:db8::1"}, nil)
	d = delta()
	d.Ingresses[model.Name{Namespace: "shop", Name: "front"}] = nil
	step("and goes", d, nil, []string{"Ingress shop/front"})
	if len(tab.routesOf)+len(tab.setsOf)+len(tab.gateways)+len(tab.declared) != 0 {
		t.Errorf("left behind: %v %v %v %v", tab.routesOf, tab.setsOf, tab.gateways, tab.declared)
	}
}
