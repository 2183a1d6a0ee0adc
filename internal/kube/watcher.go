// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/internal/model"
)

// Options say what to watch.
type Options struct {
	Kinds Kinds

	// Lean leaves out what only people ask for: the selectors and target ports of Services, the names of the pods behind
	// endpoints. In a big cluster that is a good part of what an agent would have to remember.
	Lean bool

	// ForNames leaves out what names are not made of: UIDs, labels, selectors, zones and hints, which are a third of
	// what is kept of Services and EndpointSlices.
	ForNames bool

	// Registerer takes the watcher's metrics; nil keeps none.
	Registerer prometheus.Registerer

	// Record is told of objects that can't be used in full; nil logs only.
	Record func(model.Event)

	Log *slog.Logger // nil is slog.Default()

	// Silence is how long a watch may deliver nothing, bookmarks included, before it is taken for dead and
	// renewed. The API server sends a bookmark about once a minute. 0 is three minutes.
	Silence time.Duration
}

// Watcher follows the chosen kinds and hands out what changed, coalesced. One goroutine calls Next. Until the first call
// it only keeps up: that call then has the whole state at once, as it is by then.
type Watcher struct {
	log    *slog.Logger
	record func(model.Event)
	feeds  []runner
	wake   chan struct{} // capacity 1: something is pending

	forNames bool

	mu      sync.Mutex
	pending *model.Delta
	waiting int // kinds without a first full list
	heard   map[string]time.Time
	renewed *prometheus.CounterVec

	problems map[model.ObjectKey]problem // not told yet

	lag lag
}

// problem is what is wrong with an object.
type problem struct {
	apiVersion string
	uid        types.UID
	err        error
}

// runner is a feed of one kind, its types hidden.
type runner interface {
	run(ctx context.Context)
	kind() string
	renew()
	newest(ctx context.Context) (string, error)
}

// NewWatcher prepares a watcher. Run starts it.
func NewWatcher(cfg *rest.Config, opts Options) (*Watcher, error) {
	core := rest.CopyConfig(cfg)
	core.ContentType = "application/vnd.kubernetes.protobuf"
	core.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	typed, err := kubernetes.NewForConfig(core)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	w := &Watcher{
		log:    opts.Log,
		record: opts.Record,
		wake:   make(chan struct{}, 1),
		heard:  make(map[string]time.Time),
		lag:    lag{reached: make(map[string]string)},

		problems: make(map[model.ObjectKey]problem),
		renewed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_watch_renewed_total",
			Help: "Watches ended by weft because they had delivered nothing, bookmarks included, for too long.",
		}, []string{"kind"}),
	}
	if w.log == nil {
		w.log = slog.Default()
	}
	if w.record == nil {
		w.record = func(model.Event) {}
	}
	silence := opts.Silence
	if silence == 0 {
		silence = 3 * time.Minute
	}
	w.forNames = opts.ForNames
	w.feeds = feedsFor(w, typed, dyn, opts.Kinds, silence, opts.Lean)
	w.waiting = len(w.feeds)
	w.pending = &model.Delta{Whole: true, Since: time.Now()}
	if opts.Registerer != nil {
		if err := opts.Registerer.Register(collector{w}); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Run follows the API until ctx is done. While the API server is away it keeps what it has and tries again.
func (w *Watcher) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, f := range w.feeds {
		wg.Go(func() { f.run(ctx) })
	}
	wg.Wait()
}

