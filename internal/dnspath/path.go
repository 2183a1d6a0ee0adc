// SPDX-License-Identifier: Apache-2.0

package dnspath

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Annotation of a Service names the one of its ports that takes queries to its port 53 untracked.
const Annotation = "weft.dev/untracked-dns-port"

// queryPort is the Service's port whose UDP queries are taken (RFC 1035 section 4.2).
const queryPort = 53

// Query is a frontend of a Service, and the server on this node that takes its queries.
type Query struct {
	Service  model.Name
	Frontend netip.AddrPort // a ClusterIP, and port 53
	Server   netip.Addr
}

// Server is a server on this node.
type Server struct {
	Addr netip.Addr
	Port uint16 // that the frontend's stands for
	// Untracked is the port where it takes untracked queries and answers them from. Who judges a query before it gets
	// there sees it go to Port, as any other.
	Untracked uint16
	Frontend  netip.AddrPort // that the answers are to come from
}

// Paths are what a node's kernel is to do. Both are in order.
type Paths struct {
	Queries []Query // only where the node's own server is ready
	// Servers are all those that the EndpointSlices list: to one that is no longer ready a query may be on its way, and
	// what it was asked before it answers still.
	Servers []Server
}

// Equal tells whether both are the same.
func (p Paths) Equal(o Paths) bool {
	return slices.Equal(p.Queries, o.Queries) && slices.Equal(p.Servers, o.Servers)
}

// Table holds the Services that ask for the untracked path, for one node.
type Table struct {
	node      string
	namespace string
	own       []netip.Addr // the node's addresses
	services  map[model.Name]*model.Service
	slices    map[model.Name]map[string]*model.EndpointSlice // by Service, then slice
	of        map[model.Name]string                          // a slice's Service
}

// NewTable makes a table for a node, of the Services in a namespace. An answer of a server is trusted: it passes policies.
// So whose Services count is not for everybody who may make one.
func NewTable(node, namespace string) *Table {
	return &Table{node: node, namespace: namespace, services: make(map[model.Name]*model.Service),
		slices: make(map[model.Name]map[string]*model.EndpointSlice), of: make(map[model.Name]string)}
}

// Update takes in what changed, and tells whether that can have changed the Paths.
func (t *Table) Update(d *model.Delta) (touched bool) {
	for name, s := range d.Services {
		if name.Namespace != t.namespace {
			continue
		}
		_, had := t.services[name]
		delete(t.services, name)
		if s != nil && s.Annotations[Annotation] != "" {
			t.services[name] = s
		}
		touched = touched || had || t.services[name] != nil
	}
	for name, s := range d.EndpointSlices {
		if was, ok := t.of[name]; ok {
			of := model.Name{Namespace: name.Namespace, Name: was}
			delete(t.slices[of], name.Name)
			if len(t.slices[of]) == 0 {
				delete(t.slices, of)
			}
			delete(t.of, name)
			touched = touched || t.services[of] != nil
		}
		// Of the cluster's slices only those are kept that can matter: with an endpoint here, over UDP.
		if s == nil || name.Namespace != t.namespace || s.FQDN || !slices.ContainsFunc(s.Ports, isUDP) || !slices.ContainsFunc(s.Endpoints, t.here) {
			continue
		}
		of := model.Name{Namespace: name.Namespace, Name: s.Service}
		if t.slices[of] == nil {
			t.slices[of] = make(map[string]*model.EndpointSlice, 1)
		}
		t.slices[of][name.Name], t.of[name] = s, s.Service
		touched = touched || t.services[of] != nil
	}
	if n, ok := d.Nodes[t.node]; ok {
		var own []netip.Addr
		if n != nil {
			own = slices.Concat(n.InternalIPs, n.ExternalIPs)
		}
		touched = touched || !slices.Equal(own, t.own)
		t.own = own
	}
	return touched
}

func isUDP(p model.EndpointPort) bool { return p.Protocol == model.UDP }

func (t *Table) here(e model.Endpoint) bool { return e.Node == t.node }

// Paths are those of now.
func (t *Table) Paths() Paths {
	var out Paths
	// A server is one Service's: of several that claim it, the oldest's.
	taken := make(map[netip.Addr]Server)
	names := slices.SortedFunc(maps.Keys(t.services), func(a, b model.Name) int {
		return cmp.Or(cmp.Compare(t.services[a].Created, t.services[b].Created), a.Compare(b))
	})
	for _, name := range names {
		t.add(&out, t.services[name], taken)
	}
	slices.SortFunc(out.Queries, func(a, b Query) int { return a.Frontend.Compare(b.Frontend) })
	slices.SortFunc(out.Servers, func(a, b Server) int { return a.Addr.Compare(b.Addr) })
	return out
}

// add adds a Service's paths. Only one that keeps its traffic on the node where it can takes part: for any other the
// node's own server is one of many.
func (t *Table) add(out *Paths, s *model.Service, taken map[netip.Addr]Server) {
	if s.Headless || !(s.Distribution == model.PreferSameNode || s.InternalLocal) {
		return
	}
	at := slices.IndexFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == queryPort && p.Protocol == model.UDP })
	if at < 0 {
		return
	}
	for _, vip := range s.ClusterIPs {
		frontend := netip.AddrPortFrom(vip, queryPort)
		best := Query{Service: s.Meta.Name, Frontend: frontend}
		for _, sl := range t.slices[s.Meta.Name] {
			port, own := portOf(sl, s.Ports[at].Name), portOf(sl, s.Annotations[Annotation])
			if port == 0 || own == 0 || port == own {
				continue
			}
			for _, e := range sl.Endpoints {
				for _, a := range e.Addresses {
					if !t.here(e) || a.Is4() != vip.Is4() || slices.Contains(t.own, a) {
						continue // what is sent to the node's own address never leaves it by another hook
					}
					server := Server{a, port, own, frontend}
					switch by, ok := taken[a]; {
					case !ok:
						taken[a] = server
						out.Servers = append(out.Servers, server)
					case by != server:
						continue
					}
					if e.Ready && !e.Terminating && (!best.Server.IsValid() || a.Less(best.Server)) {
						best.Server = a
					}
				}
			}
		}
		if best.Server.IsValid() {
			out.Queries = append(out.Queries, best)
		}
	}
}

// portOf is the number of a slice's UDP port of that name; 0 is none.
func portOf(s *model.EndpointSlice, name string) uint16 {
	for _, p := range s.Ports {
		if p.Name == name && p.Protocol == model.UDP {
			return p.Port
		}
	}
	return 0
}
