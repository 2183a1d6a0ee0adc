// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableName is the nftables table of the pod network, of family inet.
//
//	chain           hook         priority      does
//	from-pods       prerouting   raw (-300)    a pod sends from its own addresses only, and not to the node's loopback
//	gone            prerouting   filter (0)    ends TCP connections to pods of this node that are no more
//	host-ports      prerouting   dstnat (-100) host ports, for packets from elsewhere
//	host-ports-node output       dstnat (-100) host ports, for the node's own packets
//	outbound        postrouting  srcnat (100)  hides pods from what is beyond the cluster; host port hairpins
//	tunnel-mss      forward      mangle (-150) TCP through a tunnel sends segments that fit it
//
// All that varies is in elements: cluster4 and cluster6 hold what pods reach under their own address, own4 and own6 the
// node's own podCIDRs, host-ports4,
// host-ports6 and host-ip-ports4, host-ip-ports6 map host ports to pods, hairpin4 and hairpin6 hold the pods with
// host ports, paired with themselves.
const TableName = "weft-podnet"

// chunk is how many elements go into one netlink batch: it must fit a socket buffer that can't be enlarged, as in a
// user namespace.
const chunk = 500

// addrRange is a range of addresses of one family, both ends included.
type addrRange struct{ first, last netip.Addr }

// mergePrefixes makes the fewest ranges that hold the same addresses, sorted.
func mergePrefixes(ps []netip.Prefix) []addrRange {
	rs := make([]addrRange, 0, len(ps))
	for _, p := range ps {
		rs = append(rs, addrRange{p.Masked().Addr(), lastAddr(p)})
	}
	slices.SortFunc(rs, func(a, b addrRange) int { return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last)) })
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].last.BitLen() == r.first.BitLen() && (r.first.Compare(out[n-1].last) <= 0 || out[n-1].last.Next() == r.first) {
			if out[n-1].last.Less(r.last) {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// table keeps the kernel's table as it should be. All methods are safe for concurrent use; an error leaves the
// table to be brought in order by the next call.
type table struct {
	mu    sync.Mutex
	ns    *netNS
	live  bool                         // want is whole: the cluster's addresses are known
	held  bool                         // the kernel is known to hold the layout and have
	rules map[string][]uint64          // chain -> handles of its rules, as layout left them
	want  map[string]map[string][]byte // set -> element key -> value; see setKeys
	have  map[string]map[string][]byte
}

func newTable(ns *netNS) *table {
	t := &table{ns: ns, want: make(map[string]map[string][]byte)}
	for _, s := range tableSets(nil) {
		t.want[s.Name] = make(map[string][]byte)
	}
	return t
}

// with runs fn with a connection of its own: after an error, one may be left with answers that nobody reads.
func (t *table) with(fn func(*nftables.Conn) error) error {
	var c *nftables.Conn
	err := t.ns.do(func() (err error) {
		c, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			// Best effort: chunks fit without it.
			_ = c.SetReadBuffer(1 << 20)
			_ = c.SetWriteBuffer(1 << 20)
			return nil
		}))
		return err
	})
	if err == nil {
		err = errors.Join(fn(c), c.CloseLasting())
	}
	if err != nil {
		return fmt.Errorf("table %s: %w", TableName, err)
	}
	return nil
}

// expect adds what pods of before have, without a look at the kernel.
func (t *table) expect(es []portElement) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range es {
		t.want[e.set][e.key] = []byte(e.value)
	}
}

// setRanges replaces what pods reach under their own address, and the ranges of this node's own pods.
func (t *table) setRanges(cluster, own []addrRange) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = true
	t.setInterval("cluster", cluster)
	t.setInterval("own", own)
	return t.sync()
}

