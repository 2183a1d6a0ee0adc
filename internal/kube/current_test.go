// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// Whoever must not act on an old picture waits until the watch has caught up, and what it brought has been dealt with.
func TestCurrent(t *testing.T) {
	s := newAPIServer(t)
	s.apply("cart", svcOnPort(80))
	w, _ := follow(t, s, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var port atomic.Int32 // of the last Delta that was dealt with
	go func() {
		for {
			d, err := w.Next(ctx)
			if err != nil {
				return
			}
			if v := d.Services[named("cart")]; v != nil {
				time.Sleep(20 * time.Millisecond) // which takes its time
				port.Store(int32(v.Ports[0].Port))
			}
		}
	}()
	for range 2 { // whether or not anything has changed since
		if err := w.Current(ctx, "Service"); err != nil || port.Load() != 80 {
			t.Fatalf("port %d, %v", port.Load(), err)
		}
	}

	// The watch is behind.
	s.set(func() { s.mute = true })
	s.apply("cart", svcOnPort(81))
	lists := 0
	s.set(func() { lists = s.listed })
	current := make(chan error, 1)
	go func() { current <- w.Current(ctx, "Service") }()
	for asked := false; !asked; {
		s.set(func() { asked = s.listed > lists })
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-current:
		t.Fatalf("current while the watch is behind: %v", err)
	default:
	}
	short, stop := context.WithTimeout(ctx, time.Millisecond)
	defer stop()
	if err := w.Current(short, "Service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the watch is behind: %v", err)
	}
	s.set(func() { s.mute = false })
	w.Renew("Service")
	if err := <-current; err != nil || port.Load() != 81 {
		t.Errorf("after the watch has caught up: port %d, %v", port.Load(), err)
	}

	// What is newer need not be anything that weft sees.
	touched := svcOnPort(81)
	touched.Annotations = map[string]string{"example.com/touched": "now"}
	s.apply("cart", touched)
	if err := w.Current(ctx, "Service"); err != nil {
		t.Error(err)
	}
	if err := w.Current(ctx, "Pod"); err == nil {
		t.Error("a kind that is not followed is current")
	}
}
