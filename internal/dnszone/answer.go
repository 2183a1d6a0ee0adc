// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"encoding/binary"
	"net/netip"
)

// The types that the cluster's names have records of.
const (
	typeA     = 1
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typePTR   = 12
	typeTXT   = 16
	typeAAAA  = 28
	typeSRV   = 33
)

// The response codes that a zone gives (RFC 1035 section 4.1.1).
const (
	noError  = 0
	servFail = 2
	nxDomain = 3
)

// headerSize is where the question's name starts in a message.
const headerSize = 12

// atQuestion is a compression pointer to the question's name.
const atQuestion = 0xc000 | headerSize

// maxChain bounds how many ExternalNames one answer follows.
const maxChain = 8

// Verdict says what became of a lookup.
type Verdict uint8

// The verdicts.
const (
	Answered Verdict = iota
	// NotMine is for a name outside of the cluster's zones.
	NotMine
	// Continue is for a name that leads outside: Answer holds the CNAMEs so far, Target is where they lead.
	Continue
	// NotReady is for a name that is not known while the cluster is not known in full.
	NotReady
)

// Result is what a lookup appended to a message and what belongs into its header.
type Result struct {
	Verdict   Verdict
	Rcode     uint8
	Truncated bool
	// How many records were appended to each section, in this order.
	Answer, Authority, Additional uint16
	// Target is a name on the wire within the message, for Continue.
	Target []byte
}

// Append looks a question up and appends the records to msg, which holds a header and the question, its name (in
// any case) at offset 12. limit bounds the length of msg; turn says which of several records comes first. Nothing
// is written into what was in msg before. It does not allocate while msg has room, but on rare paths.
func (z *Zone) Append(msg []byte, q *Question, limit int, turn uint32) ([]byte, Result) {
	return z.AppendAt(msg, headerSize, q, limit, turn)
}

// AppendAt is Append for a name that lies elsewhere in the message, at an offset: where an alias led to.
func (z *Zone) AppendAt(msg []byte, at int, q *Question, limit int, turn uint32) ([]byte, Result) {
	w := writer{z: z, msg: msg, limit: limit, turn: turn}
	f := z.find(q)
	if f.what == serviceName && f.svc.kind == external {
		w.follow(q.Type, f.svc.target, at)
	} else {
		w.render(q, &f, at)
	}
	return w.msg, w.res
}

// AppendAlias is AppendAt for a name that is an alias of another, given on the wire: it appends a CNAME and what that
// leads to.
func (z *Zone) AppendAlias(msg []byte, at int, q *Question, target string, limit int, turn uint32) ([]byte, Result) {
	w := writer{z: z, msg: msg, limit: limit, turn: turn}
	w.follow(q.Type, target, at)
	return w.msg, w.res
}

// what a name is.
type what uint8

const (
	missing      what = iota // NXDOMAIN
	outside                  // none of the cluster's
	apexName                 // the domain itself
	emptyName                // something is below, nothing is here (RFC 8020)
	versionName              // dns-version
	serverName               // ns.dns
	serviceName              // service.namespace.svc
	endpointName             // endpoint.service.namespace.svc
	portName                 // _port._proto.service.namespace.svc
	podName                  // address.namespace.pod
	addressName              // a reverse name
	reverseApex              // a zone of Options.Reverse itself
)

// finding is what find found: which name, and where its records come from.
type finding struct {
	what what
	cut  int // the label that the name's zone starts at
	svc  *service
	// at is the label that the Service's name starts at.
	at int

	port, proto []byte     // portName; within the Question
	v4, v6      string     // endpointName
	addr        netip.Addr // podName, addressName, and a missing name's in the reverse trees
	owners      *owner     // addressName
}

// find tells what a name is. Everything that decides about a name is here.
func (z *Zone) find(q *Question) finding {
	f := z.findOwn(q)
	if f.what == missing && z.yields != nil && z.complete.Load() && z.yields.has(q) {
		f.what = outside
	}
	return f
}

// findOwn is find for names that the zone need not yield to anybody.
func (z *Zone) findOwn(q *Question) finding {
	n, in := q.under(z.apex, z.apexLabels)
	if !in {
		return z.findReverse(q)
	}
	f := finding{cut: n}
	if n == 0 {
		f.what = apexName
		return f
	}
	switch string(q.label(n - 1)) {
	case "svc":
		z.findService(q, n, &f)
	case "pod":
		z.findPod(q, n, &f)
	case "dns-version":
		if n == 1 {
			f.what = versionName
		}
	case "dns":
		if n == 1 {
			f.what = emptyName
		} else if n == 2 && string(q.label(0)) == "ns" {
			f.what = serverName
		}
	}
	return f
}

