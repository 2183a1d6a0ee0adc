// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// Options say which Services are weft's to serve.
type Options struct {
	// Class is the spec.loadBalancerClass that is weft's.
	Class string

	// Unclassed serves Services without a spec.loadBalancerClass too: weft is the cluster's default.
	Unclassed bool
}

// Ours tells whether the Service is a load balancer that weft serves.
func (o Options) Ours(s *model.Service) bool {
	if s.Type != model.LoadBalancer || s.Deleting || s.OtherProxy() {
		return false
	}
	if s.LoadBalancer.Class == "" {
		return o.Unclassed
	}
	return s.LoadBalancer.Class == o.Class
}

// Allocator gives LoadBalancer Services their addresses, following the cluster Delta by Delta.
//
//   - An address that a Service has, it keeps, as long as a pool that admits the Service holds it and nobody who had
//     it first objects. What a Service has is read from its status when the Allocator first sees it, for all
//     Services of a Delta before any new address is given.
//   - A wish that can't be met (an address that is taken, a pool that is full) does not cost a Service the address
//     that it has.
//   - Who is to have an address that two want is decided by age, then by name.
//   - A Service without a class that has an address from elsewhere is left alone; see alien.
//
// It is not safe for concurrent use.
type Allocator struct {
	opts       Options
	pools      map[string]*pool
	order      []*pool // see judge
	namespaces map[string]map[string]string
	services   map[model.Name]*entry
	holders    map[netip.Addr]*holder
	shared     map[string]map[netip.Addr]bool // share key -> addresses held with it
	waiting    map[model.Name]bool            // Services that might get more if something is freed
	used       map[string]*[2]int64           // pool -> addresses held, IPv4 and IPv6
	reserved   map[netip.Addr][]string        // not to be given away: who has it, "Node n1", "Service a/b"
	reservedBy map[string][]netip.Addr        // the same, by who
	reported   map[string]PoolStatus
	inUse      map[string][]model.AddressRange // the cluster's own ranges, by what has them: "pods of Node n1"
}

// entry is one Service of ours.
type entry struct {
	svc     *model.Service
	req     request
	bad     Problem // of reading req
	held    pair
	problem Problem
	alien   bool // another controller's: see alien
}

// holder is who has an address.
type holder struct {
	pool     string
	services map[model.Name]*entry
	ports    map[port]model.Name
}

// New returns an Allocator that knows of nothing yet.
func New(opts Options) *Allocator {
	return &Allocator{
		opts:       opts,
		pools:      make(map[string]*pool),
		namespaces: make(map[string]map[string]string),
		services:   make(map[model.Name]*entry),
		holders:    make(map[netip.Addr]*holder),
		shared:     make(map[string]map[netip.Addr]bool),
		waiting:    make(map[model.Name]bool),
		used:       make(map[string]*[2]int64),
		reserved:   make(map[netip.Addr][]string),
		reservedBy: make(map[string][]netip.Addr),
		reported:   make(map[string]PoolStatus),
		inUse:      make(map[string][]model.AddressRange),
	}
}

// Result is what a Delta changed.
type Result struct {
	Services map[model.Name]Decision // each Service that changed, or whose Decision did
	Pools    map[string]PoolStatus   // each pool whose status changed
	Events   []model.Event
}

// Apply takes in what changed. The first Delta must be the whole state (Delta.Complete). It reads Services, Nodes,
// Namespaces and AddressPools.
func (a *Allocator) Apply(d *model.Delta) *Result {
	r := &Result{Services: make(map[model.Name]Decision), Pools: make(map[string]PoolStatus)}
	again, eased := a.takeIn(d)
	before := make(map[model.Name]pair)
	var known, fresh []model.Name
	for name, s := range d.Services {
		e := a.services[name]
		if s == nil || !a.opts.Ours(s) {
			eased = a.forget(name) || eased
			if s != nil && (e != nil || s.Annotations[AllocatedAnnotation] != "" || s.AddressCondition != nil) {
				r.Services[name] = Decision{}
			}
			continue
		}
		if e != nil && e.svc.UID != s.UID { // deleted and created again between two Deltas
			a.forget(name)
			e = nil
		}
		req, bad := requestOf(s)
		if e == nil {
			a.services[name] = &entry{svc: s, req: req, bad: bad}
			fresh = append(fresh, name)
			continue
		}
		if !e.req.equal(&req) || !maps.Equal(e.svc.Labels, s.Labels) {
			again[name] = true
			eased = true
		}
		e.svc, e.bad = s, bad
		before[name] = e.held
		a.letGo(name, e)
		e.req = req
		known = append(known, name)
	}
	for name := range again {
		if e := a.services[name]; e != nil {
			if _, ok := before[name]; !ok {
				before[name] = e.held
				a.letGo(name, e)
				known = append(known, name)
			}
		}
	}
	a.byAge(known)
	a.byAge(fresh)
	lost := make(map[model.Name]Problem)
	for _, name := range known {
		e, had := a.services[name], before[name].all()
		if e.alien {
			had = statusAddrs(e.svc)
		}
		lost[name] = a.keep(name, e, had)
	}
	for _, name := range fresh {
		lost[name] = a.keep(name, a.services[name], statusAddrs(a.services[name].svc))
		before[name] = a.services[name].held
	}
	todo := slices.Concat(known, fresh)
	if eased {
		for name := range a.waiting {
			if _, ok := before[name]; !ok {
				before[name] = a.services[name].held
				todo = append(todo, name)
			}
		}
		a.byAge(todo)
	}
	for _, name := range todo {
		e := a.services[name]
		was := e.problem
		a.fill(name, e)
		if why, changed := lost[name]; changed || e.held != before[name] || e.problem != was {
			a.tell(r, name, e, before[name], why, was)
		}
	}
	a.report(r)
	return r
}

