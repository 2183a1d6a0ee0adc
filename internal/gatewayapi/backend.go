// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// spoken is what a route speaks to its backends.
type spoken string

const (
	spokenHTTP  spoken = ""     // HTTP/1.1
	spokenHTTP2 spoken = "h2"   // HTTP/2: gRPC, h2c
	spokenTCP   spoken = "tcp"  // bytes as they come
	spokenTLS   spoken = "tls"  // bytes, encrypted anew where a BackendTLSPolicy says so
	spokenUDP   spoken = "udp"  // datagrams
	spokenGRPC  spoken = "grpc" // what a GRPCRoute asks for; it becomes spokenHTTP2
)

// backendID is one port of a Service, as some routes speak to it.
type backendID struct {
	Service model.Name
	Port    uint16
	As      spoken
}

// key is the Backend's key in the tables: "Service/shop/cart/80", with "/h2", "/tcp", "/tls" or "/udp" after it.
func (b backendID) key() string {
	k := BackendKey(ServicePort{b.Service, b.Port})
	if b.As != spokenHTTP {
		k += "/" + string(b.As)
	}
	return k
}

// BackendKey is the key of the Backend that speaks HTTP/1.1, or what the port's appProtocol says, to a Service's port.
func BackendKey(p ServicePort) string {
	return "Service/" + p.Service.String() + "/" + strconv.Itoa(int(p.Port))
}

// endpointsID is one port of a Service whose endpoints several Backends may have.
type endpointsID struct {
	Service model.Name
	Port    uint16
	UDP     bool
}

func (b backendID) endpoints() endpointsID { return endpointsID{b.Service, b.Port, b.As == spokenUDP} }

func (e endpointsID) key() string {
	k := e.Service.String() + "/" + strconv.Itoa(int(e.Port))
	if e.UDP {
		k += "/udp"
	}
	return k
}