func (z *Zone) findService(q *Question, n int, f *finding) {
	if n < 3 {
		if n == 1 || z.namespaces.get(q.name[q.off[0]:q.off[1]]) != nil {
			f.what = emptyName
		}
		return
	}
	f.at = n - 3
	f.svc = z.services.get(q.name[q.off[f.at]:q.off[n-1]])
	if f.svc == nil {
		return
	}
	switch {
	case n == 3:
		f.what = serviceName
	case f.svc.kind == external:
		// Nothing is below a CNAME.
	case n == 4:
		label := q.label(0)
		if label[0] == '_' {
			if f.svc.has(nil, label[1:]) {
				f.what = emptyName
			}
			return
		}
		var ok bool
		if f.v4, f.v6, ok = f.svc.lookup(label); ok {
			f.what = endpointName
		}
	case n == 5:
		port, proto := q.label(0), q.label(1)
		if port[0] == '_' && proto[0] == '_' && f.svc.has(port[1:], proto[1:]) {
			f.what, f.port, f.proto = portName, port[1:], proto[1:]
		}
	}
}

func (z *Zone) findPod(q *Question, n int, f *finding) {
	if n == 1 {
		f.what = emptyName
		return
	}
	if n > 3 || z.namespaces.get(q.name[q.off[n-2]:q.off[n-1]]) == nil {
		return
	}
	if n == 2 {
		f.what = emptyName
		return
	}
	a, ok := parseDashed(q.label(0))
	if !ok {
		return
	}
	f.addr = a
	switch z.o.Pods {
	case PodsInsecure:
		f.what = podName
	case PodsVerified:
		key := a.As16()
		for p := z.pods.get(key[:]); p != nil; p = p.next {
			if p.namespace == string(q.label(1)) {
				f.what = podName
			}
		}
	}
}

func (z *Zone) findReverse(q *Question) finding {
	r, ok := q.reverse()
	if !ok {
		return finding{what: outside}
	}
	f := finding{addr: r.addr, cut: r.labels}
	if r.whole() {
		key := r.addr.As16()
		if f.owners = z.addresses.get(key[:]); f.owners != nil {
			f.what = addressName
			return f
		}
	}
	for _, p := range z.o.Reverse {
		// A range that ends within a label is that many zones of whole labels.
		labels := (p.Bits() + r.per - 1) / r.per
		if r.read < labels || !p.Contains(r.addr) {
			continue
		}
		f.cut = r.labels - labels
		switch {
		case f.cut == 0:
			f.what = reverseApex
		case r.read == r.labels && !r.whole():
			f.what = emptyName // or it may be: whether an address below has a name is not counted
		}
		return f
	}
	f.what = outside
	return f
}

// writer renders findings into a message.
type writer struct {
	z     *Zone
	msg   []byte
	limit int
	turn  uint32
	res   Result
}

// follow renders an alias of target and what it leads to, as far as that is in the cluster. base is where the alias is
// in the message.
func (w *writer) follow(typ uint16, target string, base int) {
	var next Question
	next.Type = typ
	for range maxChain {
		if len(w.msg)+12+len(target) > w.limit {
			w.res.Truncated = true
			return
		}
		w.msg = appendHead(w.msg, 0xc000|uint16(base), typeCNAME, w.z.o.ttl)
		w.msg = appendLength(w.msg, len(target))
		base = len(w.msg)
		w.msg = append(w.msg, target...)
		w.res.Answer++
		if typ == typeCNAME {
			return
		}
		next.Read(w.msg[base:])
		f := w.z.find(&next)
		if f.what == outside {
			w.res.Verdict = Continue
			w.res.Target = w.msg[base : base+len(target)]
			return
		}
		if f.what != serviceName || f.svc.kind != external {
			w.render(&next, &f, base)
			return
		}
		target = f.svc.target
	}
	w.res.Rcode = servFail // ExternalNames that lead in a circle
}

