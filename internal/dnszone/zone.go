// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// PodNames says which names under pod.<domain> exist.
type PodNames uint8

// The modes of pod names.
const (
	// PodsInsecure answers for any address in a namespace that exists, as kube-dns did and clusters are set up.
	PodsInsecure PodNames = iota
	// PodsVerified answers where a pod of that namespace has that address. It needs Pods in the Deltas.
	PodsVerified
	// PodsDisabled has no pod names.
	PodsDisabled
)

// Options are what a Zone is made with. The zero value of each field is the default.
type Options struct {
	Domain      string        // the cluster's; "cluster.local"
	TTL         time.Duration // of all records; 5 s. NoTTL is 0 s.
	NegativeTTL time.Duration // how long a "no" may be kept (RFC 2308); TTL. NoTTL is 0 s.
	Pods        PodNames

	// Reverse are the ranges whose reverse names are the cluster's alone: an address that nobody has is NXDOMAIN.
	// Outside of them it is NotMine.
	Reverse []netip.Prefix

	// Self are this server's own addresses. The zone's name server is ns.dns.<domain>: at the ClusterIPs of the
	// Service that these are endpoints of, else at these themselves.
	Self []netip.Addr

	// YieldNames and YieldZones (these with all that is below them) are the operator's to have answered elsewhere where
	// the cluster has no such name: they are NotMine then, not NXDOMAIN.
	YieldNames, YieldZones []string

	EndpointPodNames    bool     // endpoints without a hostname are named by their pod, not by their address
	IgnoreEmptyServices bool     // a Service without a ready endpoint does not exist
	Namespaces          []string // only these exist; empty: all

	ttl, negative uint32 // seconds
}

func (o *Options) fill() error {
	o.Domain = cmp.Or(strings.ToLower(strings.TrimSuffix(o.Domain, ".")), "cluster.local")
	if o.TTL == 0 {
		o.TTL = 5 * time.Second
	}
	if o.NegativeTTL == 0 {
		o.NegativeTTL = o.TTL
	}
	for _, t := range []*time.Duration{&o.TTL, &o.NegativeTTL} {
		if *t == NoTTL {
			*t = 0
		}
	}
	for _, t := range []time.Duration{o.TTL, o.NegativeTTL} {
		if t < 0 || t > maxTTL {
			return fmt.Errorf("TTL %s: must be between 0 and %s", t, maxTTL)
		}
	}
	o.ttl, o.negative = uint32(o.TTL/time.Second), uint32(o.NegativeTTL/time.Second)
	return nil
}

// NoTTL is a TTL of nothing: answers are not to be kept at all.
const NoTTL = time.Duration(-1)

// maxTTL bounds how long a mistake stays in others' caches.
const maxTTL = 24 * time.Hour

// Zone holds the cluster's names: <domain> and the reverse trees.
type Zone struct {
	o          Options
	apex       string // the domain on the wire
	apexLabels int
	svcApex    string // that of the Services' names: svc.<domain> on the wire
	soa        []byte // the SOA record but for its owner and serial; see appendSOA
	yields     *yields

	// What readers see.
	services   *table[service, *service]
	namespaces *table[namespace, *namespace]
	addresses  *table[owner, *owner]     // whose endpoint or ClusterIP an address is
	pods       *table[podNode, *podNode] // whose an address is
	complete   atomic.Bool
	serial     atomic.Uint32

	// The writer's own.
	origins map[model.Name]*origin
	sliced  map[model.Name]*model.EndpointSlice
	podded  map[model.Name]*model.Pod
	spaces  map[string]*space
}

// origin is where a Service's names come from.
type origin struct {
	svc    *model.Service // nil: slices without their Service
	slices []*model.EndpointSlice
	cell   *cell
}

// cell is what refers to a Service's names by whatever they are at the time; nil is none.
type cell struct{ atomic.Pointer[service] }

// space counts what makes a namespace exist.
type space struct {
	object   *model.Namespace
	services int
}

// namespace marks that a namespace exists.
type namespace struct{ name string } // a label on the wire

func (n *namespace) is(key []byte) bool { return n.name == string(key) }

