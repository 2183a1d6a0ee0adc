// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Options are what a State needs to know of its surroundings.
type Options struct {
	// ReservedPorts are ports that a gateway's pod binds for itself, such as that of its metrics: no listener can be
	// bound there.
	ReservedPorts []uint16
}

// State holds the objects and what was compiled from them. It is for one goroutine at a time.
type State struct {
	opts Options
}

// New makes a State that knows of nothing.
func New(opts Options) *State { return &State{opts: opts} }

// Apply takes a change and tells what follows. The first Change should be the whole state: what is not known counts as
// not existing.
func (s *State) Apply(c *Change) *Output { return &Output{} }

// Tables gives all of a Gateway's tables: a Complete update without a revision; nil for what is not a Gateway of ours.
func (s *State) Tables(gateway model.Name) *route.Update { return nil }
