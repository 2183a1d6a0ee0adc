// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// kind is what sort of names a Service has.
type kind uint8

const (
	clusterIP kind = iota
	headless
	external
)

// service is what one Service and its EndpointSlices come to: compact, immutable, pointers few. Addresses are kept
// as their bytes, one after the other, in strings.
type service struct {
	// What most lookups need comes first, and the strings up to v6 lie in one piece of memory: see pack.

	// name is the labels of Service and namespace on the wire, in lower case: the zone's key for it, and the start
	// of each name under it.
	name string
	kind kind
	// a and aaaa are the records of the Service's own name, prepared: fixed in size, so they can be turned, with
	// an owner that points at the question.
	a, aaaa string

	// v4 and v6 are the addresses of the endpoints that are ready, in order, without repetition.
	v4, v6 string

	ports  []port
	named  *named // nil where no endpoint has a hostname
	target string // ExternalName's, on the wire
}

// port is a named port: what an SRV record is made of.
type port struct {
	name  string // lower case
	proto string // "tcp"
	port  uint16
	// members are the names of a headless Service that serve this port, as ordinals (see service.each); nil is all.
	members []uint32
}

// named is the part of a service that only endpoints with hostnames need.
type named struct {
	hosts []host // by label
	// of4 and of6 are the names of each address of v4 and v6, in order of address, then name: pods on their node's
	// network share one.
	of4, of6 []nameOf
}

// nameOf is one name of an address.
type nameOf struct {
	addr uint32 // index into v4 or v6
	host uint32 // index into hosts plus one; 0 is the generated name
}

// host is an endpoint name that was given, not generated.
type host struct {
	label  string
	v4, v6 string // addresses, as in service
}

const (
	recordA    = 2 + 10 + 4 // octets of a prepared record
	recordAAAA = 2 + 10 + 16
)

// binding is one ready address, as the slices have it.
type binding struct {
	addr netip.Addr
	host string
	set  int // which set of ports
}

func (s *service) is(key []byte) bool { return s.name == string(key) }

// pack moves the strings together, in the order in which a lookup comes upon them.
func (s *service) pack() *service {
	parts := []*string{&s.name, &s.a, &s.aaaa, &s.v4, &s.v6}
	size := 0
	for _, p := range parts {
		size += len(*p)
	}
	var b strings.Builder
	b.Grow(size)
	for _, p := range parts {
		b.WriteString(*p)
	}
	all := b.String()
	for _, p := range parts {
		*p, all = all[:len(*p)], all[len(*p):]
	}
	return s
}

// compile makes the names of a Service. It is nil where there are none: a headless Service without a ready
// endpoint is NXDOMAIN (specification section 2.4.1).
func compile(key string, s *model.Service, es []*model.EndpointSlice, o *Options) *service {
	out := &service{name: key}
	if s.Type == model.ExternalName {
		out.kind = external
		if _, err := netip.ParseAddr(s.ExternalName); err == nil {
			return nil // an address is no name that a CNAME could point to
		}
		w, err := PackName(s.ExternalName)
		if err != nil || len(w) == 1 {
			return nil
		}
		out.target = string(w)
		return out.pack()
	}

	var binds []binding
	var sets [][]model.EndpointPort
	for _, e := range es {
		if e.FQDN {
			continue
		}
		set := slices.IndexFunc(sets, func(p []model.EndpointPort) bool { return slices.Equal(p, e.Ports) })
		if set < 0 {
			set = len(sets)
			sets = append(sets, e.Ports)
		}
		for i := range e.Endpoints {
			ep := &e.Endpoints[i]
			if !ep.Ready && !s.PublishNotReadyAddresses {
				continue
			}
			label := endpointLabel(ep, o)
			for _, a := range ep.Addresses {
				binds = append(binds, binding{a, label, set})
			}
		}
	}
	out.addEndpoints(binds)

	if s.Headless {
		if len(binds) == 0 {
			return nil
		}
		out.kind = headless
		out.a = prepare(o.ttl, typeA, out.v4, 4)
		out.aaaa = prepare(o.ttl, typeAAAA, out.v6, 16)
		out.addSlicePorts(binds, sets)
		return out.pack()
	}

	if o.IgnoreEmptyServices && len(binds) == 0 {
		return nil
	}
	var v4, v6 []byte
	for _, a := range s.ClusterIPs {
		if a.Is4() {
			v4 = append(v4, a.AsSlice()...)
		} else {
			v6 = append(v6, a.AsSlice()...)
		}
	}
	out.a = prepare(o.ttl, typeA, string(v4), 4)
	out.aaaa = prepare(o.ttl, typeAAAA, string(v6), 16)
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Name != "" {
			out.ports = append(out.ports, port{name: strings.ToLower(p.Name), proto: protoLabel(p.Protocol), port: p.Port})
		}
	}
	return out.pack()
}