// resolve finds the Backend that a reference names, or says why it can't be followed.
func (s *State) resolve(c *content, ref gwv1.BackendObjectReference, as spoken) (backendID, *verdict) {
	group, kind := gwv1.Group(""), gwv1.Kind("Service")
	if ref.Group != nil {
		group = *ref.Group
	}
	if ref.Kind != nil {
		kind = *ref.Kind
	}
	if group != "" || kind != "Service" {
		v := no(gwv1.RouteReasonInvalidKind, fmt.Sprintf("backendRef %s: kind %s of group %q is not supported: refer to a Service", ref.Name, kind, group))
		return backendID{}, &v
	}
	svc := model.Name{Namespace: c.from.Namespace, Name: string(ref.Name)}
	if ref.Namespace != nil && *ref.Namespace != "" {
		svc.Namespace = string(*ref.Namespace)
	}
	once(&c.services, svc)
	if svc.Namespace != c.from.Namespace {
		once(&c.foreign, svc.Namespace)
	}
	if !s.permitted(c.from, "Service", svc) {
		v := no(gwv1.RouteReasonRefNotPermitted, "backendRef "+svc.String()+": "+grantMissing(c.from, "Service", svc))
		return backendID{}, &v
	}
	obj := s.services[svc]
	if obj == nil {
		v := no(gwv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRef: there is no Service %s in namespace %s", svc.Name, svc.Namespace))
		return backendID{}, &v
	}
	if ref.Port == nil {
		v := no(gwv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRef %s: port is missing: say one of Service's ports (%s)", svc, portList(obj)))
		return backendID{}, &v
	}
	return s.resolvePort(obj, uint16(*ref.Port), as)
}

func (s *State) resolvePort(obj *model.Service, number uint16, as spoken) (backendID, *verdict) {
	id := backendID{Service: obj.Name, Port: number, As: as}
	port, other := findPort(obj, number, as == spokenUDP)
	if port == nil {
		v := no(gwv1.RouteReasonBackendNotFound, fmt.Sprintf("backendRef %s: the Service has no port %d, it has %s", obj.Name, number, portList(obj)))
		if other {
			v = no(gwv1.RouteReasonUnsupportedProtocol, fmt.Sprintf("backendRef %s: port %d of the Service has another protocol than the route: it has %s",
				obj.Name, number, portList(obj)))
		}
		return id, &v
	}
	unsupported := func(why string) (backendID, *verdict) {
		v := no(gwv1.RouteReasonUnsupportedProtocol, fmt.Sprintf("backendRef %s port %d: appProtocol %s %s", obj.Name, number, port.AppProtocol, why))
		return id, &v
	}
	if as != spokenHTTP && as != spokenGRPC {
		return id, nil // appProtocol says what is inside the bytes
	}
	grpc := as == spokenGRPC
	if grpc {
		id.As = spokenHTTP2
	}
	switch strings.ToLower(port.AppProtocol) {
	case "kubernetes.io/h2c", "h2c", "http2", "grpc":
		id.As = spokenHTTP2
	case "kubernetes.io/ws", "ws":
		if grpc {
			return unsupported("does not go with gRPC")
		}
	case "kubernetes.io/wss", "wss", "https":
		if s.policyFor(obj, port) == nil {
			return unsupported("needs a BackendTLSPolicy for the Service that says what its certificate must be")
		}
	default:
		if strings.HasPrefix(strings.ToLower(port.AppProtocol), "kubernetes.io/") {
			return unsupported("is not supported: kubernetes.io/h2c, kubernetes.io/ws and kubernetes.io/wss are")
		}
	}
	return id, nil
}

// unmet says of a Backend that resolve gave why its BackendTLSPolicy can't be met, or its Service's annotation, if so. The
// Backend itself knows as well and fails its requests, and the policy's status tells of the Gateways that it concerns.
func (s *State) unmet(id backendID) *verdict {
	obj := s.services[id.Service]
	if _, err := obj.ProxyProtocol(); err != nil && id.As != spokenUDP {
		v := no(gwv1.RouteReasonUnsupportedProtocol, fmt.Sprintf("backendRef %s port %d: %v", obj.Name, id.Port, err))
		return &v
	}
	if id.As == spokenTCP || id.As == spokenUDP {
		return nil
	}
	port, _ := findPort(obj, id.Port, false)
	if p := s.policyFor(obj, port); p != nil && p.invalid() != "" {
		v := no("InvalidBackendTLSPolicy", fmt.Sprintf("backendRef %s port %d: BackendTLSPolicy %s can't be met: %s", obj.Name, id.Port, p.name, p.invalid()))
		return &v
	}
	return nil
}

// findPort gives the port with the number and protocol. other: there is one with the number, of another protocol.
func findPort(obj *model.Service, number uint16, udp bool) (port *model.ServicePort, other bool) {
	want := model.TCP
	if udp {
		want = model.UDP
	}
	if obj.Type == model.ExternalName && len(obj.Ports) == 0 {
		return &model.ServicePort{Protocol: want, Port: number}, false // a name elsewhere has whatever port
	}
	for i := range obj.Ports {
		if obj.Ports[i].Port != number {
			continue
		}
		if obj.Ports[i].Protocol == want {
			return &obj.Ports[i], false
		}
		other = true
	}
	return nil, other
}

func portList(obj *model.Service) string {
	if len(obj.Ports) == 0 {
		return "none"
	}
	var out []string
	for _, p := range obj.Ports {
		out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	return strings.Join(out, ", ")
}

// backend makes the Backend of a gateway for an ID that resolve gave.
func (s *State) backend(g *gateway, id backendID) *route.Backend {
	b := &route.Backend{Key: id.key(), Endpoints: id.endpoints().key()}
	switch id.As {
	case spokenHTTP:
		b.Protocol = route.HTTP1
	case spokenHTTP2:
		b.Protocol = route.HTTP2
	default:
		b.Protocol = route.Raw
	}
	obj := s.services[id.Service]
	if obj == nil {
		b.Invalid = fmt.Sprintf("there is no Service %s", id.Service)
		return b
	}
	port, _ := findPort(obj, id.Port, id.As == spokenUDP)
	if port == nil {
		b.Invalid = fmt.Sprintf("Service %s has no port %d", id.Service, id.Port)
		return b
	}
	if id.As != spokenUDP {
		var err error
		if b.ProxyProtocol, err = obj.ProxyProtocol(); err != nil {
			b.Invalid = err.Error()
			return b
		}
	}
	if id.As == spokenTCP || id.As == spokenUDP {
		return b
	}
	if p := s.policyFor(obj, port); p != nil {
		b.TLS, b.Invalid = p.tls, p.invalid()
		if p.excluded.has(g.name) {
			b.Invalid = fmt.Sprintf("BackendTLSPolicy %s: %s", p.name, noRoom)
		}
		if b.TLS != nil && g.clientCert != "" {
			with := *b.TLS
			with.ClientCertificate = g.clientCert
			b.TLS = &with
		}
	}
	return b
}

// endpointSet gives the endpoints of a Service's port: those that are ready, and those that are ending and still serve.
func (s *State) endpointSet(id endpointsID) *route.EndpointSet {
	out := &route.EndpointSet{Key: id.key()}
	obj := s.services[id.Service]
	if obj == nil {
		return out
	}
	port, _ := findPort(obj, id.Port, id.UDP)
	if port == nil {
		return out
	}
	if obj.Type == model.ExternalName {
		name := strings.TrimSuffix(obj.ExternalName, ".")
		if name != "" {
			out.Endpoints = []route.Endpoint{{Address: name + ":" + strconv.Itoa(int(id.Port))}}
		}
		return out
	}
	// Both families' slices list the same pods: one family is enough, the Service's first if it has endpoints.
	families := obj.Families
	if len(families) == 0 {
		families = []model.Family{model.IPv4, model.IPv6}
	}
	for _, f := range families {
		if out.Endpoints = s.endpointsOf(id.Service, port, f); len(out.Endpoints) > 0 {
			break
		}
	}
	return out
}

// Serving tells whether a Service has a ready endpoint, whatever its port, and which pods those are, in order.
func (s *State) Serving(svc model.Name) (ready bool, pods []string) {
	for name := range s.slices.of(svc) {
		slice := s.endpointSlices[name]
		if slice == nil {
			continue
		}
		for i := range slice.Endpoints {
			if e := &slice.Endpoints[i]; e.Ready {
				ready = true
				if e.Pod != "" {
					once(&pods, e.Pod)
				}
			}
		}
	}
	slices.Sort(pods)
	return ready, pods
}

func (s *State) endpointsOf(svc model.Name, port *model.ServicePort, family model.Family) []route.Endpoint {
	terminating := map[netip.AddrPort]bool{}
	for name := range s.slices.of(svc) {
		slice := s.endpointSlices[name]
		if slice == nil || slice.FQDN || slice.Family != family {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port.Name || p.Protocol != port.Protocol || p.Port == 0 {
				continue
			}
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				ending := e.Terminating && e.Serving
				if !e.Ready && !ending || len(e.Addresses) == 0 {
					continue
				}
				// Of several addresses the API has only the first used. A pod may for a moment be in two slices.
				at := netip.AddrPortFrom(e.Addresses[0], p.Port)
				was, known := terminating[at]
				terminating[at] = e.Terminating && (!known || was)
			}
		}
	}
	if len(terminating) == 0 {
		return nil
	}
	order := make([]netip.AddrPort, 0, len(terminating))
	for at := range terminating {
		order = append(order, at)
	}
	slices.SortFunc(order, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	out := make([]route.Endpoint, len(order))
	for i, at := range order {
		out[i] = route.Endpoint{Address: at.String(), Terminating: terminating[at]}
	}
	return out
}

// need counts one more use of a backend in a gateway's tables.
func (s *State) need(w *work, g *gateway, id backendID) {
	t := g.tables
	if t.uses[id]++; t.uses[id] > 1 {
		return
	}
	t.backends.put(id.key(), s.backend(g, id))
	e := id.endpoints()
	if t.endpointUse[e]++; t.endpointUse[e] == 1 {
		t.endpoints.put(e.key(), s.endpointSet(e))
	}
	byGateway := s.users[id.Service]
	if byGateway == nil {
		byGateway = map[model.Name]set[backendID]{}
		s.users[id.Service] = byGateway
	}
	if byGateway[g.name] == nil {
		byGateway[g.name] = set[backendID]{}
	}
	byGateway[g.name].add(id)
	w.tables.add(g.name)
	w.policiesOf(s, id.Service)
}

// release takes one use of a backend back.
func (s *State) release(w *work, g *gateway, id backendID) {
	t := g.tables
	if t.uses[id]--; t.uses[id] > 0 {
		return
	}
	delete(t.uses, id)
	t.backends.put(id.key(), nil)
	e := id.endpoints()
	if t.endpointUse[e]--; t.endpointUse[e] == 0 {
		delete(t.endpointUse, e)
		t.endpoints.put(e.key(), nil)
	}
	byGateway := s.users[id.Service]
	delete(byGateway[g.name], id)
	if len(byGateway[g.name]) == 0 {
		delete(byGateway, g.name)
	}
	if len(byGateway) == 0 {
		delete(s.users, id.Service)
	}
	w.tables.add(g.name)
	w.policiesOf(s, id.Service)
}

// refresh brings a Service's backends and endpoints in all gateways up to date.
func (s *State) refresh(w *work, svc model.Name) {
	sets := map[endpointsID]*route.EndpointSet{}
	for name, ids := range s.users[svc] {
		g := s.gateways[name]
		w.tables.add(name)
		for id := range ids {
			e := id.endpoints()
			if sets[e] == nil {
				sets[e] = s.endpointSet(e)
			}
			g.tables.backends.put(id.key(), s.backend(g, id))
			g.tables.endpoints.put(e.key(), sets[e])
		}
	}
}
