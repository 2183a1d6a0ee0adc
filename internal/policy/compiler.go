// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Compiler keeps the Program of one node up to date with work proportional to what changed. It is not safe for
// concurrent use.
type Compiler struct {
	*Cluster
	node string

	program Program
	sets    map[string]*tracked[*Set]
	chains  map[string]*tracked[*Chain]
	scoped  map[string]map[string]*Set // mutable sets by their scope, then name
	named   map[string]*Set            // those of them that names matter to
	sources map[string]*Source         // by entry chain
	local   map[model.Name]*guard
	shared  map[string]*sharedBuilt

	pins      map[string]pin                      // by pod UID
	released  map[string]bool                     // UIDs of pods that the API still lists with addresses that are no longer theirs
	strangers map[model.Name]pin                  // wired pods that the API has not told of, by their ghost's name
	trusted   map[Member]struct{}                 // see Trust
	orphans   map[string]bool                     // UIDs of pods that are wired though the API has no longer got them
	parsed    map[*model.NetworkPolicy]*[2][]rule // what rulesOfPolicy says, by Direction, of those that select pods of this node

	change  *Change
	rewired map[string]bool         // links whose Egress chain may have changed in this Change
	alike   map[string]*sharedBuilt // what guards pods with the same labels, in this Change; see likeness
	garbage []*sharedBuilt          // given up in this Change; released at its end, so that what is still needed stays
}

// tracked is an object of the program with the number of builts that need it.
type tracked[T any] struct {
	v    T
	refs int
}

type sharedBuilt struct {
	*built
	key  string
	refs int
}

// guard is what a local pod holds of the program.
type guard struct {
	addrs           []netip.Addr
	link            string       // "" if it is not known
	ingress, egress *sharedBuilt // nil: open
}

// pin is what the CNI plugin told of a pod, ahead of the API server.
type pin struct {
	name  model.Name
	link  string
	addrs []netip.Addr
}

// pending is what a call has to look at anew before it is done.
type pending struct {
	rebuild map[model.Name]bool     // pods' guards
	recheck map[netip.Addr][]string // addresses, with the namespaces of the pods that had or have them
}

func newPending() *pending {
	return &pending{rebuild: map[model.Name]bool{}, recheck: map[netip.Addr][]string{}}
}

// NewCompiler returns the Compiler of the named node, with an empty Program.
func NewCompiler(node string) *Compiler {
	return &Compiler{
		Cluster:   NewCluster(),
		node:      node,
		program:   Program{Pods: map[netip.Addr]Entry{}, Links: map[string]string{}, Chains: map[string]*Chain{}, Sets: map[string]*Set{}},
		sets:      map[string]*tracked[*Set]{},
		chains:    map[string]*tracked[*Chain]{},
		scoped:    map[string]map[string]*Set{},
		named:     map[string]*Set{},
		sources:   map[string]*Source{},
		local:     map[model.Name]*guard{},
		shared:    map[string]*sharedBuilt{},
		pins:      map[string]pin{},
		released:  map[string]bool{},
		orphans:   map[string]bool{},
		parsed:    map[*model.NetworkPolicy]*[2][]rule{},
		trusted:   map[Member]struct{}{},
		strangers: map[model.Name]pin{},
		change:    newChange(),
		rewired:   map[string]bool{},
	}
}

func newChange() *Change {
	return &Change{
		Chains: map[string]*Chain{}, Sets: map[string]*Set{}, Gone: map[string]SetKind{},
		Members: map[string]*Members{}, Ports: map[string]*Ported{}, Pods: map[netip.Addr]EntryChange{}, Links: map[string]LinkChange{}, Tightened: map[netip.Addr]bool{},
	}
}

// Program is the program as a whole. It is the Compiler's own: read it only until the next call.
func (k *Compiler) Program() *Program { return &k.program }

// Source tells what policies a chain that drops stands for: a pod's entry chain, or one that denies for a
// ClusterNetworkPolicy; nil if it is neither.
func (k *Compiler) Source(chain string) *Source { return k.sources[chain] }

