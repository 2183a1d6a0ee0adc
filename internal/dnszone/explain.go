// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Record is one record of an answer, as text, and where it comes from.
type Record struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	TTL    uint32 `json:"ttl"`
	Data   string `json:"data"`
	Object string `json:"object,omitempty"` // "Service shop/cart", "EndpointSlice shop/db-x7k2p, Pod shop/db-0"
	Why    string `json:"why,omitempty"`
}

// Explanation is an answer and the reasons for it.
type Explanation struct {
	Name       string   `json:"name"`
	Type       string   `json:"type"`
	Rcode      string   `json:"rcode"` // "NOERROR", "NXDOMAIN", "SERVFAIL"; "" where others answer
	Answer     []Record `json:"answer,omitempty"`
	Additional []Record `json:"additional,omitempty"`
	// Elsewhere is the name that is left for upstream resolvers to answer, if any.
	Elsewhere string `json:"elsewhere,omitempty"`
	// Reason says why the answer has no records, Notes what else is worth knowing about it.
	Reason string   `json:"reason,omitempty"`
	Notes  []string `json:"notes,omitempty"`
}

// Exists tells whether a resolver that goes through a search list would stop at this name.
func (e *Explanation) Exists() bool { return e.Rcode == "NOERROR" || e.Elsewhere != "" }

var typeNames = map[uint16]string{typeA: "A", typeNS: "NS", typeCNAME: "CNAME", typeSOA: "SOA", typePTR: "PTR",
	typeTXT: "TXT", typeAAAA: "AAAA", typeSRV: "SRV"}

// ParseType reads the name of a record type that the cluster's names can have.
func ParseType(s string) (uint16, error) {
	for t, name := range typeNames {
		if strings.EqualFold(s, name) {
			return t, nil
		}
	}
	return 0, fmt.Errorf("type %q: the cluster has %s", s, strings.Join(slices.Sorted(maps.Values(typeNames)), ", "))
}

// DefaultNdots is what the kubelet writes.
const DefaultNdots = 5

// SearchDomains are those that the kubelet writes for a pod of a namespace.
func (z *Zone) SearchDomains(namespace string) []string {
	return []string{namespace + ".svc." + z.o.Domain, "svc." + z.o.Domain, z.o.Domain}
}

// SearchList are the names that a resolver asks for one, in order, with these search domains and ndots (resolv.conf(5)).
func SearchList(name string, domains []string, ndots int) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var out []string
	for _, s := range domains {
		out = append(out, strings.TrimSuffix(name+"."+s, ".")+".")
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{name + "."}, out...)
	}
	return append(out, name+".")
}

// Explain answers a question and says why. It must not run beside Update.
func (z *Zone) Explain(q *Question) Explanation {
	e := Explanation{Name: q.String(), Type: typeNames[q.Type]}
	head := make([]byte, headerSize, 4096)
	head = append(head, q.Wire()...)
	head = append(head, byte(q.Type>>8), byte(q.Type), 0, 1)
	at := len(head)
	msg, res := z.Append(head, q, 65535, 0)
	switch res.Verdict {
	case NotMine:
		e.Elsewhere = e.Name
	case NotReady:
		e.Rcode = "SERVFAIL"
		e.Reason = "the cluster is not known in full yet"
		return e
	case Continue:
		e.Elsewhere = FormatName(res.Target)
	default:
		e.Rcode = map[uint8]string{noError: "NOERROR", servFail: "SERVFAIL", nxDomain: "NXDOMAIN"}[res.Rcode]
	}
	e.Answer, at = readRecords(msg, at, int(res.Answer))
	_, at = readRecords(msg, at, int(res.Authority))
	e.Additional, _ = readRecords(msg, at, int(res.Additional))
	for _, list := range [][]Record{e.Answer, e.Additional} {
		for i := range list {
			z.source(&list[i])
		}
	}
	switch {
	case res.Rcode == servFail:
		e.Reason = fmt.Sprintf("ExternalNames lead in a circle, or over more than %d steps", maxChain)
	case res.Rcode == nxDomain || (res.Verdict == Answered && !hasType(e.Answer, e.Type)):
		// The reason is about the last name of a chain.
		last := q
		if n := len(e.Answer); n > 0 && e.Answer[n-1].Type == "CNAME" {
			last = &Question{Type: q.Type}
			if last.SetName(e.Answer[n-1].Data) != nil {
				last = q
			}
		}
		f := z.find(last)
		e.Reason = z.reason(last, &f, &e)
	}
	if e.Rcode == "NOERROR" && e.Reason == "" {
		f := z.find(q)
		z.note(q, &f, &e)
	}
	return e
}

func hasType(rs []Record, typ string) bool {
	return slices.ContainsFunc(rs, func(r Record) bool { return r.Type == typ })
}

// readRecords puts n records from an offset on into text.
func readRecords(msg []byte, at, n int) ([]Record, int) {
	var out []Record
	for range n {
		var r Record
		r.Name, at = readName(msg, at)
		typ := binary.BigEndian.Uint16(msg[at:])
		r.Type = typeNames[typ]
		r.TTL = binary.BigEndian.Uint32(msg[at+4:])
		size := int(binary.BigEndian.Uint16(msg[at+8:]))
		at += 10
		data := msg[at : at+size]
		switch typ {
		case typeA, typeAAAA:
			if a, ok := netip.AddrFromSlice(data); ok {
				r.Data = a.String()
			}
		case typeCNAME, typePTR, typeNS:
			r.Data, _ = readName(msg, at)
		case typeSRV:
			target, _ := readName(msg, at+6)
			r.Data = fmt.Sprintf("%d %d %d %s", binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:]), binary.BigEndian.Uint16(data[4:]), target)
		case typeTXT:
			r.Data = fmt.Sprintf("%q", data[1:])
		case typeSOA:
			mname, next := readName(msg, at)
			rname, next := readName(msg, next)
			r.Data = fmt.Sprintf("%s %s %d", mname, rname, binary.BigEndian.Uint32(msg[next:]))
		}
		at += size
		out = append(out, r)
	}
	return out, at
}

