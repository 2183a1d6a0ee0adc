// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Candidate is a node that may take an address's traffic.
type Candidate struct {
	Node string

	// Score ranks candidates: only those with the highest score among the living come into question. It counts the
	// address's Services that the node serves well, after whether the node is heard of and here to stay.
	Score int
}

// The parts of a Score.
const (
	servesWell  = 2       // Cluster; or Local with a ready endpoint on the node
	servesStill = 1       // Local with none but terminating endpoints that still serve (KEP-1669)
	nodeIsSound = 1 << 20 // above any sum of the former
)

// Electorate knows who may announce each LoadBalancer address, following the cluster Delta by Delta. An address is
// one that a Service of type LoadBalancer has in its status, put there by weft (AllocatedAnnotation) for packets to
// be sent to (ipMode VIP).
//
// Who may: every node that serves the address's Services (with externalTrafficPolicy Local, those that have
// endpoints), is not being deleted, and does not have the node.kubernetes.io/exclude-from-external-load-balancers
// label. Nodes of which the control plane hears nothing, as their agents may hear nothing from it either, and those that
// the cluster autoscaler is about to delete, come into question only where no other does.
//
// It is not safe for concurrent use.
type Electorate struct {
	nodes    map[string]*model.Node
	services map[model.Name]*model.Service                      // with addresses
	slices   map[model.Name]*model.EndpointSlice                // of all Services, for any may get an address
	local    map[model.Name]map[model.Name]*model.EndpointSlice // by Service, of those with addresses and externalTrafficPolicy Local
	byAddr   map[netip.Addr]map[model.Name]bool                 // address -> Services
	all      map[int][]Candidate                                // what Candidates gives for externalTrafficPolicy Cluster, by score
}

// NewElectorate returns an Electorate that knows of nothing yet.
func NewElectorate() *Electorate {
	return &Electorate{
		nodes:    make(map[string]*model.Node),
		services: make(map[model.Name]*model.Service),
		slices:   make(map[model.Name]*model.EndpointSlice),
		local:    make(map[model.Name]map[model.Name]*model.EndpointSlice),
		byAddr:   make(map[netip.Addr]map[model.Name]bool),
		all:      make(map[int][]Candidate),
	}
}

// Apply takes in what changed and names the addresses whose candidates may have changed, in order. It reads
// Services, EndpointSlices and Nodes.
func (e *Electorate) Apply(d *model.Delta) []netip.Addr {
	changed := make(map[netip.Addr]bool)
	touch := func(name model.Name) {
		if s := e.services[name]; s != nil {
			for _, x := range announced(s) {
				changed[x] = true
			}
		}
	}
	newcomers := false
	for name, s := range d.Services {
		touch(name)
		newcomers = e.setService(name, s) || newcomers
		touch(name)
	}
	for name, s := range d.EndpointSlices {
		old, now := serviceOf(e.slices[name]), serviceOf(s)
		if now == (model.Name{}) {
			delete(e.slices, name)
		} else {
			e.slices[name] = s
		}
		if of := e.local[old]; of != nil {
			delete(of, name)
			touch(old)
		}
		if of := e.local[now]; of != nil {
			of[name] = s
			touch(now)
		}
	}
	if newcomers {
		for name, s := range e.slices {
			if of := e.local[serviceOf(s)]; of != nil {
				of[name] = s
			}
		}
	}
	for name, n := range d.Nodes {
		if standing(n) == standing(e.nodes[name]) {
			continue
		}
		if n == nil {
			delete(e.nodes, name)
		} else {
			e.nodes[name] = n
		}
		clear(e.all)
		for x := range e.byAddr {
			changed[x] = true
		}
	}
	return slices.SortedFunc(maps.Keys(changed), netip.Addr.Compare)
}

// serviceOf is the Service that a slice has endpoints of; none if they have no addresses.
func serviceOf(s *model.EndpointSlice) model.Name {
	if s == nil || s.Service == "" || s.FQDN {
		return model.Name{}
	}
	return model.Name{Namespace: s.Namespace, Name: s.Service}
}

// standing is what of a node matters here: may it, and is it heard of and here to stay. Whether it is Ready matters not: its
// kubelet may have trouble for a moment, and moving an address breaks the connections to it (KEP-3458).
func standing(n *model.Node) [2]bool {
	if n == nil || n.Deleting || n.ExcludedFromLB {
		return [2]bool{}
	}
	return [2]bool{true, !n.Unreachable && !n.ToBeDeleted}
}

// announced are the addresses of a Service that nodes announce.
func announced(s *model.Service) []netip.Addr {
	if s == nil || s.Type != model.LoadBalancer || s.Deleting || s.OtherProxy() || s.Annotations[AllocatedAnnotation] == "" {
		return nil
	}
	var out []netip.Addr
	for _, in := range s.Ingress {
		if in.IP.IsValid() && !in.Proxy {
			out = append(out, in.IP)
		}
	}
	return out
}