// Update takes over a Delta and returns how the Program changed.
func (k *Compiler) Update(d *model.Delta) *Change {
	w := newPending()
	// Policies and nodes first: pods are then judged once, by the newest of everything.
	rest := *d
	rest.Pods = nil
	for n := range d.Nodes {
		for _, node := range []*model.Node{k.nodes[n], d.Nodes[n]} {
			if node != nil {
				for _, a := range node.Addresses() {
					w.recheck[a] = append(w.recheck[a], "")
				}
			}
		}
	}
	concerned := map[string][]*model.NetworkPolicy{} // as they were and as they are, by namespace
	for n, np := range d.NetworkPolicies {
		delete(k.parsed, k.policies[n.Namespace][n.Name])
		for _, v := range []*model.NetworkPolicy{k.policies[n.Namespace][n.Name], np} {
			if v != nil {
				concerned[n.Namespace] = append(concerned[n.Namespace], v)
			}
		}
	}
	k.Apply(&rest)
	for n := range k.localPods() {
		p := k.pods[n]
		if p != nil && slices.ContainsFunc(concerned[n.Namespace], func(np *model.NetworkPolicy) bool { return np.PodSelector.Matches(p.Labels) }) {
			w.rebuild[n] = true
		}
	}
	if len(d.ClusterNetworkPolicies) > 0 {
		for p := range k.localPods() {
			w.rebuild[p] = true
		}
	}
	for ns := range d.Namespaces {
		for n, p := range k.podsIn[ns] {
			if _, ok := k.local[model.Name{Namespace: ns, Name: n}]; ok {
				w.rebuild[p.Name] = true
			}
			for _, a := range podAddrs(p) {
				w.recheck[a] = append(w.recheck[a], "")
			}
		}
	}
	for n, p := range d.Pods {
		k.takePod(n, p, w)
	}
	return k.finish(w)
}

// takePod replaces a pod as the API has it with what the CNI plugin knows better: a pod that is still wired stays,
// with its addresses, whatever the API says, because its processes may still run.
func (k *Compiler) takePod(n model.Name, p *model.Pod, w *pending) {
	old := k.pods[n]
	if old != nil && (p == nil || p.UID != old.UID) {
		if pin, ok := k.pins[old.UID]; ok && pin.name == n {
			if p == nil {
				k.orphans[old.UID] = true
				return
			}
			left := *old
			left.Name = ghostName(n, old.UID)
			k.place(left.Name, &left, w)
		}
	}
	if old != nil && (p == nil || p.UID != old.UID) {
		delete(k.released, old.UID)
	}
	if p != nil {
		p = k.asWired(p)
		k.dropStranger(ghostName(n, p.UID), w)
	}
	k.place(n, p, w)
}

// ghostName is a name that no pod of the API has, for a pod that is wired but not, or no longer, what the API has
// under its own name.
func ghostName(n model.Name, uid string) model.Name {
	return model.Name{Namespace: n.Namespace, Name: n.Name + "~" + uid}
}

// asWired is a pod with the addresses that it really has, where the CNI plugin told.
func (k *Compiler) asWired(p *model.Pod) *model.Pod {
	pin, wired := k.pins[p.UID]
	if !wired && !k.released[p.UID] {
		return p
	}
	with := *p
	with.IPs, with.Finished = pin.addrs, !wired
	if wired {
		with.Node = k.node
	}
	return &with
}

func (k *Compiler) place(n model.Name, p *model.Pod, w *pending) {
	spaces := []string{n.Namespace}
	for _, a := range k.setPod(n, p) {
		for _, q := range k.claims[a] {
			spaces = append(spaces, q.Namespace)
			w.rebuild[q.Name] = true // whose it is may have changed
		}
		w.recheck[a] = append(w.recheck[a], spaces...)
	}
	w.rebuild[n] = true
}

// Pin tells that a pod of this node is wired with these addresses by a link ("": its name is not known), which may be
// before the API has them. Until a pod with this UID has arrived, nothing may pass to or from them. Another pod that was
// pinned to one of them has lost it.
func (k *Compiler) Pin(n model.Name, uid, link string, addrs []netip.Addr) *Change {
	p := newPending()
	for other, old := range k.pins {
		if other != uid && slices.ContainsFunc(old.addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) }) {
			k.unpin(other, old.name, p)
		}
	}
	k.pins[uid] = pin{n, link, addrs}
	delete(k.released, uid)
	k.rewire(n, uid, p)
	return k.finish(p)
}