// render appends the records that a name has of the question's type. base is where the name is in the message.
func (w *writer) render(q *Question, f *finding, base int) {
	own := 0xc000 | uint16(base)
	before := len(w.msg)
	switch f.what {
	case outside:
		w.res.Verdict = NotMine
		return
	case missing:
		if !w.z.complete.Load() {
			w.res.Verdict = NotReady
			return
		}
		w.res.Rcode = nxDomain
	case apexName:
		w.apex(q, own)
	case reverseApex:
		w.reverseApex(q, own)
	case versionName:
		if q.Type == typeTXT {
			w.answer(appendVersion, own)
		}
	case serverName:
		w.res.Answer += w.self(q.Type, func(b []byte) []byte { return appendPointer(b, own) })
	case serviceName:
		switch q.Type {
		case typeA:
			w.turned(f.svc.a, recordA, own)
		case typeAAAA:
			w.turned(f.svc.aaaa, recordAAAA, own)
		case typeSRV:
			w.srv(q, f, own, base)
		}
	case endpointName:
		switch q.Type {
		case typeA:
			w.addrs(f.v4, 4, own)
		case typeAAAA:
			w.addrs(f.v6, 16, own)
		}
	case portName:
		if q.Type == typeSRV {
			w.srv(q, f, own, base)
		}
	case podName:
		switch {
		case q.Type == typeA && f.addr.Is4():
			v := f.addr.As4()
			w.addrs(string(v[:]), 4, own)
		case q.Type == typeAAAA && f.addr.Is6():
			v := f.addr.As16()
			w.addrs(string(v[:]), 16, own)
		}
	case addressName:
		if q.Type == typePTR {
			w.ptr(f, own)
		}
	}
	if len(w.msg) == before && !w.res.Truncated {
		w.negative(q, f, base)
	}
}

// negative appends the SOA that says how long a "no" holds (RFC 2308).
func (w *writer) negative(q *Question, f *finding, base int) {
	owner := 0xc000 | uint16(base+int(q.off[f.cut]))
	if b := w.z.appendSOA(w.msg, owner); len(b) <= w.limit {
		w.msg = b
		w.res.Authority++
	}
}

// answer appends one record of which f writes all but the owner.
func (w *writer) answer(f func(*Zone, []byte) []byte, own uint16) {
	b := f(w.z, appendPointer(w.msg, own))
	if len(b) > w.limit {
		w.res.Truncated = true
		return
	}
	w.msg = b
	w.res.Answer++
}

// turned appends prepared records of one size, starting with the one whose turn it is.
func (w *writer) turned(recs string, size int, own uint16) {
	n := len(recs) / size
	if n == 0 {
		return
	}
	start := len(w.msg)
	if room := (w.limit - start) / size; n > room {
		// Which ones fit is left to the turn, too.
		w.res.Truncated = true
		k := int(w.turn % uint32(n))
		for i := range max(room, 0) {
			j := (k + i) % n * size
			w.msg = append(w.msg, recs[j:j+size]...)
		}
		n = max(room, 0)
	} else {
		k := int(w.turn%uint32(n)) * size
		w.msg = append(w.msg, recs[k:]...)
		w.msg = append(w.msg, recs[:k]...)
	}
	if own != atQuestion {
		for i := start; i < len(w.msg); i += size {
			binary.BigEndian.PutUint16(w.msg[i:], own)
		}
	}
	w.res.Answer += uint16(n)
}

// addrs appends records of addresses that lie in a row, each of size octets.
func (w *writer) addrs(addrs string, size int, own uint16) {
	typ := uint16(typeA)
	if size == 16 {
		typ = typeAAAA
	}
	n := len(addrs) / size
	for i := range n {
		if len(w.msg)+12+size > w.limit {
			w.res.Truncated = true
			return
		}
		j := int((w.turn + uint32(i)) % uint32(n))
		w.msg = appendAddr(w.msg, own, typ, w.z.o.ttl, addrs[size*j:size*j+size])
		w.res.Answer++
	}
}

// srv appends the SRV records of a Service's named ports, or of one of them, and the addresses of their targets.
func (w *writer) srv(q *Question, f *finding, own uint16, base int) {
	s := f.svc
	svcOwner := 0xc000 | uint16(base+int(q.off[f.at]))
	glued := false
	var glue [][]uint32
	for i := range s.ports {
		p := &s.ports[i]
		if f.port != nil && (p.name != string(f.port) || p.proto != string(f.proto)) {
			continue
		}
		if s.kind == clusterIP {
			w.srvRecord(own, p.port, nil, s)
			continue
		}
		w.each(s, p.members, func(label []byte, _, _ string) bool { return w.srvRecord(own, p.port, label, s) })
		if p.members == nil {
			glued = true
		} else {
			glue = append(glue, p.members)
		}
	}
	switch {
	case w.res.Truncated || w.res.Answer == 0:
	case s.kind == clusterIP:
		w.glueRecords(s.a, recordA, svcOwner)
		w.glueRecords(s.aaaa, recordAAAA, svcOwner)
	case glued:
		w.each(s, nil, func(label []byte, v4, v6 string) bool { return w.glueHost(label, svcOwner, v4, v6) })
	default:
		for _, members := range glue {
			w.each(s, members, func(label []byte, v4, v6 string) bool { return w.glueHost(label, svcOwner, v4, v6) })
		}
	}
}

