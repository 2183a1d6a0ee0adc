// SPDX-License-Identifier: Apache-2.0

package hostnames

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

// key names an object of Gateway API.
type key = model.ObjectKey

// Table holds what declares names, and what they declare.
type Table struct {
	gateways   map[key]*gatewayv1.Gateway
	sets       map[key]*gatewayv1.ListenerSet
	routes     map[key]*route
	routesOf   map[key]map[key]bool // a Gateway's or ListenerSet's routes
	setsOf     map[key]map[key]bool // a Gateway's ListenerSets
	namespaces map[string]map[string]string

	declared map[key]map[string]dnszone.Declaration // what each object declares, by Declaration.Object
}

// NewTable makes an empty table.
func NewTable() *Table {
	return &Table{
		gateways: make(map[key]*gatewayv1.Gateway), sets: make(map[key]*gatewayv1.ListenerSet), routes: make(map[key]*route),
		routesOf: make(map[key]map[key]bool), setsOf: make(map[key]map[key]bool),
		namespaces: make(map[string]map[string]string), declared: make(map[key]map[string]dnszone.Declaration),
	}
}

// Update takes in what changed. It returns what is declared now in place of what was before, each whole, and the
// Declarations that are no more.
func (t *Table) Update(d *model.Delta) (now []dnszone.Declaration, gone []string) {
	touched := make(map[key]bool)
	t.updateNamespaces(d, touched)
	for k, o := range d.Objects {
		t.updateObject(k, o, touched)
	}
	// Gateways lead to their ListenerSets, both to their routes.
	for k := range maps.Clone(touched) {
		for s := range t.setsOf[k] {
			touched[s] = true
		}
	}
	for k := range maps.Clone(touched) {
		for r := range t.routesOf[k] {
			touched[r] = true
		}
	}
	for k := range touched {
		ds := t.of(k)
		now, gone = t.replace(k, ds, now, gone)
	}
	for name, in := range d.Ingresses {
		var ds []dnszone.Declaration
		if in != nil {
			ds = append(ds, fromIngress(in))
		}
		now, gone = t.replace(key{Kind: "Ingress", Namespace: name.Namespace, Name: name.Name}, ds, now, gone)
	}
	slices.SortFunc(now, func(a, b dnszone.Declaration) int { return cmp.Compare(a.Object, b.Object) })
	slices.Sort(gone)
	return now, gone
}

// All is everything that is declared.
func (t *Table) All() (out []dnszone.Declaration) {
	for _, of := range t.declared {
		for _, d := range of {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b dnszone.Declaration) int { return cmp.Compare(a.Object, b.Object) })
	return out
}

// replace notes what an object declares from now on.
func (t *Table) replace(k key, ds []dnszone.Declaration, now []dnszone.Declaration, gone []string) ([]dnszone.Declaration, []string) {
	was := t.declared[k]
	delete(t.declared, k)
	for _, d := range ds {
		if len(d.Hostnames) == 0 {
			continue
		}
		if t.declared[k] == nil {
			t.declared[k] = make(map[string]dnszone.Declaration, 1)
		}
		t.declared[k][d.Object] = d
		now = append(now, d)
	}
	for o := range was {
		if _, still := t.declared[k][o]; !still {
			gone = append(gone, o)
		}
	}
	return now, gone
}

// updateNamespaces takes in namespaces' labels, by which listeners may choose who can attach to them.
func (t *Table) updateNamespaces(d *model.Delta, touched map[key]bool) {
	changed := make(map[string]bool)
	for name, ns := range d.Namespaces {
		var labels map[string]string
		if ns != nil {
			labels = ns.Labels
		}
		if !maps.Equal(labels, t.namespaces[name]) {
			changed[name] = true
		}
		if delete(t.namespaces, name); ns != nil {
			t.namespaces[name] = labels
		}
	}
	if len(changed) == 0 {
		return
	}
	for k := range t.routes {
		if changed[k.Namespace] {
			touched[k] = true
		}
	}
}

