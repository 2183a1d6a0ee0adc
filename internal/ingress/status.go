// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// shows tells whether a status is exactly some addresses.
func shows(status, addresses []model.IngressAddress) bool {
	return len(status) > 0 && slices.Equal(status, addresses)
}

// statuses lists the Ingresses whose status is to be written: of those that were looked at, or of all when the
// addresses are new. A status is compared with what the Ingress shows, so one that somebody else overwrote is put right.
// While the gateway has no address yet, what Ingresses show is left as it is.
func (s *State) statuses(c *Changes, looked map[model.Name]bool, all bool) (out []Status) {
	for _, g := range s.gone {
		g.Addresses = nil
		out = append(out, g)
	}
	s.gone = nil
	if !all && len(looked) == 0 || len(s.addresses) == 0 && !all {
		return out
	}
	want := func(i *ingress) {
		if i.ours && !i.obj.Deleting && !slices.Equal(i.obj.Status, s.addresses) {
			out = append(out, Status{Name: i.obj.Name, UID: i.obj.UID, Addresses: s.addresses})
		}
	}
	if all {
		for _, i := range s.ingresses {
			want(i)
		}
	} else {
		for name := range looked {
			if i := s.ingresses[name]; i != nil {
				want(i)
			}
		}
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Name.Namespace, b.Name.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	return out
}

// events tells the problems of the Ingresses touched that have not been told yet.
func (s *State) events() (out []model.Event) {
	names := slices.SortedFunc(maps.Keys(s.touch), func(a, b model.Name) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	clear(s.touch)
	for _, name := range names {
		i := s.ingresses[name]
		if i == nil {
			continue
		}
		current := map[problem]bool{}
		for _, p := range s.Problems(name) {
			if current[problem(p)] {
				continue
			}
			current[problem(p)] = true
			if !i.told[problem(p)] {
				out = append(out, model.Event{
					APIVersion: "networking.k8s.io/v1", Kind: "Ingress", Name: name, UID: i.obj.UID,
					Warning: !p.normal, Reason: p.reason, Message: p.message,
				})
			}
		}
		i.told = current
	}
	return out
}

// Problem is something that is wrong with an Ingress, or that its owner should know.
type Problem problem

// Reason is the problem in CamelCase, as the Event has it.
func (p Problem) Reason() string { return p.reason }

// Message is for a person: the field, what is wrong, what was done, the cure.
func (p Problem) Message() string { return p.message }

// Problems lists what is wrong with an Ingress of ours.
func (s *State) Problems(name model.Name) (out []Problem) {
	i := s.ingresses[name]
	if i == nil || !i.ours {
		return nil
	}
	for _, p := range i.problems {
		out = append(out, Problem(p))
	}
	if s.unreachable != "" {
		out = append(out, Problem{reason: "NoAddress", message: s.unreachable})
	}
	for _, h := range i.hosts {
		if unit := s.hosts[h]; unit != nil {
			for _, p := range unit.problems[name] {
				out = append(out, Problem(p))
			}
		}
	}
	return out
}

// Count tells how many Ingresses are ours, and how many of them have problems.
func (s *State) Count() (served, troubled int) {
	for _, i := range s.ingresses {
		if i.ours {
			served++
			if len(i.told) > 0 {
				troubled++
			}
		}
	}
	return served, troubled
}
