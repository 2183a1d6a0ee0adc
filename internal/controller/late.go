// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/weft-net/weft/internal/model"
)

// currentAgain is many times what a watch lags behind.
const currentAgain = 30 * time.Second

// late is a Part that begins once the picture is current. What changes until then becomes its first Delta.
type late struct {
	Part
	current func(context.Context) error
	// again is after how long it is asked anew: of an API server that has begun again with older data a watch may never show
	// what was asked.
	again time.Duration
	log   *slog.Logger

	mu    sync.Mutex
	begun bool
	until *model.Delta // what there was before
}

// Update implements Part.
func (p *late) Update(d *model.Delta) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun {
		p.Part.Update(d)
		return
	}
	if p.until == nil {
		// The Delta is shared between the Parts: merge into a copy, never into it.
		p.until = &model.Delta{Whole: d.Whole}
	}
	p.until.Merge(d)
}

// Run implements Part.
func (p *late) Run(ctx context.Context) {
	backoff := wait.Backoff{Duration: retryMin, Factor: 2, Jitter: 0.5, Steps: 10, Cap: retryMax}
	for {
		asked, cancel := context.WithTimeout(ctx, p.again)
		err := p.current(asked)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			break
		}
		p.log.Error("can't tell whether the picture is current; trying again", "part", p.Name(), "err", err)
		select {
		case <-time.After(backoff.Step()):
		case <-ctx.Done():
			return
		}
	}
	p.mu.Lock()
	if p.begun = true; p.until != nil {
		p.Part.Update(p.until)
		p.until = nil
	}
	p.mu.Unlock()
	p.Part.Run(ctx)
}
