// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/policy"
)

// field is one part of a set's key: its type's number in nft, which is what makes a listing readable, and its bytes.
type field struct {
	magic, size uint32
}

var (
	fieldAddr4 = field{7, 4}
	fieldAddr6 = field{8, 16}
	fieldProto = field{12, 1}
	fieldPort  = field{13, 2}
	fieldLink  = field{41, linkName}
)

// linkName is how long a link's name may be, with its final zero (linux/if.h IFNAMSIZ).
const linkName = 16

// set is a kernel set or map, of one family.
type set struct {
	name     string
	fields   []field
	interval bool
	verdicts bool // a map to verdicts
	expires  bool // elements go by themselves; Sync leaves them alone
	comment  string
}

func padded(n uint32) uint32 { return (n + 3) &^ 3 }

func (s *set) keyLen() uint32 {
	if len(s.fields) == 1 {
		return s.fields[0].size
	}
	n := uint32(0)
	for _, f := range s.fields {
		n += padded(f.size)
	}
	return n
}

func (s *set) flags() uint32 {
	var f uint32
	if s.interval {
		f |= unix.NFT_SET_INTERVAL
	}
	if len(s.fields) > 1 {
		f |= setConcat
	}
	if s.verdicts {
		f |= unix.NFT_SET_MAP
	}
	if s.expires {
		f |= unix.NFT_SET_TIMEOUT
	}
	return f
}

// Numbers of linux/netfilter/nf_tables.h and libnftnl's udata.h that package unix lacks.
const (
	tableUserdata     = 6
	tableOwnerPort    = 7 // NFTA_TABLE_OWNER
	tableOwner        = 2 // NFT_TABLE_F_OWNER: only the netlink socket that made it may change it
	tablePersist      = 4 // NFT_TABLE_F_PERSIST: it outlives that socket
	setConcat         = 0x80
	setDescConcat     = 2
	setFieldLen       = 1
	setElemKeyEnd     = 10
	dataVerdict       = 0xffffff00
	udataKeyByteOrder = 0
	udataSetComment   = 7
	hostEndian        = 1
	bigEndian         = 2
)

func (t *Table) newSet(s *set) nft.Message {
	magic := uint32(0)
	for _, f := range s.fields {
		magic = magic<<6 | f.magic
	}
	t.nextSetID++
	var a nft.Attrs
	a.String(unix.NFTA_SET_TABLE, t.name)
	a.String(unix.NFTA_SET_NAME, s.name)
	a.Uint32(unix.NFTA_SET_FLAGS, s.flags())
	a.Uint32(unix.NFTA_SET_KEY_TYPE, magic)
	a.Uint32(unix.NFTA_SET_KEY_LEN, s.keyLen())
	a.Uint32(unix.NFTA_SET_ID, t.nextSetID)
	if s.verdicts {
		a.Uint32(unix.NFTA_SET_DATA_TYPE, dataVerdict)
		a.Uint32(unix.NFTA_SET_DATA_LEN, 0)
	}
	if len(s.fields) > 1 {
		a.Nest(unix.NFTA_SET_DESC, func(a *nft.Attrs) {
			a.Nest(setDescConcat, func(a *nft.Attrs) {
				for _, f := range s.fields {
					a.Nest(unix.NFTA_LIST_ELEM, func(a *nft.Attrs) { a.Uint32(setFieldLen, f.size) })
				}
			})
		})
	}
	order := uint32(bigEndian)
	if s.fields[0] == fieldLink {
		order = hostEndian
	}
	user := binary.NativeEndian.AppendUint32([]byte{udataKeyByteOrder, 4}, order)
	if s.comment != "" {
		user = append(user, udataSetComment, byte(len(s.comment)+1))
		user = append(append(user, s.comment...), 0)
	}
	a.Put(unix.NFTA_SET_USERDATA, user)
	return nft.Message{Type: unix.NFT_MSG_NEWSET, Flags: unix.NLM_F_CREATE, Body: a, About: "set " + s.name}
}

func (t *Table) delSet(name string) nft.Message {
	var a nft.Attrs
	a.String(unix.NFTA_SET_TABLE, t.name)
	a.String(unix.NFTA_SET_NAME, name)
	return nft.Message{Type: unix.NFT_MSG_DELSET, Body: a, About: "removal of set " + name}
}

// elementKey identifies an element within its set: its key, and whether it is the end of an interval.
type elementKey struct {
	key string
	end bool
}

// elementValue is the rest of an element.
type elementValue struct {
	keyEnd string // of a concatenation's interval
	code   int32  // the verdict's, of a map
	chain  string
}

type elements map[elementKey]elementValue

// The verdicts that maps hold (linux/netfilter/nf_tables.h enum nft_verdicts).
const (
	codeJump = -3
	codeGoto = -4
)

