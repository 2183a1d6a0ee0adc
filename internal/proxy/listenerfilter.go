// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/route"
)

// listenerFilters makes ready what a listener's requests pass before a route is looked for (GEP-5224). What can't be done
// refuses all of them: who wrote it meant to keep somebody out.
func (t *tables) listenerFilters(l *route.Listener) (out []*externalAuth, err error) {
	var errs []error
	for i := range l.Filters {
		a, err := &externalAuth{invalid: "the filter is of a kind that listeners don't have"}, error(nil)
		if c := l.Filters[i].ExternalAuth; c != nil {
			a, err = t.externalFilter(c)
		} else {
			err = errors.New(a.invalid)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: filters[%d]: %w", l.Key, i, err))
		}
		if a != nil {
			out = append(out, a)
		}
	}
	return out, errors.Join(errs...)
}

// beforeRouting has the listener's filters act, each on what the ones before it made of the request. It is false when one of
// them has answered: none after it acts, and no route is looked for. What they do to Host is of no effect, since it is not
// among the fields that a listener and a route are found by, nor those that an endpoint gets.
func (x *exchange) beforeRouting() bool {
	x.plan = x.listener.unrouted.planFor(x.listener) // shapes their answers, too
	for _, a := range x.listener.filters {
		if !a.admit(x) {
			x.filtered = true
			return false
		}
		x.asked.query = x.query // what is routed, and asked about from now on
	}
	return true
}