func (t *table) setInterval(name string, rs []addrRange) {
	clear(t.want[name+"4"])
	clear(t.want[name+"6"])
	for _, r := range rs {
		set := name + "4"
		if r.first.Is6() {
			set = name + "6"
		}
		// An interval is a pair of elements: its first address, and the first one after it. The value tells them
		// apart and is not sent.
		t.want[set][string(r.first.AsSlice())] = []byte{}
		if end := r.last.Next(); end.IsValid() {
			t.want[set][string(end.AsSlice())+endMark] = []byte{}
		}
	}
}

// endMark ends the key, in our maps, of an element that ends an interval.
const endMark = "\x00end"

// setHostPorts adds and removes a pod's host ports.
func (t *table) setHostPorts(add, remove []portElement) error {
	if len(add)+len(remove) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range remove {
		if v, ok := t.want[e.set][e.key]; ok && bytes.Equal(v, []byte(e.value)) {
			delete(t.want[e.set], e.key)
		}
	}
	for _, e := range add {
		t.want[e.set][e.key] = []byte(e.value)
	}
	return t.sync()
}

// repair looks at what the kernel holds and puts right what differs. It tells whether anything did.
func (t *table) repair() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.live {
		return false, nil
	}
	if t.held {
		same := false
		if err := t.with(func(c *nftables.Conn) error {
			rules, err := readRules(c, t.object())
			if err != nil {
				return err
			}
			have, err := readSets(c, t.object())
			same = err == nil && maps.EqualFunc(rules, t.rules, slices.Equal) && sameSets(have, t.have)
			return err
		}); err != nil {
			return false, err
		}
		if same {
			return false, nil
		}
	}
	t.held = false
	return true, t.sync()
}

func sameSets(a, b map[string]map[string][]byte) bool {
	return maps.EqualFunc(a, b, func(x, y map[string][]byte) bool { return maps.EqualFunc(x, y, bytes.Equal) })
}

// holds tells whether the kernel itself, not our memory of it, has these elements.
func (t *table) holds(es []portElement) (bool, error) {
	if len(es) == 0 {
		return true, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var have map[string]map[string][]byte
	if err := t.with(func(c *nftables.Conn) (err error) {
		have, err = readSets(c, t.object())
		return err
	}); err != nil {
		return false, err
	}
	for _, e := range es {
		if v, ok := have[e.set][e.key]; !ok || !bytes.Equal(v, []byte(e.value)) {
			return false, nil
		}
	}
	return true, nil
}

func (t *table) object() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// sync brings the kernel from have to want, t.mu held.
func (t *table) sync() error {
	if !t.live {
		return nil // setRanges does it all
	}
	return t.with(func(c *nftables.Conn) error {
		if !t.held {
			if err := t.layout(c); err != nil {
				return err
			}
		}
		t.held = false
		if err := t.elements(c); err != nil {
			return err
		}
		t.held = true
		return nil
	})
}

// layout makes sure of the sets and replaces the rules, in one transaction that no packet can tell from nothing
// happening. A table whose sets have another layout, of an older weft, is replaced whole, with its elements, but for sets that
// are too large for one transaction: those follow at once.
func (t *table) layout(c *nftables.Conn) error {
	have, err := readSets(c, t.object())
	if err != nil {
		return err
	}
	write := func(fresh bool) error {
		tab := c.AddTable(t.object())
		if fresh {
			c.DelTable(tab)
			tab = c.AddTable(t.object())
			have = make(map[string]map[string][]byte)
		}
		for _, s := range tableSets(tab) {
			var es []nftables.SetElement
			if fresh && len(t.want[s.Name]) <= chunk {
				es = difference(s, t.want[s.Name], nil)
				have[s.Name] = maps.Clone(t.want[s.Name])
			}
			if err := c.AddSet(s, es); err != nil {
				return err
			}
		}
		addChains(c, tab)
		return c.Flush()
	}
	err = write(false)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) {
		err = write(true)
	}
	if err != nil {
		return err
	}
	t.have = have
	t.rules, err = readRules(c, t.object())
	return err
}