// readName reads a name, compressed or not, of a message that this package made.
func readName(msg []byte, at int) (string, int) {
	var wire []byte
	end := 0
	for msg[at] != 0 {
		if msg[at] >= 0xc0 {
			if end == 0 {
				end = at + 2
			}
			at = int(binary.BigEndian.Uint16(msg[at:]) & 0x3fff)
			continue
		}
		next := at + 1 + int(msg[at])
		wire = append(wire, msg[at:next]...)
		at = next
	}
	if end == 0 {
		end = at + 1
	}
	return FormatName(append(wire, 0)), end
}

// source fills in which object a record comes from.
func (z *Zone) source(r *Record) {
	var q Question
	if q.SetName(r.Name) != nil {
		return
	}
	f := z.find(&q)
	switch f.what {
	case apexName, serverName, versionName, reverseApex:
		r.Why = "the zone itself"
	case podName:
		z.podSource(&q, &f, r)
	case addressName:
		z.reverseSource(&f, r)
	case serviceName, endpointName, portName:
		name := serviceOf(&q, &f)
		or := z.origins[name]
		if or == nil || or.svc == nil {
			return
		}
		r.Object = "Service " + name.String()
		switch {
		case r.Type == "CNAME":
			r.Why = "spec.externalName"
		case r.Type == "SRV":
			r.Why = "its named ports"
			if f.svc.kind == headless {
				r.Why = "the ports of its endpoints"
			}
		case f.what == serviceName && f.svc.kind == clusterIP:
			r.Why = "spec.clusterIPs"
		default:
			if a, err := netip.ParseAddr(r.Data); err == nil {
				r.Object, r.Why = endpointSource(or, a)
			}
		}
	}
}

// serviceOf is the Service that a name is of.
func serviceOf(q *Question, f *finding) model.Name {
	return model.Name{Namespace: string(q.label(f.at + 1)), Name: string(q.label(f.at))}
}

// endpointSource says which slice and pod a Service has an address from.
func endpointSource(or *origin, a netip.Addr) (object, why string) {
	for _, es := range or.slices {
		for i := range es.Endpoints {
			ep := &es.Endpoints[i]
			if !slices.Contains(ep.Addresses, a) {
				continue
			}
			object = "EndpointSlice " + es.Meta.Name.String()
			if ep.Pod != "" {
				object += ", Pod " + model.Name{Namespace: es.Namespace, Name: ep.Pod}.String()
			}
			if ep.Ready {
				return object, "a ready endpoint"
			}
			if or.svc.PublishNotReadyAddresses {
				return object, "an endpoint that is not ready, under publishNotReadyAddresses"
			}
		}
	}
	return object, why
}

func (z *Zone) podSource(q *Question, f *finding, r *Record) {
	if z.o.Pods != PodsVerified {
		r.Why = "the address in the name itself: pod names are not verified (pods: insecure)"
		return
	}
	ns := string(q.label(1))
	for name, p := range z.podded {
		if name.Namespace == ns && slices.Contains(p.IPs, f.addr) {
			r.Object, r.Why = "Pod "+name.String(), "status.podIPs"
		}
	}
}

func (z *Zone) reverseSource(f *finding, r *Record) {
	var q Question
	if q.SetName(r.Data) != nil {
		return
	}
	t := z.find(&q)
	if t.what != serviceName && t.what != endpointName {
		return
	}
	name := serviceOf(&q, &t)
	if or := z.origins[name]; or != nil && or.svc != nil {
		r.Object, r.Why = "Service "+name.String(), "spec.clusterIPs"
		if t.what == endpointName {
			r.Object, r.Why = endpointSource(or, f.addr)
		}
	}
}

// note adds what a person should know about an answer with records.
func (z *Zone) note(q *Question, f *finding, e *Explanation) {
	if f.what != serviceName || f.svc.kind != clusterIP || len(f.svc.v4)+len(f.svc.v6) > 0 {
		return
	}
	if or := z.origins[serviceOf(q, f)]; or != nil && or.svc != nil {
		e.Notes = append(e.Notes, "the name resolves, but connections to it are refused: "+z.whyNoEndpoint(or))
	}
}

// whyNoEndpoint says why a Service has no ready endpoint.
func (z *Zone) whyNoEndpoint(or *origin) string {
	var waiting []string
	n := 0
	for _, es := range or.slices {
		for i := range es.Endpoints {
			n++
			if ep := &es.Endpoints[i]; ep.Pod != "" {
				waiting = append(waiting, ep.Pod)
			} else {
				waiting = append(waiting, ep.Addresses[0].String())
			}
		}
	}
	switch {
	case n > 0:
		return fmt.Sprintf("none of its %d endpoints is ready (%s)", n, list(waiting))
	case len(or.svc.Selector) == 0:
		return "it has no selector, and no EndpointSlice with an endpoint was made for it"
	}
	var sel []string
	for _, k := range slices.Sorted(maps.Keys(or.svc.Selector)) {
		sel = append(sel, k+"="+or.svc.Selector[k])
	}
	return fmt.Sprintf("its selector (%s) matches no pod that has an address", strings.Join(sel, ","))
}

// list joins names, the first few of many.
func list(names []string) string {
	slices.Sort(names)
	if n := len(names); n > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), n-5)
	}
	return strings.Join(names, ", ")
}
