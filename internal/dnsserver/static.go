// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/dnszone"
)

// static is the names of the configuration itself.
type static struct {
	names map[string]*staticName // by the name on the wire, in lower case
	ttl   uint32
}

type staticName struct {
	addrs []netip.Addr
	names []string // PTR, on the wire
	alias string   // on the wire
}

// newStatic makes the names of hosts and aliases; nil where there are none.
func newStatic(c *Config, ttl uint32) (*static, error) {
	if len(c.Hosts) == 0 && len(c.Aliases) == 0 {
		return nil, nil
	}
	s := &static{names: make(map[string]*staticName), ttl: ttl}
	at := func(name string) (*staticName, error) {
		w, err := dnszone.PackName(strings.ToLower(name))
		if err != nil {
			return nil, err
		}
		n := s.names[string(w)]
		if n == nil {
			n = &staticName{}
			s.names[string(w)] = n
		}
		return n, nil
	}
	for name, addrs := range c.Hosts {
		n, err := at(name)
		if err != nil {
			return nil, err
		}
		target, err := dnszone.PackName(name)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			n.addrs = append(n.addrs, a.Addr)
			r, err := at(dnszone.ReverseName(a.Addr))
			if err != nil {
				return nil, err
			}
			r.names = append(r.names, string(target))
		}
	}
	for _, n := range s.names {
		slices.Sort(n.names)
	}
	for name, target := range c.Aliases {
		n, err := at(name)
		if err != nil {
			return nil, err
		}
		w, err := dnszone.PackName(target)
		if err != nil {
			return nil, err
		}
		n.alias = string(w)
	}
	return s, nil
}

func (s *static) find(q *dnszone.Question) *staticName {
	if s == nil {
		return nil
	}
	return s.names[string(q.Wire())]
}

const typePTR = 12

// append appends the name's records of the question's type. at is where the name is in the message.
func (n *staticName) append(msg []byte, at int, typ uint16, ttl uint32, limit int, turn uint32, o *outcome) []byte {
	own := 0xc000 | uint16(at)
	add := func(typ uint16, data []byte) {
		if len(msg)+12+len(data) > limit {
			o.flags |= flagTC
			return
		}
		msg = append(msg, byte(own>>8), byte(own), byte(typ>>8), byte(typ), 0, classIN)
		msg = binary.BigEndian.AppendUint32(msg, ttl)
		msg = binary.BigEndian.AppendUint16(msg, uint16(len(data)))
		msg = append(msg, data...)
		o.answer++
	}
	for i := range n.addrs {
		a := n.addrs[(int(turn%1024)+i)%len(n.addrs)]
		if (typ == typeA && a.Is4()) || (typ == typeAAAA && a.Is6()) {
			add(typ, a.AsSlice())
		}
	}
	if typ == typePTR {
		for _, name := range n.names {
			add(typ, []byte(name))
		}
	}
	return msg
}

// maxLeads bounds how many aliases of the configuration one answer follows, and maxLeadAt how far into the message: the
// names that follow must be within reach of a compression pointer.
const maxLeads, maxLeadAt = 8, 0x3000

// lead answers a question as far as the cluster's zone and the configuration's own names go: q is what a chain of
// aliases has led to so far, at is where its name is in msg, and o counts what is there. It returns false where the chain
// ends, at q then, with a name that others know.
func (v *view) lead(msg []byte, at int, q *dnszone.Question, o *outcome, limit int, turn uint32) ([]byte, bool) {
	for range maxLeads {
		if at > maxLeadAt {
			break
		}
		var r dnszone.Result
		msg, r = v.zone.AppendAt(msg, at, q, limit, turn)
		if r.Verdict == dnszone.NotMine {
			n := v.static.find(q)
			if n == nil {
				return msg, false
			}
			if n.alias == "" {
				return n.append(msg, at, q.Type, v.static.ttl, limit, turn, o), true
			}
			msg, r = v.zone.AppendAlias(msg, at, q, n.alias, limit, turn)
		}
		o.answer += r.Answer
		switch r.Verdict {
		case dnszone.NotReady:
			o.rcode, o.ede = rcodeServFail, edeNotReady
			return msg, true
		case dnszone.Answered:
			o.rcode, o.authority, o.additional = r.Rcode, r.Authority, r.Additional
			if r.Truncated {
				o.flags |= flagTC
			}
			return msg, true
		}
		at = len(msg) - len(r.Target)
		q.Read(r.Target)
	}
	o.rcode = rcodeServFail // aliases in a circle, or as good as
	return msg, true
}

// Own is what a configuration itself says of names: for explaining what the server would do.
type Own struct {
	static *static
	routes []*forwarder
	zones  map[*forwarder][]string // the upstreams, as they are written
}

// Own reads the configuration's own names, and who is asked the others.
func (c *Config) Own() (*Own, error) {
	o := &Own{zones: make(map[*forwarder][]string)}
	var err error
	if o.static, err = newStatic(c, uint32(time.Duration(*c.TTL)/time.Second)); err != nil {
		return nil, err
	}
	add := func(zone string, f *Forward) error {
		fw, err := newForwarder(zone, f)
		if err != nil {
			return err
		}
		o.routes = append(o.routes, fw)
		o.zones[fw] = f.Upstreams
		return nil
	}
	for i := range c.StubDomains {
		for _, z := range c.StubDomains[i].Zones {
			if err := add(z, &c.StubDomains[i].Forward); err != nil {
				return nil, err
			}
		}
	}
	if err := add(".", &c.Forward); err != nil {
		return nil, err
	}
	sortRoutes(o.routes)
	return o, nil
}

// OwnName is what hosts and aliases have of a name.
type OwnName struct {
	Addrs []netip.Addr
	Names []string // of a reverse name
	Alias string   // "" where it is none
	TTL   uint32   // seconds
}

// Find is the name's entry in hosts or aliases; nil where it has none.
func (o *Own) Find(q *dnszone.Question) *OwnName {
	n := o.static.find(q)
	if n == nil {
		return nil
	}
	out := &OwnName{Addrs: n.addrs, TTL: o.static.ttl}
	for _, w := range n.names {
		out.Names = append(out.Names, dnszone.FormatName([]byte(w)))
	}
	if n.alias != "" {
		out.Alias = dnszone.FormatName([]byte(n.alias))
	}
	return out
}

// Route is the zone that a name is asked upstream under, "." or that of a stub domain, and the upstreams as they are
// written.
func (o *Own) Route(q *dnszone.Question) (zone string, upstreams []string) {
	f := routeOf(o.routes, q)
	return f.zone, o.zones[f]
}
