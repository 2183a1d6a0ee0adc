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

// Overview is a cluster's LoadBalancer addresses as a person wants to see them. Its JSON is what `weft addresses -o
// json` prints.
type Overview struct {
	Pools    []PoolView    `json:"pools"`
	Services []ServiceView `json:"services"`
}

// PoolView is an AddressPool.
type PoolView struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Auto      bool     `json:"autoAssign"`
	Accepted  bool     `json:"accepted"`
	Reason    string   `json:"reason"`
	Message   string   `json:"message"`
	IPv4      Usage    `json:"ipv4"`
	IPv6      Usage    `json:"ipv6"`
}

// ServiceView is a Service that weft serves.
type ServiceView struct {
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	Addresses []AddressView `json:"addresses,omitempty"`
	Reason    string        `json:"reason,omitempty"`  // of what it lacks
	Message   string        `json:"message,omitempty"` // the same, and the cure
}

// AddressView is an address of a Service.
type AddressView struct {
	Address netip.Addr `json:"address"`
	Pool    string     `json:"pool"`
	Shown   bool       `json:"inStatus"` // the Service's status has it: clients can know it

	// Announcers are the nodes that say they announce it: one, except for a moment. Unknown where Asked is false.
	Announcers []string `json:"announcers,omitempty"`
	Asked      bool     `json:"announcersKnown"`

	// Owner is the node that is to announce it if all of Candidates live; "" if no node may.
	Owner      string   `json:"owner,omitempty"`
	Candidates []string `json:"candidates,omitempty"`
	Nobody     string   `json:"nobody,omitempty"` // why no node may, and the cure
}

// View draws up an Overview from the whole state. announced is what each node says it announces; nil is not known.
func View(d *model.Delta, opts Options, announced map[string][]netip.Addr) Overview {
	alloc, voters := New(opts), NewElectorate()
	alloc.Apply(d)
	voters.Apply(d)
	says := make(map[netip.Addr][]string)
	for _, node := range slices.Sorted(maps.Keys(announced)) {
		for _, a := range announced[node] {
			if !slices.Contains(says[a], node) {
				says[a] = append(says[a], node)
			}
		}
	}
	var out Overview
	pools := alloc.Pools()
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		p, s := d.AddressPools[name], pools[name]
		v := PoolView{Name: name, Auto: !p.ManualOnly, Accepted: s.Accepted, Reason: s.Reason, Message: s.Message, IPv4: s.IPv4, IPv6: s.IPv6}
		for _, r := range p.Ranges {
			v.Addresses = append(v.Addresses, r.String())
		}
		out.Pools = append(out.Pools, v)
	}
	for name, decision := range alloc.Decisions() {
		if !decision.Ours {
			continue
		}
		v := ServiceView{Namespace: name.Namespace, Name: name.Name, Reason: decision.Problem.Reason, Message: decision.Problem.Message}
		for _, x := range decision.Addresses {
			a := AddressView{Address: x.Addr, Pool: x.Pool, Announcers: says[x.Addr], Asked: announced != nil,
				Shown: slices.Contains(statusAddrs(d.Services[name]), x.Addr)}
			candidates := voters.Candidates(x.Addr)
			a.Owner = Owner(x.Addr, candidates, func(string) bool { return true })
			for _, c := range candidates {
				a.Candidates = append(a.Candidates, c.Node)
			}
			if len(candidates) == 0 {
				a.Nobody = nobody(d.Services[name], a.Shown)
			}
			v.Addresses = append(v.Addresses, a)
		}
		out.Services = append(out.Services, v)
	}
	slices.SortFunc(out.Services, func(x, y ServiceView) int {
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
	return out
}

// nobody says why no node may announce an address of a Service.
func nobody(s *model.Service, shown bool) string {
	switch {
	case !shown:
		return "the Service's status does not have it yet"
	case s.ExternalLocal:
		return "externalTrafficPolicy is Local, and no node that may announce has a ready endpoint: make its pods ready (weft service " +
			s.Meta.Name.Name + " -n " + s.Meta.Namespace + " says what they lack), or use externalTrafficPolicy: Cluster"
	}
	return "no node may: each has the label node.kubernetes.io/exclude-from-external-load-balancers, or is being deleted"
}