// each goes over a headless Service's endpoint names (members nil: all) from the one whose turn it is.
func (w *writer) each(s *service, members []uint32, f func(label []byte, v4, v6 string) bool) {
	n := uint32(len(members))
	if members == nil {
		n = s.names()
	}
	var buf [maxLabel + 1]byte
	for i := range n {
		ord := (w.turn + i) % n
		if members != nil {
			ord = members[ord]
		}
		if label, v4, v6, ok := s.endpoint(ord, buf[:0]); ok && !f(label, v4, v6) {
			return
		}
	}
}

// srvRecord appends one SRV record. Its target is not compressed (RFC 2782). All are of one priority and weight:
// a client spreads its load evenly.
func (w *writer) srvRecord(own, port uint16, label []byte, s *service) bool {
	size := 6 + len(s.name) + len(w.z.svcApex)
	if label != nil {
		size += 1 + len(label)
	}
	if len(w.msg)+12+size > w.limit {
		w.res.Truncated = true
		return false
	}
	b := appendHead(w.msg, own, typeSRV, w.z.o.ttl)
	b = appendLength(b, size)
	b = append(b, 0, 0, 0, 100)
	b = binary.BigEndian.AppendUint16(b, port)
	w.msg = w.z.appendTarget(b, label, s)
	w.res.Answer++
	return true
}

// glueRecords appends prepared records to the additional section, as many as fit: a client asks for the others.
func (w *writer) glueRecords(recs string, size int, own uint16) {
	for i := 0; i+size <= len(recs) && len(w.msg)+size <= w.limit; i += size {
		w.msg = appendPointer(w.msg, own)
		w.msg = append(w.msg, recs[i+2:i+size]...)
		w.res.Additional++
	}
}

// glueHost appends an endpoint's addresses to the additional section while they fit.
func (w *writer) glueHost(label []byte, svcOwner uint16, v4, v6 string) bool {
	one := func(typ uint16, addr string) bool {
		if len(w.msg)+1+len(label)+12+len(addr) > w.limit {
			return false
		}
		w.msg = append(w.msg, byte(len(label)))
		w.msg = append(w.msg, label...)
		w.msg = appendAddr(w.msg, svcOwner, typ, w.z.o.ttl, addr)
		w.res.Additional++
		return true
	}
	for i := 0; i < len(v4); i += 4 {
		if !one(typeA, v4[i:i+4]) {
			return false
		}
	}
	for i := 0; i < len(v6); i += 16 {
		if !one(typeAAAA, v6[i:i+16]) {
			return false
		}
	}
	return true
}

// ptr appends the names of an address: the Service whose ClusterIP it is, else its endpoints' in each Service.
func (w *writer) ptr(f *finding, own uint16) {
	for o := f.owners; o != nil; o = o.next {
		if s := o.svc.Load(); s != nil && o.vip {
			w.ptrRecord(own, nil, s)
			return
		}
	}
	var buf [maxLabel + 1]byte
	for o := f.owners; o != nil; o = o.next {
		s := o.svc.Load()
		if s == nil {
			continue
		}
		i, ok := s.search(f.addr)
		if !ok {
			continue
		}
		names := s.namesOf(i, f.addr.Is6())
		if len(names) == 0 && !w.ptrRecord(own, appendDashed(buf[:0], f.addr), s) {
			return
		}
		for _, n := range names {
			label := appendDashed(buf[:0], f.addr)
			if n.host > 0 {
				label = append(buf[:0], s.named.hosts[n.host-1].label...)
			}
			if !w.ptrRecord(own, label, s) {
				return
			}
		}
	}
}

func (w *writer) ptrRecord(own uint16, label []byte, s *service) bool {
	size := len(s.name) + len(w.z.svcApex)
	if label != nil {
		size += 1 + len(label)
	}
	if len(w.msg)+12+size > w.limit {
		w.res.Truncated = true
		return false
	}
	b := appendHead(w.msg, own, typePTR, w.z.o.ttl)
	b = appendLength(b, size)
	w.msg = w.z.appendTarget(b, label, s)
	w.res.Answer++
	return true
}

