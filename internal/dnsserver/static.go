// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

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

// append appends the name's records of the question's type.
func (n *staticName) append(msg []byte, typ uint16, ttl uint32, limit int, turn uint32) ([]byte, outcome) {
	o := outcome{ede: edeNone}
	add := func(typ uint16, data []byte) {
		if len(msg)+12+len(data) > limit {
			o.flags |= flagTC
			return
		}
		msg = append(msg, 0xc0, headerSize, byte(typ>>8), byte(typ), 0, classIN)
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
	return msg, o
}
