// SPDX-License-Identifier: Apache-2.0

// Package node is the agent that runs on every node: it assembles the pipeline from the API server to the kernel
// and serves the CNI plugin. It decides nothing itself; each Part wires one compile package to its apply package.
//
// It imports model, the compile and apply packages, flowlog and the netlink libraries. What the API server is asked, its
// caller hands in: it knows neither kube nor Kubernetes types.
package node

import (
	"context"

	"github.com/weft-net/weft/internal/model"
)

// Part is one concern of the agent: pod wiring, Services, policy, announcements.
type Part interface {
	// Name is a short word for logs, metrics and readiness, such as "services".
	Name() string

	// Update brings the kernel to what the Deltas received so far say and returns when it holds that. The agent
	// calls it from one goroutine, with every Delta in order. A Part keeps its own copy of what it needs.
	//
	// After an error the Part must stay consistent: what was in force stays in force, and the agent calls Update
	// again, with backoff, with what has come since (an empty Delta if nothing has), until it succeeds.
	Update(ctx context.Context, d *model.Delta) error

	// Run does what needs its own goroutines (a socket to serve, drift to repair) until ctx is done. It is called
	// once, before the first Update; it must be safe beside Update.
	Run(ctx context.Context) error
}
