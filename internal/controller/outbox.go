// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
)

// writers is how many of a Part's writes to the API are under way at a time.
const writers = 8

// retryMin and retryMax bound the backoff of a write that failed, each object on its own.
const (
	retryMin = 50 * time.Millisecond
	retryMax = 30 * time.Second
)

// outbox is what is due to be written to the API: each object once, however often that was asked for, and again after a
// while when it failed.
type outbox[T comparable] struct {
	workqueue.TypedRateLimitingInterface[T]

	// write brings an object to what is wanted, if it is not there.
	write func(context.Context, T) error

	// moot tells of a failure that there is nothing to write to any more. If the object comes again, the watch says so.
	moot func(T, error) bool

	// failed is told of every failure but conflicts, which are routine, and how many there have been of the object in a row.
	failed func(item T, failures int, err error)
}

func newOutbox[T comparable](write func(context.Context, T) error, moot func(T, error) bool, failed func(T, int, error)) *outbox[T] {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[T](retryMin, retryMax)
	return &outbox[T]{workqueue.NewTypedRateLimitingQueue(limiter), write, moot, failed}
}

// start begins writing. What it returns ends that, once ctx is done, and waits until the last write has come back.
func (o *outbox[T]) start(ctx context.Context) (end func()) {
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for o.next(ctx) {
			}
		})
	}
	return func() {
		o.ShutDown()
		wg.Wait()
	}
}

// next writes one object and tells whether there may be more.
func (o *outbox[T]) next(ctx context.Context) bool {
	it, down := o.Get()
	if down || ctx.Err() != nil {
		return false
	}
	defer o.Done(it)
	err := o.write(ctx, it)
	switch {
	case err == nil:
		o.Forget(it)
	case ctx.Err() != nil:
	case o.moot(it, err):
		o.Forget(it)
	default:
		if !apierrors.IsConflict(err) {
			o.failed(it, o.NumRequeues(it)+1, err)
		}
		o.AddRateLimited(it)
	}
	return true
}
