// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/internal/model"
)

// feed follows one kind: O is the API type (a pointer), T the model's.
type feed[O runtime.Object, T any] struct {
	w          *Watcher
	apiVersion string
	kindName   string
	example    O
	lw         lister
	from       func(O) (*T, error)
	put        func(*model.Delta, model.Name, *T)
	silence    time.Duration
	optional   bool // its CRD may not be installed: then there are none

	said   string // the failure last logged, and when
	saidAt time.Time

	mu   sync.Mutex
	stop func() // ends the watch that is open; nil if none is
}

// lister is the part of a typed client that lists and watches a kind.
type lister struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func (f *feed[O, T]) kind() string { return f.kindName }

func (f *feed[O, T]) renew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		f.w.log.Warn("watch is behind: renewing it", "kind", f.kindName)
		f.w.renewed.WithLabelValues(f.kindName).Inc()
		f.stop()
		f.stop = nil
	}
}

func (f *feed[O, T]) run(ctx context.Context) {
	s := &store[T]{
		kind:   f.kindName,
		known:  make(map[model.Name]*T),
		change: f.w.change,
		listed: f.w.listed,
		hear:   f.w.hear,
		reach:  f.w.reach,
		put:    f.put,
		translate: func(o any) *entry {
			return f.translate(o.(O))
		},
		observe: func(name model.Name, uid types.UID, err error) {
			f.w.observe(model.ObjectKey{Kind: f.kindName, Namespace: name.Namespace, Name: name.Name}, f.apiVersion, uid, err)
		},
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := f.lw.list(ctx, o)
			return l, f.failed(ctx, s, "list", err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			in, err := f.lw.watch(ctx, o)
			if err != nil {
				return nil, f.failed(ctx, s, "watch", err)
			}
			return f.guard(in), nil
		},
	}
	r := cache.NewReflectorWithOptions(lw, f.example, s, cache.ReflectorOptions{
		Name: "weft/" + f.kindName,
		// client-go's default grows to half a minute; an agent should be back seconds after its API server is.
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.5, Jitter: 0.5, Steps: 12, Cap: 5 * time.Second},
	})
	r.RunWithContext(ctx)
}

// failed logs what a person must act on. A watch that expired is routine.
func (f *feed[O, T]) failed(ctx context.Context, s *store[T], verb string, err error) error {
	switch {
	case err == nil || ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
	case f.optional && (apierrors.IsNotFound(err) || meta.IsNoMatchError(err)):
		s.absent()
	case apierrors.IsInvalid(err):
		// A server too old for streaming lists; the reflector falls back to a plain one.
	default:
		f.complain(fmt.Errorf("%s %s: %w", verb, f.kindName, err))
	}
	return err
}

// complain logs a failure, and the same one not again for a minute: during an outage a feed tries every few seconds.
func (f *feed[O, T]) complain(err error) {
	var status *url.Error
	text := err.Error()
	if errors.As(err, &status) {
		text = status.Err.Error() // without the request's parameters, which differ every time
	}
	if text == f.said && time.Since(f.saidAt) < time.Minute {
		return
	}
	f.said, f.saidAt = text, time.Now()
	f.w.log.Error("can't follow the API; trying again", "kind", f.kindName, "err", err)
}

func (f *feed[O, T]) translate(o O) *entry {
	v, err := f.from(o)
	m, merr := meta.Accessor(o)
	e := &entry{err: errors.Join(err, merr)}
	if merr == nil {
		e.ObjectMeta = metav1.ObjectMeta{Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUID(), ResourceVersion: m.GetResourceVersion()}
	}
	if v != nil {
		e.value = v
	}
	return e
}

// newest asks the API server for the highest resourceVersion that an object of the kind has; "" where there is none.
func (f *feed[O, T]) newest(ctx context.Context) (string, error) {
	// Without a resourceVersion a list is of the newest state (Kubernetes API concepts, "Resource versions").
	list, err := f.lw.list(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("list %s: %w", f.kindName, err)
	}
	newest := ""
	err = meta.EachListItem(list, func(o runtime.Object) error {
		m, err := meta.Accessor(o)
		if err != nil {
			return err
		}
		v := m.GetResourceVersion()
		c, err := compareVersions(newest, v)
		if c < 0 {
			newest = v
		}
		return err
	})
	return newest, err
}

