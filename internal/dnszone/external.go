// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// The annotations of external-dns that are understood.
const (
	annotationHostname = "external-dns.alpha.kubernetes.io/hostname"
	annotationInternal = "external-dns.alpha.kubernetes.io/internal-hostname"
	annotationTarget   = "external-dns.alpha.kubernetes.io/target"
	annotationTTL      = "external-dns.alpha.kubernetes.io/ttl"
)

// ExternalOptions are what zones for the outside world are made with.
type ExternalOptions struct {
	Zones       []string      // the names that may be served: everything at and below these
	NameServers []string      // what the zones' NS records say; default: ns.<zone>
	TTL         time.Duration // of records that have none of their own; 5 min
	// Service is the one that the world reaches this server by; ns.<zone> is at its addresses. The names of name servers
	// are for objects of its namespace alone to declare.
	Service model.Name
}

// External holds the names that the cluster declares for the world outside. It is updated and read as a Zone is.
type External struct {
	o        ExternalOptions
	zones    []externalZone
	names    *table[externalName, *externalName]
	complete atomic.Bool
	serial   atomic.Uint32

	// The writer's own.
	sources  map[string]*declaration            // by object, and what of it: see declare
	byName   map[string]map[string]*declaration // by name on the wire, then as sources
	servers  map[string]bool                    // the name servers' names, on the wire; readers', too: it never changes
	below    map[string]int                     // how many names there are at or below each
	services map[model.Name]*model.Service      // those with annotations
	cluster  *Zone                              // has the endpoints of those
	sliceOf  map[model.Name]model.Name          // the Service that a slice was read for
	nodes    map[string]*model.Node
}

type externalZone struct {
	apex   string
	labels int
	soa    []byte
	ns     []string // on the wire
}

// Declaration is what one object of the cluster declares for the world outside: names, and where they lead.
type Declaration struct {
	Object    string // "Service shop/web": it is known by this
	Namespace string
	Created   int64    // seconds since the Unix epoch; see merge
	Hostnames []string // as people write them; those outside of the zones are passed over
	Addrs     []netip.Addr
	Alias     string        // a name, where there are no addresses
	TTL       time.Duration // 0 is the zones' default
}

// Annotate takes in the external-dns annotations of the object that declares: hostname, target and ttl.
func (d *Declaration) Annotate(annotations map[string]string) {
	d.Hostnames = append(d.Hostnames, splitList(annotations[annotationHostname])...)
	d.TTL = parseTTL(annotations[annotationTTL])
	for _, t := range splitList(annotations[annotationTarget]) {
		if a, err := netip.ParseAddr(t); err == nil {
			d.Addrs = append(d.Addrs, a.Unmap().WithZone(""))
		} else {
			d.Alias = cmp.Or(d.Alias, t)
		}
	}
}

// declaration is a Declaration, checked.
type declaration struct {
	object  string
	space   string
	created int64
	names   []string // on the wire, in lower case
	addrs   []netip.Addr
	alias   string // on the wire; where there are no addresses
	ttl     uint32
}

// check puts a declaration into the form that answers are made of; nil where nothing is left of it.
func (x *External) check(d *Declaration) *declaration {
	out := &declaration{object: d.Object, space: d.Namespace, created: d.Created, addrs: d.Addrs}
	out.ttl = uint32(min(max(cmp.Or(d.TTL, x.o.TTL), time.Second), maxTTL) / time.Second)
	for _, h := range d.Hostnames {
		w, err := packLower(h)
		if err != nil || len(w) == 1 {
			continue
		}
		var q Question
		q.Read([]byte(w))
		if _, ok := x.zone(&q); ok {
			out.names = append(out.names, w)
		}
	}
	if len(d.Addrs) == 0 && d.Alias != "" {
		if w, err := PackName(d.Alias); err == nil && len(w) > 1 {
			out.alias = string(w)
		}
	}
	if len(out.names) == 0 || (len(out.addrs) == 0 && out.alias == "") {
		return nil
	}
	return out
}

// Declare takes in what an object other than a Service declares, in the place of what it declared before. Services
// are read by Update.
func (x *External) Declare(d Declaration) { x.declare(d.Object, x.check(&d)) }

