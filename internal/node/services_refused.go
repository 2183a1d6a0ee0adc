// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"maps"
	"slices"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// What the kernel refuses of one Service must not keep all others from being served. A transaction holds many, so the
// one at fault has to be found: by halves. It is left out, its owner is told, and it is tried again when it changes.

// accepted are the rules of a table but those of Services that the kernel refuses.
type accepted struct {
	*service.Table
	refused map[model.Name]error
}

// All implements service.Rules.
func (a accepted) All(f func(service.Frontend, *service.Rule)) {
	a.Table.All(func(fe service.Frontend, r *service.Rule) {
		if a.refused[r.Service] == nil {
			f(fe, r)
		}
	})
}

// whatever leaves open all that the kernel holds: to read it.
type whatever struct{}

func (whatever) All(func(service.Frontend, *service.Rule)) {}
func (whatever) Len() int                                  { return 0 }
func (whatever) Keeps(service.Frontend) bool               { return true }

// owners are the Services of changes, in the order in which they come.
func owners(changes []service.Change) []model.Name {
	var out []model.Name
	seen := make(map[model.Name]bool)
	for _, c := range changes {
		for _, r := range []*service.Rule{c.Old, c.New} {
			if r != nil && !seen[r.Service] {
				seen[r.Service] = true
				out = append(out, r.Service)
			}
		}
	}
	return out
}

// retried are the changes to apply: of a refused Service that has changed, which is tried again, all that it has.
func (s *Services) retried(changes []service.Change) []service.Change {
	if len(s.refused) == 0 {
		return changes
	}
	again := make(map[model.Name]bool)
	for _, name := range owners(changes) {
		if s.refused[name] != nil {
			again[name] = true
			delete(s.refused, name)
		}
	}
	if len(again) == 0 {
		return changes
	}
	out := slices.DeleteFunc(slices.Clone(changes), func(c service.Change) bool { return c.New != nil && again[c.New.Service] })
	return append(out, s.rulesOf(again)...)
}

// rulesOf are all rules of Services, as additions.
func (s *Services) rulesOf(names map[model.Name]bool) []service.Change {
	var out []service.Change
	s.table.All(func(fe service.Frontend, r *service.Rule) {
		if names[r.Service] {
			out = append(out, service.Change{Frontend: fe, New: r})
		}
	})
	return out
}

// isolate finds the Services that the kernel refuses, among the suspects or, if there are none, among all, and brings
// the rest into force. Nothing that is in force ceases to be meanwhile. cause is why it is asked to; it is returned
// where no Service is at fault. Callers hold mu.
func (s *Services) isolate(cause error, suspects []model.Name) error {
	everyone := len(suspects) == 0
	if everyone {
		s.table.All(func(_ service.Frontend, r *service.Rule) {
			if n := len(suspects); n == 0 || suspects[n-1] != r.Service {
				suspects = append(suspects, r.Service)
			}
		})
	}
	if _, err := s.kernel.Sync(whatever{}); err != nil {
		return cause
	}
	found := make(map[model.Name]error)
	if err := s.search(suspects, found); err != nil {
		return err
	}
	maps.Copy(s.refused, found)
	if err := s.sync(); err != nil {
		if everyone {
			return err
		}
		return s.isolate(err, nil)
	}
	for name, err := range found {
		s.log.Error("the kernel refuses a Service; it is left out", "service", name, "err", err)
		e := model.Event{APIVersion: "v1", Kind: "Service", Name: name, Warning: true, Reason: "ServiceRefused",
			Message: fmt.Sprintf("the kernel of node %s refuses this Service, which is not served there; all others are: %v", s.cfg.Node, err)}
		if svc := s.table.Service(name); svc != nil {
			e.UID = svc.UID
		}
		s.cfg.Events(e)
	}
	return nil
}

// search applies Services, by halves where the kernel refuses, and notes those that it refuses by themselves, twice.
// The error is one of reading, after which nothing can be said.
func (s *Services) search(names []model.Name, found map[model.Name]error) error {
	if len(names) == 0 {
		return nil
	}
	set := make(map[model.Name]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	var refused error
	for range 2 {
		if refused = s.kernel.Apply(s.rulesOf(set)); refused == nil {
			return nil
		}
		if _, err := s.kernel.Sync(whatever{}); err != nil {
			return err
		}
		if len(names) > 1 {
			half := len(names) / 2
			if err := s.search(names[:half], found); err != nil {
				return err
			}
			return s.search(names[half:], found)
		}
	}
	found[names[0]] = refused
	return nil
}