// Next waits until something has changed and returns all of it. The first Delta comes when every kind has been
// listed in full: it is the whole state. The error is ctx's.
func (w *Watcher) Next(ctx context.Context) (*model.Delta, error) {
	w.mu.Lock()
	w.lag.asked()
	w.mu.Unlock()
	for {
		w.mu.Lock()
		var d *model.Delta
		var problems map[model.ObjectKey]problem
		if w.waiting == 0 {
			d, problems = w.pending, w.problems
			w.pending, w.problems = nil, make(map[model.ObjectKey]problem)
			w.lag.cut(d != nil)
		}
		w.mu.Unlock()
		for key, p := range problems {
			w.log.Warn("object not usable in full", "kind", key.Kind, "namespace", key.Namespace, "name", key.Name, "problem", p.err)
			w.record(model.Event{APIVersion: p.apiVersion, Kind: key.Kind, UID: string(p.uid), Warning: true,
				Name: model.Name{Namespace: key.Namespace, Name: key.Name}, Reason: "InvalidField", Message: p.err.Error()})
		}
		if d != nil {
			d.Complete = true
			return d, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Age is how long ago the quietest of the watched kinds was last heard of (an event, a bookmark, a list): the age
// of the picture that the watcher's Deltas paint. Before the first full picture it is negative.
func (w *Watcher) Age() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting > 0 {
		return -1
	}
	var age time.Duration
	for _, t := range w.heard {
		age = max(age, time.Since(t))
	}
	return age
}

// Renew ends the watch of a kind ("NetworkPolicy"), which is then opened anew from where it was: for whoever has learned
// otherwise that it is behind.
func (w *Watcher) Renew(kind string) {
	for _, f := range w.feeds {
		if f.kind() == kind {
			f.renew()
		}
	}
}

// change adds to what is pending; put writes into the Delta under the lock.
func (w *Watcher) change(put func(*model.Delta)) {
	w.mu.Lock()
	if w.pending == nil {
		w.pending = &model.Delta{Since: time.Now()}
	}
	if put != nil {
		put(w.pending)
	}
	w.mu.Unlock()
	w.stir()
}

// stir has Next look again.
func (w *Watcher) stir() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// observe notes what is wrong with an object as it is now, for Next to tell; a nil error is nothing.
func (w *Watcher) observe(key model.ObjectKey, apiVersion string, uid types.UID, err error) {
	w.mu.Lock()
	if err == nil {
		delete(w.problems, key)
		w.mu.Unlock()
		return
	}
	w.problems[key] = problem{apiVersion, uid, err}
	w.mu.Unlock()
	w.stir()
}

// listed notes that one more kind has its first full list.
func (w *Watcher) listed() {
	w.mu.Lock()
	w.waiting--
	w.mu.Unlock()
	w.change(nil)
}

func (w *Watcher) hear(kind string) {
	w.mu.Lock()
	w.heard[kind] = time.Now()
	w.mu.Unlock()
}

// collector exports when each kind was last heard of, and the watches renewed.
type collector struct{ w *Watcher }

var heardDesc = prometheus.NewDesc("weft_watch_last_heard_timestamp_seconds",
	"When the API server last said anything about a kind: an event, a bookmark or a list.", []string{"kind"}, nil)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- heardDesc
	c.w.renewed.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.w.renewed.Collect(ch)
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	for kind, t := range c.w.heard {
		ch <- prometheus.MustNewConstMetric(heardDesc, prometheus.GaugeValue, float64(t.UnixMilli())/1000, kind)
	}
}

// Snapshot lists the chosen kinds once.
func Snapshot(ctx context.Context, cfg *rest.Config, kinds Kinds) (*model.Delta, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w, err := NewWatcher(cfg, Options{Kinds: kinds, Log: slog.New(failFast{cancel})})
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	d, err := w.Next(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
	}
	cancel(nil)
	<-done
	return d, err
}

// failFast is a log handler for one-shot commands: the first failed list ends the command with that error, where an
// agent would go on trying. What is left out of an object is told where the program tells such things: an answer may rest on it.
type failFast struct{ cancel context.CancelCauseFunc }

func (failFast) Enabled(context.Context, slog.Level) bool { return true }
func (f failFast) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level < slog.LevelWarn:
		return nil
	case r.Level < slog.LevelError:
		return slog.Default().Handler().Handle(ctx, r)
	}
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && a.Key == "err" {
			f.cancel(err)
			return false
		}
		return true
	})
	return nil
}
func (f failFast) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f failFast) WithGroup(string) slog.Handler      { return f }

// entry carries a translated object through client-go's reflector, which wants to know its key.
type entry struct {
	metav1.ObjectMeta
	value any
	err   error
}

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (e *entry) GetObjectMeta() metav1.Object { return &e.ObjectMeta }

var _ cache.TransformingStore = (*store[model.Service])(nil)