// Withdraw takes away what an object declared.
func (x *External) Withdraw(object string) { x.declare(object, nil) }

// externalName is a name's records; one without any only has names below.
type externalName struct {
	name    string // on the wire, in lower case
	ttl     uint32
	v4, v6  string
	alias   string
	sources []string // the objects, for explaining
	passed  []string // objects of other namespaces that want the name, too
	bare    bool     // the apex, which can't be the alias that its objects want it to be
}

func (e *externalName) is(key []byte) bool { return e.name == string(key) }

// NewExternal makes zones without names. The endpoints of Services are read from the cluster's own zone: it must take
// in every Delta before the External does, and in the same goroutine.
func NewExternal(cluster *Zone, o ExternalOptions) (*External, error) {
	o.TTL = cmp.Or(o.TTL, 5*time.Minute)
	x := &External{
		o: o, names: newTable[externalName](), sources: make(map[string]*declaration),
		byName: make(map[string]map[string]*declaration), below: make(map[string]int),
		services: make(map[model.Name]*model.Service), cluster: cluster, sliceOf: make(map[model.Name]model.Name),
		nodes: make(map[string]*model.Node), servers: make(map[string]bool),
	}
	for _, name := range o.Zones {
		apex, err := packLower(name)
		if err != nil {
			return nil, err
		}
		z := externalZone{apex: apex, labels: countLabels(apex)}
		for _, ns := range o.NameServers {
			w, err := packLower(ns)
			if err != nil {
				return nil, err
			}
			z.ns = append(z.ns, w)
		}
		if len(z.ns) == 0 {
			z.ns = []string{"\x02ns" + apex}
		}
		for _, ns := range z.ns {
			x.servers[ns] = true
		}
		b := appendClassTTL([]byte{0, typeSOA}, negativeExternal)
		rdata := z.ns[0] + "\x0ahostmaster" + apex
		b = append(appendLength(b, len(rdata)+20), rdata...)
		for _, v := range []uint32{0, soaRefresh, soaRetry, soaExpire, negativeExternal} {
			b = append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
		}
		z.soa = b
		x.zones = append(x.zones, z)
	}
	// The zone that a name is in is the longest.
	slices.SortFunc(x.zones, func(a, b externalZone) int { return b.labels - a.labels })
	return x, nil
}

// negativeExternal is how long a "no" of these zones may be kept, in seconds.
const negativeExternal = 60

// Update takes what changed: Services; Nodes and EndpointSlices for Services of type NodePort and without ClusterIP.
func (x *External) Update(d *model.Delta) {
	if len(x.zones) == 0 {
		return
	}
	again := make(map[model.Name]bool)
	for name, s := range d.Services {
		if s == nil || (s.Annotations[annotationHostname] == "" && s.Annotations[annotationInternal] == "" && name != x.o.Service) {
			if _, had := x.services[name]; !had {
				continue
			}
			delete(x.services, name)
		} else {
			x.services[name] = s
		}
		again[name] = true
	}
	for name, s := range d.EndpointSlices {
		if of, ok := x.sliceOf[name]; ok {
			delete(x.sliceOf, name)
			again[of] = true
		}
		if s != nil {
			if of := (model.Name{Namespace: name.Namespace, Name: s.Service}); x.services[of] != nil {
				again[of] = true
			}
		}
	}
	if len(d.Nodes) > 0 {
		for name, n := range d.Nodes {
			if n == nil {
				delete(x.nodes, name)
			} else {
				x.nodes[name] = n
			}
		}
		for name, s := range x.services {
			if s.Type == model.NodePort {
				again[name] = true
			}
		}
	}
	for name := range again {
		object := "Service " + name.String()
		outer, inner := x.fromService(object, x.services[name])
		x.declare(object, outer)
		x.declare(object+", "+annotationInternal, inner)
	}
	if d.Complete {
		x.complete.Store(true)
	}
	if !d.Since.IsZero() {
		x.serial.Store(max(x.serial.Load(), uint32(d.Since.Unix())))
	}
}