func (t *Table) updateObject(k key, o *model.Object, touched map[key]bool) {
	var value any
	if o != nil {
		value = o.Value
	}
	switch k.Kind {
	case "Gateway":
		if delete(t.gateways, k); value != nil {
			t.gateways[k] = value.(*gatewayv1.Gateway)
		}
	case "ListenerSet":
		if old := t.sets[k]; old != nil {
			unlink(t.setsOf, gatewayOf(old), k)
		}
		if delete(t.sets, k); value != nil {
			s := value.(*gatewayv1.ListenerSet)
			t.sets[k] = s
			link(t.setsOf, gatewayOf(s), k)
		}
	case "HTTPRoute", "GRPCRoute", "TLSRoute":
		if old := t.routes[k]; old != nil {
			for _, p := range old.accepted() {
				unlink(t.routesOf, p.parent(k.Namespace), k)
			}
		}
		if delete(t.routes, k); value != nil {
			r := newRoute(value)
			t.routes[k] = r
			for _, p := range r.accepted() {
				link(t.routesOf, p.parent(k.Namespace), k)
			}
		}
	default:
		return
	}
	touched[k] = true
}

func link(m map[key]map[key]bool, parent, child key) {
	if m[parent] == nil {
		m[parent] = make(map[key]bool, 1)
	}
	m[parent][child] = true
}

func unlink(m map[key]map[key]bool, parent, child key) {
	delete(m[parent], child)
	if len(m[parent]) == 0 {
		delete(m, parent)
	}
}

// gatewayOf is the Gateway that a ListenerSet adds listeners to.
func gatewayOf(s *gatewayv1.ListenerSet) key {
	p := &s.Spec.ParentRef
	return key{Kind: "Gateway", Namespace: string(deref(p.Namespace, gatewayv1.Namespace(s.Namespace))), Name: string(p.Name)}
}

// of is what an object of Gateway API declares.
func (t *Table) of(k key) []dnszone.Declaration {
	if r := t.routes[k]; r != nil {
		return t.fromRoute(k, r)
	}
	if g := t.gateways[k]; g != nil {
		d := declaration(k, g.CreationTimestamp.Unix(), g.Annotations)
		toGateway(&d, g)
		return []dnszone.Declaration{d}
	}
	return nil
}

// declaration is one with what its annotations say.
func declaration(k key, created int64, annotations map[string]string) dnszone.Declaration {
	d := dnszone.Declaration{Object: k.Kind + " " + model.Name{Namespace: k.Namespace, Name: k.Name}.String(), Namespace: k.Namespace, Created: created}
	d.Annotate(annotations)
	return d
}

// fromIngress reads an Ingress.
func fromIngress(in *model.Ingress) dnszone.Declaration {
	d := declaration(key{Kind: "Ingress", Namespace: in.Meta.Namespace, Name: in.Meta.Name.Name}, in.Created, in.Annotations)
	for _, r := range in.Rules {
		if r.Host != "" {
			d.Hostnames = append(d.Hostnames, r.Host)
		}
	}
	for _, e := range in.TLS {
		d.Hostnames = append(d.Hostnames, e.Hosts...)
	}
	d.Hostnames = compact(d.Hostnames)
	if len(d.Addrs) > 0 || d.Alias != "" {
		return d
	}
	for _, a := range in.Status {
		lead(&d, a.IP, a.Hostname)
	}
	return d
}

// lead adds an address, or a name to be an alias of.
func lead(d *dnszone.Declaration, ip, hostname string) {
	if a, err := netip.ParseAddr(ip); err == nil {
		d.Addrs = append(d.Addrs, a.Unmap().WithZone(""))
	} else {
		d.Alias = cmp.Or(d.Alias, hostname)
	}
}

// toGateway has a declaration lead to a Gateway's addresses, if its annotations lead it nowhere else.
func toGateway(d *dnszone.Declaration, g *gatewayv1.Gateway) {
	if len(d.Addrs) > 0 || d.Alias != "" {
		return
	}
	var over dnszone.Declaration
	if over.Annotate(g.Annotations); len(over.Addrs) > 0 || over.Alias != "" {
		d.Addrs, d.Alias = over.Addrs, over.Alias
		return
	}
	for _, a := range g.Status.Addresses {
		switch deref(a.Type, gatewayv1.IPAddressType) {
		case gatewayv1.IPAddressType:
			lead(d, a.Value, "")
		case gatewayv1.HostnameAddressType:
			lead(d, "", a.Value)
		}
	}
}

func compact(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