// setService tells whether the Service's slices are to be looked up.
func (e *Electorate) setService(name model.Name, s *model.Service) (newcomer bool) {
	for _, x := range announced(e.services[name]) {
		if delete(e.byAddr[x], name); len(e.byAddr[x]) == 0 {
			delete(e.byAddr, x)
		}
	}
	addrs := announced(s)
	if len(addrs) == 0 || !s.ExternalLocal {
		delete(e.local, name)
	} else if e.local[name] == nil {
		e.local[name] = make(map[model.Name]*model.EndpointSlice)
		newcomer = true
	}
	if len(addrs) == 0 {
		delete(e.services, name)
		return false
	}
	e.services[name] = s
	for _, x := range addrs {
		if e.byAddr[x] == nil {
			e.byAddr[x] = make(map[model.Name]bool)
		}
		e.byAddr[x][name] = true
	}
	return newcomer
}

// Addresses are all that are to be announced, in order.
func (e *Electorate) Addresses() []netip.Addr {
	return slices.SortedFunc(maps.Keys(e.byAddr), netip.Addr.Compare)
}

// Services are those that have the address, in order.
func (e *Electorate) Services(x netip.Addr) []*model.Service {
	var out []*model.Service
	for _, name := range slices.SortedFunc(maps.Keys(e.byAddr[x]), model.Name.Compare) {
		out = append(out, e.services[name])
	}
	return out
}

// Candidates are the nodes that may announce the address, in order of name; none if the address is nobody's. The
// slice is shared and read-only.
func (e *Electorate) Candidates(x netip.Addr) []Candidate {
	everywhere := 0 // what every node serves
	here := make(map[string]int)
	for name := range e.byAddr[x] {
		if !e.services[name].ExternalLocal {
			everywhere += servesWell
			continue
		}
		for node, how := range e.endpoints(name, model.FamilyOf(x)) {
			here[node] += how
		}
	}
	if out, ok := e.all[everywhere]; ok && len(here) == 0 && everywhere > 0 {
		return out
	}
	var out []Candidate
	add := func(name string) {
		may := standing(e.nodes[name])
		if !may[0] {
			return
		}
		score := everywhere + here[name]
		if may[1] {
			score += nodeIsSound
		}
		out = append(out, Candidate{name, score})
	}
	if everywhere > 0 {
		for name := range e.nodes {
			add(name)
		}
	} else {
		for name := range here {
			add(name)
		}
	}
	slices.SortFunc(out, func(a, b Candidate) int { return strings.Compare(a.Node, b.Node) })
	if len(here) == 0 && everywhere > 0 {
		e.all[everywhere] = out
	}
	return out
}

// endpoints tells how well each node with endpoints of the Service serves it.
func (e *Electorate) endpoints(name model.Name, f model.Family) map[string]int {
	out := make(map[string]int)
	for _, s := range e.local[name] {
		if s.Family != f {
			continue
		}
		for i := range s.Endpoints {
			switch ep := &s.Endpoints[i]; {
			case ep.Node == "":
			case ep.Ready:
				out[ep.Node] = servesWell
			case ep.Serving && ep.Terminating:
				out[ep.Node] = max(out[ep.Node], servesStill)
			}
		}
	}
	return out
}

// Owner is the node that announces the address, of those candidates for which live holds; "" if there is none. All
// nodes come to the same answer from the same candidates, with no word exchanged, and a node that comes or goes
// moves no address but those that it wins or had (rendezvous hashing). The hash is part of the protocol between
// nodes: it must not change between versions that run side by side.
func Owner(x netip.Addr, candidates []Candidate, live func(node string) bool) string {
	best := Candidate{}
	var bestWeight uint64
	seed := fnv(fnvOffset, x.As16())
	for _, c := range candidates {
		if c.Score < best.Score || !live(c.Node) {
			continue
		}
		w := mix(fnv(seed, c.Node))
		if c.Score > best.Score || w > bestWeight || (w == bestWeight && cmp.Less(c.Node, best.Node)) {
			best, bestWeight = c, w
		}
	}
	return best.Node
}

// The weight of a node for an address is FNV-1a over the address's 16 octets and the node's name, its bits then mixed
// (the finalizer of MurmurHash3): FNV alone leaves the high bits of similar names alike.
const fnvOffset, fnvPrime uint64 = 14695981039346656037, 1099511628211

func fnv[B string | [16]byte](h uint64, b B) uint64 {
	for i := range len(b) {
		h = (h ^ uint64(b[i])) * fnvPrime
	}
	return h
}

func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