// fromService reads a Service's annotations: what it declares by hostname, and by internal-hostname; nil is nothing.
func (x *External) fromService(object string, s *model.Service) (outer, inner *declaration) {
	if s == nil {
		return nil, nil
	}
	d := &Declaration{Object: object, Namespace: s.Meta.Namespace, Created: s.Created}
	if s.Meta.Name == x.o.Service && len(x.o.NameServers) == 0 {
		for _, z := range x.zones {
			d.Hostnames = append(d.Hostnames, "ns."+FormatName([]byte(z.apex)))
		}
	}
	d.Annotate(s.Annotations)
	in := *d
	in.Hostnames = splitList(s.Annotations[annotationInternal])
	if s.Annotations[annotationTarget] != "" {
		return x.check(d), x.check(&in)
	}
	in.Addrs = s.ClusterIPs
	switch {
	case s.Type == model.LoadBalancer:
		for _, in := range s.Ingress {
			if in.IP.IsValid() {
				d.Addrs = append(d.Addrs, in.IP)
			} else {
				d.Alias = cmp.Or(d.Alias, in.Hostname)
			}
		}
	case s.Type == model.NodePort:
		d.Addrs = x.nodeAddrs(s)
	case s.Type == model.ExternalName:
		d.Alias = s.ExternalName
	case s.Headless:
		for _, e := range x.endpoints(s) {
			d.Addrs = append(d.Addrs, e.Addresses...)
		}
		in.Addrs = slices.Clone(d.Addrs)
	}
	d.Addrs = append(d.Addrs, s.ExternalIPs...)
	return x.check(d), x.check(&in)
}

func splitList(s string) (out []string) {
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// parseTTL reads the annotation: seconds, or a duration; 0 is neither.
func parseTTL(s string) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0
	}
	return d
}

func (x *External) endpoints(s *model.Service) (out []model.Endpoint) {
	or := x.cluster.origins[s.Meta.Name]
	if or == nil {
		return nil
	}
	for _, sl := range or.slices {
		x.sliceOf[sl.Meta.Name] = s.Meta.Name
		for _, e := range sl.Endpoints {
			if e.Ready || s.PublishNotReadyAddresses {
				out = append(out, e)
			}
		}
	}
	return out
}

// Nodes are those that have been told of: what a new External needs beside the cluster's Snapshot.
func (x *External) Nodes() map[string]*model.Node { return x.nodes }

// nodeAddrs are the nodes' outer addresses, or their inner ones where none has an outer one, of the families that
// the Service has cluster IPs of: its node ports are open on no others. With externalTrafficPolicy Local only of nodes with an endpoint.
func (x *External) nodeAddrs(s *model.Service) (out []netip.Addr) {
	has := make(map[string]bool)
	if s.ExternalLocal {
		for _, e := range x.endpoints(s) {
			has[e.Node] = true
		}
	}
	var inner []netip.Addr
	for name, n := range x.nodes {
		if !n.Ready || n.ExcludedFromLB || (s.ExternalLocal && !has[name]) {
			continue
		}
		out = appendFamiliesOf(out, n.ExternalIPs, s.ClusterIPs)
		inner = appendFamiliesOf(inner, n.InternalIPs, s.ClusterIPs)
	}
	if len(out) == 0 {
		return inner
	}
	return out
}

// appendFamiliesOf adds those addresses that are of a family that the others have.
func appendFamiliesOf(to, addrs, others []netip.Addr) []netip.Addr {
	for _, a := range addrs {
		if slices.ContainsFunc(others, func(o netip.Addr) bool { return model.FamilyOf(o) == model.FamilyOf(a) }) {
			to = append(to, a)
		}
	}
	return to
}

// declare puts an object's declaration in the place of what it declared before; nil takes it away. An object that
// declares several things has a key for each.
func (x *External) declare(key string, d *declaration) {
	touched := make(map[string]bool)
	if old := x.sources[key]; old != nil {
		for _, n := range old.names {
			delete(x.byName[n], key)
			if len(x.byName[n]) == 0 {
				delete(x.byName, n)
			}
			touched[n] = true
		}
	}
	delete(x.sources, key)
	if d != nil {
		x.sources[key] = d
		for _, n := range d.names {
			if x.byName[n] == nil {
				x.byName[n] = make(map[string]*declaration)
			}
			x.byName[n][key] = d
			touched[n] = true
		}
	}
	for n := range touched {
		x.publish(n)
	}
}