// elements sends the difference. Every transaction leaves each element either old or new.
func (t *table) elements(c *nftables.Conn) error {
	sets := tableSets(t.object())
	pending := 0
	flush := func() error {
		pending = 0
		return c.Flush()
	}
	for _, s := range sets {
		want, have := t.want[s.Name], t.have[s.Name]
		if have == nil {
			have = make(map[string][]byte)
			t.have[s.Name] = have
		}
		for _, batch := range []struct {
			es []nftables.SetElement
			do func(*nftables.Set, []nftables.SetElement) error
		}{{difference(s, have, want), c.SetDeleteElements}, {difference(s, want, have), c.SetAddElements}} {
			for es := range slices.Chunk(batch.es, chunk) {
				if err := batch.do(s, es); err != nil {
					return err
				}
				if pending += len(es); pending >= 4*chunk {
					if err := flush(); err != nil {
						return err
					}
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	for name, m := range t.want {
		t.have[name] = maps.Clone(m)
	}
	return nil
}

// difference lists the elements of a that b lacks or has with another value. Those of intervals are in order, so that
// a chunk holds both ends of one.
func difference(s *nftables.Set, a, b map[string][]byte) []nftables.SetElement {
	var es []nftables.SetElement
	for k, v := range a {
		if w, ok := b[k]; !ok || !bytes.Equal(v, w) {
			es = append(es, element(s, k, v))
		}
	}
	if s.Interval {
		slices.SortFunc(es, func(x, y nftables.SetElement) int {
			c := bytes.Compare(x.Key, y.Key)
			if c == 0 && x.IntervalEnd != y.IntervalEnd {
				if x.IntervalEnd {
					return -1
				}
				return 1
			}
			return c
		})
	}
	return es
}

func element(s *nftables.Set, key string, value []byte) nftables.SetElement {
	e := nftables.SetElement{Key: []byte(key)}
	if s.Interval {
		if k, ok := bytes.CutSuffix(e.Key, []byte(endMark)); ok && len(k) == int(s.KeyType.Bytes) {
			e.Key, e.IntervalEnd = k, true
		}
	}
	if s.IsMap {
		e.Val = value
	}
	return e
}

// readSets dumps the elements of the table's sets; none where there is no table.
func readSets(c *nftables.Conn, tab *nftables.Table) (map[string]map[string][]byte, error) {
	tables, err := c.ListTablesOfFamily(tab.Family)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tab.Name }) {
		return make(map[string]map[string][]byte), nil
	}
	sets, err := c.GetSets(tab)
	if err != nil {
		return nil, err
	}
	known := make(map[string]*nftables.Set)
	for _, s := range tableSets(tab) {
		known[s.Name] = s
	}
	have := make(map[string]map[string][]byte)
	for _, s := range sets {
		k := known[s.Name]
		if k == nil {
			continue
		}
		es, err := c.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		m := make(map[string][]byte, len(es))
		for _, e := range es {
			switch {
			case k.Interval && e.IntervalEnd:
				m[string(e.Key)+endMark] = []byte{}
			case k.IsMap:
				m[string(e.Key)] = e.Val
			default:
				m[string(e.Key)] = []byte{}
			}
		}
		have[s.Name] = m
	}
	return have, nil
}

// readRules dumps the handles of the table's rules. The kernel gives a changed rule another one.
func readRules(c *nftables.Conn, tab *nftables.Table) (map[string][]uint64, error) {
	chains, err := c.ListChainsOfTableFamily(tab.Family)
	if err != nil {
		return nil, err
	}
	rules := make(map[string][]uint64)
	for _, ch := range chains {
		if ch.Table.Name != tab.Name {
			continue
		}
		rs, err := c.GetRules(tab, ch)
		if err != nil {
			return nil, err
		}
		hs := make([]uint64, len(rs))
		for i, r := range rs {
			hs[i] = r.Handle
		}
		rules[ch.Name] = hs
	}
	return rules, nil
}

// erase removes the table.
func (t *table) erase() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = false
	return t.with(func(c *nftables.Conn) error {
		c.DelTable(c.AddTable(t.object()))
		return c.Flush()
	})
}