// Unpin tells that a pod is no longer wired with these addresses: they are free for others, whatever the API still
// says. It does nothing when the pod was wired anew, with others, in the meantime.
func (k *Compiler) Unpin(n model.Name, uid string, addrs []netip.Addr) *Change {
	p := newPending()
	if pin, ok := k.pins[uid]; !ok || slices.Equal(pin.addrs, addrs) {
		k.unpin(uid, n, p)
	}
	return k.finish(p)
}

func (k *Compiler) unpin(uid string, n model.Name, p *pending) {
	delete(k.pins, uid)
	k.released[uid] = true
	k.rewire(n, uid, p)
}

// rewire places a pod again by what is known of its wiring.
func (k *Compiler) rewire(n model.Name, uid string, p *pending) {
	pin, wired := k.pins[uid]
	ghost := ghostName(n, uid)
	k.dropStranger(ghost, p)
	switch pod := k.pods[n]; {
	case !wired && k.orphans[uid]:
		delete(k.orphans, uid)
		delete(k.released, uid)
		k.place(n, nil, p)
	case pod != nil && pod.UID == uid:
		k.place(n, k.asWired(pod), p)
	case k.pods[ghost] != nil && !wired:
		delete(k.released, uid)
		k.place(ghost, nil, p)
	case k.pods[ghost] == nil && wired:
		k.strangers[ghost] = pin
		k.disputed(pin.addrs, p)
	case !wired:
		delete(k.released, uid) // the API never told of it, or has forgotten it: nothing will bring its addresses back
	}
}

// dropStranger forgets a pod that was wired but unknown: it is known now, or gone.
func (k *Compiler) dropStranger(ghost model.Name, p *pending) {
	p.rebuild[ghost] = true
	k.disputed(k.strangers[ghost].addrs, p)
	delete(k.strangers, ghost)
}

// disputed has the pods that claim these addresses looked at anew.
func (k *Compiler) disputed(addrs []netip.Addr, p *pending) {
	for _, a := range addrs {
		for _, q := range k.claims[a] {
			p.rebuild[q.Name] = true
		}
	}
}

// strangerAt names the unknown pod that is wired with an address. It has it, whatever the API says of others.
func (k *Compiler) strangerAt(a netip.Addr) (model.Name, bool) {
	for n, pin := range k.strangers {
		if slices.Contains(pin.addrs, a) {
			return n, true
		}
	}
	return model.Name{}, false
}

func (k *Compiler) localPods() iter.Seq[model.Name] { return maps.Keys(k.local) }

func (k *Compiler) isLocal(p *model.Pod) bool {
	return p != nil && p.Node == k.node && len(podAddrs(p)) > 0
}

// ownAddrs are the addresses of a pod of this node that no younger pod has got in the meantime.
func (k *Compiler) ownAddrs(p *model.Pod) []netip.Addr {
	if !k.isLocal(p) {
		return nil
	}
	var out []netip.Addr
	for _, a := range podAddrs(p) {
		if _, other := k.strangerAt(a); !other && k.owner(a) == p {
			out = append(out, a)
		}
	}
	return out
}

// finish rebuilds these pods' guards, checks these addresses against the sets, and hands out the Change.
func (k *Compiler) finish(w *pending) *Change {
	for a, spaces := range w.recheck {
		k.recheckAddr(a, spaces)
	}
	k.alike = map[string]*sharedBuilt{}
	for n := range w.rebuild {
		k.rebuildPod(n)
	}
	k.alike = nil
	k.noteLinks()
	for _, s := range k.garbage {
		k.release(s)
	}
	k.garbage = nil
	k.noteAsking()
	k.noteTightened()
	return k.handOut()
}

// handOut is the Change, with which the next one begins.
func (k *Compiler) handOut() *Change {
	out := k.change
	k.change = newChange()
	return out
}

// recheckAddr brings every set that could hold the address to what the address is now.
func (k *Compiler) recheckAddr(a netip.Addr, spaces []string) {
	e := k.EndpointOf(a)
	slices.Sort(spaces)
	for _, scope := range slices.Compact(append([]string{""}, spaces...)) {
		for _, s := range k.scoped[scope] {
			k.recheckMember(s, e)
		}
	}
}

func (k *Compiler) recheckMember(s *Set, e Endpoint) {
	want := s.wants(e)
	for _, m := range k.membersOf(s, e.Addr) {
		if !slices.Contains(want, m) {
			delete(s.Members, m)
			k.note(s, m, false)
		}
	}
	for _, m := range want {
		if _, ok := s.Members[m]; !ok {
			s.Members[m] = struct{}{}
			k.note(s, m, true)
		}
	}
}

