// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// backend is a route.Backend and where its endpoints come from: a Service's EndpointSlices, its cluster IP, or an address.
type backend struct {
	conf      route.Backend
	service   model.Name // none: address
	port      uint16     // 0: portName; with neither the Service's first
	portName  string
	clusterIP bool
	address   string // "host:port"
}

// backends are all those that some unit (a host, an Ingress) names. Their endpoint sets have the same keys.
type backends struct {
	all       map[string]*backend
	users     map[string]map[string]bool     // key to units
	byUnit    map[string][]string            // unit to keys
	byService map[model.Name]map[string]bool // Service to keys
	stale     map[string]bool                // keys to be made again
	watchers  map[string]map[string]bool     // key to hosts that care whether it has endpoints
	hadAny    map[string]bool
}

func (b *backends) init() {
	*b = backends{
		all: map[string]*backend{}, users: map[string]map[string]bool{}, byUnit: map[string][]string{},
		byService: map[model.Name]map[string]bool{}, stale: map[string]bool{}, watchers: map[string]map[string]bool{}, hadAny: map[string]bool{},
	}
}

// use says which backends a unit names from now on.
func (b *backends) use(unit string, now map[string]backend) {
	for _, key := range b.byUnit[unit] {
		if _, still := now[key]; !still {
			delete(b.users[key], unit)
			b.stale[key] = true
		}
	}
	delete(b.byUnit, unit)
	for key, v := range now {
		if b.users[key] == nil {
			b.users[key] = map[string]bool{}
		}
		b.users[key][unit] = true
		b.byUnit[unit] = append(b.byUnit[unit], key)
		if old := b.all[key]; old == nil {
			kept := v
			b.all[key] = &kept
			if v.service.Name != "" {
				if b.byService[v.service] == nil {
					b.byService[v.service] = map[string]bool{}
				}
				b.byService[v.service][key] = true
			}
		} else {
			old.conf = v.conf
		}
		b.stale[key] = true
	}
	slices.Sort(b.byUnit[unit])
}

// touched notes that a Service or its endpoints have changed.
func (b *backends) touched(service model.Name) {
	for key := range b.byService[service] {
		b.stale[key] = true
	}
}

// hostsOf are the hosts that name a Service.
func (b *backends) hostsOf(service model.Name) map[string]bool {
	out := map[string]bool{}
	for key := range b.byService[service] {
		for unit := range b.users[key] {
			if h, ok := strings.CutPrefix(unit, hostUnit); ok {
				out[h] = true
			}
		}
	}
	return out
}

// hostUnit begins the names of the units that hosts are.
const hostUnit = "host "

// watch says whose having endpoints or not a host's rules depend on.
func (b *backends) watch(host string, old *[]string, now map[string]bool) {
	for _, key := range *old {
		delete(b.watchers[key], host)
		if len(b.watchers[key]) == 0 {
			delete(b.watchers, key)
			delete(b.hadAny, key)
		}
	}
	*old = nil
	for key, had := range now {
		if b.watchers[key] == nil {
			b.watchers[key] = map[string]bool{}
		}
		b.watchers[key][host] = true
		b.hadAny[key] = had
		*old = append(*old, key)
	}
}

// flipped are the hosts to compile again, since a backend that they watch has got its first endpoint or lost its last.
func (b *backends) flipped(s *State) map[string]bool {
	out := map[string]bool{}
	for key := range b.stale {
		if len(b.watchers[key]) == 0 || b.all[key] == nil {
			continue
		}
		if set, _ := s.endpointsOf(b.all[key]); (len(set) > 0) != b.hadAny[key] {
			for h := range b.watchers[key] {
				out[h] = true
			}
		}
	}
	return out
}

// settle makes what is stale and drops what nobody names.
func (b *backends) settle(s *State) {
	for key := range b.stale {
		v := b.all[key]
		if len(b.users[key]) == 0 {
			if v != nil && v.service.Name != "" {
				delete(b.byService[v.service], key)
				if len(b.byService[v.service]) == 0 {
					delete(b.byService, v.service)
				}
			}
			delete(b.all, key)
			delete(b.users, key)
			s.out.backends.remove("", key)
			s.out.endpoints.remove("", key)
			continue
		}
		set, _ := s.endpointsOf(v)
		s.out.endpoints.set("", key, route.EndpointSet{Key: key, Endpoints: set})
		conf := v.conf
		if svc := s.services[v.service]; svc != nil {
			var err error
			if conf.ProxyProtocol, err = svc.ProxyProtocol(); err != nil {
				conf.Invalid = err.Error()
			}
		}
		s.out.backends.set("", key, conf)
	}
	clear(b.stale)
}