func (v elementValue) appendTo(out nft.Attrs, k elementKey) nft.Attrs {
	out.Nest(unix.NFTA_LIST_ELEM, func(a *nft.Attrs) {
		if k.end {
			a.Uint32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		}
		a.Nest(unix.NFTA_SET_ELEM_KEY, func(a *nft.Attrs) { a.Put(unix.NFTA_DATA_VALUE, []byte(k.key)) })
		if v.keyEnd != "" {
			a.Nest(setElemKeyEnd, func(a *nft.Attrs) { a.Put(unix.NFTA_DATA_VALUE, []byte(v.keyEnd)) })
		}
		if v.chain != "" {
			a.Nest(unix.NFTA_SET_ELEM_DATA, func(a *nft.Attrs) {
				a.Nest(unix.NFTA_DATA_VERDICT, func(a *nft.Attrs) {
					a.Uint32(unix.NFTA_VERDICT_CODE, uint32(v.code))
					a.String(unix.NFTA_VERDICT_CHAIN, v.chain)
				})
			})
		}
	})
	return out
}

// An attribute's length has 16 bits, and the element list is one attribute.
const maxElementList = 60000

// change makes messages that add or remove (typ is NFT_MSG_NEWSETELEM or NFT_MSG_DELSETELEM) elements. They go in
// order: a set of intervals takes each start before its end, or else finds that they overlap.
func (t *Table) change(typ uint16, setName string, es elements) []nft.Message {
	var out []nft.Message
	var list nft.Attrs
	flush := func() {
		if len(list) == 0 {
			return
		}
		var a nft.Attrs
		a.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
		a.String(unix.NFTA_SET_ELEM_LIST_SET, setName)
		a.Put(unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		m := nft.Message{Type: typ, Body: a, About: "elements of " + setName}
		if typ == unix.NFT_MSG_NEWSETELEM {
			m.Flags = unix.NLM_F_CREATE
		}
		out = append(out, m)
		list = nil
	}
	keys := slices.SortedFunc(maps.Keys(es), func(a, b elementKey) int { return strings.Compare(a.key, b.key) })
	for _, k := range keys {
		if len(list) > maxElementList {
			flush()
		}
		list = es[k].appendTo(list, k)
	}
	flush()
	return out
}

// listElements reads what a set holds. The error is nft.ErrInterrupted where the kernel put the set into another order
// meanwhile, as it does some time after the set has grown: then for each element that came twice another did not come.
func (t *Table) listElements(name string) (elements, error) {
	var a nft.Attrs
	a.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
	a.String(unix.NFTA_SET_ELEM_LIST_SET, name)
	out, came := elements{}, 0
	err := t.conn.Dump(unix.NFT_MSG_GETSETELEM, nft.Inet, a, func(b []byte) {
		nft.EachAttr(b, func(typ uint16, data []byte) {
			if typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				nft.EachAttr(data, func(_ uint16, e []byte) {
					k, v := readElement(e)
					out[k] = v
					came++
				})
			}
		})
	})
	if err == nil && came != len(out) {
		err = nft.ErrInterrupted
	}
	return out, err
}

func readElement(b []byte) (k elementKey, v elementValue) {
	value := func(b []byte) (s string) {
		nft.EachAttr(b, func(typ uint16, data []byte) {
			if typ == unix.NFTA_DATA_VALUE {
				s = string(data)
			}
		})
		return s
	}
	nft.EachAttr(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			k.key = value(data)
		case setElemKeyEnd:
			v.keyEnd = value(data)
		case unix.NFTA_SET_ELEM_FLAGS:
			k.end = len(data) == 4 && binary.BigEndian.Uint32(data)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_DATA:
			nft.EachAttr(data, func(typ uint16, data []byte) {
				if typ != unix.NFTA_DATA_VERDICT {
					return
				}
				nft.EachAttr(data, func(typ uint16, data []byte) {
					switch typ {
					case unix.NFTA_VERDICT_CODE:
						v.code = int32(binary.BigEndian.Uint32(data))
					case unix.NFTA_VERDICT_CHAIN:
						v.chain = nft.CString(data)
					}
				})
			})
		}
	})
	return k, v
}

// family4 and family6 end the names of a set's two halves.
const (
	family4 = "-4"
	family6 = "-6"
)