// membersOf are a set's members with an address.
func (k *Compiler) membersOf(s *Set, a netip.Addr) []Member {
	if s.Kind == Addrs {
		if _, ok := s.Members[Member{Addr: a}]; ok {
			return []Member{{Addr: a}}
		}
		return nil
	}
	var out []Member
	for m := range s.Members {
		if m.Addr == a {
			out = append(out, m)
		}
	}
	return out
}

// note writes a member's coming or going into the Change, unless the whole set is new in it.
func (k *Compiler) note(s *Set, m Member, add bool) {
	if k.change.Sets[s.Name] != nil {
		return
	}
	c := k.change.Members[s.Name]
	if c == nil {
		c = &Members{Kind: s.Kind, Add: map[Member]struct{}{}, Del: map[Member]struct{}{}}
		k.change.Members[s.Name] = c
	}
	to, from := c.Add, c.Del
	if !add {
		to, from = from, to
	}
	if _, ok := from[m]; ok {
		delete(from, m)
	} else {
		to[m] = struct{}{}
	}
}

// rebuildPod brings a pod's guard to what its policies are now.
func (k *Compiler) rebuildPod(n model.Name) {
	p := k.pods[n]
	old := k.local[n]
	var now *guard
	if addrs := k.ownAddrs(p); len(addrs) > 0 {
		now = &guard{addrs, k.pins[p.UID].link, k.acquire(Ingress, p), k.acquire(Egress, p)}
	} else if pin := k.strangers[n]; len(pin.addrs) > 0 {
		now = &guard{pin.addrs, pin.link, k.closed(Ingress), k.closed(Egress)}
	}
	for _, g := range []*guard{old, now} {
		if g != nil && g.link != "" {
			k.rewired[g.link] = true
		}
	}
	if old != nil {
		for _, a := range old.addrs {
			if (now == nil || !slices.Contains(now.addrs, a)) && !k.ownedByOther(a, n) {
				k.setEntry(a, Entry{})
			}
		}
	}
	if now == nil {
		delete(k.local, n)
	} else {
		k.local[n] = now
		e := Entry{now.ingress.entry(), now.egress.entry()}
		for _, a := range now.addrs {
			k.setEntry(a, e)
		}
	}
	if old != nil {
		k.garbage = append(k.garbage, old.ingress, old.egress)
	}
}

// noteLinks brings the links of the guards that were rebuilt to what they are now.
func (k *Compiler) noteLinks() {
	if len(k.rewired) == 0 {
		return
	}
	now := map[string]string{}
	for _, g := range k.local {
		if k.rewired[g.link] {
			now[g.link] = g.egress.entry()
		}
	}
	for link := range k.rewired {
		if old := k.program.Links[link]; old != now[link] {
			k.change.Links[link] = LinkChange{old, now[link]}
			if k.program.Links[link] = now[link]; now[link] == "" {
				delete(k.program.Links, link)
			}
		}
	}
	clear(k.rewired)
}

// ownedByOther tells whether an address has passed to another local pod, whose own rebuild sets its entry.
func (k *Compiler) ownedByOther(a netip.Addr, n model.Name) bool {
	if s, ok := k.strangerAt(a); ok {
		return s != n
	}
	p := k.owner(a)
	return p != nil && p.Name != n && k.isLocal(p)
}

func (s *sharedBuilt) entry() string {
	if s == nil {
		return ""
	}
	return s.chain
}

func (k *Compiler) setEntry(a netip.Addr, e Entry) {
	old := k.program.Pods[a]
	if old == e {
		return
	}
	if e == (Entry{}) {
		delete(k.program.Pods, a)
	} else {
		k.program.Pods[a] = e
		k.change.Tightened[a] = true
	}
	first := old
	if c, ok := k.change.Pods[a]; ok {
		first = c.Old
	}
	k.change.Pods[a] = EntryChange{first, e}
}

// acquire returns what guards a pod's direction, built anew or shared; nil if nothing does.
func (k *Compiler) acquire(d Direction, p *model.Pod) *sharedBuilt {
	like := likeness(d, p)
	s, known := k.alike[like]
	if !known {
		s = k.share(d, p)
		k.alike[like] = s
	}
	if s != nil {
		s.refs++
	}
	return s
}