// takeIn notes pools, namespaces, nodes and other Services' addresses. It names the Services of ours that have to be
// looked at again because of them, and tells whether those that wait for something may find it now.
func (a *Allocator) takeIn(d *model.Delta) (again map[model.Name]bool, eased bool) {
	again = make(map[model.Name]bool)
	rejudge := len(d.AddressPools) > 0
	for name, n := range d.Nodes {
		var addrs []netip.Addr
		if n != nil {
			addrs = slices.Concat(n.InternalIPs, n.ExternalIPs)
		}
		eased = a.reserve("Node "+name, addrs) || eased
		var pods []netip.Prefix
		if n != nil {
			pods = n.PodCIDRs
		}
		rejudge = a.uses("the pods of Node "+name, pods) || rejudge
	}
	for name, c := range d.ServiceCIDRs {
		var ranges []netip.Prefix
		if c != nil {
			ranges = c.CIDRs
		}
		rejudge = a.uses("cluster IPs, by ServiceCIDR "+name, ranges) || rejudge
	}
	for name, s := range d.Services {
		eased = a.reserve("Service "+name.String(), a.foreign(s)) || eased
	}
	for name, n := range d.Namespaces {
		var labels map[string]string
		if n != nil {
			labels = n.Labels
		}
		if maps.Equal(a.namespaces[name], labels) {
			continue
		}
		if n == nil {
			delete(a.namespaces, name)
		} else {
			a.namespaces[name] = labels
		}
		if slices.ContainsFunc(a.order, func(p *pool) bool { return p.NamespaceSelector != nil }) {
			for s := range a.services {
				if s.Namespace == name {
					again[s] = true
				}
			}
		}
	}
	if rejudge {
		a.repool(d.AddressPools)
		for s := range a.services {
			again[s] = true
		}
		eased = true
	}
	return again, eased || len(again) > 0
}

// repool takes in pools. All are made anew: whether one is accepted depends on the others.
func (a *Allocator) repool(changed map[string]*model.AddressPool) {
	pools := make(map[string]*pool, len(a.pools)+len(changed))
	for name, p := range a.pools {
		pools[name] = newPool(p.AddressPool)
	}
	for name, p := range changed {
		if p == nil {
			delete(pools, name)
			continue
		}
		pools[name] = newPool(p)
	}
	a.pools, a.order = pools, judge(pools, a.inUse)
}

// uses notes which ranges are the cluster's own, for what, and tells whether some pool is to be judged anew for that.
func (a *Allocator) uses(what string, prefixes []netip.Prefix) (rejudge bool) {
	var ranges []model.AddressRange
	for _, p := range prefixes {
		ranges = append(ranges, model.RangeOf(p))
	}
	old := a.inUse[what]
	if slices.Equal(old, ranges) {
		return false
	}
	if len(ranges) == 0 {
		delete(a.inUse, what)
	} else {
		a.inUse[what] = ranges
	}
	for _, p := range a.pools {
		for _, r := range slices.Concat(old, ranges) {
			if _, ok := p.overlaps(r); ok {
				return true
			}
		}
	}
	return false
}