// guard passes a watch on, notes each sign of life, and ends it when there was none for too long: a connection
// that died without a word is then opened anew, from where it was.
func (f *feed[O, T]) guard(in watch.Interface) watch.Interface {
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	behind := make(chan struct{})
	f.mu.Lock()
	f.stop = func() { close(behind) }
	f.mu.Unlock()
	go func() {
		defer close(events)
		defer in.Stop()
		timer := time.NewTimer(f.silence)
		defer timer.Stop()
		for {
			select {
			case e, ok := <-in.ResultChan():
				if !ok {
					return
				}
				timer.Reset(f.silence)
				f.w.hear(f.kindName)
				select {
				case events <- e:
				case <-out.StopChan():
					return
				}
			case <-out.StopChan():
				return
			case <-behind:
				return
			case <-timer.C:
				f.w.log.Warn("watch fell silent: renewing it", "kind", f.kindName, "after", f.silence)
				f.w.renewed.WithLabelValues(f.kindName).Inc()
				return
			}
		}
	}()
	return out
}

// store is where client-go's reflector delivers: it translates, drops what did not change in any way that weft
// sees, and passes on the rest.
type store[T any] struct {
	kind      string
	known     map[model.Name]*T
	synced    bool
	translate func(any) *entry
	change    func(func(*model.Delta))
	listed    func()
	hear      func(string)
	reach     func(kind, resourceVersion string)
	put       func(*model.Delta, model.Name, *T)
	observe   func(model.Name, types.UID, error)
}

// Transformer has the reflector keep translated values, not API objects, while it collects a streamed list.
func (s *store[T]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return s.entry(o), nil }
}

func (s *store[T]) entry(o any) *entry {
	if e, ok := o.(*entry); ok {
		return e
	}
	return s.translate(o)
}

// Add implements cache.ReflectorStore.
func (s *store[T]) Add(o any) error { return s.Update(o) }

// Update implements cache.ReflectorStore.
func (s *store[T]) Update(o any) error {
	e := s.entry(o)
	name, v := s.take(e)
	if v != nil {
		s.change(func(d *model.Delta) { s.put(d, name, v) })
	}
	return nil
}

// take notes the entry's value as known and returns it, or nil if nothing that weft sees has changed.
func (s *store[T]) take(e *entry) (model.Name, *T) {
	name := model.Name{Namespace: intern(e.Namespace), Name: e.Name}
	v, ok := e.value.(*T)
	if !ok {
		s.observe(name, e.UID, e.err)
		return name, nil
	}
	if old := s.known[name]; old != nil && reflect.DeepEqual(old, v) {
		if e.err == nil {
			s.observe(name, e.UID, nil)
		}
		return name, nil
	}
	s.known[name] = v
	s.observe(name, e.UID, e.err)
	return name, v
}

// Delete implements cache.ReflectorStore.
func (s *store[T]) Delete(o any) error {
	var name model.Name
	if m, err := meta.Accessor(o); err == nil {
		name = model.Name{Namespace: m.GetNamespace(), Name: m.GetName()}
	}
	s.observe(name, "", nil)
	if _, ok := s.known[name]; ok {
		delete(s.known, name)
		s.change(func(d *model.Delta) { s.put(d, name, nil) })
	}
	return nil
}

// Replace implements cache.ReflectorStore: a full list, of which only the difference is passed on.
func (s *store[T]) Replace(objs []any, resourceVersion string) error {
	s.hear(s.kind)
	there := make(map[model.Name]bool, len(objs))
	changed := make(map[model.Name]*T)
	for _, o := range objs {
		name, v := s.take(s.entry(o))
		there[name] = true
		if v != nil {
			changed[name] = v
		}
	}
	for name := range s.known {
		if !there[name] {
			s.observe(name, "", nil)
			delete(s.known, name)
			changed[name] = nil
		}
	}
	if len(changed) > 0 {
		s.change(func(d *model.Delta) {
			for name, v := range changed {
				s.put(d, name, v)
			}
		})
	}
	s.UpdateResourceVersion(resourceVersion)
	s.first()
	return nil
}

// UpdateResourceVersion implements cache.ResourceVersionUpdater: all up to here has been taken in.
func (s *store[T]) UpdateResourceVersion(v string) { s.reach(s.kind, v) }

// absent says that the API server does not know the kind: there are no objects of it.
func (s *store[T]) absent() {
	s.hear(s.kind)
	s.first()
}

func (s *store[T]) first() {
	if !s.synced {
		s.synced = true
		s.listed()
	}
}

// Resync implements cache.ReflectorStore; there is nothing to resync.
func (s *store[T]) Resync() error { return nil }