// likeness is equal for pods that the same policies select, and for whom they mean the same: the copies of a workload.
func likeness(d Direction, p *model.Pod) string {
	var b strings.Builder
	b.WriteByte('0' + byte(d))
	b.WriteString(p.Namespace)
	for _, key := range sortedKeys(p.Labels) {
		b.WriteString("\n" + key + "=" + p.Labels[key])
	}
	b.WriteByte('\n')
	writePorts(&b, d, p)
	return b.String()
}

// share finds what guards a pod's direction, or builds it; nil if nothing does.
func (k *Compiler) share(d Direction, p *model.Pod) *sharedBuilt {
	admin, nps := k.subjectOf(k.admin, p, d), k.selecting(p, d)
	var baseline []*model.ClusterNetworkPolicy
	if len(nps) == 0 {
		baseline = k.subjectOf(k.baseline, p, d)
	}
	if len(admin)+len(nps)+len(baseline) == 0 {
		return nil
	}
	key := shareKey(d, p, admin, nps, baseline)
	s := k.shared[key]
	if s == nil {
		s = &sharedBuilt{built: k.build(d, p, admin, nps, baseline, k.rules), key: key}
		k.shared[key] = s
		k.hold(s.built)
	}
	return s
}

// rules are a policy's rules of a direction, put together once.
func (k *Compiler) rules(np *model.NetworkPolicy, d Direction) []rule {
	of := k.parsed[np]
	if of == nil {
		of = &[2][]rule{}
		k.parsed[np] = of
	}
	if of[d] == nil {
		of[d] = rulesOfPolicy(np, d)
	}
	return of[d]
}

// closed is what guards a wired pod that nothing is known of.
func (k *Compiler) closed(d Direction) *sharedBuilt {
	key := "closed " + d.String()
	s := k.shared[key]
	if s == nil {
		b := &builder{c: k.Cluster, d: d, out: &built{source: Source{Direction: d}}}
		b.out.chain = b.entryChain([]Rule{{Op: Drop}}, "unknown-pod", nil)
		s = &sharedBuilt{built: b.out, key: key}
		k.shared[key] = s
		k.hold(b.out)
	}
	s.refs++
	return s
}

// shareKey is equal for pods whose direction is guarded by the same rules. Policies are values: one that changed is
// another pointer.
func shareKey(d Direction, p *model.Pod, admin []*model.ClusterNetworkPolicy, nps []*model.NetworkPolicy, baseline []*model.ClusterNetworkPolicy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", d)
	for _, tier := range [][]*model.ClusterNetworkPolicy{admin, baseline} {
		for _, cnp := range tier {
			fmt.Fprintf(&b, " %p", cnp)
		}
		b.WriteByte('|')
	}
	for _, np := range nps {
		fmt.Fprintf(&b, " %p", np)
	}
	b.WriteString("|" + p.Namespace)
	writePorts(&b, d, p)
	return b.String()
}

// writePorts writes the names of a pod's ports, which matter to those who talk to it.
func writePorts(b *strings.Builder, d Direction, p *model.Pod) {
	if d == Ingress {
		ports := make([]string, 0, len(p.Ports))
		for _, cp := range p.Ports {
			if cp.Name != "" {
				ports = append(ports, fmt.Sprintf("|%s=%d/%d", cp.Name, cp.Protocol, cp.Port))
			}
		}
		slices.Sort(ports)
		b.WriteString(strings.Join(ports, ""))
	}
}

// hold adds a built's objects to the program.
func (k *Compiler) hold(b *built) {
	for _, s := range b.sets {
		if t := k.sets[s.Name]; t != nil {
			t.refs++
			if s.Kind == PortMap {
				k.editPorts(t.v, s.Ports)
			}
			continue
		}
		k.sets[s.Name] = &tracked[*Set]{s, 1}
		k.addSet(s)
	}
	for _, c := range b.chains {
		if t := k.chains[c.Name]; t != nil {
			t.refs++
			continue
		}
		k.chains[c.Name] = &tracked[*Chain]{c, 1}
		k.program.Chains[c.Name] = c
		k.change.Chains[c.Name] = c
	}
	k.sources[b.chain] = &b.source
	for c, s := range b.denies {
		k.sources[c] = &s
	}
}