// publish brings what readers see of a name up to date.
func (x *External) publish(name string) {
	was := x.names.get([]byte(name))
	now := x.merge(name)
	had, has := was != nil && len(was.sources) > 0, now != nil && len(now.sources) > 0
	switch {
	case has && !had:
		x.count(name, 1)
	case had && !has:
		x.count(name, -1)
	}
	if now == nil && x.below[name] > 0 {
		now = &externalName{}
	}
	if now != nil {
		now.name = name
	}
	x.names.set([]byte(name), now)
}

// count has the names above one exist, or not, as it comes or goes.
func (x *External) count(name string, n int) {
	var q Question
	q.Read([]byte(name))
	z, ok := x.zone(&q)
	if !ok {
		return
	}
	for i := 0; i <= q.labels-z.labels; i++ {
		at := string(q.from(i))
		if x.below[at] += n; x.below[at] == 0 {
			delete(x.below, at)
		}
		if i == 0 {
			continue
		}
		e := x.names.get([]byte(at))
		switch {
		case x.below[at] == 0:
			x.names.set([]byte(at), nil)
		case e == nil:
			x.names.set([]byte(at), &externalName{name: at})
		}
	}
}

// merge makes one name's records from all that declare it. Objects of one namespace add up; between namespaces the
// one that had it first keeps the name, for nobody must take over another's by declaring it again. A name server's is
// never anybody's but its operator's: who has that has the zone.
func (x *External) merge(name string) *externalName {
	of := x.byName[name]
	if len(of) == 0 {
		return nil
	}
	all := slices.SortedFunc(maps.Values(of), func(a, b *declaration) int {
		return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(a.object, b.object))
	})
	owner := all[0].space
	if x.servers[name] {
		owner = x.o.Service.Namespace // "", and so nobody, where the configuration has no Service
	}
	out := &externalName{}
	var addrs []netip.Addr
	for _, d := range all {
		if d.space != owner {
			out.passed = append(out.passed, d.object)
			continue
		}
		if len(out.sources) == 0 {
			out.ttl = d.ttl
		}
		if !slices.Contains(out.sources, d.object) {
			out.sources = append(out.sources, d.object)
		}
		out.ttl = min(out.ttl, d.ttl)
		addrs = append(addrs, d.addrs...)
		out.alias = cmp.Or(out.alias, d.alias)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range slices.Compact(addrs) {
		if a.Is4() {
			out.v4 += string(a.AsSlice())
		} else {
			out.v6 += string(a.AsSlice())
		}
	}
	// A CNAME stands alone (RFC 1034 section 3.6.2): beside no address, and not beside a zone's SOA and NS.
	out.bare = len(addrs) == 0 && out.alias != "" && x.isApex(name)
	if len(addrs) > 0 || out.bare {
		out.alias = ""
	}
	return out
}

func (x *External) isApex(name string) bool {
	return slices.ContainsFunc(x.zones, func(z externalZone) bool { return z.apex == name })
}

func (x *External) zone(q *Question) (*externalZone, bool) {
	for i := range x.zones {
		z := &x.zones[i]
		if _, ok := q.under(z.apex, z.labels); ok {
			return z, true
		}
	}
	return nil, false
}

// find finds a name's records, those of a wildcard included (RFC 4592): nil is NXDOMAIN.
func (x *External) find(q *Question, z *externalZone) *externalName {
	if e := x.names.get(q.Wire()); e != nil {
		return e
	}
	before := q.labels - z.labels
	if before == 0 || x.servers[string(q.Wire())] {
		return &externalName{} // there, whoever declares it or not: no wildcard is for it
	}
	for i := 1; i <= before; i++ {
		if i < before && x.names.get(q.from(i)) == nil {
			continue
		}
		// The closest encloser: only a wildcard right below it counts.
		var key [maxName + 2]byte
		if e := x.names.get(append(append(key[:0], 1, '*'), q.from(i)...)); e != nil {
			return e
		}
		return nil
	}
	return nil
}