// foreign is the addresses that a Service has from elsewhere, which must not be given to another.
func (a *Allocator) foreign(s *model.Service) []netip.Addr {
	if s == nil {
		return nil
	}
	out := slices.Clone(s.ExternalIPs)
	if s.Type == model.LoadBalancer && !s.Deleting && !a.opts.Ours(s) {
		out = append(out, statusAddrs(s)...)
	}
	return out
}

func statusAddrs(s *model.Service) []netip.Addr {
	var out []netip.Addr
	for _, in := range s.Ingress {
		if in.IP.IsValid() {
			out = append(out, in.IP)
		}
	}
	return out
}

// reserve notes that these addresses, and no others, are who's, and tells whether that is news.
func (a *Allocator) reserve(who string, addrs []netip.Addr) bool {
	if slices.Equal(a.reservedBy[who], addrs) {
		return false
	}
	for _, x := range a.reservedBy[who] {
		if i := slices.Index(a.reserved[x], who); i >= 0 {
			a.reserved[x] = slices.Delete(a.reserved[x], i, i+1)
		}
		if len(a.reserved[x]) == 0 {
			delete(a.reserved, x)
			a.freed(x)
		}
	}
	if len(addrs) == 0 {
		delete(a.reservedBy, who)
		return true
	}
	a.reservedBy[who] = addrs
	for _, x := range addrs {
		a.reserved[x] = append(a.reserved[x], who)
	}
	return true
}

func (a *Allocator) freed(x netip.Addr) {
	for _, p := range a.order {
		p.freed(x)
	}
}

// byAge sorts Services the oldest first.
func (a *Allocator) byAge(names []model.Name) {
	slices.SortFunc(names, func(x, y model.Name) int {
		return cmp.Or(cmp.Compare(a.services[x].svc.Created, a.services[y].svc.Created), x.Compare(y))
	})
}

// alien tells whether another controller serves the Service: it has a status that weft did not write, with no address
// of weft's pools, and neither a class nor an annotation turns to weft. Two controllers would overwrite each other's
// status for ever.
func (a *Allocator) alien(s *model.Service) bool {
	if s.LoadBalancer.Class != "" || len(s.Ingress) == 0 {
		return false
	}
	for _, key := range []string{AllocatedAnnotation, RequestAnnotation, PoolAnnotation, ShareAnnotation} {
		if s.Annotations[key] != "" {
			return false
		}
	}
	for _, x := range statusAddrs(s) {
		if slices.ContainsFunc(a.order, func(p *pool) bool { return p.contains(x) }) {
			return false
		}
	}
	return true
}

// forget drops a Service and tells whether it was known.
func (a *Allocator) forget(name model.Name) bool {
	e := a.services[name]
	if e == nil {
		return false
	}
	a.letGo(name, e)
	delete(a.services, name)
	delete(a.waiting, name)
	return true
}

// letGo takes all of its addresses from a Service.
func (a *Allocator) letGo(name model.Name, e *entry) {
	for _, x := range e.held.all() {
		a.drop(name, e, x)
	}
}

func (a *Allocator) drop(name model.Name, e *entry, x netip.Addr) {
	*e.held.of(model.FamilyOf(x)) = netip.Addr{}
	h := a.holders[x]
	delete(h.services, name)
	for _, p := range e.req.ports {
		if h.ports[p] == name {
			delete(h.ports, p)
		}
	}
	if len(h.services) > 0 {
		return
	}
	delete(a.holders, x)
	if in := a.shared[e.req.share]; in != nil {
		if delete(in, x); len(in) == 0 {
			delete(a.shared, e.req.share)
		}
	}
	a.used[h.pool][index(x)]--
	a.freed(x)
}

// take gives a Service an address that usable allows it.
func (a *Allocator) take(name model.Name, e *entry, x netip.Addr, p *pool) {
	if old := *e.held.of(model.FamilyOf(x)); old.IsValid() {
		a.drop(name, e, old)
	}
	*e.held.of(model.FamilyOf(x)) = x
	h := a.holders[x]
	if h == nil {
		h = &holder{pool: p.Name.Name, services: make(map[model.Name]*entry), ports: make(map[port]model.Name)}
		a.holders[x] = h
		if a.used[h.pool] == nil {
			a.used[h.pool] = new([2]int64)
		}
		a.used[h.pool][index(x)]++
		if e.req.share != "" {
			if a.shared[e.req.share] == nil {
				a.shared[e.req.share] = make(map[netip.Addr]bool)
			}
			a.shared[e.req.share][x] = true
		}
	}
	h.services[name] = e
	for _, p := range e.req.ports {
		h.ports[p] = name
	}
}

func index(x netip.Addr) int {
	if x.Is4() {
		return 0
	}
	return 1
}