// owner is one of the Services that an address belongs to, the others behind it.
type owner struct {
	addr [16]byte
	svc  *cell
	next *owner
	vip  bool // the address is the Service's ClusterIP
}

func (o *owner) is(key []byte) bool { return string(o.addr[:]) == string(key) }

// podNode is one of the namespaces with a pod that has an address.
type podNode struct {
	addr      [16]byte
	namespace string
	next      *podNode
}

func (p *podNode) is(key []byte) bool { return string(p.addr[:]) == string(key) }

// New makes an empty zone. Until it has seen a complete Delta, names that it does not know are NotReady.
func New(o Options) (*Zone, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	apex, err := packLower(o.Domain)
	if err != nil {
		return nil, fmt.Errorf("cluster domain: %w", err)
	}
	z := &Zone{
		o: o, apex: apex, apexLabels: countLabels(apex), svcApex: "\x03svc" + apex,
		services: newTable[service](), namespaces: newTable[namespace](),
		addresses: newTable[owner](), pods: newTable[podNode](),
		origins: make(map[model.Name]*origin), sliced: make(map[model.Name]*model.EndpointSlice),
		podded: make(map[model.Name]*model.Pod), spaces: make(map[string]*space),
	}
	z.soa = z.makeSOA()
	if z.yields, err = newYields(&z.o, apex); err != nil {
		return nil, err
	}
	return z, nil
}

// yields is what a zone leaves to others where it has no such name itself.
type yields struct {
	names map[string]bool // on the wire, in lower case
	zones []yieldZone
}

type yieldZone struct {
	apex   string
	labels int
}

// newYields reads the options, as far as they are about the zone's own names; nil is nothing.
func newYields(o *Options, apex string) (*yields, error) {
	y := &yields{names: make(map[string]bool)}
	mine := func(name string) (w string, ok bool, err error) {
		if w, err = packLower(name); err != nil {
			return "", false, err
		}
		var q Question
		q.Read([]byte(w))
		for _, tree := range []string{apex, inAddrArpa, ip6Arpa} {
			ok = ok || q.Under(tree, countLabels(tree))
		}
		return w, ok, nil
	}
	for _, name := range o.YieldNames {
		w, ok, err := mine(name)
		if err != nil {
			return nil, err
		}
		if ok {
			y.names[w] = true
		}
	}
	for _, name := range o.YieldZones {
		w, ok, err := mine(name)
		if err != nil {
			return nil, err
		}
		if ok {
			y.zones = append(y.zones, yieldZone{w, countLabels(w)})
		}
	}
	if len(y.names)+len(y.zones) == 0 {
		return nil, nil
	}
	return y, nil
}

func (y *yields) has(q *Question) bool {
	for _, z := range y.zones {
		if _, ok := q.under(z.apex, z.labels); ok {
			return true
		}
	}
	return y.names[string(q.Wire())]
}

// Domain is the cluster's domain, without a trailing dot.
func (z *Zone) Domain() string { return z.o.Domain }

// Rebuild makes a zone with other options from what z has been told. z stays as it is.
func (z *Zone) Rebuild(o Options) (*Zone, error) {
	n, err := New(o)
	if err != nil {
		return nil, err
	}
	n.Update(z.Snapshot())
	return n, nil
}

// Services is how many Services have names.
func (z *Zone) Services() int { return z.services.live }

// Addresses is how many addresses have reverse names.
func (z *Zone) Addresses() int { return z.addresses.live }

// Update takes what changed. Readers see each Service's names change at once.
func (z *Zone) Update(d *model.Delta) {
	for name, ns := range d.Namespaces {
		z.space(name, func(s *space) { s.object = ns })
	}
	for name, p := range d.Pods {
		z.setPod(name, p)
	}
	touched := make(map[model.Name]bool, len(d.Services)+len(d.EndpointSlices))
	for name, s := range d.Services {
		z.setService(name, s)
		touched[name] = true
	}
	for name, s := range d.EndpointSlices {
		if old := z.sliced[name]; old != nil {
			of := model.Name{Namespace: name.Namespace, Name: old.Service}
			z.dropSlice(of, old)
			touched[of] = true
		}
		if s == nil || s.Service == "" {
			delete(z.sliced, name)
			continue
		}
		z.sliced[name] = s
		of := model.Name{Namespace: name.Namespace, Name: s.Service}
		or := z.origin(of)
		or.slices = append(or.slices, s)
		touched[of] = true
	}
	for name := range touched {
		z.publish(name)
	}
	if d.Complete {
		z.complete.Store(true)
	}
	if !d.Since.IsZero() {
		z.serial.Store(max(z.serial.Load(), uint32(d.Since.Unix())))
	}
}

