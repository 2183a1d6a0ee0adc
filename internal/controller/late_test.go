// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// begins is a Part that tells that it runs.
type begins struct{ ran chan struct{} }

func (b *begins) Name() string            { return "begins" }
func (b *begins) Update(*model.Delta)     {}
func (b *begins) Run(ctx context.Context) { close(b.ran) }

// A version that a watch never shows, as where the API server's data is older than what was asked, is not waited for
// without end: it is asked anew.
func TestLatePartIsNotLateForEver(t *testing.T) {
	asked := 0
	part := &begins{ran: make(chan struct{})}
	p := &late{Part: part, again: time.Millisecond, log: slog.New(slog.DiscardHandler), current: func(ctx context.Context) error {
		if asked++; asked == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	p.Run(ctx)
	select {
	case <-part.ran:
	default:
		t.Fatalf("asked %d times, and it does not begin", asked)
	}
}
