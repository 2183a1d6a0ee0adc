// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// lag is how far a Watcher's watches are, and who waits for that. The Watcher's lock guards it.
type lag struct {
	reached map[string]string // resourceVersions by kind: what is pending, or has been handed out, holds all up to here
	waits   []*awaited
}

// awaited is what a call of Current waits for.
type awaited struct {
	kind, version string
	out           bool // Next has handed it out; its caller may not be done yet
	done          chan struct{}
}

// Current waits until all that others had written to objects of a kind ("Service") when it was called has been handed out
// by Next, whose caller has dealt with it and asked for more: a watch may lag, and whoever acts on what it shows would undo
// what they did. That an object is gone may still be on its way. It takes the right to list the kind, and reads all of it
// once. The error is the API server's or ctx's.
func (w *Watcher) Current(ctx context.Context, kind string) error {
	i := slices.IndexFunc(w.feeds, func(f runner) bool { return f.kind() == kind })
	if i < 0 {
		return fmt.Errorf("%s is no kind that is followed here", kind)
	}
	version, err := w.feeds[i].newest(ctx)
	if err != nil || version == "" {
		return err
	}
	one := &awaited{kind: kind, version: version, done: make(chan struct{})}
	w.mu.Lock()
	w.lag.waits = append(w.lag.waits, one)
	w.mu.Unlock()
	w.stir()
	select {
	case <-one.done:
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.lag.waits = slices.DeleteFunc(w.lag.waits, func(o *awaited) bool { return o == one })
		return ctx.Err()
	}
}

// reach notes that all of a kind up to a resourceVersion is pending or has been handed out.
func (w *Watcher) reach(kind, version string) {
	w.mu.Lock()
	w.lag.reached[kind] = version
	waiting := len(w.lag.waits) > 0
	w.mu.Unlock()
	if waiting {
		w.stir()
	}
}

// cut notes that what was pending is being handed out; anything is false when nothing was.
func (l *lag) cut(anything bool) {
	for _, o := range l.waits {
		if n, err := compareVersions(l.reached[o.kind], o.version); err == nil && n >= 0 {
			o.out = true
		}
	}
	if !anything {
		l.asked()
	}
}

// asked notes that whoever calls Next has dealt with all that was handed out before.
func (l *lag) asked() {
	l.waits = slices.DeleteFunc(l.waits, func(o *awaited) bool {
		if o.out {
			close(o.done)
		}
		return o.out
	})
}

// compareVersions is -1, 0 or 1 as a is older than b, the same or newer. "" is older than all. The error is that of a
// resourceVersion which is no number (KEP-5504).
func compareVersions(a, b string) (int, error) {
	switch {
	case a == b:
		return 0, nil
	case a == "":
		return -1, nil
	case b == "":
		return 1, nil
	}
	return resourceversion.CompareResourceVersion(a, b)
}