func (z *Zone) origin(name model.Name) *origin {
	or := z.origins[name]
	if or == nil {
		or = &origin{}
		z.origins[name] = or
	}
	return or
}

func (z *Zone) setService(name model.Name, s *model.Service) {
	or := z.origin(name)
	if (or.svc == nil) != (s == nil) {
		n := 1
		if s == nil {
			n = -1
		}
		z.space(name.Namespace, func(sp *space) { sp.services += n })
	}
	or.svc = s
}

func (z *Zone) dropSlice(of model.Name, s *model.EndpointSlice) {
	if or := z.origins[of]; or != nil {
		or.slices = slices.DeleteFunc(or.slices, func(o *model.EndpointSlice) bool { return o == s })
	}
}

// space changes a namespace's count and has the namespace exist or not accordingly.
func (z *Zone) space(name string, change func(*space)) {
	sp := z.spaces[name]
	if sp == nil {
		sp = &space{}
		z.spaces[name] = sp
	}
	change(sp)
	key, ok := labelKey(name)
	if !ok {
		return
	}
	if sp.object == nil && sp.services == 0 {
		delete(z.spaces, name)
		z.namespaces.set([]byte(key), nil)
		return
	}
	if z.exposed(name) {
		z.namespaces.set([]byte(key), &namespace{key})
	}
}

func (z *Zone) exposed(namespace string) bool {
	return len(z.o.Namespaces) == 0 || slices.Contains(z.o.Namespaces, namespace)
}

// labelKey is labels on the wire, in lower case, without the root.
func labelKey(labels ...string) (string, bool) {
	var b strings.Builder
	size := 0
	for _, l := range labels {
		if !validLabel(l) {
			return "", false
		}
		size += 1 + len(l)
	}
	b.Grow(size)
	for _, l := range labels {
		b.WriteByte(byte(len(l)))
		b.WriteString(strings.ToLower(l))
	}
	return b.String(), true
}

// publish brings what readers see of a Service up to date.
func (z *Zone) publish(name model.Name) {
	or := z.origins[name]
	if or == nil {
		return
	}
	key, ok := labelKey(name.Name, name.Namespace)
	if !ok {
		return
	}
	var svc *service
	if or.svc != nil && z.exposed(name.Namespace) {
		svc = compile(key, or.svc, or.slices, &z.o)
	}
	if or.cell == nil {
		or.cell = &cell{}
	}
	old := or.cell.Load()
	z.services.set([]byte(key), svc)
	z.enter(or.cell, old, svc)
	if or.svc == nil && len(or.slices) == 0 {
		delete(z.origins, name)
	}
}

// enter brings the reverse names of a Service up to date: only those of addresses that came or went are touched.
func (z *Zone) enter(c *cell, old, svc *service) {
	was, now := old.addresses(), svc.addresses()
	gone := func(a netip.Addr) { z.changeOwners(a, func(o *owner) *owner { return o.without(c) }) }
	for _, a := range was {
		if _, stays := slices.BinarySearchFunc(now, a, netip.Addr.Compare); !stays {
			gone(a)
		}
	}
	c.Store(svc)
	for _, a := range now {
		if _, stayed := slices.BinarySearchFunc(was, a, netip.Addr.Compare); !stayed {
			z.changeOwners(a, func(o *owner) *owner { return o.with(&owner{addr: a.As16(), svc: c, vip: svc.isVIP(a)}) })
		}
	}
}