// apex appends what the domain itself has: SOA and NS.
func (w *writer) apex(q *Question, own uint16) {
	switch q.Type {
	case typeSOA:
		if b := w.z.appendSOA(w.msg, own); len(b) <= w.limit {
			w.msg = b
			w.res.Answer++
		}
	case typeNS:
		b := appendHead(w.msg, own, typeNS, w.z.o.ttl)
		b = append(b, 0, 9, 2, 'n', 's', 3, 'd', 'n', 's')
		b = appendPointer(b, own)
		if len(b) > w.limit {
			w.res.Truncated = true
			return
		}
		w.msg = b
		w.res.Answer++
		owner := func(b []byte) []byte { return appendPointer(append(b, 2, 'n', 's', 3, 'd', 'n', 's'), own) }
		w.res.Additional += w.self(typeA, owner) + w.self(typeAAAA, owner)
	}
}

// reverseApex appends what a reverse zone itself has. Its name server is the domain's, which has the addresses.
func (w *writer) reverseApex(q *Question, own uint16) {
	switch q.Type {
	case typeSOA:
		w.answer(func(z *Zone, b []byte) []byte { return z.appendSOA(b[:len(b)-2], own) }, own)
	case typeNS:
		w.answer(func(z *Zone, b []byte) []byte {
			b = appendClassTTL(append(b, 0, typeNS), z.o.ttl)
			b = appendLength(b, len("\x02ns\x03dns")+len(z.apex))
			return append(append(b, "\x02ns\x03dns"...), z.apex...)
		}, own)
	}
}

// self appends the name server's addresses of one family and returns how many.
func (w *writer) self(typ uint16, owner func([]byte) []byte) (n uint16) {
	if typ != typeA && typ != typeAAAA {
		return 0
	}
	for _, a := range w.z.self() {
		if a.Is4() != (typ == typeA) {
			continue
		}
		b := owner(w.msg)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = appendClassTTL(b, w.z.o.ttl)
		raw := a.AsSlice()
		b = appendLength(b, len(raw))
		if b = append(b, raw...); len(b) > w.limit {
			break
		}
		w.msg = b
		n++
	}
	return n
}

// self is where the zone's name server is: see Options.Self.
func (z *Zone) self() []netip.Addr {
	var vips []netip.Addr
	for _, a := range z.o.Self {
		key := a.As16()
		for o := z.addresses.get(key[:]); o != nil; o = o.next {
			s := o.svc.Load()
			if s == nil || s.kind != clusterIP {
				continue
			}
			for _, v := range s.vips() {
				vips = appendNew(vips, v)
			}
		}
	}
	if len(vips) > 0 {
		return vips
	}
	return z.o.Self
}

func appendNew(list []netip.Addr, a netip.Addr) []netip.Addr {
	for _, b := range list {
		if a == b {
			return list
		}
	}
	return append(list, a)
}

// appendTarget appends the full name of a Service, or of one of its endpoints.
func (z *Zone) appendTarget(b []byte, label []byte, s *service) []byte {
	if label != nil {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	b = append(b, s.name...)
	return append(b, z.svcApex...)
}

func appendVersion(z *Zone, b []byte) []byte {
	b = append(b, 0, typeTXT)
	b = appendClassTTL(b, z.o.ttl)
	return append(b, 0, 6, 5, '1', '.', '1', '.', '0')
}

// The timers of the SOA are for secondaries, which there are none of.
const soaRefresh, soaRetry, soaExpire = 7200, 1800, 86400

// makeSOA prepares the SOA record without owner; its serial follows the last change.
func (z *Zone) makeSOA() []byte {
	b := []byte{0, typeSOA}
	b = appendClassTTL(b, z.o.negative)
	names := "\x02ns\x03dns" + z.apex + "\x0ahostmaster" + z.apex
	b = appendLength(b, len(names)+20)
	b = append(b, names...)
	for _, v := range []uint32{0, soaRefresh, soaRetry, soaExpire, z.o.negative} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func (z *Zone) appendSOA(b []byte, owner uint16) []byte {
	b = appendPointer(b, owner)
	b = append(b, z.soa...)
	binary.BigEndian.PutUint32(b[len(b)-20:], z.serial.Load())
	return b
}

func appendPointer(b []byte, p uint16) []byte { return binary.BigEndian.AppendUint16(b, p) }

func appendClassTTL(b []byte, ttl uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, 1), ttl)
}

// appendHead appends a record's owner (a pointer), type, class and TTL.
func appendHead(b []byte, owner, typ uint16, ttl uint32) []byte {
	b = appendPointer(b, owner)
	b = binary.BigEndian.AppendUint16(b, typ)
	return appendClassTTL(b, ttl)
}

func appendLength(b []byte, n int) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }

func appendAddr(b []byte, owner, typ uint16, ttl uint32, addr string) []byte {
	b = appendHead(b, owner, typ, ttl)
	b = appendLength(b, len(addr))
	return append(b, addr...)
}