// Append looks a question up as Zone.Append does. It is authoritative and never leads elsewhere: the Verdict is
// Answered, NotMine or NotReady.
func (x *External) Append(msg []byte, q *Question, limit int, turn uint32) ([]byte, Result) {
	var res Result
	z, ok := x.zone(q)
	if !ok {
		res.Verdict = NotMine
		return msg, res
	}
	if !x.complete.Load() {
		res.Verdict = NotReady
		return msg, res
	}
	cur, base := q, headerSize
	var next Question
	for range maxChain {
		e := x.find(cur, z)
		if e == nil {
			res.Rcode = nxDomain
			break
		}
		own := 0xc000 | uint16(base)
		if e.alias != "" {
			if len(msg)+12+len(e.alias) > limit {
				res.Truncated = true
				return msg, res
			}
			msg = appendHead(msg, own, typeCNAME, e.ttl)
			msg = appendLength(msg, len(e.alias))
			base = len(msg)
			msg = append(msg, e.alias...)
			res.Answer++
			next.Type = q.Type
			next.Read(msg[base:])
			if z, ok = x.zone(&next); q.Type == typeCNAME || !ok {
				return msg, res
			}
			cur = &next
			continue
		}
		before := len(msg)
		msg = x.render(msg, cur, z, e, own, limit, turn, &res)
		if len(msg) > before || res.Truncated {
			return msg, res
		}
		break
	}
	if z != nil {
		owner := 0xc000 | uint16(base+int(cur.off[cur.labels-z.labels]))
		if b := z.appendSOA(msg, owner, x.serial.Load()); len(b) <= limit {
			msg = b
			res.Authority++
		}
	}
	return msg, res
}

func (x *External) render(msg []byte, q *Question, z *externalZone, e *externalName, own uint16, limit int, turn uint32, res *Result) []byte {
	w := writer{msg: msg, limit: limit, turn: turn}
	addrs := func(all string, size int, typ uint16) {
		n := len(all) / size
		for i := range n {
			if len(w.msg)+12+size > limit {
				res.Truncated = true
				return
			}
			j := int((turn + uint32(i)) % uint32(n))
			w.msg = appendAddr(w.msg, own, typ, e.ttl, all[size*j:size*j+size])
			res.Answer++
		}
	}
	apex := q.labels == z.labels
	switch {
	case q.Type == typeA:
		addrs(e.v4, 4, typeA)
	case q.Type == typeAAAA:
		addrs(e.v6, 16, typeAAAA)
	case apex && q.Type == typeSOA:
		w.msg = z.appendSOA(w.msg, own, x.serial.Load())
		res.Answer++
	case apex && q.Type == typeNS:
		for _, ns := range z.ns {
			w.msg = appendHead(w.msg, own, typeNS, e.ttlOr(x.o.TTL))
			w.msg = append(appendLength(w.msg, len(ns)), ns...)
			res.Answer++
		}
	}
	if len(w.msg) > limit {
		res.Truncated, res.Answer = true, 0
		return msg
	}
	return w.msg
}

func (e *externalName) ttlOr(d time.Duration) uint32 {
	if e.ttl > 0 {
		return e.ttl
	}
	return uint32(d / time.Second)
}

func (z *externalZone) appendSOA(b []byte, owner uint16, serial uint32) []byte {
	b = append(appendPointer(b, owner), z.soa...)
	at := len(b) - 20
	b[at], b[at+1], b[at+2], b[at+3] = byte(serial>>24), byte(serial>>16), byte(serial>>8), byte(serial)
	return b
}

// Sources are the objects that a name comes from, and those of other namespaces that want it in vain.
func (x *External) Sources(q *Question) (from, inVain []string, err error) {
	z, ok := x.zone(q)
	if !ok {
		return nil, nil, fmt.Errorf("%s is in none of the zones %s", q, strings.Join(x.o.Zones, ", "))
	}
	if e := x.find(q, z); e != nil {
		return e.sources, e.passed, nil
	}
	return nil, nil, nil
}

// Mine tells whether a name is in one of the zones.
func (x *External) Mine(q *Question) bool {
	_, ok := x.zone(q)
	return ok
}