// editPorts gives a PortMap of the same policies what they say now.
func (k *Compiler) editPorts(s *Set, now []PortRange) {
	if k.change.Sets[s.Name] == nil {
		c := k.change.Ports[s.Name]
		if c == nil {
			c = &Ported{Direction: s.Direction, old: s.Ports}
		}
		c.Add, c.Del = comparePorts(c.old, now)
		if k.change.Ports[s.Name] = c; len(c.Add)+len(c.Del) == 0 {
			delete(k.change.Ports, s.Name)
		}
	}
	s.Ports = now
}

func (k *Compiler) addSet(s *Set) {
	k.program.Sets[s.Name] = s
	k.change.Sets[s.Name] = s
	if !s.Mutable() {
		return
	}
	put2(k.scoped, s.scope, s.Name, s)
	if s.names {
		k.named[s.Name] = s
	}
	s.Members = map[Member]struct{}{}
	fill := func(p *model.Pod) {
		for _, a := range podAddrs(p) {
			if k.owner(a) == p {
				for _, m := range s.wants(Endpoint{Addr: a, Pod: p, Node: k.nodeAddrs[a]}) {
					s.Members[m] = struct{}{}
				}
			}
		}
	}
	if s.scope != "" {
		for _, p := range k.podsIn[s.scope] {
			fill(p)
		}
		return
	}
	for ns, pods := range k.podsIn {
		if s.terms != nil && !k.mayHold(s, ns) {
			continue
		}
		for _, p := range pods {
			fill(p)
		}
	}
	if s.names {
		for a := range k.names.live {
			for _, m := range s.wants(k.EndpointOf(a)) {
				s.Members[m] = struct{}{}
			}
		}
	}
	if s.nodes {
		for a := range k.nodeAddrs {
			for _, m := range s.wants(k.EndpointOf(a)) {
				s.Members[m] = struct{}{}
			}
		}
	}
}

// mayHold tells whether pods of a namespace can be members of a set.
func (k *Compiler) mayHold(s *Set, namespace string) bool {
	return slices.ContainsFunc(s.terms, func(t term) bool {
		switch {
		case t.kind != ofPods:
			return t.kind == ofBlock
		case t.namespace != "":
			return t.namespace == namespace
		}
		return len(t.nsSel) == 0 || t.nsSel.Matches(k.namespaceLabels(namespace))
	})
}

func (k *Compiler) release(s *sharedBuilt) {
	if s == nil {
		return
	}
	if s.refs--; s.refs > 0 {
		return
	}
	delete(k.shared, s.key)
	for _, set := range s.sets {
		if t := k.sets[set.Name]; t.refs > 1 {
			t.refs--
			continue
		}
		delete(k.sets, set.Name)
		delete(k.program.Sets, set.Name)
		delete(k.change.Members, set.Name)
		delete(k.change.Ports, set.Name)
		put2[Set](k.scoped, set.scope, set.Name, nil)
		delete(k.named, set.Name)
		k.change.Gone[set.Name] = set.Kind
	}
	for _, c := range s.chains {
		if t := k.chains[c.Name]; t.refs > 1 {
			t.refs--
			continue
		}
		delete(k.chains, c.Name)
		delete(k.program.Chains, c.Name)
		k.change.Chains[c.Name] = nil
		delete(k.sources, c.Name)
	}
}

// noteTightened adds the pods that a set's loss of members concerns: those whose chains look into it.
func (k *Compiler) noteTightened() {
	lost := map[string]bool{}
	for n, m := range k.change.Members {
		if len(m.Del) > 0 || k.inTier(n) {
			lost[n] = true
		}
	}
	for n, p := range k.change.Ports {
		if len(p.Del) > 0 {
			lost[n] = true
		}
	}
	if len(lost) == 0 {
		return
	}
	for _, g := range k.local {
		for _, s := range []*sharedBuilt{g.ingress, g.egress} {
			if s != nil && slices.ContainsFunc(s.sets, func(set *Set) bool { return lost[set.Name] }) {
				for _, a := range g.addrs {
					k.change.Tightened[a] = true
				}
			}
		}
	}
}

// inTier tells whether a set may belong to a Deny or Pass rule, so that gaining a member tightens too.
func (k *Compiler) inTier(string) bool { return len(k.cluster) > 0 }

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }
