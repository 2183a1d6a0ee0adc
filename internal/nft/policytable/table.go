// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/policy"
)

// Name is the name of the table, in family inet.
const Name = "weft-policy"

// DefaultGroup is the netlink log group that drops are sent to unless Options say another.
const DefaultGroup = 5330

// Prefixes of log messages that are not a chain's name. A chain's name has a "-" after its kind, these have none.
const (
	PrefixMidstream = "midstream" // belongs to no known connection
	PrefixAdmitted  = "admitted"
)

// layout numbers the way of building the table's fixed parts. A table of another layout is replaced as a whole.
const layout = "weft policy layout 3"

// Options are how a Table is to work.
type Options struct {
	// Netns is a file descriptor of the network namespace; -1 is the caller's. It must stay open while the Table is.
	Netns int

	Group       uint16 // the netlink log group; 0 is DefaultGroup
	LogAdmitted bool   // log new admitted connections too

	// Shared leaves the table for everybody to change. Else, where the kernel can (Linux 6.9), nobody but this process
	// may change or remove it, not even by a flush of the whole ruleset; it outlives the process, and is then there for
	// whoever comes first.
	Shared bool
}

// Table is the kernel's table. It is safe for concurrent use.
type Table struct {
	name        string
	netns       int
	group       uint16
	logAdmitted bool

	monitor *nft.Monitor

	mu        sync.Mutex
	conn      *nft.Conn
	limit     int  // bytes of a transaction
	sent      int  // transactions
	names     bool // the table has what policies that go by name need
	shared    bool // asked for, or all that this kernel knows
	probed    bool // what this kernel knows is known
	nextSetID uint32
}

// Open connects to the kernel. It changes nothing there.
func Open(o Options) (*Table, error) {
	if o.Group == 0 {
		o.Group = DefaultGroup
	}
	t := &Table{name: Name, netns: o.Netns, group: o.Group, logAdmitted: o.LogAdmitted, shared: o.Shared}
	err := inNetns(o.Netns, func() (err error) {
		if t.conn, err = nft.Dial(); err != nil {
			return err
		}
		if t.monitor, err = nft.NewMonitor(t.conn); err != nil {
			_ = t.conn.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t.limit = t.conn.Limit()
	return t, nil
}

// Close gives up the connection. What the kernel holds stays in force.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.conn.Close()
	_ = t.monitor.Close()
}

// plan is the messages of a change by the order that keeps every part of it safe.
type plan struct {
	tables   []nft.Message   // the table itself
	sets     []nft.Message   // new sets
	chains   []nft.Message   // new chains, empty
	contents []nft.Message   // elements of new sets that lead nowhere
	rules    [][]nft.Message // of one chain each, to be sent together
	portmaps []nft.Message   // elements of new sets that lead to chains
	mapped   [][]nft.Message // the same of one set in use each, to be sent together
	members  []nft.Message   // of sets in use
	pods     [][]nft.Message // of one root set each, to be sent together
	hooks    [][]nft.Message // the base chains' rules
	flush    []nft.Message   // rules of chains that go
	delSets  []nft.Message
	delChain []nft.Message
}

// groups are the plan's messages in order; those of one group must be in one transaction.
func (p *plan) groups() [][]nft.Message {
	var out [][]nft.Message
	single := func(list []nft.Message) {
		for i := range list {
			out = append(out, list[i:i+1])
		}
	}
	single(p.tables)
	single(p.sets)
	single(p.chains)
	single(p.contents)
	out = append(out, p.rules...)
	single(p.portmaps)
	out = append(out, p.mapped...)
	single(p.members)
	out = append(out, p.pods...)
	out = append(out, p.hooks...)
	single(p.flush)
	single(p.delSets)
	single(p.delChain)
	return out
}

// send carries a plan out: as one transaction, or as few as the socket allows.
func (t *Table) send(p *plan) error {
	var batch []nft.Message
	size := nft.BatchSize
	for _, g := range p.groups() {
		n := 0
		for _, m := range g {
			n += m.Size()
		}
		if len(batch) > 0 && size+n > t.limit {
			if err := t.transact(batch); err != nil {
				return err
			}
			batch, size = nil, nft.BatchSize
		}
		batch = append(batch, g...)
		size += n
	}
	return t.transact(batch)
}

// transact sends messages as one transaction. If any is refused, all are.
func (t *Table) transact(msgs []nft.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	t.sent++
	return t.conn.CommitMessages(nft.Inet, msgs)
}

// Apply changes what a Change says. The table must be as the last Apply or Sync left it; after an error, or when
// somebody else changed the table, only Sync helps.
func (t *Table) Apply(c *policy.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var p plan
	for _, s := range c.Sets {
		t.planNewSet(&p, s)
	}
	for name, kind := range c.Gone {
		for k := range halves(&policy.Set{Name: name, Kind: kind}) {
			p.delSets = append(p.delSets, t.delSet(k.name))
		}
	}
	for name, m := range c.Members {
		del4, del6 := memberElements(m.Kind, m.Del)
		add4, add6 := memberElements(m.Kind, m.Add)
		p.members = slices.Concat(p.members,
			t.change(unix.NFT_MSG_DELSETELEM, name+family4, del4), t.change(unix.NFT_MSG_DELSETELEM, name+family6, del6),
			t.change(unix.NFT_MSG_NEWSETELEM, name+family4, add4), t.change(unix.NFT_MSG_NEWSETELEM, name+family6, add6))
	}
	for name, ports := range c.Ports {
		del, add := portElements(policy.PortMap, ports.Direction, ports.Del), portElements(policy.PortMap, ports.Direction, ports.Add)
		p.mapped = append(p.mapped, append(t.change(unix.NFT_MSG_DELSETELEM, name, del), t.change(unix.NFT_MSG_NEWSETELEM, name, add)...))
	}
	for name, ch := range c.Chains {
		if ch == nil {
			p.flush = append(p.flush, t.flushChain(name))
			p.delChain = append(p.delChain, t.delChain(name))
			continue
		}
		if err := t.planChain(&p, t.compile(ch), nil); err != nil {
			return err
		}
	}
	p.pods = t.podChanges(c.Pods, c.Links)
	names := t.names
	if _, gone := c.Gone[policy.Asking]; gone {
		names = false
	} else if c.Sets[policy.Asking] != nil {
		names = true
	}
	if err := t.planNames(&p, names); err != nil {
		return err
	}
	if err := t.send(&p); err != nil {
		return fmt.Errorf("change table inet %s: %w", t.name, err)
	}
	t.names = names
	return nil
}

// podChanges replaces the pods' elements in the root sets, each old one by the new in one go.
func (t *Table) podChanges(pods map[netip.Addr]policy.EntryChange, links map[string]policy.LinkChange) [][]nft.Message {
	gone, come := map[string]elements{}, map[string]elements{}
	for a, c := range pods {
		was, is := rootElements(a, c.Old), rootElements(a, c.New)
		for name := range is {
			del, add := difference(was[name], is[name])
			collect(gone, name, del)
			collect(come, name, add)
		}
	}
	for link, c := range links {
		collect(gone, mapLinks, linkElements(link, c.Old))
		collect(come, mapLinks, linkElements(link, c.New))
	}
	var out [][]nft.Message
	for _, s := range rootSets() {
		msgs := append(t.change(unix.NFT_MSG_DELSETELEM, s.name, gone[s.name]), t.change(unix.NFT_MSG_NEWSETELEM, s.name, come[s.name])...)
		if len(msgs) > 0 {
			out = append(out, msgs)
		}
	}
	return out
}

func collect(into map[string]elements, name string, es elements) {
	if into[name] == nil {
		into[name] = elements{}
	}
	maps.Copy(into[name], es)
}

func (t *Table) planNewSet(p *plan, s *policy.Set) {
	for k, es := range halves(s) {
		p.sets = append(p.sets, t.newSet(k))
		fill := t.change(unix.NFT_MSG_NEWSETELEM, k.name, es)
		if k.verdicts {
			p.portmaps = append(p.portmaps, fill...)
		} else {
			p.contents = append(p.contents, fill...)
		}
	}
}

// planChain makes a chain with its rules. Of one that is there (have is not nil) the rules are made anew, unless they
// are what they should be.
func (t *Table) planChain(p *plan, c *chain, have *chainShape) error {
	rules, seals, err := t.newRules(c)
	switch {
	case err != nil:
		return err
	case have == nil:
		p.chains = append(p.chains, t.newChain(c))
	case slices.Equal(have.seals, seals):
		return nil
	default:
		rules = append([]nft.Message{t.flushChain(c.name)}, rules...)
	}
	if c.hook != noHook {
		p.hooks = append(p.hooks, rules)
	} else {
		p.rules = append(p.rules, rules)
	}
	return nil
}

// Sync makes the table hold exactly the program, whatever it holds now, and changes only the difference. Traffic
// sees the old or the new, never less.
func (t *Table) Sync(prog *policy.Program) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	for range 5 { // somebody who changes the table at the same time makes a try fail, and the next one read anew
		if err = t.sync(prog); err == nil || errors.Is(err, unix.EPERM) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("bring table inet %s up to date: %w", t.name, err)
	}
	return nil
}

func (t *Table) sync(prog *policy.Program) error {
	if err := t.probe(); err != nil {
		return err
	}
	have, err := t.read()
	if err != nil {
		return err
	}
	if have != nil && have.flags&tableOwner != 0 && have.owner != t.conn.Port() {
		return fmt.Errorf("another process owns it (netlink port %d), such as an older agent of this node: it has to end first: %w", have.owner, unix.EPERM)
	}
	names := prog.Sets[policy.Asking] != nil
	p, err := t.planFrom(have, t.wanted(prog, names))
	if err != nil {
		return err
	}
	if err := t.send(p); err != nil {
		return err
	}
	t.names = names
	return t.monitor.Join()
}

// wanted is what the table is to hold.
type wanted struct {
	sets     map[string]*set
	root     map[string]bool // those of them that lead pods to their chains
	elements map[string]elements
	chains   []*chain
}

// wanted makes a Program what the kernel has to hold; names says whether policies go by domain name.
func (t *Table) wanted(prog *policy.Program, names bool) *wanted {
	w := &wanted{sets: map[string]*set{}, root: map[string]bool{}, elements: map[string]elements{}, chains: t.rootChains(names)}
	for _, s := range rootSets() {
		w.sets[s.name], w.elements[s.name], w.root[s.name] = s, elements{}, true
	}
	for a, e := range prog.Pods {
		for name, es := range rootElements(a, e) {
			maps.Copy(w.elements[name], es)
		}
	}
	for link, chain := range prog.Links {
		maps.Copy(w.elements[mapLinks], linkElements(link, chain))
	}
	for _, s := range prog.Sets {
		for k, es := range halves(s) {
			w.sets[k.name], w.elements[k.name] = k, es
		}
	}
	if names {
		w.sets[setAwake] = awakeSet()
	}
	for _, c := range prog.Chains {
		w.chains = append(w.chains, t.compile(c))
	}
	return w
}

// planFrom is the way from what the kernel has, nil being no table, to what is wanted.
func (t *Table) planFrom(have *state, want *wanted) (*plan, error) {
	p := new(plan)
	if have != nil && !have.fits(want.sets, want.chains, t.tableFlags()) {
		p.tables = append(p.tables, t.delTable())
		have = nil
	}
	switch {
	case have == nil:
		p.tables = append(p.tables, t.newTable())
		have = &state{}
	case !t.shared && have.flags&tableOwner == 0: // its last owner is gone
		p.tables = append(p.tables, t.newTable())
	}
	for name, s := range want.sets {
		del, add := elements{}, want.elements[name]
		if _, there := have.sets[name]; !there {
			p.sets = append(p.sets, t.newSet(s))
		} else if !s.expires {
			held, err := t.listElements(name)
			if err != nil {
				return nil, err
			}
			del, add = difference(held, add)
		}
		msgs := append(t.change(unix.NFT_MSG_DELSETELEM, name, del), t.change(unix.NFT_MSG_NEWSETELEM, name, add)...)
		switch {
		case len(msgs) == 0:
		case want.root[name]:
			p.pods = append(p.pods, msgs)
		case s.verdicts && len(del) > 0:
			p.mapped = append(p.mapped, msgs)
		case s.verdicts:
			p.portmaps = append(p.portmaps, msgs...)
		case len(del) > 0:
			p.members = append(p.members, msgs...)
		default:
			p.contents = append(p.contents, msgs...)
		}
	}
	keep := map[string]bool{}
	for _, c := range want.chains {
		keep[c.name] = true
		if err := t.planChain(p, c, have.chains[c.name]); err != nil {
			return nil, err
		}
	}
	for name := range have.sets {
		if want.sets[name] == nil {
			p.delSets = append(p.delSets, t.delSet(name))
		}
	}
	for name := range have.chains {
		if !keep[name] {
			p.flush = append(p.flush, t.flushChain(name))
			p.delChain = append(p.delChain, t.delChain(name))
		}
	}
	return p, nil
}

// difference is what has to go from a set and what has to come.
func difference(have, want elements) (del, add elements) {
	del, add = elements{}, elements{}
	for k, v := range have {
		if w, ok := want[k]; !ok || w != v {
			del[k] = v
		}
	}
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			add[k] = v
		}
	}
	return del, add
}

// state is what a table in the kernel looks like from outside.
type state struct {
	layout string
	flags  uint32
	owner  uint32 // netlink port
	sets   map[string]setShape
	chains map[string]*chainShape
}

type chainShape struct {
	hook  int // or noHook
	seals []string
}

type setShape struct{ flags, keyLen uint32 }

// fits tells whether the table can be changed into the wanted one: what has the same name is of the same make.
func (s *state) fits(sets map[string]*set, chains []*chain, flags uint32) bool {
	// Whether it outlives its owner is for good.
	if s.layout != layout || (s.flags^flags)&tablePersist != 0 {
		return false
	}
	for name, want := range sets {
		if got, ok := s.sets[name]; ok && got != (setShape{want.flags(), want.keyLen()}) {
			return false
		}
	}
	for _, c := range chains {
		if got := s.chains[c.name]; got != nil && got.hook != c.hook {
			return false
		}
	}
	return true
}

// read lists the table's sets and chains; nil if there is no table.
func (t *Table) read() (*state, error) {
	s := &state{sets: map[string]setShape{}, chains: map[string]*chainShape{}}
	there := false
	err := t.conn.Dump(unix.NFT_MSG_GETTABLE, nft.Inet, nil, func(b []byte) {
		var name, user string
		var flags, owner uint32
		nft.EachAttr(b, func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_TABLE_NAME:
				name = nft.CString(data)
			case unix.NFTA_TABLE_FLAGS:
				flags = binary.BigEndian.Uint32(data)
			case tableOwnerPort:
				owner = binary.BigEndian.Uint32(data)
			case tableUserdata:
				user = nft.CString(data[min(2, len(data)):])
			}
		})
		if name == t.name {
			there, s.layout, s.flags, s.owner = true, user, flags, owner
		}
	})
	if err != nil || !there {
		return nil, err
	}
	// What somebody does to it while it is read must be noticed.
	if err := t.monitor.Join(); err != nil {
		return nil, err
	}
	var ofTable nft.Attrs
	ofTable.String(unix.NFTA_SET_TABLE, t.name)
	err = t.conn.Dump(unix.NFT_MSG_GETSET, nft.Inet, ofTable, func(b []byte) {
		var name string
		var shape setShape
		nft.EachAttr(b, func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_SET_NAME:
				name = nft.CString(data)
			case unix.NFTA_SET_FLAGS:
				shape.flags = binary.BigEndian.Uint32(data)
			case unix.NFTA_SET_KEY_LEN:
				shape.keyLen = binary.BigEndian.Uint32(data)
			}
		})
		s.sets[name] = shape
	})
	if err != nil {
		return nil, err
	}
	err = t.conn.Dump(unix.NFT_MSG_GETCHAIN, nft.Inet, nil, func(b []byte) {
		var table, name string
		hook := noHook
		nft.EachAttr(b, func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				table = nft.CString(data)
			case unix.NFTA_CHAIN_NAME:
				name = nft.CString(data)
			case unix.NFTA_CHAIN_HOOK:
				nft.EachAttr(data, func(typ uint16, data []byte) {
					if typ == unix.NFTA_HOOK_HOOKNUM {
						hook = int(binary.BigEndian.Uint32(data))
					}
				})
			}
		})
		if table == t.name {
			s.chains[name] = &chainShape{hook: hook}
		}
	})
	if err != nil {
		return nil, err
	}
	err = t.conn.Dump(unix.NFT_MSG_GETRULE, nft.Inet, ofTable, func(b []byte) {
		var chain, seal string
		nft.EachAttr(b, func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_RULE_CHAIN:
				chain = nft.CString(data)
			case unix.NFTA_RULE_USERDATA:
				seal = string(data)
			}
		})
		if c := s.chains[chain]; c != nil {
			c.seals = append(c.seals, seal)
		}
	})
	return s, err
}

// tableFlags are those that the table is to have.
func (t *Table) tableFlags() uint32 {
	if t.shared {
		return 0
	}
	return tableOwner | tablePersist
}

// probe finds out, once, whether this kernel can keep others from a table. A transaction that makes one and removes it
// leaves nothing behind.
func (t *Table) probe() error {
	if t.shared || t.probed {
		return nil
	}
	var a nft.Attrs
	a.String(unix.NFTA_TABLE_NAME, t.name+"-probe")
	remove := nft.Message{Type: unix.NFT_MSG_DELTABLE, Body: slices.Clone(a), About: "removal of a table to try what the kernel can"}
	a.Uint32(unix.NFTA_TABLE_FLAGS, t.tableFlags())
	err := t.transact([]nft.Message{{Type: unix.NFT_MSG_NEWTABLE, Flags: unix.NLM_F_CREATE, Body: a, About: "a table to try what the kernel can"}, remove})
	switch {
	case err == nil:
		t.probed = true
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		t.shared = true
	default:
		return err
	}
	return nil
}

// newTable makes the table, or becomes the owner of one that has none.
func (t *Table) newTable() nft.Message {
	var a nft.Attrs
	a.String(unix.NFTA_TABLE_NAME, t.name)
	if f := t.tableFlags(); f != 0 {
		a.Uint32(unix.NFTA_TABLE_FLAGS, f)
	}
	// The user data is a comment as nft writes it: type 0, length, text.
	a.Put(tableUserdata, append(append([]byte{0, byte(len(layout) + 1)}, layout...), 0))
	return nft.Message{Type: unix.NFT_MSG_NEWTABLE, Flags: unix.NLM_F_CREATE, Body: a, About: "table " + t.name}
}

func (t *Table) delTable() nft.Message {
	var a nft.Attrs
	a.String(unix.NFTA_TABLE_NAME, t.name)
	return nft.Message{Type: unix.NFT_MSG_DELTABLE, Body: a, About: "removal of table " + t.name}
}

// Erase removes the table, if there is one: all traffic is open then.
func (t *Table) Erase() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	have, err := t.read()
	if err != nil || have == nil {
		return err
	}
	return t.transact([]nft.Message{t.delTable()})
}