// serviceBackend is a Service's port, spoken to in the way that variant tells apart.
func serviceBackend(namespace string, b *model.IngressBackend, conf route.Backend, variant string) backend {
	port := b.PortName
	if b.Port != 0 {
		port = strconv.Itoa(int(b.Port))
	}
	key := "Service/" + namespace + "/" + b.Service + "/" + cmp.Or(port, "-")
	if variant != "" {
		key += "/" + variant
	}
	conf.Key, conf.Endpoints = key, key
	return backend{conf: conf, service: model.Name{Namespace: namespace, Name: b.Service}, port: b.Port, portName: b.PortName}
}

// addressBackend is a server outside, or one named by its DNS name.
func addressBackend(scheme, host string, port uint16, conf route.Backend) backend {
	address := host + ":" + strconv.Itoa(int(port))
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		address = netip.AddrPortFrom(a, port).String()
	}
	key := "Address/" + scheme + "/" + address
	conf.Key, conf.Endpoints = key, key
	return backend{conf: conf, address: address}
}

// endpointsOf lists a backend's endpoints; why says why there are none. Requests then get 503.
func (s *State) endpointsOf(b *backend) (set []route.Endpoint, why string) {
	if b.service.Name == "" {
		return []route.Endpoint{{Address: b.address}}, ""
	}
	svc := s.services[b.service]
	if svc == nil {
		return nil, fmt.Sprintf("there is no Service %s", b.service)
	}
	port, ok := servicePort(svc, b)
	if svc.Type == model.ExternalName {
		number := b.port
		if ok {
			number = port.Port
		}
		if number == 0 {
			return nil, fmt.Sprintf("Service %s is an ExternalName without a port %s: name the port by its number", b.service, b.portName)
		}
		return []route.Endpoint{{Address: svc.ExternalName + ":" + strconv.Itoa(int(number))}}, ""
	}
	if !ok {
		return nil, fmt.Sprintf("Service %s has no port %s", b.service, cmp.Or(b.portName, strconv.Itoa(int(b.port))))
	}
	if b.clusterIP {
		if len(svc.ClusterIPs) > 0 {
			return []route.Endpoint{{Address: netip.AddrPortFrom(svc.ClusterIPs[0], port.Port).String()}}, ""
		}
		// A headless Service has endpoints alone.
	}
	family := model.IPv4
	if len(svc.Families) > 0 {
		family = svc.Families[0]
	}
	if set = s.sliceEndpoints(b.service, &port, family); len(set) == 0 {
		set = s.sliceEndpoints(b.service, &port, model.IPv4+model.IPv6-family)
	}
	return set, ""
}

// servicePort finds the port that a backend means: by number or name, or as ingress-nginx does by the target port.
func servicePort(svc *model.Service, b *backend) (model.ServicePort, bool) {
	for _, p := range svc.Ports {
		if p.Protocol == model.TCP && (b.port != 0 && p.Port == b.port || b.portName != "" && p.Name == b.portName || b.port == 0 && b.portName == "") {
			return p, true
		}
	}
	target := cmp.Or(b.portName, strconv.Itoa(int(b.port)))
	for _, p := range svc.Ports {
		if p.Protocol == model.TCP && p.TargetPort == target {
			return p, true
		}
	}
	return model.ServicePort{}, false
}

// sliceEndpoints lists the endpoints of one family, in the order of their addresses.
func (s *State) sliceEndpoints(service model.Name, port *model.ServicePort, family model.Family) (set []route.Endpoint) {
	for _, slice := range s.slices[service] {
		if slice.Family != family || slice.FQDN {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port.Name || p.Protocol != model.TCP || p.Port == 0 {
				continue
			}
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				if len(e.Addresses) == 0 || !e.Ready && !(e.Serving && e.Terminating) {
					continue
				}
				set = append(set, route.Endpoint{Address: netip.AddrPortFrom(e.Addresses[0], p.Port).String(), Terminating: e.Terminating})
			}
		}
	}
	slices.SortFunc(set, func(a, b route.Endpoint) int {
		x, y := 0, 0
		if a.Terminating {
			x = 1
		}
		if b.Terminating {
			y = 1
		}
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(x, y))
	})
	// A pod may be in two slices while it moves from one to the other.
	return slices.CompactFunc(set, func(a, b route.Endpoint) bool { return a.Address == b.Address })
}