// endpointLabel is the label that an endpoint is given, or "" where it is generated from its address.
func endpointLabel(ep *model.Endpoint, o *Options) string {
	if validLabel(ep.Hostname) {
		return strings.ToLower(ep.Hostname)
	}
	if o.EndpointPodNames && validLabel(ep.Pod) {
		return ep.Pod
	}
	return ""
}

// addEndpoints fills in v4, v6 and named. binds is put in order: by address, then hostname.
func (s *service) addEndpoints(binds []binding) {
	slices.SortFunc(binds, func(a, b binding) int {
		return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.host, b.host), cmp.Compare(a.set, b.set))
	})
	var v4, v6 []byte
	hosted := false
	for i, b := range binds {
		hosted = hosted || b.host != ""
		switch {
		case i > 0 && binds[i-1].addr == b.addr:
		case b.addr.Is4():
			v4 = append(v4, b.addr.AsSlice()...)
		default:
			v6 = append(v6, b.addr.AsSlice()...)
		}
	}
	s.v4, s.v6 = string(v4), string(v6)
	if hosted {
		s.named = newNamed(binds)
	}
}

// newNamed takes the bindings in order.
func newNamed(binds []binding) *named {
	n := &named{}
	labels := make([]string, 0, len(binds))
	for _, b := range binds {
		if b.host != "" {
			labels = append(labels, b.host)
		}
	}
	slices.Sort(labels)
	for _, l := range slices.Compact(labels) {
		n.hosts = append(n.hosts, host{label: l})
	}
	var i4, i6 uint32 // how many addresses there were before
	for i, b := range binds {
		first := i == 0 || binds[i-1].addr != b.addr
		if !first && binds[i-1].host == b.host {
			continue // the same endpoint, in two slices
		}
		var of nameOf
		if b.host != "" {
			h, _ := n.find([]byte(b.host))
			of.host = uint32(h) + 1
			if raw := string(b.addr.AsSlice()); b.addr.Is4() {
				n.hosts[h].v4 += raw
			} else {
				n.hosts[h].v6 += raw
			}
		}
		list, count := &n.of4, &i4
		if b.addr.Is6() {
			list, count = &n.of6, &i6
		}
		if first {
			*count++
		}
		of.addr = *count - 1
		*list = append(*list, of)
	}
	return n
}