// halves are the kernel sets of a program's set, with their elements. Sets of ports have only one.
func halves(s *policy.Set) map[*set]elements {
	out := map[*set]elements{}
	switch s.Kind {
	case policy.Addrs, policy.Named:
		four := &set{name: s.Name + family4, fields: []field{fieldAddr4}, comment: s.Comment}
		six := &set{name: s.Name + family6, fields: []field{fieldAddr6}, comment: s.Comment}
		if s.Kind == policy.Named {
			four.fields = append(four.fields, fieldProto, fieldPort)
			six.fields = append(six.fields, fieldProto, fieldPort)
		}
		out[four], out[six] = memberElements(s.Kind, s.Members)
	case policy.Nets:
		four, six := elements{}, elements{}
		for _, r := range s.Ranges {
			to := four
			if r.From.Is6() {
				to = six
			}
			to[elementKey{string(r.From.AsSlice()), false}] = elementValue{}
			if next := r.To.Next(); next.IsValid() {
				to[elementKey{string(next.AsSlice()), true}] = elementValue{}
			}
		}
		out[&set{name: s.Name + family4, fields: []field{fieldAddr4}, interval: true}] = four
		out[&set{name: s.Name + family6, fields: []field{fieldAddr6}, interval: true}] = six
	case policy.Ports, policy.PortMap, policy.RangeMap:
		k := &set{name: s.Name, fields: []field{fieldProto, fieldPort}, interval: s.Kind != policy.PortMap, verdicts: s.Kind != policy.Ports}
		out[k] = portElements(s.Kind, s.Direction, s.Ports)
	}
	return out
}

// portElements are the elements of a set of ports.
func portElements(kind policy.SetKind, d policy.Direction, ports []policy.PortRange) elements {
	es := elements{}
	for _, p := range ports {
		var v elementValue
		if kind != policy.PortMap {
			v.keyEnd = protoPort(p.Protocol, p.To)
		}
		if kind != policy.Ports {
			if v.code, v.chain = codeJump, p.Target; p.Target == "" {
				v.code, v.chain = codeGoto, admits(d)
			}
		}
		es[elementKey{protoPort(p.Protocol, p.From), false}] = v
	}
	return es
}

// memberElements are the elements of a Mutable set's members, by family.
func memberElements(kind policy.SetKind, members map[policy.Member]struct{}) (four, six elements) {
	four, six = elements{}, elements{}
	for m := range members {
		to := four
		if m.Addr.Is6() {
			to = six
		}
		key := string(m.Addr.AsSlice())
		if kind == policy.Named {
			key += protoPort(m.Protocol, m.Port)
		}
		to[elementKey{key, false}] = elementValue{}
	}
	return four, six
}

// protoPort is a concatenation of protocol and port, each in a register of its own.
func protoPort(p model.Protocol, port uint16) string {
	return string([]byte{byte(p), 0, 0, 0, byte(port >> 8), byte(port), 0, 0})
}

// The sets that lead to the chains, of each family.
const (
	mapIngress  = "in"
	mapEgress   = "out"
	setGuarded  = "guarded"
	setSelf     = "self"
	mapLinks    = "links"
	familyCount = 2
)

// rootSets are the sets that every table has.
func rootSets() []*set {
	out := make([]*set, 0, 4*familyCount+1)
	for suffix, f := range map[string]field{family4: fieldAddr4, family6: fieldAddr6} {
		out = append(out,
			&set{name: mapIngress + suffix, fields: []field{f}, verdicts: true},
			&set{name: mapEgress + suffix, fields: []field{f}, verdicts: true},
			&set{name: setGuarded + suffix, fields: []field{f}},
			&set{name: setSelf + suffix, fields: []field{f, f}},
		)
	}
	return append(out, &set{name: mapLinks, fields: []field{fieldLink}, verdicts: true, comment: "pods' egress where they use link-local addresses"})
}

// linkElements are a link's element in the map of links; none if its pod is open.
func linkElements(link, chain string) elements {
	if chain == "" {
		return elements{}
	}
	var key [linkName]byte
	copy(key[:linkName-1], link)
	return elements{elementKey{string(key[:]), false}: {code: codeGoto, chain: chain}}
}

// rootElements are what a pod's Entry comes to in the root sets: by set, one element or none.
func rootElements(a netip.Addr, e policy.Entry) map[string]elements {
	suffix := family4
	if a.Is6() {
		suffix = family6
	}
	key := string(a.AsSlice())
	out := map[string]elements{mapIngress + suffix: {}, mapEgress + suffix: {}, setGuarded + suffix: {}, setSelf + suffix: {}}
	if e == (policy.Entry{}) {
		return out
	}
	if e.Ingress != "" {
		out[mapIngress+suffix][elementKey{key, false}] = elementValue{code: codeGoto, chain: e.Ingress}
	}
	if e.Egress != "" {
		out[mapEgress+suffix][elementKey{key, false}] = elementValue{code: codeGoto, chain: e.Egress}
	}
	out[setGuarded+suffix][elementKey{key, false}] = elementValue{}
	out[setSelf+suffix][elementKey{key + key, false}] = elementValue{}
	return out
}