// changeOwners gives an address another list of owners. Lists are in order of the Services' names, and never changed:
// readers may be in them.
func (z *Zone) changeOwners(a netip.Addr, change func(*owner) *owner) {
	key := a.As16()
	z.addresses.set(key[:], change(z.addresses.get(key[:])))
}

// with is the list with one more owner; the new one is the list's own.
func (o *owner) with(n *owner) *owner {
	if o == nil || o.svc.Load().name > n.svc.Load().name {
		n.next = o
		return n
	}
	c := *o
	c.next = o.next.with(n)
	return &c
}

func (o *owner) without(svc *cell) *owner {
	switch {
	case o == nil:
		return nil
	case o.svc == svc:
		return o.next
	}
	c := *o
	c.next = o.next.without(svc)
	return &c
}

func (z *Zone) setPod(name model.Name, p *model.Pod) {
	old := z.podded[name]
	if old != nil {
		z.eachPodAddr(old, func(_ [16]byte, list *podNode) *podNode { return list.without(old.Namespace) })
	}
	if p == nil || p.Finished {
		delete(z.podded, name)
		return
	}
	z.podded[name] = p
	z.eachPodAddr(p, func(addr [16]byte, list *podNode) *podNode {
		return &podNode{addr: addr, namespace: p.Namespace, next: list}
	})
}

func (z *Zone) eachPodAddr(p *model.Pod, f func([16]byte, *podNode) *podNode) {
	for _, a := range p.IPs {
		key := a.As16()
		z.pods.set(key[:], f(key, z.pods.get(key[:])))
	}
}

// without takes one entry of a namespace out, leaving the old list whole.
func (p *podNode) without(ns string) *podNode {
	switch {
	case p == nil:
		return nil
	case p.namespace == ns:
		return p.next
	}
	return &podNode{addr: p.addr, namespace: p.namespace, next: p.next.without(ns)}
}

// Apex is the cluster's domain on the wire, in lower case, and how many labels it has.
func (z *Zone) Apex() (string, int) { return z.apex, z.apexLabels }

// SearchTail tells whether a name that does not exist may have come from a pod's search path: something with a dot
// in it, with the search suffix of a namespace that exists. It returns how many octets come before the suffix.
//
// A name whose last label before the suffix is a Service of that namespace was meant for the cluster: it has no such
// endpoint or port now, and must not be taken for a name elsewhere.
func (z *Zone) SearchTail(q *Question) (octets int, ok bool) {
	n, in := q.under(z.apex, z.apexLabels)
	if !in || n < 4 || string(q.label(n-1)) != "svc" || z.namespaces.get(q.name[q.off[n-2]:q.off[n-1]]) == nil {
		return 0, false
	}
	if or := z.services.get(q.name[q.off[n-3]:q.off[n-1]]); or != nil {
		return 0, false
	}
	return int(q.off[n-2]), true
}

// Complete tells whether the zone has seen the whole cluster.
func (z *Zone) Complete() bool { return z.complete.Load() }

// Snapshot is all that the zone has been told, as one Delta. It is the updating goroutine's to call.
func (z *Zone) Snapshot() *model.Delta {
	d := &model.Delta{
		Complete: z.complete.Load(), Since: time.Unix(int64(z.serial.Load()), 0),
		Services: make(map[model.Name]*model.Service), EndpointSlices: z.sliced, Pods: z.podded,
		Namespaces: make(map[string]*model.Namespace),
	}
	for name, or := range z.origins {
		if or.svc != nil {
			d.Services[name] = or.svc
		}
	}
	for name, sp := range z.spaces {
		if sp.object != nil {
			d.Namespaces[name] = sp.object
		}
	}
	return d
}

// Kind is the kind of a Service in the words of the DNS programming latency SLI; "" if it is not known or has no
// endpoints. It is the updating goroutine's to call.
func (z *Zone) Kind(name model.Name) string {
	or := z.origins[name]
	switch {
	case or == nil || or.svc == nil || or.svc.Type == model.ExternalName:
		return ""
	case !or.svc.Headless:
		return "cluster_ip"
	case len(or.svc.Selector) > 0:
		return "headless_with_selector"
	}
	return "headless_without_selector"
}