func (n *named) find(label []byte) (int, bool) {
	lo, hi := 0, len(n.hosts)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		switch h := n.hosts[mid].label; {
		case h == string(label):
			return mid, true
		case h < string(label):
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// addSlicePorts fills in ports from the slices: pods may serve one named port under different numbers.
func (s *service) addSlicePorts(binds []binding, sets [][]model.EndpointPort) {
	type portKey struct {
		name, proto string
		port        uint16
	}
	index := make(map[portKey]int)
	in := make([][]bool, 0, len(sets)) // for each port, the sets that have it
	for set, ports := range sets {
		for _, p := range ports {
			if p.Name == "" || p.Port == 0 {
				continue
			}
			k := portKey{strings.ToLower(p.Name), protoLabel(p.Protocol), p.Port}
			i, ok := index[k]
			if !ok {
				i = len(s.ports)
				index[k] = i
				s.ports = append(s.ports, port{name: k.name, proto: k.proto, port: k.port})
				in = append(in, make([]bool, len(sets)))
			}
			in[i][set] = true
		}
	}
	for i := range s.ports {
		all := true
		var members []uint32
		for _, b := range binds {
			if in[i][b.set] {
				members = append(members, s.ordinal(b))
			} else {
				all = false
			}
		}
		if !all {
			slices.Sort(members)
			s.ports[i].members = slices.Compact(members)
		}
	}
	// A set none of whose endpoints is ready leaves a port behind that nobody serves.
	s.ports = slices.DeleteFunc(s.ports, func(p port) bool { return p.members != nil && len(p.members) == 0 })
	slices.SortFunc(s.ports, func(a, b port) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
	})
}

// Endpoint names have ordinals: first the hosts, then each address of v4, then each of v6. An address that only goes
// by hosts' names has none of its own and is passed over.

// names is the bound of the ordinals.
func (s *service) names() uint32 {
	n := uint32(len(s.v4)/4 + len(s.v6)/16)
	if s.named != nil {
		n += uint32(len(s.named.hosts))
	}
	return n
}

// namesOf are the names of the i-th v4 or v6 address; none means the generated one.
func (s *service) namesOf(i int, v6 bool) []nameOf {
	if s.named == nil {
		return nil
	}
	of := s.named.of4
	if v6 {
		of = s.named.of6
	}
	lo := sort.Search(len(of), func(k int) bool { return of[k].addr >= uint32(i) })
	hi := lo
	for hi < len(of) && of[hi].addr == uint32(i) {
		hi++
	}
	return of[lo:hi]
}

// generated tells whether the i-th v4 or v6 address goes by its generated name.
func (s *service) generated(i int, v6 bool) bool {
	names := s.namesOf(i, v6)
	return len(names) == 0 || names[0].host == 0
}

// ordinal is that of a ready endpoint's name.
func (s *service) ordinal(b binding) uint32 {
	hosts := 0
	if s.named != nil {
		hosts = len(s.named.hosts)
	}
	if b.host != "" {
		h, _ := s.named.find([]byte(b.host))
		return uint32(h)
	}
	i, _ := s.search(b.addr)
	if b.addr.Is6() {
		return uint32(hosts + len(s.v4)/4 + i)
	}
	return uint32(hosts + i)
}

// endpoint is what an ordinal stands for: a label (appended to buf) and its addresses.
func (s *service) endpoint(ord uint32, buf []byte) (label []byte, v4, v6 string, ok bool) {
	i := int(ord)
	if s.named != nil {
		if i < len(s.named.hosts) {
			h := &s.named.hosts[i]
			return append(buf, h.label...), h.v4, h.v6, true
		}
		i -= len(s.named.hosts)
	}
	if n4 := len(s.v4) / 4; i < n4 {
		if !s.generated(i, false) {
			return nil, "", "", false
		}
		v4 = s.v4[4*i : 4*i+4]
		return appendDashed(buf, addr4(v4)), v4, "", true
	} else {
		i -= n4
	}
	if !s.generated(i, true) {
		return nil, "", "", false
	}
	v6 = s.v6[16*i : 16*i+16]
	return appendDashed(buf, addr16(v6)), "", v6, true
}

// addresses are all that have a reverse name, in order: ready endpoints' and ClusterIPs.
func (s *service) addresses() []netip.Addr {
	if s == nil || s.kind == external {
		return nil
	}
	out := make([]netip.Addr, 0, len(s.v4)/4+len(s.v6)/16+2)
	for i := 0; i < len(s.v4); i += 4 {
		out = append(out, addr4(s.v4[i:i+4]))
	}
	for i := 0; i < len(s.v6); i += 16 {
		out = append(out, addr16(s.v6[i:i+16]))
	}
	if s.kind == clusterIP {
		out = append(out, s.vips()...)
		slices.SortFunc(out, netip.Addr.Compare)
		out = slices.Compact(out)
	}
	return out
}

// vips are the ClusterIPs.
func (s *service) vips() (out []netip.Addr) {
	for i := 0; i < len(s.a); i += recordA {
		out = append(out, addr4(s.a[i+12:i+recordA]))
	}
	for i := 0; i < len(s.aaaa); i += recordAAAA {
		out = append(out, addr16(s.aaaa[i+12:i+recordAAAA]))
	}
	return out
}

func (s *service) isVIP(a netip.Addr) bool {
	return s.kind == clusterIP && slices.Contains(s.vips(), a)
}

// search finds a ready address.
func (s *service) search(a netip.Addr) (int, bool) {
	all, size := s.v4, 4
	if a.Is6() {
		all, size = s.v6, 16
	}
	key := a.As16()
	want := key[16-size:]
	return sort.Find(len(all)/size, func(i int) int { return bytes.Compare(want, []byte(all[size*i:size*i+size])) })
}

// lookup finds the addresses of an endpoint's name.
func (s *service) lookup(label []byte) (v4, v6 string, ok bool) {
	if s.named != nil {
		if h, ok := s.named.find(label); ok {
			return s.named.hosts[h].v4, s.named.hosts[h].v6, true
		}
	}
	a, ok := parseDashed(label)
	if !ok {
		return "", "", false
	}
	i, ok := s.search(a)
	if !ok {
		return "", "", false
	}
	if !s.generated(i, a.Is6()) {
		return "", "", false
	}
	if a.Is6() {
		return "", s.v6[16*i : 16*i+16], true
	}
	return s.v4[4*i : 4*i+4], "", true
}

// has tells whether there is an SRV record for a port, or (name nil) for any port of a protocol.
func (s *service) has(name, proto []byte) bool {
	for i := range s.ports {
		if p := &s.ports[i]; p.proto == string(proto) && (name == nil || p.name == string(name)) {
			return true
		}
	}
	return false
}

func protoLabel(p model.Protocol) string {
	switch p {
	case model.UDP:
		return "udp"
	case model.SCTP:
		return "sctp"
	}
	return "tcp"
}

func addr4(b string) netip.Addr  { return netip.AddrFrom4([4]byte([]byte(b))) }
func addr16(b string) netip.Addr { return netip.AddrFrom16([16]byte([]byte(b))) }

// prepare makes one record after the other of addresses that lie in a row; their owner points at the question.
func prepare(ttl uint32, typ uint16, addrs string, size int) string {
	if addrs == "" {
		return ""
	}
	b := make([]byte, 0, len(addrs)/size*(12+size))
	for i := 0; i < len(addrs); i += size {
		b = appendHead(b, atQuestion, typ, ttl)
		b = append(b, 0, byte(size))
		b = append(b, addrs[i:i+size]...)
	}
	return string(b)
}
